//! Multi-view contrastive training, after ERNIE-ViL 2.0 (arXiv 2209.15270).
//!
//! A row of a batch is seen in up to five [`View`]s: the image and another augmentation of it, the caption
//! and another dropout pass of it, and the names of the objects in the picture. [`contrastive_loss`] is the
//! weighted sum of symmetric InfoNCE terms over [`Pair`]s of them. A [`Trainer`] takes steps on [`Batch`]es;
//! it reads no file and prints nothing.

mod loss;
mod model;
mod optimizer;

pub use crate::ops::Dropout;
pub(crate) use crate::ops::Dropping;
pub use crate::ops::training::Compute;
pub use crate::weights::TEMPERATURE;
pub use loss::{EqualTexts, Loss, Pair, View, check_pairs, contrastive_loss};
pub use model::{FIRST_TEMPERATURE, Trainable, Weights, tensors};
pub use optimizer::{OptimizerSettings, Schedule};

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};

use crate::random::Random;
use crate::weights::TensorSource;
use crate::{Error, ModelConfig, Result};

/// The rows of one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Height and width of the images, in pixels.
    pub image_size: usize,
    /// The images, [rows, 3, `image_size`, `image_size`].
    pub image: Vec<f32>,
    /// The images in their second view; empty where no pair names it.
    pub image_2: Vec<f32>,
    /// The captions' ids, without padding.
    pub captions: Vec<Vec<u32>>,
    /// The tags' ids, without padding; empty where no pair names them.
    pub tags: Vec<Vec<u32>>,
}

impl Batch {
    /// Rows of the batch.
    pub fn rows(&self) -> usize {
        self.captions.len()
    }

    /// Some of the rows.
    fn part(&self, rows: std::ops::Range<usize>) -> Self {
        let values = 3 * self.image_size * self.image_size;
        let of = |images: &[f32]| match images {
            [] => Vec::new(),
            images => images[rows.start * values..rows.end * values].to_vec(),
        };
        Self {
            image_size: self.image_size,
            image: of(&self.image),
            image_2: of(&self.image_2),
            captions: self.captions[rows.clone()].to_vec(),
            tags: self.tags.get(rows.clone()).unwrap_or_default().to_vec(),
        }
    }
}

/// One seed out of several numbers: which run, which step, which row.
pub fn seed_of(numbers: &[u64]) -> u64 {
    numbers
        .iter()
        .fold(0, |seed, &number| crate::random::step(seed ^ number))
}

/// The numbers 0 to `rows` - 1 in the order of an epoch, a function of the seed and the epoch alone.
pub fn epoch_order(rows: u32, seed: u64, epoch: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..rows).collect();
    let mut random = Random::new(seed_of(&[seed, epoch]));
    for i in (1..order.len()).rev() {
        order.swap(i, random.below(i as u64 + 1) as usize);
    }
    order
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What is contrasted.
    pub pairs: Vec<Pair>,
    /// Whether equal texts of a batch are left out as negatives of one another.
    pub mask_equal_texts: bool,
    /// Rows whose activations are in memory together. Fewer than a batch has: the batch goes through the
    /// towers twice, first for the embeddings and the loss's gradients with respect to them, then part by
    /// part for the weights' gradients (gradient caching), and all of its rows are negatives all the same.
    pub rows_at_once: usize,
    /// What dropout leaves out of the texts.
    pub dropout: Dropout,
    /// The optimizer.
    pub optimizer: OptimizerSettings,
    /// The learning rate over the steps.
    pub schedule: Schedule,
    /// Whether the image tower stays as it is.
    pub freeze_image: bool,
    /// Whether the text tower stays as it is.
    pub freeze_text: bool,
    /// Where all that is random starts.
    pub seed: u64,
    /// By what the towers compute, and in which precision.
    pub compute: Compute,
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The step's number, from 1.
    pub step: u64,
    /// The weighted loss, before the step.
    pub loss: f32,
    /// Each pair's own term.
    pub terms: Vec<f32>,
    /// Length of the whole gradient before clipping.
    pub gradient_norm: f32,
    /// The learning rate that was used.
    pub learning_rate: f64,
    /// The logits' scale, exp(temperature), before the step.
    pub scale: f32,
}

/// The loss of a batch and its gradients, before an optimizer uses them.
pub struct Gradients {
    /// The gradient of each parameter.
    pub parameters: GradientsParams,
    /// The weighted loss.
    pub loss: f32,
    /// Each pair's own term.
    pub terms: Vec<f32>,
}

/// A model in training.
pub struct Trainer {
    config: ModelConfig,
    settings: Settings,
    model: Trainable,
    optimizer: ModuleOptimizer,
    step: u64,
}

impl Trainer {
    /// Loads the weights onto `device`, at step 0.
    ///
    /// # Errors
    /// Those of [`Trainable::load`] and [`check_pairs`].
    pub fn new(
        source: &dyn TensorSource,
        config: ModelConfig,
        settings: Settings,
        device: &Device,
    ) -> Result<Self> {
        check_pairs(&settings.pairs)?;
        let device = device.clone().autodiff();
        let mut model = Trainable::load(source, &config, &device)?;
        if settings.freeze_image {
            model = model.freeze_image();
        }
        if settings.freeze_text {
            model = model.freeze_text();
        }
        let optimizer = settings.optimizer.build(&config);
        Ok(Self {
            config,
            settings,
            model,
            optimizer,
            step: 0,
        })
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The weights as they are now.
    pub fn weights(&self) -> Weights {
        self.model.weights(&self.config)
    }

    /// The model as it is now.
    pub fn model(&self) -> &Trainable {
        &self.model
    }

    /// The optimizer's state, to go on with later.
    ///
    /// # Errors
    /// [`Error::Weights`] where it cannot be written down.
    pub fn optimizer_state(&self) -> Result<Vec<u8>> {
        match self.optimizer.into_bytes() {
            Ok(bytes) => Ok(bytes.to_vec()),
            Err(error) => Err(Error::Weights(format!("the optimizer's state: {error}"))),
        }
    }

    /// Goes on at `step` with the state that [`Trainer::optimizer_state`] gave there; the weights are those
    /// that this was made with. Burn reads the state by way of its default device; where that is a graphics
    /// card that the machine lacks, the environment variable `BURN_DEVICE=flex` makes it the processor.
    ///
    /// # Errors
    /// [`Error::Weights`] where the state cannot be read.
    pub fn resume(mut self, step: u64, state: Vec<u8>) -> Result<Self> {
        let state = burn::tensor::Bytes::from_bytes_vec(state);
        self.optimizer = self
            .optimizer
            .from_bytes(state)
            .map_err(|error| Error::Weights(format!("the optimizer's state: {error}")))?;
        self.step = step;
        Ok(self)
    }

    /// The views that the pairs name.
    pub fn views(&self) -> Vec<View> {
        let named = |view: &View| self.settings.pairs.iter().any(|p| p.0 == *view || p.1 == *view);
        View::ALL.into_iter().filter(named).collect()
    }

    /// The embeddings of the views of a part of the batch. What dropout leaves out is a function of the seed,
    /// the step and the part.
    fn embed(&self, model: &Trainable, views: &[View], part: usize, rows: &Batch) -> Vec<(View, Tensor<2>)> {
        let seed = seed_of(&[self.settings.seed, self.step, part as u64]);
        let mut dropping = Dropping::new(self.settings.dropout, seed);
        model.embed_views(views, rows, &mut dropping, self.settings.compute)
    }

    /// The loss of a batch and its gradients with respect to all parameters that are trained.
    pub fn gradients(&self, batch: &Batch) -> Gradients {
        let views = self.views();
        let equal = self
            .settings
            .mask_equal_texts
            .then(|| EqualTexts::of(&batch.captions, &batch.tags));
        let rows = batch.rows();
        let at_once = self.settings.rows_at_once.clamp(1, rows);
        let loss = |embeddings: &[(View, Tensor<2>)]| {
            let temperature = self.model.temperature.val();
            contrastive_loss(embeddings, &self.settings.pairs, temperature, equal.as_ref())
        };
        if at_once == rows {
            let loss = loss(&self.embed(&self.model, &views, 0, batch));
            let gradients = GradientsParams::from_grads(loss.total.backward(), &self.model);
            return Gradients::new(gradients, &loss);
        }
        let parts: Vec<Batch> = (0..rows)
            .step_by(at_once)
            .map(|start| batch.part(start..rows.min(start + at_once)))
            .collect();
        // The embeddings of all rows, without a graph.
        let plain = self.model.valid();
        let mut embeddings: Vec<(View, Vec<Tensor<2>>)> = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            for (at, (view, x)) in self.embed(&plain, &views, i, part).into_iter().enumerate() {
                if i == 0 {
                    embeddings.push((view, Vec::new()));
                }
                embeddings[at].1.push(x);
            }
        }
        // The loss, and its gradients with respect to them.
        let leaves: Vec<(View, Tensor<2>)> = embeddings
            .into_iter()
            .map(|(view, parts)| (view, Tensor::from_inner(Tensor::cat(parts, 0)).require_grad()))
            .collect();
        let loss = loss(&leaves);
        let mut all = loss.total.backward();
        let leaf_gradients: Vec<Tensor<2>> = leaves
            .iter()
            .map(|(_, leaf)| leaf.grad_remove(&mut all).expect("each view is in the loss"))
            .collect();
        let mut sum = GradientsAccumulator::new();
        sum.accumulate(&self.model, GradientsParams::from_grads(all, &self.model));
        // Part by part, the same embeddings once more with a graph; the sum of their products with those
        // gradients has the loss's gradients with respect to the weights.
        for (i, part) in parts.iter().enumerate() {
            let products = self
                .embed(&self.model, &views, i, part)
                .into_iter()
                .zip(&leaf_gradients)
                .map(|((_, x), gradient)| {
                    let gradient = gradient.clone().narrow(0, i * at_once, part.rows());
                    (x * Tensor::from_inner(gradient)).sum()
                });
            let product = products.reduce(|a, b| a + b).expect("at least one view");
            if product.is_tracked() {
                sum.accumulate(
                    &self.model,
                    GradientsParams::from_grads(product.backward(), &self.model),
                );
            }
        }
        Gradients::new(sum.grads(), &loss)
    }

    /// Takes one step.
    ///
    /// # Errors
    /// [`Error::Config`] where the batch has fewer than two rows; [`Error::Weights`] where the loss or the
    /// gradient is not finite, with the step's number. The weights are then as they were.
    pub fn step(&mut self, batch: &Batch) -> Result<StepReport> {
        if batch.rows() < 2 {
            return Err(Error::Config(format!(
                "a batch of {} rows, expected at least 2: the others are the negatives",
                batch.rows()
            )));
        }
        let scale = self.scale();
        let gradients = self.gradients(batch);
        let number = self.step + 1;
        let not_finite = |what: &str, value: f32| {
            Err(Error::Weights(format!(
                "step {number}: the {what} is {value}, expected a finite number; a lower learning rate, a longer \
                 warm-up or a smaller clip_norm may help"
            )))
        };
        if !gradients.loss.is_finite() {
            return not_finite("loss", gradients.loss);
        }
        let (clipped, gradient_norm) = optimizer::clip(
            &self.model,
            gradients.parameters,
            self.settings.optimizer.clip_norm,
        );
        if !gradient_norm.is_finite() {
            return not_finite("gradient's length", gradient_norm);
        }
        let learning_rate = self.settings.schedule.learning_rate(self.step);
        self.model = self.optimizer.step(learning_rate, self.model.clone(), clipped);
        let highest = f64::from(100f32.ln());
        self.model.temperature = self.model.temperature.clone().map(|t| {
            let is_trained = t.is_require_grad();
            Tensor::from_inner(t.without_autodiff().clamp(0.0, highest)).set_require_grad(is_trained)
        });
        self.step = number;
        Ok(StepReport {
            step: number,
            loss: gradients.loss,
            terms: gradients.terms,
            gradient_norm,
            learning_rate,
            scale,
        })
    }

    /// The logits' scale, exp(temperature).
    pub fn scale(&self) -> f32 {
        scalar(&self.model.temperature.val()).exp()
    }
}

impl Gradients {
    fn new(parameters: GradientsParams, loss: &Loss) -> Self {
        Self {
            parameters,
            loss: scalar(&loss.total),
            terms: loss.terms.iter().map(scalar).collect(),
        }
    }
}

fn scalar(tensor: &Tensor<1>) -> f32 {
    let data = tensor.clone().without_autodiff().into_data();
    data.try_into_vec_as::<f32>()
        .expect("a float tensor reads as f32")[0]
}
