//! Real servers that demand a certificate: nginx, haproxy and OpenSSL's.

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::copy,
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use crate::harness::{
    Lab, Over, background, eventually,
    hop::Hop,
    log::Log,
    over_both,
    real::{self, Server},
};

/// A certificate for the server, one file with its key.
fn servers(hop: &Hop) -> String {
    hop.identity("server", &hop.ca.leaf(&["127.0.0.1"]));
    hop.path("server.pem").display().to_string()
}

async fn nginx(hop: &Hop) -> Server {
    let (pem, ca) = (servers(hop), hop.path("ca.pem").display().to_string());
    real::nginx(|addr, _| {
        format!(
            "server {{ listen {addr} ssl; ssl_certificate {pem}; ssl_certificate_key {pem}; ssl_client_certificate {ca};\n\
             ssl_verify_client on; client_max_body_size 0; location / {{ add_header X-Subject $ssl_client_s_dn always;\n\
             return 200 \"$ssl_client_verify\"; }} }}"
        )
    })
    .await
}

async fn haproxy(hop: &Hop, version: &str) -> Server {
    let (pem, ca) = (servers(hop), hop.path("ca.pem").display().to_string());
    real::server("haproxy", &["-db", "-q", "-f"], |addr, _| {
        format!(
            "defaults\n  mode http\n  timeout client 20s\n  timeout server 20s\n  timeout connect 5s\nfrontend f\n  bind \
             {addr} ssl crt {pem} ca-file {ca} verify required alpn h2,http/1.1 ssl-min-ver TLSv1.{version} ssl-max-ver TLSv1.{version}\n  \
             http-request return status 200 content-type text/plain string yes hdr X-Subject %{{+Q}}[ssl_c_s_dn(cn)]\n"
        )
    })
    .await
}

struct Openssl {
    addr: SocketAddr,
    _child: Child,
}

async fn openssl(hop: &Hop, version: &str) -> Openssl {
    let (pem, ca) = (servers(hop), hop.path("ca.pem").display().to_string());
    let addr = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let child = Command::new("openssl")
        .args(["s_server", "-accept", &addr.to_string(), "-cert", &pem, "-CAfile", &ca, "-Verify", "5"])
        .args(["-verify_return_error", "-www", "-quiet", &format!("-tls1_{version}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("openssl: {error}"));
    eventually("openssl listens", async || TcpStream::connect(addr).await.is_ok()).await;
    Openssl { addr, _child: child }
}

/// Stands in front of a server and counts its connections.
async fn counting(server: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    background(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            background(async move {
                let Ok(mut to) = TcpStream::connect(server).await else { return };
                let ((mut up, mut back), (mut down, mut forth)) = (from.split(), to.split());
                // What the server says last arrives although it takes no more.
                let upload = async {
                    let _ = copy(&mut up, &mut forth).await;
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = upload => {}
                    _ = copy(&mut down, &mut back) => {}
                }
            });
        }
    });
    (addr, connections)
}

async fn right_and_wrong_at_nginx(over: Over) {
    let hop = Hop::new();
    let nginx = nginx(&hop).await;
    let url = format!("https://{}", nginx.addr);
    let lab = Lab::start(over, &hop.rule("writer", &url, "")).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "SUCCESS"), "{answer:?}");
    assert_eq!(answer.header("x-subject"), Some("CN=rcgen self signed cert"));
    lab.finish().await;

    // nginx accepts the handshake and answers by itself; that is its answer, and the visitor's.
    let lab = Lab::start(over, &hop.rule("stranger", &url, "")).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.status, answer.code()), (400, None), "{answer:?}");
    assert!(answer.text().contains("The SSL certificate error"), "{}", answer.text());
    assert!(answer.header("server").is_some_and(|server| server.starts_with("nginx")));
    lab.finish().await;
}

/// The right identity passes, the wrong one is told 525 with the server's alert, and asked no second time.
async fn accepts_and_refuses(over: Over, hop: &Hop, log: &Log, server: SocketAddr, direct: bool, options: &str) {
    let url = |addr| format!("https://{addr}");
    let lab = Lab::start(over, &hop.rule("writer", url(server), options)).await;
    let answer = lab.get("/").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    lab.finish().await;

    for (method, size) in [("GET", 0), ("POST", 4 << 20), ("PUT", 4 << 20)] {
        let (counting, connections) = counting(server).await;
        let before = log.lines().len();
        let lab = Lab::start(over, &hop.rule("stranger", url(if direct { server } else { counting }), options)).await;
        for number in 1..=3 {
            let answer = lab.send(method, "/", "", &vec![b'x'; size]).await;
            assert_eq!(
                (answer.status, answer.code()),
                (525, Some("origin-tls-refused")),
                "{method}: {:?}",
                log.lines()
            );
            if !direct {
                assert_eq!(connections.load(Ordering::SeqCst), number, "{method} was sent twice");
            }
        }
        assert!(lab.metrics.expose().contains("adit_inner_hop_failures_total{cause=\"refused-by-service\"} 3"));
        lab.finish().await;
        let lines = log.lines();
        let causes: Vec<_> =
            lines[before..].iter().filter(|line| line.target == "access").map(|line| line.field("cause")).collect();
        assert!(causes.len() == 3 && causes.iter().all(|cause| cause.contains("unknown_ca")), "{causes:?}");
    }
}

async fn at_haproxy(over: Over, version: &str, options: &str) {
    let (hop, log) = (Hop::new(), Log::start());
    let haproxy = haproxy(&hop, version).await;
    accepts_and_refuses(over, &hop, &log, haproxy.addr, false, options).await;
    accepts_and_refuses(over, &hop, &log, haproxy.addr, true, options).await;
}

async fn at_openssl(over: Over, version: &str) {
    let (hop, log) = (Hop::new(), Log::start());
    let openssl = openssl(&hop, version).await;
    accepts_and_refuses(over, &hop, &log, openssl.addr, false, "").await;
    accepts_and_refuses(over, &hop, &log, openssl.addr, true, "").await;
}

over_both! {
    #[ignore = "needs nginx in the PATH; .ci/run installs and runs it"]
    nginx_gets_the_right_identity_and_answers_the_wrong_one_by_itself => right_and_wrong_at_nginx,
    #[ignore = "needs haproxy in the PATH; .ci/run installs and runs it"]
    haproxy_refuses_the_wrong_identity_in_tls12 => |over| at_haproxy(over, "2", ""),
    #[ignore = "needs haproxy in the PATH; .ci/run installs and runs it"]
    haproxy_refuses_the_wrong_identity_in_tls13 => |over| at_haproxy(over, "3", ""),
    #[ignore = "needs haproxy in the PATH; .ci/run installs and runs it"]
    haproxy_refuses_the_wrong_identity_in_http2 => |over| at_haproxy(over, "3", "http2Origin: true"),
    #[ignore = "needs openssl in the PATH; .ci/run installs and runs it"]
    openssl_refuses_the_wrong_identity_in_tls12 => |over| at_openssl(over, "2"),
    #[ignore = "needs openssl in the PATH; .ci/run installs and runs it"]
    openssl_refuses_the_wrong_identity_in_tls13 => |over| at_openssl(over, "3"),
}
