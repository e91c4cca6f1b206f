//! WebSocket framing (RFC 6455) that streams payloads.
//!
//! A message may be of any length; neither a message nor a frame is ever held. What is held is one frame header (at
//! most 14 bytes), the payload of one control frame (at most 125) and what is left of the chunk pushed last.
//!
//! * [`Decoder`] turns bytes of a terminated WebSocket into [`Event`]s,
//! * [`Encoder`] writes frame headers and whole control frames,
//! * [`Boundary`] follows a WebSocket that is passed through unchanged and says where a frame may be put in.
//!
//! No sockets, no clock, no knowledge of what the bytes mean.

mod boundary;
mod chunk;
mod decoder;
mod encoder;
mod header;
mod mask;

use thiserror::Error;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

pub use boundary::{Boundary, Offsets};
pub use decoder::{Data, Decoder, Event};
pub use encoder::{Encoder, Header};
pub use mask::apply_mask;

/// What a frame header may need: 2 bytes, 8 of extended length, 4 of mask (RFC 6455 §5.2).
pub const MAX_HEADER: usize = 14;

/// The longest payload of a control frame (RFC 6455 §5.5).
pub const MAX_CONTROL: usize = 125;

/// Which end of the WebSocket we are. It decides who masks (RFC 6455 §5.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// We opened it: what arrives is unmasked.
    Client,
    /// We accepted it: what arrives is masked.
    Server,
}

/// The opcodes of data frames (RFC 6455 §5.6). Control frames have calls of their own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Opcode {
    /// A message of bytes begins.
    Binary,
    /// The message goes on.
    Continuation,
    /// A message of UTF-8 begins. Nothing here checks that it is.
    Text,
}

/// The value of `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455 §4.2.2, item 5.4).
///
/// The key is taken as it stands, whether or not it is base64 of 16 bytes.
pub fn accept_key(key: &[u8]) -> String {
    derive_accept_key(key)
}

/// How a peer broke the framing rules. Each ends the connection, with [`close_code`](Self::close_code).
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ProtocolError {
    /// RFC 6455 §7.4: reserved for local use, or outside every range.
    #[error("close code {0} must not be sent")]
    CloseCode(u16),
    /// RFC 6455 §5.5.1: the reason is UTF-8.
    #[error("the reason of a close frame is not UTF-8")]
    CloseReason,
    /// RFC 6455 §5.5.1: a payload starts with a code of two bytes.
    #[error("a close frame carries half a code")]
    CloseTruncated,
    /// RFC 6455 §5.4: nothing to continue.
    #[error("a continuation frame without a message")]
    ContinuationUnexpected,
    /// RFC 6455 §5.5.
    #[error("a control frame is fragmented")]
    ControlFragmented,
    /// RFC 6455 §5.5.
    #[error("the payload of a control frame is longer than 125 bytes")]
    ControlTooLong,
    /// RFC 6455 §5.4: messages are not interleaved.
    #[error("a message begins inside another one")]
    Interleaved,
    /// RFC 6455 §5.2: the most significant bit is 0.
    #[error("a frame length above 2^63-1")]
    Length,
    /// RFC 6455 §5.1: a server does not mask.
    #[error("a server's frame is masked")]
    Masked,
    /// RFC 6455 §5.2: opcodes 3 to 7 and 11 to 15.
    #[error("opcode {0} is reserved")]
    Opcode(u8),
    /// RFC 6455 §5.2: no extension was negotiated that gives them a meaning.
    #[error("a reserved bit is set")]
    ReservedBits,
    /// RFC 6455 §5.1: a client masks.
    #[error("a client's frame is not masked")]
    Unmasked,
}

impl ProtocolError {
    /// The code of the close frame that answers this (RFC 6455 §7.4.1).
    pub fn close_code(self) -> u16 {
        match self {
            Self::CloseReason => 1007,
            _ => 1002,
        }
    }
}

/// Whether a close frame may carry `code`: RFC 6455 §7.4.1 and §7.4.2, and 1012 to 1014, registered since.
fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}
