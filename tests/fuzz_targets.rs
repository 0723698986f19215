//! The fuzz targets on all recorded files and seeds, whole and cut short: what they hold the library to,
//! bounds of memory included, is tested where nobody fuzzes.

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

/// Longer files take longer and show no more.
const LONGEST: usize = 64 << 10;

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

/// One test, as the memory is counted for all threads together.
#[test]
fn all_targets_take_all_files() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    files(&repository.join("tests/goldens"), &mut found);
    files(&repository.join("fuzz/seeds"), &mut found);
    found.sort();
    let mut taken = 0;
    for path in &found {
        let bytes = fs::read(path).unwrap();
        if bytes.len() > LONGEST {
            continue;
        }
        taken += 1;
        for (name, target) in TARGETS {
            println!("{name}: {}", path.display());
            target(&bytes);
            target(&bytes[..bytes.len() / 2]);
        }
    }
    assert!(taken > 100, "{taken} files");
}
