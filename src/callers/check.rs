//! Verification with a memory: a caller's second request costs a hash instead of two signatures.
//!
//! A check belongs to one generation of trust, and so does its memory: new anchors, lists of revoked certificates or
//! intermediates begin with an empty one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{Caller, MaybeCaller, Relayed};
use crate::{
    identity::Digest,
    tls::callers::{CallerError, CallerTrust, Shown},
};

/// Most certificate bytes of one half of a memory; with what is written down beside them about four times as much.
const MOST_BYTES: usize = 1 << 20;

/// Most entries of one half of a memory.
const MOST_ENTRIES: usize = 1024;

/// Trust, and what it said of callers lately.
#[derive(Debug)]
pub struct Check {
    trust: Arc<CallerTrust>,
    /// Strangers can make as many bad certificates as they like: they must not drive the good ones out.
    valid: Mutex<Memory>,
    invalid: Mutex<Memory>,
}

impl Check {
    /// Remembers nobody.
    pub fn new(trust: Arc<CallerTrust>) -> Self {
        Self { trust, valid: Mutex::default(), invalid: Mutex::default() }
    }

    /// Who this is, now.
    pub fn caller(&self, relayed: Relayed) -> MaybeCaller {
        self.caller_at(relayed, SystemTime::now())
    }

    /// Who this is, at a given time.
    pub fn caller_at(&self, relayed: Relayed, now: SystemTime) -> MaybeCaller {
        match relayed {
            Relayed::Nothing => None,
            Relayed::Malformed => {
                let shown = Shown { leaf: Vec::new().into(), chain: Arc::default() };
                Some(Arc::new(Caller::new(shown, Err(CallerError::Malformed))))
            }
            Relayed::Shown(shown) => Some(self.shown_at(shown, now)),
        }
    }

    /// Who this is that showed a certificate, at a given time.
    fn shown_at(&self, shown: Shown, now: SystemTime) -> Arc<Caller> {
        let key = key_of(&shown);
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        for memory in [&self.valid, &self.invalid] {
            if let Some(known) = memory.lock().unwrap_or_else(PoisonError::into_inner).find(&key, seconds) {
                return known;
            }
        }
        let until = self.trust.holds_until(&shown, now);
        let verdict = self.trust.verify(&shown, now);
        let caller = Arc::new(Caller::new(shown, verdict));
        let chains = caller.shown.chain.iter().chain(caller.chain.iter());
        let bytes = caller.shown.leaf.len() + chains.map(|der| der.len()).sum::<usize>();
        let entry = Entry { caller: Arc::clone(&caller), since: seconds, until, bytes };
        let memory = if caller.verdict.is_ok() { &self.valid } else { &self.invalid };
        memory.lock().unwrap_or_else(PoisonError::into_inner).keep(key, entry);
        caller
    }
}

/// Of leaf and chain: the same leaf with another chain is another question.
fn key_of(shown: &Shown) -> Digest {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    for der in std::iter::once(&shown.leaf).chain(shown.chain.iter()) {
        hash.update((der.len() as u64).to_be_bytes());
        hash.update(der);
    }
    Digest(hash.finalize().into())
}

#[derive(Debug)]
struct Entry {
    caller: Arc<Caller>,
    /// Seconds since 1970: the clock may be set back.
    since: i64,
    /// Exclusive.
    until: i64,
    bytes: usize,
}

/// What was asked lately, in two halves: when the younger is full, it becomes the older, and the older is forgotten.
#[derive(Debug, Default)]
struct Memory {
    young: HashMap<Digest, Entry>,
    old: HashMap<Digest, Entry>,
    /// Of the younger.
    bytes: usize,
}

impl Memory {
    fn find(&mut self, key: &Digest, now: i64) -> Option<Arc<Caller>> {
        let holds = |entry: &Entry| (entry.since..entry.until).contains(&now);
        if let Some(entry) = self.young.get(key) {
            return holds(entry).then(|| Arc::clone(&entry.caller));
        }
        let entry = self.old.remove(key).filter(holds)?;
        let caller = Arc::clone(&entry.caller);
        self.keep(*key, entry);
        Some(caller)
    }

    fn keep(&mut self, key: Digest, entry: Entry) {
        if self.young.len() >= MOST_ENTRIES || self.bytes + entry.bytes > MOST_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.bytes += entry.bytes;
        if let Some(before) = self.young.insert(key, entry) {
            self.bytes = self.bytes.saturating_sub(before.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

    use super::*;

    const START: i64 = 1_700_000_000;

    fn at(seconds: i64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap())
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = time::OffsetDateTime::from_unix_timestamp(START).unwrap();
        params.not_after = time::OffsetDateTime::from_unix_timestamp(START + 1000).unwrap();
        params
    }

    fn authority() -> (Issuer<'static, KeyPair>, Arc<CallerTrust>) {
        let key = KeyPair::generate().unwrap();
        let mut params = params("authority.test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = time::OffsetDateTime::from_unix_timestamp(START + 10_000).unwrap();
        let root = params.self_signed(&key).unwrap();
        let trust = CallerTrust::new(vec![root.der().clone()], vec![], vec![], vec![]).unwrap();
        (Issuer::new(params, key), Arc::new(trust))
    }

    fn relayed(issuer: &Issuer<'static, KeyPair>, name: &str) -> Relayed {
        let mut params = params(name);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, issuer).unwrap().der().clone();
        Relayed::Shown(Shown { leaf, chain: Arc::default() })
    }

    #[test]
    fn a_verdict_is_remembered_until_a_certificate_begins_or_ends() {
        let (issuer, trust) = authority();
        let check = Check::new(trust);
        let one = relayed(&issuer, "a.test");
        let ask = |seconds| check.caller_at(one.clone(), at(seconds)).unwrap();
        let early = ask(START - 2);
        assert_eq!(early.verdict, Err(CallerError::NotYetValid));
        assert!(Arc::ptr_eq(&early, &ask(START - 1)));
        let good = ask(START);
        assert_eq!(good.verdict, Ok(()));
        assert!(Arc::ptr_eq(&good, &ask(START + 1000)), "remembered to the last second");
        assert_eq!(ask(START + 1001).verdict, Err(CallerError::Expired));
        assert_eq!(ask(START - 1).verdict, Err(CallerError::NotYetValid), "the clock was set back");
    }

    #[test]
    fn strangers_do_not_drive_out_those_who_are_known() {
        let (issuer, trust) = authority();
        let check = Check::new(trust);
        let known = relayed(&issuer, "a.test");
        let first = check.caller_at(known.clone(), at(START)).unwrap();
        for n in 0..3 * MOST_ENTRIES {
            let leaf = n.to_be_bytes().to_vec().into();
            let stranger = check.caller_at(Relayed::Shown(Shown { leaf, chain: Arc::default() }), at(START)).unwrap();
            assert_eq!(stranger.verdict, Err(CallerError::Malformed));
        }
        assert!(Arc::ptr_eq(&first, &check.caller_at(known, at(START)).unwrap()));
        let invalid = check.invalid.lock().unwrap();
        assert!(invalid.young.len() + invalid.old.len() <= 2 * MOST_ENTRIES);
    }

    #[test]
    fn a_memory_is_bounded_in_bytes_and_forgets_the_least_asked() {
        let (mut memory, caller) = (
            Memory::default(),
            Caller::new(Shown { leaf: Vec::new().into(), chain: Arc::default() }, Err(CallerError::Malformed)),
        );
        let caller = Arc::new(caller);
        let entry = || Entry { caller: Arc::clone(&caller), since: 0, until: 10, bytes: MOST_BYTES / 4 };
        let key = |n: u8| Digest::of(&[n]);
        for n in 0..100 {
            memory.keep(key(n), entry());
            assert!(memory.find(&key(0), 5).is_some(), "asked for all the time");
            assert!(memory.young.len() <= 4 && memory.old.len() <= 4, "{} {}", memory.young.len(), memory.old.len());
        }
        assert!(memory.find(&key(50), 5).is_none());
        assert!(memory.find(&key(0), 10).is_none(), "over");
    }

    #[test]
    fn the_same_leaf_with_another_chain_is_another_question() {
        let shown = |leaf: &[u8], chain: &[&[u8]]| Shown {
            leaf: leaf.to_vec().into(),
            chain: chain.iter().map(|der| der.to_vec().into()).collect(),
        };
        let keys = [shown(b"ab", &[]), shown(b"a", &[b"b"]), shown(b"a", &[b"b", b""]), shown(b"", &[b"ab"])]
            .map(|shown| key_of(&shown));
        for (n, key) in keys.iter().enumerate() {
            assert!(!keys[..n].contains(key));
        }
    }
}
