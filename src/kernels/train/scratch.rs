//! The memory that a thread computes in.

use std::cell::RefCell;

use crate::kernels::Buffer;

thread_local! {
    pub(super) static SCRATCH: RefCell<Buffer> = RefCell::default();
}

/// Hands out the parts of a buffer.
pub(super) struct Parts(pub(super) *mut f32);

impl Parts {
    #[inline(always)]
    pub(super) unsafe fn take(&mut self, len: usize) -> *mut f32 {
        let part = self.0;
        // A cache line between the parts keeps those of round sizes out of the same sets.
        self.0 = unsafe { part.add(len.next_multiple_of(16) + 16) };
        part
    }
}
