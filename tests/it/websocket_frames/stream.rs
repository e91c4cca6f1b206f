//! Payloads pass in pieces: nothing waits for a frame to be whole.

use adit::proxy::frames::{Decoder, Encoder, Event, MAX_CONTROL, MAX_HEADER, Opcode, ProtocolError, Role};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::{MASK, Said, client, decode, join, message, raw};

/// Frames of a client in a lawful order, without a close frame.
fn lawful() -> impl Strategy<Value = Vec<u8>> {
    let message = (any::<bool>(), vec(vec(any::<u8>(), 0..300), 1..4), any::<bool>());
    vec(message, 0..5).prop_map(|messages| {
        let mut bytes = Vec::new();
        for (text, fragments, pinged) in messages {
            let end = fragments.len() - 1;
            for (at, payload) in fragments.iter().enumerate() {
                let opcode = if at > 0 {
                    0
                } else if text {
                    1
                } else {
                    2
                };
                bytes.extend(raw(if at == end { 0x80 | opcode } else { opcode }, payload));
                if pinged {
                    bytes.extend(raw(0x89, &payload[..payload.len().min(125)]));
                }
            }
        }
        bytes
    })
}

/// Cuts bytes at arbitrary places.
fn cut<'a>(bytes: &'a [u8], places: &[Index]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> = places.iter().map(|place| place.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut from = 0;
    ends.into_iter().map(|end| &bytes[std::mem::replace(&mut from, end)..end]).collect()
}

proptest! {
    #[test]
    fn how_the_bytes_are_cut_changes_nothing(bytes in lawful(), places in vec(any::<Index>(), 0..20)) {
        let (whole, error) = decode(Role::Server, &[&bytes]);
        prop_assert_eq!(error, None);
        let whole = join(whole);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&join(decode(Role::Server, &single).0), &whole);
        prop_assert_eq!(&join(decode(Role::Server, &cut(&bytes, &places)).0), &whole);
    }

    #[test]
    fn arbitrary_bytes_are_judged_alike_however_they_are_cut(
        bytes in vec(any::<u8>(), 0..400),
        places in vec(any::<Index>(), 0..20),
        server in any::<bool>(),
    ) {
        let role = if server { Role::Server } else { Role::Client };
        // `decode` checks how much is held.
        let (whole, error) = decode(role, &[&bytes]);
        let (pieces, same) = decode(role, &cut(&bytes, &places));
        prop_assert_eq!(error, same);
        prop_assert_eq!(join(whole), join(pieces));
    }

    #[test]
    fn nearly_lawful_bytes_never_panic(
        bytes in lawful(),
        flips in vec((any::<Index>(), any::<u8>()), 1..4),
        places in vec(any::<Index>(), 0..8),
    ) {
        let mut bytes = bytes;
        for (place, flip) in flips {
            if let Some(last) = bytes.len().checked_sub(1) {
                bytes[place.index(last + 1)] ^= flip;
            }
        }
        let (whole, error) = decode(Role::Server, &[&bytes]);
        let (pieces, same) = decode(Role::Server, &cut(&bytes, &places));
        prop_assert_eq!((error, join(whole)), (same, join(pieces)));
    }

    #[test]
    fn what_we_encode_in_either_role_we_decode_in_the_other(
        payload in vec(any::<u8>(), 0..70_000),
        at in any::<Index>(),
        server in any::<bool>(),
    ) {
        let (encoder, role) = if server { (Encoder::server(), Role::Client) } else { (client(), Role::Server) };
        let header = encoder.header(Opcode::Binary, true, payload.len());
        let mut sent = payload.clone();
        // Masked in two pieces, as a stream would be.
        let at = at.index(payload.len() + 1);
        header.mask(0, &mut sent[..at]);
        header.mask(at, &mut sent[at..]);
        let (events, error) = decode(role, &[&header, &sent[..at], &sent[at..]]);
        prop_assert_eq!((join(events), error), (vec![message(Opcode::Binary, &payload)], None));
    }
}

#[test]
fn masks_are_right_at_every_cut_of_a_payload() {
    let payload: Vec<u8> = (0..40).collect();
    let frame = raw(0x82, &payload);
    for first in 0..=frame.len() {
        for second in first..=frame.len() {
            let pieces = [&frame[..first], &frame[first..second], &frame[second..]];
            let (events, _) = decode(Role::Server, &pieces);
            assert_eq!(join(events), [message(Opcode::Binary, &payload)], "{first} {second}");
        }
    }
}

#[test]
fn a_frame_of_a_gibibyte_leaves_nothing_behind() {
    const PIECE: usize = 64 << 10;
    const TOTAL: usize = 1 << 30;
    let mut decoder = Decoder::new(Role::Server);
    decoder.push(Bytes::copy_from_slice(&client().header(Opcode::Binary, true, TOTAL)));
    assert_eq!(decoder.next(), Ok(None));
    let mut delivered = 0;
    while delivered < TOTAL {
        let chunk = Bytes::from(vec![0; PIECE]);
        let place = chunk.as_ptr();
        decoder.push(chunk);
        let Ok(Some(Event::Data(data))) = decoder.next() else { panic!("a piece is missing") };
        assert_eq!((data.payload.len(), data.payload.as_ptr()), (PIECE, place), "unmasked where it lay");
        assert_eq!((data.payload[0], data.payload[PIECE - 1]), (MASK[0], MASK[3]));
        assert_eq!(data.first, delivered == 0);
        delivered += PIECE;
        assert_eq!(data.last, delivered == TOTAL);
        assert_eq!((decoder.next(), decoder.held()), (Ok(None), 0));
    }
}

#[test]
fn a_chunk_that_nobody_else_holds_is_unmasked_where_it_lies() {
    let frames = [raw(0x82, &[1; 300]), raw(0x82, &[2; 300])].concat();
    let chunk = Bytes::from(frames);
    let range = chunk.as_ptr_range();
    let mut decoder = Decoder::new(Role::Server);
    decoder.push(chunk);
    for value in [1, 2] {
        let Ok(Some(Event::Data(data))) = decoder.next() else { panic!("a piece is missing") };
        assert_eq!(data.payload, vec![value; 300]);
        assert!(range.contains(&data.payload.as_ptr()));
    }
}

#[test]
fn a_shared_chunk_is_not_written_to() {
    let chunk = Bytes::from(raw(0x82, &[1; 300]));
    let before = chunk.to_vec();
    let mut decoder = Decoder::new(Role::Server);
    decoder.push(chunk.clone());
    let Ok(Some(Event::Data(data))) = decoder.next() else { panic!("a piece is missing") };
    assert_eq!(data.payload, vec![1; 300]);
    assert_eq!(chunk, before);
}

#[test]
fn a_drained_chunk_is_let_go() {
    for (first, role) in [(0x82, Role::Server), (0x89, Role::Server), (0x89, Role::Client)] {
        let frame = match role {
            Role::Client => Encoder::server().ping(),
            Role::Server => Bytes::from(raw(first, b"gone")),
        };
        let mut decoder = Decoder::new(role);
        decoder.push(frame.clone());
        assert!(!frame.is_unique());
        assert!(decoder.next().unwrap().is_some());
        assert!(frame.is_unique(), "{first:x} {role:?}");
    }
}

#[test]
fn unmasked_payloads_are_never_copied() {
    let chunk = Bytes::from([&Encoder::server().header(Opcode::Binary, true, 300)[..], &[1; 300]].concat());
    let place = chunk[4..].as_ptr();
    let mut decoder = Decoder::new(Role::Client);
    decoder.push(chunk);
    let Ok(Some(Event::Data(data))) = decoder.next() else { panic!("a piece is missing") };
    assert_eq!(data.payload.as_ptr(), place);
}

#[test]
fn a_piece_is_delivered_before_its_frame_is_whole() {
    let frame = raw(0x82, b"half and half");
    let (events, _) = decode(Role::Server, &[&frame[..frame.len() - 4]]);
    let [Event::Data(data)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&data.payload[..], data.first, data.last), (&b"half and "[..], true, false));
}

#[test]
fn empty_messages_and_empty_last_frames_are_told_and_other_empty_frames_are_not() {
    let bytes = [raw(0x81, b""), raw(0x02, b""), raw(0x00, b"x"), raw(0x00, b""), raw(0x80, b"")].concat();
    let (events, error) = decode(Role::Server, &[&bytes]);
    assert_eq!(error, None);
    let told: Vec<_> = events
        .iter()
        .map(|event| match event {
            Event::Data(data) => (data.payload.len(), data.opcode, data.first, data.last),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        told,
        [(0, Opcode::Text, true, true), (1, Opcode::Binary, true, false), (0, Opcode::Binary, false, true)]
    );
}

#[test]
fn control_frames_pass_between_the_fragments_of_a_message() {
    let bytes = [raw(0x01, b"one "), raw(0x89, b"now"), raw(0x8a, b""), raw(0x80, b"two")].concat();
    let said = join(decode(Role::Server, &[&bytes]).0);
    let expected = [message(Opcode::Text, b"one two"), Said::Ping(b"now".to_vec()), Said::Pong(vec![])];
    assert_eq!(said, expected);
}

#[test]
fn text_that_is_not_utf8_is_delivered_like_bytes() {
    let said = join(decode(Role::Server, &[&raw(0x81, &[0xff, 0xfe])]).0);
    assert_eq!(said, [message(Opcode::Text, &[0xff, 0xfe])]);
}

#[test]
fn what_follows_a_close_frame_is_dropped() {
    let mut decoder = Decoder::new(Role::Server);
    decoder.push(Bytes::from([&client().close(Some(1000), "")[..], &raw(0x82, b"late")].concat()));
    assert!(!decoder.is_closed());
    assert!(matches!(decoder.next(), Ok(Some(Event::Close { code: Some(1000), .. }))));
    assert!(decoder.is_closed());
    decoder.push(Bytes::from_static(&[0; 1000]));
    assert_eq!((decoder.next(), decoder.held()), (Ok(None), 0));
}

#[test]
fn an_error_is_final_and_holds_nothing() {
    let mut decoder = Decoder::new(Role::Server);
    decoder.push(Bytes::from([&[0x82, 0x00][..], &raw(0x82, b"lawful")].concat()));
    for _ in 0..3 {
        assert_eq!((decoder.next(), decoder.held()), (Err(ProtocolError::Unmasked), 0));
        decoder.push(Bytes::from(raw(0x82, b"lawful")));
    }
}

#[test]
fn a_control_frame_cut_short_holds_its_own_payload_and_no_more() {
    let frame = raw(0x89, &[1; 125]);
    let mut decoder = Decoder::new(Role::Server);
    for byte in &frame[..frame.len() - 1] {
        decoder.push(Bytes::copy_from_slice(&[*byte]));
        assert_eq!(decoder.next(), Ok(None));
    }
    assert_eq!(decoder.held(), MAX_CONTROL - 1);
    let mut decoder = Decoder::new(Role::Server);
    decoder.push(Bytes::copy_from_slice(&client().header(Opcode::Text, true, 1 << 20)[..MAX_HEADER - 1]));
    assert_eq!((decoder.next(), decoder.held()), (Ok(None), MAX_HEADER - 1));
}

#[test]
fn chunks_pushed_without_draining_are_read_in_order() {
    let frame = raw(0x82, b"in three pieces");
    let mut decoder = Decoder::new(Role::Server);
    for piece in [&frame[..3], &frame[3..9], &frame[9..]] {
        decoder.push(Bytes::copy_from_slice(piece));
    }
    let Ok(Some(Event::Data(data))) = decoder.next() else { panic!("a piece is missing") };
    assert_eq!((&data.payload[..], data.last), (&b"in three pieces"[..], true));
}
