//! TLS towards a service: what is presented, demanded and expected on one way, in one generation of secrets.
//!
//! A service proves that it checks certificates by asking for ours. Whether it asked is known when the handshake is
//! over, and before anything else is sent; sessions are resumed only from handshakes in which it did. Early data is
//! never sent.

mod asked;
mod failure;
mod sessions;
mod verify;

use std::sync::Arc;

use rustls::{
    ClientConfig, HandshakeKind, RootCertStore,
    client::{Resumption, danger::ServerCertVerifier},
    pki_types::ServerName,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Error,
    keyring::{Keyring, OriginTrust, Unusable},
    provider,
    roots::Roots,
    unverified,
};
use crate::config::{Hop, OriginOptions};
use asked::{Answer, Presenter, Told};
pub use failure::{Failure, alert_name, refuses};
use sessions::{OfDial, Sessions};
use verify::Verifier;

/// What the services of one way have in common.
#[derive(Debug)]
pub struct ServiceTls {
    verifier: Result<Arc<dyn ServerCertVerifier>, Unusable>,
    presenter: Arc<Presenter>,
    unverified: bool,
    http2: bool,
}

impl ServiceTls {
    /// Takes identity and trust of `hop` from `keyring`. What is unusable there fails the dials that need it.
    ///
    /// # Errors
    ///
    /// When `caPool` cannot be used and `roots` takes that for a mistake, or something is expected of a service that is not verified.
    pub fn new(hop: &Hop, options: &OriginOptions, keyring: &Keyring, roots: &Roots) -> Result<Self, Error> {
        if options.no_tls_verify && !hop.expect.is_empty() {
            return Err(Error::Unsatisfiable("noTLSVerify verifies nothing, and something is expected"));
        }
        let trust = match &hop.origin_trust {
            Some(sources) => keyring.origin_trust(sources).map(|trust| OriginTrust::clone(&trust)),
            None if options.no_tls_verify => Ok(fixed(RootCertStore::empty())),
            None => roots.with(options.ca_pool.as_deref())?.map(fixed),
        };
        let provider = provider();
        let verifier = trust.map(|trust| -> Arc<dyn ServerCertVerifier> {
            if options.no_tls_verify {
                unverified::accept_any(&provider)
            } else {
                Arc::new(Verifier::new(trust, hop.expect.clone(), &provider))
            }
        });
        let present = hop.present.as_ref().map(|named| (named.name.clone(), keyring.identity(&named.source)));
        Ok(Self {
            verifier,
            presenter: Arc::new(Presenter::new(present)),
            unverified: options.no_tls_verify,
            http2: options.http2_origin,
        })
    }

    /// Handshakes with one service, which must be mutual if `demanded`.
    ///
    /// # Errors
    ///
    /// When they never could be: nothing to present, or no verification.
    pub fn handshakes(&self, demanded: bool) -> Result<Handshakes, Error> {
        if demanded && self.unverified {
            return Err(Error::Unsatisfiable("mutual TLS is demanded, and noTLSVerify verifies nothing"));
        }
        if demanded && !self.presenter.is_configured() {
            return Err(Error::Unsatisfiable("mutual TLS is demanded, and there is no identity to present"));
        }
        let configs = match &self.verifier {
            Ok(verifier) => {
                let mut http1 = ClientConfig::builder_with_provider(provider())
                    .with_safe_default_protocol_versions()?
                    .dangerous()
                    .with_custom_certificate_verifier(verifier.clone())
                    .with_client_cert_resolver(self.presenter.clone());
                let mut both = http1.clone();
                if self.http2 {
                    both.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
                    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
                }
                Ok(Configs { both, http1 })
            }
            Err(why) => Err(why.clone()),
        };
        Ok(Handshakes {
            configs,
            presenter: self.presenter.clone(),
            sessions: Arc::default(),
            demanded,
            unverified: self.unverified,
            http2: self.http2,
        })
    }
}

fn fixed(roots: RootCertStore) -> OriginTrust {
    OriginTrust { current: Arc::new(roots), previous: None }
}

#[derive(Debug)]
struct Configs {
    both: ClientConfig,
    /// Without an offer of HTTP/2.
    http1: ClientConfig,
}

/// Handshakes with one service on one way: they alone share sessions.
#[derive(Debug)]
pub struct Handshakes {
    configs: Result<Configs, Unusable>,
    presenter: Arc<Presenter>,
    sessions: Arc<Sessions>,
    demanded: bool,
    unverified: bool,
    http2: bool,
}

impl Handshakes {
    /// Whether HTTP/2 is offered.
    pub fn offers_h2(&self) -> bool {
        self.http2
    }

    /// Whether the service's certificate proves nothing (noTLSVerify).
    pub fn is_unverified(&self) -> bool {
        self.unverified
    }

    /// Whether there is a point in dialling, or in using a connection that is there: our own side can do its part.
    ///
    /// # Errors
    ///
    /// [`Failure::OwnTrust`]; [`Failure::OwnIdentity`] where it is demanded.
    pub fn check(&self) -> Result<(), Failure> {
        if let Err(why) = &self.configs {
            return Err(Failure::OwnTrust(why.clone()));
        }
        if self.demanded { self.presenter.check() } else { Ok(()) }
    }

    /// Makes TLS of a connection, with an offer of HTTP/2 or without (`http1`). What comes back has proven all that is
    /// demanded; where only the trust before a change vouches for it, until the time beside it, and is used no more then.
    ///
    /// # Errors
    ///
    /// [`Failure`]; the caller bounds the time.
    pub async fn shake<IO>(
        &self,
        name: ServerName<'static>,
        io: IO,
        http1: bool,
    ) -> Result<(TlsStream<IO>, Option<Instant>), Failure>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let configs = self.configs.as_ref().map_err(|why| Failure::OwnTrust(why.clone()))?;
        let mut config = if http1 { configs.http1.clone() } else { configs.both.clone() };
        let sessions = Arc::new(OfDial::new(self.sessions.clone()));
        config.resumption = Resumption::store(sessions.clone());
        let told = Arc::new(Told::default());
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, io);
        let stream = told.during(connecting).await.map_err(Failure::of_handshake)?;
        let facts = told.facts();
        if stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
            return Ok((stream, sessions.resumed().trust));
        }
        let failure = match facts.answer {
            Answer::Given => None,
            _ if !self.demanded => None,
            Answer::NotAsked => Some(Failure::NotAsking),
            Answer::NoCommonScheme => Some(Failure::NoCommonScheme),
            Answer::Unusable(why) => Some(self.presenter.failure(why)),
        };
        match failure {
            None => {
                sessions.proved(facts.ends);
                Ok((stream, facts.ends.trust))
            }
            Some(failure) => {
                sessions.failed();
                Err(failure)
            }
        }
    }
}

#[cfg(test)]
mod tests;
