//! QUIC towards an edge (protocol.md §3): one endpoint, so one UDP port, per connection.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    TransportConfig, VarInt, crypto::rustls::QuicClientConfig,
};

use super::{Error, HEAD_LIMIT, HeadError, Incoming, Recv, Responder, Send, pulse::Pulse, stream::CODE};
use crate::wire::{self, BodyLength, Head, QUIC_SERVER_NAME, RequestHead, connect};

/// Streams the edge may have open at the start. quinn keeps state for each allowed one: 4,096 cost 2 ms at the
/// handshake where a million costs 190 ms; the limit is doubled when half of it is used.
const FIRST_STREAM_LIMIT: u32 = 4096;
const LAST_STREAM_LIMIT: u32 = 1 << 20;

/// What `run` can set about QUIC.
#[derive(Clone, Debug)]
pub struct QuicOptions {
    /// Local address to bind.
    pub bind: Option<IpAddr>,
    /// Local port, kept over reconnects of one connection index so that the 5-tuple stays.
    pub port: u16,
    /// Whether to search for a larger packet size.
    pub discover_mtu: bool,
    /// Bytes the edge may have in flight on the connection.
    pub connection_window: u64,
    /// Bytes the edge may have in flight on one stream.
    pub stream_window: u64,
}

impl Default for QuicOptions {
    fn default() -> Self {
        Self { bind: None, port: 0, discover_mtu: true, connection_window: 30 << 20, stream_window: 2 << 20 }
    }
}

/// A connection to an edge over QUIC.
#[derive(Debug)]
pub struct QuicSession {
    endpoint: Endpoint,
    connection: quinn::Connection,
    stream_limit: u32,
    framing: bool,
}

/// Transport settings that both ends share (§3.2); what quinn cannot say is as near as it gets.
pub fn transport_config(edge_is_v6: bool, discover_mtu: bool) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(5000))))
        .keep_alive_interval(Some(Duration::from_secs(1)))
        .datagram_receive_buffer_size(Some(16383))
        .initial_mtu(if edge_is_v6 { 1252 } else { 1232 })
        .max_concurrent_bidi_streams(VarInt::from_u32(FIRST_STREAM_LIMIT))
        .max_concurrent_uni_streams(VarInt::from_u32(16));
    transport.mtu_discovery_config(discover_mtu.then(|| {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(1452);
        discovery
    }));
    transport
}

/// An endpoint on a UDP socket with room for a burst, as far as the system allows without privileges.
///
/// # Errors
///
/// When the address cannot be bound.
pub fn bind(addr: SocketAddr, server: Option<quinn::ServerConfig>) -> std::io::Result<Endpoint> {
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    // 4 MiB holds a burst of 3,000 packets; the kernel silently caps it at rmem_max.
    let _ = socket.set_recv_buffer_size(4 << 20);
    let _ = socket.set_send_buffer_size(4 << 20);
    socket.bind(&addr.into())?;
    let mut config = EndpointConfig::default();
    if server.is_none() {
        config.cid_generator(|| Box::new(ZeroLength));
    }
    Endpoint::new(config, server, socket.into(), Arc::new(quinn::TokioRuntime))
}

/// A socket with one connection needs no connection ids (§3.2).
struct ZeroLength;

impl ConnectionIdGenerator for ZeroLength {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&[])
    }

    fn cid_len(&self) -> usize {
        0
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

impl QuicSession {
    /// Dials `edge`; the handshake may take `limit`.
    ///
    /// # Errors
    ///
    /// [`Error`]; a refused port shows as a time-out, since quinn does not read ICMP.
    pub async fn dial(
        edge: SocketAddr,
        tls: Arc<QuicClientConfig>,
        options: &QuicOptions,
        limit: Duration,
    ) -> Result<Self, Error> {
        let unspecified: IpAddr =
            if edge.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let ip = options.bind.unwrap_or(unspecified);
        let endpoint = match bind(SocketAddr::new(ip, options.port), None) {
            Err(error) if options.port != 0 => {
                tracing::debug!(%error, port = options.port, "the previous local port is taken");
                bind(SocketAddr::new(ip, 0), None)?
            }
            other => other?,
        };
        let mut transport = transport_config(edge.is_ipv6(), options.discover_mtu);
        let window = |bytes: u64| VarInt::from_u64(bytes).unwrap_or(VarInt::MAX);
        transport
            .receive_window(window(options.connection_window))
            .stream_receive_window(window(options.stream_window));
        let mut config = ClientConfig::new(tls);
        config.transport_config(Arc::new(transport));
        let mut connecting = endpoint.connect_with(config, edge, QUIC_SERVER_NAME)?;
        let deadline = tokio::time::Instant::now() + limit;
        let silent = |heard| Error::TimedOut { what: "QUIC handshake", limit, heard };
        // The edge's first flight tells a slow path from a dead one.
        tokio::time::timeout_at(deadline, connecting.handshake_data()).await.map_err(|_| silent(false))??;
        let connection = tokio::time::timeout_at(deadline, connecting).await.map_err(|_| silent(true))??;
        Ok(Self { endpoint, connection, stream_limit: FIRST_STREAM_LIMIT, framing: false })
    }

    /// Opens the control stream: the first stream of the connector, without signature (§3.5).
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub async fn open_control(&self) -> Result<(Send, Recv), Error> {
        let (send, recv) = self.connection.open_bi().await?;
        Ok((Send::quic(send), Recv::quic(bytes::Bytes::new(), recv)))
    }

    /// From now on the edge may ask for framed bodies.
    pub fn agree_on_framing(&mut self) {
        self.framing = true;
    }

    /// The edge's address.
    pub fn remote(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// The local UDP port.
    pub fn local_port(&self) -> u16 {
        self.endpoint.local_addr().map_or(0, |addr| addr.port())
    }

    /// Feels whether the connection is alive.
    pub fn pulse(&self) -> Pulse {
        Pulse::quic(self.connection.clone())
    }

    /// The connection itself, for its statistics and datagrams.
    pub fn connection(&self) -> &quinn::Connection {
        &self.connection
    }

    /// The next stream.
    ///
    /// # Errors
    ///
    /// When the connection is over.
    pub async fn accept(&mut self) -> Result<Announced, Error> {
        match self.connection.accept_bi().await {
            Ok((send, recv)) => Ok(Announced { send, recv, framing: self.framing }),
            Err(quinn::ConnectionError::ApplicationClosed(close)) if close.error_code == CODE => Err(Error::Closed),
            Err(error) => Err(error.into()),
        }
    }

    /// Raises the stream limit when `in_use` streams are more than half of it.
    pub fn make_room(&mut self, in_use: usize) {
        if in_use > self.stream_limit as usize / 2 && self.stream_limit < LAST_STREAM_LIMIT {
            self.stream_limit *= 2;
            self.connection.set_max_concurrent_bi_streams(VarInt::from_u32(self.stream_limit));
        }
    }

    /// Closes with code 0 and an empty reason (§3.4), and sees to it that the edge hears it.
    pub async fn close(self) {
        self.connection.close(CODE, b"");
        // The close is one packet; without this the socket would go before it is sent.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

/// A stream of the edge, nothing of it read.
#[derive(Debug)]
pub struct Announced {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    framing: bool,
}

impl Announced {
    /// Completes when the edge has received everything, or wants no more.
    pub(super) fn delivered(&self) -> impl Future<Output = ()> + std::marker::Send + 'static {
        let stopped = self.send.stopped();
        async move { drop(stopped.await) }
    }

    /// Reads signature and message.
    pub(super) async fn read_head(self) -> Result<Incoming, HeadError> {
        read_head(self.send, self.recv, self.framing).await
    }
}

async fn read_head(send: quinn::SendStream, mut recv: quinn::RecvStream, framing: bool) -> Result<Incoming, HeadError> {
    let mut collector = connect::Collector::default();
    let collected = async {
        let mut signature = None;
        loop {
            let chunk = recv.read_chunk(usize::MAX, true).await.map_err(super::StreamError::from)?;
            let Some(chunk) = chunk else { return Err(HeadError::Stream(super::StreamError::Closed)) };
            collector.push(chunk.bytes);
            if signature.is_none() {
                signature = collector.signature()?;
            }
            match signature {
                Some(connect::Signature::Rpc) => return Ok(None),
                Some(connect::Signature::Data) => {
                    if let Some(whole) = collector.message()? {
                        return Ok(Some(whole));
                    }
                }
                None => {}
            }
        }
    };
    let collected = tokio::time::timeout(HEAD_LIMIT, collected).await.unwrap_or(Err(HeadError::TimedOut));
    match collected {
        Ok(Some((message, rest))) => match decode(&message, framing) {
            Ok((head, framed)) => {
                let recv = if framed && is_of_unknown_length(&head) {
                    Recv::framed(rest, recv)
                } else {
                    Recv::quic(rest, recv)
                };
                Ok(Incoming::Visitor { head, responder: Responder::quic(send, framed), recv })
            }
            Err(error) => {
                Responder::quic(send, false).fail(&error.to_string(), false).await;
                Err(error.into())
            }
        },
        Ok(None) => Ok(Incoming::Rpc {
            recv: Recv::quic(collector.into_rest(connect::RPC_SIGNATURE.len()), recv),
            send: Send::quic(send),
        }),
        Err(HeadError::Wire(error @ (wire::Error::Message(_) | wire::Error::TooLarge(_)))) => {
            Responder::quic(send, false).fail(&error.to_string(), false).await;
            Err(error.into())
        }
        // Dropping both halves sends RESET_STREAM(0) and STOP_SENDING(0).
        Err(error) => {
            drop(Send::quic(send));
            Err(error)
        }
    }
}

fn decode(message: &bytes::Bytes, framing: bool) -> Result<(Head, bool), wire::Error> {
    if framing { connect::decode_request_of_own(message) } else { Ok((connect::decode_request(message)?, false)) }
}

fn is_of_unknown_length(head: &Head) -> bool {
    matches!(head, Head::Request(RequestHead { body: BodyLength::Unknown, .. }))
}
