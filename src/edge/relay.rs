//! Bytes between a visitor and a stream of a connector.

use std::time::Duration;

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use crate::transport::{Recv, Send};

/// One read of a visitor's socket.
const READ: usize = 16 << 10;

/// How a stream ended for the visitor.
#[derive(Debug)]
pub(super) enum Outcome<I> {
    /// In good order, or he left.
    Ended,
    /// The connector's side broke: his socket is given back, so that he sees a cut and not an end.
    Cut(I),
}

/// Copies both ways until both have ended. The end of one direction ends it alone: the connector decides about the
/// other.
pub(super) async fn splice<I: AsyncRead + AsyncWrite + Unpin>(io: I, mut send: Send, mut recv: Recv) -> Outcome<I> {
    let (mut reader, mut writer) = tokio::io::split(io);
    let cut = {
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
            loop {
                match recv.chunk().await {
                    Ok(Some(chunk)) => {
                        if writer.write_all(&chunk).await.is_err() {
                            return false;
                        }
                    }
                    Ok(None) => break,
                    Err(_) => return true,
                }
            }
            let _ = writer.shutdown().await;
            false
        };
        let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
        tokio::select! {
            cut = &mut down => cut,
            () = &mut up => down.await,
        }
    };
    if cut { Outcome::Cut(reader.unsplit(writer)) } else { Outcome::Ended }
}

/// Makes the drop of a socket a reset: an end in good order would make half a transfer look whole.
pub(super) fn cut(socket: &TcpStream) {
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
