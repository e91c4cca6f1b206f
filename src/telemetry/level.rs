//! The lowest level that is logged, which may change while the process runs.
//!
//! One number for the process, read without a lock: the filters stand on the way of every request.

use std::sync::atomic::{AtomicU8, Ordering};

use tracing::{Level, Metadata, level_filters::LevelFilter, subscriber::Interest};
use tracing_subscriber::layer::{Context, Filter};

use super::ACCESS;

/// 1 (error) to 5 (trace).
static LEVEL: AtomicU8 = AtomicU8::new(3);

fn number(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

fn level() -> LevelFilter {
    match LEVEL.load(Ordering::Relaxed) {
        1 => LevelFilter::ERROR,
        2 => LevelFilter::WARN,
        3 => LevelFilter::INFO,
        4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// Logs from this level on, at once.
pub fn set_level(level: Level) {
    if LEVEL.swap(number(level), Ordering::Relaxed) != number(level) {
        // Whether an event is wanted at all is remembered at its place in the code.
        tracing::callsite::rebuild_interest_cache();
    }
}

/// What one of the layers lets through.
#[derive(Clone, Copy, Debug)]
pub(super) enum Threshold {
    /// Access events.
    Access,
    /// Everything else: ours at the level asked for; libraries speak up from warn on.
    Ordinary,
}

impl Threshold {
    fn admits(self, meta: &Metadata<'_>) -> bool {
        let access = meta.target() == ACCESS;
        let ours = access || meta.target() == "adit" || meta.target().starts_with("adit::");
        let least = if ours { level() } else { level().min(LevelFilter::WARN) };
        access == matches!(self, Self::Access) && *meta.level() <= least
    }
}

impl<S> Filter<S> for Threshold {
    fn enabled(&self, meta: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.admits(meta)
    }

    fn callsite_enabled(&self, meta: &'static Metadata<'static>) -> Interest {
        if self.admits(meta) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(level())
    }
}
