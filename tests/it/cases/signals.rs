//! How the program ends, or does not, when it is told to.

use std::{
    process::ExitStatus,
    time::{Duration, Instant},
};

use adit::wire::registration::EdgeCall;
use http::HeaderValue;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Verdict, Verdicts, process::Program, same, text, together};
use crate::{
    harness::{Over, background, eventually, rule},
    raw_edge::{H2Peer, QuicPeer, RawEdge, Reply, soon, upgrade},
    raw_service::{echo, get, h2_get},
    wire_craft::{on_a_stream, request},
};

/// How much later than promised an end may be seen on a loaded machine. Always less than what is being told apart.
const LATE: Duration = Duration::from_secs(8);

pub(super) async fn shutdown(cases: Vec<Value>) -> Verdicts {
    together(&cases, async |case| match text(&case, "id") {
        "shutdown:exit-code-sigint" => {
            let (status, _) = ended(Over::Quic, 20, "idle", "INT").await?;
            same(&json!(status.code()), &case["exit"])
        }
        "shutdown:sighup-kills" => hangup(&case).await,
        _ => timed(&case).await,
    })
    .await
}

async fn timed(case: &Value) -> Verdict {
    let over = if text(case, "transport") == "quic" { Over::Quic } else { Over::Http2 };
    let outcome = ended(over, case["grace_period_s"].as_u64().unwrap(), text(case, "scenario"), "TERM").await;
    let Some(wanted) = case["exits_after_s"].as_f64().map(Duration::from_secs_f64) else {
        return outcome.map_or(Ok(()), |(_, took)| Err(format!("it ended after {took:?}, should stay for ever")));
    };
    let (_, took) = outcome?;
    // Timers of two processes may disagree a little.
    if took + Duration::from_millis(100) < wanted || took > wanted + LATE {
        return Err(format!("it ended after {took:?}, should be {wanted:?}"));
    }
    Ok(())
}

/// A connection that the edge never closes: it answers what it is asked, and that is all.
async fn accept(edge: &RawEdge, over: Over, busy: bool) -> Box<dyn std::any::Any + Send> {
    let answer = |mut calls: mpsc::Receiver<EdgeCall>| async move {
        while let Some(call) = calls.recv().await {
            if let EdgeCall::Unregister(reply) = call {
                let _ = reply.send(());
            }
        }
    };
    // A stream that never ends by itself.
    match over {
        Over::Quic => {
            let peer = edge.quic_peer().await;
            // The registration's answer is on its way; a request is answered only after it.
            peer.ask(&get("a.test", "/")).await;
            let key = ("HttpHeader:Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
            let asked = request(1, "http://a.test/", &[("HttpHost", "a.test"), key]);
            let stream = if busy {
                let (send, mut recv) = peer.open(&on_a_stream(&asked), false).await;
                soon("an answer", recv.read_chunk(1, true)).await.unwrap();
                Some((send, recv))
            } else {
                None
            };
            let QuicPeer { connection, calls, .. } = peer;
            background(answer(calls));
            Box::new((connection, stream))
        }
        Over::Http2 => {
            let peer = edge.h2_peer().await;
            peer.ask(h2_get("a.test", "/"), "").await.unwrap();
            let H2Peer { sender, calls, _end, .. } = peer;
            background(answer(calls));
            let stream = if busy {
                let mut asked = upgrade("GET", "websocket");
                asked.headers_mut().insert("sec-websocket-key", HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
                let (response, send) = sender.clone().ready().await.unwrap().send_request(asked, false).unwrap();
                Some((soon("an answer", response).await.unwrap(), send))
            } else {
                None
            };
            Box::new((sender, _end, stream))
        }
    }
}

/// Runs the program with a grace period of so many seconds, brings it into a scenario and sends the signal.
async fn ended(over: Over, grace: u64, scenario: &str, name: &str) -> Result<(ExitStatus, Duration), String> {
    let edge = RawEdge::new().await;
    let service = rule(format!("tcp://{}", echo().await));
    let mut program = Program::run(&edge, over.as_str(), &service, &["--grace-period", &format!("{grace}s")]);
    let _held = accept(&edge, over, scenario != "idle").await;
    let begun = Instant::now();
    program.signal(name).await;
    if scenario.starts_with("second") {
        tokio::time::sleep(Duration::from_millis(500)).await;
        program.signal(name).await;
    }
    let limit = Duration::from_secs(grace) + LATE;
    let status = tokio::time::timeout(limit, program.child.wait()).await;
    let status = status.map_err(|_| format!("it still runs after {limit:?}"))?;
    Ok((status.unwrap(), begun.elapsed()))
}

/// A file that was changed before the signal is in force after it, in the same process.
async fn hangup(case: &Value) -> Verdict {
    let edge = RawEdge::new().await;
    let mut program = Program::run(&edge, "quic", &rule("http_status:201"), &[]);
    let peer = edge.quic_peer().await;
    let status = async || match peer.ask(&get("a.test", "/")).await {
        Reply::Answered(adit::wire::connect::Answer::Response(head), _) => head.status.as_u16(),
        other => panic!("{other:?}"),
    };
    eventually("the first rules serve", async || status().await == 201).await;
    std::fs::write(program.config(), rule("http_status:202")).unwrap();
    program.signal("HUP").await;
    let wanted_to_end = !case["exit"].is_null();
    let reread = tokio::time::timeout(LATE, async {
        while status().await != 202 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let seen = if wanted_to_end {
        json!({ "exit": program.child.try_wait().unwrap().map(|status| status.code()) })
    } else {
        json!({ "rereads": reread.await.is_ok() && program.child.try_wait().unwrap().is_none() })
    };
    let mut wanted = case.clone();
    wanted.as_object_mut().unwrap().retain(|key, _| ["exit", "rereads"].contains(&key.as_str()));
    same(&seen, &wanted)
}
