//! A buffered place for log lines, flushed by a thread of its own.
//!
//! One write call per line costs more than the line: at 20,000 requests a second the file gets five writes a second
//! instead. Lines of level warn and above are flushed at once by their writer's drop, so a crash loses only access
//! lines of the last 200 ms.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

/// How long a line may wait.
const DELAY: Duration = Duration::from_millis(200);
/// How much may wait.
const CAPACITY: usize = 64 << 10;

/// Where lines go. Clones share the buffer.
#[derive(Clone)]
pub struct Sink(Arc<Mutex<Buffer>>);

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sink")
    }
}

struct Buffer {
    lines: Vec<u8>,
    out: Box<dyn Write + Send>,
}

impl Buffer {
    fn flush(&mut self) {
        // A log that cannot be written has nobody to be told about it.
        let _ = self.out.write_all(&self.lines);
        let _ = self.out.flush();
        self.lines.clear();
    }
}

impl Sink {
    /// Standard error.
    pub fn stderr() -> Self {
        Self::to(Box::new(io::stderr()))
    }

    /// Appends to a file.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn file(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self::to(Box::new(file)))
    }

    /// Anything that takes bytes.
    pub fn to(out: Box<dyn Write + Send>) -> Self {
        let buffer = Arc::new(Mutex::new(Buffer { lines: Vec::with_capacity(4096), out }));
        let weak = Arc::downgrade(&buffer);
        // Ends with the last clone. If no thread can be had, lines still leave when the buffer is full.
        let _ = std::thread::Builder::new().name("adit-log".into()).spawn(move || flush_now_and_then(&weak));
        Self(buffer)
    }

    /// Adds one line, newline included.
    pub fn line(&self, line: &[u8]) {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.lines.extend_from_slice(line);
        if buffer.lines.len() >= CAPACITY {
            buffer.flush();
        }
    }

    /// Writes out what waits.
    pub fn flush(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).flush();
    }
}

fn flush_now_and_then(buffer: &Weak<Mutex<Buffer>>) {
    loop {
        std::thread::sleep(DELAY);
        let Some(buffer) = buffer.upgrade() else { return };
        let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
        if !buffer.lines.is_empty() {
            buffer.flush();
        }
    }
}

/// One event on its way into a [`Sink`].
#[derive(Debug)]
pub struct Line<'a> {
    sink: &'a Sink,
    now: bool,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sink.line(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if self.now {
            self.sink.flush();
        }
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { sink: self, now: true }
    }

    fn make_writer_for(&'a self, _: &tracing::Metadata<'_>) -> Line<'a> {
        // Ordinary events are rare and worth a write call each.
        self.make_writer()
    }
}
