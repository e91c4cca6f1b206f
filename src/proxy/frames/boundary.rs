//! Where a frame may be put into a WebSocket that is passed through.

use super::{
    MAX_CONTROL, Role,
    header::{Partial, Raw},
};

const CLOSE: u8 = 0x8;

/// Follows one direction of a WebSocket whose bytes are passed on unchanged, masked or not, whatever extensions its
/// ends agreed on. It reads headers and counts payloads, holds at most 14 bytes and alters nothing.
#[derive(Debug, Default)]
pub struct Boundary {
    header: Partial,
    frame: Option<Frame>,
    /// The last data frame was not its message's last (RFC 6455 §5.4).
    in_message: bool,
    /// Whether every frame must be masked or none; `None` takes either.
    masked: Option<bool>,
    end: Option<End>,
}

/// Offsets into the chunk given to [`Boundary::advance`], each behind at least one byte of it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offsets {
    /// The first place between two frames: a control frame may stand there, even inside a fragmented message (RFC 6455
    /// §5.4).
    pub frame: Option<usize>,
    /// The first place between two messages.
    pub message: Option<usize>,
}

impl Boundary {
    /// A direction of which nothing has been seen yet: the first byte behind the handshake comes next.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Boundary::new`], for bytes that arrive at an end of this role: a frame that is masked when it must not be,
    /// or the reverse (RFC 6455 §5.1), is no WebSocket's.
    pub fn arriving_at(role: Role) -> Self {
        Self { masked: Some(role == Role::Server), ..Self::default() }
    }

    /// Counts the bytes that are passed on next, and says where in them the first boundaries stand. For one before the
    /// first byte ask [`at_boundary`](Self::at_boundary) first.
    pub fn advance(&mut self, chunk: &[u8]) -> Offsets {
        let mut offsets = Offsets::default();
        let mut at = 0;
        while at < chunk.len() && self.end.is_none() {
            if let Some(frame) = &mut self.frame {
                let have = chunk.len() - at;
                let step = usize::try_from(frame.left).map_or(have, |left| left.min(have));
                frame.left -= step as u64;
                at += step;
            } else {
                let (taken, header) = self.header.take(&chunk[at..]);
                at += taken;
                self.begin(header);
            }
            if let Some(frame) = self.frame.take_if(|frame| frame.left == 0) {
                self.finish(&frame, at, &mut offsets);
            }
        }
        offsets
    }

    /// Whether a message may begin here: no frame and no fragmented message is under way. Never after a close frame,
    /// behind which nothing may be sent (RFC 6455 §5.5.1).
    pub fn at_boundary(&self) -> bool {
        self.at_frame_boundary() && !self.in_message
    }

    /// Whether a control frame may stand here; a fragmented message may be under way.
    pub fn at_frame_boundary(&self) -> bool {
        self.frame.is_none() && self.header.is_empty() && self.end.is_none()
    }

    /// Whether a whole close frame has passed.
    pub fn is_closed(&self) -> bool {
        self.end == Some(End::Closed)
    }

    /// Whether the bytes were no WebSocket's: a length above 2^63-1, a control frame that is fragmented or longer than
    /// 125 bytes, or the wrong masking. No boundary is known from there on.
    pub fn is_lost(&self) -> bool {
        self.end == Some(End::Lost)
    }

    fn begin(&mut self, header: Option<Raw>) {
        let Some(header) = header else { return };
        let misshapen = header.is_control() && (!header.fin() || header.length > MAX_CONTROL as u64);
        let misplaced = self.masked.is_some_and(|masked| masked != header.mask.is_some());
        if header.is_too_long() || misshapen || misplaced {
            self.end = Some(End::Lost);
            return;
        }
        self.frame = Some(Frame {
            left: header.length,
            close: header.opcode() == CLOSE,
            message: (!header.is_control()).then_some(header.fin()),
        });
    }

    fn finish(&mut self, frame: &Frame, at: usize, offsets: &mut Offsets) {
        if frame.close {
            self.end = Some(End::Closed);
            return;
        }
        if let Some(fin) = frame.message {
            self.in_message = !fin;
        }
        offsets.frame.get_or_insert(at);
        if !self.in_message {
            offsets.message.get_or_insert(at);
        }
    }
}

#[derive(Debug)]
struct Frame {
    left: u64,
    close: bool,
    /// `None` for a control frame, else whether it is its message's last.
    message: Option<bool>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Closed,
    Lost,
}
