//! TLS of a guard: one identity, and callers who prove the key of what they show.
//!
//! Each identity has its own configuration, and so its own memory of sessions: whoever resumes one was shown the
//! certificate in force.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DistinguishedName, ServerConfig,
    pki_types::{CertificateDer, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{
    Error,
    callers::{CallerError, Shown},
    keyring::Identity,
    possession::{LARGEST, Possession},
    proof_of_key, provider,
};

/// Why a caller gets no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnedAway {
    /// The certificate proves nothing.
    Invalid,
    /// Its time is not now.
    Expired,
    /// It is known, and may not come.
    NotAllowed,
    /// It was taken back.
    Revoked,
    /// No anchor stands behind it.
    UnknownIssuer,
}

impl From<CallerError> for TurnedAway {
    fn from(error: CallerError) -> Self {
        match error {
            CallerError::Expired | CallerError::NotYetValid => Self::Expired,
            CallerError::Revoked | CallerError::RevocationUnknown => Self::Revoked,
            CallerError::UnknownIssuer => Self::UnknownIssuer,
            _ => Self::Invalid,
        }
    }
}

impl From<TurnedAway> for rustls::Error {
    /// Each becomes an alert of its own (RFC 8446 §6.2).
    fn from(why: TurnedAway) -> Self {
        Self::InvalidCertificate(match why {
            TurnedAway::Invalid => CertificateError::BadEncoding,
            TurnedAway::Expired => CertificateError::Expired,
            TurnedAway::NotAllowed => CertificateError::ApplicationVerificationFailure,
            TurnedAway::Revoked => CertificateError::Revoked,
            TurnedAway::UnknownIssuer => CertificateError::UnknownIssuer,
        })
    }
}

/// Decides in the handshake who comes in, by what is in force at that moment.
pub trait Doorkeeper: Send + Sync + 'static {
    /// Whether somebody who shows nothing is to be judged later.
    fn takes_strangers(&self) -> bool;

    /// Whether whoever shows this comes in.
    ///
    /// # Errors
    ///
    /// [`TurnedAway`].
    fn admit(&self, shown: &Shown) -> Result<(), TurnedAway>;
}

/// For HTTP: whoever proves the key of any certificate, or has none, gets a connection, and is judged with each request.
/// Sessions may be resumed: what was shown is kept with them.
///
/// # Errors
///
/// Those of rustls.
pub fn for_requests(identity: Option<&Identity>) -> Result<Arc<ServerConfig>, Error> {
    let mut config = config(identity, possession())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// For streams: who does not come in gets an alert. Nothing is resumed, since rustls does not ask again then.
///
/// # Errors
///
/// Those of rustls.
pub fn for_streams(identity: Option<&Identity>, door: Arc<dyn Doorkeeper>) -> Result<Arc<ServerConfig>, Error> {
    let mut config = config(identity, Arc::new(Door { possession: possession(), keeper: door }))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// No authorities are named: some clients would keep a certificate to themselves whose issuer is not among them, and
/// intermediates that the guard adds by itself could not be told from strangers. What is shown stays with the
/// connection, so there is not much of it.
fn possession() -> Arc<Possession> {
    Possession::verifier(Vec::new(), Some(LARGEST))
}

fn config(identity: Option<&Identity>, verifier: Arc<dyn ClientCertVerifier>) -> Result<ServerConfig, Error> {
    let resolver: Arc<dyn ResolvesServerCert> = match identity {
        Some(identity) => Arc::new(SingleCertAndKey::from(CertifiedKey::clone(&identity.key))),
        None => Arc::new(Nobody),
    };
    Ok(ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver))
}

/// There is nothing to show: an alert.
#[derive(Debug)]
struct Nobody;

impl ResolvesServerCert for Nobody {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

struct Door {
    possession: Arc<Possession>,
    keeper: Arc<dyn Doorkeeper>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Door")
    }
}

impl ClientCertVerifier for Door {
    fn client_auth_mandatory(&self) -> bool {
        !self.keeper.takes_strangers()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.possession.verify_client_cert(leaf, chain, now)?;
        let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
        self.keeper.admit(&Shown { leaf: leaf.clone().into_owned(), chain })?;
        Ok(ClientCertVerified::assertion())
    }

    proof_of_key!(possession.algorithms);
}
