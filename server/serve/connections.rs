//! Which connections are open, and which of them has to go when there are too many.
//!
//! A connection is cheap until it has sent a whole head, and what asks for the server's health has to be
//! answered however many of them there are. So every connection is taken at once. One that waits for a head,
//! for the first time or again, is closed when there is no room for a new one, the oldest first. A request
//! needs a place to be worked on, of which there are as many as `--max-connections` says; probes need none.
//! Where all places are taken, requests wait for one on their open connection, and those that have waited
//! longest are refused when there is no room for a new connection.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

/// How long a request may wait for a place before it has to make room.
const PATIENCE: Duration = Duration::from_millis(250);
/// When to look again whether there is room.
const AGAIN: Duration = Duration::from_millis(20);
/// Connections beside those that are worked on.
const LEAST_SPARE: usize = 256;

pub struct Connections {
    /// For requests that are worked on.
    places: Arc<Semaphore>,
    /// For open connections.
    room: Arc<Semaphore>,
    lists: Mutex<Lists>,
    /// How long a request may wait for a place.
    longest: Duration,
}

#[derive(Default)]
struct Lists {
    next: u64,
    /// Without a whole head, by when they began to wait for it.
    idle: BTreeMap<u64, Arc<Notify>>,
    /// With a request that waits for a place.
    waiting: BTreeMap<u64, (Instant, Arc<Notify>)>,
}

/// A connection.
pub struct Connection {
    all: Arc<Connections>,
    /// Tells its task to end.
    close: Arc<Notify>,
    state: Mutex<State>,
    /// Whether the answer is whole in HTTP's buffers.
    answered: AtomicBool,
    _room: OwnedSemaphorePermit,
}

enum State {
    /// Waits for a head, under this number.
    Idle(u64),
    /// Works on a request, or writes its answer; a probe has no place.
    Busy { _place: Option<OwnedSemaphorePermit> },
}

/// No place for a request.
#[derive(Debug)]
pub struct NoPlace;

/// How many connections there may be beside those that are worked on.
pub fn spare(most: usize) -> usize {
    (most / 8).max(LEAST_SPARE)
}

impl Connections {
    /// Requests on `places` connections at a time, and `spare` connections more; a request waits `longest`
    /// for its place.
    pub fn new(places: usize, spare: usize, longest: Duration) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(places)),
            room: Arc::new(Semaphore::new(places + spare)),
            lists: Mutex::default(),
            longest,
        })
    }

    /// Makes room for a connection, at the cost of another one where there has to be.
    pub async fn open(self: &Arc<Self>) -> Connection {
        let room = loop {
            if let Ok(room) = self.room.clone().try_acquire_owned() {
                break room;
            }
            self.make_room();
            // What was told to end does so soon. The semaphore is never closed.
            if let Ok(Ok(room)) = timeout(AGAIN, self.room.clone().acquire_owned()).await {
                break room;
            }
        };
        let close = Arc::new(Notify::new());
        let number = self.lock().wait(close.clone());
        Connection {
            all: self.clone(),
            close,
            state: Mutex::new(State::Idle(number)),
            answered: AtomicBool::new(false),
            _room: room,
        }
    }

    /// Closes the oldest connection without a whole head, or else refuses the oldest request without a place.
    fn make_room(&self) {
        let mut lists = self.lock();
        if let Some((_, close)) = lists.idle.pop_first() {
            close.notify_one();
        } else if let Some(entry) = lists.waiting.first_entry()
            && entry.get().0.elapsed() >= PATIENCE
        {
            entry.remove().1.notify_one();
        }
    }

    /// Closes all that wait for a head.
    pub fn close_idle(&self) {
        for close in std::mem::take(&mut self.lock().idle).into_values() {
            close.notify_one();
        }
    }

    /// Nothing that is done under the lock can leave the lists half changed.
    fn lock(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lists {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn wait(&mut self, close: Arc<Notify>) -> u64 {
        let number = self.number();
        self.idle.insert(number, close);
        number
    }
}

impl Connection {
    /// A head is there: from now on the connection is not closed for others. Waits until there is a place for
    /// its request.
    pub async fn begin(&self, is_probe: bool) -> Result<(), NoPlace> {
        {
            let mut state = self.lock();
            if let State::Idle(number) = *state {
                self.all.lock().idle.remove(&number);
            }
            *state = State::Busy { _place: None };
        }
        self.answered.store(false, Ordering::Relaxed);
        if is_probe {
            return Ok(());
        }
        let places = &self.all.places;
        let place = match places.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                let refused = Arc::new(Notify::new());
                let waiting = Waiting::new(&self.all, refused.clone());
                let place = tokio::select! {
                    place = places.clone().acquire_owned() => place.ok(),
                    () = refused.notified() => None,
                    () = sleep(self.all.longest) => None,
                };
                drop(waiting);
                place.ok_or(NoPlace)?
            }
        };
        *self.lock() = State::Busy { _place: Some(place) };
        Ok(())
    }

    /// The answer's last byte was handed to HTTP.
    pub fn answered(&self) {
        self.answered.store(true, Ordering::Release);
    }

    /// All that was handed over so far was written. If that was the whole answer, the connection waits for a
    /// head again.
    pub fn flushed(&self) {
        if self.answered.swap(false, Ordering::Acquire) {
            let mut state = self.lock();
            *state = State::Idle(self.all.lock().wait(self.close.clone()));
        }
    }

    /// Ends when the connection has to.
    pub async fn closed(&self) {
        self.close.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let State::Idle(number) = *self.lock() {
            self.all.lock().idle.remove(&number);
        }
    }
}

/// A request in the list of those that wait for a place.
struct Waiting<'a> {
    all: &'a Connections,
    number: u64,
}

impl<'a> Waiting<'a> {
    fn new(all: &'a Connections, refused: Arc<Notify>) -> Self {
        let mut lists = all.lock();
        let number = lists.number();
        lists.waiting.insert(number, (Instant::now(), refused));
        Self { all, number }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.lock().waiting.remove(&self.number);
    }
}
