//! What the endpoints do, without HTTP: items to vectors by the queue, vectors to hits by the index.

use std::sync::Arc;

use ernie_vil::classify::probabilities;
use ernie_vil::index::EmbeddingIndex;
use ernie_vil::vectors::Embeddings;
use rayon::ThreadPool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::engine::{CAPTIONS, Engine, IMAGES, Input, LANES, lane_name};
use super::error::ApiError;
use super::metrics::Metrics;
use super::queue::{Place, Queue, Ticket};
use super::request::Item;
use super::store::Store;

/// Text, in bytes, that is worth handing to another thread.
const LONG_TEXT: usize = 16 << 10;
/// Bytes of an answer at most: ids, and labels, come back for each input.
const MOST_RESPONSE: usize = 64 << 20;
/// Labels of a classification, at most.
const MOST_LABELS: usize = 10_000;

/// The memory that a request's body was counted for. What works on something that was read from the body has a share, and
/// the last one gives it back, whether the client is still there or not.
pub type Held = Arc<Vec<OwnedSemaphorePermit>>;

/// The model with its queue, and the index.
pub struct Service {
    pub engine: Engine,
    /// The graphics card's name, where there is one that tells it.
    pub adapter: Option<String>,
    pub queue: Queue<Input>,
    pub store: Store,
    pub metrics: Arc<Metrics>,
    pub pool: Arc<ThreadPool>,
    /// Searches that may look into the index at a time.
    pub looking: Semaphore,
}

/// Vectors of the items of a request, in their order, and what they came from.
#[derive(Debug)]
pub struct Embedded {
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all captions, `[CLS]` and `[SEP]` included.
    pub tokens: usize,
    /// Patches of all images.
    pub patches: usize,
}

/// An embedding under an id, with its score.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    pub id: String,
    pub score: f32,
}

/// An item on its way to its vector.
enum Coming {
    Ready(Vec<f32>),
    Computing(Ticket),
    /// An image that is being decoded.
    Decoding(oneshot::Receiver<ernie_vil::Result<Ticket>>),
}

impl Service {
    /// The vectors of items. `path` is what they are called in the request, for messages.
    pub async fn embed(
        self: &Arc<Self>,
        items: Vec<Item>,
        path: &str,
        held: &Held,
    ) -> Result<Embedded, ApiError> {
        let images = items.iter().filter(|item| matches!(item, Item::Image(_))).count();
        let captions = items.iter().filter(|item| matches!(item, Item::Text(_))).count();
        let mut places = [
            self.reserve(CAPTIONS, captions)?.into_iter(),
            self.reserve(IMAGES, images)?.into_iter(),
        ];
        let mut place = |lane: usize| {
            let place = places[lane].next();
            place.ok_or_else(|| ApiError::Internal("fewer places than items".into()))
        };
        let mut encoded = self.tokenize(&items, held).await?.into_iter();
        let patches = images * self.engine.config().image.patches();
        let mut tokens = 0;
        let mut coming = Vec::with_capacity(items.len());
        for item in items {
            coming.push(match item {
                Item::Embedding(vector) => Coming::Ready(vector),
                Item::Text(_) => {
                    let input = encoded.next();
                    let input =
                        input.ok_or_else(|| ApiError::Internal("fewer captions than items".into()))?;
                    if let Input::Caption(ids) = &input {
                        tokens += ids.len();
                    }
                    Coming::Computing(place(CAPTIONS)?.push(input.group(), input))
                }
                Item::Image(base64) => Coming::Decoding(self.decode(base64, place(IMAGES)?, held.clone())),
            });
        }
        let mut vectors = Vec::with_capacity(coming.len());
        for (i, coming) in coming.into_iter().enumerate() {
            let gone = || ApiError::Internal("the model has ended".into());
            let ticket = match coming {
                Coming::Ready(vector) => {
                    vectors.push(vector);
                    continue;
                }
                Coming::Computing(ticket) => ticket,
                Coming::Decoding(decoded) => decoded.await.map_err(|_| gone())?.map_err(|error| {
                    ApiError::request(
                        "invalid_image",
                        format!("{path}[{i}]"),
                        format!("{path}[{i}]: {error}"),
                    )
                })?,
            };
            vectors.push(ticket.await.map_err(|_| gone())?.map_err(ApiError::Internal)?);
        }
        Ok(Embedded {
            vectors,
            tokens,
            patches,
        })
    }

    fn reserve(&self, lane: usize, count: usize) -> Result<Vec<Place<Input>>, ApiError> {
        self.queue.reserve(lane, count).map_err(|full| ApiError::Busy {
            what: lane_name(lane),
            seconds: full.seconds,
        })
    }

    /// The token ids of the texts among the items.
    async fn tokenize(self: &Arc<Self>, items: &[Item], held: &Held) -> Result<Vec<Input>, ApiError> {
        let texts = items.iter().filter_map(|item| match item {
            Item::Text(text) => Some(text),
            _ => None,
        });
        let encode = |service: &Self, texts: &mut dyn Iterator<Item = &String>| {
            let start = std::time::Instant::now();
            let encoded: anyhow::Result<Vec<Input>> =
                texts.map(|text| service.engine.tokenize(text)).collect();
            service.metrics.tokenize.time(start.elapsed());
            encoded.map_err(|error| ApiError::Internal(format!("{error:#}")))
        };
        let bytes: usize = texts.clone().map(String::len).sum();
        if bytes == 0 && texts.clone().next().is_none() {
            return Ok(Vec::new());
        }
        if bytes < LONG_TEXT {
            return encode(self, &mut texts.into_iter());
        }
        let (texts, held) = (texts.cloned().collect::<Vec<String>>(), held.clone());
        self.aside(move |service| {
            let encoded = encode(service, &mut texts.iter());
            drop((texts, held));
            encoded
        })
        .await?
    }

    /// Decodes an image on the threads that do so, and puts it into the queue.
    fn decode(
        self: &Arc<Self>,
        base64: String,
        place: Place<Input>,
        held: Held,
    ) -> oneshot::Receiver<ernie_vil::Result<Ticket>> {
        let (reply, decoded) = oneshot::channel();
        let service = self.clone();
        self.pool.spawn(move || {
            // Nobody waits any more: not even the decoding is done.
            if reply.is_closed() {
                return;
            }
            let input = service.engine.decode(&base64, &service.metrics);
            drop((base64, held));
            let _ = reply.send(input.map(|input| place.push(input.group(), input)));
        });
        decoded
    }

    /// Runs what takes long on the threads beside those that serve.
    pub async fn aside<T: Send + 'static>(
        self: &Arc<Self>,
        task: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let service = self.clone();
        aside(&self.pool, move || task(&service)).await
    }

    /// Whether texts and images can be compared with each other and with what is in the index, which has the image
    /// tower's vectors.
    pub fn check_comparable(&self, items: &[Item], path: &str) -> Result<(), ApiError> {
        let config = self.engine.config();
        if config.text.width == config.image.width() {
            return Ok(());
        }
        match items.iter().position(|item| matches!(item, Item::Text(_))) {
            None => Ok(()),
            Some(i) => Err(ApiError::request(
                "invalid_value",
                format!("{path}[{i}]"),
                format!(
                    "{path}[{i}]: this model's towers have different widths ({} and {}), so a text cannot be compared \
                     with an image",
                    config.text.width,
                    config.image.width()
                ),
            )),
        }
    }

    /// Lets `task` look into the index, on the pool's threads.
    ///
    /// None of them ever waits for the index: one that did, in the middle of a search, would take another search in
    /// the meantime, which would wait behind a change, which waits for the first. So a thread of its own takes the
    /// index, and the pool computes for it.
    async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        task: impl FnOnce(&EmbeddingIndex) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let broken = || ApiError::Internal("the work was broken off by a fault".into());
        let _place = self.looking.acquire().await.map_err(|_| broken())?;
        let service = self.clone();
        let look = move || service.store.read(|index| service.pool.install(|| task(index)));
        tokio::task::spawn_blocking(look).await.map_err(|_| broken())
    }

    /// The best `k` of the index for each query.
    pub async fn search(
        self: &Arc<Self>,
        queries: Embeddings,
        k: usize,
        held: Held,
    ) -> Result<Vec<Vec<Hit>>, ApiError> {
        self.look(move |index| {
            let found = search(index, &queries, k, k, Hit::of);
            drop((queries, held));
            found
        })
        .await?
    }

    /// The best `k` labels for each query with their probabilities, from the index or from `labels`.
    pub async fn classify(
        self: &Arc<Self>,
        queries: Embeddings,
        labels: Option<Embeddings>,
        k: usize,
        scale: f64,
        held: Held,
    ) -> Result<Vec<Vec<(Hit, f32)>>, ApiError> {
        let classify = move |index: &EmbeddingIndex| {
            if !(1..=MOST_LABELS).contains(&index.len()) {
                return Err(ApiError::request(
                    "no_labels",
                    "labels",
                    format!(
                        "the index has {} embeddings, expected 1 to {MOST_LABELS} to choose from",
                        index.len()
                    ),
                ));
            }
            let found = search(index, &queries, index.len(), k, |hits| softmax(hits, k, scale));
            drop((queries, held));
            found
        };
        match labels {
            None => self.look(classify).await?,
            Some(labels) => {
                let classify = move || {
                    let mut index = EmbeddingIndex::new(labels.dimensions(), "labels");
                    let ids: Vec<String> = (0..labels.rows()).map(|i| i.to_string()).collect();
                    index.add_all(&ids, &labels).map_err(|error| {
                        ApiError::request("invalid_value", "labels", format!("labels: {error}"))
                    })?;
                    classify(&index)
                };
                aside(&self.pool, classify).await?
            }
        }
    }
}

/// What hits with these ids take in a response, about.
pub fn hits_bytes<'a>(ids: impl Iterator<Item = &'a str>) -> usize {
    ids.map(|id| id.len() + 64).sum()
}

/// Checks what an answer with hits takes, about.
pub fn check_answer(bytes: usize) -> Result<(), ApiError> {
    match bytes {
        0..=MOST_RESPONSE => Ok(()),
        _ => Err(ApiError::request(
            "answer_too_long",
            "k",
            format!(
                "the answer would have about {bytes} bytes, expected at most {MOST_RESPONSE}: ask for fewer hits (k), in fewer \
                 inputs or with shorter labels"
            ),
        )),
    }
}

/// Runs a task on a pool's threads.
pub async fn aside<T: Send + 'static>(
    pool: &ThreadPool,
    task: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let (reply, answer) = oneshot::channel();
    pool.spawn(move || {
        if !reply.is_closed() {
            let _ = reply.send(task());
        }
    });
    answer
        .await
        .map_err(|_| ApiError::Internal("the work was broken off by a fault".into()))
}

/// What `each` makes of the best `k` hits of each query, of which it keeps the first `shown`.
fn search<T>(
    index: &EmbeddingIndex,
    queries: &Embeddings,
    k: usize,
    shown: usize,
    each: impl Fn(&[ernie_vil::index::Hit<'_>]) -> T,
) -> Result<Vec<T>, ApiError> {
    let found = index
        .search_batch(queries, k)
        .map_err(|error| ApiError::request("invalid_value", "input", format!("input: {error}")))?;
    // Before the ids are copied.
    check_answer(hits_bytes(
        found
            .iter()
            .flat_map(|hits| hits.iter().take(shown))
            .map(|hit| hit.id),
    ))?;
    Ok(found.iter().map(|hits| each(hits)).collect())
}

impl Hit {
    fn of(hits: &[ernie_vil::index::Hit<'_>]) -> Vec<Self> {
        let own = |hit: &ernie_vil::index::Hit<'_>| Self {
            id: hit.id.to_owned(),
            score: hit.score,
        };
        hits.iter().map(own).collect()
    }
}

/// The first `k` hits with their shares of the softmax over all of them. The hits are sorted, the best first.
fn softmax(hits: &[ernie_vil::index::Hit<'_>], k: usize, scale: f64) -> Vec<(Hit, f32)> {
    let scores: Vec<f32> = hits.iter().map(|hit| hit.score).collect();
    let shares = probabilities(&scores, scale);
    Hit::of(&hits[..k.min(hits.len())])
        .into_iter()
        .zip(shares)
        .collect()
}

/// One matrix of vectors that all have to have the index's dimensions.
pub fn matrix(vectors: Vec<Vec<f32>>, dimensions: usize, path: &str) -> Result<Embeddings, ApiError> {
    for (i, vector) in vectors.iter().enumerate() {
        if vector.len() != dimensions {
            return Err(ApiError::request(
                "invalid_value",
                format!("{path}[{i}]"),
                format!(
                    "{path}[{i}]: an embedding of {} values, expected {dimensions}",
                    vector.len()
                ),
            ));
        }
    }
    Embeddings::new(vectors.len(), dimensions, vectors.concat())
        .map_err(|error| ApiError::Internal(error.to_string()))
}

/// Items that wait, for each lane.
pub fn waiting(queue: &Queue<Input>) -> [usize; LANES] {
    std::array::from_fn(|lane| queue.waiting(lane))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_adds_up_and_keeps_the_order() {
        let hit = |id, score| ernie_vil::index::Hit { id, score };
        let all = softmax(&[hit("a", 0.9), hit("b", 0.8), hit("c", -1.0)], 3, 10.0);
        let sum: f32 = all.iter().map(|(_, share)| share).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        let ratio = all[0].1 / all[1].1;
        assert!((ratio - std::f32::consts::E).abs() < 1e-4, "{ratio}");
        assert_eq!(softmax(&[hit("a", 0.9), hit("b", 0.9)], 1, 100.0)[0].1, 0.5);
    }
}
