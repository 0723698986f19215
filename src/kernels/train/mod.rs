//! The steps of a transformer block forward and backward, for training.
//!
//! Everything is row-major `f32`. Results do not depend on the number of threads: the rows are cut into
//! blocks of a size that follows from the shape alone, and sums over rows are taken block by block, in order.

mod activation;
mod attention;
mod blocks;
mod dropout;
mod linear;
mod norm;
mod registers;
mod scratch;
mod strided;

pub use attention::PackedAttention;
pub use dropout::{drop_add, drop_out};
pub use linear::{LinearShape, Wanted};
pub use norm::{layer_norm, layer_norm_backward};
