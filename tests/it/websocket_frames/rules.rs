//! What a peer must not do, and the close code that tells it so.

use adit::proxy::frames::{Opcode, ProtocolError, Role};

use super::{Said, client, decode, join, raw};

#[test]
fn a_clients_unmasked_frame_is_a_protocol_error() {
    let (events, error) = decode(Role::Server, &[&[0x82, 0x01, b'x']]);
    assert_eq!((events, error), (vec![], Some(ProtocolError::Unmasked)));
    assert_eq!(ProtocolError::Unmasked.close_code(), 1002);
}

#[test]
fn a_servers_masked_frame_is_a_protocol_error() {
    let (events, error) = decode(Role::Client, &[&raw(0x82, b"x")]);
    assert_eq!((events, error), (vec![], Some(ProtocolError::Masked)));
}

#[test]
fn each_reserved_bit_is_a_protocol_error() {
    for bit in [0x40, 0x20, 0x10] {
        assert_eq!(decode(Role::Server, &[&raw(0x82 | bit, b"x")]).1, Some(ProtocolError::ReservedBits));
    }
}

#[test]
fn reserved_opcodes_are_protocol_errors() {
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        assert_eq!(decode(Role::Server, &[&raw(0x80 | opcode, b"x")]).1, Some(ProtocolError::Opcode(opcode)));
    }
}

#[test]
fn a_fragmented_control_frame_is_a_protocol_error() {
    for opcode in [0x8, 0x9, 0xa] {
        assert_eq!(decode(Role::Server, &[&raw(opcode, b"")]).1, Some(ProtocolError::ControlFragmented));
    }
}

#[test]
fn a_control_frame_of_125_bytes_is_the_longest() {
    let (events, error) = decode(Role::Server, &[&raw(0x89, &[1; 125])]);
    assert_eq!((join(events), error), (vec![Said::Ping(vec![1; 125])], None));
    assert_eq!(decode(Role::Server, &[&raw(0x89, &[1; 126])]).1, Some(ProtocolError::ControlTooLong));
    // 5 bytes, but in the extended form.
    let long = [0x89, 126, 0, 5, 1, 2, 3, 4, 5];
    assert_eq!(decode(Role::Client, &[&long]).1, Some(ProtocolError::ControlTooLong));
}

#[test]
fn a_continuation_needs_a_message() {
    assert_eq!(decode(Role::Server, &[&raw(0x80, b"x")]).1, Some(ProtocolError::ContinuationUnexpected));
    let after = [raw(0x82, b"whole"), raw(0x80, b"x")].concat();
    assert_eq!(decode(Role::Server, &[&after]).1, Some(ProtocolError::ContinuationUnexpected));
}

#[test]
fn a_message_does_not_begin_inside_another() {
    for first in [0x81, 0x82] {
        let inside = [raw(0x02, b"begun"), raw(first, b"x")].concat();
        assert_eq!(decode(Role::Server, &[&inside]).1, Some(ProtocolError::Interleaved));
    }
}

#[test]
fn a_length_of_two_to_the_63rd_is_a_protocol_error_and_one_less_is_not() {
    let mut header = [0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0, 9];
    assert_eq!(decode(Role::Client, &[&header]), (vec![], Some(ProtocolError::Length)));
    header[2..10].copy_from_slice(&i64::MAX.to_be_bytes());
    let (events, error) = decode(Role::Client, &[&header]);
    assert_eq!(join(events), [Said::Message { opcode: Opcode::Binary, payload: vec![9], whole: false }]);
    assert_eq!(error, None);
}

#[test]
fn a_close_frame_may_be_empty_but_not_half_a_code() {
    assert_eq!(join(decode(Role::Server, &[&raw(0x88, b"")]).0), [Said::Close(None, String::new())]);
    assert_eq!(decode(Role::Server, &[&raw(0x88, &[3])]).1, Some(ProtocolError::CloseTruncated));
}

#[test]
fn close_codes_are_taken_if_they_may_be_sent() {
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999] {
        let (events, error) = decode(Role::Server, &[&client().close(Some(code), "so long")]);
        assert_eq!((join(events), error), (vec![Said::Close(Some(code), "so long".to_owned())], None));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
        let error = decode(Role::Server, &[&raw(0x88, &code.to_be_bytes())]).1;
        assert_eq!(error, Some(ProtocolError::CloseCode(code)));
    }
}

#[test]
fn a_close_reason_that_is_not_utf8_is_answered_with_1007() {
    let error = decode(Role::Server, &[&raw(0x88, &[0x03, 0xe8, 0xff])]).1.unwrap();
    assert_eq!(error, ProtocolError::CloseReason);
    assert_eq!(error.close_code(), 1007);
}
