//! The index that the server searches in, on the disk as a file and a log of what changed since.
//!
//! One thread makes all changes. It takes what is waiting together, appends it to the log, brings the log to the disk
//! once for all of it, and only then changes the index in memory and answers. What was acknowledged is therefore
//! on the disk, whenever the process ends, and what could not be written was not done. When the log has grown
//! long the index is saved anew under its name, by a rename, and the log is emptied after that; a log that the file
//! has in it already changes nothing when it is replayed.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use ernie_vil::index::{EmbeddingIndex, VectorType};
use ernie_vil::vectors::Embeddings;
use tokio::sync::oneshot;

use super::error::ApiError;
use super::service::Held;
use crate::atomic_file::{AtomicFile, beside};
use crate::model;

/// Changes that wait at most; more are refused.
const WAITING: usize = 64;
/// A log is not folded into the file before it has this many bytes.
const LEAST_LOG: u64 = 4 << 20;

/// How the index is kept.
pub struct Options {
    /// Its file; without one it lives as long as the process.
    pub path: Option<PathBuf>,
    /// How its values are kept; by default as the file has them, or as they are.
    pub dtype: Option<VectorType>,
    /// Embeddings at most.
    pub most: usize,
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// Embeddings under ids that were not there.
    pub added: usize,
    pub replaced: usize,
    pub removed: usize,
    /// Embeddings that there are now.
    pub size: usize,
}

pub struct Store {
    index: Arc<RwLock<EmbeddingIndex>>,
    /// How many embeddings there are, for those who do not wait.
    size: Arc<AtomicUsize>,
    dtype: VectorType,
    persisted: bool,
    changes: Mutex<Option<SyncSender<Request>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Change {
    Add(Vec<String>, Embeddings),
    Remove(Vec<String>),
}

type Reply = oneshot::Sender<Result<Changed, ApiError>>;

struct Request {
    change: Change,
    reply: Reply,
    held: Held,
}

impl Store {
    /// Opens the index of a model, or begins an empty one.
    pub fn open(options: Options, dimensions: usize, fingerprint: &str) -> Result<Self> {
        let persisted = options.path.is_some();
        let (index, disk) = match options.path {
            None => {
                let index =
                    EmbeddingIndex::with_dtype(dimensions, fingerprint, options.dtype.unwrap_or_default());
                (index, None)
            }
            Some(path) => {
                let (index, disk) = Disk::open(path, dimensions, fingerprint, options.dtype)?;
                (index, Some(disk))
            }
        };
        let (size, dtype) = (Arc::new(AtomicUsize::new(index.len())), index.dtype());
        let index = Arc::new(RwLock::new(index));
        let (changes, requests) = sync_channel(WAITING);
        let mut writer = Writer {
            index: index.clone(),
            size: size.clone(),
            disk,
            most: options.most,
        };
        let thread = std::thread::Builder::new()
            .name("index".into())
            .spawn(move || writer.run(&requests))?;
        Ok(Self {
            index,
            size,
            dtype,
            persisted,
            changes: Mutex::new(Some(changes)),
            thread: Mutex::new(Some(thread)),
        })
    }

    pub fn persisted(&self) -> bool {
        self.persisted
    }

    /// Embeddings in it.
    pub fn len(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    /// How its values are kept.
    pub fn dtype(&self) -> VectorType {
        self.dtype
    }

    /// Lets `task` look into the index. It waits for changes, so neither a thread that serves nor one of a pool may call it.
    pub fn read<T>(&self, task: impl FnOnce(&EmbeddingIndex) -> T) -> T {
        task(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub async fn add(&self, ids: Vec<String>, vectors: Embeddings, held: Held) -> Result<Changed, ApiError> {
        self.change(Change::Add(ids, vectors), held).await
    }

    pub async fn remove(&self, ids: Vec<String>, held: Held) -> Result<Changed, ApiError> {
        self.change(Change::Remove(ids), held).await
    }

    async fn change(&self, change: Change, held: Held) -> Result<Changed, ApiError> {
        let (reply, answer) = oneshot::channel();
        let sent = match &*self.changes.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(changes) => changes.try_send(Request { change, reply, held }),
            None => return Err(ApiError::NotReady),
        };
        match sent {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                return Err(ApiError::Busy {
                    what: "changes of the index",
                    seconds: 1,
                });
            }
            Err(TrySendError::Disconnected(_)) => return Err(ended()),
        }
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Finishes the changes that wait, and folds the log into the file.
    pub fn close(&self) {
        drop(self.changes.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A fault in it was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn ended() -> ApiError {
    ApiError::Internal("the index's thread has ended".into())
}

struct Writer {
    index: Arc<RwLock<EmbeddingIndex>>,
    size: Arc<AtomicUsize>,
    disk: Option<Disk>,
    most: usize,
}

/// A change as records of a log.
struct Recorded {
    log: Vec<u8>,
    added: usize,
    replaced: usize,
    removed: usize,
}

/// What changes that come together leave, as long as none of them is made.
#[derive(Default)]
struct Pending {
    /// Whether an id is there after them, of those that they name.
    there: HashMap<String, bool>,
    /// How many embeddings more there are.
    growth: isize,
}

impl Writer {
    fn run(&mut self, requests: &Receiver<Request>) {
        while let Ok(first) = requests.recv() {
            let mut group = vec![first];
            group.extend(requests.try_iter().take(WAITING - 1));
            self.apply(group);
            if self.disk.as_ref().is_some_and(Disk::is_long) {
                self.fold();
            }
        }
        if self.disk.as_ref().is_some_and(|disk| disk.log_bytes > 0) {
            self.fold();
        }
    }

    /// Makes changes that came together, and answers them.
    fn apply(&mut self, group: Vec<Request>) {
        let mut written = Vec::new();
        let mut log = Vec::new();
        let mut pending = Pending::default();
        for Request { change, reply, held } in group {
            // As if those before it in the group were made already.
            match self.record(change, &mut pending) {
                Ok(recorded) => {
                    log.extend_from_slice(&recorded.log);
                    written.push((recorded, reply, held));
                }
                Err(error) => {
                    drop(held);
                    let _ = reply.send(Err(error));
                }
            }
        }
        drop(pending);
        if let Some(disk) = &mut self.disk
            && let Err(error) = disk.append(&log)
        {
            tracing::error!(error = format!("{error:#}"), "writing the index's log");
            for (_, reply, held) in written {
                drop(held);
                let _ = reply.send(Err(ApiError::NotWritten(format!("{error:#}"))));
            }
            return;
        }
        for (recorded, reply, held) in written {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            let answer = match index.replay(&recorded.log) {
                Ok(_) => Ok(Changed {
                    added: recorded.added,
                    replaced: recorded.replaced,
                    removed: recorded.removed,
                    size: index.len(),
                }),
                Err(error) => Err(ApiError::Internal(error.to_string())),
            };
            self.size.store(index.len(), Ordering::Relaxed);
            drop((index, recorded, held));
            let _ = reply.send(answer);
        }
    }

    /// The log of a change to the index with those that are pending made already. It is pending then, too.
    fn record(&self, change: Change, pending: &mut Pending) -> Result<Recorded, ApiError> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let is_there = |id: &str| match pending.there.get(id) {
            Some(&there) => there,
            None => index.has(id),
        };
        let mut recorder = EmbeddingIndex::with_dtype(index.dimensions(), index.fingerprint(), index.dtype());
        match change {
            Change::Add(ids, vectors) => {
                recorder.keep_log(true);
                let repeated = recorder.add_all(&ids, &vectors).map_err(|error| {
                    ApiError::request("invalid_value", "items", format!("items: {error}"))
                })?;
                let replaced = recorder.ids().into_iter().filter(|id| is_there(id)).count();
                let added = recorder.len() - replaced;
                if index.len().saturating_add_signed(pending.growth) + added > self.most {
                    return Err(ApiError::IndexFull(self.most));
                }
                pending.growth += added as isize;
                pending.there.extend(ids.into_iter().map(|id| (id, true)));
                Ok(Recorded {
                    log: recorder.take_log(),
                    added,
                    replaced: replaced + repeated,
                    removed: 0,
                })
            }
            Change::Remove(ids) => {
                // What is to be removed has to be there first; its values do not matter.
                let vector = vec![1.0; index.dimensions()];
                for id in ids.iter().filter(|id| is_there(id)) {
                    let added = recorder.add(id.clone(), &vector);
                    added.map_err(|error| ApiError::Internal(error.to_string()))?;
                }
                recorder.keep_log(true);
                let removed = ids.iter().filter(|id| recorder.remove(id)).count();
                pending.growth -= removed as isize;
                pending.there.extend(ids.into_iter().map(|id| (id, false)));
                Ok(Recorded {
                    log: recorder.take_log(),
                    added: 0,
                    replaced: 0,
                    removed,
                })
            }
        }
    }

    fn fold(&mut self) {
        let Some(disk) = &mut self.disk else { return };
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = disk.fold(&index) {
            // Nothing is lost: the log has it all. It is tried again when the log has doubled.
            disk.fold_at = disk.log_bytes.saturating_mul(2).max(LEAST_LOG);
            tracing::error!(error = format!("{error:#}"), "saving the index");
        }
    }
}

/// The file and the log.
struct Disk {
    path: PathBuf,
    log: File,
    log_bytes: u64,
    /// The log's length at which it is folded into the file.
    fold_at: u64,
    /// Whether the log's end is not what it should be, and could not be cut off.
    broken: bool,
}

impl Disk {
    fn open(
        path: PathBuf,
        dimensions: usize,
        fingerprint: &str,
        dtype: Option<VectorType>,
    ) -> Result<(EmbeddingIndex, Self)> {
        let log_path = beside(&path, ".log");
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let mut log = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&log_path)
            .with_context(|| format!("opening {}", log_path.display()))?;
        match log.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("{} is used by another process", path.display()),
            // Some network file systems have no locks; there it goes on without.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", log_path.display()));
            }
        }
        let in_file = || path.display().to_string();
        let (mut index, file_bytes) = match path.exists() {
            true => {
                let bytes = model::map(&path)?;
                let index = EmbeddingIndex::load(&bytes).with_context(in_file)?;
                index.check_fingerprint(fingerprint).with_context(in_file)?;
                (index, bytes.len() as u64)
            }
            false => {
                let dtype = dtype.unwrap_or_default();
                (EmbeddingIndex::with_dtype(dimensions, fingerprint, dtype), 0)
            }
        };
        if let Some(dtype) = dtype
            && index.dtype() != dtype
        {
            bail!(
                "{} keeps its vectors as {}, and --index-type says {dtype}",
                path.display(),
                index.dtype()
            );
        }
        let in_log = || log_path.display().to_string();
        let length = log.metadata().with_context(in_log)?.len();
        let whole = match length {
            0 => 0,
            _ => index.replay(&model::map(&log_path)?).with_context(in_log)? as u64,
        };
        if whole < length {
            tracing::warn!(
                log = in_log(),
                bytes = length - whole,
                "cut a record off that was not written whole, and so was never acknowledged"
            );
            log.set_len(whole)
                .and_then(|()| log.sync_all())
                .with_context(in_log)?;
        }
        log.seek(SeekFrom::Start(whole)).with_context(in_log)?;
        sync_folder(&path);
        let disk = Self {
            path,
            log,
            log_bytes: whole,
            fold_at: file_bytes.max(LEAST_LOG),
            broken: false,
        };
        Ok((index, disk))
    }

    /// Appends to the log and returns when it is on the disk.
    fn append(&mut self, records: &[u8]) -> Result<()> {
        if self.broken {
            bail!(
                "the log could not be repaired after an earlier failure; the server has to be started anew"
            );
        }
        if records.is_empty() {
            return Ok(());
        }
        let written = self.log.write_all(records).and_then(|()| self.log.sync_data());
        if let Err(error) = written {
            let cut = self
                .log
                .set_len(self.log_bytes)
                .and_then(|()| self.log.seek(SeekFrom::Start(self.log_bytes)))
                .and_then(|_| self.log.sync_all());
            self.broken = cut.is_err();
            return Err(error).with_context(|| beside(&self.path, ".log").display().to_string());
        }
        self.log_bytes += records.len() as u64;
        Ok(())
    }

    fn is_long(&self) -> bool {
        self.log_bytes > self.fold_at
    }

    /// Saves the index under its name and empties the log.
    fn fold(&mut self, index: &EmbeddingIndex) -> Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, AtomicFile::create(&self.path)?);
        index.save(&mut file)?;
        let file = file.into_inner().map_err(|error| error.into_error())?;
        let bytes = file.len()?;
        file.commit()?;
        let log = || beside(&self.path, ".log").display().to_string();
        self.log
            .set_len(0)
            .and_then(|()| self.log.seek(SeekFrom::Start(0)))
            .and_then(|_| self.log.sync_all())
            .with_context(log)?;
        self.log_bytes = 0;
        self.fold_at = bytes.max(LEAST_LOG);
        Ok(())
    }
}

/// Brings a folder's list of names to the disk, where the system has that.
fn sync_folder(path: &Path) {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if cfg!(unix) {
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(most: usize) -> Writer {
        Writer {
            index: Arc::new(RwLock::new(EmbeddingIndex::new(1, "a"))),
            size: Arc::default(),
            disk: None,
            most,
        }
    }

    fn request(change: Change) -> (Request, oneshot::Receiver<Result<Changed, ApiError>>) {
        let (reply, answer) = oneshot::channel();
        let held = Held::default();
        (Request { change, reply, held }, answer)
    }

    fn add(ids: &[String]) -> Change {
        let vectors = Embeddings::new(ids.len(), 1, vec![1.0; ids.len()]).unwrap();
        Change::Add(ids.to_vec(), vectors)
    }

    #[test]
    fn changes_that_come_together_are_counted_one_after_the_other() {
        let ids = |names: &str| -> Vec<String> { names.split(' ').map(str::to_owned).collect() };
        let changes = [
            add(&ids("a b a")),
            Change::Remove(ids("b c b")),
            add(&ids("b c d")),
            // No room for it, so it leaves nothing.
            add(&ids("e f")),
            Change::Remove(ids("e a")),
            add(&ids("a e")),
        ];
        let (group, answers): (Vec<_>, Vec<_>) = changes.map(request).into_iter().unzip();
        writer(5).apply(group);
        let counts: Vec<_> = answers
            .into_iter()
            .map(|answer| {
                let changed = answer.blocking_recv().unwrap().ok()?;
                Some([changed.added, changed.replaced, changed.removed, changed.size])
            })
            .collect();
        assert_eq!(
            counts,
            [
                Some([2, 1, 0, 2]),
                Some([0, 0, 1, 1]),
                Some([3, 0, 0, 4]),
                None,
                Some([0, 0, 1, 3]),
                Some([2, 0, 0, 5]),
            ]
        );
    }

    #[test]
    fn many_ids_that_come_together_are_taken_in_one_go() {
        // If each were compared with all before it, this would take minutes.
        let id = |change: usize, i: usize| format!("{}{change:04}{i:04}", "a folder of pictures/".repeat(4));
        let changes = (0..WAITING).map(|change| {
            let ids: Vec<String> = (0..4096).map(|i| id(change, i)).collect();
            request(add(&ids))
        });
        let (group, answers): (Vec<_>, Vec<_>) = changes.unzip();
        writer(1 << 20).apply(group);
        for answer in answers {
            assert_eq!(answer.blocking_recv().unwrap().unwrap().added, 4096);
        }
    }
}
