//! Tests that cannot run on a machine say so here, so that `cargo xtask test` does not count them as passed.

use std::fs::OpenOptions;
use std::io::Write;

/// Names the file that gets a line for each test that was skipped. `cargo xtask test` sets it, as test
/// runners hide what a passing test prints.
const FILE: &str = "ERNIE_VIL_SKIPPED_TESTS";

/// Records that the calling test is skipped. The test returns right after it: `return skipped("there is no
/// curl")`.
#[allow(dead_code, reason = "with few features no test can be skipped")]
pub fn skipped(reason: impl std::fmt::Display) {
    report("SKIPPED", &reason.to_string());
}

/// Records that the calling test leaves out a part of what it tests, and runs the rest.
#[allow(dead_code, reason = "with few features no test has such a part")]
pub fn partly_skipped(reason: impl std::fmt::Display) {
    report("PARTLY SKIPPED", &reason.to_string());
}

/// The test's name is that of its thread, which the test harness starts for it.
fn report(word: &str, reason: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    let reason = reason.replace(['\n', '\r'], " ");
    let line = format!("{word} {}::{name}: {reason}\n", env!("CARGO_CRATE_NAME"));
    print!("{line}");
    let Some(path) = std::env::var_os(FILE) else {
        return;
    };
    // One call writes the whole line, as tests of other processes append to the file at the same time.
    let file = OpenOptions::new().append(true).create(true).open(&path);
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        panic!("{}: {error}", path.display());
    }
}
