//! The vectors of a run that is under way, kept so that it can be resumed.
//!
//! Rows are appended to `OUTPUT.rows`. Every so often they are brought to the disk, and then
//! `OUTPUT.rows.json` says, by one rename, how far the run has come: that many bytes of rows, and that
//! place in the input. A run that breaks off loses what came after; resuming cuts the rows there, so
//! none is lost and none is there twice.
//!
//! ```no_run
//! use ernie_vil::native::spool::{Job, Spool};
//! # fn example(job: Job) -> ernie_vil::native::Result<()> {
//! let mut spool = Spool::open("vectors.out".as_ref(), job, true, false)?;
//! println!("going on after {} rows", spool.position().rows);
//! // Here `pipeline::run` hands batches to `spool.push`.
//! spool.for_each(|id, text, image| -> ernie_vil::native::Result<()> {
//!     println!("{id}: {} and {} values", text.len(), image.len());
//!     Ok(())
//! })?;
//! spool.remove()
//! # }
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::atomic_file::{AtomicFile, beside};
use super::error::{Context, ensure, refused};
use super::input;
use super::pipeline::{Batch, Skipped};
use super::{Error, Result};
use crate::pairs::Position;

/// How often the rows are brought to the disk.
const INTERVAL: Duration = Duration::from_secs(2);
/// What to do where the rows that were kept are of no use.
const ANEW: &str = "--overwrite in place of --resume starts anew";
/// A state file larger than this is none; it grows with the rows that were skipped.
const LARGEST_STATE: u64 = 1 << 30;
/// No row id may be longer.
const LONGEST_ID: usize = 1 << 16;

/// What must be the same for a run to be resumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The input's path.
    pub input: PathBuf,
    /// The input's size in bytes.
    pub input_bytes: u64,
    /// The model's.
    pub fingerprint: String,
    /// Tokens of a caption at most.
    pub max_tokens: usize,
    /// Whether rows that cannot be read are left out.
    pub skips_bad_rows: bool,
    /// Rows after this many are not read.
    pub limit: Option<u64>,
    /// Values of a text's vector.
    pub text_dimensions: usize,
    /// Values of an image's vector.
    pub image_dimensions: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    job: Job,
    rows: u64,
    bytes: u64,
    input_rows: u64,
    input_offset: u64,
    skipped: Vec<Skipped>,
    /// Whether outputs that are there already may be replaced: they were to be from the beginning, or are
    /// this run's own.
    #[serde(default)]
    may_replace: bool,
}

/// What lies under the names that a run's rows have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// No row.
    Nothing,
    /// Rows of a run that broke off.
    Rows {
        /// How many.
        rows: u64,
        /// Whether that run may replace outputs that are there.
        may_replace: bool,
    },
    /// Something else, or rows without a state that says how many.
    Unknown,
}

/// The rows so far.
pub struct Spool {
    file: BufWriter<File>,
    path: PathBuf,
    state: State,
    saved: Instant,
}

impl Spool {
    fn paths(output: &Path) -> (PathBuf, PathBuf) {
        (beside(output, ".rows"), beside(output, ".rows.json"))
    }

    /// The files beside the output, which are removed when it is complete.
    pub fn files(output: &Path) -> [PathBuf; 2] {
        let (rows, state) = Self::paths(output);
        [rows, state]
    }

    /// What an earlier run left beside the output.
    ///
    /// # Errors
    /// Where that cannot be read, or another run has it open.
    pub fn kept(output: &Path) -> Result<Kept> {
        let (path, state_path) = Self::paths(output);
        let length = |path: &Path| match fs::metadata(path) {
            Ok(metadata) => {
                ensure!(metadata.is_file(), "{} is not a plain file", path.display());
                Ok(metadata.len())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        };
        if length(&path)? == 0 {
            return Ok(Kept::Nothing);
        }
        let lock = File::open(&path).map(|rows| rows.try_lock_shared());
        ensure!(
            !matches!(lock, Ok(Err(TryLockError::WouldBlock))),
            "{} is in use by another run",
            path.display()
        );
        if length(&state_path)? == 0 {
            return Ok(Kept::Unknown);
        }
        let state = serde_json::from_slice(&input::read_regular(&state_path, LARGEST_STATE)?);
        Ok(match state {
            Ok(State { rows: 0, .. }) => Kept::Nothing,
            Ok(State {
                rows, may_replace, ..
            }) => Kept::Rows { rows, may_replace },
            Err(_) => Kept::Unknown,
        })
    }

    /// Starts anew, or with `resume` where an earlier run of the same job broke off. `overwrite` is what
    /// [`may_replace`](Self::may_replace) says from now on.
    ///
    /// # Errors
    /// Where the files cannot be written, another run has them open, or with `resume` they are of another
    /// job.
    pub fn open(output: &Path, job: Job, resume: bool, overwrite: bool) -> Result<Self> {
        let (path, state_path) = Self::paths(output);
        let mut state = None;
        let has_rows = fs::metadata(&path).is_ok_and(|metadata| metadata.len() > 0);
        if resume && has_rows && state_path.exists() {
            let json = input::read_regular(&state_path, LARGEST_STATE)?;
            let earlier: State = serde_json::from_slice(&json)
                .with_context(|| format!("{} is damaged; {ANEW}", state_path.display()))?;
            ensure!(
                earlier.job == job || earlier.rows == 0,
                "{} belongs to another run (its input, model or settings differ); {ANEW}",
                state_path.display()
            );
            state = (earlier.job == job).then_some(earlier);
        }
        let mut state = match state {
            Some(state) => state,
            None => State {
                job,
                rows: 0,
                bytes: 0,
                input_rows: 0,
                input_offset: 0,
                skipped: Vec::new(),
                may_replace: false,
            },
        };
        state.may_replace |= overwrite;
        if let Some(folder) = output.parent() {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let in_rows = || path.display().to_string();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(in_rows)?;
        file.try_lock()
            .map_err(|error| refused!("{error}"))
            .with_context(|| format!("{} is in use by another run", path.display()))?;
        let length = file.metadata().with_context(in_rows)?.len();
        ensure!(
            length >= state.bytes,
            "{} has {length} bytes, expected at least {}; {ANEW}",
            path.display(),
            state.bytes
        );
        file.set_len(state.bytes).with_context(in_rows)?;
        file.seek(SeekFrom::End(0)).with_context(in_rows)?;
        let mut spool = Self {
            file: BufWriter::with_capacity(1 << 20, file),
            path,
            state,
            saved: Instant::now(),
        };
        spool.save()?;
        Ok(spool)
    }

    /// Where the input goes on.
    pub fn position(&self) -> Position {
        Position {
            rows: self.state.input_rows,
            offset: self.state.input_offset,
        }
    }

    /// How many rows there are.
    pub fn rows(&self) -> u64 {
        self.state.rows
    }

    /// The rows that were left out.
    pub fn skipped(&self) -> &[Skipped] {
        &self.state.skipped
    }

    /// Appends a batch.
    ///
    /// # Errors
    /// Where the rows cannot be written.
    pub fn push(&mut self, batch: Batch) -> Result<()> {
        let mut bytes = Vec::new();
        for (row, id) in batch.ids.iter().enumerate() {
            ensure!(
                id.len() <= LONGEST_ID,
                "an image id of {} bytes, expected at most {LONGEST_ID}",
                id.len()
            );
            bytes.extend((id.len() as u32).to_le_bytes());
            bytes.extend(id.as_bytes());
            for x in batch.text.row(row).iter().chain(batch.image.row(row)) {
                bytes.extend(x.to_le_bytes());
            }
        }
        self.file
            .write_all(&bytes)
            .with_context(|| format!("writing {}", self.path.display()))?;
        self.state.bytes += bytes.len() as u64;
        self.state.rows += batch.ids.len() as u64;
        self.state.input_rows = batch.position.rows;
        self.state.input_offset = batch.position.offset;
        self.state.skipped.extend(batch.skipped);
        if self.saved.elapsed() >= INTERVAL {
            self.save()?;
        }
        Ok(())
    }

    /// Brings everything to the disk, first the rows, then how many there are.
    ///
    /// # Errors
    /// Where the files cannot be written.
    pub fn save(&mut self) -> Result<()> {
        let in_rows = || format!("writing {}", self.path.display());
        self.file.flush().with_context(in_rows)?;
        self.file.get_ref().sync_data().with_context(in_rows)?;
        let mut file = AtomicFile::create(&beside(&self.path, ".json"))?;
        file.write_all(&serde_json::to_vec(&self.state)?)
            .with_context(in_rows)?;
        file.commit()?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Whether outputs that are there already may be replaced.
    pub fn may_replace(&self) -> bool {
        self.state.may_replace
    }

    /// Says, before the first output is written, that what is there from now on is this run's own. A run that
    /// is cut off while it writes them may then be resumed.
    ///
    /// # Errors
    /// Where the files cannot be written.
    pub fn begin_outputs(&mut self) -> Result<()> {
        self.state.may_replace = true;
        self.save()
    }

    /// Passes every row to `take`: its id, text vector and image vector.
    ///
    /// # Errors
    /// Those of `take`, and where the rows cannot be read.
    pub fn for_each<E: From<Error>>(
        &mut self,
        mut take: impl FnMut(&str, &[f32], &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.save()?;
        let in_rows = || format!("reading {}", self.path.display());
        let mut file = self.file.get_ref();
        file.seek(SeekFrom::Start(0)).with_context(in_rows)?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let (text, image) = (self.state.job.text_dimensions, self.state.job.image_dimensions);
        let mut bytes = vec![0; (text + image) * 4];
        let mut id = Vec::new();
        for _ in 0..self.state.rows {
            let mut length = [0; 4];
            reader.read_exact(&mut length).with_context(in_rows)?;
            let length = u32::from_le_bytes(length) as usize;
            ensure!(length <= LONGEST_ID, "{} is damaged; {ANEW}", self.path.display());
            id.resize(length, 0);
            reader.read_exact(&mut id).with_context(in_rows)?;
            reader.read_exact(&mut bytes).with_context(in_rows)?;
            let values: Vec<f32> = bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect();
            take(&String::from_utf8_lossy(&id), &values[..text], &values[text..])?;
        }
        Ok(())
    }

    /// Removes both files: the output is complete.
    ///
    /// # Errors
    /// Where one cannot be removed.
    pub fn remove(self) -> Result<()> {
        // Rows without a state would be taken for somebody else's, and a state without rows is nothing.
        let empty = self.file.get_ref().set_len(0);
        empty.with_context(|| format!("emptying {}", self.path.display()))?;
        for path in [&beside(&self.path, ".json"), &self.path] {
            fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }
}
