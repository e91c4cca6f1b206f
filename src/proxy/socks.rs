//! The server's side of SOCKS5 (RFC 1928), up to the point where bytes are copied.
//!
//! No authentication, CONNECT only. It neither resolves names nor dials nor judges destinations: whoever does so
//! answers with a [`Reply`].

use std::fmt;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{Buf, Bytes};

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const ADDRESS_V4: u8 = 1;
const ADDRESS_NAME: u8 = 3;
const ADDRESS_V6: u8 = 4;

/// The longest message of a client: a request with a name of 255 bytes (RFC 1928 §4).
const MAX_MESSAGE: usize = 4 + 1 + 255 + 2;

/// The negotiation of one connection: a greeting, its answer, a request.
///
/// Call [`push`](Self::push) until it says [`Step::Connect`] or [`Step::Refuse`]. It takes from the front of the input
/// no more than the message it waits for, so what is held is never more than 262 bytes, whatever a client sends ahead.
#[derive(Debug)]
pub struct Handshake {
    stage: Stage,
    message: [u8; MAX_MESSAGE],
    filled: usize,
}

/// What to do next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Dial this, answer with [`Reply::encode`] and, if that was [`Reply::Succeeded`], copy.
    Connect {
        /// Where to; a name is not resolved yet.
        host: Host,
        /// Never checked: 0 is a port here.
        port: u16,
        /// What the client sent ahead, for the destination.
        rest: Bytes,
    },
    /// The input is used up: push more of it.
    NeedMore,
    /// Send this, which may be nothing, and close.
    Refuse(Bytes),
    /// Send this, then push again, even if the input is empty.
    Send(Bytes),
}

/// A destination (RFC 1928 §5). A name that is an address in writing is an address here, so rules on addresses see it
/// as one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Host {
    /// IPv4 or IPv6.
    Address(IpAddr),
    /// 1 to 255 printable ASCII characters; not otherwise checked to be a host name.
    Name(String),
}

/// The reply field of the answer to a request (RFC 1928 §6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Reply {
    /// The destination answers.
    Succeeded = 0,
    /// Anything without a code of its own.
    GeneralFailure = 1,
    /// A rule forbids it.
    NotAllowed = 2,
    /// No route.
    NetworkUnreachable = 3,
    /// Nobody at that address, or nobody who answers in time.
    HostUnreachable = 4,
    /// Nobody at that port.
    ConnectionRefused = 5,
    /// BIND and UDP ASSOCIATE.
    CommandNotSupported = 7,
    /// Neither IPv4 nor IPv6 nor a name.
    AddressTypeNotSupported = 8,
}

impl Handshake {
    /// Waits for the greeting.
    pub fn new() -> Self {
        Self { stage: Stage::Greeting, message: [0; MAX_MESSAGE], filled: 0 }
    }

    /// Takes from `input` what the next message needs. After [`Step::Connect`] and [`Step::Refuse`] there is no next
    /// step; another call takes nothing and refuses.
    pub fn push(&mut self, input: &mut Bytes) -> Step {
        loop {
            let progress = match self.stage {
                Stage::Done => return Step::Refuse(Bytes::new()),
                Stage::Greeting => self.greeting(),
                Stage::Request => self.request(),
            };
            match progress {
                Progress::Needs(length) => {
                    let step = (length - self.filled).min(input.len());
                    if step == 0 {
                        return Step::NeedMore;
                    }
                    self.message[self.filled..self.filled + step].copy_from_slice(&input[..step]);
                    self.filled += step;
                    input.advance(step);
                }
                Progress::Greeted => {
                    self.stage = Stage::Request;
                    self.filled = 0;
                    return Step::Send(Bytes::from_static(&[VERSION, NO_AUTHENTICATION]));
                }
                Progress::Refused(answer) => {
                    self.stage = Stage::Done;
                    self.filled = 0;
                    return Step::Refuse(answer);
                }
                Progress::Requested { host, port } => {
                    self.stage = Stage::Done;
                    self.filled = 0;
                    return Step::Connect { host, port, rest: mem::take(input) };
                }
            }
        }
    }

    /// How many bytes of an unfinished message are held.
    pub fn held(&self) -> usize {
        self.filled
    }

    /// RFC 1928 §3: version, number of methods, methods.
    fn greeting(&self) -> Progress {
        match &self.message[..self.filled] {
            [] => Progress::Needs(1),
            // Not SOCKS5, so no answer of SOCKS5 would be understood.
            [version, ..] if *version != VERSION => Progress::Refused(Bytes::new()),
            [_] => Progress::Needs(2),
            [_, count, methods @ ..] if methods.len() < usize::from(*count) => Progress::Needs(2 + usize::from(*count)),
            [_, _, methods @ ..] if methods.contains(&NO_AUTHENTICATION) => Progress::Greeted,
            _ => Progress::Refused(Bytes::from_static(&[VERSION, NO_ACCEPTABLE_METHOD])),
        }
    }

    /// RFC 1928 §4 and §5: version, command, reserved, address type, address, port.
    fn request(&self) -> Progress {
        let message = &self.message[..self.filled];
        let (command, kind, after) = match message {
            [version, ..] if *version != VERSION => {
                return Progress::refused(Reply::GeneralFailure);
            }
            [_, command, _, kind, after @ ..] => (*command, *kind, after),
            _ => return Progress::Needs(4),
        };
        let length = match (kind, after) {
            (ADDRESS_V4, _) => 4,
            (ADDRESS_V6, _) => 16,
            (ADDRESS_NAME, [length, ..]) => 1 + usize::from(*length),
            (ADDRESS_NAME, []) => return Progress::Needs(5),
            _ => return Progress::refused(Reply::AddressTypeNotSupported),
        };
        let Some((address, &[high, low])) = after.split_at_checked(length) else {
            return Progress::Needs(4 + length + 2);
        };
        if command != CONNECT {
            return Progress::refused(Reply::CommandNotSupported);
        }
        match Host::parse(kind, address) {
            None => Progress::refused(Reply::GeneralFailure),
            Some(host) => Progress::Requested { host, port: u16::from_be_bytes([high, low]) },
        }
    }
}

impl Default for Handshake {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// The address field of a request; a name still has its length in front.
    fn parse(kind: u8, address: &[u8]) -> Option<Self> {
        if kind == ADDRESS_NAME {
            let name = address.get(1..).filter(|name| !name.is_empty() && name.iter().all(u8::is_ascii_graphic))?;
            let name = str::from_utf8(name).ok()?;
            return Some(name.parse().map_or_else(|_| Self::Name(name.to_owned()), Self::Address));
        }
        let address = <[u8; 4]>::try_from(address)
            .map(|four| IpAddr::V4(Ipv4Addr::from(four)))
            .or_else(|_| <[u8; 16]>::try_from(address).map(|sixteen| IpAddr::V6(Ipv6Addr::from(sixteen))));
        address.ok().map(Self::Address)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl Reply {
    /// The answer (RFC 1928 §6). The bound address is always 0.0.0.0:0: the real one would tell a visitor about the
    /// inner network, and no client of CONNECT needs it.
    pub fn encode(self) -> Bytes {
        Bytes::copy_from_slice(&[VERSION, self as u8, 0, ADDRESS_V4, 0, 0, 0, 0, 0, 0])
    }
}

/// Why a dial failed, as a client is told.
impl From<io::ErrorKind> for Reply {
    fn from(kind: io::ErrorKind) -> Self {
        match kind {
            io::ErrorKind::ConnectionRefused => Self::ConnectionRefused,
            io::ErrorKind::HostUnreachable | io::ErrorKind::TimedOut => Self::HostUnreachable,
            io::ErrorKind::NetworkDown | io::ErrorKind::NetworkUnreachable => Self::NetworkUnreachable,
            // A packet filter's word on Linux.
            io::ErrorKind::PermissionDenied => Self::NotAllowed,
            _ => Self::GeneralFailure,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Done,
    Greeting,
    Request,
}

enum Progress {
    Greeted,
    /// The message will have at least this many bytes in all.
    Needs(usize),
    Refused(Bytes),
    Requested {
        host: Host,
        port: u16,
    },
}

impl Progress {
    fn refused(reply: Reply) -> Self {
        Self::Refused(reply.encode())
    }
}
