//! Idle HTTP/1.1 connections to one service.
//!
//! A connection is polled by the task of the request that uses it and by nobody while idle: no task per connection,
//! no channel between two. One that the service closed is noticed when it is taken.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustls::pki_types::ServerName;
use tokio::time::Instant;

use super::http1::H1;

/// Keeps connections for reuse.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Mutex<VecDeque<Idle>>,
    most: usize,
    lifetime: Duration,
    /// Changed and read with `idle` locked.
    retired: AtomicBool,
}

#[derive(Debug)]
struct Idle {
    connection: Box<H1>,
    /// The name it was verified for; a connection serves no other.
    name: Option<ServerName<'static>>,
    since: Instant,
}

impl Pool {
    /// Keeps at most `most` connections, each for at most `lifetime`.
    pub(super) fn new(most: usize, lifetime: Duration) -> Self {
        Self { idle: Mutex::default(), most, lifetime, retired: AtomicBool::new(false) }
    }

    /// The connection that was used last, so that the others can grow old.
    pub(super) fn take(&self, name: Option<&ServerName<'static>>) -> Option<Box<H1>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // The oldest stand in front.
        while idle.front().is_some_and(|oldest| oldest.since.elapsed() >= self.lifetime) {
            idle.pop_front();
        }
        loop {
            let freshest = idle.back()?;
            let taken = if freshest.name.as_ref() == name {
                idle.pop_back()
            } else {
                let at = idle.iter().rposition(|idle| idle.name.as_ref() == name)?;
                idle.remove(at)
            };
            let connection = taken?.connection;
            if !connection.is_over() {
                return Some(connection);
            }
        }
    }

    /// Gives a connection back.
    pub(super) fn put(&self, connection: Box<H1>, name: Option<ServerName<'static>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if self.retired.load(Ordering::Relaxed) || connection.is_over() {
            return;
        }
        idle.push_back(Idle { connection, name, since: Instant::now() });
        if idle.len() > self.most {
            idle.pop_front();
        }
    }

    /// Drops every connection, and from now on each that is given back.
    pub(super) fn retire(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        self.retired.store(true, Ordering::Relaxed);
        idle.clear();
    }

    /// Drops what is too old; for services that nobody asks any more.
    pub(super) fn sweep(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| idle.since.elapsed() < self.lifetime && !idle.connection.is_over());
    }

    /// Whether anything waits here.
    pub(super) fn is_empty(&self) -> bool {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Drops connections to addresses that are not among `alive`.
    pub(super) fn keep(&self, alive: &[IpAddr]) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| idle.connection.peer().is_none_or(|peer| alive.contains(&peer)));
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::origin::io::OriginIo;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_not_reused_once_the_trust_it_needed_is_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pool = Pool::new(8, Duration::from_secs(90));
        let mut peers = Vec::new();
        for until in [None, Some(Instant::now() + Duration::from_secs(30))] {
            let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            peers.push(listener.accept().await.unwrap());
            let mut connection = H1::handshake(OriginIo::Tcp(tcp)).await.unwrap();
            connection.until = until;
            pool.put(connection, None);
        }
        let before = pool.take(None).unwrap();
        assert!(before.until.is_some(), "the freshest");
        pool.put(before, None);
        tokio::time::advance(Duration::from_secs(30)).await;
        let after = pool.take(None).unwrap();
        assert!(after.until.is_none() && pool.take(None).is_none());
        // Nor is one kept that comes back then.
        let mut late = after;
        late.until = Some(Instant::now());
        pool.put(late, None);
        assert!(pool.is_empty());
    }
}
