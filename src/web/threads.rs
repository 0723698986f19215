//! Rayon's threads, each in a worker that the package makes.
//!
//! A worker starts this module on the memory that all share and gives itself to [`run_thread`]. When all have, the
//! thread that computes calls [`init_threads`] and is one of the pool's from then on.

use std::sync::{Condvar, Mutex, PoisonError};

use rayon::{ThreadBuilder, ThreadPoolBuilder};
use wasm_bindgen::prelude::*;

use super::thrown;
use crate::Error;

/// Threads that rayon wants and no worker has taken.
static WANTED: Mutex<Vec<ThreadBuilder>> = Mutex::new(Vec::new());
static MORE: Condvar = Condvar::new();

/// The compiled module, for the workers.
#[wasm_bindgen(js_name = threadModule)]
pub fn thread_module() -> JsValue {
    wasm_bindgen::module()
}

/// The memory that all threads share, for the workers.
#[wasm_bindgen(js_name = threadMemory)]
pub fn thread_memory() -> JsValue {
    wasm_bindgen::memory()
}

/// Makes a pool of so many threads, this one among them: once, when the workers of the others have called `runThread` or are
/// about to. It waits for them.
#[wasm_bindgen(js_name = initThreads)]
pub fn init_threads(threads: usize) -> Result<(), JsValue> {
    let pool = ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
    let pool = pool.spawn_handler(|thread| {
        WANTED.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        MORE.notify_one();
        Ok(())
    });
    pool.build_global()
        .map_err(|error| thrown(Error::Device(format!("the pool of threads: {error}"))))
}

/// Makes this worker one of the pool's threads, for the rest of its life.
#[wasm_bindgen(js_name = runThread)]
pub fn run_thread() {
    let wanted = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = MORE.wait_while(wanted, |wanted| wanted.is_empty());
    let thread = wanted.unwrap_or_else(PoisonError::into_inner).pop();
    if let Some(thread) = thread {
        thread.run();
    }
}
