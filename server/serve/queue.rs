//! Dynamic batching: items come in one by one and are computed together.
//!
//! Items wait in lanes that have nothing to do with each other, such as captions and images, and within a lane in
//! groups; only items of one group are computed together. A batch begins when the computer is free and
//!
//! - a group has as many items as a batch may have, or
//! - nothing more is on its way to the lane, so that waiting would bring nothing, or
//! - the oldest item has waited for the longest time that it may.
//!
//! Every item first takes a place. Where a lane has no more of them it is refused at once, so memory and waiting
//! times stay within bounds. An item that nobody waits for any longer is dropped before it is computed. The queue
//! knows nothing of what an item is.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// What a lane is.
#[derive(Debug, Clone, Copy)]
pub struct LaneOptions {
    /// Items that have a place at a time.
    pub capacity: usize,
    /// Items that are computed together at most.
    pub batch: usize,
}

/// Is told what happens, for the metrics.
pub trait Observer: Send + Sync {
    /// An item waited so long between the queue and the computer.
    fn waited(&self, lane: usize, time: Duration);
    /// So many items were computed in this time.
    fn computed(&self, lane: usize, items: usize, time: Duration);
    /// Nobody waited for these items any more.
    fn abandoned(&self, lane: usize, items: usize);
}

/// What an item becomes: a vector, or why there is none.
pub type Outcome = Result<Vec<f32>, String>;

/// A result that will be there. Dropping it gives the work up.
pub type Ticket = oneshot::Receiver<Outcome>;

/// A lane has no place for so many items.
#[derive(Debug, PartialEq, Eq)]
pub struct Full {
    /// When to try again, as far as one can tell.
    pub seconds: u64,
}

/// Lanes of items of type `T`.
pub struct Queue<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

struct Shared<T> {
    max_wait: Duration,
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    lanes: Vec<Lane<T>>,
    /// Threads that compute.
    workers: usize,
    closed: bool,
}

struct Lane<T> {
    options: LaneOptions,
    /// Places that are taken, by items on their way and by those that wait.
    taken: usize,
    waiting: usize,
    groups: BTreeMap<usize, VecDeque<Job<T>>>,
    /// Seconds that an item takes to compute, of late.
    seconds: f64,
}

struct Job<T> {
    item: T,
    since: Instant,
    reply: oneshot::Sender<Outcome>,
}

impl<T> Lane<T> {
    /// The group from which a batch can be taken now and when its oldest item came, or else when one can be.
    fn due(
        &self,
        now: Instant,
        max_wait: Duration,
        closed: bool,
    ) -> Result<(Instant, usize), Option<Instant>> {
        let nothing_comes = self.taken == self.waiting || closed;
        let fronts = || {
            self.groups
                .iter()
                .filter_map(|(&group, jobs)| jobs.front().map(|job| (job.since, group, jobs.len())))
        };
        let due = fronts()
            .filter(|&(since, _, count)| {
                nothing_comes || count >= self.options.batch || now >= since + max_wait
            })
            .map(|(since, group, _)| (since, group))
            .min();
        due.ok_or_else(|| fronts().map(|(since, ..)| since + max_wait).min())
    }
}

impl<T: Send> Queue<T> {
    pub fn new(lanes: &[LaneOptions], max_wait: Duration) -> Self {
        let lane = |&options| Lane {
            options,
            taken: 0,
            waiting: 0,
            groups: BTreeMap::new(),
            seconds: 0.0,
        };
        Self {
            shared: Arc::new(Shared {
                max_wait,
                state: Mutex::new(State {
                    lanes: lanes.iter().map(lane).collect(),
                    workers: 0,
                    closed: false,
                }),
                changed: Condvar::new(),
            }),
        }
    }

    /// Takes a place in a lane for each of `count` items, or none.
    pub fn reserve(&self, lane: usize, count: usize) -> Result<Vec<Place<T>>, Full> {
        let mut state = self.shared.lock();
        let State {
            lanes,
            workers,
            closed,
        } = &mut *state;
        let there = &mut lanes[lane];
        if there.taken + count > there.options.capacity || *closed {
            let seconds = (there.seconds * there.taken as f64 / (*workers).max(1) as f64).ceil();
            return Err(Full {
                seconds: (seconds as u64).clamp(1, 60),
            });
        }
        there.taken += count;
        let place = || Place {
            shared: Some(self.shared.clone()),
            lane,
        };
        Ok(std::iter::repeat_with(place).take(count).collect())
    }

    /// Items that wait in a lane.
    pub fn waiting(&self, lane: usize) -> usize {
        self.shared.lock().lanes[lane].waiting
    }

    /// Computes batches on the calling thread, until the queue is closed and empty. Several threads may do so.
    pub fn work(
        &self,
        observer: &dyn Observer,
        mut compute: impl FnMut(usize, Vec<T>) -> Result<Vec<Vec<f32>>, String>,
    ) {
        self.shared.lock().workers += 1;
        while let Some((lane, jobs)) = self.next_batch(observer) {
            let start = Instant::now();
            let (mut items, mut replies) = (Vec::new(), Vec::new());
            for job in jobs {
                observer.waited(lane, start - job.since);
                items.push(job.item);
                replies.push(job.reply);
            }
            let count = items.len();
            // A fault in one batch is no reason to answer nobody any more.
            let computed = catch_unwind(AssertUnwindSafe(|| compute(lane, items)));
            let computed = computed.unwrap_or_else(|_| Err("the model failed".into()));
            let time = start.elapsed();
            observer.computed(lane, count, time);
            {
                let seconds = &mut self.shared.lock().lanes[lane].seconds;
                *seconds += 0.2 * (time.as_secs_f64() / count as f64 - *seconds);
            }
            match computed {
                Ok(vectors) if vectors.len() == count => {
                    for (reply, vector) in replies.into_iter().zip(vectors) {
                        // Where nobody waits any more, nobody is told.
                        let _ = reply.send(Ok(vector));
                    }
                }
                other => {
                    let error = other
                        .err()
                        .unwrap_or_else(|| "another number of vectors than items".into());
                    for reply in replies {
                        let _ = reply.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// Refuses new items; [`work`](Self::work) returns when those that are there have been computed.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }

    fn next_batch(&self, observer: &dyn Observer) -> Option<(usize, Vec<Job<T>>)> {
        let mut state = self.shared.lock();
        loop {
            let now = Instant::now();
            let mut due = None;
            let mut wake: Option<Instant> = None;
            for (i, lane) in state.lanes.iter().enumerate() {
                match lane.due(now, self.shared.max_wait, state.closed) {
                    Ok((since, group)) => due = due.min(Some((since, i, group))).or(Some((since, i, group))),
                    Err(at) => wake = wake.into_iter().chain(at).min(),
                }
            }
            if let Some((_, lane, group)) = due {
                let jobs = take_batch(&mut state.lanes[lane], group, |count| {
                    observer.abandoned(lane, count)
                });
                if !jobs.is_empty() {
                    // More may be due than this, for another worker that sleeps.
                    self.shared.changed.notify_one();
                    return Some((lane, jobs));
                }
                continue;
            }
            if state.closed && state.lanes.iter().all(|lane| lane.taken == 0) {
                // The others that sleep have nothing to wait for either.
                self.shared.changed.notify_all();
                return None;
            }
            state = match wake {
                Some(at) => {
                    let changed = self
                        .shared
                        .changed
                        .wait_timeout(state, at.saturating_duration_since(now));
                    changed.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let changed = self.shared.changed.wait(state);
                    changed.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }
}

/// Takes the oldest items of a group that somebody waits for, at most a batch of them.
fn take_batch<T>(lane: &mut Lane<T>, group: usize, abandoned: impl FnOnce(usize)) -> Vec<Job<T>> {
    let (mut jobs, mut gone) = (Vec::new(), 0);
    if let Some(waiting) = lane.groups.get_mut(&group) {
        while jobs.len() < lane.options.batch
            && let Some(job) = waiting.pop_front()
        {
            match job.reply.is_closed() {
                true => gone += 1,
                false => jobs.push(job),
            }
        }
        if waiting.is_empty() {
            lane.groups.remove(&group);
        }
    }
    lane.waiting -= jobs.len() + gone;
    lane.taken -= jobs.len() + gone;
    if gone > 0 {
        abandoned(gone);
    }
    jobs
}

impl<T> Shared<T> {
    /// Nothing that is done under the lock can leave the state half changed.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An item's place in a lane, free again when it is dropped.
pub struct Place<T> {
    shared: Option<Arc<Shared<T>>>,
    lane: usize,
}

impl<T> Place<T> {
    /// Puts the item in.
    pub fn push(mut self, group: usize, item: T) -> Ticket {
        let (reply, ticket) = oneshot::channel();
        if let Some(shared) = self.shared.take() {
            let lane = &mut shared.lock().lanes[self.lane];
            lane.waiting += 1;
            lane.groups.entry(group).or_default().push_back(Job {
                item,
                since: Instant::now(),
                reply,
            });
            shared.changed.notify_one();
        }
        ticket
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.lock().lanes[self.lane].taken -= 1;
            // Perhaps others waited for this one.
            shared.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Observer for Nobody {
        fn waited(&self, _: usize, _: Duration) {}
        fn computed(&self, _: usize, _: usize, _: Duration) {}
        fn abandoned(&self, _: usize, _: usize) {}
    }

    const LANES: [LaneOptions; 2] = [
        LaneOptions {
            capacity: 6,
            batch: 4,
        },
        LaneOptions {
            capacity: 2,
            batch: 2,
        },
    ];

    /// Closes the queue and computes what is in it; returns the batches.
    fn drain(queue: &Queue<u32>) -> Vec<(usize, Vec<u32>)> {
        queue.close();
        let mut batches = Vec::new();
        queue.work(&Nobody, |lane, items| {
            let vectors = items.iter().map(|&item| vec![item as f32]).collect();
            batches.push((lane, items));
            Ok(vectors)
        });
        batches
    }

    fn push(queue: &Queue<u32>, lane: usize, group: usize, item: u32) -> Ticket {
        queue.reserve(lane, 1).unwrap().pop().unwrap().push(group, item)
    }

    #[test]
    fn batches_are_of_one_lane_and_group_the_oldest_first() {
        let queue = Queue::new(&LANES, Duration::from_secs(60));
        let mut tickets = Vec::new();
        for (lane, group, item) in [
            (0, 7, 1),
            (1, 0, 2),
            (0, 3, 3),
            (0, 7, 4),
            (0, 7, 5),
            (0, 7, 6),
            (0, 7, 8),
        ] {
            tickets.push((item, push(&queue, lane, group, item)));
        }
        assert_eq!(
            drain(&queue),
            [(0, vec![1, 4, 5, 6]), (1, vec![2]), (0, vec![3]), (0, vec![8])]
        );
        for (item, ticket) in tickets {
            assert_eq!(ticket.blocking_recv().unwrap(), Ok(vec![item as f32]));
        }
    }

    #[test]
    fn places_are_limited_and_come_back() {
        let queue = Queue::<u32>::new(&LANES, Duration::ZERO);
        let places = queue.reserve(1, 2).unwrap();
        assert_eq!(queue.reserve(1, 1).err(), Some(Full { seconds: 1 }));
        // The other lane has its own.
        assert_eq!(queue.reserve(0, 6).unwrap().len(), 6);
        drop(places);
        let ticket = push(&queue, 1, 0, 9);
        assert_eq!(queue.waiting(1), 1);
        assert!(queue.reserve(1, 2).is_err());
        drop(ticket);
        // Nobody waits for it, so it is not computed.
        assert!(drain(&queue).is_empty());
        assert!(queue.reserve(1, 1).is_err(), "closed");
    }

    #[test]
    fn waits_for_what_is_on_its_way_and_no_longer_than_it_may() {
        let queue = Queue::new(&LANES, Duration::from_millis(400));
        let worker = {
            let queue = queue.clone();
            std::thread::spawn(move || {
                let mut sizes = Vec::new();
                queue.work(&Nobody, |_, items: Vec<u32>| {
                    sizes.push(items.len());
                    Ok(items.iter().map(|_| Vec::new()).collect())
                });
                sizes
            })
        };
        // Alone: at once.
        let start = Instant::now();
        push(&queue, 0, 0, 1).blocking_recv().unwrap().unwrap();
        assert!(start.elapsed() < Duration::from_millis(300));
        // Two of one request, the second a little later: together.
        let mut places = queue.reserve(0, 2).unwrap();
        let first = places.pop().unwrap().push(0, 1);
        std::thread::sleep(Duration::from_millis(5));
        let second = places.pop().unwrap().push(0, 2);
        first.blocking_recv().unwrap().unwrap();
        second.blocking_recv().unwrap().unwrap();
        // The second never comes: the first goes alone.
        let start = Instant::now();
        let mut places = queue.reserve(0, 2).unwrap();
        places.pop().unwrap().push(0, 1).blocking_recv().unwrap().unwrap();
        assert!(start.elapsed() >= Duration::from_millis(390));
        drop(places);
        queue.close();
        assert_eq!(worker.join().unwrap(), [1, 2, 1]);
    }

    #[test]
    fn all_workers_end_when_the_last_place_is_given_back_after_closing() {
        let queue = Queue::<u32>::new(&LANES, Duration::from_secs(60));
        let places = queue.reserve(0, 1).unwrap();
        let work = || {
            let queue = queue.clone();
            std::thread::spawn(move || {
                queue.work(&Nobody, |_, items| Ok(items.iter().map(|_| Vec::new()).collect()))
            })
        };
        let workers = [work(), work(), work()];
        queue.close();
        // Until all of them sleep: something is still on its way.
        std::thread::sleep(Duration::from_millis(50));
        assert!(workers.iter().all(|worker| !worker.is_finished()));
        drop(places);
        for worker in workers {
            worker.join().unwrap();
        }
    }

    #[test]
    fn a_batch_that_fails_is_answered_and_the_next_is_computed() {
        let queue = Queue::new(&LANES, Duration::ZERO);
        let (first, second) = (push(&queue, 0, 0, 1), push(&queue, 0, 1, 2));
        queue.close();
        queue.work(&Nobody, |_, items| match items[0] {
            1 => panic!("a fault"),
            _ => Ok(vec![Vec::new()]),
        });
        assert_eq!(first.blocking_recv().unwrap(), Err("the model failed".into()));
        assert_eq!(second.blocking_recv().unwrap(), Ok(Vec::new()));
    }
}
