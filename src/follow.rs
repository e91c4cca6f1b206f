//! Following files: say when one of them has changed and has come to rest.
//!
//! A file is followed by its folder, by the folder of every link on the way to it and by itself, so that a rename over
//! it, a link that is swapped (`..data` in a volume of Kubernetes), a write in place and a bind mount are all seen. An
//! event is only a reason to look: what counts is whether the file differs, so that a log in the same folder costs a
//! look and nothing else. Looking blocks where the file system does, so it has a thread of its own.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// For file systems that send no events (network and some overlay mounts).
const POLL: Duration = Duration::from_secs(5);
/// A busy folder costs a hundred looks a second at most.
const BREATH: Duration = Duration::from_millis(10);
/// Links followed on the way to a file, as many as Linux does.
const MOST_LINKS: usize = 40;

/// Files that are followed until this is dropped.
#[derive(Debug)]
pub struct Followed {
    shared: Arc<Mutex<Wanted>>,
    wake: SyncSender<()>,
    changes: mpsc::Receiver<()>,
}

/// What the thread is to do.
#[derive(Debug)]
struct Wanted {
    files: Vec<PathBuf>,
    over: bool,
}

impl Followed {
    /// Follows `files`, which need not exist. A change is told once the files have not changed for `settle`: at most
    /// that, and the system's delay of a few milliseconds, after the last write. What changes between this call and
    /// the first [`Followed::changed`] is told, what changed before is not.
    ///
    /// # Errors
    ///
    /// When the system gives no thread. A system that gives no watch (a user's inotify instances are counted) is only
    /// logged: the files are looked at every 5 s then.
    pub fn new(files: Vec<PathBuf>, settle: Duration) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let (told, changes) = mpsc::channel(1);
        let events = wake.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An overflow of the kernel's queue is an error or an event without a path: a reason to look, too.
            if event.map_or(true, |event| !event.kind.is_access()) {
                let _ = events.try_send(());
            }
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "files cannot be watched, they are looked at every {POLL:?}"))
            .ok();
        let mut eye = Eye { watcher, watched: HashMap::new(), seen: Vec::new(), settle };
        // Before the first look, so that nothing falls between.
        eye.watch(&files);
        eye.seen = looks(&files);
        let shared = Arc::new(Mutex::new(Wanted { files, over: false }));
        let shared_ = shared.clone();
        std::thread::Builder::new().name("follow".into()).spawn(move || eye.run(&shared_, &woken, &told))?;
        Ok(Self { shared, wake, changes })
    }

    /// Follows these files instead. One that was not followed before counts as changed.
    pub fn replace(&self, files: Vec<PathBuf>) {
        let mut wanted = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted.files != files {
            wanted.files = files;
            drop(wanted);
            let _ = self.wake.try_send(());
        }
    }

    /// Waits until a file has changed and come to rest. Changes that nobody waited for are told together. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            // The thread only ends with us, or in a panic that the log has.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).over = true;
        let _ = self.wake.try_send(());
    }
}

/// What tells one state of a file from another. The time of the last change of the inode cannot be set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// `None`: there is no such file, or it cannot be looked at.
fn look(path: &Path) -> Option<Look> {
    let meta = std::fs::metadata(path).ok()?;
    Some(Look {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.size(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}

fn looks(files: &[PathBuf]) -> Vec<(PathBuf, Option<Look>)> {
    files.iter().map(|file| (file.clone(), look(file))).collect()
}

/// The thread's own.
struct Eye {
    watcher: Option<RecommendedWatcher>,
    /// What is watched, with device and inode: a folder that was removed and made again has to be watched again.
    watched: HashMap<PathBuf, (u64, u64)>,
    seen: Vec<(PathBuf, Option<Look>)>,
    settle: Duration,
}

impl Eye {
    fn run(mut self, shared: &Mutex<Wanted>, woken: &Receiver<()>, told: &mpsc::Sender<()>) {
        let mut rest_at: Option<Instant> = None;
        loop {
            let wait = rest_at.map_or(POLL, |at| at.saturating_duration_since(Instant::now()));
            match woken.recv_timeout(wait) {
                Ok(()) => std::thread::sleep(BREATH),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let files = {
                let wanted = shared.lock().unwrap_or_else(PoisonError::into_inner);
                if wanted.over {
                    return;
                }
                wanted.files.clone()
            };
            self.watch(&files);
            let now = looks(&files);
            if now != self.seen {
                self.seen = now;
                rest_at = Some(Instant::now() + self.settle);
            }
            if rest_at.is_some_and(|at| at <= Instant::now()) {
                rest_at = None;
                // A place that is taken already tells of this change, too.
                let _ = told.try_send(());
            }
        }
    }

    /// Watches what leads to the files, and nothing else.
    fn watch(&mut self, files: &[PathBuf]) {
        let Some(watcher) = &mut self.watcher else { return };
        let mut wanted = HashMap::new();
        for path in files.iter().flat_map(|file| way_to(file)) {
            // Of what is not there yet, the nearest folder that is.
            if let Some((path, meta)) = path.ancestors().find_map(|path| Some((path, std::fs::metadata(path).ok()?))) {
                wanted.insert(path.to_owned(), (meta.dev(), meta.ino()));
            }
        }
        self.watched.retain(|path, inode| {
            let stays = wanted.get(path) == Some(inode);
            if !stays {
                let _ = watcher.unwatch(path);
            }
            stays
        });
        for (path, inode) in wanted {
            let Entry::Vacant(place) = self.watched.entry(path) else { continue };
            match watcher.watch(place.key(), RecursiveMode::NonRecursive) {
                Ok(()) => drop(place.insert(inode)),
                Err(error) => tracing::debug!(path = %place.key().display(), %error, "cannot be watched"),
            }
        }
    }
}

/// A file, its folder, and the same for every link on the way, in the file's own place and in its folders.
fn way_to(file: &Path) -> Vec<PathBuf> {
    let mut way = Vec::new();
    let mut todo = vec![std::path::absolute(file).unwrap_or_else(|_| file.to_owned())];
    let mut links = 0;
    while let Some(path) = todo.pop() {
        let mut so_far = PathBuf::new();
        for piece in path.components() {
            let folder = so_far.clone();
            so_far.push(piece);
            if let Ok(target) = std::fs::read_link(&so_far) {
                links += 1;
                if links > MOST_LINKS {
                    return way;
                }
                // What the link leads to, and the rest of the way from there.
                way.push(folder.clone());
                let rest = path.strip_prefix(&so_far).unwrap_or_else(|_| Path::new(""));
                let next = folder.join(target);
                todo.push(if rest.as_os_str().is_empty() { next } else { next.join(rest) });
                so_far.clear();
                break;
            }
        }
        if !so_far.as_os_str().is_empty() {
            way.extend(so_far.parent().map(Path::to_owned));
            way.push(so_far);
        }
    }
    way.sort();
    way.dedup();
    way
}
