//! The services of a rule: each request goes to one of them, and to another if that one cannot be reached.

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{HeaderValue, Request, header};

use super::{
    Error,
    balance::{Balance, InFlight, spread},
    dial::{Dialer, Target},
    http::{BoxedRequest, Failed, HttpOrigin, Reply},
    io::OriginIo,
    proxy_protocol::{self, Source},
    request_body::RequestBody,
};
use crate::{
    config::{HealthCheck, ProxyProtocol},
    metrics::{OriginMetrics, Retry},
    telemetry::Chain,
};

/// Of the answer to a check so much is read, so that its connection can serve again.
const MOST_READ: usize = 64 << 10;

/// HTTP services that stand in for each other.
#[derive(Debug)]
pub struct HttpServices {
    services: Vec<HttpService>,
    balance: Balance,
    metrics: OriginMetrics,
}

/// One of them.
#[derive(Debug)]
pub(super) struct HttpService {
    pub(super) origin: HttpOrigin,
    /// What it is asked for by checks, who have no visitor.
    pub(super) host: HeaderValue,
}

/// TCP services that stand in for each other.
#[derive(Debug)]
pub struct Targets {
    pub(super) targets: Vec<Target>,
    pub(super) balance: Balance,
    pub(super) metrics: OriginMetrics,
}

impl HttpServices {
    pub(super) fn new(services: Vec<HttpService>, balance: Balance, metrics: OriginMetrics) -> Self {
        Self { services, balance, metrics }
    }

    /// Whether the services may be spoken to in HTTP/2; they are of one kind.
    pub fn may_speak_h2(&self) -> bool {
        self.services.first().is_some_and(|service| service.origin.may_speak_h2())
    }

    /// Sends a request to one of the services. If nothing of it can have been processed there, another one gets it,
    /// each once. `host` is what the service sees as Host, for `matchSNItoHost`. When `late` completes, there is no
    /// answer in time (headerTimeout): that is the service's failure, and nobody else is asked.
    ///
    /// # Errors
    ///
    /// That of the last service tried; no answer was begun.
    pub async fn send(
        &self,
        request: BoxedRequest,
        host: &str,
        websocket: bool,
        mut late: impl Future<Output = ()> + Unpin,
    ) -> Result<Reply, Error> {
        let mut request = request;
        let mut tried = Vec::new();
        let mut last = None;
        while let Some((index, in_flight)) = self.balance.choose(&tried) {
            if last.is_some() {
                self.metrics.retried(Retry::OtherService);
            }
            let sent = tokio::select! {
                biased;
                sent = self.services[index].origin.send(request, host, websocket) => sent,
                () = &mut late => Err(Failed { error: Error::TimedOut("answer (headerTimeout)"), unsent: None }),
            };
            match sent {
                Ok(reply) => {
                    in_flight.answered();
                    return Ok(reply.holding(in_flight));
                }
                Err(Failed { error, unsent }) => {
                    self.count(&error);
                    if error.is_of_service() {
                        in_flight.failed(&Chain(&error));
                    }
                    match unsent {
                        Some(unsent) => request = unsent,
                        None => return Err(error),
                    }
                    last = Some(error);
                }
            }
            tried.push(index);
        }
        Err(last.unwrap_or(Error::TimedOut("service")))
    }

    fn count(&self, error: &Error) {
        if let Some(cause) = error.cause() {
            self.metrics.hop.failed(cause);
        }
    }

    /// Drops idle connections that are too old.
    pub fn sweep(&self) {
        for service in &self.services {
            service.origin.sweep();
        }
    }

    /// Closes idle connections, and keeps none any more.
    pub fn retire(&self) {
        for service in &self.services {
            service.origin.retire();
        }
    }

    /// Lets go of connections to addresses that the services' names no longer have.
    pub async fn follow_names(&self) {
        for service in &self.services {
            service.origin.follow_name().await;
        }
    }

    /// Who is chosen, and why.
    pub fn balance(&self) -> &Balance {
        &self.balance
    }

    /// Whether the rule has checks.
    pub fn is_checked(&self) -> bool {
        self.balance.check().is_some()
    }

    /// Checks every service at its intervals, for as long as it is polled. Ends at once when the rule has no checks.
    pub async fn check(&self) {
        let Some(check) = self.balance.check() else { return };
        let mut checks: FuturesUnordered<_> =
            (0..self.services.len()).map(|index| self.check_one(index, check)).collect();
        while checks.next().await.is_some() {}
    }

    async fn check_one(&self, index: usize, check: &HealthCheck) {
        // Services that begin together are not checked together.
        tokio::time::sleep(check.interval.mul_f64(rand::random())).await;
        let judge = &self.balance.members()[index].judge;
        loop {
            let asked = tokio::time::timeout(check.timeout, self.services[index].ask(&check.path)).await;
            match asked {
                Ok(Ok(())) => judge.checked(check, Ok(())),
                Ok(Err(error)) => {
                    if let CheckError::Service(error) = &error {
                        self.count(error);
                    }
                    judge.checked(check, Err(&Chain(&error)));
                }
                Err(_) => judge.checked(check, Err(&"no answer in time")),
            }
            tokio::time::sleep(spread(check.interval)).await;
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error("{0}")]
    Service(#[from] Error),
    #[error("the answer was {0}")]
    Status(http::StatusCode),
}

impl HttpService {
    async fn ask(&self, path: &str) -> Result<(), CheckError> {
        let mut request = Request::new(RequestBody::Empty);
        *request.uri_mut() = path.parse().unwrap_or_default();
        request.headers_mut().insert(header::HOST, self.host.clone());
        request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static("adit-health"));
        let host = self.host.to_str().unwrap_or_default();
        let reply = self.origin.send(Box::new(request), host, false).await.map_err(|failed| failed.error)?;
        let Reply::Response(mut response) = reply else { return Ok(()) };
        if !response.status().is_success() && !response.status().is_redirection() {
            return Err(CheckError::Status(response.status()));
        }
        let mut read = 0;
        let body = response.body_mut();
        while !body.is_end() && read < MOST_READ {
            match body.frame().await? {
                Some(frame) => read += frame.data_ref().map_or(0, bytes::Bytes::len),
                None => break,
            }
        }
        Ok(())
    }
}

impl Targets {
    /// Connects to one of them, or to another if that fails, each once. With `announced` the PROXY header is part of
    /// it.
    ///
    /// # Errors
    ///
    /// As [`Dialer::connect`], of the last one tried.
    pub async fn connect(
        &self,
        dialer: &Dialer,
        announced: Option<(ProxyProtocol, Option<Source>)>,
    ) -> Result<(OriginIo, InFlight), Error> {
        let mut tried = Vec::new();
        let mut last = None;
        while let Some((index, in_flight)) = self.balance.choose(&tried) {
            if last.is_some() {
                self.metrics.retried(Retry::OtherService);
            }
            let connected = async {
                let mut io = dialer.connect(&self.targets[index]).await?;
                if let Some((version, source)) = announced {
                    let peer = io.peer();
                    proxy_protocol::send(&mut io, version, source, peer).await.map_err(Error::Unreachable)?;
                }
                Ok::<_, Error>(io)
            };
            match connected.await {
                Ok(io) => {
                    in_flight.answered();
                    return Ok((io, in_flight));
                }
                Err(error) => {
                    if let Some(cause) = error.cause() {
                        self.metrics.hop.failed(cause);
                    }
                    in_flight.failed(&Chain(&error));
                    last = Some(error);
                }
            }
            tried.push(index);
        }
        Err(last.unwrap_or(Error::TimedOut("service")))
    }

    /// Who is chosen, and why.
    pub fn balance(&self) -> &Balance {
        &self.balance
    }
}
