//! HTTP/2 to a service: connections shared by all requests for a name, each driven by a task of its own.
//!
//! One connection suffices until its streams are all in use (`SETTINGS_MAX_CONCURRENT_STREAMS`, but at most
//! [`MOST_STREAMS`]); then another is opened, up to [`MOST_CONNECTIONS`]. When all are full a request waits.

mod stream;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use bytes::Bytes;
use h2::client::SendRequest;
use rustls::pki_types::ServerName;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::Instant,
};

use super::{Error, io::OriginIo, secured::Refusal};
pub(super) use stream::{H2Body, Unanswered};

/// Names with connections of their own; with `matchSNItoHost` a visitor chooses the name.
const MOST_NAMES: usize = 256;
/// Connections for one name.
const MOST_CONNECTIONS: usize = 8;
/// What a service may send on a stream before the visitor has taken it: 256 KiB, in flight at 1 ms as fast as 2 Gbit/s.
const STREAM_WINDOW: u32 = 256 << 10;
/// Streams of one connection at a time.
const MOST_STREAMS: usize = 128;
/// As much as all its streams together may hold (32 MiB): visitors who do not read never stop the answers of others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MOST_STREAMS as u32;
/// What h2 says before the peer's settings are known; without a limit in them it says `usize::MAX`.
const UNKNOWN: usize = usize::MAX - 1;
/// A peer whose settings are not here by then is taken to allow one stream.
const SETTINGS_LIMIT: Duration = Duration::from_secs(1);

/// The connections of one service by server name.
#[derive(Debug)]
pub(super) struct Shared {
    names: Mutex<HashMap<Name, Connections>>,
    lifetime: Duration,
    /// Changed and read with `names` locked.
    retired: AtomicBool,
}

type Name = Option<ServerName<'static>>;

#[derive(Debug, Default)]
struct Connections {
    open: Vec<Connection>,
    /// Dials in progress.
    opening: usize,
}

/// One connection.
#[derive(Clone, Debug)]
struct Connection {
    sender: SendRequest<Bytes>,
    load: Arc<Mutex<Load>>,
    /// Of [`MOST_STREAMS`]; who gets none waits, however many the peer would take.
    turns: Arc<Semaphore>,
    peer: Option<IpAddr>,
    refusal: Refusal,
    /// When what it proved counts no more.
    until: Option<Instant>,
    id: u64,
}

#[derive(Debug)]
struct Load {
    streams: usize,
    /// When the last stream ended.
    since: Instant,
}

/// Where a request can go.
pub(super) enum Found<'a> {
    Stream(Stream),
    /// To a connection that the holder opens.
    Dial(Opening<'a>),
}

/// A dial in progress, counted until it is dropped.
pub(super) struct Opening<'a> {
    shared: &'a Shared,
    name: Name,
}

/// A place on a connection, held until the answer ends.
#[derive(Debug)]
pub(super) struct Stream {
    sender: SendRequest<Bytes>,
    place: Place,
    turns: Arc<Semaphore>,
    refusal: Refusal,
    id: u64,
}

#[derive(Debug)]
struct Place {
    load: Arc<Mutex<Load>>,
    turn: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Waits until the connection has fewer than [`MOST_STREAMS`].
    async fn take_turn(&mut self, turns: Arc<Semaphore>) {
        // Never closed.
        self.turn = turns.acquire_owned().await.ok();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
        load.streams -= 1;
        load.since = Instant::now();
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut names = self.shared.lock();
        if let Some(connections) = names.get_mut(&self.name) {
            connections.opening = connections.opening.saturating_sub(1);
            if connections.opening == 0 && connections.open.is_empty() {
                names.remove(&self.name);
            }
        }
    }
}

impl Shared {
    /// Idle connections are kept for `lifetime`.
    pub(super) fn new(lifetime: Duration) -> Self {
        Self { names: Mutex::default(), lifetime, retired: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Connections>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection for `name` with room, other than the one that just refused; else leave to open one; else the one
    /// with the fewest streams, where the request waits for its turn.
    pub(super) fn find(&self, name: Option<&ServerName<'static>>, refused: Option<u64>) -> Found<'_> {
        let mut names = self.lock();
        let key = name.cloned();
        if names.len() >= MOST_NAMES && !names.contains_key(&key) {
            // Their requests in flight go on; the names come back with their next requests.
            names.retain(|_, connections| connections.opening > 0);
        }
        let connections = names.entry(key).or_default();
        connections.open.retain(|connection| !connection.is_over());
        let others = || connections.open.iter().filter(|connection| Some(connection.id) != refused);
        if let Some(connection) = others().find(|connection| connection.has_room()) {
            return Found::Stream(connection.stream());
        }
        let full = connections.open.len() + connections.opening >= MOST_CONNECTIONS;
        // While there is none at all, every request dials, as over HTTP/1.1: one slow dial must not hold them all up.
        if full && let Some(connection) = others().min_by_key(|connection| connection.streams()) {
            return Found::Stream(connection.stream());
        }
        connections.opening += 1;
        Found::Dial(Opening { shared: self, name: name.cloned() })
    }

    /// Any live connection, however full.
    pub(super) fn busy(&self, name: Option<&ServerName<'static>>) -> Option<Stream> {
        let mut names = self.lock();
        let connections = names.get_mut(&name.cloned())?;
        connections.open.retain(|connection| !connection.is_over());
        connections.open.iter().min_by_key(|connection| connection.streams()).map(Connection::stream)
    }

    /// Makes a connection for `name` of `io`, with its first stream. The peer's settings are waited for, a round trip
    /// at most: without them nobody knows how many streams may share the connection.
    pub(super) async fn connect(
        &self,
        io: OriginIo,
        name: Option<&ServerName<'static>>,
        limit: Duration,
    ) -> Result<Stream, Error> {
        let peer = io.peer().map(|addr| addr.ip().to_canonical());
        let (refusal, until) = (io.refusal(), io.until());
        let shaken = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(1 << 20)
            .initial_max_send_streams(UNKNOWN)
            .max_send_buffer_size(1 << 20)
            .enable_push(false)
            .handshake::<_, Bytes>(io);
        let (sender, mut driver) =
            tokio::time::timeout(limit, shaken).await.map_err(|_| Error::TimedOut("HTTP/2 handshake"))??;
        let (settled, settings) = oneshot::channel();
        let mut settled = Some(settled);
        #[expect(clippy::disallowed_methods, reason = "ends with the last clone of its sender, which is in this map")]
        tokio::spawn(async move {
            let ended = std::future::poll_fn(|cx| {
                let polled = std::pin::Pin::new(&mut driver).poll(cx);
                if driver.max_concurrent_send_streams() != UNKNOWN
                    && let Some(settled) = settled.take()
                {
                    let _ = settled.send(Ok(()));
                }
                polled
            })
            .await;
            if let Err(error) = ended {
                tracing::debug!(%error, "an HTTP/2 connection to a service ended");
                if let Some(settled) = settled.take() {
                    let _ = settled.send(Err(error));
                }
            }
        });
        match tokio::time::timeout(SETTINGS_LIMIT.min(limit), settings).await {
            Ok(Ok(outcome)) => outcome?,
            Ok(Err(_)) => return Err(Error::Broken(std::io::ErrorKind::UnexpectedEof.into())),
            Err(_) => {}
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let load = Arc::new(Mutex::new(Load { streams: 0, since: Instant::now() }));
        let turns = Arc::new(Semaphore::new(MOST_STREAMS));
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let connection = Connection { sender, load, turns, peer, refusal, until, id };
        let stream = connection.stream();
        let mut names = self.lock();
        if self.retired.load(Ordering::Relaxed) {
            return Ok(stream);
        }
        let connections = names.entry(name.cloned()).or_default();
        // One too many serves its request and ends.
        if connections.open.len() < MOST_CONNECTIONS {
            connections.open.push(connection);
        }
        Ok(stream)
    }

    /// Lets go of every connection, and from now on of each that is opened: they end with their last request.
    pub(super) fn retire(&self) {
        let mut names = self.lock();
        self.retired.store(true, Ordering::Relaxed);
        for connections in names.values_mut() {
            connections.open.clear();
        }
    }

    /// Lets go of connections that nobody has used for long; for those that were opened for a rush, too.
    pub(super) fn sweep(&self) {
        self.retain(|connection| {
            let load = connection.load.lock().unwrap_or_else(PoisonError::into_inner);
            load.streams > 0 || load.since.elapsed() < self.lifetime
        });
    }

    /// Lets go of connections to addresses that are not among `alive`: no new request; they end with their last one.
    pub(super) fn keep(&self, alive: &[IpAddr]) {
        self.retain(|connection| connection.peer.is_none_or(|peer| alive.contains(&peer)));
    }

    fn retain(&self, keep: impl Fn(&Connection) -> bool) {
        let mut names = self.lock();
        for connections in names.values_mut() {
            connections.open.retain(|connection| !connection.is_over() && keep(connection));
        }
        names.retain(|_, connections| connections.opening > 0 || !connections.open.is_empty());
    }

    /// Whether there is no connection.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().values().all(|connections| connections.open.is_empty())
    }
}

impl Connection {
    /// For new requests: closed, told by the peer to end (GOAWAY), or proven by trust whose time is over.
    fn is_over(&self) -> bool {
        if self.until.is_some_and(|until| until <= Instant::now()) {
            return true;
        }
        let ready = self.sender.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(ready, std::task::Poll::Ready(Err(_)))
    }

    fn streams(&self) -> usize {
        self.load.lock().unwrap_or_else(PoisonError::into_inner).streams
    }

    fn has_room(&self) -> bool {
        let most = match self.sender.current_max_send_streams() {
            UNKNOWN => 1,
            most => most.min(MOST_STREAMS),
        };
        self.streams() < most
    }

    fn stream(&self) -> Stream {
        self.load.lock().unwrap_or_else(PoisonError::into_inner).streams += 1;
        let place = Place { load: self.load.clone(), turn: None };
        let (turns, refusal) = (self.turns.clone(), self.refusal.clone());
        Stream { sender: self.sender.clone(), place, turns, refusal, id: self.id }
    }
}

impl Stream {
    /// The number of its connection.
    pub(super) fn connection(&self) -> u64 {
        self.id
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn no_request_finds_a_connection_whose_trust_is_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (theirs, _) = listener.accept().await.unwrap();
        let service = async {
            let mut connection = h2::server::handshake(theirs).await.unwrap();
            while let Some(request) = connection.accept().await {
                request.unwrap();
            }
        };
        let asked = async {
            let shared = Shared::new(Duration::from_secs(90));
            let in_flight = shared.connect(OriginIo::Tcp(tcp), None, Duration::from_secs(10)).await.unwrap();
            let ends = |until| shared.lock().get_mut(&None).unwrap().open[0].until = Some(until);
            ends(Instant::now() + Duration::from_secs(3600));
            let found = shared.busy(None).map(|stream| stream.connection());
            assert_eq!(found, Some(in_flight.connection()));
            ends(Instant::now());
            assert!(matches!(shared.find(None, None), Found::Dial(_)));
            assert!(shared.busy(None).is_none());
        };
        tokio::select! {
            () = service => panic!("the service ended first"),
            () = asked => {}
        }
    }
}
