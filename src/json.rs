//! JSON out of untrusted bytes.

use serde::Deserialize;

/// Reads a value. By way of a `str`, as the crate `safetensors` does: a module for JavaScript then holds one kind of
/// parser.
pub(crate) fn from_bytes<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    serde_json::from_str(text).map_err(|error| error.to_string())
}
