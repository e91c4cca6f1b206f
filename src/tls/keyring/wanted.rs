//! Which secrets a configuration needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use super::{CallerSources, sources_of};
use crate::{
    config::{Callers, Config, Guard, Hop, IdentitySource, SecretRef},
    secrets,
};

/// Everything that a keyring is to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What is presented, with every name that rules or listeners know it by.
    pub(super) identities: BTreeMap<IdentitySource, BTreeSet<Arc<str>>>,
    pub(super) origin_trust: BTreeSet<Vec<SecretRef>>,
    pub(super) caller_trust: BTreeSet<CallerSources>,
}

impl Wanted {
    /// What these settings refer to: on the rules of the file, on those that may be pushed, and at guards. An identity
    /// that nothing presents is not among it.
    pub fn of(config: &Config) -> Self {
        let mut wanted = Self::default();
        let rules = config.ingress.iter().flat_map(|ingress| &ingress.rules);
        let choices = |rule| {
            let hops: &crate::config::Hops = rule;
            hops.choices.iter().map(|(_, hop)| hop).chain(&hops.otherwise)
        };
        let entries = config.inner_hop.entries.iter().chain(&config.inner_hop.inline).map(|entry| &entry.hop);
        let of_rules = rules.flat_map(|rule| choices(&rule.hops)).chain(entries).chain(&config.inner_hop.top);
        for hop in of_rules {
            wanted.hop(hop);
        }
        for guard in &config.guards {
            wanted.guard(guard);
        }
        wanted
    }

    /// What one guard refers to.
    pub(super) fn of_guard(guard: &Guard) -> Self {
        let mut wanted = Self::default();
        wanted.guard(guard);
        wanted
    }

    fn guard(&mut self, guard: &Guard) {
        self.hop(&guard.hop);
        let name = format!("guard {}", guard.listen).into();
        self.identities.entry(guard.certificate.clone()).or_default().insert(name);
        self.callers(&guard.callers);
    }

    fn hop(&mut self, hop: &Hop) {
        if let Some(identity) = &hop.present {
            let names = self.identities.entry(identity.source.clone()).or_default();
            names.insert(identity.name.as_str().into());
        }
        self.origin_trust.extend(hop.origin_trust.clone());
        if let Some(callers) = &hop.callers {
            self.callers(callers);
        }
    }

    fn callers(&mut self, callers: &Callers) {
        let sources = sources_of(callers);
        // Headers can be chosen without knowing anybody.
        if sources.iter().any(|list| !list.is_empty()) {
            self.caller_trust.insert(sources);
        }
    }

    /// Whether there is nothing to load.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The files that all of it comes from, each once.
    pub fn files(&self) -> Vec<PathBuf> {
        let identities = self.identities.keys().flat_map(|source| source.key.iter().chain([&source.certificate]));
        let trust = self.origin_trust.iter().chain(self.caller_trust.iter().flatten()).flatten();
        let files: BTreeSet<_> = identities.chain(trust).filter_map(secrets::file_of).collect();
        files.into_iter().collect()
    }
}
