//! `cargo bench --bench tunnel`: what a request costs the connector. Edge, connector, service and load
//! generator are separate processes on loopback, so /proc attributes CPU and memory to the connector alone.
//! With `--peer PATH` another connector that takes the same flags is measured against the same edge, test by
//! test in alternation, because a shared machine drifts by more than the differences that matter: only the
//! ratios inside one repetition count. Knows no library code: it sees what an operator would see.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a command-line program that reports on stdout and may stop at any surprise"
)]

#[path = "tunnel/case.rs"]
mod case;
#[path = "tunnel/client.rs"]
mod client;
#[path = "tunnel/histogram.rs"]
mod histogram;
#[path = "tunnel/load.rs"]
mod load;
#[path = "tunnel/process.rs"]
mod process;
#[path = "tunnel/report.rs"]
mod report;
#[path = "tunnel/run.rs"]
mod run;
#[path = "tunnel/service.rs"]
mod service;
#[path = "tunnel/stand.rs"]
mod stand;
#[path = "tunnel/statistics.rs"]
mod statistics;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// Measures the connector: requests per second, latency, CPU and memory.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo bench --bench tunnel --")]
struct Options {
    /// Another connector to measure in alternation; it must take cloudflared's flags
    #[arg(long, value_name = "PATH")]
    peer: Option<PathBuf>,
    /// Repetitions, each with fresh connector processes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    reps: u32,
    /// Length of each test of requests
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Size of each bulk test, over all its streams
    #[arg(long, default_value_t = 512, value_name = "MIB", value_parser = clap::value_parser!(u64).range(8..=65536))]
    bulk: u64,
    /// Only these tests, comma separated; --list names them
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    #[arg(long, value_enum, default_value_t = Transports::Both)]
    transport: Transports,
    /// Also write every sample to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep the directory with configuration and logs
    #[arg(long)]
    keep: bool,
    /// List the tests
    #[arg(long)]
    list: bool,
    /// What cargo passes to a benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Transports {
    Both,
    Http2,
    Quic,
}

impl Transports {
    const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Both => &["quic", "http2"],
            Self::Http2 => &["http2"],
            Self::Quic => &["quic"],
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let outcome = match arguments.get(1).map(String::as_str) {
        Some(service::ROLE) => service::main(),
        Some(load::ROLE) => load::main(&arguments[2]),
        _ => {
            let options = Options::parse();
            if options.list {
                for case in case::ALL {
                    println!("{:<9} {}", case.name, case.about);
                }
                return ExitCode::SUCCESS;
            }
            if !options.bench {
                // `cargo test --all-targets` starts benchmarks as if they were tests.
                eprintln!("not measuring without --bench: run it by `cargo bench --bench tunnel`");
                return ExitCode::SUCCESS;
            }
            run::main(&options)
        }
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
