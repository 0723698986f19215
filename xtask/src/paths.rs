//! The names of the repository's files.

use std::collections::HashMap;

use crate::command::program;
use crate::skip::skipped;

/// The names of devices on Windows. With any ending they are still devices.
const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];

/// Why a path cannot be a file's on Windows.
fn refused(path: &str) -> Option<&'static str> {
    path.split('/').find_map(|name| {
        let stem = name
            .split('.')
            .next()
            .unwrap_or_default()
            .trim_end()
            .to_lowercase();
        let numbered = ["com", "lpt"].iter().find_map(|port| stem.strip_prefix(port));
        let is_port = numbered.is_some_and(|number| {
            let mut characters = number.chars();
            characters
                .next()
                .is_some_and(|c| "0123456789\u{b9}\u{b2}\u{b3}".contains(c))
                && characters.next().is_none()
        });
        if DEVICES.contains(&stem.as_str()) || is_port {
            Some("the name of a device")
        } else if name.ends_with(['.', ' ']) {
            Some("a dot or a blank at its end")
        } else if name.contains(|c: char| "<>:\"|?*\\".contains(c) || c.is_control()) {
            Some("a character that Windows refuses")
        } else {
            None
        }
    })
}

#[test]
fn names_that_windows_refuses_are_found() {
    for path in [
        "tests/nul.tsv",
        "AUX",
        "a/con/b",
        "COM1.txt",
        "lpt\u{b2}",
        "nul .a.b",
        "a./b",
        "a ",
        "a:b",
        "what?.txt",
        "a\\b",
        "a\tb",
    ] {
        assert!(refused(path).is_some(), "{path}");
    }
    for path in [
        "tests/null.tsv",
        ".gitignore",
        "console/com",
        "com10",
        "a b/c.d.e",
        "猫.jpg",
    ] {
        assert_eq!(refused(path), None, "{path}");
    }
}

/// Otherwise the repository could not be cloned there, and on a Mac one of two files would be missing.
#[test]
fn every_file_has_a_name_that_every_system_takes() {
    let listed = match program("git", &["ls-files", "-z"]).output() {
        Err(error) => return skipped(format!("git cannot be run: {error}")),
        Ok(output) if !output.status.success() || output.stdout.is_empty() => {
            let said = String::from_utf8_lossy(&output.stderr);
            return skipped(format!("this is no git checkout: {}", said.trim()));
        }
        Ok(output) => String::from_utf8(output.stdout).expect("names in UTF-8"),
    };
    let paths: Vec<&str> = listed.split_terminator('\0').collect();
    let refused: Vec<_> = paths
        .iter()
        .filter_map(|path| Some(format!("{path}: {}", refused(path)?)))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
    // The files and the folders that they are in.
    let mut known = HashMap::new();
    for path in paths {
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for part in ends.map(|end| &path[..end]) {
            let first = *known.entry(part.to_lowercase()).or_insert(part);
            assert_eq!(first, part, "two names that differ by case alone");
        }
    }
}
