//! Pairs to vectors: one thread reads, all cores decode and preprocess, the devices compute, and what comes out is in
//! order.
//!
//! The stages work at the same time on batches that follow each other, with at most [`AHEAD`] finished batches between
//! two of them, so memory is bounded by a few batches. All devices take their batches from one queue, each when it is
//! free. An image that stands in several rows behind one another, as those of AIC-ICC do with five captions each, is
//! decoded and embedded once.

use std::io::BufRead;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use ernie_vil::image::{Limits, Pixels, decode_base64_of_row, explain_base64};
use ernie_vil::pairs::{Pair, PairReader, Position};
use ernie_vil::vectors::Embeddings;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::cli::OnError;
use crate::images;
use crate::model::Model;

/// Batches that wait between two stages at most.
const AHEAD: usize = 2;

/// A row that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its line, from 1.
    pub line: u64,
    /// Why.
    pub reason: String,
}

/// The vectors of a batch, and where the input stands after it.
pub struct Batch {
    /// The rows' image ids, or their lines where they have none.
    pub ids: Vec<String>,
    pub text: Embeddings,
    pub image: Embeddings,
    pub skipped: Vec<Skipped>,
    /// The place after the batch's last row.
    pub position: Position,
}

/// Seconds that the stages were busy, added up over all threads.
#[derive(Debug, Default)]
pub struct Times {
    read: AtomicU64,
    decode: AtomicU64,
    tokenize: AtomicU64,
    image_tower: AtomicU64,
    text_tower: AtomicU64,
    /// Until the first worker was ready.
    warm_up: Mutex<Option<Duration>>,
    /// Threads that compute.
    workers: AtomicU64,
}

impl Times {
    fn measure<T>(counter: &AtomicU64, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        counter.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    /// A worker was ready after this time.
    fn ready(&self, time: Duration) {
        let mut least = self.warm_up.lock().unwrap_or_else(PoisonError::into_inner);
        *least = Some(least.map_or(time, |least| least.min(time)));
    }

    fn warm_up(&self) -> Option<Duration> {
        *self.warm_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each stage's name and busy time; all but the first may be several threads'.
    fn stages(&self) -> [(&'static str, Duration); 5] {
        [
            ("read", duration(&self.read)),
            ("decode", duration(&self.decode)),
            ("tokenize", duration(&self.tokenize)),
            ("image tower", duration(&self.image_tower)),
            ("text tower", duration(&self.text_tower)),
        ]
    }
}

fn duration(nanoseconds: &AtomicU64) -> Duration {
    Duration::from_nanos(nanoseconds.load(Ordering::Relaxed))
}

pub struct Options {
    pub batch_size: usize,
    pub on_error: OnError,
    /// Rows after this many are not read.
    pub limit: Option<u64>,
    /// The rows are an image id and an image, without a caption.
    pub images_only: bool,
    /// Cards compute batches of this size before the first one comes.
    pub warm_up: bool,
    /// What an image may cost.
    pub limits: Limits,
}

/// Sends every batch of `reader` through the model, in order, to `sink`. `name` is the input's, for
/// messages.
pub fn run<R: BufRead + Send>(
    model: &Model,
    reader: PairReader<R>,
    name: &str,
    options: &Options,
    times: &Times,
    mut sink: impl FnMut(Batch) -> Result<()>,
) -> Result<()> {
    let reader = reader.with_file_checks();
    let workers = workers(model);
    times.workers.store(workers.len() as u64, Ordering::Relaxed);
    let (to_prepare, raw) = sync_channel(AHEAD);
    // What is prepared goes to whichever worker is free, and where its vectors will be to whoever puts them in order. That
    // many batches are on their way at most, so a slow device holds the others up before memory fills with their vectors.
    let (to_workers, prepared) = sync_channel(AHEAD);
    let (to_sink, in_order) = sync_channel(workers.len() + AHEAD);
    // The workers' alone: when the last of them has gone, whoever sends to them or waits for them is told.
    let prepared = Arc::new(Mutex::new(prepared));
    std::thread::scope(|scope| {
        // Each stage ends when the one before it has, or when the one after it no longer listens.
        scope.spawn(move || read_batches(reader, options, times, &to_prepare));
        scope.spawn(move || prepare_batches(model, raw, options, times, &to_workers, &to_sink));
        for device in workers {
            let prepared = prepared.clone();
            scope.spawn(move || compute_batches(model, device, &prepared, options, times));
        }
        drop(prepared);
        let mut before = Vec::new();
        for coming in in_order {
            // A worker that is gone without a word has ended by a panic, which the scope passes on.
            let Ok(batch) = coming.recv() else { break };
            sink(assemble(
                model,
                batch.with_context(|| name.to_owned())?,
                &mut before,
            )?)?;
        }
        Ok(())
    })
}

/// The device of each thread that computes. A card has two, so that it has work while one's vectors are fetched and the
/// next batch is sent.
fn workers(model: &Model) -> Vec<usize> {
    let devices = model.devices.iter().enumerate();
    let threads = devices.map(|(number, device)| match device.is_card() {
        true => vec![number; 2],
        false => vec![number],
    });
    threads.collect::<Vec<_>>().concat()
}

/// A batch as it was read.
struct Raw {
    rows: Vec<Result<Row, Skipped>>,
    /// In base64, each one once.
    images: Vec<Vec<u8>>,
    position: Position,
}

/// A row, with where its image is.
struct Row {
    line: u64,
    id: String,
    caption: String,
    /// The caption is the image's text, too: the line has no tab.
    is_one_column: bool,
    image: Place,
}

/// Where the image of a row stands, or its vector.
#[derive(Clone, Copy)]
enum Place {
    /// It is the last image of the batches before.
    Before,
    /// In the batch, by its number.
    Here(usize),
}

fn read_batches<R: BufRead>(
    mut reader: PairReader<R>,
    options: &Options,
    times: &Times,
    out: &SyncSender<Result<Raw>>,
) {
    let limit = options.limit.unwrap_or(u64::MAX);
    let mut before: Option<Vec<u8>> = None;
    loop {
        let (mut rows, mut images) = (Vec::with_capacity(options.batch_size), Vec::new());
        let mut failure = None;
        Times::measure(&times.read, || {
            while rows.len() < options.batch_size && reader.position().rows < limit {
                let line = reader.position().line();
                match reader.next() {
                    None => break,
                    Some(Ok(pair)) => rows.push(row(pair, options, before.as_deref(), &mut images)),
                    // A row that is not text, if the reader goes on after it. What it cannot pass is no row
                    // to skip.
                    Some(Err(error))
                        if error.code() == "pairs"
                            && options.on_error == OnError::Skip
                            && !reader.has_ended() =>
                    {
                        rows.push(Err(Skipped {
                            line,
                            reason: error.to_string(),
                        }));
                    }
                    Some(Err(error)) => {
                        failure = Some(error);
                        break;
                    }
                }
            }
        });
        if let Some(last) = images.last() {
            before = Some(last.clone());
        }
        let is_last = rows.len() < options.batch_size;
        let raw = Raw {
            rows,
            images,
            position: reader.position(),
        };
        // Rows before a failure are finished first.
        if (!raw.rows.is_empty() && out.send(Ok(raw)).is_err()) || is_last {
            if let Some(error) = failure {
                let _ = out.send(Err(error.into()));
            }
            return;
        }
    }
}

/// Takes a pair apart. Its image is added to those of the batch, unless it is the last one that was read.
fn row(
    pair: Pair,
    options: &Options,
    before: Option<&[u8]>,
    images: &mut Vec<Vec<u8>>,
) -> Result<Row, Skipped> {
    let is_one_column = pair.is_one_column();
    if options.images_only && is_one_column {
        return Err(Skipped {
            line: pair.line,
            reason: one_column(&pair.caption, "an image id, a tab and the image in base64"),
        });
    }
    let image = match images.last() {
        Some(last) if *last == pair.image => Place::Here(images.len() - 1),
        None if before == Some(&pair.image) => Place::Before,
        _ => {
            images.push(pair.image);
            Place::Here(images.len() - 1)
        }
    };
    let (id, caption) = if options.images_only {
        (pair.caption, String::new())
    } else {
        (
            pair.image_id.unwrap_or_else(|| pair.line.to_string()),
            pair.caption,
        )
    };
    Ok(Row {
        line: pair.line,
        id,
        caption,
        is_one_column,
        image,
    })
}

/// What is wrong with a line that has no tab.
fn one_column(line: &str, expected: &str) -> String {
    let hint = match line {
        "" => return format!("the line is blank, expected {expected}; remove it"),
        line if line.starts_with(['{', '[']) => "; the line seems to be JSON",
        line if line.contains("\\t") => "; the line has a backslash and a t where a tab should be",
        line if line.contains(',') => "; columns are separated by tabs, not by commas (CSV)",
        line if line.contains([';', '|']) => "; columns are separated by tabs",
        line if line.contains(' ') => "; columns are separated by tabs, not by blanks",
        _ => "",
    };
    format!("one column, expected {expected}{hint}")
}

/// Adds to the reason why the image of a row cannot be read what the row seems to be.
fn explained(row: &Row, options: &Options, reason: String) -> String {
    const COLUMNS: &str = "a caption, a tab, an image id, a tab and the image in base64";
    /// What the first columns of tables are called.
    const HEADERS: [&str; 17] = [
        "caption",
        "captions",
        "text",
        "texts",
        "title",
        "query",
        "sentence",
        "label",
        "description",
        "id",
        "image_id",
        "image",
        "img_id",
        "描述",
        "标题",
        "文本",
        "文字",
    ];
    /// How the usual images begin in base64.
    const IMAGES: [&str; 5] = ["/9j/", "iVBORw0KGgo", "UklGR", "SUkqA", "TU0AK"];
    let first = if options.images_only {
        &row.id
    } else {
        &row.caption
    };
    if row.is_one_column {
        return one_column(first, COLUMNS);
    }
    if first.len() > 60 && IMAGES.iter().any(|start| first.starts_with(start)) {
        let expected = match options.images_only {
            true => "an image id, a tab and the image in base64",
            false => COLUMNS,
        };
        return format!("the columns are in another order: the first one is an image, expected {expected}");
    }
    if row.line == 1 && HEADERS.contains(&first.trim_matches('"').to_lowercase().as_str()) {
        return format!("{reason}; is the line a header? Every line is read as a pair, so remove it");
    }
    reason
}

/// A batch as the towers take it.
struct Prepared {
    ids: Vec<String>,
    /// None for rows without a caption.
    captions: Vec<Vec<u32>>,
    /// Each row's image, by its number in `crops`.
    places: Vec<Place>,
    /// As bytes, which are a quarter of the tower's input.
    crops: Vec<u8>,
    skipped: Vec<Skipped>,
    position: Position,
}

/// A batch whose vectors are there.
struct Computed {
    batch: Prepared,
    text: Embeddings,
    images: Embeddings,
}

/// A batch for a worker, and where its vectors go.
type Work = (Prepared, SyncSender<Result<Computed>>);
/// Where the vectors of a batch will be.
type Coming = Receiver<Result<Computed>>;

fn prepare_batches(
    model: &Model,
    raw: Receiver<Result<Raw>>,
    options: &Options,
    times: &Times,
    out: &SyncSender<Work>,
    in_order: &SyncSender<Coming>,
) {
    // Why the last image of the batches before cannot be used.
    let mut before = Ok(());
    for batch in raw {
        let prepared = batch.and_then(|batch| {
            let prepared = prepare(model, batch, options, times, &mut before);
            match (options.on_error, prepared.skipped.first()) {
                // The run ends here: the batches before this one are done, this one is not begun.
                (OnError::Stop, Some(first)) => Err(anyhow!("line {}: {}", first.line, first.reason)),
                _ => Ok(prepared),
            }
        });
        let (reply, coming) = sync_channel(1);
        if in_order.send(coming).is_err() {
            return;
        }
        let goes_on = match prepared {
            Ok(prepared) => out.send((prepared, reply)).is_ok(),
            Err(error) => {
                let _ = reply.send(Err(error));
                false
            }
        };
        if !goes_on {
            return;
        }
    }
}

/// Computes on a device until nothing more comes.
fn compute_batches(
    model: &Model,
    device: usize,
    prepared: &Mutex<Receiver<Work>>,
    options: &Options,
    times: &Times,
) {
    let next = || prepared.lock().unwrap_or_else(PoisonError::into_inner).recv();
    let (start, mut warm) = (Instant::now(), Ok(()));
    if options.warm_up && model.devices[device].is_card() {
        let captions = [options.batch_size];
        let captions = if options.images_only { &[] } else { &captions[..] };
        warm = model.warm_up(device, captions, &[options.batch_size]);
    }
    times.ready(start.elapsed());
    while let Ok((batch, reply)) = next() {
        let computed =
            std::mem::replace(&mut warm, Ok(())).and_then(|()| compute(model, device, batch, times));
        // Where nobody wants it any more the run has ended.
        let _ = reply.send(computed);
    }
}

fn compute(model: &Model, device: usize, batch: Prepared, times: &Times) -> Result<Computed> {
    let captions: Vec<&[u32]> = batch.captions.iter().map(Vec::as_slice).collect();
    let text = Times::measure(&times.text_tower, || model.embed_captions(device, &captions))?;
    let images = Times::measure(&times.image_tower, || model.embed_images(device, &batch.crops))?;
    Ok(Computed { batch, text, images })
}

fn prepare(
    model: &Model,
    batch: Raw,
    options: &Options,
    times: &Times,
    before: &mut Result<(), String>,
) -> Prepared {
    let preprocessor = model.preprocessor();
    let decoded: Vec<Result<Pixels, String>> = batch
        .images
        .into_par_iter()
        .map(|image| {
            let crop = || {
                decode_base64_of_row(&image)
                    .and_then(|bytes| images::crop(&preprocessor, &bytes, &options.limits))
            };
            Times::measure(&times.decode, crop).map_err(|error| explain_base64(&image, error).to_string())
        })
        .collect();
    let mut crops = Vec::with_capacity(decoded.len() * preprocessor.values());
    let places: Vec<Result<Place, String>> = decoded
        .into_iter()
        .map(|crop| {
            crops.extend_from_slice(crop?.data());
            Ok(Place::Here(crops.len() / preprocessor.values() - 1))
        })
        .collect();

    let rows: Vec<Result<(Row, Vec<u32>), Skipped>> = batch
        .rows
        .into_par_iter()
        .map(|row| {
            let mut row = row?;
            let place = match row.image {
                Place::Before => before.clone().map(|()| Place::Before),
                Place::Here(at) => places[at].clone(),
            };
            let skipped = |reason| Skipped {
                line: row.line,
                reason,
            };
            let caption = if options.images_only {
                Vec::new()
            } else {
                Times::measure(&times.tokenize, || model.encode(&row.caption))
                    .map_err(|error| skipped(format!("{error:#}")))?
            };
            row.image = place.map_err(|reason| skipped(explained(&row, options, reason)))?;
            Ok((row, caption))
        })
        .collect();
    if let Some(last) = places.into_iter().next_back() {
        *before = last.map(|_| ());
    }
    let mut prepared = Prepared {
        ids: Vec::new(),
        captions: Vec::new(),
        places: Vec::new(),
        crops,
        skipped: Vec::new(),
        position: batch.position,
    };
    for row in rows {
        match row {
            Ok((row, caption)) => {
                prepared.ids.push(row.id);
                prepared.places.push(row.image);
                if !options.images_only {
                    prepared.captions.push(caption);
                }
            }
            Err(skipped) => prepared.skipped.push(skipped),
        }
    }
    prepared
}

/// Embeds captions alone.
pub fn embed_captions(model: &Model, captions: &[&[u32]], times: &Times) -> Result<Embeddings> {
    Times::measure(&times.text_tower, || model.embed_captions(0, captions))
}

/// A row for each pair. `before` is the vector of the last image of the batches before.
fn assemble(model: &Model, computed: Computed, before: &mut Vec<f32>) -> Result<Batch> {
    let Computed { batch, text, images } = computed;
    let mut values = Vec::with_capacity(batch.places.len() * images.dimensions());
    for place in batch.places {
        values.extend_from_slice(match place {
            Place::Before => before,
            Place::Here(at) => images.row(at),
        });
    }
    if let Some(last) = images.iter().next_back() {
        *before = last.to_vec();
    }
    let image = Embeddings::new(batch.ids.len(), model.config().image.width(), values)?;
    Ok(Batch {
        ids: batch.ids,
        text,
        image,
        skipped: batch.skipped,
        position: batch.position,
    })
}

/// The vectors of a whole input.
pub struct Embedded {
    pub ids: Vec<String>,
    pub text: Embeddings,
    pub image: Embeddings,
    pub skipped: Vec<Skipped>,
}

/// What to say of an input of which no row was embedded.
pub fn no_rows(name: &str, skipped: &[Skipped]) -> String {
    match skipped {
        [] => format!("{name} has no rows, expected a pair a line"),
        [first, ..] => format!(
            "{name}: none of the {} rows could be read; line {}: {}",
            skipped.len(),
            first.line,
            first.reason
        ),
    }
}

/// As [`run`], with all batches put together. `count` receives the number of rows added. It is an error where
/// there is none.
pub fn embed_all<R: BufRead + Send>(
    model: &Model,
    reader: PairReader<R>,
    name: &str,
    options: &Options,
    times: &Times,
    count: impl Fn(u64),
) -> Result<Embedded> {
    let (mut ids, mut texts, mut images, mut skipped) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    run(model, reader, name, options, times, |batch| {
        count((batch.ids.len() + batch.skipped.len()) as u64);
        ids.extend(batch.ids);
        texts.extend_from_slice(batch.text.data());
        images.extend_from_slice(batch.image.data());
        skipped.extend(batch.skipped);
        Ok(())
    })?;
    if ids.is_empty() {
        bail!(no_rows(name, &skipped));
    }
    let side = |values: Vec<f32>, width: usize| Embeddings::new(values.len() / width, width, values);
    Ok(Embedded {
        ids,
        text: side(texts, model.config().text.width)?,
        image: side(images, model.config().image.width())?,
        skipped,
    })
}

/// What a run took, for people: the rate, and each stage's share.
pub fn summary(rows: u64, unit: &str, elapsed: Duration, times: &Times) -> String {
    let warm_up = times
        .warm_up()
        .filter(|time| time.as_millis() >= 10)
        .unwrap_or_default();
    let seconds = elapsed.saturating_sub(warm_up).as_secs_f64();
    let stages = times.stages();
    let busiest = stages[3..]
        .iter()
        .max_by_key(|(_, time)| *time)
        .map_or("", |(name, _)| name);
    let towers: Duration = stages[3..].iter().map(|(_, time)| *time).sum();
    let workers = times.workers.load(Ordering::Relaxed).max(1);
    // The model waits for nothing but its input: where it was idle, reading and decoding held it up.
    let bound = match towers.as_secs_f64() / (seconds * workers as f64).max(1e-9) {
        busy if busy > 0.7 => busiest,
        _ => "reading and decoding",
    };
    let list: Vec<String> = stages
        .iter()
        .map(|(name, time)| format!("{name} {:.2} s", time.as_secs_f64()))
        .collect();
    let after = match warm_up {
        Duration::ZERO => String::new(),
        time => format!(", after {:.2} s of warming up", time.as_secs_f64()),
    };
    format!(
        "{rows} {unit} in {seconds:.2} s, {:.1} a second, bound by {bound} (busy: {}){after}",
        rows as f64 / seconds.max(1e-9),
        list.join(", ")
    )
}
