//! How far work has come, for whoever draws it.

/// Receives reports of how far work has come. By default each function does nothing, and `()` ignores all
/// reports.
///
/// ```
/// use std::cell::Cell;
/// use ernie_vil::native::Progress;
///
/// #[derive(Default)]
/// struct Count(Cell<u64>);
/// impl Progress for Count {
///     fn add(&self, more: u64) {
///         self.0.set(self.0.get() + more);
///     }
/// }
///
/// let count = Count::default();
/// count.set_total(Some(10));
/// count.add(3);
/// assert_eq!(count.0.get(), 3);
/// ```
pub trait Progress {
    /// How many there will be in all, where it is known: bytes of a download.
    fn set_total(&self, total: Option<u64>) {
        let _ = total;
    }

    /// How many are done already, by an earlier run. Counting starts there.
    fn start_at(&self, done: u64) {
        let _ = done;
    }

    /// How many more are done.
    fn add(&self, more: u64) {
        let _ = more;
    }

    /// A word on the present state, such as why work waits; an empty one where it goes on.
    fn note(&self, note: &str) {
        let _ = note;
    }
}

impl Progress for () {}
