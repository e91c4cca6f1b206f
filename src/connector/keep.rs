//! Keeps the connection of one index: dials until there is one, holds it, and replaces it before it is missed.
//!
//! While a connection serves, a second one is dialled beside it when the first looks dead, when it runs over HTTP/2
//! and QUIC may work again, or when it is not where it belongs. The new one registers, the old one unregisters and
//! finishes what it has: no request notices.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    attempt::{Dialler, Fault, Live},
    connection::{self, Line},
    liveness::Trouble,
    network,
};
use crate::{
    backoff::Backoff,
    telemetry::Chain,
    transport::{self, Transport},
    wire::registration::RegistrationError,
};

/// A connection that lived for so long was a good one: waits start anew, and QUIC is proven.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// QUIC that connects and goes silent sooner than this has collapsed; later, the network or the edge has.
const YOUNG: Duration = Duration::from_secs(60);
/// An edge may ask for any wait; a hostile or confused one must not send a connector to sleep for a year.
const LONGEST_ASKED: Duration = Duration::from_secs(300);
/// A drain waits this long for the answer to a registration that is under way.
const LAST_ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// The same complaint is repeated this often.
const REPEAT: Duration = Duration::from_secs(30);

/// Keeps connection `index` until drained. `first_up` is told of its first registration.
pub(super) async fn keep(shared: Arc<Shared>, index: u8, first_up: Option<watch::Sender<bool>>) {
    let draining = shared.tasks.draining();
    let mut keeper = Keeper::new(shared, index);
    while !draining.is_cancelled() {
        let asking = keeper.dialler.asking();
        let attempt = {
            let mut attempt = std::pin::pin!(keeper.attempt());
            tokio::select! {
                attempt = &mut attempt => attempt,
                () = draining.cancelled() => match last_answer(&asking, attempt).await {
                    Some(attempt) => attempt,
                    None => return,
                },
            }
        };
        let fault = match attempt {
            Ok(live) => {
                if let Some(first_up) = &first_up {
                    first_up.send_replace(true);
                }
                keeper.hold(live).await
            }
            Err(fault) => fault,
        };
        if draining.is_cancelled() {
            return;
        }
        let wait = keeper.waits.after(&fault);
        keeper.complaint.about(index, &fault, wait);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // A refusal has nothing to do with the way there.
            () = network::rerouted(fault.edge()) => {}
            () = draining.cancelled() => return,
        }
    }
}

/// What becomes of an attempt when a drain begins. If its registration is under way, the edge may send requests over it
/// already: it is taken over and drained like the others.
async fn last_answer<T>(asking: &AtomicU8, attempt: impl Future<Output = T>) -> Option<T> {
    if asking.load(Ordering::Relaxed) == 0 {
        return None;
    }
    tokio::time::timeout(LAST_ANSWER_LIMIT, attempt).await.ok()
}

/// Why a connection is replaced while it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Something is wrong with it.
    Trouble(Trouble),
    /// It is not at the address where it belongs.
    Home(SocketAddr),
    /// It runs over HTTP/2, and QUIC may work.
    Quic,
}

impl Why {
    fn as_str(self) -> &'static str {
        match self {
            Self::Trouble(trouble) => trouble.as_str(),
            Self::Home(_) => "home",
            Self::Quic => "quic",
        }
    }
}

/// What to do about a connection that serves.
enum Next {
    Ended(Fault),
    Stable,
    Replace(Why),
    /// There are fewer addresses now: one connection too many.
    Leave,
    Drain,
}

/// A connection that serves.
struct Current {
    serving: Pin<Box<dyn Future<Output = Fault> + Send>>,
    retire: CancellationToken,
    trouble: watch::Receiver<Option<Trouble>>,
    edge: SocketAddr,
    transport: Transport,
    since: Instant,
    stable: bool,
}

impl Current {
    fn start(shared: &Arc<Shared>, index: u8, live: Live) -> Self {
        let (edge, transport) = (live.session.remote(), live.session.transport());
        let (health, trouble) = watch::channel(None);
        let retire = CancellationToken::new();
        let line = Line { retire: retire.clone(), trouble: health };
        let shared = shared.clone();
        let serving = Box::pin(async move { connection::serve(&shared, index, live, line).await });
        Self { serving, retire, trouble, edge, transport, since: Instant::now(), stable: false }
    }

    fn is_young(&self) -> bool {
        self.since.elapsed() < YOUNG
    }
}

struct Keeper {
    shared: Arc<Shared>,
    index: u8,
    dialler: Dialler,
    waits: Waits,
    /// For attempts beside a connection that serves.
    beside: Backoff,
    not_before: Instant,
    complaint: Complaint,
    /// The home did not answer: the next attempt goes elsewhere.
    try_elsewhere: bool,
}

impl Keeper {
    fn new(shared: Arc<Shared>, index: u8) -> Self {
        let dialler = Dialler::new(index, shared.config.quic.clone());
        let waits = Waits::new(shared.config.retries);
        // An edge that came back should have its connection before its door opens: two seconds at most.
        let beside = Backoff::new(Duration::from_millis(500), Duration::from_secs(2));
        let not_before = Instant::now();
        Self {
            shared,
            index,
            dialler,
            waits,
            beside,
            not_before,
            complaint: Complaint::default(),
            try_elsewhere: false,
        }
    }

    /// One attempt, at home or, if that did not answer, elsewhere.
    async fn attempt(&mut self) -> Result<Live, Fault> {
        let home = self.shared.addresses.found(self.index).await.map_err(Fault::Discovery)?;
        let elsewhere = self.try_elsewhere.then(|| self.shared.addresses.elsewhere(home)).flatten();
        let edge = elsewhere.unwrap_or(home);
        self.try_elsewhere = false;
        let outcome = self.dialler.connect(&self.shared, edge, self.waits.attempts()).await;
        self.learn(edge, outcome.as_ref().err());
        if outcome.is_err() && edge == home {
            self.try_elsewhere = true;
        }
        outcome
    }

    fn learn(&self, edge: SocketAddr, fault: Option<&Fault>) {
        match fault {
            None => self.shared.addresses.reached(edge),
            Some(Fault::Registration(error)) if !error.is_duplicate() => {}
            Some(_) => self.shared.addresses.failed(self.index, edge),
        }
    }

    /// Serves a connection and its successors, until one ends without a successor.
    async fn hold(&mut self, live: Live) -> Fault {
        let mut current = self.start(live);
        loop {
            match self.next(&mut current).await {
                Next::Ended(fault) => return self.ended(&current, fault),
                Next::Drain => return current.serving.await,
                Next::Stable => {
                    current.stable = true;
                    self.waits.reset();
                    self.beside.reset();
                    if current.transport == Transport::Quic {
                        self.shared.choice.take_quic_back(current.edge);
                    }
                }
                Next::Leave => {
                    tracing::info!(index = self.index, edge = %current.edge, "one connection too many, leaving");
                    current.retire.cancel();
                    return current.serving.await;
                }
                Next::Replace(why) => match self.replace(&mut current, why).await {
                    Ok(None) => {}
                    Ok(Some(live)) => {
                        let next = self.start(live);
                        tracing::info!(
                            index = self.index, why = why.as_str(), edge = %next.edge, transport = %next.transport,
                            "connection replaced"
                        );
                        self.shared.metrics.replaced(why.as_str());
                        self.retire(std::mem::replace(&mut current, next));
                    }
                    Err(fault) => return self.ended(&current, fault),
                },
            }
        }
    }

    fn start(&self, mut live: Live) -> Current {
        if let Some(spare) = live.spare.take() {
            self.retire(Current::start(&self.shared, self.index, *spare));
        }
        Current::start(&self.shared, self.index, live)
    }

    /// Lets a connection finish what it has, beside its successor.
    fn retire(&self, old: Current) {
        old.retire.cancel();
        let token = self.shared.retired.token();
        self.shared.tasks.spawn(async move {
            let _token = token;
            old.serving.await;
        });
    }

    /// Serves until there is something to do.
    async fn next(&self, current: &mut Current) -> Next {
        let Current { serving, trouble, edge, transport, since, stable, .. } = current;
        let (edge, index) = (*edge, self.index);
        let draining = self.shared.tasks.draining();
        let proven = async {
            if *stable {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep_until(*since + STABLE_AFTER).await;
            // Silence may be about to be noticed.
            if trouble.borrow().is_some() {
                std::future::pending::<()>().await;
            }
        };
        let mut troubled = trouble.clone();
        let in_trouble = async {
            let trouble = troubled.wait_for(Option::is_some).await.ok().and_then(|trouble| *trouble);
            tokio::time::sleep_until(self.not_before).await;
            trouble.map_or(Next::Drain, |trouble| Next::Replace(Why::Trouble(trouble)))
        };
        let misplaced = async {
            let mut changes = self.shared.addresses.changes();
            loop {
                changes.borrow_and_update();
                match self.shared.addresses.home(index) {
                    Some(home) if home == edge => {}
                    Some(home) => {
                        tokio::time::sleep_until(self.not_before).await;
                        return Next::Replace(Why::Home(home));
                    }
                    None if usize::from(index) >= self.shared.addresses.count() => return Next::Leave,
                    None => {}
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let may_try_quic = async {
            if *transport == Transport::Quic {
                std::future::pending::<()>().await;
            }
            self.shared.choice.may_try_quic(edge, index).await;
            Next::Replace(Why::Quic)
        };
        tokio::select! {
            biased;
            fault = serving => Next::Ended(fault),
            () = draining.cancelled() => Next::Drain,
            next = in_trouble => next,
            () = proven => Next::Stable,
            next = misplaced => next,
            next = may_try_quic => next,
        }
    }

    /// Dials a successor while the connection goes on serving. `None` if that was not needed or not possible.
    async fn replace(&mut self, current: &mut Current, why: Why) -> Result<Option<Live>, Fault> {
        let shared = self.shared.clone();
        let draining = shared.tasks.draining();
        if current.transport == Transport::Quic {
            match why {
                Why::Trouble(Trouble::Silent) if current.is_young() => {
                    let why = format!("it went silent {} s after it connected", current.since.elapsed().as_secs());
                    shared.choice.leave_quic(current.edge, &why);
                }
                Why::Trouble(Trouble::Lossy) => {
                    shared.choice.leave_quic(current.edge, "it loses a quarter of its packets")
                }
                _ => {}
            }
        }
        tracing::debug!(index = self.index, why = why.as_str(), edge = %current.edge, "dialling a successor");
        let mut troubled = current.trouble.clone();
        let recovered = async {
            match why {
                Why::Trouble(_) => drop(troubled.wait_for(Option::is_none).await),
                Why::Home(_) | Why::Quic => std::future::pending().await,
            }
        };
        let mut ended = None;
        let asking = self.dialler.asking();
        let outcome = {
            let attempt = async {
                match why {
                    Why::Quic => self.dialler.prove_quic(&shared, current.edge).await,
                    Why::Home(home) => self.dialler.connect(&shared, home, 0).await,
                    Why::Trouble(_) => {
                        let home = shared.addresses.home(self.index).unwrap_or(current.edge);
                        let elsewhere = self.try_elsewhere.then(|| shared.addresses.elsewhere(home)).flatten();
                        self.try_elsewhere = elsewhere.is_none();
                        self.dialler.connect(&shared, elsewhere.unwrap_or(home), 0).await
                    }
                }
            };
            let mut attempt = std::pin::pin!(attempt);
            let mut recovered = std::pin::pin!(recovered);
            loop {
                tokio::select! {
                    biased;
                    outcome = &mut attempt => break Some(outcome),
                    fault = &mut current.serving, if ended.is_none() => ended = Some(fault),
                    () = &mut recovered, if ended.is_none() => break None,
                    () = draining.cancelled() => break last_answer(&asking, attempt).await,
                }
            }
        };
        self.settle(current, why, outcome, ended)
    }

    fn settle(
        &mut self,
        current: &Current,
        why: Why,
        outcome: Option<Result<Live, Fault>>,
        ended: Option<Fault>,
    ) -> Result<Option<Live>, Fault> {
        let choice = &self.shared.choice;
        let fault = match outcome {
            Some(Ok(live)) => {
                self.shared.addresses.reached(live.session.remote());
                self.try_elsewhere = false;
                return Ok(Some(live));
            }
            Some(Err(fault)) => Some(fault),
            None => None,
        };
        if why == Why::Quic {
            match &fault {
                // The edge has this index already, and QUIC works: the old connection goes first.
                Some(Fault::Registration(error)) if error.is_duplicate() => {
                    choice.take_quic_back(current.edge);
                    current.retire.cancel();
                }
                Some(Fault::Transport { .. }) => choice.leave_quic(current.edge, &fault_text(fault.as_ref())),
                _ => choice.stand_down(current.edge, self.index),
            }
        }
        if let Some(fault) = &fault {
            if let Some(edge) = fault.edge() {
                self.learn(edge, Some(fault));
            }
            let asked = fault.retry_after().unwrap_or_default();
            self.not_before = Instant::now() + self.beside.next_wait().max(asked);
            tracing::debug!(index = self.index, why = why.as_str(), error = %Chain(fault), "no successor");
        }
        ended.map_or(Ok(None), Err)
    }

    /// Learns from the end of a connection.
    fn ended(&mut self, current: &Current, fault: Fault) -> Fault {
        let choice = &self.shared.choice;
        let went_silent = matches!(
            &fault,
            Fault::Transport {
                error: transport::Error::Silent | transport::Error::Quic(quinn::ConnectionError::TimedOut),
                ..
            }
        );
        if current.transport == Transport::Quic {
            if went_silent && current.is_young() {
                choice.leave_quic(current.edge, "it went silent soon after it connected");
            } else {
                choice.stand_down(current.edge, self.index);
            }
        }
        // An edge that closes is about to go: its address is not the first to be asked.
        self.try_elsewhere = true;
        self.shared.addresses.failed(self.index, current.edge);
        fault
    }
}

fn fault_text(fault: Option<&Fault>) -> String {
    fault.map(|fault| Chain(fault).to_string()).unwrap_or_default()
}

/// How long to wait before the next attempt. An outage of the network is short and harmless to ask about often; a
/// refusal is neither, and the edge may say how long.
struct Waits {
    network: Backoff,
    refusal: Backoff,
}

impl Waits {
    fn new(retries: u8) -> Self {
        Self { network: Backoff::of_outages(), refusal: Backoff::of_refusals(retries) }
    }

    fn attempts(&self) -> u8 {
        u8::try_from(self.network.attempts().max(self.refusal.attempts()).min(255)).unwrap_or(u8::MAX)
    }

    fn reset(&mut self) {
        self.network.reset();
        self.refusal.reset();
    }

    fn after(&mut self, fault: &Fault) -> Duration {
        match fault {
            Fault::Registration(RegistrationError::Refused { .. }) => {
                self.refusal.next_wait().max(fault.retry_after().unwrap_or_default())
            }
            _ => self.network.next_wait(),
        }
    }
}

impl Fault {
    /// Where it happened, unless the edge answered.
    fn edge(&self) -> Option<SocketAddr> {
        match self {
            Self::Transport { edge, .. } => Some(*edge),
            Self::Discovery(_) | Self::Registration(_) => None,
        }
    }

    /// What the edge asked for, within reason.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Registration(RegistrationError::Refused { retry_after, .. }) => {
                retry_after.map(|asked| asked.min(LONGEST_ASKED))
            }
            _ => None,
        }
    }
}

/// Says what is wrong when it is new and from time to time, not with every attempt.
#[derive(Default)]
struct Complaint {
    last: Option<(String, Instant)>,
    since: u32,
}

impl Complaint {
    fn about(&mut self, index: u8, fault: &Fault, wait: Duration) {
        let text = Chain(fault).to_string();
        let said = self.last.as_ref().is_some_and(|(last, at)| *last == text && at.elapsed() < REPEAT);
        if said {
            self.since += 1;
            tracing::debug!(index, error = text, ?wait, "no connection, trying again");
            return;
        }
        tracing::warn!(index, error = text, ?wait, attempts_not_told = self.since, "no connection, trying again");
        self.last = Some((text, Instant::now()));
        self.since = 0;
    }
}
