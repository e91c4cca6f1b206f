//! The limits of one rule at work: how many requests at a time, and how long one may take.

use std::{
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{task::coop::unconstrained, time::sleep};

use crate::{config::Limits, origin::request_body::Told};

/// Counts a rule's requests against its limits. A new generation of rules counts from zero, so that for a moment the
/// requests of two generations are allowed.
#[derive(Debug)]
pub struct Limiter {
    /// What was configured.
    pub limits: Limits,
    in_flight: AtomicU64,
}

/// A request's place; given back on drop, however the request ended.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a Limiter);

impl Limiter {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, in_flight: AtomicU64::new(0) }
    }

    /// A place for one more request, if there is one. Nobody waits for a place: a queue before a service that is too
    /// slow only makes every answer late.
    pub(super) fn enter(&self) -> Option<Place<'_>> {
        let Some(most) = self.limits.max_concurrent else { return Some(Place(self)) };
        let place = Place(self);
        (self.in_flight.fetch_add(1, Ordering::AcqRel) < most).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.0.limits.max_concurrent.is_some() {
            self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Completes when a time is over, never without one. Boxed: most rules have none, and it is held by every request.
///
/// It is asked after the request itself, which may have used up all of the task's budget: a timer that takes part in it
/// would never fire while a service keeps the request busy.
pub(super) struct Timer(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Timer {
    /// From now on.
    pub(super) fn start(limit: Option<Duration>) -> Self {
        Self(limit.map(|limit| Box::pin(unconstrained(sleep(limit))) as _))
    }

    /// From when the whole request has been handed to the service's connection.
    pub(super) fn after_request(limit: Option<Duration>, told: Told) -> Self {
        Self(limit.map(|limit| {
            Box::pin(unconstrained(async move {
                told.left().await;
                sleep(limit).await;
            })) as _
        }))
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Some(timer) => timer.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_back_and_a_refused_one_takes_none() {
        let limiter = Limiter::new(Limits { max_concurrent: Some(2), ..Limits::default() });
        let (one, two) = (limiter.enter(), limiter.enter());
        assert!(one.is_some() && two.is_some());
        for _ in 0..3 {
            assert!(limiter.enter().is_none());
        }
        drop(one);
        let three = limiter.enter();
        assert!(three.is_some() && limiter.enter().is_none());
        drop((two, three));
        assert_eq!(limiter.in_flight.load(Ordering::SeqCst), 0);
    }
}
