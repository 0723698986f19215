//! What was downloaded before: the sums of files by their address, kept from run to run.
//!
//! Nobody publishes sums of the weights. So the first download is taken on trust, and every later one of the
//! same address is compared with it.
//!
//! ```
//! use ernie_vil::native::sums::{Seen, Sums, day, now};
//! let folder = tempfile::tempdir().unwrap();
//! let sums = Sums::at(folder.path().join("sums.json"));
//! let seen = Seen {
//!     url: "https://example.org/weights".into(),
//!     size: 3,
//!     sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".into(),
//!     etag: None,
//!     last_modified: None,
//!     first_seen: now(),
//! };
//! sums.record(seen.clone()).unwrap();
//! assert_eq!(sums.get("https://example.org/weights").unwrap(), Some(seen));
//! assert_eq!(day(1_772_323_200), "2026-03-01");
//! ```

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Result;
use super::atomic_file::AtomicFile;
use super::error::{Context, ensure};
use super::input;

/// No such file is longer: an entry has some 300 bytes.
const LONGEST: u64 = 1 << 20;
/// Another process that has the file needs milliseconds.
const ATTEMPTS: u32 = 50;

/// A file that was downloaded before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its address.
    pub url: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: String,
    /// The version that the server named, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// Since when the server had it, where it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
    /// When it was downloaded first, in seconds since 1970.
    pub first_seen: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct Content {
    format: u32,
    files: Vec<Seen>,
}

/// The file of all sums.
#[derive(Debug, Clone)]
pub struct Sums {
    path: PathBuf,
}

impl Sums {
    const FORMAT: u32 = 1;

    /// Those of a file, which need not be there.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where they are kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was downloaded from an address before.
    ///
    /// # Errors
    /// Where the file is there and cannot be read: it would protect from nothing if that passed unnoticed.
    pub fn get(&self, url: &str) -> Result<Option<Seen>> {
        Ok(self.read()?.files.into_iter().find(|seen| seen.url == url))
    }

    /// Remembers a file in the place of what was known of its address. One that is the same as before keeps
    /// the day on which it was seen first.
    ///
    /// # Errors
    /// Where the file cannot be read or written.
    pub fn record(&self, mut seen: Seen) -> Result<()> {
        let mut file = self.open()?;
        // Read while it is held, so that what another process adds is not lost.
        let mut content = self.read()?;
        content.format = Self::FORMAT;
        match content.files.iter_mut().find(|known| known.url == seen.url) {
            Some(known) => {
                if known.sha256 == seen.sha256 {
                    seen.first_seen = known.first_seen;
                }
                *known = seen;
            }
            None => content.files.push(seen),
        }
        let mut json = serde_json::to_vec_pretty(&content)?;
        json.push(b'\n');
        file.write_all(&json)
            .with_context(|| format!("writing {}", self.path.display()))?;
        file.commit()
    }

    fn open(&self) -> Result<AtomicFile> {
        let mut attempt = 1;
        loop {
            match AtomicFile::create(&self.path) {
                Err(_) if attempt < ATTEMPTS => {
                    attempt += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
                result => return result,
            }
        }
    }

    fn read(&self) -> Result<Content> {
        let read = || -> Result<Content> {
            if fs::metadata(&self.path).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
                return Ok(Content::default());
            }
            let content: Content = serde_json::from_slice(&input::read_regular(&self.path, LONGEST)?)?;
            ensure!(
                content.format == Self::FORMAT,
                "format is {}, expected {}",
                content.format,
                Self::FORMAT
            );
            Ok(content)
        };
        read().with_context(|| {
            format!(
                "{} (the sums of earlier downloads; without it they are not compared)",
                self.path.display()
            )
        })
    }
}

/// Now, as [`Seen::first_seen`] has it.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The day of a time, as year-month-day.
pub fn day(seconds: u64) -> String {
    // Days since March 1st of the year 0, in eras of 400 years: leap days are then the last of a year.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (year, month + 3),
        _ => (year + 1, month - 9),
    };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(url: &str, sha256: &str, first_seen: u64) -> Seen {
        Seen {
            url: url.into(),
            size: 3,
            sha256: sha256.into(),
            etag: Some("\"v1\"".into()),
            last_modified: None,
            first_seen,
        }
    }

    #[test]
    fn sums_are_kept_by_address() {
        let folder = tempfile::tempdir().unwrap();
        let sums = Sums::at(folder.path().join("new/sums.json"));
        assert_eq!(sums.get("a").unwrap(), None);
        sums.record(seen("a", "1", 10)).unwrap();
        sums.record(seen("b", "2", 11)).unwrap();
        // The same again, and another one.
        sums.record(seen("a", "1", 12)).unwrap();
        sums.record(seen("b", "3", 13)).unwrap();
        assert_eq!(sums.get("a").unwrap(), Some(seen("a", "1", 10)));
        assert_eq!(sums.get("b").unwrap(), Some(seen("b", "3", 13)));
        assert_eq!(sums.get("c").unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sums.json");
        let sums = Sums::at(&path);
        for content in ["", "{", "{\"format\":2,\"files\":[]}", "[]"] {
            fs::write(&path, content).unwrap();
            let message = format!("{:#}", sums.get("a").unwrap_err());
            assert!(
                message.contains("sums.json (the sums of earlier downloads"),
                "{message}"
            );
            assert!(sums.record(seen("a", "1", 10)).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn several_processes_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let sums = Sums::at(folder.path().join("sums.json"));
        std::thread::scope(|scope| {
            for number in 0..8 {
                let sums = sums.clone();
                scope.spawn(move || sums.record(seen(&number.to_string(), "1", 10)).unwrap());
            }
        });
        for number in 0..8 {
            assert!(sums.get(&number.to_string()).unwrap().is_some());
        }
    }

    #[test]
    fn days() {
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (1_735_689_599, "2024-12-31"),
            (1_772_323_200, "2026-03-01"),
        ] {
            assert_eq!(day(seconds), expected);
        }
    }
}
