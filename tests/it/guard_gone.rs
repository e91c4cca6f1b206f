//! A guard that is gone from the file: its secrets are not read any more, so it must not go on with what they said.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{
    LIMIT, eventually,
    guard::GuardLab,
    in_time,
    peer::{Peer, scripted},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: guard.test\r\n\r\n";

/// A service whose answers wait until `release` says so.
async fn waiting(release: &tokio::sync::watch::Sender<bool>) -> std::net::SocketAddr {
    let released = release.subscribe();
    scripted(move |mut peer: Peer| {
        let mut released = released.clone();
        async move {
            while peer.head().await.is_some() {
                let _ = released.wait_for(|released| *released).await;
                peer.ok("done").await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn it_takes_nobody_new_and_finishes_what_it_has_while_the_process_goes_on() {
    in_time(async {
        let release = tokio::sync::watch::Sender::new(false);
        let mut lab = GuardLab::start(format!("http://{}", waiting(&release).await), "").await;
        let mut idle = lab.visit(Some(&lab.a)).await;
        let mut busy = lab.visit(Some(&lab.a)).await;
        busy.send(GET).await;
        eventually("it is in flight", async || lab.counted("adit_guard_in_flight{guard=\"0\"}") == 1).await;
        lab.remove();
        tokio::time::timeout(LIMIT, idle.ended()).await.expect("an idle connection stays");
        eventually("nobody new", async || TcpStream::connect(lab.addr).await.is_err()).await;
        release.send_replace(true);
        let answer = busy.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "done"));
        assert_eq!(answer.header("connection"), Some("close"));
        busy.ended().await;
        assert!(!lab.tasks.draining().is_cancelled());
        lab.tasks.drain();
        lab.ended().await;
    })
    .await;
}

#[tokio::test]
async fn a_request_that_outlives_the_grace_period_is_cut() {
    in_time(async {
        let release = tokio::sync::watch::Sender::new(false);
        let lab = GuardLab::start(format!("http://{}", waiting(&release).await), "").await;
        lab.grace.send_replace(Duration::ZERO);
        let mut busy = lab.visit(Some(&lab.a)).await;
        busy.send(GET).await;
        eventually("it is in flight", async || lab.counted("adit_guard_in_flight{guard=\"0\"}") == 1).await;
        lab.remove();
        eventually("it is cut", async || lab.counted("adit_guard_in_flight{guard=\"0\"}") == 0).await;
        let withdrawn = "adit_caller_decisions_total{outcome=\"withdrawn\",cause=\"\"}";
        assert_eq!(lab.counted(withdrawn), 1);
        assert!(!tokio::time::timeout(LIMIT, busy.rest()).await.expect("it stays").starts_with(b"HTTP/1.1 200"));
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_outlives_the_grace_period_is_cut() {
    in_time(async {
        let service = scripted(|mut peer: Peer| async move {
            while !peer.some().await.is_empty() {
                peer.send("heard").await;
            }
        })
        .await;
        let lab = GuardLab::start(format!("tcp://{service}"), "").await;
        lab.grace.send_replace(Duration::ZERO);
        let mut tls = lab.tls(&lab.peer(Some(&lab.a), &[])).await.unwrap();
        tls.write_all(b"said").await.unwrap();
        tls.read_exact(&mut [0; 5]).await.unwrap();
        lab.remove();
        let ended = tokio::time::timeout(LIMIT, tls.read(&mut [0; 1])).await.expect("the stream goes on");
        assert_eq!(ended.unwrap_or(0), 0);
        eventually("nobody new", async || TcpStream::connect(lab.addr).await.is_err()).await;
    })
    .await;
}
