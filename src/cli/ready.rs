//! `tunnel ready`: asks a running connector.

use super::{Outcome, ask, complain};
use crate::config::Flags;

pub(super) fn run(flags: &Flags) -> Outcome {
    let addresses = match ask::addresses(flags) {
        Ok(addresses) => addresses,
        Err(outcome) => return outcome,
    };
    let mut reason = String::from("no connector answers");
    for address in addresses {
        match ask::ask(&address, "GET", "/ready") {
            Ok((200, _)) => return Outcome::Done,
            Ok((status, _)) => reason = format!("{address} answers {status}"),
            Err(error) => tracing::debug!(address, %error, "no answer"),
        }
    }
    complain(&reason);
    Outcome::Failed
}
