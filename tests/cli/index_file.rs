//! An index on the disk, as the server and `search` keep it: who may write, what is removed, and what is left
//! after kills, damage and a full disk. The real processes, on real files.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ernie_vil::index::{EmbeddingIndex, VectorType};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    BINARY, DIMENSIONS, Server, beside, clean, command, convert, failure, library_to_preload, on_disk, pairs,
    remarks, signal, skipped, success, text, vector,
};

/// Starts a server with an index on the disk, and waits until it is ready.
fn open(index: &Path, more: &[&str]) -> Server {
    ready(command(&serving(index, more)))
}

/// The arguments of a server with an index on the disk.
fn serving<'a>(index: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [
        &["serve", "--listen", "127.0.0.1:0", "--index", text(index)],
        more,
    ]
    .concat()
}

fn ready(command: Command) -> Server {
    let server = Server::spawn(command);
    server.wait_until_ready();
    server
}

impl Server {
    /// The status of an answer, and its JSON.
    fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let reply = self.json(method, path, body.as_bytes());
        (
            reply.status,
            serde_json::from_slice(&reply.body).unwrap_or(Value::Null),
        )
    }

    fn size(&self) -> u64 {
        self.ask("GET", "/v1/index", &Value::Null).1["size"]
            .as_u64()
            .unwrap()
    }

    /// Adds entries whose ids are numbers.
    #[track_caller]
    fn add(&self, numbers: impl IntoIterator<Item = usize>) {
        let (status, reply) = self.try_add(numbers);
        assert_eq!(status, 200, "{reply}");
    }

    fn try_add(&self, numbers: impl IntoIterator<Item = usize>) -> (u16, Value) {
        let item = |i: usize| json!({"id": format!("entry {i}"), "embedding": vector(i)});
        let items: Vec<Value> = numbers.into_iter().map(item).collect();
        self.ask("POST", "/v1/index", &json!({ "items": items }))
    }

    fn remove(&self, numbers: impl IntoIterator<Item = usize>) -> (u16, Value) {
        let ids: Vec<String> = numbers.into_iter().map(|i| format!("entry {i}")).collect();
        self.ask("DELETE", "/v1/index", &json!({ "ids": ids }))
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as a service manager does.
    fn stop(mut self) {
        self.signal("TERM");
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

/// Why a server does not start.
#[track_caller]
fn refused(index: &Path, more: &[&str]) -> String {
    let output = command(&serving(index, more)).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    errors
}

fn ids(index: &EmbeddingIndex) -> BTreeSet<String> {
    index.ids().into_iter().map(str::to_owned).collect()
}

/// What the ids of entries of `Server::add` are.
fn entries(numbers: impl IntoIterator<Item = usize>) -> BTreeSet<String> {
    numbers.into_iter().map(|i| format!("entry {i}")).collect()
}

/// Writes pictures `0.jpg`, `1.jpg`, ... into a folder.
fn pictures(folder: &Path, count: usize) {
    fs::create_dir_all(folder).unwrap();
    for (i, (_, image)) in pairs(count).into_iter().enumerate() {
        let bytes = BASE64_STANDARD.decode(image).unwrap();
        fs::write(folder.join(format!("{i}.jpg")), bytes).unwrap();
    }
}

fn search(index: &Path, images: &Path, more: &[&str]) -> Output {
    let args = [
        &[
            "search",
            "--images",
            text(images),
            "--index",
            text(index),
            "--text",
            "红色的圆",
        ],
        more,
    ]
    .concat();
    command(&args).output().unwrap()
}

/// What a search that succeeds prints, and its remarks.
#[track_caller]
fn found(output: &Output) -> (String, String) {
    (success(output), remarks(output))
}

#[test]
fn search_leaves_what_a_server_has_added() {
    let folder = TempDir::new().unwrap();
    let (index, images) = (folder.path().join("index"), folder.path().join("pictures"));
    pictures(&images, 11);
    let server = open(&index, &[]);
    server.add(0..60);
    // An id of the form that a search's have.
    let named = "9.jpg\t100\t1700000000000000000";
    let item = json!({"items": [{"id": named, "embedding": vector(100)}]});
    assert_eq!(server.ask("POST", "/v1/index", &item).0, 200);
    let mut of_server = entries(0..60);
    of_server.insert(named.into());

    // While it runs its index is searched, and nothing more.
    let (out, errors) = found(&search(&index, &images, &["--top", "100", "--json"]));
    assert!(errors.contains("only read"), "{errors}");
    let hits: Value = serde_json::from_str(out.trim()).unwrap();
    assert_eq!(hits["hits"].as_array().unwrap().len(), 61);
    assert!(
        hits["hits"]
            .as_array()
            .unwrap()
            .iter()
            .any(|hit| hit["id"] == "entry 7"),
        "{hits}"
    );
    assert!(failure(&search(&index, &images, &["--prune"])).contains("--prune cannot remove"));
    assert_eq!(server.size(), 61);
    assert_eq!(ids(&on_disk(&index)), of_server);

    // All of it is in the log.
    server.kill();
    assert!(!index.exists());
    let (_, errors) = found(&search(&index, &images, &[]));
    assert!(!errors.contains("removed"), "{errors}");
    let both = on_disk(&index);
    assert_eq!(both.len(), 61 + 11);
    assert!(ids(&both).is_superset(&of_server));
    assert_eq!(both.get("entry 7").as_deref(), Some(&vector(7)[..]));

    // The server keeps the recorded source of each entry, through its own log and file.
    let server = open(&index, &[]);
    assert_eq!(server.size(), 72);
    server.add(60..62);
    of_server.extend(entries(60..62));
    server.stop();
    fs::remove_file(images.join("3.jpg")).unwrap();
    fs::write(images.join("4.jpg"), fs::read(images.join("5.jpg")).unwrap()).unwrap();
    let (out, errors) = found(&search(&index, &images, &["--top", "100"]));
    assert!(
        errors.contains("removed 2 from the index") && errors.contains(": 3.jpg, 4.jpg"),
        "{errors}"
    );
    assert!(
        !out.contains("3.jpg") && out.contains("4.jpg") && out.contains("entry 61"),
        "{out}"
    );
    let both = on_disk(&index);
    assert_eq!(both.len(), 63 + 10);
    assert!(ids(&both).is_superset(&of_server));

    // One that a server's client has replaced is the client's from then on.
    let id = both.ids().into_iter().find(|id| id.starts_with("6.jpg")).unwrap();
    let server = open(&index, &[]);
    let item = json!({"items": [{"id": id, "embedding": vector(6)}]});
    assert_eq!(server.ask("POST", "/v1/index", &item).1["replaced"], 1);
    server.stop();
    fs::remove_file(images.join("6.jpg")).unwrap();
    let (_, errors) = found(&search(&index, &images, &[]));
    assert!(!errors.contains("removed"), "{errors}");
    assert_eq!(on_disk(&index).len(), 63 + 10);
}

#[test]
fn nothing_is_removed_for_a_folder_that_is_empty_or_another_one() {
    let folder = TempDir::new().unwrap();
    let (index, images) = (folder.path().join("index"), folder.path().join("pictures"));
    pictures(&images, 12);
    pictures(&images.join("share"), 10);
    found(&search(&index, &images, &[]));
    let before = fs::read(&index).unwrap();
    assert_eq!(on_disk(&index).len(), 22);
    let unchanged = |output: &Output| {
        let message = failure(output);
        assert!(
            message.contains("--prune") && message.contains("Nothing was removed"),
            "{message}"
        );
        assert_eq!(fs::read(&index).unwrap(), before);
        message
    };

    // Not mounted: it is there and empty, or not there.
    let away = folder.path().join("away");
    fs::rename(&images, &away).unwrap();
    assert!(failure(&search(&index, &images, &[])).contains("is no folder"));
    assert_eq!(fs::read(&index).unwrap(), before);
    fs::create_dir(&images).unwrap();
    assert!(unchanged(&search(&index, &images, &[])).contains("has no picture"));
    // Something else is there now.
    pictures(&images, 3);
    assert!(unchanged(&search(&index, &images, &[])).contains("19 of the 22 pictures"));
    fs::remove_dir_all(&images).unwrap();

    // Another folder.
    let other = folder.path().join("other");
    pictures(&other, 5);
    assert!(unchanged(&search(&index, &other, &[])).contains("was made for the folder"));

    // Most are gone, or a sub-folder is empty that had many.
    fs::rename(&away, &images).unwrap();
    let share = folder.path().join("share");
    fs::rename(images.join("share"), &share).unwrap();
    fs::create_dir(images.join("share")).unwrap();
    assert!(unchanged(&search(&index, &images, &[])).contains("share is empty, and the index has 10"));
    fs::create_dir(&away).unwrap();
    for i in 0..6 {
        fs::rename(images.join(format!("{i}.jpg")), away.join(format!("{i}.jpg"))).unwrap();
    }
    assert!(unchanged(&search(&index, &images, &[])).contains("16 of the 22"));
    // All are back, and the index is as it was, without a file that was written.
    for i in 0..6 {
        fs::rename(away.join(format!("{i}.jpg")), images.join(format!("{i}.jpg"))).unwrap();
    }
    fs::remove_dir(images.join("share")).unwrap();
    fs::rename(&share, images.join("share")).unwrap();
    found(&search(&index, &images, &[]));
    assert_eq!(fs::read(&index).unwrap(), before);

    // The folder under another name is the same one.
    let moved = folder.path().join("moved");
    fs::rename(&images, &moved).unwrap();
    let (out, errors) = found(&search(&index, &moved, &["--top", "1"]));
    assert!(
        !errors.contains("removed") && out.contains("/moved/"),
        "{out}{errors}"
    );
    assert_eq!(on_disk(&index).len(), 22);
    assert!(failure(&search(&index, &other, &[])).contains("/moved"));

    let (_, errors) = found(&search(&index, &other, &["--prune"]));
    assert!(
        errors.contains("removed 22 from the index") && errors.contains("and 12 more"),
        "{errors}"
    );
    assert_eq!(on_disk(&index).len(), 5);
    // Of the whole folder the file is all that is left.
    let names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("index"))
        .collect();
    assert_eq!(names, ["index"]);
}

#[test]
fn an_index_of_before_sources_were_recorded_goes_on() {
    let folder = TempDir::new().unwrap();
    let (index, images) = (folder.path().join("index"), folder.path().join("pictures"));
    pictures(&images, 8);
    found(&search(&index, &images, &[]));
    // As earlier versions wrote it.
    let made = on_disk(&index);
    let mut old = EmbeddingIndex::new(DIMENSIONS, made.fingerprint());
    for id in made.ids() {
        old.add(id.to_owned(), &made.get(id).unwrap()).unwrap();
    }
    let save =
        |index: &EmbeddingIndex, path: &Path| index.save(&mut fs::File::create(path).unwrap()).unwrap();
    save(&old, &index);
    let before = fs::read(&index).unwrap();
    // Nothing is new, so nothing is written.
    found(&search(&index, &images, &[]));
    assert_eq!(fs::read(&index).unwrap(), before);
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(failure(&search(&index, &empty, &[])).contains("--prune"));
    assert_eq!(fs::read(&index).unwrap(), before);
    fs::remove_file(images.join("2.jpg")).unwrap();
    let (_, errors) = found(&search(&index, &images, &[]));
    assert!(
        errors.contains("removed 1 from the index") && errors.contains("2.jpg"),
        "{errors}"
    );
    assert_eq!(on_disk(&index).len(), 7);

    // A server's, with ids that are no pictures: those that look like some may be its clients'.
    old.add("dog".into(), &vector(1)).unwrap();
    save(&old, &index);
    let (_, errors) = found(&search(&index, &images, &["--prune"]));
    assert!(!errors.contains("removed"), "{errors}");
    assert_eq!(on_disk(&index).len(), 9);
}

#[test]
fn the_type_is_that_of_the_log_where_there_is_no_file() {
    let folder = TempDir::new().unwrap();
    let (index, images) = (folder.path().join("index"), folder.path().join("pictures"));
    pictures(&images, 3);
    let server = open(&index, &["--index-type", "int8"]);
    server.add(0..5);
    server.kill();
    assert!(!index.exists());
    assert!(refused(&index, &["--index-type", "f32"]).contains("index.log keeps its vectors as int8"));
    found(&search(&index, &images, &[]));
    let kept = on_disk(&index);
    assert_eq!((kept.dtype(), kept.len()), (VectorType::Int8, 8));
    let server = open(&index, &["--index-type", "int8"]);
    assert_eq!(server.size(), 8);
    server.kill();
    assert_eq!(open(&index, &[]).size(), 8);
}

#[test]
fn an_index_has_one_writer_whatever_it_is_called() {
    let folder = TempDir::new().unwrap();
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let real = disk.join("index");
    // Links to a file that is not there yet, to the folder, and one after the other.
    let (link, other_folder, twice) = (
        folder.path().join("link"),
        folder.path().join("other"),
        folder.path().join("twice"),
    );
    symlink("disk/index", &link).unwrap();
    symlink("disk", &other_folder).unwrap();
    symlink("link", &twice).unwrap();
    let names = [real.clone(), link.clone(), other_folder.join("index"), twice];
    for name in &names {
        let server = open(name, &[]);
        let size = server.size();
        server.add([size as usize]);
        for other in &names {
            assert!(refused(other, &[]).contains("is used by another process"));
        }
        server.kill();
    }
    assert_eq!(ids(&on_disk(&real)), entries(0..4));
    open(&link, &[]).stop();
    // It was saved where the link leads to, and is still a link.
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(on_disk(&real).len(), 4);
    assert!(!beside(&link, ".log").exists() && !beside(&link, ".lock").exists());
    // The same file under a second name.
    let hard = folder.path().join("hard");
    fs::hard_link(&real, &hard).unwrap();
    let server = open(&real, &[]);
    assert!(refused(&hard, &[]).contains("is used by another process"));
    server.stop();
    let loops = folder.path().join("loop");
    symlink("loop", &loops).unwrap();
    assert!(refused(&loops, &[]).contains("too many links"));
}

#[test]
fn a_log_or_a_lock_that_is_removed_lets_no_other_in_and_loses_nothing() {
    let folder = TempDir::new().unwrap();
    for (case, removed) in [
        &[".log"][..],
        &[".lock"],
        &[".log", ".lock"],
        &[""],
        &["", ".log"],
        &["", ".lock"],
        &[".part"],
        &[".part", ".lock"],
    ]
    .into_iter()
    .enumerate()
    {
        let index = folder.path().join(format!("index {case}"));
        let server = open(&index, &[]);
        server.add(0..5);
        server.stop();
        let server = open(&index, &[]);
        server.add(5..13);
        for suffix in removed {
            fs::remove_file(beside(&index, suffix)).unwrap();
        }
        assert!(
            refused(&index, &[]).contains("is used by another process"),
            "without {removed:?}"
        );
        server.add([13]);
        assert_eq!(server.remove([2]).0, 200);
        match case % 2 {
            0 => server.kill(),
            _ => server.stop(),
        }
        let mut expected = entries(0..14);
        expected.remove("entry 2");
        assert_eq!(ids(&on_disk(&index)), expected, "without {removed:?}");
        let server = open(&index, &[]);
        assert_eq!(server.size(), 13);
        server.stop();
    }
}

#[test]
fn what_was_replaced_while_a_server_has_it_open_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let index = folder.path().join("index");
    let first = open(&index, &[]);
    first.add(0..3);
    // Without any of them there is nothing to know the first one by.
    for suffix in [".log", ".lock", ".part"] {
        fs::remove_file(beside(&index, suffix)).unwrap();
    }
    let second = open(&index, &[]);
    second.add(10..14);
    let (status, reply) = first.try_add([3]);
    assert_eq!(status, 507, "{reply}");
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(message.contains("another process"), "{message}");
    first.stop();
    second.add([14]);
    second.stop();
    assert_eq!(ids(&on_disk(&index)), entries(10..15));

    // Another file in its place, as from a backup.
    let server = open(&index, &[]);
    server.add([15]);
    let backup = fs::read(&index).unwrap();
    fs::remove_file(&index).unwrap();
    fs::write(&index, &backup).unwrap();
    let (status, reply) = server.try_add([16]);
    assert_eq!(status, 507, "{reply}");
    server.stop();
    assert_eq!(fs::read(&index).unwrap(), backup);
    assert_eq!(ids(&on_disk(&index)), entries(10..16));
}

#[test]
fn a_log_that_is_damaged_is_refused_and_salvaged_where_that_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let (index, images) = (folder.path().join("index"), folder.path().join("pictures"));
    pictures(&images, 3);
    let log_path = beside(&index, ".log");
    let server = open(&index, &[]);
    for i in 0..100 {
        server.add([i]);
    }
    server.kill();
    let whole = fs::read(&log_path).unwrap();
    let embeddings: Vec<_> = records(&whole)
        .into_iter()
        .filter(|record| whole[record.start + 16] == b'+')
        .collect();
    assert_eq!(embeddings.len(), 100);
    // In the values, in the length and in the checksum.
    for (number, byte) in [(10, 300), (50, 0), (75, 6), (30, 9), (99, 300), (99, 1)] {
        let mut damaged = whole.clone();
        damaged[embeddings[number].start + byte] ^= 4;
        fs::write(&log_path, &damaged).unwrap();
        let message = refused(&index, &[]);
        let place = format!(
            "index.log: the log is damaged at byte {}: ",
            embeddings[number].start
        );
        assert!(
            message.contains(&place) && message.contains("--salvage-index"),
            "{message}"
        );
        // Behind each embedding there are a header, a source and an embedding for each of the others.
        let behind = match number {
            99 => "in a record that was written whole".to_owned(),
            _ => format!("with {} sound records behind it", 3 * (99 - number)),
        };
        assert!(message.contains(&behind), "{message}");
        let refused = failure(&search(&index, &images, &[]));
        assert!(refused.contains("--salvage-index"), "{refused}");
        assert_eq!(fs::read(&log_path).unwrap(), damaged);
        assert!(!index.exists());

        let copy = beside(&index, ".log.damaged");
        let server = open(&index, &["--salvage-index"]);
        assert_eq!(server.size(), 99);
        assert_eq!(fs::read(&copy).unwrap(), damaged);
        server.add(200..202);
        server.kill();
        assert_eq!(on_disk(&index).len(), 101);
        // Another time the copy gets another name.
        fs::remove_file(&index).unwrap();
        fs::write(&log_path, &damaged).unwrap();
        let (_, errors) = found(&search(&index, &images, &["--salvage-index"]));
        let second = beside(&index, ".log.damaged.2");
        assert!(errors.contains(text(&second)), "{errors}");
        assert_eq!(fs::read(&second).unwrap(), damaged);
        assert_eq!(on_disk(&index).len(), 102);
        for path in [&index, &copy, &second] {
            fs::remove_file(path).unwrap();
        }
    }

    // The start of a record at the end was never acknowledged.
    for torn in [1, 7, 8, 20, 500] {
        let begun = [&whole, &whole[..600][..torn]].concat();
        fs::write(&log_path, &begun[..]).unwrap();
        let is_record = torn == 500;
        let server = open(&index, &[]);
        assert_eq!(server.size(), 100, "{torn}");
        server.kill();
        let length = fs::metadata(&log_path).unwrap().len() as usize;
        // Of 500 bytes a header and a source are sound records.
        assert!(length == whole.len() || is_record && length < begun.len());
    }
}

/// Where the records of a log lie.
fn records(log: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut records = Vec::new();
    let mut at = 0;
    while at < log.len() {
        let length = u64::from_le_bytes(*log[at..].first_chunk().unwrap()) as usize;
        records.push(at..at + 16 + length);
        at += 16 + length;
    }
    records
}

/// A search under way, and how many of its pictures are on the disk when it has been stopped.
fn stopped(index: &Path, images: &Path, name: &str, after: usize) -> usize {
    let mut child = command(&[
        "search",
        "--images",
        text(images),
        "--index",
        text(index),
        "--text",
        "圆",
    ])
    .args(["--quiet", "--threads", "1"])
    .stdout(Stdio::null())
    .spawn()
    .unwrap();
    let size = || fs::metadata(beside(index, ".log")).map_or(0, |log| log.len());
    let start = Instant::now();
    let before = size();
    while size() < before + after as u64 * 600 && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(1));
    }
    signal(&child, name);
    child.wait().unwrap();
    on_disk(index).len()
}

#[test]
fn a_first_search_that_is_interrupted_keeps_what_it_did() {
    const PICTURES: usize = 1000;
    let folder = TempDir::new().unwrap();
    let (index, images) = (folder.path().join("index"), folder.path().join("pictures"));
    pictures(&images, PICTURES);
    let mut kept = 0;
    for name in ["INT", "KILL", "TERM", "KILL"] {
        let now = stopped(&index, &images, name, 20);
        assert!(now >= kept + 16, "{now} after {kept}");
        kept = now;
    }
    assert!(kept < PICTURES, "nothing was interrupted");
    // What is there is not embedded again: these could not be.
    let done = on_disk(&index);
    let mut spoiled = 0;
    for id in done.ids() {
        let file = images.join(id.split('\t').next().unwrap());
        let metadata = fs::metadata(&file).unwrap();
        fs::write(&file, vec![0; metadata.len() as usize]).unwrap();
        let file = fs::File::options().write(true).open(&file).unwrap();
        file.set_modified(metadata.modified().unwrap()).unwrap();
        spoiled += 1;
    }
    assert_eq!(spoiled, kept);
    let (_, errors) = found(&search(&index, &images, &[]));
    assert!(!errors.contains("skipped"), "{errors}");
    let all = EmbeddingIndex::load(&fs::read(&index).unwrap()).unwrap();
    assert_eq!(all.len(), PICTURES);
    for id in done.ids() {
        assert_eq!(all.get(id), done.get(id));
    }
}

/// What changes when a file is written, be it with the same contents.
fn written(path: &Path) -> (u64, SystemTime, Vec<u8>) {
    let metadata = fs::metadata(path).unwrap();
    (
        metadata.ino(),
        metadata.modified().unwrap(),
        fs::read(path).unwrap(),
    )
}

#[test]
fn a_folder_in_which_nothing_changed_writes_nothing() {
    let folder = TempDir::new().unwrap();
    let (index, images) = (folder.path().join("index"), folder.path().join("pictures"));
    pictures(&images, 5);
    fs::write(images.join("broken.jpg"), "no picture").unwrap();
    found(&search(&index, &images, &[]));
    let before = written(&index);
    for _ in 0..2 {
        let (_, errors) = found(&search(&index, &images, &[]));
        assert!(
            errors.contains("skipped") && errors.contains("broken.jpg"),
            "{errors}"
        );
        assert_eq!(written(&index), before);
    }
    // What a killed server left in the log is taken into the file, once.
    let server = open(&index, &[]);
    server.add([1]);
    server.kill();
    found(&search(&index, &images, &[]));
    assert_ne!(written(&index), before);
    let before = written(&index);
    found(&search(&index, &images, &[]));
    assert_eq!(written(&index), before);
}

#[test]
fn searches_at_once_do_not_spoil_each_others_work() {
    const PICTURES: usize = 200;
    let folder = TempDir::new().unwrap();
    let (index, images) = (folder.path().join("index"), folder.path().join("pictures"));
    pictures(&images, PICTURES);
    thread::scope(|scope| {
        let searches: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| search(&index, &images, &["--quiet"])))
            .collect();
        let done: Vec<Output> = searches
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        assert!(done.iter().any(|output| output.status.success()));
        for output in done.iter().filter(|output| !output.status.success()) {
            // It came before there was anything to read.
            assert!(failure(output).contains("has nothing to search in"));
        }
    });
    assert_eq!(on_disk(&index).len(), PICTURES);
}

#[test]
fn a_server_that_writes_can_be_read_all_the_time() {
    let folder = TempDir::new().unwrap();
    let (index, images) = (folder.path().join("index"), folder.path().join("pictures"));
    pictures(&images, 1);
    let server = open(&index, &[]);
    server.add(0..200);
    let round = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            // More than 4 MiB of changes, so that the log is folded now and then.
            while round.load(Ordering::Relaxed) < 6 {
                server.add(0..200);
            }
        });
        for _ in 0..6 {
            let output = search(&index, &images, &["--top", "300"]);
            round.fetch_add(1, Ordering::Relaxed);
            let (out, _) = found(&output);
            assert_eq!(out.lines().count(), 200);
        }
    });
    server.stop();
}

#[test]
fn an_index_takes_the_memory_that_is_documented() {
    const EMBEDDINGS: usize = 15_000;
    const ID: usize = 1000;
    let folder = TempDir::new().unwrap();
    let index = folder.path().join("index");
    let server = open(&index, &["--quiet", "--max-ids", "14500KB"]);
    let memory = || -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
        kilobytes.parse::<usize>().unwrap() << 10
    };
    let add = |from: usize| {
        let item = |i: usize| json!({"id": format!("{i:x>ID$}"), "embedding": vector(i % 50)});
        let items: Vec<Value> = (from..from + 250).map(item).collect();
        server.ask("POST", "/v1/index", &json!({ "items": items }))
    };
    // So that what requests take is there already.
    for _ in 0..4 {
        assert_eq!(add(0).0, 200);
    }
    // Elsewhere nothing says what a process takes.
    let before = if cfg!(target_os = "linux") { memory() } else { 0 };
    for from in (250..14_750).step_by(250) {
        assert_eq!(add(from).0, 200);
    }
    if cfg!(target_os = "linux") {
        let (taken, documented) = (memory() - before, 14_500 * (4 * DIMENSIONS + ID + 256));
        assert!(
            taken <= documented + (4 << 20),
            "{taken} bytes, documented {documented}"
        );
    }
    // All ids together have a limit, too.
    let (status, reply) = add(EMBEDDINGS - 250);
    assert_eq!(
        (status, &reply["error"]["code"]),
        (507, &json!("index_full")),
        "{reply}"
    );
    assert!(
        reply["error"]["message"].as_str().unwrap().contains("--max-ids"),
        "{reply}"
    );
    assert_eq!(add(0).1["replaced"], 250);
    let ids: Vec<String> = (0..500).map(|i| format!("{i:x>ID$}")).collect();
    for ids in ids.chunks(250) {
        assert_eq!(
            server.ask("DELETE", "/v1/index", &json!({ "ids": ids })).1["removed"],
            250
        );
    }
    assert_eq!(add(EMBEDDINGS - 250).0, 200);
}

/// A small file system, where this process may mount one.
struct Disk(TempDir);

impl Disk {
    fn mount(size: &str) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let mut mount = Command::new("mount");
        mount.args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={size}"),
            "tmpfs",
            text(folder.path()),
        ]);
        let mounted = mount.stderr(Stdio::null()).status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(folder))
    }

    /// Fills what is free, and returns the file that does so.
    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("filler");
        let mut file = fs::File::options().append(true).create(true).open(&path).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", text(self.0.path())]).status();
    }
}

/// Adds entries until there is no room; returns how many are there.
fn fill_index(server: &Server) -> usize {
    for from in (0..).step_by(50) {
        let (status, reply) = server.try_add(from..from + 50);
        if status != 200 {
            assert_eq!(status, 507, "{reply}");
            return from;
        }
    }
    unreachable!()
}

/// Empties an index that takes nothing more, and fills it again.
fn empty_and_fill(server: &Server, full: usize) -> BTreeSet<String> {
    let (status, reply) = server.remove(0..10);
    assert_eq!((status, &reply["removed"]), (200, &json!(10)), "{reply}");
    for from in (10..full / 2).step_by(10) {
        let (status, reply) = server.remove(from..from + 10);
        assert_eq!(status, 200, "{reply}");
    }
    let left = server.size() as usize;
    server.add(10_000..10_010);
    assert_eq!(server.size() as usize, left + 10);
    let removed = (10..full / 2)
        .step_by(10)
        .next_back()
        .map_or(10, |from| from + 10);
    &entries(removed..full) | &entries(10_000..10_010)
}

#[test]
fn an_index_that_fills_the_disk_can_be_emptied() {
    let Some(disk) = Disk::mount("2m") else {
        // Then the next test is what there is.
        return skipped("this process may not mount a file system");
    };
    let index = disk.0.path().join("index");
    let server = open(&index, &[]);
    let full = fill_index(&server);
    assert!(full >= 500, "{full}");
    let expected = empty_and_fill(&server, full);
    assert_eq!(ids(&on_disk(&index)), expected);
    // Something else takes what is left of the disk. What is kept back is enough for removals and for
    // folding.
    let filler = disk.fill();
    assert_eq!(server.try_add(20_000..20_200).0, 507);
    assert_eq!(server.remove([full - 1, 10_000]).0, 200);
    let mut left = expected;
    left.remove(&format!("entry {}", full - 1));
    left.remove("entry 10000");
    assert_eq!(ids(&on_disk(&index)), left);
    server.stop();
    assert_eq!(fs::metadata(beside(&index, ".log")).unwrap().len(), 0);
    assert_eq!(ids(&on_disk(&index)), left);

    // A disk that was full when the server started takes nothing, and loses nothing.
    disk.fill();
    let server = open(&index, &[]);
    assert_eq!(server.size() as usize, left.len());
    assert_eq!(server.try_add(20_000..20_200).0, 507);
    server.stop();
    assert_eq!(ids(&on_disk(&index)), left);
    fs::remove_file(filler).unwrap();
    let server = open(&index, &[]);
    server.add([30_000]);
    server.kill();
    assert_eq!(on_disk(&index).len(), left.len() + 1);
}

#[test]
fn an_index_whose_files_may_not_grow_can_be_emptied() {
    let folder = TempDir::new().unwrap();
    let index = folder.path().join("index");
    let mut shell = Command::new("bash");
    let serve = serving(&index, &[]).join(" ");
    let script = format!("trap '' XFSZ; ulimit -f 700; exec {BINARY} {serve}");
    clean(shell.args(["-c", &script]));
    let server = ready(shell);
    let full = fill_index(&server);
    assert!(full >= 500, "{full}");
    let expected = empty_and_fill(&server, full);
    assert_eq!(ids(&on_disk(&index)), expected);
    server.stop();
    assert_eq!(ids(&on_disk(&index)), expected);
}

/// What stands between a program and the system's `fsync`: it writes down what is synchronised, and fails for
/// folders as long as a file is there.
fn failing_fsync(folder: &Path) -> Result<PathBuf, &'static str> {
    let code = r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <errno.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/stat.h>
        #include <unistd.h>
        int fsync(int fd) {
            struct stat about;
            char link[64], path[4096];
            const char *list = getenv("SYNCED"), *failing = getenv("FAILING");
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            ssize_t length = readlink(link, path, sizeof path - 1);
            path[length < 0 ? 0 : length] = 0;
            if (failing && !access(failing, F_OK) && !fstat(fd, &about) && S_ISDIR(about.st_mode)) {
                errno = EIO;
                return -1;
            }
            if (list) {
                FILE *out = fopen(list, "a");
                if (out) { fprintf(out, "%s\n", path); fclose(out); }
            }
            return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd);
        }
    "#;
    library_to_preload(folder, code)
}

#[test]
fn the_log_is_emptied_only_when_the_folder_is_on_the_disk() {
    let folder = TempDir::new().unwrap();
    let library = match failing_fsync(folder.path()) {
        Ok(library) => library,
        Err(reason) => return skipped(reason),
    };
    let (index, failing) = (folder.path().join("index"), folder.path().join("failing"));
    let start = || {
        let mut command = command(&serving(&index, &[]));
        command
            .env("LD_PRELOAD", &library)
            .env("FAILING", &failing)
            .stderr(Stdio::piped());
        ready(command)
    };
    let mut server = start();
    server.add(0..5);
    fs::write(&failing, "").unwrap();
    let mut errors = server.child.stderr.take().unwrap();
    server.signal("TERM");
    server.child.wait().unwrap();
    let mut log = String::new();
    errors.read_to_string(&mut log).unwrap();
    assert!(
        log.contains("saving the index") && log.contains("writing the names in"),
        "{log}"
    );
    assert!(fs::metadata(beside(&index, ".log")).unwrap().len() > 0);
    assert_eq!(ids(&on_disk(&index)), entries(0..5));
    // It is not opened either.
    let mut command = command(&serving(&index, &[]));
    let output = command
        .env("LD_PRELOAD", &library)
        .env("FAILING", &failing)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    fs::remove_file(&failing).unwrap();
    let server = start();
    assert_eq!(server.size(), 5);
    server.stop();
    assert_eq!(fs::metadata(beside(&index, ".log")).unwrap().len(), 0);
}

#[test]
fn all_of_a_model_folder_is_on_the_disk_before_it_has_its_name() {
    let folder = TempDir::new().unwrap();
    let library = match failing_fsync(folder.path()) {
        Ok(library) => library,
        Err(reason) => return skipped(reason),
    };
    let (output, list) = (folder.path().join("new/model"), folder.path().join("synced"));
    let mut whole = convert("tiny", &output);
    whole.env("LD_PRELOAD", &library).env("SYNCED", &list);
    success(&whole.output().unwrap());
    let synced = fs::read_to_string(&list).unwrap();
    let real = fs::canonicalize(folder.path()).unwrap();
    let position = |path: PathBuf| {
        let last = synced
            .lines()
            .enumerate()
            .filter(|(_, line)| Path::new(line) == path)
            .last();
        last.map(|(at, _)| at)
            .unwrap_or_else(|| panic!("{} is not among\n{synced}", path.display()))
    };
    let part = position(real.join("new/model.part"));
    for entry in fs::read_dir(&output).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(position(real.join("new/model.part").join(name)) < part);
    }
    // And the names of the folder itself, and of the one that it was made in.
    assert!(position(real.join("new")) > part);
    position(real.clone());
    // Where that fails nothing has the name.
    let failing = folder.path().join("failing");
    fs::write(&failing, "").unwrap();
    let other = folder.path().join("new/other");
    let mut failed = convert("tiny", &other);
    failed.env("LD_PRELOAD", &library).env("FAILING", &failing);
    assert!(failure(&failed.output().unwrap()).contains("writing the names in"));
    assert!(!other.exists());
}

#[test]
fn a_file_that_has_the_name_of_the_lock_stays() {
    let folder = TempDir::new().unwrap();
    let (images, index) = (folder.path().join("images"), folder.path().join("Cargo"));
    pictures(&images, 2);
    let lock = beside(&index, ".lock");
    fs::write(&lock, "version = 4").unwrap();
    let expected = "would be this index's lock, but is a file of 11 bytes that something else made";
    assert!(failure(&search(&index, &images, &[])).contains(expected));
    assert!(refused(&index, &[]).contains(expected));
    assert_eq!(fs::read(&lock).unwrap(), b"version = 4");
    // An empty one is what a process leaves that was killed.
    fs::write(&lock, "").unwrap();
    found(&search(&index, &images, &[]));
    assert!(!lock.exists());
}
