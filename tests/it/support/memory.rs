//! The memory that a task takes. Each thread counts its own, so that tests on other threads do not disturb
//! it; what is measured here starts no thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// The bytes that this thread holds. Fewer than 0, where it frees what other threads allocated.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The system's allocator, which also counts what each thread holds.
struct Counting;

// SAFETY: every call is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks may exist while the contents are copied.
        add(size);
        subtract(layout.size());
        // SAFETY: the caller's duties are the same.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        subtract(layout.size());
        // SAFETY: the caller's duties are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn add(bytes: usize) {
    let held = HELD.get().wrapping_add(bytes as isize);
    HELD.set(held);
    MOST.set(MOST.get().max(held));
}

fn subtract(bytes: usize) {
    HELD.set(HELD.get().wrapping_sub(bytes as isize));
}

/// Runs `task`, and returns its result and the most bytes that it held at once.
pub fn measured<T>(task: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    MOST.set(before);
    let result = task();
    (result, (MOST.get() - before) as usize)
}
