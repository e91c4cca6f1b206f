//! Private-network TCP: a stream names a literal address and is connected to it, without a rule (protocol.md §8.5).

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Proxy, Routes, Via,
    pipe::{self, Ends},
};
use crate::{
    code::Code,
    transport::{Recv, Responder},
};

/// Flows of one connector (§8.6); the limit is `warp-routing.maxActiveFlows` or `--max-active-flows`.
#[derive(Debug, Default)]
pub struct Flows(AtomicU64);

struct Flow<'a>(&'a Flows);

impl Flows {
    fn enter(&self, limit: u64) -> Option<Flow<'_>> {
        let (before, flow) = (self.0.fetch_add(1, Ordering::AcqRel), Flow(self));
        (limit == 0 || before < limit).then_some(flow)
    }
}

impl Drop for Flow<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

pub(super) async fn serve(
    proxy: &Proxy,
    routes: &Routes,
    via: Via,
    dest: SocketAddr,
    responder: Responder,
    recv: Recv,
) {
    let started = Instant::now();
    let log = |outcome: &str, copied: pipe::Copied| {
        tracing::info!(
            target: "access", method = "TCP", host = dest.to_string().as_str(), ms = started.elapsed().as_secs_f64() * 1000.0,
            sent = copied.down, received = copied.up, connection = u64::from(via.connection),
            transport = via.transport.as_str(), code = outcome,
        );
    };
    proxy.metrics.request_started();
    if routes.refuses_private_network() {
        proxy.metrics.refused(Code::CallerNotAllowed);
        proxy.metrics.request_ended();
        log(Code::CallerNotAllowed.as_str(), pipe::Copied::default());
        return responder.fail("streams without a rule are refused: innerHop.privateNetwork", false).await;
    }
    let Some(_flow) = proxy.flows.enter(routes.warp.max_active_flows) else {
        proxy.metrics.flow_refused();
        proxy.metrics.request_ended();
        log("flow-limit", pipe::Copied::default());
        return responder.fail("failed to start tcp flow due to rate limiting: too many active flows", true).await;
    };
    let dialer = &routes.warp_dialer;
    let dialled = tokio::time::timeout(dialer.connect_timeout, dialer.address(dest)).await;
    let stream = match dialled {
        Ok(Ok(stream)) => stream,
        failed => {
            let cause = match failed {
                Ok(Err(error)) => error.to_string(),
                _ => "i/o timeout".to_owned(),
            };
            proxy.metrics.tcp_failed();
            proxy.metrics.request_ended();
            log("origin-unreachable", pipe::Copied::default());
            return responder.fail(&format!("unable to dial tcp to origin {dest}: {cause}"), false).await;
        }
    };
    proxy.metrics.tcp_connected(started.elapsed());
    let copied = match responder.connected().await {
        Ok(send) => {
            let ends = if via.own_edge { Ends::Apart } else { Ends::HalfClose };
            pipe::both(stream, Bytes::new(), send, recv, ends).await
        }
        Err(_) => pipe::Copied::default(),
    };
    proxy.metrics.tcp_ended();
    proxy.metrics.request_ended();
    proxy.metrics.bytes(copied.up, copied.down);
    log("", copied);
}
