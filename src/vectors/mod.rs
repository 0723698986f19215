//! Embeddings in memory and the files that hold them.
//!
//! | file | written by | read by |
//! | --- | --- | --- |
//! | `.out`, the original's text file of pairs | [`OutWriter`] | [`read_out`] |
//! | `.npy`, one matrix | [`NpyWriter`] | [`read_npy`] |
//! | `.safetensors`, both sides with their row ids | [`SafetensorsWriter`] | [`read_safetensors`] |

mod float_text;
mod npy;
mod out;
mod safetensors;

pub use float_text::write_f32;
pub use npy::{NpyWriter, read_npy};
pub use out::{OutWriter, read_out};
pub use safetensors::{EmbeddingFile, SafetensorsWriter, read_safetensors};
pub(crate) use safetensors::{Matrix, Tensors, header};

use crate::{Error, Result};

/// A matrix of embeddings, one in a row: `[rows, dimensions]`, row-major.
///
/// ```
/// use ernie_vil::vectors::Embeddings;
/// let mut embeddings = Embeddings::new(2, 2, vec![3.0, 4.0, 0.0, -2.0])?;
/// embeddings.normalise()?;
/// assert_eq!(embeddings.row(0), [0.6, 0.8]);
/// assert_eq!(embeddings.row(1), [0.0, -1.0]);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Embeddings {
    rows: usize,
    dimensions: usize,
    data: Vec<f32>,
}

impl Embeddings {
    /// Takes `rows` embeddings of `dimensions` values each.
    ///
    /// # Errors
    /// [`Error::Vectors`] where `data` does not have `rows * dimensions` values, or where there are
    /// rows without a value.
    pub fn new(rows: usize, dimensions: usize, data: Vec<f32>) -> Result<Self> {
        if rows.checked_mul(dimensions) != Some(data.len()) {
            return Err(Error::Vectors(format!(
                "{} values, expected {rows} rows of {dimensions}",
                data.len()
            )));
        }
        if rows > 0 && dimensions == 0 {
            return Err(Error::Vectors(format!(
                "{rows} rows of 0 dimensions, expected at least 1"
            )));
        }
        Ok(Self {
            rows,
            dimensions,
            data,
        })
    }

    /// Number of embeddings.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of one embedding.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// All values, row by row.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// All values, row by row, without copying them.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }

    /// Embedding number `index`, counting from 0.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, index: usize) -> &[f32] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        &self.data[index * self.dimensions..(index + 1) * self.dimensions]
    }

    /// The embeddings in their order.
    pub fn iter(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data.chunks_exact(self.dimensions.max(1))
    }

    /// Scales every row to length 1, as [`normalise`] does.
    ///
    /// # Errors
    /// [`Error::Vectors`] names the first row (counting from 1) that has no direction. The rows
    /// before it are scaled by then.
    pub fn normalise(&mut self) -> Result<()> {
        for (index, row) in self.data.chunks_exact_mut(self.dimensions.max(1)).enumerate() {
            normalise(row).map_err(|error| error.within(format_args!("row {}", index + 1)))?;
        }
        Ok(())
    }
}

impl<'a> IntoIterator for &'a Embeddings {
    type Item = &'a [f32];
    type IntoIter = std::slice::ChunksExact<'a, f32>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Caption and image embeddings side by side.
///
/// Row i of one belongs to row i of the other, unless relations say what belongs together
/// ([`recall::Relations`](crate::recall::Relations)) and the sides may differ in rows. They may differ in dimensions.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pairs {
    /// The captions' embeddings.
    pub text: Embeddings,
    /// The images' embeddings.
    pub image: Embeddings,
}

/// Scales a vector to length 1 in the L2 norm.
///
/// Squares are added up and the quotients taken in f64, so neither large nor tiny values are lost.
///
/// # Errors
/// [`Error::Vectors`] where the vector has no direction: it is all zeros, or holds a value that is
/// not finite. It is unchanged then.
///
/// ```
/// let mut vector = [1e30, 0.0, 0.0, -1e30];
/// ernie_vil::vectors::normalise(&mut vector)?;
/// assert_eq!(vector, [0.70710677, 0.0, 0.0, -0.70710677]);
/// assert!(ernie_vil::vectors::normalise(&mut [0.0, 0.0]).is_err());
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub fn normalise(vector: &mut [f32]) -> Result<()> {
    let length = length(vector);
    if length == 0.0 {
        return Err(Error::Vectors(
            "all values are zero, expected a vector with a direction".into(),
        ));
    }
    if !length.is_finite() {
        return Err(Error::Vectors(format!(
            "a vector of length {length}, expected finite values"
        )));
    }
    for value in vector {
        *value = (f64::from(*value) / length) as f32;
    }
    Ok(())
}

/// The L2 norm; not finite exactly where a value is not, since squares of float32 fit into f64.
pub(crate) fn length(vector: &[f32]) -> f64 {
    // Several sums side by side, which the compiler may put into vector registers.
    let mut sums = [0.0f64; 8];
    let (chunks, rest) = vector.as_chunks::<8>();
    for chunk in chunks {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    for (sum, &value) in sums.iter_mut().zip(rest) {
        *sum += f64::from(value) * f64::from(value);
    }
    sums.iter().sum::<f64>().sqrt()
}

/// Lengths whose products neither overflow float32 nor vanish in it.
const SCORABLE: std::ops::RangeInclusive<f64> = 1e-12..=1e18;

/// Checks that inner products with this vector say something: it has a direction, all its values are
/// finite, and no score can overflow.
pub(crate) fn check_scorable(vector: &[f32]) -> Result<(), String> {
    let length = length(vector);
    if SCORABLE.contains(&length) {
        return Ok(());
    }
    let (least, most) = (SCORABLE.start(), SCORABLE.end());
    Err(format!(
        "a vector of length {length}, expected {least:e} to {most:e}"
    ))
}

/// `task(0)` to `task(count - 1)` in their order, computed on all threads of the current rayon pool
/// where that feature is on.
pub(crate) fn map_parallel<T: Send>(count: usize, task: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    #[cfg(feature = "rayon")]
    {
        use rayon::prelude::*;
        (0..count).into_par_iter().with_max_len(1).map(task).collect()
    }
    #[cfg(not(feature = "rayon"))]
    (0..count).map(task).collect()
}

/// Threads that [`map_parallel`] can use.
pub(crate) fn threads() -> usize {
    #[cfg(feature = "rayon")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    1
}

/// Appends the little-endian bytes of float32 values.
pub(crate) fn push_le_bytes(out: &mut Vec<u8>, values: &[f32]) {
    let start = out.len();
    out.resize(start + values.len() * 4, 0);
    let (words, _) = out[start..].as_chunks_mut::<4>();
    for (word, value) in words.iter_mut().zip(values) {
        *word = value.to_le_bytes();
    }
}

/// The float32 values of little-endian bytes; a rest of less than four bytes is left out.
pub(crate) fn from_le_bytes(bytes: &[u8]) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|&word| f32::from_le_bytes(word)).collect()
}
