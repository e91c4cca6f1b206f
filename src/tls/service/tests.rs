use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    ServerConfig, SupportedProtocolVersion,
    client::ClientSessionStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{identity::Expect, metrics::HopFailure, tls::keyring::Identity};

/// An authority and what it issued.
struct Pki {
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
}

impl Pki {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let mut roots = RootCertStore::empty();
        roots.add(params.self_signed(&key).unwrap().der().clone()).unwrap();
        Self { issuer: Issuer::new(params, key), roots: Arc::new(roots) }
    }

    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["service.test".to_owned()]).unwrap();
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (leaf, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    fn tls(&self, expect: &[&str]) -> ServiceTls {
        let (leaf, key) = self.leaf(|_| {});
        let identity = Arc::new(Identity::new(vec![leaf], key).unwrap());
        let trust = OriginTrust { current: self.roots.clone(), previous: None };
        let expect = expect.iter().map(|text| text.parse::<Expect>().unwrap()).collect();
        ServiceTls {
            verifier: Ok(Arc::new(Verifier::new(trust, expect, &provider()))),
            presenter: Arc::new(Presenter::new(Some(("writer".to_owned(), Ok(identity))))),
            unverified: false,
            http2: false,
        }
    }

    fn server(
        &self,
        version: &'static SupportedProtocolVersion,
        asks: bool,
        change: impl FnOnce(&mut CertificateParams),
    ) -> TlsAcceptor {
        let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).unwrap();
        let builder = if asks {
            let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider()).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let (leaf, key) = self.leaf(change);
        let mut config = builder.with_single_cert(vec![leaf], key).unwrap();
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        config.send_tls13_tickets = 4;
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A dial of which both ends are told: what came of it here and until when it counts, how the handshake was there, and how many bytes arrived
/// there after it.
async fn dial(
    hands: &Handshakes,
    server: &TlsAcceptor,
) -> (Result<Option<Instant>, Failure>, Option<HandshakeKind>, usize) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let client = async {
        let (mut stream, until) = hands.shake(ServerName::try_from("service.test").unwrap(), ours, false).await?;
        stream.write_all(b"ping").await.unwrap();
        // Tickets of TLS 1.3 come with the answer.
        stream.read_exact(&mut [0; 4]).await.unwrap();
        Ok(until)
    };
    let server = async {
        let Ok(mut stream) = server.accept(theirs).await else { return (None, 0) };
        let kind = stream.get_ref().1.handshake_kind();
        let mut bytes = [0; 4];
        let read = stream.read(&mut bytes).await.unwrap_or(0);
        let _ = stream.write_all(&bytes[..read]).await;
        (kind, read)
    };
    let (outcome, (kind, read)) = tokio::join!(client, server);
    (outcome, kind, read)
}

fn cause(outcome: &Result<Option<Instant>, Failure>) -> Option<HopFailure> {
    outcome.as_ref().err().map(Failure::cause)
}

#[tokio::test]
async fn a_service_that_does_not_ask_is_refused_on_every_dial_before_a_byte() {
    let pki = Pki::new();
    for version in [&TLS12, &TLS13] {
        let server = pki.server(version, false, |_| {});
        let hands = pki.tls(&[]).handshakes(true).unwrap();
        for number in 1..=10 {
            let (outcome, kind, read) = dial(&hands, &server).await;
            assert_eq!(cause(&outcome), Some(HopFailure::NotAsking), "dial {number}");
            assert!(kind != Some(HandshakeKind::Resumed) && read == 0, "dial {number}: {kind:?}, {read}");
        }
    }
}

#[tokio::test]
async fn a_service_that_asks_resumes_from_the_second_dial_on() {
    let pki = Pki::new();
    for version in [&TLS12, &TLS13] {
        let server = pki.server(version, true, |_| {});
        let hands = pki.tls(&[]).handshakes(true).unwrap();
        for number in 1..=10 {
            let (outcome, kind, read) = dial(&hands, &server).await;
            assert!(outcome.is_ok() && read == 4, "dial {number}: {outcome:?}");
            assert_eq!(kind == Some(HandshakeKind::Resumed), number > 1, "dial {number}: {kind:?}");
        }
        // Another way has other sessions.
        let (outcome, kind, _) = dial(&pki.tls(&[]).handshakes(true).unwrap(), &server).await;
        assert!(outcome.is_ok() && kind != Some(HandshakeKind::Resumed), "{kind:?}");
    }
}

#[tokio::test]
async fn what_is_expected_takes_the_place_of_the_name_and_never_of_the_chain() {
    let pki = Pki::new();
    let uris = |params: &mut CertificateParams, uris: &[&str]| {
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    };
    let right = "spiffe://example.org/backend";
    for (sans, expect, failure) in [
        (&[right][..], &[right][..], None),
        (&[right], &["dns:other.test", right], None),
        (&[right], &["spiffe://example.org/other"], Some(HopFailure::WrongIdentity)),
        (&[right, "spiffe://example.org/second"], &[right], Some(HopFailure::WrongIdentity)),
        (&[right], &[], Some(HopFailure::WrongIdentity)),
    ] {
        let server = pki.server(&TLS13, true, |params| uris(params, sans));
        let (outcome, ..) = dial(&pki.tls(expect).handshakes(true).unwrap(), &server).await;
        assert_eq!(cause(&outcome), failure, "{sans:?} {expect:?}");
    }
    let stranger = Pki::new().server(&TLS13, false, |params| uris(params, &[right]));
    let (outcome, ..) = dial(&pki.tls(&[right]).handshakes(false).unwrap(), &stranger).await;
    assert_eq!(cause(&outcome), Some(HopFailure::UnknownIssuer), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn the_trust_before_a_change_counts_until_its_time_is_over_for_sessions_and_connections_too() {
    let (old, new) = (Pki::new(), Pki::new());
    let until = Instant::now() + std::time::Duration::from_secs(30);
    for version in [&TLS12, &TLS13] {
        let server = old.server(version, false, |_| {});
        let trust = OriginTrust { current: new.roots.clone(), previous: Some((old.roots.clone(), until)) };
        let tls = ServiceTls { verifier: Ok(Arc::new(Verifier::new(trust, vec![], &provider()))), ..new.tls(&[]) };
        let hands = tls.handshakes(false).unwrap();
        for resumed in [false, true] {
            let (outcome, kind, _) = dial(&hands, &server).await;
            assert_eq!(outcome.unwrap(), Some(until), "resumed: {resumed}");
            assert_eq!(kind == Some(HandshakeKind::Resumed), resumed, "{kind:?}");
        }
        let renewed = new.server(version, false, |_| {});
        let others = tls.handshakes(false).unwrap();
        for _ in 0..2 {
            assert_eq!(dial(&others, &renewed).await.0.unwrap(), None, "the new trust has no end");
        }
        if version.version == TLS13.version {
            tokio::time::advance(std::time::Duration::from_secs(31)).await;
            let (outcome, ..) = dial(&hands, &server).await;
            assert_eq!(cause(&outcome), Some(HopFailure::UnknownIssuer));
        }
    }
}

#[test]
fn what_never_could_be_mutual_is_refused_before_there_is_a_dial() {
    let pki = Pki::new();
    let nobody = ServiceTls { presenter: Arc::new(Presenter::new(None)), ..pki.tls(&[]) };
    assert!(nobody.handshakes(true).is_err() && nobody.handshakes(false).is_ok());
    let unverified = ServiceTls { unverified: true, ..pki.tls(&[]) };
    assert!(unverified.handshakes(true).is_err() && unverified.handshakes(false).is_ok());
    let unread = Presenter::new(Some(("writer".to_owned(), Err(Unusable::Unread("is gone".into())))));
    let unread = ServiceTls { presenter: Arc::new(unread), ..pki.tls(&[]) };
    let failure = unread.handshakes(true).unwrap().check().unwrap_err();
    assert_eq!(failure.to_string(), "identity \"writer\" is gone");
    assert!(unread.handshakes(false).unwrap().check().is_ok());
}

#[tokio::test]
async fn sessions_are_bounded_in_tickets_and_in_names() {
    let pki = Pki::new();
    let server = pki.server(&TLS13, true, |_| {});
    let hands = pki.tls(&[]).handshakes(true).unwrap();
    // Each dial takes one ticket and brings four.
    for _ in 0..6 {
        dial(&hands, &server).await.0.unwrap();
    }
    assert_eq!(hands.sessions.counts(), (1, 8));
    let dial = OfDial::new(hands.sessions.clone());
    for name in 0..1000 {
        let name = ServerName::try_from(format!("{name}.test")).unwrap();
        dial.set_kx_hint(name, rustls::NamedGroup::X25519);
    }
    assert_eq!(hands.sessions.counts(), (256, 0));
}
