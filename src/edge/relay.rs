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

/// What the end of the connector's direction means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// Everything ends, as on a WebSocket, or with a connector that knows no half-closed streams.
    Together,
    /// It ends alone; the visitor may go on sending.
    Apart,
}

/// What became of the connector's direction.
enum Down {
    Whole,
    Cut,
    Left,
}

/// Copies both ways. The end of the visitor's direction ends it alone: the connector decides about the other.
pub(super) async fn splice<I>(io: I, mut send: Send, mut recv: Recv, ends: Ends) -> Outcome<I>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(io);
    let down = {
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
            loop {
                match recv.chunk().await {
                    Ok(Some(chunk)) => {
                        if writer.write_all(&chunk).await.is_err() {
                            return Down::Left;
                        }
                    }
                    Ok(None) => break,
                    Err(_) => return Down::Cut,
                }
            }
            let _ = writer.shutdown().await;
            Down::Whole
        };
        let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
        tokio::select! {
            ended = &mut down => {
                if matches!(ended, Down::Whole) && ends == Ends::Apart {
                    up.await;
                }
                ended
            }
            () = &mut up => down.await,
        }
    };
    if matches!(down, Down::Cut) { Outcome::Cut(reader.unsplit(writer)) } else { Outcome::Ended }
}

/// Makes the drop of a socket a reset: an end in good order would make half a transfer look whole.
pub(super) fn cut(socket: &TcpStream) {
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
