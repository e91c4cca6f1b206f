//! Every certificate of `config/certificates.md`, made anew, and the table of that page.

use std::sync::Arc;

use adit::tls::callers::{CallerTrust, Shown};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose as Purpose, GeneralSubtree, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    NameConstraints, PublicKeyData, RevokedCertParams, RsaKeySize, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

/// The page.
const PAGE: &str = include_str!("../../../config/certificates.md");

/// `openssl genrsa 1024 | openssl pkcs8 -topk8 -nocrypt`, and `openssl pkey -pubout` of it: no library makes one any
/// more.
const RSA_1024: &str = include_str!("../../data/rsa_1024.pem");

/// What a service is expected to be, and a caller's name on the list.
pub(crate) const SPIFFE_ID: &str = "spiffe://example.org/zoo/service";
pub(crate) const DNS_NAME: &str = "service.zoo.test";

/// One certificate of the table: what is documented of it in each column.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "each column has its own test")]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) present: String,
    pub(crate) expect: String,
    pub(crate) caller: String,
}

/// The table, in order.
pub(crate) fn table() -> Vec<Row> {
    let cells = PAGE.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        let [name, _, present, expect, caller] = cells.try_into().expect("five columns");
        Row { name: name.trim_matches('`').to_owned(), present, expect, caller }
    });
    let rows: Vec<_> = cells.collect();
    assert!(rows.len() > 40, "the table is not read");
    rows
}

/// What a certificate is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    /// adit's identity or a caller's.
    Client,
    /// A service's.
    #[allow(dead_code, reason = "a column of its own")]
    Server,
}

/// A certificate with what is sent along.
#[derive(Debug)]
pub(crate) struct Animal {
    /// Leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// PKCS#8; nobody has one of a kind that is only looked at.
    #[allow(dead_code, reason = "a relayed certificate comes without it")]
    pub(crate) key: Option<PrivateKeyDer<'static>>,
}

impl Animal {
    /// As a caller shows it.
    pub(crate) fn shown(&self) -> Shown {
        Shown { leaf: self.chain[0].clone(), chain: self.chain[1..].into() }
    }
}

/// An authority with its own certificate.
struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// The authorities of the zoo, and who is on which list.
pub(crate) struct Zoo {
    root: Authority,
    second: Authority,
    stranger: Authority,
    issuer: Authority,
    /// Never sent.
    known: Authority,
    revoked_issuer: Authority,
    allow_listed: [(CertificateParams, KeyPair, CertificateDer<'static>); 2],
}

/// A serial number on a list.
const REVOKED: &[u8] = &[0x5e, 0xed];

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn lifetime(params: &mut CertificateParams, from_hours: i64, to_hours: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now + Duration::hours(from_hours);
    params.not_after = now + Duration::hours(to_hours);
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lifetime(&mut params, -48, 48);
    params
}

fn leaf_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("leaf");
    params.subject_alt_names = vec![dns(DNS_NAME), uri(SPIFFE_ID)];
    params.extended_key_usages = vec![Purpose::ClientAuth, Purpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    lifetime(&mut params, -24, 24);
    params
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

/// An extension that nobody knows.
fn extension(bytes: usize, critical: bool) -> CustomExtension {
    // An OCTET STRING is as good as anything.
    let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![0; bytes]);
    extension.set_criticality(critical);
    extension
}

fn pkcs8(key: &KeyPair) -> Option<PrivateKeyDer<'static>> {
    Some(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
}

impl Authority {
    fn root(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority_params(name);
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { der, issuer: Issuer::new(params, key) }
    }

    fn below(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { der, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, params: &CertificateParams, key: &impl PublicKeyData) -> CertificateDer<'static> {
        params.signed_by(key, &self.issuer).unwrap().der().clone()
    }

    /// A leaf with a new P-256 key, and this authority's own certificate behind it.
    fn animal(&self, params: &CertificateParams) -> Animal {
        let key = KeyPair::generate().unwrap();
        Animal { chain: vec![self.issue(params, &key), self.der.clone()], key: pkcs8(&key) }
    }

    fn revocation_list(&self) -> CertificateRevocationListDer<'static> {
        let now = OffsetDateTime::now_utc();
        let list = CertificateRevocationListParams {
            this_update: now - Duration::hours(1),
            next_update: now + Duration::hours(24),
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from_slice(REVOKED),
                revocation_time: now - Duration::hours(1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().der().clone()
    }
}

impl Zoo {
    /// Makes the authorities.
    pub(crate) fn new() -> Self {
        let root = Authority::root("Zoo Root");
        let issuer = root.below(authority_params("Zoo Issuer"));
        let known = root.below(authority_params("Zoo Known Issuer"));
        let mut params = authority_params("Zoo Revoked Issuer");
        params.serial_number = Some(SerialNumber::from_slice(REVOKED));
        let revoked_issuer = root.below(params);
        let alone = |hours| {
            let mut params = leaf_params();
            lifetime(&mut params, -24, hours);
            let key = KeyPair::generate().unwrap();
            let der = params.self_signed(&key).unwrap().der().clone();
            (params, key, der)
        };
        Self {
            second: Authority::root("Zoo Second Root"),
            stranger: Authority::root("Zoo Stranger"),
            allow_listed: [alone(24), alone(-1)],
            root,
            issuer,
            known,
            revoked_issuer,
        }
    }

    /// The roots that whoever verifies has, and the intermediate authority that he knows.
    #[allow(dead_code, reason = "for services and their clients")]
    pub(crate) fn roots(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.der.clone(), self.second.der.clone(), self.known.der.clone()]
    }

    /// For callers.
    pub(crate) fn anchors(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.der.clone(), self.second.der.clone()]
    }

    /// For callers who send none.
    pub(crate) fn intermediates(&self) -> Vec<CertificateDer<'static>> {
        vec![self.known.der.clone()]
    }

    /// Valid by themselves.
    pub(crate) fn allow_listed(&self) -> Vec<CertificateDer<'static>> {
        self.allow_listed.iter().map(|(_, _, der)| der.clone()).collect()
    }

    /// Of the root and of the issuer.
    pub(crate) fn revocation_lists(&self) -> Vec<CertificateRevocationListDer<'static>> {
        vec![self.root.revocation_list(), self.issuer.revocation_list()]
    }

    /// All four together.
    pub(crate) fn trust(&self) -> Arc<CallerTrust> {
        let (anchors, intermediates) = (self.anchors(), self.intermediates());
        Arc::new(CallerTrust::new(anchors, intermediates, self.allow_listed(), self.revocation_lists()).unwrap())
    }

    /// A leaf with a key of this kind.
    fn keyed(&self, key: &KeyPair) -> Animal {
        Animal { chain: vec![self.issuer.issue(&leaf_params(), key), self.issuer.der.clone()], key: pkcs8(key) }
    }

    /// A leaf whose issuer is special.
    fn below(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Animal {
        let mut params = authority_params(name);
        change(&mut params);
        self.root.below(params).animal(&leaf_params())
    }

    /// A leaf that is special.
    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Animal {
        let mut params = leaf_params();
        change(&mut params);
        self.issuer.animal(&params)
    }

    /// A chain of so many certificates, the root included.
    fn deep(&self, certificates: usize) -> Animal {
        let mut issuers = vec![self.root.below(authority_params("Zoo Issuer 1"))];
        while issuers.len() < certificates - 2 {
            let name = format!("Zoo Issuer {}", issuers.len() + 1);
            issuers.push(issuers.last().unwrap().below(authority_params(&name)));
        }
        let mut animal = issuers.pop().unwrap().animal(&leaf_params());
        animal.chain.extend(issuers.iter().rev().map(|issuer| issuer.der.clone()));
        assert_eq!(animal.chain.len(), certificates - 1);
        animal
    }

    /// The certificate of this row; `None` is none.
    pub(crate) fn make(&self, name: &str, shown: As) -> Option<Animal> {
        let other_purpose = match shown {
            As::Client => vec![Purpose::ServerAuth],
            As::Server => vec![Purpose::ClientAuth],
        };
        let constrained = |permitted: Vec<String>| {
            let permitted_subtrees = permitted.into_iter().map(GeneralSubtree::DnsName).collect();
            Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() })
        };
        let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).unwrap();
        let of = |algorithm| KeyPair::generate_for(algorithm).unwrap();
        Some(match name {
            "none" => return None,
            "good" => self.leaf(|_| {}),
            "good-p384" => self.keyed(&of(&rcgen::PKCS_ECDSA_P384_SHA384)),
            "good-ed25519" => self.keyed(&of(&rcgen::PKCS_ED25519)),
            "good-rsa-2048" => self.keyed(&rsa(RsaKeySize::_2048)),
            "good-rsa-4096" => self.keyed(&rsa(RsaKeySize::_4096)),
            "second-root" => self.second.below(authority_params("Zoo Second Issuer")).animal(&leaf_params()),
            "wildcard-dns" => self.leaf(|leaf| leaf.subject_alt_names = vec![dns("*.zoo.test")]),
            "two-uris" => {
                self.leaf(|leaf| leaf.subject_alt_names = vec![uri(SPIFFE_ID), uri("spiffe://example.org/zoo/other")])
            }
            "other-name" => self.leaf(|leaf| {
                leaf.subject_alt_names = vec![dns("other.zoo.test"), uri("spiffe://example.org/zoo/other")];
            }),
            "expired" => self.leaf(|leaf| lifetime(leaf, -24, -1)),
            "not-yet-valid" => self.leaf(|leaf| lifetime(leaf, 1, 24)),
            "expired-intermediate" => self.below("Zoo Expired Issuer", |issuer| lifetime(issuer, -24, -1)),
            "wrong-purpose" => self.leaf(|leaf| leaf.extended_key_usages = other_purpose),
            "no-purpose" => self.leaf(|leaf| leaf.extended_key_usages.clear()),
            "wrong-purpose-intermediate" => {
                self.below("Zoo Issuer of Others", |issuer| issuer.extended_key_usages = other_purpose)
            }
            "authority" => self.leaf(|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "unknown-authority" => self.stranger.below(authority_params("Zoo Strange Issuer")).animal(&leaf_params()),
            "missing-intermediate" => self.leaf(|_| {}).without_chain(),
            "known-intermediate" => self.known.animal(&leaf_params()).without_chain(),
            "self-signed" => {
                let key = KeyPair::generate().unwrap();
                Animal { chain: vec![leaf_params().self_signed(&key).unwrap().der().clone()], key: pkcs8(&key) }
            }
            "allow-listed" | "allow-listed-expired" => {
                let (_, key, der) = &self.allow_listed[usize::from(name == "allow-listed-expired")];
                Animal { chain: vec![der.clone()], key: pkcs8(key) }
            }
            "revoked" => self.leaf(|leaf| leaf.serial_number = Some(SerialNumber::from_slice(REVOKED))),
            "revoked-intermediate" => self.revoked_issuer.animal(&leaf_params()),
            "constrained" => self.below("Zoo Narrow Issuer", |issuer| {
                issuer.name_constraints = constrained(vec!["zoo.test".to_owned()]);
            }),
            "constrained-out" => self.below("Zoo Other Issuer", |issuer| {
                issuer.name_constraints = constrained(vec!["other.test".to_owned()]);
            }),
            "constrained-11" => self.below("Zoo Fussy Issuer", |issuer| {
                let other = (1..=10).map(|n| format!("{n}.test"));
                issuer.name_constraints = constrained(other.chain(["zoo.test".to_owned()]).collect());
            }),
            "deep-8" => self.deep(8),
            "deep-11" => self.deep(11),
            "rsa-1024" => {
                let (private, public) = RSA_1024.split_once("-----BEGIN PUBLIC").unwrap();
                let public = SubjectPublicKeyInfo::from_pem(&format!("-----BEGIN PUBLIC{public}")).unwrap();
                let leaf = self.issuer.issue(&leaf_params(), &public);
                let key = rustls::pki_types::pem::PemObject::from_pem_slice(private.as_bytes()).unwrap();
                Animal { chain: vec![leaf, self.issuer.der.clone()], key: Some(PrivateKeyDer::Pkcs8(key)) }
            }
            "p521" => self.keyed(&of(&rcgen::PKCS_ECDSA_P521_SHA512)),
            // What matters is the name of the algorithm; the signature does not fit any more.
            "ed448" => self.keyed(&of(&rcgen::PKCS_ED25519)).with_algorithm_448(),
            "critical-extension" => self.leaf(|leaf| leaf.custom_extensions = vec![extension(4, true)]),
            "tampered" => {
                let mut animal = self.leaf(|_| {});
                let mut der = animal.chain[0].to_vec();
                *der.last_mut().unwrap() ^= 1;
                animal.chain[0] = der.into();
                animal
            }
            "malformed" => {
                let mut animal = self.leaf(|_| {});
                animal.chain[0] = b"\x30\x0eno certificate".to_vec().into();
                animal
            }
            "large-names" => self.leaf(|leaf| {
                leaf.subject_alt_names.extend((1..20).map(|n| dns(&format!("another-name-{n:02}.zoo.test"))));
            }),
            "large-uris" => self.leaf(|leaf| {
                leaf.subject_alt_names.extend((1..20).map(|n| uri(&format!("spiffe://example.org/zoo/{n:02}"))));
            }),
            "large-spiffe-id" => self.leaf(|leaf| {
                let long = format!("spiffe://example.org/{}", "a".repeat(2048));
                leaf.subject_alt_names = vec![dns(DNS_NAME), uri(&long)];
            }),
            "large-serial" => self.leaf(|leaf| leaf.serial_number = Some(SerialNumber::from_slice(&[0x7f; 26]))),
            "large-subject" => self.leaf(|leaf| leaf.distinguished_name = named(&"long".repeat(128))),
            "large-issuer" => self.below(&"long".repeat(128), |_| {}),
            "large-chain" => {
                self.below("Zoo Large Issuer", |issuer| issuer.custom_extensions = vec![extension(17 << 10, false)])
            }
            "large-leaf" => self.leaf(|leaf| leaf.custom_extensions = vec![extension(17 << 10, false)]),
            unknown => panic!("`{unknown}` stands in the table and is not made"),
        })
    }
}

impl Animal {
    fn without_chain(mut self) -> Self {
        self.chain.truncate(1);
        self
    }

    /// Ed448 instead of Ed25519 (RFC 8410 §3), by name.
    fn with_algorithm_448(mut self) -> Self {
        let mut der = self.chain[0].to_vec();
        let (ed25519, ed448) = ([6, 3, 0x2b, 0x65, 0x70], [6, 3, 0x2b, 0x65, 0x71]);
        let at = der.windows(5).position(|bytes| bytes == ed25519).unwrap();
        der[at..at + 5].copy_from_slice(&ed448);
        self.chain[0] = der.into();
        self.key = None;
        self
    }
}
