//! ERNIE-ViL 2.0
mod config;
mod error;
pub use config::*;
pub use error::{Error, Result};
