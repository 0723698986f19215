//! The fuzz targets where nobody fuzzes: on all recorded files and seeds, whole and cut short, on files that
//! were changed by their structure, and on files that were made to take long. What the targets hold the
//! library to, bounds of memory and time included, is tested by that.
//!
//! `cargo xtask fuzz mutate [TARGET] [SECONDS]` changes files for longer.
//!
//! This is a program of its own: the targets' allocator counts the memory of all threads together, and ends
//! the process where an input takes too much. Tests of anything else beside it would be counted and ended
//! with it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

#[path = "../fuzz/src/lib.rs"]
mod fuzz;
#[path = "../fuzz/src/recorded.rs"]
mod recorded;

/// Longer files take longer and show no more.
const LONGEST: usize = 64 << 10;
/// Changed files have at most this many bytes, and are made of those that are no longer.
const LONGEST_CHANGED: usize = 16 << 10;
/// Changed files of a target, where nothing says for how many seconds.
const CHANGED: u64 = 2000;

/// A target's name and what it does with an input.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 13] = [
    ("base64", fuzz::base64),
    ("caption", fuzz::caption),
    ("captions", fuzz::captions),
    ("config", fuzz::config),
    ("image", fuzz::image),
    ("index", fuzz::index),
    ("npy", fuzz::npy),
    ("out", fuzz::out),
    ("pairs", fuzz::pairs),
    ("pickle", fuzz::pickle),
    ("request", fuzz::request),
    ("safetensors", fuzz::safetensors),
    ("vocabulary", fuzz::vocabulary),
];

/// The input that a target has: what it is, and its bytes.
static CURRENT: Mutex<(String, Vec<u8>)> = Mutex::new((String::new(), Vec::new()));
/// Whether a target runs.
static INSIDE: AtomicBool = AtomicBool::new(false);
/// Where the last panic was, and what it said.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One test at a time, as the memory is counted for all threads together.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    static ONCE: Once = Once::new();
    let alone = lock(&ALONE);
    ONCE.call_once(|| {
        fuzz::on_abort(|| {
            let (what, bytes) = &*lock(&CURRENT);
            let kept = keep(bytes);
            let _ = writeln!(
                std::io::stderr(),
                "{what}; the input is kept in {}",
                kept.display()
            );
        });
        // The first line is enough, and there may be many.
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !INSIDE.load(SeqCst) {
                return before(panic);
            }
            let place = panic
                .location()
                .map(|place| place.to_string())
                .unwrap_or_default();
            let message = panic.payload_as_str().unwrap_or("a panic");
            *lock(&PANIC) = format!("{place}: {}", message.lines().next().unwrap_or_default());
        }));
    });
    alone
}

/// Keeps an input that broke a promise.
fn keep(bytes: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let path = folder.join(format!("{sum:016x}"));
    fs::create_dir_all(&folder).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

/// What went wrong, by the place of the panic: the first inputs, and how many.
#[derive(Default)]
struct Failures(BTreeMap<String, (Vec<String>, usize)>);

impl Failures {
    /// Runs a target, whose panic is no end.
    fn run(&mut self, (name, target): Target, what: &str, bytes: &[u8]) {
        *lock(&CURRENT) = (format!("{name}: {what}"), bytes.to_vec());
        INSIDE.store(true, SeqCst);
        let result = catch_unwind(AssertUnwindSafe(|| target(bytes)));
        INSIDE.store(false, SeqCst);
        if result.is_err() {
            let panic = std::mem::take(&mut *lock(&PANIC));
            // Numbers in a message are others each time.
            let place: String = panic
                .chars()
                .map(|c| if c.is_ascii_digit() { '0' } else { c })
                .collect();
            let (inputs, count) = self.0.entry(format!("{name} {place}")).or_default();
            *count += 1;
            if inputs.len() < 3 {
                inputs.push(format!("{panic}\n    {what}, kept in {}", keep(bytes).display()));
            }
        }
    }

    fn assert_none(self) {
        let mut report = String::new();
        for (inputs, count) in self.0.values() {
            report += &format!("\n{count} inputs, such as\n  {}", inputs.join("\n  "));
        }
        assert!(report.is_empty(), "{report}");
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Files below a folder of the repository, sorted.
fn below(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    if folder.is_dir() {
        files(&folder, &mut found);
    }
    found.sort();
    found
}

#[test]
fn all_targets_take_all_files() {
    let _alone = alone();
    let mut taken = 0;
    let mut failures = Failures::default();
    for path in ["tests/goldens", "tests/tiff_cases", "fuzz/seeds"]
        .map(below)
        .into_iter()
        .flatten()
    {
        let bytes = fs::read(&path).unwrap();
        if bytes.len() > LONGEST {
            continue;
        }
        taken += 1;
        for target in TARGETS {
            failures.run(target, &path.display().to_string(), &bytes);
            failures.run(
                target,
                &format!("half of {}", path.display()),
                &bytes[..bytes.len() / 2],
            );
        }
    }
    failures.assert_none();
    assert!(taken > 100, "{taken} files");
}

/// Valid files with other lengths, counts, tables and values, under right checksums.
#[test]
fn all_targets_take_changed_files() {
    let _alone = alone();
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let seconds =
        variable("ERNIE_VIL_FUZZ_SECONDS").map(|seconds| seconds.parse().expect("a number of seconds"));
    let only = variable("ERNIE_VIL_FUZZ_TARGETS");
    let is_asked_for = |name: &str| {
        only.as_ref()
            .is_none_or(|only| only.split(',').any(|one| one == name))
    };
    let mut failures = Failures::default();
    for target @ (name, _) in TARGETS.into_iter().filter(|(name, _)| is_asked_for(name)) {
        let seeds = Seeds::of(name);
        let begun = Instant::now();
        let mut number = 0;
        loop {
            match seconds.map(Duration::from_secs) {
                Some(time) if begun.elapsed() > time => break,
                None if number == CHANGED => break,
                _ => {}
            }
            let (path, bytes) = seeds.get(number);
            let changed = fuzz::mutate::mutate(name, bytes, number, LONGEST_CHANGED);
            failures.run(target, &format!("{path}, change {number}"), &changed);
            number += 1;
        }
        println!("{name}: {number} changed files in {:?}", begun.elapsed());
    }
    failures.assert_none();
}

/// The files that are changed.
struct Seeds {
    recorded: Vec<(String, Vec<u8>)>,
    /// Few and small, made for this.
    own: Vec<(String, Vec<u8>)>,
}

impl Seeds {
    fn of(target: &str) -> Self {
        let endings = recorded::RECORDED.iter().find(|&&(name, _)| name == target);
        let endings = endings.expect("a known target").1;
        let fits = |path: &PathBuf| {
            path.extension()
                .is_some_and(|ending| endings.iter().any(|&one| ending == one))
        };
        let read = |paths: Vec<PathBuf>| -> Vec<_> {
            let files = paths
                .into_iter()
                .map(|path| (path.display().to_string(), fs::read(path).unwrap()));
            files
                .filter(|(_, bytes)| bytes.len() <= LONGEST_CHANGED)
                .collect()
        };
        let seeds = Self {
            recorded: read(below("tests/goldens").into_iter().filter(fits).collect()),
            own: read(below(&format!("fuzz/seeds/{target}"))),
        };
        assert!(!seeds.recorded.is_empty() || !seeds.own.is_empty(), "{target}");
        seeds
    }

    /// By turns one of each kind, where there are both.
    fn get(&self, number: u64) -> &(String, Vec<u8>) {
        let is_own = self.recorded.is_empty() || !self.own.is_empty() && number.is_multiple_of(2);
        let of = if is_own { &self.own } else { &self.recorded };
        &of[(number / 2) as usize % of.len()]
    }
}

/// What is changed is another file each time, and the same one for the same number.
#[test]
fn changes_follow_from_their_number() {
    let _alone = alone();
    for (name, _) in TARGETS {
        let seeds = Seeds::of(name);
        let change = |number: u64| {
            let (_, bytes) = seeds.get(number);
            fuzz::mutate::mutate(name, bytes, number, LONGEST_CHANGED)
        };
        let mut all: Vec<_> = (0..200).map(change).collect();
        assert!(all.iter().all(|bytes| bytes.len() <= LONGEST_CHANGED), "{name}");
        assert!((0..200).map(change).eq(all.iter().cloned()), "{name}");
        all.sort();
        all.dedup();
        assert!(all.len() > 100, "{name}: {} files", all.len());
    }
}

/// Pickles of 68 kB in which the time once grew with the square of the size.
#[test]
fn pickles_that_were_made_to_take_long() {
    const SIZE: usize = 68_000;
    let text = |text: &str| [&[b'X'][..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    // An empty array, and one of many bytes, under the numbers 0 and 1; the pickle's dictionary behind them.
    let array = |bytes: usize| {
        let mut array = b"cnumpy.core.numeric\n_frombuffer\n(".to_vec();
        array.extend([b'B']);
        array.extend((bytes as u32).to_le_bytes());
        array.extend(vec![0; bytes]);
        array.extend(b"cnumpy\ndtype\n");
        array.extend(text("u1"));
        array.extend(b"\x89\x88\x87R");
        array.push(b'J');
        array.extend((bytes as u32).to_le_bytes());
        array.extend(b"\x85");
        array.extend(text("C"));
        array.extend(b"tR");
        array
    };
    let begun = |bytes: usize| [b"\x80\x04", array(bytes).as_slice(), b"q\x000}"].concat();
    let name = |number: usize| [&[0x8c, 3][..], &format!("{number:03x}").as_bytes()[..3]].concat();
    // Entries of a table of cut tensors, all about one dictionary that is searched for its shape.
    let one_dictionary = || {
        let mut file = begun(0);
        file.extend(
            [
                text("a"),
                b"q\x01h\x00s".to_vec(),
                text("UnpackBigParamInfor@@"),
                b"}}".to_vec(),
            ]
            .concat(),
        );
        file.extend(
            [
                text("OriginShape"),
                b"K\x00\x85s".to_vec(),
                text("slices"),
                b"](h\x01es(".to_vec(),
            ]
            .concat(),
        );
        while file.len() < SIZE / 2 {
            file.extend(b"NN");
        }
        file.extend(b"uq\x020(");
        while file.len() < SIZE {
            file.extend(b"h\x01h\x02");
        }
        file.extend(b"us.");
        file
    };
    // The same with as many parts as there is room for, which are then the part of the next one.
    let many_parts = || {
        let mut file = begun(0);
        file.extend(b"(");
        let parts = SIZE / 2 / 12;
        for number in 0..parts.min(0xfff) {
            file.extend(name(number));
            file.extend(b"h\x00");
        }
        file.extend(
            [
                b"u".to_vec(),
                text("UnpackBigParamInfor@@"),
                b"}(".to_vec(),
                name(0),
                b"q\x01}".to_vec(),
            ]
            .concat(),
        );
        file.extend(
            [
                text("OriginShape"),
                b"K\x00\x85s".to_vec(),
                text("slices"),
                b"](".to_vec(),
            ]
            .concat(),
        );
        for number in 0..parts.min(0xfff) {
            file.extend(name(number));
        }
        file.extend(
            [
                b"es".to_vec(),
                b"h\x01}".to_vec(),
                text("OriginShape"),
                b"K\x00\x85s".to_vec(),
            ]
            .concat(),
        );
        file.extend([text("slices"), b"](h\x01esq\x02".to_vec()].concat());
        while file.len() < SIZE {
            file.extend(b"h\x01h\x02");
        }
        file.extend(b"us.");
        file
    };
    // One long name again and again.
    let long_name = || {
        let mut file = begun(1);
        file.extend(text(&"n".repeat(4096)));
        file.extend(b"q\x010(");
        while file.len() < SIZE {
            file.extend(b"h\x01h\x00");
        }
        file.extend(b"u.");
        file
    };
    // Half of the file under as many names as there is room for.
    let shared_data = || {
        let mut file = begun(SIZE / 2);
        file.extend(b"(");
        for number in 0..0xfff {
            file.extend(name(number));
            file.extend(b"h\x00");
        }
        file.extend(b"u.");
        file
    };
    let _alone = alone();
    let mut failures = Failures::default();
    let target = ("pickle", fuzz::pickle as fn(&[u8]));
    failures.run(target, "one dictionary for many tensors", &one_dictionary());
    failures.run(target, "many parts again and again", &many_parts());
    failures.run(target, "a long name again and again", &long_name());
    failures.run(target, "one array under many names", &shared_data());
    failures.assert_none();
}
