//! The life of one connector's connection: register, serve, unregister, drain, close (protocol.md §12.2).

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use quinn::VarInt;
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::mpsc,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use uuid::Uuid;

use super::{
    Shared, follow,
    limits::Place,
    session::{Link, Session},
    state::Tunnel,
};
use crate::{
    metrics::edge::Registering,
    transport::{Recv, Send},
    wire::{
        framing::FEATURE,
        registration::{self, EdgeCall, Refusal, Registered, Registration},
    },
};

/// A connection whose tunnel or secret is gone keeps running requests for this long.
const REVOKED_LIMIT: Duration = Duration::from_secs(30);
/// For the last answer on the control stream to reach the connector before the connection is closed under it.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);
/// What a stranger may say before he is known; a registration has some hundred bytes.
const STRANGERS_WORDS: usize = 64 << 10;
/// What a known connector may have in flight: wide, so that one slow visitor does not hold up the others.
const WINDOW: VarInt = VarInt::from_u32(1 << 30);

/// A connection from its control stream on.
pub(super) struct Control {
    pub(super) recv: Recv,
    pub(super) send: Send,
    /// Cancelled when the connection ends, and ends it.
    pub(super) closed: CancellationToken,
    /// Among those who have not registered.
    pub(super) place: Place,
}

/// Serves a connection until it is closed.
pub(super) async fn serve(shared: Arc<Shared>, link: Link, control: Control) {
    let Control { recv, send, closed, place } = control;
    let (calls, mut incoming) = mpsc::channel(4);
    let (rpc, hangup, allowed) =
        (shared.rpc.clone(), CancellationToken::new(), Arc::new(AtomicUsize::new(STRANGERS_WORDS)));
    let recv = Words { recv, allowed: allowed.clone(), hangup: Box::pin(hangup.clone().cancelled_owned()) };
    shared.tasks.spawn(async move { registration::serve(&rpc, recv, send, calls).await });
    let quic = match &link {
        Link::Quic(connection) => Some(connection.clone()),
        Link::Http2(_) => None,
    };
    let session = register(&shared, link, &mut incoming).await;
    drop(place);
    let mut goodbye = true;
    if let Some(session) = session {
        allowed.store(usize::MAX, Ordering::Relaxed);
        if let Some(connection) = &quic {
            connection.set_receive_window(WINDOW);
        }
        goodbye = live(&shared, &session, &mut incoming, &closed).await != Leave::EdgeStops;
        shared.registry.remove(&session);
        tracing::info!(
            tunnel = %session.tunnel(), connector = %session.connector(), index = session.index(),
            "connection closed"
        );
    }
    if goodbye {
        // The control stream's last words: the connector ends it, or the limit does.
        let _ = tokio::time::timeout(GOODBYE_LIMIT, async { while incoming.recv().await.is_some() {} }).await;
    }
    hangup.cancel();
    if let Some(connection) = quic {
        connection.close(crate::transport::stream::CODE, b"");
    } else {
        // Its stream is let go of in the thread of the RPCs, and then the connection has nothing left to do.
        let _ = tokio::time::timeout(GOODBYE_LIMIT, async { while incoming.recv().await.is_some() {} }).await;
    }
    closed.cancel();
}

/// The receiving half of a control stream: bounded until its connector is known, and ended when we hang up.
struct Words {
    recv: Recv,
    allowed: Arc<AtomicUsize>,
    hangup: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl AsyncRead for Words {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.hangup.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.recv).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        let take = |left: usize| if left == usize::MAX { Some(left) } else { left.checked_sub(read) };
        match this.allowed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Poll::Ready(Ok(())),
            Err(_) => Poll::Ready(Err(io::Error::other("too many words before a registration"))),
        }
    }
}

async fn register(shared: &Arc<Shared>, link: Link, incoming: &mut mpsc::Receiver<EdgeCall>) -> Option<Arc<Session>> {
    // One limit for all of it: whoever keeps calling something else is no connector either.
    let registration = tokio::time::timeout(shared.limits.arrival_time, async {
        loop {
            match incoming.recv().await? {
                EdgeCall::Register(registration, reply) => return Some((registration, reply)),
                EdgeCall::Unregister(reply) => {
                    let _ = reply.send(());
                }
                EdgeCall::LocalConfiguration(_) => {}
            }
        }
    });
    let Ok(Some((registration, reply))) = registration.await else {
        shared.metrics.registered(Registering::NotInTime);
        return None;
    };
    let tunnel = match admit(shared, &registration).await {
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
    let took_over = shared.registry.add(session.clone());
    shared.metrics.registered(if took_over { Registering::TookOver } else { Registering::Accepted });
    // The state may have changed between the look into it and now; whoever changed it did not see this connection.
    if !follow::is_known(shared, &session) {
        session.revoke();
        shared.registry.remove(&session);
    }
    follow::push_rules(shared, &tunnel, Some(&session));
    Some(session)
}

/// Checks id and secret; a state that changed a moment ago is read before anybody is refused.
async fn admit(shared: &Arc<Shared>, registration: &Registration) -> Result<Tunnel, Refusal> {
    if shared.tasks.draining().is_cancelled() {
        shared.metrics.registered(Registering::Draining);
        let cause = "the edge is stopping".into();
        return Err(Refusal { cause, retry_after: Duration::from_secs(1), should_retry: true });
    }
    let known = |tunnels: &super::Tunnels| {
        tunnels.get(registration.tunnel).filter(|tunnel| tunnel.accepts(&registration.secret)).cloned()
    };
    if let Some(tunnel) = known(&shared.tunnels.borrow()) {
        return Ok(tunnel);
    }
    follow::newest(shared).await.as_deref().and_then(known).ok_or_else(|| {
        shared.metrics.registered(Registering::Refused);
        Refusal {
            cause: "Unauthorized: unknown tunnel or wrong secret".into(),
            retry_after: Duration::from_secs(5),
            should_retry: false,
        }
    })
}

/// Why a connection leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// It broke, or its connector hung up.
    Gone,
    /// Its connector decides how long it still waits for requests in flight.
    Unregistered,
    /// Another has its place, or its tunnel or secret is gone.
    Retired,
    /// It has to find another edge.
    EdgeStops,
}

/// Until the connection unregisters, loses its place or breaks, or the edge stops; then until it is idle.
async fn live(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    incoming: &mut mpsc::Receiver<EdgeCall>,
    closed: &CancellationToken,
) -> Leave {
    let leave = tokio::select! {
        leave = calls(shared, session, incoming) => leave,
        () = session.retired() => Leave::Retired,
        () = closed.cancelled() => Leave::Gone,
        () = shared.moving.cancelled() => Leave::EdgeStops,
    };
    if leave == Leave::Gone {
        return leave;
    }
    let settled = async {
        if leave == Leave::EdgeStops {
            // While it has something to do, a late request may still take it.
            session.idle().await;
        }
        shared.registry.remove(session);
        session.idle().await;
    };
    tokio::select! {
        () = settled => {}
        () = closed.cancelled() => {}
        () = overdue(session) => {}
        // A connector that unregisters in the meantime is answered; the end of its control stream ends no request.
        () = async {
            while calls(shared, session, incoming).await != Leave::Gone {}
            std::future::pending().await
        } => {}
    }
    leave
}

/// Completes when a connection that takes nothing new must not go on with what it has. However it lost its place, only
/// the loss of its tunnel or secret sets a limit; its connector, its visitors and the edge's own end have theirs.
async fn overdue(session: &Session) {
    session.revoked().await;
    tokio::time::sleep(REVOKED_LIMIT).await;
}

/// Answers a registered connection's calls until it unregisters or hangs up.
async fn calls(shared: &Arc<Shared>, session: &Arc<Session>, incoming: &mut mpsc::Receiver<EdgeCall>) -> Leave {
    while let Some(call) = incoming.recv().await {
        match call {
            EdgeCall::Unregister(reply) => {
                shared.registry.remove(session);
                let _ = reply.send(());
                return Leave::Unregistered;
            }
            EdgeCall::LocalConfiguration(json) => {
                tracing::debug!(tunnel = %session.tunnel(), bytes = json.len(), "the connector told its rules");
            }
            EdgeCall::Register(_, reply) => {
                let cause = "this connection is registered already".into();
                let _ = reply.send(Err(Refusal { cause, retry_after: Duration::ZERO, should_retry: false }));
            }
        }
    }
    Leave::Gone
}

#[cfg(test)]
mod tests {
    use super::{super::registry::tests::session, *};

    #[tokio::test(start_paused = true)]
    async fn who_lost_his_place_has_no_limit_until_his_secret_is_gone() {
        let session = session(0).await;
        session.retire();
        let day = Duration::from_secs(24 * 3600);
        let mut overdue = std::pin::pin!(overdue(&session));
        assert!(tokio::time::timeout(day, &mut overdue).await.is_err());
        session.revoke();
        let early = tokio::time::timeout(REVOKED_LIMIT - Duration::from_secs(1), &mut overdue).await;
        assert!(early.is_err());
        assert!(tokio::time::timeout(Duration::from_secs(2), overdue).await.is_ok());
    }
}
