//! Which callers may do what: default deny once there is a list.

use std::sync::Arc;

use http::{HeaderMap, Method};

use super::{Caller, MaybeCaller, Relayed, check::Check, headers::Writer};
use crate::{
    code::Code,
    config::{Allow, AmbiguousPath, Callers, NormalPath, RelayedBy},
    metrics::callers::Decision,
    tls::callers::CallerError,
};

/// What one hop demands of its callers, in one generation of rules and trust.
#[derive(Debug, Default)]
pub struct Policy(Terms);

#[derive(Debug, Default)]
enum Terms {
    /// Trust is configured and cannot be used: nobody is who he says.
    Closed(Arc<str>),
    /// Whoever is known by the check and on the list, of whom the service hears.
    Known(Arc<Callers>, Arc<Check>, Writer),
    #[default]
    Open,
}

/// Leave to open a service for one request; only a [`Policy`] gives it.
#[derive(Clone, Debug)]
pub struct Permit {
    caller: MaybeCaller,
}

impl Permit {
    /// Who asks, if that is known.
    pub fn caller(&self) -> &MaybeCaller {
        &self.caller
    }
}

/// Why there is no leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// What is allowed depends on the path, and that can be read in two ways.
    #[error("the path can be read in two ways")]
    Ambiguous,
    /// There is nothing to verify a certificate against.
    #[error("the trust in callers cannot be used")]
    Closed,
    /// A certificate that proves nothing.
    #[error("the caller's certificate is not valid: {0} ({cause})", cause = .0.cause())]
    Invalid(CallerError),
    /// No certificate.
    #[error("the caller has no certificate")]
    Missing,
    /// A caller, a method or a path that is not on the list.
    #[error("the caller is not allowed to do this")]
    NotAllowed,
}

impl Denied {
    /// What is counted.
    pub fn decision(self) -> Decision {
        match self {
            Self::Ambiguous => Decision::Ambiguous,
            Self::Closed => Decision::Closed,
            Self::Invalid(error) => Decision::Invalid(error.cause()),
            Self::Missing => Decision::Missing,
            Self::NotAllowed => Decision::NotAllowed,
        }
    }

    /// What the visitor is told.
    pub fn code(self) -> Code {
        match self {
            Self::Ambiguous => Code::PathAmbiguous,
            Self::Closed | Self::Invalid(_) => Code::CallerInvalid,
            Self::Missing => Code::CallerMissing,
            Self::NotAllowed => Code::CallerNotAllowed,
        }
    }
}

impl Policy {
    /// Whoever is known by `check`, and on the list if there is one.
    pub fn new(callers: &Arc<Callers>, check: Arc<Check>) -> Self {
        Self(Terms::Known(callers.clone(), check, Writer::new(callers)))
    }

    /// Nobody passes, since trust cannot be used; the reason is for people and holds no secret.
    pub fn closed(reason: impl Into<Arc<str>>) -> Self {
        Self(Terms::Closed(reason.into()))
    }

    /// Nobody is asked who he is.
    pub fn open() -> Self {
        Self(Terms::Open)
    }

    /// Whether nobody is asked.
    pub fn is_open(&self) -> bool {
        matches!(self.0, Terms::Open)
    }

    /// Whether what is allowed depends on method or path, so that a header must not change them behind our back.
    pub fn decides_by_request(&self) -> bool {
        let list = self.callers().and_then(|callers| callers.allow.as_deref()).unwrap_or_default();
        list.iter().any(|entry| entry.methods.is_some() || entry.paths.is_some())
    }

    /// Why nobody passes, where trust cannot be used.
    pub fn unusable(&self) -> Option<&str> {
        match &self.0 {
            Terms::Closed(reason) => Some(reason),
            Terms::Known(..) | Terms::Open => None,
        }
    }

    /// How callers are known, where they are asked and can be known.
    pub fn callers(&self) -> Option<&Arc<Callers>> {
        match &self.0 {
            Terms::Known(callers, ..) => Some(callers),
            Terms::Closed(_) | Terms::Open => None,
        }
    }

    /// The relayed form to read, if there is one to believe: by default that of an edge that is proven to be our own.
    pub fn believes(&self, own_edge: bool) -> Option<RelayedBy> {
        let relayed_by = self.callers()?.relayed_by;
        (own_edge || relayed_by != RelayedBy::AditEdge).then_some(relayed_by)
    }

    /// Who it is that an edge or a handshake showed.
    pub fn identify(&self, shown: Relayed) -> MaybeCaller {
        match &self.0 {
            Terms::Known(_, check, _) => check.caller(shown),
            Terms::Closed(_) | Terms::Open => None,
        }
    }

    /// Decides on one request. `path` is percent-encoded as it came, without the query.
    ///
    /// With a list it needs an entry of which everything given matches; an entry is for valid callers alone. The path
    /// counts last: one that can be read in two ways is refused if an entry that names paths would otherwise match and
    /// no entry without paths does, and is nobody's business elsewhere.
    ///
    /// # Errors
    ///
    /// [`Denied`].
    pub fn admit(&self, caller: MaybeCaller, method: &Method, path: &str) -> Result<Permit, Denied> {
        self.decide(caller.as_deref(), method, path).map(|()| Permit { caller })
    }

    /// Decides anew on a request that another generation gave leave to: its certificate is verified again.
    ///
    /// # Errors
    ///
    /// [`Denied`].
    pub fn readmit(&self, caller: &MaybeCaller, method: &Method, path: &str) -> Result<Permit, Denied> {
        let shown = caller.as_ref().map_or(Relayed::Nothing, |caller| Relayed::Shown(caller.shown.clone()));
        self.admit(self.identify(shown), method, path)
    }

    /// Tells the service who asks, in the headers that were configured.
    pub fn tell(&self, headers: &mut HeaderMap, permit: &Permit) {
        if let Terms::Known(_, _, writer) = &self.0 {
            writer.write(headers, &permit.caller);
        }
    }

    fn decide(&self, caller: Option<&Caller>, method: &Method, path: &str) -> Result<(), Denied> {
        let callers = match &self.0 {
            Terms::Open => return Ok(()),
            Terms::Closed(_) => return Err(Denied::Closed),
            Terms::Known(callers, ..) => callers,
        };
        let valid = match caller {
            None => Err(Denied::Missing),
            Some(caller) => caller.verdict.map(|()| caller).map_err(Denied::Invalid),
        };
        match (valid, &callers.allow) {
            (Ok(_), None) => Ok(()),
            (Ok(caller), Some(list)) => listed(list, caller, method, path),
            (Err(_), None) if callers.allow_invalid_or_missing => Ok(()),
            // No entry is for somebody who has proven nothing.
            (Err(_), Some(_)) if callers.allow_invalid_or_missing => Err(Denied::NotAllowed),
            (Err(denied), _) => Err(denied),
        }
    }
}

fn listed(list: &[Allow], caller: &Caller, method: &Method, path: &str) -> Result<(), Denied> {
    let mut otherwise = Denied::NotAllowed;
    // Read when the first entry asks for it.
    let mut normal = None;
    for entry in list.iter().filter(|entry| is_for(entry, caller, method)) {
        let Some(prefixes) = &entry.paths else { return Ok(()) };
        match *normal.get_or_insert_with(|| NormalPath::new(path)) {
            Ok(path) if prefixes.iter().any(|prefix| path.is_under(prefix)) => return Ok(()),
            Ok(_) => {}
            Err(AmbiguousPath) => otherwise = Denied::Ambiguous,
        }
    }
    Err(otherwise)
}

/// Whether everything that an entry gives but its paths matches.
fn is_for(entry: &Allow, caller: &Caller, method: &Method) -> bool {
    let Allow { id, dns, fingerprint, issuer, methods, paths: _ } = entry;
    let certificate = caller.certificate.as_ref();
    methods.as_ref().is_none_or(|methods| methods.contains(method))
        && id.as_ref().is_none_or(|id| certificate.and_then(|c| c.spiffe_id.as_ref()).is_some_and(|it| id.matches(it)))
        && fingerprint.is_none_or(|digest| certificate.is_some_and(|c| c.fingerprint == digest))
        && issuer.is_none_or(|digest| caller.issuer_key == Some(digest))
        && dns.as_ref().is_none_or(|dns| certificate.is_some_and(|c| c.dns_names.iter().any(|it| dns.matches(it))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::{CallerHeaders, SecretRef},
        identity::{Certificate, Digest},
        tls::callers::{CallerTrust, Shown, Verified},
    };

    const GET: Method = Method::GET;

    fn policy(allow: Option<Vec<Allow>>, lenient: bool) -> Policy {
        let callers = Callers {
            trust_anchors: vec![SecretRef::Env("CA".into())],
            intermediates: Vec::new(),
            allowlisted: Vec::new(),
            crls: Vec::new(),
            allow_invalid_or_missing: lenient,
            relayed_by: RelayedBy::AditEdge,
            headers: vec![CallerHeaders::XClientCert],
            header_prefix: "X-Client-Cert-".into(),
            allow,
        };
        Policy::new(&Arc::new(callers), Arc::new(Check::new(Arc::new(CallerTrust::default()))))
    }

    fn caller(id: &str, dns: &str, verdict: Result<(), CallerError>) -> MaybeCaller {
        let certificate = Certificate {
            fingerprint: Digest::of(id.as_bytes()),
            key_digest: Digest::of(b"key"),
            serial: vec![1],
            spiffe_id: id.parse().ok(),
            uris: vec![id.into()],
            dns_names: vec![dns.into()],
            issuer: Vec::new(),
            subject: Vec::new(),
            not_before: 0,
            not_after: i64::MAX,
        };
        let shown = Shown { leaf: Vec::new().into(), chain: Arc::from([]) };
        let mut caller = Caller::new(
            shown,
            verdict.map(|()| Verified { issuer_key: Some(Digest::of(b"issuer")), ..Verified::default() }),
        );
        caller.certificate = Some(certificate);
        Some(Arc::new(caller))
    }

    fn a() -> MaybeCaller {
        caller("spiffe://example.org/worker/a", "a.example.org", Ok(()))
    }

    fn invalid() -> MaybeCaller {
        caller("spiffe://example.org/worker/a", "a.example.org", Err(CallerError::ValidationFailed))
    }

    fn entry(id: &str) -> Allow {
        Allow { id: Some(id.parse().unwrap()), ..Allow::default() }
    }

    fn decided(policy: &Policy, caller: MaybeCaller, method: Method, path: &str) -> Result<(), Denied> {
        policy.admit(caller, &method, path).map(drop)
    }

    #[test]
    fn without_a_list_every_valid_caller_passes_and_nobody_else() {
        let strict = policy(None, false);
        assert_eq!(decided(&strict, a(), GET, "/a;b//.."), Ok(()), "the path does not matter");
        assert_eq!(decided(&strict, None, GET, "/"), Err(Denied::Missing));
        assert_eq!(decided(&strict, invalid(), GET, "/"), Err(Denied::Invalid(CallerError::ValidationFailed)));
        let lenient = policy(None, true);
        for caller in [a(), None, invalid()] {
            assert_eq!(decided(&lenient, caller, GET, "/"), Ok(()));
        }
        for caller in [a(), None, invalid()] {
            assert_eq!(decided(&Policy::open(), caller.clone(), GET, "/"), Ok(()));
            assert_eq!(decided(&Policy::closed("no anchors"), caller, GET, "/"), Err(Denied::Closed));
        }
    }

    #[test]
    fn a_list_is_for_valid_callers_alone_whatever_else_is_let_through() {
        let anybody = || Some(vec![Allow::default()]);
        for lenient in [false, true] {
            assert_eq!(decided(&policy(anybody(), lenient), a(), GET, "/"), Ok(()));
            assert_eq!(decided(&policy(Some(Vec::new()), lenient), a(), GET, "/"), Err(Denied::NotAllowed));
        }
        for caller in [None, invalid()] {
            assert!(decided(&policy(anybody(), false), caller.clone(), GET, "/").is_err());
            assert_eq!(decided(&policy(anybody(), true), caller, GET, "/"), Err(Denied::NotAllowed));
        }
    }

    #[test]
    fn everything_that_an_entry_gives_must_match() {
        let full = Allow {
            id: Some("spiffe://example.org/worker/*".parse().unwrap()),
            dns: Some("*.example.org".parse().unwrap()),
            fingerprint: Some(Digest::of(b"spiffe://example.org/worker/a")),
            issuer: Some(Digest::of(b"issuer")),
            methods: Some(vec![GET]),
            paths: Some(vec!["/v1".into()]),
        };
        let so = |entry: Allow| decided(&policy(Some(vec![entry]), false), a(), GET, "/v1/x");
        assert_eq!(so(full.clone()), Ok(()));
        for wrong in [
            Allow { id: Some("spiffe://example.org/worker/b".parse().unwrap()), ..full.clone() },
            Allow { dns: Some("b.example.org".parse().unwrap()), ..full.clone() },
            Allow { fingerprint: Some(Digest::of(b"other")), ..full.clone() },
            Allow { issuer: Some(Digest::of(b"other")), ..full.clone() },
            Allow { methods: Some(vec![Method::PUT]), ..full.clone() },
            Allow { methods: Some(Vec::new()), ..full.clone() },
            Allow { paths: Some(vec!["/v2".into(), "/v1/xy".into()]), ..full.clone() },
            Allow { paths: Some(Vec::new()), ..full },
        ] {
            assert_eq!(so(wrong.clone()), Err(Denied::NotAllowed), "{wrong:?}");
        }
    }

    #[test]
    fn an_ambiguous_path_matters_where_an_entry_that_names_paths_would_decide() {
        let worker = Allow { paths: Some(vec!["/v1".into()]), ..entry("spiffe://example.org/worker/a") };
        let admin = entry("spiffe://example.org/admin");
        let get_all = Allow { methods: Some(vec![GET]), ..entry("spiffe://example.org/worker/a") };
        let is_admin = || caller("spiffe://example.org/admin", "x", Ok(()));
        let list = policy(Some(vec![worker, admin, get_all]), false);
        for path in ["/v1/%2e%2e/x", "/v1/../x", "/v1//x", "/v1/a;b", "/v1%2fx"] {
            assert_eq!(decided(&list, a(), Method::PUT, path), Err(Denied::Ambiguous), "{path}");
            assert_eq!(decided(&list, is_admin(), Method::PUT, path), Ok(()), "{path}");
            assert_eq!(decided(&list, a(), GET, path), Ok(()), "an entry without paths lets it pass: {path}");
            let other = caller("spiffe://example.org/worker/c", "x", Ok(()));
            assert_eq!(decided(&list, other, GET, path), Err(Denied::NotAllowed), "{path}");
        }
    }

    #[test]
    fn the_default_believes_an_edge_of_our_own_alone() {
        assert_eq!(policy(None, false).believes(true), Some(RelayedBy::AditEdge));
        assert_eq!(policy(None, false).believes(false), None);
        assert_eq!((Policy::open().believes(true), Policy::closed("").believes(true)), (None, None));
    }

    fn entries() -> impl Strategy<Value = Vec<Allow>> {
        let id = prop::option::of(prop::sample::select(vec!["spiffe://e/a", "spiffe://e/b", "spiffe://e/*"]));
        let dns = prop::option::of(prop::sample::select(vec!["a.e", "*.e"]));
        let methods = prop::option::of(prop::collection::vec(prop::sample::select(vec![GET, Method::PUT]), 0..2));
        let paths = prop::option::of(prop::collection::vec(prop::sample::select(vec!["/", "/a", "/a/b"]), 0..3));
        let entry = (id, dns, methods, paths).prop_map(|(id, dns, methods, paths)| Allow {
            id: id.map(|id| id.parse().unwrap()),
            dns: dns.map(|dns| dns.parse().unwrap()),
            methods,
            paths: paths.map(|paths| paths.into_iter().map(String::from).collect()),
            ..Allow::default()
        });
        prop::collection::vec(entry, 0..4)
    }

    proptest! {
        /// More entries never take leave away, and leave always has an entry that gives it alone.
        #[test]
        fn any_entry_suffices_and_none_stands_in_the_way(
            list in entries(),
            more in entries(),
            id in prop::sample::select(vec!["spiffe://e/a", "spiffe://e/b", "spiffe://e/b/c", ""]),
            dns in prop::sample::select(vec!["a.e", "b.e", "c"]),
            put in any::<bool>(),
            path in prop::sample::select(vec!["/", "/a", "/ab", "/a/b/c", "/a/..", "/a;b", "/b"]),
        ) {
            let method = if put { Method::PUT } else { GET };
            let who = || caller(id, dns, Ok(()));
            let decide = |list: Vec<Allow>| decided(&policy(Some(list), false), who(), method.clone(), path);
            let together = decide(list.clone());
            let alone = list.iter().any(|entry| decide(vec![entry.clone()]).is_ok());
            prop_assert_eq!(together.is_ok(), alone);
            if together.is_ok() {
                prop_assert_eq!(decide([more, list.clone()].concat()), Ok(()));
            }
            let unpathed = list.iter().all(|entry| entry.paths.is_none());
            prop_assert!(!unpathed || together != Err(Denied::Ambiguous));
            let nobody = caller(id, dns, Err(CallerError::ValidationFailed));
            prop_assert!(decided(&policy(Some(list), true), nobody, method, path).is_err());
        }
    }
}
