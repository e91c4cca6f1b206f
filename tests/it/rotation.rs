//! Identities and trust that change while adit runs, in every way in which files change.

mod load;

use std::path::Path;

use rcgen::KeyPair;
use time::{Duration, OffsetDateTime};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

use crate::harness::{
    LIMIT, Lab, Over, eventually, free_port,
    guard::GuardLab,
    in_time, over_both,
    peer::{Peer, scripted},
    process::Connector,
    tls::{Ca, Leaf},
};

over_both! {
    whatever_way_files_change_the_new_set_is_used_once_it_fits => shapes,
    pools_of_an_old_generation_close_although_a_stream_of_it_lives_on => pools,
    a_configuration_that_names_new_secrets_is_taken_once_they_are_there => named_later,
}

/// A leaf that can be told by the day it ends.
fn ending(ca: &Ca, days: i64) -> Leaf {
    ca.leaf_with(&["adit.test"], &KeyPair::generate().unwrap(), |params| params.not_after = end(days))
}

fn end(days: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(4_000_000_000).unwrap() + Duration::days(days)
}

/// The value of a series of the connector's metrics.
fn metric(lab: &Lab, series: &str) -> Option<i64> {
    let text = lab.metrics.expose();
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

const NOT_AFTER: &str = "adit_identity_not_after_seconds{identity=\"default\"}";

async fn is_in_use(lab: &Lab, days: i64) {
    let wanted = Some(end(days).unix_timestamp());
    eventually(&format!("the leaf of day {days} is in use"), async || metric(lab, NOT_AFTER) == wanted).await;
}

fn reloads(lab: &Lab, outcome: &str) -> i64 {
    metric(lab, &format!("adit_secret_reloads_total{{outcome=\"{outcome}\"}}")).unwrap()
}

fn yaml(certificate: &Path, key: Option<&Path>, service: &str) -> String {
    let key = key.map(|key| format!(", key: {}", key.display())).unwrap_or_default();
    format!(
        "innerHop:\n  mutualTls: optional\n  identities: {{ default: {{ certificate: {}{key} }} }}\n\
         ingress:\n  - service: {service}\n",
        certificate.display()
    )
}

fn rename(path: &Path, content: &str) {
    let beside = path.with_extension("tmp");
    std::fs::write(&beside, content).unwrap();
    std::fs::rename(beside, path).unwrap();
}

async fn shapes(over: Over) {
    let ca = Ca::new("root");
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("w.crt"), dir.path().join("w.key"));
    let first = ending(&ca, 1);
    std::fs::write(&certificate, &first.certificate).unwrap();
    std::fs::write(&key, &first.key).unwrap();
    let service = format!("https://{}", free_port().await);
    let lab = Lab::start(over, &yaml(&certificate, Some(&key), &service)).await;
    assert_eq!(metric(&lab, NOT_AFTER), Some(end(1).unix_timestamp()));
    assert_eq!(metric(&lab, "adit_keyring_generation"), Some(1));

    // Both at once, by renaming.
    let leaf = ending(&ca, 2);
    rename(&certificate, &leaf.certificate);
    rename(&key, &leaf.key);
    is_in_use(&lab, 2).await;

    // One long after the other, in either order, in place: the pair that does not fit is read, and refused.
    for (days, order) in [(3, [0, 1]), (4, [1, 0])] {
        let leaf = ending(&ca, days);
        let halves = [(&certificate, &leaf.certificate), (&key, &leaf.key)];
        let refused = reloads(&lab, "refused");
        std::fs::write(halves[order[0]].0, halves[order[0]].1).unwrap();
        eventually("half a set is refused", async || reloads(&lab, "refused") > refused).await;
        assert_eq!(metric(&lab, NOT_AFTER), Some(end(days - 1).unix_timestamp()), "the old set stays");
        assert_eq!(lab.admin("/readyz").await.status, 200, "what is in use is good");
        std::fs::write(halves[order[1]].0, halves[order[1]].1).unwrap();
        is_in_use(&lab, days).await;
    }

    // Cut in place, and written on after it was read so.
    let leaf = ending(&ca, 5);
    let refused = reloads(&lab, "refused");
    std::fs::write(&key, &leaf.key).unwrap();
    std::fs::write(&certificate, &leaf.certificate[..200]).unwrap();
    eventually("a cut file is refused", async || reloads(&lab, "refused") > refused).await;
    std::fs::write(&certificate, "").unwrap();
    eventually("an empty file is refused", async || reloads(&lab, "refused") > refused + 1).await;
    assert_eq!(metric(&lab, NOT_AFTER), Some(end(4).unix_timestamp()));
    std::fs::remove_file(&certificate).unwrap();
    eventually("a missing file is refused", async || reloads(&lab, "refused") > refused + 2).await;
    assert_eq!(metric(&lab, "adit_secret_last_reload_successful"), Some(0));
    std::fs::write(&certificate, &leaf.certificate).unwrap();
    is_in_use(&lab, 5).await;
    assert_eq!(metric(&lab, "adit_secret_last_reload_successful"), Some(1));

    // A volume of Kubernetes: the links stay, the folder behind them is another.
    let swap = |generation: &str, leaf: &Leaf| {
        let folder = dir.path().join(generation);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("w.crt"), &leaf.certificate).unwrap();
        std::fs::write(folder.join("w.key"), &leaf.key).unwrap();
        std::os::unix::fs::symlink(generation, dir.path().join("..data_tmp")).unwrap();
        std::fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    };
    swap("..1", &ending(&ca, 6));
    for file in [&certificate, &key] {
        std::fs::remove_file(file).unwrap();
        std::os::unix::fs::symlink(Path::new("..data").join(file.file_name().unwrap()), file).unwrap();
    }
    is_in_use(&lab, 6).await;
    swap("..2", &ending(&ca, 7));
    is_in_use(&lab, 7).await;

    // The same again is nothing new.
    let (generation, unchanged) = (metric(&lab, "adit_keyring_generation"), reloads(&lab, "unchanged"));
    let same = std::fs::read_to_string(&certificate).unwrap();
    std::fs::write(dir.path().join("..2/w.crt"), same).unwrap();
    eventually("the same is read", async || reloads(&lab, "unchanged") > unchanged).await;
    assert_eq!(metric(&lab, "adit_keyring_generation"), generation);
    let page = lab.admin("/").await.text();
    assert!(page.contains("identity default  ") && page.contains(" days left"), "{page}");
    lab.finish().await;
}

/// A service in clear whose first connection holds a stream open, and whose others tell when they are closed.
async fn pools(over: Over) {
    let dir = tempfile::tempdir().unwrap();
    let (file, ca) = (dir.path().join("adit.pem"), Ca::new("root"));
    std::fs::write(&file, ending(&ca, 1).bundle()).unwrap();
    let (tell, mut closed) = mpsc::unbounded_channel();
    let addr = scripted(move |mut peer| {
        let tell = tell.clone();
        async move {
            while let Some((head, _)) = peer.request().await {
                if head.target() == "/long" {
                    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none").await;
                    peer.ended().await;
                    return;
                }
                peer.ok("short").await;
            }
            let _ = tell.send(peer.number);
        }
    })
    .await;
    let lab = Lab::start(over, &yaml(&file, None, &format!("http://{addr}"))).await;
    let mut long = TcpStream::connect(lab.http).await.unwrap();
    long.write_all(b"GET /long HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    let mut begun = Vec::new();
    while !begun.ends_with(b"one") {
        assert!(long.read_buf(&mut begun).await.unwrap() > 0);
    }
    for days in 2..5 {
        assert_eq!(lab.get("/short").await.text(), "short");
        assert!(closed.try_recv().is_err(), "the connection waits for the next request");
        std::fs::write(&file, ending(&ca, days).bundle()).unwrap();
        is_in_use(&lab, days).await;
        let number = tokio::time::timeout(LIMIT, closed.recv()).await.expect("the old pool is not closed").unwrap();
        assert!(number > 0);
    }
    // The long stream still holds the first generation, and goes on.
    assert_eq!(metric(&lab, "adit_rules_generations"), Some(2));
    drop(long);
    eventually("only one is left", async || metric(&lab, "adit_rules_generations") == Some(1)).await;
    lab.finish().await;
}

async fn named_later(over: Over) {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new("root"));
    let (first, second) = (dir.path().join("first.pem"), dir.path().join("second.pem"));
    std::fs::write(&first, ending(&ca, 1).bundle()).unwrap();
    let mut lab = Lab::edge_only().await;
    lab.connect_following(over, &yaml(&first, None, "http_status:201"), |flags| flags).await;
    lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.unwrap();
    let refused = || metric(&lab, "adit_config_reloads_total{outcome=\"refused\"}").unwrap();
    lab.configure(&yaml(&second, None, "http_status:202"));
    eventually("a configuration without its secret is refused", async || refused() == 1).await;
    // Malformed is refused as well, though nobody touches the configuration.
    std::fs::write(&second, "-----BEGIN").unwrap();
    eventually("so it is while the secret is malformed", async || refused() == 2).await;
    assert_eq!(lab.get("/").await.status, 201);
    assert_eq!(metric(&lab, NOT_AFTER), Some(end(1).unix_timestamp()));
    std::fs::write(&second, ending(&ca, 2).bundle()).unwrap();
    eventually("the rule of the changed configuration", async || lab.get("/").await.status == 202).await;
    is_in_use(&lab, 2).await;
    // What it wants now is followed.
    std::fs::write(&second, ending(&ca, 3).bundle()).unwrap();
    is_in_use(&lab, 3).await;
    lab.finish().await;
}

/// The program, with one identity in this file.
fn program(lab: &Lab, over: Over, file: &Path, admin: std::net::SocketAddr) -> Connector {
    let rules = yaml(file, None, "http_status:201");
    Connector::spawn(lab, over, &rules, |command| command.env("TUNNEL_METRICS", admin.to_string()))
}

async fn ask(admin: std::net::SocketAddr, path: &str) -> Option<(u16, String)> {
    let stream = TcpStream::connect(admin).await.ok()?;
    let mut peer = Peer::new(stream, 0);
    peer.send(format!("GET {path} HTTP/1.1\r\nHost: admin\r\n\r\n")).await;
    let answer = peer.answer().await;
    Some((answer.status, answer.text()))
}

async fn says(admin: std::net::SocketAddr, path: &str, status: u16) {
    let so = async || ask(admin, path).await.is_some_and(|answer| answer.0 == status);
    eventually(&format!("{path} says {status}"), so).await;
}

#[tokio::test]
async fn at_the_start_a_missing_identity_is_waited_for() {
    in_time(async {
        let (lab, dir, admin) = (Lab::edge_only().await, tempfile::tempdir().unwrap(), free_port().await);
        let file = dir.path().join("adit.pem");
        let (log, rules) = (dir.path().join("log"), yaml(&file, None, "http_status:201"));
        let connector = Connector::spawn(&lab, Over::Http2, &rules, |command| {
            command.env("TUNNEL_METRICS", admin.to_string()).env("TUNNEL_LOGFILE", &log)
        });
        let waits = async || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("adit.pem does not exist"));
        eventually("it has looked for the file", waits).await;
        says(admin, "/livez", 200).await;
        says(admin, "/startupz", 503).await;
        std::fs::write(&file, "").unwrap();
        says(admin, "/startupz", 503).await;
        std::fs::write(&file, Ca::new("root").leaf(&["a"]).bundle()).unwrap();
        lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.expect("does not register");
        says(admin, "/readyz", 200).await;
        connector.signal("TERM").await;
        let (status, log) = connector.ended().await;
        assert!(status.success(), "{log}");
    })
    .await;
}

#[tokio::test]
async fn at_the_start_what_is_wrong_ends_with_status_2_and_the_reason() {
    in_time(async {
        let ca = Ca::new("root");
        let (one, other) = (ca.leaf(&["a"]), ca.leaf(&["a"]));
        let mismatch = format!("{}{}", one.certificate, other.key);
        // `None`: a directory stands in the file's place.
        let cases = [
            (None, "cannot read"),
            (Some(mismatch), "fits none of the certificates"),
            (Some(one.bundle()[..one.bundle().len() - 40].to_owned()), "a PEM section is not complete"),
            (Some("nonsense".to_owned()), "holds no PEM certificate"),
        ];
        for (content, reason) in cases {
            let (lab, dir, admin) = (Lab::edge_only().await, tempfile::tempdir().unwrap(), free_port().await);
            let file = dir.path().join("adit.pem");
            match content {
                Some(content) => std::fs::write(&file, content).unwrap(),
                None => std::fs::create_dir(&file).unwrap(),
            }
            let (status, log) = program(&lab, Over::Http2, &file, admin).ended().await;
            assert_eq!(status.code(), Some(2), "{log}");
            let told = log.lines().any(|line| line.contains(reason) && line.contains("identity default"));
            assert!(told && log.contains(file.to_str().unwrap()), "{log}");
            assert!(!log.contains("PRIVATE"), "{log}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_expired_identity_keeps_the_process_unready_until_it_is_replaced() {
    in_time(async {
        let (lab, dir, admin) = (Lab::edge_only().await, tempfile::tempdir().unwrap(), free_port().await);
        let (file, ca) = (dir.path().join("adit.pem"), Ca::new("root"));
        let until = |seconds| {
            ca.leaf_with(&["a"], &KeyPair::generate().unwrap(), |params| {
                params.not_after = OffsetDateTime::now_utc() + Duration::seconds(seconds);
            })
        };
        std::fs::write(&file, until(-60).bundle()).unwrap();
        let connector = program(&lab, Over::Http2, &file, admin);
        lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.expect("an expired identity does not end the process");
        says(admin, "/startupz", 200).await;
        says(admin, "/readyz", 503).await;
        let page = ask(admin, "/").await.unwrap().1;
        assert!(page.contains("identity default  UNUSABLE: expired"), "{page}");
        // By itself, once it is right; and it ends by itself, without a file that changes.
        // Long enough to be read and seen on a busy machine.
        std::fs::write(&file, until(15).bundle()).unwrap();
        says(admin, "/readyz", 200).await;
        says(admin, "/readyz", 503).await;
        let unusable =
            async || ask(admin, "/metrics").await.is_some_and(|(_, text)| text.contains("\nadit_secrets_unusable 1\n"));
        eventually("the end is counted", unusable).await;
        std::fs::write(&file, until(3600).bundle()).unwrap();
        says(admin, "/readyz", 200).await;
        connector.signal("TERM").await;
        let (_, log) = connector.ended().await;
        assert_eq!(log.matches("identity default").count(), 2, "told once for each end:\n{log}");
    })
    .await;
}

#[tokio::test]
async fn a_guard_takes_a_new_list_of_revoked_although_its_roots_for_the_service_are_gone() {
    in_time(Box::pin(async {
        let dir = tempfile::tempdir().unwrap();
        let pool = dir.path().join("roots.pem");
        std::fs::write(&pool, Ca::new("services").pem).unwrap();
        let service = format!("https://127.0.0.1:1\n    originRequest: {{ caPool: {} }}", pool.display());
        let lab = GuardLab::start(service, "").await;
        assert_eq!(lab.get(Some(&lab.a)).await.status, 502);
        std::fs::remove_file(&pool).unwrap();
        lab.write("crl.pem", &lab.ca.revoked(&[&lab.a]));
        lab.reload();
        eventually("the list is in force", async || lab.get(Some(&lab.a)).await.status == 403).await;
    }))
    .await;
}
