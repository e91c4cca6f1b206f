//! What became of a request that failed on its way to a connector: whether it may be sent again.

use super::session::OpenError;
use crate::transport::StreamError;

/// What a failure says about the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The connector cannot have begun it: any request may be sent again.
    Unsent,
    /// The connection was lost before a byte of the answer came: what may be done twice may be sent again.
    Unanswered,
    /// It was processed, or it cannot be said on this wire: sending it again is wrong or useless.
    Done,
}

impl OpenError {
    /// What became of a request whose stream could not be opened, or whose head was not all taken.
    pub(super) fn fate_of_opening(&self) -> Fate {
        match self {
            Self::Wire(_) | Self::Http(_) => Fate::Done,
            _ => Fate::Unsent,
        }
    }

    /// What became of a request that was sent, and got no answer.
    pub(super) fn fate_of_waiting(&self) -> Fate {
        match self {
            Self::Stream(StreamError::Http2(error)) => fate_in_http2(error),
            Self::Stream(StreamError::QuicRead(quinn::ReadError::ConnectionLost(_))) | Self::Connection(_) => {
                Fate::Unanswered
            }
            _ => Fate::Done,
        }
    }
}

/// GOAWAY below the stream's number, and REFUSED_STREAM, promise that nothing was done (RFC 9113 §8.7).
fn fate_in_http2(error: &h2::Error) -> Fate {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if error.is_remote() && (refused || error.is_go_away()) {
        Fate::Unsent
    } else if error.is_reset() {
        Fate::Done
    } else {
        Fate::Unanswered
    }
}
