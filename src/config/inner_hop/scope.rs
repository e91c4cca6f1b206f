//! Which hops a rule has: its own inline one, or those of the entries that are for it, or the one at the top; and
//! whether its services can be held to them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Hop, HopEntry, Hops, Inline, InnerHop, MutualTls};
use crate::config::allowlist::ServicePattern;
use crate::config::hostname::Hostname;
use crate::config::mistakes::Place;
use crate::config::reader::{Dialect, Reader};
use crate::config::rules::Rule;
use crate::config::service::Service;

/// What decides about hops while rules are read.
#[derive(Debug)]
pub(crate) struct Scope<'a> {
    local: &'a InnerHop,
    /// The inline ones, as the entries that they become once rules are pushed.
    pub(crate) inline: Vec<HopEntry>,
    /// Identities that they present.
    pub(crate) used: BTreeSet<String>,
}

/// Where the services of a rule stand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServiceAt<'a> {
    pub(crate) place: Place,
    pub(crate) path: &'a str,
}

impl<'a> Scope<'a> {
    pub(crate) fn new(local: &'a InnerHop) -> Self {
        Self { local, inline: Vec::new(), used: BTreeSet::new() }
    }

    /// Settles the hops of a rule that is whole but for them. What cannot be held to them is reported.
    pub(crate) fn hops(
        &mut self,
        reader: &mut Reader<'_>,
        rule: &Rule,
        at: ServiceAt<'_>,
        inline: Option<&Inline>,
    ) -> Hops {
        if !rule.service.has_hop() {
            if let Some(inline) = inline {
                let message = format!("has no effect on {}, which adit answers itself", rule.service);
                reader.report.mistake(inline.place, &inline.path, message);
            }
            return Hops::always(Arc::default());
        }
        let hops = match inline {
            Some(inline) => Hops::always(self.of_inline(reader, rule, inline)),
            None => self.of_entries(reader, rule, at),
        };
        let hops = self.opened(&rule.service, hops);
        let callers = |hop: &Arc<Hop>| hop.callers.clone();
        if hops.each().filter_map(callers).any(|callers| !callers.knows_somebody() && !callers.allow_invalid_or_missing)
        {
            let message = "neither `trustAnchors` nor `allowlisted` among its `callers`: nobody is valid, and requests are \
                           answered 403";
            reader.report.warning(at.place, at.path, message);
        }
        let mut told = BTreeSet::new();
        for hop in hops.each() {
            let services = rule.services().map(|(service, _)| service);
            for reason in services.flat_map(|service| hop.unsatisfied(service, &rule.origin)) {
                if !told.contains(&reason) {
                    reader.floor(at.place, at.path, &reason);
                    told.insert(reason);
                }
            }
        }
        hops
    }

    fn of_inline(&mut self, reader: &mut Reader<'_>, rule: &Rule, inline: &Inline) -> Arc<Hop> {
        // Where only rules speak of the inner hop, it is as demanding as it would be at the top.
        let alone = Hop { mode: MutualTls::Remote, ..Hop::default() };
        let inherited = self.local.top.as_deref().unwrap_or(&alone);
        let hop = Arc::new(inline.over(inherited, self.local, reader));
        inline.check_effect(&rule.service, rule.origin.no_tls_verify, reader.report);
        self.used.extend(inline.presents().map(str::to_owned));
        let services: Vec<_> = rule.services().map(|(service, _)| ServicePattern::exact(service)).collect();
        // Pushed rules have paths of their own, so that of two rules which differ by path only one can speak for both.
        let first = self.inline.iter().find(|before| before.hostname == rule.hostname && before.services == services);
        if first.is_some_and(|first| first.hop != hop) {
            let message = "of an earlier rule holds for this host and service once the edge pushes rules";
            reader.report.warning(inline.place, &inline.path, format!("the `innerHop` {message}"));
        }
        self.inline.push(HopEntry { hostname: rule.hostname.clone(), services, hop: hop.clone() });
        hop
    }

    fn of_entries(&self, reader: &mut Reader<'_>, rule: &Rule, at: ServiceAt<'_>) -> Hops {
        let pushed = reader.dialect == Dialect::Pushed;
        let inline = if pushed { &self.local.inline[..] } else { &[] };
        let entries = inline.iter().map(|entry| (entry, true)).chain(self.local.entries.iter().map(|e| (e, false)));
        let mut choices: Vec<(Option<_>, Arc<Hop>)> = Vec::new();
        for (position, (entry, inline)) in entries.enumerate() {
            let (all, disjoint) = match (&entry.hostname, &rule.hostname) {
                (None, _) => (true, false),
                (Some(_), None) => (false, false),
                (Some(entry), Some(rule)) => (entry.covers(rule), !entry.meets(rule)),
            };
            let hidden = |(hostname, _): &(Option<Hostname>, _)| match (hostname, &entry.hostname) {
                (Some(before), Some(entry)) => before.covers(entry),
                _ => false,
            };
            if disjoint || choices.iter().any(hidden) {
                continue;
            }
            let services = rule.services().map(|(service, _)| service);
            let meant = services.filter(|service| entry.is_for(service)).count();
            if meant == 0 {
                continue;
            }
            if meant <= rule.others.len() {
                let name = if inline {
                    "an inline `innerHop` of the file".to_owned()
                } else {
                    format!("`innerHop.rules[{}]`", position - self.local.inline.len() * usize::from(pushed))
                };
                let message =
                    format!("{name} is for some of these services and not for others; they need rules of their own");
                reader.floor(at.place, at.path, &message);
                continue;
            }
            if all {
                return Hops { choices, otherwise: Some(entry.hop.clone()) };
            }
            choices.push((entry.hostname.clone(), entry.hop.clone()));
        }
        let entries = !self.local.inline.is_empty() || !self.local.entries.is_empty();
        // With entries, a pushed rule is let in where one of them is for it, and nowhere else.
        let otherwise = (!(pushed && entries)).then(|| self.local.top.clone().unwrap_or_default());
        Hops { choices, otherwise }
    }

    /// `privateNetwork: allow` takes the demands off what leads wherever the visitor says.
    fn opened(&self, service: &Service, hops: Hops) -> Hops {
        if !self.local.private_network || !matches!(service, Service::Bastion | Service::SocksProxy) {
            return hops;
        }
        let open = |hop: Arc<Hop>| match hop.mode {
            MutualTls::Always | MutualTls::Remote => Arc::new(Hop { mode: MutualTls::Optional, ..(*hop).clone() }),
            MutualTls::Optional | MutualTls::Passthrough => hop,
        };
        Hops {
            choices: hops.choices.into_iter().map(|(hostname, hop)| (hostname, open(hop))).collect(),
            otherwise: hops.otherwise.map(open),
        }
    }
}

impl HopEntry {
    fn is_for(&self, service: &Service) -> bool {
        self.services.is_empty() || self.services.iter().any(|pattern| pattern.matches(service))
    }
}
