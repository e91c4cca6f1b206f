//! The course of a run: repetitions, transports, tests, and the two connectors in turn within each. Knows neither
//! command lines nor how a table looks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::case::{self, Amount, Case};
use crate::load::{self, Outcome};
use crate::process::{Process, check_interrupt, role, watch_signals};
use crate::stand::{Connector, Stand};
use crate::{Options, report};

/// One measured window.
#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) test: &'static str,
    pub(crate) bulk: bool,
    pub(crate) transport: &'static str,
    pub(crate) rep: u32,
    pub(crate) who: Who,
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_kib: u64,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

/// What open connections that do nothing hold.
#[derive(Debug, Serialize)]
pub(crate) struct Held {
    pub(crate) transport: &'static str,
    pub(crate) rep: u32,
    pub(crate) who: Who,
    pub(crate) connections: usize,
    pub(crate) grown_kib: f64,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

/// One life of a connector process.
#[derive(Debug, Serialize)]
pub(crate) struct Life {
    pub(crate) transport: &'static str,
    pub(crate) rep: u32,
    pub(crate) who: Who,
    pub(crate) ready_millis: u64,
    pub(crate) idle_kib: u64,
    /// Of all tests.
    pub(crate) peak_kib: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Who {
    Adit,
    Peer,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Results {
    pub(crate) samples: Vec<Sample>,
    pub(crate) held: Vec<Held>,
    pub(crate) lives: Vec<Life>,
    pub(crate) binary_bytes: Vec<(Who, u64)>,
}

impl Who {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Adit => "adit",
            Self::Peer => "peer",
        }
    }
}

pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let cases = chosen(&options.only)?;
    let adit = PathBuf::from(env!("CARGO_BIN_EXE_adit"));
    let mut contenders = vec![(Who::Adit, adit.clone())];
    if let Some(peer) = &options.peer {
        contenders.push((Who::Peer, peer.clone()));
    }
    let mut results = Results::default();
    for (who, binary) in &contenders {
        let metadata = fs::metadata(binary).with_context(|| format!("{}", binary.display()))?;
        results.binary_bytes.push((*who, metadata.len()));
    }
    watch_signals()?;
    let mut directory = tempfile::Builder::new().prefix("adit-bench-").tempdir()?;
    directory.disable_cleanup(options.keep);
    if options.keep {
        eprintln!("logs: {}", directory.path().display());
    }
    let rounds: Vec<_> =
        (0..options.reps).flat_map(|rep| options.transport.names().iter().map(move |name| (rep, *name))).collect();
    // A tunnel for every process: what is left of a former one at the edge must not get its requests.
    let tunnels: Vec<_> = rounds
        .iter()
        .flat_map(|&(rep, transport)| contenders.iter().map(move |(who, _)| tunnel(*who, transport, rep)))
        .collect();
    let stand = Stand::start(&adit, directory.path(), &tunnels)?;
    for (rep, transport) in rounds {
        Round { options, stand: &stand, rep, transport }.run(&cases, &contenders, &mut results)?;
    }
    drop(stand);
    if let Some(path) = &options.json {
        fs::write(path, serde_json::to_vec_pretty(&results)?).with_context(|| format!("{}", path.display()))?;
    }
    Ok(report::print(&results, &cases, options))
}

fn chosen(only: &[String]) -> Result<Vec<&'static Case>> {
    if let Some(unknown) = only.iter().find(|name| case::ALL.iter().all(|case| case.name != **name)) {
        bail!("no test is named {unknown}; --list names them");
    }
    Ok(case::ALL.iter().filter(|case| only.is_empty() || only.iter().any(|name| case.name == name)).collect())
}

fn tunnel(who: Who, transport: &str, rep: u32) -> String {
    format!("{}-{transport}-{rep}", who.name())
}

struct Round<'a> {
    options: &'a Options,
    stand: &'a Stand,
    rep: u32,
    transport: &'static str,
}

impl Round<'_> {
    /// All connectors live through the whole round; the one that is not measured is idle.
    fn run(&self, cases: &[&Case], contenders: &[(Who, PathBuf)], results: &mut Results) -> Result<()> {
        let mut connectors = contenders
            .iter()
            .map(|(who, binary)| Ok((*who, self.connect(*who, binary)?)))
            .collect::<Result<Vec<_>>>()?;
        for (index, case) in cases.iter().enumerate() {
            for turn in 0..connectors.len() {
                let (who, connector) = &connectors[(turn + index + self.rep as usize) % connectors.len()];
                if case.is_hold() {
                    results.held.push(self.hold(case, *who, connector)?);
                    continue;
                }
                let sample = self.measure(case, *who, connector)?;
                report::progress(&sample, self.options.reps);
                results.samples.push(sample);
            }
        }
        for (who, connector) in connectors.drain(..) {
            let of_tests =
                results.samples.iter().filter(|s| s.transport == self.transport && s.rep == self.rep && s.who == who);
            results.lives.push(Life {
                transport: self.transport,
                rep: self.rep,
                who,
                ready_millis: connector.ready_millis,
                idle_kib: connector.idle_kib,
                peak_kib: of_tests.map(|s| s.peak_kib).fold(connector.peak_kib()?, u64::max),
            });
            connector.stop()?;
        }
        Ok(())
    }

    fn connect(&self, who: Who, binary: &Path) -> Result<Connector> {
        self.stand.connect(binary, &tunnel(who, self.transport, self.rep), self.transport)
    }

    fn measure(&self, case: &Case, who: Who, connector: &Connector) -> Result<Sample> {
        let measured = Amount { millis: self.options.seconds * 1000, bytes: self.options.bulk << 20 };
        let warm_up = Amount { millis: 500, bytes: measured.bytes / 8 };
        let first = self.load(case, connector, warm_up)?;
        connector.forget_peak();
        let before = connector.cpu()?;
        let mut outcome = self.load(case, connector, measured)?;
        let cpu_seconds = connector.cpu()? - before;
        outcome.errors += first.errors;
        outcome.first_error = first.first_error.or(outcome.first_error);
        Ok(Sample {
            test: case.name,
            bulk: case.is_bulk(),
            transport: self.transport,
            rep: self.rep,
            who,
            cpu_seconds,
            peak_kib: connector.peak_kib()?,
            outcome,
        })
    }

    fn load(&self, case: &Case, connector: &Connector, amount: Amount) -> Result<Outcome> {
        check_interrupt()?;
        let text = self.generator(case, connector, amount)?.output()?;
        check_interrupt()?;
        serde_json::from_str(&text).context("what the load generator printed")
    }

    fn hold(&self, case: &Case, who: Who, connector: &Connector) -> Result<Held> {
        check_interrupt()?;
        let before = connector.rss_kib()?;
        let nothing = Amount { millis: 0, bytes: 0 };
        let mut generator = self.generator(case, connector, nothing)?;
        let outcome = serde_json::from_str(&generator.first_line()?).context("what the load generator printed")?;
        let grown_kib = connector.rss_kib()? as f64 - before as f64;
        Ok(Held { transport: self.transport, rep: self.rep, who, connections: case.connections, grown_kib, outcome })
    }

    fn generator(&self, case: &Case, connector: &Connector, amount: Amount) -> Result<Process> {
        let order = case.order(self.stand.http(), &connector.hostname, amount);
        let mut command = role(load::ROLE)?;
        command.arg(serde_json::to_string(&order)?);
        Process::spawn("load generator", &mut command)
    }
}
