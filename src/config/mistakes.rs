//! Everything wrong with a configuration, at once, each with its place.

use std::fmt;

/// Where something stands in a text: line and column counted from 1. A line of 0 means that there
/// is no text to point into (a flag, an environment variable, pushed JSON).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
}

/// One mistake: `file:line:column: key: message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file, or what stands in its place: `command line`, `environment`, `pushed configuration`.
    pub file: String,
    /// Where in the file.
    pub place: Place,
    /// Key path from the top, such as `ingress[2].originRequest.connectTimeout`; may be empty.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
    /// The known key that an unknown one resembles most.
    pub nearest: Option<String>,
}

/// Something that works but is probably not what was meant. Shown like a [`Mistake`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub Mistake);

/// All mistakes of one configuration; never empty when returned as an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.place.line > 0 {
            write!(f, ":{}:{}", self.place.line, self.place.column)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)?;
        match &self.nearest {
            Some(nearest) => write!(f, ", did you mean `{nearest}`?"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Collects mistakes and warnings of one source while it is read.
#[derive(Debug)]
pub(crate) struct Report {
    file: String,
    pub(crate) mistakes: Vec<Mistake>,
    pub(crate) warnings: Vec<Warning>,
    /// Keys that nothing reads; only pushed JSON counts instead of reporting.
    pub(crate) ignored: usize,
    /// How many of the mistakes are none in themselves: what else this file says makes them so (`remoteConfig`,
    /// `innerHop`).
    pub(crate) disallowed: usize,
}

// A file that is wrong everywhere need not be quoted everywhere: nobody reads further, and pushed
// JSON must not turn into an answer larger than itself.
const LIMIT: usize = 200;

impl Report {
    pub(crate) fn new(file: impl Into<String>) -> Self {
        Self { file: file.into(), mistakes: Vec::new(), warnings: Vec::new(), ignored: 0, disallowed: 0 }
    }

    pub(crate) fn mistake(&mut self, place: Place, key: &str, message: impl Into<String>) {
        let mistake = self.entry(place, key, message, None);
        self.push(mistake);
    }

    pub(crate) fn mistake_near(&mut self, place: Place, key: &str, message: &str, nearest: Option<String>) {
        let mistake = self.entry(place, key, message, nearest);
        self.push(mistake);
    }

    pub(crate) fn unknown(&mut self, place: Place, key: &str, nearest: Option<String>) {
        let mistake = self.entry(place, key, "unknown key", nearest);
        self.push(mistake);
    }

    /// Something that is fine in itself and not under what the file says elsewhere.
    pub(crate) fn disallowed(&mut self, place: Place, key: &str, message: impl Into<String>) {
        let before = self.mistakes.len();
        self.mistake(place, key, message);
        self.disallowed += self.mistakes.len() - before;
    }

    pub(crate) fn warning(&mut self, place: Place, key: &str, message: impl Into<String>) {
        self.warning_near(place, key, message, None);
    }

    pub(crate) fn warning_near(
        &mut self,
        place: Place,
        key: &str,
        message: impl Into<String>,
        nearest: Option<String>,
    ) {
        let warning = Warning(self.entry(place, key, message, nearest));
        if self.warnings.len() < LIMIT {
            self.warnings.push(warning);
        }
    }

    /// Whether further mistakes are no longer kept, so that looking for hints is no use.
    pub(crate) fn full(&self) -> bool {
        self.mistakes.len() >= LIMIT || self.warnings.len() >= LIMIT
    }

    /// Mistakes in reading order.
    pub(crate) fn into_mistakes(mut self) -> Mistakes {
        self.mistakes.sort_by_key(|mistake| mistake.place);
        Mistakes(self.mistakes)
    }

    fn entry(&self, place: Place, key: &str, message: impl Into<String>, nearest: Option<String>) -> Mistake {
        Mistake { file: self.file.clone(), place, key: key.to_owned(), message: message.into(), nearest }
    }

    fn push(&mut self, mistake: Mistake) {
        if self.mistakes.len() < LIMIT {
            self.mistakes.push(mistake);
        }
    }
}

/// The known key that `key` was probably meant to be: at most two edits away, three when it is
/// long, and never so many that the word is a different one.
pub(crate) fn nearest<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let folded = folded(key);
    let limit = if folded.chars().count() > 8 { 3 } else { 2 };
    known
        .into_iter()
        .map(|candidate| (distance(&folded, &self::folded(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.len() / 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.to_owned())
}

/// Letter case, `-` and `_` are what people get wrong most; they count as no difference.
pub(crate) fn folded(key: &str) -> String {
    key.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
}

/// Levenshtein distance in characters. Long words are cut: no known key is that long.
pub(crate) fn distance(left: &str, right: &str) -> usize {
    const CUT: usize = 64;
    let right: Vec<char> = right.chars().take(CUT).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().take(CUT).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}
