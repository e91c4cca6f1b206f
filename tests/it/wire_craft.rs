//! Messages as no honest peer writes them.

use adit::wire::{
    connect::{DATA_SIGNATURE, VERSION},
    schema::metadata_capnp::{ConnectionType, connect_request},
};
use bytes::Bytes;

/// A `ConnectRequest` with any type number and any metadata, without signature and version.
pub(crate) fn request(kind: u16, dest: &str, metadata: &[(&str, &str)]) -> Bytes {
    let mut message = capnp::message::Builder::new_default();
    let mut root = message.init_root::<connect_request::Builder<'_>>();
    root.set_dest(dest);
    root.set_type(ConnectionType::Http);
    let mut list = root.init_metadata(metadata.len() as u32);
    for (at, (key, value)) in metadata.iter().enumerate() {
        list.reborrow().get(at as u32).set_key(*key);
        list.reborrow().get(at as u32).set_val(*value);
    }
    let mut bytes = capnp::serialize::write_message_to_words(&message);
    // The segment table of one or more segments, the root pointer, then the number.
    let segments = u32::from_le_bytes(*bytes.first_chunk().unwrap()) as usize + 1;
    let number = (4 + 4 * segments).next_multiple_of(8) + 8;
    bytes[number..number + 2].copy_from_slice(&kind.to_le_bytes());
    bytes.into()
}

/// A message of segments given word by word.
pub(crate) fn segments(segments: &[&[u64]]) -> Bytes {
    let mut bytes = (segments.len() as u32 - 1).to_le_bytes().to_vec();
    for segment in segments {
        bytes.extend((segment.len() as u32).to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(segments.iter().copied().flatten().flat_map(|word| word.to_le_bytes()));
    bytes.into()
}

/// Pointer to a struct `offset` words behind the pointer.
pub(crate) fn to_struct(offset: i32, data: u16, pointers: u16) -> u64 {
    u64::from((offset << 2) as u32) | u64::from(data) << 32 | u64::from(pointers) << 48
}

/// Pointer to a list: of bytes (`size` 2) with that many of them, of structs (`size` 7) with that many words.
pub(crate) fn to_list(offset: i32, size: u8, count: u32) -> u64 {
    u64::from((offset << 2) as u32 | 1) | (u64::from(size) | u64::from(count) << 3) << 32
}

/// Pointer into another segment.
pub(crate) fn far(segment: u32, word: u32) -> u64 {
    u64::from(word << 3 | 2) | u64::from(segment) << 32
}

/// With signature and version in front, as it stands on a stream.
pub(crate) fn on_a_stream(message: &[u8]) -> Vec<u8> {
    [&DATA_SIGNATURE[..], &VERSION, message].concat()
}
