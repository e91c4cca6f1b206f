//! Which transport to try first at which edge address, under `protocol: auto`.
//!
//! QUIC, until it is found broken there: not registered in time while HTTP/2 was, or connected and then silent or
//! lossy. Then HTTP/2 leads until QUIC has proven itself again. The proof is hysteresis: after a hold that doubles
//! with every failure one connection of that address tries, keeps its QUIC connection alive for a while before it
//! registers, and only when that has been stable the others follow.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::{config::Protocol, transport::Transport};

/// The first hold. A network that was down for a moment gets QUIC back soon.
const FIRST_HOLD: Duration = Duration::from_secs(10);
/// The longest: a probe every five minutes costs nothing where UDP is blocked for good.
const LAST_HOLD: Duration = Duration::from_secs(300);
/// Failures are forgotten when QUIC held for so long.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);
/// Those that follow the first one back spread over this.
const FOLLOW_WITHIN: Duration = Duration::from_secs(2);

/// What is known about QUIC at each address.
#[derive(Debug)]
pub(super) struct Choice {
    protocol: Protocol,
    verdicts: Mutex<HashMap<SocketAddr, Verdict>>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct Verdict {
    /// Why QUIC is out; `None` once it is in again.
    out: Option<Out>,
    failures: u32,
    /// Since when the verdict is what it is.
    since: Instant,
}

#[derive(Debug)]
struct Out {
    why: Arc<str>,
    try_at: Instant,
    /// The connection that tries.
    scout: Option<u8>,
}

impl Choice {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { protocol, verdicts: Mutex::default(), changed: watch::Sender::new(()) }
    }

    /// The transports to try at `edge`, the better one first.
    pub(super) fn order(&self, edge: SocketAddr) -> &'static [Transport] {
        match self.protocol {
            Protocol::Quic => &[Transport::Quic],
            Protocol::Http2 => &[Transport::Http2],
            Protocol::Auto if self.why_not_quic(edge).is_some() => &[Transport::Http2, Transport::Quic],
            Protocol::Auto => &[Transport::Quic, Transport::Http2],
        }
    }

    /// Why QUIC is not the choice at `edge`; `None` if it is, and if nothing is to be chosen.
    pub(super) fn why_not_quic(&self, edge: SocketAddr) -> Option<Arc<str>> {
        self.lock().get(&edge)?.out.as_ref().map(|out| out.why.clone())
    }

    /// QUIC is broken at `edge`. Several connections that find the same count once.
    pub(super) fn leave_quic(&self, edge: SocketAddr, why: &str) {
        if self.protocol != Protocol::Auto {
            return;
        }
        let now = Instant::now();
        let mut verdicts = self.lock();
        let verdict = verdicts.entry(edge).or_insert(Verdict { out: None, failures: 0, since: now });
        match &verdict.out {
            // Known, and nobody was trying.
            Some(out) if out.scout.is_none() && out.try_at > now => return,
            None if verdict.since.elapsed() > FORGIVEN_AFTER => verdict.failures = 0,
            _ => {}
        }
        let hold = FIRST_HOLD.saturating_mul(1 << verdict.failures.min(10)).min(LAST_HOLD);
        verdict.failures += 1;
        verdict.since = now;
        // A quarter of jitter: the connectors of one site lost the same path at the same moment.
        let try_at = now + hold.mul_f64(1.0 + rand::random::<f64>() / 4.0);
        verdict.out = Some(Out { why: why.into(), try_at, scout: None });
        tracing::warn!(%edge, why, hold_s = hold.as_secs(), "QUIC is left for HTTP/2");
        drop(verdicts);
        self.changed.send_replace(());
    }

    /// QUIC has been stable at `edge`.
    pub(super) fn take_quic_back(&self, edge: SocketAddr) {
        let mut verdicts = self.lock();
        let Some(verdict) = verdicts.get_mut(&edge) else { return };
        if verdict.out.take().is_some() {
            verdict.since = Instant::now();
            tracing::info!(%edge, "QUIC is taken back");
            drop(verdicts);
            self.changed.send_replace(());
        }
    }

    #[cfg(test)]
    pub(super) fn is_scout(&self, edge: SocketAddr, index: u8) -> bool {
        let verdicts = self.lock();
        let out = verdicts.get(&edge).and_then(|verdict| verdict.out.as_ref());
        out.is_some_and(|out| out.scout == Some(index))
    }

    /// The scout gives up for a reason that says nothing about QUIC.
    pub(super) fn stand_down(&self, edge: SocketAddr, index: u8) {
        let mut verdicts = self.lock();
        if let Some(out) = verdicts.get_mut(&edge).and_then(|verdict| verdict.out.as_mut())
            && out.scout == Some(index)
        {
            out.scout = None;
            out.try_at = Instant::now() + FIRST_HOLD;
            drop(verdicts);
            self.changed.send_replace(());
        }
    }

    /// Completes when connection `index`, which runs over HTTP/2, should try QUIC at `edge`. Cancel-safe: who was made
    /// the scout and does not go must [`Choice::stand_down`].
    pub(super) async fn may_try_quic(&self, edge: SocketAddr, index: u8) {
        if self.protocol != Protocol::Auto {
            return std::future::pending().await;
        }
        let mut changes = self.changed.subscribe();
        loop {
            changes.mark_unchanged();
            let try_at = {
                let mut verdicts = self.lock();
                match verdicts.get_mut(&edge).and_then(|verdict| verdict.out.as_mut()) {
                    None => break,
                    Some(out) if out.scout.is_some() => None,
                    Some(out) if out.try_at <= Instant::now() => {
                        out.scout = Some(index);
                        return;
                    }
                    Some(out) => Some(out.try_at),
                }
            };
            let due = async {
                match try_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = changes.changed() => {}
                () = due => {}
            }
        }
        // Somebody proved it; follow, but not all at once.
        tokio::time::sleep(FOLLOW_WITHIN.mul_f64(rand::random::<f64>())).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Verdict>> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets addresses that are gone.
    pub(super) fn keep_only(&self, known: impl Fn(&SocketAddr) -> bool) {
        self.lock().retain(|address, _| known(address));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn edge() -> SocketAddr {
        "10.0.0.1:7844".parse().unwrap()
    }

    async fn waits_for(choice: &Choice, index: u8) -> Duration {
        let before = Instant::now();
        choice.may_try_quic(edge(), index).await;
        before.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn quic_leads_until_it_is_broken_and_one_connection_proves_it_again() {
        let choice = Choice::new(Protocol::Auto);
        assert_eq!(choice.order(edge())[0], Transport::Quic);
        choice.leave_quic(edge(), "silence");
        assert_eq!(choice.order(edge())[0], Transport::Http2);
        assert_eq!(choice.why_not_quic(edge()).as_deref(), Some("silence"));
        let hold = waits_for(&choice, 1).await;
        assert!((FIRST_HOLD..=FIRST_HOLD.mul_f64(1.26)).contains(&hold), "{hold:?}");
        assert!(choice.is_scout(edge(), 1));
        // The others wait for the scout.
        assert!(choice.may_try_quic(edge(), 2).now_or_never().is_none());
        assert_eq!(choice.order(edge())[0], Transport::Http2);
        choice.take_quic_back(edge());
        assert_eq!(choice.order(edge())[0], Transport::Quic);
        assert!(waits_for(&choice, 2).await <= FOLLOW_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn the_hold_doubles_with_every_failure_and_is_forgiven_after_a_long_time() {
        let choice = Choice::new(Protocol::Auto);
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            choice.leave_quic(edge(), "no");
            // The others find the same: that is one failure.
            choice.leave_quic(edge(), "no");
            let hold = waits_for(&choice, 0).await.as_secs_f64();
            assert!((f64::from(expected)..=f64::from(expected) * 1.26).contains(&hold), "{hold} for {expected}");
        }
        choice.take_quic_back(edge());
        tokio::time::advance(FORGIVEN_AFTER * 2).await;
        choice.leave_quic(edge(), "no");
        assert!(waits_for(&choice, 0).await < FIRST_HOLD * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_scout_that_stands_down_lets_another_try() {
        let choice = Choice::new(Protocol::Auto);
        choice.leave_quic(edge(), "no");
        choice.may_try_quic(edge(), 0).await;
        choice.stand_down(edge(), 0);
        choice.may_try_quic(edge(), 3).await;
        assert!(choice.is_scout(edge(), 3) && !choice.is_scout(edge(), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_chosen_where_the_protocol_is_given() {
        for (protocol, only) in [(Protocol::Quic, Transport::Quic), (Protocol::Http2, Transport::Http2)] {
            let choice = Choice::new(protocol);
            choice.leave_quic(edge(), "no");
            assert_eq!(choice.order(edge()), [only]);
            assert!(choice.may_try_quic(edge(), 0).now_or_never().is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_are_judged_one_by_one() {
        let choice = Choice::new(Protocol::Auto);
        choice.leave_quic(edge(), "no");
        let other = "10.0.0.2:7844".parse().unwrap();
        assert_eq!(choice.order(other)[0], Transport::Quic);
        choice.keep_only(|address| *address == other);
        assert_eq!(choice.order(edge())[0], Transport::Quic);
    }
}
