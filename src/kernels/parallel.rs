//! Work on all threads of the current pool.

/// Runs `task(0)` to `task(count - 1)`, on all threads of the current pool where `parallel` says so and
/// the `rayon` feature is on.
pub(super) fn for_each(count: usize, parallel: bool, task: impl Fn(usize) + Sync + Send) {
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
pub(super) struct Shared<T = f32>(pub(super) *mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: the code that creates one makes sure that no two threads touch the same values.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Returns the pointer. This is a method, so that closures capture the whole and not the bare pointer
    /// inside.
    pub(super) fn get(self) -> *mut T {
        self.0
    }
}
