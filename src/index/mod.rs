//! An exact index: embeddings under ids, to add to, to remove from, to search in, to save and to log.

mod file;
mod log;
mod rows;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::io::Write;
use std::sync::Arc;

use serde::Serialize;

use self::log::Change;
pub use self::log::{Damage, Replayed};
pub use self::rows::VectorType;
use self::rows::{ROWS, Row, Vectors};
use crate::vectors::{Embeddings, check_scorable, map_parallel, threads};
use crate::{Error, Result};

/// Bytes of an id, at most.
const LONGEST_ID: usize = 1 << 16;
/// Queries that are answered at a time.
const QUERIES: usize = 128;

/// Embeddings under ids, searched one by one, so the result is exact.
///
/// A score is the inner product in float32: the cosine, where the vectors have length 1, as those of
/// the towers do. An index of [`VectorType::Int8`] takes a quarter of the memory, and its scores have a
/// small error. Embeddings keep the order in which their ids were first added; it decides between equal
/// scores.
///
/// ```
/// use ernie_vil::index::EmbeddingIndex;
/// let mut index = EmbeddingIndex::new(2, "model-a");
/// index.add("cat.jpg".into(), &[1.0, 0.0])?;
/// index.add("dog.jpg".into(), &[0.6, 0.8])?;
/// let hits = index.search(&[0.0, 1.0], 10)?;
/// assert_eq!((hits[0].id, hits[0].score), ("dog.jpg", 0.8));
///
/// let mut file = Vec::new();
/// index.save(&mut file)?;
/// let index = EmbeddingIndex::load(&file)?;
/// assert_eq!(index.len(), 2);
/// assert!(index.check_fingerprint("model-b").is_err());
/// # Ok::<(), ernie_vil::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct EmbeddingIndex {
    dimensions: usize,
    fingerprint: String,
    /// Where an id's embedding is.
    rows: HashMap<Arc<str>, usize>,
    ids: Vec<Arc<str>>,
    /// Of each row, how many ids had been added before it.
    order: Vec<u64>,
    added: u64,
    vectors: Vectors,
    /// Of each row, the source that it was added from.
    source: Vec<Source>,
    sources: Sources,
    /// The source of what is added from here on.
    adding: Source,
    /// Bytes of all ids together.
    id_bytes: usize,
    /// What changed since the log was taken, where one is kept.
    log: Option<Vec<u8>>,
}

/// The number of a source; [`NO_SOURCE`] where none is known.
type Source = u32;
const NO_SOURCE: Source = 0;

/// The names of sources, numbered from 1.
#[derive(Debug, Clone, Default)]
struct Sources {
    names: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, Source>,
}

impl Sources {
    fn name(&self, source: Source) -> Option<&str> {
        let at = (source as usize).checked_sub(1)?;
        self.names.get(at).map(|name| &**name)
    }

    /// The number of a name, which is a new one where the name is new.
    fn number(&mut self, name: &str) -> Source {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        // Fewer than 2^32 names fit into memory.
        let number = self.names.len() as Source + 1;
        let name: Arc<str> = name.into();
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        number
    }
}

/// One result of a search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Hit<'a> {
    /// The id that the embedding was added under.
    pub id: &'a str,
    /// Its inner product with the query.
    pub score: f32,
}

impl EmbeddingIndex {
    /// An empty index for embeddings of `dimensions` values, made by the model with this fingerprint
    /// ([`crate::ModelConfig::fingerprint`]), kept as they are.
    pub fn new(dimensions: usize, fingerprint: impl Into<String>) -> Self {
        Self::with_dtype(dimensions, fingerprint, VectorType::F32)
    }

    /// [`new`](Self::new) for an index that keeps the values in another form.
    ///
    /// ```
    /// use ernie_vil::index::{EmbeddingIndex, VectorType};
    /// let mut index = EmbeddingIndex::with_dtype(2, "model", VectorType::Int8);
    /// index.add("cat.jpg".into(), &[0.6, 0.8])?;
    /// let score = index.search(&[0.6, 0.8], 1)?[0].score;
    /// assert!((score - 1.0).abs() < 0.005);
    /// # Ok::<(), ernie_vil::Error>(())
    /// ```
    pub fn with_dtype(dimensions: usize, fingerprint: impl Into<String>, dtype: VectorType) -> Self {
        Self {
            dimensions,
            fingerprint: fingerprint.into(),
            rows: HashMap::new(),
            ids: Vec::new(),
            order: Vec::new(),
            added: 0,
            vectors: Vectors::new(dimensions, dtype),
            source: Vec::new(),
            sources: Sources::default(),
            adding: NO_SOURCE,
            id_bytes: 0,
            log: None,
        }
    }

    /// Number of embeddings.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Values of one embedding.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// How the values are kept.
    pub fn dtype(&self) -> VectorType {
        self.vectors.dtype()
    }

    /// Fingerprint of the model that made the embeddings.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Checks that the embeddings come from the model with this fingerprint; those of another one
    /// cannot be compared with them.
    ///
    /// # Errors
    /// [`Error::Index`] shows both fingerprints where they differ.
    pub fn check_fingerprint(&self, fingerprint: &str) -> Result<()> {
        if self.fingerprint == fingerprint {
            return Ok(());
        }
        Err(Error::Index(format!(
            "made by the model '{}', expected '{fingerprint}': embeddings of different models cannot be compared",
            self.fingerprint
        )))
    }

    /// Whether there is an embedding under an id.
    pub fn has(&self, id: &str) -> bool {
        self.rows.contains_key(id)
    }

    /// The embedding under an id, as it is kept: of [`VectorType::Int8`] the codes times the scale.
    pub fn get(&self, id: &str) -> Option<Cow<'_, [f32]>> {
        self.rows.get(id).map(|&row| self.vectors.get(row))
    }

    /// Bytes that all ids have together.
    pub fn id_bytes(&self) -> usize {
        self.id_bytes
    }

    /// Names the source of all embeddings that are added from here on: the program or the folder, say, that
    /// they come from. At first, and with `None`, they have none.
    ///
    /// An embedding keeps its source in a saved index and in a log. Where it is replaced, its source is that
    /// of the new one.
    ///
    /// ```
    /// use ernie_vil::index::EmbeddingIndex;
    /// let mut index = EmbeddingIndex::new(2, "model");
    /// index.set_source(Some("holidays"))?;
    /// index.add("beach.jpg".into(), &[1.0, 0.0])?;
    /// index.set_source(None)?;
    /// index.add("dog.jpg".into(), &[0.6, 0.8])?;
    /// assert_eq!(index.source("beach.jpg"), Some("holidays"));
    /// assert_eq!(index.source("dog.jpg"), None);
    /// # Ok::<(), ernie_vil::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Index`] where the name is empty or longer than 65,536 bytes.
    pub fn set_source(&mut self, source: Option<&str>) -> Result<()> {
        let adding = match source {
            None => NO_SOURCE,
            Some(name) if (1..=LONGEST_ID).contains(&name.len()) => self.sources.number(name),
            Some(name) => {
                return Err(Error::Index(format!(
                    "a source's name of {} bytes, expected 1 to {LONGEST_ID}",
                    name.len()
                )));
            }
        };
        if adding != self.adding {
            self.adding = adding;
            // A piece of a log that has begun goes on with the other source.
            if let Some(log) = self.log.as_mut().filter(|log| !log.is_empty()) {
                let mut begun = std::mem::take(log);
                self.begin(&mut begun);
                self.log = Some(begun);
            }
        }
        Ok(())
    }

    /// The source of the embedding under an id, where it has one.
    pub fn source(&self, id: &str) -> Option<&str> {
        self.sources.name(self.source[*self.rows.get(id)?])
    }

    /// Gives the embedding under an id the source of those that are added now; returns whether there was one.
    /// No log records this; a saved index has it.
    pub fn assign_source(&mut self, id: &str) -> bool {
        let row = self.rows.get(id);
        row.is_some_and(|&row| {
            self.source[row] = self.adding;
            true
        })
    }

    /// All ids, in the order in which they were added.
    pub fn ids(&self) -> Vec<&str> {
        self.in_order().into_iter().map(|row| &*self.ids[row]).collect()
    }

    /// Adds an embedding, or replaces the one under the same id, which keeps its place in the order.
    /// Returns whether one was replaced.
    ///
    /// Of those that are there already, a few thousand at most are moved in memory, however many there are.
    ///
    /// # Errors
    /// [`Error::Index`] names the id where it is longer than 65,536 bytes, and where the vector has other
    /// dimensions, a value that is not finite, or a length outside 1e-12 to 1e18.
    pub fn add(&mut self, id: String, vector: &[f32]) -> Result<bool> {
        self.check_new(&id, vector)?;
        Ok(self.put(&id, vector))
    }

    /// Adds several embeddings, row i of `vectors` under id i, as [`add`](Self::add) does: all of them, or
    /// none. Of an id that is there twice the last one counts. Returns how many replaced another one.
    ///
    /// ```
    /// use ernie_vil::index::EmbeddingIndex;
    /// use ernie_vil::vectors::Embeddings;
    /// let mut index = EmbeddingIndex::new(2, "model");
    /// let vectors = Embeddings::new(2, 2, vec![1.0, 0.0, f32::NAN, 1.0])?;
    /// assert!(index.add_all(&["cat.jpg", "dog.jpg"], &vectors).is_err());
    /// assert!(index.is_empty());
    /// # Ok::<(), ernie_vil::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Index`] where there are not as many ids as vectors, and as [`add`](Self::add) for the first
    /// of them that is wrong.
    pub fn add_all(&mut self, ids: &[impl AsRef<str>], vectors: &Embeddings) -> Result<usize> {
        if ids.len() != vectors.rows() {
            return Err(Error::Index(format!(
                "{} ids for {} vectors, expected one for each",
                ids.len(),
                vectors.rows()
            )));
        }
        for (id, vector) in ids.iter().zip(vectors) {
            self.check_new(id.as_ref(), vector)?;
        }
        let mut replaced = 0;
        for (id, vector) in ids.iter().zip(vectors) {
            replaced += usize::from(self.put(id.as_ref(), vector));
        }
        Ok(replaced)
    }

    /// Removes the embedding under an id; returns whether there was one.
    pub fn remove(&mut self, id: &str) -> bool {
        let was_there = self.remove_row(id);
        if was_there {
            self.record(&Change::Remove(id));
        }
        was_there
    }

    /// The `count` embeddings with the highest scores (all of them, where there are fewer), the
    /// highest first; of equal scores the one that was added first.
    ///
    /// # Errors
    /// [`Error::Index`] where the query has other dimensions, a value that is not finite, or a length
    /// outside 1e-12 to 1e18.
    pub fn search(&self, query: &[f32], count: usize) -> Result<Vec<Hit<'_>>> {
        self.check(query)
            .map_err(|error| Error::Index(format!("query: {error}")))?;
        Ok(self.best(query, count).swap_remove(0))
    }

    /// [`search`](Self::search) for several queries at once: the same results, sooner.
    ///
    /// # Errors
    /// As [`search`](Self::search); the message names the query, counting from 1.
    pub fn search_batch(&self, queries: &Embeddings, count: usize) -> Result<Vec<Vec<Hit<'_>>>> {
        for (row, query) in queries.iter().enumerate() {
            self.check(query)
                .map_err(|error| Error::Index(format!("query {}: {error}", row + 1)))?;
        }
        let some = queries.data().chunks(QUERIES * self.dimensions.max(1));
        Ok(some.flat_map(|queries| self.best(queries, count)).collect())
    }

    /// Writes the index as a safetensors file.
    ///
    /// The tensors are `vectors`, `[embeddings, dimensions]`, F32, or I8 with `scales`, F32 `[embeddings,
    /// 1]`, to multiply with; and `ids`, U8 `[bytes]`, a JSON list of one string for each row. All are in
    /// the order in which they were added. The metadata has `format`, `fingerprint` and `sha256`, a
    /// checksum of all of these. Where some embeddings have a [source](Self::set_source), the tensor
    /// `sources`, U8, says which, with the checksum `sources_sha256`. Equal indices make equal files.
    ///
    /// # Errors
    /// [`Error::Index`] where the fingerprint is too long, [`Error::Io`] from the writer.
    pub fn save(&self, writer: &mut impl Write) -> Result<()> {
        file::save(self, writer, &self.in_order())
    }

    /// Writes the index as [`save`](Self::save) does, without the embeddings for whose ids `keep` is false.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub fn save_where(&self, writer: &mut impl Write, keep: impl Fn(&str) -> bool) -> Result<()> {
        let mut rows = self.in_order();
        rows.retain(|&row| keep(&self.ids[row]));
        file::save(self, writer, &rows)
    }

    /// Reads the bytes of a saved index. It keeps no log.
    ///
    /// # Errors
    /// [`Error::Index`] where they are something else, cut short, changed in any value, or hold an id
    /// twice or a vector that [`add`](Self::add) would refuse.
    pub fn load(bytes: &[u8]) -> Result<Self> {
        file::load(bytes).map_err(Error::Index)
    }

    /// Whether changes are recorded from here on, for [`take_log`](Self::take_log); at first they are not.
    /// What was recorded and not taken is dropped with `false`.
    pub fn keep_log(&mut self, keep: bool) {
        self.log = keep.then(|| self.log.take().unwrap_or_default());
    }

    /// Records of what was added, replaced and removed since the last call, in the form in which it is kept;
    /// nothing where nothing changed, or where no log is [kept](Self::keep_log).
    ///
    /// Pieces that are appended to a file make a log, from which [`replay`](Self::replay) brings the index
    /// back, alone or on top of a saved one. Until it is taken, a piece is held in memory.
    ///
    /// ```
    /// use ernie_vil::index::EmbeddingIndex;
    /// let mut index = EmbeddingIndex::new(2, "model");
    /// index.keep_log(true);
    /// index.add("cat.jpg".into(), &[1.0, 0.0])?;
    /// let mut file = index.take_log();
    /// index.remove("cat.jpg");
    /// file.extend(index.take_log());
    /// index.add("dog.jpg".into(), &[0.6, 0.8])?;
    /// file.extend(index.take_log());
    ///
    /// file.truncate(file.len() - 1);
    /// let mut again = EmbeddingIndex::new(2, "model");
    /// let whole = again.replay(&file)?;
    /// assert!(again.is_empty());
    /// file.truncate(whole);
    /// # Ok::<(), ernie_vil::Error>(())
    /// ```
    pub fn take_log(&mut self) -> Vec<u8> {
        self.log.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// An empty index of the kind that a log belongs to, by the first sound header in it; none where it has
    /// no such header.
    ///
    /// # Errors
    /// [`Error::Index`] where the header is one of another format.
    pub fn of_log(log: &[u8]) -> Result<Option<Self>> {
        log::kind(log).map_err(Error::Index)
    }

    /// Applies the records of a log, and returns how many bytes of it they take: all of them, unless the log
    /// ends in the middle of a record, as after a crash. The caller cuts such an end off before appending to
    /// the log.
    ///
    /// Applied to an index that has the changes already, a log changes nothing but the order of ids that it
    /// removes and adds again. What is replayed is not recorded once more.
    ///
    /// # Errors
    /// [`Error::Index`], with the byte, where a record is damaged that was written whole, as one is that sound
    /// records follow ([`salvage`](Self::salvage) goes on behind it); where the log belongs to an index of
    /// another model, other dimensions or another [`VectorType`]; where it does not begin as a log does; or
    /// where a sound record holds what cannot be applied. The records before it are applied by then.
    pub fn replay(&mut self, log: &[u8]) -> Result<usize> {
        let replayed = self.read_log(log, false)?;
        match replayed.damage.first() {
            Some(damage) => Err(Error::Index(format!("log, {damage}"))),
            None => Ok(replayed.sound),
        }
    }

    /// Applies all sound records of a log, also those behind damaged ones, and says what was damaged.
    ///
    /// What a damaged record did is lost: an embedding is missing then, is the one before it was replaced, or
    /// is there though it was removed.
    ///
    /// # Errors
    /// As [`replay`](Self::replay), but for damaged records.
    pub fn salvage(&mut self, log: &[u8]) -> Result<Replayed> {
        self.read_log(log, true)
    }

    fn read_log(&mut self, log: &[u8], beyond_damage: bool) -> Result<Replayed> {
        let mut source = NO_SOURCE;
        log::read(self, log, beyond_damage, |index, change| match change {
            Change::Source(name) => source = name.map_or(NO_SOURCE, |name| index.sources.number(name)),
            Change::Put(id, row) => {
                index.put_row(id, &row, source);
            }
            Change::Remove(id) => {
                index.remove_row(id);
            }
        })
        .map_err(Error::Index)
    }

    fn check(&self, vector: &[f32]) -> Result<(), String> {
        if vector.len() != self.dimensions {
            return Err(format!(
                "{} dimensions, expected {}",
                vector.len(),
                self.dimensions
            ));
        }
        check_scorable(vector)
    }

    fn check_new(&self, id: &str, vector: &[f32]) -> Result<()> {
        if id.len() > LONGEST_ID {
            let start: String = id.chars().take(40).collect();
            return Err(Error::Index(format!(
                "id '{}…' of {} bytes, expected at most {LONGEST_ID}",
                start.escape_debug(),
                id.len()
            )));
        }
        let checked = self.check(vector);
        checked.map_err(|error| Error::Index(format!("id '{}': {error}", id.escape_debug())))
    }

    /// Adds or replaces an embedding that was checked, and records it.
    fn put(&mut self, id: &str, vector: &[f32]) -> bool {
        let row = Row::new(vector, self.dtype());
        let replaced = self.put_row(id, &row, self.adding);
        self.record(&Change::Put(id, row));
        replaced
    }

    fn put_row(&mut self, id: &str, row: &Row<'_>, source: Source) -> bool {
        if let Some(&at) = self.rows.get(id) {
            self.vectors.set(at, row);
            self.source[at] = source;
            return true;
        }
        let id: Arc<str> = id.into();
        self.id_bytes += id.len();
        self.source.push(source);
        self.rows.insert(id.clone(), self.ids.len());
        self.ids.push(id);
        self.order.push(self.added);
        self.added += 1;
        self.vectors.push(row);
        false
    }

    fn remove_row(&mut self, id: &str) -> bool {
        let Some(row) = self.rows.remove(id) else {
            return false;
        };
        // The last row takes the place that became free.
        self.vectors.swap_remove(row, self.ids.len() - 1);
        self.ids.swap_remove(row);
        self.order.swap_remove(row);
        self.source.swap_remove(row);
        self.id_bytes -= id.len();
        if let Some(moved) = self.ids.get(row) {
            self.rows.insert(moved.clone(), row);
        }
        true
    }

    /// Records a change, where a log is kept.
    fn record(&mut self, change: &Change<'_>) {
        if let Some(mut log) = self.log.take() {
            if log.is_empty() {
                self.begin(&mut log);
            }
            log::push(&mut log, change);
            self.log = Some(log);
        }
    }

    /// Begins a piece of a log, or goes on with one, with the source that there is now.
    fn begin(&self, log: &mut Vec<u8>) {
        log.extend(log::header(self));
        if let Some(name) = self.sources.name(self.adding) {
            log::push(log, &Change::Source(Some(name)));
        }
    }

    /// The rows in the order in which their ids were added.
    fn in_order(&self) -> Vec<usize> {
        let mut rows: Vec<usize> = (0..self.len()).collect();
        rows.sort_unstable_by_key(|&row| self.order[row]);
        rows
    }

    /// The best hits of each query; the queries follow one another in `queries`.
    fn best(&self, queries: &[f32], count: usize) -> Vec<Vec<Hit<'_>>> {
        let number = queries.len() / self.dimensions;
        let scorer = self.vectors.scorer(queries, self.dimensions);
        let blocks = self.len().div_ceil(ROWS);
        let tasks = threads().min(blocks);
        // Each thread finds the best of its share of the rows.
        let shares = map_parallel(tasks, |task| {
            let mut best = vec![Best::new(count); number];
            for block in blocks * task / tasks..blocks * (task + 1) / tasks {
                let from = block * ROWS;
                let to = (from + ROWS).min(self.len());
                let mut scores = vec![0.0; (to - from) * number];
                scorer(from..to, &mut scores);
                for (scores, row) in scores.chunks_exact(number).zip(from..) {
                    for (&score, best) in scores.iter().zip(&mut best) {
                        // The two zeros are equal scores.
                        best.offer(score + 0.0, self.order[row], row);
                    }
                }
            }
            best
        });
        let mut all = vec![Best::new(count); number];
        for share in shares {
            for (all, found) in all.iter_mut().zip(share) {
                for Candidate { score, order, row } in found.heap {
                    all.offer(score, order, row);
                }
            }
        }
        let hits = |best: Best| {
            let sorted = best.heap.into_sorted_vec();
            sorted
                .into_iter()
                .map(|found| Hit {
                    id: &self.ids[found.row],
                    score: found.score,
                })
                .collect()
        };
        all.into_iter().map(hits).collect()
    }
}

/// The `count` best candidates so far; the worst of them on top of the heap.
#[derive(Clone)]
struct Best {
    count: usize,
    heap: BinaryHeap<Candidate>,
}

impl Best {
    fn new(count: usize) -> Self {
        Self {
            count,
            heap: BinaryHeap::new(),
        }
    }

    fn offer(&mut self, score: f32, order: u64, row: usize) {
        let candidate = Candidate { score, order, row };
        if self.heap.len() < self.count {
            self.heap.push(candidate);
        } else if let Some(mut worst) = self.heap.peek_mut()
            && candidate < *worst
        {
            *worst = candidate;
        }
    }
}

/// An embedding with its score. The better of two is the smaller one, so that it comes first.
#[derive(Clone, Copy)]
struct Candidate {
    score: f32,
    order: u64,
    row: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        other
            .score
            .total_cmp(&self.score)
            .then(self.order.cmp(&other.order))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}
