//! Against tungstenite, which shares no code with us but the accept key.

use std::io::{self, Cursor, Read, Write};

use adit::proxy::frames::{Decoder, Encoder, Event, Opcode, Role};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame, FrameHeader};
use tokio_tungstenite::tungstenite::protocol::{self, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, WebSocket};

use super::{MASK, Said, client, decode, join, message};

/// A connection with everything to read already there and everything written kept.
struct Pipe {
    input: Cursor<Vec<u8>>,
    output: Vec<u8>,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn peer(role: protocol::Role, input: Vec<u8>) -> WebSocket<Pipe> {
    let pipe = Pipe { input: Cursor::new(input), output: Vec::new() };
    WebSocket::from_raw_socket(pipe, role, Some(WebSocketConfig::default().max_frame_size(None)))
}

/// One frame of ours, masked if the encoder is a client's.
fn frame(encoder: &Encoder, opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
    let header = encoder.header(opcode, fin, payload.len());
    let mut bytes = [&header, payload].concat();
    header.mask(0, &mut bytes[header.len()..]);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn messages_of_tungstenite_are_understood(
        payloads in vec(vec(any::<u8>(), 0..70_000), 1..4),
        server in any::<bool>(),
        size in 1..5_000_usize,
    ) {
        let (theirs, ours) =
            if server { (protocol::Role::Client, Role::Server) } else { (protocol::Role::Server, Role::Client) };
        let mut peer = peer(theirs, vec![]);
        for payload in &payloads {
            peer.send(Message::Binary(payload.clone().into())).unwrap();
        }
        let pieces: Vec<&[u8]> = peer.get_ref().output.chunks(size).collect();
        let (events, error) = decode(ours, &pieces);
        let expected: Vec<Said> = payloads.iter().map(|payload| message(Opcode::Binary, payload)).collect();
        prop_assert_eq!((join(events), error), (expected, None));
    }

    #[test]
    fn tungstenite_understands_our_frames(
        fragments in vec(vec(any::<u8>(), 0..70_000), 1..4),
        server in any::<bool>(),
    ) {
        let (theirs, encoder) =
            if server { (protocol::Role::Client, Encoder::server()) } else { (protocol::Role::Server, client()) };
        let end = fragments.len() - 1;
        let mut sent = Vec::new();
        for (at, payload) in fragments.iter().enumerate() {
            let opcode = if at == 0 { Opcode::Binary } else { Opcode::Continuation };
            sent.extend(frame(&encoder, opcode, at == end, payload));
            sent.extend_from_slice(&encoder.ping());
        }
        let mut peer = peer(theirs, sent);
        // Pings between the fragments come first; the last one is still unread.
        let got = loop {
            match peer.read().unwrap() {
                Message::Ping(payload) => prop_assert!(payload.is_empty()),
                other => break other,
            }
        };
        prop_assert_eq!(got, Message::Binary(fragments.concat().into()));
    }

    #[test]
    fn single_frames_of_tungstenite_are_read_as_they_are(
        code in 0..3_usize,
        fin in any::<bool>(),
        mask in any::<[u8; 4]>(),
        payload in vec(any::<u8>(), 0..1_000),
    ) {
        let (opcode, ours) = [(Data::Binary, Opcode::Binary), (Data::Text, Opcode::Text), (Data::Binary, Opcode::Binary)][code];
        let header =
            FrameHeader { is_final: fin, opcode: OpCode::Data(opcode), mask: Some(mask), ..FrameHeader::default() };
        let mut bytes = Vec::new();
        Frame::from_payload(header, payload.clone().into()).format(&mut bytes).unwrap();
        let mut decoder = Decoder::new(Role::Server);
        decoder.push(Bytes::from(bytes));
        match decoder.next() {
            Ok(Some(Event::Data(data))) => {
                prop_assert_eq!((&data.payload[..], data.opcode, data.first, data.last), (&payload[..], ours, true, fin));
            }
            other => prop_assert!(payload.is_empty() && !fin, "{:?}", other),
        }
    }

    #[test]
    fn our_headers_are_the_bytes_that_tungstenite_writes(
        length in prop_oneof![0..70_000_usize, any::<u32>().prop_map(|length| length as usize)],
        fin in any::<bool>(),
        masked in any::<bool>(),
    ) {
        let header = FrameHeader {
            is_final: fin,
            opcode: OpCode::Data(Data::Text),
            mask: masked.then_some(MASK),
            ..FrameHeader::default()
        };
        let mut theirs = Vec::new();
        header.format(length as u64, &mut theirs).unwrap();
        let encoder = if masked { client() } else { Encoder::server() };
        prop_assert_eq!(&encoder.header(Opcode::Text, fin, length)[..], &theirs[..]);
    }
}

#[test]
fn tungstenite_takes_our_ping_and_we_take_its_pong() {
    let mut peer = peer(protocol::Role::Client, Encoder::server().ping().to_vec());
    assert_eq!(peer.read().unwrap(), Message::Ping(Bytes::new()));
    peer.flush().unwrap();
    assert_eq!(join(decode(Role::Server, &[&peer.get_ref().output]).0), [Said::Pong(vec![])]);
}

#[test]
fn tungstenites_ping_is_answered_to_its_liking() {
    let mut bytes = Vec::new();
    Frame::ping(&b"are you there"[..]).format(&mut bytes).unwrap();
    let said = join(decode(Role::Client, &[&bytes]).0);
    let [Said::Ping(payload)] = &said[..] else { panic!("{said:?}") };
    let mut peer = peer(protocol::Role::Server, client().pong(payload).to_vec());
    assert_eq!(peer.read().unwrap(), Message::Pong(Bytes::from_static(b"are you there")));
}

#[test]
fn tungstenite_reads_our_close_frame_and_answers_with_its_code() {
    let mut peer = peer(protocol::Role::Client, Encoder::server().close(Some(1001), "draining").to_vec());
    let expected = CloseFrame { code: 1001.into(), reason: "draining".into() };
    assert_eq!(peer.read().unwrap(), Message::Close(Some(expected)));
    peer.flush().unwrap();
    let said = join(decode(Role::Server, &[&peer.get_ref().output]).0);
    assert!(matches!(&said[..], [Said::Close(Some(1001), _)]), "{said:?}");
}

#[test]
fn tungstenites_empty_close_frame_has_no_code() {
    let mut bytes = Vec::new();
    let frame = Frame::close(None);
    assert_eq!(frame.header().opcode, OpCode::Control(Control::Close));
    frame.format(&mut bytes).unwrap();
    assert_eq!(join(decode(Role::Client, &[&bytes]).0), [Said::Close(None, String::new())]);
}
