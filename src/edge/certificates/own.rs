//! Leaves of the edge's own authority for the hostnames of its state.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::watch;

use crate::{
    edge::{
        leaf::{Clock, Issued, Leaf},
        state::Tunnels,
    },
    tls::{self, issue::Authority},
};

/// Names whose leaves are kept; a stranger can ask for as many names as he likes.
const KEPT: usize = 1024;

/// Makes a leaf when a name is asked for.
pub(super) struct Own {
    authority: Arc<Authority>,
    tunnels: watch::Receiver<Arc<Tunnels>>,
    issued: Mutex<HashMap<String, Issued>>,
    fallback: Leaf,
    clock: Clock,
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Own")
    }
}

impl Own {
    pub(super) fn new(
        authority: Arc<Authority>,
        tunnels: watch::Receiver<Arc<Tunnels>>,
        clock: Clock,
    ) -> Result<Self, tls::Error> {
        let fallback = Leaf::new(authority.clone(), &["localhost", "127.0.0.1"], clock)?;
        Ok(Self { authority, tunnels, issued: Mutex::default(), fallback, clock })
    }

    fn for_name(&self, name: &str) -> Arc<CertifiedKey> {
        if self.tunnels.borrow().for_host(name).is_empty() {
            return self.fallback.current();
        }
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = issued.get(name)
            && !known.is_old(self.clock)
        {
            return known.key.clone();
        }
        match Issued::new(&self.authority, &[name.to_owned()], self.clock) {
            Ok(made) => {
                if issued.len() >= KEPT {
                    issued.clear();
                }
                issued.insert(name.to_owned(), made.clone());
                made.key
            }
            Err(error) => {
                tracing::warn!(name, %error, "cannot issue a visitor's certificate");
                self.fallback.current()
            }
        }
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(match hello.server_name() {
            Some(name) => self.for_name(&name.to_lowercase()),
            None => self.fallback.current(),
        })
    }
}
