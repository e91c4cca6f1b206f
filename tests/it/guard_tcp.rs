//! TCP at a guard: the handshake decides, then bytes pass.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{
    LIMIT, eventually,
    guard::{A, GuardLab, NAME, peer_with},
    in_time,
    peer::scripted,
    tls::{Ca, Leaf},
};

/// Answers with what it read once its peer has ended.
async fn at_the_end() -> std::net::SocketAddr {
    scripted(|mut peer| async move {
        let mut said = peer.rest().await;
        said.reverse();
        peer.send(said).await;
    })
    .await
}

/// A service that sends back what it reads.
async fn echo() -> std::net::SocketAddr {
    scripted(|mut peer| async move {
        loop {
            let some = peer.some().await;
            if some.is_empty() || !peer.send(some).await {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn bytes_pass_both_ways_and_each_direction_ends_alone() {
    in_time(async {
        let lab = GuardLab::start(format!("tcp://{}", at_the_end().await), "").await;
        let mut tls = lab.tls(&lab.peer(Some(&lab.a), &[])).await.unwrap();
        tls.write_all(b"said").await.unwrap();
        tls.shutdown().await.unwrap();
        let mut heard = Vec::new();
        tls.read_to_end(&mut heard).await.expect("ended in good order");
        assert_eq!(heard, b"dias");
        eventually("it is counted", async || {
            lab.counted("adit_guard_requests_total{guard=\"0\",status_code=\"200\"}") == 1
        })
        .await;
    })
    .await;
}

/// What the peer hears of a handshake that the guard refuses; in TLS 1.3 with its first read.
async fn refused(lab: &GuardLab, leaf: Option<&Leaf>) -> String {
    let outcome = async {
        let mut tls = lab.tls(&lab.peer(leaf, &[])).await?;
        tls.read_u8().await
    };
    tokio::time::timeout(LIMIT, outcome).await.expect("never refused").unwrap_err().to_string()
}

#[tokio::test]
async fn a_bad_certificate_gets_an_alert_and_no_byte_reaches_the_service() {
    in_time(async {
        let service = scripted(|_| async { panic!("somebody was let through") }).await;
        let allow = "allow: [ { id: \"spiffe://example.org/worker/a\" } ]";
        let lab = GuardLab::start(format!("tcp://{service}"), allow).await;
        let key = rcgen::KeyPair::generate().unwrap();
        let expired = lab.ca.leaf_with(&["old.test"], &key, |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1));
        let stranger = Ca::new("others").workload(A, &[]);
        let b = lab.ca.workload("spiffe://example.org/worker/b", &[]);
        let revoked = lab.ca.workload(A, &[]);
        lab.write("crl.pem", &lab.ca.revoked(&[&revoked]));
        lab.reload();
        eventually("the list is in force", async || refused(&lab, Some(&revoked)).await.contains("CertificateRevoked"))
            .await;
        for (leaf, alert) in [
            (None, "CertificateRequired"),
            (Some(&expired), "CertificateExpired"),
            (Some(&stranger), "UnknownCA"),
            (Some(&b), "AccessDenied"),
        ] {
            let heard = refused(&lab, leaf).await;
            assert!(heard.contains(alert), "{alert}: {heard}");
        }
        // Each is counted by its cause; the revoked one came once or more.
        for (decision, code) in [
            ("outcome=\"missing\",cause=\"\"", "caller-missing"),
            ("outcome=\"not-allowed\",cause=\"\"", "caller-not-allowed"),
            ("outcome=\"invalid\",cause=\"expired\"", "caller-invalid"),
            ("outcome=\"invalid\",cause=\"unknown-issuer\"", "caller-invalid"),
            ("outcome=\"invalid\",cause=\"revoked\"", "caller-invalid"),
        ] {
            eventually(decision, async || lab.counted(&format!("adit_caller_decisions_total{{{decision}}}")) >= 1)
                .await;
            assert!(lab.counted(&format!("adit_guard_refusals_total{{guard=\"0\",code=\"{code}\"}}")) >= 1, "{code}");
        }
    })
    .await;
}

#[tokio::test]
async fn no_session_of_a_stream_is_resumed() {
    in_time(async {
        let lab = GuardLab::start(format!("tcp://{}", echo().await), "").await;
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let config = peer_with(&lab.ca.pem, Some(&lab.a), &[], &[version]);
            for _ in 0..3 {
                let mut tls = lab.tls(&config).await.unwrap();
                tls.write_all(b"x").await.unwrap();
                assert_eq!(tls.read_u8().await.unwrap(), b'x');
                assert_eq!(tls.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_stream_of_a_caller_who_is_revoked_is_cut() {
    in_time(async {
        let lab = GuardLab::start(format!("tcp://{}", echo().await), "").await;
        let b = lab.ca.workload("spiffe://example.org/worker/b", &[]);
        let (mut of_a, mut of_b) =
            (lab.tls(&lab.peer(Some(&lab.a), &[])).await.unwrap(), lab.tls(&lab.peer(Some(&b), &[])).await.unwrap());
        for tls in [&mut of_a, &mut of_b] {
            tls.write_all(b"x").await.unwrap();
            assert_eq!(tls.read_u8().await.unwrap(), b'x');
        }
        lab.write("crl.pem", &lab.ca.revoked(&[&lab.a]));
        lab.reload();
        let cut = tokio::time::timeout(LIMIT, of_a.read_u8()).await.expect("it goes on").unwrap_err();
        assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionReset, "{cut}");
        of_b.write_all(b"y").await.unwrap();
        assert_eq!(of_b.read_u8().await.unwrap(), b'y', "others go on");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs openssl in the PATH; .ci/run installs and runs it"]
async fn openssl_speaks_through_a_guard_and_hears_the_alert_without_a_certificate() {
    in_time(async {
        let lab = GuardLab::start(format!("tcp://{}", echo().await), "").await;
        lab.write("a.pem", &(lab.a.certificate.clone() + &lab.a.key));
        let dir = lab.dir.path().display().to_string();
        let run = async |further: &[&str]| {
            let mut openssl = tokio::process::Command::new("openssl");
            openssl.args(["s_client", "-quiet", "-verify_return_error", "-servername", NAME, "-verify_hostname", NAME]);
            openssl.args(["-CAfile", &format!("{dir}/ca.pem"), "-connect", &lab.addr.to_string()]).args(further);
            openssl.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
            openssl.stderr(std::process::Stdio::piped()).kill_on_drop(true);
            let mut child = openssl.spawn().expect("openssl");
            let mut stdin = child.stdin.take().unwrap();
            let _ = stdin.write_all(b"through\n").await;
            let mut said = vec![0; 8];
            let heard = child.stdout.take().unwrap().read_exact(&mut said).await.is_ok();
            drop(stdin);
            let _ = child.start_kill();
            let output = child.wait_with_output().await.unwrap();
            (heard, String::from_utf8_lossy(&said).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        for version in ["-tls1_2", "-tls1_3"] {
            let certificate = format!("{dir}/a.pem");
            let (heard, said, error) = run(&[version, "-cert", &certificate, "-key", &certificate]).await;
            assert!(heard && said == "through\n", "{version}: {said:?} {error}");
        }
        let (heard, _, error) = run(&["-tls1_3"]).await;
        assert!(!heard && error.contains("certificate required"), "{error}");
        let (heard, _, error) = run(&["-tls1_2"]).await;
        assert!(!heard && error.contains("alert"), "{error}");
    })
    .await;
}
