//! Three network namespaces in a row: connector, router, edge. Faults happen at the router, so that no link event
//! helps the ends to notice them.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use adit::{credentials::Token, edge::state::StateDir};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use crate::harness::{Answer, HOSTS, eventually};

/// Only one world at a time has a number.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Everything that is to be undone.
pub(super) struct World {
    name: String,
    /// 64 addresses of the range for benchmarks (RFC 2544).
    base: u32,
    pub(super) dir: tempfile::TempDir,
    pub(super) state: StateDir,
    pub(super) token: Token,
    processes: Vec<std::process::Child>,
}

/// What the router does with packets of a kind.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// Nothing comes through, nobody is told.
    Drop,
    /// The sender is told at once.
    Refuse,
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

impl World {
    pub(super) fn new() -> Self {
        let number = (std::process::id() * 16 + NEXT.fetch_add(1, Ordering::Relaxed)) % 2048;
        let name = format!("adit{number}");
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        let token = state.new_token(&HOSTS.map(str::to_owned), None).unwrap();
        let base = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + number * 64;
        let world = Self { name, base, dir, state, token, processes: Vec::new() };
        let (n, ip) = (&world.name, |host| world.address(host));
        for part in ["c", "r", "e"] {
            run(&format!("ip netns add {n}{part}"));
            run(&format!("ip -n {n}{part} link set lo up"));
        }
        // Names are looked up in a file of the connector's namespace, and nowhere else.
        let etc = world.etc();
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(etc.join("hosts"), "").unwrap();
        std::fs::write(etc.join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").unwrap();
        std::fs::write(etc.join("nsswitch.conf"), "hosts: files dns\n").unwrap();
        for (part, router, end, gate) in [("c", "rc", 2, 1), ("e", "re", 18, 17)] {
            run(&format!("ip link add {n}{part} type veth peer name {n}{router}"));
            run(&format!("ip link set {n}{part} netns {n}{part}"));
            run(&format!("ip link set {n}{router} netns {n}r"));
            run(&format!("ip -n {n}r addr add {}/28 dev {n}{router}", ip(gate)));
            run(&format!("ip -n {n}r link set {n}{router} up"));
            run(&format!("ip -n {n}{part} addr add {}/28 dev {n}{part}", ip(end)));
            run(&format!("ip -n {n}{part} link set {n}{part} up"));
            run(&format!("ip -n {n}{part} route add default via {}", ip(gate)));
        }
        for more in [19, 20] {
            run(&format!("ip -n {n}e addr add {}/28 dev {n}e", ip(more)));
        }
        run(&format!("ip netns exec {n}r sysctl -qw net.ipv4.ip_forward=1"));
        // The test itself is the visitor, beside the router.
        run(&format!("ip link add {n}v type veth peer name {n}w"));
        run(&format!("ip link set {n}w netns {n}e"));
        run(&format!("ip addr add {}/28 dev {n}v", ip(33)));
        run(&format!("ip link set {n}v up"));
        run(&format!("ip -n {n}e addr add {}/28 dev {n}w", ip(34)));
        run(&format!("ip -n {n}e link set {n}w up"));
        world
    }

    fn etc(&self) -> PathBuf {
        PathBuf::from(format!("/etc/netns/{}c", self.name))
    }

    fn address(&self, host: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base + host)
    }

    /// The edge's address towards connectors; there are three.
    pub(super) fn edge_address(&self, which: u32) -> Ipv4Addr {
        self.address(18 + which)
    }

    /// Where visitors find an edge.
    pub(super) fn door(&self, which: u16) -> SocketAddr {
        (self.address(34), 8080 + which).into()
    }

    /// What the edges, or the connector, have logged.
    pub(super) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    /// What `edge.test` means to the connector from now on; nothing if there are no addresses.
    pub(super) fn names(&self, addresses: &[Ipv4Addr]) {
        let lines: String = addresses.iter().map(|address| format!("{address} edge.test\n")).collect();
        // In place: the file is bound into the namespace.
        std::fs::write(self.etc().join("hosts"), lines).unwrap();
    }

    fn start(&mut self, part: &str, log: &str, args: &[String]) -> u32 {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o644)
            .open(self.dir.path().join(format!("{log}.log")))
            .unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}{part}", self.name), env!("CARGO_BIN_EXE_adit")]);
        let child = command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let id = child.id();
        self.processes.push(child);
        id
    }

    /// Starts an edge on one of the three addresses.
    pub(super) fn edge(&mut self, which: u16) -> u32 {
        let listen = format!("{}:7844", self.edge_address(which.into()));
        let door = self.door(which).to_string();
        let state = self.state.path().display().to_string();
        let args = ["edge", "--state", &state, "--listen", &listen, "--http", &door, "--metrics", "127.0.0.1:0"];
        self.start("e", "edge", &args.map(str::to_owned))
    }

    /// Starts a connector whose one rule answers by itself.
    pub(super) fn connector(&mut self, protocol: &str, edge: &str, more: &[&str]) -> u32 {
        let config = self.dir.path().join("config.yml");
        std::fs::write(&config, "ingress:\n  - service: http_status:200\n").unwrap();
        let token = self.dir.path().join("token");
        std::fs::write(&token, self.token.encode().as_bytes()).unwrap();
        let ca = self.state.ca_path();
        let [config, token, ca] = [config, token, ca].map(|path| path.display().to_string());
        let args = ["run", "--protocol", protocol, "--edge", edge, "--edge-ca", &ca, "--config", &config];
        let args = args.into_iter().chain(["--token-file", &token, "--metrics", "127.0.0.1:20241"]);
        let args: Vec<_> = args.chain(more.iter().copied()).map(str::to_owned).collect();
        self.start("c", "connector", &args)
    }

    /// `/ready` of the connector, from inside its namespace.
    pub(super) fn ready(&self) -> serde_json::Value {
        let script = "exec 3<>/dev/tcp/127.0.0.1/20241; printf 'GET /ready HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
        let namespace = format!("{}c", self.name);
        let output = Command::new("ip").args(["netns", "exec", &namespace, "bash", "-c", script]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or_default()
    }

    /// The transports of the connections that are up.
    pub(super) fn transports(&self) -> Vec<String> {
        let ready = self.ready();
        let connections = ready["connections"].as_array().cloned().unwrap_or_default();
        connections.iter().filter_map(|connection| connection["transport"].as_str().map(str::to_owned)).collect()
    }

    /// Local ports of the connector's TCP connections to an edge.
    pub(super) fn tcp_ports(&self) -> Vec<u16> {
        let namespace = format!("{}c", self.name);
        let output = Command::new("ip")
            .args(["netns", "exec", &namespace, "ss", "-Htn", "state", "established", "dport", "=", ":7844"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let port = |line: &str| line.split_whitespace().nth(2)?.rsplit_once(':')?.1.parse().ok();
        text.lines().filter_map(port).collect()
    }

    /// From now on the router treats packets that match `selector` (of `ip rule`) so.
    pub(super) fn fault(&self, selector: &str, fault: Fault) {
        let action = match fault {
            Fault::Drop => "blackhole",
            Fault::Refuse => "unreachable",
        };
        run(&format!("ip -n {}r rule add pref 10 {selector} {action}", self.name));
    }

    /// UDP is treated so, in both directions.
    pub(super) fn udp(&self, fault: Fault) {
        self.fault("ipproto udp", fault);
    }

    /// The router lets everything through again.
    pub(super) fn heal(&self) {
        while self.has_rule() {
            run(&format!("ip -n {}r rule del pref 10", self.name));
        }
    }

    fn has_rule(&self) -> bool {
        let rules = Command::new("ip").args(["-n", &format!("{}r", self.name), "rule"]).output().unwrap();
        String::from_utf8_lossy(&rules.stdout).lines().any(|line| line.starts_with("10:"))
    }

    /// Sends a signal to one of the processes.
    pub(super) fn signal(&self, process: u32, signal: &str) {
        run(&format!("kill -{signal} {process}"));
    }

    /// Waits until the first edge's door is open.
    pub(super) async fn opens(&self) {
        eventually("the door opens", async || TcpStream::connect(self.door(0)).await.is_ok()).await;
    }

    /// One request; whether it was answered 200 within `limit`.
    pub(super) async fn served(&self, door: u16, limit: Duration) -> bool {
        let ask = async {
            let mut stream = TcpStream::connect(self.door(door)).await.ok()?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await.ok()?;
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.ok()?;
            bytes.starts_with(b"HTTP/1.1 ").then(|| Answer::parse(&bytes).status)
        };
        matches!(tokio::time::timeout(limit, ask).await, Ok(Some(200)))
    }

    /// How long after `since` a request is served for the first time.
    pub(super) async fn back_after(&self, since: Instant, limit: Duration) -> Duration {
        while !self.served(0, Duration::from_millis(400)).await {
            let log = || self.log("connector");
            assert!(since.elapsed() < limit, "not served within {limit:?}\n{}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        since.elapsed()
    }

    /// Waits until something that only a look tells is so; how long after `since` that was.
    pub(super) async fn seen(
        &self,
        what: &str,
        since: Instant,
        limit: Duration,
        so: impl Fn(&Self) -> bool,
    ) -> Duration {
        while !so(self) {
            assert!(since.elapsed() < limit, "never: {what}\n{}", self.log("connector"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        since.elapsed()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        for part in ["c", "r", "e"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}{part}", self.name)]).output();
        }
        let _ = Command::new("ip").args(["link", "del", &format!("{}v", self.name)]).output();
        let _ = std::fs::remove_dir_all(self.etc());
    }
}
