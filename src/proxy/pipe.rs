//! Bytes both ways between a service's connection and a stream.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::Instant,
};

use crate::transport::{Recv, Send};

/// One read of a service's socket. The peer's size; larger reads save less than they hold for idle streams.
pub(super) const READ: usize = 16 << 10;
/// After the visitor's end a service may go on answering; one that says nothing for this long is cut off, since on
/// the real wire nobody tells that the visitor is gone altogether.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(60);
/// Our own edge tells when a visitor is gone, as far as TCP tells it: an end that closed altogether looks like one that
/// has only nothing more to say. So a half-closed stream may be silent for this long, and not for ever.
const APART_IDLE: Duration = Duration::from_secs(600);

/// How many bytes went which way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    /// To the service.
    pub(super) up: u64,
    /// To the visitor.
    pub(super) down: u64,
}

/// What the end of one direction means for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// The visitor's end is told to the service, which may go on answering; the service's end is everybody's.
    HalfClose,
    /// Each direction ends alone, the service's too: the edge is ours and knows of it.
    Apart,
}

/// How the visitor's direction came to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum VisitorEnded {
    /// The service may go on.
    Half,
    /// By a reset, or with the connection.
    Broken,
}

/// Copies until the service's end, the visitor's end or an error. The service's end ends everything (protocol.md
/// §12.1 item 11), but for [`Ends::Apart`]; one read buffer is held while there is something to read, none while
/// idle.
pub(super) async fn both(
    io: impl AsyncRead + AsyncWrite + Unpin,
    first: Bytes,
    mut send: Send,
    mut recv: Recv,
    ends: Ends,
) -> Copied {
    let (mut reader, mut writer) = tokio::io::split(io);
    let mut copied = Copied::default();
    let Copied { up, down } = &mut copied;
    let started = Instant::now();
    // Milliseconds from `started` to the last bytes, or to the end of a direction.
    let last_moved = AtomicU64::new(0);
    let moved = || last_moved.store(millis(started.elapsed()), Ordering::Relaxed);
    // Whether the service ended in good order.
    let to_visitor = async {
        if !first.is_empty() {
            *down += first.len() as u64;
            if send.write(first, false).await.is_err() {
                return false;
            }
        }
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ);
            let read = tokio::select! {
                read = reader.read_buf(&mut buffer) => read,
                () = send.stopped() => return false,
            };
            match read {
                Ok(0) => {
                    // An end that could not be said resets the stream.
                    let told = send.end().await.is_ok();
                    moved();
                    return told;
                }
                Ok(n) => {
                    *down += n as u64;
                    moved();
                    if send.write(buffer.split().freeze(), false).await.is_err() {
                        return false;
                    }
                }
                // Half a stream must not look whole: dropping `send` resets.
                Err(_) => return false,
            }
        }
    };
    let to_service = async {
        loop {
            match recv.chunk().await {
                Ok(Some(chunk)) => {
                    *up += chunk.len() as u64;
                    moved();
                    if writer.write_all(&chunk).await.is_err() {
                        // The service may have closed its reading side alone and still be answering.
                        return VisitorEnded::Half;
                    }
                }
                Ok(None) => {
                    let _ = writer.shutdown().await;
                    moved();
                    return VisitorEnded::Half;
                }
                Err(_) => return VisitorEnded::Broken,
            }
        }
    };
    {
        let (mut to_visitor, mut to_service) = (std::pin::pin!(to_visitor), std::pin::pin!(to_service));
        let limit = if ends == Ends::Apart { APART_IDLE } else { HALF_CLOSED_IDLE };
        let silence = silence(started, &last_moved, limit);
        tokio::select! {
            in_order = &mut to_visitor => {
                if in_order && ends == Ends::Apart {
                    tokio::select! { _ = to_service => {} () = silence => {} }
                }
            }
            ended = &mut to_service => {
                if ended == VisitorEnded::Half {
                    tokio::select! { _ = to_visitor => {} () = silence => {} }
                }
            }
        }
    }
    copied
}

/// Completes when nothing has moved for `limit`.
async fn silence(started: Instant, last_moved: &AtomicU64, limit: Duration) {
    loop {
        let silent_at = started + Duration::from_millis(last_moved.load(Ordering::Relaxed)) + limit;
        if silent_at <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(silent_at).await;
    }
}

fn millis(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
