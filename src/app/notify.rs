//! What systemd is told (sd_notify(3)): started, what the connector is doing, stopping.

use sd_notify::NotifyState;
use tokio::sync::watch;

use crate::{connector::Status, shutdown::Tasks};

/// Configuration and secrets are loaded; whatever the edge does is not systemd's affair.
pub(super) fn started() {
    tell(&[NotifyState::Ready, NotifyState::Status("connecting to the edge")]);
}

/// The process is about to end. A drain that stays says so in its status alone: systemd would count its stop time-out
/// from here.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Keeps the status line true until the process ends. Nothing runs where nobody listens.
pub(super) fn follow(mut status: watch::Receiver<Status>, tasks: &Tasks) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let (draining, leaving) = (tasks.draining(), tasks.leaving());
    tasks.attend(async move {
        loop {
            let line = line(&status.borrow_and_update());
            tell(&[NotifyState::Status(&line)]);
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return },
                () = draining.cancelled() => break,
            }
        }
        tell(&[NotifyState::Status("draining: unregistered, requests in flight finish")]);
        leaving.cancelled().await;
        stopping();
    });
}

fn line(status: &Status) -> String {
    let all = status.connections.len();
    match status.connections.iter().flatten().next() {
        Some(first) => format!("{} of {all} connections, over {}", status.ready(), first.transport),
        None => "no connection to the edge, trying again".to_owned(),
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}
