//! How long the stages took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Seconds that the stages were busy, added up over all threads.
#[derive(Debug, Default)]
pub struct Times {
    pub(super) read: AtomicU64,
    pub(super) decode: AtomicU64,
    pub(super) tokenize: AtomicU64,
    pub(super) image_tower: AtomicU64,
    pub(super) text_tower: AtomicU64,
    /// Until the first worker was ready.
    warm_up: Mutex<Option<Duration>>,
    /// Threads that compute.
    workers: AtomicU64,
}

impl Times {
    pub(super) fn measure<T>(counter: &AtomicU64, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        counter.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    /// So many threads compute.
    pub(super) fn set_workers(&self, workers: usize) {
        self.workers.store(workers as u64, Ordering::Relaxed);
    }

    /// A worker was ready after this time.
    pub(super) fn ready(&self, time: Duration) {
        let mut least = self.warm_up.lock().unwrap_or_else(PoisonError::into_inner);
        *least = Some(least.map_or(time, |least| least.min(time)));
    }

    fn warm_up(&self) -> Option<Duration> {
        *self.warm_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each stage's name and busy time; all but the first may be several threads'.
    fn stages(&self) -> [(&'static str, Duration); 5] {
        [
            ("read", duration(&self.read)),
            ("decode", duration(&self.decode)),
            ("tokenize", duration(&self.tokenize)),
            ("image tower", duration(&self.image_tower)),
            ("text tower", duration(&self.text_tower)),
        ]
    }
}

fn duration(nanoseconds: &AtomicU64) -> Duration {
    Duration::from_nanos(nanoseconds.load(Ordering::Relaxed))
}

/// What a run took, for people: the rate, and each stage's share.
pub fn summary(rows: u64, unit: &str, elapsed: Duration, times: &Times) -> String {
    let warm_up = times
        .warm_up()
        .filter(|time| time.as_millis() >= 10)
        .unwrap_or_default();
    let seconds = elapsed.saturating_sub(warm_up).as_secs_f64();
    let stages = times.stages();
    let busiest = stages[3..]
        .iter()
        .max_by_key(|(_, time)| *time)
        .map_or("", |(name, _)| name);
    let towers: Duration = stages[3..].iter().map(|(_, time)| *time).sum();
    let workers = times.workers.load(Ordering::Relaxed).max(1);
    // The model waits for nothing but its input: where it was idle, reading and decoding held it up.
    let bound = match towers.as_secs_f64() / (seconds * workers as f64).max(1e-9) {
        busy if busy > 0.7 => busiest,
        _ => "reading and decoding",
    };
    let list: Vec<String> = stages
        .iter()
        .map(|(name, time)| format!("{name} {:.2} s", time.as_secs_f64()))
        .collect();
    let after = match warm_up {
        Duration::ZERO => String::new(),
        time => format!(", after {:.2} s of warming up", time.as_secs_f64()),
    };
    format!(
        "{rows} {unit} in {seconds:.2} s, {:.1} a second, bound by {bound} (busy: {}){after}",
        rows as f64 / seconds.max(1e-9),
        list.join(", ")
    )
}
