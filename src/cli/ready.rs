//! `tunnel ready`: asks a running connector.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use super::{Outcome, complain, env, search};
use crate::config::{Flags, MetricsAddress, load};

const LIMIT: Duration = Duration::from_secs(5);

pub(super) fn ask(flags: &Flags) -> Outcome {
    let config = match load(flags, env, &search()) {
        Ok(loaded) => loaded.config,
        Err(mistakes) => {
            complain(&mistakes.to_string());
            return Outcome::Usage;
        }
    };
    let addresses: Vec<String> = match config.metrics {
        MetricsAddress::Fixed(address) => vec![address],
        MetricsAddress::Default => MetricsAddress::PORTS.map(|port| format!("127.0.0.1:{port}")).collect(),
    };
    let mut reason = String::from("no connector answers");
    for address in addresses {
        match status(&address) {
            Ok(200) => return Outcome::Done,
            Ok(status) => reason = format!("{address} answers {status}"),
            Err(error) => tracing::debug!(address, %error, "no answer"),
        }
    }
    complain(&reason);
    Outcome::Failed
}

fn status(address: &str) -> std::io::Result<u16> {
    let address = address.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n")?;
    let mut head = [0; 64];
    let n = stream.read(&mut head)?;
    let text = String::from_utf8_lossy(&head[..n]);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}
