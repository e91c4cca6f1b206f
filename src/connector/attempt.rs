//! One attempt to get a registered connection: the better transport first, the other a moment later if both are
//! allowed.
//!
//! A transport is proven by a registration alone. The second starts dialling when the first has not registered after
//! 300 ms, and registers if the first still has not 700 ms later, or has failed; so a blocked UDP path costs a second.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{Shared, discovery};
use crate::{
    telemetry::Chain,
    transport::{
        self, Incoming, Pending, Session, Transport, http2::Http2Session, quic::QuicOptions, quic::QuicSession,
    },
    wire::{
        framing::FEATURE,
        registration::{self, Control, Registered, Registration, RegistrationError},
    },
};

/// When the second transport starts dialling.
const SECOND_DIALS: Duration = Duration::from_millis(300);
/// When it registers, after that.
const SECOND_REGISTERS: Duration = Duration::from_millis(700);
/// Bound on dial and handshake; doubled while attempts time out, since a slow path is not a dead one.
const FIRST_LIMIT: Duration = Duration::from_secs(2);
const LAST_LIMIT: Duration = Duration::from_secs(10);
/// How long a QUIC connection must stay alive before it may replace one over HTTP/2: three keep-alives.
const PROBATION: Duration = Duration::from_secs(3);
/// How long a registration waits for the answer to the other transport's: with the two above still within two seconds.
const TURN_LIMIT: Duration = Duration::from_millis(700);
/// How long the winner of a race waits for a registration of the other that is under way.
const OTHER_LIMIT: Duration = Duration::from_secs(1);
/// Streams that may wait for the registration on HTTP/2.
const MOST_EARLY: usize = 64;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The edge is not found.
    #[error("{0}")]
    Discovery(Arc<discovery::Error>),
    /// Dialling, or a connection that ended.
    #[error("{transport} to {edge}: {error}")]
    Transport {
        /// Over which.
        transport: Transport,
        /// Whither.
        edge: SocketAddr,
        /// Why.
        error: transport::Error,
    },
    /// The edge did not take the connection.
    #[error("{0}")]
    Registration(#[from] RegistrationError),
}

/// A registered connection.
pub(super) struct Live {
    pub(super) session: Session,
    pub(super) registered: Registered,
    pub(super) control: Control,
    /// Streams that came before the registration was answered.
    pub(super) early: Vec<Pending>,
    /// The other transport's connection, if that registered at the same moment: the edge may have sent requests over
    /// it, which it has to finish.
    pub(super) spare: Option<Box<Self>>,
}

/// How the connections of one index are dialled, and what is remembered from attempt to attempt.
pub(super) struct Dialler {
    index: u8,
    quic: QuicOptions,
    limit: Duration,
    asking: Arc<AtomicU8>,
    /// One registration at a time: an edge lets the later one take over, and two answers may come in the other order.
    turn: Semaphore,
}

/// A registration whose answer is awaited. The edge may have taken the connection already.
struct Asking<'a>(&'a AtomicU8);

impl<'a> Asking<'a> {
    fn begin(asking: &'a AtomicU8) -> Self {
        asking.fetch_add(1, Ordering::Relaxed);
        Self(asking)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Dialler {
    pub(super) fn new(index: u8, quic: QuicOptions) -> Self {
        Self { index, quic, limit: FIRST_LIMIT, asking: Arc::default(), turn: Semaphore::new(1) }
    }

    /// How many registrations of the attempt under way wait for their answer.
    pub(super) fn asking(&self) -> Arc<AtomicU8> {
        self.asking.clone()
    }

    /// One attempt at `edge` over every transport allowed, the better one first.
    pub(super) async fn connect(
        &mut self,
        shared: &Arc<Shared>,
        edge: SocketAddr,
        attempts: u8,
    ) -> Result<Live, Fault> {
        let outcome = match shared.choice.order(edge) {
            [first, second] => self.race(shared, edge, attempts, *first, *second).await,
            [only] => self.over(shared, edge, attempts, *only, std::future::ready(())).await,
            _ => unreachable!("one or two transports"),
        };
        self.learn(shared, &outcome);
        outcome
    }

    /// Dials QUIC beside a connection over HTTP/2, sees whether it stays alive, and only then registers.
    pub(super) async fn prove_quic(&mut self, shared: &Arc<Shared>, edge: SocketAddr) -> Result<Live, Fault> {
        let outcome = async {
            let mut session = self.dial(shared, edge, Transport::Quic).await?;
            prove(&mut session).await.map_err(|error| Fault::Transport { transport: Transport::Quic, edge, error })?;
            let _asking = Asking::begin(&self.asking);
            register(shared, self.index, 0, session).await
        };
        let outcome = outcome.await;
        self.learn(shared, &outcome);
        outcome
    }

    fn learn(&mut self, shared: &Shared, outcome: &Result<Live, Fault>) {
        match outcome {
            Ok(live) => {
                self.limit = FIRST_LIMIT;
                if let Session::Quic(session) = &live.session {
                    self.quic.port = session.local_port();
                }
            }
            // Only a slow path gets more time: after a dead one the next dial must start soon after its return.
            Err(Fault::Transport { error: transport::Error::TimedOut { heard: true, .. }, .. }) => {
                self.limit = (self.limit * 2).min(LAST_LIMIT);
            }
            Err(Fault::Registration(error)) => shared.metrics.register_failed(error.is_duplicate()),
            Err(_) => {}
        }
    }

    async fn race(
        &self,
        shared: &Arc<Shared>,
        edge: SocketAddr,
        attempts: u8,
        first: Transport,
        second: Transport,
    ) -> Result<Live, Fault> {
        let (first_failed, first_has_failed) = tokio::sync::oneshot::channel::<()>();
        let first_attempt = async {
            let outcome = self.over(shared, edge, attempts, first, std::future::ready(())).await;
            drop(first_failed);
            outcome
        };
        let second_attempt = async {
            // Both moments come earlier once the first has failed.
            let mut failed = first_has_failed;
            let early = tokio::time::timeout(SECOND_DIALS, &mut failed).await.is_ok();
            let may_register = async {
                if !early {
                    let _ = tokio::time::timeout(SECOND_REGISTERS, &mut failed).await;
                }
            };
            self.over(shared, edge, attempts, second, may_register).await
        };
        let (mut first_attempt, mut second_attempt) = (Box::pin(first_attempt), Box::pin(second_attempt));
        let (mut first_fault, mut second_fault) = (None, None);
        loop {
            tokio::select! {
                outcome = &mut first_attempt, if first_fault.is_none() => match outcome {
                    Ok(live) if second_fault.is_none() => return Ok(self.with_spare(live, second_attempt).await),
                    Ok(live) => return Ok(live),
                    Err(fault) => {
                        tracing::debug!(index = self.index, %first, error = %Chain(&fault), "the first transport failed");
                        first_fault = Some(fault);
                    }
                },
                outcome = &mut second_attempt, if second_fault.is_none() => match outcome {
                    Ok(live) => {
                        let why = first_fault.as_ref().map(|fault| Chain(fault).to_string());
                        let live = match why {
                            Some(_) => live,
                            None => self.with_spare(live, first_attempt).await,
                        };
                        if first == Transport::Quic && live.spare.is_none() {
                            shared.choice.leave_quic(edge, why.as_deref().unwrap_or("no registration in time"));
                        }
                        return Ok(live);
                    }
                    Err(fault) => second_fault = Some(fault),
                },
            }
            // A refusal says more than a network that is down.
            match (first_fault.take(), second_fault.take()) {
                (Some(Fault::Registration(error)), Some(_)) => return Err(error.into()),
                (Some(_), Some(fault)) => return Err(fault),
                (first, second) => (first_fault, second_fault) = (first, second),
            }
        }
    }

    /// The winner of a race. If the other's registration is under way, its answer is awaited: whoever registers last
    /// is the one to whom the edge sends what comes, and the other finishes what it was sent meanwhile.
    async fn with_spare(&self, live: Live, other: impl Future<Output = Result<Live, Fault>>) -> Live {
        if self.asking.load(Ordering::Relaxed) == 0 {
            return live;
        }
        match tokio::time::timeout(OTHER_LIMIT, other).await {
            Ok(Ok(mut last)) => {
                last.spare = Some(Box::new(live));
                last
            }
            Ok(Err(_)) | Err(_) => live,
        }
    }

    async fn over(
        &self,
        shared: &Arc<Shared>,
        edge: SocketAddr,
        attempts: u8,
        transport: Transport,
        may_register: impl Future<Output = ()>,
    ) -> Result<Live, Fault> {
        let session = self.dial(shared, edge, transport).await?;
        may_register.await;
        let _turn = tokio::time::timeout(TURN_LIMIT, self.turn.acquire()).await;
        let _asking = Asking::begin(&self.asking);
        register(shared, self.index, attempts, session).await
    }

    async fn dial(&self, shared: &Shared, edge: SocketAddr, transport: Transport) -> Result<Session, Fault> {
        shared.metrics.dialling(self.index, transport.as_str());
        let tls = &shared.config.tls;
        let session = match transport {
            Transport::Quic => {
                QuicSession::dial(edge, tls.quic.clone(), &self.quic, self.limit).await.map(Session::Quic)
            }
            Transport::Http2 => Http2Session::dial(edge, self.quic.bind, tls.http2.clone(), self.limit)
                .await
                .map(|session| Session::Http2(Box::new(session))),
        };
        session.map_err(|error| Fault::Transport { transport, edge, error })
    }
}

/// Sees a connection through its probation: it must not end, and something must be heard.
async fn prove(session: &mut Session) -> Result<(), transport::Error> {
    let mut pulse = session.pulse();
    pulse.beat();
    if let Ok(ended) = tokio::time::timeout(PROBATION, session.ended()).await {
        return Err(ended);
    }
    let silent = transport::Error::TimedOut { what: "sign of life", limit: PROBATION, heard: true };
    if pulse.beat() { Ok(()) } else { Err(silent) }
}

/// Registers a fresh connection.
async fn register(shared: &Shared, index: u8, attempts: u8, mut session: Session) -> Result<Live, Fault> {
    let (transport, edge) = (session.transport(), session.remote());
    let fault = |error| Fault::Transport { transport, edge, error };
    let registration = registration(shared, index, attempts, &session);
    let offered = registration.offers_own();
    let limit = shared.config.rpc_timeout;
    let mut early = Vec::new();
    let (send, recv) = match &mut session {
        Session::Quic(session) => session.open_control().await.map_err(fault)?,
        Session::Http2(_) => {
            let control = async {
                loop {
                    match session.accept().await.map_err(fault)?.read().await {
                        Ok(Incoming::Control { recv, send }) => return Ok((send, recv)),
                        // Nothing is served before the registration.
                        Ok(_) | Err(_) => shared.metrics.malformed_stream(),
                    }
                }
            };
            let timed_out = || fault(transport::Error::TimedOut { what: "control stream", limit, heard: true });
            tokio::time::timeout(limit, control).await.unwrap_or_else(|_| Err(timed_out()))?
        }
    };
    let register = registration::register(&shared.rpc, recv, send, registration, limit);
    let mut register = std::pin::pin!(register);
    let outcome = loop {
        tokio::select! {
            biased;
            outcome = &mut register => break outcome,
            // On HTTP/2 this drives the connection; on QUIC streams wait by themselves.
            pending = session.accept(), if transport == Transport::Http2 => {
                let pending = pending.map_err(fault)?;
                if early.len() < MOST_EARLY {
                    early.push(pending);
                }
            }
        }
    };
    match outcome {
        Ok((mut registered, control)) => {
            if !offered {
                // Nobody can confirm what was not offered.
                registered.features.retain(|feature| feature != FEATURE);
            }
            if registered.confirms_own() {
                session.agree_on_framing();
            }
            Ok(Live { session, registered, control, early, spare: None })
        }
        Err(error) => {
            // The socket must not stay: an edge cannot tell a refused connector from a silent one.
            session.close().await;
            Err(error.into())
        }
    }
}

fn registration(shared: &Shared, index: u8, attempts: u8, session: &Session) -> Registration {
    let token = shared.token.borrow().clone();
    Registration {
        account: token.account.clone(),
        secret: token.secret.expose().to_vec().into(),
        tunnel: token.tunnel,
        index,
        connector: Uuid::from_bytes(*shared.connector.as_bytes()),
        features: features(&shared.config.features, shared.config.post_quantum, shared.config.edge.is_given()),
        version: env!("CARGO_PKG_VERSION").into(),
        arch: arch(),
        local_ip: session.origin_local_ip(),
        previous_attempts: attempts.min(shared.config.retries),
    }
}

/// Feature strings (protocol.md §5.1), and our own towards an edge that was given by name.
fn features(wanted: &[String], post_quantum: bool, given: bool) -> Vec<String> {
    const USUAL: [&str; 5] =
        ["allow_remote_config", "serialized_headers", "support_datagram_v2", "support_quic_eof", "management_logs"];
    const OBSOLETE: [&str; 3] = ["support_datagram_v3", "support_datagram_v3_1", "support_datagram_v3_2"];
    let mut features: Vec<String> = USUAL.map(str::to_owned).to_vec();
    if post_quantum {
        features.push("postquantum".into());
    }
    for feature in wanted {
        // Datagrams of version 3 are not built, and saying so would make the edge send nothing else.
        if !OBSOLETE.contains(&feature.as_str()) && feature != FEATURE && !features.contains(feature) {
            features.push(feature.clone());
        }
    }
    if given {
        features.push(FEATURE.into());
    }
    features
}

/// The platform in Go's words.
fn arch() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    };
    format!("{}_{arch}", std::env::consts::OS)
}

#[cfg(test)]
mod tests {
    use super::{super::discovery::EdgeSource, *};

    #[test]
    fn features_are_the_usual_ones_then_the_wanted_without_repeats_or_obsolete_ones() {
        let wanted = ["x", "support_datagram_v3_1", "serialized_headers", FEATURE, "x"].map(str::to_owned);
        assert_eq!(
            features(&wanted, true, false),
            [
                "allow_remote_config",
                "serialized_headers",
                "support_datagram_v2",
                "support_quic_eof",
                "management_logs",
                "postquantum",
                "x"
            ]
        );
    }

    #[test]
    fn only_an_edge_given_by_name_is_offered_our_own_ways() {
        let found = EdgeSource::Discover { region: None, family: crate::config::IpVersion::V4, servers: None };
        for (edge, offered) in [(EdgeSource::Given(vec!["edge".into()]), true), (found, false)] {
            let features = features(&[FEATURE.into()], false, edge.is_given());
            assert_eq!(features.contains(&FEATURE.into()), offered, "{edge:?}");
        }
    }
}
