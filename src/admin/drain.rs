//! `POST /drain`: for a hook that runs before a stop. The process stays, unready, until a signal.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, sync::watch};

use super::{ConnectorView, of_type, text};
use crate::{guard::GuardsHandle, shutdown::Tasks};

/// Where it is.
pub const PATH: &str = "/drain";

/// How far a drain is: the answer of `POST /drain`, which may be asked as often as one likes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Whether every connection has ended.
    pub drained: bool,
    /// Connections that are still there: to the edge, and of callers of guards.
    pub connections: usize,
    /// Requests and streams in flight.
    pub in_flight: u64,
    /// Streams that were cut because they outlived the grace period.
    pub cut: u64,
    /// What is left of the grace period, in milliseconds.
    pub grace_left_ms: u64,
}

/// Whether a peer is on this machine: on loopback, or at the address that it reached us under.
pub(super) fn is_near(stream: &TcpStream, peer: SocketAddr) -> bool {
    stream.local_addr().is_ok_and(|local| near(local.ip(), peer.ip()))
}

fn near(local: IpAddr, peer: IpAddr) -> bool {
    let (local, peer) = (local.to_canonical(), peer.to_canonical());
    peer.is_loopback() || peer == local
}

pub(super) fn answer(
    tasks: &Tasks,
    grace: &watch::Receiver<Duration>,
    request: &Request<Incoming>,
    near: bool,
    progress: impl FnOnce(u64) -> Progress,
) -> Response<Full<Bytes>> {
    if request.method() != Method::POST {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only POST\n");
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return refusal;
    }
    // A page in a browser on this machine is near, too, and says where it comes from.
    if !near || request.headers().contains_key(header::ORIGIN) {
        return text(StatusCode::FORBIDDEN, "only from this machine\n");
    }
    if tasks.drained_at().is_none() {
        tracing::info!("draining: asked on the admin address");
    }
    tasks.drain_and_stay();
    let spent = tasks.drained_at().map_or(Duration::ZERO, |began| began.elapsed());
    let left = u64::try_from(grace.borrow().saturating_sub(spent).as_millis()).unwrap_or(u64::MAX);
    let progress = progress(left);
    let body = serde_json::to_string(&progress).unwrap_or_default();
    of_type(StatusCode::OK, body, "application/json")
}

impl ConnectorView {
    /// Of the tunnel and of guards together.
    pub(super) fn progress(&self, grace_left_ms: u64) -> Progress {
        let of_guards = |figure: fn(&GuardsHandle) -> u64| self.guards.as_ref().map_or(0, figure);
        let callers = self.guards.as_ref().map_or(0, GuardsHandle::connections);
        Progress {
            drained: *self.drained.borrow(),
            connections: self.status().connections.iter().flatten().count() + callers,
            in_flight: u64::try_from(self.metrics.in_flight()).unwrap_or(0)
                + of_guards(|guards| guards.in_flight() as u64),
            cut: self.metrics.streams_cut() + of_guards(GuardsHandle::cut),
            grace_left_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_is_this_machine_and_nothing_else() {
        let near = |local: &str, peer: &str| near(local.parse().unwrap(), peer.parse().unwrap());
        for (local, peer) in [
            ("127.0.0.1", "127.0.0.1"),
            ("10.0.0.5", "127.0.0.1"),
            ("10.0.0.5", "10.0.0.5"),
            ("::ffff:10.0.0.5", "10.0.0.5"),
            ("::1", "::1"),
            ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ] {
            assert!(near(local, peer), "{local} {peer}");
        }
        for (local, peer) in [("10.0.0.5", "10.0.0.6"), ("::ffff:10.0.0.5", "::ffff:10.0.0.6"), ("fd00::5", "fd00::6")]
        {
            assert!(!near(local, peer), "{local} {peer}");
        }
    }
}
