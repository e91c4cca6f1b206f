//! Three edges, five connectors, and visitors that never ask twice, while edges are drained and killed in turn.
//!
//! Every part is a process, so that a kill is a kill. A visitor uses a door while its `/readyz` says 200, as a load
//! balancer would; a door that refuses the connection has taken nothing and costs the visitor a look at another.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use adit::{edge::state::StateDir, shutdown::Tasks};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, watch},
    time::Instant,
};

use crate::harness::{
    HOSTS, eventually,
    program::{Program, free, get, says},
    read_head, service,
};

const EDGES: usize = 3;
const CONNECTORS: usize = 5;
const VISITORS: usize = 24;
/// How often a balancer looks at a door.
const LOOK: Duration = Duration::from_millis(100);

/// One edge's addresses; they stay when it is restarted.
#[derive(Clone, Copy)]
struct Door {
    visitors: SocketAddr,
    admin: SocketAddr,
    connectors: SocketAddr,
}

/// A request that was not answered as it should have been.
#[derive(Clone, Debug)]
struct Failure {
    door: usize,
    sent: Instant,
    /// For the message when the test fails.
    _failed: Instant,
    _what: String,
}

struct Load {
    doors: [Door; EDGES],
    open: watch::Receiver<[bool; EDGES]>,
    answered: AtomicU64,
    moved: AtomicU64,
    failures: Mutex<Vec<Failure>>,
}

impl Load {
    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// One visitor: every third keeps its connection, every fourth request is a POST.
    async fn visit(self: Arc<Self>, number: usize) {
        let keeps = number.is_multiple_of(3);
        let mut kept: Option<(usize, TcpStream)> = None;
        for request in 0usize.. {
            // A balancer does not send anything over a kept connection to a door that is not ready.
            let open = *self.open.borrow();
            kept = kept.filter(|(door, _)| open[*door]);
            let (door, mut stream) = match kept.take() {
                Some(kept) => kept,
                None => match self.enter(number + request).await {
                    Some(entered) => entered,
                    None => continue,
                },
            };
            let sent = Instant::now();
            match exchange(&mut stream, keeps, (number + request).is_multiple_of(4), number * 1_000_000 + request).await
            {
                Ok(stays) => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    kept = (keeps && stays).then_some((door, stream));
                }
                Err(what) => {
                    let failure = Failure { door, sent, _failed: Instant::now(), _what: what };
                    self.failures.lock().await.push(failure);
                }
            }
        }
    }

    /// A new connection to one of the open doors.
    async fn enter(&self, number: usize) -> Option<(usize, TcpStream)> {
        let open = *self.open.borrow();
        let doors: Vec<_> = (0..EDGES).filter(|door| open[*door]).collect();
        let door = *doors.get(number % doors.len().max(1))?;
        if let Ok(stream) = TcpStream::connect(self.doors[door].visitors).await {
            return Some((door, stream));
        }
        self.moved.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(LOOK).await;
        None
    }
}

/// A request and its whole answer; whether the connection may be used again.
async fn exchange(stream: &mut TcpStream, keeps: bool, post: bool, number: usize) -> Result<bool, String> {
    let connection = if keeps { "" } else { "Connection: close\r\n" };
    let request = if post {
        let body = format!("{number:01024}");
        format!("POST /{number} HTTP/1.1\r\nHost: web.test\r\n{connection}Content-Length: {}\r\n\r\n{body}", body.len())
    } else {
        format!("GET /{number} HTTP/1.1\r\nHost: web.test\r\n{connection}\r\n")
    };
    stream.write_all(request.as_bytes()).await.map_err(|error| format!("sending: {error}"))?;
    let (head, mut body) = read_head(stream).await.ok_or("no answer")?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(head.lines().filter(|line| line.contains("HTTP/1.1") || line.contains("adit-error")).collect());
    }
    let lower = head.to_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let length: usize = length.ok_or("no length")?;
    while body.len() < length {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(n) if n > 0 => body.extend_from_slice(&buffer[..n]),
            _ => return Err("cut".into()),
        }
    }
    let whole = body == format!("{number}").as_bytes();
    if whole { Ok(!lower.contains("connection: close")) } else { Err("another request's answer".into()) }
}

/// Answers with the number in the path, after a moment; reads the body first.
async fn numbers() -> SocketAddr {
    service(|mut stream| async move {
        while let Some((head, mut body)) = read_head(&mut stream).await {
            let lower = head.to_lowercase();
            let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let length: usize = length.unwrap_or(0);
            while body.len() < length {
                let mut buffer = [0; 4096];
                match stream.read(&mut buffer).await {
                    Ok(n) if n > 0 => body.extend_from_slice(&buffer[..n]),
                    _ => return,
                }
            }
            let number = head.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
            let wait = number.parse::<u64>().unwrap_or(0) % 20;
            tokio::time::sleep(Duration::from_millis(wait)).await;
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{number}", number.len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// Everything that runs.
struct Stand {
    dir: tempfile::TempDir,
    state: StateDir,
    doors: [Door; EDGES],
    edges: [Option<Program>; EDGES],
    connectors: Vec<Program>,
}

impl Stand {
    async fn start(protocol: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        let token = state.new_token(&HOSTS.map(str::to_owned), None).unwrap();
        let doors = [(); EDGES].map(|()| Door { visitors: free(), admin: free(), connectors: free() });
        let mut stand = Self { dir, state, doors, edges: [None, None, None], connectors: Vec::new() };
        for edge in 0..EDGES {
            stand.edge(edge);
        }
        let config = stand.dir.path().join("config.yml");
        std::fs::write(&config, format!("ingress:\n  - service: http://{}\n", numbers().await)).unwrap();
        let token_file = stand.dir.path().join("token");
        std::fs::write(&token_file, token.encode().as_bytes()).unwrap();
        let ca = stand.state.ca_path();
        let [config, token_file, ca] = [config, token_file, ca].map(|path| path.display().to_string());
        for number in 0..CONNECTORS {
            let admin = free().to_string();
            let mut args = vec!["run", "--config", &config, "--token-file", &token_file, "--edge-ca", &ca];
            args.extend(["--protocol", protocol, "--metrics", &admin]);
            let addresses = stand.doors.map(|door| door.connectors.to_string());
            args.extend(addresses.iter().flat_map(|address| ["--edge", address]));
            let connector = Program::start(stand.dir.path(), &format!("connector{number}"), &args);
            stand.connectors.push(connector);
        }
        for edge in 0..EDGES {
            stand.whole(edge).await;
        }
        stand
    }

    fn edge(&mut self, edge: usize) {
        let door = self.doors[edge];
        let [listen, http, admin] = [door.connectors, door.visitors, door.admin].map(|address| address.to_string());
        let state = self.state.path().display().to_string();
        let args = ["edge", "--state", &state, "--listen", &listen, "--http", &http, "--metrics", &admin];
        self.edges[edge] = Some(Program::start(self.dir.path(), &format!("edge{edge}"), &args));
    }

    /// Waits until an edge is ready and every connector is at it.
    async fn whole(&self, edge: usize) {
        let admin = self.doors[edge].admin;
        says(admin, "/readyz", 200).await;
        eventually(&format!("every connector is at edge {edge}"), async || {
            let page = get(admin, "/").await.map(|answer| answer.text()).unwrap_or_default();
            let connectors: std::collections::HashSet<_> =
                page.lines().filter_map(|line| line.trim().strip_prefix("connector ")?.split(' ').next()).collect();
            connectors.len() == CONNECTORS
        })
        .await;
    }

    fn logs(&self) -> String {
        let edges = self.edges.iter().flatten().map(Program::log);
        edges.chain(self.connectors.iter().map(Program::log)).collect::<Vec<_>>().join("\n----\n")
    }
}

/// Looks at every door, as a balancer does.
async fn look(doors: [Door; EDGES], open: watch::Sender<[bool; EDGES]>) {
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tick.tick().await;
        let looks = doors.map(|door| async move {
            let answer = tokio::time::timeout(LOOK * 10, get(door.admin, "/readyz")).await;
            answer.ok().flatten().is_some_and(|answer| answer.status == 200)
        });
        let [a, b, c] = looks;
        let (a, b, c) = tokio::join!(a, b, c);
        open.send_replace([a, b, c]);
    }
}

/// Some hundreds of requests with everything as it is.
async fn some_load(load: &Load) {
    let before = load.answered();
    eventually("requests are answered", async || load.answered() > before + 400).await;
}

async fn drained_and_killed(protocol: &str) {
    let mut stand = Stand::start(protocol).await;
    let (open, seen) = watch::channel([true; EDGES]);
    let load = Arc::new(Load {
        doors: stand.doors,
        open: seen,
        answered: AtomicU64::new(0),
        moved: AtomicU64::new(0),
        failures: Mutex::default(),
    });
    let tasks = Tasks::new();
    tasks.attend(look(stand.doors, open));
    for number in 0..VISITORS {
        tasks.attend(load.clone().visit(number));
    }
    some_load(&load).await;

    for edge in 0..EDGES {
        let program = stand.edges[edge].take().unwrap();
        program.signal("TERM");
        let status = program.ended().await;
        assert!(status.success(), "edge {edge}: {status}");
        some_load(&load).await;
        stand.edge(edge);
        stand.whole(edge).await;
        some_load(&load).await;
    }
    let drained = std::mem::take(&mut *load.failures.lock().await);
    let answered = load.answered();
    eprintln!("{protocol}: three edges drained in turn: {answered} answered, {} failed", drained.len());
    assert!(drained.is_empty(), "{drained:#?}\n{}", stand.logs());

    let mut in_flight = 0;
    for edge in 0..EDGES {
        let killed = Instant::now();
        stand.edges[edge].take().unwrap().signal("KILL");
        some_load(&load).await;
        stand.edge(edge);
        stand.whole(edge).await;
        some_load(&load).await;
        let failures = std::mem::take(&mut *load.failures.lock().await);
        in_flight += failures.len();
        // What was not in flight there when it died.
        let other: Vec<_> =
            failures.into_iter().filter(|failure| failure.door != edge || failure.sent > killed + LOOK).collect();
        assert!(other.is_empty(), "{other:#?}\n{}", stand.logs());
    }
    eprintln!(
        "{protocol}: three edges killed in turn: {} answered, {in_flight} failed, all in flight there; {} doors found shut",
        load.answered() - answered,
        load.moved.load(Ordering::Relaxed)
    );
    tasks.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "eight processes for a minute"]
async fn edges_drained_and_killed_in_turn_cost_nothing_but_what_is_in_flight_over_quic() {
    drained_and_killed("quic").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "eight processes for a minute"]
async fn edges_drained_and_killed_in_turn_cost_nothing_but_what_is_in_flight_over_http2() {
    drained_and_killed("http2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "eight processes for a minute"]
async fn edges_drained_and_killed_in_turn_cost_nothing_but_what_is_in_flight_over_either() {
    drained_and_killed("auto").await;
}
