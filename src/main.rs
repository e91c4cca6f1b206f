//! The program: arguments in, exit status out. No logic.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    adit::cli::Cli::parse().run()
}
