//! `guard`: only the guards of a file.

use std::time::Duration;

use super::{Outcome, complain, env, run, search};
use crate::{
    app::{GuardApp, Reloading},
    config::{Flags, Source},
    shutdown::Tasks,
    telemetry,
};

pub(super) fn run(flags: Flags, workers: Option<usize>) -> Outcome {
    let source = Source { flags, env, search: search() };
    let loaded = match source.load() {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            complain(&mistakes.to_string());
            return Outcome::Usage;
        }
    };
    let config = loaded.config;
    if config.guards.is_empty() {
        let file = loaded.file.map_or_else(|| "no file".to_owned(), |file| file.display().to_string());
        complain(&format!("adit guard: there is no guard: {file} has no `guard` section; name the file with --config"));
        return Outcome::Usage;
    }
    let _guard = match telemetry::init(&run::log_options(&config)) {
        Ok(guard) => guard,
        Err(error) => {
            complain(&format!("cannot open the log file: {error}"));
            return Outcome::Usage;
        }
    };
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(file) = &loaded.file {
        tracing::info!(file = %file.display(), "configuration");
    }
    run::with_runtime(workers, async move {
        let tasks = Tasks::new();
        let hangup = run::on_signals(&tasks);
        let reloading = Reloading { source, file: loaded.file, hangup };
        let ended = async { GuardApp::bind(config, tasks.clone()).await?.reloading(reloading).run().await };
        let outcome = match ended.await {
            Ok(()) => Outcome::Done,
            Err(error) => {
                tracing::error!("{error:#}");
                Outcome::Usage
            }
        };
        tasks.finish(Duration::from_secs(1)).await;
        outcome
    })
}
