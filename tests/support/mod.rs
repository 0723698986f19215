//! What the tests of the library (`tests/it`) and of the binary (`tests/cli`) both need.

pub mod checkpoints;
pub mod skip;

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the path of a file of the repository.
pub fn repository(path: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Returns the path of a recorded file.
pub fn golden(name: impl AsRef<Path>) -> PathBuf {
    repository("tests/goldens").join(name)
}

/// Reads a file of the repository.
pub fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = repository(path);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Reads a recorded file.
pub fn read_golden(name: impl AsRef<Path>) -> Vec<u8> {
    read(golden(name))
}

/// Returns the largest difference of two values at the same place; NaN where a value is not a number.
pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |most, x| if x > most || x.is_nan() { x } else { most })
}
