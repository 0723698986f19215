//! ERNIE-ViL 2.0, Baidu's Chinese image-text dual encoder, on Burn.
//!
//! Captions and images become vectors of one space, whose inner products rank them for each other. The
//! modules follow the data: [`pairs`] are read; a caption goes through [`text`] to ids and an image through
//! [`image`] to pixels; the [`towers`], loaded from [`weights`], turn both into [`vectors`]; an [`index`]
//! searches them, and [`recall`] scores them.
//!
//! Bytes and slices come in, values go out. Whatever opens files, starts threads or uses the network is in
//! `native`, which is there with the feature `native`.
#![warn(missing_docs)]

pub mod classify;
mod config;
mod error;
#[cfg(feature = "wgpu")]
pub mod gpu;
pub mod image;
pub mod index;
mod json;
pub mod kernels;
#[cfg(all(feature = "native", not(target_family = "wasm")))]
pub mod native;
mod ops;
pub mod pairs;
mod random;
pub mod recall;
mod recognise;
pub mod text;
pub mod text_file;
pub mod towers;
#[cfg(feature = "train")]
pub mod train;
pub mod vectors;
#[cfg(all(feature = "web", target_family = "wasm"))]
pub mod web;
#[cfg(feature = "webgpu")]
pub mod webgpu;
pub mod weights;

#[cfg(test)]
#[path = "../tests/support/skip.rs"]
mod skip;

pub use config::*;
pub use error::{Error, Result};

/// Compiles and runs the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
