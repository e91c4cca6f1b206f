//! What a decoder says, in a form that does not depend on how the bytes were cut.

use adit::proxy::frames::{Decoder, Event, MAX_CONTROL, MAX_HEADER, Opcode, ProtocolError, Role};
use bytes::Bytes;

/// Everything a decoder says about these bytes in these pieces, and how it ends.
pub(crate) fn decode(role: Role, pieces: &[&[u8]]) -> (Vec<Event>, Option<ProtocolError>) {
    let mut decoder = Decoder::new(role);
    let mut events = Vec::new();
    for piece in pieces {
        decoder.push(Bytes::copy_from_slice(piece));
        loop {
            match decoder.next() {
                Err(error) => return (events, Some(error)),
                Ok(None) => break,
                Ok(Some(event)) => events.push(event),
            }
        }
        assert!(decoder.held() <= MAX_HEADER.max(MAX_CONTROL), "{} bytes held", decoder.held());
    }
    (events, None)
}

/// Joins the pieces of each message: what remains does not depend on how the bytes were cut.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Said {
    Close(Option<u16>, String),
    Message { opcode: Opcode, payload: Vec<u8>, whole: bool },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

pub(crate) fn join(events: Vec<Event>) -> Vec<Said> {
    let mut said = Vec::new();
    // Where the message under way is: control frames may stand between its frames.
    let mut open = None;
    for event in events {
        match event {
            Event::Close { code, reason } => said.push(Said::Close(code, reason)),
            Event::Data(data) => {
                assert_eq!(data.first, open.is_none(), "only the first piece of a message says so");
                let at = *open.get_or_insert_with(|| {
                    said.push(Said::Message { opcode: data.opcode, payload: Vec::new(), whole: false });
                    said.len() - 1
                });
                let Said::Message { opcode, payload, whole } = &mut said[at] else { unreachable!() };
                assert_eq!(*opcode, data.opcode);
                payload.extend_from_slice(&data.payload);
                if data.last {
                    *whole = true;
                    open = None;
                }
            }
            Event::Ping(payload) => said.push(Said::Ping(payload.to_vec())),
            Event::Pong(payload) => said.push(Said::Pong(payload.to_vec())),
        }
    }
    said
}
