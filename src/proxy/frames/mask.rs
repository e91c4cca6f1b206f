//! The masking of payloads (RFC 6455 §5.3).

/// Masks or unmasks `data`, which starts `offset` bytes into the payload of its frame.
///
/// Eight bytes at a time: a word repeats the four bytes of the mask twice, so its phase is the same for each of them,
/// and the loop has no branch that would keep the compiler from using vector registers.
pub fn apply_mask(mask: [u8; 4], offset: usize, data: &mut [u8]) {
    let mut turned = mask;
    turned.rotate_left(offset % 4);
    let [a, b, c, d] = turned;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = data.as_chunks_mut::<8>();
    for eight in words {
        *eight = (u64::from_ne_bytes(*eight) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(turned.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alignment_and_length_agrees_with_the_formula_of_the_rfc() {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        for offset in 0..9 {
            for length in 0..41 {
                for skew in 0..8 {
                    let plain: Vec<u8> = (0..length + skew).map(|byte| byte as u8).collect();
                    let mut ours = plain.clone();
                    apply_mask(mask, offset, &mut ours[skew..]);
                    for (at, byte) in ours[skew..].iter().enumerate() {
                        assert_eq!(*byte, plain[skew + at] ^ mask[(offset + at) % 4], "{offset} {length} {skew} {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_largest_offset_does_not_overflow() {
        let mut data = [0; 3];
        apply_mask([1, 2, 3, 4], usize::MAX, &mut data);
        assert_eq!(data, [4, 1, 2]);
    }
}
