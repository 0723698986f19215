//! The model as the server uses it: text and base64 to what the towers take, and batches of that to vectors.

use std::time::Instant;

use anyhow::Result;
use ernie_vil::ModelConfig;
use ernie_vil::image::{Pixels, decode_base64};
use ernie_vil::native::Model;
use ernie_vil::native::images::ImageLimits;

use super::lanes::{CAPTIONS, IMAGES, LANES};
use super::metrics::Metrics;
use super::queue::LaneOptions;
use super::request::text::check_base64;

/// Captions whose lengths are rounded up to the same multiple of this are computed together.
const BUCKET: usize = 16;

/// An item as it waits for its tower.
pub enum Input {
    Caption(Vec<u32>),
    /// As bytes, which are a quarter of the tower's input.
    Image(Pixels),
}

impl Input {
    /// What may be computed together.
    pub fn group(&self) -> usize {
        match self {
            Self::Caption(ids) => ids.len().div_ceil(BUCKET),
            Self::Image(_) => 0,
        }
    }
}

pub struct Engine {
    model: Model,
    limits: ImageLimits,
}

impl Engine {
    pub fn new(model: Model, limits: ImageLimits) -> Self {
        Self { model, limits }
    }

    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    pub fn tokenize(&self, text: &str) -> Result<Input> {
        Ok(Input::Caption(self.model.encode(text)?))
    }

    /// An encoded image in base64 to the pixels that the tower sees.
    pub fn decode(&self, base64: &str, metrics: &Metrics) -> ernie_vil::Result<Input> {
        check_base64(base64)?;
        let start = Instant::now();
        let bytes = decode_base64(base64.as_bytes())?;
        let crop = self.limits.crop(&self.model.preprocessor(), &bytes)?;
        metrics.decode.time(start.elapsed());
        Ok(Input::Image(crop))
    }

    /// How many devices compute.
    pub fn devices(&self) -> usize {
        self.model.devices.len()
    }

    /// What they are, with commas between.
    pub fn device_names(&self) -> String {
        let names: Vec<String> = self.model.devices.iter().map(ToString::to_string).collect();
        names.join(",")
    }

    /// The vectors of a batch, all of one lane, computed on the device of this number.
    pub fn compute(&self, device: usize, batch: &[Input]) -> Result<Vec<Vec<f32>>> {
        let (mut captions, mut crops): (Vec<&[u32]>, Vec<u8>) = (Vec::new(), Vec::new());
        for input in batch {
            match input {
                Input::Caption(ids) => captions.push(ids),
                Input::Image(crop) => crops.extend_from_slice(crop.data()),
            }
        }
        let embed = || match crops.is_empty() {
            true => self.model.embed_captions(device, &captions),
            false => self.model.embed_images(device, &crops),
        };
        let vectors = match self.model.devices[device].is_card() {
            // A card keeps memory for each thread that uses it.
            true => embed(),
            // Once into the pool, and not once for every product.
            false => rayon::scope(|_| embed()),
        }?;
        Ok(vectors.iter().map(<[f32]>::to_vec).collect())
    }

    /// Runs every size of batch that is to come, on the thread that is to compute, so that little is prepared during a request.
    pub fn warm_up(&self, device: usize, lanes: &[LaneOptions; LANES]) -> Result<()> {
        let sizes = |lane: usize| [1, lanes[lane].batch];
        Ok(self.model.warm_up(device, &sizes(CAPTIONS), &sizes(IMAGES))?)
    }
}
