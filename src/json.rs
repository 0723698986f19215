//! JSON out of untrusted bytes.

use serde::Deserialize;

use crate::recognise::recognise;

/// Reads a value. By way of a `str`, as the crate `safetensors` does: a module for JavaScript then holds one kind of
/// parser. A byte order mark in front, as editors on Windows write it, is passed over.
pub(crate) fn from_bytes<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    let bytes = without_mark(bytes)?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err("it is empty, expected JSON".into());
    }
    let read = || {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        serde_json::from_str(text).map_err(|error| error.to_string())
    };
    // Where it is no JSON at all, what it is says more than the place of the first wrong letter.
    read().map_err(|error| match (bytes.trim_ascii_start(), recognise(bytes)) {
        ([b'{' | b'[' | b'"', ..], _) | (_, None) => error,
        (_, Some(what)) => format!("it is {what}, expected JSON"),
    })
}

/// A text file without the byte order mark that it may begin with.
///
/// # Errors
/// Where the mark says that the text is in UTF-16.
pub(crate) fn without_mark(bytes: &[u8]) -> Result<&[u8], String> {
    match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => Ok(rest),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            Err("the text is in UTF-16, by its byte order mark; save it as UTF-8".into())
        }
        _ => Ok(bytes),
    }
}
