//! The tests of the binary: each runs it as a user does.
#![cfg(feature = "native")]

mod support;

mod commands;
mod convert;
mod download;
#[cfg(feature = "scenes")]
mod eval;
#[cfg(all(unix, feature = "scenes"))]
mod files;
#[cfg(feature = "scenes")]
mod images;
#[cfg(all(unix, feature = "scenes", feature = "serve"))]
mod index_file;
#[cfg(feature = "scenes")]
mod pictures;
#[cfg(all(unix, feature = "scenes"))]
mod printing;
#[cfg(all(unix, feature = "scenes", feature = "serve"))]
mod serve;
#[cfg(feature = "train")]
mod train;
