//! An edge that attacks its connector over HTTP/2, frame by frame. The connector serves on: on the same connection, or
//! on the one that it dials next; and what it held meanwhile is bounded.

use adit::transport;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::{
    harness::{in_time, measured::Program},
    raw_edge::{RawEdge, accept, registered, soon, upgrade},
    raw_frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, PRIORITY, PUSH_PROMISE, RST_STREAM,
        SETTINGS, WINDOW_UPDATE, block, frame, get, integer, request, sieges,
    },
    raw_service::rules,
};

/// What a connector may hold at most for a hostile edge, above what it held before. Its documented bounds for one
/// stream are 4 MiB; a debug build in a hurry needs some more than that.
const MOST: u64 = 48 << 10;
const HOST: &str = "app.example.com";
const CONTROL: (&str, &str) = ("cf-cloudflared-proxy-connection-upgrade", "control-stream");

/// A connector in a process of its own, registered over a connection whose frames are written by hand.
struct Siege {
    edge: RawEdge,
    program: Program,
    frames: Frames<TlsStream<TcpStream>>,
    before: u64,
}

impl Siege {
    async fn start() -> Self {
        let edge = RawEdge::without_quic().await;
        let program = edge.program("http2", &rules().await);
        let frames = Self::registered(&edge).await;
        for at in 0..20 {
            frames.send(&get(3 + at * 2, HOST, "/good?x")).await;
            assert!(frames.answer(3 + at * 2).await.is_some());
        }
        let before = program.memory("VmRSS");
        Self { edge, program, frames, before }
    }

    async fn registered(edge: &RawEdge) -> Frames<TlsStream<TcpStream>> {
        let frames = Frames::start(edge.accept_tls().await).await;
        frames.send(&frame(HEADERS, END_HEADERS, 1, &request("GET", "localhost", "/", &[CONTROL]))).await;
        let (recv, send) = tokio::io::split(frames.pipe(1));
        let mut calls = edge.control(recv, send);
        accept(&mut calls, Ok(registered(true))).await;
        // The control stream stays open for as long as its calls are awaited.
        crate::harness::background(async move { while calls.recv().await.is_some() {} });
        frames
    }

    /// The connector serves, here or on its next connection, and has stayed small.
    async fn holds(&self, what: &str) {
        // A stream far above those of the attack.
        let stream = 0x3fff_ffff;
        let here = self.frames.send(&get(stream, HOST, "/good?x")).await && self.frames.answer(stream).await.is_some();
        if !here {
            let next = Self::registered(&self.edge).await;
            next.send(&get(3, HOST, "/good?x")).await;
            let answer = next.answer(3).await.unwrap_or_else(|| panic!("no answer after {what}"));
            assert!(answer.body.starts_with(b"GET /good?x HTTP/1.1\r\n"), "after {what}");
        }
        let where_ = if here { "the same connection" } else { "the next connection" };
        self.program.grew_less_than(MOST, self.before, &format!("{what} (serves on {where_})"));
    }
}

async fn siege(what: &str, attack: impl AsyncFnOnce(&Frames<TlsStream<TcpStream>>)) {
    in_time(async {
        let siege = Siege::start().await;
        attack(&siege.frames).await;
        siege.holds(what).await;
    })
    .await;
}

/// Odd numbers from here on, for streams of an attack.
fn stream(at: usize) -> u32 {
    101 + 2 * at as u32
}

sieges! {
    twenty_thousand_streams_opened_and_reset_at_once: async |frames| {
        let reset = 8u32.to_be_bytes();
        frames.flood(20_000, |at| [get(stream(at), HOST, "/"), frame(RST_STREAM, 0, stream(at), &reset)].concat()).await;
    };
    ten_thousand_streams_opened_and_reset_one_by_one: async |frames| {
        for at in 0..10_000 {
            let open = frame(HEADERS, END_HEADERS, stream(at), &request("POST", HOST, "/", &[("content-length", "9")]));
            let reset = frame(RST_STREAM, 0, stream(at), &0u32.to_be_bytes());
            if !frames.send(&open).await || !frames.send(&reset).await {
                break;
            }
        }
    };
    a_hundred_thousand_pings: async |frames| frames.flood(100_000, |_| frame(PING, 0, 0, &[7; 8])).await;
    fifty_thousand_settings: async |frames| {
        // INITIAL_WINDOW_SIZE up and down.
        frames.flood(50_000, |at| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, (at % 2) as u8, 0])).await;
    };
    a_hundred_thousand_priorities: async |frames| {
        frames.flood(100_000, |at| frame(PRIORITY, 0, stream(at % 50_000), &[0, 0, 0, 0, 9])).await;
    };
    a_hundred_thousand_empty_pieces_of_a_body: async |frames| {
        frames.send(&frame(HEADERS, END_HEADERS, stream(0), &request("POST", HOST, "/", &[]))).await;
        frames.flood(100_000, |_| frame(DATA, 0, stream(0), &[])).await;
    };
    pieces_of_one_byte_in_padding: async |frames| {
        frames.send(&frame(HEADERS, END_HEADERS, stream(0), &request("POST", HOST, "/", &[]))).await;
        let padded = [&[200, b'x'][..], &[0; 200]].concat();
        frames.flood(4_000, |_| frame(DATA, 8, stream(0), &padded)).await;
    };
    continuations_without_end: async |frames| {
        frames.send(&frame(HEADERS, 0, stream(0), &request("GET", HOST, "/", &[]))).await;
        let more = block(&[("x-more", &"a".repeat(1_000))]);
        frames.flood(20_000, |_| frame(CONTINUATION, 0, stream(0), &more)).await;
    };
    empty_continuations_without_end: async |frames| {
        frames.send(&frame(HEADERS, 0, stream(0), &request("GET", HOST, "/", &[]))).await;
        frames.flood(200_000, |_| frame(CONTINUATION, 0, stream(0), &[])).await;
    };
    eight_thousand_and_more_headers: async |frames| {
        let many = vec![("x-a", "1"); 9_000];
        frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream(0), &request("GET", HOST, "/", &many))).await;
    };
    a_header_block_of_one_mebibyte: async |frames| {
        let large = "a".repeat(1 << 19);
        let block = request("GET", HOST, "/", &[("x-a", &large), ("x-b", &large)]);
        frames.send(&frame(HEADERS, END_STREAM, stream(0), &block[..1 << 20])).await;
        frames.send(&frame(CONTINUATION, END_HEADERS, stream(0), &block[1 << 20..])).await;
    };
    a_header_block_of_five_mebibytes: async |frames| {
        let large = "a".repeat(1_000_000);
        let block = request("GET", HOST, "/", &[("x-a", &*large); 5]);
        frames.send(&frame(HEADERS, 0, stream(0), &block[..1 << 20])).await;
        for piece in block[1 << 20..].chunks(1 << 20) {
            frames.send(&frame(CONTINUATION, 0, stream(0), piece)).await;
        }
        frames.send(&frame(CONTINUATION, END_HEADERS, stream(0), &[])).await;
    };
    one_field_referred_to_a_million_times: async |frames| {
        // 4,000 bytes into the dynamic table, and then a byte for each time that they are meant: 4 GB out of 1 MB.
        let mut block = request("GET", HOST, "/", &[]);
        block.push(0x40);
        for text in ["x-bomb", &"b".repeat(4_000)] {
            integer(&mut block, 7, 0, text.len());
            block.extend_from_slice(text.as_bytes());
        }
        block.resize(block.len() + 1_000_000, 0xbe);
        frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream(0), &block)).await;
    };
    streams_with_bombs_in_a_row: async |frames| {
        let bomb = |at: usize| {
            let mut block = request("GET", "teapot.example.com", "/", &[]);
            if at == 0 {
                block.push(0x40);
                for text in ["x-bomb", &"b".repeat(4_000)] {
                    integer(&mut block, 7, 0, text.len());
                    block.extend_from_slice(text.as_bytes());
                }
            }
            block.resize(block.len() + 200, 0xbe);
            frame(HEADERS, END_HEADERS | END_STREAM, stream(at), &block)
        };
        frames.flood(2_000, bomb).await;
    };
    windows_of_nothing_and_beyond_everything: async |frames| {
        frames.send(&frame(HEADERS, END_HEADERS, stream(0), &request("POST", HOST, "/", &[]))).await;
        frames.send(&frame(WINDOW_UPDATE, 0, stream(0), &0u32.to_be_bytes())).await;
        frames.flood(100, |_| frame(WINDOW_UPDATE, 0, stream(1), &0x7fff_ffffu32.to_be_bytes())).await;
    };
    a_window_beyond_everything_for_the_connection: async |frames| {
        frames.flood(10, |_| frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffffu32.to_be_bytes())).await;
    };
    a_window_of_nothing_for_the_connection: async |frames| {
        frames.send(&frame(WINDOW_UPDATE, 0, 0, &0u32.to_be_bytes())).await;
    };
    a_promise_of_a_push: async |frames| {
        let promise = [&2u32.to_be_bytes()[..], &request("GET", HOST, "/", &[])].concat();
        frames.send(&frame(PUSH_PROMISE, END_HEADERS, 1, &promise)).await;
    };
    frames_of_unknown_kinds: async |frames| {
        frames.flood(20_000, |at| frame(10 + (at % 240) as u8, at as u8, stream(at % 9), &[0; 32])).await;
    };
    a_frame_that_announces_sixteen_mebibytes: async |frames| {
        frames.send(&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]).await;
    };
    data_on_a_stream_that_was_never_opened: async |frames| {
        frames.send(&frame(DATA, 0, 9_999, b"x")).await;
    };
    a_request_on_an_even_stream: async |frames| {
        frames.send(&get(2, HOST, "/")).await;
    };
    header_fields_that_are_no_fields: async |frames| {
        for (at, field) in [("Upper", "x"), (":status", "200"), ("a b", "x"), ("x", "a\r\nb: c"), ("", "x"), ("te", "x"),
            ("connection", "close"), ("transfer-encoding", "chunked")].into_iter().enumerate()
        {
            let block = request("GET", HOST, "/", &[field]);
            frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream(at), &block)).await;
        }
    };
    an_index_behind_the_end_of_the_table: async |frames| {
        frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream(0), &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])).await;
    };
    goaway_again_and_again: async |frames| {
        frames.flood(10_000, |_| frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 2])).await;
    };
    a_reset_control_stream: async |frames| {
        frames.send(&frame(RST_STREAM, 0, 1, &8u32.to_be_bytes())).await;
    };
    an_ended_control_stream: async |frames| {
        frames.send(&frame(DATA, END_STREAM, 1, &[])).await;
    };
    garbage_on_the_control_stream: async |frames| {
        frames.flood(64, |_| frame(DATA, 0, 1, &[0x55; 1024])).await;
    };
    a_message_of_gigabytes_on_the_control_stream: async |frames| {
        frames.send(&frame(DATA, 0, 1, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0x0f])).await;
        frames.flood(256, |_| frame(DATA, 0, 1, &[0; 4096])).await;
    };
    ten_further_control_streams: async |frames| {
        frames.flood(10, |at| frame(HEADERS, END_HEADERS, stream(at), &request("GET", "localhost", "/", &[CONTROL]))).await;
    };
    a_configuration_of_brackets: async |frames| {
        let upgrade = ("cf-cloudflared-proxy-connection-upgrade", "update-configuration");
        frames.send(&frame(HEADERS, END_HEADERS, stream(0), &request("PUT", "localhost", "/", &[upgrade]))).await;
        frames.send(&frame(DATA, 0, stream(0), b"{\"version\":1,\"config\":")).await;
        frames.flood(40, |_| frame(DATA, 0, stream(0), &[b'['; 16 << 10])).await;
        frames.send(&frame(DATA, END_STREAM, stream(0), &[])).await;
        assert!(frames.answer(stream(0)).await.is_some_and(|answer| answer.ended), "a refusal");
    };
}

#[tokio::test]
async fn frames_byte_by_byte_and_all_at_once_are_read_alike() {
    in_time(async {
        let siege = Siege::start().await;
        let slow = get(stream(0), HOST, "/slow?x");
        for byte in &slow {
            assert!(siege.frames.send(std::slice::from_ref(byte)).await);
        }
        let together: Vec<u8> = (1..200).flat_map(|at| get(stream(at), HOST, "/together")).collect();
        assert!(siege.frames.send(&together).await);
        assert!(siege.frames.answer(stream(0)).await.unwrap().body.starts_with(b"GET /slow?x "));
        for at in 1..200 {
            assert!(siege.frames.answer(stream(at)).await.unwrap().body.starts_with(b"GET /together "), "{at}");
        }
        siege.holds("frames in pieces").await;
    })
    .await;
}

/// The tunnel's connection carries everybody's visitors: those who leave, or send nonsense, end their own streams.
#[tokio::test]
async fn a_thousand_visitors_who_leave_at_once_end_nobody_elses_request() {
    in_time(async {
        let siege = Siege::start().await;
        let long = stream(5_000);
        assert!(siege.frames.send(&frame(HEADERS, END_HEADERS, long, &request("POST", HOST, "/long", &[]))).await);
        let leave = |at| [get(stream(at), HOST, "/"), frame(RST_STREAM, 0, stream(at), &8u32.to_be_bytes())].concat();
        // In one write, so that they are reset before anybody looks at them.
        let thousand: Vec<u8> = (5_001..6_001).flat_map(leave).collect();
        assert!(siege.frames.send(&thousand).await);
        let liar = |at| {
            let head = frame(HEADERS, END_HEADERS, stream(at), &request("POST", HOST, "/", &[("content-length", "9")]));
            [head, frame(DATA, END_STREAM, stream(at), b"short")].concat()
        };
        let liars: Vec<u8> = (6_001..8_001).flat_map(liar).collect();
        assert!(siege.frames.send(&liars).await);
        assert!(siege.frames.send(&frame(DATA, END_STREAM, long, &[])).await);
        let answer = siege.frames.answer(long).await.expect("the connection ended");
        assert!(answer.body.starts_with(b"POST /long "), "{answer:?}");
    })
    .await;
}

#[tokio::test]
async fn a_configuration_of_ten_mebibytes_is_refused_before_it_is_held() {
    in_time(Box::pin(async {
        let edge = RawEdge::without_quic().await;
        let program = edge.program("http2", &rules().await);
        let peer = edge.h2_peer().await;
        for _ in 0..20 {
            peer.serves("the start").await;
        }
        let before = program.memory("VmRSS");
        let (response, send) = peer.sender.clone().send_request(upgrade("PUT", "update-configuration"), false).unwrap();
        let mut send = transport::Send::http2(send);
        for _ in 0..640 {
            // The connector stops listening somewhere above its limit of 8 MiB.
            if soon("room for a configuration", send.write(vec![b' '; 16 << 10].into(), false)).await.is_err() {
                break;
            }
        }
        assert_eq!(soon("a refusal", response).await.unwrap().status(), 502);
        peer.serves("a configuration of 10 MiB").await;
        program.grew_less_than(MOST, before, "a configuration of 10 MiB");
    }))
    .await;
}
