//! Bodies in frames, between adit and its own edge on QUIC: what gives trailers a place there.
//!
//! A data stream of the tunnel's wire is a message and then bare bytes up to the FIN (protocol.md §3.6), so nothing
//! can follow a body. Two ends that agreed on [`FEATURE`] at registration may put a body into frames instead, request
//! by request: the edge adds [`KEY`] to the metadata of its request, the connector repeats it when its answer is
//! framed. A peer that did not confirm the feature never sees the key, and every byte is as it was.
//!
//! Framed are only bodies that can have trailers: a request's when its length is unknown, an answer's when it has no
//! `Content-Length` or announces trailers. Uploads and downloads of a known length stay bare and pay nothing; for the
//! others a frame is as large as the chunk it carries, four bytes for up to 16 MiB, and payloads are never copied.
//!
//! ```text
//! data   00 | length, 3 bytes, at least 1 | payload
//! end    01 | length, 3 bytes             | trailers, packed as in protocol.md §6.5; then FIN and nothing else
//! ```

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::headers;

/// Feature string offered to edges given by name, and confirmed by our own.
pub const FEATURE: &str = "adit_1";
/// Metadata key. It does not speak of a header, so that peers which do not know it would leave it alone.
pub const KEY: &[u8] = b"AditFraming";
/// The one value of [`KEY`].
pub const VALUE: &[u8] = b"1";

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 4;
/// Largest payload of one frame, in bytes.
pub const MAX_PAYLOAD: usize = (1 << 24) - 1;
/// Largest packed trailers, in bytes: what HTTP/2 takes as a header block.
pub const MAX_TRAILERS: usize = 1 << 20;

const DATA: u8 = 0;
const END: u8 = 1;

/// Frames that nobody should have sent. Costs the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither data nor end.
    #[error("unknown frame type {0}")]
    Type(u8),
    /// A data frame without data; a flood of them would be work for nothing.
    #[error("an empty data frame")]
    Empty,
    /// Trailers above [`MAX_TRAILERS`].
    #[error("trailers of {0} bytes are above the limit")]
    TooLarge(usize),
    /// Trailers that are no packed headers.
    #[error("malformed trailers")]
    Trailers,
    /// Bytes after the end.
    #[error("bytes after the end frame")]
    AfterEnd,
    /// The stream ended without an end frame: half a body must not look whole.
    #[error("the stream ended without an end frame")]
    Cut,
}

fn header(kind: u8, len: usize) -> [u8; HEADER_LEN] {
    let [_, high, middle, low] = (len as u32).to_be_bytes();
    [kind, high, middle, low]
}

/// The header of a data frame; `len` is from 1 to [`MAX_PAYLOAD`].
pub fn data(len: usize) -> Bytes {
    debug_assert!((1..=MAX_PAYLOAD).contains(&len));
    Bytes::copy_from_slice(&header(DATA, len))
}

/// The end frame without trailers.
pub const LAST: Bytes = Bytes::from_static(&[END, 0, 0, 0]);

/// The end frame.
///
/// # Errors
///
/// [`Error::TooLarge`].
pub fn end(trailers: &HeaderMap) -> Result<Bytes, Error> {
    if trailers.is_empty() {
        return Ok(LAST);
    }
    let packed = headers::pack(trailers.iter());
    if packed.len() > MAX_TRAILERS {
        return Err(Error::TooLarge(packed.len()));
    }
    let mut frame = BytesMut::with_capacity(HEADER_LEN + packed.len());
    frame.extend_from_slice(&header(END, packed.len()));
    frame.extend_from_slice(packed.as_bytes());
    Ok(frame.freeze())
}

/// Takes a framed body apart, however it was cut into chunks.
#[derive(Debug)]
pub struct Decoder {
    state: State,
}

#[derive(Debug)]
enum State {
    /// This much of a frame's header is here.
    Header { seen: [u8; HEADER_LEN], len: usize },
    /// So many bytes of a data frame are to come.
    Data(usize),
    /// So many bytes of the trailers are to come; what came is held, at most [`MAX_TRAILERS`].
    Trailers { left: usize, packed: BytesMut },
    /// Nothing may follow.
    Ended(HeaderMap),
}

const NEXT: State = State::Header { seen: [0; HEADER_LEN], len: 0 };

impl Default for Decoder {
    fn default() -> Self {
        Self { state: NEXT }
    }
}

impl Decoder {
    /// The next bytes of the body out of `input`, which is used up; `None` when more input is needed. Never empty, no
    /// copy.
    ///
    /// # Errors
    ///
    /// [`Error`]; the body is of no use then.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, Error> {
        while !input.is_empty() {
            match &mut self.state {
                State::Header { seen, len } => {
                    let n = (HEADER_LEN - *len).min(input.len());
                    seen[*len..*len + n].copy_from_slice(&input[..n]);
                    input.advance(n);
                    *len += n;
                    if *len == HEADER_LEN {
                        self.state = begin(*seen)?;
                    }
                }
                State::Data(left) => {
                    let piece = input.split_to(input.len().min(*left));
                    *left -= piece.len();
                    if *left == 0 {
                        self.state = NEXT;
                    }
                    return Ok(Some(piece));
                }
                State::Trailers { left, packed } => {
                    let piece = input.split_to(input.len().min(*left));
                    packed.extend_from_slice(&piece);
                    *left -= piece.len();
                    if *left == 0 {
                        self.state = State::Ended(headers::unpack(packed).map_err(|_| Error::Trailers)?);
                    }
                }
                State::Ended(_) => return Err(Error::AfterEnd),
            }
        }
        Ok(None)
    }

    /// To be asked when the stream has ended: whether the body has too.
    ///
    /// # Errors
    ///
    /// [`Error::Cut`].
    pub fn ended(&self) -> Result<(), Error> {
        if matches!(self.state, State::Ended(_)) { Ok(()) } else { Err(Error::Cut) }
    }

    /// The trailers, once the body has ended; `None` if there are none or they were taken.
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        match &mut self.state {
            State::Ended(trailers) if !trailers.is_empty() => Some(std::mem::take(trailers)),
            _ => None,
        }
    }
}

fn begin([kind, high, middle, low]: [u8; HEADER_LEN]) -> Result<State, Error> {
    let len = u32::from_be_bytes([0, high, middle, low]) as usize;
    match kind {
        DATA if len == 0 => Err(Error::Empty),
        DATA => Ok(State::Data(len)),
        END if len > MAX_TRAILERS => Err(Error::TooLarge(len)),
        END if len == 0 => Ok(State::Ended(HeaderMap::new())),
        END => Ok(State::Trailers { left: len, packed: BytesMut::new() }),
        other => Err(Error::Type(other)),
    }
}
