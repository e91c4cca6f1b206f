//! The framing of WebSockets that end in the connector.

mod boundary;
mod peer;
mod rules;
mod said;
mod stream;

use adit::proxy::frames::{Encoder, Opcode, Role};

use said::{Said, decode, join};

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

fn client() -> Encoder {
    Encoder::client(|| MASK)
}

/// A frame with any first byte, masked as a client's.
fn raw(first: u8, payload: &[u8]) -> Vec<u8> {
    let header = client().header(Opcode::Binary, true, payload.len());
    let mut frame = header.to_vec();
    frame[0] = first;
    let at = frame.len();
    frame.extend_from_slice(payload);
    header.mask(0, &mut frame[at..]);
    frame
}

fn message(opcode: Opcode, payload: &[u8]) -> Said {
    Said::Message { opcode, payload: payload.to_vec(), whole: true }
}

#[test]
fn the_examples_of_the_rfc_are_read() {
    // RFC 6455 §5.7.
    let hello = message(Opcode::Text, b"Hello");
    let (events, _) = decode(Role::Client, &[&[0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]]);
    assert_eq!(join(events), [hello]);
    let (events, _) = decode(Role::Server, &[&[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]]);
    assert_eq!(join(events), [message(Opcode::Text, b"Hello")]);
    let (events, _) = decode(Role::Client, &[&[0x01, 0x03, 0x48, 0x65, 0x6c], &[0x80, 0x02, 0x6c, 0x6f]]);
    assert_eq!(join(events), [message(Opcode::Text, b"Hello")]);
    let (events, _) = decode(Role::Server, &[&[0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]]);
    assert_eq!(join(events), [Said::Pong(b"Hello".to_vec())]);
}

#[test]
fn lengths_take_their_shortest_form() {
    let server = Encoder::server();
    for (length, header) in [
        (0, &[0x82, 0][..]),
        (125, &[0x82, 125]),
        (126, &[0x82, 126, 0, 126]),
        (0xffff, &[0x82, 126, 0xff, 0xff]),
        (0x1_0000, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        (usize::MAX, &[0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
    ] {
        assert_eq!(server.header(Opcode::Binary, true, length)[..], *header, "{length}");
        let masked = client().header(Opcode::Binary, true, length);
        assert_eq!(masked[1], header[1] | 0x80);
        assert_eq!(masked[header.len()..], MASK);
    }
    assert_eq!(server.header(Opcode::Continuation, false, 0)[0], 0x00);
    assert_eq!(server.header(Opcode::Text, false, 0)[0], 0x01);
}

#[test]
fn a_length_in_a_longer_form_than_needed_is_taken() {
    let (events, error) = decode(Role::Client, &[&[0x82, 127, 0, 0, 0, 0, 0, 0, 0, 2, b'h', b'i']]);
    assert_eq!((join(events), error), (vec![message(Opcode::Binary, b"hi")], None));
}

#[test]
fn a_close_code_that_may_not_be_sent_is_left_out() {
    for code in [None, Some(1005), Some(1006), Some(1015), Some(0)] {
        assert_eq!(Encoder::server().close(code, "reason")[..], [0x88, 0]);
    }
}

#[test]
fn a_long_close_reason_is_cut_at_a_character() {
    let frame = Encoder::server().close(Some(1001), &format!("a{}", "é".repeat(100)));
    // 123 bytes hold the `a` and 61 characters of two bytes.
    assert_eq!(frame.len(), 2 + 2 + 1 + 61 * 2);
    let said = join(decode(Role::Client, &[&frame]).0);
    assert_eq!(said, [Said::Close(Some(1001), format!("a{}", "é".repeat(61)))]);
}

#[test]
fn a_pong_is_cut_to_what_a_control_frame_holds() {
    assert_eq!(Encoder::server().pong(&[5; 200])[..2], [0x8a, 125]);
    assert_eq!(Encoder::server().pong(&[5; 200]).len(), 127);
    assert_eq!(Encoder::server().ping()[..], [0x89, 0]);
}
