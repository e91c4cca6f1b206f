//! TCP at a guard: what a caller says inside TLS goes to the service, and back.

use std::{cell::Cell, io, sync::Arc};

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

tokio::task_local! {
    /// What was decided in the handshake of this task: the verifier that decides knows neither peer nor counters.
    static DECIDED: Cell<Option<Denied>>;
}

/// The handshake with what was decided in it, if the caller was turned away.
pub(super) async fn watched<T>(handshake: impl Future<Output = T>) -> (T, Option<Denied>) {
    DECIDED.scope(Cell::new(None), async { (handshake.await, DECIDED.with(Cell::get)) }).await
}

/// Why a handshake failed: what was decided, or that nothing was shown where something must be.
pub(super) fn why(error: &io::Error, decided: Option<Denied>) -> Option<Denied> {
    let missing = || {
        let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        matches!(error, rustls::Error::NoCertificatesPresented).then_some(Denied::Missing)
    };
    decided.or_else(missing)
}

/// What a caller hears in the handshake.
pub(super) fn turned_away(denied: Denied) -> TurnedAway {
    // Outside of one there is nobody to tell.
    let _ = DECIDED.try_with(|decided| decided.set(Some(denied)));
    match denied {
        Denied::Invalid(error) => error.into(),
        Denied::Ambiguous | Denied::Closed | Denied::Missing | Denied::NotAllowed => TurnedAway::NotAllowed,
    }
}
