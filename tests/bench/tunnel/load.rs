//! The load generator: closed loops over keep-alive connections, all on one thread. Knows the edge's address only.

use std::cell::RefCell;
use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::case::Order;
use crate::client::Exchange;
use crate::histogram::Histogram;

pub(crate) const ROLE: &str = "--role-load";

/// What one window brought. Latencies in microseconds.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    /// Bytes of bodies, both ways.
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

/// Carries out the order in JSON, prints the outcome in JSON.
pub(crate) fn main(order: &str) -> Result<ExitCode> {
    let order: Order = serde_json::from_str(order)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let held = RefCell::new(Vec::new());
    let outcome = runtime.block_on(carry_out(&order, &held));
    println!("{}", serde_json::to_string(&outcome)?);
    if order.hold {
        // The sockets stay open until the benchmark has looked.
        let _ = std::io::stdin().read(&mut [0]);
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug)]
struct Tally {
    latencies: Histogram,
    bytes: u64,
    errors: u64,
    first_error: Option<String>,
}

impl Tally {
    fn fail(&mut self, error: &anyhow::Error) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| format!("{error:#}"));
    }
}

async fn carry_out(order: &Order, held: &RefCell<Vec<Exchange>>) -> Outcome {
    let tally = RefCell::new(Tally { latencies: Histogram::new(), bytes: 0, errors: 0, first_error: None });
    let start = Instant::now();
    let until = order.millis.map(|millis| start + Duration::from_millis(millis));
    let limit = until.unwrap_or(start + BULK_LIMIT) + GRACE;
    let workers = (0..order.connections).map(|_| async {
        for _ in 0..MOST_ERRORS {
            match timeout_at(limit, work(order, until, &tally)).await {
                Ok(Ok(exchange)) if order.hold => return held.borrow_mut().push(exchange),
                Ok(Ok(_)) => return,
                Ok(Err(error)) => tally.borrow_mut().fail(&error),
                Err(_) => {
                    return tally.borrow_mut().fail(&anyhow::anyhow!("no answer in time"));
                }
            }
        }
    });
    future::join_all(workers).await;
    let tally = tally.into_inner();
    let micros = |share| tally.latencies.quantile(share) as f64 / 1e3;
    Outcome {
        requests: tally.latencies.count(),
        bytes: tally.bytes,
        errors: tally.errors,
        seconds: start.elapsed().as_secs_f64(),
        p50: micros(0.5),
        p90: micros(0.9),
        p99: micros(0.99),
        p999: micros(0.999),
        first_error: tally.first_error,
    }
}

/// One connection, exchange after exchange until the time is over.
async fn work(order: &Order, until: Option<Instant>, tally: &RefCell<Tally>) -> Result<Exchange> {
    let stream = TcpStream::connect(order.edge).await.context("connecting to the edge")?;
    stream.set_nodelay(true)?;
    let mut exchange = Exchange::new(order, stream).await?;
    loop {
        let started = Instant::now();
        if until.is_some_and(|until| started >= until) {
            return Ok(exchange);
        }
        let bytes = exchange.once().await?;
        let mut tally = tally.borrow_mut();
        tally.latencies.record(started.elapsed().as_nanos() as u64);
        tally.bytes += bytes;
        if until.is_none() {
            return Ok(exchange);
        }
    }
}

/// After so many errors a connection gives up; the result is void anyway.
const MOST_ERRORS: usize = 5;
const BULK_LIMIT: Duration = Duration::from_secs(120);
const GRACE: Duration = Duration::from_secs(15);
