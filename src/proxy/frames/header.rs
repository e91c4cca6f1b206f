//! Reading of frame headers (RFC 6455 §5.2), a few bytes at a time. It judges nothing but shape.

use super::MAX_HEADER;

/// 2^63-1: the most significant bit of a length is 0.
const MAX_LENGTH: u64 = i64::MAX as u64;

/// One header as it stood on the wire.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Raw {
    first: u8,
    /// The seven bits in the second byte.
    short: u8,
    /// The length, whichever form it had. Longer forms than needed are taken: lengths stay unambiguous, and
    /// cloudflared takes them.
    pub(super) length: u64,
    pub(super) mask: Option<[u8; 4]>,
}

impl Raw {
    pub(super) fn fin(self) -> bool {
        self.first & 0x80 != 0
    }

    pub(super) fn has_reserved_bits(self) -> bool {
        self.first & 0x70 != 0
    }

    pub(super) fn opcode(self) -> u8 {
        self.first & 0x0f
    }

    /// Opcodes with the fourth bit are control frames (§5.5), the reserved ones too.
    pub(super) fn is_control(self) -> bool {
        self.first & 0x08 != 0
    }

    pub(super) fn has_extended_length(self) -> bool {
        self.short > 125
    }

    pub(super) fn is_too_long(self) -> bool {
        self.length > MAX_LENGTH
    }
}

/// The bytes of a header that have come so far.
#[derive(Debug, Default)]
pub(super) struct Partial {
    bytes: [u8; MAX_HEADER],
    filled: usize,
}

impl Partial {
    pub(super) fn len(&self) -> usize {
        self.filled
    }

    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Takes from the front of `input` what the header still needs. Says how many bytes that was, and the header if
    /// it is now complete; the next call then begins the next one.
    pub(super) fn take(&mut self, input: &[u8]) -> (usize, Option<Raw>) {
        let mut taken = 0;
        loop {
            let wanted = self.wanted();
            let step = (wanted - self.filled).min(input.len() - taken);
            self.bytes[self.filled..self.filled + step].copy_from_slice(&input[taken..taken + step]);
            self.filled += step;
            taken += step;
            if self.filled < wanted {
                return (taken, None);
            }
            // The first two bytes say how many follow.
            if self.wanted() == wanted {
                let raw = self.parse();
                self.filled = 0;
                return (taken, Some(raw));
            }
        }
    }

    fn wanted(&self) -> usize {
        if self.filled < 2 {
            return 2;
        }
        let mask = if self.bytes[1] & 0x80 == 0 { 0 } else { 4 };
        2 + self.extended() + mask
    }

    fn extended(&self) -> usize {
        match self.bytes[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        }
    }

    fn parse(&self) -> Raw {
        let [first, second, ..] = self.bytes;
        let short = second & 0x7f;
        let extended = self.extended();
        let length = if extended == 0 {
            u64::from(short)
        } else {
            self.bytes[2..2 + extended].iter().fold(0, |length, byte| length << 8 | u64::from(*byte))
        };
        let at = 2 + extended;
        let mask =
            (second & 0x80 != 0).then(|| [self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]]);
        Raw { first, short, length, mask }
    }
}
