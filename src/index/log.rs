//! The changes of an index as records that are appended to a file.
//!
//! A record is the length of its contents (64 bits, little-endian), the first 8 bytes of the SHA-256 of that
//! length and the contents, and the contents. Their first byte says what they are:
//!
//! | first byte | the others |
//! | --- | --- |
//! | `H` | what the log belongs to: `ernie-vil log 1`, vector type, dimensions, fingerprint, a line each |
//! | `S` | the source of what is added until the next `S` or `H` |
//! | `+` | an id, and the embedding that now is under it: the values, or the scale and the codes |
//! | `-` | an id that was removed |
//!
//! Records are appended, so a process that ends in the middle of that leaves the start of a record at the end
//! of the log, and nothing else. A record that is there as a whole and not sound was therefore damaged later,
//! and what it said may have been acknowledged.

use std::fmt;
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::rows::{Row, VectorType};
use super::{EmbeddingIndex, LONGEST_ID};

const FORMAT: &str = "ernie-vil log 1";
/// Bytes of a record before its contents.
const HEAD: usize = 16;
/// Zeros at the end of a log that a file system has made room for and not filled before it broke down.
const UNFILLED: usize = 512;

/// A change to an index.
pub(super) enum Change<'a> {
    Put(&'a str, Row<'a>),
    Remove(&'a str),
    /// The source of what is put from here on.
    Source(Option<&'a str>),
}

/// What the records of a log came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replayed {
    /// Bytes of the sound records at the log's start.
    pub sound: usize,
    /// Embeddings that were put or removed.
    pub changes: usize,
    /// What is damaged, from the log's start on.
    pub damage: Vec<Damage>,
}

/// A part of a log that is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Where it lies.
    pub bytes: Range<usize>,
    /// Sound records that follow, up to the log's end or the next damage.
    pub records: usize,
    /// Whether more may follow: the search for sound records was given up, because the bytes look like
    /// records everywhere.
    pub given_up: bool,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, end } = self.bytes;
        write!(f, "byte {start}: damage of {} bytes, ", end - start)?;
        match (self.records, self.given_up) {
            (_, true) => f.write_str("behind which sound records may follow"),
            (0, _) => f.write_str("in a record that was written whole"),
            (1, _) => write!(f, "with 1 sound record behind it, at byte {end}"),
            (count, _) => write!(f, "with {count} sound records behind it, from byte {end} on"),
        }
    }
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
        Change::Source(name) => {
            out.push(b'S');
            out.extend_from_slice(name.unwrap_or_default().as_bytes());
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

/// The bytes of a log, and how much of them may still be hashed to find records.
struct Reader<'a> {
    log: &'a [u8],
    /// Looking for a record means to hash what might be one, at any byte. This bounds it to a multiple of the
    /// log.
    budget: usize,
    /// Lengths of contents, by their kind, that can be applied.
    header: usize,
    row: usize,
}

impl<'a> Reader<'a> {
    fn new(log: &'a [u8], header: usize, row: usize) -> Self {
        Self {
            log,
            budget: log.len().saturating_mul(8).saturating_add(1 << 20),
            header,
            row,
        }
    }

    /// The length of the contents that a record at this byte says it has, where the log is long enough for
    /// them.
    fn length(&self, at: usize) -> Option<usize> {
        let (length, rest) = self.log.get(at..)?.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        (length <= rest.len().checked_sub(HEAD - 8)?).then_some(length)
    }

    /// The contents of the record at this byte, where it is whole and sound.
    fn sound(&mut self, at: usize) -> Option<&'a [u8]> {
        let length = self.length(at)?;
        self.budget = self.budget.checked_sub(HEAD + length)?;
        let (head, rest) = self.log[at..].split_at(HEAD);
        let contents = &rest[..length];
        let (length, expected) = head.split_first_chunk::<8>()?;
        (checksum(length, contents) == *expected).then_some(contents)
    }

    /// Whether a record at this byte is there as a whole, by its length, and no longer than one can be.
    fn is_whole(&self, at: usize) -> bool {
        let longest = self.row.saturating_add(1 + LONGEST_ID).max(self.header);
        self.length(at)
            .is_some_and(|length| (1..=longest).contains(&length))
    }

    /// Whether what begins at this byte looks like a record that can be applied.
    fn is_likely(&self, at: usize) -> bool {
        let Some(length) = self.length(at).filter(|&length| length > 0) else {
            return false;
        };
        match self.log[at + HEAD] {
            b'H' => self.header == 0 || length == self.header,
            b'-' => length <= 1 + LONGEST_ID,
            b'S' => (2..=1 + LONGEST_ID).contains(&length),
            b'+' => length
                .checked_sub(self.row.saturating_add(1))
                .is_some_and(|id| id <= LONGEST_ID),
            _ => false,
        }
    }

    /// Where the next sound record begins behind a byte where none does.
    fn next(&mut self, from: usize) -> Next {
        // Behind the record's end, where only its contents are damaged: they may hold anything.
        if self.is_whole(from) {
            let end = self.length(from).map_or(from, |length| from + HEAD + length);
            if self.sound(end).is_some() {
                return Next::At(end);
            }
        }
        for at in from + 1..self.log.len().saturating_sub(HEAD) {
            if self.is_likely(at) {
                if self.sound(at).is_some() {
                    return Next::At(at);
                }
                if self.budget == 0 || self.length(at).is_some_and(|length| length + HEAD > self.budget) {
                    return Next::Unknown;
                }
            }
        }
        Next::None
    }

    /// Whether the log ends from this byte on as one does whose last record was begun and not completed.
    fn is_torn(&self, at: usize) -> bool {
        let rest = &self.log[at..];
        let zeros = rest.iter().rev().take_while(|&&byte| byte == 0).count();
        if zeros >= UNFILLED || zeros == rest.len() {
            return true;
        }
        if self.is_whole(at) {
            return false;
        }
        // Whole but for its length, which says something else?
        let Some((head, contents)) = rest.split_at_checked(HEAD) else {
            return true;
        };
        checksum(&(contents.len() as u64).to_le_bytes(), contents) != head[8..]
    }
}

/// Where a sound record is.
enum Next {
    At(usize),
    None,
    /// Looking for one took too long.
    Unknown,
}

/// Hands on the changes of a log up to the first damage, or all of them with `beyond_damage`.
pub(super) fn read(
    index: &mut EmbeddingIndex,
    log: &[u8],
    beyond_damage: bool,
    mut apply: impl FnMut(&mut EmbeddingIndex, Change<'_>),
) -> Result<Replayed, String> {
    let header = header(index);
    let form = (index.dtype(), index.dimensions());
    let mut reader = Reader::new(log, header.len() - HEAD, Row::size(form.0, form.1));
    let mut found = Replayed::default();
    let mut at = 0;
    while at < log.len() {
        if let Some(contents) = reader.sound(at) {
            if beyond_damage || found.damage.is_empty() {
                let change = change(contents, form, &header[HEAD..], at == 0);
                let change = change.map_err(|error| format!("log, byte {at}: {error}"))?;
                found.changes += usize::from(!matches!(change, Change::Source(_)));
                apply(index, change);
            }
            at += HEAD + contents.len();
            match found.damage.last_mut() {
                None => found.sound = at,
                Some(damage) => damage.records += 1,
            }
            continue;
        }
        let (end, given_up) = match reader.next(at) {
            Next::At(end) => (end, false),
            Next::None if reader.is_torn(at) => break,
            Next::None => (log.len(), false),
            Next::Unknown => (log.len(), true),
        };
        found.damage.push(Damage {
            bytes: at..end,
            records: 0,
            given_up,
        });
        // It is not known whether the source is still the same.
        if beyond_damage {
            apply(index, Change::Source(None));
        }
        at = end;
    }
    // What has no sound record at all may be any file. Only a first record that was begun, or that a file
    // system made room for, is an end to be cut off.
    let records: usize = found.damage.iter().map(|damage| damage.records).sum();
    if found.sound == 0 && records == 0 && !header.starts_with(log) && log.iter().any(|&byte| byte != 0) {
        return Err(format!(
            "log, byte 0: no sound record, expected the first one of '{FORMAT}' for this model"
        ));
    }
    Ok(found)
}

/// An empty index of the kind that the first sound header says.
pub(super) fn kind(log: &[u8]) -> Result<Option<EmbeddingIndex>, String> {
    // Before the header is known any row may follow, but only headers are looked for.
    let mut reader = Reader::new(log, 0, usize::MAX / 2);
    let mut at = 0;
    let contents = loop {
        match reader.sound(at) {
            Some(contents) if contents.first() == Some(&b'H') => break contents,
            Some(contents) => at += HEAD + contents.len(),
            None => match reader.next(at) {
                Next::At(next) => at = next,
                Next::None | Next::Unknown => return Ok(None),
            },
        }
    };
    let text = String::from_utf8_lossy(&contents[1..]);
    let mut lines = text.splitn(4, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (format, dtype, dimensions, fingerprint) = (line(), line(), line(), line());
    match (format, dtype.parse(), dimensions.parse()) {
        (FORMAT, Ok(dtype), Ok(dimensions)) => {
            Ok(Some(EmbeddingIndex::with_dtype(dimensions, fingerprint, dtype)))
        }
        _ => {
            let shown: String = text.chars().take(80).collect();
            Err(format!(
                "log, byte {at}: {shown:?}, expected '{FORMAT}', vector type, dimensions and fingerprint"
            ))
        }
    }
}

/// The change that a record says.
fn change<'a>(
    contents: &'a [u8],
    (dtype, dimensions): (VectorType, usize),
    header: &[u8],
    is_first: bool,
) -> Result<Change<'a>, String> {
    let (&kind, rest) = contents.split_first().ok_or("an empty record")?;
    if is_first && kind != b'H' || kind == b'H' && contents != header {
        let shown = &contents[..contents.len().min(header.len() + 80)];
        let [found, expected] = [shown, header].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        return Err(format!("{found:?}, expected {expected:?}"));
    }
    let text =
        |what: &str, bytes: &'a [u8]| std::str::from_utf8(bytes).map_err(|error| format!("{what}: {error}"));
    match kind {
        b'H' => Ok(Change::Source(None)),
        b'S' if !(1..=LONGEST_ID).contains(&rest.len()) => Err(format!(
            "a source's name of {} bytes, expected 1 to {LONGEST_ID}",
            rest.len()
        )),
        b'S' => Ok(Change::Source(Some(text("a source's name", rest)?))),
        b'-' => Ok(Change::Remove(text("an id", rest)?)),
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
            let id = text("an id", id)?;
            let row = Row::from_bytes(row, dtype);
            let row = row.map_err(|error| format!("id '{}': {error}", id.escape_debug()))?;
            Ok(Change::Put(id, row))
        }
        _ => Err(format!("a record of kind {kind}, expected 'H', 'S', '+' or '-'")),
    }
}
