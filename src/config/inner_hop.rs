//! `innerHop`: what adit proves to services, what they must prove, and who may ask for what.
//!
//! Names of secrets stand here, never their content.

mod allow;
mod callers;
mod demand;
mod export;
mod read;
mod scope;

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

use http::Method;

use super::allowlist::ServicePattern;
use super::hostname::Hostname;
use crate::identity::{Digest, DnsPattern, Expect, SpiffePattern};

pub(crate) use callers::CallersPatch;
pub(crate) use export::{of_rule, view};
pub(crate) use read::{Inline, Section, identity};
pub(crate) use scope::{Scope, ServiceAt};

/// A secret or a certificate that stands somewhere else.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SecretRef {
    /// `$CREDENTIALS_DIRECTORY/NAME`, systemd's.
    Credential(String),
    /// An environment variable, read once.
    Env(String),
    /// A file, followed.
    File(PathBuf),
    /// One key, a dotted path, of a JSON or YAML file.
    FileKey {
        /// The file.
        file: PathBuf,
        /// The dotted path.
        key: String,
    },
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(name) => write!(f, "the credential {name}"),
            Self::Env(name) => write!(f, "the environment variable {name}"),
            Self::File(file) => file.display().fmt(f),
            Self::FileKey { file, key } => write!(f, "{}, key {key}", file.display()),
        }
    }
}

/// Where an identity comes from: one PEM bundle, or certificate and key apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdentitySource {
    /// Leaf and chain; the key too, if `key` is not given.
    pub certificate: SecretRef,
    /// The key.
    pub key: Option<SecretRef>,
}

/// An identity by the name that rules know it by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedIdentity {
    /// For people, logs and metrics.
    pub name: String,
    /// Where it comes from.
    pub source: IdentitySource,
}

/// How much the hop to a service must prove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MutualTls {
    /// Everywhere.
    Always,
    /// Nothing: a certificate is presented where one is asked for.
    #[default]
    Optional,
    /// The other end of the stream does the TLS itself; for services that carry none of adit's.
    Passthrough,
    /// Everywhere but on loopback and unix sockets.
    Remote,
}

/// What holds between adit and one service; everything inherited is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// How much is demanded.
    pub mode: MutualTls,
    /// The identity that is presented.
    pub present: Option<NamedIdentity>,
    /// What the service must prove to be; empty: the server name.
    pub expect: Vec<Expect>,
    /// Trust in services; `None`: the system's roots and `caPool`.
    pub origin_trust: Option<Vec<SecretRef>>,
    /// Who may ask; `None`: visitors are not asked who they are.
    pub callers: Option<Arc<Callers>>,
}

/// Hops by host: which one a request of a rule takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hops {
    /// In order, the first whose host matches; `None` is any host.
    pub choices: Vec<(Option<Hostname>, Arc<Hop>)>,
    /// When none matches; `None`: the request is refused.
    pub otherwise: Option<Arc<Hop>>,
}

impl Hops {
    /// One hop for every request.
    pub fn always(hop: Arc<Hop>) -> Self {
        Self { choices: Vec::new(), otherwise: Some(hop) }
    }

    /// Each of them, in order.
    pub fn each(&self) -> impl Iterator<Item = &Arc<Hop>> {
        self.choices.iter().map(|(_, hop)| hop).chain(&self.otherwise)
    }
}

/// How callers are known and what they may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callers {
    /// Where trust begins.
    pub trust_anchors: Vec<SecretRef>,
    /// Certificates between, for callers who do not send them.
    pub intermediates: Vec<SecretRef>,
    /// Certificates that are valid by themselves.
    pub allowlisted: Vec<SecretRef>,
    /// Lists of revoked certificates.
    pub crls: Vec<SecretRef>,
    /// Requests without a valid certificate pass, marked as such.
    pub allow_invalid_or_missing: bool,
    /// Whose word on a visitor's certificate is believed.
    pub relayed_by: RelayedBy,
    /// What the service hears of the caller.
    pub headers: Vec<CallerHeaders>,
    /// In front of the fourteen names of [`CallerHeaders::XClientCert`]; ends in `-`.
    pub header_prefix: String,
    /// Who may do what; `None`: every valid caller everything, empty: nobody anything.
    pub allow: Option<Vec<Allow>>,
}

impl Default for Callers {
    /// What a section says that says nothing: nobody is known, so that nobody passes.
    fn default() -> Self {
        Self {
            trust_anchors: Vec::new(),
            intermediates: Vec::new(),
            allowlisted: Vec::new(),
            crls: Vec::new(),
            allow_invalid_or_missing: false,
            relayed_by: RelayedBy::default(),
            headers: vec![CallerHeaders::XClientCert],
            header_prefix: "X-Client-Cert-".to_owned(),
            allow: None,
        }
    }
}

/// Whose relayed certificate is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RelayedBy {
    /// `adit edge`, confirmed at registration and proven by `--edge-ca`: RFC 9440.
    #[default]
    AditEdge,
    /// `Cf-Client-Cert-Der-Base64`.
    Cloudflare,
    /// `Client-Cert` and `Client-Cert-Chain` of any edge (RFC 9440).
    Rfc9440,
    /// `X-Forwarded-Client-Cert` of any edge.
    Xfcc,
}

/// A family of headers that tells a service of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerHeaders {
    /// `Client-Cert` and `Client-Cert-Chain` (RFC 9440).
    Rfc9440,
    /// Fourteen headers with a free prefix.
    XClientCert,
    /// `X-Forwarded-Client-Cert`.
    Xfcc,
}

/// An entry of `allow`: everything given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// The SPIFFE ID.
    pub id: Option<SpiffePattern>,
    /// One of the DNS names.
    pub dns: Option<DnsPattern>,
    /// The digest of the certificate.
    pub fingerprint: Option<Digest>,
    /// The digest of the issuer's public key.
    pub issuer: Option<Digest>,
    /// The methods; `None`: all.
    pub methods: Option<Vec<Method>>,
    /// Prefixes of paths in their normal form; `None`: all.
    pub paths: Option<Vec<String>>,
}

/// The file's `innerHop`, and the inline ones of its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InnerHop {
    /// The file has `innerHop` or `guard` somewhere: headers that speak of certificates are taken from every request.
    pub strips: bool,
    /// What holds where no entry matches; `None`: there is no section at the top.
    pub top: Option<Arc<Hop>>,
    /// `innerHop.rules`, in order.
    pub entries: Vec<HopEntry>,
    /// What the inline ones of the file's rules become once rules are pushed: they stand before `entries` then.
    pub inline: Vec<HopEntry>,
    /// Everything that may be presented, by name.
    pub identities: BTreeMap<String, IdentitySource>,
    /// Streams without a rule, `bastion` and `socks-proxy` are allowed under a mode that demands.
    pub private_network: bool,
    /// In front of the headers that tell of callers, wherever in the file: a service may be reached by a rule and by a
    /// guard, and what one of them writes nobody may say through the other.
    pub prefixes: Arc<[String]>,
}

impl InnerHop {
    /// Every hop that rules may take.
    fn hops(&self) -> impl Iterator<Item = &Arc<Hop>> {
        self.top.iter().chain(self.entries.iter().chain(&self.inline).map(|entry| &entry.hop))
    }

    fn callers(&self) -> impl Iterator<Item = &Arc<Callers>> {
        self.hops().filter_map(|hop| hop.callers.as_ref())
    }

    /// Whether visitors are known by the word of an edge of our own.
    pub fn believes_own_edge(&self) -> bool {
        self.callers().any(|callers| callers.relayed_by == RelayedBy::AditEdge)
    }

    /// Whether something must be proven on some hop.
    pub fn demands(&self) -> bool {
        self.hops().any(|hop| matches!(hop.mode, MutualTls::Always | MutualTls::Remote))
    }

    /// Notes the prefixes of the headers that services may be told under, these of guards too.
    pub(crate) fn note_prefixes<'a>(&mut self, guards: impl Iterator<Item = &'a Arc<Callers>>) {
        let of = |callers: &Arc<Callers>| callers.header_prefix.clone();
        let mut prefixes: Vec<String> = self.callers().map(of).chain(guards.map(of)).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        self.prefixes = prefixes.into();
    }
}

/// An entry of `innerHop.rules`, or an inline `innerHop` as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopEntry {
    /// Hosts of requests; `None`: any.
    pub hostname: Option<Hostname>,
    /// Services, any one of them; empty: any at all.
    pub services: Vec<ServicePattern>,
    /// What holds there.
    pub hop: Arc<Hop>,
}
