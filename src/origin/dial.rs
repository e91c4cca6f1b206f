//! Connecting to a service's address: names by the system's resolver, both address families raced (RFC 8305).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};

use super::{Error, io::OriginIo, resolve::Resolver};

/// Head start of each address over the next (RFC 8305 §5 recommends 250 ms).
const STAGGER: Duration = Duration::from_millis(250);

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Host name or literal address.
    Tcp {
        /// Without brackets.
        host: Arc<str>,
        /// The port.
        port: u16,
    },
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Target {
    /// Host and port as in a URL; `localhost` for a socket.
    pub(super) fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

/// A configured limit; 0 means none, for which a year stands.
pub fn limit(configured: Duration) -> Duration {
    if configured.is_zero() { Duration::from_secs(365 * 24 * 60 * 60) } else { configured }
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// Bound on look-up and connecting together; see [`limit`].
    pub connect_timeout: Duration,
    /// Idle time before the kernel probes a silent peer.
    pub keep_alive: Duration,
    /// Whether several addresses are raced, or tried one after the other.
    pub race: bool,
    /// Addresses on which adit itself listens; port 0 never matches.
    pub forbidden: Arc<[SocketAddr]>,
    /// Nothing but this machine is dialled: what is exempt from proofs for being here has to be here.
    pub loopback_only: bool,
    /// Asked for every new connection, so that a changed answer counts at once.
    pub resolver: Resolver,
}

impl Dialer {
    /// Connects in clear.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`], [`Error::TimedOut`], [`Error::Forbidden`], [`Error::NotLoopback`].
    pub async fn connect(&self, target: &Target) -> Result<OriginIo, Error> {
        match target {
            Target::Tcp { host, port } => self.tcp(host, *port).await.map(OriginIo::Tcp),
            Target::Unix(path) => {
                let connect = UnixStream::connect(path);
                let connected = tokio::time::timeout(self.connect_timeout, connect).await;
                connected.map_err(|_| Error::TimedOut("connection"))?.map(OriginIo::Unix).map_err(Error::Unreachable)
            }
        }
    }

    /// Connects to a name or literal address.
    ///
    /// # Errors
    ///
    /// As [`Dialer::connect`].
    pub async fn tcp(&self, host: &str, port: u16) -> Result<TcpStream, Error> {
        let connect = async {
            if let Ok(ip) = host.parse::<IpAddr>() {
                return self.address(SocketAddr::new(ip, port)).await;
            }
            let addresses = interleave(self.resolver.look_up(host, port).await.map_err(Error::Unreachable)?);
            self.any(&addresses).await
        };
        tokio::time::timeout(self.connect_timeout, connect).await.unwrap_or(Err(Error::TimedOut("connection")))
    }

    /// Connects to one address.
    ///
    /// # Errors
    ///
    /// As [`Dialer::connect`]; the caller bounds the time.
    pub async fn address(&self, address: SocketAddr) -> Result<TcpStream, Error> {
        if self.is_forbidden(address) {
            return Err(Error::Forbidden(address));
        }
        if self.loopback_only && !address.ip().to_canonical().is_loopback() {
            return Err(Error::NotLoopback(address));
        }
        let stream = TcpStream::connect(address).await.map_err(Error::Unreachable)?;
        if self.is_own_wildcard(&stream) {
            return Err(Error::Forbidden(address));
        }
        let _ = stream.set_nodelay(true);
        if !self.keep_alive.is_zero() {
            let keep_alive = TcpKeepalive::new().with_time(self.keep_alive).with_interval(self.keep_alive);
            let _ = SockRef::from(&stream).set_tcp_keepalive(&keep_alive);
        }
        Ok(stream)
    }

    fn is_forbidden(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        self.forbidden.iter().any(|own| {
            own.port() == address.port()
                && (own.ip().to_canonical() == ip
                    // A wildcard listener answers on every address of the machine, loopback being the one known here.
                    || (own.ip().is_unspecified() && (ip.is_loopback() || ip.is_unspecified())))
        })
    }

    /// Whether the connection leads to a wildcard listener of ours by one of the machine's own addresses, which nobody
    /// knows before: between two ends on one machine the kernel puts the same address on both.
    fn is_own_wildcard(&self, stream: &TcpStream) -> bool {
        let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else { return false };
        let wildcard = |own: &SocketAddr| own.port() == peer.port() && own.ip().to_canonical().is_unspecified();
        local.ip().to_canonical() == peer.ip().to_canonical() && self.forbidden.iter().any(wildcard)
    }

    /// The first address that connects.
    async fn any(&self, addresses: &[SocketAddr]) -> Result<TcpStream, Error> {
        let nobody = || Error::Unreachable(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        let mut last = None;
        if !self.race || addresses.len() < 2 {
            for address in addresses {
                match self.address(*address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = Some(error),
                }
            }
            return Err(last.unwrap_or_else(nobody));
        }
        let mut attempts = FuturesUnordered::new();
        let mut waiting = addresses.iter();
        if let Some(address) = waiting.next() {
            attempts.push(self.address(*address));
        }
        loop {
            tokio::select! {
                attempt = attempts.next() => match attempt {
                    Some(Ok(stream)) => return Ok(stream),
                    Some(Err(error)) => {
                        last = Some(error);
                        if let Some(address) = waiting.next() {
                            attempts.push(self.address(*address));
                        }
                    }
                    None => return Err(last.unwrap_or_else(nobody)),
                },
                () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => {
                    if let Some(address) = waiting.next() {
                        attempts.push(self.address(*address));
                    }
                }
            }
        }
    }
}

/// Alternates the families, keeping the resolver's order within each (RFC 8305 §4).
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (v6, v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let mut mixed = Vec::with_capacity(v4.len() + v6.len());
    let (mut v4, mut v6) = (v4.into_iter(), v6.into_iter());
    loop {
        let (six, four) = (v6.next(), v4.next());
        if six.is_none() && four.is_none() {
            return mixed;
        }
        mixed.extend(six);
        mixed.extend(four);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Mutex};

    use super::*;

    fn dialer(forbidden: &[&str]) -> Dialer {
        Dialer {
            connect_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(30),
            race: true,
            forbidden: forbidden.iter().map(|text| text.parse().unwrap()).collect(),
            loopback_only: false,
            resolver: Resolver::System,
        }
    }

    #[test]
    fn families_alternate_and_keep_their_order() {
        let addresses = ["1.1.1.1:1", "2.2.2.2:1", "[::1]:1", "3.3.3.3:1"].map(|text| text.parse().unwrap());
        let mixed: Vec<_> = interleave(addresses.to_vec()).iter().map(ToString::to_string).collect();
        assert_eq!(mixed, ["[::1]:1", "1.1.1.1:1", "2.2.2.2:1", "3.3.3.3:1"]);
    }

    #[test]
    fn our_own_admin_address_is_never_dialled_in_any_spelling() {
        let dialer = dialer(&["0.0.0.0:20241"]);
        for address in ["127.0.0.1:20241", "[::1]:20241", "[::ffff:127.0.0.1]:20241", "0.0.0.0:20241"] {
            assert!(dialer.is_forbidden(address.parse().unwrap()), "{address}");
        }
        assert!(!dialer.is_forbidden("127.0.0.1:8080".parse().unwrap()));
    }

    #[tokio::test]
    async fn our_own_wildcard_listener_is_not_reached_by_the_machines_other_addresses() {
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // The address that would be used towards a documentation address; nothing is sent. Without any route all that
        // is left is loopback.
        let outward = || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
            socket.connect("198.51.100.1:9").ok()?;
            Some(socket.local_addr().ok()?.ip())
        };
        let address = SocketAddr::new(outward().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2))), port);
        dialer(&[]).address(address).await.unwrap();
        dialer(&["0.0.0.0:1"]).address(address).await.unwrap();
        for own in [format!("0.0.0.0:{port}"), format!("[::]:{port}")] {
            let refused = dialer(&[&own]).address(address).await;
            assert!(matches!(refused, Err(Error::Forbidden(_))), "{address}: {refused:?}");
        }
    }

    #[tokio::test]
    async fn what_is_exempt_for_being_here_is_dialled_nowhere_else() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let table = |ip: &str| HashMap::from([("localhost".to_owned(), vec![ip.parse().unwrap()])]);
        for (ip, here) in [("127.0.0.1", true), ("192.0.2.1", false), ("0.0.0.0", false)] {
            let resolver = Resolver::Table(Arc::new(Mutex::new(table(ip))));
            let dialled = Dialer { loopback_only: true, resolver, ..dialer(&[]) }.tcp("localhost", port).await;
            match dialled {
                Ok(_) => assert!(here, "{ip}"),
                Err(error) => assert!(!here && matches!(error, Error::NotLoopback(_)), "{ip}: {error}"),
            }
        }
    }

    #[tokio::test]
    async fn the_second_address_is_reached_when_the_first_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let closed = {
            let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            gone.local_addr().unwrap()
        };
        let stream = dialer(&[]).any(&[closed, open]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open);
    }

    #[tokio::test]
    async fn a_missing_socket_file_is_unreachable() {
        let error = dialer(&[]).connect(&Target::Unix("/nonexistent/socket".into())).await.unwrap_err();
        assert_eq!(error.code(), crate::code::Code::OriginUnreachable);
    }
}
