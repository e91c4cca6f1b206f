//! Questions to the admin address of a running connector, in blocking HTTP/1.0.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use super::{Outcome, complain, env, search};
use crate::config::{Flags, MetricsAddress, load};

const LIMIT: Duration = Duration::from_secs(5);
/// More than any answer that is asked for here.
const MOST_ANSWER: u64 = 64 << 10;

/// Where a running connector may be: `--metrics`, else the file's, `TUNNEL_METRICS`, else the five default ports.
pub(super) fn addresses(flags: &Flags) -> Result<Vec<String>, Outcome> {
    match load(flags, env, &search()) {
        Ok(loaded) => Ok(match loaded.config.metrics {
            MetricsAddress::Fixed(address) => vec![address],
            MetricsAddress::Default => MetricsAddress::PORTS.map(|port| format!("127.0.0.1:{port}")).collect(),
        }),
        Err(mistakes) => {
            complain(&mistakes.to_string());
            Err(Outcome::Usage)
        }
    }
}

/// Status and body of one answer.
pub(super) fn ask(address: &str, method: &str, path: &str) -> io::Result<(u16, String)> {
    let address = address.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(format!("{method} {path} HTTP/1.0\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MOST_ANSWER).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(invalid)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(invalid)?;
    Ok((status, body.to_owned()))
}
