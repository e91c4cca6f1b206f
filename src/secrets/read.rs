//! From a reference to bytes. Blocks where the file system does.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use yaml_rust2::Yaml;
use zeroize::Zeroizing;

use crate::config::SecretRef;

/// The largest file of secrets: a bundle of a few hundred roots, or a large list of revoked certificates.
pub const MOST_BYTES: u64 = 1 << 20;

/// Why there are no bytes. No text holds any of them.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file is there and holds nothing but white space.
    #[error("{0} is empty")]
    Empty(String),
    /// There is no such file.
    #[error("{0} does not exist")]
    Missing(String),
    /// A credential without systemd's directory.
    #[error("the credential {0} is asked for but CREDENTIALS_DIRECTORY is not set")]
    NoCredentialsDirectory(String),
    /// `key` names no text in the file.
    #[error("{path} has no key {key}")]
    NoKey {
        /// The file.
        path: String,
        /// The dotted path.
        key: String,
    },
    /// A variable is not set.
    #[error("the environment variable {0} is not set")]
    NoVariable(String),
    /// More than [`MOST_BYTES`].
    #[error("{0} is larger than 1 MiB")]
    TooLarge(String),
    /// A file is there and cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

impl ReadError {
    /// Whether somebody may be about to write it: nothing else becomes right by waiting.
    pub fn may_come(&self) -> bool {
        matches!(self, Self::Empty(_) | Self::Missing(_))
    }
}

/// The file that a reference leads to, if it can change.
pub fn file_of(reference: &SecretRef) -> Option<PathBuf> {
    match reference {
        SecretRef::Credential(name) => {
            std::env::var_os("CREDENTIALS_DIRECTORY").map(|directory| Path::new(&directory).join(name))
        }
        SecretRef::Env(_) => None,
        SecretRef::File(file) | SecretRef::FileKey { file, .. } => Some(file.clone()),
    }
}

/// Reads what is there now.
///
/// # Errors
///
/// [`ReadError`].
pub fn read(reference: &SecretRef) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    match reference {
        SecretRef::Credential(name) => {
            let file = file_of(reference).ok_or_else(|| ReadError::NoCredentialsDirectory(name.clone()))?;
            contents(&file)
        }
        SecretRef::Env(name) => {
            let text = std::env::var(name).map_err(|_| ReadError::NoVariable(name.clone()))?;
            Ok(Zeroizing::new(text.into_bytes()))
        }
        SecretRef::File(file) => contents(file),
        SecretRef::FileKey { file, key } => {
            let bytes = contents(file)?;
            key_of(&bytes, key).ok_or_else(|| ReadError::NoKey { path: file.display().to_string(), key: key.clone() })
        }
    }
}

/// What `take` makes of these files. It counts only if nobody had changed any of them for `settle` and nobody did while
/// they were read: a file that is cut and written anew can end, in between, where one of its certificates does, and
/// looks whole then. Files that are not there are at rest, and so is a file from the future, by another machine's clock.
///
/// # Errors
///
/// How long to leave them alone before the next attempt.
pub fn settled<T>(files: &[PathBuf], settle: Duration, take: impl FnOnce() -> T) -> Result<T, Duration> {
    let before = looks(files);
    if let Some(left) = at_rest(&before, settle) {
        return Err(left);
    }
    let taken = take();
    if looks(files) == before { Ok(taken) } else { Err(settle) }
}

/// What differs when a file was replaced or written. The time of the last change cannot be set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

fn looks(files: &[PathBuf]) -> Vec<Option<Look>> {
    let look = |file: &PathBuf| {
        let meta = std::fs::metadata(file).ok()?;
        Some(Look {
            inode: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    };
    files.iter().map(look).collect()
}

/// How long these must still be left alone until nobody has changed them for `settle`; `None`: they have.
fn at_rest(looks: &[Option<Look>], settle: Duration) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let changed = looks.iter().flatten().filter_map(|look| {
        let (seconds, nanos) = look.changed;
        Some(Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).unwrap_or(0)))
    });
    let age = now.checked_sub(changed.max()?)?;
    settle.checked_sub(age).filter(|left| !left.is_zero())
}

fn contents(path: &Path) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    let shown = || path.display().to_string();
    let unreadable = |source| ReadError::Unreadable { path: shown(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ReadError::Missing(shown())),
        Err(error) => return Err(unreadable(error)),
    };
    // Room for all of it at once: a buffer that grows leaves copies behind that nobody wipes.
    let expected = file.metadata().map_or(0, |meta| meta.len()).min(MOST_BYTES);
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(expected + 1).unwrap_or(0)));
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MOST_BYTES {
        Err(ReadError::TooLarge(shown()))
    } else if bytes.iter().all(u8::is_ascii_whitespace) {
        Err(ReadError::Empty(shown()))
    } else {
        Ok(bytes)
    }
}

/// A dotted path in a JSON or YAML document.
fn key_of(bytes: &[u8], key: &str) -> Option<Zeroizing<Vec<u8>>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let documents = yaml_rust2::YamlLoader::load_from_str(text).ok()?;
    let mut node = documents.first()?;
    for piece in key.split('.') {
        node = match node {
            Yaml::Hash(_) => &node[piece],
            _ => return None,
        };
    }
    node.as_str().map(|text| Zeroizing::new(text.as_bytes().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(reference: &SecretRef) -> String {
        String::from_utf8(read(reference).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn a_reference_leads_to_a_file_a_key_of_a_file_or_a_variable() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("all.json");
        std::fs::write(&file, r#"{"data":{"cert":"-----BEGIN\nX","n":7},"flat":"y"}"#).unwrap();
        let keyed = |key: &str| SecretRef::FileKey { file: file.clone(), key: key.into() };
        assert_eq!(bytes_of(&keyed("data.cert")), "-----BEGIN\nX");
        assert_eq!(bytes_of(&keyed("flat")), "y");
        for none in ["data", "data.n", "data.other", "flat.x", "data.cert.x", ""] {
            assert!(matches!(read(&keyed(none)), Err(ReadError::NoKey { .. })), "{none}");
        }
        assert!(bytes_of(&SecretRef::File(file.clone())).starts_with('{'));
        assert_eq!(file_of(&keyed("flat")), Some(file));
        assert!(!bytes_of(&SecretRef::Env("PATH".into())).is_empty());
        assert!(matches!(read(&SecretRef::Env("ADIT_NO_SUCH".into())), Err(ReadError::NoVariable(_))));
        let yaml = directory.path().join("all.yml");
        std::fs::write(&yaml, "a:\n  b: |\n    one\n    two\n").unwrap();
        assert_eq!(bytes_of(&SecretRef::FileKey { file: yaml, key: "a.b".into() }), "one\ntwo\n");
    }

    #[test]
    fn what_may_still_come_differs_from_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("empty"), " \n").unwrap();
        std::fs::write(at("large"), vec![b'x'; (MOST_BYTES + 1) as usize]).unwrap();
        std::fs::write(at("most"), vec![b'x'; MOST_BYTES as usize]).unwrap();
        let error = |path: PathBuf| read(&SecretRef::File(path)).unwrap_err();
        assert!(error(at("none")).may_come());
        assert!(error(at("empty")).may_come());
        assert!(matches!(error(at("large")), ReadError::TooLarge(_)));
        assert!(matches!(error(directory.path().into()), ReadError::Unreadable { .. }));
        assert!(!error(at("large")).may_come() && !error(directory.path().into()).may_come());
        assert_eq!(read(&SecretRef::File(at("most"))).unwrap().len() as u64, MOST_BYTES);
    }

    #[test]
    fn a_file_is_at_rest_once_nobody_has_changed_it_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let (file, none) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::write(&file, "x").unwrap();
        let files = [file, none];
        let left = settled(&files, Duration::from_secs(3600), || panic!("is not at rest")).unwrap_err();
        assert!(left > Duration::from_secs(3500) && left <= Duration::from_secs(3600), "{left:?}");
        assert_eq!(settled(&files, Duration::ZERO, || 1), Ok(1));
        assert_eq!(settled(&files[1..], Duration::from_secs(3600), || 2), Ok(2));
    }

    #[test]
    fn what_was_read_while_somebody_wrote_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let files = [at("a"), at("b")];
        std::fs::write(at("a"), "one two").unwrap();
        let during = |write: &dyn Fn()| settled(&files, Duration::ZERO, write);
        assert_eq!(during(&|| drop(read(&SecretRef::File(at("a"))))), Ok(()), "reading is no change");
        assert_eq!(during(&|| std::fs::write(at("a"), "one").unwrap()), Err(Duration::ZERO), "cut");
        let beside = || {
            std::fs::write(at("c"), "two").unwrap();
            std::fs::rename(at("c"), at("a")).unwrap();
        };
        assert_eq!(during(&beside), Err(Duration::ZERO), "renamed, as long as before");
        assert_eq!(during(&|| std::fs::write(at("b"), "one").unwrap()), Err(Duration::ZERO), "came");
        assert_eq!(during(&|| std::fs::remove_file(at("b")).unwrap()), Err(Duration::ZERO), "went");
    }
}
