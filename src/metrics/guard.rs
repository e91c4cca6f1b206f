//! What happens at guards, numbered in the order of the file; those beyond a hundred share one number. What a rule has,
//! a guard has under `rule="guard-N"`.

use http::StatusCode;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::{IntGauge, MOST_RULES};
use crate::code::Code;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GuardLabel {
    guard: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandshakeLabel {
    guard: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabel {
    guard: String,
    status_code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabel {
    guard: String,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BytesLabel {
    guard: String,
    direction: &'static str,
}

/// What became of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// It came to its end.
    Accepted,
    /// There was no place for the connection.
    Overloaded,
    /// The peer did not prove what it had to, or spoke no TLS.
    Refused,
    /// It took too long.
    TimedOut,
    /// The guard's own certificate cannot be used.
    Unusable,
}

impl Handshake {
    const ALL: [Self; 5] = [Self::Accepted, Self::Overloaded, Self::Refused, Self::TimedOut, Self::Unusable];

    fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Overloaded => "overloaded",
            Self::Refused => "refused",
            Self::TimedOut => "timed-out",
            Self::Unusable => "unusable",
        }
    }
}

/// The metrics of all guards.
#[derive(Debug)]
pub struct Guards {
    handshakes: Family<HandshakeLabel, Counter>,
    connections: Family<GuardLabel, IntGauge>,
    in_flight: Family<GuardLabel, IntGauge>,
    requests: Family<RequestLabel, Counter>,
    refusals: Family<RefusalLabel, Counter>,
    bytes: Family<BytesLabel, Counter>,
}

/// The handles of one guard, resolved when it is bound.
#[derive(Clone, Debug)]
pub struct GuardMetrics {
    guard: String,
    handshakes: [Counter; Handshake::ALL.len()],
    connections: IntGauge,
    in_flight: IntGauge,
    requests: Family<RequestLabel, Counter>,
    refusals: Family<RefusalLabel, Counter>,
    to_service: Counter,
    to_caller: Counter,
}

/// A connection, as a gauge.
#[derive(Debug)]
#[must_use]
pub struct GuardConnection(IntGauge);

impl Drop for GuardConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Guards {
    pub(super) fn new() -> Self {
        Self {
            handshakes: Family::default(),
            connections: Family::default(),
            in_flight: Family::default(),
            requests: Family::default(),
            refusals: Family::default(),
            bytes: Family::default(),
        }
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register("adit_guard_handshakes", "TLS handshakes at guards, by outcome", self.handshakes.clone());
        r.register("adit_guard_connections", "Callers' connections to guards", self.connections.clone());
        r.register("adit_guard_in_flight", "Requests and streams of callers in flight", self.in_flight.clone());
        r.register("adit_guard_requests", "Requests and streams of callers, by status", self.requests.clone());
        r.register("adit_guard_refusals", "Answers of guards themselves, by code", self.refusals.clone());
        r.register("adit_guard_bytes", "Bytes of bodies and streams at guards", self.bytes.clone());
    }

    /// The handles of the guard with this number.
    pub fn of(&self, guard: usize) -> GuardMetrics {
        let guard = if guard < MOST_RULES { guard.to_string() } else { "more".into() };
        let label = GuardLabel { guard: guard.clone() };
        let bytes = |direction| self.bytes.get_or_create_owned(&BytesLabel { guard: guard.clone(), direction });
        let handshakes = Handshake::ALL.map(|outcome| {
            self.handshakes.get_or_create_owned(&HandshakeLabel { guard: guard.clone(), outcome: outcome.as_str() })
        });
        for code in [Code::CallerInvalid, Code::CallerMissing, Code::CallerNotAllowed, Code::PathAmbiguous] {
            drop(self.refusals.get_or_create(&RefusalLabel { guard: guard.clone(), code: code.as_str() }));
        }
        GuardMetrics {
            handshakes,
            connections: self.connections.get_or_create_owned(&label),
            in_flight: self.in_flight.get_or_create_owned(&label),
            requests: self.requests.clone(),
            refusals: self.refusals.clone(),
            to_service: bytes("to_service"),
            to_caller: bytes("to_caller"),
            guard,
        }
    }
}

impl GuardMetrics {
    /// A handshake ended.
    pub fn handshake(&self, outcome: Handshake) {
        if let Some(at) = Handshake::ALL.iter().position(|one| *one == outcome) {
            self.handshakes[at].inc();
        }
    }

    /// A connection; it counts until the guard is dropped.
    pub fn connection(&self) -> GuardConnection {
        self.connections.inc();
        GuardConnection(self.connections.clone())
    }

    /// A request or stream began.
    pub fn started(&self) {
        self.in_flight.inc();
    }

    /// A request or stream ended, however.
    pub fn ended(&self, status: StatusCode, to_service: u64, to_caller: u64) {
        self.in_flight.dec();
        let label = RequestLabel { guard: self.guard.clone(), status_code: status.as_u16() };
        self.requests.get_or_create(&label).inc();
        self.to_service.inc_by(to_service);
        self.to_caller.inc_by(to_caller);
    }

    /// The guard answered for the service.
    pub fn refused(&self, code: Code) {
        self.refusals.get_or_create(&RefusalLabel { guard: self.guard.clone(), code: code.as_str() }).inc();
    }
}
