//! Logs: where they go and in which form.
//!
//! Ordinary events go through `tracing-subscriber`. The access event of each request (target `access`) has a layer of
//! its own, [`access`], since it is written on the data path.

pub mod access;
mod level;
mod sink;

use std::{error::Error as StdError, fmt, io, path::PathBuf};

use tracing::Level;
use tracing_subscriber::{Layer, layer::SubscriberExt, util::SubscriberInitExt};

use level::Threshold;
pub use level::set_level;
pub use sink::Sink;

/// Target of access events.
pub const ACCESS: &str = "access";

/// How to log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The lowest level shown; [`set_level`] changes it later.
    pub level: Level,
    /// JSON lines instead of text.
    pub json: bool,
    /// Append JSON lines here as well.
    pub file: Option<PathBuf>,
}

/// Keeps buffered lines from being lost: drop it last.
#[must_use]
#[derive(Debug)]
pub struct Guard(Vec<Sink>);

impl Drop for Guard {
    fn drop(&mut self) {
        for sink in &self.0 {
            sink.flush();
        }
    }
}

/// Sets up logging for the process. A second call, in tests, changes nothing.
///
/// # Errors
///
/// When the log file cannot be opened.
pub fn init(options: &LogOptions) -> io::Result<Guard> {
    set_level(options.level);
    let console = Sink::stderr();
    let mut sinks = vec![console.clone()];
    let mut layers: Vec<Box<dyn Layer<_> + Send + Sync>> = Vec::new();
    let format = tracing_subscriber::fmt::layer();
    layers.push(if options.json {
        let layer = format.json().flatten_event(true).with_current_span(false).with_span_list(false);
        layer.with_writer(console.clone()).with_filter(Threshold::Ordinary).boxed()
    } else {
        format.with_target(false).with_ansi(false).with_writer(console.clone()).with_filter(Threshold::Ordinary).boxed()
    });
    layers.push(access::layer(console, options.json).with_filter(Threshold::Access).boxed());
    if let Some(path) = &options.file {
        let sink = Sink::file(path)?;
        sinks.push(sink.clone());
        let json = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
        layers.push(json.with_span_list(false).with_writer(sink.clone()).with_filter(Threshold::Ordinary).boxed());
        layers.push(access::layer(sink, true).with_filter(Threshold::Access).boxed());
    }
    let _ = tracing_subscriber::registry().with(layers).try_init();
    Ok(Guard(sinks))
}

/// An error with all its causes, `: ` between them.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn StdError + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        f.write_str(&text)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let next = error.to_string();
            // Many errors repeat their source in their own text.
            if !text.contains(&next) {
                write!(f, ": {next}")?;
                text = next;
            }
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_chain_names_every_cause_once() {
        let error = Outer(io::Error::other("inner"));
        assert_eq!(Chain(&error).to_string(), "outer: inner");
    }
}
