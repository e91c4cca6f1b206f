//! The edge follows its state: tunnels, secrets and hostnames that come and go.

use std::os::unix::fs::MetadataExt;

use adit::{
    edge::state::{Error, StateDir},
    wire::registration::Registration,
};

use crate::{
    harness::{LIMIT, Lab, Over, eventually, in_time, over_both, peer::Peer, rule},
    raw_connector::{answer, claims, register_quic, registered},
    raw_edge::soon,
};

fn edit(lab: &Lab, change: impl FnOnce(String) -> String) {
    let path = lab.state.path().join("tunnels.yml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, change(text)).unwrap();
}

async fn tunnel_removed(over: Over) {
    let lab = Lab::start(over, &rule("http_status:200")).await;
    lab.admin_says("/readyz", 200).await;
    edit(&lab, |_| "[]\n".into());
    eventually("the connection is let go", async || lab.edge.registry().of(lab.token.tunnel).is_empty()).await;
    let refused = lab.get("/").await;
    assert_eq!((refused.status, refused.code()), (404, Some("hostname-unknown")));
    lab.admin_says("/readyz", 503).await;
    lab.finish().await;
}

async fn second_secret(over: Over) {
    let mut lab = Lab::start(over, &rule("http_status:201")).await;
    let first = lab.token.encode();
    lab.token = lab.state.new_token(&[], Some(lab.token.tunnel)).unwrap();
    assert_ne!(*first, *lab.token.encode());
    // At once, before the edge can have noticed the change.
    let mut second = Lab::beside(&lab);
    second.connect(over, &rule("http_status:202"), |flags| flags).await;
    lab.edge.registered(lab.token.tunnel, 2, LIMIT).await.unwrap();
    eventually("the second is asked", async || lab.get("/").await.status == 202).await;
    eventually("the first is asked", async || lab.get("/").await.status == 201).await;
    second.tasks.drain();
    second.connector_ended().await;
    lab.finish().await;
}

async fn second_tunnel(over: Over) {
    let lab = Lab::start(over, &rule("http_status:201")).await;
    let mut second = Lab::beside(&lab);
    // `*.web.test` is the first one's; an exact name and a longer wildcard are more specific.
    second.token = lab.state.new_token(&["shop.web.test".into(), "*.deep.web.test".into()], None).unwrap();
    second.connect(over, &rule("http_status:202"), |flags| flags).await;
    lab.edge.registered(second.token.tunnel, 1, LIMIT).await.unwrap();
    // Its names come once the file has settled.
    let published = async || lab.edge.tunnels().get(second.token.tunnel).is_some();
    eventually("the new tunnel is published", published).await;
    for (host, status) in [
        ("web.test", 201),
        ("a.web.test", 201),
        ("shop.web.test", 202),
        ("x.shop.web.test", 201),
        ("a.deep.web.test", 202),
        ("deep.web.test", 201),
    ] {
        let answer = lab.raw(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(answer.status, status, "{host}");
    }
    second.tasks.drain();
    second.connector_ended().await;
    lab.finish().await;
}

async fn hostname_added(over: Over) {
    let lab = Lab::start(over, &rule("http_status:201")).await;
    let request = "GET / HTTP/1.1\r\nHost: new.test\r\nConnection: close\r\n\r\n";
    assert_eq!(lab.raw(request).await.status, 404);
    edit(&lab, |text| text.replace("hostnames: [", "hostnames: [\"new.test\", "));
    eventually("the new name is served", async || lab.raw(request).await.status == 201).await;
    // A broken file changes nothing; a later one does.
    edit(&lab, |text| format!("{text}- nonsense\n"));
    assert!(lab.state.tunnels().is_err());
    // An unknown secret makes the edge read the file at once.
    let mut stranger = Lab::beside(&lab);
    stranger.token = Lab::edge_only().await.token;
    stranger.connect(over, &rule("http_status:202"), |flags| flags).await;
    eventually("the stranger is refused", async || {
        stranger.admin("/metrics").await.text().contains("cloudflared_tunnel_tunnel_register_fail")
    })
    .await;
    assert_eq!((lab.raw(request).await.status, lab.get("/").await.status), (201, 201));
    edit(&lab, |text| text.replace("- nonsense\n", "").replace("\"new.test\", ", ""));
    eventually("the name is gone", async || lab.raw(request).await.status == 404).await;
    assert_eq!(lab.get("/").await.status, 201);
    stranger.tasks.drain();
    stranger.connector_ended().await;
    lab.finish().await;
}

async fn takes_over(over: Over) {
    // A second connector takes over while the first drains: every request is answered.
    let mut lab = Lab::start(over, &rule("http_status:201")).await;
    let (tasks, mut second) = (lab.tasks.clone(), Lab::beside(&lab));
    let done = std::cell::Cell::new(false);
    let asking = async {
        let mut answers = Vec::new();
        while !done.get() {
            answers.push(lab.get("/").await.status);
        }
        answers
    };
    let handover = async {
        second.connect(over, &rule("http_status:202"), |flags| flags).await;
        lab.edge.registered(lab.token.tunnel, 2, LIMIT).await.unwrap();
        tasks.drain();
        eventually("one is left", async || lab.edge.registry().of(lab.token.tunnel).len() == 1).await;
        eventually("the second serves", async || lab.get("/").await.status == 202).await;
        done.set(true);
    };
    let (answers, ()) = tokio::join!(asking, handover);
    assert!(answers.iter().all(|status| matches!(status, 201 | 202)), "{answers:?}");
    lab.connector_ended().await;
    second.tasks.drain();
    second.connector_ended().await;
    lab.finish().await;
}

over_both! {
    a_connection_whose_tunnel_is_gone_is_closed => tunnel_removed,
    a_second_secret_of_a_tunnel_registers_at_once => second_secret,
    a_new_tunnel_registers_at_once_and_has_its_names => second_tunnel,
    a_new_hostname_is_served_and_a_broken_file_changes_nothing => hostname_added,
    a_second_connector_takes_over_without_a_failed_request => takes_over,
}

const GET: &str = "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n";

#[tokio::test]
async fn who_lost_his_place_gets_nothing_new_and_finishes_what_he_has() {
    in_time(async {
        let lab = Lab::edge_only().await;
        let first = register_quic(&lab, claims(&lab, 0)).await;
        registered(&lab, 1).await;
        let mut early = Peer::visit(lab.http).await;
        early.send(GET).await;
        let held = first.asked().await;
        let second = register_quic(&lab, claims(&lab, 0)).await;
        assert!(second.outcome.is_ok());
        assert_eq!(lab.edge_metric("adit_edge_registrations_total{outcome=\"took-over\"}"), 1);
        // The first has one request and the second none, then four: the fewest do not decide.
        let mut late = Vec::new();
        for _ in 0..4 {
            let mut visitor = Peer::visit(lab.http).await;
            visitor.send(GET).await;
            let asked = second.asked().await;
            late.push((visitor, asked));
        }
        assert!(first.connection.close_reason().is_none(), "a request in flight was cut");
        answer(held, "of the first").await;
        assert_eq!(early.answer().await.text(), "of the first");
        for (mut visitor, asked) in late {
            answer(asked, "of the second").await;
            assert_eq!(visitor.answer().await.text(), "of the second");
        }
        soon("the first is closed once it is idle", first.connection.closed()).await;
        assert!(second.connection.close_reason().is_none());
        lab.finish().await;
    })
    .await;
}

#[tokio::test]
async fn whose_secret_is_gone_gets_nothing_new_and_finishes_what_he_has() {
    in_time(async {
        let lab = Lab::edge_only().await;
        let first = register_quic(&lab, claims(&lab, 0)).await;
        registered(&lab, 1).await;
        let mut early = Peer::visit(lab.http).await;
        early.send(GET).await;
        let held = first.asked().await;
        let secrets = lab.edge.tunnels().get(lab.token.tunnel).unwrap().secrets.clone();
        let hex: String = secrets[0].iter().map(|byte| format!("{byte:02x}")).collect();
        let rotated = lab.state.new_token(&[], Some(lab.token.tunnel)).unwrap();
        edit(&lab, |text| text.replace(&format!("    - \"{hex}\"\n"), ""));
        eventually("it lost its place", async || lab.edge.registry().all().is_empty()).await;
        assert_eq!(lab.get("/").await.code(), Some("no-connection"));
        // Nor does the old secret come back in; the new one does.
        assert!(register_quic(&lab, claims(&lab, 1)).await.outcome.is_err());
        let mut claim = claims(&lab, 2);
        claim.secret = rotated.secret.expose().to_vec().into();
        assert!(register_quic(&lab, claim).await.outcome.is_ok());
        answer(held, "in good order").await;
        assert_eq!(early.answer().await.text(), "in good order");
        soon("it is closed once it is idle", first.connection.closed()).await;
        lab.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_stranger_does_not_make_the_edge_believe_a_file_before_it_has_settled() {
    in_time(async {
        let lab = Lab::edge_only().await;
        let whole = std::fs::read_to_string(lab.state.path().join("tunnels.yml")).unwrap();
        // A round that took as long as a file settles shows nothing.
        for round in 0.. {
            let known = register_quic(&lab, claims(&lab, 0)).await;
            assert!(known.outcome.is_ok());
            registered(&lab, 1).await;
            let begun = std::time::Instant::now();
            edit(&lab, |_| "[]\n".into());
            let stranger = Registration { tunnel: uuid::Uuid::nil(), ..claims(&lab, 1) };
            assert!(register_quic(&lab, stranger).await.outcome.is_err());
            let (tunnels, left) = (lab.edge.tunnels().iter().count(), lab.edge.registry().all().len());
            edit(&lab, |_| whole.clone());
            if begun.elapsed() < std::time::Duration::from_millis(150) {
                assert_eq!((tunnels, left), (1, 1));
                break;
            }
            assert!(round < 20, "this machine is too slow to see it");
        }
        lab.finish().await;
    })
    .await;
}

#[test]
fn a_state_is_made_once_and_a_complete_one_is_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::new(dir.path().join("state"));
    let stamps = || {
        ["ca.pem", "ca.key", "tunnels.yml"].map(|name| {
            let meta = std::fs::metadata(state.path().join(name)).unwrap();
            (meta.mtime(), meta.mtime_nsec(), meta.ino(), meta.mode() & 0o777)
        })
    };
    state.open().unwrap();
    let before = stamps();
    assert_eq!(before[1].3, 0o600, "the key is for its owner alone");
    state.open().unwrap();
    assert_eq!(stamps(), before);
}

#[test]
fn a_certificate_without_its_key_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::new(dir.path());
    state.open().unwrap();
    std::fs::remove_file(dir.path().join("ca.key")).unwrap();
    assert!(matches!(state.open(), Err(Error::Incomplete { present: "ca.pem", missing: "ca.key", .. })));
    assert!(!dir.path().join("ca.key").exists());
}

#[test]
fn every_mistake_of_a_tunnels_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::new(dir.path());
    state.open().unwrap();
    std::fs::write(dir.path().join("tunnels.yml"), "- id: nonsense\n  colour: red\n- 3\n").unwrap();
    let error = state.tunnels().unwrap_err().to_string();
    for part in ["tunnel 1: unknown key colour", "tunnel 1: id is not a UUID", "tunnel 2: not a mapping"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[tokio::test]
async fn the_state_is_read_at_once_when_somebody_asks() {
    let lab = Lab::edge_only().await;
    let token = lab.state.new_token(&["other.test".into()], None).unwrap();
    lab.edge.reread();
    assert!(lab.edge.tunnels().get(token.tunnel).is_some());
}
