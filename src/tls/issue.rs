//! Making certificates: the private authority of a self-hosted edge and the leaves it needs.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::{Error, material::Material};

/// How long an authority lives: 20 years.
const AUTHORITY_DAYS: i64 = 20 * 365;
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
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lifetime(&mut params, AUTHORITY_DAYS);
    let certificate = params.self_signed(&key)?;
    Ok(NewAuthority { certificate_pem: certificate.pem(), key_pem: Zeroizing::new(key.serialize_pem()) })
}

fn lifetime(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    // An hour of tolerance for a connector whose clock is behind.
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(days);
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
        lifetime(&mut params, LEAF_DAYS);
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(Material {
            chain: vec![leaf.der().clone(), self.certificate.clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        })
    }
}
