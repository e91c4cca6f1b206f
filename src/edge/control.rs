//! The life of one connector's connection: register, serve, unregister, drain, close (protocol.md §12.2).

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Shared, follow,
    session::{Link, Session},
    state::Tunnel,
};
use crate::{
    transport::{Recv, Send},
    wire::{
        framing::FEATURE,
        registration::{self, EdgeCall, Refusal, Registered, Registration},
    },
};

/// From the control stream to the registration.
const REGISTRATION_LIMIT: Duration = Duration::from_secs(10);
/// A connection that lost its place keeps running requests for this long.
const RETIRE_LIMIT: Duration = Duration::from_secs(30);
/// For the last answer on the control stream to reach the connector before the connection is closed under it.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);

/// Serves a connection from its control stream on. `closed` is cancelled when the connection ends, and ends it.
pub(super) async fn serve(shared: Arc<Shared>, link: Link, recv: Recv, send: Send, closed: CancellationToken) {
    let (calls, mut incoming) = mpsc::channel(4);
    let rpc = shared.rpc.clone();
    shared.tasks.spawn(async move { registration::serve(&rpc, recv, send, calls).await });
    let quic = match &link {
        Link::Quic(connection) => Some(connection.clone()),
        Link::Http2(_) => None,
    };
    if let Some(session) = register(&shared, link, &mut incoming).await {
        live(&shared, &session, &mut incoming, &closed).await;
        shared.registry.remove(&session);
        tracing::info!(
            tunnel = %session.tunnel(), connector = %session.connector(), index = session.index(),
            "connection closed"
        );
    }
    // The control stream's last words: the connector ends it, or the limit does.
    let _ = tokio::time::timeout(GOODBYE_LIMIT, async { while incoming.recv().await.is_some() {} }).await;
    if let Some(connection) = quic {
        connection.close(crate::transport::stream::CODE, b"");
    }
    closed.cancel();
}

async fn register(shared: &Arc<Shared>, link: Link, incoming: &mut mpsc::Receiver<EdgeCall>) -> Option<Arc<Session>> {
    let (registration, reply) = loop {
        match tokio::time::timeout(REGISTRATION_LIMIT, incoming.recv()).await {
            Ok(Some(EdgeCall::Register(registration, reply))) => break (registration, reply),
            Ok(Some(EdgeCall::Unregister(reply))) => {
                let _ = reply.send(());
            }
            Ok(Some(EdgeCall::LocalConfiguration(_))) => {}
            Ok(None) | Err(_) => return None,
        }
    };
    let tunnel = match admit(shared, &registration) {
        Ok(tunnel) => tunnel,
        Err(refusal) => {
            tracing::warn!(
                tunnel = %registration.tunnel, connector = %registration.connector, cause = refusal.cause,
                "registration refused"
            );
            let _ = reply.send(Err(refusal));
            return None;
        }
    };
    let session = Arc::new(Session::new(&registration, link));
    let registered = Registered {
        connection: Uuid::new_v4(),
        location: shared.location.clone(),
        remotely_managed: tunnel.config.is_some(),
        // Only to those who offer it: others would not know what it means.
        features: if session.is_own() { vec![FEATURE.into()] } else { Vec::new() },
    };
    reply.send(Ok(registered)).ok()?;
    tracing::info!(
        tunnel = %registration.tunnel, name = tunnel.name, connector = %registration.connector,
        index = registration.index, transport = %session.transport(), version = registration.version,
        "connection registered"
    );
    shared.registry.add(session.clone());
    follow::push_rules(shared, &tunnel, Some(&session));
    Some(session)
}

/// Checks id and secret; the state is read again before anybody is refused, since it may have changed a moment ago.
fn admit(shared: &Shared, registration: &Registration) -> Result<Tunnel, Refusal> {
    let known = |tunnels: &super::Tunnels| {
        tunnels.get(registration.tunnel).filter(|tunnel| tunnel.accepts(&registration.secret)).cloned()
    };
    if let Some(tunnel) = known(&shared.tunnels.borrow()) {
        return Ok(tunnel);
    }
    follow::reread(shared);
    known(&shared.tunnels.borrow()).ok_or_else(|| Refusal {
        cause: "Unauthorized: unknown tunnel or wrong secret".into(),
        retry_after: Duration::from_secs(5),
        should_retry: false,
    })
}

/// Until the connection unregisters, loses its place or breaks; then until it is idle.
async fn live(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    incoming: &mut mpsc::Receiver<EdgeCall>,
    closed: &CancellationToken,
) {
    let draining = shared.tasks.draining();
    let limit = loop {
        tokio::select! {
            call = incoming.recv() => match call {
                Some(EdgeCall::Unregister(reply)) => {
                    shared.registry.remove(session);
                    let _ = reply.send(());
                    // Its connector decides how long it still waits for requests in flight.
                    break Duration::MAX;
                }
                Some(EdgeCall::LocalConfiguration(json)) => {
                    tracing::debug!(tunnel = %session.tunnel(), bytes = json.len(), "the connector told its rules");
                }
                Some(EdgeCall::Register(_, reply)) => {
                    let cause = "this connection is registered already".into();
                    let refusal = Refusal { cause, retry_after: Duration::ZERO, should_retry: false };
                    let _ = reply.send(Err(refusal));
                }
                None => return,
            },
            () = session.retired() => break RETIRE_LIMIT,
            () = closed.cancelled() => return,
            () = draining.cancelled() => break RETIRE_LIMIT,
        }
    };
    shared.registry.remove(session);
    tokio::select! {
        () = session.idle() => {}
        () = closed.cancelled() => {}
        () = tokio::time::sleep(limit.min(Duration::from_secs(24 * 3600))) => {}
    }
}
