//! A bound on the messages of a stranger, by what they announce.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Reads Cap'n Proto messages past, and fails at the segment table of one that announces more bytes than the bound.
///
/// Whoever reads messages makes room for all that is announced before the bytes are there: 8 bytes of a stranger would
/// cost megabytes. The bound may change at any time; `usize::MAX` is none, and then nothing is looked at any more.
#[derive(Debug)]
pub struct Announced<R> {
    recv: R,
    bound: Arc<AtomicUsize>,
    /// The begun segment table of the next message; at most 8 bytes more than 4 times the segments allowed.
    table: Vec<u8>,
    /// Bytes of the current message still to come.
    left: u64,
}

impl<R> Announced<R> {
    /// Bounds `recv`, which is at the beginning of a message, to messages of so many bytes, table included.
    pub fn new(recv: R, bound: Arc<AtomicUsize>) -> Self {
        Self { recv, bound, table: Vec::new(), left: 0 }
    }

    fn look(&mut self, mut bytes: &[u8], bound: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let passed = self.left.min(bytes.len() as u64);
                self.left -= passed;
                bytes = &bytes[passed as usize..];
                continue;
            }
            // How long the table is, its first four bytes say.
            let whole = match self.table.first_chunk::<4>() {
                None => 4,
                Some(last) => (4 * (u64::from(u32::from_le_bytes(*last)) + 2)).next_multiple_of(8),
            };
            if whole > bound {
                return Err(too_long(whole));
            }
            let missing = (whole as usize).saturating_sub(self.table.len());
            let (of_table, rest) = bytes.split_at(missing.min(bytes.len()));
            self.table.extend_from_slice(of_table);
            bytes = rest;
            if whole > 4 && self.table.len() as u64 == whole {
                self.left = self.words().saturating_mul(8);
                self.table.clear();
                if self.left.saturating_add(whole) > bound {
                    return Err(too_long(self.left.saturating_add(whole)));
                }
            }
        }
        Ok(())
    }

    /// The sum of the segments of a whole table; what pads an even number of them is none.
    fn words(&self) -> u64 {
        let numbers = || self.table.chunks_exact(4).filter_map(|chunk| chunk.first_chunk::<4>());
        let segments = numbers().next().map_or(0, |last| u32::from_le_bytes(*last) as usize + 1);
        numbers().skip(1).take(segments).map(|words| u64::from(u32::from_le_bytes(*words))).sum()
    }
}

fn too_long(bytes: u64) -> io::Error {
    io::Error::other(format!("a message of {bytes} bytes is announced"))
}

impl<R: AsyncRead + Unpin> AsyncRead for Announced<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.recv).poll_read(cx, buf))?;
        let bound = this.bound.load(Ordering::Relaxed);
        if bound == usize::MAX {
            return Poll::Ready(Ok(()));
        }
        let looked = this.look(&buf.filled()[before..], bound as u64);
        if looked.is_err() {
            // A reader that fails has read nothing.
            buf.set_filled(before);
        }
        Poll::Ready(looked)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// The table of a message with these segments, and as many zeros as it announces.
    fn message(segments: &[u32]) -> Vec<u8> {
        let mut bytes = (segments.len() as u32 - 1).to_le_bytes().to_vec();
        segments.iter().for_each(|words| bytes.extend_from_slice(&words.to_le_bytes()));
        bytes.resize(bytes.len().next_multiple_of(8) + 8 * segments.iter().sum::<u32>() as usize, 0);
        bytes
    }

    /// How many bytes come through in reads of `step` bytes, and whether all do.
    async fn passes(bytes: &[u8], bound: usize, step: usize) -> (usize, bool) {
        let mut reader = Announced::new(bytes, Arc::new(AtomicUsize::new(bound)));
        let (mut buffer, mut passed) = (vec![0; step], 0);
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) => return (passed, true),
                Ok(read) => passed += read,
                Err(_) => return (passed, false),
            }
        }
    }

    #[tokio::test]
    async fn a_message_above_the_bound_fails_at_its_table_however_it_is_cut() {
        let fine = [message(&[3]), message(&[0]), message(&[1, 2]), message(&[1, 0, 4])].concat();
        // 48 bytes of words and 16 of table.
        let largest = message(&[2, 2, 2]);
        for step in [1, 3, 4, 7, 8, 64, 4096] {
            assert_eq!(passes(&[&fine[..], &largest].concat(), 64, step).await, (fine.len() + 64, true), "{step}");
            assert!(!passes(&[&fine[..], &largest].concat(), 63, step).await.1, "{step}");
            // 24 bytes of a stranger; all his words together are more than 64 bits of bytes.
            for table in [vec![0, 0, 0, 0, 0, 0, 16, 0], vec![0xff; 24], [&[2, 0, 0, 0][..], &[0xff; 20]].concat()] {
                let (passed, all) = passes(&[&fine[..], &table].concat(), 64, step).await;
                assert!(!all && passed < fine.len() + table.len(), "{step}: {table:?}");
            }
        }
    }

    #[tokio::test]
    async fn without_a_bound_everything_passes() {
        let bound = Arc::new(AtomicUsize::new(64));
        let bytes = [message(&[1]), message(&[100])].concat();
        let mut reader = Announced::new(&bytes[..], bound.clone());
        reader.read_exact(&mut [0; 16]).await.unwrap();
        bound.store(usize::MAX, Ordering::Relaxed);
        assert_eq!(reader.read_to_end(&mut Vec::new()).await.unwrap(), bytes.len() - 16);
    }
}
