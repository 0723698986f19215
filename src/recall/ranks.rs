//! The rank of every query's true partner.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::kernels::{PackedMatrix, matmul};
use crate::vectors::{Embeddings, check_scorable, map_parallel};
use crate::{Error, Result};

/// Captions and images of one tile of the score matrix: half a megabyte of scores, which stays in the
/// second level cache while they are compared.
const TILE: (usize, usize) = (240, 512);
/// Images whose vectors are packed for the product at a time; bounds the memory that takes.
const PACKED: usize = 64 * TILE.1;
/// Pairs of one square on the diagonal.
const SQUARE: usize = 32;

/// How to rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Accept and refuse what the original's evaluation does. It takes vectors of zeros and values
    /// that are not finite (a comparison with NaN is false, so such a query counts as a hit), and
    /// wants a number of rows that 10 divides. Without this, any number of rows will do, and a vector
    /// that no score can be computed with is an error.
    pub like_original: bool,
}

/// For each row the number of candidates that score strictly higher than its partner: 0 is a hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks {
    /// For each caption, the rank of its image among all images.
    pub text_to_image: Vec<u32>,
    /// For each image, the rank of its caption among all captions.
    pub image_to_text: Vec<u32>,
}

/// Ranks all images for each caption and all captions for each image by their inner product in
/// float32.
///
/// The score matrix is computed once, tile by tile, and never stored: besides the embeddings this
/// takes 131 kB a dimension at most, and a megabyte for each thread. A score has the same bits
/// wherever its tile lies, so equal vectors tie exactly.
///
/// # Errors
/// [`Error::Scoring`] where the sides differ in rows or dimensions, where there are no rows, where a
/// vector's length is not between 1e-12 and 1e18 (which names its row, from 1), and, with
/// `like_original`, where 10 does not divide the rows.
pub fn ranks(text: &Embeddings, image: &Embeddings, options: Options) -> Result<Ranks> {
    check(text, image, options).map_err(Error::Scoring)?;
    let rows = text.rows();
    let partners = diagonal(text, image);
    let counts = || (0..rows).map(|_| AtomicU32::new(0)).collect::<Vec<_>>();
    let (text_to_image, image_to_text) = (counts(), counts());

    for first in (0..rows).step_by(PACKED) {
        let columns = PACKED.min(rows - first);
        let packed = map_parallel(columns.div_ceil(TILE.1), |block| {
            let from = first + block * TILE.1;
            let to = (from + TILE.1).min(first + columns);
            PackedMatrix::from_transposed(values(image, from, to), to - from, image.dimensions())
        });
        // Neighbouring tasks share their images.
        let row_blocks = rows.div_ceil(TILE.0);
        map_parallel(packed.len() * row_blocks, |task| {
            let images = &packed[task / row_blocks];
            let column = first + task / row_blocks * TILE.1;
            let row = task % row_blocks * TILE.0;
            let end = (row + TILE.0).min(rows);
            let mut scores = vec![0.0; (end - row) * images.columns()];
            matmul(values(text, row, end), end - row, images, &mut scores, false);
            let mut higher = vec![0; images.columns()];
            let column_partners = &partners[column..][..images.columns()];
            for (scores, row) in scores.chunks_exact(images.columns()).zip(row..) {
                let count = compare(scores, partners[row], column_partners, &mut higher);
                text_to_image[row].fetch_add(count, Ordering::Relaxed);
            }
            for (total, count) in image_to_text[column..].iter().zip(higher) {
                total.fetch_add(count, Ordering::Relaxed);
            }
        });
    }
    let done = |counts: Vec<AtomicU32>| counts.into_iter().map(AtomicU32::into_inner).collect();
    Ok(Ranks {
        text_to_image: done(text_to_image),
        image_to_text: done(image_to_text),
    })
}

fn check(text: &Embeddings, image: &Embeddings, options: Options) -> Result<(), String> {
    let rows = text.rows();
    if rows != image.rows() || text.dimensions() != image.dimensions() {
        return Err(format!(
            "{rows} text vectors of {} dimensions and {} image vectors of {}, expected the same of each",
            text.dimensions(),
            image.rows(),
            image.dimensions()
        ));
    }
    if rows == 0 || u32::try_from(rows).is_err() {
        return Err(format!("{rows} rows, expected 1 to {}", u32::MAX));
    }
    if options.like_original {
        return match rows % 10 {
            0 => Ok(()),
            _ => Err(format!(
                "{rows} rows, expected a multiple of 10 as in the original"
            )),
        };
    }
    for (side, name) in [(text, "text"), (image, "image")] {
        for (row, vector) in side.iter().enumerate() {
            check_scorable(vector).map_err(|error| format!("row {}, {name}: {error}", row + 1))?;
        }
    }
    Ok(())
}

/// The values of rows `from` to `to`.
fn values(side: &Embeddings, from: usize, to: usize) -> &[f32] {
    &side.data()[from * side.dimensions()..to * side.dimensions()]
}

/// The score of every true pair, out of the same product as all other scores.
fn diagonal(text: &Embeddings, image: &Embeddings) -> Vec<f32> {
    let squares = map_parallel(text.rows().div_ceil(SQUARE), |square| {
        let from = square * SQUARE;
        let to = (from + SQUARE).min(text.rows());
        let side = to - from;
        let images = PackedMatrix::from_transposed(values(image, from, to), side, image.dimensions());
        let mut scores = vec![0.0; side * side];
        matmul(values(text, from, to), side, &images, &mut scores, false);
        scores.into_iter().step_by(side + 1).collect::<Vec<_>>()
    });
    squares.concat()
}

/// Compares one row of scores with the row's partner, whose count is returned, and with each
/// column's, whose counts go up.
fn compare(scores: &[f32], row_partner: f32, column_partners: &[f32], column_counts: &mut [u32]) -> u32 {
    let mut count = 0;
    for ((&score, &partner), column) in scores.iter().zip(column_partners).zip(column_counts) {
        count += u32::from(score > row_partner);
        *column += u32::from(score > partner);
    }
    count
}
