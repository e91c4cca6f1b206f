//! Bounds on everything that a stranger can grow: visitors from outside, and connectors before they registered.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

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

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All places are taken.
    Everywhere,
    /// This address has taken all that one address may.
    ForThisAddress,
}

/// Places for connections, counted in all and by address. The map holds only addresses with a place.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    most_per_address: usize,
    taken: Mutex<Taken>,
    empty: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One place; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

/// What counts as one address.
fn one_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

impl Places {
    pub(super) fn new(most: usize, most_per_address: usize) -> Arc<Self> {
        Arc::new(Self { most, most_per_address, taken: Mutex::default(), empty: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, Full> {
        let address = one_address(address);
        let mut taken = self.lock();
        if taken.all >= self.most {
            return Err(Full::Everywhere);
        }
        let here = taken.by_address.get(&address).copied().unwrap_or(0);
        if here >= self.most_per_address {
            return Err(Full::ForThisAddress);
        }
        taken.by_address.insert(address, here + 1);
        taken.all += 1;
        Ok(Place { places: self.clone(), address })
    }

    pub(super) fn taken(&self) -> usize {
        self.lock().all
    }

    /// Whether more than an eighth is taken: strangers then prove first that they are where they say they are.
    pub(super) fn under_load(&self) -> bool {
        self.taken() > self.most / 8
    }

    /// Completes when no place is taken.
    pub(super) async fn empty(&self) {
        loop {
            let mut empty = std::pin::pin!(self.empty.notified());
            // Listening first: whoever leaves in between would not be heard.
            empty.as_mut().enable();
            if self.taken() == 0 {
                return;
            }
            empty.await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        let here = taken.by_address.get(&self.address).copied().unwrap_or(1);
        if here > 1 {
            taken.by_address.insert(self.address, here - 1);
        } else {
            taken.by_address.remove(&self.address);
        }
        if taken.all == 0 {
            self.places.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn places_are_bounded_in_all_and_by_address_and_come_back() {
        let places = Places::new(3, 2);
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let first = places.enter(one).unwrap();
        let _second = places.enter(one).unwrap();
        assert_eq!(places.enter(one).unwrap_err(), Full::ForThisAddress);
        let third = places.enter(other).unwrap();
        assert_eq!(places.enter(address("192.0.2.3")).unwrap_err(), Full::Everywhere);
        drop(first);
        let _again = places.enter(one).unwrap();
        drop(third);
        assert_eq!(places.taken(), 2);
        assert_eq!(places.lock().by_address.len(), 1, "an address without a place is forgotten");
    }

    #[test]
    fn one_customer_of_ipv6_is_one_address_and_mapped_ipv4_is_ipv4() {
        assert_eq!(one_address(address("2001:db8::1")), one_address(address("2001:db8::2:3:4:5")));
        assert_ne!(one_address(address("2001:db8::1")), one_address(address("2001:db8:0:1::1")));
        assert_eq!(one_address(address("::ffff:192.0.2.1")), address("192.0.2.1"));
    }
}
