//! `guard`: only the guards of a file.

use std::time::Duration;

use super::{Outcome, run};
use crate::{
    app::{GuardApp, Reloading},
    config::{Flags, Loaded},
    shutdown::Tasks,
};

pub(super) fn run(flags: Flags, workers: Option<usize>) -> Outcome {
    let refused = |loaded: &Loaded| {
        let file = loaded.file.as_ref().map_or_else(|| "no file".to_owned(), |file| file.display().to_string());
        let why = format!("adit guard: there is no guard: {file} has no `guard` section; name the file with --config");
        loaded.config.guards.is_empty().then_some(why)
    };
    let (source, Loaded { config, file, .. }, _guard) = match run::configured(flags, refused) {
        Ok(configured) => configured,
        Err(outcome) => return outcome,
    };
    run::with_runtime(workers, async move {
        let tasks = Tasks::new();
        let hangup = run::on_signals(&tasks);
        let reloading = Reloading { source, file, hangup };
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
