//! What a program around the library does with files, threads and the network: model folders, pipelines,
//! indexes on the disk, folders of pictures, downloads.
//!
//! Nothing here prints, draws or ends the process, and no environment variable is read unless the caller says
//! so (but `CUDA_PATH`, which Burn reads as well). Progress is reported by a trait ([`Progress`]) or a
//! function of the caller's. Errors are an [`Error`], with the path or the address in front.
//!
//! | module | for |
//! | --- | --- |
//! | [`model`], [`folder`], [`device`] | opening a model folder, on devices |
//! | [`pipeline`], [`spool`] | pairs to vectors, on all cores and devices; runs that can be resumed |
//! | [`index_file`] | an index on the disk with its log and lock |
//! | [`pictures`], [`images`] | which files of a folder are pictures; what an image may cost |
//! | [`input`], [`mapping`], [`atomic_file`] | reading and mapping files; writing them as a whole |
//! | [`download`], [`sums`] | files over HTTP, with resume; the sums of earlier ones |
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::exit)]

pub mod atomic_file;
#[cfg(any(feature = "cuda", test))]
pub mod cuda;
pub mod device;
pub mod download;
mod error;
pub mod folder;
pub mod images;
pub mod index_file;
pub mod input;
pub mod mapping;
pub mod model;
pub mod pictures;
pub mod pipeline;
mod progress;
#[cfg(feature = "scenes")]
pub mod scenes;
pub mod spool;
pub mod sums;

pub use device::{Device, DeviceDtype, DeviceOptions};
pub use error::{Error, Result};
pub use model::{Model, Towers};
pub use progress::Progress;

/// The names in a folder, in order.
#[cfg(test)]
fn names_in(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
