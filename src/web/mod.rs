//! The module for JavaScript: types in, types out, and nothing else.
//!
//! Built by `cargo xtask web` and wrapped by the package in `pkg/`, which fetches, caches, keeps workers and
//! chooses the device. What fails here throws an `Error` whose `code` is [`crate::Error::code`].

mod index;
mod model;
#[cfg(feature = "web-threads")]
mod threads;

#[cfg(feature = "webgpu")]
use std::cell::OnceCell;

use serde::Serialize;
use wasm_bindgen::prelude::*;

pub use index::{Index, recall};
pub use model::{Model, ModelLoader};
#[cfg(feature = "web-threads")]
pub use threads::{init_threads, run_thread, thread_memory, thread_module};

use crate::Error;

/// What towers are loaded onto.
#[cfg(feature = "webgpu")]
type Place = crate::webgpu::Gpu;
#[cfg(not(feature = "webgpu"))]
type Place = burn::tensor::Device;

#[cfg(feature = "webgpu")]
thread_local! {
    static PLACE: OnceCell<Place> = const { OnceCell::new() };
}

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn console_error(message: &str);
}

/// A panic ends the module; what it was goes to the console.
#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|panic| console_error(&panic.to_string())));
}

/// The crate's version.
#[wasm_bindgen]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").into()
}

/// What the module computes on: `"cpu"` or `"webgpu"`.
#[wasm_bindgen(unchecked_return_type = "\"cpu\" | \"webgpu\"")]
pub fn kind() -> String {
    if cfg!(feature = "webgpu") { "webgpu" } else { "cpu" }.into()
}

/// Threads that the processor's kernels use.
#[wasm_bindgen]
pub fn threads() -> usize {
    crate::kernels::threads()
}

/// SHA-256 as 64 lower-case hexadecimal digits, where the page has no `crypto.subtle`.
#[wasm_bindgen]
pub fn sha256(bytes: &[u8]) -> String {
    use std::io::Write;
    let mut writer = crate::weights::HashingWriter::new(std::io::sink());
    writer.write_all(bytes).expect("a sink takes everything");
    writer.finish("").1.sha256
}

/// Takes the adapter and its device: once, before the first `ModelLoader`.
#[cfg(feature = "webgpu")]
#[wasm_bindgen(js_name = initDevice)]
pub async fn init_device() -> Result<(), JsValue> {
    // Whether a program will do was decided by the package, which hands out the adapter.
    let gpu = Place::open(true).await.map_err(thrown)?;
    crate::towers::check_webgpu(&gpu).await.map_err(thrown)?;
    PLACE.with(|cell| cell.set(gpu)).map_err(|_| {
        thrown(Error::Device(
            "initDevice was called before, expected one call".into(),
        ))
    })
}

/// What towers are loaded onto.
fn place() -> crate::Result<Place> {
    #[cfg(feature = "webgpu")]
    return PLACE
        .with(|cell| cell.get().cloned())
        .ok_or_else(|| Error::Device("none yet, expected a call of initDevice first".into()));
    #[cfg(not(feature = "webgpu"))]
    return Ok(Place::flex());
}

/// What JavaScript catches.
fn thrown(error: Error) -> JsValue {
    let code = error.code();
    let error = js_sys::Error::new(&error.to_string());
    // Setting a property of a fresh object cannot fail.
    let _ = js_sys::Reflect::set(&error, &"code".into(), &code.into());
    error.into()
}

/// A plain JavaScript object.
fn object(value: &impl Serialize) -> Result<JsValue, JsValue> {
    let serializer = serde_wasm_bindgen::Serializer::json_compatible();
    Ok(value.serialize(&serializer)?)
}
