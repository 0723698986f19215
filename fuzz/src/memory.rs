//! Memory that is counted as it is allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

#[global_allocator]
static COUNTED: Counted = Counted;

/// Bytes that are allocated and not yet freed.
static LIVE: AtomicUsize = AtomicUsize::new(0);
/// What [`LIVE`] may not go beyond.
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Held while a limit is set: there is one count for all threads.
static LIMITED: Mutex<()> = Mutex::new(());

/// Runs `task`, and aborts the process where it has more than `limit` bytes allocated at a time.
///
/// An abort, and no panic: that is not to come out of an allocator. A fuzzer keeps the input of either.
pub fn at_most<T>(limit: usize, task: impl FnOnce() -> T) -> T {
    let guard = LIMITED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    LIMIT.store(LIVE.load(SeqCst).saturating_add(limit), SeqCst);
    let result = task();
    LIMIT.store(usize::MAX, SeqCst);
    drop(guard);
    result
}

struct Counted;

impl Counted {
    fn add(&self, bytes: usize) {
        let live = LIVE.fetch_add(bytes, SeqCst).saturating_add(bytes);
        let limit = LIMIT.load(SeqCst);
        if live > limit {
            // What is to be said may allocate. Not by `eprintln!`, which a test's harness would keep.
            LIMIT.store(usize::MAX, SeqCst);
            let beyond = live - limit;
            let message = format!("an allocation of {bytes} bytes goes {beyond} bytes beyond the limit\n");
            let _ = std::io::stderr().write_all(message.as_bytes());
            std::process::abort();
        }
    }

    fn remove(&self, bytes: usize) {
        LIVE.fetch_sub(bytes, SeqCst);
    }
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new block may be there at the same time.
        self.add(size);
        let moved = unsafe { System.realloc(pointer, layout, size) };
        self.remove(if moved.is_null() { size } else { layout.size() });
        moved
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) };
        self.remove(layout.size());
    }
}
