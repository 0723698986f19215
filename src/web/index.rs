use js_sys::{Array, Float32Array, Object, Reflect};
use serde::Serialize;
use wasm_bindgen::prelude::*;

use super::{object, thrown};
use crate::Error;
use crate::index::{EmbeddingIndex, VectorType};
use crate::recall::{self, Options, Report};
use crate::vectors::Embeddings;

/// An exact index of embeddings under ids.
#[wasm_bindgen]
pub struct Index(EmbeddingIndex);

#[wasm_bindgen(typescript_custom_section)]
const TYPES: &str = "
/** What a query found, the best first. */
export interface Hits {
    ids: string[];
    scores: Float32Array;
}
/** Both directions' recall. */
export interface Recall {
    /** The original's table. */
    table: string;
    /** The same figures, and more, as plain data. */
    report: Record<string, unknown>;
}
";

#[wasm_bindgen]
impl Index {
    /// An empty index for vectors of a model with this fingerprint, which keeps them as `"f32"` or `"int8"`.
    #[wasm_bindgen(constructor)]
    pub fn new(
        dimensions: usize,
        fingerprint: String,
        #[wasm_bindgen(unchecked_param_type = "\"f32\" | \"int8\"")] dtype: &str,
    ) -> Result<Self, JsValue> {
        let dtype: VectorType = dtype.parse().map_err(thrown)?;
        Ok(Self::logged(EmbeddingIndex::with_dtype(
            dimensions,
            fingerprint,
            dtype,
        )))
    }

    /// Reads a saved index.
    pub fn load(bytes: &[u8]) -> Result<Self, JsValue> {
        EmbeddingIndex::load(bytes).map(Self::logged).map_err(thrown)
    }

    fn logged(mut index: EmbeddingIndex) -> Self {
        index.keep_log(true);
        Self(index)
    }

    /// Number of embeddings.
    #[wasm_bindgen(getter)]
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// Values of one embedding.
    #[wasm_bindgen(getter)]
    pub fn dimensions(&self) -> usize {
        self.0.dimensions()
    }

    /// Fingerprint of the model that made the embeddings.
    #[wasm_bindgen(getter)]
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint().to_owned()
    }

    /// How the vectors are kept.
    #[wasm_bindgen(getter, unchecked_return_type = "\"f32\" | \"int8\"")]
    pub fn dtype(&self) -> String {
        self.0.dtype().to_string()
    }

    /// Adds vectors, or replaces those whose ids are there: all, or none where one is refused.
    pub fn add(&mut self, ids: Vec<String>, vectors: Vec<f32>) -> Result<(), JsValue> {
        let vectors = rows(vectors, self.0.dimensions()).map_err(thrown)?;
        self.0.add_all(&ids, &vectors).map(drop).map_err(thrown)
    }

    /// Removes embeddings; returns how many there were.
    pub fn remove(&mut self, ids: Vec<String>) -> usize {
        ids.iter().filter(|id| self.0.remove(id)).count()
    }

    /// Whether there is an embedding under the id.
    pub fn has(&self, id: &str) -> bool {
        self.0.has(id)
    }

    /// The embedding under the id, as it is kept.
    pub fn get(&self, id: &str) -> Option<Vec<f32>> {
        self.0.get(id).map(|vector| vector.into_owned())
    }

    /// All ids, in the order in which they were added.
    pub fn ids(&self) -> Vec<String> {
        self.0.ids().into_iter().map(str::to_owned).collect()
    }

    /// The `k` best for each of some queries behind one another.
    #[wasm_bindgen(unchecked_return_type = "Hits[]")]
    pub fn search(&self, queries: Vec<f32>, k: usize) -> Result<Array, JsValue> {
        let queries = rows(queries, self.0.dimensions()).map_err(thrown)?;
        let results = self.0.search_batch(&queries, k).map_err(thrown)?;
        let object = |hits: &Vec<crate::index::Hit<'_>>| {
            let ids: Array = hits.iter().map(|hit| JsValue::from_str(hit.id)).collect();
            let scores: Vec<f32> = hits.iter().map(|hit| hit.score).collect();
            let object = Object::new();
            Reflect::set(&object, &"ids".into(), &ids)?;
            Reflect::set(&object, &"scores".into(), &Float32Array::from(scores.as_slice()))?;
            Ok(JsValue::from(object))
        };
        results.iter().map(object).collect()
    }

    /// The whole index as one file.
    pub fn save(&self) -> Result<Vec<u8>, JsValue> {
        let mut file = Vec::new();
        self.0.save(&mut file).map_err(thrown)?;
        Ok(file)
    }

    /// Records of what has changed since the last call, to be appended to a log; empty where nothing has.
    #[wasm_bindgen(js_name = takeLog)]
    pub fn take_log(&mut self) -> Vec<u8> {
        self.0.take_log()
    }

    /// Applies a log's records; returns the bytes of those that are whole and sound.
    pub fn replay(&mut self, log: &[u8]) -> Result<usize, JsValue> {
        self.0.replay(log).map_err(thrown)
    }
}

/// The recall of captions and images of which each row belongs to the other's row of the same number.
#[wasm_bindgen(unchecked_return_type = "Recall")]
pub fn recall(text: Vec<f32>, image: Vec<f32>, dimensions: usize) -> Result<JsValue, JsValue> {
    let report = || {
        let text = rows(text, dimensions)?;
        let image = rows(image, dimensions)?;
        Report::new(&recall::ranks(&text, &image, Options::default())?)
    };
    let report = report().map_err(thrown)?;
    object(&Recall {
        table: report.table(),
        report,
    })
}

/// What `recall` returns.
#[derive(Serialize)]
struct Recall {
    table: String,
    report: Report,
}

/// Vectors behind one another.
fn rows(values: Vec<f32>, dimensions: usize) -> crate::Result<Embeddings> {
    if dimensions == 0 || !values.len().is_multiple_of(dimensions) {
        return Err(Error::Vectors(format!(
            "{} values, expected a multiple of {dimensions} dimensions",
            values.len()
        )));
    }
    Embeddings::new(values.len() / dimensions, dimensions, values)
}
