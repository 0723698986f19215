//! From a checkpoint's bytes to named tensors, and on to a model folder.
//!
//! - [`pickle`]: a reader of Python pickles that builds plain data and arrays and runs nothing.
//! - [`Checkpoint`]: the tensors of a `.pdparams` file, in any layout that Paddle writes.
//! - [`TensorSource`]: what the towers load from; a [`Checkpoint`], a [`SafetensorsFile`], or a
//!   [`TensorStream`] of one that is still arriving.
//! - [`Renamed`]: the same under other names, such as those of Hugging Face's text encoder; [`Together`]:
//!   several files as one source.
//! - [`RandomWeights`]: any structure with random values, to measure with.
//! - [`text_config_from_original`], [`vision_config_from_original`], [`image_config_from_json`],
//!   [`infer_vision_config`], [`infer_type_tables`]: the sizes of the towers, from the original's
//!   configuration files or from the tensors' shapes.
//! - [`recognise`]: what a file is that is none of these.
//! - [`convert`] and [`Manifest`]: what a model folder is made of; [`Quantised`]: its matrices in eight or
//!   four bits.
//!
//! Nothing here opens a file: bytes come in as slices (memory-mapped ones keep the peak of memory
//! at one tensor) and leave through [`std::io::Write`].

mod folder;
mod names;
mod original_config;
mod paddle;
pub mod pickle;
mod quantised;
mod random;
mod source;
mod stream;
mod tower_tensors;

pub use folder::{
    Converted, Dtype, HashingWriter, Manifest, ManifestFile, Shard, convert, write_safetensors,
};
pub use names::{Renamed, Together};
pub use original_config::{
    image_config_from_json, infer_type_tables, infer_vision_config, text_config_from_original,
    vision_config_from_original,
};
pub use paddle::Checkpoint;
pub(crate) use quantised::Codes;
pub use quantised::{Bits, GROUP, Quantised, quantise_int4, quantise_int8};
pub use random::RandomWeights;
pub use source::{SafetensorsFile, TensorData, TensorSource, check};
pub use stream::TensorStream;
pub use tower_tensors::{TEMPERATURE, image_tensors, text_tensors};

pub use crate::recognise::recognise;
use crate::{Error, Result};

fn weights<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::Weights(message.into()))
}

/// `text` in quotes, escaped, and cut where it is long: names come from untrusted files.
fn quoted(text: &str) -> String {
    const LONGEST: usize = 120;
    match text.char_indices().nth(LONGEST) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

/// The number of values of a shape, where it can be counted.
fn count(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, &n| product.checked_mul(n))
}

/// The \[rows, columns\] matrix of which `values` is the transpose.
fn transpose<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    let row = |row: usize| values.iter().skip(row).step_by(rows).take(columns);
    (0..rows).flat_map(row).copied().collect()
}
