//! Visitors over TLS, and certificates for all who need some.

use std::{sync::Arc, time::Duration};

use adit::identity::Certificate;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SanType, SerialNumber,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client};

use super::{Lab, background};

/// A client's TLS: whom it trusts, what it shows, what it speaks, and in which versions.
pub(crate) fn client_config(
    roots: RootCertStore,
    leaf: Option<&Leaf>,
    alpn: &[&str],
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(adit::tls::provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match leaf {
        Some(leaf) => {
            let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(leaf.chain(), key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

impl Lab {
    /// A visitor's TLS connection to `web.test`, trusting the edge's authority.
    pub(crate) async fn tls(&self, alpn: &[&str]) -> client::TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.state.ca_path()).unwrap()).unwrap();
        let config = client_config(roots, None, alpn, rustls::DEFAULT_VERSIONS);
        let tcp = TcpStream::connect(self.https).await.unwrap();
        let name = ServerName::try_from("web.test").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    /// A visitor's HTTP/2 connection, over TLS.
    pub(crate) async fn h2(&self) -> h2::client::SendRequest<bytes::Bytes> {
        let stream = self.tls(&["h2"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        background(async move {
            let _ = connection.await;
        });
        sender.ready().await.unwrap()
    }
}

/// The whole body of an answer over HTTP/2, and its trailers.
pub(crate) async fn h2_body(mut body: h2::RecvStream) -> (String, Option<http::HeaderMap>) {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        bytes.extend_from_slice(&chunk);
    }
    (String::from_utf8(bytes).unwrap(), body.trailers().await.unwrap())
}

/// An authority of a test: a root, or one below another.
pub(crate) struct Ca {
    /// Its certificate, PEM.
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate of a test, with its key. Both PEM.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Leaf {
    /// One file for both.
    pub(crate) fn bundle(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect::<Result<_, _>>().unwrap()
    }
}

impl Ca {
    /// A root of this name.
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, |_| {})
    }

    /// A root that differs.
    pub(crate) fn with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = Self::params(name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// An authority below this one.
    pub(crate) fn under(&self, name: &str) -> Self {
        let params = Self::params(name);
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// The same authority with its name in another encoding: the same letters as PrintableString.
    pub(crate) fn respelled(&self, name: &str) -> Self {
        let mut params = Self::params(name);
        let name = rcgen::DnValue::PrintableString(name.try_into().unwrap());
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::from_pem(&self.issuer.key().serialize_pem()).unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    /// Its certificate, DER.
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()
    }

    /// A list of revoked certificates, current from an hour ago for a day, that differs.
    pub(crate) fn revocation_list(
        &self,
        serials: &[u8],
        change: impl FnOnce(&mut CertificateRevocationListParams),
    ) -> CertificateRevocationListDer<'static> {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &u8| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&[*serial]),
            revocation_time: now - time::Duration::hours(1),
            reason_code: None,
            invalidity_date: None,
        };
        let mut list = CertificateRevocationListParams {
            this_update: now - time::Duration::hours(1),
            next_update: now + time::Duration::hours(24),
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        change(&mut list);
        list.signed_by(&self.issuer).unwrap().der().clone()
    }

    /// A certificate for both ends of TLS, with these names (DNS names or addresses).
    pub(crate) fn leaf(&self, names: &[&str]) -> Leaf {
        self.leaf_with(names, &KeyPair::generate().unwrap(), |_| {})
    }

    /// One that differs, of this key.
    pub(crate) fn leaf_with(&self, names: &[&str], key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let certificate = params.signed_by(key, &self.issuer).unwrap().pem();
        Leaf { certificate, key: key.serialize_pem() }
    }

    /// A certificate for both ends of TLS with this SPIFFE ID, and these names.
    pub(crate) fn workload(&self, id: &str, names: &[&str]) -> Leaf {
        self.leaf_with(names, &KeyPair::generate().unwrap(), |params| {
            params.subject_alt_names.push(SanType::URI(id.try_into().unwrap()));
        })
    }

    /// The list of these certificates as revoked, PEM.
    pub(crate) fn revoked(&self, leaves: &[&Leaf]) -> String {
        let now = OffsetDateTime::now_utc();
        let entry = |leaf: &&Leaf| RevokedCertParams {
            serial_number: Certificate::parse(&leaf.chain()[0]).unwrap().serial.into(),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now - Duration::from_secs(60),
            next_update: now + Duration::from_secs(3600),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: leaves.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}
