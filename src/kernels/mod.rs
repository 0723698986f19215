//! The arithmetic of the towers and of scoring on the host's own memory.
//!
//! Burn's CPU backend runs the matrix products well and the steps between them one at a time, each into
//! a fresh buffer. Here a whole step is one pass: a product adds the bias, applies the activation and
//! adds to the residual as it stores; attention never leaves the cache. Everything is row-major `f32`.
//!
//! Each kernel is written once over the `Simd` trait and picks the instruction set when it runs.
//! Results do not depend on the number of threads, nor on which rows stand beside a row: the order of
//! summation for one output value is fixed by the depth alone.

mod attention;
mod buffer;
pub(crate) mod convolution;
pub(crate) mod dropout;
pub(crate) mod int8;
mod math;
mod matmul;
mod norm;
mod parallel;
mod patches;
mod simd;
#[cfg(feature = "train")]
pub(crate) mod train;

pub use attention::{AttentionShape, Sequence, attention};
pub use buffer::Buffer;
pub use matmul::{Activation, Linear, PackedMatrix, Rows, RowsMut, linear, matmul};
pub(crate) use matmul::{GROUP, PackedValues, row_block};
pub use norm::LayerNorm;
pub(crate) use parallel::{for_each_chunk, threads};
pub(crate) use patches::patches;
pub use simd::InstructionSet;
