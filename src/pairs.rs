//! Caption-image pairs in the original's text form, a line a pair, read as a stream.
//!
//! A row is `caption<TAB>image id<TAB>base64 image`. Like the original, the reader ends a line at
//! LF, CR or CRLF, strips whitespace from both ends of it and then takes the first and the last
//! column. So a row whose caption is empty has its image id for a caption, a row of one column has
//! that column for both, and a blank line is a row of two empty strings.
//!
//! ```
//! use ernie_vil::pairs::PairReader;
//! let text = "一只猫\t17\tQUJD\n两只狗\tREVG\n".as_bytes();
//! let rows = PairReader::new(text).collect::<Result<Vec<_>, _>>()?;
//! assert_eq!(rows[0].caption, "一只猫");
//! assert_eq!(rows[0].image_id.as_deref(), Some("17"));
//! assert_eq!(rows[0].image, b"QUJD");
//! assert_eq!((rows[1].line, rows[1].image_id.as_deref()), (2, None));
//! # Ok::<(), ernie_vil::Error>(())
//! ```

use std::io::{BufRead, ErrorKind};
use std::str::Utf8Error;

use memchr::{memchr, memchr2, memchr2_iter, memrchr};

use crate::text_file::{self, OTHER_ENCODING, without_mark};
use crate::{Error, Result};

/// A line may have this many bytes unless [`PairReader::with_max_line_bytes`] says otherwise:
/// 128 MiB, an image of 96 MiB.
pub const MAX_LINE_BYTES: usize = 128 << 20;

/// One row: a caption and an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The line it stands on, from 1.
    pub line: u64,
    /// Offset of the line's first byte in the input.
    pub offset: u64,
    /// The first column.
    pub caption: String,
    /// The second column, where there are three or more.
    pub image_id: Option<String>,
    /// The third column, where there are four or more: the names of the objects in the picture, which only
    /// training uses.
    pub tags: Option<String>,
    /// The last column: the image's base64 text, not looked at.
    pub image: Vec<u8>,
}

impl Pair {
    /// Whether the caption and the image are the same text, as they are where the line has no tab.
    pub fn is_one_column(&self) -> bool {
        self.caption.as_bytes() == self.image
    }

    /// Drops the byte order mark in front of the caption. The columns stay those that the original sees.
    fn pass_mark(&mut self) {
        let without = without_mark(&self.caption);
        if without.len() < self.caption.len() {
            if self.is_one_column() {
                self.image = without.as_bytes().to_vec();
            }
            self.caption = without.to_owned();
        }
    }
}

/// A place between two rows, to go on from later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Rows before it.
    pub rows: u64,
    /// Bytes before it.
    pub offset: u64,
}

impl Position {
    /// The number of the line that follows, from 1.
    pub fn line(self) -> u64 {
        self.rows.saturating_add(1)
    }

    /// Passes over `rows` rows of `bytes` bytes together.
    fn advance(&mut self, rows: u64, bytes: usize) {
        self.rows = self.rows.saturating_add(rows);
        self.offset = self.offset.saturating_add(bytes as u64);
    }
}

/// An iterator over the rows of an input.
///
/// A row that is not UTF-8 is an error, and the row after it can still be read. A failing source
/// or a line beyond the limit is an error after which the iterator ends. Memory stays within a
/// small multiple of the longest line.
///
/// # Errors
/// [`Error::Pairs`] names the line, and the column and byte where there is one (all from 1);
/// [`Error::Io`] is the source's, with the line in front.
#[derive(Debug)]
pub struct PairReader<R> {
    reader: R,
    position: Position,
    max_line_bytes: usize,
    checks_file: bool,
    /// The parts of a line that does not lie in the source's buffer as a whole.
    line: Vec<u8>,
    ended: bool,
}

impl<R: BufRead> PairReader<R> {
    /// Reads from the first row on.
    pub fn new(reader: R) -> Self {
        Self::resume(reader, Position::default())
    }

    /// Goes on at a [`position`](Self::position) taken earlier. The source must stand at
    /// `position.offset` already.
    ///
    /// ```
    /// use ernie_vil::pairs::PairReader;
    /// let text = "一\tQQ==\n二\tQg==\n".as_bytes();
    /// let mut first = PairReader::new(text);
    /// first.next();
    /// let position = first.position();
    /// let mut rest = PairReader::resume(&text[position.offset as usize..], position);
    /// assert_eq!(rest.next().unwrap()?.line, 2);
    /// # Ok::<(), ernie_vil::Error>(())
    /// ```
    pub fn resume(reader: R, position: Position) -> Self {
        Self {
            reader,
            position,
            max_line_bytes: MAX_LINE_BYTES,
            checks_file: false,
            line: Vec::new(),
            ended: false,
        }
    }

    /// Sets how many bytes a line may have, its end not counted.
    #[must_use]
    pub fn with_max_line_bytes(mut self, max_line_bytes: usize) -> Self {
        self.max_line_bytes = max_line_bytes;
        self
    }

    /// Looks at the start of the input as of a file that a person gives. A byte order mark there, which the
    /// original takes for a part of the caption, is passed over. An input that is no text in UTF-8 (UTF-16,
    /// gzip, a spreadsheet) is an error that says what it is, after which the iterator ends.
    ///
    /// ```
    /// use ernie_vil::pairs::PairReader;
    /// let rows = PairReader::new("\u{feff}17\tQUJD".as_bytes()).with_file_checks();
    /// assert_eq!(rows.collect::<Result<Vec<_>, _>>()?[0].caption, "17");
    /// let mut rows = PairReader::new(&b"\x1f\x8b\x08\0"[..]).with_file_checks();
    /// assert_eq!(
    ///     rows.next().unwrap().unwrap_err().to_string(),
    ///     "pairs: the file is compressed by gzip, expected text; `gzip -dc FILE > NEW` unpacks it"
    /// );
    /// assert!(rows.next().is_none());
    /// # Ok::<(), ernie_vil::Error>(())
    /// ```
    #[must_use]
    pub fn with_file_checks(mut self) -> Self {
        self.checks_file = true;
        self
    }

    /// Whether nothing more can be read: after the last row, and after an error that ends the iterator.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The place after the last row that was read.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Passes over up to `rows` rows without looking into them, and says how many there were.
    ///
    /// # Errors
    /// As for the iterator, but for rows that are not UTF-8.
    pub fn skip_rows(&mut self, rows: u64) -> Result<u64> {
        for skipped in 0..rows {
            if self.next_line(|_, _| ())?.is_none() {
                return Ok(skipped);
            }
        }
        Ok(rows)
    }

    /// Reads one line and hands it over without its end, with its position.
    pub(crate) fn next_line<T>(&mut self, take: impl FnOnce(&[u8], Position) -> T) -> Result<Option<T>> {
        if self.ended {
            return Ok(None);
        }
        let checks_file = self.checks_file;
        let taken = self.read_line(|line, start| {
            let foreign = match checks_file && start.offset == 0 {
                true => text_file::foreign(line),
                false => None,
            };
            match foreign {
                Some(what) => Err(Error::Pairs(format!("the file is {what}"))),
                None => Ok(take(line, start)),
            }
        });
        let taken = taken.and_then(Option::transpose);
        self.ended = !matches!(taken, Ok(Some(_)));
        taken
    }

    fn read_line<T>(&mut self, take: impl FnOnce(&[u8], Position) -> T) -> Result<Option<T>> {
        let start = self.position;
        self.line.clear();
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(read_error(error, start)),
            };
            if buffer.is_empty() {
                if self.line.is_empty() {
                    return Ok(None);
                }
                self.position.advance(1, self.line.len());
                return Ok(Some(take(&self.line, start)));
            }
            let end = memchr2(b'\n', b'\r', buffer);
            let part = &buffer[..end.unwrap_or(buffer.len())];
            if part.len() > self.max_line_bytes - self.line.len() {
                return Err(Error::Pairs(format!(
                    "line {} is longer than {} bytes, the limit",
                    start.line(),
                    self.max_line_bytes
                )));
            }
            let Some(end) = end else {
                self.line.extend_from_slice(part);
                let length = part.len();
                self.reader.consume(length);
                continue;
            };
            let carriage_return = buffer[end] == b'\r';
            let length = self.line.len() + part.len();
            let taken = if self.line.is_empty() {
                take(part, start)
            } else {
                self.line.extend_from_slice(part);
                take(&self.line, start)
            };
            self.reader.consume(end + 1);
            self.position.advance(1, length + 1);
            if carriage_return {
                self.pass_line_feed()?;
            }
            return Ok(Some(taken));
        }
    }

    /// Passes over the LF of a CRLF, so that a position never lies inside a line's end.
    fn pass_line_feed(&mut self) -> Result<()> {
        loop {
            match self.reader.fill_buf() {
                Ok(buffer) => {
                    if buffer.first() == Some(&b'\n') {
                        self.reader.consume(1);
                        self.position.advance(0, 1);
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error, self.position)),
            }
        }
    }
}

impl<R: BufRead> Iterator for PairReader<R> {
    type Item = Result<Pair>;

    fn next(&mut self) -> Option<Self::Item> {
        let checks_file = self.checks_file;
        let row = self.next_line(|line, start| {
            let mut row = pair(line, start).map_err(|error| match (checks_file, error) {
                (true, Error::Pairs(message)) => Error::Pairs(format!("{message}; {OTHER_ENCODING}")),
                (_, error) => error,
            })?;
            if checks_file && start.offset == 0 {
                row.pass_mark();
            }
            Ok(row)
        });
        row.transpose().map(Result::flatten)
    }
}

impl<R: BufRead> std::iter::FusedIterator for PairReader<R> {}

/// Counts the rows that a [`PairReader`] would yield, by looking for line ends alone.
///
/// ```
/// assert_eq!(ernie_vil::pairs::count_rows("一\tQQ==\r\n\r\n二\tQg==".as_bytes())?, 3);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
///
/// # Errors
/// [`Error::Io`] where the source fails.
pub fn count_rows<R: BufRead>(mut reader: R) -> Result<u64> {
    let mut rows = 0;
    let mut last = b'\n';
    loop {
        let buffer = match reader.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        let Some(&last_here) = buffer.last() else {
            let unended = last != b'\n' && last != b'\r';
            return Ok(rows + u64::from(unended));
        };
        for at in memchr2_iter(b'\n', b'\r', buffer) {
            let before = if at == 0 { last } else { buffer[at - 1] };
            rows += u64::from(buffer[at] == b'\r' || before != b'\r');
        }
        last = last_here;
        let length = buffer.len();
        reader.consume(length);
    }
}

/// Takes a row apart.
fn pair(line: &[u8], start: Position) -> Result<Pair> {
    let text = std::str::from_utf8(line).map_err(|error| not_utf8(line, start, error))?;
    let text = text.trim_matches(is_whitespace);
    let first_tab = memchr(b'\t', text.as_bytes());
    let last_tab = memrchr(b'\t', text.as_bytes());
    let (caption, middle, image) = match (first_tab, last_tab) {
        (Some(first), Some(last)) if first < last => {
            (&text[..first], Some(&text[first + 1..last]), &text[last + 1..])
        }
        (Some(tab), _) => (&text[..tab], None, &text[tab + 1..]),
        (None, _) => (text, None, text),
    };
    let mut middle = middle.into_iter().flat_map(|middle| middle.split('\t'));
    let (image_id, tags) = (middle.next(), middle.next());
    Ok(Pair {
        line: start.line(),
        offset: start.offset,
        caption: caption.to_owned(),
        image_id: image_id.map(str::to_owned),
        tags: tags.map(str::to_owned),
        image: image.as_bytes().to_vec(),
    })
}

/// What Python's `str.strip` takes for whitespace: Unicode's White_Space and the four separators
/// of ASCII.
fn is_whitespace(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

pub(crate) fn not_utf8(line: &[u8], start: Position, error: Utf8Error) -> Error {
    let at = error.valid_up_to();
    let columns = line[..at].iter().filter(|&&byte| byte == b'\t').count() + 1;
    let what = match error.error_len() {
        Some(_) => "does not belong in UTF-8",
        None => "starts a UTF-8 character that the line's end cuts short",
    };
    Error::Pairs(format!(
        "line {}, column {columns}: byte {} of the line, 0x{:02x}, {what}",
        start.line(),
        at + 1,
        line[at]
    ))
}

fn read_error(error: std::io::Error, start: Position) -> Error {
    Error::from(error).within(format!("line {}", start.line()))
}
