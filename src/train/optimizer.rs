//! AdamW over groups of parameters, clipping, and the learning rate.

use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::model::{Trainable, tensors};
use crate::towers::parameter_id;
use crate::{Error, ModelConfig, Result};

/// AdamW's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSettings {
    /// The decay rates of the mean and of the mean square.
    pub betas: [f32; 2],
    /// What keeps the root away from zero.
    pub epsilon: f32,
    /// Weight decay of matrices and tables; scales, shifts, biases, the class and position embeddings of the image
    /// tower and the temperature have none.
    pub weight_decay: f32,
    /// The longest gradient, over all parameters together; a longer one is scaled down to it.
    pub clip_norm: f32,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self {
            betas: [0.9, 0.98],
            epsilon: 1e-6,
            weight_decay: 0.2,
            clip_norm: 1.0,
        }
    }
}

impl OptimizerSettings {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Config`] names the field, its value and what was expected.
    pub fn validate(&self) -> Result<()> {
        let field = |name: &str, value: f32, is_right: bool, expected: &str| match is_right {
            true => Ok(()),
            false => Err(Error::Config(format!(
                "optimizer.{name} is {value}, expected {expected}"
            ))),
        };
        for beta in self.betas {
            field(
                "betas",
                beta,
                (0.0..1.0).contains(&beta),
                "numbers from 0 to below 1",
            )?;
        }
        let (epsilon, decay, norm) = (self.epsilon, self.weight_decay, self.clip_norm);
        field(
            "epsilon",
            epsilon,
            epsilon > 0.0 && epsilon < 1.0,
            "a number between 0 and 1",
        )?;
        field("weight_decay", decay, (0.0..=10.0).contains(&decay), "0 to 10")?;
        field("clip_norm", norm, norm > 0.0, "a number above 0")
    }

    pub(super) fn build(&self, config: &ModelConfig) -> ModuleOptimizer {
        let adamw = |weight_decay: f32| {
            AdamWConfig::new()
                .with_beta_1(self.betas[0])
                .with_beta_2(self.betas[1])
                .with_epsilon(self.epsilon)
                .with_weight_decay(weight_decay)
        };
        let decayed = tensors(config)
            .into_iter()
            .filter(|(name, shape)| name.ends_with(".weight") && shape.len() >= 2)
            .map(|(name, _)| parameter_id(&name))
            .collect();
        adamw(0.0).init().with_group(
            ParamGroup::from_ids(decayed),
            adamw(self.weight_decay).build(),
            None,
        )
    }
}

/// The learning rate: linear warm-up, then half a cosine down to 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest learning rate.
    pub peak: f64,
    /// Steps until it is reached.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub steps: u64,
}

impl Schedule {
    /// The learning rate of a step, numbered from 0.
    ///
    /// ```
    /// use ernie_vil::train::Schedule;
    /// let schedule = Schedule { peak: 1.0, warmup_steps: 2, steps: 4 };
    /// let rates: Vec<f64> = (0..4).map(|step| schedule.learning_rate(step)).collect();
    /// assert_eq!(rates[..3], [0.5, 1.0, 1.0]);
    /// assert!((rates[3] - 0.5).abs() < 1e-12);
    /// ```
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let done = (step - self.warmup_steps) as f64;
        let of = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
        self.peak * 0.5 * (1.0 + (std::f64::consts::PI * (done / of).min(1.0)).cos())
    }
}

/// Scales the gradients down where together they are longer than `longest`. Also gives their length before.
pub(super) fn clip(
    model: &Trainable,
    mut gradients: GradientsParams,
    longest: f32,
) -> (GradientsParams, f32) {
    struct Square<'a> {
        gradients: &'a GradientsParams,
        squares: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Square<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                self.squares.push(gradient.square().sum().reshape([1]));
            }
        }
    }
    struct Scale<'a> {
        gradients: &'a mut GradientsParams,
        by: f32,
    }
    impl ModuleVisitor for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.gradients.register(param.id, gradient * self.by);
            }
        }
    }
    let mut square = Square {
        gradients: &gradients,
        squares: Vec::new(),
    };
    model.visit(&mut square);
    if square.squares.is_empty() {
        return (gradients, 0.0);
    }
    let length = super::scalar(&Tensor::cat(square.squares, 0).sum().reshape([1])).sqrt();
    if length > longest {
        model.visit(&mut Scale {
            gradients: &mut gradients,
            by: longest / length,
        });
    }
    (gradients, length)
}
