//! TCP at a guard: what a caller says inside TLS goes to the service, and back.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::listener::Visit;
use crate::{
    callers::Denied,
    proxy::{self, Guarded},
    tls::guard::TurnedAway,
    transport::direct,
};

/// Serves one stream to its end.
pub(super) async fn serve(visit: &Arc<Visit>, tls: TlsStream<TcpStream>) {
    let post = &visit.post;
    let guarded = Guarded {
        listen: post.listen,
        shown: &visit.shown,
        keep_headers_from: &[],
        metrics: &post.metrics,
        over: "tcp",
    };
    let (send, recv) = direct::halves(tls);
    proxy::guarded_stream(&post.proxy, guarded, send, recv).await;
}

/// What a caller hears in the handshake.
pub(super) fn turned_away(denied: Denied) -> TurnedAway {
    match denied {
        Denied::Invalid(error) => error.into(),
        Denied::Ambiguous | Denied::Closed | Denied::Missing | Denied::NotAllowed => TurnedAway::NotAllowed,
    }
}
