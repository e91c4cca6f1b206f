//! Loading identities and trust: what is used, what is refused, and what stays.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use adit::{
    config::{Config, Flags, Hop, Hops, IdentitySource, NamedIdentity, SecretRef, parse_file},
    secrets::ReadError,
    tls::keyring::{Fault, Keyring, Loaded, OVERLAP, Reread, Trouble, Unusable, Wanted},
};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};
use rustls::pki_types::{PrivatePkcs1KeyDer, PrivateSec1KeyDer};
use zeroize::Zeroizing;

use crate::harness::tls::{Ca, Leaf};

fn file(name: &str) -> SecretRef {
    SecretRef::File(name.into())
}

fn pair() -> IdentitySource {
    IdentitySource { certificate: file("crt"), key: Some(file("key")) }
}

fn bundle() -> IdentitySource {
    IdentitySource { certificate: file("pem"), key: None }
}

/// A configuration with one rule, which presents `source` and trusts `trust`.
fn config(source: &IdentitySource, trust: &[&str]) -> Config {
    let mut config =
        parse_file("config.yml", "ingress: [{ service: 'https://a' }]", &Flags::default(), |_| None).unwrap().config;
    let hop = Hop {
        present: Some(NamedIdentity { name: "writer".into(), source: source.clone() }),
        origin_trust: (!trust.is_empty()).then(|| trust.iter().map(|name| file(name)).collect()),
        ..Hop::default()
    };
    config.ingress.as_mut().unwrap().rules[0].hops = Hops::always(Arc::new(hop));
    config
}

/// Files, a clock, and the keyring in use.
struct Desk {
    wanted: Arc<Wanted>,
    files: RefCell<HashMap<String, Vec<u8>>>,
    keyring: Arc<Keyring>,
    now: SystemTime,
}

impl Desk {
    fn new(source: &IdentitySource, trust: &[&str]) -> Self {
        let wanted = Arc::new(Wanted::of(&config(source, trust)));
        Self { wanted, files: RefCell::default(), keyring: Arc::default(), now: SystemTime::now() }
    }

    fn put(&self, name: &str, content: impl Into<Vec<u8>>) {
        self.files.borrow_mut().insert(name.into(), content.into());
    }

    fn put_pair(&self, leaf: &Leaf) {
        self.put("crt", &*leaf.certificate);
        self.put("key", &*leaf.key);
    }

    /// Loads, and uses what came of it.
    fn load(&mut self) -> Loaded {
        self.load_as(Reread::All)
    }

    fn load_as(&mut self, reread: Reread) -> Loaded {
        let read = |reference: &SecretRef| {
            let name = reference.to_string();
            match self.files.borrow().get(&name) {
                Some(bytes) => Ok(Zeroizing::new(bytes.clone())),
                None => Err(ReadError::Missing(name)),
            }
        };
        let loaded = Keyring::load(&self.wanted, read, reread, &self.keyring, self.now);
        self.keyring = loaded.keyring.clone();
        loaded
    }

    /// The first certificate of the chain that is presented.
    fn presented(&self, source: &IdentitySource) -> Result<Vec<u8>, Unusable> {
        self.keyring.identity(source).map(|identity| identity.key.cert[0].to_vec())
    }
}

/// The one thing that cannot be used.
fn only(loaded: &Loaded) -> &Trouble {
    let [trouble] = &loaded.troubles[..] else { panic!("{:?}", loaded.troubles) };
    trouble
}

fn der(leaf: &Leaf) -> Vec<u8> {
    leaf.chain()[0].to_vec()
}

fn day(days: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::now_utc() + time::Duration::days(days)
}

fn for_days(ca: &Ca, from: i64, until: i64) -> Leaf {
    ca.leaf_with(&["a"], &KeyPair::generate().unwrap(), |params| {
        (params.not_before, params.not_after) = (day(from), day(until));
    })
}

#[test]
fn every_kind_of_key_in_every_encoding_becomes_an_identity() {
    let ca = Ca::new("root");
    for algorithm in [&PKCS_RSA_SHA256, &PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let leaf = ca.leaf_with(&["a"], &key, |_| {});
        let pem = |kind: &str, der: &[u8]| {
            use base64::Engine as _;
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
        };
        let inner = traditional(&key.serialize_der());
        let mut keys = vec![leaf.key.clone()];
        if algorithm == &PKCS_RSA_SHA256 {
            keys.push(pem("RSA PRIVATE KEY", PrivatePkcs1KeyDer::from(inner).secret_pkcs1_der()));
        } else if algorithm != &PKCS_ED25519 {
            let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
            keys.push(format!(
                "{parameters}{}",
                pem("EC PRIVATE KEY", PrivateSec1KeyDer::from(inner).secret_sec1_der())
            ));
        }
        for key in keys {
            let mut desk = Desk::new(&pair(), &[]);
            desk.put_pair(&Leaf { certificate: leaf.certificate.clone(), key });
            let loaded = desk.load();
            assert!(loaded.troubles.is_empty(), "{algorithm:?}: {:?}", loaded.troubles);
            assert_eq!(desk.presented(&pair()).unwrap(), der(&leaf));
        }
    }
}

/// What stands inside PKCS#8: PKCS#1 or SEC1. The third element, an OCTET STRING (RFC 5958 §2).
fn traditional(pkcs8: &[u8]) -> Vec<u8> {
    fn element(bytes: &[u8]) -> (&[u8], &[u8]) {
        let (length, head) = match bytes[1] {
            short @ 0..0x80 => (usize::from(short), 2),
            long => {
                let digits = usize::from(long & 0x7f);
                (bytes[2..2 + digits].iter().fold(0, |all, byte| all << 8 | usize::from(*byte)), 2 + digits)
            }
        };
        (&bytes[head..head + length], &bytes[head + length..])
    }
    let (_, rest) = element(element(pkcs8).0);
    let (_, rest) = element(rest);
    element(rest).0.to_vec()
}

#[test]
fn a_bundle_may_stand_in_any_order_and_is_presented_in_that_of_tls() {
    let root = Ca::new("root");
    let between = root.under("between");
    let leaf = between.leaf(&["a"]);
    let parts = [&leaf.certificate, &between.pem, &root.pem, &leaf.key, &between.pem];
    for order in [[0, 1, 2, 3, 4], [3, 1, 2, 0, 4], [2, 4, 1, 0, 3]] {
        let mut desk = Desk::new(&bundle(), &[]);
        desk.put("pem", order.iter().map(|at| parts[*at].as_str()).collect::<String>());
        assert!(desk.load().troubles.is_empty());
        let presented = desk.keyring.identity(&bundle()).unwrap().key.cert.clone();
        let expected = Leaf { certificate: format!("{}{}{}", leaf.certificate, between.pem, root.pem), ..leaf.clone() };
        assert_eq!(presented, expected.chain());
    }
}

#[test]
fn a_set_that_does_not_fit_together_leaves_the_old_one_in_use() {
    let root = Ca::new("root");
    let between = root.under("between");
    let (old, new) = (between.leaf(&["a"]), between.leaf(&["a"]));
    let mut desk = Desk::new(&pair(), &[]);
    desk.put_pair(&old);
    assert!(desk.load().troubles.is_empty());
    let generation = desk.keyring.generation;
    let cut = |text: &str| text[..text.len() / 2].to_owned();
    let stranger = Ca::new("between");
    let malformed = "-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n";
    for (certificate, key, reason) in [
        (new.certificate.clone(), old.key.clone(), "fits none"),
        (old.certificate.clone(), new.key.clone(), "fits none"),
        (cut(&new.certificate), new.key.clone(), "crt: a PEM section is not complete"),
        (new.certificate.clone(), cut(&new.key), "key: a PEM section is not complete"),
        (new.key.clone(), new.key.clone(), "crt: holds no PEM certificate"),
        (new.certificate.clone(), new.certificate.clone(), "key: holds no PEM private key"),
        // An authority of the same name and another key.
        (format!("{}{}", new.certificate, stranger.pem), new.key.clone(), "certificate 2 is not part of"),
        (format!("{}{}", new.certificate, old.certificate), new.key.clone(), "certificate 2 is not part of"),
        (format!("{}{malformed}", new.certificate), new.key.clone(), "certificate 2 is malformed"),
        (new.certificate.repeat(17), new.key.clone(), "more than 16"),
    ] {
        desk.put("crt", certificate);
        desk.put("key", key);
        let loaded = desk.load();
        let trouble = only(&loaded);
        assert!(trouble.kept && !trouble.why.may_come() && trouble.to_string().contains(reason), "{trouble}");
        assert!(trouble.to_string().starts_with("identity writer (crt, key): "), "{trouble}");
        assert_eq!(desk.presented(&pair()).unwrap(), der(&old));
        assert_eq!(desk.keyring.generation, generation, "{reason}");
    }
    desk.files.borrow_mut().remove("key");
    let loaded = desk.load();
    assert!(loaded.troubles[0].kept && loaded.troubles[0].why.may_come());
    desk.put_pair(&new);
    assert!(desk.load().troubles.is_empty());
    assert_eq!(desk.presented(&pair()).unwrap(), der(&new));
    assert_eq!(desk.keyring.generation, generation + 1);
    // The same again is nothing new.
    let before = desk.keyring.clone();
    desk.put("crt", format!("# rendered again\n{}", new.certificate));
    desk.load();
    assert!(Arc::ptr_eq(&before, &desk.keyring));
}

#[test]
fn a_certificate_out_of_its_time_replaces_none_and_is_used_when_its_time_comes() {
    let ca = Ca::new("root");
    let (good, over, to_come) = (for_days(&ca, -1, 5), for_days(&ca, -9, -1), for_days(&ca, 2, 9));
    let mut desk = Desk::new(&pair(), &[]);
    // At the start there is nothing else; whether its time is right is asked when it is presented.
    desk.put_pair(&over);
    let loaded = desk.load();
    assert!(matches!(only(&loaded), Trouble { why: Fault::Expired, kept: false, .. }), "{loaded:?}");
    assert_eq!(desk.keyring.identity(&pair()).unwrap().check(desk.now), Err(Unusable::Expired));
    assert!(!desk.keyring.is_valid(desk.now));
    desk.put_pair(&good);
    assert!(desk.load().troubles.is_empty());
    assert!(desk.keyring.is_valid(desk.now));
    for (late, is_over) in [(&over, true), (&to_come, false)] {
        desk.put_pair(late);
        let loaded = desk.load();
        let trouble = only(&loaded);
        assert!(trouble.kept && trouble.why.is_of_time());
        assert_eq!(matches!(trouble.why, Fault::Expired), is_over);
        assert_eq!(desk.presented(&pair()).unwrap(), der(&good));
    }
    // It says itself when to look again.
    let again = desk.load().look_again.unwrap();
    desk.now = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(again).unwrap());
    assert!(desk.load().troubles.is_empty());
    assert_eq!(desk.presented(&pair()).unwrap(), der(&to_come));
    // Over in the end, and told.
    desk.now += Duration::from_secs(30 * 86_400);
    let loaded = desk.load();
    assert!(matches!(only(&loaded), Trouble { why: Fault::Expired, kept: false, .. }), "{loaded:?}");
    assert!(!desk.keyring.is_valid(desk.now));
}

#[tokio::test(start_paused = true)]
async fn trust_in_services_counts_for_thirty_seconds_more() {
    let (one, two) = (Ca::new("one"), Ca::new("two"));
    let leaf = one.leaf(&["a"]);
    let mut desk = Desk::new(&pair(), &["ca"]);
    desk.put_pair(&leaf);
    desk.put("ca", &*one.pem);
    desk.load();
    let trust = |desk: &Desk| desk.keyring.origin_trust(&[file("ca")]).unwrap();
    let first = trust(&desk);
    assert!(first.previous.is_none());
    desk.put("ca", &*two.pem);
    let changed = tokio::time::Instant::now();
    desk.load();
    let second = trust(&desk);
    let (previous, until) = second.previous.clone().unwrap();
    assert!(Arc::ptr_eq(&previous, &first.current) && !Arc::ptr_eq(&second.current, &first.current));
    assert_eq!(until - changed, OVERLAP);
    // Another change does not make it longer.
    tokio::time::advance(Duration::from_secs(7)).await;
    desk.put_pair(&one.leaf(&["a"]));
    desk.load();
    assert_eq!(trust(&desk).previous.clone().unwrap().1, until);
    // What cannot be used changes nothing.
    for wrong in ["", "-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n"] {
        desk.put("ca", wrong);
        assert!(desk.load().troubles[0].kept);
        assert!(Arc::ptr_eq(&trust(&desk), &second));
    }
}

#[test]
fn anchors_whose_time_is_over_are_trusted_no_longer() {
    let living = Ca::with("living", |params| params.not_after = day(20));
    let ending = Ca::with("ending", |params| params.not_after = day(10));
    let over = Ca::with("over", |params| params.not_after = day(-1));
    let mut desk = Desk::new(&pair(), &["ca"]);
    desk.put_pair(&living.leaf(&["a"]));
    desk.put("ca", format!("{}{}{}", living.pem, ending.pem, over.pem));
    let count = |desk: &Desk| desk.keyring.origin_trust(&[file("ca")]).map(|trust| trust.current.len());
    let loaded = desk.load();
    assert!(loaded.troubles.is_empty());
    assert_eq!(count(&desk), Ok(2));
    let mut again = loaded.look_again;
    for expected in [Ok(1), Err(Unusable::Expired)] {
        desk.now = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(again.unwrap()).unwrap());
        again = desk.load().look_again;
        assert_eq!(count(&desk), expected);
    }
    assert!(!desk.keyring.is_valid(desk.now));
    desk.put("ca", &*Ca::with("next", |params| params.not_after = day(100)).pem);
    desk.load();
    assert_eq!(count(&desk), Ok(1));
}

#[test]
fn what_is_known_is_not_read_again_for_a_changed_configuration() {
    let ca = Ca::new("root");
    let old = ca.leaf(&["a"]);
    let mut desk = Desk::new(&pair(), &[]);
    desk.put_pair(&old);
    desk.load();
    // Half written when the configuration changes.
    desk.put("crt", "");
    desk.put("ca", &*ca.pem);
    desk.wanted = Arc::new(Wanted::of(&config(&pair(), &["ca"])));
    let loaded = desk.load_as(Reread::Unknown);
    assert!(loaded.troubles.is_empty(), "{:?}", loaded.troubles);
    assert_eq!(desk.presented(&pair()).unwrap(), der(&old));
    assert!(desk.keyring.origin_trust(&[file("ca")]).is_ok());
    assert_eq!(desk.keyring.generation, 2);
    // What is new must be there.
    desk.wanted = Arc::new(Wanted::of(&config(&bundle(), &["ca"])));
    let loaded = desk.load_as(Reread::Unknown);
    assert!(only(&loaded).why.may_come());
}

#[test]
fn a_secret_never_shows_in_a_text() {
    let leaf = Ca::new("root").leaf(&["a"]);
    let mut desk = Desk::new(&pair(), &[]);
    let marker = leaf.key.lines().nth(1).unwrap().to_owned();
    for key in [leaf.key.replace('\n', " "), leaf.key.replace("PRIVATE KEY-----", "PRIVATE KEY-"), marker.clone()] {
        desk.put_pair(&Leaf { key, ..leaf.clone() });
        let loaded = desk.load();
        let said = format!("{:?} {} {:?}", loaded, loaded.troubles[0], desk.keyring);
        assert!(!said.contains(&marker[..20]), "{said}");
    }
    desk.put_pair(&leaf);
    desk.load();
    assert!(!format!("{:?}", desk.keyring).contains(&marker[..20]));
}

#[test]
fn a_generation_is_for_a_guard_once_it_was_made_for_the_hop_behind_it_too() {
    let yaml =
        "guard: [ { listen: '127.0.0.1:1', certificate: /g, service: 'https://a', callers: { trustAnchors: [/c] } } ]";
    let config = parse_file("config.yml", yaml, &Flags::default(), |_| None).unwrap().config;
    let made = |config: &Config| {
        let read = |reference: &SecretRef| Err(ReadError::Missing(reference.to_string()));
        let wanted = Arc::new(Wanted::of(config));
        Keyring::load(&wanted, read, Reread::All, &Arc::default(), SystemTime::now()).keyring
    };
    let before = made(&config);
    assert!(before.is_for(&config.guards[0]), "usable or not");
    for change in [
        |hop: &mut Hop| hop.present = Some(NamedIdentity { name: "writer".into(), source: bundle() }),
        |hop: &mut Hop| hop.origin_trust = Some(vec![file("ca")]),
    ] {
        let mut changed = config.clone();
        change(Arc::make_mut(&mut changed.guards[0].hop));
        assert!(!before.is_for(&changed.guards[0]));
        assert!(made(&changed).is_for(&changed.guards[0]));
    }
}
