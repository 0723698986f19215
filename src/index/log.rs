//! The changes of an index as records that are appended to a file.
//!
//! A record is the length of its contents (64 bits, little-endian), the first 8 bytes of the SHA-256 of that
//! length and the contents, and the contents. Their first byte says what they are:
//!
//! | first byte | the others |
//! | --- | --- |
//! | `H` | what the log belongs to: `ernie-vil log 1`, vector type, dimensions, fingerprint, a line each |
//! | `+` | an id, and the embedding that now is under it: the values, or the scale and the codes |
//! | `-` | an id that was removed |

use sha2::{Digest, Sha256};

use super::rows::{Row, VectorType};
use super::{EmbeddingIndex, LONGEST_ID};

const FORMAT: &str = "ernie-vil log 1";
/// Bytes of a record before its contents.
const HEAD: usize = 16;

/// A change to an index.
pub(super) enum Change<'a> {
    Put(&'a str, Row<'a>),
    Remove(&'a str),
}

/// The record that each piece of a log begins with.
pub(super) fn header(index: &EmbeddingIndex) -> Vec<u8> {
    let (dtype, dimensions, fingerprint) = (index.dtype(), index.dimensions(), index.fingerprint());
    let contents = format!("H{FORMAT}\n{dtype}\n{dimensions}\n{fingerprint}");
    let mut log = Vec::new();
    record(&mut log, |out| out.extend_from_slice(contents.as_bytes()));
    log
}

/// Appends the record of a change.
pub(super) fn push(log: &mut Vec<u8>, change: &Change<'_>) {
    record(log, |out| match change {
        Change::Put(id, row) => {
            out.push(b'+');
            out.extend_from_slice(id.as_bytes());
            row.push_bytes(out);
        }
        Change::Remove(id) => {
            out.push(b'-');
            out.extend_from_slice(id.as_bytes());
        }
    });
}

fn record(log: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = log.len();
    log.extend_from_slice(&[0; HEAD]);
    write(log);
    let (head, contents) = log[start..].split_at_mut(HEAD);
    let length = (contents.len() as u64).to_le_bytes();
    head[..8].copy_from_slice(&length);
    head[8..].copy_from_slice(&checksum(&length, contents));
}

fn checksum(length: &[u8; 8], contents: &[u8]) -> [u8; 8] {
    let hash = Sha256::new()
        .chain_update(length)
        .chain_update(contents)
        .finalize();
    std::array::from_fn(|i| hash[i])
}

/// The contents of the first record and what follows it, where that record is whole and sound.
fn split_record(log: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = log.split_first_chunk::<8>()?;
    let (expected, rest) = rest.split_first_chunk::<8>()?;
    let size = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (contents, rest) = rest.split_at_checked(size)?;
    (checksum(length, contents) == *expected).then_some((contents, rest))
}

/// Hands on the changes of a log; returns the bytes of the records that are whole and sound.
pub(super) fn replay(
    index: &mut EmbeddingIndex,
    log: &[u8],
    mut apply: impl FnMut(&mut EmbeddingIndex, Change<'_>),
) -> Result<usize, String> {
    let header = header(index);
    let form = (index.dtype(), index.dimensions());
    let mut rest = log;
    while let Some((contents, behind)) = split_record(rest) {
        let at = log.len() - rest.len();
        let change = change(contents, form, &header[HEAD..], at == 0);
        if let Some(change) = change.map_err(|error| format!("log, byte {at}: {error}"))? {
            apply(index, change);
        }
        rest = behind;
    }
    let read = log.len() - rest.len();
    // What has no sound record at all may be any file. Only a first record that was begun, or that a file
    // system made room for, is an end to be cut off.
    if read == 0 && !header.starts_with(log) && log.iter().any(|&byte| byte != 0) {
        return Err(format!(
            "log, byte 0: no sound record, expected the first one of '{FORMAT}' for this model"
        ));
    }
    Ok(read)
}

/// The change that a record says, or none, where it is a header.
fn change<'a>(
    contents: &'a [u8],
    (dtype, dimensions): (VectorType, usize),
    header: &[u8],
    is_first: bool,
) -> Result<Option<Change<'a>>, String> {
    let (&kind, rest) = contents.split_first().ok_or("an empty record")?;
    if is_first && kind != b'H' || kind == b'H' && contents != header {
        let shown = &contents[..contents.len().min(header.len() + 80)];
        let [found, expected] = [shown, header].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        return Err(format!("{found:?}, expected {expected:?}"));
    }
    let text = |bytes: &'a [u8]| std::str::from_utf8(bytes).map_err(|error| format!("an id: {error}"));
    match kind {
        b'H' => Ok(None),
        b'-' => Ok(Some(Change::Remove(text(rest)?))),
        b'+' => {
            let size = Row::size(dtype, dimensions);
            let length = rest.len().checked_sub(size);
            let (id, row) = length
                .filter(|&length| length <= LONGEST_ID)
                .map(|length| rest.split_at(length))
                .ok_or_else(|| {
                    format!(
                        "{} bytes, expected an id of at most {LONGEST_ID} and an embedding of {size}",
                        rest.len()
                    )
                })?;
            let id = text(id)?;
            let row = Row::from_bytes(row, dtype);
            let row = row.map_err(|error| format!("id '{}': {error}", id.escape_debug()))?;
            Ok(Some(Change::Put(id, row)))
        }
        _ => Err(format!("a record of kind {kind}, expected 'H', '+' or '-'")),
    }
}
