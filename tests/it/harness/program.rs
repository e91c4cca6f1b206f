//! Several programs at once, each with a log file of its own, and the addresses that they are told.

use std::{
    fs::File,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Answer, LIMIT, eventually, process::memory_of};

/// A running `adit`, killed when the test ends.
pub(crate) struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts `adit` with these arguments; what it logs goes to `NAME.log` in `dir`.
    pub(crate) fn start(dir: &Path, name: &str, args: &[&str]) -> Self {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
        let child = command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Self { child, log }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([format!("-{signal}"), self.child.id().to_string()]).status().unwrap();
        assert!(sent.success(), "cannot send {signal}");
    }

    /// Waits for its end.
    pub(crate) async fn ended(mut self) -> ExitStatus {
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(5));
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                tick.tick().await;
            }
        };
        tokio::time::timeout(LIMIT * 3, ended).await.unwrap_or_else(|_| panic!("still running\n{}", self.log()))
    }

    /// A field of `/proc/…/status` in KiB: `VmRSS` now, `VmHWM` at most so far.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        memory_of(self.child.id(), field)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address whose port is free for TCP and UDP; whoever is to listen there must be quick.
pub(crate) fn free() -> SocketAddr {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        if UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

/// `GET PATH`, if anybody answers.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Option<Answer> {
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.ok()?;
    bytes.starts_with(b"HTTP/1.1 ").then(|| Answer::parse(&bytes))
}

/// Asks until it is answered so.
pub(crate) async fn says(address: SocketAddr, path: &str, status: u16) {
    eventually(&format!("{path} says {status}"), async || {
        get(address, path).await.is_some_and(|answer| answer.status == status)
    })
    .await;
}
