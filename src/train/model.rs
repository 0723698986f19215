//! The two towers, the tables and the temperature as one Burn module.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData as BurnData};

use super::loss::View;
use crate::ops::training::Compute;
use crate::ops::{Dropping, How, Layout, Pass, Trace};
use crate::towers::{
    EfficientNet, Ernie, Layered, Layers, Loader, PATCH_EMBED, Target, Vit, parameter, parameter_id,
};
use crate::weights::{self, TEMPERATURE, TensorData, TensorSource};
use crate::{ErnieConfig, Error, ImageConfig, ModelConfig, Result};

/// The temperature's first value.
pub const FIRST_TEMPERATURE: f32 = 2.65926;

/// What is trained: both towers with their tables, and the temperature.
#[derive(Module, Debug)]
pub struct Trainable {
    /// The image tower.
    pub image: ImageModule,
    /// The text tower behind the tables.
    pub text: Ernie,
    words: Param<Tensor<2>>,
    positions: Param<Tensor<2>>,
    sentence_types: Option<Param<Tensor<2>>>,
    task_types: Option<Param<Tensor<2>>>,
    /// The temperature, \[1\].
    pub temperature: Param<Tensor<1>>,
}

/// The image tower, whichever kind it is.
// There is one of them in a run, so the room of the larger kind is no matter.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum ImageModule {
    /// A vision transformer.
    Vit(Vit),
    /// A convolutional network.
    EfficientNet(EfficientNet),
}

impl ImageModule {
    fn forward_training(&self, pixels: Tensor<4>, compute: Compute) -> Tensor<2> {
        let pass = &mut Pass::new(
            How::training(compute, &pixels.device()),
            Trace::new("visual", None),
        );
        match self {
            Self::Vit(vit) => vit.forward(pixels, pass),
            Self::EfficientNet(net) => net.forward(pixels, pass),
        }
    }
}

/// The names and shapes of all tensors of a model in training.
pub fn tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let mut tensors = weights::image_tensors(&config.image);
    tensors.extend(weights::text_tensors(&config.text));
    tensors.push((TEMPERATURE.to_owned(), vec![1]));
    tensors
}

impl Trainable {
    /// Loads the weights onto `device`. The temperature starts at the logarithm of the configuration's
    /// `logit_scale` where `source` has none, and at [`FIRST_TEMPERATURE`] where that is not there either.
    ///
    /// # Errors
    /// [`Error::Weights`] lists what is missing and every wrong shape; [`Error::Config`] where the widths of
    /// the towers differ.
    pub fn load(source: &dyn TensorSource, config: &ModelConfig, device: &Device) -> Result<Self> {
        config.validate()?;
        if config.image.width() != config.text.width {
            return Err(Error::Config(format!(
                "image.width is {} and text.width {}, expected the same: the embeddings are compared",
                config.image.width(),
                config.text.width
            )));
        }
        let mut expected = tensors(config);
        expected.retain(|(name, _)| name != TEMPERATURE);
        weights::check(source, &expected)?;
        let loader = Loader(source);
        let text: &ErnieConfig = &config.text;
        let target = Target {
            device: device.clone(),
            layers: Layers::Apart,
        };
        let table = |name: &str, rows: usize| loader.param(name, [rows, text.width], device);
        let types = |name: &str, rows: Option<usize>| rows.map(|rows| table(name, rows)).transpose();
        let first = config
            .logit_scale
            .map_or(FIRST_TEMPERATURE, |scale| scale.ln() as f32);
        let temperature = match source.shape(TEMPERATURE) {
            Some(_) => loader.param(TEMPERATURE, [1], device)?,
            None => parameter(
                TEMPERATURE,
                Tensor::from_data(BurnData::new(vec![first], [1]), device),
            ),
        };
        Ok(Self {
            image: match &config.image {
                ImageConfig::Vit(vit) => ImageModule::Vit(Vit::load(&loader, vit, &target)?),
                ImageConfig::EfficientNet(net) => {
                    ImageModule::EfficientNet(EfficientNet::load(&loader, net, &target)?)
                }
            },
            text: Ernie::load(&loader, text, &target)?,
            words: table("text_model.word_emb.weight", text.vocab_size)?,
            positions: table("text_model.pos_emb.weight", text.max_positions)?,
            sentence_types: types("text_model.sent_emb.weight", text.sentence_types)?,
            task_types: types("text_model.task_emb.weight", text.task_types)?,
            temperature,
        })
    }

    /// Keeps the image tower as it is.
    #[must_use]
    pub fn freeze_image(mut self) -> Self {
        self.image = self.image.no_grad();
        self
    }

    /// Keeps the text tower and its tables as they are.
    #[must_use]
    pub fn freeze_text(mut self) -> Self {
        let fixed = |table: Param<Tensor<2>>| table.set_require_grad(false);
        self.text = self.text.no_grad();
        self.words = fixed(self.words);
        self.positions = fixed(self.positions);
        self.sentence_types = self.sentence_types.map(fixed);
        self.task_types = self.task_types.map(fixed);
        self
    }

    /// Texts, each its ids without padding, to embeddings [texts, width], not normalised. Texts of like
    /// length go together, so that little padding is computed.
    fn embed_texts(&self, texts: &[&[u32]], dropout: &mut Dropping, compute: Compute) -> Tensor<2> {
        /// Texts that go together at most: enough to keep the cores busy.
        const GROUP: usize = 64;
        let device = self.words.device();
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| texts[i].len());
        let groups: Vec<Tensor<2>> = order
            .chunks(GROUP)
            .map(|group| {
                let group: Vec<&[u32]> = group.iter().map(|&i| texts[i]).collect();
                self.embed_group(&group, dropout, &device, compute)
            })
            .collect();
        let mut place = vec![0i32; order.len()];
        for (at, &i) in order.iter().enumerate() {
            place[i] = at as i32;
        }
        let place = Tensor::<1, Int>::from_data(BurnData::new(place, [order.len()]), &device);
        Tensor::cat(groups, 0).select(0, place)
    }

    fn embed_group(
        &self,
        texts: &[&[u32]],
        dropout: &mut Dropping,
        device: &Device,
        compute: Compute,
    ) -> Tensor<2> {
        let (count, longest) = (texts.len(), texts.iter().map(|t| t.len()).max().unwrap_or(0));
        let mut ids = vec![0i32; count * longest];
        let mut bias = vec![-10_000.0f32; count * longest];
        for (i, text) in texts.iter().enumerate() {
            for (j, &id) in text.iter().enumerate() {
                ids[i * longest + j] = id as i32;
                if id != 0 {
                    bias[i * longest + j] = 0.0;
                }
            }
        }
        let ids = Tensor::<1, Int>::from_data(BurnData::new(ids, [count * longest]), device);
        let key_bias = Tensor::<4>::from_data(BurnData::new(bias, [count, 1, 1, longest]), device);
        let [_, width] = self.words.dims();
        let words = self.words.val().select(0, ids).reshape([count, longest, width]);
        let mut added = self.positions.val().narrow(0, 0, longest);
        for types in [&self.sentence_types, &self.task_types].into_iter().flatten() {
            added = added + types.val().narrow(0, 0, 1);
        }
        let embedded = (words + added.unsqueeze::<3>()).reshape([count * longest, width]);
        let layout = Layout::Padded {
            batch: count,
            tokens: longest,
            key_bias: Some(key_bias),
        };
        let how = How::training(compute, device);
        self.text
            .forward(embedded, &layout, &mut Pass::with_dropping(how, dropout))
    }

    /// The embeddings of the views, each [rows, width]. Views of one tower are computed together.
    pub(crate) fn embed_views(
        &self,
        views: &[View],
        batch: &super::Batch,
        dropout: &mut Dropping,
        compute: Compute,
    ) -> Vec<(View, Tensor<2>)> {
        let rows = batch.rows();
        let device = self.words.device();
        let (images, texts): (Vec<View>, Vec<View>) = views.iter().partition(|view| view.is_image());
        let mut embedded = Vec::with_capacity(views.len());
        let mut split = |views: &[View], all: Tensor<2>| {
            for (i, &view) in views.iter().enumerate() {
                embedded.push((view, all.clone().narrow(0, i * rows, rows)));
            }
        };
        if !images.is_empty() {
            let mut pixels = Vec::new();
            for &view in &images {
                pixels.extend_from_slice(match view {
                    View::Image => &batch.image,
                    _ => &batch.image_2,
                });
            }
            let size = batch.image_size;
            let pixels = BurnData::new(pixels, [images.len() * rows, 3, size, size]);
            split(
                &images,
                self.image
                    .forward_training(Tensor::from_data(pixels, &device), compute),
            );
        }
        if !texts.is_empty() {
            let mut all: Vec<&[u32]> = Vec::new();
            for &view in &texts {
                let of = match view {
                    View::Tags => &batch.tags,
                    _ => &batch.captions,
                };
                all.extend(of.iter().map(Vec::as_slice));
            }
            split(&texts, self.embed_texts(&all, dropout, compute));
        }
        embedded
    }

    /// A copy of all weights on the host, by the names that a checkpoint has.
    pub fn weights(&self, config: &ModelConfig) -> Weights {
        self.collect(config, None)
    }

    /// A copy of the gradients on the host, by the names and in the shapes of the weights; of weights that
    /// have none, it has none.
    pub fn named_gradients(&self, config: &ModelConfig, gradients: &GradientsParams) -> Weights {
        self.collect(config, Some(gradients))
    }

    fn collect(&self, config: &ModelConfig, gradients: Option<&GradientsParams>) -> Weights {
        let names = tensors(config)
            .into_iter()
            .map(|(name, shape)| (parameter_id(&name), (name, shape)))
            .collect();
        let mut collect = Collect {
            names,
            gradients,
            found: BTreeMap::new(),
        };
        self.visit(&mut collect);
        Weights(collect.found)
    }
}

struct Collect<'a> {
    names: HashMap<ParamId, (String, Vec<usize>)>,
    /// What is collected instead of the weights.
    gradients: Option<&'a GradientsParams>,
    found: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl ModuleVisitor for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (name, shape) = self.names.remove(&param.id).expect("each parameter has a name");
        let value = match self.gradients {
            None => Some(param.val().without_autodiff()),
            Some(gradients) => gradients.get::<D>(param.id),
        };
        let Some(mut value) = value else { return };
        if name == PATCH_EMBED {
            value = value.swap_dims(0, 1);
        }
        let values = value.into_data().try_into_vec_as::<f32>();
        self.found
            .insert(name, (shape, values.expect("a float tensor reads as f32")));
    }
}

/// The weights of a model in training, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl TensorSource for Weights {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).map(|(shape, _)| shape.clone())
    }

    fn read(&self, name: &str) -> Result<TensorData<'_>> {
        match self.0.get(name) {
            Some((_, values)) => Ok(TensorData::F32(Cow::Borrowed(values))),
            None => Err(Error::Weights(format!("{name} is missing"))),
        }
    }
}
