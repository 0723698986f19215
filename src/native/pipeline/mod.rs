//! Pairs to vectors: one thread reads, all cores decode and preprocess, the devices compute, and what comes
//! out is in order.
//!
//! The stages work at the same time on batches that follow each other, with at most two finished batches
//! between two of them, so memory is bounded by a few batches. All devices take their batches from one queue,
//! each when it is free. An image that is in several contiguous rows, as those of AIC-ICC do with
//! five captions each, is decoded and embedded once.
//!
//! ```no_run
//! use std::fs::File;
//! use std::io::BufReader;
//! use ernie_vil::native::pipeline::{OnError, Options, Times, embed_all};
//! use ernie_vil::native::{Device, Model, Towers};
//! use ernie_vil::pairs::PairReader;
//! # fn main() -> ernie_vil::native::Result<()> {
//! let model = Model::open("ernie-vil-base".as_ref(), Towers::BOTH, &[Device::Cpu.into()])?;
//! let reader = PairReader::new(BufReader::new(File::open("pairs.tsv")?));
//! let options = Options {
//!     batch_size: 16,
//!     on_error: OnError::Skip,
//!     limit: None,
//!     images_only: false,
//!     warm_up: true,
//!     limits: Default::default(),
//! };
//! let all = embed_all(&model, reader, "pairs.tsv", &options, &Times::default(), |_| ())?;
//! println!("{} rows, {} skipped", all.ids.len(), all.skipped.len());
//! # Ok(())
//! # }
//! ```

mod rows;
mod times;

use std::io::BufRead;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::error::{Context, bail, refused};
use super::images::ImageLimits;
use super::model::Model;
use super::{Error, Result};
use crate::image::{Pixels, decode_base64_of_row, explain_base64};
use crate::pairs::{PairReader, Position};
use crate::vectors::Embeddings;
use rows::{Place, Raw, Row, explained, read_batches};

pub use times::{Times, summary};

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
#[derive(Debug)]
pub struct Batch {
    /// The rows' image ids, or their lines where they have none.
    pub ids: Vec<String>,
    /// The vectors of the captions, a row each.
    pub text: Embeddings,
    /// The vectors of the images, a row each.
    pub image: Embeddings,
    /// The rows that were left out.
    pub skipped: Vec<Skipped>,
    /// The place after the batch's last row.
    pub position: Position,
}

/// What to do with a row that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// End at the first one, naming its line.
    #[default]
    Stop,
    /// Leave such rows out and count them.
    Skip,
}

/// How an input is embedded.
#[derive(Debug, Clone)]
pub struct Options {
    /// Pairs that go through the towers together, at least 1.
    pub batch_size: usize,
    /// What to do with a row that cannot be read.
    pub on_error: OnError,
    /// Rows after this many are not read.
    pub limit: Option<u64>,
    /// The rows are an image id and an image, without a caption.
    pub images_only: bool,
    /// Cards compute batches of this size before the first one comes.
    pub warm_up: bool,
    /// What an image may cost.
    pub limits: ImageLimits,
}

/// Sends every batch of `reader` through the model, in order, to `sink`. `name` is the input's, for
/// messages.
///
/// # Errors
/// Those of `sink`, of which the first one ends the run, and where the input cannot be read, a device fails,
/// or with [`OnError::Stop`] a row cannot be read. Batches before that are complete.
pub fn run<R: BufRead + Send, E: From<Error>>(
    model: &Model,
    reader: PairReader<R>,
    name: &str,
    options: &Options,
    times: &Times,
    mut sink: impl FnMut(Batch) -> Result<(), E>,
) -> Result<(), E> {
    let reader = reader.with_file_checks();
    let workers = workers(model);
    times.set_workers(workers.len());
    let (to_prepare, raw) = sync_channel(AHEAD);
    // What is prepared goes to whichever worker is free, and where its vectors will be to whoever puts them
    // in order. That many batches are on their way at most, so a slow device holds the others up before
    // memory fills with their vectors.
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
            let batch = batch.with_context(|| name.to_owned())?;
            sink(assemble(model, batch, &mut before)?)?;
        }
        Ok(())
    })
}

/// The device of each thread that computes. A card has two, so that it has work while one's vectors are
/// fetched and the next batch is sent.
fn workers(model: &Model) -> Vec<usize> {
    let devices = model.devices.iter().enumerate();
    let threads = devices.map(|(number, device)| match device.is_card() {
        true => vec![number; 2],
        false => vec![number],
    });
    threads.collect::<Vec<_>>().concat()
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
                (OnError::Stop, Some(first)) => Err(refused!("line {}: {}", first.line, first.reason)),
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
            let crop =
                || decode_base64_of_row(&image).and_then(|bytes| options.limits.crop(&preprocessor, &bytes));
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

/// Embeds captions alone, on the first device.
///
/// # Errors
/// Those of [`Model::embed_captions`].
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
#[derive(Debug)]
pub struct Embedded {
    /// The rows' image ids, or their lines where they have none.
    pub ids: Vec<String>,
    /// The vectors of the captions, a row each.
    pub text: Embeddings,
    /// The vectors of the images, a row each.
    pub image: Embeddings,
    /// The rows that were left out.
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

/// As [`run`], with all batches put together. `count` receives the number of rows added.
///
/// # Errors
/// Those of [`run`], and where no row could be embedded.
pub fn embed_all<R: BufRead + Send>(
    model: &Model,
    reader: PairReader<R>,
    name: &str,
    options: &Options,
    times: &Times,
    count: impl Fn(u64),
) -> Result<Embedded> {
    let (mut ids, mut texts, mut images, mut skipped) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    run(model, reader, name, options, times, |batch| -> Result<()> {
        count((batch.ids.len() + batch.skipped.len()) as u64);
        ids.extend(batch.ids);
        texts.extend_from_slice(batch.text.data());
        images.extend_from_slice(batch.image.data());
        skipped.extend(batch.skipped);
        Ok(())
    })?;
    if ids.is_empty() {
        bail!("{}", no_rows(name, &skipped));
    }
    let side = |values: Vec<f32>, width: usize| Embeddings::new(values.len() / width, width, values);
    Ok(Embedded {
        ids,
        text: side(texts, model.config().text.width)?,
        image: side(images, model.config().image.width())?,
        skipped,
    })
}
