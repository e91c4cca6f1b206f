//! Where the rules in force come from, and what became of those that were offered.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::IntGauge;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

/// What became of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in force now.
    Applied,
    /// It changes nothing.
    Unchanged,
    /// The one before stays in force.
    Refused,
}

impl Outcome {
    pub(super) const ALL: [Self; 3] = [Self::Applied, Self::Unchanged, Self::Refused];

    pub(super) fn label(self) -> OutcomeLabel {
        let outcome = match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
        };
        OutcomeLabel { outcome }
    }
}

/// The metrics of a connector's configuration.
#[derive(Debug, Default)]
pub struct Configuration {
    version: IntGauge,
    source: Family<SourceLabel, IntGauge>,
    generations: IntGauge,
    reloads: Family<OutcomeLabel, Counter>,
    last_reload: IntGauge,
    pushes: Family<OutcomeLabel, Counter>,
    ignored_keys: Counter,
}

impl Configuration {
    pub(super) fn new() -> Self {
        let new = Self::default();
        for outcome in Outcome::ALL {
            drop(new.reloads.get_or_create(&outcome.label()));
            drop(new.pushes.get_or_create(&outcome.label()));
        }
        new.last_reload.set(1);
        new.in_force(-1);
        new
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register("cloudflared_orchestration_config_version", "Version of the rules", self.version.clone());
        r.register("adit_rules_version", "Version of the rules in force, -1 for the file's", self.version.clone());
        r.register("adit_rules_source", "Whose rules are in force", self.source.clone());
        r.register(
            "adit_rules_generations",
            "Sets of rules in force or still serving a request",
            self.generations.clone(),
        );
        r.register("adit_config_reloads", "Readings of a changed file, by outcome", self.reloads.clone());
        r.register(
            "adit_config_last_reload_successful",
            "Whether the file as it is now could be used",
            self.last_reload.clone(),
        );
        r.register("adit_pushed_configurations", "Configurations of the edge, by outcome", self.pushes.clone());
        r.register("adit_ignored_configuration_keys", "Unknown keys in pushed rules", self.ignored_keys.clone());
    }

    /// The rules of this version are in force now, −1 for the file's.
    pub fn in_force(&self, version: i32) {
        self.version.set(version.into());
        for (source, in_force) in [("edge", version >= 0), ("file", version < 0)] {
            self.source.get_or_create(&SourceLabel { source }).set(in_force.into());
        }
    }

    /// The edge pushed rules.
    pub fn pushed(&self, outcome: Outcome) {
        self.pushes.get_or_create(&outcome.label()).inc();
    }

    /// A push had keys that nothing reads.
    pub fn ignored_keys(&self, count: usize) {
        self.ignored_keys.inc_by(count as u64);
    }

    /// The file was read again.
    pub fn reloaded(&self, outcome: Outcome) {
        self.reloads.get_or_create(&outcome.label()).inc();
        self.last_reload.set((outcome != Outcome::Refused).into());
    }

    /// A generation of rules; it counts until the guard is dropped.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generations.inc();
        Generation(self.generations.clone())
    }

    /// Generations of rules that are in force or still serve a request.
    pub fn generations(&self) -> i64 {
        self.generations.get()
    }
}

/// One generation of rules, as a gauge.
#[derive(Debug)]
pub struct Generation(IntGauge);

impl Drop for Generation {
    fn drop(&mut self) {
        self.0.dec();
    }
}
