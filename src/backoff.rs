//! Waiting between attempts: full jitter under a doubling ceiling, reset after success.
//!
//! Full jitter (uniform in `[0, ceiling)`) spreads a thousand connectors that lost the same edge. Knows no clock and
//! no network: it only says how long to wait.

use std::time::Duration;

/// The waits of one connection.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    ceiling: Duration,
    attempt: u32,
}

impl Backoff {
    /// Waits uniform in `[0, min(base * 2^n, ceiling))`, `n` counted from 0.
    pub fn new(base: Duration, ceiling: Duration) -> Self {
        Self { base, ceiling, attempt: 0 }
    }

    /// After an outage: from 250 ms, never longer than 1 s, since asking again is cheap and the network's return is
    /// not announced.
    pub fn of_outages() -> Self {
        Self::new(Duration::from_millis(250), Duration::from_secs(1))
    }

    /// After a refused registration: 2 s, doubling `retries` times; 64 s at the default of five (protocol.md §7).
    pub fn of_refusals(retries: u8) -> Self {
        let base = Duration::from_secs(2);
        Self::new(base, base.saturating_mul(1u32 << u32::from(retries.min(16))))
    }

    /// The upper bound of the next wait.
    pub fn bound(&self) -> Duration {
        self.base.saturating_mul(1u32 << self.attempt.min(20)).min(self.ceiling)
    }

    /// Draws the next wait and raises the ceiling of the one after it.
    pub fn next_wait(&mut self) -> Duration {
        let bound = self.bound();
        self.attempt = self.attempt.saturating_add(1);
        bound.mul_f64(rand::random::<f64>())
    }

    /// How many waits were drawn since the last reset; what registration sends as `numPreviousAttempts`.
    pub fn attempts(&self) -> u32 {
        self.attempt
    }

    /// Forgets the past after success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_its_ceiling_and_returns_after_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let bounds: Vec<u64> = (0..5)
            .map(|_| {
                let bound = backoff.bound();
                assert!(backoff.next_wait() < bound);
                bound.as_secs()
            })
            .collect();
        assert_eq!(bounds, [1, 2, 4, 5, 5]);
        assert_eq!(backoff.attempts(), 5);
        backoff.reset();
        assert_eq!(backoff.bound(), Duration::from_secs(1));
    }

    #[test]
    fn a_very_long_outage_does_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(32));
        for _ in 0..100 {
            assert!(backoff.next_wait() <= Duration::from_secs(32));
        }
    }
}
