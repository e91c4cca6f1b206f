//! What both ends of a tunnel speak: names, signatures and the shape of one request, whatever carried it.
//!
//! Facts are protocol.md's; the two encodings are [`connect`] (QUIC) and [`headers`] (HTTP/2). Opens no socket.

pub mod announced;
pub mod calls;
pub mod connect;
pub mod direct;
pub mod framing;
pub mod headers;
pub mod hop;
pub mod registration;
pub mod rpc;
pub mod schema;

use std::net::SocketAddr;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri::PathAndQuery};

/// Server name of a QUIC connection to an edge (protocol.md §3.1).
pub const QUIC_SERVER_NAME: &str = "quic.cftunnel.com";
/// Server name of an HTTP/2 connection to an edge (§6.1).
pub const H2_SERVER_NAME: &str = "h2.cftunnel.com";
/// Server name of a connector's reachability probes (§1.6); such a connection never registers.
pub const PROBE_SERVER_NAME: &str = "probe.cftunnel.com";
/// The one ALPN entry on QUIC; HTTP/2 has none (§3.1, §6.1).
pub const QUIC_ALPN: &[u8] = b"argotunnel";
/// The port of an edge when none is given.
pub const EDGE_PORT: u16 = 7844;

/// What a stream carries (protocol.md §3.6, §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One request and its response.
    Http,
    /// A request that asks to become a WebSocket.
    WebSocket,
    /// Bytes to an address, without a rule.
    Tcp,
}

/// The head of a stream that the edge opened.
#[derive(Clone, Debug)]
pub enum Head {
    /// `Kind::Http` or `Kind::WebSocket`.
    Request(RequestHead),
    /// `Kind::Tcp`: the destination, always a literal address.
    Tcp(SocketAddr),
}

/// A visitor's request in one shape whatever carried it.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// Whether the visitor asks for a WebSocket.
    pub websocket: bool,
    /// The request's method.
    pub method: Method,
    /// The visitor's Host, port included if the visitor sent one.
    pub host: HeaderValue,
    /// Path and query, byte for byte but for what no request line may hold.
    pub target: PathAndQuery,
    /// All other headers, repeats kept; control headers of the tunnel are taken out.
    pub headers: HeaderMap,
    /// How the body is delimited.
    pub body: BodyLength,
}

/// How a request body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// No body follows; bytes that arrive all the same are dropped.
    None,
    /// Exactly this many bytes.
    Known(u64),
    /// Until the stream ends.
    Unknown,
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// The status the visitor is to see.
    pub status: StatusCode,
    /// The headers the visitor is to see, repeats kept.
    pub headers: HeaderMap,
}

impl ResponseHead {
    /// An answer without headers.
    pub fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new() }
    }

    /// Whether a body of this answer is worth frames (see [`framing`]). In HTTP/1.1 a body of a known length has no
    /// trailers; in HTTP/2 it may, but hardly anybody sends them unannounced, and downloads stay bare.
    pub fn can_have_trailers(&self) -> bool {
        self.status != StatusCode::SWITCHING_PROTOCOLS
            && (!self.headers.contains_key(header::CONTENT_LENGTH) || self.headers.contains_key(header::TRAILER))
    }
}

/// A stream whose head cannot be understood. Costs its stream, never the connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream does not begin with a known signature (protocol.md §3.5).
    #[error("the stream begins with an unknown signature")]
    Signature,
    /// A message above our bound; it would have to be held whole.
    #[error("a message of {0} bytes is above the limit")]
    TooLarge(u64),
    /// The Cap'n Proto message is malformed.
    #[error("malformed message: {0}")]
    Message(#[from] capnp::Error),
    /// A connection type above 2.
    #[error("unknown connection type {0}")]
    ConnectionType(u16),
    /// A metadata key that speaks of a header but is not `HttpHeader:<name>`.
    #[error("header key malformed")]
    HeaderKey,
    /// A header, method, host or path that HTTP does not allow.
    #[error("invalid {0}")]
    Http(&'static str),
    /// The destination of a TCP stream is not a literal address.
    #[error("the destination is not ip:port")]
    Destination,
    /// The list of packed response headers is malformed (§6.5).
    #[error("packed headers malformed")]
    PackedHeaders,
    /// More headers than anybody sends.
    #[error("more than {} headers", connect::MAX_HEADERS)]
    TooManyHeaders,
    /// A framed body where none was agreed on: its frames would be read as the body (see [`framing`]).
    #[error("a framed body that was not agreed on")]
    Framing,
}

/// Percent-encodes what a request line must not hold (protocol.md §15.2 item 7), leaves everything else alone.
///
/// # Errors
///
/// [`Error::Http`] when what is left is still no path.
pub fn parse_target(raw: &[u8]) -> Result<PathAndQuery, Error> {
    let path_end = raw.iter().position(|&b| b == b'?').unwrap_or(raw.len());
    let must_escape = |at: usize, b: u8| match b {
        0..=0x20 | 0x7f..=0xff | b'#' | b'"' | b'<' | b'>' | b'\\' | b'`' | b'{' | b'}' | b'^' => true,
        b'|' => at < path_end,
        _ => false,
    };
    if raw.iter().any(|&b| b < 0x20 || b == 0x7f) {
        return Err(Error::Http("path"));
    }
    // A URL without a path has the path `/`; a path that begins otherwise would end up beside the host.
    let rootless = path_end == 0;
    if !rootless && !matches!(raw, [b'/', ..] | b"*") {
        return Err(Error::Http("path"));
    }
    if !rootless && !raw.iter().enumerate().any(|(at, &b)| must_escape(at, b)) {
        return PathAndQuery::try_from(raw).map_err(|_| Error::Http("path"));
    }
    let mut escaped = Vec::with_capacity(raw.len() + 16);
    if rootless {
        escaped.push(b'/');
    }
    for (at, &b) in raw.iter().enumerate() {
        if must_escape(at, b) {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            escaped.extend([b'%', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
        } else {
            escaped.push(b);
        }
    }
    PathAndQuery::try_from(escaped).map_err(|_| Error::Http("path"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_keep_their_bytes_but_for_what_no_request_line_may_hold() {
        for (raw, sent) in [
            ("/a//b/../c;d?x=%zz", "/a//b/../c;d?x=%zz"),
            ("/lone?", "/lone?"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a|b\"c{d}e^f", "/a%7Cb%22c%7Bd%7De%5Ef"),
            ("/ä", "/%C3%A4"),
            ("/?q=a|b", "/?q=a|b"),
            ("*", "*"),
            ("", "/"),
            ("?q", "/?q"),
        ] {
            assert_eq!(parse_target(raw.as_bytes()).unwrap().as_str(), sent, "{raw}");
        }
        for wrong in ["/a\r\nx: y", "a", "@evil/", ".evil/", ":80/", "*x"] {
            assert!(parse_target(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }
}
