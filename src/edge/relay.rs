//! Bytes between a visitor and a stream of a connector.

use std::{io, time::Duration};

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
                        if write(&mut writer, &chunk).await.is_err() {
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

/// TLS takes bytes before the socket does, so what was written may wait for a flush; on a bare socket that does nothing.
async fn write(writer: &mut (impl AsyncWrite + Unpin), chunk: &[u8]) -> io::Result<()> {
    writer.write_all(chunk).await?;
    writer.flush().await
}

/// Makes the drop of a socket a reset: an end in good order would make half a transfer look whole.
pub(super) fn cut(socket: &TcpStream) {
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::BufWriter;

    use super::*;

    #[tokio::test]
    async fn what_a_connector_sent_does_not_wait_in_a_buffer_for_more() {
        let (visitor, io) = tokio::io::duplex(1 << 10);
        let (mut visitor, io) = (visitor, BufWriter::new(io));
        let (ours, theirs) = tokio::io::duplex(1 << 10);
        let (server, client) = tokio::join!(h2::server::handshake(theirs), h2::client::handshake::<_>(ours));
        let (mut server, (client, connection)) = (server.unwrap(), client.unwrap());
        let mut client = client.ready().await.unwrap();
        let (response, send) = client.send_request(http::Request::new(()), false).unwrap();
        let told = async {
            let (_request, mut respond) = server.accept().await.unwrap().unwrap();
            let mut body = respond.send_response(http::Response::new(()), false).unwrap();
            body.send_data(Bytes::from_static(b"told"), false).unwrap();
            while server.accept().await.is_some() {}
        };
        let spliced = async {
            let recv = Recv::http2(response.await.unwrap().into_body());
            splice(io, Send::http2(send), recv, Ends::Together).await
        };
        let mut heard = [0; 4];
        tokio::select! {
            read = visitor.read_exact(&mut heard) => assert_eq!(read.unwrap(), 4),
            () = told => panic!("the connector left"),
            _ = connection => panic!("the connection broke"),
            ended = spliced => panic!("{ended:?}"),
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("it is still in the buffer"),
        }
        assert_eq!(&heard, b"told");
    }
}
