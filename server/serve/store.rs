//! The index that the server searches in, on the disk as [`index_file`](ernie_vil::native::index_file) keeps
//! it.
//!
//! One thread makes all changes. It takes what is waiting together, appends it to the log, brings the log to
//! the disk once for all of it, and only then changes the index in memory and answers. What was acknowledged
//! is therefore on the disk, whenever the process ends, and what could not be written was not done. When the
//! log has grown long it is folded into the file.
//!
//! Where the changes that came together cannot be written, each is tried alone: the disk may have room for
//! some. Room is kept for removals, so that a full disk can be emptied.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use ernie_vil::index::{EmbeddingIndex, VectorType};
use ernie_vil::native;
use ernie_vil::native::index_file::{IndexFile, Kind, Opened, SERVER};
use ernie_vil::vectors::Embeddings;
use tokio::sync::oneshot;

use super::error::ApiError;
use super::memory::Held;

/// Changes that wait at most; more are refused.
const WAITING: usize = 64;

/// How the index is kept.
pub struct Options {
    /// Its file; without one it lives as long as the process.
    pub path: Option<PathBuf>,
    /// How its values are kept; by default as the file has them, or as they are.
    pub dtype: Option<VectorType>,
    pub limits: Limits,
    /// Whether to go on with a log that is damaged.
    pub salvage: bool,
}

/// What an index may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Embeddings at most.
    pub embeddings: usize,
    /// Bytes of all ids together at most.
    pub id_bytes: usize,
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
                let kind = Kind {
                    dimensions,
                    fingerprint,
                    dtype: options.dtype,
                    salvage: options.salvage,
                };
                let opened = IndexFile::open(&path, &kind, true)?;
                let Opened { index, file, notes } =
                    opened.with_context(|| format!("{} is used by another process", path.display()))?;
                for note in notes {
                    tracing::warn!("{note}");
                }
                (index, Some(file))
            }
        };
        let (size, dtype) = (Arc::new(AtomicUsize::new(index.len())), index.dtype());
        let index = Arc::new(RwLock::new(index));
        let (changes, requests) = sync_channel(WAITING);
        let mut writer = Writer {
            index: index.clone(),
            size: size.clone(),
            disk,
            limits: options.limits,
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

    /// Lets `task` look into the index. It waits for changes, so neither a thread that serves nor one of a
    /// pool may call it.
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
    disk: Option<IndexFile>,
    limits: Limits,
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
    /// How many bytes more all ids have.
    id_growth: isize,
}

impl Writer {
    fn run(&mut self, requests: &Receiver<Request>) {
        while let Ok(first) = requests.recv() {
            let mut group = vec![first];
            group.extend(requests.try_iter().take(WAITING - 1));
            self.apply(group);
            if self.disk.as_ref().is_some_and(IndexFile::is_long) {
                self.fold();
            }
        }
        if self.disk.as_ref().is_some_and(|disk| disk.log_bytes() > 0) {
            self.fold();
        }
    }

    /// Makes changes that came together, and answers them.
    fn apply(&mut self, group: Vec<Request>) {
        let mut written = Vec::new();
        let mut log = Vec::new();
        let mut pending = Pending::default();
        for request in group {
            // As if those before it in the group were made already.
            match self.record(&request.change, &mut pending) {
                Ok(recorded) => {
                    log.extend_from_slice(&recorded.log);
                    written.push((request, recorded));
                }
                Err(error) => refuse(request, error),
            }
        }
        drop(pending);
        let appended = self.write(|disk, index| disk.append(&log, index));
        drop(log);
        match appended {
            Ok(()) => {
                for (request, recorded) in written {
                    self.finish(request, &recorded);
                }
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "writing the index's log");
                let mut error = Some(error).filter(|_| written.len() == 1);
                for (request, _) in written {
                    self.apply_alone(request, error.take());
                }
            }
        }
    }

    /// Makes a change that could not be written as others are, where there is a way. `error` is why, where it
    /// was tried alone already.
    fn apply_alone(&mut self, request: Request, error: Option<native::Error>) {
        let recorded = match self.record(&request.change, &mut Pending::default()) {
            Ok(recorded) => recorded,
            Err(error) => return refuse(request, error),
        };
        let log = &recorded.log;
        let written = match &request.change {
            Change::Remove(ids) => {
                let ids: HashSet<&str> = ids.iter().map(String::as_str).collect();
                self.write(|disk, index| disk.append_removals(log, index, |id| ids.contains(id)))
            }
            Change::Add(..) => {
                let append = |disk: &mut IndexFile, index: &EmbeddingIndex| disk.append(log, index);
                let tried = match error {
                    Some(error) => Err(error),
                    None => self.write(append),
                };
                tried.or_else(|error| {
                    self.write(|disk, index| match disk.make_room(index) {
                        true => append(disk, index),
                        false => Err(error),
                    })
                })
            }
        };
        match written {
            Ok(()) => self.finish(request, &recorded),
            Err(error) => refuse(request, ApiError::NotWritten(format!("{error:#}"))),
        }
    }

    /// Lets `task` write what the index is kept in, where it is kept.
    fn write(
        &mut self,
        task: impl FnOnce(&mut IndexFile, &EmbeddingIndex) -> native::Result<()>,
    ) -> native::Result<()> {
        match &mut self.disk {
            Some(disk) => task(disk, &self.index.read().unwrap_or_else(PoisonError::into_inner)),
            None => Ok(()),
        }
    }

    /// Makes a change in memory that is on the disk, and answers it.
    fn finish(&self, request: Request, recorded: &Recorded) {
        let Request { change, reply, held } = request;
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
        drop((index, change, held));
        let _ = reply.send(answer);
    }

    /// The log of a change to the index with those that are pending made already. It is pending then, too.
    fn record(&self, change: &Change, pending: &mut Pending) -> Result<Recorded, ApiError> {
        let internal = |error: ernie_vil::Error| ApiError::Internal(error.to_string());
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let is_there = |id: &str| match pending.there.get(id) {
            Some(&there) => there,
            None => index.has(id),
        };
        let mut recorder = EmbeddingIndex::with_dtype(index.dimensions(), index.fingerprint(), index.dtype());
        recorder.set_source(Some(SERVER)).map_err(internal)?;
        match change {
            Change::Add(ids, vectors) => {
                recorder.keep_log(true);
                let repeated = recorder.add_all(ids, vectors).map_err(|error| {
                    ApiError::request("invalid_value", "items", format!("items: {error}"))
                })?;
                let new = recorder.ids().into_iter().filter(|id| !is_there(id));
                let (added, id_bytes) = new.fold((0, 0), |(count, bytes), id| (count + 1, bytes + id.len()));
                let replaced = recorder.len() - added;
                let Limits {
                    embeddings,
                    id_bytes: most,
                } = self.limits;
                if index.len().saturating_add_signed(pending.growth) + added > embeddings {
                    return Err(ApiError::IndexFull(format!(
                        "{embeddings} embeddings (--max-index)"
                    )));
                }
                if id_bytes > 0 && index.id_bytes().saturating_add_signed(pending.id_growth) + id_bytes > most
                {
                    return Err(ApiError::IndexFull(format!("{most} bytes of ids (--max-ids)")));
                }
                pending.growth += added as isize;
                pending.id_growth += id_bytes as isize;
                pending.there.extend(ids.iter().map(|id| (id.clone(), true)));
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
                    recorder.add(id.clone(), &vector).map_err(internal)?;
                }
                let id_bytes = recorder.id_bytes();
                recorder.set_source(None).map_err(internal)?;
                recorder.keep_log(true);
                let removed = ids.iter().filter(|id| recorder.remove(id)).count();
                pending.growth -= removed as isize;
                pending.id_growth -= id_bytes as isize;
                pending.there.extend(ids.iter().map(|id| (id.clone(), false)));
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
            // Nothing is lost: the log has it all.
            disk.put_off_folding();
            tracing::error!(error = format!("{error:#}"), "saving the index");
        }
    }
}

/// Answers a change that was not made.
fn refuse(request: Request, error: ApiError) {
    let Request { change, reply, held } = request;
    drop((change, held));
    let _ = reply.send(Err(error));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(most: usize) -> Writer {
        Writer {
            index: Arc::new(RwLock::new(EmbeddingIndex::new(1, "a"))),
            size: Arc::default(),
            disk: None,
            limits: Limits {
                embeddings: most,
                id_bytes: 1 << 30,
            },
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
    fn ids_have_a_limit_of_bytes() {
        let mut writer = writer(100);
        writer.limits.id_bytes = 10;
        let changes = [
            add(&["12345678".into(), "9".into()]),
            // One byte too many, together with those before.
            add(&["90".into()]),
            // Those that are there take no more.
            add(&["12345678".into()]),
            Change::Remove(vec!["12345678".into()]),
            add(&["90".into()]),
        ];
        let (group, answers): (Vec<_>, Vec<_>) = changes.map(request).into_iter().unzip();
        writer.apply(group);
        let sizes: Vec<_> = answers
            .into_iter()
            .map(|answer| answer.blocking_recv().unwrap().ok().map(|changed| changed.size))
            .collect();
        assert_eq!(sizes, [Some(2), None, Some(2), Some(1), Some(2)]);
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
