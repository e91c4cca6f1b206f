//! `guard`: listeners that do mutual TLS for a service that cannot.

mod read;

use std::{net::SocketAddr, sync::Arc};

use super::inner_hop::{Callers, Hop, IdentitySource};
use super::origin::OriginOptions;
use super::service::Service;
use crate::identity::SpiffePattern;

pub(crate) use read::read;

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Where peers connect.
    pub listen: SocketAddr,
    /// What the guard proves to them.
    pub certificate: IdentitySource,
    /// Where what they say goes.
    pub service: Service,
    /// The service as configured.
    pub spelling: String,
    /// How it is spoken to.
    pub origin: OriginOptions,
    /// What holds between the guard and its service.
    pub hop: Arc<Hop>,
    /// Who may connect, and what they may do.
    pub callers: Arc<Callers>,
    /// Peers whose certificate headers pass unchanged.
    pub keep_headers_from: Vec<SpiffePattern>,
    /// As [`InnerHop::prefixes`](super::InnerHop::prefixes).
    pub prefixes: Arc<[String]>,
}
