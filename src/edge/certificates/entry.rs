//! One entry of the file: its hostnames, and what its files held when they were last whole.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    DistinguishedName, RootCertStore, ServerConfig,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::{ClientAuth, Error, FileCertificate, own::Own, server_config, sessions::Sessions};
use crate::{
    config::{IdentitySource, SecretRef},
    edge::trust::Trust,
    identity::Digest,
    secrets,
    tls::{
        self,
        keyring::Identity,
        pem::{self, PemError},
        possession::Possession,
    },
};

/// Names of authorities told to visitors; where they are more, none is told.
const MOST_HINTS: usize = 16 << 10;

/// Silence after the last write, as where files are followed.
const SETTLE: Duration = Duration::from_millis(200);
/// Attempts on files that somebody writes; whoever follows them reads again once he is done.
const ATTEMPTS: usize = 10;

/// A certificate for hostnames, and what their visitors are asked for.
pub(in crate::edge) struct Entry {
    file: FileCertificate,
    own: Arc<Own>,
    sessions: Arc<Sessions>,
    now: watch::Sender<Generation>,
    /// What was said of files that cannot be used, certificate and trust, so that it is said once. Held by who reads.
    told: Mutex<[Option<String>; 2]>,
}

/// What is in force.
#[derive(Clone)]
struct Generation {
    material: Option<Loaded<Identity>>,
    trust: Option<Loaded<Trust>>,
    config: Arc<ServerConfig>,
}

/// What became of files with these contents.
struct Loaded<T> {
    of: Digest,
    value: Arc<T>,
}

impl<T> Clone for Loaded<T> {
    fn clone(&self) -> Self {
        Self { of: self.of, value: self.value.clone() }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({:?}, {:?})", self.file.hostnames, self.file.client_auth)
    }
}

impl Entry {
    pub(super) fn new(file: FileCertificate, own: Arc<Own>) -> Result<Self, Error> {
        let sessions = Sessions::new();
        let material = load_material(&file, None)?;
        let trust = load_trust(&file, None)?;
        if let Some(loaded) = &material
            && let Err(error) = in_time(&file, &loaded.value)
        {
            // Of no use to a visitor, but its successor may come at any time.
            tracing::error!(hostnames = ?file.hostnames, %error, "visitors will not trust this edge");
        }
        let config = config(&file, &own, material.as_ref(), trust.as_ref(), &sessions)?;
        let now = watch::Sender::new(Generation { material, trust, config });
        Ok(Self { file, own, sessions, now, told: Mutex::default() })
    }

    /// Whether this very name stands in it.
    pub(super) fn names(&self, name: &str) -> bool {
        self.file.hostnames.iter().any(|hostname| hostname == name)
    }

    /// The length of its longest `*.` that this name is below.
    pub(super) fn is_above(&self, name: &str) -> Option<usize> {
        let suffixes = self.file.hostnames.iter().filter_map(|pattern| pattern.strip_prefix('*'));
        suffixes.filter(|suffix| name.len() > suffix.len() && name.ends_with(suffix)).map(str::len).max()
    }

    pub(super) fn server_config(&self) -> Arc<ServerConfig> {
        self.now.borrow().config.clone()
    }

    /// What visitors are asked for.
    pub(in crate::edge) fn client_auth(&self) -> ClientAuth {
        self.file.client_auth
    }

    /// What visitors' certificates are held against, of this moment.
    pub(in crate::edge) fn trust(&self) -> Option<Arc<Trust>> {
        self.now.borrow().trust.as_ref().map(|loaded| loaded.value.clone())
    }

    /// Whether a visitor who was asked for this entry has been asked for all that the other demands, too.
    pub(in crate::edge) fn covers(&self, other: &Self) -> bool {
        self.file.client_auth >= other.file.client_auth
            && (other.file.trust.is_empty() || self.file.trust == other.file.trust)
    }

    pub(super) fn files(&self) -> Vec<PathBuf> {
        let material = self.file.material.iter().flat_map(|source| [Some(&source.certificate), source.key.as_ref()]);
        material.flatten().chain(&self.file.trust).filter_map(secrets::file_of).collect()
    }

    /// When the certificate from its file, or one of its chain, ends.
    pub(super) fn not_after(&self) -> Option<i64> {
        self.now.borrow().material.as_ref().map(|loaded| loaded.value.valid().1)
    }

    /// What its files hold now that they have settled. `None`: they do not; they are told as changed once they have.
    fn load(&self, before: &Generation) -> Option<(Read<Identity>, Read<Trust>)> {
        let load = || {
            let old = before.material.as_ref();
            let material = load_material(&self.file, old).and_then(|loaded| match &loaded {
                Some(new) if of(old) != Some(new.of) => in_time(&self.file, &new.value).map(|()| loaded),
                _ => Ok(loaded),
            });
            (material, load_trust(&self.file, before.trust.as_ref()))
        };
        let files = self.files();
        for _ in 0..ATTEMPTS {
            match secrets::settled(&files, SETTLE, load) {
                Ok(loaded) => return Some(loaded),
                Err(left) => std::thread::sleep(left),
            }
        }
        None
    }

    /// Returns what [`super::Certificates::reload`] sums up.
    pub(super) fn reload(&self) -> (usize, usize) {
        // Before anything is read: who published last has read last.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.now.borrow().clone();
        let Some((material, trust)) = self.load(&before) else {
            tracing::warn!(hostnames = ?self.file.hostnames, "visitors' TLS: files do not come to rest, the old stay");
            return (0, 0);
        };
        let [about_material, about_trust] = &mut *told;
        let mut refused = 0;
        let material = kept(material, before.material.clone(), about_material, &mut refused, "certificate", self);
        let trust = kept(trust, before.trust.clone(), about_trust, &mut refused, "trust", self);
        let new_material = of(material.as_ref()) != of(before.material.as_ref());
        let new_trust = of(trust.as_ref()) != of(before.trust.as_ref());
        if !new_material && !new_trust {
            return (0, refused);
        }
        match config(&self.file, &self.own, material.as_ref(), trust.as_ref(), &self.sessions) {
            Ok(config) => {
                let hostnames = &self.file.hostnames;
                tracing::info!(?hostnames, certificate = new_material, trust = new_trust, "visitors' TLS changed");
                self.now.send_replace(Generation { material, trust, config });
                (usize::from(new_material) + usize::from(new_trust), refused)
            }
            Err(error) => {
                tracing::error!(hostnames = ?self.file.hostnames, %error, "visitors' TLS stays as it was");
                (0, refused + 1)
            }
        }
    }
}

fn of<T>(loaded: Option<&Loaded<T>>) -> Option<Digest> {
    loaded.map(|loaded| loaded.of)
}

/// What became of reading; `None`: nothing is to be read.
type Read<T> = Result<Option<Loaded<T>>, Error>;

/// The new if it can be used, else the old.
fn kept<T>(
    new: Read<T>,
    old: Option<Loaded<T>>,
    told: &mut Option<String>,
    refused: &mut usize,
    what: &str,
    entry: &Entry,
) -> Option<Loaded<T>> {
    match new {
        Ok(new) => {
            *told = None;
            new
        }
        Err(error) => {
            let error = error.to_string();
            if told.as_ref() != Some(&error) {
                let hostnames = &entry.file.hostnames;
                tracing::error!(?hostnames, what, error, "visitors' TLS: a changed file is not used, the old stays");
                *refused += 1;
                *told = Some(error);
            }
            old
        }
    }
}

/// `before` again, if the sources hold what they held.
fn load_material(file: &FileCertificate, before: Option<&Loaded<Identity>>) -> Read<Identity> {
    let Some(IdentitySource { certificate, key }) = &file.material else { return Ok(None) };
    let key = key.as_ref().unwrap_or(certificate);
    let (chain, secret) = (secrets::read(certificate)?, secrets::read(key)?);
    let of = digest([&chain, &secret]);
    if let Some(before) = before.filter(|before| before.of == of) {
        return Ok(Some(before.clone()));
    }
    let chain = pem::certificates(&chain).map_err(wrong(certificate))?;
    let key = pem::key(&secret).map_err(wrong(key))?;
    let identity = Identity::new(chain, key);
    let identity = identity.map_err(|source| Error::Identity { origin: certificate.to_string(), source })?;
    Ok(Some(Loaded { of, value: Arc::new(identity) }))
}

fn load_trust(file: &FileCertificate, before: Option<&Loaded<Trust>>) -> Read<Trust> {
    if file.trust.is_empty() {
        return Ok(None);
    }
    let read = file.trust.iter().map(secrets::read).collect::<Result<Vec<_>, _>>()?;
    let of = digest(&read);
    if let Some(before) = before.filter(|before| before.of == of) {
        return Ok(Some(before.clone()));
    }
    let mut anchors = Vec::new();
    for (source, pem) in file.trust.iter().zip(&read) {
        anchors.extend(pem::certificates(pem).map_err(wrong(source))?);
    }
    Ok(Some(Loaded { of, value: Arc::new(Trust::new(anchors)?) }))
}

fn wrong(origin: &SecretRef) -> impl FnOnce(PemError) -> Error {
    let origin = origin.to_string();
    move |source| Error::Pem { origin, source }
}

/// Of several files: where one ends counts.
fn digest<'a>(files: impl IntoIterator<Item = &'a Zeroizing<Vec<u8>>>) -> Digest {
    let digests: Vec<u8> = files.into_iter().flat_map(|bytes| Digest::of(bytes).0).collect();
    Digest::of(&digests)
}

/// Whether a visitor would take the certificate now, as far as its time and that of its chain go.
fn in_time(file: &FileCertificate, identity: &Identity) -> Result<(), Error> {
    let origin = || file.material.as_ref().map(|source| source.certificate.to_string()).unwrap_or_default();
    identity.check(SystemTime::now()).map_err(|why| Error::Time { origin: origin(), why })
}

fn config(
    file: &FileCertificate,
    own: &Arc<Own>,
    material: Option<&Loaded<Identity>>,
    trust: Option<&Loaded<Trust>>,
    sessions: &Arc<Sessions>,
) -> Result<Arc<ServerConfig>, tls::Error> {
    let resolver: Arc<dyn ResolvesServerCert> = match material {
        Some(loaded) => {
            Arc::new(FromFile { hostnames: file.hostnames.clone(), key: loaded.value.key.clone(), own: own.clone() })
        }
        None => own.clone(),
    };
    let verifier = match file.client_auth {
        ClientAuth::Off => WebPkiClientVerifier::no_client_auth(),
        // One that is too large is answered 403, or relayed as unusable: an alert would not say why.
        ClientAuth::Optional | ClientAuth::Required => Possession::verifier(hints(trust), None),
    };
    server_config(resolver, verifier, sessions.clone())
}

/// A visitor with several certificates chooses by these; one that finds none of its own here shows none.
fn hints(trust: Option<&Loaded<Trust>>) -> Vec<DistinguishedName> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(trust.iter().flat_map(|loaded| loaded.value.anchors().iter().cloned()));
    let hints = store.subjects();
    let size: usize = hints.iter().map(|name| name.as_ref().len() + 2).sum();
    if size <= MOST_HINTS { hints } else { Vec::new() }
}

/// The file's certificate for the names it can be valid for.
#[derive(Debug)]
struct FromFile {
    hostnames: Vec<String>,
    key: Arc<CertifiedKey>,
    own: Arc<Own>,
}

impl ResolvesServerCert for FromFile {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().is_some_and(|name| matches_any(&self.hostnames, &name.to_lowercase()));
        if named { Some(self.key.clone()) } else { self.own.resolve(hello) }
    }
}

fn matches_any(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_prefix("*.") {
        // A wildcard in a certificate stands for one label (RFC 9525 §6.3).
        Some(parent) => name.split_once('.').is_some_and(|(_, rest)| rest == parent),
        None => pattern == name,
    })
}
