//! The PROXY header: whom a connection is made for, said before its first byte (haproxy's proxy-protocol.txt,
//! versions 1 and 2). adit writes it and reads it nowhere.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::config::ProxyProtocol;

/// The visitor for whom a request is sent, in the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Source(pub IpAddr);

/// Begins every version 2 header.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Writes the header. `destination` is the service's address, unknown on a unix socket.
///
/// # Errors
///
/// When the connection broke.
pub async fn send(
    io: &mut (impl AsyncWrite + Unpin),
    version: ProxyProtocol,
    source: Option<Source>,
    destination: Option<SocketAddr>,
) -> io::Result<()> {
    io.write_all(&header(version, source, destination)).await
}

/// The bytes. The edge tells the visitor's address and not the port, which is therefore 0.
fn header(version: ProxyProtocol, source: Option<Source>, destination: Option<SocketAddr>) -> Vec<u8> {
    let ends = source.map(|Source(source)| match (source.to_canonical(), destination) {
        (IpAddr::V4(source), None) => Ends::V4(source, Ipv4Addr::UNSPECIFIED, 0),
        (IpAddr::V6(source), None) => Ends::V6(source, Ipv6Addr::UNSPECIFIED, 0),
        (source, Some(to)) => match (source, to.ip().to_canonical()) {
            (IpAddr::V4(source), IpAddr::V4(ip)) => Ends::V4(source, ip, to.port()),
            // One header has one family: IPv4 fits into IPv6 (RFC 4291 §2.5.5.2), not the other way.
            (source, ip) => Ends::V6(in_v6(source), in_v6(ip), to.port()),
        },
    });
    match version {
        ProxyProtocol::V1 => v1(ends).into_bytes(),
        ProxyProtocol::V2 => v2(ends),
    }
}

/// Source, destination and its port.
enum Ends {
    V4(Ipv4Addr, Ipv4Addr, u16),
    V6(Ipv6Addr, Ipv6Addr, u16),
}

fn in_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn v1(ends: Option<Ends>) -> String {
    match ends {
        Some(Ends::V4(source, destination, port)) => format!("PROXY TCP4 {source} {destination} 0 {port}\r\n"),
        Some(Ends::V6(source, destination, port)) => format!("PROXY TCP6 {source} {destination} 0 {port}\r\n"),
        None => "PROXY UNKNOWN\r\n".to_owned(),
    }
}

/// Version 2; a connection for nobody is LOCAL, as that of a health check.
fn v2(ends: Option<Ends>) -> Vec<u8> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    const TCP4: u8 = 0x11;
    const TCP6: u8 = 0x21;
    let mut header = SIGNATURE.to_vec();
    let port = match ends {
        None => {
            header.extend_from_slice(&[LOCAL, 0, 0, 0]);
            return header;
        }
        Some(Ends::V4(source, destination, port)) => {
            header.extend_from_slice(&[PROXY, TCP4, 0, 12]);
            header.extend_from_slice(&source.octets());
            header.extend_from_slice(&destination.octets());
            port
        }
        Some(Ends::V6(source, destination, port)) => {
            header.extend_from_slice(&[PROXY, TCP6, 0, 36]);
            header.extend_from_slice(&source.octets());
            header.extend_from_slice(&destination.octets());
            port
        }
    };
    header.extend_from_slice(&[0, 0]);
    header.extend_from_slice(&port.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(version: ProxyProtocol, source: &str, destination: &str) -> Vec<u8> {
        let source = source.parse().ok().map(Source);
        header(version, source, destination.parse().ok())
    }

    #[test]
    fn a_line_of_version_1_has_one_family() {
        for (source, destination, expected) in [
            ("192.0.2.7", "10.0.0.1:80", "PROXY TCP4 192.0.2.7 10.0.0.1 0 80\r\n"),
            ("::ffff:192.0.2.7", "10.0.0.1:80", "PROXY TCP4 192.0.2.7 10.0.0.1 0 80\r\n"),
            ("2001:db8::7", "[::1]:443", "PROXY TCP6 2001:db8::7 ::1 0 443\r\n"),
            ("192.0.2.7", "[::1]:443", "PROXY TCP6 ::ffff:192.0.2.7 ::1 0 443\r\n"),
            ("2001:db8::7", "10.0.0.1:80", "PROXY TCP6 2001:db8::7 ::ffff:10.0.0.1 0 80\r\n"),
            ("192.0.2.7", "", "PROXY TCP4 192.0.2.7 0.0.0.0 0 0\r\n"),
            ("", "10.0.0.1:80", "PROXY UNKNOWN\r\n"),
        ] {
            assert_eq!(of(ProxyProtocol::V1, source, destination), expected.as_bytes(), "{source} {destination}");
        }
    }

    #[test]
    fn version_2_says_its_own_length() {
        for (source, destination, length) in
            [("192.0.2.7", "10.0.0.1:80", 28), ("2001:db8::7", "10.0.0.1:80", 52), ("", "10.0.0.1:80", 16)]
        {
            let header = of(ProxyProtocol::V2, source, destination);
            assert_eq!(header.len(), length);
            assert_eq!(usize::from(u16::from_be_bytes([header[14], header[15]])), length - 16);
        }
        let header = of(ProxyProtocol::V2, "192.0.2.7", "10.0.0.1:80");
        assert_eq!(header[12..], [0x21, 0x11, 0, 12, 192, 0, 2, 7, 10, 0, 0, 1, 0, 0, 0, 80]);
    }
}
