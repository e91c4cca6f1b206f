//! Making certificates: the private authority of a self-hosted edge and the leaves it needs, and those of laboratories.

mod laboratory;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

pub use self::laboratory::{Laboratory, Leaf, NewLeaf, RevocationList, new_laboratory};
use super::{Error, material::Material};

/// How long an authority lives: 20 years.
const AUTHORITY_DAYS: i64 = 20 * 365;
/// How long an intermediate authority lives: 10 years.
const INTERMEDIATE_DAYS: i64 = 10 * 365;
/// How long a leaf lives: 90 days. An edge makes its own at each start and once a month.
const LEAF_DAYS: i64 = 90;

/// A certificate authority with its key.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// An authority as text, to be written to files.
#[derive(Debug)]
pub struct NewAuthority {
    /// The certificate.
    pub certificate_pem: String,
    /// The key, PKCS#8.
    pub key_pem: Zeroizing<String>,
}

/// Makes an authority with an ECDSA P-256 key.
///
/// # Errors
///
/// When the system has no randomness.
pub fn new_authority(common_name: &str) -> Result<NewAuthority, Error> {
    let key = KeyPair::generate()?;
    let certificate = authority_params(common_name, 0, AUTHORITY_DAYS).self_signed(&key)?;
    Ok(NewAuthority { certificate_pem: certificate.pem(), key_pem: Zeroizing::new(key.serialize_pem()) })
}

/// An authority that may have so many intermediates below it.
fn authority_params(common_name: &str, intermediates: u8, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(intermediates));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lifetime(&mut params, Duration::days(days));
    params
}

fn lifetime(params: &mut CertificateParams, lifetime: Duration) {
    let now = OffsetDateTime::now_utc();
    // An hour of tolerance for a connector whose clock is behind.
    params.not_before = now - Duration::hours(1);
    params.not_after = now + lifetime;
}

impl Authority {
    /// Reads an authority from its two PEM texts.
    ///
    /// # Errors
    ///
    /// When either is malformed.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| Error::NoCertificate("ca.pem".into()))?;
        let key = KeyPair::from_pem(key_pem)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, issuer })
    }

    /// Makes a server's leaf for `names` (DNS names or addresses).
    ///
    /// # Errors
    ///
    /// When a name is not one.
    pub fn issue_server(&self, names: &[String]) -> Result<Material, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.to_vec())?;
        if let Some(first) = names.first() {
            params.distinguished_name.push(DnType::CommonName, first.as_str());
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        lifetime(&mut params, Duration::days(LEAF_DAYS));
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(Material {
            chain: vec![leaf.der().clone(), self.certificate.clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        })
    }
}
