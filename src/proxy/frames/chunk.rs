//! The bytes a decoder still has to read, and how pieces of them are handed out.

use std::mem;

use bytes::{Buf, Bytes, BytesMut};

use super::{Role, apply_mask};

/// What is left of the bytes pushed.
#[derive(Debug)]
pub(super) enum Chunk {
    /// Ours alone: pieces are split off and unmasked in place.
    Exclusive(BytesMut),
    Shared(Bytes),
}

impl Default for Chunk {
    fn default() -> Self {
        Self::Shared(Bytes::new())
    }
}

impl Chunk {
    pub(super) fn new(bytes: Bytes, role: Role) -> Self {
        match role {
            // Nothing to unmask, so nothing to write to.
            Role::Client => Self::Shared(bytes),
            Role::Server => bytes.try_into_mut().map_or_else(Self::Shared, Self::Exclusive),
        }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Exclusive(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    pub(super) fn append(&mut self, more: &[u8]) {
        let mut joined = match mem::take(self) {
            Self::Exclusive(bytes) => bytes,
            Self::Shared(bytes) => BytesMut::from(bytes.as_ref()),
        };
        joined.extend_from_slice(more);
        *self = Self::Exclusive(joined);
    }

    pub(super) fn advance(&mut self, count: usize) {
        match self {
            Self::Exclusive(bytes) => bytes.advance(count),
            Self::Shared(bytes) => bytes.advance(count),
        }
        self.release();
    }

    /// Takes `count` bytes off the front, unmasked with the mask at that phase if there is one.
    pub(super) fn take(&mut self, count: usize, mask: Option<([u8; 4], usize)>) -> Bytes {
        let piece = match (&mut *self, mask) {
            (Self::Exclusive(bytes), mask) => {
                // The whole of it needs no second handle, which would cost an allocation.
                let mut piece = if count == bytes.len() { mem::take(bytes) } else { bytes.split_to(count) };
                if let Some((mask, phase)) = mask {
                    apply_mask(mask, phase, &mut piece);
                }
                piece.freeze()
            }
            (Self::Shared(bytes), None) => bytes.split_to(count),
            (Self::Shared(bytes), Some((mask, phase))) => {
                let mut piece = BytesMut::from(&bytes[..count]);
                bytes.advance(count);
                apply_mask(mask, phase, &mut piece);
                piece.freeze()
            }
        };
        self.release();
        piece
    }

    /// An empty view still keeps its buffer alive; drop it.
    fn release(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }
}
