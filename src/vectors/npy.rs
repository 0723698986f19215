//! NumPy's `.npy` files of one float32 matrix.

use std::io::Write;

use super::{Embeddings, from_le_bytes, push_le_bytes};
use crate::{Error, Result};

const MAGIC: &[u8] = b"\x93NUMPY";
/// The values start at a multiple of this, counting from the file's start.
const ALIGNMENT: usize = 64;

/// Writes a `.npy` file (format 1.0, little-endian float32, `[rows, dimensions]`) row by row.
///
/// ```
/// use ernie_vil::vectors::{NpyWriter, read_npy};
/// let mut writer = NpyWriter::new(Vec::new(), 2, 3)?;
/// writer.write(&[1.0, 2.0, 3.0])?;
/// writer.write(&[4.0, 5.0, 6.0])?;
/// let file = writer.finish()?;
/// assert_eq!(read_npy(&file)?.row(1), [4.0, 5.0, 6.0]);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
#[derive(Debug)]
pub struct NpyWriter<W> {
    writer: W,
    values_left: usize,
    dimensions: usize,
    buffer: Vec<u8>,
}

impl<W: Write> NpyWriter<W> {
    /// Starts a file of `rows` embeddings of `dimensions` values each.
    ///
    /// # Errors
    /// [`Error::Vectors`] where `dimensions` is 0 or the values are too many to count, [`Error::Io`]
    /// from the writer.
    pub fn new(mut writer: W, rows: usize, dimensions: usize) -> Result<Self> {
        let values_left = match rows.checked_mul(dimensions) {
            Some(values) if dimensions > 0 => values,
            _ => {
                return Err(Error::Vectors(format!(
                    "{rows} rows of {dimensions} dimensions cannot be written"
                )));
            }
        };
        let mut header =
            format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dimensions}), }}");
        let before = MAGIC.len() + 2 + 2;
        let padded = (before + header.len() + 1).next_multiple_of(ALIGNMENT) - before;
        header.extend(std::iter::repeat_n(' ', padded - 1 - header.len()));
        header.push('\n');
        let mut buffer = [MAGIC, &[1, 0]].concat();
        buffer.extend_from_slice(&(header.len() as u16).to_le_bytes()); // about a hundred bytes
        buffer.extend_from_slice(header.as_bytes());
        writer.write_all(&buffer)?;
        Ok(Self {
            writer,
            values_left,
            dimensions,
            buffer,
        })
    }

    /// Writes the next embedding, or several that follow one another in memory.
    ///
    /// # Errors
    /// [`Error::Vectors`] where `values` are not whole rows or more than were announced,
    /// [`Error::Io`] from the writer.
    pub fn write(&mut self, values: &[f32]) -> Result<()> {
        if !values.len().is_multiple_of(self.dimensions) || values.len() > self.values_left {
            return Err(Error::Vectors(format!(
                "{} values to write, expected rows of {} and at most {} values in all",
                values.len(),
                self.dimensions,
                self.values_left
            )));
        }
        self.buffer.clear();
        push_le_bytes(&mut self.buffer, values);
        self.writer.write_all(&self.buffer)?;
        self.values_left -= values.len();
        Ok(())
    }

    /// Ends the file and hands the writer back.
    ///
    /// # Errors
    /// [`Error::Vectors`] where rows are missing, [`Error::Io`] from the writer.
    pub fn finish(mut self) -> Result<W> {
        if self.values_left > 0 {
            return Err(Error::Vectors(format!(
                "{} rows are missing at the end of the file",
                self.values_left / self.dimensions
            )));
        }
        self.writer.flush()?;
        Ok(self.writer)
    }
}

/// Reads the `.npy` file of a float32 matrix: format 1 to 3, `<f4`, C order, two dimensions.
///
/// # Errors
/// [`Error::Vectors`] where the bytes are something else, or where values are missing or left over.
pub fn read_npy(bytes: &[u8]) -> Result<Embeddings> {
    let bad = |what: &str| Error::Vectors(format!("npy: {what}"));
    let rest = bytes
        .strip_prefix(MAGIC)
        .ok_or_else(|| bad("the file does not start with \\x93NUMPY"))?;
    let (header, data) = match rest {
        [1, _, a, b, rest @ ..] => rest.split_at_checked(usize::from(u16::from_le_bytes([*a, *b]))),
        [2 | 3, _, a, b, c, d, rest @ ..] => usize::try_from(u32::from_le_bytes([*a, *b, *c, *d]))
            .ok()
            .and_then(|length| rest.split_at_checked(length)),
        [1..=3, ..] | [] => None,
        [version, ..] => return Err(bad(&format!("format {version}, expected 1, 2 or 3"))),
    }
    .ok_or_else(|| bad("the file ends within the header"))?;
    let header = std::str::from_utf8(header).map_err(|_| bad("the header is not text"))?;

    let kind = field(header, "descr").and_then(|rest| rest.split(['\'', '"']).nth(1));
    if kind != Some("<f4") {
        return Err(bad(&format!(
            "descr is {}, expected '<f4'",
            kind.unwrap_or("missing")
        )));
    }
    if !field(header, "fortran_order").is_some_and(|rest| rest.starts_with("False")) {
        return Err(bad(
            "fortran_order is not False, expected rows one after the other",
        ));
    }
    let shape = field(header, "shape")
        .and_then(|rest| rest.strip_prefix('('))
        .and_then(|rest| rest.split(')').next())
        .ok_or_else(|| bad("the header has no shape"))?;
    let sizes: Option<Vec<usize>> = shape
        .trim_end_matches([' ', ','])
        .split(',')
        .map(|size| size.trim().parse().ok())
        .collect();
    let Some([rows, dimensions]) = sizes.as_deref() else {
        return Err(bad(&format!("shape is ({shape}), expected (rows, dimensions)")));
    };
    let (rows, dimensions) = (*rows, *dimensions);
    if rows
        .checked_mul(dimensions)
        .and_then(|values| values.checked_mul(4))
        != Some(data.len())
    {
        return Err(bad(&format!(
            "{} bytes of values, expected {rows} rows of {dimensions} float32",
            data.len()
        )));
    }
    Embeddings::new(rows, dimensions, from_le_bytes(data))
}

/// What follows `'name':` in the header, a Python dictionary with three fixed keys.
fn field<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let at = header.find(&format!("'{name}'"))? + name.len() + 2;
    Some(header[at..].trim_start().strip_prefix(':')?.trim_start())
}
