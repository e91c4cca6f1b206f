//! A visitor's own HTTP connection, from its first head to its end in good order, within bounds.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::shutdown::Tasks;

/// What one connection may grow, and how long it may take for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Requests in flight on one HTTP/2 connection.
    pub streams: u32,
    /// Bytes of a request head.
    pub header_bytes: u32,
    /// Header lines of a request in HTTP/1.1 (above 100 every request costs an allocation); in HTTP/2 the bytes are the
    /// bound.
    pub header_lines: usize,
    /// For the first request head.
    pub header_time: Duration,
    /// Without a request, and for every request head but the first.
    pub idle_time: Duration,
    /// Once the connection is to end, for somebody who has connected to say what he wants.
    pub last_heads: Duration,
}

/// Requests in flight on one connection, and since when there are none.
#[derive(Debug)]
pub struct Quiet {
    asked: AtomicBool,
    in_flight: Mutex<(usize, Instant)>,
}

impl Default for Quiet {
    fn default() -> Self {
        Self { asked: AtomicBool::new(false), in_flight: Mutex::new((0, Instant::now())) }
    }
}

impl Quiet {
    fn lock(&self) -> MutexGuard<'_, (usize, Instant)> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request head came.
    pub fn asked(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// A request is served from now on.
    pub fn enter(&self) {
        self.lock().0 += 1;
    }

    /// It ended.
    pub fn leave(&self) {
        let mut in_flight = self.lock();
        *in_flight = (in_flight.0.saturating_sub(1), Instant::now());
    }

    fn since(&self) -> Option<Instant> {
        let (in_flight, since) = *self.lock();
        (in_flight == 0).then_some(since)
    }
}

/// Spawns what hyper wants to run for one HTTP/2 stream, where a panic is counted and a drain waits.
#[derive(Clone)]
struct OnTasks(Tasks);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for OnTasks {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// Serves requests until the visitor leaves, is silent for too long, or `closing` is cancelled and he has got what he
/// had asked for.
pub async fn converse<I, A, F, B>(
    io: I,
    over_h2: bool,
    bounds: &Bounds,
    quiet: &Quiet,
    (tasks, closing): (&Tasks, &CancellationToken),
    answer: A,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data: Send, Error: std::error::Error + Send + Sync> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answered = answer(request);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    if over_h2 {
        let mut builder = http2::Builder::new(OnTasks(tasks.clone()));
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(bounds.streams)
            .enable_connect_protocol()
            .max_header_list_size(bounds.header_bytes)
            // Opened and reset before they were looked at, and those that were malformed (CVE-2023-44487).
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(100)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20));
        let connection = builder.serve_connection(TokioIo::new(io), service);
        drive(connection, http2::Connection::graceful_shutdown, bounds, quiet, closing).await;
    } else {
        let mut builder = http1::Builder::new();
        // Its own time for heads is off: `drive` has one for the first, and one for the silence before the others.
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .title_case_headers(true)
            .max_headers(bounds.header_lines)
            .max_header_size(bounds.header_bytes as usize)
            .max_buf_size((bounds.header_bytes as usize).max(64 << 10));
        let connection = builder.serve_connection(TokioIo::new(io), service).with_upgrades();
        drive(connection, http1::UpgradeableConnection::graceful_shutdown, bounds, quiet, closing).await;
    }
}

/// Once it is to end, a connection takes nothing new and ends with what it has.
async fn drive<C: Future>(
    connection: C,
    end: fn(Pin<&mut C>),
    bounds: &Bounds,
    quiet: &Quiet,
    closing: &CancellationToken,
) {
    let mut connection = std::pin::pin!(connection);
    let mut alarm = std::pin::pin!(tokio::time::sleep(bounds.header_time.min(bounds.idle_time)));
    // When it was told to end.
    let mut told: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = &mut connection => return,
            () = closing.cancelled(), if told.is_none() => {
                end(connection.as_mut());
                told = Some(Instant::now());
                alarm.as_mut().reset(Instant::now() + bounds.last_heads);
            }
            () = &mut alarm => {
                let patience = match told {
                    Some(_) => bounds.last_heads,
                    None if quiet.asked.load(Ordering::Relaxed) => bounds.idle_time,
                    None => bounds.header_time,
                };
                let now = Instant::now();
                match quiet.since().map(|since| told.map_or(since, |told| told.max(since)) + patience) {
                    Some(over) if over <= now && told.is_some() => return,
                    Some(over) if over <= now => {
                        end(connection.as_mut());
                        told = Some(now);
                        alarm.as_mut().reset(now + bounds.last_heads);
                    }
                    Some(over) => alarm.as_mut().reset(over),
                    None => alarm.as_mut().reset(now + patience),
                }
            }
        }
    }
}
