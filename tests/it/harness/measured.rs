//! A program as a process of its own, so that its memory is its own.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::process::memory_of;

pub(crate) struct Program(Child);

impl Program {
    /// Starts `adit` with these arguments; it ends with the test.
    pub(crate) fn start(command: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let mut adit = Command::new(env!("CARGO_BIN_EXE_adit"));
        let adit = command(&mut adit).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        Self(adit.spawn().unwrap())
    }

    /// The same, with the first line that it says.
    pub(crate) async fn heard(command: impl FnOnce(&mut Command) -> &mut Command) -> (Self, String) {
        let mut adit = Command::new(env!("CARGO_BIN_EXE_adit"));
        let adit = command(&mut adit).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = adit.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
        (Self(child), line)
    }

    /// Resident memory in KiB: now (`VmRSS`) or at most so far (`VmHWM`).
    pub(crate) fn memory(&self, field: &str) -> u64 {
        memory_of(self.0.id().unwrap(), field)
    }

    /// Prints and bounds what the process grew by since it held `before` KiB.
    #[allow(clippy::print_stdout, reason = "the figures are what such a test shows")]
    pub(crate) fn grew_less_than(&self, most: u64, before: u64, what: &str) {
        let growth = self.memory("VmHWM").saturating_sub(before);
        println!("{what}: {growth} KiB");
        assert!(growth < most, "{growth} KiB for {what}");
    }
}
