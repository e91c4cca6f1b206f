//! TCP inside a WebSocket: tcp, ssh, rdp, smb, bastion and socks-proxy services (protocol.md §9.5, §11.2).
//!
//! The connector is the WebSocket's server. Frames are streamed: of a message of any size one chunk is held.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use ::http::{HeaderName, header};
use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::Instant,
};

use super::{
    Granted, Route, accept_websocket, bastion, forwarded,
    frames::{Decoder, Encoder, Event, MAX_HEADER, Opcode, Role},
    live::{Leave, POLICY_VIOLATION},
    pipe::READ,
    record::Record,
    refuse,
    socks::{Handshake, Host, Reply, Step},
};
use crate::{
    code::Code,
    origin::{
        Destination, Error,
        balance::InFlight,
        dial::{Dialer, Target},
        io::OriginIo,
        proxy_protocol::Source,
    },
    telemetry::Chain,
    transport::{Recv, Responder, Send},
    wire::RequestHead,
};

const JUMP_DESTINATION: HeaderName = HeaderName::from_static("cf-access-jump-destination");
/// An idle stream is shown to be alive this often; proxies on the way cut silent ones after a minute.
const PING_EVERY: Duration = Duration::from_secs(54);
/// For a SOCKS5 visitor to say where to.
const SOCKS_LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn serve(
    granted: &Granted<'_>,
    service: Service<'_>,
    record: &mut Record<'_>,
    head: RequestHead,
    mut responder: Responder,
    recv: Recv,
) {
    let Granted { proxy, leave, .. } = granted;
    let key = head.headers.get(header::SEC_WEBSOCKET_KEY).cloned();
    let (true, Some(key)) = (head.websocket, key) else {
        record.because("the service is a byte stream and the request no WebSocket");
        return refuse(record, responder, Code::RequestInvalid).await;
    };
    let started = Instant::now();
    let dialled = tokio::select! {
        dialled = service.dial(&head) => dialled,
        () = responder.gone() => return record.visitor_left(),
    };
    let dialled = match dialled {
        Ok(dialled) => dialled,
        Err(failure) => {
            proxy.metrics.tcp_failed();
            let code = match &failure {
                Failure::Origin(error) => error.code(),
                Failure::Destination(_) => Code::RequestInvalid,
            };
            record.because(Chain(&failure));
            return refuse(record, responder, code).await;
        }
    };
    let answer = accept_websocket(&key);
    record.status = answer.status;
    let Ok(mut send) = responder.respond(answer, false).await else { return record.visitor_left() };
    let mut inbound = Inbound { recv, decoder: Decoder::new(Role::Server) };
    let (io, _in_flight) = match dialled {
        Dialled::Connected(io, in_flight) => (io, in_flight),
        Dialled::Socks(fixed) => {
            let (fixed, in_flight) = fixed.unzip();
            let negotiated = socks(&service, fixed, &mut inbound, &mut send);
            match tokio::time::timeout(SOCKS_LIMIT + service.dialer.connect_timeout, negotiated).await {
                Ok(Some(io)) => (io, in_flight),
                _ => return close(&mut send, 1000).await,
            }
        }
    };
    proxy.metrics.tcp_connected(started.elapsed());
    leave.says_farewell();
    relay(record, io, inbound, send, leave).await;
    proxy.metrics.tcp_ended();
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Origin(#[from] Error),
    #[error("{0}")]
    Destination(#[from] bastion::Error),
}

/// A byte service of a rule.
pub(super) struct Service<'a> {
    pub(super) route: &'a Route,
    pub(super) dialer: &'a Dialer,
    pub(super) destination: &'a Destination,
}

enum Dialled {
    Connected(OriginIo, Option<InFlight>),
    /// SOCKS5 first; with a fixed destination the visitor's wish is ignored.
    Socks(Option<(OriginIo, InFlight)>),
}

impl Service<'_> {
    async fn dial(&self, head: &RequestHead) -> Result<Dialled, Failure> {
        match self.destination {
            Destination::Fixed(targets) => {
                let source = || forwarded::visitor(&head.headers).map(Source);
                let announced = self.route.proxy_protocol.map(|version| (version, source()));
                let (io, in_flight) = targets.connect(self.dialer, announced).await?;
                Ok(match self.route.socks {
                    true => Dialled::Socks(Some((io, in_flight))),
                    false => Dialled::Connected(io, Some(in_flight)),
                })
            }
            Destination::Header => {
                let wish = head.headers.get(JUMP_DESTINATION).and_then(|value| value.to_str().ok());
                let (host, port) = bastion::destination(wish.unwrap_or_default())?;
                Ok(Dialled::Connected(self.dialer.connect(&Target::Tcp { host: host.into(), port }).await?, None))
            }
            Destination::Socks => Ok(Dialled::Socks(None)),
        }
    }
}

/// The visitor's frames.
struct Inbound {
    recv: Recv,
    decoder: Decoder,
}

/// What the visitor's frames come down to.
enum Heard {
    Data(Bytes),
    Ping(Bytes),
    /// With the code to answer.
    Close(u16),
    End,
}

impl Inbound {
    /// The next piece; pongs are swallowed. Cancel-safe.
    async fn next(&mut self) -> Heard {
        loop {
            match self.decoder.next() {
                Ok(Some(Event::Data(data))) if data.payload.is_empty() => {}
                Ok(Some(Event::Data(data))) => return Heard::Data(data.payload),
                Ok(Some(Event::Ping(payload))) => return Heard::Ping(payload),
                Ok(Some(Event::Pong(_))) => {}
                Ok(Some(Event::Close { code, .. })) => return Heard::Close(code.unwrap_or(1000)),
                Ok(None) => match self.recv.chunk().await {
                    Ok(Some(chunk)) => self.decoder.push(chunk),
                    Ok(None) | Err(_) => return Heard::End,
                },
                Err(error) => return Heard::Close(error.close_code()),
            }
        }
    }
}

async fn close(send: &mut Send, code: u16) {
    let _ = send.write(Encoder::server().close(Some(code), ""), true).await;
}

async fn send_data(send: &mut Send, payload: &[u8]) -> bool {
    let mut frame = BytesMut::with_capacity(MAX_HEADER + payload.len());
    frame.extend_from_slice(&Encoder::server().header(Opcode::Binary, true, payload.len()));
    frame.extend_from_slice(payload);
    send.write(frame.freeze(), false).await.is_ok()
}

/// SOCKS5 until a destination is connected.
async fn socks(
    service: &Service<'_>,
    fixed: Option<OriginIo>,
    inbound: &mut Inbound,
    send: &mut Send,
) -> Option<OriginIo> {
    let mut handshake = Handshake::new();
    let mut input = Bytes::new();
    loop {
        match handshake.push(&mut input) {
            Step::NeedMore => match inbound.next().await {
                Heard::Data(data) => input = data,
                Heard::Ping(payload) => send.write(Encoder::server().pong(&payload), false).await.ok()?,
                Heard::Close(_) | Heard::End => return None,
            },
            Step::Send(bytes) => {
                if !send_data(send, &bytes).await {
                    return None;
                }
            }
            Step::Refuse(bytes) => {
                send_data(send, &bytes).await;
                return None;
            }
            Step::Connect { host, port, rest } => {
                let connected = match fixed {
                    Some(io) => Ok(io),
                    None => connect(service, host, port).await,
                };
                return match connected {
                    Ok(mut io) => {
                        let accepted = send_data(send, &Reply::Succeeded.encode()).await;
                        let early = rest.is_empty() || io.write_all(&rest).await.is_ok();
                        (accepted && early).then_some(io)
                    }
                    Err(reply) => {
                        send_data(send, &reply.encode()).await;
                        None
                    }
                };
            }
        }
    }
}

/// Names are resolved first, so that the rules see what is dialled.
async fn connect(service: &Service<'_>, host: Host, port: u16) -> Result<OriginIo, Reply> {
    let Service { route, dialer, .. } = service;
    let ip = match host {
        Host::Address(ip) => ip,
        Host::Name(name) => {
            let mut found = tokio::net::lookup_host((name.as_str(), port)).await.map_err(|_| Reply::NotAllowed)?;
            found.next().ok_or(Reply::NotAllowed)?.ip()
        }
    };
    if !route.ip_rules.decide(ip, port) {
        return Err(Reply::NotAllowed);
    }
    let address = std::net::SocketAddr::new(ip, port);
    let dialled: Result<TcpStream, Error> = tokio::time::timeout(dialer.connect_timeout, dialer.address(address))
        .await
        .unwrap_or(Err(Error::TimedOut("connection")));
    dialled.map(OriginIo::Tcp).map_err(|error| match error {
        Error::Unreachable(error) => Reply::from(error.kind()),
        Error::Forbidden(_) => Reply::NotAllowed,
        _ => Reply::HostUnreachable,
    })
}

/// Bytes of the service as binary frames, frames of the visitor as bytes.
async fn relay(record: &mut Record<'_>, service: OriginIo, mut inbound: Inbound, mut send: Send, leave: &Leave) {
    let (mut reader, mut writer) = tokio::io::split(service);
    // Pongs and the close frame of the reading half; a visitor that floods pings waits for its own answers.
    let (control, mut controls) = mpsc::channel::<(Bytes, bool)>(4);
    let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
    let to_visitor = async {
        let mut buffer = BytesMut::new();
        let mut ping = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        loop {
            if buffer.capacity() < MAX_HEADER + READ {
                buffer.reserve(MAX_HEADER + READ);
            }
            // Room for the frame header in front, so that payload and header leave as one piece without a copy.
            buffer.resize(MAX_HEADER, 0);
            tokio::select! {
                read = reader.read_buf(&mut buffer) => match read {
                    Ok(n) if n > 0 => {
                        sent.fetch_add(n as u64, Ordering::Relaxed);
                        let header = Encoder::server().header(Opcode::Binary, true, n);
                        let start = MAX_HEADER - header.len();
                        buffer[start..MAX_HEADER].copy_from_slice(&header);
                        let mut frame = buffer.split();
                        frame.advance(start);
                        if send.write(frame.freeze(), false).await.is_err() {
                            return;
                        }
                        ping.reset();
                    }
                    Ok(_) => {
                        close(&mut send, 1000).await;
                        return;
                    }
                    // The visitor must hear that this is no orderly end.
                    Err(_) => {
                        close(&mut send, 1011).await;
                        return;
                    }
                },
                control = controls.recv() => {
                    let Some((frame, last)) = control else { return };
                    if send.write(frame, last).await.is_err() || last {
                        return;
                    }
                }
                _ = ping.tick() => {
                    if send.write(Encoder::server().ping(), false).await.is_err() {
                        return;
                    }
                }
                () = send.stopped() => return,
                () = leave.withdrawn() => {
                    close(&mut send, POLICY_VIOLATION).await;
                    return;
                }
            }
            buffer.clear();
        }
    };
    let to_service = async {
        loop {
            match inbound.next().await {
                Heard::Data(data) => {
                    received.fetch_add(data.len() as u64, Ordering::Relaxed);
                    if writer.write_all(&data).await.is_err() {
                        let _ = control.send((Encoder::server().close(Some(1011), ""), true)).await;
                        return;
                    }
                }
                Heard::Ping(payload) => {
                    let _ = control.send((Encoder::server().pong(&payload), false)).await;
                }
                Heard::Close(code) => {
                    let _ = writer.shutdown().await;
                    let _ = control.send((Encoder::server().close(Some(code), ""), true)).await;
                    return;
                }
                Heard::End => {
                    let _ = writer.shutdown().await;
                    return;
                }
            }
        }
    };
    {
        let mut to_visitor = std::pin::pin!(to_visitor);
        tokio::select! {
            () = &mut to_visitor => {}
            () = to_service => {
                // Without this sender the other half knows that no answer to the visitor's frames is to come.
                drop(control);
                to_visitor.await;
            }
        }
    }
    record.sent = sent.load(Ordering::Relaxed);
    record.received = received.load(Ordering::Relaxed);
}
