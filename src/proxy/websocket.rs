//! A WebSocket between a visitor and an HTTP service, passed through byte for byte.
//!
//! Frame headers are followed so that it can be ended in good order: by a drain in each direction with Close 1001 after
//! the message under way, by a caller's leave that is taken away with Close 1008 after the frame under way; nothing
//! behind it, then the peers' own close frames are waited for. Payloads are neither held nor read: following costs a few
//! nanoseconds a frame, whatever its length.

use std::{
    sync::atomic::{AtomicU8, AtomicU16, Ordering},
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
    live::{Leave, POLICY_VIOLATION},
    pipe::{Copied, READ},
};
use crate::transport::{Recv, Send};

/// RFC 6455 §7.4.1: an endpoint goes away.
const GOING_AWAY: u16 = 1001;
/// For both peers to answer our close frames, before their connections are closed anyway.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// What may end a WebSocket from here.
#[derive(Clone, Copy)]
pub(super) struct Ending<'a> {
    /// Cancelled when the connector drains.
    pub(super) draining: &'a CancellationToken,
    /// The caller's; whoever takes it away bounds the time that its end may take.
    pub(super) leave: &'a Leave,
}

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

    /// Whether our close frame with this code may stand here, before anything more of this direction is read.
    fn open(&self, code: u16) -> bool {
        let boundary = &self.boundary;
        !self.said && if code == POLICY_VIOLATION { boundary.at_frame_boundary() } else { boundary.at_boundary() }
    }

    /// Follows the next bytes. Says which of them pass on, and whether our close frame, if there is to be one, comes
    /// behind them.
    fn take(&mut self, mut chunk: Bytes, code: Option<u16>) -> (Bytes, bool) {
        let ends = self.boundary.advance(&chunk);
        if self.said {
            return (Bytes::new(), false);
        }
        match if code == Some(POLICY_VIOLATION) { ends.frame } else { ends.message } {
            Some(end) if code.is_some() => {
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

/// What both directions see of the end. They run in one task, so nothing here is ever waited for.
#[derive(Default)]
struct End {
    /// Of our close frames; 0 as long as there are none to be sent.
    code: AtomicU16,
    settled: AtomicU8,
    progress: Notify,
}

impl End {
    fn code(&self) -> Option<u16> {
        match self.code.load(Ordering::Relaxed) {
            0 => None,
            code => Some(code),
        }
    }

    fn begin(&self, code: u16) {
        self.code.store(code, Ordering::Relaxed);
    }

    /// Whether a direction has to say now that it ends.
    fn may_close(&self, lane: &Lane) -> bool {
        self.code().is_some_and(|code| lane.open(code))
    }

    /// Completes when the direction has to say so. Asked whenever the task is woken, and the task is woken when the end
    /// begins.
    async fn may_close_now(&self, lane: &Lane) {
        let ready = |so| if so { std::task::Poll::Ready(()) } else { std::task::Poll::Pending };
        std::future::poll_fn(|_| ready(self.may_close(lane))).await;
    }

    fn settled(&self) {
        self.settled.fetch_add(1, Ordering::Relaxed);
        self.progress.notify_one();
    }

    /// Completes when the peers have had their time to answer.
    async fn over(&self, Ending { draining, leave }: Ending<'_>) {
        let mut answered = std::pin::pin!(async {
            while self.settled.load(Ordering::Relaxed) < 2 {
                self.progress.notified().await;
            }
            tokio::time::sleep(ANSWER_LIMIT).await;
        });
        tokio::select! {
            biased;
            () = leave.withdrawn() => {}
            () = async {
                draining.cancelled().await;
                self.begin(GOING_AWAY);
                answered.as_mut().await;
            } => return,
        }
        self.begin(POLICY_VIOLATION);
        answered.await;
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

/// Copies until either side's end, an error, or until it has been ended from here.
pub(super) async fn pass(
    io: impl AsyncRead + AsyncWrite + Unpin,
    first: Bytes,
    mut send: Send,
    mut recv: Recv,
    ending: Ending<'_>,
) -> Copied {
    ending.leave.says_farewell();
    let (mut reader, mut writer) = tokio::io::split(io);
    let mut copied = Copied::default();
    let Copied { up, down } = &mut copied;
    let end = End::default();
    let to_visitor = async {
        let mut lane = Lane::arriving_at(Role::Client);
        let mut settled = false;
        let mut chunk = first;
        let mut buffer = BytesMut::new();
        loop {
            let (bytes, mut close) = lane.take(chunk, end.code());
            if end.may_close(&lane) {
                lane.said = true;
                close = true;
            }
            *down += bytes.len() as u64;
            if !bytes.is_empty() && send.write(bytes, false).await.is_err() {
                return Ended::Broken;
            }
            if close && send.write(Encoder::server().close(end.code(), ""), false).await.is_err() {
                return Ended::Broken;
            }
            if !settled && lane.settled() {
                settled = true;
                end.settled();
            }
            if lane.over() {
                return Ended::Closed;
            }
            buffer.reserve(READ);
            let read = tokio::select! {
                biased;
                read = reader.read_buf(&mut buffer) => read,
                () = end.may_close_now(&lane) => Ok(usize::MAX),
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
            let (bytes, mut close) = lane.take(chunk, end.code());
            if end.may_close(&lane) {
                lane.said = true;
                close = true;
            }
            *up += bytes.len() as u64;
            let code = end.code().filter(|_| close);
            if write(&mut writer, &bytes, code).await.is_err() {
                // It cannot be told anything, but what it said before may still be on its way.
                return Ended::Closed;
            }
            if !settled && lane.settled() {
                settled = true;
                end.settled();
            }
            if lane.over() {
                return Ended::Closed;
            }
            let next = tokio::select! {
                biased;
                next = recv.chunk() => next,
                () = end.may_close_now(&lane) => Ok(Some(Bytes::new())),
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
        // First the end, so that both directions see it when they are polled behind it.
        let mut over = std::pin::pin!(end.over(ending));
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
async fn write(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8], close: Option<u16>) -> std::io::Result<()> {
    if bytes.is_empty() && close.is_none() {
        return Ok(());
    }
    writer.write_all(bytes).await?;
    if close.is_some() {
        writer.write_all(&Encoder::client(rand::random::<[u8; 4]>).close(close, "")).await?;
    }
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOING: Option<u16> = Some(GOING_AWAY);

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
        assert_eq!(lane.take(bytes.slice(..3), None), (bytes.slice(..3), false));
        assert!(!lane.open(GOING_AWAY));
        assert_eq!(lane.take(bytes.slice(3..9), GOING), (bytes.slice(3..9), false), "a fragment ends, its message not");
        assert_eq!(lane.take(bytes.slice(9..), GOING), (bytes.slice(9..end), true));
        assert!(lane.settled() && !lane.over());
        let close = Bytes::from(frame(0x88, &[3, 0xe9]));
        assert_eq!(lane.take(close, GOING), (Bytes::new(), false));
        assert!(lane.over());
    }

    #[test]
    fn leave_that_is_taken_away_does_not_wait_for_the_rest_of_a_message() {
        let sent = Bytes::from([frame(0x01, b"one "), frame(0x00, b"two"), frame(0x80, b"three")].concat());
        let mut lane = Lane::arriving_at(Role::Client);
        assert_eq!(lane.take(sent.slice(..3), None), (sent.slice(..3), false));
        assert!(!lane.open(POLICY_VIOLATION));
        assert_eq!(lane.take(sent.slice(3..), Some(POLICY_VIOLATION)), (sent.slice(3..6), true));
        let mut lane = Lane::arriving_at(Role::Client);
        assert!(!lane.take(sent.slice(..6), None).1);
        assert!(lane.open(POLICY_VIOLATION) && !lane.open(GOING_AWAY));
    }

    #[test]
    fn the_future_of_one_websocket_stays_small() {
        fn size<F: Future>(
            _: impl FnOnce(crate::origin::io::OriginIo, Bytes, Send, Recv, Ending<'static>) -> F,
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
        assert_eq!(lane.take(close.clone(), GOING), (close, false));
        assert!(lane.settled() && !lane.open(GOING_AWAY) && !lane.over());
    }

    #[test]
    fn what_is_no_websocket_passes_as_it_is() {
        // Masked where a service must not mask; a fragmented ping; a length above 2^63-1.
        for bytes in [&b"\x81\x81mask!"[..], b"\x09\x00", b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff", b"SSH-2.0-x\r\n"]
        {
            let mut lane = Lane::arriving_at(Role::Client);
            let bytes = Bytes::from_static(bytes);
            assert_eq!(lane.take(bytes.clone(), GOING), (bytes, false));
            assert!(!lane.open(GOING_AWAY) && !lane.settled());
        }
    }
}
