//! The memory that requests and their answers may hold, all together.
//!
//! A body counts from its first byte until nothing works on it any more, and an answer from the moment it is
//! put together until its last byte was handed to the system. Both draw on one budget. Long answers may take
//! half of it, so that clients that read slowly cannot keep others from sending requests, and from getting
//! short answers.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Bytes of a unit of the budget.
const UNIT: usize = 1 << 10;
/// An answer that takes no more than this is short.
const SHORT: usize = 64 << 10;

/// The memory that a request's body was counted for. What works on something that was read from the body has
/// a share, and the last one gives it back, whether the client is still there or not.
pub type Held = Arc<Vec<OwnedSemaphorePermit>>;

pub struct Memory {
    all: Arc<Semaphore>,
    /// What long answers may take of it.
    long: Arc<Semaphore>,
    units: usize,
    /// Bytes of an answer at most.
    longest: usize,
}

impl Memory {
    /// A budget of `bytes`, and answers of `longest` bytes at most. Twice an answer has to fit in what long
    /// ones may take.
    pub fn new(bytes: usize, longest: usize) -> Self {
        let units = (bytes / UNIT)
            .clamp(1, u32::MAX as usize)
            .min(Semaphore::MAX_PERMITS);
        let long = units / 2;
        Self {
            all: Arc::new(Semaphore::new(units)),
            long: Arc::new(Semaphore::new(long)),
            units,
            longest: longest.min((long * UNIT / 2).max(SHORT)),
        }
    }

    /// Bytes that are held now.
    pub fn held(&self) -> usize {
        (self.units - self.all.available_permits()) * UNIT
    }

    /// Bytes of an answer at most.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Counts a body that is about to be read.
    pub fn body(&self) -> Counted<'_> {
        Counted {
            memory: self,
            bytes: 0,
            permits: Vec::new(),
        }
    }

    /// Counts an answer that is about to be put together; `param` of the request makes it long.
    pub fn answer(self: &Arc<Self>, param: &'static str) -> Answer {
        Answer {
            memory: self.clone(),
            param,
            bytes: 0,
            all: Units::default(),
            long: Units::default(),
        }
    }
}

/// A body that grows.
pub struct Counted<'a> {
    memory: &'a Memory,
    bytes: usize,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Counted<'_> {
    /// Counts the body as `bytes` long.
    pub fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        if bytes > self.bytes {
            let units = (bytes - self.bytes).div_ceil(UNIT);
            let permit = self.memory.all.clone().try_acquire_many_owned(units as u32);
            self.permits.push(permit.map_err(|_| ApiError::Busy {
                what: "bodies of requests",
                seconds: 1,
            })?);
            self.bytes += units * UNIT;
        }
        Ok(())
    }

    pub fn held(self) -> Held {
        Held::new(self.permits)
    }
}

/// Units of a semaphore.
#[derive(Default)]
struct Units(Option<OwnedSemaphorePermit>);

impl Units {
    fn count(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    fn grow(&mut self, semaphore: &Arc<Semaphore>, units: usize) -> Result<(), ApiError> {
        let more = units.saturating_sub(self.count());
        if more == 0 {
            return Ok(());
        }
        let permit = semaphore.clone().try_acquire_many_owned(more as u32);
        let permit = permit.map_err(|_| ApiError::Busy {
            what: "answers",
            seconds: 1,
        })?;
        match &mut self.0 {
            Some(held) => held.merge(permit),
            None => self.0 = Some(permit),
        }
        Ok(())
    }

    fn shrink(&mut self, units: usize) {
        let less = self.count().saturating_sub(units);
        if let Some(held) = &mut self.0 {
            drop(held.split(less));
        }
    }
}

/// An answer's share of the memory. While it is put together it counts twice: as what it is made of, and as
/// text.
pub struct Answer {
    memory: Arc<Memory>,
    param: &'static str,
    bytes: usize,
    all: Units,
    long: Units,
}

impl Answer {
    /// Counts so many more bytes of text.
    pub fn add(&mut self, bytes: usize) -> Result<(), ApiError> {
        let total = self.bytes.saturating_add(bytes);
        if total > self.memory.longest {
            return Err(ApiError::AnswerTooLong {
                most: self.memory.longest,
                param: self.param,
            });
        }
        let units = (2 * total).div_ceil(UNIT);
        if total > SHORT {
            self.long.grow(&self.memory.long, units)?;
        }
        self.all.grow(&self.memory.all, units)?;
        self.bytes = total;
        Ok(())
    }

    /// Bytes that were counted.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The body of a response, which counts as what it is until its last byte was written.
    pub fn body(mut self, mut text: String) -> Body {
        if text.capacity() > text.len() + text.len() / 4 {
            text.shrink_to_fit();
        }
        let units = text.capacity().div_ceil(UNIT);
        self.all.shrink(units);
        self.long.shrink(units);
        Body::from(Bytes::from_owner(Written { text, _answer: self }))
    }
}

/// A text with its share of the memory, which HTTP drops when it was written or the connection has ended.
struct Written {
    text: String,
    _answer: Answer,
}

impl AsRef<[u8]> for Written {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

/// Bytes of a text as a JSON string, in its quotes, as `serde_json` writes it.
pub fn json_bytes(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum::<usize>() + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings_are_counted_as_they_are_written() {
        let all: String = (0..0x300).filter_map(char::from_u32).collect();
        for text in ["", "a", "猫\u{1f600}", "\"\\/\u{7f}", &all, &"\u{1}".repeat(100)] {
            assert_eq!(
                json_bytes(text),
                serde_json::to_string(text).unwrap().len(),
                "{text:?}"
            );
        }
    }

    #[test]
    fn answers_count_until_they_are_written_and_leave_room_for_bodies() {
        let memory = Arc::new(Memory::new(1 << 20, 1 << 30));
        // Two of these fit in half of the budget twice.
        assert_eq!(memory.longest(), 256 << 10);
        let mut answer = memory.answer("k");
        answer.add(200 << 10).unwrap();
        assert_eq!(memory.held(), 400 << 10);
        let refused = answer.add(100 << 10);
        assert!(matches!(refused, Err(ApiError::AnswerTooLong { most, .. }) if most == 256 << 10));
        let body = answer.body("a".repeat(200 << 10));
        assert_eq!(memory.held(), 200 << 10);
        // Another long one has no room now, but a short one does, and a body.
        let mut second = memory.answer("k");
        assert!(matches!(second.add(200 << 10), Err(ApiError::Busy { .. })));
        memory.answer("k").add(30 << 10).unwrap();
        memory.body().grow(700 << 10).unwrap();
        drop((body, second));
        assert_eq!(memory.held(), 0);
        memory.answer("k").add(200 << 10).unwrap();
    }
}
