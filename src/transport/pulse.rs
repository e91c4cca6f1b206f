//! Whether anything comes back on a connection, whatever the streams on it do.
//!
//! Bytes are the sign of life, not answers to a certain question: a saturated link delays one answer by seconds while
//! it delivers megabytes. On QUIC the keep-alives of [`super::quic::transport_config`] ask once a second; on HTTP/2
//! each beat sends a PING (RFC 9113 §6.7) unless one is on its way.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What was lost of what was sent since the beat before; zero where the transport does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Packets.
    pub packets: u64,
    /// Those of them that the transport takes for lost.
    pub lost: u64,
}

/// Feels one connection.
pub struct Pulse {
    source: Source,
    heard: u64,
    sent: Sent,
}

enum Source {
    Quic(quinn::Connection),
    Http2 { heard: Heard, ping: Option<h2::PingPong> },
}

impl std::fmt::Debug for Pulse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pulse").field("heard", &self.heard).finish_non_exhaustive()
    }
}

impl Pulse {
    pub(super) fn quic(connection: quinn::Connection) -> Self {
        Self { source: Source::Quic(connection), heard: 0, sent: Sent::default() }
    }

    pub(super) fn http2(heard: Heard, ping: Option<h2::PingPong>) -> Self {
        Self { source: Source::Http2 { heard, ping }, heard: 0, sent: Sent::default() }
    }

    /// Whether anything was heard since the beat before; asks for the next sign of life. Never waits.
    pub fn beat(&mut self) -> bool {
        let heard = match &mut self.source {
            Source::Quic(connection) => connection.stats().udp_rx.datagrams,
            Source::Http2 { heard, ping } => {
                if let Some(ping) = ping {
                    // A PING still on its way refuses the next one, which is as good.
                    let _ = std::future::poll_fn(|cx| ping.poll_pong(cx)).now_or_never();
                    let _ = ping.send_ping(h2::Ping::opaque());
                }
                heard.bytes()
            }
        };
        std::mem::replace(&mut self.heard, heard) != heard
    }

    /// What was sent since this was asked before.
    pub fn sent(&mut self) -> Sent {
        let Source::Quic(connection) = &self.source else { return Sent::default() };
        let path = connection.stats().path;
        let now = Sent { packets: path.sent_packets, lost: path.lost_packets };
        let before = std::mem::replace(&mut self.sent, now);
        Sent { packets: now.packets.saturating_sub(before.packets), lost: now.lost.saturating_sub(before.lost) }
    }
}

/// Bytes read from a socket, counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<AtomicU64>);

impl Heard {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A socket that counts what it reads.
#[derive(Debug)]
pub(super) struct Counted<T> {
    io: T,
    heard: Heard,
}

impl<T> Counted<T> {
    pub(super) fn new(io: T, heard: Heard) -> Self {
        Self { io, heard }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.heard.0.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
