//! From named tensors to convolutions, each with the batch normalisation behind it.
//!
//! A batch normalisation of the published statistics is a factor and a summand for each channel. It becomes
//! part of the convolution before it when the weights are loaded; in training both stay what they are.

use burn::module::Param;
use burn::nn;
use burn::tensor::{Device, Tensor, TensorData};

#[cfg(feature = "cube")]
use super::load::card;
use super::load::{Layers, Loader, Target};
use crate::kernels::{self, PackedMatrix};
use crate::ops::{BatchNorm, Convolution, Depthwise, Linear, PackedLinear, Summand};
use crate::{Error, Result};

/// A convolution's tensors.
pub(super) struct Tensors {
    /// What the names of the convolution's tensors start with.
    name: String,
    /// `[outputs, inputs of a group, kernel, kernel]`
    shape: [usize; 4],
    /// What the names of its normalisation's tensors start with, and the normalisation's epsilon. Without one
    /// the convolution has a bias.
    norm: Option<(String, f64)>,
}

impl Tensors {
    /// A convolution with a normalisation behind it.
    pub(super) fn normalised([name, norm]: [String; 2], shape: [usize; 4], epsilon: f64) -> Self {
        Self {
            name,
            shape,
            norm: Some((norm, epsilon)),
        }
    }

    /// A convolution of single pixels with a bias.
    pub(super) fn biased(name: String, inputs: usize, outputs: usize) -> Self {
        Self {
            name,
            shape: [outputs, inputs, 1, 1],
            norm: None,
        }
    }

    /// As the linear layer from what one output is made of to all channels of it.
    pub(super) fn linear(&self, loader: &Loader<'_>, target: &Target) -> Result<Linear> {
        let (weight, bias) = self.values(loader)?;
        let [outputs, inputs, height, width] = self.shape;
        let inputs = inputs * height * width;
        if target.is_packed() {
            return Ok(Linear::Packed(PackedLinear::new(kernels::Linear {
                weight: PackedMatrix::from_transposed(&weight, outputs, inputs),
                bias,
            })));
        }
        #[cfg(feature = "cube")]
        if let Layers::Card(options) = target.layers {
            let sizes = [inputs, outputs];
            let layer = card::transposed(&weight, Some(&bias), sizes, options, &target.device);
            return Ok(Linear::Card(layer));
        }
        if target.layers == Layers::Apart {
            return Ok(Linear::Convolution(self.trained(loader, &target.device)?));
        }
        let weight = tensor(weight, [outputs, inputs], &target.device).transpose();
        Ok(Linear::Dense(nn::Linear {
            weight: Param::from_tensor(weight),
            bias: Some(Param::from_tensor(tensor(bias, [outputs], &target.device))),
        }))
    }

    /// As a depthwise convolution.
    pub(super) fn depthwise(&self, loader: &Loader<'_>, stride: usize, target: &Target) -> Result<Depthwise> {
        let (weight, bias) = self.values(loader)?;
        let [outputs, _, kernel, _] = self.shape;
        if target.is_packed() {
            return Ok(Depthwise::of_values(kernel, stride, &weight, &bias));
        }
        #[cfg(feature = "cube")]
        if let Layers::Card(_) = target.layers {
            return Ok(Depthwise::on_card(kernel, stride, &weight, &bias, &target.device));
        }
        let convolution = match target.layers {
            Layers::Apart => self.trained(loader, &target.device)?,
            _ => Convolution {
                weight: Param::from_tensor(tensor(weight, self.shape, &target.device)),
                summand: Summand::Bias(Param::from_tensor(tensor(bias, [outputs], &target.device))),
            },
        };
        Ok(Depthwise::of_tensors(convolution, stride))
    }

    /// The weights and a summand for each output channel.
    fn values(&self, loader: &Loader<'_>) -> Result<(Vec<f32>, Vec<f32>)> {
        match &self.norm {
            Some((norm, epsilon)) => folded(loader, &self.name, norm, &self.shape, *epsilon),
            None => Ok((
                loader.values(&format!("{}.weight", self.name), &self.shape)?,
                loader.values(&format!("{}.bias", self.name), &self.shape[..1])?,
            )),
        }
    }

    /// The tensors under their own names.
    fn trained(&self, loader: &Loader<'_>, device: &Device) -> Result<Convolution> {
        let part = |of: &str, part: &str| loader.param(&format!("{of}.{part}"), [self.shape[0]], device);
        Ok(Convolution {
            weight: loader.param(&format!("{}.weight", self.name), self.shape, device)?,
            summand: match &self.norm {
                None => Summand::Bias(part(&self.name, "bias")?),
                Some((norm, epsilon)) => Summand::Norm(BatchNorm {
                    scale: part(norm, "weight")?,
                    shift: part(norm, "bias")?,
                    mean: part(norm, "running_mean")?.set_require_grad(false),
                    variance: part(norm, "running_var")?.set_require_grad(false),
                    epsilon: *epsilon,
                }),
            },
        })
    }
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), device)
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

/// A convolution and its batch normalisation in one: the weights, of `shape`, and a bias for each output
/// channel.
pub(super) fn folded(
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
