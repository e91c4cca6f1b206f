//! Identities and trust: how long they last, and what became of those that changed.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::{IntGauge, Outcome, configuration::OutcomeLabel};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IdentityLabel {
    identity: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TrustLabel {
    trust: &'static str,
}

/// The metrics of secrets.
#[derive(Debug, Default)]
pub struct Identities {
    not_after: Family<IdentityLabel, IntGauge>,
    trust_not_after: Family<TrustLabel, IntGauge>,
    lists_not_after: Family<TrustLabel, IntGauge>,
    reloads: Family<OutcomeLabel, Counter>,
    last_reload: IntGauge,
    unusable: IntGauge,
    generation: IntGauge,
}

impl Identities {
    pub(super) fn new() -> Self {
        let new = Self::default();
        for outcome in Outcome::ALL {
            drop(new.reloads.get_or_create(&outcome.label()));
        }
        new.last_reload.set(1);
        new
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "adit_identity_not_after_seconds",
            "When an identity or a certificate of its chain expires, since 1970",
            self.not_after.clone(),
        );
        r.register(
            "adit_trust_not_after_seconds",
            "When the first anchor of a trust expires, since 1970",
            self.trust_not_after.clone(),
        );
        r.register(
            "adit_revocation_list_not_after_seconds",
            "When the first revocation list of a trust is no longer current, since 1970",
            self.lists_not_after.clone(),
        );
        r.register("adit_secret_reloads", "Readings of changed secrets, by outcome", self.reloads.clone());
        r.register(
            "adit_secret_last_reload_successful",
            "Whether all secrets as they are now could be used",
            self.last_reload.clone(),
        );
        r.register("adit_secrets_unusable", "Secrets that rules need and that cannot be used", self.unusable.clone());
        r.register("adit_keyring_generation", "Count of the sets of secrets so far", self.generation.clone());
    }

    /// This generation is in force, with so many unusable parts.
    pub fn in_force(&self, generation: u64, unusable: usize) {
        self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.unusable.set(i64::try_from(unusable).unwrap_or(i64::MAX));
    }

    /// When each identity ends, by name, when the first anchor of each kind of trust does, and when the first revocation
    /// list does; those of before are forgotten.
    pub fn last(
        &self,
        identities: impl Iterator<Item = (String, i64)>,
        trusts: impl Iterator<Item = (&'static str, i64)>,
        lists: impl Iterator<Item = (&'static str, i64)>,
    ) {
        self.not_after.clear();
        self.trust_not_after.clear();
        self.lists_not_after.clear();
        for (identity, not_after) in identities {
            self.not_after.get_or_create(&IdentityLabel { identity }).set(not_after);
        }
        first(&self.trust_not_after, trusts);
        first(&self.lists_not_after, lists);
    }

    /// Secrets were read again.
    pub fn reloaded(&self, outcome: Outcome) {
        self.reloads.get_or_create(&outcome.label()).inc();
        self.last_reload.set((outcome != Outcome::Refused).into());
    }
}

/// The first of the times of each label.
fn first(family: &Family<TrustLabel, IntGauge>, times: impl Iterator<Item = (&'static str, i64)>) {
    for (trust, not_after) in times {
        let gauge = family.get_or_create_owned(&TrustLabel { trust });
        let before = gauge.get();
        gauge.set(if before == 0 { not_after } else { before.min(not_after) });
    }
}
