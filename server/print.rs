//! What commands print: results on standard output, remarks on standard error.
//!
//! `println!` and `eprintln!` panic where their text cannot be written. Here a result that cannot be written
//! is an error like any other, and a remark is dropped. Clippy refuses the standard macros in this program,
//! so that all commands print this way.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result};
use ernie_vil::native::pictures::name_of;

/// Prints a result, without a line break.
macro_rules! out {
    ($($text:tt)*) => {
        $crate::print::write(format_args!($($text)*))
    };
}

/// Prints a line of results.
macro_rules! outln {
    ($($text:tt)*) => {
        $crate::print::write_line(format_args!($($text)*))
    };
}

/// Prints a line on standard error. Where that is closed or its disk is full, nobody can be told, so that is
/// ignored.
macro_rules! note {
    ($($text:tt)*) => {
        $crate::print::remark(format_args!($($text)*))
    };
}

pub(crate) use {note, out, outln};

/// The reader of standard output has gone (`| head`). It has what it wants, so this ends the program without
/// a message and with exit code 0: a pipeline under `set -o pipefail` does not fail because of it.
#[derive(Debug)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reader of standard output has gone")
    }
}

impl std::error::Error for Closed {}

/// An error of standard output as the program reports it.
pub fn checked(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        result => result.context("writing to standard output"),
    }
}

pub fn write(text: fmt::Arguments<'_>) -> Result<()> {
    checked(io::stdout().lock().write_fmt(text))
}

pub fn write_line(text: fmt::Arguments<'_>) -> Result<()> {
    write(format_args!("{text}\n"))
}

/// Prints lines that are put together already, and brings them to the reader.
pub fn write_lines(lines: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    checked(out.write_all(lines).and_then(|()| out.flush()))
}

/// Brings to the reader what was printed.
pub fn flush() -> Result<()> {
    checked(io::stdout().lock().flush())
}

pub fn remark(text: fmt::Arguments<'_>) {
    // One write a line, so that lines of several threads stay whole.
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// A path as results print it: its bytes as they are, where a program may go on with them.
pub fn path_bytes(path: &Path) -> Vec<u8> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        path.as_os_str().as_bytes().to_owned()
    }
    #[cfg(not(unix))]
    path.display().to_string().into_bytes()
}

/// A path for JSON, which has no place for bytes that are not UTF-8: `file`, and where some had to be
/// replaced in it also `file_encoded` with all of them, percent-encoded.
pub fn path_fields(path: &Path) -> serde_json::Map<String, serde_json::Value> {
    let mut fields = serde_json::Map::new();
    fields.insert("file".into(), path.to_string_lossy().into());
    if path.to_str().is_none()
        && let Some(name) = name_of(path)
    {
        let encoded = name.strip_prefix("//").unwrap_or(&name);
        fields.insert("file_encoded".into(), encoded.into());
    }
    fields
}
