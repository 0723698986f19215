//! The unfinished file of a download, and the notes beside it.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::source::Source;
use super::{BUFFER_BYTES, Download, START_BYTES};
use crate::native::Result;
use crate::native::atomic_file::{AtomicFile, beside};
use crate::native::error::{Context, bail};

/// The unfinished file with what is known of it.
pub(super) struct Part {
    file: AtomicFile,
    /// Where `source` is remembered.
    notes: PathBuf,
    pub(super) source: Source,
    pub(super) length: u64,
    /// How many of the bytes an earlier run fetched.
    pub(super) resumed: u64,
    hash: Sha256,
    /// The first bytes, until they are checked.
    start: Vec<u8>,
    start_checked: bool,
}

impl Part {
    /// Takes over what an earlier run left, where it can be continued.
    pub(super) fn open(download: &Download) -> Result<Self> {
        let file = AtomicFile::resume(&download.target)?;
        let mut part = Self {
            notes: beside(&download.target, ".part.json"),
            source: Source::default(),
            length: 0,
            resumed: 0,
            hash: Sha256::new(),
            start: Vec::new(),
            start_checked: false,
            file,
        };
        let mut left = part.file.length()?;
        let source = read_notes(&part.notes).filter(|source| {
            source.url == download.url
                && source.version().is_some()
                && (1..=source.length.unwrap_or(u64::MAX).min(download.max_bytes)).contains(&left)
        });
        let Some(source) = source else {
            part.restart()?;
            return Ok(part);
        };
        part.source = source;
        let mut buffer = vec![0; BUFFER_BYTES];
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = part
                .file
                .read(&mut buffer[..most])
                .context("reading what an earlier run left")?;
            if read == 0 {
                bail!("what an earlier run left became shorter while it was read");
            }
            part.take(&buffer[..read]);
            left -= read as u64;
        }
        part.resumed = part.length;
        part.file.keep(true);
        Ok(part)
    }

    /// Whether all bytes are there.
    pub(super) fn is_complete(&self) -> bool {
        self.length > 0 && self.source.length == Some(self.length)
    }

    /// Forgets what was fetched.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.file.truncate(0)?;
        self.file.keep(false);
        remove_notes(&self.notes)?;
        self.source = Source::default();
        self.length = 0;
        self.resumed = 0;
        self.hash = Sha256::new();
        self.start.clear();
        self.start_checked = false;
        Ok(())
    }

    /// Begins with a whole file.
    pub(super) fn start(&mut self, source: Source, download: &Download) -> Result<()> {
        self.restart()?;
        let max_bytes = download.max_bytes;
        if let Some(length) = source.length.filter(|&length| length > max_bytes) {
            bail!("the file has {length} bytes, expected at most {max_bytes}");
        }
        // Said before it is fetched for nothing.
        if let (Some(seen), Some(length)) = (&download.seen, source.length)
            && seen.size != length
        {
            return Err(download.changed(seen, &format!("{length} bytes")));
        }
        if source.version().is_some() {
            fs::write(&self.notes, serde_json::to_vec(&source)?)
                .with_context(|| format!("writing {}", self.notes.display()))?;
            self.file.keep(true);
        }
        self.source = source;
        Ok(())
    }

    /// Counts and hashes bytes that are in the file.
    fn take(&mut self, bytes: &[u8]) {
        let wanted = (START_BYTES - self.start.len()).min(bytes.len());
        self.start.extend_from_slice(&bytes[..wanted]);
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
    }

    pub(super) fn append(&mut self, bytes: &[u8], download: &Download) -> Result<()> {
        use std::io::Write;
        let limit = self.source.length.unwrap_or(u64::MAX).min(download.max_bytes);
        if bytes.len() as u64 > limit.saturating_sub(self.length) {
            self.restart()?;
            bail!("the server sent more than {limit} bytes");
        }
        self.file
            .write_all(bytes)
            .with_context(|| format!("writing {}.part", download.target.display()))?;
        self.take(bytes);
        if self.start.len() == START_BYTES {
            self.check_start(download)?;
        }
        Ok(())
    }

    fn check_start(&mut self, download: &Download) -> Result<()> {
        if self.start_checked {
            return Ok(());
        }
        if let Err(problem) = (download.check_start)(&self.start) {
            let seen = String::from_utf8_lossy(&self.start[..self.start.len().min(60)]).into_owned();
            self.restart()?;
            bail!("not the file that was expected: {problem}; it starts with {seen:?}");
        }
        self.start_checked = true;
        Ok(())
    }

    /// Checks the complete file; its SHA-256.
    pub(super) fn check(&mut self, download: &Download) -> Result<String> {
        self.check_start(download)?;
        let sha256: String = self
            .hash
            .clone()
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if let Some(expected) = &download.expected_sha256
            && !expected.eq_ignore_ascii_case(&sha256)
        {
            bail!(
                "the file's SHA-256 is {sha256}, expected {}",
                expected.to_ascii_lowercase()
            );
        }
        if let Some(seen) = &download.seen
            && seen.sha256 != sha256
        {
            return Err(download.changed(seen, &format!("{} bytes and {sha256}", self.length)));
        }
        Ok(sha256)
    }

    pub(super) fn commit(self) -> Result<Source> {
        self.file.commit()?;
        remove_notes(&self.notes)?;
        Ok(self.source)
    }
}

fn read_notes(path: &Path) -> Option<Source> {
    // Notes that cannot be read only cost a fresh start.
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn remove_notes(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
