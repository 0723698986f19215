//! The ranks of [`ranks`](super::ranks), from a score matrix that a device computes.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::ranks::{Options, Ranks, check};
use crate::towers::Engine;
use crate::vectors::Embeddings;
use crate::{Error, Result};

/// Captions and images of one tile of the score matrix: 16 MB of scores.
const TILE: usize = 2048;

/// As [`ranks`](super::ranks), with the score matrix computed on `device` by Burn, tile by tile; `engine` says how products are
/// computed there. Scores are in single precision in any case, but summed up in the device's own order, so that two that are
/// equal but for the last bits may change places.
///
/// All tiles have the same shape and come out of the same kernel, the partners' scores among them, so equal vectors tie
/// exactly. Only the vectors go to the device, and only the ranks come back.
///
/// # Errors
/// Those of [`ranks`](super::ranks) with the default options.
pub fn ranks_on(text: &Embeddings, image: &Embeddings, device: &Device, engine: Engine) -> Result<Ranks> {
    check(text, image, Options::default()).map_err(Error::Scoring)?;
    let rows = text.rows();
    let tile = TILE.min(rows);
    let padded = rows.next_multiple_of(tile);
    let (how, blocks) = (engine.burn(), padded / tile);
    let (text, image) = (upload(text, padded, device), upload(image, padded, device));
    let block = |side: &Tensor<2>, number: usize| side.clone().narrow(0, number * tile, tile);
    let scores = |row: usize, column: usize| how.matmul(block(&text, row), block(&image, column).transpose());
    // [tile] each
    let diagonal = Tensor::<1, Int>::arange(0..tile as i64, device).reshape([tile, 1]);
    let partners: Vec<Tensor<1>> = (0..blocks)
        .map(|number| scores(number, number).gather(1, diagonal.clone()).squeeze_dim(1))
        .collect();
    let none = || Tensor::<1, Int>::zeros([tile], device);
    let mut image_to_text: Vec<Tensor<1, Int>> = (0..blocks).map(|_| none()).collect();
    let mut text_to_image = Vec::with_capacity(blocks);
    for row in 0..blocks {
        let mut ahead = none();
        for column in 0..blocks {
            let scores = scores(row, column);
            let of_captions = partners[row].clone().reshape([tile, 1]);
            let above = scores.clone().greater(of_captions.expand([tile, tile]));
            ahead = ahead + above.int().sum_dim(1).squeeze_dim(1);
            let of_images = partners[column].clone().reshape([1, tile]);
            let above = scores.greater(of_images.expand([tile, tile]));
            let sum = &mut image_to_text[column];
            *sum = sum.clone() + above.int().sum_dim(0).squeeze_dim(0);
        }
        text_to_image.push(ahead);
    }
    // What fills the last tile up scores 0 with everything.
    let padding = (padded - rows) as u32;
    let partners = Tensor::cat(partners, 0).into_data().try_into_vec_as::<f32>();
    let partners = partners.expect("a float tensor reads as f32");
    let ranks = |counts: Vec<Tensor<1, Int>>| -> Vec<u32> {
        let counts = Tensor::cat(counts, 0).into_data().try_into_vec_as::<i64>();
        let counts = counts.expect("an integer tensor reads as i64").into_iter();
        let ranks = counts.zip(&partners).take(rows);
        ranks
            .map(|(count, &partner)| count as u32 - if partner < 0.0 { padding } else { 0 })
            .collect()
    };
    Ok(Ranks {
        text_to_image: ranks(text_to_image),
        image_to_text: ranks(image_to_text),
    })
}

/// A side as a tensor of `rows` rows, the last of them zeros.
fn upload(side: &Embeddings, rows: usize, device: &Device) -> Tensor<2> {
    let mut values = Vec::with_capacity(rows * side.dimensions());
    values.extend_from_slice(side.data());
    values.resize(rows * side.dimensions(), 0.0);
    Tensor::from_data(TensorData::new(values, [rows, side.dimensions()]), device)
}
