//! A WebSocket between a visitor and an HTTP service, passed through byte for byte.
//!
//! Frame headers are followed so that a drain can end it in good order: in each direction Close 1001 after the message
//! under way, nothing behind it, then the peers' own close frames are waited for. Payloads are neither held nor read:
//! following costs a few nanoseconds a frame, whatever its length.

use std::{
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use super::{
    frames::{Boundary, Encoder, Role},
    pipe::{Copied, READ},
};
use crate::transport::{Recv, Send};

/// RFC 6455 §7.4.1: an endpoint goes away.
const GOING_AWAY: u16 = 1001;
/// For both peers to answer our close frames, before their connections are closed anyway.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// One direction, and where a close frame of ours stands in it.
struct Lane {
    boundary: Boundary,
    said: bool,
}

impl Lane {
    /// The bytes arrive as they would at an end of this role.
    fn arriving_at(role: Role) -> Self {
        Self { boundary: Boundary::arriving_at(role), said: false }
    }

    /// Whether our close frame may stand here, before anything more of this direction is read.
    fn open(&self) -> bool {
        !self.said && self.boundary.at_boundary()
    }

    /// Follows the next bytes. Says which of them pass on, and whether our close frame comes behind them.
    fn take(&mut self, mut chunk: Bytes, draining: bool) -> (Bytes, bool) {
        let end = self.boundary.advance(&chunk).message;
        if self.said {
            return (Bytes::new(), false);
        }
        match end {
            Some(end) if draining => {
                chunk.truncate(end);
                self.said = true;
                (chunk, true)
            }
            _ => (chunk, false),
        }
    }

    /// Whether a close frame has passed, ours or the peer's own.
    fn settled(&self) -> bool {
        self.said || self.boundary.is_closed()
    }

    /// Whether there is nothing more to read for: ours has been sent and the peer's own has come.
    fn over(&self) -> bool {
        self.said && self.boundary.is_closed()
    }
}

/// What both directions see of a drain. They run in one task, so nothing here is ever waited for.
#[derive(Default)]
struct Drain {
    begun: AtomicBool,
    settled: AtomicU8,
    progress: Notify,
}

impl Drain {
    fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Asked whenever the task is woken, and the task is woken when it begins.
    async fn begun(&self) {
        let ready = |begun| if begun { std::task::Poll::Ready(()) } else { std::task::Poll::Pending };
        std::future::poll_fn(|_| ready(self.has_begun())).await;
    }

    fn settled(&self) {
        self.settled.fetch_add(1, Ordering::Relaxed);
        self.progress.notify_one();
    }

    /// Completes when the peers have had their time to answer.
    async fn over(&self, draining: &CancellationToken) {
        draining.cancelled().await;
        self.begun.store(true, Ordering::Relaxed);
        while self.settled.load(Ordering::Relaxed) < 2 {
            self.progress.notified().await;
        }
        tokio::time::sleep(ANSWER_LIMIT).await;
    }
}

/// How a direction ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Both close frames are through: the other direction may still wait for its own.
    Closed,
    /// The one who speaks hung up in good order, and with that everything ends.
    HungUp,
    /// By an error, or nobody listens any more.
    Broken,
}

/// Copies until either side's end, an error, or the end of a drain.
pub(super) async fn pass(
    io: impl AsyncRead + AsyncWrite + Unpin,
    first: Bytes,
    mut send: Send,
    mut recv: Recv,
    draining: &CancellationToken,
) -> Copied {
    let (mut reader, mut writer) = tokio::io::split(io);
    let mut copied = Copied::default();
    let Copied { up, down } = &mut copied;
    let drain = Drain::default();
    let to_visitor = async {
        let mut lane = Lane::arriving_at(Role::Client);
        let mut settled = false;
        let mut chunk = first;
        let mut buffer = BytesMut::new();
        loop {
            let (bytes, mut close) = lane.take(chunk, drain.has_begun());
            if drain.has_begun() && lane.open() {
                lane.said = true;
                close = true;
            }
            *down += bytes.len() as u64;
            if !bytes.is_empty() && send.write(bytes, false).await.is_err() {
                return Ended::Broken;
            }
            if close && send.write(Encoder::server().close(Some(GOING_AWAY), ""), false).await.is_err() {
                return Ended::Broken;
            }
            if !settled && lane.settled() {
                settled = true;
                drain.settled();
            }
            if lane.over() {
                return Ended::Closed;
            }
            buffer.reserve(READ);
            let read = tokio::select! {
                biased;
                read = reader.read_buf(&mut buffer) => read,
                () = drain.begun(), if lane.open() => Ok(usize::MAX),
                () = send.stopped() => return Ended::Broken,
            };
            // So that a flood in one direction leaves the other its turns.
            tokio::task::coop::consume_budget().await;
            chunk = match read {
                Ok(0) => return Ended::HungUp,
                Ok(_) => buffer.split().freeze(),
                // Behind our close frame nothing is owed any more.
                Err(_) if lane.said => return Ended::HungUp,
                Err(_) => return Ended::Broken,
            };
        }
    };
    let to_service = async {
        let mut lane = Lane::arriving_at(Role::Server);
        let mut settled = false;
        let mut chunk = Bytes::new();
        loop {
            let (bytes, mut close) = lane.take(chunk, drain.has_begun());
            if drain.has_begun() && lane.open() {
                lane.said = true;
                close = true;
            }
            *up += bytes.len() as u64;
            if write(&mut writer, &bytes, close).await.is_err() {
                // It cannot be told anything, but what it said before may still be on its way.
                return Ended::Closed;
            }
            if !settled && lane.settled() {
                settled = true;
                drain.settled();
            }
            if lane.over() {
                return Ended::Closed;
            }
            let next = tokio::select! {
                biased;
                next = recv.chunk() => next,
                () = drain.begun(), if lane.open() => Ok(Some(Bytes::new())),
            };
            tokio::task::coop::consume_budget().await;
            chunk = match next {
                Ok(Some(next)) => next,
                Ok(None) => return Ended::HungUp,
                Err(_) => return Ended::Broken,
            };
        }
    };
    let in_order = {
        let (mut to_visitor, mut to_service) = (std::pin::pin!(to_visitor), std::pin::pin!(to_service));
        // First the drain, so that both directions see it when they are polled behind it.
        let mut over = std::pin::pin!(drain.over(draining));
        tokio::select! {
            biased;
            () = &mut over => true,
            ended = &mut to_visitor => match ended {
                Ended::Closed => tokio::select! {
                    () = &mut over => true,
                    _ = to_service => true,
                },
                ended => ended == Ended::HungUp,
            },
            ended = &mut to_service => match ended {
                Ended::Closed => tokio::select! {
                    () = tokio::time::sleep(ANSWER_LIMIT) => true,
                    ended = to_visitor => ended != Ended::Broken,
                },
                ended => ended == Ended::HungUp,
            },
        }
    };
    if in_order {
        // A reset could take back what was sent already.
        send.finish();
        let _ = writer.shutdown().await;
    }
    copied
}

/// Flushed, since TLS may hold back the end of what it was given until it is asked again.
async fn write(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8], close: bool) -> std::io::Result<()> {
    if bytes.is_empty() && !close {
        return Ok(());
    }
    writer.write_all(bytes).await?;
    if close {
        writer.write_all(&Encoder::client(rand::random::<[u8; 4]>).close(Some(GOING_AWAY), "")).await?;
    }
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first, payload.len() as u8];
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn the_close_frame_comes_behind_the_message_under_way_and_nothing_behind_it() {
        let sent = [frame(0x01, b"one "), frame(0x89, b"ping"), frame(0x80, b"two"), frame(0x82, b"late")].concat();
        let end = sent.len() - 6;
        let mut lane = Lane::arriving_at(Role::Client);
        let bytes = Bytes::from(sent);
        assert_eq!(lane.take(bytes.slice(..3), false), (bytes.slice(..3), false));
        assert!(!lane.open());
        assert_eq!(lane.take(bytes.slice(3..9), true), (bytes.slice(3..9), false), "a fragment ends, its message not");
        assert_eq!(lane.take(bytes.slice(9..), true), (bytes.slice(9..end), true));
        assert!(lane.settled() && !lane.over());
        let close = Bytes::from(frame(0x88, &[3, 0xe9]));
        assert_eq!(lane.take(close, true), (Bytes::new(), false));
        assert!(lane.over());
    }

    #[test]
    fn the_future_of_one_websocket_stays_small() {
        fn size<F: Future>(
            _: impl FnOnce(crate::origin::io::OriginIo, Bytes, Send, Recv, &'static CancellationToken) -> F,
        ) -> usize {
            size_of::<F>()
        }
        let size = size(pass);
        // 1.5 KiB measured; it is on the heap, beside the future of the stream.
        assert!(size <= 2 << 10, "{size} bytes");
    }

    #[test]
    fn a_peer_that_closed_by_itself_gets_no_second_close_frame() {
        let mut lane = Lane::arriving_at(Role::Client);
        let close = Bytes::from(frame(0x88, b""));
        assert_eq!(lane.take(close.clone(), true), (close, false));
        assert!(lane.settled() && !lane.open() && !lane.over());
    }

    #[test]
    fn what_is_no_websocket_passes_as_it_is() {
        // Masked where a service must not mask; a fragmented ping; a length above 2^63-1.
        for bytes in [&b"\x81\x81mask!"[..], b"\x09\x00", b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff", b"SSH-2.0-x\r\n"]
        {
            let mut lane = Lane::arriving_at(Role::Client);
            let bytes = Bytes::from_static(bytes);
            assert_eq!(lane.take(bytes.clone(), true), (bytes, false));
            assert!(!lane.open() && !lane.settled());
        }
    }
}
