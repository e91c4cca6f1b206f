//! `drain`: asks a running connector to drain and waits until it has, for a hook in an image without a shell.

use std::{
    io::ErrorKind,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{Outcome, ask, complain, say};
use crate::{
    admin::drain::{PATH, Progress},
    config::Flags,
};

const EVERY: Duration = Duration::from_millis(100);
/// Behind the grace period, for the connections to be closed.
const MARGIN: Duration = Duration::from_secs(3);

pub(super) fn run(flags: &Flags) -> Outcome {
    let addresses = match ask::addresses(flags) {
        Ok(addresses) => addresses,
        Err(outcome) => return outcome,
    };
    let mut reasons = Vec::new();
    for address in addresses {
        match progress(&address) {
            Ok(begun) => return wait(&address, begun),
            Err(Silence::Gone) => reasons.push(format!("{address}: nobody listens")),
            Err(Silence::Because(reason)) => reasons.push(format!("{address}: {reason}")),
        }
    }
    complain(&format!("adit drain: no connector drains\n  {}", reasons.join("\n  ")));
    Outcome::Failed
}

fn wait(address: &str, mut progress_: Progress) -> Outcome {
    let until = Instant::now() + Duration::from_millis(progress_.grace_left_ms) + MARGIN;
    while !progress_.drained {
        if Instant::now() >= until {
            complain(&format!("adit drain: not done although the grace period is over: {}", shown(&progress_)));
            return Outcome::Failed;
        }
        sleep(EVERY);
        match progress(address) {
            Ok(next) => progress_ = next,
            // A signal came in between: it drains as well, and a process that is gone has nothing left to wait for.
            Err(Silence::Gone) => {
                say("the connector has ended");
                return Outcome::Done;
            }
            Err(Silence::Because(reason)) => tracing::debug!(address, reason, "asking again"),
        }
    }
    if progress_.cut > 0 {
        complain(&format!("adit drain: the grace period ended before everything was done: {}", shown(&progress_)));
        return Outcome::Failed;
    }
    say("drained");
    Outcome::Done
}

fn shown(progress: &Progress) -> String {
    let Progress { connections, in_flight, cut, .. } = progress;
    format!("{connections} connections, {in_flight} requests in flight, {cut} streams cut")
}

/// Why there is no answer.
enum Silence {
    Gone,
    Because(String),
}

fn progress(address: &str) -> Result<Progress, Silence> {
    match ask::ask(address, "POST", PATH) {
        Ok((200, body)) => serde_json::from_str(&body)
            .map_err(|error| Silence::Because(format!("this is no connector of this version: {error}"))),
        Ok((status, _)) => Err(Silence::Because(format!("answers {status}"))),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Err(Silence::Gone),
        Err(error) => Err(Silence::Because(error.to_string())),
    }
}
