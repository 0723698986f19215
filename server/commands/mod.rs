//! The commands, one file each; `serve` has a folder of its own.

pub mod bench;
pub mod classify;
pub mod convert;
pub mod download;
pub mod embed;
pub mod eval;
pub mod info;
#[cfg(feature = "train")]
mod plot;
pub mod score;
pub mod search;
pub mod tokenize;
#[cfg(feature = "train")]
pub mod train;
#[cfg(feature = "train")]
mod train_config;
#[cfg(feature = "train")]
mod train_data;
