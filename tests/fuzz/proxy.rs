//! What visitors send to byte services: WebSocket frames, SOCKS, destinations.

use adit::proxy::{
    bastion,
    frames::{Boundary, Encoder, Offsets, Opcode, Role},
    socks::{Handshake, Host, Step},
};
use bytes::Bytes;

use super::engine::{about, seen};
use crate::said::{Said, decode, join};

pub(super) const FRAMES: &[&[u8]] = &[
    &[0x81, 0x00],
    &[0x82, 0x80, 0, 0, 0, 0],
    &[0x01, 0x01, b'x'],
    &[0x80, 0x80, 1, 2, 3, 4],
    &[0x88, 0x02, 0x03, 0xe8],
    &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8],
    &[0x89, 0x00],
    &[0x8a, 0x80, 9, 9, 9, 9],
    &[0x82, 0x7e, 0x00, 0x7e],
    &[0x82, 0xfe, 0xff, 0xff],
    &[0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0],
    &[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0],
    &[0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0xc1, 0x00],
];
pub(super) const SOCKS: &[&[u8]] = &[
    &[5, 1, 0],
    &[5, 2, 0, 2],
    &[5, 0],
    &[5, 255],
    &[4, 1],
    &[5, 1, 0, 1, 127, 0, 0, 1, 0, 80],
    &[5, 1, 0, 3, 0],
    &[5, 1, 0, 3, 255],
    &[5, 2, 0, 4],
    &[0; 16],
    b"localhost",
];

/// Messages are the same however the bytes were cut, what is held is bounded (`decode` asserts it), and an end stays
/// an end.
pub(super) fn websocket_decoder(input: &[u8]) -> u64 {
    let mut all = Vec::new();
    for role in [Role::Server, Role::Client] {
        let (events, error) = decode(role, &[input]);
        let whole = (join(events), error);
        for size in [1, 2, 13, 127] {
            let pieces: Vec<_> = input.chunks(size).collect();
            let (events, error) = decode(role, &pieces);
            assert_eq!((join(events), error), whole, "in pieces of {size}");
        }
        let payload: usize = whole.0.iter().map(length).sum();
        assert!(payload <= input.len());
        all.push((about(whole.0.len()), about(payload), whole.1.map(|error| format!("{error:?}"))));
        all.push((0, 0, whole.0.last().map(|last| format!("{:?}", std::mem::discriminant(last)))));
        returns(&whole.0);
    }
    seen(all)
}

fn length(said: &Said) -> usize {
    match said {
        Said::Close(_, reason) => reason.len(),
        Said::Message { payload, .. } | Said::Ping(payload) | Said::Pong(payload) => payload.len(),
    }
}

/// What was said can be said again in our own frames.
fn returns(said: &[Said]) {
    for (encoder, role) in [(Encoder::server(), Role::Client), (Encoder::client(|| [1, 2, 3, 4]), Role::Server)] {
        for one in said {
            let bytes = match one {
                Said::Pong(payload) => encoder.pong(payload).to_vec(),
                Said::Close(code, reason) => encoder.close(*code, reason).to_vec(),
                Said::Message { opcode, payload, whole: true } if *opcode != Opcode::Continuation => {
                    let header = encoder.header(*opcode, true, payload.len());
                    let mut frame = header.to_vec();
                    let at = frame.len();
                    frame.extend_from_slice(payload);
                    header.mask(0, &mut frame[at..]);
                    frame
                }
                _ => continue,
            };
            let (events, error) = decode(role, &[&bytes]);
            assert_eq!(error, None, "{one:?}");
            assert_eq!(join(events), std::slice::from_ref(one));
        }
    }
}

/// Boundaries are where they are however the bytes were cut, and where the decoder sees the ends of messages.
pub(super) fn websocket_boundary(input: &[u8]) -> u64 {
    let places = |size: usize| {
        let mut boundary = Boundary::new();
        let mut inside = Vec::new();
        for (at, chunk) in input.chunks(size).enumerate() {
            let Offsets { frame, message } = boundary.advance(chunk);
            for offset in [frame, message].into_iter().flatten() {
                assert!((1..=chunk.len()).contains(&offset));
            }
            assert!(message.is_none() || frame <= message);
            inside.push((message.map(|offset| at * size + offset), frame.map(|offset| at * size + offset)));
        }
        let end = (boundary.at_boundary(), boundary.at_frame_boundary(), boundary.is_closed(), boundary.is_lost());
        (inside, end)
    };
    let (whole, end) = places(input.len().max(1));
    for size in [1, 5, 64] {
        let (pieces, same) = places(size);
        assert_eq!(same, end, "in pieces of {size}");
        let first = |places: &[(Option<usize>, Option<usize>)]| {
            (places.iter().find_map(|place| place.0), places.iter().find_map(|place| place.1))
        };
        assert_eq!(first(&pieces), first(&whole), "in pieces of {size}");
    }
    seen((end, whole.first().map(|(message, frame)| (message.is_some(), frame.is_some()))))
}

/// A handshake says the same however it is cut, holds little and hands on every byte that is not its own.
pub(super) fn socks(input: &[u8]) -> u64 {
    let run = |size: usize| {
        let mut handshake = Handshake::new();
        let (mut said, mut rest, mut over) = (Vec::new(), Vec::new(), false);
        for piece in input.chunks(size) {
            let mut piece = Bytes::copy_from_slice(piece);
            while !over {
                match handshake.push(&mut piece) {
                    Step::NeedMore => break,
                    Step::Send(bytes) => said.push(("send", bytes, None)),
                    Step::Refuse(bytes) => {
                        said.push(("refuse", bytes, None));
                        over = true;
                    }
                    Step::Connect { host, port, rest: ahead } => {
                        if let Host::Name(name) = &host {
                            assert!((1..=255).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic()));
                        }
                        said.push(("connect", Bytes::new(), Some((host, port))));
                        rest.extend_from_slice(&ahead);
                        over = true;
                    }
                }
                assert!(handshake.held() <= 262 && said.len() <= 2);
            }
            rest.extend_from_slice(&piece);
        }
        (said, rest)
    };
    let (said, rest) = run(input.len().max(1));
    for size in [1, 2, 5, 100] {
        let (same, behind) = run(size);
        assert_eq!(same, said, "in pieces of {size}");
        if said.iter().any(|step| step.0 == "connect") {
            assert_eq!(behind, rest, "in pieces of {size}");
        }
    }
    let kinds: Vec<_> = said
        .iter()
        .map(|(kind, bytes, to)| (*kind, bytes.clone(), to.as_ref().map(|(host, _)| matches!(host, Host::Name(_)))))
        .collect();
    seen((kinds, rest.is_empty()))
}

/// A destination has a host and a port that can be dialled, and is the same when said again.
pub(super) fn bastion(input: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(input);
    match bastion::destination(&text) {
        Err(error) => seen(format!("{error:?}")),
        Ok((host, port)) => {
            assert!(port > 0 && !host.is_empty() && host.len() <= 254, "{host:?}");
            assert!(!host.chars().any(|c| c.is_whitespace() || c.is_control() || "@/".contains(c)), "{host:?}");
            let again = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
            assert_eq!(bastion::destination(&again), Ok((host.clone(), port)));
            seen((host.contains(':'), about(host.len())))
        }
    }
}
