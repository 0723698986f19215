//! What several modules of these tests need.

#[path = "../../support/mod.rs"]
mod shared;

pub mod memory;

use std::fmt::Debug;

use ernie_vil::Result;
use ernie_vil::vectors::Embeddings;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

pub use shared::checkpoints::{
    Tensors, all, as_paddlenlp, configs, mistaken, needed, paddlenlp_config, pdparams,
};
pub use shared::skip::{partly_skipped, skipped};
pub use shared::{largest_difference, read, read_golden, repository};

/// The models that were recorded.
pub const MODELS: [&str; 3] = ["tiny", "mid", "variant"];

/// Reads a JSON file of the repository.
pub fn json<T: DeserializeOwned>(path: &str) -> T {
    serde_json::from_slice(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    let digits = Sha256::digest(bytes)
        .into_iter()
        .map(|byte| format!("{byte:02x}"));
    digits.collect()
}

/// Returns the message of the error that is expected.
#[track_caller]
pub fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.to_string(),
    }
}

/// Returns the message of the error that is expected, whose code is `code`.
#[track_caller]
pub fn message_with_code<T: Debug>(code: &str, result: Result<T>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.code(), code);
    error.to_string()
}

/// Returns vectors of whole numbers from -2 to 2: every order of summation gives the same score, and many
/// scores tie.
pub fn whole_numbers(rows: usize, dimensions: usize, seed: u64) -> Embeddings {
    let mut state = seed;
    let values = (0..rows * dimensions).map(|_| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as f32 % 5.0 - 2.0
    });
    Embeddings::new(rows, dimensions, values.collect()).unwrap()
}
