//! Memory that is counted as it is allocated, and the processor's time that a task takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

#[global_allocator]
static COUNTED: Counted = Counted;

/// Bytes that are allocated and not yet freed.
static LIVE: AtomicUsize = AtomicUsize::new(0);
/// What [`LIVE`] may not go beyond.
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Held while a limit is set: there is one count for all threads.
static LIMITED: Mutex<()> = Mutex::new(());
/// What to say of the input before the process is aborted.
static ABORTING: Mutex<Option<fn()>> = Mutex::new(None);

/// Builds that check more take so many times as long: those of a fuzzer, which count every branch, and those
/// that are not optimised.
#[allow(unexpected_cfgs, reason = "cargo-fuzz sets it")]
const SLOWER: u32 = match (cfg!(fuzzing), cfg!(debug_assertions)) {
    (true, true) => 100,
    (true, false) => 10,
    (false, true) => 50,
    (false, false) => 1,
};

/// Registers what is called before a bound that was broken aborts the process.
#[allow(dead_code, reason = "a fuzzer keeps the input itself")]
pub fn on_abort(tell: fn()) {
    *ABORTING.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(tell);
}

/// What a task may take.
#[derive(Clone, Copy)]
pub struct Bounds {
    /// Bytes allocated at a time.
    pub memory: usize,
    /// Time of the processor: that of this thread, so that a busy machine changes nothing.
    pub time: Duration,
}

impl Bounds {
    /// So much memory, and the time for an input of `bytes` bytes: 2 us for each, and 100 ms.
    pub fn new(bytes: usize, memory: usize) -> Self {
        Self {
            memory,
            time: Duration::from_millis(100)
                + Duration::from_micros(2) * u32::try_from(bytes).unwrap_or(u32::MAX),
        }
    }

    /// So much more time.
    pub fn and(mut self, time: Duration) -> Self {
        self.time += time;
        self
    }
}

/// Runs `task`, and aborts the process where it takes more memory than it may at any time, or where it takes
/// three times as long as it may and has not ended. Panics where it took too long.
///
/// An abort, and no panic: that is not to come out of an allocator, nor into a thread that is computing. A
/// fuzzer keeps the input of either.
pub fn within<T>(bounds: Bounds, task: impl FnOnce() -> T) -> T {
    let guard = LIMITED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let limits = Limits(guard);
    let time = bounds.time * SLOWER;
    LIMIT.store(LIVE.load(SeqCst).saturating_add(bounds.memory), SeqCst);
    let begun = clock::now();
    watch::begin(begun + 3 * time);
    let result = task();
    let taken = clock::now() - begun;
    drop(limits);
    assert!(
        taken <= time,
        "{taken:?} of the processor's time, more than {time:?}"
    );
    result
}

/// Takes the limits off again, also where the task panics.
struct Limits<'a>(#[allow(dead_code, reason = "held")] std::sync::MutexGuard<'a, ()>);

impl Drop for Limits<'_> {
    fn drop(&mut self) {
        watch::end();
        LIMIT.store(usize::MAX, SeqCst);
    }
}

fn abort(message: &str) -> ! {
    // What is to be said may allocate. Not by `eprintln!`, which a test's harness would keep.
    LIMIT.store(usize::MAX, SeqCst);
    let _ = std::io::stderr().write_all(message.as_bytes());
    // Not where a thread has it that waits for this one.
    if let Ok(Some(tell)) = ABORTING.try_lock().map(|tell| *tell) {
        tell();
    }
    std::process::abort();
}

#[cfg(unix)]
mod clock {
    use std::time::Duration;

    pub fn now() -> Duration {
        read(libc::CLOCK_THREAD_CPUTIME_ID).unwrap_or_default()
    }

    /// A clock of this process; `None` where its thread has ended.
    pub fn read(clock: libc::clockid_t) -> Option<Duration> {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the time is written to where it may be.
        let result = unsafe { libc::clock_gettime(clock, &mut time) };
        (result == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
}

/// Where the time of one thread cannot be asked for: that of the wall.
#[cfg(not(unix))]
mod clock {
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    pub fn now() -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }
}

/// A thread that looks at another one's clock from time to time: what never ends is never measured at its
/// end.
#[cfg(target_os = "linux")]
mod watch {
    use super::*;

    /// Whether a task runs; its thread's clock; when it is stopped, in nanoseconds of that.
    static RUNS: AtomicBool = AtomicBool::new(false);
    static CLOCK: AtomicU64 = AtomicU64::new(0);
    static DEADLINE: AtomicU64 = AtomicU64::new(0);

    pub fn begin(deadline: Duration) {
        static STARTED: AtomicBool = AtomicBool::new(false);
        let mut clock: libc::clockid_t = 0;
        // SAFETY: this thread runs, and the number is written to where it may be.
        if unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) } != 0 {
            return;
        }
        CLOCK.store(clock as u32 as u64, SeqCst);
        DEADLINE.store(deadline.as_nanos() as u64, SeqCst);
        RUNS.store(true, SeqCst);
        if !STARTED.swap(true, SeqCst) {
            std::thread::spawn(look);
        }
    }

    pub fn end() {
        RUNS.store(false, SeqCst);
    }

    fn look() {
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let (clock, deadline) = (
                CLOCK.load(SeqCst) as u32 as libc::clockid_t,
                DEADLINE.load(SeqCst),
            );
            let late = || clock::read(clock).is_some_and(|now| now.as_nanos() as u64 > deadline);
            // Twice, so that no task is stopped for what the one before took.
            if RUNS.load(SeqCst) && late() && RUNS.load(SeqCst) && DEADLINE.load(SeqCst) == deadline {
                abort("a task takes more than three times the time that it may, and does not end\n");
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod watch {
    pub fn begin(_: std::time::Duration) {}
    pub fn end() {}
}

struct Counted;

impl Counted {
    fn add(&self, bytes: usize) {
        let live = LIVE.fetch_add(bytes, SeqCst).saturating_add(bytes);
        let limit = LIMIT.load(SeqCst);
        if live > limit {
            LIMIT.store(usize::MAX, SeqCst);
            let beyond = live - limit;
            abort(&format!(
                "an allocation of {bytes} bytes goes {beyond} bytes beyond the limit\n"
            ));
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
