//! How long to wait between attempts, and what to say meanwhile.

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;

use super::super::attempt::Fault;
use crate::{backoff::Backoff, telemetry::Chain, wire::registration::RegistrationError};

/// An edge may ask for any wait; a hostile or confused one must not send a connector to sleep for a year.
const LONGEST_ASKED: Duration = Duration::from_secs(300);
/// The same complaint is repeated this often.
const REPEAT: Duration = Duration::from_secs(30);

/// How long to wait before the next attempt. An outage of the network is short and harmless to ask about often; a
/// refusal is neither, and the edge may say how long.
pub(super) struct Waits {
    network: Backoff,
    refusal: Backoff,
}

impl Waits {
    pub(super) fn new(retries: u8) -> Self {
        Self { network: Backoff::of_outages(), refusal: Backoff::of_refusals(retries) }
    }

    pub(super) fn attempts(&self) -> u8 {
        u8::try_from(self.network.attempts().max(self.refusal.attempts()).min(255)).unwrap_or(u8::MAX)
    }

    pub(super) fn reset(&mut self) {
        self.network.reset();
        self.refusal.reset();
    }

    pub(super) fn after(&mut self, fault: &Fault) -> Duration {
        match fault {
            Fault::Registration(RegistrationError::Refused { .. }) => {
                self.refusal.next_wait().max(fault.retry_after().unwrap_or_default())
            }
            _ => self.network.next_wait(),
        }
    }
}

impl Fault {
    /// Where it happened, unless the edge answered.
    pub(super) fn edge(&self) -> Option<SocketAddr> {
        match self {
            Self::Transport { edge, .. } => Some(*edge),
            Self::Discovery(_) | Self::Registration(_) => None,
        }
    }

    /// What the edge asked for, within reason.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Registration(RegistrationError::Refused { retry_after, .. }) => {
                retry_after.map(|asked| asked.min(LONGEST_ASKED))
            }
            _ => None,
        }
    }
}

/// Says what is wrong when it is new and from time to time, not with every attempt.
#[derive(Default)]
pub(super) struct Complaint {
    last: Option<(String, Instant)>,
    since: u32,
}

impl Complaint {
    pub(super) fn about(&mut self, index: u8, fault: &Fault, wait: Duration) {
        let text = Chain(fault).to_string();
        let said = self.last.as_ref().is_some_and(|(last, at)| *last == text && at.elapsed() < REPEAT);
        if said {
            self.since += 1;
            tracing::debug!(index, error = text, ?wait, "no connection, trying again");
            return;
        }
        tracing::warn!(index, error = text, ?wait, attempts_not_told = self.since, "no connection, trying again");
        self.last = Some((text, Instant::now()));
        self.since = 0;
    }
}
