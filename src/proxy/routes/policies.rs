//! The policy of each hop, and which headers speak of certificates.

use std::{collections::HashMap, sync::Arc};

use super::RouteError;
use crate::{
    callers::{Policy, check::Check, families::Families},
    config::{Hop, InnerHop, MutualTls, Rule, Service},
    tls::{callers::CallerTrust, keyring::Keyring},
};

/// Makes policies. Hops with the same trust share what is remembered of certificates.
pub(super) struct Policies<'a> {
    keyring: &'a Keyring,
    inner_hop: &'a InnerHop,
    /// By address: the keyring holds one trust for equal sources.
    checks: HashMap<*const CallerTrust, Arc<Check>>,
}

impl<'a> Policies<'a> {
    pub(super) fn new(keyring: &'a Keyring, inner_hop: &'a InnerHop) -> Self {
        Self { keyring, inner_hop, checks: HashMap::new() }
    }

    /// Trust that cannot be used lets nobody pass.
    ///
    /// # Errors
    ///
    /// [`RouteError::PrivateNetwork`]: a visitor names the service, and nobody could say what it has to prove.
    pub(super) fn of(&mut self, rule: &Rule, hop: &Hop) -> Result<Policy, RouteError> {
        let named_by_visitor = matches!(rule.service, Service::Bastion | Service::SocksProxy);
        if named_by_visitor && demands(hop) && !self.inner_hop.private_network {
            return Err(RouteError::PrivateNetwork(rule.spelling.clone()));
        }
        let Some(callers) = &hop.callers else { return Ok(Policy::open()) };
        Ok(match self.keyring.caller_trust(callers) {
            Ok(trust) => {
                let check = self.checks.entry(Arc::as_ptr(&trust)).or_insert_with(|| Arc::new(Check::new(trust)));
                Policy::new(callers, check.clone())
            }
            Err(unusable) => Policy::closed(unusable.to_string()),
        })
    }
}

/// Whether the hop must be mutually authenticated.
pub(super) fn demands(hop: &Hop) -> bool {
    matches!(hop.mode, MutualTls::Always | MutualTls::Remote)
}

/// What no visitor may say once the file speaks of the inner hop anywhere: every known family, and those under the
/// prefixes that are configured, wherever they are.
pub(super) fn families(inner_hop: &InnerHop, rules: &[Rule]) -> Option<Arc<Families>> {
    if !inner_hop.strips {
        return None;
    }
    let of_rules =
        rules.iter().flat_map(|rule| rule.hops.choices.iter().map(|(_, hop)| hop).chain(&rule.hops.otherwise));
    let of_rules = of_rules.filter_map(|hop| hop.callers.as_ref()).map(|callers| &callers.header_prefix);
    Some(Arc::new(Families::new(inner_hop.prefixes.iter().chain(of_rules).map(String::as_str))))
}
