//! Frame headers and control frames to send.

use std::ops::Deref;

use bytes::{Bytes, BytesMut};

use super::{MAX_CONTROL, MAX_HEADER, Opcode, apply_mask, may_be_sent};

/// Writes one direction of a WebSocket: data frames as headers before payloads that stay where they are, control
/// frames whole.
#[derive(Clone, Copy, Debug)]
pub struct Encoder {
    mask: Option<fn() -> [u8; 4]>,
}

impl Encoder {
    /// Frames as a server sends them, unmasked.
    pub fn server() -> Self {
        Self { mask: None }
    }

    /// Frames as a client sends them. `mask` is called once a frame and must not be predictable (RFC 6455 §5.3).
    pub fn client(mask: fn() -> [u8; 4]) -> Self {
        Self { mask: Some(mask) }
    }

    /// The header of a data frame with `length` bytes of payload. A client then masks the payload with
    /// [`Header::mask`] and sends it behind the header, in as many pieces as it likes.
    ///
    /// A length above 2^63-1, which no slice has, is written as 2^63-1.
    pub fn header(&self, opcode: Opcode, fin: bool, length: usize) -> Header {
        let code = match opcode {
            Opcode::Binary => 0x2,
            Opcode::Continuation => 0x0,
            Opcode::Text => 0x1,
        };
        Header::new(code, fin, length, self.mask.map(|next| next()))
    }

    /// A close frame (RFC 6455 §5.5.1). A code that may not be sent, such as 1006, is left out, and the reason with
    /// it. The reason is cut to 123 bytes, at a character.
    pub fn close(&self, code: Option<u16>, reason: &str) -> Bytes {
        let mut payload = [0; MAX_CONTROL];
        let Some(code) = code.filter(|code| may_be_sent(*code)) else {
            return self.control(0x8, &[]);
        };
        let reason = &reason[..reason.floor_char_boundary(MAX_CONTROL - 2)];
        let length = 2 + reason.len();
        payload[..2].copy_from_slice(&code.to_be_bytes());
        payload[2..length].copy_from_slice(reason.as_bytes());
        self.control(0x8, &payload[..length])
    }

    /// An empty ping (RFC 6455 §5.5.2).
    pub fn ping(&self) -> Bytes {
        self.control(0x9, &[])
    }

    /// A pong (RFC 6455 §5.5.3). The payload is the ping's; anything above 125 bytes, which no ping has, is cut.
    pub fn pong(&self, payload: &[u8]) -> Bytes {
        self.control(0xa, payload)
    }

    fn control(&self, code: u8, payload: &[u8]) -> Bytes {
        let payload = &payload[..payload.len().min(MAX_CONTROL)];
        let header = Header::new(code, true, payload.len(), self.mask.map(|next| next()));
        let mut frame = BytesMut::with_capacity(header.len() + payload.len());
        frame.extend_from_slice(&header);
        frame.extend_from_slice(payload);
        header.mask(0, &mut frame[header.len()..]);
        frame.freeze()
    }
}

/// A header ready to be sent: dereferences to its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    bytes: [u8; MAX_HEADER],
    length: usize,
    mask: Option<[u8; 4]>,
}

impl Header {
    /// Masks a piece of the payload that starts `offset` bytes into it; leaves it alone for a server's frame.
    pub fn mask(&self, offset: usize, piece: &mut [u8]) {
        if let Some(mask) = self.mask {
            apply_mask(mask, offset, piece);
        }
    }

    /// RFC 6455 §5.2, the length in its shortest form.
    fn new(code: u8, fin: bool, length: usize, mask: Option<[u8; 4]>) -> Self {
        let mut header = Self { bytes: [0; MAX_HEADER], length: 0, mask };
        let fin = if fin { 0x80 } else { 0 };
        let masked = if mask.is_some() { 0x80 } else { 0 };
        if length <= MAX_CONTROL {
            header.put(&[fin | code, masked | length as u8]);
        } else if let Ok(length) = u16::try_from(length) {
            header.put(&[fin | code, masked | 126]);
            header.put(&length.to_be_bytes());
        } else {
            header.put(&[fin | code, masked | 127]);
            header.put(&(length as u64).min(i64::MAX as u64).to_be_bytes());
        }
        if let Some(mask) = mask {
            header.put(&mask);
        }
        header
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }
}

impl Deref for Header {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}
