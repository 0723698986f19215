//! Memory that is kept to be used again.
//!
//! Fresh memory costs a page fault every 4 KiB, which at these sizes takes as long as the arithmetic of a
//! normalisation. A thread keeps small pieces for itself. Large pieces are shared, so that a thread which is
//! done leaves nothing large behind. A thread prefers those that it used itself, and of equal ones the one
//! that was used last, which its cache may hold.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};

use crate::kernels::threads;

/// Four floats: Burn takes no memory that is aligned to more.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(super) struct Quad([f32; 4]);

// SAFETY: four floats without padding, for which all zeros and all other bits are values.
unsafe impl bytemuck::Zeroable for Quad {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Quad {}

/// From so many bytes on a piece is large.
const LARGE: usize = 1 << 20;

/// Bytes that all threads together keep at most of large pieces, for each thread of the pool.
const KEPT: usize = 96 << 20;

/// Bytes that a thread keeps at most of small pieces.
const KEPT_SMALL: usize = 16 << 20;

/// A piece may be used for something smaller, by these factors at most. A large one may be used for much
/// less: it is there anyway, and the images of a network shrink on their way through it.
const MOST_TIMES_SMALL: usize = 2;
const MOST_TIMES_LARGE: usize = 8;

thread_local! {
    static SMALL: RefCell<Vec<Vec<Quad>>> = const { RefCell::new(Vec::new()) };
}

/// Large pieces, each with the thread that used it last, in the order in which they came back.
static SHARED: Mutex<Vec<(ThreadId, Vec<Quad>)>> = Mutex::new(Vec::new());

fn bytes(quads: usize) -> usize {
    quads * size_of::<Quad>()
}

/// Which of the pieces, each with whether another thread used it, is the best one for `quads` values.
fn best<'a>(
    pieces: impl DoubleEndedIterator<Item = (bool, &'a Vec<Quad>)> + ExactSizeIterator,
    quads: usize,
    most_times: usize,
) -> Option<usize> {
    let fits = |size: usize| (quads..=most_times * quads).contains(&size);
    let pieces = pieces.map(|(is_foreign, memory)| (is_foreign, memory.capacity()));
    // Of equal ones `min_by_key` takes the first, which is the last that came back.
    let newest = pieces.enumerate().rev();
    let best = newest
        .filter(|(_, (_, size))| fits(*size))
        .min_by_key(|(_, key)| *key);
    best.map(|(i, _)| i)
}

/// Memory of at least `quads` values of any kind.
pub(super) fn take(quads: usize) -> Vec<Quad> {
    let found = if bytes(quads) < LARGE {
        SMALL.with_borrow_mut(|free| {
            let best = best(free.iter().map(|memory| (false, memory)), quads, MOST_TIMES_SMALL);
            best.map(|i| free.remove(i))
        })
    } else {
        let own = thread::current().id();
        let mut free = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let some = free.iter().map(|(thread, memory)| (*thread != own, memory));
        let best = best(some, quads, MOST_TIMES_LARGE);
        best.map(|i| free.remove(i).1)
    };
    let mut memory = found.unwrap_or_else(|| Vec::with_capacity(quads));
    if memory.len() < quads {
        memory.resize(quads, Quad([0.0; 4]));
    }
    memory
}

/// Keeps `memory` for a later [`take`].
pub(super) fn give_back(memory: Vec<Quad>) {
    let size = bytes(memory.capacity());
    if size < LARGE {
        return SMALL.with_borrow_mut(|free| {
            let kept: usize = free.iter().map(Vec::capacity).sum();
            if bytes(kept) + size <= KEPT_SMALL {
                free.push(memory);
            }
        });
    }
    let mut free = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let kept: usize = free.iter().map(|(_, memory)| memory.capacity()).sum();
    if bytes(kept) + size <= KEPT * threads() {
        free.push((thread::current().id(), memory));
    }
}
