//! Places for strangers, counted in all and by address: whoever comes takes one, and gives it back by going.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// All places are taken.
    Everywhere,
    /// This address has taken all that one address may.
    ForThisAddress,
}

/// Places for connections, counted in all and by address. The map holds only addresses with a place.
#[derive(Debug)]
pub struct Places {
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
#[must_use]
pub struct Place {
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
    /// So many in all, of which so many for one address.
    pub fn new(most: usize, most_per_address: usize) -> Arc<Self> {
        Arc::new(Self { most, most_per_address, taken: Mutex::default(), empty: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place.
    ///
    /// # Errors
    ///
    /// [`Full`]; nobody waits.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, Full> {
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

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.lock().all
    }

    /// Whether more than an eighth is taken: strangers then prove first that they are where they say they are.
    pub fn under_load(&self) -> bool {
        self.taken() > self.most / 8
    }

    /// Completes when no place is taken.
    pub async fn empty(&self) {
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
