//! Which connection goes to which edge address, while addresses come, go and stop answering.
//!
//! One task looks names up and plans; connections only read the plan. With `--edge` every address has at least one
//! connection whose home it is, and there are as many connections as that takes; a connection that cannot reach its
//! home goes elsewhere and comes back. Discovered addresses are as good as each other: there a connection that fails
//! gets another home.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, watch};

use super::discovery::{self, EdgeSource, Found};
use crate::shutdown::Tasks;

/// Names of `--edge` are asked for this often, so that new replicas are found.
const REFRESH: Duration = Duration::from_secs(10);
/// Look-ups asked for by failing connections keep this distance.
const LEAST_GAP: Duration = Duration::from_secs(1);
/// An address is forgotten when this many look-ups in a row did not name it: some servers answer with a part only.
const FORGOTTEN_AFTER: u8 = 3;
/// Connections of one connector, however many addresses a name has.
const MOST: usize = 32;

/// The addresses, and the plan made of them.
#[derive(Debug)]
pub(super) struct Addresses {
    source: EdgeSource,
    least: usize,
    plan: watch::Sender<Plan>,
    wanted: Notify,
    failing: Mutex<HashSet<SocketAddr>>,
}

/// The plan in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    regions: [Vec<SocketAddr>; 2],
    /// How many look-ups in a row did not name an address.
    missing: HashMap<SocketAddr, u8>,
    /// The home of each connection by index; empty before the first look-up that found something.
    homes: Vec<SocketAddr>,
    failure: Option<Arc<discovery::Error>>,
    look_ups: u64,
}

impl Addresses {
    /// Nothing is looked up yet; at least `least` connections are planned.
    pub(super) fn new(source: EdgeSource, least: u8) -> Self {
        let (plan, _) = watch::channel(Plan::default());
        let least = usize::from(least).max(1);
        Self { source, least, plan, wanted: Notify::new(), failing: Mutex::default() }
    }

    /// Starts looking up, until drained.
    pub(super) fn follow(self: &Arc<Self>, tasks: &Tasks) {
        let this = self.clone();
        let draining = tasks.draining();
        tasks.attend(async move {
            tokio::select! {
                () = this.look_up_for_ever() => {}
                () = draining.cancelled() => {}
            }
        });
    }

    async fn look_up_for_ever(&self) {
        let refresh = self.source.names().then_some(REFRESH);
        loop {
            let outcome = discovery::look_up(&self.source).await;
            self.plan.send_modify(|plan| plan.learn(outcome, self.least, self.source.is_given()));
            self.failing().retain(|address| self.knows(*address));
            tokio::time::sleep(LEAST_GAP).await;
            tokio::select! {
                () = self.wanted.notified() => {}
                () = tokio::time::sleep(refresh.unwrap_or(Duration::MAX)) => {}
            }
        }
    }

    /// How many connections there are to be.
    pub(super) fn count(&self) -> usize {
        self.plan.borrow().homes.len().max(self.least.min(MOST))
    }

    /// Sees every change of the plan.
    pub(super) fn changes(&self) -> watch::Receiver<Plan> {
        self.plan.subscribe()
    }

    /// Where connection `index` belongs now; `None` when nothing is known yet, or when it is one too many.
    pub(super) fn home(&self, index: u8) -> Option<SocketAddr> {
        self.plan.borrow().homes.get(usize::from(index)).copied()
    }

    /// The home of a connection, waiting for the first look-up that finds one.
    ///
    /// # Errors
    ///
    /// Why the latest look-up found nothing.
    pub(super) async fn found(&self, index: u8) -> Result<SocketAddr, Arc<discovery::Error>> {
        let mut changes = self.changes();
        let before = changes.borrow_and_update().look_ups;
        if before > 0 && changes.borrow().homes.is_empty() {
            self.wanted.notify_one();
        }
        loop {
            if let Some(home) = self.home(index) {
                return Ok(home);
            }
            // Nothing is known yet, or this connection is one too many; both end with a change of the plan.
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
            let plan = changes.borrow_and_update();
            if let Some(failure) = plan.failure.clone().filter(|_| plan.look_ups > before) {
                return Err(failure);
            }
        }
    }

    /// Whether an address is one of the edge's.
    pub(super) fn knows(&self, address: SocketAddr) -> bool {
        self.plan.borrow().regions.iter().flatten().any(|known| *known == address)
    }

    /// An address did not answer. Its name is looked up again, and a discovered address is replaced.
    pub(super) fn failed(&self, index: u8, address: SocketAddr) {
        self.failing().insert(address);
        self.wanted.notify_one();
        if !self.source.is_given() {
            self.plan.send_if_modified(|plan| plan.replace(index, address));
        }
    }

    /// An address took a connection.
    pub(super) fn reached(&self, address: SocketAddr) {
        self.failing().remove(&address);
    }

    /// Another address than `home`, for as long as that does not answer; rather one that does.
    pub(super) fn elsewhere(&self, home: SocketAddr) -> Option<SocketAddr> {
        if !self.source.is_given() {
            // There a failed home was replaced already.
            return None;
        }
        let plan = self.plan.borrow();
        let failing = self.failing();
        let others = plan.regions.iter().flatten().filter(|address| **address != home);
        others.map(|address| (failing.contains(address), rand::random::<u32>(), *address)).min().map(|found| found.2)
    }

    fn failing(&self) -> std::sync::MutexGuard<'_, HashSet<SocketAddr>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plan {
    fn learn(&mut self, outcome: Result<Found, discovery::Error>, least: usize, every_address: bool) {
        self.look_ups += 1;
        let found = match outcome {
            Ok(found) => found,
            Err(error) => {
                if self.homes.is_empty() {
                    self.failure = Some(Arc::new(error));
                } else {
                    tracing::warn!(%error, "edge addresses cannot be looked up, keeping the last ones");
                }
                return;
            }
        };
        self.failure = None;
        self.merge(found);
        let addresses = self.regions.iter().map(Vec::len).sum::<usize>();
        let count = if every_address { least.max(addresses) } else { least };
        if addresses > MOST && self.look_ups == 1 {
            tracing::warn!(addresses, most = MOST, "the edge has more addresses than this connector has connections");
        }
        self.settle(count.min(MOST), every_address);
    }

    /// Takes what was found; what was not named stays for a while.
    fn merge(&mut self, found: Found) {
        let Found { regions: found, complete } = found;
        let named: HashSet<_> = found.iter().flatten().copied().collect();
        let missing = &mut self.missing;
        missing.retain(|address, _| !named.contains(address));
        for (region, found) in self.regions.iter_mut().zip(found) {
            region.retain(|address| {
                if named.contains(address) {
                    return false;
                }
                let times = missing.entry(*address).or_default();
                *times += u8::from(complete);
                *times < FORGOTTEN_AFTER
            });
            let stay = std::mem::replace(region, found);
            region.extend(stay);
        }
        let known: HashSet<_> = self.regions.iter().flatten().copied().collect();
        self.missing.retain(|address, _| known.contains(address));
    }

    fn load(&self, address: SocketAddr) -> usize {
        self.homes.iter().filter(|home| **home == address).count()
    }

    /// The least used address; among equals one of the region with fewer connections, else at random.
    fn choose(&self, not: Option<SocketAddr>) -> Option<SocketAddr> {
        let in_region = |region: &[SocketAddr]| region.iter().map(|address| self.load(*address)).sum::<usize>();
        let candidates = self.regions.iter().flat_map(|region| region.iter().map(move |address| (region, *address)));
        candidates
            .map(|(region, address)| {
                (not == Some(address), self.load(address), in_region(region), rand::random::<u32>(), address)
            })
            .min()
            .map(|candidate| candidate.4)
    }

    /// Gives every connection a home; those that have one keep it unless an address would be left without any.
    fn settle(&mut self, count: usize, every_address: bool) {
        let known: HashSet<_> = self.regions.iter().flatten().copied().collect();
        let mut homes: Vec<Option<SocketAddr>> = self.homes.drain(..).map(Some).collect();
        homes.resize(count, None);
        for home in &mut homes {
            *home = home.filter(|address| known.contains(address));
        }
        // Loads are counted over those that stay; the gaps are filled one by one.
        self.homes = homes.iter().flatten().copied().collect();
        for home in &mut homes {
            if home.is_none() {
                *home = self.choose(None);
                self.homes.extend(*home);
            }
        }
        self.homes = homes.into_iter().flatten().collect();
        if every_address {
            while let Some(lonely) = known.iter().find(|address| self.load(**address) == 0) {
                let Some(at) = (0..self.homes.len()).rev().find(|at| self.load(self.homes[*at]) > 1) else { return };
                self.homes[at] = *lonely;
            }
        }
    }

    /// Another home for a connection whose home failed. Says whether there was one.
    fn replace(&mut self, index: u8, failed: SocketAddr) -> bool {
        let at = usize::from(index);
        if self.homes.get(at) != Some(&failed) {
            return false;
        }
        let Some(other) = self.choose(Some(failed)).filter(|other| *other != failed) else { return false };
        self.homes[at] = other;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn learned(plan: &mut Plan, first: &[&str], second: &[&str], least: usize, every: bool) {
        plan.learn(Ok(Found { regions: [addresses(first), addresses(second)], complete: true }), least, every);
    }

    fn used(plan: &Plan) -> HashSet<SocketAddr> {
        plan.homes.iter().copied().collect()
    }

    #[test]
    fn four_connections_end_up_two_and_two() {
        let mut plan = Plan::default();
        learned(&mut plan, &["1.0.0.1:1", "1.0.0.2:1", "1.0.0.3:1"], &["2.0.0.1:1", "2.0.0.2:1"], 4, false);
        let first = plan.homes.iter().filter(|home| plan.regions[0].contains(home)).count();
        assert_eq!((first, used(&plan).len(), plan.homes.len()), (2, 4, 4));
    }

    #[test]
    fn one_address_gets_all_connections() {
        let mut plan = Plan::default();
        learned(&mut plan, &["1.0.0.1:1"], &[], 4, true);
        assert_eq!(plan.homes, addresses(&["1.0.0.1:1"; 4]));
    }

    #[test]
    fn every_given_address_has_a_connection_even_if_that_takes_more() {
        let mut plan = Plan::default();
        learned(&mut plan, &["1.0.0.1:1", "1.0.0.3:1"], &["1.0.0.2:1"], 1, true);
        assert_eq!((plan.homes.len(), used(&plan).len()), (3, 3));
        // A replica more: one connection more. The others stay where they are.
        let before = plan.homes.clone();
        learned(&mut plan, &["1.0.0.1:1", "1.0.0.3:1"], &["1.0.0.2:1", "1.0.0.4:1"], 1, true);
        assert_eq!((&plan.homes[..3], used(&plan).len()), (&before[..], 4));
    }

    #[test]
    fn a_new_replica_takes_a_connection_from_those_that_have_two() {
        let mut plan = Plan::default();
        learned(&mut plan, &["1.0.0.1:1"], &["1.0.0.2:1"], 4, true);
        learned(&mut plan, &["1.0.0.1:1", "1.0.0.3:1"], &["1.0.0.2:1"], 4, true);
        assert_eq!((plan.homes.len(), used(&plan).len()), (4, 3));
    }

    #[test]
    fn an_address_that_is_named_no_more_is_forgotten_after_three_look_ups() {
        let mut plan = Plan::default();
        learned(&mut plan, &["1.0.0.1:1", "1.0.0.2:1"], &[], 2, true);
        let moved: SocketAddr = "1.0.0.2:1".parse().unwrap();
        for look_up in 1..=3 {
            assert!(plan.homes.contains(&moved), "look-up {look_up}");
            learned(&mut plan, &["1.0.0.1:1"], &[], 2, true);
        }
        assert_eq!(plan.homes, addresses(&["1.0.0.1:1"; 2]));
        assert!(plan.missing.is_empty());
    }

    #[test]
    fn a_failed_discovered_address_is_left_while_there_is_another() {
        let mut plan = Plan::default();
        learned(&mut plan, &["1.0.0.1:1"], &["2.0.0.1:1"], 1, false);
        for _ in 0..20 {
            let failed = plan.homes[0];
            assert!(plan.replace(0, failed));
            assert_ne!(plan.homes[0], failed);
        }
        learned(&mut Plan::default(), &["1.0.0.1:1"], &[], 1, false);
    }

    #[test]
    fn a_failed_look_up_changes_nothing() {
        let mut plan = Plan::default();
        learned(&mut plan, &["1.0.0.1:1"], &[], 2, true);
        plan.learn(Err(discovery::Error::Given("no".into())), 2, true);
        assert_eq!((plan.homes.len(), plan.look_ups), (2, 2));
        assert!(plan.failure.is_none());
    }

    #[test]
    fn elsewhere_is_rather_an_address_that_answers() {
        let source = EdgeSource::Given(vec!["1.0.0.1:1".into()]);
        let known = Addresses::new(source, 1);
        known.plan.send_modify(|plan| learned(plan, &["1.0.0.1:1", "1.0.0.3:1"], &["1.0.0.2:1"], 1, true));
        let [home, failing, good] = ["1.0.0.1:1", "1.0.0.2:1", "1.0.0.3:1"].map(|text| text.parse().unwrap());
        known.failed(1, failing);
        for _ in 0..20 {
            assert_eq!(known.elsewhere(home), Some(good));
        }
        known.reached(failing);
        let chosen: HashSet<_> = (0..64).filter_map(|_| known.elsewhere(home)).collect();
        assert_eq!(chosen, HashSet::from([failing, good]));
    }
}
