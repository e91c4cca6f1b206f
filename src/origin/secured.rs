//! TLS to a service, with an ear for its refusal.
//!
//! In TLS 1.3 our side of the handshake is over before the service has looked at our certificate. If it refuses that,
//! its alert is read while the request is on its way already, or not at all: a write finds the connection reset first.
//! HTTP/1.1 and HTTP/2 above tell of both in their own words, so the alert is noted here.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use rustls::AlertDescription;
use tokio::{
    io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};
use tokio_rustls::client::TlsStream;

use super::Error;
use crate::tls::service::{Failure, refuses};

/// Whether the service refused the handshake after all.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusal(Option<Arc<OnceLock<AlertDescription>>>);

impl Refusal {
    /// What it refused with.
    pub(super) fn get(&self) -> Option<Failure> {
        self.0.as_ref()?.get().copied().map(Failure::Refused)
    }

    /// The refusal if there is one: whatever else went wrong is its consequence.
    pub(super) fn instead_of(&self, error: Error) -> Error {
        self.get().map_or(error, Error::Tls)
    }
}

/// A connection with TLS.
#[derive(Debug)]
pub struct Secured<IO> {
    tls: TlsStream<IO>,
    until: Option<Instant>,
    refused: Arc<OnceLock<AlertDescription>>,
    /// The service has said something: what it sends an alert for from now on is not the handshake.
    heard: bool,
    /// What a write found, told when everything has been read that came before.
    broke: Option<io::Error>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Secured<IO> {
    /// What a handshake came to, and until when that counts.
    pub(super) fn new((tls, until): (TlsStream<IO>, Option<Instant>)) -> Self {
        Self { tls, until, refused: Arc::default(), heard: false, broke: None }
    }

    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    pub(super) fn io(&self) -> &IO {
        self.tls.get_ref().0
    }

    pub(super) fn is_h2(&self) -> bool {
        self.tls.get_ref().1.alpn_protocol() == Some(b"h2")
    }

    pub(super) fn refusal(&self) -> Refusal {
        Refusal(Some(self.refused.clone()))
    }

    fn failed(&self, error: &io::Error) {
        let alert = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = alert
            && !self.heard
            && refuses(*alert)
        {
            let _ = self.refused.set(*alert);
        }
    }

    /// Writes, and if the connection is found broken, looks for an alert that arrived before. The runtime may not know
    /// yet that there is something to read; it will, since the connection's end is something too.
    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TlsStream<IO>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let error = match self.broke.take() {
            Some(error) => error,
            None => match write(Pin::new(&mut self.tls), cx) {
                Poll::Ready(Err(error)) => error,
                written => return written,
            },
        };
        let cut = matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        if cut && !self.heard {
            // Bytes of an answer stay where they are.
            match Pin::new(&mut self.tls).poll_fill_buf(cx) {
                Poll::Ready(Err(error)) => self.failed(&error),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => {
                    self.broke = Some(error);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Err(error))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Secured<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.tls).poll_read(cx, buf);
        match &read {
            Poll::Ready(Ok(())) => this.heard |= buf.filled().len() > before,
            Poll::Ready(Err(error)) => this.failed(error),
            Poll::Pending => {}
        }
        read
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Secured<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, |tls, cx| tls.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().write(cx, |tls, cx| tls.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().write(cx, |tls, cx| tls.poll_shutdown(cx))
    }
}
