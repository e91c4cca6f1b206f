//! Variations on inputs. Blind to the code, so it knows what bytes of these kinds are made of.

use std::ops::Range;

/// SplitMix64: small, and the same everywhere for one seed.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is at least 1.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// A piece of something this long, short ones more often.
    fn piece(&mut self, len: usize) -> Range<usize> {
        let from = self.below(len + 1);
        let most = (len - from).min(1 << self.below(9));
        from..from + self.below(most + 1)
    }
}

/// Numbers on the edges of their types, and those that bound something here.
const NUMBERS: [u64; 22] = [
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    125,
    126,
    127,
    128,
    255,
    256,
    512,
    8_191,
    8_192,
    32_768,
    65_535,
    1 << 22,
    1 << 29,
    1 << 31,
    u64::MAX,
];
const DECIMALS: [&str; 12] =
    ["0", "-1", "1", "99", "100", "999", "65535", "65536", "2147483648", "9223372036854775808", "1e309", "0x10"];
/// Signs that come in pairs or separate something.
const SIGNS: &[u8] = b"\0\r\n\t \"'#%&*,-./:;=?@[\\]_`{|}~\x7f\x80\xc3\xff";
/// Deeper than any limit on depth.
const DEPTH: usize = 3_000;
pub(super) const MOST_BYTES: usize = 64 << 10;

pub(super) struct Mutator {
    pub(super) rng: Rng,
    pub(super) words: &'static [&'static [u8]],
}

impl Mutator {
    /// One to eight changes to one of `kept`, later ones preferred: they led somewhere new.
    pub(super) fn next(&mut self, kept: &[Vec<u8>]) -> Vec<u8> {
        let (a, b) = (self.rng.below(kept.len()), self.rng.below(kept.len()));
        let mut bytes = kept[a.max(b)].clone();
        for _ in 0..1 + self.rng.below(8) {
            self.change(&mut bytes, kept);
            bytes.truncate(MOST_BYTES);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, kept: &[Vec<u8>]) {
        let len = bytes.len();
        let rng = &mut self.rng;
        match rng.below(18) {
            0 if len > 0 => bytes[rng.below(len)] ^= 1 << rng.below(8),
            1 if len > 0 => bytes[rng.below(len)] = rng.next() as u8,
            2 if len > 0 => bytes[rng.below(len)] = *rng.pick(SIGNS),
            3 => bytes.insert(rng.below(len + 1), *rng.pick(SIGNS)),
            4 => drop(bytes.drain(rng.piece(len))),
            5 => {
                let piece = bytes[rng.piece(len)].to_vec();
                splice(bytes, rng.below(len + 1), &piece);
            }
            6 => {
                let piece = bytes[rng.piece(len)].to_vec();
                let times = 1 << rng.below(12);
                let piece = piece.repeat(times.min(MOST_BYTES / piece.len().max(1)));
                splice(bytes, rng.below(len + 1), &piece);
            }
            7 | 8 if !self.words.is_empty() => {
                let at = rng.below(self.words.len());
                splice(bytes, rng.below(len + 1), self.words[at]);
            }
            9 if !self.words.is_empty() => {
                let word = *rng.pick(self.words);
                let at = rng.piece(len);
                bytes.splice(at, word.iter().copied());
            }
            10 => bytes.truncate(rng.below(len + 1)),
            11 => {
                let other = rng.pick(kept);
                let tail = &other[rng.below(other.len() + 1)..];
                bytes.truncate(rng.below(len + 1));
                bytes.extend_from_slice(tail);
            }
            12 => {
                let other = rng.pick(kept);
                let piece = &other[rng.piece(other.len())];
                splice(bytes, rng.below(len + 1), piece);
            }
            13 => self.number(bytes),
            14 => self.decimal(bytes),
            15 => self.word(bytes),
            16 if rng.below(8) == 0 => {
                let sign = *rng.pick(SIGNS);
                splice(bytes, rng.below(len + 1), &vec![sign; 1 + rng.below(DEPTH)]);
            }
            17 if len > 0 => {
                let at = rng.below(len);
                bytes[at] = if bytes[at].is_ascii_lowercase() {
                    bytes[at].to_ascii_uppercase()
                } else {
                    bytes[at].to_ascii_lowercase()
                };
            }
            _ => bytes.push(rng.next() as u8),
        }
    }

    /// A binary number on the edge of something, in any width and order, over what is there.
    fn number(&mut self, bytes: &mut [u8]) {
        let number = self.rng.pick(&NUMBERS).wrapping_add(self.rng.next() % 3).wrapping_sub(1);
        let width = 1 << self.rng.below(4);
        if bytes.len() < width {
            return;
        }
        let at = self.rng.below(bytes.len() - width + 1);
        let little = number.to_le_bytes();
        let mut number = little[..width].to_vec();
        if self.rng.below(2) == 0 {
            number.reverse();
        }
        bytes[at..at + width].copy_from_slice(&number);
    }

    /// Another decimal number where one stands.
    fn decimal(&mut self, bytes: &mut Vec<u8>) {
        let from = self.rng.below(bytes.len() + 1);
        let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit) else { return };
        let start = from + start;
        let end = bytes[start..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |n| start + n);
        bytes.splice(start..end, self.rng.pick(&DECIMALS).bytes());
    }

    /// A Cap'n Proto word: moved, or replaced by a pointer to somewhere near.
    fn word(&mut self, bytes: &mut [u8]) {
        let words = bytes.len() / 8;
        if words < 2 {
            return;
        }
        let (a, b) = (self.rng.below(words) * 8, self.rng.below(words) * 8);
        let near = self.rng.below(2 * words) as i64 - words as i64;
        let offset = ((near << 2) as u32) as u64;
        let count = *self.rng.pick(&NUMBERS) & 0x1fff_ffff;
        let word: u64 = match self.rng.below(4) {
            0 => return bytes.copy_within(a..a + 8, b),
            // A struct, a list, a far pointer of one or two words.
            1 => offset | (count & 0xff) << 32 | (self.rng.next() & 0xff) << 48,
            2 => offset | 1 | (self.rng.next() & 7 | count << 3) << 32,
            _ => 2 | (self.rng.next() & 1) << 2 | (self.rng.below(words) as u64) << 3 | (self.rng.next() & 3) << 32,
        };
        bytes[a..a + 8].copy_from_slice(&word.to_le_bytes());
    }
}

fn splice(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    bytes.splice(at..at, piece.iter().copied());
}
