//! What the endpoints do, without HTTP: items to vectors by the queue, vectors to hits by the index.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use ernie_vil::classify::{PLACE, label_vectors, probabilities};
use ernie_vil::index::{EmbeddingIndex, Hit as Found};
use ernie_vil::vectors::Embeddings;
use rayon::ThreadPool;
use tokio::sync::{Semaphore, oneshot};

use super::decoding::{Decoders, Task};
use super::engine::{Engine, Input};
use super::error::ApiError;
use super::labels::{Key, Label, Labels, keys};
use super::lanes::{CAPTIONS, IMAGES, LANES, lane_name};
use super::memory::{Answer, Held, Memory, json_bytes};
use super::metrics::Metrics;
use super::queue::{Place, Queue, Ticket};
use super::request::Item;
use super::store::Store;

/// Text, in bytes, that is worth handing to another thread.
const LONG_TEXT: usize = 16 << 10;
/// Bytes of an answer beside its entries, of an entry beside its hits, and of a hit beside its id: never
/// fewer than these take, as each number is counted with the most digits that it may have.
pub const ENVELOPE: usize = 1024;
pub const ENTRY: usize = 96;
const HIT: usize = 64;
const LABEL: usize = 96;
/// Hits that are found before any of them is copied, at most.
const HITS: usize = 1 << 18;
/// Multiplications of a search after which it is seen whether anybody still waits for it, about.
const STEP: usize = 1 << 31;
/// Queries that are not worth taking apart.
const FEW_QUERIES: usize = 16;
/// Labels of a classification, at most.
const MOST_LABELS: usize = 10_000;

/// The model with its queue, and the index.
pub struct Service {
    pub engine: Engine,
    /// The graphics card's name, where there is one that tells it.
    pub adapter: Option<String>,
    pub queue: Queue<Input>,
    pub store: Store,
    pub metrics: Arc<Metrics>,
    /// Threads that decode images.
    pub decoders: Decoders,
    /// Threads that search.
    pub pool: Arc<ThreadPool>,
    /// Threads that read bodies and put answers together.
    pub texts: Arc<ThreadPool>,
    /// Searches that may look into the index at a time.
    pub looking: Arc<Semaphore>,
    pub memory: Arc<Memory>,
    pub labels: Labels,
}

/// Vectors of the items of a request, in their order, and what they came from.
#[derive(Debug)]
pub struct Embedded {
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of each item, `[CLS]` and `[SEP]` included; none of an image.
    pub tokens: Vec<usize>,
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
        let mut tokens = vec![0; items.len()];
        let mut coming = Vec::with_capacity(items.len());
        let mut decoding = Vec::with_capacity(images);
        for (i, item) in items.into_iter().enumerate() {
            coming.push(match item {
                Item::Embedding(vector) => Coming::Ready(vector),
                Item::Text(_) => {
                    let input = encoded.next();
                    let input =
                        input.ok_or_else(|| ApiError::Internal("fewer captions than items".into()))?;
                    if let Input::Caption(ids) = &input {
                        tokens[i] = ids.len();
                    }
                    Coming::Computing(place(CAPTIONS)?.push(input.group(), input))
                }
                Item::Image(base64) => {
                    let (task, decoded) = self.decode(base64, place(IMAGES)?, held.clone());
                    decoding.push(task);
                    Coming::Decoding(decoded)
                }
            });
        }
        // All at once, so that they take their turns as one request.
        self.decoders.run(decoding);
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
        let encode = |service: &Self, texts: &mut dyn Iterator<Item = &String>, waits: &dyn Fn() -> bool| {
            let start = std::time::Instant::now();
            let encoded: anyhow::Result<Vec<Input>> = texts
                .take_while(|_| waits())
                .map(|text| service.engine.tokenize(text))
                .collect();
            service.metrics.tokenize.time(start.elapsed());
            encoded.map_err(|error| ApiError::Internal(format!("{error:#}")))
        };
        let bytes: usize = texts.clone().map(String::len).sum();
        if bytes == 0 && texts.clone().next().is_none() {
            return Ok(Vec::new());
        }
        if bytes < LONG_TEXT {
            return encode(self, &mut texts.into_iter(), &|| true);
        }
        let (texts, held) = (texts.cloned().collect::<Vec<String>>(), held.clone());
        let (_here, waits) = waiting_for();
        self.aside(move |service| {
            let encoded = encode(service, &mut texts.iter(), &|| waits.strong_count() > 0);
            drop((texts, held));
            encoded
        })
        .await?
    }

    /// What decodes an image and puts it into the queue.
    fn decode(
        self: &Arc<Self>,
        base64: String,
        place: Place<Input>,
        held: Held,
    ) -> (Task, oneshot::Receiver<ernie_vil::Result<Ticket>>) {
        let (reply, decoded) = oneshot::channel();
        // The service has the threads, which would never end if one of them kept it.
        let service = Arc::downgrade(self);
        let task = move || {
            // Nobody waits any more: not even the decoding is done.
            let Some(service) = service.upgrade().filter(|_| !reply.is_closed()) else {
                return;
            };
            let input = service.engine.decode(&base64, &service.metrics);
            drop((base64, held));
            let _ = reply.send(input.map(|input| place.push(input.group(), input)));
        };
        (Box::new(task), decoded)
    }

    /// The vectors of labels, each of which is the mean of its captions in all templates, and what they came
    /// from.
    ///
    /// Texts are computed once as long as they are asked for again and again, and once where they repeat each
    /// other.
    pub async fn label_vectors(
        self: &Arc<Self>,
        labels: Vec<Item>,
        templates: &[String],
        held: &Held,
    ) -> Result<Embedded, ApiError> {
        let texts: Option<Vec<&String>> = (labels.iter())
            .map(|label| match label {
                Item::Text(text) => Some(text),
                _ => None,
            })
            .collect();
        // Where there are templates all labels are texts.
        let Some(texts) = texts else {
            return self.embed(labels, "labels", held).await;
        };
        let key = keys(templates);
        let wanted: Vec<Key> = texts.iter().map(|text| key(text)).collect();
        let mut known: HashMap<Key, Label> = HashMap::new();
        let mut missing: HashMap<Key, usize> = HashMap::new();
        let mut fresh: Vec<(Key, &String)> = Vec::new();
        for (&key, &text) in wanted.iter().zip(&texts) {
            if known.contains_key(&key) || missing.contains_key(&key) {
                continue;
            }
            match self.labels.get(&key) {
                Some(label) => {
                    known.insert(key, label);
                }
                None => {
                    missing.insert(key, fresh.len());
                    fresh.push((key, text));
                }
            }
        }
        if !fresh.is_empty() {
            // A template at a time: each is as many items as the labels alone.
            let mut rounds = Vec::new();
            let mut tokens = vec![0; fresh.len()];
            for template in templates {
                let filled = fresh
                    .iter()
                    .map(|(_, label)| Item::Text(template.replace(PLACE, label)));
                let round = self.embed(filled.collect(), "labels", held).await?;
                for (sum, tokens) in tokens.iter_mut().zip(round.tokens) {
                    *sum += tokens;
                }
                rounds.push(round.vectors.into_iter());
            }
            let rows = (0..fresh.len())
                .flat_map(|_| rounds.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>());
            let rows = matrix(rows.collect(), self.engine.config().text.width, "labels")?;
            let vectors = label_vectors(rows, templates.len())
                .map_err(|error| ApiError::request("invalid_value", "labels", format!("labels: {error}")))?;
            for (i, ((key, _), tokens)) in fresh.iter().zip(tokens).enumerate() {
                let vector = vectors.row(i).into();
                let label = Label { vector, tokens };
                self.labels.insert(*key, label.clone());
                known.insert(*key, label);
            }
        }
        let all = wanted.iter().filter_map(|key| known.get(key));
        Ok(Embedded {
            vectors: all.clone().map(|label| label.vector.to_vec()).collect(),
            tokens: all.map(|label| label.tokens).collect(),
            patches: 0,
        })
    }

    /// Runs what takes long on the threads beside those that serve.
    pub async fn aside<T: Send + 'static>(
        self: &Arc<Self>,
        task: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let service = self.clone();
        aside(&self.texts, move || task(&service)).await
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
        let place = self.looking.clone().acquire_owned().await.map_err(|_| broken())?;
        let service = self.clone();
        let look = move || {
            let looked = service.store.read(|index| service.pool.install(|| task(index)));
            // Not before it has ended, whether anybody waits for it or not.
            drop(place);
            looked
        };
        tokio::task::spawn_blocking(look).await.map_err(|_| broken())
    }

    /// The best `k` of the index for each query, and the answer that they will be.
    pub async fn search(
        self: &Arc<Self>,
        queries: Embeddings,
        k: usize,
        held: Held,
    ) -> Result<(Vec<Vec<Hit>>, Answer), ApiError> {
        let mut answer = self.memory.answer("k");
        answer.add(ENVELOPE)?;
        let (_here, waits) = waiting_for();
        self.look(move |index| {
            let measure = |hits: &[Found<'_>]| hits.iter().map(|hit| HIT + json_bytes(hit.id)).sum::<usize>();
            let found = search(index, &queries, k, &waits, |hits| {
                answer.add(ENTRY + measure(hits))?;
                Ok(Hit::of(hits))
            });
            drop((queries, held));
            Ok((found?, answer))
        })
        .await?
    }

    /// The best `k` labels for each query with their probabilities, from the index or from `labels`, which
    /// the answer calls `names` where it has any.
    pub async fn classify(
        self: &Arc<Self>,
        queries: Embeddings,
        labels: Option<(Embeddings, Arc<Vec<String>>)>,
        k: usize,
        scale: f64,
        held: Held,
    ) -> Result<(Vec<Vec<(Hit, f32)>>, Answer), ApiError> {
        let mut answer = self.memory.answer("k");
        answer.add(ENVELOPE)?;
        let (_here, waits) = waiting_for();
        let (labels, names) = labels.unzip();
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
            let names = names.as_deref().map(Vec::as_slice);
            let bytes = |hit: &Found<'_>| LABEL + json_bytes(label_name(names, hit.id));
            let found = search(index, &queries, index.len(), &waits, |hits| {
                answer.add(ENTRY + hits.iter().take(k).map(bytes).sum::<usize>())?;
                Ok(softmax(hits, k, scale))
            });
            drop((queries, held));
            Ok((found?, answer))
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

/// What a label is called: as it came with the question, where it did.
pub fn label_name<'a>(names: Option<&'a [String]>, id: &'a str) -> &'a str {
    let name = names.and_then(|names| names.get(id.parse::<usize>().ok()?));
    name.map_or(id, String::as_str)
}

/// Two ends of a wait: when the first is dropped, the second has nobody who waits any more.
fn waiting_for() -> (Arc<()>, Weak<()>) {
    let here = Arc::new(());
    let waits = Arc::downgrade(&here);
    (here, waits)
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

/// What `each` makes of the best `k` hits of each query. The queries are taken in pieces, so that what was
/// found, and what is computed for nobody, stay within bounds.
fn search<T>(
    index: &EmbeddingIndex,
    queries: &Embeddings,
    k: usize,
    waits: &Weak<()>,
    mut each: impl FnMut(&[Found<'_>]) -> Result<T, ApiError>,
) -> Result<Vec<T>, ApiError> {
    let dimensions = queries.dimensions();
    let by_hits = HITS / k.min(index.len()).max(1);
    let by_work = (STEP / (index.len() * dimensions).max(1)).max(FEW_QUERIES);
    let step = by_hits.min(by_work).max(1);
    let wrong =
        |error: ernie_vil::Error| ApiError::request("invalid_value", "input", format!("input: {error}"));
    // All queries are checked before any is searched for, and named by their number among all of them.
    let nothing = EmbeddingIndex::new(dimensions, "");
    nothing.search_batch(queries, 1).map_err(wrong)?;
    let mut all = Vec::with_capacity(queries.rows());
    for from in (0..queries.rows()).step_by(step) {
        if waits.strong_count() == 0 {
            return Err(ApiError::Timeout);
        }
        let rows = step.min(queries.rows() - from);
        let values = queries.data()[from * dimensions..(from + rows) * dimensions].to_vec();
        let piece = Embeddings::new(rows, dimensions, values)
            .map_err(|error| ApiError::Internal(error.to_string()))?;
        let found = index.search_batch(&piece, k).map_err(wrong)?;
        for hits in &found {
            all.push(each(hits)?);
        }
    }
    Ok(all)
}

impl Hit {
    fn of(hits: &[Found<'_>]) -> Vec<Self> {
        let own = |hit: &Found<'_>| Self {
            id: hit.id.to_owned(),
            score: hit.score,
        };
        hits.iter().map(own).collect()
    }
}

/// The first `k` hits with their shares of the softmax over all of them. The hits are sorted, the best first.
fn softmax(hits: &[Found<'_>], k: usize, scale: f64) -> Vec<(Hit, f32)> {
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
        let hit = |id, score| Found { id, score };
        let all = softmax(&[hit("a", 0.9), hit("b", 0.8), hit("c", -1.0)], 3, 10.0);
        let sum: f32 = all.iter().map(|(_, share)| share).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        let ratio = all[0].1 / all[1].1;
        assert!((ratio - std::f32::consts::E).abs() < 1e-4, "{ratio}");
        assert_eq!(softmax(&[hit("a", 0.9), hit("b", 0.9)], 1, 100.0)[0].1, 0.5);
    }
}
