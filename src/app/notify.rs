//! What systemd is told (sd_notify(3)): started, what the connector is doing, stopping.

use std::{
    ffi::OsStr,
    io,
    os::unix::net::{SocketAddr, UnixDatagram},
};

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

/// Sends to `NOTIFY_SOCKET`: a path, or a name in Linux' abstract space behind an `@`, which containers get.
fn tell(states: &[NotifyState<'_>]) {
    use std::fmt::Write;
    let Some(to) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let mut message = String::new();
    for state in states {
        // Writing to a String cannot fail.
        let _ = writeln!(message, "{state}");
    }
    let sent = address(&to).and_then(|to| {
        let socket = UnixDatagram::unbound()?;
        // A supervisor that does not read must not stop the traffic.
        socket.set_nonblocking(true)?;
        socket.send_to_addr(message.as_bytes(), &to)
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

fn address(to: &OsStr) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = to.as_encoded_bytes().strip_prefix(b"@") {
        return <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name);
    }
    SocketAddr::from_pathname(to)
}
