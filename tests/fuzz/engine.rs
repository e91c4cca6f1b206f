//! Runs a target, watches it, and keeps what led somewhere new.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::mutate::{Mutator, Rng};

/// What one execution may cost of a processor. Optimised, no input of 64 KiB is worth more; without optimisation
/// everything takes some ten times as long.
const MOST_TIME: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1_000 } else { 100 });
/// Inputs kept because they led somewhere new.
const MOST_KEPT: usize = 2_000;

/// A parser and what it promises.
#[derive(Clone, Copy)]
pub(super) struct Target {
    /// Also its folder in the corpus.
    pub(super) name: &'static str,
    /// Panics when a promise is broken; else says what it saw.
    pub(super) run: fn(&[u8]) -> u64,
    /// What inputs of this kind are made of.
    pub(super) words: &'static [&'static [u8]],
}

/// When to stop.
#[derive(Clone, Copy)]
pub(super) enum Until {
    Executions(u64),
    Elapsed(Duration),
}

impl Until {
    pub(super) fn told() -> Self {
        let seconds = std::env::var("ADIT_FUZZ_SECONDS").map_or(20, |text| text.parse().expect("seconds"));
        Self::Elapsed(Duration::from_secs(seconds))
    }
}

/// A number for whatever can be hashed.
pub(super) fn seen(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// The order of magnitude, so that a hundred headers differ from three and not from ninety.
pub(super) fn about(number: usize) -> u32 {
    number.checked_ilog2().map_or(0, |log| log + 1)
}

/// A text without what differs from input to input.
pub(super) fn gist(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ').take(40).collect()
}

pub(super) fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

impl Target {
    fn seeds(self) -> Vec<(String, Vec<u8>)> {
        let folder = corpus().join(self.name);
        let mut seeds: Vec<_> = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|file| file.unwrap().path())
            .map(|path| (path.display().to_string(), std::fs::read(path).unwrap()))
            .collect();
        seeds.sort();
        assert!(!seeds.is_empty(), "{} has no corpus", self.name);
        seeds
    }

    /// The corpus, findings of old among it.
    pub(super) fn replay(self) {
        for (name, input) in self.seeds() {
            self.execute(&input, &name);
        }
    }

    /// The corpus and endless variations on it.
    pub(super) fn mutate(self, until: Until) {
        let started = Instant::now();
        // A bounded run is the same every time; a long one never.
        let seed = match until {
            Until::Executions(_) => 1,
            Until::Elapsed(_) => rand::random(),
        };
        let mut mutator = Mutator { rng: Rng(seed), words: self.words };
        let mut kept: Vec<Vec<u8>> = self.seeds().into_iter().map(|(_, input)| input).collect();
        let (mut known, mut executions, mut slowest) = (HashSet::new(), 0u64, Duration::ZERO);
        for input in &kept {
            known.insert((self.run)(input));
        }
        let goes_on = |executions| match until {
            Until::Executions(most) => executions < most,
            Until::Elapsed(time) => started.elapsed() < time,
        };
        while goes_on(executions) {
            let input = mutator.next(&kept);
            let (found, took) = self.execute(&input, "a mutation");
            slowest = slowest.max(took);
            executions += 1;
            if known.insert(found) && kept.len() < MOST_KEPT {
                kept.push(input);
            }
        }
        if let Until::Elapsed(_) = until {
            let elapsed = started.elapsed().as_secs();
            println!(
                "{}: {executions} executions in {elapsed} s, {} kinds of outcome, slowest {slowest:?}, seed {seed:#x}, {}",
                self.name,
                known.len(),
                memory()
            );
        }
    }

    /// Runs one input; a broken promise or too much time is a finding.
    fn execute(self, input: &[u8], origin: &str) -> (u64, Duration) {
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.run)(input)));
        let mut took = started.elapsed();
        let Ok(found) = outcome else { self.report(input, &format!("{origin} broke a promise")) };
        // The clock goes on while others have the processor, so what seemed slow is measured again without them.
        if took > MOST_TIME / 20 {
            let before = processor();
            let _ = (self.run)(input);
            took = took.min(processor().saturating_sub(before));
        }
        if took > MOST_TIME {
            self.report(input, &format!("{origin} took {took:?}"));
        }
        (found, took)
    }

    fn report(self, input: &[u8], what: &str) -> ! {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz").join(self.name);
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join(format!("{:016x}", seen(input)));
        std::fs::write(&file, input).unwrap();
        panic!("{}: {what}; the input is in {}", self.name, file.display());
    }
}

/// Time that this thread had a processor.
fn processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default().replace(['\t', ' '], "")
}
