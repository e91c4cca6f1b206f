//! The end of a registered connection that is drained, or that another one replaced (protocol.md §5.4).
//!
//! Unregister; serve what still arrives; leave when the edge closes, or after two idle seconds behind its answer. A
//! drain ends with the grace period at the latest; a connection that was replaced has none and ends with its last
//! request, or when it is dead. What is idle has also sent everything: a QUIC stream's task ends when the edge has
//! received its answer, and over HTTP/2 the goodbye waits for that, however slowly a visitor reads.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use super::{
    Shared,
    connection::start,
    liveness::{Liveness, Look},
};
use crate::{
    proxy::Via,
    transport::{Pending, Session},
    wire::registration::Control,
};

/// After the edge answered the unregistration, a connection that is idle for this long is closed by us.
const IDLE: Duration = Duration::from_secs(2);
/// An edge that has not answered by then will not; a call over a slow path needs two round trips.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The edge is told to send nothing new even without a grace period. It has this long to take it.
const LEAST_ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Where there is no end; looked at anew with every beat.
const FAR: Duration = Duration::from_secs(3600);

/// What became of the unregistration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Asked,
    Answered,
    /// No answer, or a refusal: whatever the edge thinks, it is not to be waited for.
    Unheard,
}

/// Unregisters, then serves until the connection may be closed. Returns how many streams the end cuts.
pub(super) async fn drain(
    shared: &Arc<Shared>,
    via: Via,
    session: &mut Session,
    control: Arc<Control>,
    streams: &TaskTracker,
    calls: &Arc<Semaphore>,
    liveness: &mut Liveness,
) -> usize {
    let draining = shared.tasks.draining();
    let grace_ends = || {
        let drained = shared.tasks.drained_at().map(|began| began + *shared.config.grace.borrow());
        drained.unwrap_or_else(|| Instant::now() + FAR)
    };
    let mut deadline = grace_ends();
    let now = Instant::now();
    let answer_by = (now + ANSWER_LIMIT).min(deadline).max(now + LEAST_ANSWER_LIMIT);
    let mut answer = unregister(shared, via, control, answer_by - now);
    let mut told = Told::Asked;
    let mut idle_since: Option<Instant> = None;
    let mut drained = draining.is_cancelled();
    loop {
        let now = Instant::now();
        let quiet = told != Told::Asked && streams.is_empty();
        idle_since = quiet.then(|| idle_since.unwrap_or(now));
        let until = match idle_since.map(|since| since + IDLE) {
            // An HTTP/2 connection says goodbye and ends by itself once everything is sent.
            Some(until) if until <= now && told == Told::Answered && session.say_goodbye() => deadline,
            Some(until) => until.min(deadline),
            None => deadline,
        };
        // While the edge has not been heard, what it still sends gets an answer.
        let until = if told == Told::Asked { until.max(answer_by) } else { until };
        if until <= now {
            return streams.len();
        }
        tokio::select! {
            pending = session.accept() => {
                match pending {
                    Ok(pending) if now < deadline => start(shared, streams, calls, via, pending),
                    Ok(pending) => refuse(shared, pending),
                    // Streams of a connection that is gone end by themselves.
                    Err(_) => return streams.len(),
                }
                tokio::task::coop::consume_budget().await;
            }
            outcome = &mut answer, if told == Told::Asked => {
                told = if outcome == Ok(true) { Told::Answered } else { Told::Unheard };
            }
            // The deadline of a connection that was replaced moves on, until there is one.
            look = liveness.look() => {
                deadline = grace_ends();
                if look == Look::Dead {
                    return streams.len();
                }
            }
            () = draining.cancelled(), if !drained => {
                drained = true;
                deadline = grace_ends();
            }
            () = emptied(streams), if told != Told::Asked && !quiet => {}
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

/// Completes with whether the edge took the unregistration.
fn unregister(shared: &Arc<Shared>, via: Via, control: Arc<Control>, limit: Duration) -> oneshot::Receiver<bool> {
    let (told, answered) = oneshot::channel();
    shared.tasks.spawn(async move {
        let outcome = control.unregister(limit).await;
        match &outcome {
            Ok(()) => tracing::info!(index = via.connection, "unregistered"),
            Err(error) => tracing::warn!(index = via.connection, error, "could not unregister"),
        }
        let _ = told.send(outcome.is_ok());
    });
    answered
}

fn refuse(shared: &Arc<Shared>, pending: Pending) {
    let metrics = shared.metrics.clone();
    shared.tasks.spawn(async move { crate::proxy::refuse_draining(&metrics, pending).await });
}

async fn emptied(streams: &TaskTracker) {
    streams.close();
    streams.wait().await;
    streams.reopen();
}
