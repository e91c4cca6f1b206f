//! `run` and `demo`: a runtime, signals, and the way out.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tracing::Level;

use super::{Outcome, complain, env, say, search};
use crate::{
    app::{ConnectorApp, Reloading},
    config::{Config, Flags, Loaded, LogFormat, SecretSource, Source},
    demo, secrets,
    shutdown::Tasks,
    telemetry::{self, LogOptions},
};

pub(super) fn connector(flags: Flags, workers: Option<usize>, settle: Duration) -> Outcome {
    let refused = |loaded: &Loaded| {
        (loaded.config.secret == SecretSource::Missing).then(|| format!("adit: {}", secrets::Error::Missing))
    };
    let (source, Loaded { config, file, .. }, _guard) = match configured(flags, refused) {
        Ok(configured) => configured,
        Err(outcome) => return outcome,
    };
    let grace = config.grace_period;
    with_runtime(workers, async move {
        let tasks = Tasks::new();
        let hangup = on_signals(&tasks);
        let reloading = Reloading { source, file, hangup };
        let app = match ConnectorApp::bind(config, search(), tasks.clone()).await {
            Ok(app) => app.settling(settle).reloading(reloading),
            Err(error) => {
                tracing::error!("{error:#}");
                return Outcome::Usage;
            }
        };
        let outcome = match app.run().await {
            Ok(()) => Outcome::Done,
            Err(error) => {
                tracing::error!("{error:#}");
                Outcome::Usage
            }
        };
        // Every connection has ended; what is left are streams whose connection is gone.
        tasks.finish(grace.min(Duration::from_secs(1))).await;
        outcome
    })
}

/// Reads the configuration and opens the log, which is open as long as the guard is held. `refused` says why it cannot
/// be used for what was asked.
pub(super) fn configured(
    flags: Flags,
    refused: impl FnOnce(&Loaded) -> Option<String>,
) -> Result<(Source, Loaded, telemetry::Guard), Outcome> {
    let usage = |reason: String| {
        complain(&reason);
        Outcome::Usage
    };
    let source = Source { flags, env, search: search() };
    let loaded = source.load().map_err(|mistakes| usage(mistakes.to_string()))?;
    if let Some(reason) = refused(&loaded) {
        return Err(usage(reason));
    }
    let opened = telemetry::init(&log_options(&loaded.config));
    let guard = opened.map_err(|error| usage(format!("cannot open the log file: {error}")))?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(file) = &loaded.file {
        tracing::info!(file = %file.display(), "configuration");
    }
    Ok((source, loaded, guard))
}

pub(super) fn demo(once: bool, protocol: &str) -> Outcome {
    let level = if once { Level::ERROR } else { Level::WARN };
    let _guard = telemetry::init(&LogOptions { level, json: false, file: None });
    let protocol = protocol.to_owned();
    with_runtime(None, async move {
        let tasks = Tasks::new();
        let _ = on_signals(&tasks);
        match demo::run(&protocol, once, say, &tasks).await {
            Ok(true) => Outcome::Done,
            Ok(false) => Outcome::Failed,
            Err(error) => {
                complain(&format!("adit demo: {error:#}"));
                Outcome::Failed
            }
        }
    })
}

fn log_options(config: &Config) -> LogOptions {
    let file = config.logfile.clone().or_else(|| {
        let directory = config.log_directory.as_ref()?;
        Some(PathBuf::from(directory).join("adit.log"))
    });
    LogOptions { level: config.loglevel.as_tracing(), json: config.output == LogFormat::Json, file }
}

/// One thread does the work of small machines cheapest: no request wakes another thread. More cores get more threads,
/// half of them at most, since the service beside us needs the others.
pub(super) fn with_runtime(workers: Option<usize>, work: impl Future<Output = Outcome>) -> Outcome {
    raise_file_limit();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = workers.unwrap_or(cores / 2).clamp(1, 64).min(if workers.is_some() { 64 } else { 4 });
    let runtime = if workers == 1 {
        Builder::new_current_thread().enable_all().build()
    } else {
        Builder::new_multi_thread().worker_threads(workers).enable_all().build()
    };
    match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(work);
            abandon(runtime);
            outcome
        }
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            Outcome::Failed
        }
    }
}

/// A stream is a socket on either side; the usual soft limit of 1,024 is for programs that use `select`.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
    }
}

/// A name look-up that hangs in the system's resolver must not hold up the end of the process.
fn abandon(runtime: Runtime) {
    runtime.shutdown_timeout(Duration::from_millis(200));
}

/// The first SIGTERM or SIGINT drains, the second stops at once. Returns what SIGHUP tells.
pub(super) fn on_signals(tasks: &Tasks) -> Arc<Notify> {
    let tasks_ = tasks.clone();
    let told = Arc::new(Notify::new());
    let hung_up = told.clone();
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()))
    else {
        tracing::error!("signals cannot be handled; they end the process at once");
        return told;
    };
    let killed = tasks.killed();
    tasks.attend(async move {
        let mut drained = false;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {
                    hung_up.notify_one();
                    continue;
                }
                () = killed.cancelled() => return,
            }
            if drained {
                tracing::warn!("second signal: stopping at once");
                tasks_.kill();
                // Streams may be anywhere; the process does not wait for them.
                std::process::exit(1);
            }
            drained = true;
            tracing::info!("draining");
            tasks_.drain();
        }
    });
    told
}
