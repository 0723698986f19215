//! EfficientNet: a stem, blocks of depthwise convolutions with squeeze-and-excitation, a head, the mean over all places.
//!
//! A batch normalisation of the published statistics is a factor and a summand for each channel, so it becomes part of
//! the convolution before it when the weights are loaded.

mod burn;
#[cfg(feature = "wgpu")]
mod gpu;
mod host;

pub use self::burn::EfficientNet;
#[cfg(feature = "wgpu")]
pub(super) use gpu::GpuEfficientNet;
pub(super) use host::HostEfficientNet;

use super::load::Loader;
use crate::config::EfficientNetBlock;
use crate::{EfficientNetConfig, Error, Result};

/// What the names of a block's tensors start with.
fn prefix(block: &EfficientNetBlock) -> String {
    format!("visual.blocks.{}.{}.", block.stage, block.index)
}

/// What the names of each block's tensors start with.
fn prefixes(config: &EfficientNetConfig) -> Vec<String> {
    config.blocks().iter().map(prefix).collect()
}

/// The block with this prefix.
fn block(config: &EfficientNetConfig, of: &str) -> EfficientNetBlock {
    let blocks = config.blocks();
    let found = blocks.into_iter().find(|block| prefix(block) == of);
    found.expect("a prefix of one of the blocks")
}

/// A batch normalisation's factor and summand for each channel.
fn batch_norm(loader: &Loader<'_>, name: &str, width: usize, epsilon: f64) -> Result<Vec<(f64, f64)>> {
    let read = |part: &str| loader.values(&format!("{name}.{part}"), &[width]);
    let (weight, bias) = (read("weight")?, read("bias")?);
    let (mean, variance) = (read("running_mean")?, read("running_var")?);
    let channel = |i: usize| {
        let [weight, bias, mean, variance] = [&weight, &bias, &mean, &variance].map(|v| f64::from(v[i]));
        if variance < 0.0 {
            return Err(Error::Weights(format!(
                "{name}.running_var: value {i} is {variance}, expected 0 or more"
            )));
        }
        let factor = weight / (variance + epsilon).sqrt();
        Ok((factor, bias - mean * factor))
    };
    (0..width).map(channel).collect()
}

/// A convolution and its batch normalisation in one: the weights, of `shape`, and a bias for each output channel.
fn folded(
    loader: &Loader<'_>,
    conv: &str,
    norm: &str,
    shape: &[usize; 4],
    epsilon: f64,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let name = format!("{conv}.weight");
    let mut weight = loader.values(&name, shape)?;
    let channels = batch_norm(loader, norm, shape[0], epsilon)?;
    let each = weight.len() / shape[0];
    for (values, (factor, _)) in weight.chunks_exact_mut(each).zip(&channels) {
        for value in values {
            *value = (f64::from(*value) * factor) as f32;
        }
    }
    let bias: Vec<f32> = channels.iter().map(|&(_, summand)| summand as f32).collect();
    if !weight.iter().chain(&bias).all(|value| value.is_finite()) {
        return Err(Error::Weights(format!(
            "{name} by {norm} is beyond single precision"
        )));
    }
    Ok((weight, bias))
}
