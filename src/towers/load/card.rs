//! Layers for graphics cards, whose kernels take four values at a time: groups of other sizes have zeros
//! behind them, which change no sum.

use burn::tensor::Device;

use super::{Groups, Loader};
use crate::kernels::convolution::Map;
use crate::ops::cube::CardLayer;
use crate::ops::{CardLinear, CardOptions};
use crate::weights::{Quantised, TensorData};
use crate::{Error, ImageConfig, Result};

/// Refuses widths that the kernels do not take.
pub(in crate::towers) fn check(name: &str, width: usize) -> Result<()> {
    match width.is_multiple_of(4) {
        true => Ok(()),
        false => Err(Error::Config(format!(
            "{name} is {width}, expected a multiple of 4: the kernels for graphics cards compute four values at a time"
        ))),
    }
}

/// Refuses an image tower that the kernels or the card do not take.
pub(in crate::towers) fn check_image(config: &ImageConfig, options: CardOptions) -> Result<()> {
    /// Workgroups along one side, as WebGPU promises, times the rows of a product that one takes at least.
    const MOST_ROWS: usize = 65_535 * 4;
    let net = match config {
        ImageConfig::Vit(vit) => return check("image.width", vit.width),
        ImageConfig::EfficientNet(net) => net,
    };
    // The channels are multiples of 8 always.
    check("image.projection", net.projection.unwrap_or(4))?;
    let size = net.image_size;
    let mut map = Map::square(size).convolved(3, 2).0;
    let mut largest = 3 * size * size;
    if map.pixels() > MOST_ROWS {
        return Err(Error::Config(format!(
            "image.image_size is {size}, expected at most {} on a graphics card",
            2 * MOST_ROWS.isqrt()
        )));
    }
    for block in net.blocks() {
        largest = largest.max(map.pixels() * block.expanded);
        map = map.convolved(block.kernel, block.stride).0;
    }
    match options.largest {
        0 => Ok(()),
        most if 4 * largest as u64 <= most => Ok(()),
        most => Err(Error::Config(format!(
            "an image of {size} px needs {} bytes in one buffer, of which the graphics card takes {most}",
            4 * largest
        ))),
    }
}

/// The next multiple of 4.
fn padded(size: usize) -> usize {
    size.next_multiple_of(4)
}

impl Groups {
    fn padded(self) -> usize {
        self.count * padded(self.size)
    }

    fn is_padded(self) -> bool {
        self.padded() == self.count()
    }
}

/// The columns of the layers with these names, side by side, as one layer.
pub(super) fn layer(
    loader: &Loader<'_>,
    depth: Groups,
    layers: &[(&str, Groups)],
    options: CardOptions,
    device: &Device,
) -> Result<CardLinear> {
    let columns: usize = layers.iter().map(|(_, columns)| columns.padded()).sum();
    let mut bias = vec![0.0; columns];
    let mut weights = Vec::new();
    let mut column = 0;
    for &(name, groups) in layers {
        let values = loader.values(&format!("{name}.bias"), &[groups.count()])?;
        place(&values, 1.into(), groups, &mut bias[column..], 0);
        column += groups.padded();
        let shape = [depth.count(), groups.count()];
        weights.push(loader.read(&format!("{name}.weight"), &shape)?);
    }
    let halves = all(&weights, |weight| match weight {
        TensorData::F16(values) => Some(&**values),
        _ => None,
    });
    let quantised = all(&weights, |weight| match weight {
        TensorData::Quantised(matrix) => Some(matrix),
        _ => None,
    });
    let fits = depth.is_padded() && layers.iter().all(|(_, columns)| columns.is_padded());
    let weight = if let Some(weights) = halves {
        TensorData::F16(joined(&weights, depth, layers).into())
    } else if fits && let Some(matrix) = quantised.and_then(|matrices| Quantised::beside(&matrices)) {
        TensorData::Quantised(matrix)
    } else {
        let weights: Vec<_> = weights.into_iter().map(TensorData::into_f32).collect();
        let weights: Vec<&[f32]> = weights.iter().map(|values| &**values).collect();
        TensorData::F32(joined(&weights, depth, layers).into())
    };
    let layer = CardLayer::new([depth.padded(), columns], weight, Some(bias), options, device);
    Ok(CardLinear::new(layer))
}

/// The layer of weights `[columns, depth]`, as convolutions have them.
pub(in crate::towers) fn transposed(
    weight: &[f32],
    bias: Option<&[f32]>,
    [depth, columns]: [usize; 2],
    options: CardOptions,
    device: &Device,
) -> CardLinear {
    let sizes = [padded(depth), padded(columns)];
    let mut values = vec![0.0; sizes[0] * sizes[1]];
    for (column, weight) in weight.chunks_exact(depth).enumerate() {
        for (row, &value) in weight.iter().enumerate() {
            values[row * sizes[1] + column] = value;
        }
    }
    let bias = bias.map(|bias| {
        let mut bias = bias.to_vec();
        bias.resize(sizes[1], 0.0);
        bias
    });
    let layer = CardLayer::new(sizes, TensorData::F32(values.into()), bias, options, device);
    CardLinear::new(layer)
}

/// What `find` finds in every one.
fn all<'a, T, F>(items: &'a [T], find: impl Fn(&'a T) -> Option<F>) -> Option<Vec<F>> {
    items.iter().map(find).collect()
}

/// The layers' weights as one matrix.
fn joined<T: Copy + Default>(weights: &[&[T]], depth: Groups, layers: &[(&str, Groups)]) -> Vec<T> {
    let width: usize = layers.iter().map(|(_, columns)| columns.padded()).sum();
    let mut joined = vec![T::default(); depth.padded() * width];
    let mut column = 0;
    for (values, &(_, columns)) in weights.iter().zip(layers) {
        place(values, depth, columns, &mut joined[column..], width);
        column += columns.padded();
    }
    joined
}

/// Writes a matrix whose rows begin `width` apart in `out`, with room behind each group.
fn place<T: Copy>(values: &[T], rows: Groups, columns: Groups, out: &mut [T], width: usize) {
    for (row, values) in values.chunks_exact(columns.count()).enumerate() {
        let row = row / rows.size * padded(rows.size) + row % rows.size;
        for (group, values) in values.chunks_exact(columns.size).enumerate() {
            out[row * width + group * padded(columns.size)..][..columns.size].copy_from_slice(values);
        }
    }
}
