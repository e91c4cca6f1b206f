//! An edge that attacks its connector over QUIC. The connector serves on: on the same connection, or on the one that it
//! dials next; and what it held meanwhile is bounded.

use std::time::Duration;

use adit::wire::{
    connect::{Answer, DATA_SIGNATURE, RPC_SIGNATURE, encode_request},
    registration::{EdgeCall, Refusal},
};
use tokio::io::AsyncReadExt;

use crate::{
    harness::{eventually, in_time, measured::Program},
    raw_edge::{QuicPeer, RawEdge, Reply, accept, registered, reply, soon},
    raw_service::{get, rules},
    wire_craft::{far, on_a_stream, request, segments, to_list, to_struct},
};

/// What a connector may hold at most for a hostile edge, above what it held before: one message of 4 MiB for each of
/// a few streams, and the windows of the connection.
const MOST: u64 = 64 << 10;
const HOST: (&str, &str) = ("HttpHost", "app.example.com");

/// A registered connector in a process of its own.
struct Siege {
    _edge: RawEdge,
    program: Program,
    peer: QuicPeer,
    before: u64,
}

impl Siege {
    async fn start() -> Self {
        let edge = RawEdge::new().await;
        let program = edge.program("quic", &rules().await);
        let peer = edge.quic_peer().await;
        for _ in 0..20 {
            peer.serves("the start").await;
        }
        let before = program.memory("VmRSS");
        Self { _edge: edge, program, peer, before }
    }

    /// The same connection serves, and the connector has stayed small.
    async fn holds(&self, what: &str) {
        self.peer.serves(what).await;
        self.program.grew_less_than(MOST, self.before, what);
    }
}

fn data(message: &[u8]) -> Vec<u8> {
    on_a_stream(message)
}

/// Reads to whatever end there is.
async fn end(what: &str, mut recv: quinn::RecvStream) {
    let _ = soon(what, recv.read_to_end(64 << 20)).await;
}

#[tokio::test]
async fn ten_thousand_streams_opened_and_reset() {
    in_time(async {
        let siege = Siege::start().await;
        let head = get("app.example.com", "/");
        for at in 0..10_000 {
            let (mut send, mut recv) = soon("a stream", siege.peer.connection.open_bi()).await.unwrap();
            // Nothing, half a head, a whole one; reset on either side or on both.
            let part = [&[][..], &head[..head.len() / 2], &head[..]][at % 3];
            let _ = send.write_all(part).await;
            let _ = send.reset(0u32.into());
            if at % 2 == 0 {
                let _ = recv.stop(0u32.into());
            }
        }
        siege.peer.serves("10,000 streams opened and reset").await;
        // Three times as many cost no more: it is the limit on streams, doubled while half of it is in use.
        siege.program.grew_less_than(2 * MOST, siege.before, "10,000 streams opened and reset");
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_datagrams_of_odd_lengths() {
    in_time(async {
        let siege = Siege::start().await;
        let lengths = [0, 1, 15, 16, 17, 18, 19, 20, 21, 100, 1_150];
        for at in 0..10_000 {
            let len = lengths[at % lengths.len()];
            let kind = (at / lengths.len()) as u8;
            let mut bytes = vec![kind; len];
            // The kind stands last in one version and first in the other.
            if let Some(last) = bytes.last_mut() {
                *last = kind.wrapping_add(1);
            }
            soon("room for a datagram", siege.peer.connection.send_datagram_wait(bytes.into())).await.unwrap();
        }
        siege.holds("10,000 datagrams").await;
    })
    .await;
}

#[tokio::test]
async fn messages_that_announce_more_than_they_hold() {
    in_time(async {
        let siege = Siege::start().await;
        let announce = |segments: u32, words: &[u32]| {
            let mut bytes = segments.to_le_bytes().to_vec();
            bytes.extend(words.iter().flat_map(|words| words.to_le_bytes()));
            bytes
        };
        let circle: Vec<Vec<u64>> = (0..512u32).map(|at| vec![far((at + 1) % 512, 0)]).collect();
        let circle: Vec<&[u64]> = circle.iter().map(Vec::as_slice).collect();
        let many = vec![("HttpHeader:X-A", "1"); 8_193];
        let five = "a".repeat(1_000_000);
        let nested: Vec<u64> = (0..5_000).map(|_| to_struct(0, 0, 1)).collect();
        for (what, message) in [
            ("4 GiB in a segment", announce(0, &[u32::MAX / 8])),
            ("32 GiB in a segment", announce(0, &[u32::MAX])),
            ("512 segments of 32 GiB", announce(511, &[u32::MAX; 512])),
            ("2^32 segments", announce(u32::MAX, &[1; 64])),
            ("2^31 segments", announce(1 << 31, &[])),
            ("512 segments in a circle", segments(&circle).to_vec()),
            ("5,000 structs in each other", segments(&[&nested]).to_vec()),
            (
                "2^28 structs of no size",
                segments(&[&[to_struct(0, 1, 2), 0, 0, to_list(0, 7, 0), (1 << 30) - 4]]).to_vec(),
            ),
            ("a pointer behind the end", segments(&[&[to_struct(1 << 28, 1, 2)]]).to_vec()),
            ("8,193 headers", request(0, "/", &many).to_vec()),
            ("5 MiB of headers", request(0, "/", &[("HttpHeader:X-A", &*five); 5]).to_vec()),
            ("a path of 1 MiB", request(0, &format!("/{}", "a".repeat(1 << 20)), &[HOST]).to_vec()),
            ("an unknown type", request(77, "/", &[HOST]).to_vec()),
        ] {
            let (_send, recv) = siege.peer.open(&data(&message), true).await;
            match reply(recv).await {
                Reply::Reset(0) | Reply::Answered(Answer::Failed { .. }, _) => {}
                // Far too long for a request line, but that is the service's to say.
                Reply::Answered(Answer::Response(_), _) if what == "a path of 1 MiB" => {}
                other => panic!("{what}: {other:?}"),
            }
            siege.holds(what).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_hundred_heads_that_stop_a_byte_before_their_end() {
    in_time(async {
        let siege = Siege::start().await;
        // 100 streams of 256 KiB, each of which lacks its last byte.
        let large = "a".repeat(256 << 10);
        let head = data(&request(0, "/", &[HOST, ("HttpHeader:X-A", &large)]));
        let mut open = Vec::new();
        for _ in 0..100 {
            open.push(siege.peer.open(&head[..head.len() - 1], false).await);
        }
        siege.holds("100 heads without an end").await;
        drop(open);
    })
    .await;
}

#[tokio::test]
async fn heads_in_pieces_of_one_byte_and_with_everything_behind_them() {
    in_time(async {
        let siege = Siege::start().await;
        let head = get("app.example.com", "/slow?x");
        let (mut send, recv) = siege.peer.open(&[], false).await;
        for byte in &head {
            send.write_all(std::slice::from_ref(byte)).await.unwrap();
            tokio::task::yield_now().await;
        }
        send.finish().unwrap();
        let Reply::Answered(Answer::Response(answer), body) = reply(recv).await else { panic!("no answer") };
        assert!(answer.status == 200 && body.starts_with(b"GET /slow?x "));
        // A second head behind the first is that request's body, which it has none of.
        let twice = [&head[..], &get("app.example.com", "/second")].concat();
        let Reply::Answered(Answer::Response(_), body) = siege.peer.ask(&twice).await else { panic!("no answer") };
        assert!(!body.windows(7).any(|part| part == b"/second"));
        siege.holds("heads in pieces").await;
    })
    .await;
}

#[tokio::test]
async fn signatures_and_versions_of_nobody() {
    in_time(async {
        let siege = Siege::start().await;
        for at in 0..2_000u32 {
            let mut bytes = DATA_SIGNATURE.to_vec();
            bytes[at as usize % 6] ^= 1 << (at % 8);
            let (_send, recv) = siege.peer.open(&[&bytes[..], &[0; 64]].concat(), true).await;
            end("the end of an unknown stream", recv).await;
        }
        // A version is two bytes that nobody reads.
        let mut head = get("app.example.com", "/");
        head[6..8].copy_from_slice(b"99");
        assert!(matches!(siege.peer.ask(&head).await, Reply::Answered(Answer::Response(_), _)));
        siege.holds("2,000 unknown signatures").await;
    })
    .await;
}

#[tokio::test]
async fn a_hundred_calls_that_claim_gigabytes_or_never_end() {
    in_time(async {
        let siege = Siege::start().await;
        let mut open = Vec::new();
        for at in 0..100usize {
            let message: Vec<u8> = match at % 5 {
                // As large as may be, as large as can be, many segments, noise, nothing.
                0 => [&[0, 0, 0, 0][..], &(1u32 << 20).to_le_bytes(), &[0; 64]].concat(),
                1 => vec![0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
                2 => [&511u32.to_le_bytes()[..], &[1, 0, 0, 0].repeat(512)].concat(),
                3 => vec![0x55; 4_096],
                _ => Vec::new(),
            };
            open.push(siege.peer.open(&[&RPC_SIGNATURE[..], &message].concat(), false).await);
        }
        siege.holds("100 calls without an end").await;
        // Each lives for five seconds at most.
        for (send, recv) in open {
            end("the end of a call", recv).await;
            drop(send);
        }
        assert!(siege.peer.push(1, r#"{"ingress":[{"service":"http_status:418"}]}"#).await.is_ok());
    })
    .await;
}

#[tokio::test]
async fn a_ninth_call_at_a_time_is_reset_and_later_ones_are_welcome() {
    in_time(async {
        let siege = Siege::start().await;
        let mut open = Vec::new();
        for _ in 0..8 {
            open.push(siege.peer.open(&RPC_SIGNATURE, false).await);
        }
        let rules = r#"{"ingress":[{"service":"http_status:418"}]}"#;
        // It may overtake one of the eight.
        eventually("a call too many is refused", async || siege.peer.push(1, rules).await.is_err()).await;
        siege.peer.serves("eight calls without an end").await;
        eventually("calls are welcome again", async || siege.peer.push(1, rules).await.is_ok()).await;
    })
    .await;
}

#[tokio::test]
async fn configurations_that_are_deep_or_large_or_neither() {
    in_time(async {
        let siege = Siege::start().await;
        let large = format!(r#"{{"ingress":[{{"service":"http_status:418"}}],"x":"{}"}}"#, "a".repeat(10 << 20));
        let most = format!(r#"{{"ingress":[{{"service":"nowhere"}}],"x":"{}"}}"#, "a".repeat(4 << 20));
        let rules = format!(r#"{{"ingress":[{}]}}"#, vec![r#"{"service":"x"}"#; 100_000].join(","));
        for (what, json) in [
            ("brackets", "[".repeat(1 << 20)),
            ("braces", r#"{"a":"#.repeat(200_000)),
            ("100,000 wrong rules", rules),
            ("4 MiB", most),
            ("10 MiB", large),
        ] {
            // Refused with a reason, or not heard to the end.
            if let Ok(applied) = siege.peer.push(1, &json).await {
                assert!(applied.version == -1 && !applied.error.is_empty(), "{what}: {applied:?}");
            }
            siege.peer.serves(what).await;
        }
        siege.program.grew_less_than(2 * MOST, siege.before, "large and deep configurations");
    })
    .await;
}

#[tokio::test]
async fn bodies_longer_than_they_said_and_streams_that_never_end() {
    in_time(async {
        let siege = Siege::start().await;
        let head = data(&request(0, "/", &[HOST, ("HttpMethod", "POST"), ("HttpHeader:Content-Length", "4")]));
        let (mut send, recv) = siege.peer.open(&[&head[..], b"body"].concat(), false).await;
        // 64 MiB that nobody asked for: refused, or thrown away.
        let more = vec![b'x'; 64 << 10];
        for _ in 0..1024 {
            if soon("room for a body", send.write_all(&more)).await.is_err() {
                break;
            }
        }
        let _ = send.finish();
        let Reply::Answered(Answer::Response(_), body) = reply(recv).await else { panic!("no answer") };
        assert!(body.ends_with(b"\r\n\r\nbody"));
        siege.holds("64 MiB behind a body of 4 bytes").await;
    })
    .await;
}

/// Each ends the attempt or the connection; the next one is as good as any.
#[tokio::test]
async fn registrations_answered_with_anything_but_an_answer() {
    in_time(async {
        let edge = RawEdge::new().await;
        let program = edge.program("quic", &rules().await);
        let mut before = 0;
        for (what, answer) in [
            ("garbage", vec![0x55; 4_096]),
            ("32 GiB", vec![0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
            ("2^32 segments", vec![0xff; 64]),
            ("an empty message", vec![0; 8]),
            ("nothing and an end", Vec::new()),
        ] {
            let connection = edge.accept_quic().await;
            let (mut send, mut recv) = soon("the control stream", connection.accept_bi()).await.unwrap();
            let mut first = [0; 8];
            soon("a bootstrap", recv.read_exact(&mut first)).await.unwrap();
            let _ = send.write_all(&answer).await;
            let _ = send.finish();
            soon(&format!("the end after {what}"), connection.closed()).await;
            if before == 0 {
                before = program.memory("VmRSS");
            }
        }
        let connection = edge.accept_quic().await;
        let (mut send, mut recv) = soon("the control stream", connection.accept_bi()).await.unwrap();
        let _ = send.reset(0u32.into());
        let _ = recv.stop(0u32.into());
        soon("the end after a reset", connection.closed()).await;
        edge.quic_peer().await.serves("answers that are none").await;
        program.grew_less_than(MOST, before, "answers that are none");
    })
    .await;
}

#[tokio::test]
async fn refusals_with_huge_texts_and_impossible_waits() {
    in_time(async {
        let edge = RawEdge::new().await;
        let connector = edge.connector("quic", &rules().await).await;
        let year = Duration::from_secs(365 * 86_400);
        for (cause, retry_after, should_retry) in [
            ("x".repeat(1 << 20), Duration::from_millis(1), true),
            ("\u{1b}[2J\r\n\0".repeat(1_000), Duration::ZERO, false),
            (String::new(), Duration::ZERO, true),
            ("a year".to_owned(), year, true),
        ] {
            let connection = edge.accept_quic().await;
            let (send, recv) = soon("the control stream", connection.accept_bi()).await.unwrap();
            let mut calls = edge.control(recv, send);
            accept(&mut calls, Err(Refusal { cause, retry_after, should_retry })).await;
            soon("the end after a refusal", connection.closed()).await;
        }
        // It waits, and is alive meanwhile.
        assert_eq!(connector.page("/ready").await.0, 503);
        assert_eq!(connector.tasks.panics(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_control_stream_that_breaks_at_any_step_is_dialled_anew() {
    in_time(async {
        let edge = RawEdge::new().await;
        let connector = edge.connector("quic", &rules().await).await;
        // After the registration: an end, a reset, garbage.
        for step in 0..3 {
            let connection = edge.accept_quic().await;
            let (mut send, recv) = soon("the control stream", connection.accept_bi()).await.unwrap();
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            let mut calls = edge.control(recv, ours);
            let (mut from, _keep) = tokio::io::split(theirs);
            let relay = async {
                let mut buffer = vec![0; 4096];
                loop {
                    let n = from.read(&mut buffer).await.unwrap_or(0);
                    if n == 0 || send.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = relay => panic!("the control stream ended"),
                () = async {
                    accept(&mut calls, Ok(registered(true))).await;
                    eventually("ready", async || connector.page("/ready").await.0 == 200).await;
                } => {}
            }
            let _ = match step {
                0 => send.finish().is_ok(),
                1 => send.reset(0u32.into()).is_ok(),
                _ => send.write_all(&[0x55; 4_096]).await.is_ok(),
            };
            soon("the end of the connection", connection.closed()).await;
        }
        edge.quic_peer().await.serves("broken control streams").await;
        assert_eq!(connector.tasks.panics(), 0);
    })
    .await;
}

#[tokio::test]
async fn an_unregistration_answered_with_nonsense_does_not_hold_up_the_end() {
    in_time(async {
        let edge = RawEdge::new().await;
        let mut connector = edge.connector("quic", &rules().await).await;
        let mut peer = edge.quic_peer().await;
        peer.serves("the registration").await;
        connector.tasks.drain();
        let Some(EdgeCall::Unregister(reply)) = soon("the unregistration", peer.calls.recv()).await else { panic!() };
        // Not answered; the connection is cut instead.
        drop(reply);
        let mut uni = soon("a stream", peer.connection.open_uni()).await.unwrap();
        let _ = uni.write_all(&encode_request(&adit::wire::Head::Tcp("127.0.0.1:1".parse().unwrap()))).await;
        peer.connection.close(77u32.into(), &[0xff; 256]);
        soon("the end of the connector", &mut connector.ended).await.unwrap().unwrap();
    })
    .await;
}
