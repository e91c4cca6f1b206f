//! Whether a registered connection still carries anything.
//!
//! Looked at twice a second by the connection itself. Silence counts in looks, not in time, so that a process that
//! stood still for a while does not take its own sleep for the network's.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior};

use super::network::source_towards;
use crate::transport::pulse::{Pulse, Sent};

/// Between two looks.
const BEAT: Duration = Duration::from_millis(500);
/// Keep-alives go out after a second of silence and are answered within a round trip: two and a half seconds without
/// anything are a second and a half without that answer.
const SUSPICIOUS_AFTER: u32 = 5;
/// A connection that says nothing for so long is over, whatever its socket thinks. QUIC's idle time-out is shorter.
const DEAD_AFTER: u32 = 30;
/// Looks with the same new source address that make it a new way.
const REROUTED_AFTER: u32 = 3;
/// Loss is judged over this many looks, and only when there was something to lose.
const LOSS_WINDOW: usize = 10;
const LEAST_PACKETS: u64 = 200;
/// A rate limit on UDP costs a few per cent before the sender adapts; a quarter is a path that does not work.
const MOST_LOSS: f64 = 0.25;

/// What is wrong with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nothing is heard.
    Silent,
    /// Much of what is sent gets lost.
    Lossy,
    /// The way to the edge changed.
    Rerouted,
}

impl Trouble {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Lossy => "lossy",
            Self::Rerouted => "rerouted",
        }
    }
}

/// What the looks at one connection have shown.
pub(super) struct Liveness {
    beat: Interval,
    pulse: Pulse,
    edge: SocketAddr,
    source: Option<IpAddr>,
    /// Looks in a row with the same other source address.
    elsewhere: (Option<IpAddr>, u32),
    silent: u32,
    window: VecDeque<Sent>,
}

/// The outcome of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// As it should be, or not.
    Alive(Option<Trouble>),
    /// To be given up.
    Dead,
}

impl Liveness {
    /// `bound` connections have a local address that does not follow the route.
    pub(super) fn new(pulse: Pulse, edge: SocketAddr, bound: bool) -> Self {
        let source = if bound { None } else { source_towards(edge) };
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { beat, pulse, edge, source, elsewhere: (None, 0), silent: 0, window: VecDeque::new() }
    }

    /// The next look, when it is time for it. Cancel-safe.
    pub(super) async fn look(&mut self) -> Look {
        self.beat.tick().await;
        self.silent = if self.pulse.beat() { 0 } else { self.silent + 1 };
        if self.silent >= DEAD_AFTER {
            return Look::Dead;
        }
        if self.silent >= SUSPICIOUS_AFTER {
            return Look::Alive(Some(Trouble::Silent));
        }
        let sent = self.pulse.sent();
        if loses_too_much(&mut self.window, sent) {
            return Look::Alive(Some(Trouble::Lossy));
        }
        Look::Alive(self.rerouted().then_some(Trouble::Rerouted))
    }

    /// No route may be a moment between two; silence tells if it is not. A host with several ways may take turns: only
    /// an address that stays is a new way.
    fn rerouted(&mut self) -> bool {
        let Some(source) = self.source else { return false };
        let now = source_towards(self.edge).filter(|now| *now != source);
        let same = now.is_some() && now == self.elsewhere.0;
        self.elsewhere = (now, if same { self.elsewhere.1 + 1 } else { u32::from(now.is_some()) });
        self.elsewhere.1 >= REROUTED_AFTER
    }
}

fn loses_too_much(window: &mut VecDeque<Sent>, sent: Sent) -> bool {
    if window.len() == LOSS_WINDOW {
        window.pop_front();
    }
    window.push_back(sent);
    let packets: u64 = window.iter().map(|sent| sent.packets).sum();
    let lost: u64 = window.iter().map(|sent| sent.lost).sum();
    packets >= LEAST_PACKETS && lost as f64 >= packets as f64 * MOST_LOSS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_counts_over_five_seconds_and_only_with_something_to_lose() {
        let judge = |looks: &[(u64, u64)]| {
            let mut window = VecDeque::new();
            looks.iter().map(|&(packets, lost)| loses_too_much(&mut window, Sent { packets, lost })).last().unwrap()
        };
        assert!(!judge(&[(10, 10); 10]), "a hundred packets say little");
        assert!(judge(&[(100, 30); 3]));
        assert!(!judge(&[(1000, 50); 10]), "five per cent");
        assert!(!judge(&[&[(300, 300)][..], &[(300, 0); 10][..]].concat()), "it is over");
    }
}
