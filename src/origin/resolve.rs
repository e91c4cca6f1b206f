//! Names of services into addresses.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

/// Who answers for names.
#[derive(Clone, Debug, Default)]
pub enum Resolver {
    /// The system: hosts file, search domains, DNS.
    #[default]
    System,
    /// A table that can be changed while in use; a test's.
    Table(Arc<Mutex<HashMap<String, Vec<IpAddr>>>>),
}

impl Resolver {
    /// The addresses of a name, in the order of preference; asked anew each time.
    ///
    /// # Errors
    ///
    /// The system's; [`io::ErrorKind::NotFound`] for a name without an address.
    pub async fn look_up(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let found: Vec<_> = match self {
            Self::System => tokio::net::lookup_host((host, port)).await?.collect(),
            Self::Table(table) => {
                let table = table.lock().unwrap_or_else(PoisonError::into_inner);
                table.get(host).into_iter().flatten().map(|ip| SocketAddr::new(*ip, port)).collect()
            }
        };
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(found)
    }
}
