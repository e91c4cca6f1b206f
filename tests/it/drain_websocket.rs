//! WebSockets under a drain: Close 1001 to both ends, each direction after its message; other streams until the grace.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::{
    harness::{
        LIMIT, Lab, Over, eventually, over_both,
        peer::{Peer, pattern, scripted},
        rule,
    },
    websocket::{ASK, next, open},
};

/// `1001`, unmasked.
const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];
const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A service that accepts a WebSocket and hands the raw connection to the test.
async fn raw_service() -> (SocketAddr, mpsc::Receiver<Peer>) {
    let (given, taken) = mpsc::channel(1);
    let addr = scripted(move |mut peer| {
        let given = given.clone();
        async move {
            if peer.head().await.is_some() && peer.send(ACCEPT).await {
                let _ = given.send(peer).await;
            }
        }
    })
    .await;
    (addr, taken)
}

/// A visitor and a service with nothing but bytes between them.
async fn ends(over: Over) -> (Lab, Peer, Peer) {
    let (addr, mut services) = raw_service().await;
    let lab = Lab::start(over, &rule(format!("http://{addr}"))).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send(ASK).await;
    assert_eq!(visitor.answer_head().await.status, 101);
    let service = services.recv().await.unwrap();
    (lab, visitor, service)
}

/// A frame; masked with zeros, which leaves the payload as it is.
fn frame(first: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut frame = match payload.len() {
        length @ ..126 => vec![first, mask | length as u8],
        length => [&[first, mask | 127][..], &(length as u64).to_be_bytes()].concat(),
    };
    if masked {
        frame.extend_from_slice(&[0; 4]);
    }
    frame.extend_from_slice(payload);
    frame
}

/// Whether these are the bytes of a masked Close 1001.
fn is_masked_going_away(bytes: &[u8]) -> bool {
    let [0x88, 0x82, a, b, _, _, high, low] = *bytes else { return false };
    [high ^ a, low ^ b] == [0x03, 0xe9]
}

/// Messages with the byte at which a drain finds them: in a frame, between fragments, and in a compressed one.
fn messages(masked: bool) -> [(Vec<u8>, usize); 3] {
    let large = frame(0x82, masked, &pattern(1 << 20));
    let fragment = frame(0x01, masked, b"one ");
    let between = fragment.len();
    let fragments = [fragment, frame(0x89, masked, b"ping"), frame(0x00, masked, b""), frame(0x80, masked, b"two")];
    let compressed = frame(0xc2, masked, b"as good as compressed");
    [(large, 500_000), (fragments.concat(), between), (compressed, 1)]
}

async fn visitor_speaks(over: Over) {
    for (message, at) in messages(true) {
        let (mut lab, mut visitor, mut service) = ends(over).await;
        visitor.send(&message[..at]).await;
        assert!(service.exact(at).await == message[..at]);
        lab.tasks.drain();
        // The other direction is idle: its close frame comes at once.
        assert_eq!(visitor.exact(4).await, GOING_AWAY);
        visitor.send([&message[at..], &frame(0x82, true, b"too late")].concat()).await;
        assert!(service.exact(message.len() - at).await == message[at..], "the message is not whole");
        let close = service.exact(8).await;
        assert!(is_masked_going_away(&close), "{close:02x?}");
        visitor.send(frame(0x88, true, &[0x03, 0xe9])).await;
        service.send(frame(0x88, false, &[0x03, 0xe9])).await;
        assert_eq!(service.rest().await, b"", "bytes behind a close frame");
        assert_eq!(visitor.rest().await, b"", "bytes behind a close frame");
        lab.connector_ended().await;
        lab.finish().await;
    }
}

async fn service_speaks(over: Over) {
    for (message, at) in messages(false) {
        let (mut lab, mut visitor, mut service) = ends(over).await;
        service.send(&message[..at]).await;
        assert!(visitor.exact(at).await == message[..at]);
        lab.tasks.drain();
        let close = service.exact(8).await;
        assert!(is_masked_going_away(&close), "{close:02x?}");
        service.send([&message[at..], &frame(0x82, false, b"too late")].concat()).await;
        assert!(visitor.exact(message.len() - at).await == message[at..], "the message is not whole");
        assert_eq!(visitor.exact(4).await, GOING_AWAY);
        service.send(frame(0x88, false, &[0x03, 0xe9])).await;
        visitor.send(frame(0x88, true, &[0x03, 0xe9])).await;
        assert_eq!(service.rest().await, b"");
        assert_eq!(visitor.rest().await, b"");
        lab.connector_ended().await;
        lab.finish().await;
    }
}

/// Two ends that keep to the rules, and a grace of 30 s of which next to nothing is needed.
async fn idle(over: Over) {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let service = scripted(move |peer| {
        let heard = heard.clone();
        async move {
            let mut socket = tokio_tungstenite::accept_async(peer.io).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                heard.send(message.clone()).unwrap();
                if message.is_text() && socket.send(message).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let mut lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let (mut socket, _) = open(&lab).await.unwrap();
    let hello = Message::text("hello");
    socket.send(hello.clone()).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(hello.clone()));
    lab.tasks.drain();
    let away = Message::Close(Some(CloseFrame { code: CloseCode::Away, reason: "".into() }));
    assert_eq!(next(&mut socket).await, Some(away.clone()));
    assert_eq!(next(&mut socket).await, None, "the connection stays open behind the close frames");
    assert_eq!((hears.recv().await, hears.recv().await), (Some(hello), Some(away)));
    lab.connector_ended().await;
    lab.finish().await;
}

async fn deaf(over: Over) {
    let (mut lab, mut visitor, mut service) = ends(over).await;
    lab.tasks.drain();
    assert_eq!(visitor.exact(4).await, GOING_AWAY);
    assert_eq!(service.exact(8).await.len(), 8);
    // Neither answers; both connections end all the same, long before the 30 s of the grace.
    let ends = async { (visitor.rest().await, service.rest().await) };
    assert_eq!(tokio::time::timeout(LIMIT, ends).await.expect("still open"), (vec![], vec![]));
    lab.connector_ended().await;
    lab.finish().await;
}

async fn closing_already(over: Over) {
    let (mut lab, mut visitor, mut service) = ends(over).await;
    let close = frame(0x88, true, &[0x03, 0xe8]);
    visitor.send(&close).await;
    assert_eq!(service.exact(close.len()).await, close);
    lab.tasks.drain();
    // Towards the service a close frame has passed: no second one. Towards the visitor ours is the first.
    assert_eq!(visitor.exact(4).await, GOING_AWAY);
    service.send(frame(0x88, false, &[0x03, 0xe8])).await;
    drop(visitor);
    assert_eq!(service.rest().await, b"");
    lab.connector_ended().await;
    lab.finish().await;
}

/// Bytes in another dress, and bytes inside a WebSocket of our own: no drain touches them, the grace ends them.
async fn no_websocket(over: Over) {
    let (addr, mut services) = raw_service().await;
    let rules = rule(format!("http://{addr}"));
    let mut lab = Lab::with(over, &rules, |flags| flags.with("grace-period", "4s")).await;
    let mut visitor = Peer::visit(lab.http).await;
    visitor.send(ASK).await;
    visitor.answer_head().await;
    let mut service = services.recv().await.unwrap();
    visitor.send("SSH-2.0-client\r\n").await;
    assert_eq!(service.exact(16).await, b"SSH-2.0-client\r\n");
    service.send("SSH-2.0-server\r\n").await;
    assert_eq!(visitor.exact(16).await, b"SSH-2.0-server\r\n");
    lab.tasks.drain();
    eventually("unregistered", async || lab.edge.registry().of(lab.token.tunnel).is_empty()).await;
    visitor.send("during").await;
    assert_eq!(service.exact(6).await, b"during");
    lab.connector_ended().await;
    assert_eq!(visitor.rest().await, b"", "something was put into it");
    assert_eq!(lab.metrics.streams_cut(), 1);
    lab.finish().await;
}

async fn byte_service(over: Over) {
    let service = scripted(|mut peer| async move {
        loop {
            let bytes = peer.some().await;
            if bytes.is_empty() || !peer.send(&bytes).await {
                return;
            }
        }
    });
    let rules = rule(format!("tcp://{}", service.await));
    let mut lab = Lab::with(over, &rules, |flags| flags.with("grace-period", "4s")).await;
    let (mut socket, _) = open(&lab).await.unwrap();
    lab.tasks.drain();
    eventually("unregistered", async || lab.edge.registry().of(lab.token.tunnel).is_empty()).await;
    let during = Message::binary(&b"during"[..]);
    socket.send(during.clone()).await.unwrap();
    assert_eq!(next(&mut socket).await, Some(during));
    assert_eq!(next(&mut socket).await, None, "a byte stream gets no close frame of a drain");
    lab.connector_ended().await;
    lab.finish().await;
}

over_both! {
    an_idle_websocket_is_closed_with_1001_at_both_ends => idle,
    what_a_visitor_is_saying_arrives_whole_before_the_1001 => visitor_speaks,
    what_a_service_is_saying_arrives_whole_before_the_1001 => service_speaks,
    peers_that_do_not_answer_a_close_frame_are_not_waited_for => deaf,
    a_websocket_that_closes_already_gets_no_second_close_frame => closing_already,
    an_upgrade_to_something_else_runs_on_until_the_grace_ends => no_websocket,
    a_byte_stream_in_a_websocket_runs_on_until_the_grace_ends => byte_service,
}
