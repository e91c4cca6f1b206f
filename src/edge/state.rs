//! What an edge keeps on disk: its authority, and who may register (design: `DIR/ca.pem`, `ca.key`, `tunnels.yml`).
//!
//! No tunnel secret is at rest here, only SHA-256 of it; a secret has 256 random bits, so a plain hash is enough.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use rand::Rng;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;
use yaml_rust2::{
    Yaml, YamlLoader,
    parser::{Event, Parser},
};

use crate::{
    credentials::{Secret, Token},
    tls::issue::{self, Authority},
};

/// Why a state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A certificate without its key, or a key without its certificate.
    #[error("{dir} has {present} but not {missing}: restore it, or move {present} away to start a new authority")]
    Incomplete {
        /// The state.
        dir: String,
        /// What is there.
        present: &'static str,
        /// What is not.
        missing: &'static str,
    },
    /// The authority's files are malformed.
    #[error("{dir}: {source}")]
    Authority {
        /// The state.
        dir: String,
        /// Why.
        source: crate::tls::Error,
    },
    /// `tunnels.yml` is malformed; every mistake at once.
    #[error("{path}: {mistakes}")]
    Tunnels {
        /// The file.
        path: String,
        /// All mistakes.
        mistakes: String,
    },
    /// `token new --id` names a tunnel that is not there.
    #[error("{0} has no tunnel with this id; leave out --id to make a new one")]
    UnknownTunnel(String),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::Io { path, source }
}

/// A folder with the state of an edge.
#[derive(Clone, Debug)]
pub struct StateDir {
    dir: PathBuf,
}

/// One entry of `tunnels.yml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Tunnel id.
    pub id: Uuid,
    /// A name for people.
    pub name: String,
    /// SHA-256 of each secret that is accepted.
    pub secrets: Vec<[u8; 32]>,
    /// Lower-case hostnames, `*.` at the front at most.
    pub hostnames: Vec<String>,
    /// File with the rules that are pushed to its connectors, relative to the state.
    pub config: Option<PathBuf>,
}

impl Tunnel {
    /// Whether `secret` is one of this tunnel's; takes the same time for every wrong one.
    pub fn accepts(&self, secret: &[u8]) -> bool {
        let hash: [u8; 32] = Sha256::digest(secret).into();
        self.secrets.iter().fold(subtle::Choice::from(0), |found, known| found | known.ct_eq(&hash)).into()
    }
}

/// Which content `tunnels.yml` had, as far as its folder tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

/// All tunnels, indexed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tunnels {
    list: Vec<Tunnel>,
    exact: HashMap<String, Vec<Uuid>>,
    wildcard: Vec<(String, Uuid)>,
}

impl Tunnels {
    fn new(list: Vec<Tunnel>) -> Self {
        let mut exact: HashMap<String, Vec<Uuid>> = HashMap::new();
        let mut wildcard = Vec::new();
        for tunnel in &list {
            for hostname in &tunnel.hostnames {
                match hostname.strip_prefix('*') {
                    Some(suffix) => wildcard.push((suffix.to_owned(), tunnel.id)),
                    None => exact.entry(hostname.clone()).or_default().push(tunnel.id),
                }
            }
        }
        // The most specific wildcard first.
        wildcard.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        Self { list, exact, wildcard }
    }

    /// Every tunnel.
    pub fn iter(&self) -> impl Iterator<Item = &Tunnel> {
        self.list.iter()
    }

    /// The tunnel with this id.
    pub fn get(&self, id: Uuid) -> Option<&Tunnel> {
        self.list.iter().find(|tunnel| tunnel.id == id)
    }

    /// The tunnels that serve `host` (lower case, no port): all with that name, else those with the longest wildcard.
    pub fn for_host(&self, host: &str) -> Vec<Uuid> {
        if let Some(ids) = self.exact.get(host) {
            return ids.clone();
        }
        let mut longest = None;
        let mut ids = Vec::new();
        for (suffix, id) in &self.wildcard {
            if longest.is_some_and(|length| length != suffix.len()) {
                break;
            }
            if host.len() > suffix.len() && host.ends_with(suffix.as_str()) {
                longest = Some(suffix.len());
                ids.push(*id);
            }
        }
        ids
    }
}

impl StateDir {
    /// The state in `dir`; nothing is read yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The authority's certificate, what connectors trust.
    pub fn ca_path(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    fn tunnels_path(&self) -> PathBuf {
        self.dir.join("tunnels.yml")
    }

    /// Reads the state, first creating what is missing. Creation is exclusive: of two edges that start at once, one
    /// makes the authority and the other reads it. A complete state is not written.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn open(&self) -> Result<(Authority, Tunnels), Error> {
        let (ca, key) = (self.ca_path(), self.dir.join("ca.key"));
        match (ca.exists(), key.exists()) {
            (true, true) => {}
            (false, false) => self.create_authority(&ca, &key)?,
            (true, false) => {
                // Another process may be between the two files.
                return Err(self.incomplete("ca.pem", "ca.key"));
            }
            (false, true) => {
                if !wait_for(&ca) {
                    return Err(self.incomplete("ca.key", "ca.pem"));
                }
            }
        }
        let read = |path: &Path| fs::read_to_string(path).map_err(io_error(path));
        let key_pem = zeroize::Zeroizing::new(read(&key)?);
        let authority = Authority::from_pem(&read(&ca)?, &key_pem)
            .map_err(|source| Error::Authority { dir: self.dir.display().to_string(), source })?;
        let tunnels = self.tunnels_path();
        if !tunnels.exists() {
            match write_new(&tunnels, b"[]\n", 0o640) {
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
                written => written?,
            }
        }
        Ok((authority, self.tunnels()?))
    }

    fn incomplete(&self, present: &'static str, missing: &'static str) -> Error {
        Error::Incomplete { dir: self.dir.display().to_string(), present, missing }
    }

    /// The key first, exclusively: whoever wins it writes the certificate, everybody else waits for that.
    fn create_authority(&self, ca: &Path, key: &Path) -> Result<(), Error> {
        fs::create_dir_all(&self.dir).map_err(io_error(&self.dir))?;
        let made = issue::new_authority("adit edge authority")
            .map_err(|source| Error::Authority { dir: self.dir.display().to_string(), source })?;
        match write_new(key, made.key_pem.as_bytes(), 0o600) {
            Ok(()) => write_new(ca, made.certificate_pem.as_bytes(), 0o644),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                if wait_for(ca) {
                    Ok(())
                } else {
                    Err(self.incomplete("ca.key", "ca.pem"))
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Of `tunnels.yml` as it is now; `None` while it cannot be seen.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(self.tunnels_path()).ok()?;
        let modified = (meta.mtime(), meta.mtime_nsec());
        Some(Stamp { file: (meta.dev(), meta.ino()), size: meta.len(), modified })
    }

    /// Reads `tunnels.yml` anew.
    ///
    /// # Errors
    ///
    /// [`Error`]; every mistake of the file at once.
    pub fn tunnels(&self) -> Result<Tunnels, Error> {
        let path = self.tunnels_path();
        let text = fs::read_to_string(&path).map_err(io_error(&path))?;
        parse_tunnels(&text)
            .map(Tunnels::new)
            .map_err(|mistakes| Error::Tunnels { path: path.display().to_string(), mistakes })
    }

    /// Makes a tunnel, or a further secret for the tunnel `id`, and returns its token, which is kept nowhere.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn new_token(&self, hostnames: &[String], id: Option<Uuid>) -> Result<Token, Error> {
        self.open()?;
        let mut secret = vec![0u8; 32];
        rand::rng().fill_bytes(&mut secret);
        let hash: [u8; 32] = Sha256::digest(&secret).into();
        let path = self.tunnels_path();
        // The new file is the lock: only one process can create it.
        let draft = self.dir.join("tunnels.yml.new");
        let mut list = {
            write_new(&draft, b"", 0o640)?;
            match self.tunnels() {
                Ok(tunnels) => tunnels.list,
                Err(error) => {
                    let _ = fs::remove_file(&draft);
                    return Err(error);
                }
            }
        };
        let hostnames = hostnames.iter().map(|name| name.trim_end_matches('.').to_lowercase());
        let tunnel = match id {
            Some(id) => {
                let Some(tunnel) = list.iter_mut().find(|tunnel| tunnel.id == id) else {
                    let _ = fs::remove_file(&draft);
                    return Err(Error::UnknownTunnel(self.dir.display().to_string()));
                };
                tunnel.secrets.push(hash);
                for hostname in hostnames {
                    if !tunnel.hostnames.contains(&hostname) {
                        tunnel.hostnames.push(hostname);
                    }
                }
                id
            }
            None => {
                let id = Uuid::new_v4();
                let hostnames: Vec<_> = hostnames.collect();
                let name = hostnames.first().cloned().unwrap_or_else(|| id.to_string());
                list.push(Tunnel { id, name, secrets: vec![hash], hostnames, config: None });
                id
            }
        };
        fs::write(&draft, render_tunnels(&list)).map_err(io_error(&draft))?;
        fs::rename(&draft, &path).map_err(io_error(&path))?;
        Ok(Token { account: "adit".into(), tunnel, secret: Secret::new(secret), endpoint: None })
    }
}

fn wait_for(path: &Path) -> bool {
    // Only between two writes of another process that starts at this very moment.
    for _ in 0..200 {
        if fs::metadata(path).is_ok_and(|meta| meta.len() > 0) {
            return true;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    false
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(io_error(path))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io_error(path))
}

fn render_tunnels(list: &[Tunnel]) -> String {
    let mut text = String::new();
    // A text of JSON is one of YAML, control characters included.
    let quoted = |s: &str| serde_json::Value::from(s).to_string();
    for tunnel in list {
        text.push_str(&format!("- id: {}\n  name: {}\n  secretSha256:\n", tunnel.id, quoted(&tunnel.name)));
        for secret in &tunnel.secrets {
            let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
            text.push_str(&format!("    - \"{hex}\"\n"));
        }
        let names: Vec<_> = tunnel.hostnames.iter().map(|name| quoted(name)).collect();
        text.push_str(&format!("  hostnames: [{}]\n", names.join(", ")));
        if let Some(config) = &tunnel.config {
            text.push_str(&format!("  config: {}\n", quoted(&config.display().to_string())));
        }
    }
    if list.is_empty() { "[]\n".into() } else { text }
}

/// Refuses what the loader, which calls itself for every level and copies what an alias names, would end the process
/// with. A list of tunnels nests three levels deep.
fn check_shape(text: &str) -> Result<(), String> {
    const MAX_DEPTH: usize = 16;
    let mut parser = Parser::new_from_str(text);
    let mut depth = 0;
    loop {
        match parser.next_token().map_err(|error| error.to_string())?.0 {
            Event::StreamEnd => return Ok(()),
            Event::Alias(_) => return Err("aliases are not supported".into()),
            Event::SequenceStart(..) | Event::MappingStart(..) if depth == MAX_DEPTH => {
                return Err(format!("more than {MAX_DEPTH} levels"));
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => depth += 1,
            Event::SequenceEnd | Event::MappingEnd => depth -= 1,
            _ => {}
        }
    }
}

fn parse_tunnels(text: &str) -> Result<Vec<Tunnel>, String> {
    check_shape(text)?;
    let documents = YamlLoader::load_from_str(text).map_err(|error| error.to_string())?;
    let entries = match documents.first() {
        None | Some(Yaml::Null | Yaml::BadValue) => return Ok(Vec::new()),
        Some(Yaml::Array(entries)) => entries,
        Some(_) => return Err("not a list of tunnels".into()),
    };
    let mut mistakes = Vec::new();
    let mut list = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        match parse_tunnel(entry) {
            Ok(tunnel) => list.push(tunnel),
            Err(found) => mistakes.extend(found.into_iter().map(|m| format!("tunnel {}: {m}", at + 1))),
        }
    }
    if mistakes.is_empty() { Ok(list) } else { Err(mistakes.join("; ")) }
}

fn parse_tunnel(entry: &Yaml) -> Result<Tunnel, Vec<String>> {
    let Yaml::Hash(map) = entry else { return Err(vec!["not a mapping".into()]) };
    let mut mistakes = Vec::new();
    for key in map.keys() {
        if !matches!(key.as_str(), Some("id" | "name" | "secretSha256" | "hostnames" | "config")) {
            mistakes.push(format!("unknown key {}", key.as_str().unwrap_or("?")));
        }
    }
    let id = entry["id"].as_str().and_then(|id| Uuid::parse_str(id).ok());
    if id.is_none() {
        mistakes.push("id is not a UUID".into());
    }
    let texts = |node: &Yaml| -> Option<Vec<String>> {
        match node {
            Yaml::BadValue => Some(Vec::new()),
            Yaml::String(one) => Some(vec![one.clone()]),
            Yaml::Array(many) => many.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
            _ => None,
        }
    };
    let mut secrets = Vec::new();
    for hex in texts(&entry["secretSha256"]).unwrap_or_default() {
        match parse_hash(&hex) {
            Some(hash) => secrets.push(hash),
            None => mistakes.push("secretSha256 is not 64 hex digits".into()),
        }
    }
    if secrets.is_empty() && mistakes.is_empty() {
        mistakes.push("secretSha256 is missing (quote it: 64 digits may read as a number)".into());
    }
    let hostnames = match texts(&entry["hostnames"]) {
        Some(names) => names.iter().map(|name| name.trim_end_matches('.').to_lowercase()).collect(),
        None => {
            mistakes.push("hostnames is not a list of names".into());
            Vec::new()
        }
    };
    for name in &hostnames {
        let name: &String = name;
        if name.is_empty() || name.chars().skip(1).any(|c| c == '*') || name.contains([':', '/', ' ']) {
            mistakes.push(format!("{name:?} is not a hostname"));
        }
    }
    match (id, mistakes.is_empty()) {
        (Some(id), true) => Ok(Tunnel {
            id,
            name: entry["name"].as_str().unwrap_or_default().to_owned(),
            secrets,
            hostnames,
            config: entry["config"].as_str().map(PathBuf::from),
        }),
        _ => Err(mistakes),
    }
}

fn parse_hash(hex: &str) -> Option<[u8; 32]> {
    // `+f` parses as a number too.
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}
