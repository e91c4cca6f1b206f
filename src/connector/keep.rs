//! Keeps the connection of one index: dials until there is one, holds it, and replaces it before it is missed.
//!
//! While a connection serves, a second one is dialled beside it when the first looks dead, when it runs over HTTP/2
//! and QUIC may work again, or when it is not where it belongs. The new one registers, the old one unregisters and
//! finishes what it has: no request notices.

mod replace;
mod waits;

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
use crate::{backoff::Backoff, transport::Transport};
use replace::Why;
use waits::{Complaint, Waits};

/// A connection that lived for so long was a good one: waits start anew, and QUIC is proven.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// A drain waits this long for the answer to a registration that is under way.
const LAST_ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Keeps connection `index` until drained. `first_up` is told of its first registration.
pub(super) async fn keep(shared: Arc<Shared>, index: u8, first_up: Option<watch::Sender<bool>>) {
    let draining = shared.tasks.draining();
    let mut keeper = Keeper::new(shared, index);
    while !draining.is_cancelled() {
        let asking = keeper.dialler.asking();
        let attempt = tokio::select! {
            biased;
            attempt = keeper.attempt() => attempt,
            () = given_up(&draining, &asking) => return,
        };
        let fault = match attempt {
            Ok(live) => {
                if let Some(first_up) = &first_up {
                    first_up.send_replace(true);
                }
                match keeper.hold(live).await {
                    Some(fault) => fault,
                    None => continue,
                }
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

/// Completes when a drain ends an attempt. If its registration is under way, the edge may send requests over it already:
/// the answer is waited for, and the connection taken over and drained like the others.
async fn given_up(draining: &CancellationToken, asking: &AtomicU8) {
    draining.cancelled().await;
    if asking.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(LAST_ANSWER_LIMIT).await;
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
    /// `serving` has completed.
    over: bool,
}

impl Current {
    fn start(shared: &Arc<Shared>, index: u8, live: Live) -> Self {
        let (edge, transport) = (live.session.remote(), live.session.transport());
        let (health, trouble) = watch::channel(None);
        let retire = CancellationToken::new();
        let line = Line { retire: retire.clone(), trouble: health };
        let shared = shared.clone();
        let serving = Box::pin(async move { connection::serve(&shared, index, live, line).await });
        Self { serving, retire, trouble, edge, transport, since: Instant::now(), stable: false, over: false }
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
        let edge = self.turn_to(home);
        let outcome = self.dialler.connect(&self.shared, edge, self.waits.attempts()).await;
        self.learn(edge, outcome.as_ref().err());
        outcome
    }

    /// Where the next attempt goes: home and elsewhere by turns, until one of them takes the connection.
    fn turn_to(&mut self, home: SocketAddr) -> SocketAddr {
        let elsewhere = self.try_elsewhere.then(|| self.shared.addresses.elsewhere(home)).flatten();
        self.try_elsewhere = elsewhere.is_none();
        elsewhere.unwrap_or(home)
    }

    fn learn(&mut self, edge: SocketAddr, fault: Option<&Fault>) {
        match fault {
            None => {
                self.try_elsewhere = false;
                self.shared.addresses.reached(edge);
            }
            Some(Fault::Registration(error)) if !error.is_duplicate() => {}
            Some(_) => self.shared.addresses.failed(self.index, edge),
        }
    }

    /// Serves a connection and its successors, until one ends without a successor; `None` when it left because it was
    /// one too many.
    async fn hold(&mut self, live: Live) -> Option<Fault> {
        let mut current = self.start(live);
        loop {
            match self.next(&mut current).await {
                Next::Ended(fault) => return Some(self.ended(&current, fault)),
                Next::Drain => return Some(current.serving.await),
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
                    self.shared.choice.stand_down(current.edge, self.index);
                    self.retire(current);
                    return None;
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
                        let old = std::mem::replace(&mut current, next);
                        if matches!(why, Why::Trouble(Trouble::Lossy | Trouble::Rerouted)) {
                            // What is wrong with the path may be wrong with this one too.
                            self.not_before = Instant::now() + STABLE_AFTER;
                        }
                        if why != Why::Quic {
                            self.shared.choice.stand_down(old.edge, self.index);
                        }
                        if !old.over {
                            self.retire(old);
                        }
                    }
                    Err(fault) => return Some(self.ended(&current, fault)),
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
                    Some(_) if Instant::now() < self.not_before => {
                        // It may be another one by then.
                        tokio::time::sleep_until(self.not_before).await;
                        continue;
                    }
                    Some(home) => return Next::Replace(Why::Home(home)),
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
            tokio::time::sleep_until(self.not_before).await;
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
}
