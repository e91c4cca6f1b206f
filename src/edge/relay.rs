//! Bytes between a visitor and a stream of a connector.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::transport::{Recv, Send};

/// One read of a visitor's socket.
const READ: usize = 16 << 10;

/// What the end of the connector's direction means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// Everything ends, as on a WebSocket, or with a connector that knows no half-closed streams.
    Together,
    /// It ends alone; the visitor may go on sending.
    Apart,
}

/// Copies both ways. The end of the visitor's direction ends it alone: the connector decides about the other.
pub(super) async fn splice(io: impl AsyncRead + AsyncWrite + Unpin, mut send: Send, mut recv: Recv, ends: Ends) {
    let (mut reader, mut writer) = tokio::io::split(io);
    let up = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ);
            let read = tokio::select! {
                read = reader.read_buf(&mut buffer) => read,
                // The connector wants no more; it may still be answering.
                () = send.stopped() => return,
            };
            match read {
                Ok(0) => {
                    send.finish();
                    return;
                }
                Ok(_) => {
                    if send.write(buffer.split().freeze(), false).await.is_err() {
                        return;
                    }
                }
                Err(_) => {
                    send.reset();
                    return;
                }
            }
        }
    };
    let down = async {
        let whole = loop {
            match recv.chunk().await {
                Ok(Some(chunk)) if writer.write_all(&chunk).await.is_err() => return false,
                Ok(Some(_)) => {}
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        let _ = writer.shutdown().await;
        whole
    };
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    tokio::select! {
        whole = &mut down => if whole && ends == Ends::Apart {
            up.await;
        },
        () = &mut up => drop(down.await),
    }
}
