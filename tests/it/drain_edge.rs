//! Drains towards edges that do not close, do not answer, or send one request more.

use adit::wire::registration::EdgeCall;
use http::StatusCode;
use tokio::sync::{mpsc, oneshot};

use crate::{
    harness::{Over, canned, over_both, rule},
    raw_edge::{H2Peer, QuicPeer, RawEdge, Running, registered, soon},
    raw_service::{get, h2_get, rules},
};

/// A registered connection over either transport.
enum Peer {
    Quic(QuicPeer),
    Http2(H2Peer),
}

impl Peer {
    async fn start(over: Over, grace: &str) -> (RawEdge, Running, Self) {
        let edge = RawEdge::new().await;
        let rules = rules().await;
        let connector = edge.connector_with(over.as_str(), &rules, |flags| flags.with("grace-period", grace)).await;
        let peer = match over {
            Over::Quic => Self::Quic(edge.quic_peer().await),
            Over::Http2 => Self::Http2(edge.h2_peer().await),
        };
        // The registration's answer is on its way; a request is answered only after it.
        assert_eq!(peer.ask("/before").await.0, 200);
        (edge, connector, peer)
    }

    fn calls(&mut self) -> &mut mpsc::Receiver<EdgeCall> {
        match self {
            Self::Quic(peer) => &mut peer.calls,
            Self::Http2(peer) => &mut peer.calls,
        }
    }

    async fn unregistration(&mut self) -> oneshot::Sender<()> {
        let call = soon("the unregistration", self.calls().recv()).await;
        let Some(EdgeCall::Unregister(reply)) = call else { panic!("{call:?}") };
        reply
    }

    /// Status and reason of a request for `app.example.com`.
    async fn ask(&self, path: &str) -> (u16, Option<String>) {
        use crate::raw_edge::Reply;
        use adit::wire::connect::Answer;
        let code = |headers: &http::HeaderMap| headers.get("adit-error").map(|code| code.to_str().unwrap().to_owned());
        match self {
            Self::Quic(peer) => match peer.ask(&get("app.example.com", path)).await {
                Reply::Answered(Answer::Response(head), _) => (head.status.as_u16(), code(&head.headers)),
                other => panic!("{other:?}"),
            },
            Self::Http2(peer) => {
                let answer = peer.ask(h2_get("app.example.com", path), "").await.unwrap();
                let packed = &answer.head.headers["cf-cloudflared-response-headers"];
                let headers = adit::wire::headers::unpack(packed.as_bytes()).unwrap();
                (answer.head.status.as_u16(), code(&headers))
            }
        }
    }
}

async fn ends(connector: &mut Running) {
    soon("the connector's end", &mut connector.ended).await.unwrap().unwrap();
}

async fn keeps_the_connection(over: Over) {
    let (_edge, mut connector, mut peer) = Peer::start(over, "2m").await;
    connector.tasks.drain();
    let reply = peer.unregistration().await;
    assert_eq!(peer.ask("/asked").await.0, 200);
    reply.send(()).unwrap();
    for _ in 0..3 {
        assert_eq!(peer.ask("/answered").await.0, 200);
    }
    ends(&mut connector).await;
    assert_eq!(connector.metrics.streams_cut(), 0);
}

async fn never_answers(over: Over) {
    let (_edge, mut connector, mut peer) = Peer::start(over, "2m").await;
    connector.tasks.drain();
    let _reply = peer.unregistration().await;
    ends(&mut connector).await;
}

async fn no_grace(over: Over) {
    let (_edge, mut connector, mut peer) = Peer::start(over, "0s").await;
    connector.tasks.drain();
    // The edge is told even so; what crosses the message is told why.
    let reply = peer.unregistration().await;
    let (status, code) = peer.ask("/too-late").await;
    assert_eq!((status, code.as_deref()), (StatusCode::SERVICE_UNAVAILABLE.as_u16(), Some("draining")));
    reply.send(()).unwrap();
    ends(&mut connector).await;
}

async fn registering(over: Over) {
    let edge = RawEdge::new().await;
    let rules = rules().await;
    let mut connector = edge.connector_with(over.as_str(), &rules, |flags| flags.with("grace-period", "2m")).await;
    let (mut peer, reply) = match over {
        Over::Quic => {
            let (peer, reply) = edge.quic_asked().await;
            (Peer::Quic(peer), reply)
        }
        Over::Http2 => {
            let (peer, reply) = edge.h2_asked().await;
            (Peer::Http2(peer), reply)
        }
    };
    // The edge takes the connection, and uses it, at the moment of the drain.
    connector.tasks.drain();
    reply.send(Ok(registered(true))).unwrap();
    assert_eq!(peer.ask("/at-once").await.0, 200);
    peer.unregistration().await.send(()).unwrap();
    ends(&mut connector).await;
}

over_both! {
    a_registration_that_crosses_a_drain_loses_no_request => registering,
    an_idle_connector_leaves_an_edge_that_keeps_the_connection => keeps_the_connection,
    an_edge_that_does_not_answer_an_unregistration_is_left => never_answers,
    without_a_grace_the_edge_is_told_and_what_still_arrives_is_refused => no_grace,
}

#[tokio::test]
async fn the_end_of_an_http2_connection_is_a_goaway_that_says_what_may_be_sent_again() {
    let (_edge, mut connector, peer) = Peer::start(Over::Http2, "2m").await;
    let Peer::Http2(mut peer) = peer else { panic!() };
    connector.tasks.drain();
    let call = soon("the unregistration", peer.calls.recv()).await;
    let Some(EdgeCall::Unregister(reply)) = call else { panic!("{call:?}") };
    reply.send(()).unwrap();
    soon("the end of the connection", &mut peer._end).await.unwrap().expect("not in good order");
    let error = peer.ask(h2_get("app.example.com", "/one-more"), "").await.unwrap_err();
    assert!(error.is_go_away() && error.is_remote(), "{error:?}");
    assert_eq!(error.reason(), Some(h2::Reason::NO_ERROR));
    ends(&mut connector).await;
}

/// The service is done long ago and the answer still waits for a visitor who reads slowly: twice the idle time and more
/// passes, and nothing of it is lost.
#[tokio::test]
async fn a_visitor_who_reads_slowly_gets_the_whole_answer() {
    const LENGTH: usize = 4 << 20;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
    let service = canned([head.into_bytes(), vec![7; LENGTH]].concat()).await;
    let edge = RawEdge::new().await;
    let connector = edge.connector_with("quic", &rule(format!("http://{service}")), |flags| flags).await;
    let mut peer = edge.quic_peer().await;
    let (_send, mut recv) = peer.open(&get("app.example.com", "/"), true).await;
    let first = soon("the answer's begin", recv.read_chunk(1, true)).await.unwrap().unwrap();
    connector.tasks.drain();
    let call = soon("the unregistration", peer.calls.recv()).await;
    let Some(EdgeCall::Unregister(reply)) = call else { panic!("{call:?}") };
    reply.send(()).unwrap();
    let closed = tokio::time::timeout(std::time::Duration::from_millis(4_500), peer.connection.closed()).await;
    assert!(closed.is_err(), "{closed:?} while the visitor reads");
    let rest = soon("the answer's end", recv.read_to_end(2 * LENGTH)).await.unwrap();
    assert!(first.bytes.len() + rest.len() > LENGTH);
    soon("the end", peer.connection.closed()).await;
}
