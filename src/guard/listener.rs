//! One guard: its socket, its rule of the newest generation, and its callers on their way in.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    Error, Shared, requests,
    secrets::{Begun, Followed, Secrets},
    streams,
};
use crate::{
    callers::Relayed,
    config::Guard,
    identity::SpiffePattern,
    metrics::guard::{GuardMetrics, Handshake},
    places::Place,
    proxy::Proxy,
    tls::callers::Shown,
};

/// After a failure to accept: mostly no file descriptors, which does not pass by asking again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound guard.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) number: usize,
    pub(super) guard: Guard,
    pub(super) socket: TcpListener,
    /// Cancelled when the doors of all close, or this one's guard is gone from the file.
    pub(super) closing: CancellationToken,
}

/// What the connections of one guard share.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: GuardMetrics,
    /// The guard's one rule, of the newest generation.
    pub(super) proxy: Proxy,
    pub(super) listen: SocketAddr,
    /// Cancelled when it takes nobody new and its connections are to end.
    pub(super) closing: CancellationToken,
    tls: watch::Receiver<Tls>,
}

/// The TLS of one generation.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    pub(super) config: Arc<ServerConfig>,
    /// Whether there is a certificate to show, and until when.
    pub(super) identity: Option<Arc<crate::tls::keyring::Identity>>,
    /// Shown when there is none, or none in time.
    pub(super) nobody: Arc<ServerConfig>,
    /// Whether what is said inside are bytes, and not requests.
    pub(super) is_stream: bool,
    /// Peers whose headers of certificates pass unchanged.
    pub(super) keep_headers_from: Arc<[SpiffePattern]>,
}

/// A caller on his own connection.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) post: Arc<Post>,
    pub(super) peer: SocketAddr,
    /// What the handshake proved the key of.
    pub(super) shown: Relayed,
    _place: Place,
    _counted: crate::metrics::guard::GuardConnection,
}

impl Listener {
    /// Begins to accept.
    ///
    /// # Errors
    ///
    /// When the service or its TLS cannot be made ready.
    pub(super) fn serve(self, shared: &Arc<Shared>, followed: Followed) -> Result<(), Error> {
        let Self { number, guard, socket, closing } = self;
        let Begun { mut secrets, routes, tls } = Secrets::begin(shared, number, &guard, followed, closing.clone())?;
        let post = Arc::new(Post {
            shared: shared.clone(),
            metrics: shared.metrics.guards.of(number),
            proxy: Proxy {
                routes: routes.clone(),
                metrics: shared.metrics.clone(),
                tags: watch::Sender::new(Arc::from([])).subscribe(),
                management_hostname: String::new(),
                flows: crate::proxy::Flows::default(),
                draining: closing.clone(),
            },
            listen: guard.listen,
            closing,
            tls,
        });
        shared.tasks.attend(async move { secrets.follow().await });
        shared.tasks.attend(crate::proxy::attend_to(routes));
        shared.tasks.spawn(accept(post, socket));
        Ok(())
    }
}

/// Accepts callers, for a moment longer than the guard is ready.
async fn accept(post: Arc<Post>, socket: TcpListener) {
    let closing = post.closing.clone();
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = closing.cancelled() => break,
        };
        match accepted {
            Ok((tcp, peer)) => admit(&post, tcp, peer),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a caller of a guard");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Whom the kernel accepted before the door closed is in.
    while let Ok(Ok((tcp, peer))) = tokio::time::timeout(Duration::ZERO, socket.accept()).await {
        admit(&post, tcp, peer);
    }
}

fn admit(post: &Arc<Post>, tcp: TcpStream, peer: SocketAddr) {
    let Ok(place) = post.shared.connections.enter(peer.ip()) else {
        // Before TLS there is no way to say it.
        return post.metrics.handshake(Handshake::Overloaded);
    };
    let post_ = post.clone();
    post.shared.tasks.spawn(async move {
        let _ = tcp.set_nodelay(true);
        let Some((tls, is_stream)) = shake_hands(&post_, tcp, peer).await else { return };
        let shown = shown(&tls);
        let counted = post_.metrics.connection();
        let visit = Arc::new(Visit { post: post_, peer, shown, _place: place, _counted: counted });
        if is_stream {
            streams::serve(&visit, tls).await;
        } else {
            requests::serve(visit, tls).await;
        }
    });
}

/// `None`: why is counted, and told to those who want to know.
async fn shake_hands(post: &Post, tcp: TcpStream, peer: SocketAddr) -> Option<(TlsStream<TcpStream>, bool)> {
    let (config, usable, is_stream) = post.tls.borrow().now();
    let handshake = tokio::time::timeout(post.shared.limits.tls_time, TlsAcceptor::from(config).accept(tcp));
    let (handshake, decided) = streams::watched(handshake).await;
    let (outcome, tls) = match handshake {
        _ if !usable => (Handshake::Unusable, None),
        Ok(Ok(tls)) => (Handshake::Accepted, Some(tls)),
        Ok(Err(error)) => {
            match streams::why(&error, decided) {
                Some(denied) => {
                    post.shared.metrics.callers.decided(denied.decision());
                    post.metrics.refused(denied.code());
                    tracing::info!(guard = %post.listen, %peer, cause = %denied, "a caller was refused in the handshake");
                }
                None => tracing::debug!(%peer, %error, "a caller's handshake at a guard failed"),
            }
            (Handshake::Refused, None)
        }
        Err(_) => (Handshake::TimedOut, None),
    };
    post.metrics.handshake(outcome);
    tls.map(|tls| (tls, is_stream))
}

impl Post {
    pub(super) fn keep_headers_from(&self) -> Arc<[SpiffePattern]> {
        self.tls.borrow().keep_headers_from.clone()
    }
}

impl Tls {
    /// What is shown at this moment, whether that is a certificate, and whether bytes follow.
    fn now(&self) -> (Arc<ServerConfig>, bool, bool) {
        let usable =
            self.identity.as_ref().is_some_and(|identity| identity.check(std::time::SystemTime::now()).is_ok());
        (if usable { &self.config } else { &self.nobody }.clone(), usable, self.is_stream)
    }
}

/// What the peer proved the key of, in this handshake or in the one whose session it resumed. Outlives the handshake's
/// own bytes, which rustls lends only; 16 KiB at most.
fn shown(tls: &TlsStream<TcpStream>) -> Relayed {
    match tls.get_ref().1.peer_certificates() {
        Some([leaf, chain @ ..]) => {
            let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
            Relayed::Shown(Shown { leaf: leaf.clone().into_owned(), chain })
        }
        _ => Relayed::Nothing,
    }
}
