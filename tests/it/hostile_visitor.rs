//! Visitors who attack the edge: floods over HTTP/2 and HTTP/1.1, slow ones, many. The edge serves on, and what it
//! held meanwhile is bounded.

use std::{net::SocketAddr, time::Duration};

use adit::edge::state::StateDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    harness::{Answer, eventually, in_time, measured::Program, mirror, rule},
    raw_edge::soon,
    raw_frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, PRIORITY, PUSH_PROMISE, RST_STREAM,
        SETTINGS, WINDOW_UPDATE, block, frame, get, integer, request, sieges,
    },
};

/// What an edge may hold for one hostile visitor, above what it held before.
const MOST: u64 = 48 << 10;
const HOST: &str = "web.test";

/// An edge and a connector as processes of their own, and a service behind.
struct Siege {
    _dir: tempfile::TempDir,
    edge: Program,
    connector: Program,
    http: SocketAddr,
    before: u64,
    connector_before: u64,
}

impl Siege {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        let token = state.new_token(&[HOST.to_owned()], None).unwrap();
        let any = "127.0.0.1:0";
        let (edge, line) = Program::heard(|command| {
            command.args(["edge", "--listen", any, "--http", any, "--https", any, "--metrics", any]);
            command.arg("--state").arg(state.path())
        })
        .await;
        let mut words = line.split_whitespace();
        let mut behind = |word: &str| -> SocketAddr {
            words.find(|found| *found == word).unwrap_or_else(|| panic!("no {word} in {line}"));
            words.next().unwrap().parse().unwrap()
        };
        let (connectors, http) = (behind("connectors"), behind("http"));
        let (config, file) = (dir.path().join("config.yml"), dir.path().join("token"));
        std::fs::write(&config, rule(format!("http://{}", mirror().await))).unwrap();
        std::fs::write(&file, token.encode().as_bytes()).unwrap();
        let connector = Program::start(|command| {
            command.args(["run", "--metrics", any, "--protocol", "http2", "--ha-connections", "1", "--edge"]);
            command.arg(connectors.to_string()).arg("--edge-ca").arg(state.ca_path());
            command.arg("--config").arg(&config).arg("--token-file").arg(&file)
        });
        let mut siege = Self { _dir: dir, edge, connector, http, before: 0, connector_before: 0 };
        eventually("the tunnel serves", async || siege.visit().await == 200).await;
        for _ in 0..20 {
            siege.visit().await;
        }
        siege.before = siege.edge.memory("VmRSS");
        siege.connector_before = siege.connector.memory("VmRSS");
        siege
    }

    async fn connect(&self) -> TcpStream {
        soon("a connection", TcpStream::connect(self.http)).await.unwrap()
    }

    async fn visit(&self) -> u16 {
        let mut visitor = self.connect().await;
        let request = format!("GET /honest HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        visitor.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        soon("an answer", visitor.read_to_end(&mut bytes)).await.unwrap();
        let answer = Answer::parse(&bytes);
        if answer.status != 200 {
            eprintln!("{} {:?}", answer.status, answer.code());
        }
        answer.status
    }

    /// Another visitor is served, and edge and connector have stayed small.
    async fn holds(&self, what: &str) {
        assert_eq!(self.visit().await, 200, "after {what}");
        self.edge.grew_less_than(MOST, self.before, &format!("edge, {what}"));
        self.connector.grew_less_than(MOST, self.connector_before, &format!("connector, {what}"));
    }
}

async fn siege(what: &str, attack: impl AsyncFnOnce(&Frames<TcpStream>)) {
    in_time(async {
        let siege = Siege::start().await;
        let frames = Frames::start(siege.connect().await).await;
        attack(&frames).await;
        siege.holds(what).await;
    })
    .await;
}

/// Odd numbers from 1 on.
fn stream(at: usize) -> u32 {
    1 + 2 * at as u32
}

sieges! {
    twenty_thousand_streams_opened_and_reset_at_once: async |frames| {
        let reset = 8u32.to_be_bytes();
        frames.flood(20_000, |at| [get(stream(at), HOST, "/"), frame(RST_STREAM, 0, stream(at), &reset)].concat()).await;
    };
    ten_thousand_bodies_begun_and_reset: async |frames| {
        let head = request("POST", HOST, "/", &[("content-length", "9")]);
        let reset = 0u32.to_be_bytes();
        frames.flood(10_000, |at| {
            [frame(HEADERS, END_HEADERS, stream(at), &head), frame(RST_STREAM, 0, stream(at), &reset)].concat()
        }).await;
    };
    a_hundred_thousand_pings: async |frames| frames.flood(100_000, |_| frame(PING, 0, 0, &[7; 8])).await;
    fifty_thousand_settings: async |frames| {
        frames.flood(50_000, |at| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, (at % 2) as u8, 0])).await;
    };
    a_hundred_thousand_priorities: async |frames| {
        frames.flood(100_000, |at| frame(PRIORITY, 0, stream(at % 50_000), &[0, 0, 0, 0, 9])).await;
    };
    a_hundred_thousand_empty_pieces_of_a_body: async |frames| {
        frames.send(&frame(HEADERS, END_HEADERS, 1, &request("POST", HOST, "/", &[]))).await;
        frames.flood(100_000, |_| frame(DATA, 0, 1, &[])).await;
    };
    continuations_without_end: async |frames| {
        frames.send(&frame(HEADERS, 0, 1, &request("GET", HOST, "/", &[]))).await;
        let more = block(&[("x-more", &"a".repeat(1_000))]);
        frames.flood(20_000, |_| frame(CONTINUATION, 0, 1, &more)).await;
    };
    empty_continuations_without_end: async |frames| {
        frames.send(&frame(HEADERS, 0, 1, &request("GET", HOST, "/", &[]))).await;
        frames.flood(200_000, |_| frame(CONTINUATION, 0, 1, &[])).await;
    };
    five_mebibytes_of_header_fields: async |frames| {
        let large = "a".repeat(10_000);
        frames.send(&frame(HEADERS, END_STREAM, 1, &request("GET", HOST, "/", &[]))).await;
        frames.flood(500, |_| frame(CONTINUATION, 0, 1, &block(&[("x-a", &large)]))).await;
        frames.send(&frame(CONTINUATION, END_HEADERS, 1, &[])).await;
    };
    one_field_referred_to_a_million_times: async |frames| {
        let mut bomb = request("GET", HOST, "/", &[]);
        bomb.push(0x40);
        for text in ["x-bomb", &"b".repeat(4_000)] {
            integer(&mut bomb, 7, 0, text.len());
            bomb.extend_from_slice(text.as_bytes());
        }
        bomb.resize(bomb.len() + 10_000, 0xbe);
        frames.send(&frame(HEADERS, END_STREAM, 1, &bomb)).await;
        frames.flood(70, |at| frame(CONTINUATION, if at == 69 { END_HEADERS } else { 0 }, 1, &[0xbe; 16_000])).await;
    };
    windows_of_nothing_and_beyond_everything: async |frames| {
        frames.send(&frame(HEADERS, END_HEADERS, 1, &request("POST", HOST, "/", &[]))).await;
        frames.send(&frame(WINDOW_UPDATE, 0, 1, &0u32.to_be_bytes())).await;
        frames.flood(10, |_| frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffffu32.to_be_bytes())).await;
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
    goaway_again_and_again: async |frames| {
        frames.flood(10_000, |_| frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 2])).await;
    };
    a_thousand_requests_whose_answers_nobody_takes: async |frames| {
        // A window of nothing for every stream: answers of 60 KiB stay where they are.
        frames.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
        let path = format!("/{}", "a".repeat(4_000));
        frames.flood(1_000, |at| get(stream(at), HOST, &path)).await;
    };
}

#[tokio::test]
async fn heads_of_http1_that_are_too_long_in_every_way() {
    in_time(async {
        let siege = Siege::start().await;
        let start = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n");
        for (what, head) in [
            ("5 MiB in a header", format!("{start}X: {}\r\n\r\n", "a".repeat(5 << 20))),
            ("8,193 headers", format!("{start}{}\r\n", "X-A: 1\r\n".repeat(8_193))),
            ("a target of 1 MiB", format!("GET /{} HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "a".repeat(1 << 20))),
            ("a method of 1 MiB", format!("{} / HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "A".repeat(1 << 20))),
            ("empty lines", "\r\n".repeat(1 << 20)),
        ] {
            let mut visitor = siege.connect().await;
            let _ = visitor.write_all(head.as_bytes()).await;
            let _ = visitor.shutdown().await;
            let mut bytes = Vec::new();
            let _ = soon(what, visitor.read_to_end(&mut bytes)).await;
            if bytes.windows(4).any(|w| w == b"\r\n\r\n") {
                let status = Answer::parse(&bytes).status;
                assert!((400..500).contains(&status), "{what}: {status}");
            }
            siege.holds(what).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_head_byte_by_byte_ends_by_the_limit() {
    in_time(async {
        let siege = Siege::start().await;
        let mut slow = Vec::new();
        for _ in 0..200 {
            let mut visitor = siege.connect().await;
            visitor.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
            slow.push(visitor);
        }
        // A byte now and then shows that they live; the limit is on the whole head.
        let patience = Duration::from_secs(40);
        let ended = async {
            for (at, visitor) in slow.iter_mut().enumerate() {
                let mut bytes = Vec::new();
                loop {
                    tokio::select! {
                        read = visitor.read_buf(&mut bytes) => match read {
                            Ok(0) | Err(_) => break,
                            Ok(_) => {}
                        },
                        () = tokio::time::sleep(Duration::from_millis(500)), if at == 0 => {
                            let _ = visitor.write_all(b"x").await;
                        }
                    }
                }
            }
        };
        tokio::time::timeout(patience, ended).await.expect("slow heads are waited for");
        siege.holds("200 slow heads").await;
    })
    .await;
}

#[tokio::test]
async fn five_thousand_connections_that_say_nothing() {
    in_time(async {
        let siege = Siege::start().await;
        let mut silent = Vec::new();
        for _ in 0..5_000 {
            silent.push(siege.connect().await);
        }
        assert_eq!(siege.visit().await, 200);
        // 20 KiB each, before any limit of the edge is reached.
        siege.edge.grew_less_than(5_000 * 20, siege.before, "5,000 silent connections");
        drop(silent);
        assert_eq!(siege.visit().await, 200);
    })
    .await;
}
