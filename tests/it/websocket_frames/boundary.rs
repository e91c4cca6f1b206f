//! Putting a frame into a WebSocket that is passed through.

use adit::proxy::frames::{Boundary, Encoder, Offsets, Opcode, Role};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Said, client, decode, join, message, raw};

/// Frames with the places behind each, and whether that is between two messages.
#[derive(Clone, Debug)]
struct Stream {
    bytes: Vec<u8>,
    ends: Vec<(usize, bool)>,
}

fn stream() -> impl Strategy<Value = Stream> {
    let frame = (vec(any::<u8>(), 0..200), any::<bool>(), any::<bool>());
    (vec(frame, 1..10), any::<bool>()).prop_map(|(frames, masked)| {
        let encoder = if masked { client() } else { Encoder::server() };
        let mut stream = Stream { bytes: Vec::new(), ends: Vec::new() };
        let mut in_message = false;
        for (payload, fin, control) in frames {
            if control {
                stream.bytes.extend_from_slice(&encoder.pong(&payload));
            } else {
                let opcode = if in_message { Opcode::Continuation } else { Opcode::Binary };
                stream.bytes.extend_from_slice(&encoder.header(opcode, fin, payload.len()));
                stream.bytes.extend_from_slice(&payload);
                in_message = !fin;
            }
            stream.ends.push((stream.bytes.len(), !in_message));
        }
        stream
    })
}

proptest! {
    #[test]
    fn boundaries_stand_where_frames_and_messages_end(stream in stream(), size in 1..300_usize) {
        let mut boundary = Boundary::new();
        let mut from = 0;
        for chunk in stream.bytes.chunks(size) {
            let to = from + chunk.len();
            let inside = || stream.ends.iter().filter(|(end, _)| (from + 1..=to).contains(end));
            let expected = Offsets {
                frame: inside().next().map(|(end, _)| end - from),
                message: inside().find(|(_, message)| *message).map(|(end, _)| end - from),
            };
            prop_assert_eq!(boundary.advance(chunk), expected);
            prop_assert_eq!(boundary.at_frame_boundary(), stream.ends.iter().any(|(end, _)| *end == to));
            prop_assert_eq!(boundary.at_boundary(), stream.ends.contains(&(to, true)));
            from = to;
        }
    }

    #[test]
    fn arbitrary_bytes_never_confuse_the_offsets(chunks in vec(vec(any::<u8>(), 0..100), 0..10)) {
        let mut boundary = Boundary::new();
        for chunk in chunks {
            let before = boundary.is_closed() || boundary.is_lost();
            let Offsets { frame, message } = boundary.advance(&chunk);
            prop_assert!(!before || (frame, message) == (None, None));
            for offset in [frame, message].into_iter().flatten() {
                prop_assert!((1..=chunk.len()).contains(&offset));
            }
            prop_assert!(message.is_none() || frame <= message);
        }
    }
}

#[test]
fn a_close_frame_put_in_at_the_boundary_is_read_after_the_current_message() {
    let sent = [raw(0x02, b"one "), raw(0x89, b""), raw(0x80, b"two"), raw(0x82, b"never seen")].concat();
    let mut boundary = Boundary::new();
    // The drain begins three bytes into the first frame.
    boundary.advance(&sent[..3]);
    assert!(!boundary.at_boundary());
    let at = 3 + boundary.advance(&sent[3..]).message.unwrap();
    let injected = [&sent[..at], &client().close(Some(1001), "")].concat();
    let said = join(decode(Role::Server, &[&injected]).0);
    let expected = [message(Opcode::Binary, b"one two"), Said::Ping(vec![]), Said::Close(Some(1001), String::new())];
    assert_eq!(said, expected);
}

#[test]
fn a_control_frame_may_stand_inside_a_fragmented_message_but_a_close_1001_waits() {
    let first = raw(0x02, b"first");
    let mut boundary = Boundary::new();
    assert_eq!(boundary.advance(&first), Offsets { frame: Some(first.len()), message: None });
    assert!(boundary.at_frame_boundary());
    assert!(!boundary.at_boundary());
}

#[test]
fn an_idle_websocket_is_at_a_boundary() {
    let mut boundary = Boundary::new();
    assert!(boundary.at_boundary());
    assert_eq!(boundary.advance(&[]), Offsets::default());
    assert!(boundary.at_boundary());
    boundary.advance(&[0x82]);
    assert!(!boundary.at_boundary());
    assert!(!boundary.at_frame_boundary());
}

#[test]
fn behind_a_close_frame_there_is_no_boundary() {
    let sent = [&raw(0x82, b"last")[..], &client().close(Some(1000), "")].concat();
    let mut boundary = Boundary::new();
    let end = sent.len() - 8;
    assert_eq!(boundary.advance(&sent), Offsets { frame: Some(end), message: Some(end) });
    assert!(boundary.is_closed());
    assert!(!boundary.at_boundary());
    assert_eq!(boundary.advance(&raw(0x82, b"")), Offsets::default());
}

#[test]
fn compressed_messages_and_unknown_opcodes_are_followed() {
    let sent = [raw(0xc1, b"deflated"), raw(0x83, b"?"), raw(0x8f, b"!")];
    let mut boundary = Boundary::new();
    for frame in sent {
        assert_eq!(boundary.advance(&frame).message, Some(frame.len()));
    }
}

#[test]
fn an_impossible_length_loses_the_track_and_says_so() {
    let mut boundary = Boundary::new();
    assert_eq!(boundary.advance(&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2]), Offsets::default());
    assert!(boundary.is_lost());
    assert!(!boundary.at_boundary());
    assert!(!boundary.at_frame_boundary());
    assert_eq!(boundary.advance(&raw(0x82, b"x")), Offsets::default());
}

#[test]
fn the_longest_frame_is_counted_down_not_held() {
    let mut boundary = Boundary::new();
    boundary.advance(&Encoder::server().header(Opcode::Binary, true, (1 << 30) + 5));
    let piece = vec![0; 1 << 20];
    for _ in 0..1 << 10 {
        assert_eq!(boundary.advance(&piece), Offsets::default());
    }
    assert_eq!(boundary.advance(&piece[..6]).message, Some(5));
}
