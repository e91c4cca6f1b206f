//! Bytes between a visitor and a stream of a connector.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::transport::{Recv, Send};

/// One read of a visitor's socket.
const READ: usize = 16 << 10;

/// Copies both ways until both have ended. The end of one direction ends it alone: the connector decides about the
/// other.
pub(super) async fn splice(io: impl AsyncRead + AsyncWrite + Unpin, mut send: Send, mut recv: Recv) {
    let (mut reader, mut writer) = tokio::io::split(io);
    let up = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ);
            match reader.read_buf(&mut buffer).await {
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
        while let Ok(Some(chunk)) = recv.chunk().await {
            if writer.write_all(&chunk).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    };
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    tokio::select! {
        () = &mut down => {}
        () = &mut up => down.await,
    }
}
