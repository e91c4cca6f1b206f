//! Commands and their exit status: 0 done, 1 failed, 2 wrong usage or configuration.

mod ask;
mod drain;
mod edge;
mod guard;
mod ingress;
mod pki;
mod ready;
mod run;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{
    app::SETTLE,
    config::{Flags, search_directories},
};

/// Dials outward to an edge and serves its visitors from services that expose nothing.
#[derive(Debug, Parser)]
#[command(name = "adit", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the connector
    Run(RunArgs),
    /// The same in cloudflared's spelling: `adit tunnel [flags] run [flags] [TUNNEL]`
    Tunnel(TunnelArgs),
    /// Run only the `guard` listeners of a file: mutual TLS in front of a service
    Guard(GuardArgs),
    /// Run a self-hosted edge
    Edge(edge::EdgeArgs),
    /// Edge, service and connector on loopback, no files needed
    Demo(DemoArgs),
    /// Tokens for a self-hosted edge
    #[command(subcommand)]
    Token(edge::TokenCommand),
    /// Certificates for laboratories
    #[command(subcommand)]
    Pki(pki::PkiCommand),
    /// Check rules, or ask which rule a URL matches
    Ingress(IngressArgs),
    /// Ask a running connector to drain, and wait until it has
    Drain(DrainArgs),
    /// The version
    Version,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    flags: Flags,
    /// Threads for the traffic; by default half the cores, at most 4
    #[arg(long, global = true, value_name = "N")]
    workers: Option<usize>,
    /// Milliseconds of silence after which changed secrets are read, for tests that change them often
    #[arg(long, hide = true, value_name = "MS")]
    secrets_settle: Option<u64>,
    /// Tunnel id or name, when there is a credentials file and no token
    #[arg(value_name = "TUNNEL")]
    tunnel: Option<String>,
}

#[derive(Debug, Args)]
struct TunnelArgs {
    #[command(flatten)]
    flags: Flags,
    /// Threads for the traffic; by default half the cores, at most 4
    #[arg(long, global = true, value_name = "N")]
    workers: Option<usize>,
    #[command(subcommand)]
    command: TunnelCommand,
}

#[derive(Debug, Subcommand)]
enum TunnelCommand {
    /// Run the connector
    Run {
        /// Tunnel id or name, when there is a credentials file and no token
        #[arg(value_name = "TUNNEL")]
        tunnel: Option<String>,
    },
    /// Check rules, or ask which rule a URL matches
    Ingress {
        #[command(subcommand)]
        command: ingress::IngressCommand,
    },
    /// Ask a running connector whether it is connected
    Ready,
}

#[derive(Debug, Args)]
struct IngressArgs {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: ingress::IngressCommand,
}

#[derive(Debug, Args)]
struct GuardArgs {
    #[command(flatten)]
    flags: Flags,
    /// Threads for the traffic; by default half the cores, at most 4
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
}

#[derive(Debug, Args)]
struct DrainArgs {
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Make one request, say what was proven, and exit 0 or 1
    #[arg(long)]
    once: bool,
    /// auto, quic or http2
    #[arg(long, short, default_value = "auto", value_parser = ["auto", "quic", "http2"])]
    protocol: String,
}

/// What a command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
    /// Wrong usage or configuration.
    Usage,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::Failed => 1,
            Outcome::Usage => 2,
        })
    }
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let outcome = match self.command {
            Command::Run(RunArgs { flags, workers, secrets_settle, tunnel }) => {
                let settle = secrets_settle.map_or(SETTLE, Duration::from_millis);
                run::connector(with_tunnel(flags, tunnel), workers, settle)
            }
            Command::Tunnel(TunnelArgs { flags, workers, command }) => match command {
                TunnelCommand::Run { tunnel } => run::connector(with_tunnel(flags, tunnel), workers, SETTLE),
                TunnelCommand::Ingress { command } => ingress::run(&flags, &command),
                TunnelCommand::Ready => ready::run(&flags),
            },
            Command::Ingress(IngressArgs { flags, command }) => ingress::run(&flags, &command),
            Command::Drain(DrainArgs { flags }) => drain::run(&flags),
            Command::Guard(GuardArgs { flags, workers }) => guard::run(flags, workers),
            Command::Edge(args) => edge::run(args),
            Command::Token(command) => edge::token(command),
            Command::Pki(command) => pki::run(command),
            Command::Demo(DemoArgs { once, protocol }) => run::demo(once, &protocol),
            Command::Version => {
                say(&format!("adit version {}", env!("CARGO_PKG_VERSION")));
                Outcome::Done
            }
        };
        outcome.into()
    }
}

fn with_tunnel(mut flags: Flags, tunnel: Option<String>) -> Flags {
    flags.tunnel = tunnel;
    flags
}

/// The environment, for the configuration.
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// cloudflared's places for files.
fn search() -> Vec<PathBuf> {
    search_directories(std::env::home_dir().as_deref())
}

/// Prints a line of a command's result.
#[expect(clippy::print_stdout, reason = "the result of a command")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

/// Prints why a command failed.
#[expect(clippy::print_stderr, reason = "the failure of a command")]
pub(crate) fn complain(line: &str) {
    eprintln!("{line}");
}
