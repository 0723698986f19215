//! The original's `.out` files: `text vector<TAB>image vector<TAB>1`, one pair a line.

use std::io::{Read, Write};

use super::{Embeddings, Pairs, map_parallel, threads, write_f32};
use crate::{Error, Result};

/// Bytes read at a time for each thread that parses.
const BLOCK: usize = 1 << 20;
/// Characters of a wrong field that an error message shows.
const SHOWN: usize = 40;

/// Writes a `.out` file pair by pair.
///
/// Each pair reaches the writer in one piece, so a file that broke off ends at most in the middle of
/// its last line.
///
/// ```
/// use ernie_vil::vectors::{OutWriter, read_out};
/// let mut writer = OutWriter::new(Vec::new());
/// writer.write(&[0.6, -0.8], &[1.0, 1e-5])?;
/// let file = writer.finish()?;
/// assert_eq!(file, b"0.6 -0.8\t1.0 1e-05\t1\n");
/// assert_eq!(read_out(&file[..])?.image.row(0), [1.0, 1e-5]);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
#[derive(Debug)]
pub struct OutWriter<W> {
    writer: W,
    dimensions: Option<(usize, usize)>,
    line: Vec<u8>,
}

impl<W: Write> OutWriter<W> {
    /// Starts a file.
    pub fn new(writer: W) -> Self {
        Self {
            writer,
            dimensions: None,
            line: Vec::new(),
        }
    }

    /// Writes the next pair.
    ///
    /// # Errors
    /// [`Error::Vectors`] where a vector is empty or not as long as in the first pair,
    /// [`Error::Io`] from the writer.
    pub fn write(&mut self, text: &[f32], image: &[f32]) -> Result<()> {
        let found = (text.len(), image.len());
        let expected = *self.dimensions.get_or_insert(found);
        if found != expected || text.is_empty() || image.is_empty() {
            return Err(Error::Vectors(format!(
                "a pair of {} and {} values, expected {} and {}, at least 1 each",
                found.0, found.1, expected.0, expected.1
            )));
        }
        self.line.clear();
        for (vector, end) in [(text, &b"\t"[..]), (image, b"\t1\n")] {
            for (position, &value) in vector.iter().enumerate() {
                if position > 0 {
                    self.line.push(b' ');
                }
                write_f32(&mut self.line, value);
            }
            self.line.extend_from_slice(end);
        }
        Ok(self.writer.write_all(&self.line)?)
    }

    /// Ends the file and hands the writer back.
    ///
    /// # Errors
    /// [`Error::Io`] from the writer.
    pub fn finish(mut self) -> Result<W> {
        self.writer.flush()?;
        Ok(self.writer)
    }
}

/// Reads a `.out` file with the original's rules.
///
/// A line ends in LF, CR or CRLF and has three columns, separated by tabs. Numbers are separated by
/// exactly one space and are what Python's `float()` takes: `1e-3`, `.5`, `1_000`, `nan`,
/// `-Infinity`, white space around them. They are rounded to float64 and then to float32. The third
/// column is an integer, of which nothing is used. Digits are those of ASCII only.
///
/// Beyond the values, this takes memory for the longest line and a megabyte for each thread. An empty
/// file has no rows.
///
/// # Errors
/// [`Error::Vectors`] names the first wrong line, the column (in bytes, from 1) where one is to
/// blame, and what was expected there; [`Error::Io`] comes from the reader.
///
/// ```
/// let error = ernie_vil::vectors::read_out(&b"1 2\t3 4\t1\n1 x\t3 4\t1\n"[..]).unwrap_err();
/// assert_eq!(error.to_string(), "vectors: line 2, column 3: 'x', expected a number");
/// ```
pub fn read_out(mut reader: impl Read) -> Result<Pairs> {
    let threads = threads();
    let mut pairs = Part::default();
    let mut dimensions = None;
    let mut buffer = Vec::new();
    loop {
        let searched = buffer.len();
        let block = (BLOCK * threads) as u64;
        let read = reader.by_ref().take(block).read_to_end(&mut buffer)?;
        // Whole lines only, until the end is reached.
        let lines = match buffer[searched..].iter().rposition(|&byte| byte == b'\n') {
            _ if read == 0 => buffer.len(),
            Some(last) => searched + last + 1,
            None => continue,
        };
        if lines > 0 {
            let dimensions = *dimensions.get_or_insert_with(|| first_line(&buffer));
            let pieces = cut(&buffer[..lines], threads);
            for part in map_parallel(pieces.len(), |piece| parse(pieces[piece], dimensions)) {
                pairs.append(part.map_err(|mistake| mistake.at(pairs.rows))?);
            }
        }
        if read == 0 {
            break;
        }
        buffer.drain(..lines);
    }
    let (text, image) = dimensions.unwrap_or_default();
    Ok(Pairs {
        text: Embeddings::new(pairs.rows, text, pairs.text)?,
        image: Embeddings::new(pairs.rows, image, pairs.image)?,
    })
}

/// Cuts lines into at most `count` pieces of about the same size, each of whole lines.
fn cut(mut lines: &[u8], count: usize) -> Vec<&[u8]> {
    let size = lines.len().div_ceil(count);
    let mut pieces = Vec::with_capacity(count);
    while !lines.is_empty() {
        let from = (size - 1).min(lines.len() - 1);
        let end = lines[from..].iter().position(|&byte| byte == b'\n');
        let (piece, rest) = lines.split_at(end.map_or(lines.len(), |end| from + end + 1));
        pieces.push(piece);
        lines = rest;
    }
    pieces
}

/// How many numbers the first line has in its first and its second column.
fn first_line(bytes: &[u8]) -> (usize, usize) {
    let mut columns = line_at(bytes, 0).split(|&byte| byte == b'\t').map(|column| {
        // One more than there are spaces.
        column.split(|&byte| byte == b' ').count()
    });
    (columns.next().unwrap_or(1), columns.next().unwrap_or(1))
}

/// The line that starts at `start`, without its end.
fn line_at(bytes: &[u8], start: usize) -> &[u8] {
    let rest = &bytes[start..];
    let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
    &rest[..end.unwrap_or(rest.len())]
}

/// Some rows of a file.
#[derive(Default)]
struct Part {
    rows: usize,
    text: Vec<f32>,
    image: Vec<f32>,
}

impl Part {
    fn append(&mut self, other: Self) {
        if self.rows == 0 {
            *self = other;
        } else {
            self.rows += other.rows;
            self.text.extend_from_slice(&other.text);
            self.image.extend_from_slice(&other.image);
        }
    }
}

/// What is wrong with a line.
struct Mistake {
    /// Lines before it in its piece.
    line: usize,
    /// Byte of the line, where one is to blame, counting from 0.
    column: Option<usize>,
    message: String,
}

impl Mistake {
    fn at(self, lines_before: usize) -> Error {
        let line = lines_before + self.line + 1;
        Error::Vectors(match self.column {
            Some(column) => format!("line {line}, column {}: {}", column + 1, self.message),
            None => format!("line {line}: {}", self.message),
        })
    }
}

/// Reads whole lines, each with as many numbers as `dimensions` says.
fn parse(bytes: &[u8], dimensions: (usize, usize)) -> Result<Part, Mistake> {
    let mut part = Part::default();
    let mut start = 0;
    while start < bytes.len() {
        match parse_line(bytes, start, dimensions, &mut part) {
            Ok(next) => start = next,
            Err((at, message)) => return Err(explain(line_at(bytes, start), at - start, message, part.rows)),
        }
        part.rows += 1;
    }
    Ok(part)
}

/// Reads the line at `start` and returns where the next one starts, or the wrong byte and a message.
fn parse_line(
    bytes: &[u8],
    start: usize,
    dimensions: (usize, usize),
    part: &mut Part,
) -> Result<usize, (usize, String)> {
    let image = parse_vector(bytes, start, dimensions.0, "text", &mut part.text)?;
    let index = parse_vector(bytes, image, dimensions.1, "image", &mut part.image)?;
    let field = line_at(bytes, index);
    if !is_integer(field) {
        return Err((index, format!("'{}', expected an integer", shown(field))));
    }
    let end = index + field.len();
    Ok(match bytes[end..] {
        [b'\r', b'\n', ..] => end + 2,
        [] => end,
        _ => end + 1,
    })
}

/// Reads the numbers from `at` up to a tab, and returns where the next column starts.
fn parse_vector(
    bytes: &[u8],
    mut at: usize,
    expected: usize,
    side: &str,
    values: &mut Vec<f32>,
) -> Result<usize, (usize, String)> {
    let start = at;
    let before = values.len();
    loop {
        let (value, end) = match plain_number(bytes, at) {
            Some(found) => found,
            None => {
                let rest = &bytes[at..];
                let end = rest
                    .iter()
                    .position(|&byte| ends_number(byte))
                    .unwrap_or(rest.len());
                let value = python_float(&rest[..end])
                    .ok_or_else(|| (at, format!("'{}', expected a number", shown(&rest[..end]))))?;
                (value, at + end)
            }
        };
        values.push(value as f32);
        at = end + 1;
        if bytes.get(end) != Some(&b' ') {
            break;
        }
    }
    let found = values.len() - before;
    if found != expected {
        return Err((
            start,
            format!("{found} numbers in the {side} vector, expected {expected} as in line 1"),
        ));
    }
    if bytes.get(at - 1) != Some(&b'\t') {
        return Err((start, "expected a tab".into())); // reported as a wrong number of columns
    }
    Ok(at)
}

/// Whether a number, or what stands in its place, ends before this byte.
fn ends_number(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Chooses the message for a wrong line: a wrong number of columns explains everything else.
fn explain(line: &[u8], column: usize, message: String, number: usize) -> Mistake {
    let columns = line.split(|&byte| byte == b'\t').count();
    if columns == 3 {
        return Mistake {
            line: number,
            column: Some(column),
            message,
        };
    }
    Mistake {
        line: number,
        column: None,
        message: format!(
            "{columns} columns, expected 3 separated by tabs: text vector, image vector, an integer"
        ),
    }
}

/// The start of a field, fit for a message.
fn shown(field: &[u8]) -> String {
    let text = String::from_utf8_lossy(&field[..field.len().min(4 * SHOWN)]);
    let start: String = text.chars().take(SHOWN).collect();
    let cut = if start.len() < field.len() { "..." } else { "" };
    format!("{}{cut}", start.escape_debug())
}

/// Powers of ten that f64 holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];

/// Reads `-12.345e-6` and the like at `at`; returns the value and where it ends.
///
/// Nothing where the number is written in another way, or where its digits (as one whole number) or
/// its exponent are too large for the quotient or product of two exact f64 to be correctly rounded.
fn plain_number(bytes: &[u8], at: usize) -> Option<(f64, usize)> {
    let mut end = at;
    let negative = bytes.get(end) == Some(&b'-');
    end += usize::from(negative);
    let mut digits = 0u64;
    let whole = take_digits(bytes, &mut end, &mut digits)?;
    let mut exponent = 0i32;
    if bytes.get(end) == Some(&b'.') {
        end += 1;
        exponent = -(take_digits(bytes, &mut end, &mut digits)? as i32);
    }
    // One digit at least, and no more than 2^53 in all.
    if (whole == 0 && exponent == 0) || digits > 1 << 53 {
        return None;
    }
    if bytes.get(end) == Some(&b'e') {
        let sign = bytes.get(end + 1).copied();
        end += 1 + usize::from(matches!(sign, Some(b'-' | b'+')));
        let mut written = 0u64;
        if !(1..=8).contains(&take_digits(bytes, &mut end, &mut written)?) {
            return None;
        }
        exponent += if sign == Some(b'-') {
            -(written as i32)
        } else {
            written as i32
        };
    }
    if bytes.get(end).is_some_and(|&byte| !ends_number(byte)) {
        return None;
    }
    let power = *POWERS.get(exponent.unsigned_abs() as usize)?;
    let value = if exponent < 0 {
        digits as f64 / power
    } else {
        digits as f64 * power
    };
    Some((if negative { -value } else { value }, end))
}

/// Appends the decimal digits at `at` to `digits` and returns how many there were; nothing where
/// the sum might no longer fit.
fn take_digits(bytes: &[u8], at: &mut usize, digits: &mut u64) -> Option<usize> {
    const TENS: [u64; 9] = [
        1,
        10,
        100,
        1_000,
        10_000,
        100_000,
        1_000_000,
        10_000_000,
        100_000_000,
    ];
    let start = *at;
    loop {
        // Eight bytes at once; behind the end there are zeros, which are no digits.
        let word = match bytes[*at..].first_chunk::<8>() {
            Some(&word) => u64::from_le_bytes(word),
            None => {
                let mut word = [0; 8];
                let rest = &bytes[*at..];
                word[..rest.len()].copy_from_slice(rest);
                u64::from_le_bytes(word)
            }
        };
        // A digit's high half is 3, and still 3 when 6 is added.
        let values = word ^ 0x3030_3030_3030_3030;
        let not_digits = (values | (values.wrapping_add(0x0606_0606_0606_0606))) & 0xf0f0_f0f0_f0f0_f0f0;
        let count = (not_digits.trailing_zeros() / 8) as usize;
        if count > 0 {
            if *digits >= 100_000_000_000 {
                return None;
            }
            // The digits move to the end of the word, zeros come before them, and neighbours are
            // joined: eight numbers below 10, four below 100, two below 10,000, one.
            let mut joined = values << (64 - 8 * count);
            joined = (joined.wrapping_mul(10) + (joined >> 8)) & 0x00ff_00ff_00ff_00ff;
            joined = (joined.wrapping_mul(100) + (joined >> 16)) & 0x0000_ffff_0000_ffff;
            joined = (joined.wrapping_mul(10_000) + (joined >> 32)) & 0xffff_ffff;
            *digits = *digits * TENS[count] + joined;
            *at += count;
        }
        if count < 8 {
            return Some(*at - start);
        }
    }
}

/// What Python's `float()` makes of a string.
fn python_float(field: &[u8]) -> Option<f64> {
    // Beyond white space and underscores, Rust's grammar is the same.
    plain(field)?.parse().ok()
}

/// Whether Python's `int()` takes a string.
fn is_integer(field: &[u8]) -> bool {
    plain(field).is_some_and(|text| {
        let digits = text.strip_prefix(['+', '-']).unwrap_or(&text);
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// A number without white space around it and underscores in it, each of which must stand between two
/// digits.
fn plain(field: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(field).ok()?.trim();
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    for (at, &byte) in bytes.iter().enumerate() {
        if byte == b'_' && !(at > 0 && digit(at - 1) && digit(at + 1)) {
            return None;
        }
    }
    Some(text.replace('_', ""))
}
