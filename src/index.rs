//! An exact index: embeddings under ids, to add to, to remove from, to search in and to save.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::io::Write;
use std::sync::Arc;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::kernels::{PackedMatrix, matmul};
use crate::vectors::{
    Embeddings, Tensors, check_scorable, header, map_parallel, push_id, push_le_bytes, threads,
};
use crate::{Error, Result};

/// What the saved file's metadata says under `format`.
const FORMAT: &str = "ernie-vil index 1";
/// Embeddings whose scores are computed at a time.
const ROWS: usize = 240;
/// Queries that are answered at a time.
const QUERIES: usize = 128;

/// Embeddings under ids, searched one by one, so the result is exact.
///
/// A score is the inner product in float32: the cosine, where the vectors have length 1, as those of
/// the towers do. Embeddings keep the order in which their ids were first added; it decides between
/// equal scores.
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
    /// `[ids, dimensions]`.
    data: Vec<f32>,
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
    /// ([`crate::ModelConfig::fingerprint`]).
    pub fn new(dimensions: usize, fingerprint: impl Into<String>) -> Self {
        Self {
            dimensions,
            fingerprint: fingerprint.into(),
            rows: HashMap::new(),
            ids: Vec::new(),
            order: Vec::new(),
            added: 0,
            data: Vec::new(),
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

    /// The embedding under an id.
    pub fn get(&self, id: &str) -> Option<&[f32]> {
        self.rows.get(id).map(|&row| self.vector(row))
    }

    /// All ids, in the order in which they were added.
    pub fn ids(&self) -> Vec<&str> {
        self.in_order().into_iter().map(|row| &*self.ids[row]).collect()
    }

    /// Adds an embedding, or replaces the one under the same id, which keeps its place in the order.
    /// Returns whether one was replaced.
    ///
    /// # Errors
    /// [`Error::Index`] names the id where the vector has other dimensions, a value that is not
    /// finite, or a length outside 1e-12 to 1e18.
    pub fn add(&mut self, id: String, vector: &[f32]) -> Result<bool> {
        self.check(vector)
            .map_err(|error| Error::Index(format!("id '{}': {error}", id.escape_debug())))?;
        if let Some(&row) = self.rows.get(id.as_str()) {
            self.data[row * self.dimensions..][..self.dimensions].copy_from_slice(vector);
            return Ok(true);
        }
        let id: Arc<str> = id.into();
        self.rows.insert(id.clone(), self.ids.len());
        self.ids.push(id);
        self.order.push(self.added);
        self.added += 1;
        self.data.extend_from_slice(vector);
        Ok(false)
    }

    /// Removes the embedding under an id; returns whether there was one.
    pub fn remove(&mut self, id: &str) -> bool {
        let Some(row) = self.rows.remove(id) else {
            return false;
        };
        // The last row takes the place that became free.
        let last = self.ids.len() - 1;
        self.data
            .copy_within(last * self.dimensions.., row * self.dimensions);
        self.data.truncate(last * self.dimensions);
        self.ids.swap_remove(row);
        self.order.swap_remove(row);
        if let Some(moved) = self.ids.get(row) {
            self.rows.insert(moved.clone(), row);
        }
        true
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
    /// The tensors are `vectors`, F32 `[embeddings, dimensions]`, and `ids`, U8 `[bytes]`, a JSON list
    /// of one string for each row, both in the order in which they were added. The metadata has
    /// `format`, `fingerprint` and `sha256`, a checksum of all of these. Equal indices make equal files.
    ///
    /// # Errors
    /// [`Error::Index`] where the fingerprint is too long, [`Error::Io`] from the writer.
    pub fn save(&self, writer: &mut impl Write) -> Result<()> {
        let rows = self.in_order();
        let mut ids = vec![b'['];
        for &row in &rows {
            push_id(&mut ids, &self.ids[row]);
        }
        ids.push(b']');
        let vectors = || rows.iter().map(|&row| self.vector(row));
        let checksum = checksum(&self.fingerprint, self.dimensions, &ids, vectors());
        let metadata = [
            ("format", FORMAT),
            ("fingerprint", &self.fingerprint),
            ("sha256", &checksum),
        ];
        let matrices = [("vectors", rows.len(), self.dimensions)];
        let header = header(matrices.into_iter(), ids.len(), &metadata).map_err(Error::Index)?;
        writer.write_all(&header)?;
        let mut bytes = Vec::new();
        for vector in vectors() {
            bytes.clear();
            push_le_bytes(&mut bytes, vector);
            writer.write_all(&bytes)?;
        }
        writer.write_all(&ids)?;
        Ok(writer.flush()?)
    }

    /// Reads the bytes of a saved index.
    ///
    /// # Errors
    /// [`Error::Index`] where they are something else, cut short, changed in any value, or hold an id
    /// twice or a vector that [`add`](Self::add) would refuse.
    pub fn load(bytes: &[u8]) -> Result<Self> {
        load(bytes).map_err(Error::Index)
    }

    fn vector(&self, row: usize) -> &[f32] {
        &self.data[row * self.dimensions..][..self.dimensions]
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

    /// The rows in the order in which their ids were added.
    fn in_order(&self) -> Vec<usize> {
        let mut rows: Vec<usize> = (0..self.len()).collect();
        rows.sort_unstable_by_key(|&row| self.order[row]);
        rows
    }

    /// The best hits of each query; the queries follow one another in `queries`.
    fn best(&self, queries: &[f32], count: usize) -> Vec<Vec<Hit<'_>>> {
        let number = queries.len() / self.dimensions;
        let packed = PackedMatrix::from_transposed(queries, number, self.dimensions);
        let blocks = self.len().div_ceil(ROWS);
        let tasks = threads().min(blocks);
        // Each thread finds the best of its share of the rows.
        let shares = map_parallel(tasks, |task| {
            let mut best = vec![Best::new(count); number];
            for block in blocks * task / tasks..blocks * (task + 1) / tasks {
                let from = block * ROWS;
                let to = (from + ROWS).min(self.len());
                let vectors = &self.data[from * self.dimensions..to * self.dimensions];
                let mut scores = vec![0.0; (to - from) * number];
                matmul(vectors, to - from, &packed, &mut scores, false);
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

fn load(bytes: &[u8]) -> Result<EmbeddingIndex, String> {
    let tensors = Tensors::new(bytes)?;
    let metadata = |key: &str| {
        tensors
            .metadata(key)
            .ok_or_else(|| format!("no '{key}' in the metadata"))
    };
    let format = metadata("format")?;
    if format != FORMAT {
        return Err(format!("format '{format}', expected '{FORMAT}'"));
    }
    let fingerprint = metadata("fingerprint")?;
    let vectors = tensors.matrix("vectors")?.ok_or("no tensor 'vectors'")?;
    let list = tensors.id_list()?.ok_or("no tensor 'ids'")?;
    let found = checksum(fingerprint, vectors.dimensions(), list, vectors.iter());
    let expected = metadata("sha256")?;
    if found != expected {
        return Err(format!(
            "the contents have the SHA-256 {found}, expected {expected}: the file is damaged"
        ));
    }
    let ids = tensors.ids()?.unwrap_or_default();
    if ids.len() != vectors.rows() {
        return Err(format!(
            "{} ids, expected {}, one for each vector",
            ids.len(),
            vectors.rows()
        ));
    }

    let mut index = EmbeddingIndex::new(vectors.dimensions(), fingerprint);
    for (row, (id, vector)) in ids.into_iter().zip(&vectors).enumerate() {
        let at = |error: String| format!("row {}, id '{}': {error}", row + 1, id.escape_debug());
        check_scorable(vector).map_err(at)?;
        let id: Arc<str> = id.as_str().into();
        if index.rows.insert(id.clone(), row).is_some() {
            return Err(at("this id is there twice".into()));
        }
        index.ids.push(id);
        index.order.push(row as u64);
    }
    index.added = vectors.rows() as u64;
    index.data = vectors.into_data();
    Ok(index)
}

/// SHA-256, in hexadecimal digits, of the dimensions and the two lengths as 64-bit little-endian
/// numbers, the fingerprint, the list of ids, and the values as they stand in the file.
fn checksum<'a>(
    fingerprint: &str,
    dimensions: usize,
    ids: &[u8],
    vectors: impl Iterator<Item = &'a [f32]>,
) -> String {
    let mut hash = Sha256::new();
    for size in [dimensions, fingerprint.len(), ids.len()] {
        hash.update((size as u64).to_le_bytes());
    }
    hash.update(fingerprint);
    hash.update(ids);
    let mut bytes = Vec::new();
    for vector in vectors {
        bytes.clear();
        push_le_bytes(&mut bytes, vector);
        hash.update(&bytes);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
