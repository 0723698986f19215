//! The tests of the library: a module for each of its parts, mostly against `tests/goldens/`.

mod support;

mod augment;
mod base64;
mod checkpoints;
mod efficientnet;
mod image;
mod index;
mod jpeg;
mod large_images;
mod pairs;
mod quantised;
mod recall;
mod related;
mod text;
mod tiff;
mod towers;
#[cfg(feature = "train")]
mod train;
mod vectors;
mod weights;
