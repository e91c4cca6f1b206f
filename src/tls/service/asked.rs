//! What a handshake says to the dial it serves: whether the service asked for a certificate, and whether it got one.
//!
//! One resolver serves all dials of a way, since a session is resumed only with the resolver it began with; rustls holds
//! it weakly and compares the pointer. So the resolver finds the dial in a task-local, set while its handshake is polled.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use rustls::{SignatureScheme, client::ResolvesClientCert, sign::CertifiedKey};

use super::{Failure, sessions::Ends};
use crate::tls::keyring::{Identity, Unusable};

tokio::task_local! {
    static DIAL: Arc<Told>;
}

/// What became of a service's wish for a certificate.
#[derive(Clone, Debug, Default)]
pub(super) enum Answer {
    /// It has none.
    #[default]
    NotAsked,
    /// It got ours.
    Given,
    /// It takes no signature that our key can make.
    NoCommonScheme,
    /// There is none to give; `None`: none is configured.
    Unusable(Option<Unusable>),
}

/// What one dial was told so far.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Facts>);

#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) answer: Answer,
    pub(super) ends: Ends,
}

impl Told {
    /// Polls a handshake so that it finds this dial.
    pub(super) async fn during<F: Future>(self: &Arc<Self>, handshake: F) -> F::Output {
        DIAL.scope(self.clone(), handshake).await
    }

    pub(super) fn facts(&self) -> Facts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes something about the handshake that is being polled.
    pub(super) fn note(change: impl FnOnce(&mut Facts)) {
        // No handshake is polled outside of one.
        let _ = DIAL.try_with(|told| change(&mut told.0.lock().unwrap_or_else(PoisonError::into_inner)));
    }
}

/// What is presented on one way.
#[derive(Debug)]
pub(super) struct Presenter {
    identity: Option<(String, Result<Arc<Identity>, Unusable>)>,
    said: AtomicBool,
}

impl Presenter {
    /// An identity with its name.
    pub(super) fn new(identity: Option<(String, Result<Arc<Identity>, Unusable>)>) -> Self {
        Self { identity, said: AtomicBool::new(false) }
    }

    /// Whether there is anything to present, fit or not.
    pub(super) fn is_configured(&self) -> bool {
        self.identity.is_some()
    }

    fn usable(&self) -> Result<&Arc<Identity>, Option<Unusable>> {
        let (_, identity) = self.identity.as_ref().ok_or(None)?;
        let identity = identity.as_ref().map_err(|why| Some(why.clone()))?;
        identity.check(SystemTime::now()).map_err(Some)?;
        Ok(identity)
    }

    /// Whether it could be presented now.
    ///
    /// # Errors
    ///
    /// [`Failure::OwnIdentity`].
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.usable().map(|_| ()).map_err(|why| self.failure(why))
    }

    pub(super) fn failure(&self, why: Option<Unusable>) -> Failure {
        let name = self.identity.as_ref().map_or("", |(name, _)| name).to_owned();
        Failure::OwnIdentity { name, why: why.unwrap_or_else(|| Unusable::Unread("is not configured".into())) }
    }
}

impl ResolvesClientCert for Presenter {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // The authorities that a service names are a hint for those who have many certificates. Ours is configured.
        let (answer, given) = match self.usable() {
            Ok(identity) if identity.key.key.choose_scheme(schemes).is_some() => {
                (Answer::Given, Some(identity.key.clone()))
            }
            Ok(_) => (Answer::NoCommonScheme, None),
            Err(why) => {
                if let (Some((name, _)), Some(why)) = (&self.identity, &why)
                    && !self.said.swap(true, Ordering::Relaxed)
                {
                    tracing::warn!(identity = name, %why, "a service asks for a certificate and gets none");
                }
                (Answer::Unusable(why), None)
            }
        };
        Told::note(|facts| facts.answer = answer);
        given
    }

    fn has_certs(&self) -> bool {
        self.is_configured()
    }
}
