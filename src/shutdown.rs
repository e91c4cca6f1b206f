//! Two stages of stopping, and the only way to spawn a task.
//!
//! *Drain* asks everybody to finish; *kill* cuts. A drain that was begun with [`Tasks::drain_and_stay`] leaves the
//! process in place, for whoever asked, until [`Tasks::drain`]. Every task is spawned through [`Tasks`], so that somebody waits for
//! it and a panic inside it becomes a log line and a count instead of silence. Knows nothing of the product.

use std::{
    future::Future,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, Span};

/// Spawns and counts the tasks of one process (or of one embedded edge or connector in a test).
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    attendants: TaskTracker,
    drain: CancellationToken,
    drained_at: Arc<OnceLock<Instant>>,
    leave: CancellationToken,
    kill: CancellationToken,
    panics: Arc<AtomicU64>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// A set without tasks, neither draining nor killed.
    pub fn new() -> Self {
        Self {
            tracker: TaskTracker::new(),
            attendants: TaskTracker::new(),
            drain: CancellationToken::new(),
            drained_at: Arc::default(),
            leave: CancellationToken::new(),
            kill: CancellationToken::new(),
            panics: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Spawns a task that ends by itself. It is dropped at its next await once [`Tasks::kill`] was called.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_into(&self.tracker, task);
    }

    /// Spawns a task that waits on others as long as they run: a drain does not wait for it, a kill ends it.
    pub fn attend(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_into(&self.attendants, task);
    }

    fn spawn_into(&self, tracker: &TaskTracker, task: impl Future<Output = ()> + Send + 'static) {
        let kill = self.kill.clone();
        let panics = self.panics.clone();
        let guarded = async move {
            let task = std::panic::AssertUnwindSafe(task).catch_unwind();
            tokio::select! {
                biased;
                () = kill.cancelled() => {}
                outcome = task => if let Err(panic) = outcome {
                    panics.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(panic = panic_text(&*panic), "a task panicked; its stream was reset, the process goes on");
                }
            }
        };
        #[expect(clippy::disallowed_methods, reason = "the one place that may")]
        tokio::spawn(tracker.track_future(guarded.instrument(Span::current())));
    }

    /// Asks every task to finish, and the process to end once they have. Idempotent.
    pub fn drain(&self) {
        self.drain_and_stay();
        self.leave.cancel();
    }

    /// Asks every task to finish; the process stays until [`Tasks::drain`]. Idempotent.
    pub fn drain_and_stay(&self) {
        // First the moment, so that nobody sees a drain that has none.
        self.drained_at.get_or_init(Instant::now);
        self.drain.cancel();
    }

    /// Completes once [`Tasks::drain`] was called.
    pub fn draining(&self) -> CancellationToken {
        self.drain.clone()
    }

    /// When the drain began; every grace period counts from there, whoever learns of it when.
    pub fn drained_at(&self) -> Option<Instant> {
        self.drained_at.get().copied()
    }

    /// Completes once the process is to end: [`Tasks::drain`], not [`Tasks::drain_and_stay`].
    pub fn leaving(&self) -> CancellationToken {
        self.leave.clone()
    }

    /// Cuts every task at its next await. Implies drain.
    pub fn kill(&self) {
        self.drain();
        self.kill.cancel();
    }

    /// Completes once [`Tasks::kill`] was called.
    pub fn killed(&self) -> CancellationToken {
        self.kill.clone()
    }

    /// How many tasks are alive.
    pub fn alive(&self) -> usize {
        self.tracker.len()
    }

    /// How many tasks have panicked so far.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Drains, waits at most `grace` for every task, then kills the rest and waits for them.
    ///
    /// Returns whether everything finished within the grace period.
    pub async fn finish(&self, grace: Duration) -> bool {
        self.drain();
        self.tracker.close();
        let finished = tokio::select! {
            () = self.tracker.wait() => true,
            () = tokio::time::sleep(grace) => false,
            () = self.kill.cancelled() => false,
        };
        self.kill();
        self.attendants.close();
        self.tracker.wait().await;
        self.attendants.wait().await;
        finished
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn finish_waits_for_a_task_that_ends_in_time() {
        let tasks = Tasks::new();
        let draining = tasks.draining();
        tasks.spawn(async move { draining.cancelled().await });
        assert!(tasks.finish(Duration::from_secs(5)).await);
        assert_eq!(tasks.alive(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn finish_cuts_a_task_that_outlives_the_grace_period() {
        let tasks = Tasks::new();
        tasks.spawn(std::future::pending());
        assert!(!tasks.finish(Duration::from_secs(30)).await);
        assert_eq!(tasks.alive(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_attendant_does_not_hold_up_the_end() {
        let tasks = Tasks::new();
        let started = Instant::now();
        tasks.attend(std::future::pending());
        assert!(tasks.finish(Duration::from_secs(30)).await);
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_stays_counts_from_its_own_beginning_and_leaves_only_when_asked() {
        let tasks = Tasks::new();
        assert_eq!(tasks.drained_at(), None);
        tasks.drain_and_stay();
        let began = Instant::now();
        assert!(tasks.draining().is_cancelled() && !tasks.leaving().is_cancelled());
        tokio::time::advance(Duration::from_secs(3)).await;
        tasks.drain();
        assert!(tasks.leaving().is_cancelled());
        assert_eq!(tasks.drained_at(), Some(began));
    }

    #[tokio::test]
    async fn a_panic_is_counted_and_stays_inside_its_task() {
        let tasks = Tasks::new();
        tasks.spawn(async { panic!("on purpose") });
        tasks.spawn(async {});
        assert!(tasks.finish(Duration::from_secs(5)).await);
        assert_eq!(tasks.panics(), 1);
    }
}
