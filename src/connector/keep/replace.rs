//! A successor for a connection that serves, and what is learnt from failures and ends.

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;

use super::{
    super::{
        attempt::{Fault, Live},
        liveness::Trouble,
    },
    Current, Keeper, given_up,
};
use crate::{
    telemetry::Chain,
    transport::{self, Transport},
};

/// QUIC that connects and goes silent sooner than this has collapsed; later, the network or the edge has.
const YOUNG: Duration = Duration::from_secs(60);
const LOSSY: &str = "it loses a quarter of its packets";

/// Why a connection is replaced while it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Something is wrong with it.
    Trouble(Trouble),
    /// It is not at the address where it belongs.
    Home(SocketAddr),
    /// It runs over HTTP/2, and QUIC may work.
    Quic,
}

impl Why {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Trouble(trouble) => trouble.as_str(),
            Self::Home(_) => "home",
            Self::Quic => "quic",
        }
    }
}

impl Current {
    fn is_young(&self) -> bool {
        self.since.elapsed() < YOUNG
    }
}

impl Keeper {
    /// Dials a successor while the connection goes on serving. `None` if that was not needed or not possible.
    pub(super) async fn replace(&mut self, current: &mut Current, why: Why) -> Result<Option<Live>, Fault> {
        let shared = self.shared.clone();
        let draining = shared.tasks.draining();
        if current.transport == Transport::Quic {
            match why {
                Why::Trouble(Trouble::Silent) if current.is_young() => {
                    let why = format!("it went silent {} s after it connected", current.since.elapsed().as_secs());
                    shared.choice.leave_quic(current.edge, &why);
                }
                Why::Trouble(Trouble::Lossy) => shared.choice.leave_quic(current.edge, LOSSY),
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
        let given_up = given_up(&draining, &asking);
        let outcome = {
            let attempt = async {
                match why {
                    Why::Quic => self.dialler.prove_quic(&shared, current.edge).await,
                    Why::Home(home) => self.dialler.connect(&shared, home, 0).await,
                    Why::Trouble(_) => {
                        let home = shared.addresses.home(self.index).unwrap_or(current.edge);
                        let edge = self.turn_to(home);
                        self.dialler.connect(&shared, edge, 0).await
                    }
                }
            };
            let mut attempt = std::pin::pin!(attempt);
            let (mut recovered, mut given_up) = (std::pin::pin!(recovered), std::pin::pin!(given_up));
            loop {
                tokio::select! {
                    biased;
                    outcome = &mut attempt => break Some(outcome),
                    fault = &mut current.serving, if ended.is_none() => {
                        current.over = true;
                        ended = Some(fault);
                    }
                    () = &mut recovered, if ended.is_none() => break None,
                    // The connection that serves drains meanwhile.
                    () = &mut given_up => break None,
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
        let fault = match outcome {
            Some(Ok(live)) => {
                self.learn(live.session.remote(), None);
                return Ok(Some(live));
            }
            Some(Err(fault)) => Some(fault),
            None => None,
        };
        if why == Why::Quic {
            let choice = &self.shared.choice;
            match &fault {
                // The edge has this index already, and QUIC works: the old connection goes first.
                Some(Fault::Registration(error)) if error.is_duplicate() => {
                    choice.take_quic_back(current.edge);
                    current.retire.cancel();
                }
                Some(fault @ Fault::Transport { .. }) => choice.leave_quic(current.edge, &Chain(fault).to_string()),
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
    pub(super) fn ended(&mut self, current: &Current, fault: Fault) -> Fault {
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
