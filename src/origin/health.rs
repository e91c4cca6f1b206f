//! What is known of one service: failed requests in a row take it out for a while, failed checks until they succeed.

use std::{
    fmt::Display,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    config::{Health, HealthCheck},
    metrics::OriginMetrics,
};

/// The first time out; each further one is twice as long.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// How good a choice a service is; a later one is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// Its checks fail.
    Failing,
    /// Out for a while after failed requests.
    Ejected,
    In,
}

/// Judges one service.
#[derive(Debug)]
pub(super) struct Judge {
    spelling: String,
    /// `None`: nobody wants to know.
    rules: Option<Health>,
    metrics: OriginMetrics,
    /// Failed requests in a row.
    failures: AtomicU32,
    /// Whether `state` says anything but "in, with its full share": the lock is for the bad days.
    notable: AtomicBool,
    /// Whether the rule is in force, so that its gauge is this one's to set.
    shown: AtomicBool,
    state: Mutex<State>,
}

/// What outlives a change of rules.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    failing: bool,
    bad_checks: u32,
    good_checks: u32,
    ejected: Option<Ejection>,
    /// Ejections without a good while between.
    ejections: u32,
    /// When it came back, and how long it had been out.
    returned: Option<(Instant, Duration)>,
    /// When it began to grow to its full share.
    growing: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Ejection {
    at: Instant,
    time: Duration,
}

impl Judge {
    pub(super) fn new(spelling: &str, rules: Option<Health>, metrics: OriginMetrics) -> Self {
        Self {
            spelling: spelling.to_owned(),
            rules,
            metrics,
            failures: AtomicU32::new(0),
            notable: AtomicBool::new(false),
            shown: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    pub(super) fn rules(&self) -> Option<&Health> {
        self.rules.as_ref()
    }

    /// The standing, and the share of a full one that a service in its slow start gets.
    pub(super) fn standing(&self) -> (Standing, f64) {
        if !self.notable.load(Ordering::Acquire) {
            return (Standing::In, 1.0);
        }
        let mut state = self.lock();
        self.settle(&mut state);
        if state.failing {
            return (Standing::Failing, 1.0);
        }
        if state.ejected.is_some() {
            return (Standing::Ejected, 1.0);
        }
        let slow_start = self.rules.as_ref().map_or(Duration::ZERO, |rules| rules.slow_start);
        if let Some(since) = state.growing {
            let grown = since.elapsed().as_secs_f64() / slow_start.as_secs_f64();
            // Also when it is 0/0.
            if grown < 1.0 {
                return (Standing::In, grown);
            }
            state.growing = None;
        }
        self.notable.store(false, Ordering::Release);
        (Standing::In, 1.0)
    }

    /// A request that was sent at `since` was answered.
    pub(super) fn answered(&self, since: Instant) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.notable.load(Ordering::Acquire) {
            let mut state = self.lock();
            // A request of before says nothing about now.
            if let Some(ejection) = state.ejected.filter(|ejection| ejection.at <= since) {
                self.back(&mut state, ejection);
            }
        }
    }

    /// A request could not be sent, or was not answered in HTTP.
    pub(super) fn failed(&self, why: &dyn Display) {
        let Some(rules) = self.rules.as_ref().filter(|rules| rules.eject_after > 0) else { return };
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures < rules.eject_after {
            return;
        }
        let mut state = self.lock();
        self.settle(&mut state);
        if state.ejected.is_some() {
            return;
        }
        if state.returned.is_some_and(|(at, out)| at.elapsed() > out.saturating_mul(2)) {
            state.ejections = 0;
        }
        let doubled = FIRST.saturating_mul(1 << state.ejections.min(16)).min(LONGEST);
        // Connectors that saw the same failure do not return together.
        let time = doubled.mul_f64(rand::random_range(0.75..=1.0));
        state.ejections = state.ejections.saturating_add(1);
        state.ejected = Some(Ejection { at: Instant::now(), time });
        state.growing = None;
        self.notable.store(true, Ordering::Release);
        self.metrics.ejected();
        self.gauge(false);
        tracing::warn!(
            service = self.spelling, failures, seconds = time.as_secs_f64(), cause = %why,
            "a service is out for a while"
        );
    }

    /// The outcome of a check: nothing, or what was wrong.
    pub(super) fn checked(&self, rules: &HealthCheck, outcome: Result<(), &dyn Display>) {
        let mut state = self.lock();
        match outcome {
            Ok(()) => {
                state.bad_checks = 0;
                state.good_checks = state.good_checks.saturating_add(1);
                if state.failing && state.good_checks >= rules.healthy_after {
                    state.failing = false;
                    state.growing = Some(Instant::now());
                    self.gauge(state.ejected.is_none());
                    tracing::info!(service = self.spelling, checks = state.good_checks, "a service is healthy again");
                }
            }
            Err(why) => {
                state.good_checks = 0;
                state.bad_checks = state.bad_checks.saturating_add(1);
                if !state.failing && state.bad_checks >= rules.unhealthy_after {
                    state.failing = true;
                    self.notable.store(true, Ordering::Release);
                    self.gauge(false);
                    let checks = state.bad_checks;
                    tracing::warn!(service = self.spelling, checks, cause = %why, "a service is unhealthy");
                }
            }
        }
    }

    /// Ends an ejection whose time is over.
    fn settle(&self, state: &mut State) {
        if let Some(ejection) = state.ejected.filter(|ejection| ejection.at.elapsed() >= ejection.time) {
            self.back(state, ejection);
            // On probation: the next failure is enough, the next answer ends it.
            let eject_after = self.rules.as_ref().map_or(0, |rules| rules.eject_after);
            self.failures.store(eject_after.saturating_sub(1), Ordering::Relaxed);
        }
    }

    fn back(&self, state: &mut State, ejection: Ejection) {
        let now = Instant::now();
        state.ejected = None;
        state.returned = Some((now, ejection.time));
        state.growing = Some(now);
        self.gauge(!state.failing);
        tracing::info!(service = self.spelling, "a service is back");
    }

    /// Whether what is known of `other` holds for this one: how much ejects it may differ, as it does in a list of two
    /// that becomes one.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let checks = |judge: &Self| judge.rules.as_ref().map(|rules| rules.check.clone());
        self.spelling == other.spelling && checks(self) == checks(other)
    }

    pub(super) fn clone_state(&self) -> State {
        self.lock().clone()
    }

    pub(super) fn resume(&self, state: State) {
        *self.lock() = state;
        self.notable.store(true, Ordering::Release);
    }

    /// Starts with no share; for a service that is new beside others.
    pub(super) fn begin_slowly(&self) {
        self.lock().growing = Some(Instant::now());
        self.notable.store(true, Ordering::Release);
    }

    /// Shows the standing in the metrics, and lets a time out end that nobody waited for.
    pub(super) fn show(&self) {
        if self.rules.is_some() {
            self.shown.store(true, Ordering::Relaxed);
            self.gauge(self.standing().0 == Standing::In);
        }
    }

    pub(super) fn retire(&self) {
        self.shown.store(false, Ordering::Relaxed);
    }

    fn gauge(&self, healthy: bool) {
        if self.shown.load(Ordering::Relaxed) {
            self.metrics.healthy(healthy);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(eject_after: u32) -> Judge {
        let rules = Health { eject_after, ..Health::default() };
        Judge::new("http://s", Some(rules), OriginMetrics::default())
    }

    fn is_in(judge: &Judge) -> bool {
        judge.standing().0 == Standing::In
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_eject_and_an_answer_between_them_does_not() {
        let judge = judge(3);
        for _ in 0..2 {
            judge.failed(&"x");
            judge.failed(&"x");
            assert!(is_in(&judge));
            judge.answered(Instant::now());
        }
        for _ in 0..3 {
            judge.failed(&"x");
        }
        assert!(!is_in(&judge));
    }

    #[tokio::test(start_paused = true)]
    async fn time_out_doubles_up_to_a_minute_and_starts_small_again_after_a_good_while() {
        let judge = judge(2);
        judge.failed(&"x");
        for bound in [1, 2, 4, 8, 16, 32, 60, 60] {
            judge.failed(&"x");
            assert!(!is_in(&judge), "ejected for {bound} s");
            tokio::time::advance(Duration::from_secs_f64(f64::from(bound) * 0.74)).await;
            assert!(!is_in(&judge), "not yet {bound} s");
            tokio::time::advance(Duration::from_secs_f64(f64::from(bound) * 0.27)).await;
            assert!(is_in(&judge), "{bound} s are over");
        }
        judge.answered(Instant::now());
        tokio::time::advance(LONGEST * 3).await;
        judge.failed(&"x");
        assert!(is_in(&judge), "one failure is enough on probation alone");
        judge.failed(&"x");
        tokio::time::advance(FIRST).await;
        assert!(is_in(&judge));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_a_request_of_before_does_not_end_a_time_out() {
        let judge = judge(1);
        let before = Instant::now();
        tokio::time::advance(Duration::from_millis(1)).await;
        judge.failed(&"x");
        judge.answered(before);
        assert!(!is_in(&judge));
        judge.answered(Instant::now());
        assert!(is_in(&judge));
    }

    #[test]
    fn checks_take_a_service_out_and_bring_it_back_by_their_own_counts() {
        let judge = judge(0);
        let check =
            HealthCheck { path: "/".into(), interval: FIRST, timeout: FIRST, unhealthy_after: 2, healthy_after: 3 };
        let mut standings = Vec::new();
        for good in [false, true, false, false, true, true, false, true, true, true] {
            judge.checked(&check, if good { Ok(()) } else { Err(&"x") });
            standings.push(is_in(&judge));
        }
        assert_eq!(standings, [true, true, true, false, false, false, false, false, false, true]);
    }

    #[test]
    fn without_ejection_no_number_of_failures_counts() {
        let judge = judge(0);
        for _ in 0..1000 {
            judge.failed(&"x");
        }
        assert!(is_in(&judge));
    }
}
