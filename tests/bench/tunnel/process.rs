//! Child processes that cannot outlive the benchmark, and what /proc says of them. Knows not what they do.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// A running child. Dropping it kills and reaps it.
#[must_use = "dropping a process kills it"]
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
}

impl Process {
    pub(crate) fn spawn(name: &str, command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// The next line of a piped stdout; later output is not read.
    pub(crate) fn first_line(&mut self) -> Result<String> {
        let stdout = self.child.stdout.take().context("stdout is not piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(!line.is_empty(), "{} said nothing", self.name);
        Ok(line.trim().to_owned())
    }

    /// Everything a child that ends by itself prints.
    pub(crate) fn output(mut self) -> Result<String> {
        let mut text = String::new();
        self.child.stdout.take().context("stdout is not piped")?.read_to_string(&mut text)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(text)
    }

    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Asks it to leave, so that the edge sees it go; killed when it has not after a while.
    pub(crate) fn stop(mut self) -> Result<()> {
        let terminate = format!("kill -TERM {}", self.child.id());
        Command::new("sh").args(["-c", &terminate]).status().context("cannot run sh")?;
        // One that waits out its grace period loses nothing by being killed.
        let _ = poll(Duration::from_secs(2), || self.exited())?;
        Ok(())
    }

    /// User and system time of all threads so far, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))
            .with_context(|| format!("{} is gone", self.name))?;
        // The second field is the name in parentheses, which may hold blanks.
        let (_, fields) = stat.rsplit_once(')').context("/proc stat without a name")?;
        let mut fields = fields.split_whitespace().skip(11);
        let mut ticks = || fields.next().and_then(|ticks| ticks.parse::<u64>().ok()).context("/proc stat too short");
        Ok((ticks()? + ticks()?) as f64 / TICKS_PER_SECOND)
    }

    /// Makes the highest resident memory the present one.
    pub(crate) fn forget_peak(&self) {
        // Where /proc is read only, a test shows the peak of all before it too.
        let _ = fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5");
    }

    /// Resident memory in KiB: now and at its highest.
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .with_context(|| format!("{} is gone", self.name))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_whitespace().next());
            value.and_then(|value| value.parse().ok()).with_context(|| format!("/proc status without {name}"))
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Another process of this very program, in the given role.
pub(crate) fn role(name: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(name).stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok(command)
}

/// Asks again and again, for what no child can announce to us; `None` when the time is over.
pub(crate) fn poll<T>(limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(Some(answer));
        }
        check_interrupt()?;
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Lets SIGINT and SIGTERM end the run by an error, so that every child is killed on the way out.
pub(crate) fn watch_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
    Ok(())
}

pub(crate) fn check_interrupt() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// An address of loopback that neither TCP nor UDP uses now; somebody may still be faster.
pub(crate) fn free_address() -> Result<SocketAddr> {
    for _ in 0..100 {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = tcp.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port is free on loopback")
}

/// The last lines of a log file.
pub(crate) fn tail(path: &Path) -> String {
    let read = || -> Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(4096)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) if text.is_empty() => "(empty)".to_owned(),
        Ok(text) => text,
        Err(error) => format!("({error})"),
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// `USER_HZ`, which Linux fixes at 100 for user space on all architectures but alpha and ia64.
const TICKS_PER_SECOND: f64 = 100.0;
