//! Matrix multiplications with a right-hand side that was packed beforehand.
//!
//! [`Rows`] times a [`PackedMatrix`]: `linear` cuts the result into blocks for the threads, `product` takes
//! one block through the panels, and `tile` holds a few rows of it in registers.

mod activation;
mod linear;
mod packed;
mod panels;
mod product;
mod rows;
#[cfg(test)]
mod tests;
mod tile;

pub use activation::Activation;
pub(crate) use linear::row_block;
pub use linear::{Linear, linear, matmul};
pub use packed::PackedMatrix;
pub(crate) use packed::PackedValues;
pub(crate) use panels::GROUP;
pub(super) use panels::Panels;
pub(super) use product::{Product, product, product_with};
pub use rows::{Rows, RowsMut};
