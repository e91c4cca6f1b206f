//! Bounds on everything that a stranger can grow: visitors from outside, and connectors before they registered.

use std::time::Duration;

pub(super) use crate::places::{Full, Place, Places};

/// The edge file's `limits`. What is above a bound is refused at once and counted; nothing waits in a queue of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Visitors' connections, all together.
    pub connections: usize,
    /// Of these, from one address (IPv6: from one /64, which is what one customer gets).
    pub connections_per_address: usize,
    /// Requests in flight, WebSockets included; half of them, rounded up, from one address.
    pub requests: usize,
    /// Requests in flight on one HTTP/2 connection.
    pub streams_per_connection: u32,
    /// Bytes of a request head.
    pub header_bytes: u32,
    /// Header lines of a request in HTTP/1.1 (above 100 every request costs an allocation); in HTTP/2 the bytes are the
    /// bound.
    pub header_lines: usize,
    /// For the first request head of a visitor's connection.
    pub header_time: Duration,
    /// For a visitor's TLS handshake.
    pub tls_time: Duration,
    /// A visitor's connection without a request, and the time for every request head but the first.
    pub idle_time: Duration,
    /// Connectors between their first packet and their registration, all together.
    pub arrivals: usize,
    /// Of these, from one address.
    pub arrivals_per_address: usize,
    /// For each step of a connector from its first packet to its registration: handshake, control stream, registration.
    pub arrival_time: Duration,
}

impl Default for Limits {
    /// An idle visitor costs about 20 KiB, so all of them cost 640 MiB at most. Half of the places are open to one
    /// address: a proxy in front of the edge is one address, and one stranger must not shut out everybody. A connector
    /// arrives in a few round trips, so 512 at once are thousands a second.
    fn default() -> Self {
        Self {
            connections: 32_768,
            connections_per_address: 16_384,
            requests: 32_768,
            streams_per_connection: 250,
            header_bytes: 256 << 10,
            header_lines: 100,
            header_time: Duration::from_secs(15),
            tls_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(75),
            arrivals: 512,
            arrivals_per_address: 128,
            arrival_time: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// HTTP/2 makes many requests of few connections, so the bound on these alone would let one address take all.
    pub(super) fn requests_per_address(&self) -> usize {
        self.requests.div_ceil(2)
    }
}
