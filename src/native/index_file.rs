//! An index on the disk: a file, and a log of what changed since.
//!
//! This is the one place where an index is opened, for the server and for `search`. For an index `FILE` there
//! are, beside it and under its name with all links resolved:
//!
//! | name | what |
//! | --- | --- |
//! | `FILE` | the index as it was last saved; it appears by a rename, when it is complete |
//! | `FILE.log` | the changes since; one that `FILE` has already changes nothing when it is applied |
//! | `FILE.lock` | locked by the process that writes, and removed when it has ended well |
//! | `FILE.part` | the next `FILE`: what is written of it, and the room on the disk that it will need |
//!
//! One process at a time writes. It locks `FILE.lock`, and on Unix the log and the file as well, so that
//! removing one of them does not let another process in. Whoever only reads takes no lock: the log is read
//! after the file, and both once more where the file was replaced meanwhile.
//!
//! ```
//! use ernie_vil::native::index_file::{self, IndexFile, Kind, Opened};
//! let folder = tempfile::tempdir().unwrap();
//! let path = folder.path().join("pictures.idx");
//! let kind = Kind { dimensions: 2, fingerprint: "a model's", dtype: None, salvage: false };
//! let opened = IndexFile::open(&path, &kind, false).unwrap().expect("nobody else writes it");
//! let Opened { mut index, mut file, .. } = opened;
//! index.keep_log(true);
//! index.add("a picture".into(), &[0.6, 0.8]).unwrap();
//! let records = index.take_log();
//! file.append(&records, &index).unwrap();
//! // From here on it is on the disk.
//! assert_eq!(index_file::read(&path, &kind).unwrap().len(), 1);
//! ```

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Result;
use super::atomic_file::{AtomicFile, beside, create_folders, is_at, lock, open_locked, sync_folder_of};
use super::error::{Context, bail, ensure};
use super::input;
use crate::index::{Damage, EmbeddingIndex, VectorType};

/// A log is not folded into the file before it has this many bytes.
const LEAST_LOG: u64 = 4 << 20;
/// Room on the disk that is kept beyond what the next file needs: for the log of removals, when nothing else
/// is left.
const SPARE: u64 = 64 << 10;
/// The room that is kept grows by this many bytes at a time, at most.
const STEP: u64 = 64 << 20;
/// How often reading is tried while another process writes.
const READS: u32 = 20;

/// The source of embeddings that a server's clients have added.
pub const SERVER: &str = "serve";
/// What the source of embeddings begins with that `search` has made of the pictures in a folder, before its
/// path.
pub const FOLDER: &str = "folder ";

/// What an index has to be.
#[derive(Debug, Clone, Copy)]
pub struct Kind<'a> {
    /// Values of an embedding.
    pub dimensions: usize,
    /// That of the model whose embeddings they are.
    pub fingerprint: &'a str,
    /// How its values are kept; by default as the file or the log has them, or as they are.
    pub dtype: Option<VectorType>,
    /// Whether to go on with a log that is damaged, with a copy of it kept.
    pub salvage: bool,
}

/// An index file that this process may write.
pub struct IndexFile {
    /// With all links resolved.
    path: PathBuf,
    /// The file under the path, where there is one.
    file: Option<File>,
    log: File,
    file_bytes: u64,
    log_bytes: u64,
    /// The log's length at which it is folded into the file.
    fold_at: u64,
    /// The next file, as long as room is kept for it.
    part: Option<AtomicFile>,
    /// Whether room is kept for it.
    keeps_room: bool,
    /// Whether the log's end is not what it should be, and could not be cut off.
    broken: bool,
    /// The last one, so that it is given back when all others are.
    lock: LockFile,
}

/// An index that was opened to be written.
pub struct Opened {
    /// What the file and the log hold.
    pub index: EmbeddingIndex,
    /// What writes them.
    pub file: IndexFile,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl IndexFile {
    /// Opens an index, or begins an empty one; none where another process has it open for writing.
    ///
    /// Where `keeps_room` is set, the disk always has the room that folding the log needs, and no change is
    /// taken that would need more than there is.
    ///
    /// # Errors
    /// Where a file cannot be read or written, the index is of another kind, or the log is damaged and
    /// [`salvage`](Kind::salvage) is not set.
    pub fn open(path: &Path, kind: &Kind<'_>, keeps_room: bool) -> Result<Option<Opened>> {
        if let Some(folder) = path.parent() {
            create_folders(folder)?;
        }
        let path = real_path(path)?;
        let log_path = beside(&path, ".log");
        let Some(lock) = LockFile::take(beside(&path, ".lock"))? else {
            return Ok(None);
        };
        let Some(file) = open_file(&path)? else {
            return Ok(None);
        };
        let earlier = match exists(&log_path)? {
            true => match open_log(&log_path)? {
                Some(log) => Some(log),
                None => return Ok(None),
            },
            false => None,
        };
        let file_bytes = match &file {
            Some(file) => file.metadata().with_context(|| path.display().to_string())?.len(),
            None => 0,
        };
        let in_log = || log_path.display().to_string();
        let log_bytes = match &earlier {
            Some(log) => log.metadata().with_context(in_log)?.len(),
            None => 0,
        };
        let mapped = match log_bytes {
            0 => None,
            _ => Some(input::map(&log_path)?),
        };
        let records = mapped.as_deref().unwrap_or_default();
        let mut notes = Vec::new();
        let mut index = load(&path, records, kind)?;
        let mut is_damaged = false;
        let sound = match index.replay(records) {
            Ok(sound) => sound as u64,
            Err(error) => {
                let (salvaged, damage) = salvage(&path, records, kind)
                    .filter(|(_, damage)| !damage.is_empty())
                    .ok_or(error.clone())
                    .with_context(in_log)?;
                if !kind.salvage {
                    let places = match damage.len() - 1 {
                        0 => String::new(),
                        more => format!(", and at {more} places after that"),
                    };
                    bail!(
                        "{}: the log is damaged at {}{places}. Changes that were acknowledged may be lost. --salvage-index \
                         goes on with all records that are sound, and keeps a copy of the log as it is",
                        in_log(),
                        damage[0]
                    );
                }
                index = salvaged;
                let copy = keep_copy(&log_path)?;
                let lost: usize = damage.iter().map(|damage| damage.bytes.len()).sum();
                let kept: usize = damage.iter().map(|damage| damage.records).sum();
                notes.push(format!(
                    "{}: {lost} bytes were damaged, from byte {} on; {kept} records behind them were kept, and the log as it \
                     was is {}",
                    in_log(),
                    damage[0].bytes.start,
                    copy.display()
                ));
                is_damaged = true;
                log_bytes
            }
        };
        drop(mapped);
        // A new one only now that the index is one of this kind.
        let mut log = match earlier {
            Some(log) => log,
            None => open_log(&log_path)?
                .with_context(|| format!("{} is used by another process", log_path.display()))?,
        };
        if sound < log_bytes {
            notes.push(format!(
                "{}: cut off {} bytes of a record that was not written whole, and so was never acknowledged",
                in_log(),
                log_bytes - sound
            ));
            log.set_len(sound)
                .and_then(|()| log.sync_all())
                .with_context(in_log)?;
        }
        log.seek(SeekFrom::Start(sound)).with_context(in_log)?;
        sync_folder_of(&path)?;
        let mut this = Self {
            path,
            file,
            log,
            file_bytes,
            log_bytes: sound,
            fold_at: file_bytes.max(LEAST_LOG),
            part: None,
            keeps_room,
            broken: false,
            lock,
        };
        if is_damaged {
            // Nothing is appended behind what is damaged.
            this.fold(&index)?;
        }
        if let Err(error) = this.keep_room(0) {
            notes.push(format!(
                "the disk has no room to save the index anew, so nothing is added to it: {error:#}"
            ));
        }
        Ok(Some(Opened {
            index,
            file: this,
            notes,
        }))
    }

    /// Bytes of the log.
    pub fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Whether the log should be folded into the file.
    pub fn is_long(&self) -> bool {
        self.log_bytes > self.fold_at
    }

    /// Appends records to the log and returns when they are on the disk. `index` is what the file and the log
    /// hold now; it may have what the records say already.
    ///
    /// # Errors
    /// Where they cannot be written, of which nothing is left then, or the files are no longer those that
    /// were opened.
    pub fn append(&mut self, records: &[u8], index: &EmbeddingIndex) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        self.check_names(index)?;
        self.keep_room(records.len() as u64)?;
        self.write_synced(records)
    }

    /// As `append`, but the records are safe only when [`sync`](Self::sync) has returned, or when this
    /// process ends and the system goes on.
    ///
    /// # Errors
    /// Those of `append`.
    pub fn append_unsynced(&mut self, records: &[u8], index: &EmbeddingIndex) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        self.check_names(index)?;
        self.keep_room(records.len() as u64)?;
        self.write(records)
    }

    /// Tries to make room on the disk, and in a log that may grow no more, by folding the log.
    pub fn make_room(&mut self, index: &EmbeddingIndex) -> bool {
        self.log_bytes > 0 && self.fold(index).is_ok()
    }

    /// As `append`, for records that only remove what `is_removed`: it also uses the room that is kept for
    /// that, and where the log takes no more the index is saved anew without them.
    ///
    /// # Errors
    /// Those of `append`.
    pub fn append_removals(
        &mut self,
        records: &[u8],
        index: &EmbeddingIndex,
        is_removed: impl Fn(&str) -> bool,
    ) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        self.check_names(index)?;
        let Err(error) = self.write_synced(records) else {
            return Ok(());
        };
        // A removal makes the next file shorter by more than its record is long.
        let room = (records.len() as u64).next_multiple_of(SPARE) + SPARE;
        if let Some(part) = &self.part
            && let Ok(length) = part.length()
            && part.truncate(length.saturating_sub(room)).is_ok()
            && self.write_synced(records).is_ok()
        {
            return Ok(());
        }
        match self.fold_where(index, |id| !is_removed(id)) {
            Ok(()) => Ok(()),
            Err(_) => Err(error),
        }
    }

    /// Brings what was appended to the disk.
    ///
    /// # Errors
    /// Where that fails.
    pub fn sync(&mut self) -> Result<()> {
        self.log
            .sync_data()
            .with_context(|| beside(&self.path, ".log").display().to_string())
    }

    fn write_synced(&mut self, records: &[u8]) -> Result<()> {
        let before = self.log_bytes;
        self.write(records)?;
        self.sync().inspect_err(|_| self.cut(before))
    }

    /// Appends records; where that fails nothing of them is left.
    fn write(&mut self, records: &[u8]) -> Result<()> {
        if self.broken {
            bail!(
                "the log could not be repaired after an earlier failure; the program has to be started anew"
            );
        }
        let before = self.log_bytes;
        let written = self.log.write_all(records);
        self.log_bytes += records.len() as u64;
        written
            .inspect_err(|_| self.cut(before))
            .with_context(|| beside(&self.path, ".log").display().to_string())
    }

    /// Cuts off what could not be written as a whole.
    fn cut(&mut self, length: u64) {
        let cut = self
            .log
            .set_len(length)
            .and_then(|()| self.log.seek(SeekFrom::Start(length)))
            .and_then(|_| self.log.sync_all());
        self.broken = cut.is_err();
        self.log_bytes = length;
    }

    /// Sees to it that the disk has room for the file that folding the log makes, with `more` bytes in the
    /// log.
    fn keep_room(&mut self, more: u64) -> Result<()> {
        if !self.keeps_room {
            return Ok(());
        }
        let part = self.take_part()?;
        let part = self.part.insert(part);
        // A record in the log takes no less than what it becomes in the file.
        let needed = self.file_bytes + self.log_bytes + more + SPARE;
        if part.length()? >= needed {
            return Ok(());
        }
        match part.allocate(needed + (needed / 8).min(STEP)) {
            Ok(()) => Ok(()),
            Err(_) => part
                .allocate(needed)
                .context("the disk has no room to save the index anew"),
        }
    }

    /// The next file, with the room that is kept for it.
    fn take_part(&mut self) -> Result<AtomicFile> {
        match self.part.take().filter(AtomicFile::is_in_place) {
            Some(part) => Ok(part),
            None => AtomicFile::resume(&self.path),
        }
    }

    /// Saves the index under its name and empties the log.
    ///
    /// # Errors
    /// Where it cannot be written; nothing is lost then. And where the files are no longer those that were
    /// opened.
    pub fn fold(&mut self, index: &EmbeddingIndex) -> Result<()> {
        self.fold_where(index, |_| true)
    }

    fn fold_where(&mut self, index: &EmbeddingIndex, keep: impl Fn(&str) -> bool) -> Result<()> {
        self.check_names(index)?;
        self.save(index, keep)
    }

    /// Saves the index under its name, and empties the log when that is on the disk.
    fn save(&mut self, index: &EmbeddingIndex, keep: impl Fn(&str) -> bool) -> Result<()> {
        let mut part = self.take_part()?;
        let written = (|| {
            // Over the room that was kept, of which nothing is given back before the end.
            part.seek(SeekFrom::Start(0))?;
            let mut file = BufWriter::with_capacity(1 << 20, &mut part);
            index.save_where(&mut file, keep)?;
            file.flush()?;
            drop(file);
            let length = part.stream_position()?;
            part.truncate(length)?;
            Ok(length)
        })();
        let length: u64 = match written {
            Ok(length) => length,
            Err(error) => {
                if self.keeps_room {
                    self.part = Some(part);
                }
                return Err(error);
            }
        };
        // From here on the file is the new one, whatever comes.
        let file = part.rename()?;
        if cfg!(not(unix)) {
            // There a lock keeps others from reading, too.
            file.unlock().with_context(|| self.path.display().to_string())?;
        }
        self.file = Some(file);
        self.file_bytes = length;
        self.fold_at = length.max(LEAST_LOG);
        sync_folder_of(&self.path)?;
        self.log
            .set_len(0)
            .and_then(|()| self.log.seek(SeekFrom::Start(0)))
            .and_then(|_| self.log.sync_all())
            .with_context(|| beside(&self.path, ".log").display().to_string())?;
        self.log_bytes = 0;
        self.broken = false;
        // Where there is no room, what needs it is refused when it comes.
        let _ = self.keep_room(0);
        Ok(())
    }

    /// Tries to fold again only when the log has doubled.
    pub fn put_off_folding(&mut self) {
        self.fold_at = self.log_bytes.saturating_mul(2).max(LEAST_LOG);
    }

    /// Sees to it that the lock, the log and the file are still those that were opened.
    ///
    /// What was removed is written again from `index`, so that nothing is lost that was acknowledged. What
    /// was replaced is left alone: it is not this process's.
    fn check_names(&mut self, index: &EmbeddingIndex) -> Result<()> {
        let taken = || {
            format!(
                "{} was taken by another process, after its lock was removed",
                self.path.display()
            )
        };
        if !is_at(&self.lock.file, &self.lock.path)? {
            self.lock = LockFile::take(self.lock.path.clone())?.with_context(taken)?;
        }
        let file_is_there = match &self.file {
            Some(file) => is_at(file, &self.path)?,
            None => !exists(&self.path)?,
        };
        ensure!(
            file_is_there || !exists(&self.path)?,
            "{} was replaced while it was open; nothing is written to it",
            self.path.display()
        );
        let log_path = beside(&self.path, ".log");
        let log_is_there = is_at(&self.log, &log_path)?;
        if log_is_there && file_is_there {
            return Ok(());
        }
        if !log_is_there {
            let log = open_log(&log_path)?.with_context(taken)?;
            let length = log
                .metadata()
                .with_context(|| log_path.display().to_string())?
                .len();
            ensure!(
                length == 0,
                "{} was replaced while it was open; nothing is written to it",
                log_path.display()
            );
            self.log = log;
        }
        self.file = None;
        self.save(index, |_| true)
    }

    /// Ends the use of an index by a program that comes back to it later: with an empty log nothing is left
    /// but the file.
    pub fn tidy(self) {
        if self.log_bytes == 0 {
            // What stays is empty, and taken by the next run.
            let _ = fs::remove_file(beside(&self.path, ".log"));
        }
        if self.part.is_none() && beside(&self.path, ".part").exists() {
            // Of a process that was killed. Dropped unfinished it is removed.
            drop(AtomicFile::resume(&self.path));
        }
    }
}

/// Reads an index without locking it, also while another process writes it. What that one is just appending
/// is missing.
///
/// # Errors
/// Where it cannot be read, is of another kind, or is replaced again and again meanwhile.
pub fn read(path: &Path, kind: &Kind<'_>) -> Result<EmbeddingIndex> {
    let path = real_path(path)?;
    let log_path = beside(&path, ".log");
    let mut tries = 0;
    loop {
        tries += 1;
        let before = identity(&path)?;
        let read = (|| {
            // The log after the file: what was folded between the two is in neither, and then the file is
            // another one.
            let mut index = load(&path, &[], kind)?;
            let records = read_log(&log_path)?;
            if before.is_none() {
                index = load(&path, &records, kind)?;
            }
            let replayed = index.replay(&records);
            replayed.with_context(|| log_path.display().to_string())?;
            Ok(index)
        })();
        let is_same = identity(&path)? == before;
        match read {
            Ok(index) if is_same => return Ok(index),
            Err(error) if tries >= READS => return Err(error),
            Ok(_) if tries >= READS => {
                bail!("{} is replaced again and again while it is read", path.display())
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// The index as the file has it, or an empty one of the log's kind.
fn load(path: &Path, log: &[u8], kind: &Kind<'_>) -> Result<EmbeddingIndex> {
    let in_file = || path.display().to_string();
    let in_log = || beside(path, ".log").display().to_string();
    let (index, place) = match exists(path)? {
        true => {
            let index = EmbeddingIndex::load(&input::map(path)?).with_context(in_file)?;
            (index, in_file())
        }
        false => match EmbeddingIndex::of_log(log).with_context(in_log)? {
            Some(index) => (index, in_log()),
            None => {
                let dtype = kind.dtype.unwrap_or_default();
                let index = EmbeddingIndex::with_dtype(kind.dimensions, kind.fingerprint, dtype);
                (index, in_file())
            }
        },
    };
    index
        .check_fingerprint(kind.fingerprint)
        .with_context(|| place.clone())?;
    ensure!(
        index.dimensions() == kind.dimensions,
        "{place}: embeddings of {} values, expected {}",
        index.dimensions(),
        kind.dimensions
    );
    if let Some(dtype) = kind.dtype
        && index.dtype() != dtype
    {
        bail!(
            "{place} keeps its vectors as {}, and --index-type says {dtype}",
            index.dtype()
        );
    }
    Ok(index)
}

/// What a log that cannot be replayed still holds, and what is damaged in it; none where it is not damaged
/// but another one.
fn salvage(path: &Path, log: &[u8], kind: &Kind<'_>) -> Option<(EmbeddingIndex, Vec<Damage>)> {
    let mut index = load(path, log, kind).ok()?;
    let replayed = index.salvage(log).ok()?;
    Some((index, replayed.damage))
}

/// Copies a damaged log beside itself, under a name that nothing has.
fn keep_copy(log: &Path) -> Result<PathBuf> {
    for number in 1..1000 {
        let copy = match number {
            1 => beside(log, ".damaged"),
            _ => beside(log, &format!(".damaged.{number}")),
        };
        let copying = || format!("copying {} to {}", log.display(), copy.display());
        let mut out = match File::create_new(&copy) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            opened => opened.with_context(copying)?,
        };
        let copied = File::open(log)
            .and_then(|mut log| io::copy(&mut log, &mut out))
            .and_then(|_| out.sync_all());
        if let Err(error) = copied {
            // Half a copy is none.
            let _ = fs::remove_file(&copy);
            return Err(error).with_context(copying);
        }
        sync_folder_of(&copy)?;
        return Ok(copy);
    }
    bail!("{} has 999 damaged copies beside it already", log.display())
}

/// The path without links, so that an index has one log and one lock whatever it is called. The file need not
/// be there.
///
/// # Errors
/// Where its folder is not there, and where it is no plain file.
pub fn real_path(path: &Path) -> Result<PathBuf> {
    let in_path = || path.display().to_string();
    let mut real = path.to_owned();
    let mut links = 0;
    while let Ok(target) = fs::read_link(&real) {
        links += 1;
        ensure!(links <= 40, "{}: too many links", path.display());
        real = real.parent().unwrap_or(Path::new("")).join(target);
    }
    let name = real
        .file_name()
        .with_context(|| format!("{} is not the name of a file", path.display()))?;
    let folder = match real.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let real = fs::canonicalize(folder).with_context(in_path)?.join(name);
    match fs::metadata(&real) {
        Ok(metadata) => ensure!(metadata.is_file(), "{} is not a plain file", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(in_path),
    }
    Ok(real)
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().with_context(|| path.display().to_string())
}

/// Opens or creates a log; none where another process has locked it.
fn open_log(path: &Path) -> Result<Option<File>> {
    if cfg!(unix) {
        return open_locked(path);
    }
    // Elsewhere a lock keeps others from reading, too.
    let mut options = File::options();
    let log = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    log.map(Some).with_context(|| path.display().to_string())
}

/// Opens the file of an index, where it is there; none where another process has locked it.
#[expect(
    clippy::option_option,
    reason = "there may be no file, which is not that it is locked"
)]
fn open_file(path: &Path) -> Result<Option<Option<File>>> {
    let in_file = || path.display().to_string();
    // One that may only be read has the lock and the log to keep others out.
    let opened = File::options().read(true).write(cfg!(unix)).open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(None)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(Some(Some(File::open(path).with_context(in_file)?)));
        }
        opened => opened.with_context(in_file)?,
    };
    let is_free = cfg!(not(unix)) || lock(&file).with_context(in_file)?;
    Ok(is_free.then_some(Some(file)))
}

/// As many bytes of a log as it has when it is opened.
fn read_log(path: &Path) -> Result<Vec<u8>> {
    if !exists(path)? {
        return Ok(Vec::new());
    }
    let in_file = || path.display().to_string();
    let log = input::open_regular(path)?;
    let mut bytes = Vec::new();
    let length = log.metadata().with_context(in_file)?.len();
    log.take(length).read_to_end(&mut bytes).with_context(in_file)?;
    Ok(bytes)
}

/// What tells whether a path leads to the same file as before: the file's number, as the file keeps a number
/// as long as it is open only, and when it was changed.
fn identity(path: &Path) -> Result<Option<(u64, Option<SystemTime>)>> {
    match fs::metadata(path) {
        #[cfg(unix)]
        Ok(metadata) => {
            use std::os::unix::fs::MetadataExt;
            Ok(Some((metadata.ino(), metadata.modified().ok())))
        }
        #[cfg(not(unix))]
        Ok(metadata) => Ok(Some((metadata.len(), metadata.modified().ok()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// A file that is locked as long as this lives, and removed then.
struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    fn take(path: PathBuf) -> Result<Option<Self>> {
        let Some(file) = open_locked(&path)? else {
            return Ok(None);
        };
        // It is removed when it is let go, so it has to be one: of an index called `Cargo` it would be
        // `Cargo.lock`.
        let bytes = file.metadata().with_context(|| path.display().to_string())?.len();
        ensure!(
            bytes == 0,
            "{} would be this index's lock, but is a file of {bytes} bytes that something else made; the index needs \
             another name",
            path.display()
        );
        Ok(Some(Self { file, path }))
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Others find out that it is no longer there after they have locked it, and make a new one. One that
        // stays is not locked, and does no harm.
        if is_at(&self.file, &self.path).unwrap_or(false) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
