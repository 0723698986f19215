//! `cargo xtask package`: whether the crate that would be published has what it needs, and no more.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::read::GzEncoder;

use crate::Failure;
use crate::command::{cargo, output_and_errors, root};
use crate::licences::OWN;

/// Bytes that crates.io accepts at most.
const LIMIT: u64 = 10 << 20;
/// Files and folders without which the crate is none.
const NEEDED: [&str; 6] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "src/lib.rs",
];
/// Folders that the crate's users have no use for. What the code embeds is let through wherever it is.
const FORBIDDEN: [&str; 9] = [
    ".cargo", ".ci", "benches", "docs", "fuzz", "pkg", "tests", "www", "xtask",
];
/// The bytes of a header in a tar archive, a multiple of which each file takes.
const BLOCK: u64 = 512;

pub fn run(arguments: &[&str]) -> Result<(), Failure> {
    if let [other, ..] = arguments {
        return Err(Failure::Usage(format!("'package' takes no '{other}'.")));
    }
    check().map_err(Failure::Failed)
}

/// Checks the list of files that cargo would pack. It needs no network.
fn check() -> Result<(), String> {
    let mut list = cargo(&["package", "--package", OWN, "--list", "--allow-dirty"]);
    let (files, remarks) = output_and_errors(&mut list)?;
    let files: Vec<&str> = files.lines().collect();
    let mut faults: Vec<String> = remarks
        .lines()
        .filter(|line| line.starts_with("warning"))
        .map(|line| format!("cargo says: {line}"))
        .collect();

    let mut embedded = Vec::new();
    // A file `tests.rs` is a module of unit tests.
    let is_code = |file: &&&str| file.ends_with(".rs") && !file.ends_with("/tests.rs");
    for file in files.iter().filter(is_code) {
        let code = fs::read_to_string(root().join(file)).map_err(|error| format!("{file}: {error}"))?;
        embedded.extend(embeds(&code).map(|path| resolved(file, path)));
    }
    faults.extend(faults_of(&files, &embedded));
    let size = packed(&files).map_err(|error| format!("The files could not be packed: {error}"))?;
    println!(
        "{} files, about {:.1} MB packed; crates.io accepts {:.1} MB.",
        files.len(),
        size as f64 / 1e6,
        LIMIT as f64 / 1e6
    );
    if size >= LIMIT {
        faults.push(format!("{size} bytes are more than crates.io accepts"));
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(format!("The crate's package: {}.", faults.join("; ")))
    }
}

/// What is wrong with a list of files of which the code embeds some.
fn faults_of(files: &[&str], embedded: &[PathBuf]) -> Vec<String> {
    let is_embedded = |file: &str| embedded.iter().any(|path| path == Path::new(file));
    let mut faults = Vec::new();
    for file in NEEDED {
        if !files.contains(&file) {
            faults.push(format!("{file} is missing"));
        }
    }
    for path in embedded {
        if !files.iter().any(|file| Path::new(file) == path) {
            faults.push(format!("{}, which the code embeds, is missing", path.display()));
        }
    }
    for file in files {
        let folder = file.split('/').next().unwrap_or_default();
        if FORBIDDEN.contains(&folder) && !is_embedded(file) {
            faults.push(format!("{file} does not belong in it"));
        }
    }
    faults
}

/// The paths that the code embeds, as they stand there; those of its unit tests are left out.
fn embeds(code: &str) -> impl Iterator<Item = &str> {
    let code = code.split("#[cfg(test)]").next().unwrap_or_default();
    let starts = ["include_bytes!(\"", "include_str!(\""];
    starts
        .into_iter()
        .flat_map(|start| code.split(start).skip(1))
        .filter_map(|rest| rest.split('"').next())
}

/// The path, seen from the package's folder.
fn resolved(file: &str, path: &str) -> PathBuf {
    let mut resolved = Path::new(file).parent().unwrap_or(Path::new("")).to_owned();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir => drop(resolved.pop()),
            part => resolved.push(part),
        }
    }
    resolved
}

/// The size of the files in a packed archive, to within a few kilobytes: cargo adds two files of its own.
fn packed(files: &[&str]) -> io::Result<u64> {
    let mut archive = Vec::new();
    for file in files {
        let path = root().join(file);
        // Cargo makes the others.
        if path.is_file() {
            archive.extend(file.bytes());
            archive.resize(archive.len().next_multiple_of(BLOCK as usize), 0);
            archive.extend(fs::read(path)?);
            archive.resize(archive.len().next_multiple_of(BLOCK as usize), 0);
        }
    }
    io::copy(
        &mut GzEncoder::new(archive.as_slice(), Compression::best()),
        &mut io::sink(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_does_not_belong() {
        let mut files = NEEDED.to_vec();
        files.extend(["tests/goldens/pairs.tsv", "src/text.rs"]);
        let embedded = [PathBuf::from("tests/goldens/pairs.tsv")];
        assert_eq!(faults_of(&files, &embedded), Vec::<String>::new());
        assert_eq!(
            faults_of(&files, &[]),
            ["tests/goldens/pairs.tsv does not belong in it"]
        );
        files.retain(|file| !file.starts_with("tests/") && !file.starts_with("LICENSE-A"));
        assert_eq!(
            faults_of(&files, &embedded),
            [
                "LICENSE-APACHE is missing",
                "tests/goldens/pairs.tsv, which the code embeds, is missing"
            ]
        );
    }

    #[test]
    fn embedded_files_are_found() {
        let code = "const A: &[u8] = include_bytes!(\"../models/a.bin\");\nconst B: &str = include_str!(\"b.json\");\n\
                    #[cfg(test)]\nmod tests { const C: &str = include_str!(\"c.txt\"); }";
        let found: Vec<_> = embeds(code).map(|path| resolved("server/x/y.rs", path)).collect();
        assert_eq!(
            found,
            ["server/models/a.bin", "server/x/b.json"].map(PathBuf::from)
        );
        assert_eq!(resolved("src/lib.rs", "../README.md"), Path::new("README.md"));
    }

    #[test]
    fn it_takes_no_arguments() {
        assert!(matches!(run(&["--list"]), Err(Failure::Usage(_))));
    }
}
