//! One connection to an edge over either transport, and the streams on it.
//!
//! A stream goes through types: [`Pending`] (announced, nothing read), [`Incoming`] (head understood), then its
//! [`Responder`] is consumed by the answer and leaves a [`stream::Send`]. Knows no rule and no service.

pub mod direct;
mod framed;
pub mod http2;
pub mod pulse;
pub mod quic;
pub mod stream;
pub mod visiting;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::wire::{self, Head};

pub use stream::{Recv, Responder, Send, StreamError};

/// How long a stream may take to say what it wants. The slowest honest edge needs one round trip.
pub const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// The two ways to an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// UDP.
    Quic,
    /// TCP.
    Http2,
}

impl Transport {
    /// The word used in logs, metrics and configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Http2 => "http2",
        }
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why there is no connection, or no longer one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// QUIC could not even start.
    #[error("{0}")]
    Connect(#[from] quinn::ConnectError),
    /// QUIC, dialling or connected.
    #[error("{0}")]
    Quic(#[from] quinn::ConnectionError),
    /// HTTP/2.
    #[error("{0}")]
    Http2(#[from] h2::Error),
    /// A step took too long.
    #[error("no {what} within {limit:?}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
        /// Whether the edge had answered anything: a slow path, not a dead one.
        heard: bool,
    },
    /// Nothing came for a long time on an established connection.
    #[error("nothing was heard for too long")]
    Silent,
    /// The edge closed the connection in good order.
    #[error("the edge closed the connection")]
    Closed,
}

/// An established connection, not registered yet.
#[derive(Debug)]
pub enum Session {
    /// Over QUIC.
    Quic(quic::QuicSession),
    /// Over HTTP/2 with the roles turned round.
    Http2(Box<http2::Http2Session>),
}

impl Session {
    /// Which transport this is.
    pub fn transport(&self) -> Transport {
        match self {
            Self::Quic(_) => Transport::Quic,
            Self::Http2(_) => Transport::Http2,
        }
    }

    /// What registration sends as `originLocalIp` (protocol.md §5.1).
    pub fn origin_local_ip(&self) -> Option<IpAddr> {
        match self {
            Self::Quic(session) => Some(session.remote().ip()),
            Self::Http2(session) => Some(session.local().ip()),
        }
    }

    /// The edge's address.
    pub fn remote(&self) -> SocketAddr {
        match self {
            Self::Quic(session) => session.remote(),
            Self::Http2(session) => session.remote(),
        }
    }

    /// The next stream of the edge. Must be polled all the time: on HTTP/2 it drives the connection.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the connection is over; [`Error::Closed`] if in good order.
    pub async fn accept(&mut self) -> Result<Pending, Error> {
        match self {
            Self::Quic(session) => session.accept().await.map(Pending::Quic),
            Self::Http2(session) => session.accept().await.map(Pending::Http2),
        }
    }

    /// Takes nothing new: GOAWAY, after which [`Session::accept`] ends when every stream has been sent whole. QUIC has
    /// no such thing, and this returns `false`.
    pub fn say_goodbye(&mut self) -> bool {
        match self {
            Self::Quic(_) => false,
            Self::Http2(session) => {
                session.say_goodbye();
                true
            }
        }
    }

    /// Completes when a connection that nobody accepts streams from has ended. HTTP/2 is not driven meanwhile: never.
    pub async fn ended(&self) -> Error {
        match self {
            Self::Quic(session) => session.connection().closed().await.into(),
            Self::Http2(_) => std::future::pending().await,
        }
    }

    /// Feels whether the connection is alive; on HTTP/2 only the first one sends PINGs.
    pub fn pulse(&mut self) -> pulse::Pulse {
        match self {
            Self::Quic(session) => session.pulse(),
            Self::Http2(session) => session.pulse(),
        }
    }

    /// Edge and connector agreed on framed bodies, which only QUIC needs.
    pub fn agree_on_framing(&mut self) {
        if let Self::Quic(session) = self {
            session.agree_on_framing();
        }
    }

    /// Closes the connection, whatever is on it.
    pub async fn close(self) {
        match self {
            Self::Quic(session) => session.close().await,
            Self::Http2(session) => session.close().await,
        }
    }
}

/// A stream that the edge opened, nothing of it read.
#[derive(Debug)]
pub enum Pending {
    /// Its head is still to come.
    Quic(quic::Announced),
    /// Its head came with it.
    Http2(http2::Announced),
}

/// A stream whose purpose is known.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the large variant is the usual one, and is taken apart at once")]
pub enum Incoming {
    /// A visitor's request or TCP stream.
    Visitor {
        /// What is asked.
        head: Head,
        /// Takes the answer.
        responder: Responder,
        /// The visitor's bytes.
        recv: Recv,
    },
    /// A call to the connector (QUIC).
    Rpc {
        /// The edge's half.
        recv: Recv,
        /// Ours.
        send: Send,
    },
    /// A configuration (HTTP/2).
    Configure {
        /// The JSON document.
        recv: Recv,
        /// Takes the answer.
        responder: Responder,
    },
    /// The control stream (HTTP/2; on QUIC the connector opens it).
    Control {
        /// The edge's half.
        recv: Recv,
        /// Ours.
        send: Send,
    },
}

impl Pending {
    /// Completes when everything that will have been sent on the stream has arrived. Over HTTP/2 the goodbye of the
    /// connection waits for that instead.
    pub fn delivered(&self) -> impl Future<Output = ()> + std::marker::Send + 'static {
        let delivered = match self {
            Self::Quic(announced) => Some(announced.delivered()),
            Self::Http2(_) => None,
        };
        async move {
            if let Some(delivered) = delivered {
                delivered.await;
            }
        }
    }

    /// Reads the head, for at most [`HEAD_LIMIT`].
    ///
    /// # Errors
    ///
    /// When the stream makes no sense; it has been answered or reset already, and the reason is for the log.
    pub async fn read(self) -> Result<Incoming, HeadError> {
        match self {
            Self::Quic(announced) => announced.read_head().await,
            Self::Http2(announced) => announced.into_incoming(),
        }
    }
}

/// Why a stream was dropped before anything looked at its content.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// Malformed.
    #[error("{0}")]
    Wire(#[from] wire::Error),
    /// The stream broke.
    #[error("{0}")]
    Stream(#[from] StreamError),
    /// Silence.
    #[error("no complete head within {HEAD_LIMIT:?}")]
    TimedOut,
}
