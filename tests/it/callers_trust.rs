//! Trust in callers: what it is made of, what it refuses to be made of, and how it ends.

use std::time::{Duration, SystemTime};

use adit::identity::Digest;
use adit::tls::callers::{CallerError, CallerTrust, CallerTrustError, Shown, Verified};
use rcgen::{CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, KeyPair, KeyUsagePurpose, SerialNumber};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use time::OffsetDateTime;

use crate::harness::tls::{Ca, Leaf};

type Der = CertificateDer<'static>;
type List = CertificateRevocationListDer<'static>;

fn trust(anchors: &[&Ca], lists: Vec<List>) -> CallerTrust {
    CallerTrust::new(anchors.iter().map(|ca| ca.der()).collect(), vec![], vec![], lists).unwrap()
}

fn shown(leaf: &Leaf, chain: &[&Ca]) -> Shown {
    Shown { leaf: leaf.chain()[0].clone(), chain: chain.iter().map(|ca| ca.der()).collect() }
}

fn numbered(ca: &Ca, serial: u8) -> Leaf {
    ca.leaf_with(&["a.test"], &KeyPair::generate().unwrap(), |leaf| {
        leaf.serial_number = Some(SerialNumber::from_slice(&[serial]));
    })
}

fn verify(trust: &CallerTrust, leaf: &Leaf) -> Result<Verified, CallerError> {
    trust.verify(&shown(leaf, &[]), SystemTime::now())
}

fn hours(hours: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::hours(hours)
}

#[test]
fn two_roots_of_one_name_are_both_trusted_and_the_issuers_key_tells_them_apart() {
    let roots = [Ca::new("root"), Ca::new("root")];
    let trust = trust(&[&roots[0], &roots[1]], vec![]);
    let keys = roots.each_ref().map(|root| {
        let issuer_key = verify(&trust, &root.leaf(&["a.test"])).unwrap().issuer_key.unwrap();
        assert_eq!(issuer_key, adit::identity::Certificate::parse(&root.der()).unwrap().key_digest);
        issuer_key
    });
    assert_ne!(keys[0], keys[1]);
    let stranger = Ca::new("root").leaf(&["a.test"]);
    assert_eq!(verify(&trust, &stranger), Err(CallerError::ValidationFailed));
}

#[test]
fn an_anchor_counts_as_long_as_its_own_certificate_is_valid() {
    let old = Ca::with("old", |params| (params.not_before, params.not_after) = (hours(-24), hours(-1)));
    let new = Ca::new("new");
    let coming = Ca::with("coming", |params| (params.not_before, params.not_after) = (hours(2), hours(3)));
    let trust = trust(&[&old, &new, &coming], vec![]);
    assert_eq!(verify(&trust, &old.leaf(&["a.test"])), Err(CallerError::Expired));
    assert!(verify(&trust, &new.leaf(&["a.test"])).is_ok());
    let early = shown(&coming.leaf(&["a.test"]), &[]);
    let now = SystemTime::now();
    assert_eq!(trust.verify(&early, now), Err(CallerError::NotYetValid));
    let until = trust.holds_until(&early, now);
    assert!((until - hours(2).unix_timestamp()).abs() < 60, "the answer changes when the anchor begins");
    assert!(trust.verify(&early, now + Duration::from_secs(2 * 3600 + 60)).is_ok());
}

#[test]
fn half_a_trust_is_none() {
    let root = Ca::new("root");
    let made = |anchor: Der, intermediate: Option<Der>, allowed: Option<Der>, list: Option<List>| {
        let intermediates = intermediate.into_iter().collect();
        CallerTrust::new(vec![anchor], intermediates, allowed.into_iter().collect(), list.into_iter().collect())
            .map(|_| ())
    };
    let leaf = root.leaf(&["a.test"]).chain()[0].clone();
    let garbage = Der::from(b"garbage".to_vec());
    assert_eq!(made(root.der(), None, None, None), Ok(()));
    assert_eq!(made(garbage.clone(), None, None, None), Err(CallerTrustError::Malformed("trust anchor")));
    assert_eq!(made(leaf.clone(), None, None, None), Err(CallerTrustError::NoAuthority("trust anchor")));
    assert_eq!(
        made(root.der(), Some(leaf.clone()), None, None),
        Err(CallerTrustError::NoAuthority("intermediate certificate"))
    );
    assert_eq!(
        made(root.der(), Some(garbage.clone()), None, None),
        Err(CallerTrustError::Malformed("intermediate certificate"))
    );
    assert_eq!(
        made(root.der(), None, Some(garbage), None),
        Err(CallerTrustError::Malformed("allow-listed certificate"))
    );
    assert_eq!(made(root.der(), None, Some(leaf), None), Ok(()));
    let no_signer = Ca::with("no signer", |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    assert_eq!(made(no_signer.der(), None, None, None), Err(CallerTrustError::NoAuthority("trust anchor")));

    let list = root.revocation_list(&[], |list| {
        let distribution_point = CrlDistributionPoint { uris: vec!["http://a.test/crl".to_owned()] };
        let scope = Some(CrlScope::UserCertsOnly);
        list.issuing_distribution_point = Some(CrlIssuingDistributionPoint { distribution_point, scope });
    });
    assert_eq!(made(root.der(), None, None, Some(list.clone())), Ok(()));
    assert_eq!(
        made(root.der(), None, None, Some(List::from(list[..list.len() - 1].to_vec()))),
        Err(CallerTrustError::Malformed("revocation list"))
    );
    // [1] of the distribution point is "users only", [4] "indirect" (RFC 5280 §5.2.5); 20 is the list's number, 27 the
    // mark of a delta.
    for (from, to) in [(&[0x81, 1, 0xff][..], &[0x84, 1, 0xff][..]), (&[0x55, 0x1d, 20], &[0x55, 0x1d, 27])] {
        let mut changed = list.to_vec();
        let at = changed.windows(3).position(|bytes| bytes == from).unwrap();
        changed[at..at + 3].copy_from_slice(to);
        let error = made(root.der(), None, None, Some(List::from(changed))).unwrap_err();
        assert!(matches!(error, CallerTrustError::Crl(_)), "{error}");
    }
}

#[test]
fn whoever_is_on_his_issuers_list_is_refused_and_nobody_else() {
    let (root, other) = (Ca::new("root"), Ca::new("other"));
    let trust = trust(&[&root, &other], vec![root.revocation_list(&[7, 200], |_| {})]);
    for serial in [7, 200] {
        assert_eq!(verify(&trust, &numbered(&root, serial)), Err(CallerError::Revoked));
        assert!(verify(&trust, &numbered(&other, serial)).is_ok(), "an issuer without a list");
    }
    assert!(verify(&trust, &numbered(&root, 8)).is_ok());
}

#[test]
fn a_list_past_its_next_update_refuses_all_callers_of_its_issuer() {
    let (root, other) = (Ca::new("root"), Ca::new("other"));
    let over = root.revocation_list(&[7], |list| {
        (list.this_update, list.next_update) = (hours(-3), hours(-2));
    });
    let without = trust(&[&root, &other], vec![over.clone()]);
    assert_eq!(verify(&without, &numbered(&root, 7)), Err(CallerError::Revoked));
    assert_eq!(verify(&without, &numbered(&root, 8)), Err(CallerError::RevocationUnknown));
    assert!(verify(&without, &numbered(&other, 8)).is_ok());

    let current = root.revocation_list(&[9], |_| {});
    for lists in [vec![over.clone(), current.clone()], vec![current, over]] {
        let newer = trust(&[&root], lists);
        assert_eq!(verify(&newer, &numbered(&root, 9)), Err(CallerError::Revoked));
        assert!(verify(&newer, &numbered(&root, 7)).is_ok(), "the newest counts");
        let leaf = shown(&numbered(&root, 8), &[]);
        let now = SystemTime::now();
        assert!(newer.verify(&leaf, now).is_ok());
        let until = newer.holds_until(&leaf, now);
        assert_eq!(Some(until), newer.revocation_ends(), "the answer changes when the list ends");
        assert_eq!(
            newer.verify(&leaf, std::time::UNIX_EPOCH + Duration::from_secs(u64::try_from(until).unwrap())),
            Err(CallerError::RevocationUnknown)
        );
    }
}

#[test]
fn a_list_that_another_key_of_the_same_name_signed_is_none() {
    let (root, imposter) = (Ca::new("root"), Ca::new("root"));
    let foreign = imposter.revocation_list(&[7], |_| {});
    let alone = CallerTrust::new(vec![root.der()], vec![], vec![], vec![foreign.clone()]);
    assert_eq!(alone.unwrap_err(), CallerTrustError::CrlSignature, "nobody would be revoked by it");
    // An anchor's list is no mistake when the anchor's time is over.
    let after =
        CallerTrust::beside(&[imposter.der()], vec![root.der()], vec![], vec![], vec![foreign.clone()]).unwrap();
    assert_eq!(verify(&after, &numbered(&root, 8)), Err(CallerError::RevocationUnknown));
    let own = root.revocation_list(&[9], |_| {});
    let both = trust(&[&root, &imposter], vec![foreign, own]);
    assert!(verify(&both, &numbered(&root, 7)).is_ok());
    assert_eq!(verify(&both, &numbered(&root, 9)), Err(CallerError::Revoked));
    assert_eq!(verify(&both, &numbered(&imposter, 7)), Err(CallerError::Revoked));
    assert!(verify(&both, &numbered(&imposter, 9)).is_ok());
}

#[test]
fn a_list_is_its_signers_however_the_name_on_it_is_written() {
    let root = Ca::new("root");
    let list = root.respelled("root").revocation_list(&[7], |_| {});
    let trust = trust(&[&root], vec![list]);
    assert_eq!(trust.lists_of_nobody(), 0);
    assert_eq!(verify(&trust, &numbered(&root, 7)), Err(CallerError::Revoked));
    assert!(verify(&trust, &numbered(&root, 8)).is_ok());
}

#[test]
fn a_list_of_an_issuer_that_only_callers_send_counts_for_its_name_and_is_told_of() {
    let root = Ca::new("root");
    let (below, same_name) = (root.under("below"), root.under("below"));
    let lists = vec![below.revocation_list(&[7], |_| {}), Ca::new("stranger").revocation_list(&[7], |_| {})];
    let trust = trust(&[&root], lists);
    assert_eq!(trust.lists_of_nobody(), 2);
    let verify = |ca: &Ca, serial| trust.verify(&shown(&numbered(ca, serial), &[ca]), SystemTime::now()).map(|_| ());
    for _ in 0..2 {
        assert_eq!(verify(&same_name, 8), Err(CallerError::RevocationUnknown));
        assert_eq!(verify(&below, 7), Err(CallerError::Revoked));
        assert_eq!(verify(&below, 8), Ok(()));
    }
    assert_eq!(trust.lists_of_nobody(), 1, "its key was seen");
}

#[test]
fn searches_end_soon_however_many_issuers_could_have_issued_each_other() {
    let root = Ca::new("root");
    let alike: Vec<_> = (0..10).map(|_| Ca::new("alike")).collect();
    let all: Vec<_> = alike.iter().collect();
    let leaf = Ca::new("alike").leaf(&["a.test"]);
    let trust_in_root = trust(&[&root], vec![]);
    let said = trust_in_root.verify(&shown(&leaf, &all), SystemTime::now());
    assert_eq!(said, Err(CallerError::SearchLimit));

    let below = root.under("below");
    let leaf = below.leaf(&["a.test"]);
    let many = |count| trust_in_root.verify(&shown(&leaf, &vec![&below; count]), SystemTime::now());
    assert!(many(10).is_ok());
    assert_eq!(many(11), Err(CallerError::ChainTooLong));
    let known = vec![below.der(); 5];
    let trust = CallerTrust::new(vec![root.der()], known, vec![], vec![]).unwrap();
    let many = |count| trust.verify(&shown(&leaf, &vec![&below; count]), SystemTime::now());
    assert!(many(5).is_ok());
    assert_eq!(many(6), Err(CallerError::PkiTooLarge));
}

#[test]
fn a_good_chain_is_found_among_strangers_certificates() {
    let (root, stranger) = (Ca::new("root"), Ca::new("stranger"));
    let below = root.under("below");
    let (same_name, unrelated) = (stranger.under("below"), stranger.under("unrelated"));
    let leaf = below.leaf(&["a.test"]);
    let trust = trust(&[&root], vec![]);
    let chain = [&unrelated, &same_name, &stranger, &below, &root];
    assert!(trust.verify(&shown(&leaf, &chain), SystemTime::now()).is_ok());
    let mut garbage = shown(&leaf, &[&below]);
    garbage.chain = [Der::from(b"garbage".to_vec()), below.der()].into();
    assert!(trust.verify(&garbage, SystemTime::now()).is_ok(), "what is of no use does no harm");
}

#[test]
fn the_chain_of_a_verified_caller_is_the_one_that_was_verified_and_not_the_one_that_was_sent() {
    let (root, stranger) = (Ca::new("root"), Ca::new("stranger"));
    let (first, unrelated) = (root.under("first"), stranger.under("unrelated"));
    let second = first.under("second");
    let leaf = second.leaf(&["a.test"]);
    let chain = |ca: &[&Ca]| ca.iter().map(|ca| ca.der()).collect::<Vec<_>>();
    let knows_all = CallerTrust::new(vec![root.der()], chain(&[&first, &second]), vec![], vec![]).unwrap();
    let knows_one = CallerTrust::new(vec![root.der()], chain(&[&first]), vec![], vec![]).unwrap();
    let cases: [(_, &[&Ca]); 4] = [
        (&knows_all, &[]),
        (&knows_all, &[&unrelated]),
        (&knows_one, &[&second]),
        (&trust(&[&root], vec![]), &[&unrelated, &stranger, &first, &root, &second, &second]),
    ];
    for (trust, sent) in cases {
        let verified = trust.verify(&shown(&leaf, sent), SystemTime::now()).unwrap();
        assert_eq!(verified.chain[..], chain(&[&second, &first]), "{} sent", sent.len());
    }
    let direct = shown(&root.leaf(&["a.test"]), &[&unrelated]);
    assert!(knows_all.verify(&direct, SystemTime::now()).unwrap().chain.is_empty());
}

#[test]
fn who_is_allow_listed_needs_nothing_else_and_has_no_issuer() {
    let stranger = Ca::new("stranger");
    let leaf = stranger.leaf(&["a.test"]);
    let der = leaf.chain()[0].clone();
    let trust = CallerTrust::new(vec![], vec![], vec![der.clone()], vec![]).unwrap();
    assert_eq!(verify(&trust, &leaf), Ok(Verified::default()));
    assert_eq!(verify(&trust, &stranger.leaf(&["a.test"])), Err(CallerError::UnknownIssuer));
    // Whose chain is verified as well is known by his issuer, too.
    let trust = CallerTrust::new(vec![stranger.der()], vec![], vec![der], vec![]).unwrap();
    assert!(verify(&trust, &leaf).unwrap().issuer_key.is_some_and(|key| key != Digest::of(b"")));
}

#[test]
fn without_trust_nothing_is_verified() {
    let leaf = Ca::new("root").leaf(&["a.test"]);
    assert_eq!(verify(&CallerTrust::default(), &leaf), Err(CallerError::NotPerformed));
}
