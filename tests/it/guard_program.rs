//! `adit guard` as a process: its admin address, its certificates from files, its end.

use std::{net::SocketAddr, path::Path, time::Duration};

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{
    Answer, LIMIT, eventually,
    guard::{A, ID, NAME, peer_of},
    in_time, mirror,
    peer::Peer,
    process::run,
    program::{Program, free, get, says},
    tls::{Ca, Leaf},
};

/// A guard on its own, with what it needs in `dir`.
struct Alone {
    ca: Ca,
    a: Leaf,
    listen: SocketAddr,
    admin: SocketAddr,
    service: SocketAddr,
    program: Program,
    dir: tempfile::TempDir,
}

impl Alone {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new("guards");
        let (listen, admin) = (free(), free());
        renew(dir.path(), &ca);
        std::fs::write(dir.path().join("ca.pem"), &ca.pem).unwrap();
        let service = mirror().await;
        let file = dir.path().join("guard.yml");
        std::fs::write(&file, yaml(dir.path(), listen, service, "")).unwrap();
        let admin_ = admin.to_string();
        let args = ["guard", "--config", file.to_str().unwrap(), "--metrics", &admin_];
        let program = Program::start(dir.path(), "guard", &args);
        says(admin, "/readyz", 200).await;
        let a = ca.workload(A, &[]);
        Self { ca, a, listen, admin, service, program, dir }
    }

    /// The file says this beside what every caller needs, and this of other things.
    fn configure(&self, callers: &str, more: &str) {
        let yaml = yaml(self.dir.path(), self.listen, self.service, callers) + more;
        std::fs::write(self.dir.path().join("guard.yml"), yaml).unwrap();
    }

    async fn visit(&self) -> Peer<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.listen).await.unwrap();
        let config = peer_of(&self.ca.pem, Some(&self.a), &[]);
        let tls = TlsConnector::from(config).connect(ServerName::try_from(NAME).unwrap(), tcp).await.unwrap();
        Peer::new(tls, 0)
    }

    /// What the guard shows, and how it answers.
    async fn ask(&self) -> (Vec<u8>, u16) {
        let mut peer = self.visit().await;
        let shown = peer.io.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        (shown, again(&mut peer).await.status)
    }
}

/// One request on a kept connection.
async fn again(peer: &mut Peer<TlsStream<TcpStream>>) -> Answer {
    peer.send(format!("GET /asked HTTP/1.1\r\nHost: {NAME}\r\n\r\n")).await;
    peer.answer().await
}

fn yaml(dir: &Path, listen: SocketAddr, service: SocketAddr, callers: &str) -> String {
    format!(
        "grace-period: 30s\nguard:\n  - listen: {listen}\n    certificate: {dir}/guard.pem\n    \
         service: http://{service}\n    callers: {{ trustAnchors: [ {dir}/ca.pem ], {callers} }}\n",
        dir = dir.display()
    )
}

/// Writes a new certificate for the guard in place.
fn renew(dir: &Path, ca: &Ca) -> Vec<u8> {
    let leaf = ca.workload(ID, &[NAME]);
    std::fs::write(dir.join("guard.pem"), leaf.certificate.clone() + &leaf.key).unwrap();
    leaf.chain()[0].to_vec()
}

#[tokio::test]
async fn a_guard_alone_serves_renews_tells_and_drains() {
    in_time(async {
        let guard = Alone::start().await;
        assert_eq!(guard.ask().await.1, 200);
        let next = renew(guard.dir.path(), &guard.ca);
        eventually("the renewed certificate is shown", async || guard.ask().await == (next.clone(), 200)).await;
        for path in ["/livez", "/startupz", "/healthcheck"] {
            says(guard.admin, path, 200).await;
        }
        let metrics = get(guard.admin, "/metrics").await.unwrap().text();
        assert!(metrics.contains("adit_guard_requests_total{guard=\"0\",status_code=\"200\"}"), "{metrics}");
        assert!(metrics.contains("adit_requests_total{rule=\"guard-0\"}"), "{metrics}");
        assert!(metrics.contains("adit_identity_not_after_seconds"), "{metrics}");
        assert!(!metrics.contains("cloudflared_tunnel"), "a guard has no tunnel: {metrics}");
        let page = get(guard.admin, "/").await.unwrap().text();
        assert!(page.contains(&format!("guard {} -> http://", guard.listen)), "{page}");
        let log = guard.program.log();
        let access = log.lines().find(|line| line.contains("path=/asked")).expect("no access event");
        for field in [&format!("guard={}", guard.listen), "status=200", &format!("caller={A}"), "transport=http/1.1"] {
            assert!(access.contains(field), "{field}: {access}");
        }
        assert!(!access.contains("connection=") && !access.contains("rule="), "{access}");
        // Unready at once, and still open for a moment.
        let admin = guard.admin.to_string();
        let args = ["drain", "--metrics", &admin];
        let waiting = run(&args);
        let seen = async {
            says(guard.admin, "/readyz", 503).await;
            guard.ask().await.1
        };
        let ((status, said, error), answered) = tokio::join!(waiting, seen);
        assert_eq!((status, answered), (0, 200), "{said}{error}");
        eventually("the door is closed", async || TcpStream::connect(guard.listen).await.is_err()).await;
        says(guard.admin, "/livez", 200).await;
        guard.program.signal("TERM");
        let status = tokio::time::timeout(LIMIT, guard.program.ended()).await.expect("it stays");
        assert_eq!(status.code(), Some(0));
    })
    .await;
}

#[tokio::test]
async fn a_caller_taken_off_the_list_of_the_file_is_refused_with_his_next_request() {
    in_time(async {
        let guard = Alone::start().await;
        let mut kept = guard.visit().await;
        assert_eq!(again(&mut kept).await.status, 200);
        let others = "allow: [ { id: \"spiffe://example.org/others\" } ]";
        guard.configure(others, "");
        eventually("the list is in force", async || guard.ask().await.1 == 403).await;
        let answer = again(&mut kept).await;
        assert_eq!((answer.status, answer.code()), (403, Some("caller-not-allowed")));
        // What a connector would need, and is not there, is none of a guard's business at a change, either.
        let connector = "innerHop: { identities: { absent: { certificate: /nonexistent/absent.pem } } }\n\
                         ingress:\n  - hostname: app.test\n    service: https://127.0.0.1:9\n    \
                         innerHop: { present: absent }\n  - service: http_status:404\n";
        guard.configure("", connector);
        eventually("he is back", async || guard.ask().await.1 == 200).await;
        assert_eq!(again(&mut kept).await.status, 200);
        // SIGHUP looks at the file; it does not end the process.
        guard.program.signal("HUP");
        eventually("it is told", async || guard.program.log().contains("is the one in force")).await;
        assert_eq!(again(&mut kept).await.status, 200);
        // Gone from the file.
        std::fs::write(guard.dir.path().join("guard.yml"), "grace-period: 30s\nguard: []\n").unwrap();
        tokio::time::timeout(LIMIT, kept.ended()).await.expect("he stays connected");
        eventually("nobody new", async || TcpStream::connect(guard.listen).await.is_err()).await;
        let page = get(guard.admin, "/").await.unwrap().text();
        assert!(page.lines().any(|line| line.starts_with("guard ") && line.ends_with("closed")), "{page}");
        let log = guard.program.log();
        assert_eq!(log.matches("the guard is gone from the file").count(), 1, "{log}");
    })
    .await;
}

#[tokio::test]
async fn without_a_guard_in_the_file_the_program_ends_with_2() {
    in_time(async {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("none.yml");
        std::fs::write(&file, "ingress: [ { service: \"http_status:404\" } ]\n").unwrap();
        let (status, _, error) = run(&["guard", "--config", file.to_str().unwrap()]).await;
        assert!(status == 2 && error.contains("no `guard` section"), "{status} {error}");
        // And one whose secrets make no sense.
        std::fs::write(dir.path().join("g.pem"), "nonsense").unwrap();
        let past = std::time::SystemTime::now() - Duration::from_secs(60);
        std::fs::File::options().write(true).open(dir.path().join("g.pem")).unwrap().set_modified(past).unwrap();
        let yaml = format!(
            "guard: [ {{ listen: \"127.0.0.1:0\", certificate: {dir}/g.pem, service: \"http://127.0.0.1:1\", \
             callers: {{ trustAnchors: [ {dir}/g.pem ] }} }} ]\n",
            dir = dir.path().display()
        );
        std::fs::write(&file, yaml).unwrap();
        let (status, _, error) = run(&["guard", "--config", file.to_str().unwrap(), "--metrics", "127.0.0.1:0"]).await;
        assert!(status == 2 && error.contains("g.pem"), "{status} {error}");
    })
    .await;
}
