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
/// Pairs whose scores are computed together, as the diagonal of a square.
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
    let diagonal: Vec<_> = (0..text.rows() as u32).map(|row| (row, row)).collect();
    let scores = pair_scores(text, image, &diagonal);
    // A candidate with the same score is never ahead.
    let partners: Vec<_> = scores
        .into_iter()
        .map(|score| Partner { score, first: 0 })
        .collect();
    Ok(count_ahead(text, image, &partners, &partners))
}

/// What candidates are compared with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Partner {
    pub score: f32,
    /// Candidates before this one are ahead with an equal score, too.
    pub first: u32,
}

impl Partner {
    /// Candidate number `candidate` is ahead with a score above this.
    fn threshold(self, candidate: usize) -> f32 {
        if candidate < self.first as usize {
            self.score.next_down()
        } else {
            self.score
        }
    }
}

/// For each query the number of candidates that are ahead of its partner.
pub(super) fn count_ahead(
    text: &Embeddings,
    image: &Embeddings,
    text_partners: &[Partner],
    image_partners: &[Partner],
) -> Ranks {
    let (rows, images) = (text.rows(), image.rows());
    let counts = |queries| (0..queries).map(|_| AtomicU32::new(0)).collect::<Vec<_>>();
    let (text_to_image, image_to_text) = (counts(rows), counts(images));

    for first in (0..images).step_by(PACKED) {
        let columns = PACKED.min(images - first);
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
            let partners = &image_partners[column..][..images.columns()];
            let mut thresholds: Vec<f32> = partners.iter().map(|partner| partner.threshold(row)).collect();
            // Columns whose threshold changes inside the tile, in the order in which that happens.
            let mut changes: Vec<_> = (partners.iter().map(|partner| partner.first as usize).zip(0..))
                .filter(|(at, _)| (row + 1..end).contains(at))
                .collect();
            changes.sort_unstable();
            let mut changes = changes.into_iter().peekable();
            for (scores, row) in scores.chunks_exact(images.columns()).zip(row..) {
                while let Some((_, column)) = changes.next_if(|&(at, _)| at <= row) {
                    thresholds[column] = partners[column].score;
                }
                let partner = text_partners[row];
                let before = (partner.first as usize).saturating_sub(column).min(scores.len());
                let mut compare = |columns: std::ops::Range<usize>| {
                    let threshold = partner.threshold(column + columns.start);
                    compare(
                        &scores[columns.clone()],
                        threshold,
                        &thresholds[columns.clone()],
                        &mut higher[columns],
                    )
                };
                let count = compare(0..before) + compare(before..scores.len());
                text_to_image[row].fetch_add(count, Ordering::Relaxed);
            }
            for (total, count) in image_to_text[column..].iter().zip(higher) {
                total.fetch_add(count, Ordering::Relaxed);
            }
        });
    }
    let done = |counts: Vec<AtomicU32>| counts.into_iter().map(AtomicU32::into_inner).collect();
    Ranks {
        text_to_image: done(text_to_image),
        image_to_text: done(image_to_text),
    }
}

pub(super) fn check(text: &Embeddings, image: &Embeddings, options: Options) -> Result<(), String> {
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

/// The scores of pairs (text row, image row), out of the same product as all other scores.
pub(super) fn pair_scores(text: &Embeddings, image: &Embeddings, pairs: &[(u32, u32)]) -> Vec<f32> {
    let squares = map_parallel(pairs.len().div_ceil(SQUARE), |square| {
        let from = square * SQUARE;
        let pairs = &pairs[from..(from + SQUARE).min(pairs.len())];
        let texts: Vec<f32> = (pairs.iter().flat_map(|pair| text.row(pair.0 as usize)))
            .copied()
            .collect();
        let images: Vec<f32> = (pairs.iter().flat_map(|pair| image.row(pair.1 as usize)))
            .copied()
            .collect();
        let side = pairs.len();
        let images = PackedMatrix::from_transposed(&images, side, image.dimensions());
        let mut scores = vec![0.0; side * side];
        matmul(&texts, side, &images, &mut scores, false);
        scores.into_iter().step_by(side + 1).collect::<Vec<_>>()
    });
    squares.concat()
}

/// Compares one row of scores with the row's threshold, above which are as many as are returned, and with each
/// column's, whose counts go up.
fn compare(scores: &[f32], threshold: f32, column_thresholds: &[f32], column_counts: &mut [u32]) -> u32 {
    let mut count = 0;
    for ((&score, &column_threshold), column) in scores.iter().zip(column_thresholds).zip(column_counts) {
        count += u32::from(score > threshold);
        *column += u32::from(score > column_threshold);
    }
    count
}
