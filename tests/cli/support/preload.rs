//! Libraries that take the place of functions of the C library in the binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::text;

/// Compiles C code to a library in the folder, for `LD_PRELOAD`. Or why that cannot be done.
pub fn library_to_preload(folder: &Path, code: &str) -> Result<PathBuf, &'static str> {
    if !cfg!(target_os = "linux") {
        return Err("a library to be loaded first is made for Linux alone");
    }
    let [source, library] = ["library.c", "library.so"].map(|name| folder.join(name));
    fs::write(&source, code).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o", text(&library), text(&source), "-ldl"]);
    // A C compiler links Rust programs there as well.
    assert!(compiler.status().unwrap().success(), "no C compiler");
    Ok(library)
}
