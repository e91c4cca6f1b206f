//! An edge, a connector and whatever service a test wants, in the test's own runtime on loopback and free ports.

pub(crate) mod guard;
pub(crate) mod h2;
pub(crate) mod hop;
pub(crate) mod load;
pub(crate) mod log;
pub(crate) mod measured;
pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod real;
pub(crate) mod tls;
pub(crate) mod zoo;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use adit::{
    app::{ConnectorApp, Reloading},
    config::{Config, Flags, Source, parse_file},
    credentials::Token,
    edge::{Edge, EdgeConfig, EdgeHandle, state::StateDir},
    metrics::Metrics,
    shutdown::Tasks,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Everything is on this machine; what takes longer is stuck.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Which transport a test runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Quic,
    Http2,
}

impl Over {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Http2 => "http2",
        }
    }
}

/// Makes two tests of one: `over_both! { name => body_fn }` calls `body_fn(Over)` under a deadline.
macro_rules! over_both {
    ($($(#[$meta:meta])* $name:ident => $body:expr),+ $(,)?) => {$(
        mod $name {
            #[allow(unused_imports, reason = "bodies differ")]
            use super::*;

            #[tokio::test]
            $(#[$meta])*
            async fn over_quic() {
                $crate::harness::in_time($body($crate::harness::Over::Quic)).await;
            }

            #[tokio::test]
            $(#[$meta])*
            async fn over_http2() {
                $crate::harness::in_time($body($crate::harness::Over::Http2)).await;
            }
        }
    )+};
}
pub(crate) use over_both;

/// Runs beside the test, until its runtime ends.
pub(crate) fn background(task: impl Future<Output = ()> + Send + 'static) {
    #[allow(clippy::disallowed_methods, reason = "a part of a test, not of the product")]
    drop(tokio::spawn(task));
}

/// Asks until it is so; for what can be seen but not waited for.
pub(crate) async fn eventually(what: &str, so: impl AsyncFn() -> bool) {
    let asked = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, asked).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A figure that a test measured, for who runs it with `--nocapture`.
pub(crate) fn report(figure: impl std::fmt::Display) {
    #[allow(clippy::print_stdout, reason = "what a test says")]
    {
        println!("{figure}");
    }
}

/// A test that hangs fails.
pub(crate) async fn in_time(test: impl Future<Output = ()>) {
    tokio::time::timeout(LIMIT * 3, test).await.expect("the test hangs");
}

/// An edge with one tunnel and a connector of it.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) state: StateDir,
    pub(crate) token: Token,
    /// For visitors in clear.
    pub(crate) http: SocketAddr,
    /// For visitors over TLS, with certificates of the edge's own authority.
    pub(crate) https: SocketAddr,
    /// For connectors.
    pub(crate) connectors: SocketAddr,
    /// The connector's admin address.
    pub(crate) admin: SocketAddr,
    pub(crate) connector_id: uuid::Uuid,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) edge: EdgeHandle,
    pub(crate) edge_tasks: Tasks,
    /// Draining these is SIGTERM to the connector.
    pub(crate) tasks: Tasks,
    connector: Option<JoinHandle<anyhow::Result<()>>>,
}

/// Hostnames of every lab's tunnel.
pub(crate) const HOSTS: [&str; 2] = ["web.test", "*.web.test"];

impl Lab {
    /// One connection, the rules of `yaml` (a whole configuration file).
    pub(crate) async fn start(over: Over, yaml: &str) -> Self {
        Self::with(over, yaml, |flags| flags).await
    }

    /// As [`Lab::start`], with further flags.
    pub(crate) async fn with(over: Over, yaml: &str, flags: impl FnOnce(Flags) -> Flags) -> Self {
        let mut lab = Self::edge_only().await;
        lab.connect(over, yaml, flags).await;
        let registered = lab.edge.registered(lab.token.tunnel, 1, LIMIT).await;
        registered.expect("the connector did not register");
        lab
    }

    /// An edge whose tunnel has no connector yet.
    pub(crate) async fn edge_only() -> Self {
        Self::edge_with(|config| config).await
    }

    /// As [`Lab::edge_only`], with other settings.
    pub(crate) async fn edge_with(configure: impl FnOnce(EdgeConfig) -> EdgeConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        let token = state.new_token(&HOSTS.map(str::to_owned), None).unwrap();
        Self::edge_on(dir, state, token, configure).await
    }

    /// A further edge that reads the same state.
    pub(crate) async fn replica(other: &Self, configure: impl FnOnce(EdgeConfig) -> EdgeConfig) -> Self {
        Self::edge_on(tempfile::tempdir().unwrap(), other.state.clone(), other.token.clone(), configure).await
    }

    async fn edge_on(
        dir: tempfile::TempDir,
        state: StateDir,
        token: Token,
        configure: impl FnOnce(EdgeConfig) -> EdgeConfig,
    ) -> Self {
        let edge_tasks = Tasks::new();
        // What a connector does must not hide behind the edge's own retry.
        let config = configure(EdgeConfig { retry: false, ..EdgeConfig::loopback(state.clone()) });
        let edge = Edge::bind(config, edge_tasks.clone()).await.unwrap();
        let handle = edge.handle();
        let (http, https) = (edge.http_addr().unwrap(), edge.https_addr().unwrap());
        let connectors = edge.connector_addr();
        edge_tasks.spawn(async move { edge.run().await.unwrap() });
        Self {
            dir,
            state,
            token,
            http,
            https,
            connectors,
            admin: connectors,
            connector_id: uuid::Uuid::nil(),
            metrics: Arc::new(Metrics::new()),
            edge: handle,
            edge_tasks,
            tasks: Tasks::new(),
            connector: None,
        }
    }

    /// The value of one series of the edge's metrics.
    pub(crate) fn edge_metric(&self, series: &str) -> u64 {
        let text = self.edge.metrics();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
    }

    /// The same edge, for a second connector of it.
    pub(crate) fn beside(other: &Self) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            state: other.state.clone(),
            token: other.token.clone(),
            edge: other.edge.clone(),
            metrics: Arc::new(Metrics::new()),
            edge_tasks: Tasks::new(),
            tasks: Tasks::new(),
            connector: None,
            ..*other
        }
    }

    /// A connector that follows its file, registered.
    pub(crate) async fn following(over: Over, yaml: &str) -> Self {
        let mut lab = Self::edge_only().await;
        lab.connect_following(over, yaml, |flags| flags).await;
        lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.expect("the connector did not register");
        lab
    }

    /// As [`Lab::connect`], from a file that the connector follows. Returns what SIGHUP tells.
    pub(crate) async fn connect_following(
        &mut self,
        over: Over,
        yaml: &str,
        flags: impl FnOnce(Flags) -> Flags,
    ) -> Arc<tokio::sync::Notify> {
        self.configure(yaml);
        let flags = flags(self.flags(over)).with("config", &self.config_file().display().to_string());
        let (reloading, config) = reloading(flags);
        let hangup = reloading.hangup.clone();
        self.run(config, Some(reloading)).await;
        hangup
    }

    /// The file of a connector that follows it.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.path().join("config.yml")
    }

    /// Writes it in place.
    pub(crate) fn configure(&self, yaml: &str) {
        std::fs::write(self.config_file(), yaml).unwrap();
    }

    /// Starts the connector; it may not be registered yet. Later flags win over those set here.
    pub(crate) async fn connect(&mut self, over: Over, yaml: &str, flags: impl FnOnce(Flags) -> Flags) {
        let flags = flags(self.flags(over));
        let loaded = parse_file("config.yml", yaml, &flags, |_| None).unwrap_or_else(|m| panic!("{m}"));
        self.run(loaded.config, None).await;
    }

    fn flags(&self, over: Over) -> Flags {
        Flags::default()
            .with("edge", &self.connectors.to_string())
            .with("edge-ca", &self.state.ca_path().display().to_string())
            .with("protocol", over.as_str())
            .with("token", &self.token.encode())
            .with("metrics", "127.0.0.1:0")
            .with("ha-connections", "1")
    }

    async fn run(&mut self, config: Config, reloading: Option<Reloading>) {
        self.tasks = Tasks::new();
        let mut app = ConnectorApp::bind(config, Vec::new(), self.tasks.clone()).await.unwrap();
        if let Some(reloading) = reloading {
            app = app.reloading(reloading);
        }
        self.admin = app.admin_addr().unwrap();
        self.connector_id = app.connector_id();
        self.metrics = app.metrics();
        #[allow(clippy::disallowed_methods, reason = "its end is awaited by hand")]
        let connector = tokio::spawn(app.run());
        self.connector = Some(connector);
    }

    /// Waits for the connector's own end, after a drain.
    pub(crate) async fn connector_ended(&mut self) {
        let connector = self.connector.take().expect("no connector runs");
        let ended = tokio::time::timeout(LIMIT, connector).await.expect("the connector does not end");
        ended.unwrap().unwrap();
    }

    /// Stops everything in good order.
    pub(crate) async fn finish(mut self) {
        self.tasks.drain();
        if self.connector.is_some() {
            self.connector_ended().await;
        }
        self.tasks.finish(Duration::from_secs(1)).await;
        self.edge_tasks.finish(Duration::from_secs(1)).await;
    }

    /// A request of a visitor, byte for byte, answered until the edge closes (send `Connection: close`).
    pub(crate) async fn raw(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream.write_all(request.as_ref()).await.unwrap();
        let mut bytes = Vec::new();
        tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes)).await.expect("no answer in time").unwrap();
        Answer::parse(&bytes)
    }

    /// `GET PATH` for `web.test`.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n")).await
    }

    /// A request with a body and further header lines (each ending in CRLF).
    pub(crate) async fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.raw(request).await
    }

    /// `GET PATH` on the connector's admin address.
    pub(crate) async fn admin(&self, path: &str) -> Answer {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        Answer::parse(&bytes)
    }

    /// Answers of adit's own instead of a service's, of every kind.
    pub(crate) fn refusals(&self) -> u64 {
        let exposed = self.metrics.expose();
        let counts = exposed.lines().filter(|line| line.starts_with("adit_refusals_total{"));
        counts.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Waits until the connector holds no request any more.
    pub(crate) async fn idle(&self) {
        eventually("every request has ended", async || self.metrics.in_flight() == 0).await;
    }

    /// Asks the admin address until it answers so: the edge knows of a change a moment before the connector does.
    pub(crate) async fn admin_says(&self, path: &str, status: u16) {
        eventually(&format!("{path} says {status}"), async || self.admin(path).await.status == status).await;
    }
}

/// The configuration that these flags name, and how to read it again.
pub(crate) fn reloading(flags: Flags) -> (Reloading, Config) {
    let source = Source { flags, env: |_| None, search: Vec::new() };
    let loaded = source.load().unwrap_or_else(|m| panic!("{m}"));
    (Reloading { source, file: loaded.file, hangup: Arc::default() }, loaded.config)
}

/// A parsed HTTP/1.1 answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names as they came.
    pub(crate) headers: Vec<(String, String)>,
    /// Chunks joined.
    pub(crate) body: Vec<u8>,
    /// Whether the body ended as its framing says.
    pub(crate) complete: bool,
}

impl Answer {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| {
            panic!("no head in {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)]));
        });
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut answer = Self { status, headers, body: Vec::new(), complete: true };
        let rest = &bytes[end + 4..];
        if answer.header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
            (answer.body, answer.complete) = unchunk(rest);
        } else {
            answer.body = rest.to_vec();
            let length = answer.header("content-length").and_then(|value| value.parse::<usize>().ok());
            answer.complete = length.is_none_or(|length| length == rest.len());
        }
        answer
    }

    /// The first value of a header, by name in any case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Every value of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The reason of an answer that no service gave.
    pub(crate) fn code(&self) -> Option<&str> {
        self.header("adit-error")
    }
}

fn unchunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|w| w == b"\r\n") else { return (body, false) };
        let size = String::from_utf8_lossy(&rest[..end]).into_owned();
        let Ok(size) = usize::from_str_radix(size.split(';').next().unwrap().trim(), 16) else { return (body, false) };
        rest = &rest[end + 2..];
        if size == 0 {
            return (body, true);
        }
        if rest.len() < size + 2 {
            body.extend_from_slice(rest);
            return (body, false);
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

/// A listener that hands every connection to `serve`, until the test's runtime ends.
pub(crate) async fn service<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let tasks = Tasks::new();
    let tasks_ = tasks.clone();
    tasks.attend(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tasks_.attend(serve(stream));
        }
    });
    addr
}

/// Reads one HTTP/1.1 head, up to and with its empty line; what follows stays in the second part.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Some((String::from_utf8_lossy(&bytes).into_owned(), rest));
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    }
}

/// A service that answers every request on a connection with its own head as body (no request bodies).
pub(crate) async fn mirror() -> SocketAddr {
    service(|mut stream| async move {
        while let Some((head, _)) = read_head(&mut stream).await {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// A service that sends these bytes for the first request of a connection, and closes.
pub(crate) async fn canned(answer: impl Into<Vec<u8>>) -> SocketAddr {
    let answer: Arc<[u8]> = answer.into().into();
    service(move |mut stream| {
        let answer = answer.clone();
        async move {
            if read_head(&mut stream).await.is_some() {
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            }
        }
    })
    .await
}

/// An address where nobody listens now.
pub(crate) async fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// A configuration with one rule for everything.
pub(crate) fn rule(service: impl std::fmt::Display) -> String {
    format!("ingress:\n  - service: {service}\n")
}
