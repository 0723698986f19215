//! What several modules of these tests need.
#![cfg_attr(
    not(all(unix, feature = "scenes", feature = "serve", feature = "train")),
    allow(dead_code, unused_imports, reason = "fewer features have fewer tests")
)]

#[path = "../../support/mod.rs"]
mod shared;

mod command;
mod drawn;
mod folder;
mod pairs;
#[cfg(unix)]
mod preload;
#[cfg(feature = "serve")]
mod server;

pub use command::{
    BINARY, clean, command, convert, failure, finish, remarks, run, success, text, wait_at_most,
};
pub use drawn::{black_png, black_pnm, clear_png};
pub use folder::Folder;
#[cfg(unix)]
pub use folder::make_fifo;
pub use pairs::{first_lines, pairs};
#[cfg(unix)]
pub use preload::library_to_preload;
#[cfg(feature = "serve")]
pub use server::{DIMENSIONS, Server, beside, handwritten, on_disk, read_reply, request, signal, vector};
pub use shared::checkpoints::{as_paddlenlp, mistaken, needed, paddlenlp_config, pdparams};
pub use shared::skip::skipped;
pub use shared::{golden, largest_difference, read_golden, repository};
