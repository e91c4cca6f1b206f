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

/// How many bytes went which way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    /// To the service.
    pub(super) up: u64,
    /// To the visitor.
    pub(super) down: u64,
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
/// §12.1 item 11); one read buffer is held while there is something to read, none while idle.
pub(super) async fn both(
    io: impl AsyncRead + AsyncWrite + Unpin,
    first: Bytes,
    mut send: Send,
    mut recv: Recv,
) -> Copied {
    let (mut reader, mut writer) = tokio::io::split(io);
    let mut copied = Copied::default();
    let Copied { up, down } = &mut copied;
    let started = Instant::now();
    // Milliseconds from `started` to the last bytes of the service.
    let last_heard = AtomicU64::new(0);
    let to_visitor = async {
        if !first.is_empty() {
            *down += first.len() as u64;
            if send.write(first, false).await.is_err() {
                return;
            }
        }
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ);
            let read = tokio::select! {
                read = reader.read_buf(&mut buffer) => read,
                () = send.stopped() => return,
            };
            match read {
                Ok(0) => {
                    send.finish();
                    return;
                }
                Ok(n) => {
                    *down += n as u64;
                    last_heard.store(millis(started.elapsed()), Ordering::Relaxed);
                    if send.write(buffer.split().freeze(), false).await.is_err() {
                        return;
                    }
                }
                // Half a stream must not look whole: dropping `send` resets.
                Err(_) => return,
            }
        }
    };
    let to_service = async {
        loop {
            match recv.chunk().await {
                Ok(Some(chunk)) => {
                    *up += chunk.len() as u64;
                    if writer.write_all(&chunk).await.is_err() {
                        // The service may have closed its reading side alone and still be answering.
                        return VisitorEnded::Half;
                    }
                }
                Ok(None) => {
                    let _ = writer.shutdown().await;
                    return VisitorEnded::Half;
                }
                Err(_) => return VisitorEnded::Broken,
            }
        }
    };
    {
        let mut to_visitor = std::pin::pin!(to_visitor);
        let ended = tokio::select! {
            () = &mut to_visitor => None,
            ended = to_service => Some(ended),
        };
        if ended == Some(VisitorEnded::Half) {
            loop {
                let heard = Duration::from_millis(last_heard.load(Ordering::Relaxed));
                let silent_at = started + heard + HALF_CLOSED_IDLE;
                if silent_at <= Instant::now() {
                    break;
                }
                tokio::select! {
                    () = &mut to_visitor => break,
                    () = tokio::time::sleep_until(silent_at) => {}
                }
            }
        }
    }
    copied
}

fn millis(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
