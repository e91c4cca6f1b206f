//! A service in HTTP/2, frame by frame: it does what h2's own server never would.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::peer::{Peer, scripted};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
/// END_STREAM of DATA and HEADERS, ACK of SETTINGS and PING.
const LAST: u8 = 1;
const END_HEADERS: u8 = 4;
const REFUSED_STREAM: u32 = 7;
const MAX_CONCURRENT_STREAMS: u16 = 3;

/// A connection whose preface is done.
pub(crate) struct H2 {
    peer: Peer,
    /// Its number among those of its listener.
    pub(crate) number: usize,
}

impl H2 {
    /// Waits for the client's preface and sends settings.
    pub(crate) async fn accept(mut peer: Peer, most_streams: u32) -> Self {
        let preface = peer.exact(24).await;
        assert_eq!(preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut setting = MAX_CONCURRENT_STREAMS.to_be_bytes().to_vec();
        setting.extend_from_slice(&most_streams.to_be_bytes());
        let number = peer.number;
        let mut h2 = Self { peer, number };
        h2.frame(SETTINGS, 0, 0, &setting).await;
        h2
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.peer.send(frame).await;
    }

    /// The next whole request: its stream and its body; `None` at the end. One request at a time is read.
    pub(crate) async fn request(&mut self) -> Option<(u32, Vec<u8>)> {
        let mut body = Vec::new();
        loop {
            let head = self.peer.exact(9).await;
            let head: [u8; 9] = head.try_into().ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let payload = self.peer.exact(usize::try_from(length).unwrap()).await;
            match kind {
                SETTINGS if flags & LAST == 0 => self.frame(SETTINGS, LAST, 0, &[]).await,
                PING if flags & LAST == 0 => self.frame(PING, LAST, 0, &payload).await,
                DATA => body.extend_from_slice(&payload),
                _ => {}
            }
            if matches!(kind, DATA | HEADERS) && flags & LAST != 0 {
                return Some((stream, body));
            }
        }
    }

    /// `200` with a body.
    pub(crate) async fn ok(&mut self, stream: u32, body: impl AsRef<[u8]>) {
        // The static table of RFC 7541 has `:status 200` at 8.
        self.frame(HEADERS, END_HEADERS, stream, &[0x88]).await;
        self.frame(DATA, LAST, stream, body.as_ref()).await;
    }

    pub(crate) async fn refuse(&mut self, stream: u32) {
        self.frame(RST_STREAM, 0, stream, &REFUSED_STREAM.to_be_bytes()).await;
    }

    /// No stream after `last` was or will be processed.
    pub(crate) async fn go_away(&mut self, last: u32) {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend_from_slice(&[0; 4]);
        self.frame(GOAWAY, 0, 0, &payload).await;
    }

    /// Reads away what comes until the client closes.
    pub(crate) async fn ended(&mut self) {
        self.peer.ended().await;
    }
}

/// A service whose connections `script` serves, and how many there were.
pub(crate) async fn scripted_h2<F>(
    most_streams: u32,
    script: impl Fn(H2) -> F + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let connections = Arc::new(AtomicUsize::new(0));
    let (counted, script) = (connections.clone(), Arc::new(script));
    let addr = scripted(move |peer| {
        counted.fetch_add(1, Ordering::SeqCst);
        let script = script.clone();
        async move { script(H2::accept(peer, most_streams).await).await }
    })
    .await;
    (addr, connections)
}
