//! HTTP/2 to a service: one connection shared by all requests for a name, driven by a task of its own.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use http::{Request, Response, Version};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;

use super::{Error, io::OriginIo, request_body::RequestBody};

/// Names with a connection of their own; with `matchSNItoHost` a visitor chooses the name.
const MOST_NAMES: usize = 256;

/// The connections of one service by server name.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<HashMap<Option<ServerName<'static>>, Connection>>);

/// One connection; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Connection(http2::SendRequest<RequestBody>);

impl Shared {
    /// A live connection for `name`.
    pub(super) fn existing(&self, name: Option<&ServerName<'static>>) -> Option<Connection> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = name.cloned();
        if known.get(&key)?.0.is_closed() {
            known.remove(&key);
            return None;
        }
        known.get(&key).cloned()
    }

    /// Makes `io` the connection for `name`.
    pub(super) async fn connect(&self, io: OriginIo, name: Option<&ServerName<'static>>) -> Result<Connection, Error> {
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20)
            .max_header_list_size(1 << 20)
            .handshake(TokioIo::new(io))
            .await?;
        #[expect(clippy::disallowed_methods, reason = "ends with the last clone of its sender, which is in this map")]
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "an HTTP/2 connection to a service ended");
            }
        });
        let connection = Connection(sender);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_NAMES {
            known.clear();
        }
        known.insert(name.cloned(), connection.clone());
        Ok(connection)
    }
}

impl Connection {
    pub(super) async fn send(mut self, mut request: Request<RequestBody>) -> Result<Response<Incoming>, Error> {
        // In HTTP/2 the authority carries the host (RFC 9113 §8.3.1).
        let host = request.headers_mut().remove(http::header::HOST);
        let authority = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        let target = request.uri().path_and_query().cloned();
        let uri = http::Uri::builder().scheme("https").authority(authority);
        let uri = match target {
            Some(target) => uri.path_and_query(target),
            None => uri.path_and_query("/"),
        };
        if let Ok(uri) = uri.build() {
            *request.uri_mut() = uri;
        }
        *request.version_mut() = Version::HTTP_2;
        self.0.ready().await?;
        Ok(self.0.send_request(request).await?)
    }
}
