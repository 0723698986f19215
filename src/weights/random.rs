use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{TensorData, TensorSource, image_tensors, text_tensors};
use crate::random::step;
use crate::{ErnieConfig, Error, ImageConfig, Result};

/// Weights of any structure with random values: to measure speed and memory, and to test. What a model
/// of them computes means nothing.
///
/// A tensor's values depend on the seed and its name alone. They are spread as in a fresh model: linear
/// weights with a variance of one over their inputs, scales near 1, everything else near 0. Where that would let
/// values fade on their way through an EfficientNet, weights are larger.
///
/// ```
/// use ernie_vil::{ErnieConfig, VitConfig};
/// use ernie_vil::weights::{RandomWeights, TensorSource};
/// let weights = RandomWeights::new(&VitConfig::base(), &ErnieConfig::base(), 1);
/// assert_eq!(weights.shape("text_model.pooler.weight"), Some(vec![768, 768]));
/// assert_eq!(weights.read("visual.norm_pre.weight")?.len(), 768);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub struct RandomWeights {
    shapes: BTreeMap<String, Vec<usize>>,
    seed: u64,
}

impl RandomWeights {
    /// Weights for both towers.
    pub fn new(image: impl Into<ImageConfig>, text: &ErnieConfig, seed: u64) -> Self {
        Self {
            shapes: image_tensors(image)
                .into_iter()
                .chain(text_tensors(text))
                .collect(),
            seed,
        }
    }
}

impl TensorSource for RandomWeights {
    fn names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shapes.get(name).cloned()
    }

    fn read(&self, name: &str) -> Result<TensorData<'_>> {
        let Some(shape) = self.shapes.get(name) else {
            return Err(Error::Weights(format!("{name} is missing")));
        };
        let (centre, spread) = match shape.as_slice() {
            [_] if name.ends_with(".weight") || name.ends_with(".running_var") => (1.0, 0.1),
            [_] => (0.0, 0.02),
            [inputs, _] if !name.contains("_emb.") => (0.0, (*inputs as f32).powf(-0.5)),
            [_, rest @ ..] if shape.len() == 4 => {
                let inputs = rest.iter().product::<usize>() as f32;
                (0.0, gain(name) * inputs.powf(-0.5))
            }
            _ => (0.0, 0.02),
        };
        let mut state = name
            .bytes()
            .fold(self.seed, |hash, byte| step(hash ^ u64::from(byte)));
        let mut next = || {
            state = step(state);
            // Uniform on [-1, 1), with a variance of 1/3.
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let values = (0..shape.iter().product()).map(|_| centre + spread * 3f32.sqrt() * next());
        Ok(TensorData::F32(Cow::Owned(values.collect())))
    }
}

/// What makes up for the activations: a swish leaves six tenths of a deviation of 1, and the gate of a block the half.
fn gain(name: &str) -> f32 {
    // In stage 0 a projection has the name that an expansion has elsewhere.
    let is_projection =
        name.ends_with("conv_pwl.weight") || (name.contains("blocks.0.") && name.ends_with("conv_pw.weight"));
    match is_projection {
        // Where blocks add to what came in, the sum of all stays small.
        true if !name.contains(".0.conv_pw") => 0.7,
        true => 3.3,
        false if name.ends_with("conv_dw.weight") => 1.7,
        false => 1.0,
    }
}
