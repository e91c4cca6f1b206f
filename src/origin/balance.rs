//! Which of several equal services gets a request: of two drawn at random, the one with less in flight.
//!
//! Two draws come close to the least loaded of all, without every connector of a fleet running to the same service.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::health::{Judge, Standing};
use crate::{
    config::{Health, HealthCheck},
    metrics::OriginMetrics,
};

/// The services of one rule.
#[derive(Debug)]
pub struct Balance {
    members: Vec<Arc<Member>>,
}

/// A service as far as choosing goes.
#[derive(Debug)]
pub(super) struct Member {
    in_flight: AtomicUsize,
    pub(super) judge: Judge,
}

/// A request of a service; counts until it is dropped.
#[derive(Debug)]
pub struct InFlight {
    member: Arc<Member>,
    since: Instant,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.member.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl InFlight {
    /// The service answered.
    pub(super) fn answered(&self) {
        self.member.judge.answered(self.since);
    }

    /// The service could not be reached, or spoke no sense.
    pub(super) fn failed(&self, why: &dyn std::fmt::Display) {
        self.member.judge.failed(why);
    }
}

impl Balance {
    /// Services by spelling. `health` is what the rule says; a list is judged without it too.
    pub(super) fn new<'a>(
        spellings: impl Iterator<Item = &'a str>,
        health: Option<&Health>,
        metrics: impl Fn(usize) -> OriginMetrics,
    ) -> Self {
        let spellings: Vec<_> = spellings.collect();
        let judged = (spellings.len() > 1 || health.is_some()).then(|| health.cloned().unwrap_or_default());
        let member = |(index, spelling): (usize, &&str)| {
            let judge = Judge::new(spelling, judged.clone(), metrics(index));
            Arc::new(Member { in_flight: AtomicUsize::new(0), judge })
        };
        Self { members: spellings.iter().enumerate().map(member).collect() }
    }

    pub(super) fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// Chooses a service that was not tried yet; `None` when all were. Ejected ones are chosen when there is nothing
    /// better, and those that fail their checks when there is nothing else: a request never fails untried.
    pub(super) fn choose(&self, tried: &[usize]) -> Option<(usize, InFlight)> {
        let index = match self.members.len() {
            1 if tried.is_empty() => 0,
            _ => self.draw(tried)?,
        };
        let member = self.members[index].clone();
        member.in_flight.fetch_add(1, Ordering::Relaxed);
        Some((index, InFlight { member, since: Instant::now() }))
    }

    fn draw(&self, tried: &[usize]) -> Option<usize> {
        let mut best = Standing::Failing;
        let mut drawn: [Option<(usize, f64)>; 2] = [None; 2];
        let mut seen = 0_usize;
        for (index, member) in self.members.iter().enumerate().filter(|(index, _)| !tried.contains(index)) {
            let (standing, share) = member.judge.standing();
            if standing < best {
                continue;
            }
            if standing > best {
                (best, drawn, seen) = (standing, [None; 2], 0);
            }
            seen += 1;
            // Reservoir sampling: whoever was seen stands in one of the two places with the same probability.
            let place = if seen <= 2 { seen - 1 } else { rand::random_range(0..seen) };
            if let Some(place) = drawn.get_mut(place) {
                *place = Some((index, share));
            }
        }
        let (first, second) = match drawn {
            [Some(first), Some(second)] if rand::random() => (second, first),
            [Some(first), Some(second)] => (first, second),
            [only, _] => return only.map(|(index, _)| index),
        };
        // One in its slow start loses without a comparison as often as it lacks of its full share.
        let yields = |(_, share): (usize, f64)| share < 1.0 && rand::random::<f64>() >= share;
        let load = |(index, _): (usize, f64)| self.members[index].in_flight.load(Ordering::Relaxed);
        let second_wins = match (yields(first), yields(second)) {
            (true, false) => true,
            (false, true) => false,
            _ => load(second) < load(first),
        };
        Some(if second_wins { second.0 } else { first.0 })
    }

    /// Takes over what is known of services that stay. One that is new beside others that stay starts slowly.
    pub fn succeed(&self, before: &Self) {
        let known = |member: &Arc<Member>| {
            before.members.iter().find(|old| old.judge.is_same(&member.judge)).map(|old| old.judge.clone_state())
        };
        let states: Vec<_> = self.members.iter().map(known).collect();
        let some_stay = states.iter().any(Option::is_some);
        for (member, state) in self.members.iter().zip(states) {
            match state {
                Some(state) => member.judge.resume(state),
                None if some_stay => member.judge.begin_slowly(),
                None => {}
            }
        }
    }

    /// The active check of the rule, if it has one.
    pub(super) fn check(&self) -> Option<&HealthCheck> {
        self.members.first()?.judge.rules()?.check.as_ref()
    }

    /// Shows every service's standing in the metrics, from now on.
    pub fn show(&self) {
        for member in &self.members {
            member.judge.show();
        }
    }

    /// Leaves the metrics to whoever comes after; requests in flight go on.
    pub fn retire(&self) {
        for member in &self.members {
            member.judge.retire();
        }
    }

    /// Whether anybody wants to know how the services are.
    pub fn is_judged(&self) -> bool {
        self.members.iter().any(|member| member.judge.rules().is_some())
    }

    /// Requests in flight by service.
    pub fn in_flight(&self) -> Vec<usize> {
        self.members.iter().map(|member| member.in_flight.load(Ordering::Relaxed)).collect()
    }
}

/// A wait that spreads checks that began together.
pub(super) fn spread(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.9..1.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balance(count: usize, health: Health) -> Balance {
        let names: Vec<String> = (0..count).map(|n| format!("http://{n}")).collect();
        Balance::new(names.iter().map(String::as_str), Some(&health), |_| OriginMetrics::default())
    }

    /// How often each is chosen of `draws`, each request over at once.
    fn shares(balance: &Balance, draws: usize) -> Vec<f64> {
        let mut counts = vec![0_usize; balance.members.len()];
        for _ in 0..draws {
            counts[balance.choose(&[]).unwrap().0] += 1;
        }
        counts.iter().map(|count| *count as f64 / draws as f64).collect()
    }

    #[test]
    fn idle_services_share_evenly() {
        for share in shares(&balance(4, Health::default()), 10_000) {
            // Five standard deviations of a binomial share of a quarter are 0.022.
            assert!((share - 0.25).abs() < 0.022, "{share}");
        }
    }

    #[test]
    fn of_two_the_one_with_less_in_flight_is_chosen_and_a_finished_request_counts_no_more() {
        let balance = balance(2, Health::default());
        let (first, held) = balance.choose(&[]).unwrap();
        for _ in 0..100 {
            assert_ne!(balance.choose(&[]).unwrap().0, first);
        }
        drop(held);
        assert_eq!(balance.in_flight(), [0, 0]);
        let both: std::collections::HashSet<_> = (0..100).map(|_| balance.choose(&[]).unwrap().0).collect();
        assert_eq!(both.len(), 2);
    }

    #[test]
    fn the_most_loaded_of_three_is_never_chosen() {
        let balance = balance(3, Health::default());
        let _held: Vec<_> = (0..3).map(|n| balance.choose(&[(n + 1) % 3, (n + 2) % 3]).unwrap().1).collect();
        let _more = balance.choose(&[0, 1]).unwrap().1;
        assert_eq!(balance.in_flight(), [1, 1, 2]);
        assert_eq!(shares(&balance, 1_000)[2], 0.0);
    }

    #[test]
    fn each_service_is_tried_once() {
        let balance = balance(3, Health::default());
        let mut tried = Vec::new();
        while let Some((index, _)) = balance.choose(&tried) {
            assert!(!tried.contains(&index));
            tried.push(index);
        }
        assert_eq!(tried.len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_share_of_a_service_that_returns_grows_over_the_slow_start() {
        let health = Health { slow_start: Duration::from_secs(10), ..Health::default() };
        let balance = balance(2, health);
        balance.members[0].judge.begin_slowly();
        for (second, wanted) in [(0, 0.0), (5, 0.25), (10, 0.5)] {
            let share = shares(&balance, 10_000)[0];
            assert!((share - wanted).abs() < 0.025, "{share} after {second} s");
            tokio::time::advance(Duration::from_secs(5)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_of_a_service_survives_a_change_of_the_others() {
        let health = Health { slow_start: Duration::from_secs(10), ..Health::default() };
        let before = balance(2, health.clone());
        for _ in 0..5 {
            before.members[1].judge.failed(&"refused");
        }
        let after = balance(3, health);
        after.succeed(&before);
        let standings: Vec<_> = after.members.iter().map(|member| member.judge.standing()).collect();
        assert_eq!(standings[0], (Standing::In, 1.0));
        assert_eq!(standings[1].0, Standing::Ejected);
        assert_eq!(standings[2], (Standing::In, 0.0));
    }
}
