//! One registered connection: serve its streams, unregister when drained, end when the edge closes it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::{
    sync::{Semaphore, oneshot, watch},
    time::Instant,
};
use tokio_util::{future::FutureExt, sync::CancellationToken, task::TaskTracker};

use super::{
    ConnectionState, Shared,
    attempt::{Fault, Live},
    drain,
    liveness::{Liveness, Look, Trouble},
    status::Holder,
};
use crate::{
    proxy::{self, Via},
    transport::{self, Incoming, Pending, Recv, Responder, Session},
    wire::{
        calls::{self, Push},
        registration::Control,
    },
};

/// Largest configuration accepted over HTTP/2.
const MOST_CONFIGURATION: usize = 8 << 20;

/// Calls of the edge at a time on one connection: an edge makes one now and then, and each may hold a message of 8 MiB.
const MOST_CALLS: usize = 8;

/// What a connection and its keeper tell each other.
pub(super) struct Line {
    /// Another connection took this one's place: unregister and finish.
    pub(super) retire: CancellationToken,
    /// What is wrong with it.
    pub(super) trouble: watch::Sender<Option<Trouble>>,
}

/// Serves until the connection ends, and says why it did.
pub(super) async fn serve(shared: &Arc<Shared>, index: u8, live: Live, line: Line) -> Fault {
    let Live { mut session, registered, control, early, spare: _ } = live;
    let own_edge = registered.confirms_own();
    // Whoever a public authority vouches for can confirm, too.
    let believed = own_edge && shared.config.tls.proves_edge;
    let via = Via { connection: index, transport: session.transport(), own_edge, believed };
    let edge = session.remote();
    tracing::info!(
        index, connection = %registered.connection, %edge, transport = %via.transport,
        location = registered.location, "registered"
    );
    let _counted = shared.metrics.registered(index, via.transport.as_str(), &registered.location);
    let state = ConnectionState {
        transport: via.transport,
        edge,
        location: registered.location.clone(),
        id: registered.connection,
        since: Instant::now(),
        why_not_quic: shared.choice.why_not_quic(edge).filter(|_| via.transport == transport::Transport::Http2),
        unregistered: false,
    };
    // One that was set aside before it served leaves the place to the one that took it.
    let mut holder = Holder::default();
    if !line.retire.is_cancelled() {
        shared.status.send_modify(|status| holder = status.registered(index, state));
    }
    let control = Arc::new(control);
    let local_rules = async {
        if index == 0 && !registered.remotely_managed {
            tell_local_rules(shared, &control).await;
        }
        std::future::pending::<()>().await;
    };
    let mut local_rules = Box::pin(local_rules);
    let streams = TaskTracker::new();
    let calls = Arc::new(Semaphore::new(MOST_CALLS));
    for pending in early {
        start(shared, &streams, &calls, via, pending);
    }
    let quic = match &session {
        Session::Quic(session) => Some(session.connection().clone()),
        Session::Http2(_) => None,
    };
    let datagrams = async {
        let Some(quic) = quic else { return std::future::pending().await };
        while quic.read_datagram().await.is_ok() {
            shared.metrics.dropped_datagram();
        }
        std::future::pending::<()>().await;
    };
    let mut datagrams = std::pin::pin!(datagrams);
    let mut liveness = Liveness::new(session.pulse(), edge, shared.config.quic.bind.is_some());
    let draining = shared.tasks.draining();
    let mut ending = std::pin::pin!(async {
        tokio::select! {
            () = draining.cancelled() => {}
            () = line.retire.cancelled() => {}
        }
    });
    let error = loop {
        tokio::select! {
            pending = session.accept() => match pending {
                Ok(pending) => {
                    if let Session::Quic(session) = &mut session {
                        session.make_room(streams.len());
                    }
                    start(shared, &streams, &calls, via, pending);
                    // What an edge sends in one piece is served while it is taken: 20,000 tasks begun before the first
                    // of them ran held 50 MiB.
                    tokio::task::coop::consume_budget().await;
                }
                Err(error) => break error,
            },
            () = control.closed() => break transport::Error::Closed,
            () = &mut datagrams => {}
            () = &mut local_rules => {}
            look = liveness.look() => match look {
                Look::Alive(trouble) => {
                    line.trouble.send_if_modified(|before| std::mem::replace(before, trouble) != trouble);
                }
                Look::Dead => break transport::Error::Silent,
            },
            () = ending.as_mut() => {
                shared.status.send_modify(|status| status.unregistered(index, holder));
                let cut =
                    drain::drain(shared, via, &mut session, control.clone(), &streams, &calls, &mut liveness).await;
                if cut > 0 && shared.grace_is_over() {
                    tracing::warn!(index, streams = cut, "the grace period is over: open streams are cut");
                    shared.metrics.cut(cut);
                }
                break transport::Error::Closed;
            }
        }
    };
    shared.status.send_modify(|status| status.ended(index, holder));
    drop(local_rules);
    drop(control);
    session.close().await;
    tracing::info!(index, %edge, reason = %error, "connection ended");
    Fault::Transport { transport: via.transport, edge, error }
}

/// Tells the edge the file's rules, and again whenever they change (protocol.md §5.5).
async fn tell_local_rules(shared: &Shared, control: &Control) {
    let mut rules = shared.local_rules.clone();
    loop {
        let json = rules.borrow_and_update().clone();
        if let Some(json) = json {
            let told = control.update_local_configuration(json.as_bytes().to_vec(), shared.config.rpc_timeout).await;
            shared.metrics.local_rules_told(told.is_ok());
            if let Err(error) = told {
                tracing::warn!(error, "the edge did not take the local rules");
            }
        }
        if rules.changed().await.is_err() {
            return;
        }
    }
}

pub(super) fn start(shared: &Arc<Shared>, streams: &TaskTracker, calls: &Arc<Semaphore>, via: Via, pending: Pending) {
    let token = streams.token();
    let (shared_, calls) = (shared.clone(), calls.clone());
    shared.tasks.spawn(async move {
        let _token = token;
        stream(shared_, calls, via, pending).await;
    });
}

/// The size of this future is the memory of one idle stream.
pub(crate) async fn stream(shared: Arc<Shared>, calls: Arc<Semaphore>, via: Via, pending: Pending) {
    // In a box: it is looked at once, and the rest of this future is what an idle stream costs.
    let delivered = Box::pin(pending.delivered());
    match pending.read().await {
        Ok(Incoming::Visitor { head, responder, recv }) => {
            proxy::serve(&shared.proxy, via, head, responder, recv).await;
        }
        Ok(Incoming::Rpc { recv, send }) => match calls.try_acquire() {
            Ok(_permit) => calls::serve(&shared.rpc, recv, send, via.own_edge, shared.pushes.clone()).await,
            Err(_) => too_many_calls(&shared, via),
        },
        Ok(Incoming::Configure { recv, responder }) => match calls.try_acquire() {
            Ok(_permit) => {
                let configured = Box::pin(configure(&shared, via, recv, responder).timeout(calls::CALL_LIMIT)).await;
                if configured.is_err() {
                    tracing::warn!(index = via.connection, "a configuration took too long");
                }
            }
            Err(_) => too_many_calls(&shared, via),
        },
        // A second control stream: dropping it resets it.
        Ok(Incoming::Control { .. }) => shared.metrics.malformed_stream(),
        Err(error) => {
            shared.metrics.malformed_stream();
            tracing::debug!(index = via.connection, %error, "a stream made no sense");
        }
    }
    // A drain waits for this task, so that it cuts nobody who reads slowly.
    delivered.await;
}

/// The stream is dropped, and so reset.
fn too_many_calls(shared: &Shared, via: Via) {
    shared.metrics.malformed_stream();
    tracing::debug!(index = via.connection, "more than {MOST_CALLS} calls at a time");
}

/// A configuration over HTTP/2 (protocol.md §6.7). Our answer carries the reasons as text where the peer has `{}`.
async fn configure(shared: &Shared, via: Via, mut recv: Recv, responder: Responder) {
    let mut body = Vec::new();
    loop {
        match recv.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= MOST_CONFIGURATION => body.extend_from_slice(&chunk),
            Ok(None) => break,
            _ => return responder.fail("the configuration did not arrive whole", false).await,
        }
    }
    let Some((version, config)) = parse_push(&body) else {
        return responder.fail("not a configuration", false).await;
    };
    let (reply, answer) = oneshot::channel();
    let push = Push { version, config, own_edge: via.own_edge, reply };
    if shared.pushes.send(push).await.is_err() {
        return responder.fail("the connector is stopping", false).await;
    }
    let Ok(applied) = answer.await else {
        return responder.fail("the connector is stopping", false).await;
    };
    let error = if applied.error.is_empty() { serde_json::Value::Null } else { applied.error.into() };
    let json = serde_json::json!({ "lastAppliedVersion": applied.version, "err": error });
    if let Ok(mut send) = responder.bare("application/json") {
        let _ = send.write(Bytes::from(json.to_string()), true).await;
    }
}

fn parse_push(body: &[u8]) -> Option<(i32, Bytes)> {
    #[derive(serde::Deserialize)]
    struct Body<'a> {
        version: i32,
        #[serde(borrow, default, deserialize_with = "present")]
        config: Option<&'a serde_json::value::RawValue>,
    }
    // `null` is a document, an empty one; no document is none, and is refused like any other that is no JSON.
    fn present<'de, D: serde::Deserializer<'de>>(
        from: D,
    ) -> Result<Option<&'de serde_json::value::RawValue>, D::Error> {
        serde::Deserialize::deserialize(from).map(Some)
    }
    let body: Body<'_> = serde_json::from_slice(body).ok()?;
    let config = body.config.map_or("", serde_json::value::RawValue::get);
    Some((body.version, Bytes::copy_from_slice(config.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_future_of_one_stream_stays_small() {
        fn size<F: Future>(_: impl FnOnce(Arc<Shared>, Arc<Semaphore>, Via, Pending) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(stream);
        // 5.8 KiB measured; a thousand idle WebSockets cost six megabytes of futures.
        assert!(size <= 6 << 10, "{size} bytes");
    }

    #[test]
    fn a_push_is_a_version_and_an_untouched_document() {
        let (version, config) = parse_push(br#"{"version":7,"config":{"ingress":[ ]}}"#).unwrap();
        assert_eq!((version, &config[..]), (7, &br#"{"ingress":[ ]}"#[..]));
        assert_eq!(parse_push(br#"{"version":1,"config":null}"#).unwrap().1, "null");
        assert_eq!(parse_push(br#"{"version":1}"#).unwrap().1, "");
        assert!(parse_push(b"nope").is_none());
        assert!(parse_push(br#"{"config":{}}"#).is_none());
    }
}
