//! What the admin address of an edge shows.

use std::{fmt::Write, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use tokio::time::Instant;

use super::{health, metrics_text, text};
use crate::edge::EdgeHandle;

/// An edge waits so long for the connectors of its state before it takes visitors without them: a tunnel nobody serves
/// must not keep the others from theirs.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn answer(edge: &EdgeHandle, started: Instant, path: &str) -> Response<Full<Bytes>> {
    match path {
        "/startupz" => health(true, ""),
        "/readyz" if edge.is_draining() => health(false, "draining\n"),
        "/readyz" => {
            let tunnels = edge.tunnels();
            let all = tunnels.iter().all(|tunnel| !edge.registry().of(tunnel.id).is_empty());
            health(all || started.elapsed() >= PATIENCE, "waiting for connectors\n")
        }
        "/metrics" => metrics_text(edge.metrics()),
        "/" => text(StatusCode::OK, page(edge)),
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

fn page(edge: &EdgeHandle) -> String {
    let mut page =
        format!("adit edge {}{}\n\n", env!("CARGO_PKG_VERSION"), if edge.is_draining() { "  draining" } else { "" });
    for tunnel in edge.tunnels().iter() {
        let _ = writeln!(page, "tunnel {} {} {}", tunnel.id, tunnel.name, tunnel.hostnames.join(" "));
        for session in edge.registry().of(tunnel.id).iter() {
            let _ = writeln!(
                page,
                "  connector {} connection {} {} in flight {}",
                session.connector(),
                session.index(),
                session.transport(),
                session.in_flight()
            );
        }
    }
    page
}
