//! From the bytes of a WebSocket that ends here to events.

use bytes::Bytes;

use super::chunk::Chunk;
use super::header::{Partial, Raw};
use super::{MAX_CONTROL, Opcode, ProtocolError, Role, apply_mask, may_be_sent};

/// Something the peer said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// The peer says no more (RFC 6455 §5.5.1); what it sends after this is dropped.
    Close {
        /// `None` if the frame had no payload.
        code: Option<u16>,
        /// Never longer than 123 bytes.
        reason: String,
    },
    /// A piece of a message.
    Data(Data),
    /// To be answered with [`Encoder::pong`](super::Encoder::pong) and the same payload (RFC 6455 §5.5.2).
    Ping(Bytes),
    /// RFC 6455 §5.5.3.
    Pong(Bytes),
}

/// A piece of the payload of a message, unmasked. Its size follows the chunks pushed, not the peer's frames.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Data {
    /// Empty only where a message is, or where its last frame is.
    pub payload: Bytes,
    /// What the message began with: [`Opcode::Binary`] or [`Opcode::Text`]. Text is not checked to be UTF-8: to a TCP
    /// stream it is bytes, and a piece may end inside a character.
    pub opcode: Opcode,
    /// The message begins here.
    pub first: bool,
    /// The message ends here.
    pub last: bool,
}

/// Reads one direction of a WebSocket.
///
/// Push a chunk, then ask for events until there is none, then push the next. A chunk that nobody else holds is
/// unmasked where it lies; of a shared one each masked piece is copied as it is handed out.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    chunk: Chunk,
    header: Partial,
    state: State,
    message: Option<Message>,
    control: [u8; MAX_CONTROL],
}

impl Decoder {
    /// `role` is ours, not the peer's.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            chunk: Chunk::default(),
            header: Partial::default(),
            state: State::Header,
            message: None,
            control: [0; MAX_CONTROL],
        }
    }

    /// Hands over the next bytes. If the previous ones were not drained, both are kept, which costs a copy; bytes
    /// after a close frame or an error are dropped.
    pub fn push(&mut self, chunk: Bytes) {
        if matches!(self.state, State::Closed | State::Failed(_)) {
            return;
        }
        if self.chunk.is_empty() {
            self.chunk = Chunk::new(chunk, self.role);
        } else {
            self.chunk.append(&chunk);
        }
    }

    /// The next event, `None` if that takes more bytes. An error is final: every later call returns it again.
    #[expect(clippy::should_implement_trait, reason = "not an iterator: None means push more, and errors are final")]
    pub fn next(&mut self) -> Result<Option<Event>, ProtocolError> {
        loop {
            match self.state {
                State::Closed => return Ok(None),
                State::Control(frame) => return self.control(frame),
                State::Data(frame) => {
                    if let Some(data) = self.data(frame) {
                        return Ok(Some(Event::Data(data)));
                    }
                    if frame.left > 0 {
                        return Ok(None);
                    }
                }
                State::Failed(error) => return Err(error),
                State::Header => {
                    let (taken, header) = self.header.take(self.chunk.as_slice());
                    self.chunk.advance(taken);
                    let Some(header) = header else {
                        return Ok(None);
                    };
                    self.state = self.begin(header).map_err(|error| self.fail(error))?;
                }
            }
        }
    }

    /// Whether the peer's close frame has been handed out.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// How many bytes are held. Drained, that is at most a header, or the payload of a control frame.
    pub fn held(&self) -> usize {
        let control = match self.state {
            State::Control(frame) => frame.filled,
            _ => 0,
        };
        self.chunk.as_slice().len() + self.header.len() + control
    }

    /// Checks a header against the rules and what came before it.
    fn begin(&mut self, header: Raw) -> Result<State, ProtocolError> {
        if header.has_reserved_bits() {
            return Err(ProtocolError::ReservedBits);
        }
        let mask = match (self.role, header.mask) {
            (Role::Client, None) => [0; 4],
            (Role::Client, Some(_)) => return Err(ProtocolError::Masked),
            (Role::Server, None) => return Err(ProtocolError::Unmasked),
            (Role::Server, Some(mask)) => mask,
        };
        if header.is_too_long() {
            return Err(ProtocolError::Length);
        }
        let kind = match header.opcode() {
            0x0 if self.message.is_none() => return Err(ProtocolError::ContinuationUnexpected),
            0x0 => None,
            0x1 | 0x2 if self.message.is_some() => return Err(ProtocolError::Interleaved),
            0x1 => {
                self.message = Some(Message { opcode: Opcode::Text, begun: false });
                None
            }
            0x2 => {
                self.message = Some(Message { opcode: Opcode::Binary, begun: false });
                None
            }
            0x8 => Some(Kind::Close),
            0x9 => Some(Kind::Ping),
            0xa => Some(Kind::Pong),
            reserved => return Err(ProtocolError::Opcode(reserved)),
        };
        let Some(kind) = kind else {
            return Ok(State::Data(DataFrame { fin: header.fin(), left: header.length, mask, phase: 0 }));
        };
        if !header.fin() {
            return Err(ProtocolError::ControlFragmented);
        }
        if header.has_extended_length() {
            return Err(ProtocolError::ControlTooLong);
        }
        // At most 125: the extended forms are gone.
        Ok(State::Control(ControlFrame { kind, length: header.length as usize, filled: 0, mask }))
    }

    /// The next piece of a data frame. `None` if there are no bytes for it, or if nothing needs to be said: an empty
    /// frame that ends no message.
    fn data(&mut self, mut frame: DataFrame) -> Option<Data> {
        let have = self.chunk.as_slice().len();
        let size = usize::try_from(frame.left).map_or(have, |left| left.min(have));
        if size == 0 && frame.left > 0 {
            return None;
        }
        let mask = (self.role == Role::Server).then_some((frame.mask, frame.phase));
        let payload = self.chunk.take(size, mask);
        frame.left -= size as u64;
        frame.phase = (frame.phase + size) % 4;
        let last = frame.fin && frame.left == 0;
        self.state = if frame.left == 0 { State::Header } else { State::Data(frame) };
        if payload.is_empty() && !last {
            return None;
        }
        let message = self.message.as_mut()?;
        let data = Data { payload, opcode: message.opcode, first: !message.begun, last };
        message.begun = true;
        if last {
            self.message = None;
        }
        Some(data)
    }

    /// Gathers a control frame; its event once it is whole.
    fn control(&mut self, mut frame: ControlFrame) -> Result<Option<Event>, ProtocolError> {
        let have = self.chunk.as_slice();
        let size = have.len().min(frame.length - frame.filled);
        let place = &mut self.control[frame.filled..frame.filled + size];
        place.copy_from_slice(&have[..size]);
        if self.role == Role::Server {
            apply_mask(frame.mask, frame.filled, place);
        }
        self.chunk.advance(size);
        frame.filled += size;
        if frame.filled < frame.length {
            self.state = State::Control(frame);
            return Ok(None);
        }
        self.state = State::Header;
        let payload = &self.control[..frame.length];
        match frame.kind {
            Kind::Close => {
                let event = close(payload).map_err(|error| self.fail(error))?;
                self.state = State::Closed;
                self.chunk = Chunk::default();
                Ok(Some(event))
            }
            Kind::Ping => Ok(Some(Event::Ping(Bytes::copy_from_slice(payload)))),
            Kind::Pong => Ok(Some(Event::Pong(Bytes::copy_from_slice(payload)))),
        }
    }

    fn fail(&mut self, error: ProtocolError) -> ProtocolError {
        self.state = State::Failed(error);
        self.chunk = Chunk::default();
        error
    }
}

/// The payload of a close frame (RFC 6455 §5.5.1).
fn close(payload: &[u8]) -> Result<Event, ProtocolError> {
    match payload {
        [] => Ok(Event::Close { code: None, reason: String::new() }),
        [_] => Err(ProtocolError::CloseTruncated),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !may_be_sent(code) {
                return Err(ProtocolError::CloseCode(code));
            }
            let reason = str::from_utf8(reason).map_err(|_| ProtocolError::CloseReason)?;
            Ok(Event::Close { code: Some(code), reason: reason.to_owned() })
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Control(ControlFrame),
    Data(DataFrame),
    Failed(ProtocolError),
    Header,
}

#[derive(Clone, Copy, Debug)]
struct ControlFrame {
    kind: Kind,
    length: usize,
    filled: usize,
    mask: [u8; 4],
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Close,
    Ping,
    Pong,
}

#[derive(Clone, Copy, Debug)]
struct DataFrame {
    fin: bool,
    left: u64,
    mask: [u8; 4],
    /// How far into the mask the next byte is.
    phase: usize,
}

/// A message of which the last frame has not ended.
#[derive(Debug)]
struct Message {
    opcode: Opcode,
    /// A piece of it has been handed out.
    begun: bool,
}
