//! HTTP to one service: one request, one answer, over a pooled or shared connection or a new one.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::Request;
use rustls::pki_types::ServerName;

pub use super::reply::{Reply, ReplyBody};
use super::{
    Error,
    dial::{Dialer, Target, limit},
    http1::{self, GiveBack, H1},
    http2::{Found, Shared, Unanswered},
    io::OriginIo,
    pool::Pool,
    proxy_protocol::{self, Source},
    request_body::RequestBody,
    secured::Secured,
};
use crate::{
    config::{OriginOptions, ProxyProtocol},
    metrics::{OriginMetrics, Retry, Unverified},
    tls::service::{Failure, Handshakes},
};

/// Times one request is sent over HTTP/2 while services say that they did not process it.
const MOST_ATTEMPTS: usize = 3;
/// Of a look-up that only tidies up.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(5);

/// An HTTP service.
#[derive(Debug)]
pub struct HttpOrigin {
    dialer: Dialer,
    target: Target,
    tls: Option<Tls>,
    h2c: bool,
    pool: Arc<Pool>,
    shared: Shared,
    proxy_protocol: Option<ProxyProtocol>,
    metrics: OriginMetrics,
}

#[derive(Debug)]
struct Tls {
    handshakes: Handshakes,
    timeout: Duration,
    name: NameRule,
    #[expect(dead_code, reason = "its drop is its use")]
    unverified: Option<Unverified>,
}

/// A request on its way: it is handed on and back a dozen times, and the future of a stream stays small.
pub type BoxedRequest = Box<Request<RequestBody>>;

/// Where the server name comes from.
#[derive(Debug)]
enum NameRule {
    Fixed(Name),
    /// The host of each request.
    OfRequest,
}

/// A request without an answer.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: Error,
    /// The request as it was, if no service can have processed it.
    pub unsent: Option<BoxedRequest>,
}

impl Failed {
    fn unsent(error: impl Into<Error>, request: BoxedRequest) -> Self {
        Self { error: error.into(), unsent: Some(request) }
    }

    fn finally(error: impl Into<Error>) -> Self {
        Self { error: error.into(), unsent: None }
    }
}

impl From<Unanswered> for Failed {
    fn from(unanswered: Unanswered) -> Self {
        Self { error: unanswered.error, unsent: unanswered.unsent }
    }
}

#[expect(clippy::large_enum_variant, reason = "lives for one match; a box would be an allocation for each request")]
enum Pooled {
    Answered(Reply),
    /// No connection waits any more.
    Nobody(BoxedRequest),
}

impl HttpOrigin {
    /// A service that is dialled when it is first asked.
    pub fn new(
        dialer: Dialer,
        target: Target,
        tls: Option<Handshakes>,
        h2c: bool,
        options: &OriginOptions,
        metrics: OriginMetrics,
    ) -> Self {
        let name = match (&options.origin_server_name, &target) {
            _ if options.match_sni_to_host => NameRule::OfRequest,
            (Some(name), _) => NameRule::Fixed(parse_name(name)),
            (None, Target::Tcp { host, .. }) => NameRule::Fixed(parse_name(host)),
            (None, Target::Unix(_)) => NameRule::Fixed(parse_name("localhost")),
        };
        // A connection that says whom it is for serves nobody else.
        let keep_alive_connections = if options.proxy_protocol.is_some() { 0 } else { options.keep_alive_connections };
        Self {
            dialer,
            target,
            tls: tls.map(|handshakes| Tls {
                unverified: handshakes.is_unverified().then(|| metrics.hop.unverified()),
                handshakes,
                timeout: limit(options.tls_timeout),
                name,
            }),
            h2c,
            pool: Arc::new(Pool::new(keep_alive_connections, options.keep_alive_timeout)),
            shared: Shared::new(options.keep_alive_timeout),
            proxy_protocol: options.proxy_protocol,
            metrics,
        }
    }

    /// Whether the service may be spoken to in HTTP/2, where `te: trailers` has a meaning.
    pub fn may_speak_h2(&self) -> bool {
        self.h2c || self.tls.as_ref().is_some_and(|tls| tls.handshakes.offers_h2())
    }

    /// Drops idle connections that are too old.
    pub fn sweep(&self) {
        self.pool.sweep();
        self.shared.sweep();
    }

    /// Another generation of rules or secrets serves what is new: idle connections are closed at once, shared ones end
    /// with their last request, and none is kept any more.
    pub fn retire(&self) {
        self.pool.retire();
        self.shared.retire();
    }

    /// Looks the name of the service up and lets go of connections to addresses that are no longer its own: idle ones
    /// are closed, shared ones end with their last request. A look-up that fails changes nothing. Nothing is asked
    /// while no connection waits.
    pub async fn follow_name(&self) {
        let Target::Tcp { host, port } = &self.target else { return };
        if host.parse::<IpAddr>().is_ok() || (self.pool.is_empty() && self.shared.is_empty()) {
            return;
        }
        let found = tokio::time::timeout(LOOK_UP_LIMIT, self.dialer.resolver.look_up(host, *port)).await;
        let Ok(Ok(found)) = found else { return };
        let alive: Vec<IpAddr> = found.iter().map(|addr| addr.ip().to_canonical()).collect();
        self.pool.keep(&alive);
        self.shared.keep(&alive);
    }

    /// Sends a request. `host` is what the service sees as Host, for `matchSNItoHost`.
    ///
    /// A request is sent once more when a service or its connection says that it was not processed, and, if it is
    /// idempotent and has no body, when a connection that had served before died without a byte of answer (RFC 9110
    /// §9.2.2, RFC 9113 §8.7).
    ///
    /// # Errors
    ///
    /// [`Failed`]; no answer was begun.
    pub async fn send(&self, request: BoxedRequest, host: &str, websocket: bool) -> Result<Reply, Failed> {
        if let Some(tls) = &self.tls {
            // Asked for each request: an identity expires, whatever connections it has left.
            tls.handshakes.check().map_err(|failure| Failed::finally(Error::Tls(failure)))?;
        }
        let name = self.server_name(host).map_err(Failed::finally)?;
        // With a PROXY header no connection is shared.
        let speaks_h2 = self.may_speak_h2() && !websocket && self.proxy_protocol.is_none();
        let mut request = request;
        let mut attempts = 0;
        let mut refused = None;
        // What a request over a pooled connection does not need is boxed: the future of a stream stays small.
        loop {
            let opening = match speaks_h2.then(|| self.shared.find(name.as_ref(), refused)) {
                Some(Found::Stream(stream)) => {
                    attempts += 1;
                    refused = Some(stream.connection());
                    match Box::pin(stream.send(request, true)).await {
                        Ok(response) => return Ok(Reply::Response(response.map(ReplyBody::http2))),
                        Err(unanswered) => request = self.again(unanswered, attempts)?,
                    }
                    continue;
                }
                Some(Found::Dial(opening)) => Some(opening),
                None => None,
            };
            request = match self.over_pooled(request, &name, websocket).await? {
                Pooled::Answered(reply) => return Ok(reply),
                Pooled::Nobody(request) => request,
            };
            let source = request.extensions().get::<Source>().copied();
            let io = match Box::pin(self.dial(name.as_ref(), source, websocket)).await {
                Ok(io) => io,
                // A full connection is better than none.
                Err(error) => match self.shared.busy(name.as_ref()).filter(|_| speaks_h2) {
                    Some(stream) => {
                        let sent = Box::pin(stream.send(request, true)).await;
                        return sent
                            .map(|response| Reply::Response(response.map(ReplyBody::http2)))
                            .map_err(Failed::from);
                    }
                    None => return Err(Failed::unsent(error, request)),
                },
            };
            let refusal = io.refusal();
            if io.is_h2() || (self.h2c && !websocket) {
                let connected = self.shared.connect(io, name.as_ref(), self.dialer.connect_timeout);
                let connected = Box::pin(connected).await;
                drop(opening);
                let stream = match connected {
                    Ok(stream) => stream,
                    Err(error) => return Err(Failed::unsent(refusal.instead_of(error), request)),
                };
                attempts += 1;
                refused = Some(stream.connection());
                match Box::pin(stream.send(request, false)).await {
                    Ok(response) => return Ok(Reply::Response(response.map(ReplyBody::http2))),
                    Err(unanswered) => request = self.again(unanswered, attempts)?,
                }
                continue;
            }
            drop(opening);
            let connection = match H1::handshake(io).await {
                Ok(connection) => connection,
                Err(error) => return Err(Failed::unsent(error, request)),
            };
            let answered = connection.exchange(request, websocket, self.give_back(&name)).await;
            return answered.map_err(|broken| match refusal.get() {
                // Nobody else gets it: a part of it may have been sent.
                Some(failure) => Failed::finally(Error::Tls(failure)),
                None => Failed { error: broken.error.into(), unsent: broken.unsent },
            });
        }
    }

    /// The request, if it may be sent once more.
    fn again(&self, unanswered: Unanswered, attempts: usize) -> Result<BoxedRequest, Failed> {
        match unanswered.unsent {
            Some(request) if attempts < MOST_ATTEMPTS => {
                self.metrics.retried(unanswered.why);
                Ok(request)
            }
            unsent => Err(Failed { error: unanswered.error, unsent }),
        }
    }

    /// Tries the idle HTTP/1.1 connections, the freshest first.
    async fn over_pooled(
        &self,
        mut request: BoxedRequest,
        name: &Option<ServerName<'static>>,
        websocket: bool,
    ) -> Result<Pooled, Failed> {
        while let Some(connection) = self.pool.take(name.as_ref()) {
            let spare = http1::spare(&request);
            let broken = match connection.exchange(request, websocket, self.give_back(name)).await {
                Ok(reply) => return Ok(Pooled::Answered(reply)),
                Err(broken) => broken,
            };
            request = match (broken.unsent, spare) {
                (Some(unsent), _) => unsent,
                (None, Some(spare)) if broken.silent && !broken.error.is_timeout() => spare,
                (None, _) => return Err(Failed::finally(broken.error)),
            };
            self.metrics.retried(Retry::Stale);
        }
        Ok(Pooled::Nobody(request))
    }

    fn give_back(&self, name: &Option<ServerName<'static>>) -> GiveBack {
        GiveBack { pool: self.pool.clone(), name: name.clone() }
    }

    fn server_name(&self, host: &str) -> Result<Option<ServerName<'static>>, Error> {
        let Some(tls) = &self.tls else { return Ok(None) };
        let name = match &tls.name {
            NameRule::Fixed(name) => name.clone(),
            NameRule::OfRequest => parse_name(without_port(host)),
        };
        name.map(Some).map_err(Error::ServerName)
    }

    async fn dial(
        &self,
        name: Option<&ServerName<'static>>,
        source: Option<Source>,
        websocket: bool,
    ) -> Result<OriginIo, Error> {
        let mut io = self.dialer.connect(&self.target).await?;
        if let Some(version) = self.proxy_protocol {
            let peer = io.peer();
            proxy_protocol::send(&mut io, version, source, peer).await.map_err(Error::Unreachable)?;
        }
        let (Some(tls), Some(name)) = (&self.tls, name) else { return Ok(io) };
        // WebSockets need HTTP/1.1: a service that prefers HTTP/2 would choose that where it is offered.
        let (shake, name) = (&tls.handshakes, name.clone());
        let handshake = async {
            Ok::<_, Failure>(match io {
                OriginIo::Tcp(tcp) => {
                    OriginIo::TcpTls(Box::new(Secured::new(shake.shake(name, tcp, websocket).await?)))
                }
                OriginIo::Unix(unix) => {
                    OriginIo::UnixTls(Box::new(Secured::new(shake.shake(name, unix, websocket).await?)))
                }
                done => done,
            })
        };
        match tokio::time::timeout(tls.timeout, handshake).await {
            Ok(outcome) => outcome.map_err(Error::Tls),
            Err(_) => Err(Error::TimedOut("TLS handshake")),
        }
    }
}

/// A server name, or the text that cannot be one.
type Name = Result<ServerName<'static>, String>;

fn parse_name(name: &str) -> Name {
    ServerName::try_from(name.to_owned()).map_err(|_| name.to_owned())
}

/// `[::1]:80`, `[::1]`, `host:80` or `host`, without the port and the brackets.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or(rest, |(ip, _)| ip);
    }
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}
