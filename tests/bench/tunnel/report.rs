//! Turns samples into tables. Medians over the repetitions; ratios are taken within each repetition first.

use std::process::ExitCode;

use crate::Options;
use crate::case::Case;
use crate::run::{Held, Life, Results, Sample, Who};
use crate::statistics::{median, paired, spread};

/// One line to stderr while the run goes on.
pub(crate) fn progress(sample: &Sample, reps: u32) {
    let (rate, cost) = (rate(sample), cost(sample));
    let (rate_unit, cost_unit) = if sample.bulk { ("MiB/s", "GiB") } else { ("req/s", "100k") };
    eprintln!(
        "{}/{reps} {:<5} {:<8} {}: {rate:.0} {rate_unit}, {cost:.2} CPU-s/{cost_unit}, {} errors",
        sample.rep + 1,
        sample.transport,
        sample.test,
        sample.who.name(),
        sample.outcome.errors,
    );
}

/// Prints the tables; the exit code tells whether every request was answered.
pub(crate) fn print(results: &Results, cases: &[&Case], options: &Options) -> ExitCode {
    println!(
        "{} repetitions, {} s per test of requests, {} MiB per bulk test; medians; ratios adit/peer: median (min-max)",
        options.reps, options.seconds, options.bulk
    );
    println!("cost: CPU seconds of the connector, user and system, per 100,000 requests or per GiB");
    if let Ok(load) = std::fs::read_to_string("/proc/loadavg") {
        println!("load average at the end: {}", load.trim());
    }
    println!();
    let rows = rows(results, cases, options);
    println!(
        "{:<9}{:<7}{:<7}{:>20}{:>20}{:>12}{:>20}{:>12}",
        "test", "over", "", "req/s or MiB/s", "p50 us", "p90 us", "p99 us", "p99.9 us"
    );
    for row in &rows {
        row.print_speed();
    }
    println!();
    println!(
        "{:<9}{:<7}{:>12}{:>12}{:>6}   {:<18}{:>15}{:>15}   ratio",
        "test", "over", "adit cost", "peer cost", "per", "ratio", "adit peak MiB", "peer peak MiB"
    );
    for row in &rows {
        row.print_cost();
    }
    memory(results, options);
    for (who, bytes) in &results.binary_bytes {
        println!("{:<7}binary {:.1} MB", who.name(), *bytes as f64 / 1e6);
    }
    errors(results)
}

/// One test over one transport.
struct Row<'a> {
    test: &'static str,
    transport: &'static str,
    bulk: bool,
    adit: Vec<&'a Sample>,
    /// Empty without `--peer`.
    peer: Vec<&'a Sample>,
}

fn rows<'a>(results: &'a Results, cases: &[&Case], options: &Options) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for case in cases.iter().filter(|case| !case.is_hold()) {
        for transport in options.transport.names() {
            let select = |who| {
                let belongs = |s: &&Sample| s.test == case.name && s.transport == *transport && s.who == who;
                results.samples.iter().filter(belongs).collect()
            };
            rows.push(Row {
                test: case.name,
                transport,
                bulk: case.is_bulk(),
                adit: select(Who::Adit),
                peer: select(Who::Peer),
            });
        }
    }
    rows
}

impl Row<'_> {
    fn print_speed(&self) {
        for (who, samples) in [("adit", &self.adit), ("peer", &self.peer)] {
            if samples.is_empty() {
                continue;
            }
            let middle = |value: fn(&Sample) -> f64| median(samples.iter().map(|s| value(s)));
            print!("{:<9}{:<7}{who:<7}{:>20.0}", self.test, self.transport, middle(rate));
            if !self.bulk {
                let (p50, p90) = (middle(|s| s.outcome.p50), middle(|s| s.outcome.p90));
                let (p99, p999) = (middle(|s| s.outcome.p99), middle(|s| s.outcome.p999));
                print!("{p50:>20.0}{p90:>12.0}{p99:>20.0}{p999:>12.0}");
            }
            println!();
        }
        if !self.peer.is_empty() {
            print!("{:<16}{:<7}{:>20}", "", "ratio", self.ratio(rate));
            if !self.bulk {
                print!("{:>20}{:>12}{:>20}", self.ratio(|s| s.outcome.p50), "", self.ratio(|s| s.outcome.p99));
            }
            println!();
        }
    }

    fn print_cost(&self) {
        let middle = |samples: &[&Sample], value: fn(&Sample) -> f64, digits: usize| {
            let middle = median(samples.iter().map(|s| value(s)));
            if middle.is_nan() { String::new() } else { format!("{middle:.digits$}") }
        };
        let ratio = |value| if self.peer.is_empty() { String::new() } else { self.ratio(value) };
        let unit = if self.bulk { "GiB" } else { "100k" };
        print!("{:<9}{:<7}{:>12}", self.test, self.transport, middle(&self.adit, cost, 2));
        print!("{:>12}{unit:>6}   {:<18}", middle(&self.peer, cost, 2), ratio(cost));
        println!("{:>15}{:>15}   {}", middle(&self.adit, peak, 1), middle(&self.peer, peak, 1), ratio(peak));
    }

    fn ratio(&self, value: fn(&Sample) -> f64) -> String {
        spread(&paired(&self.adit, &self.peer, value))
    }
}

/// A column of the table of memory.
type Column<T> = (&'static str, fn(&T) -> f64);

fn memory(results: &Results, options: &Options) {
    let lives: &[Column<Life>] = &[
        ("RSS idle, MiB", |life| life.idle_kib as f64 / 1024.0),
        ("RSS peak of all tests, MiB", |life| life.peak_kib as f64 / 1024.0),
        ("4 connections after, ms", |life| life.ready_millis as f64),
    ];
    let held: &[Column<Held>] = &[("RSS per idle WebSocket, KiB", |held| held.grown_kib / held.connections as f64)];
    println!();
    println!("{:<28}{:<7}{:>12}{:>12}   ratio", "memory and start", "over", "adit", "peer");
    for transport in options.transport.names() {
        compare(lives, transport, |who| {
            results.lives.iter().filter(|life| life.transport == *transport && life.who == who).collect()
        });
        compare(held, transport, |who| {
            results.held.iter().filter(|held| held.transport == *transport && held.who == who).collect()
        });
    }
    println!();
}

fn compare<'a, T: 'a>(columns: &[Column<T>], transport: &str, select: impl Fn(Who) -> Vec<&'a T>) {
    let (adit, peer) = (select(Who::Adit), select(Who::Peer));
    for (name, value) in columns {
        if adit.is_empty() {
            continue;
        }
        print!("{name:<28}{transport:<7}{:>12.1}", median(adit.iter().map(|t| value(t))));
        if !peer.is_empty() {
            let ratio = spread(&paired(&adit, &peer, value));
            print!("{:>12.1}   {ratio}", median(peer.iter().map(|t| value(t))));
        }
        println!();
    }
}

fn errors(results: &Results) -> ExitCode {
    let samples = results.samples.iter().map(|s| (s.test, s.transport, s.rep, s.who, &s.outcome));
    let held = results.held.iter().map(|h| ("idlews", h.transport, h.rep, h.who, &h.outcome));
    let mut total = 0;
    for (test, transport, rep, who, outcome) in samples.chain(held).filter(|of| of.4.errors > 0) {
        total += outcome.errors;
        let first = outcome.first_error.as_deref().unwrap_or_default();
        println!("{test} {transport} repetition {} {}: {} errors, first: {first}", rep + 1, who.name(), outcome.errors);
    }
    println!("errors: {total}");
    if total == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Requests or MiB per second.
fn rate(sample: &Sample) -> f64 {
    let amount = if sample.bulk { sample.outcome.bytes as f64 / MIB } else { sample.outcome.requests as f64 };
    amount / sample.outcome.seconds
}

/// CPU seconds per 100,000 requests or per GiB.
fn cost(sample: &Sample) -> f64 {
    let units =
        if sample.bulk { sample.outcome.bytes as f64 / MIB / 1024.0 } else { sample.outcome.requests as f64 / 1e5 };
    sample.cpu_seconds / units
}

/// Resident memory at its highest, in MiB.
fn peak(sample: &Sample) -> f64 {
    sample.peak_kib as f64 / 1024.0
}

const MIB: f64 = 1024.0 * 1024.0;
