//! A connection to a service, whatever it runs over.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::Instant,
};

use super::secured::{Refusal, Secured};

/// TCP, a unix socket, or TLS over either.
#[derive(Debug)]
pub enum OriginIo {
    /// TCP in clear.
    Tcp(TcpStream),
    /// TLS over TCP.
    TcpTls(Box<Secured<TcpStream>>),
    /// A unix socket in clear.
    Unix(UnixStream),
    /// TLS over a unix socket.
    UnixTls(Box<Secured<UnixStream>>),
}

impl OriginIo {
    /// The service's address, as far as it has one.
    pub fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::TcpTls(stream) => stream.io().peer_addr().ok(),
            Self::Unix(_) | Self::UnixTls(_) => None,
        }
    }

    /// Whether the peer chose HTTP/2 by ALPN.
    pub fn is_h2(&self) -> bool {
        match self {
            Self::TcpTls(stream) => stream.is_h2(),
            Self::UnixTls(stream) => stream.is_h2(),
            Self::Tcp(_) | Self::Unix(_) => false,
        }
    }

    /// When it is used for no new request any more: what it proved does not count then.
    pub(super) fn until(&self) -> Option<Instant> {
        match self {
            Self::TcpTls(stream) => stream.until(),
            Self::UnixTls(stream) => stream.until(),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    /// What will be known of a refusal by the service, once the connection is out of sight.
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Self::TcpTls(stream) => stream.refusal(),
            Self::UnixTls(stream) => stream.refusal(),
            Self::Tcp(_) | Self::Unix(_) => Refusal::default(),
        }
    }
}

macro_rules! each {
    ($self:expr, $io:ident => $call:expr) => {
        match $self.get_mut() {
            OriginIo::Tcp($io) => {
                let $io = Pin::new($io);
                $call
            }
            OriginIo::TcpTls($io) => {
                let $io = Pin::new($io.as_mut());
                $call
            }
            OriginIo::Unix($io) => {
                let $io = Pin::new($io);
                $call
            }
            OriginIo::UnixTls($io) => {
                let $io = Pin::new($io.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for OriginIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for OriginIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Tcp(_) | Self::Unix(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_shutdown(cx))
    }
}

/// A connection that counts what its peer says: a request on which nothing was heard may be sent again.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) io: OriginIo,
    /// Bytes read so far; shared, since the connection is out of sight once it is hyper's.
    pub(super) heard: Arc<AtomicU64>,
}

impl AsyncRead for Listening {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        this.heard.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Listening {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
