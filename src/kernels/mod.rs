//! The arithmetic of the towers and of scoring on the host's own memory.
//!
//! Burn's CPU backend runs the matrix products well and the steps between them one at a time, each into
//! a fresh buffer. Here a whole step is one pass: a product adds the bias, applies the activation and
//! adds to the residual as it stores; attention never leaves the cache. Everything is row-major `f32`.
//!
//! Each kernel is written once over the `Simd` trait and picks the instruction set when it runs.
//! Results do not depend on the number of threads, nor on which rows stand beside a row: the order of
//! summation for one output value is fixed by the depth alone.

mod attention;
mod buffer;
pub(crate) mod convolution;
pub(crate) mod dropout;
pub(crate) mod int8;
mod math;
mod matmul;
mod norm;
mod patches;
mod simd;
#[cfg(feature = "train")]
pub(crate) mod train;

pub use attention::{AttentionShape, Sequence, attention};
pub use buffer::Buffer;
pub use matmul::{Activation, Linear, PackedMatrix, Rows, RowsMut, linear, matmul};
pub(crate) use matmul::{GROUP, row_block};
pub use norm::LayerNorm;
pub(crate) use patches::patches;
pub use simd::InstructionSet;

/// Runs `task(0)` to `task(count - 1)`, on all threads of the current pool where `parallel` says so and
/// the `rayon` feature is on.
pub(crate) fn for_each(count: usize, parallel: bool, task: impl Fn(usize) + Sync + Send) {
    #[cfg(feature = "rayon")]
    if parallel && count > 1 {
        use rayon::prelude::*;
        (0..count).into_par_iter().with_max_len(1).for_each(task);
        return;
    }
    let _ = parallel;
    (0..count).for_each(task);
}

/// Runs `task` on each whole chunk of `length` values, on all threads of the current pool.
pub(crate) fn for_each_chunk(
    data: &mut [f32],
    length: usize,
    task: impl Fn(usize, &mut [f32]) + Sync + Send,
) {
    if data.is_empty() {
        return;
    }
    #[cfg(feature = "rayon")]
    {
        use rayon::prelude::*;
        let chunks = data.par_chunks_exact_mut(length).enumerate();
        chunks.with_max_len(1).for_each(|(i, chunk)| task(i, chunk));
    }
    #[cfg(not(feature = "rayon"))]
    for (i, chunk) in data.chunks_exact_mut(length).enumerate() {
        task(i, chunk);
    }
}

/// Threads that [`for_each`] can use.
pub(crate) fn threads() -> usize {
    #[cfg(feature = "rayon")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    1
}

/// A pointer that several threads may write through, each to a part of its own.
struct Shared<T = f32>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: whoever creates one sees to it that no two threads touch the same values.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// A method, so that closures capture the whole and not the bare pointer inside.
    fn get(self) -> *mut T {
        self.0
    }
}
