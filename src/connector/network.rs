//! The way that packets take from here: which local address the system would send from.
//!
//! Asking costs three system calls and sends nothing; it tells a changed route or address without privileges and
//! without a netlink socket. A change is a reason to dial at once instead of waiting.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

/// How often a waiting connection looks.
const LOOK: Duration = Duration::from_millis(250);

/// The address that packets to `edge` would have; `None` while there is no route.
pub(super) fn source_towards(edge: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if edge.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(edge).ok()?;
    socket.local_addr().ok().map(|addr| addr.ip())
}

/// Completes when packets to `edge` would get another, usable address than now.
pub(super) async fn rerouted(edge: Option<SocketAddr>) {
    let Some(edge) = edge else { return std::future::pending().await };
    let before = source_towards(edge);
    loop {
        tokio::time::sleep(LOOK).await;
        let now = source_towards(edge);
        if now.is_some() && now != before {
            return;
        }
    }
}
