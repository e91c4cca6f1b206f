//! Leaves of the edge's own authority, renewed while it runs: they live 90 days, and an edge may run for longer.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::tls::{self, issue::Authority, material::Material};

/// A leaf lives for 90 days and is replaced when less than 30 are left, so it is used for 60.
const USED_FOR: Duration = Duration::from_secs(60 * 24 * 3600);

/// What time it is.
pub(super) type Clock = fn() -> SystemTime;

fn certified(material: Material) -> Result<Arc<CertifiedKey>, tls::Error> {
    Ok(Arc::new(CertifiedKey::from_der(material.chain, material.key, &tls::provider())?))
}

/// A leaf and when it was made.
#[derive(Clone)]
pub(super) struct Issued {
    pub(super) key: Arc<CertifiedKey>,
    made: SystemTime,
}

impl Issued {
    pub(super) fn new(authority: &Authority, names: &[String], clock: Clock) -> Result<Self, tls::Error> {
        Ok(Self { key: certified(authority.issue_server(names)?)?, made: clock() })
    }

    /// Whether it is to be replaced. A clock that was set back does not age it.
    pub(super) fn is_old(&self, clock: Clock) -> bool {
        clock().duration_since(self.made).is_ok_and(|age| age >= USED_FOR)
    }
}

/// One leaf for fixed names, whatever name is asked for.
pub(super) struct Leaf {
    authority: Arc<Authority>,
    names: Vec<String>,
    clock: Clock,
    current: Mutex<Issued>,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leaf({:?})", self.names)
    }
}

impl Leaf {
    pub(super) fn new(authority: Arc<Authority>, names: &[&str], clock: Clock) -> Result<Self, tls::Error> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let current = Mutex::new(Issued::new(&authority, &names, clock)?);
        Ok(Self { authority, names, clock, current })
    }

    /// The leaf, a new one if it is old. Making one takes less than a millisecond, once in 60 days.
    pub(super) fn current(&self) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_old(self.clock) {
            match Issued::new(&self.authority, &self.names, self.clock) {
                Ok(next) => {
                    tracing::info!(names = ?self.names, "certificate renewed");
                    *current = next;
                }
                Err(error) => tracing::error!(names = ?self.names, %error, "the certificate cannot be renewed"),
            }
        }
        current.key.clone()
    }
}

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static DAYS: Cell<u64> = const { Cell::new(0) };
    }

    /// Days since the test began.
    fn clock() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 24 * 3600 + DAYS.get() * 24 * 3600)
    }

    #[test]
    fn a_leaf_is_renewed_once_when_less_than_thirty_of_its_ninety_days_are_left() {
        let made = tls::issue::new_authority("test").unwrap();
        let authority = Arc::new(Authority::from_pem(&made.certificate_pem, &made.key_pem).unwrap());
        let leaf = Leaf::new(authority, &["quic.cftunnel.com"], clock).unwrap();
        let first = leaf.current();
        DAYS.set(59);
        assert!(Arc::ptr_eq(&first, &leaf.current()));
        DAYS.set(61);
        let second = leaf.current();
        assert_ne!(first.cert[0], second.cert[0]);
        assert_eq!(first.cert[1], second.cert[1], "the authority stays");
        assert!(Arc::ptr_eq(&second, &leaf.current()));
        DAYS.set(0);
        assert!(Arc::ptr_eq(&second, &leaf.current()), "a clock set back renews nothing");
    }
}
