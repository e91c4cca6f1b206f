//! What was decided about callers.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabel {
    outcome: &'static str,
    /// Why a certificate is not valid; empty otherwise.
    cause: &'static str,
}

/// What was decided about a caller's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes on to the service.
    Allowed,
    /// The path can be read in two ways.
    Ambiguous,
    /// Trust in callers cannot be used.
    Closed,
    /// The certificate proves nothing, for this reason out of a closed set.
    Invalid(&'static str),
    /// There is no certificate.
    Missing,
    /// Caller, method or path are not on the list.
    NotAllowed,
    /// It was allowed and is so no longer: ended while in flight.
    Withdrawn,
}

impl Decision {
    /// Those that are shown before they happen.
    const KNOWN: [Self; 7] = [
        Self::Allowed,
        Self::Ambiguous,
        Self::Closed,
        Self::Invalid("revoked"),
        Self::Missing,
        Self::NotAllowed,
        Self::Withdrawn,
    ];

    fn label(self) -> DecisionLabel {
        let (outcome, cause) = match self {
            Self::Allowed => ("allowed", ""),
            Self::Ambiguous => ("path-ambiguous", ""),
            Self::Closed => ("trust-unusable", ""),
            Self::Invalid(cause) => ("invalid", cause),
            Self::Missing => ("missing", ""),
            Self::NotAllowed => ("not-allowed", ""),
            Self::Withdrawn => ("withdrawn", ""),
        };
        DecisionLabel { outcome, cause }
    }
}

/// Counts of decisions about callers.
#[derive(Debug)]
pub struct Callers {
    decisions: Family<DecisionLabel, Counter>,
    /// On the way of every request of a caller, so it is not looked up.
    allowed: Counter,
}

impl Default for Callers {
    fn default() -> Self {
        let decisions = Family::<DecisionLabel, Counter>::default();
        for known in Decision::KNOWN {
            drop(decisions.get_or_create(&known.label()));
        }
        let allowed = decisions.get_or_create_owned(&Decision::Allowed.label());
        Self { decisions, allowed }
    }
}

impl Callers {
    /// One request more.
    pub fn decided(&self, decision: Decision) {
        match decision {
            Decision::Allowed => self.allowed.inc(),
            other => self.decisions.get_or_create(&other.label()).inc(),
        };
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("adit_caller_decisions", "Decisions about callers", self.decisions.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_counted_by_outcome_and_cause_and_shown_from_the_start() {
        let callers = Callers::default();
        callers.decided(Decision::Allowed);
        callers.decided(Decision::Invalid("expired"));
        let mut registry = Registry::default();
        callers.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"adit_caller_decisions_total{outcome="allowed",cause=""} 1"#,
            r#"adit_caller_decisions_total{outcome="invalid",cause="expired"} 1"#,
            r#"adit_caller_decisions_total{outcome="invalid",cause="revoked"} 0"#,
            r#"adit_caller_decisions_total{outcome="withdrawn",cause=""} 0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
