//! HTTP/2 written frame by frame (RFC 9113 §4, §6), as no library lets one: the client's side of a connection.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::watch,
};

use crate::{harness::background, raw_edge::soon};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// On HEADERS and DATA; on SETTINGS and PING the same bit is ACK.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// One frame (RFC 9113 §4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Header fields, each a literal that no table remembers (RFC 7541 §6.2.2).
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(&mut block, 7, 0, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// An integer behind the `first` bits of a byte (RFC 7541 §5.1).
pub(crate) fn integer(block: &mut Vec<u8>, bits: u32, first: u8, number: usize) {
    let most = (1 << bits) - 1;
    if number < most {
        return block.push(first | number as u8);
    }
    block.push(first | most as u8);
    let mut rest = number - most;
    while rest >= 128 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// A request without a body.
pub(crate) fn get(stream: u32, host: &str, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", host, path, &[]))
}

/// The header block of a request.
pub(crate) fn request(method: &str, host: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut fields = vec![(":method", method), (":scheme", "https"), (":authority", host), (":path", path)];
    fields.extend_from_slice(more);
    block(&fields)
}

/// What the other side has said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) goaway: Option<u32>,
    pub(crate) closed: bool,
    pub(crate) streams: HashMap<u32, Stream>,
}

/// What it has said on one stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    /// The first header block, packed.
    pub(crate) head: Vec<u8>,
    pub(crate) body: Vec<u8>,
    pub(crate) ended: bool,
    pub(crate) reset: Option<u32>,
}

impl Said {
    /// Nothing more will come.
    pub(crate) fn over(&self) -> bool {
        self.closed || self.goaway.is_some_and(|code| code != 0)
    }
}

/// A connection. Settings and pings are acknowledged unless it was told not to; windows are given back.
pub(crate) struct Frames<S> {
    writer: Arc<tokio::sync::Mutex<WriteHalf<S>>>,
    said: watch::Receiver<Said>,
    piped: Arc<Mutex<HashMap<u32, DuplexStream>>>,
}

impl<S: AsyncRead + AsyncWrite + Send + 'static> Frames<S> {
    pub(crate) async fn start(io: S) -> Self {
        let (reader, mut writer) = tokio::io::split(io);
        writer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        writer.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        // Nobody has to wait for a window here.
        writer.write_all(&frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes())).await.unwrap();
        let writer = Arc::new(tokio::sync::Mutex::new(writer));
        let (told, said) = watch::channel(Said::default());
        let piped = Arc::new(Mutex::new(HashMap::new()));
        background(read(reader, writer.clone(), told, piped.clone()));
        Self { writer, said, piped }
    }

    /// Writes bytes; a connection that is over takes none.
    pub(crate) async fn send(&self, bytes: &[u8]) -> bool {
        let mut writer = self.writer.lock().await;
        soon("room for frames", async { writer.write_all(bytes).await.is_ok() && writer.flush().await.is_ok() }).await
    }

    /// Writes the same again and again, until it was all or the connection is over.
    pub(crate) async fn flood(&self, times: usize, mut bytes: impl FnMut(usize) -> Vec<u8>) {
        let mut batch = Vec::new();
        for at in 0..times {
            batch.extend(bytes(at));
            if batch.len() > 64 << 10 || at + 1 == times {
                if self.said.borrow().over() || !self.send(&batch).await {
                    return;
                }
                batch.clear();
            }
        }
    }

    /// Waits until what was said is so.
    pub(crate) async fn until<T>(&self, what: &str, so: impl FnMut(&Said) -> Option<T>) -> T {
        let (mut said, mut so, mut found) = (self.said.clone(), so, None);
        let wait = said.wait_for(|said| {
            found = so(said);
            found.is_some()
        });
        drop(soon(what, wait).await);
        found.unwrap_or_else(|| panic!("the connection ended before: {what}"))
    }

    /// The whole answer on a stream, or `None` when there will be none.
    pub(crate) async fn answer(&self, stream: u32) -> Option<Stream> {
        self.until("an answer or its end", |said| match said.streams.get(&stream) {
            Some(answer) if answer.reset.is_some() => Some(None),
            Some(answer) if answer.ended => Some(Some(answer.clone())),
            _ if said.over() => Some(None),
            _ => None,
        })
        .await
    }

    /// Joins a stream to one half of a pipe: what is written to the other half leaves as DATA.
    pub(crate) fn pipe(&self, stream: u32) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (mut from, to) = tokio::io::split(theirs);
        let (ours_in, mut ours_back) = tokio::io::duplex(1 << 20);
        self.piped.lock().unwrap().insert(stream, ours_in);
        let mut to = to;
        background(async move {
            let _ = tokio::io::copy(&mut ours_back, &mut to).await;
        });
        let writer = self.writer.clone();
        background(async move {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(n) = from.read(&mut buffer).await {
                let flags = if n == 0 { END_STREAM } else { 0 };
                let written = writer.lock().await.write_all(&frame(DATA, flags, stream, &buffer[..n])).await;
                if n == 0 || written.is_err() {
                    return;
                }
            }
        });
        ours
    }
}

async fn read<S: AsyncRead + AsyncWrite + Send + 'static>(
    mut reader: ReadHalf<S>,
    writer: Arc<tokio::sync::Mutex<WriteHalf<S>>>,
    told: watch::Sender<Said>,
    piped: Arc<Mutex<HashMap<u32, DuplexStream>>>,
) {
    let mut head = [0; 9];
    while reader.read_exact(&mut head).await.is_ok() {
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; len];
        if reader.read_exact(&mut payload).await.is_err() {
            break;
        }
        let answer = match kind {
            SETTINGS if flags & 1 == 0 => frame(SETTINGS, 1, 0, &[]),
            PING if flags & 1 == 0 => frame(PING, 1, 0, &payload),
            DATA if len > 0 => {
                let window = (len as u32).to_be_bytes();
                [frame(WINDOW_UPDATE, 0, 0, &window), frame(WINDOW_UPDATE, 0, stream, &window)].concat()
            }
            _ => Vec::new(),
        };
        if !answer.is_empty() {
            let writer = writer.clone();
            // Whoever floods holds the writer; reading must go on meanwhile.
            background(async move {
                let _ = writer.lock().await.write_all(&answer).await;
            });
        }
        if kind == DATA {
            let pipe = piped.lock().unwrap().remove(&stream);
            if let Some(mut pipe) = pipe {
                if pipe.write_all(&payload).await.is_ok() && flags & END_STREAM == 0 {
                    piped.lock().unwrap().insert(stream, pipe);
                }
                continue;
            }
        }
        told.send_modify(|said| match kind {
            GOAWAY => said.goaway = payload.get(4..8).map(|code| u32::from_be_bytes(code.try_into().unwrap())),
            RST_STREAM => {
                said.streams.entry(stream).or_default().reset =
                    Some(u32::from_be_bytes(payload[..4].try_into().unwrap()));
            }
            HEADERS | DATA => {
                let seen = said.streams.entry(stream).or_default();
                match kind {
                    DATA => seen.body.extend_from_slice(&payload),
                    _ if seen.head.is_empty() => seen.head = payload,
                    _ => {}
                }
                seen.ended |= flags & END_STREAM != 0;
            }
            _ => {}
        });
    }
    told.send_modify(|said| said.closed = true);
}

/// Makes a test of each attack: `NAME: ATTACK;` calls `siege(name, ATTACK)` where it stands.
macro_rules! sieges {
    ($($name:ident: $attack:expr;)+) => {$(
        #[tokio::test]
        async fn $name() {
            siege(&stringify!($name).replace('_', " "), $attack).await;
        }
    )+};
}
pub(crate) use sieges;
