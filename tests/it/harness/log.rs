//! What the program logs about requests, as seen by one test.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, Once},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    layer::{Context, SubscriberExt},
};

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) target: String,
    pub(crate) level: Level,
    fields: BTreeMap<&'static str, String>,
}

impl Line {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<Line>>>);

impl<S: Subscriber> Layer<S> for Collected {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Line { target: metadata.target().to_owned(), level: *metadata.level(), fields: BTreeMap::new() };
        event.record(&mut line);
        self.0.lock().unwrap().push(line);
    }
}

/// The lines of this test's own thread about requests and their services, from when it was made.
pub(crate) struct Log {
    lines: Collected,
    _guard: DefaultGuard,
}

impl Log {
    pub(crate) fn start() -> Self {
        // Whether anybody listens at all is remembered for the whole process, and tests begin and end listening beside
        // each other: somebody who always listens, and keeps nothing, keeps lines from being lost.
        static ALWAYS: Once = Once::new();
        ALWAYS.call_once(|| {
            let nobody = tracing_subscriber::registry().with(LevelFilter::INFO);
            let _ = tracing::subscriber::set_global_default(nobody);
        });
        let lines = Collected::default();
        let about = Targets::new()
            .with_target("access", Level::INFO)
            .with_targets([("adit::proxy", Level::INFO), ("adit::origin", Level::INFO)]);
        let subscriber = tracing_subscriber::registry().with(lines.clone().with_filter(about));
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// Everything so far.
    pub(crate) fn lines(&self) -> Vec<Line> {
        self.lines.0.lock().unwrap().clone()
    }
}
