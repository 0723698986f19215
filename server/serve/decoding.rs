//! The threads that decode images, and nothing else.
//!
//! How long an image takes is known only when it is decoded, and a hostile one takes as long as the limits
//! let it. So images have threads of their own, and the requests share them: a free thread takes an image of
//! the request that has the fewest being decoded and has been given the least time so far. A request that
//! asks alone uses all threads but one, which is kept for one that comes later.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The decoding of an image.
pub type Task = Box<dyn FnOnce() + Send>;

/// The threads. They end when this is dropped and they have nothing more to do; nobody waits for them.
pub struct Decoders {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By the order in which they came.
    requests: BTreeMap<u64, Request>,
    next: u64,
    /// Threads that do nothing.
    idle: usize,
    closed: bool,
}

struct Request {
    waiting: VecDeque<Task>,
    running: usize,
    /// How long its images have been decoded for.
    spent: Duration,
}

impl Decoders {
    /// Threads for so many images at a time of one request, and one more.
    pub fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        for i in 0..threads + 1 {
            let shared = shared.clone();
            thread::Builder::new()
                .name(format!("decode {i}"))
                .spawn(move || shared.work())?;
        }
        Ok(Self { shared })
    }

    /// Hands over the images of a request.
    pub fn run(&self, tasks: Vec<Task>) {
        if tasks.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        let number = state.next;
        state.next += 1;
        let request = Request {
            waiting: tasks.into(),
            running: 0,
            spent: Duration::ZERO,
        };
        state.requests.insert(number, request);
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for Decoders {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

impl State {
    /// The request whose image a thread that is idle should take.
    fn choose(&self) -> Option<u64> {
        // The thread that asks is one of those that are idle.
        let is_last = self.idle <= 1;
        let may = |request: &Request| !request.waiting.is_empty() && (request.running == 0 || !is_last);
        let candidates = self.requests.iter().filter(|(_, request)| may(request));
        let first = candidates.min_by_key(|(number, request)| (request.running, request.spent, **number));
        first.map(|(&number, _)| number)
    }
}

impl Shared {
    /// Nothing that is done under the lock can leave the state half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        state.idle += 1;
        loop {
            let Some(number) = state.choose() else {
                if state.closed {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let task = state.requests.get_mut(&number).and_then(|request| {
                request.running += 1;
                request.waiting.pop_front()
            });
            state.idle -= 1;
            drop(state);
            let start = Instant::now();
            // The decoders catch their own faults; a thread that ended by one would be missing for good.
            if let Some(task) = task
                && catch_unwind(AssertUnwindSafe(task)).is_err()
            {
                tracing::error!("a fault while an image was decoded");
            }
            let time = start.elapsed();
            state = self.lock();
            state.idle += 1;
            if let Some(request) = state.requests.get_mut(&number) {
                request.running -= 1;
                request.spent += time;
                if request.running == 0 && request.waiting.is_empty() {
                    state.requests.remove(&number);
                }
            }
            // Another thread that was the last one that is idle may take an image now.
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// So many tasks that say that they have begun, and run until `go` says so.
    fn tasks(name: &'static str, count: usize, begun: &Sender<&'static str>) -> (Vec<Task>, Vec<Sender<()>>) {
        let task = |_| {
            let (go, wait): (Sender<()>, Receiver<()>) = channel();
            let begun = begun.clone();
            let task: Task = Box::new(move || {
                begun.send(name).unwrap();
                let _ = wait.recv();
            });
            (task, go)
        };
        (0..count).map(task).unzip()
    }

    fn next(begun: &Receiver<&'static str>) -> &'static str {
        begun.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    fn nothing_begins(begun: &Receiver<&'static str>) {
        assert!(begun.recv_timeout(Duration::from_millis(100)).is_err());
    }

    #[test]
    fn a_request_of_many_images_leaves_room_for_others() {
        let decoders = Decoders::new(2).unwrap();
        let (said, begun) = channel();
        let (many, mut go) = tasks("many", 24, &said);
        decoders.run(many);
        assert_eq!([next(&begun), next(&begun)], ["many"; 2]);
        // The third thread is kept,
        nothing_begins(&begun);
        // for whoever comes.
        let (one, one_go) = tasks("one", 1, &said);
        decoders.run(one);
        assert_eq!(next(&begun), "one");
        // Another one comes before the remaining ones of the first.
        let (other, other_go) = tasks("other", 2, &said);
        decoders.run(other);
        nothing_begins(&begun);
        drop(go.remove(0));
        assert_eq!(next(&begun), "other");
        // Both have one under way now, and the last thread is kept.
        drop(one_go);
        nothing_begins(&begun);
        drop(go.remove(0));
        assert_eq!(next(&begun), "many");
        drop((go, other_go));
        for _ in 0..22 {
            next(&begun);
        }
    }

    #[test]
    fn a_fault_ends_no_thread() {
        let decoders = Decoders::new(1).unwrap();
        let (said, begun) = channel();
        for _ in 0..5 {
            decoders.run(vec![
                Box::new(|| panic!("a fault")),
                Box::new(|| panic!("a fault")),
            ]);
        }
        let (tasks, go) = tasks("after", 2, &said);
        drop(go);
        decoders.run(tasks);
        assert_eq!([next(&begun), next(&begun)], ["after"; 2]);
    }
}
