//! Following a file through every way in which files change.

use std::{
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use adit::follow::Followed;

/// Long enough that a burst is one change on a slow machine, short enough to wait for.
const SETTLE: Duration = Duration::from_millis(100);

fn follow(path: &Path) -> Followed {
    Followed::new(vec![path.to_owned()], SETTLE).unwrap()
}

/// Well below the 5 s after which files are looked at without an event.
async fn noticed(files: &mut Followed, what: &str) {
    tokio::time::timeout(Duration::from_secs(4), files.changed()).await.unwrap_or_else(|_| panic!("unseen: {what}"));
}

/// A volume of a ConfigMap: the name is a link into `..data`, which is a link to the folder of one generation.
fn generation(volume: &Path, name: &str, text: &str) {
    let folder = volume.join(name);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("config.yml"), text).unwrap();
    symlink(name, volume.join("..data_tmp")).unwrap();
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

#[tokio::test]
async fn a_write_in_place_a_rename_a_removal_and_a_return_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (file, new) = (dir.path().join("config.yml"), dir.path().join("new"));
    std::fs::write(&file, "1").unwrap();
    let mut files = follow(&file);
    std::fs::write(&file, "2").unwrap();
    noticed(&mut files, "a write in place").await;
    for _ in 0..2 {
        std::fs::write(&new, "3").unwrap();
        std::fs::rename(&new, &file).unwrap();
        noticed(&mut files, "a rename").await;
    }
    std::fs::write(&file, "4").unwrap();
    noticed(&mut files, "a write into the renamed file").await;
    std::fs::remove_file(&file).unwrap();
    noticed(&mut files, "a removal").await;
    std::fs::write(&file, "5").unwrap();
    noticed(&mut files, "a return").await;
}

#[tokio::test]
async fn the_swap_of_a_config_map_is_noticed_every_time() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    generation(&volume, "..1", "1");
    symlink("..data/config.yml", volume.join("config.yml")).unwrap();
    // And a link from elsewhere to it.
    let file = dir.path().join("linked.yml");
    symlink(volume.join("config.yml"), &file).unwrap();
    let mut files = follow(&file);
    for (old, new) in [("..1", "..2"), ("..2", "..3")] {
        generation(&volume, new, new);
        std::fs::remove_dir_all(volume.join(old)).unwrap();
        noticed(&mut files, new).await;
    }
    std::fs::write(volume.join("..3/config.yml"), "in place").unwrap();
    noticed(&mut files, "a write behind the links").await;
}

#[tokio::test]
async fn a_folder_that_is_made_again_is_followed_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    let file = folder.join("config.yml");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(&file, "1").unwrap();
    let mut files = follow(&file);
    std::fs::remove_dir_all(&folder).unwrap();
    noticed(&mut files, "the folder's removal").await;
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(&file, "2").unwrap();
    noticed(&mut files, "the folder's return").await;
    std::fs::write(&file, "3").unwrap();
    noticed(&mut files, "a write into the new folder").await;
}

#[tokio::test]
async fn a_burst_of_writes_is_told_once_after_its_last() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yml");
    std::fs::write(&file, "").unwrap();
    // A writer that stands still for as long would be a change of its own.
    let settle = Duration::from_millis(800);
    let mut files = Followed::new(vec![file.clone()], settle).unwrap();
    let (told, mut last) = tokio::sync::oneshot::channel();
    let path = file.clone();
    std::thread::spawn(move || {
        let mut last = Instant::now();
        for n in 0..20 {
            std::thread::sleep(Duration::from_millis(20));
            last = Instant::now();
            std::fs::write(&path, "x".repeat(n)).unwrap();
        }
        let _ = told.send(last);
    });
    noticed(&mut files, "a burst").await;
    let last = last.try_recv().expect("told before the last write");
    assert!(last.elapsed() >= settle, "{:?} after the last write", last.elapsed());
    assert!(tokio::time::timeout(settle * 3 / 2, files.changed()).await.is_err(), "told twice");
}

#[tokio::test]
async fn what_happens_beside_the_file_is_not_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yml");
    std::fs::write(&file, "1").unwrap();
    let mut files = follow(&file);
    // A log in the same folder must not keep a change from coming to rest.
    let log = dir.path().join("adit.log");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        let mut lines = 0;
        while stopped.try_recv().is_err() {
            std::fs::write(&log, lines.to_string()).unwrap();
            lines += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    assert!(tokio::time::timeout(SETTLE * 4, files.changed()).await.is_err(), "the log was told");
    std::fs::write(&file, "2").unwrap();
    noticed(&mut files, "the file beside a busy log").await;
    stop.send(()).unwrap();
    writer.join().unwrap();
}

#[tokio::test]
async fn other_files_can_be_followed_instead() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let mut files = follow(&first);
    files.replace(vec![second.clone()]);
    noticed(&mut files, "the exchange").await;
    std::fs::write(&second, "2").unwrap();
    noticed(&mut files, "the second file").await;
    std::fs::write(&first, "1").unwrap();
    assert!(tokio::time::timeout(SETTLE * 4, files.changed()).await.is_err(), "the first file is still followed");
}
