//! How an index keeps its vectors: in blocks of memory that stay where they are, as they are or in eight
//! bits a value.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::ops::Range;
use std::str::FromStr;

use crate::kernels::int8::{self, Int8Query};
use crate::kernels::{PackedMatrix, matmul};
use crate::vectors::{Embeddings, check_scorable, from_le_bytes, push_le_bytes};
use crate::{Error, Result};

/// Embeddings whose scores are computed at a time.
pub(super) const ROWS: usize = 240;
/// Embeddings of a part: a new one is begun when the last one is full, so that none is moved as the index
/// grows. Whole blocks of [`ROWS`], so that no block lies in two parts.
const PART: usize = 17 * ROWS;
/// Scales that a vector which can be added may get, and more; no score overflows.
const SCALES: std::ops::RangeInclusive<f32> = 1e-24..=1e16;

/// How an index keeps the values of its embeddings.
///
/// It reads and prints as `f32` and `int8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VectorType {
    /// As they are: 4 bytes a value.
    #[default]
    F32,
    /// As whole numbers from -127 to 127 and one scale for each embedding, its largest magnitude / 127: a
    /// quarter of the memory, which is a quarter of what a search has to read.
    ///
    /// Queries are rounded to 15 bits for the search. With m(v) the largest magnitude in v and |v| the sum
    /// of the magnitudes, the score of the embedding x for the query q differs from the exact inner product
    /// by at most m(x) |q| / 250 + m(q) |x| / 16,000. That is the worst case, with all errors on one side:
    /// for unit vectors of 768 values, none of which stands out, the difference has a standard deviation of
    /// 0.0003. Scores are the same on every machine.
    Int8,
}

impl fmt::Display for VectorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for VectorType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Self::F32),
            "int8" => Ok(Self::Int8),
            _ => Err(Error::Index(format!(
                "vector type '{}', expected f32 or int8",
                name.escape_debug()
            ))),
        }
    }
}

/// One embedding in the form in which it is kept.
pub(super) enum Row<'a> {
    F32(Cow<'a, [f32]>),
    Int8 { scale: f32, codes: Cow<'a, [i8]> },
}

impl<'a> Row<'a> {
    /// The form of a vector that [`check_scorable`] accepts.
    pub(super) fn new(vector: &'a [f32], dtype: VectorType) -> Self {
        match dtype {
            VectorType::F32 => Self::F32(vector.into()),
            VectorType::Int8 => {
                let mut codes = vec![0; vector.len()];
                let scale = int8::quantise(vector, &mut codes);
                Self::Int8 {
                    scale,
                    codes: codes.into(),
                }
            }
        }
    }

    /// Bytes of a row.
    pub(super) fn size(dtype: VectorType, dimensions: usize) -> usize {
        match dtype {
            VectorType::F32 => dimensions.saturating_mul(4),
            VectorType::Int8 => dimensions.saturating_add(4),
        }
    }

    /// Appends the row as bytes: the values, or the scale and the codes; floats little-endian.
    pub(super) fn push_bytes(&self, out: &mut Vec<u8>) {
        match self {
            Self::F32(values) => push_le_bytes(out, values),
            Self::Int8 { scale, codes } => {
                out.extend_from_slice(&scale.to_le_bytes());
                out.extend_from_slice(bytemuck::cast_slice(codes));
            }
        }
    }

    /// The row of as many bytes as [`size`](Self::size) says.
    pub(super) fn from_bytes(bytes: &'a [u8], dtype: VectorType) -> Result<Self, String> {
        match (dtype, bytes.split_first_chunk::<4>()) {
            (VectorType::Int8, Some((scale, codes))) => {
                let (scale, codes) = (f32::from_le_bytes(*scale), bytemuck::cast_slice(codes));
                check_codes(scale, codes)?;
                Ok(Self::Int8 {
                    scale,
                    codes: Cow::Borrowed(codes),
                })
            }
            _ => {
                let values = from_le_bytes(bytes);
                check_scorable(&values)?;
                Ok(Self::F32(values.into()))
            }
        }
    }
}

/// Checks that a vector which can be added gives this scale and these codes.
fn check_codes(scale: f32, codes: &[i8]) -> Result<(), String> {
    let (least, most) = (SCALES.start(), SCALES.end());
    if !SCALES.contains(&scale) {
        return Err(format!("a scale of {scale:e}, expected {least:e} to {most:e}"));
    }
    // Without a branch in it, so that the compiler can use vector registers.
    let largest = codes
        .iter()
        .fold(0, |largest: u8, code| largest.max(code.unsigned_abs()));
    if largest != int8::LARGEST.unsigned_abs() {
        return Err(format!(
            "codes of up to {largest}, expected the largest one to be {}",
            int8::LARGEST
        ));
    }
    Ok(())
}

/// Given some rows of one block of [`ROWS`], fills `[rows, queries]` with their scores.
pub(super) type Scorer<'a> = Box<dyn Fn(Range<usize>, &mut [f32]) + Sync + Send + 'a>;

/// The embeddings of an index, numbered from 0.
#[derive(Debug, Clone)]
pub(super) enum Vectors {
    F32(Parts<f32>),
    Int8 { scales: Vec<f32>, codes: Parts<i8> },
}

impl Vectors {
    pub(super) fn new(dimensions: usize, dtype: VectorType) -> Self {
        match dtype {
            VectorType::F32 => Self::F32(Parts::new(dimensions)),
            VectorType::Int8 => Self::Int8 {
                scales: Vec::new(),
                codes: Parts::new(dimensions),
            },
        }
    }

    pub(super) fn from_f32(vectors: Embeddings) -> Self {
        Self::F32(Parts::from_rows(vectors.dimensions(), vectors.into_data()))
    }

    /// `codes` has `dimensions` values for each scale.
    pub(super) fn from_int8(scales: Vec<f32>, codes: Vec<i8>, dimensions: usize) -> Self {
        Self::Int8 {
            scales,
            codes: Parts::from_rows(dimensions, codes),
        }
    }

    /// Checks that a row is one that can be added.
    pub(super) fn check(&self, row: usize) -> Result<(), String> {
        match self {
            Self::F32(values) => check_scorable(values.row(row)),
            Self::Int8 { scales, codes } => check_codes(scales[row], codes.row(row)),
        }
    }

    pub(super) fn dtype(&self) -> VectorType {
        match self {
            Self::F32(_) => VectorType::F32,
            Self::Int8 { .. } => VectorType::Int8,
        }
    }

    /// The values of a row.
    pub(super) fn get(&self, row: usize) -> Cow<'_, [f32]> {
        match self {
            Self::F32(values) => values.row(row).into(),
            Self::Int8 { scales, codes } => {
                let codes = codes.row(row).iter();
                codes.map(|&code| scales[row] * f32::from(code)).collect()
            }
        }
    }

    /// Appends a row, which must have this form.
    pub(super) fn push(&mut self, row: &Row<'_>) {
        match (self, row) {
            (Self::F32(all), Row::F32(values)) => all.push(values),
            (Self::Int8 { scales, codes: all }, Row::Int8 { scale, codes }) => {
                scales.push(*scale);
                all.push(codes);
            }
            _ => unreachable!("a row of another form"),
        }
    }

    /// Replaces a row by another one, which must have this form.
    pub(super) fn set(&mut self, at: usize, row: &Row<'_>) {
        match (self, row) {
            (Self::F32(all), Row::F32(values)) => all.row_mut(at).copy_from_slice(values),
            (Self::Int8 { scales, codes: all }, Row::Int8 { scale, codes }) => {
                scales[at] = *scale;
                all.row_mut(at).copy_from_slice(codes);
            }
            _ => unreachable!("a row of another form"),
        }
    }

    /// Removes a row; `last`, the last one, takes its place.
    pub(super) fn swap_remove(&mut self, row: usize, last: usize) {
        match self {
            Self::F32(values) => values.swap_remove(row, last),
            Self::Int8 { scales, codes } => {
                scales.swap_remove(row);
                codes.swap_remove(row, last);
            }
        }
    }

    /// Hands on the bytes of the tensors as they stand in a file that has the rows in this order: the scales,
    /// where there are some, and the values or codes.
    pub(super) fn for_each_piece(
        &self,
        rows: &[usize],
        mut task: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        match self {
            Self::F32(values) => {
                for &row in rows {
                    bytes.clear();
                    push_le_bytes(&mut bytes, values.row(row));
                    task(&bytes)?;
                }
            }
            Self::Int8 { scales, codes } => {
                for &row in rows {
                    bytes.extend_from_slice(&scales[row].to_le_bytes());
                }
                task(&bytes)?;
                for &row in rows {
                    task(bytemuck::cast_slice(codes.row(row)))?;
                }
            }
        }
        Ok(())
    }

    /// What computes the scores for the queries, which follow one another.
    pub(super) fn scorer<'a>(&'a self, queries: &[f32], dimensions: usize) -> Scorer<'a> {
        match self {
            Self::F32(values) => {
                let packed = PackedMatrix::from_transposed(queries, queries.len() / dimensions, dimensions);
                Box::new(move |rows, out| {
                    matmul(values.rows(rows.clone()), rows.len(), &packed, out, false);
                })
            }
            Self::Int8 { scales, codes } => {
                let queries: Vec<_> = queries.chunks_exact(dimensions).map(Int8Query::new).collect();
                Box::new(move |rows, out| {
                    int8::scores(codes.rows(rows.clone()), &scales[rows], &queries, out);
                })
            }
        }
    }
}

/// Rows of `width` values in parts of [`PART`] rows, all of them full but the last one.
#[derive(Debug, Clone)]
pub(super) struct Parts<T> {
    width: usize,
    parts: Vec<Vec<T>>,
}

impl<T: Copy> Parts<T> {
    fn new(width: usize) -> Self {
        Self {
            width,
            parts: Vec::new(),
        }
    }

    fn from_rows(width: usize, mut rows: Vec<T>) -> Self {
        let part = PART * width;
        let mut parts = Vec::new();
        // From the end on, giving memory back, so that there is never more than a part of it twice.
        while rows.len() > part {
            parts.push(rows.split_off((rows.len() - 1) / part * part));
            rows.shrink_to_fit();
        }
        if !rows.is_empty() {
            parts.push(rows);
        }
        parts.reverse();
        Self { width, parts }
    }

    /// Rows that lie in one part.
    fn rows(&self, rows: Range<usize>) -> &[T] {
        let part = rows.start / PART;
        let first = part * PART;
        &self.parts[part][(rows.start - first) * self.width..(rows.end - first) * self.width]
    }

    fn row(&self, row: usize) -> &[T] {
        self.rows(row..row + 1)
    }

    fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.parts[row / PART][row % PART * self.width..][..self.width]
    }

    fn push(&mut self, row: &[T]) {
        let full = PART * self.width;
        if self.parts.last().is_none_or(|part| part.len() == full) {
            self.parts.push(Vec::new());
        }
        let number = self.parts.len();
        if let Some(part) = self.parts.last_mut() {
            // The first part grows as it is needed. The others are small beside what is there already, and
            // get their memory at once.
            if number > 1 {
                part.reserve_exact(full - part.len());
            }
            part.extend_from_slice(row);
        }
    }

    fn swap_remove(&mut self, row: usize, last: usize) {
        if row != last {
            let moved = self.row(last).to_vec();
            self.row_mut(row).copy_from_slice(&moved);
        }
        if let Some(part) = self.parts.last_mut() {
            part.truncate(part.len() - self.width);
            if part.is_empty() {
                self.parts.pop();
            }
        }
    }
}
