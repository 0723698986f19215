//! Batches of a file of pairs, shuffled, augmented and tokenized ahead of their use.

use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};

use anyhow::{Context, Result, ensure};
use ernie_vil::image::{Augmentation, Pixels, Preprocessor, decode_base64_of_row, explain_base64};
use ernie_vil::native::images::ImageLimits;
use ernie_vil::native::input::{self, FileBytes};
use ernie_vil::pairs::PairReader;
use ernie_vil::text::Tokenizer;
use ernie_vil::train::{Batch, View, epoch_order, seed_of};
use rayon::prelude::*;

use super::train_config::TrainConfig;

/// Batches that lie ready at most.
const AHEAD: usize = 2;

/// A file of pairs, of which only the places of its rows are kept in memory.
pub struct TrainData {
    name: String,
    file: FileBytes,
    /// Where each row starts, and the file's length.
    starts: Vec<u64>,
}

impl TrainData {
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        // Rows are read in another order in every epoch.
        let file = input::map_spooled(path, &std::env::temp_dir())?;
        ensure!(!file.is_empty(), "{name} is empty, expected pairs");
        let mut reader = PairReader::new(&file[..]).with_file_checks();
        let mut starts = vec![0];
        while reader.skip_rows(1).with_context(|| name.clone())? == 1 {
            starts.push(reader.position().offset);
        }
        Ok(Self { name, file, starts })
    }

    pub fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// Row `i`: its caption, its tags where it has some, and its image.
    fn row(&self, i: usize, limits: &ImageLimits) -> Result<(String, Option<String>, Pixels)> {
        let line = &self.file[self.starts[i] as usize..self.starts[i + 1] as usize];
        let place = || format!("{}, line {}", self.name, i + 1);
        let pair = PairReader::new(line)
            .next()
            .context("the row is gone")
            .and_then(|pair| Ok(pair?))
            .with_context(place)?;
        let image = decode_base64_of_row(&pair.image)
            .and_then(|bytes| limits.decode(&bytes))
            .map_err(|error| explain_base64(&pair.image, error))
            .with_context(place)?;
        Ok((pair.caption, pair.tags, image))
    }
}

/// Makes batches: what stands in one depends on the seed and its number alone.
pub struct Batches<'a> {
    pub data: &'a TrainData,
    pub tokenizer: &'a Tokenizer,
    pub config: &'a TrainConfig,
    pub preprocessor: Preprocessor,
    pub max_text_tokens: usize,
    /// What an image may cost.
    pub limits: ImageLimits,
}

impl Batches<'_> {
    /// Runs `take` with the batches of steps `first..steps` (from 0), which are made on other threads meanwhile.
    pub fn run(
        &self,
        first: u64,
        steps: u64,
        take: impl FnOnce(Receiver<Result<Batch>>) -> Result<()>,
    ) -> Result<()> {
        let (send, receive) = sync_channel(AHEAD);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let per_epoch = (self.data.rows() / self.config.batch_size) as u64;
                let mut order = (u64::MAX, Vec::new());
                for step in first..steps {
                    let epoch = step / per_epoch;
                    if order.0 != epoch {
                        order = (
                            epoch,
                            epoch_order(self.data.rows() as u32, self.config.seed, epoch),
                        );
                    }
                    let at = (step % per_epoch) as usize * self.config.batch_size;
                    let batch = self.batch(step, &order.1[at..at + self.config.batch_size]);
                    let failed = batch.is_err();
                    if send.send(batch).is_err() || failed {
                        return;
                    }
                }
            });
            take(receive)
        })
    }

    fn batch(&self, step: u64, rows: &[u32]) -> Result<Batch> {
        let (second, tags) = (
            self.config.has_view(View::Image2),
            self.config.has_view(View::Tags),
        );
        let values = self.preprocessor.values();
        let mut batch = Batch {
            image_size: self.preprocessor.size(),
            image: vec![0.0; rows.len() * values],
            image_2: vec![0.0; if second { rows.len() * values } else { 0 }],
            ..Batch::default()
        };
        let mut seconds = batch.image_2.chunks_mut(values);
        let places: Vec<_> = batch
            .image
            .chunks_mut(values)
            .map(|first| (first, seconds.next()))
            .collect();
        let texts: Vec<(Vec<u32>, Vec<u32>)> = places
            .into_par_iter()
            .zip(rows)
            .enumerate()
            .map(|(slot, ((first, second), &row))| self.fill(step, slot, row as usize, first, second, tags))
            .collect::<Result<_>>()?;
        (batch.captions, batch.tags) = texts.into_iter().unzip();
        if !tags {
            batch.tags.clear();
        }
        Ok(batch)
    }

    /// Writes a row's images and gives its caption's and its tags' ids.
    fn fill(
        &self,
        step: u64,
        slot: usize,
        row: usize,
        first: &mut [f32],
        second: Option<&mut [f32]>,
        wants_tags: bool,
    ) -> Result<(Vec<u32>, Vec<u32>)> {
        let (caption, tags, pixels) = self.data.row(row, &self.limits)?;
        let place = || format!("{}, line {}", self.data.name, row + 1);
        let augmentation: &Augmentation = &self.config.augmentation;
        for (view, out) in [Some(first), second].into_iter().enumerate() {
            let Some(out) = out else { continue };
            let seed = seed_of(&[self.config.seed, step, slot as u64, view as u64]);
            let seen = augmentation.apply_for(&pixels, &self.preprocessor, seed);
            self.preprocessor.tensor_into(&seen, out);
        }
        let encode = |text: &str| self.tokenizer.encode(text, self.max_text_tokens);
        let tags = match (wants_tags, tags) {
            (false, _) => Vec::new(),
            (true, Some(tags)) => encode(&tags)?,
            (true, None) => anyhow::bail!(
                "{}: no tags, expected caption, image id, tags and image, since a pair names the view tags",
                place()
            ),
        };
        Ok((encode(&caption)?, tags))
    }
}
