//! Root, intermediate, leaves for both directions, and a list of revoked ones: what a laboratory needs to try mutual
//! TLS as it is elsewhere.

use rcgen::{
    CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::{
    certificate::X509Certificate, extensions::ParsedExtension, prelude::FromDer,
    revocation_list::CertificateRevocationList,
};
use zeroize::Zeroizing;

use super::{AUTHORITY_DAYS, Authority, INTERMEDIATE_DAYS, NewAuthority, authority_params, lifetime};
use crate::{identity::SpiffeId, tls::Error};

/// How long a list of revoked certificates counts: as long as its intermediate. Nobody publishes a laboratory's anew,
/// and a list that is out of date makes strict servers refuse everybody.
const LIST_DAYS: i64 = INTERMEDIATE_DAYS;

/// A root and its intermediate.
#[derive(Debug)]
pub struct Laboratory {
    /// What is trusted; 20 years.
    pub root: NewAuthority,
    /// What issues; 10 years.
    pub intermediate: NewAuthority,
}

/// What a leaf is to say.
#[derive(Clone, Debug)]
pub struct Leaf<'a> {
    /// The common name.
    pub name: &'a str,
    /// DNS names and addresses.
    pub dns: &'a [String],
    /// URI names. With more than one the certificate has no SPIFFE ID (X509-SVID §2).
    pub uris: &'a [SpiffeId],
    /// From now on.
    pub lifetime: std::time::Duration,
}

/// A leaf as text.
#[derive(Debug)]
pub struct NewLeaf {
    /// The certificate, without its issuer's.
    pub certificate_pem: String,
    /// The key, PKCS#8.
    pub key_pem: Zeroizing<String>,
    /// Until when it is valid.
    pub not_after: OffsetDateTime,
}

/// Makes a root and an intermediate with ECDSA P-256 keys; `name` begins their common names.
///
/// # Errors
///
/// When the system has no randomness.
pub fn new_laboratory(name: &str) -> Result<Laboratory, Error> {
    let root_key = KeyPair::generate()?;
    let certificate = authority_params(&format!("{name} root"), 1, AUTHORITY_DAYS).self_signed(&root_key)?;
    let root = NewAuthority { certificate_pem: certificate.pem(), key_pem: Zeroizing::new(root_key.serialize_pem()) };
    let issuer = Authority::from_pem(&root.certificate_pem, &root.key_pem)?;
    let key = KeyPair::generate()?;
    let mut params = authority_params(&format!("{name} intermediate"), 0, INTERMEDIATE_DAYS);
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer.issuer)?;
    let intermediate =
        NewAuthority { certificate_pem: certificate.pem(), key_pem: Zeroizing::new(key.serialize_pem()) };
    Ok(Laboratory { root, intermediate })
}

impl Authority {
    /// Makes a leaf for servers and for clients, with an ECDSA P-256 key.
    ///
    /// # Errors
    ///
    /// [`Error::Outlives`]; when a name is none.
    pub fn issue_leaf(&self, leaf: &Leaf<'_>) -> Result<NewLeaf, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(leaf.dns.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, leaf.name);
        for uri in leaf.uris {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        lifetime(&mut params, Duration::try_from(leaf.lifetime).map_err(|_| Error::Outlives)?);
        let not_after = params.not_after;
        if not_after > read(&self.certificate)?.validity().not_after.to_datetime() {
            return Err(Error::Outlives);
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(NewLeaf { certificate_pem: certificate.pem(), key_pem: Zeroizing::new(key.serialize_pem()), not_after })
    }

    /// Whether a certificate names this authority and its key as its issuer. The signature is not looked at: a list
    /// speaks of serial numbers alone.
    pub fn names_issuer_of(&self, certificate: &CertificateDer<'_>) -> bool {
        let (Ok(own), Ok(other)) = (read(&self.certificate), read(certificate)) else { return false };
        own.subject().as_raw() == other.issuer().as_raw() && key_id(&own, false) == key_id(&other, true)
    }

    /// The list of certificates of this authority that are revoked: those of `before`, and these too.
    ///
    /// # Errors
    ///
    /// [`Error::NoRevocationList`] when `before` is none, or none of this authority.
    pub fn revocation_list(
        &self,
        before: Option<&[u8]>,
        revoked: &[CertificateDer<'_>],
    ) -> Result<RevocationList, Error> {
        let now = OffsetDateTime::now_utc();
        let (mut number, mut entries) = (1, Vec::<RevokedCertParams>::new());
        if let Some(der) = before {
            let (_, list) = CertificateRevocationList::from_der(der).map_err(|_| Error::NoRevocationList)?;
            if list.issuer().as_raw() != read(&self.certificate)?.subject().as_raw() {
                return Err(Error::NoRevocationList);
            }
            let last = list.crl_number().and_then(|number| u64::try_from(number.clone()).ok());
            number = last.ok_or(Error::NoRevocationList)?.saturating_add(1);
            for entry in list.iter_revoked_certificates() {
                entries.push(entry_of(entry.raw_serial(), entry.revocation_date.to_datetime()));
            }
        }
        for certificate in revoked {
            let entry = entry_of(read(certificate)?.raw_serial(), now);
            if !entries.iter().any(|there| there.serial_number == entry.serial_number) {
                entries.push(entry);
            }
        }
        let revoked = entries.len();
        let list = CertificateRevocationListParams {
            this_update: now - Duration::hours(1),
            next_update: now + Duration::days(LIST_DAYS),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: entries,
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.issuer)?;
        Ok(RevocationList { pem: list.pem()?, revoked })
    }
}

/// A signed list of revoked certificates.
#[derive(Debug)]
pub struct RevocationList {
    /// As text.
    pub pem: String,
    /// How many certificates are on it.
    pub revoked: usize,
}

fn entry_of(serial: &[u8], revocation_time: OffsetDateTime) -> RevokedCertParams {
    RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time,
        reason_code: None,
        invalidity_date: None,
    }
}

fn read<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    let (_, read) = X509Certificate::from_der(certificate).map_err(|_| Error::NoCertificate("the input".into()))?;
    Ok(read)
}

/// The identifier of the key that a certificate has, or of the one that signed it.
fn key_id<'a>(certificate: &X509Certificate<'a>, signer: bool) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) if !signer => Some(id.0),
        ParsedExtension::AuthorityKeyIdentifier(id) if signer => id.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    })
}
