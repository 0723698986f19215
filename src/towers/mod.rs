//! The image tower, the text tower, and the dual encoder that owns one of each.
//!
//! A tower's sizes come from its configuration and its weights from any
//! [`TensorSource`]. On the CPU it runs on the kernels of
//! [`crate::kernels`]; on every other device, and wherever [`Engine::Burn`] is asked for, as a Burn module.
//! Both compute the same, and both leave out what the embedding does not depend on:
//!
//! - in the last block only the first token's row is computed after keys and values;
//! - captions are computed at their true length;
//! - on the CPU and by WebGPU the word table stays on the host, and only the rows in use go to the device; a Burn module has
//!   it on the device, where only ids have to go.

mod efficientnet;
mod ernie;
#[cfg(feature = "wgpu")]
mod gpu;
mod host;
mod load;
mod precision;
mod stream;
#[cfg(feature = "train")]
mod training;
mod vit;

use std::pin::Pin;
use std::sync::OnceLock;

use burn::tensor::{DType, Device, FloatDType, Int, IntDType, Tensor, TensorData};

pub use efficientnet::EfficientNet;
pub use ernie::Ernie;
#[cfg(feature = "wgpu")]
pub use gpu::check_gpu;
pub use stream::{ImageTowerStream, TextTowerStream};
pub use vit::Vit;

#[cfg(feature = "wgpu")]
use crate::gpu::Gpu;
use crate::image::Preprocessor;
use crate::kernels::convolution::Map;
use crate::kernels::{Rows, for_each_chunk};
use crate::vectors::Embeddings;
use crate::weights::{self, Dtype, TensorSource};
use crate::{ErnieConfig, Error, ImageConfig, ModelConfig, Result};
#[cfg(feature = "wgpu")]
use efficientnet::GpuEfficientNet;
use efficientnet::HostEfficientNet;
#[cfg(feature = "wgpu")]
use gpu::{GpuErnie, GpuVit};
use host::{HostErnie, HostVit};
pub(crate) use load::{Layered, Loader};
use load::{Words, WordsOnDevice};
#[cfg(feature = "train")]
pub(crate) use load::{parameter, parameter_id};
use precision::narrowed;
pub(crate) use precision::to;
pub use precision::{Attention, BurnOptions, BurnPrecision};
#[cfg(feature = "train")]
pub(crate) use vit::PATCH_EMBED;

/// Which implementation runs a tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// The kernels of this crate on the CPU, Burn elsewhere.
    #[default]
    Auto,
    /// Burn on every device.
    Burn(BurnOptions),
}

impl Engine {
    /// Burn as it is.
    pub const BURN: Self = Self::of(BurnPrecision::Device);
    /// Burn, with products of all bits of single precision on devices that would take fewer.
    pub const BURN_SINGLE: Self = Self::of(BurnPrecision::Single);
    /// Burn in half precision.
    pub const BURN_F16: Self = Self::of(BurnPrecision::F16);
    /// Burn in bfloat16.
    pub const BURN_BF16: Self = Self::of(BurnPrecision::Bf16);

    const fn of(precision: BurnPrecision) -> Self {
        Self::Burn(BurnOptions {
            precision,
            attention: Attention::Products,
        })
    }

    fn is_host(self, device: &Device) -> bool {
        #[cfg(feature = "flex")]
        return self == Engine::Auto && *device == Device::flex() && !device.is_autodiff();
        #[cfg(not(feature = "flex"))]
        return false;
    }

    /// How Burn computes.
    pub(crate) fn burn(self) -> BurnOptions {
        match self {
            Self::Auto => BurnOptions::default(),
            Self::Burn(options) => options,
        }
    }
}

/// What came out of one step of a tower, to compare with another implementation.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The step's name: `visual.block.0.norm1`.
    pub name: String,
    /// The values' shape; rows of all sequences may stand behind one another.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub values: Vec<f32>,
}

impl Step {
    /// Puts the rows of one more image behind those that are there.
    fn append(all: &mut Vec<Step>, more: Vec<Step>) {
        if all.is_empty() {
            *all = more;
            return;
        }
        for (step, more) in all.iter_mut().zip(more) {
            step.shape[0] += more.shape[0];
            step.values.extend(more.values);
        }
    }
}

/// Writes down steps where somebody wants to see them.
struct Observe<'a> {
    prefix: &'static str,
    inside: Option<String>,
    steps: Option<&'a mut Vec<Step>>,
}

/// Whether steps can be written down. In a module for JavaScript nobody can ask for them, and what would write them is
/// left out of the download.
const OBSERVABLE: bool = !cfg!(feature = "web");

impl<'a> Observe<'a> {
    fn new(prefix: &'static str, steps: Option<&'a mut Vec<Step>>) -> Self {
        Self {
            prefix,
            inside: None,
            steps,
        }
    }

    /// What follows happens inside the block of this name.
    fn enter(&mut self, block: std::fmt::Arguments<'_>) {
        if self.is_on() {
            self.inside = Some(block.to_string());
        }
    }

    /// Whether anybody wants to see them.
    fn is_on(&self) -> bool {
        OBSERVABLE && self.steps.is_some()
    }

    fn leave(&mut self) {
        self.inside = None;
    }

    fn push(&mut self, name: &str, shape: impl FnOnce() -> Vec<usize>, values: impl FnOnce() -> Vec<f32>) {
        if !OBSERVABLE {
            return;
        }
        let Some(steps) = self.steps.as_deref_mut() else {
            return;
        };
        let parts = [Some(self.prefix), self.inside.as_deref(), Some(name)];
        let parts: Vec<&str> = parts
            .into_iter()
            .flatten()
            .filter(|part| !part.is_empty())
            .collect();
        steps.push(Step {
            name: parts.join("."),
            shape: shape(),
            values: values(),
        });
    }

    fn rows(&mut self, name: &str, rows: &Rows<'_>) {
        self.push(
            name,
            || vec![rows.rows, rows.width],
            || (0..rows.rows).flat_map(|i| rows.row(i).to_vec()).collect(),
        );
    }

    fn tensor<const D: usize>(&mut self, name: &str, tensor: &Tensor<D>) {
        self.push(name, || tensor.dims().to_vec(), || host_values(tensor.clone()));
    }
}

/// What computes an image tower. Behind a trait, so that a program that only ever makes one kind holds no code of
/// the other: in a browser each kind is a download.
trait ImageBody: Send + Sync {
    /// Pixels of `batch` images to raw embeddings.
    fn embed(&self, pixels: &[f32], batch: usize) -> Result<Vec<f32>>;

    /// As [`ImageBody::embed`], without blocking.
    fn embed_async<'a>(&'a self, pixels: &'a [f32], batch: usize) -> Later<'a>;

    /// As [`ImageBody::embed`], from the bytes of `batch` crops.
    fn embed_bytes(&self, bytes: &[u8], batch: usize, preprocessor: &Preprocessor) -> Result<Vec<f32>> {
        let values = preprocessor.values();
        let mut pixels = vec![0.0; bytes.len()];
        for_each_chunk(&mut pixels, values, |i, pixels| {
            preprocessor.normalise(&bytes[i * values..][..values], pixels);
        });
        self.embed(&pixels, batch)
    }

    /// Every step of the way of images of this size, which a transformer is not asked for any but its own.
    fn trace(&self, pixels: &[f32], size: Map) -> Result<Vec<Step>>;

    /// How its weights are kept.
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    /// The embeddings on the device, where it is a Burn module.
    fn forward(&self, _pixels: &Tensor<4>) -> Option<Tensor<2>> {
        None
    }
}

/// Values that will be there.
type Later<'a> = Pin<Box<dyn Future<Output = Result<Vec<f32>>> + 'a>>;

impl ImageBody for HostVit {
    fn dtype(&self) -> Dtype {
        HostVit::dtype(self)
    }

    fn embed(&self, pixels: &[f32], batch: usize) -> Result<Vec<f32>> {
        let mut output = vec![0.0; batch * self.width()];
        self.forward(pixels, &mut output);
        Ok(output)
    }

    fn embed_async<'a>(&'a self, pixels: &'a [f32], batch: usize) -> Later<'a> {
        Box::pin(async move { self.embed(pixels, batch) })
    }

    fn trace(&self, pixels: &[f32], size: Map) -> Result<Vec<Step>> {
        let batch = pixels.len() / (3 * size.pixels());
        let mut steps = Vec::new();
        self.forward_observed(pixels, &mut vec![0.0; batch * self.width()], &mut steps);
        Ok(steps)
    }
}

impl ImageBody for HostEfficientNet {
    fn embed(&self, pixels: &[f32], batch: usize) -> Result<Vec<f32>> {
        let mut output = vec![0.0; batch * self.width()];
        self.forward(pixels, square(pixels, batch), &mut output);
        Ok(output)
    }

    fn embed_async<'a>(&'a self, pixels: &'a [f32], batch: usize) -> Later<'a> {
        Box::pin(async move { self.embed(pixels, batch) })
    }

    fn trace(&self, pixels: &[f32], size: Map) -> Result<Vec<Step>> {
        Ok(self.forward_observed(pixels, size))
    }
}

/// The size of each of `batch` square images.
fn square(pixels: &[f32], batch: usize) -> Map {
    Map::square((pixels.len() / (3 * batch)).isqrt())
}

/// A Burn module, its device, and how it computes.
struct OnDevice<T> {
    module: T,
    device: Device,
    how: BurnOptions,
}

impl<M: ImageModule> OnDevice<M> {
    fn new(module: M, device: &Device, engine: Engine) -> Self {
        Self {
            module: module.narrowed(engine.burn().dtype()),
            device: device.clone(),
            how: engine.burn(),
        }
    }
}

/// An image tower as a Burn module.
trait ImageModule: Send + Sync {
    /// With its weights in this precision.
    fn narrowed(self, dtype: FloatDType) -> Self;

    fn observed(&self, pixels: Tensor<4>, how: BurnOptions, observe: &mut Observe<'_>) -> Tensor<2>;
}

impl ImageModule for Vit {
    fn narrowed(self, dtype: FloatDType) -> Self {
        narrowed(self, dtype)
    }

    fn observed(&self, pixels: Tensor<4>, how: BurnOptions, observe: &mut Observe<'_>) -> Tensor<2> {
        self.forward_observed(pixels, how, observe)
    }
}

impl ImageModule for EfficientNet {
    /// Its weights are multiplied with what the normalisations keep, in single precision.
    fn narrowed(self, _dtype: FloatDType) -> Self {
        self
    }

    fn observed(&self, pixels: Tensor<4>, how: BurnOptions, observe: &mut Observe<'_>) -> Tensor<2> {
        self.forward_observed(pixels, how, observe)
    }
}

impl<M: ImageModule> OnDevice<M> {
    fn embeddings(&self, pixels: Tensor<4>) -> Tensor<2> {
        self.observed(pixels, &mut Observe::new("visual", None))
    }

    fn observed(&self, pixels: Tensor<4>, observe: &mut Observe<'_>) -> Tensor<2> {
        let embeddings = self
            .module
            .observed(to(pixels, self.how.dtype()), self.how, observe);
        to(embeddings, FloatDType::F32)
    }

    fn upload(&self, pixels: &[f32], size: Map) -> Tensor<4> {
        let batch = pixels.len() / (3 * size.pixels());
        Tensor::from_data(
            TensorData::new(pixels.to_vec(), [batch, 3, size.height, size.width]),
            &self.device,
        )
    }

    /// The pixels of crops, normalised on the device: a quarter of what they are afterwards goes there.
    fn upload_bytes(&self, bytes: &[u8], batch: usize, preprocessor: &Preprocessor) -> Tensor<4> {
        let size = preprocessor.size();
        let data = TensorData::new(bytes.to_vec(), [batch, size, size, 3]);
        let bytes = Tensor::<4, Int>::from_data(data, (&self.device, DType::U8)).cast(IntDType::I32);
        let first = Tensor::<1, Int>::from_ints([0, 256, 512], &self.device);
        let places = (bytes + first.unsqueeze()).permute([0, 3, 1, 2]);
        let table = TensorData::new(preprocessor.table().concat(), [3 * 256]);
        let pixels = Tensor::<1>::from_data(table, &self.device).select(0, places.reshape([-1]));
        pixels.reshape([batch, 3, size, size])
    }
}

impl<M: ImageModule> ImageBody for OnDevice<M> {
    fn embed(&self, pixels: &[f32], batch: usize) -> Result<Vec<f32>> {
        let pixels = self.upload(pixels, square(pixels, batch));
        Ok(host_values(self.embeddings(pixels)))
    }

    fn embed_async<'a>(&'a self, pixels: &'a [f32], batch: usize) -> Later<'a> {
        let pixels = self.upload(pixels, square(pixels, batch));
        Box::pin(async move { host_values_async(self.embeddings(pixels)).await })
    }

    fn embed_bytes(&self, bytes: &[u8], batch: usize, preprocessor: &Preprocessor) -> Result<Vec<f32>> {
        Ok(host_values(self.embeddings(self.upload_bytes(
            bytes,
            batch,
            preprocessor,
        ))))
    }

    fn trace(&self, pixels: &[f32], size: Map) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        let pixels = self.upload(pixels, size);
        self.observed(pixels, &mut Observe::new("visual", Some(&mut steps)));
        Ok(steps)
    }

    fn forward(&self, pixels: &Tensor<4>) -> Option<Tensor<2>> {
        Some(self.embeddings(pixels.clone()))
    }
}

/// The image tower: normalised pixels to embeddings.
pub struct ImageTower {
    config: ImageConfig,
    device: Device,
    body: Box<dyn ImageBody>,
}

impl ImageTower {
    /// Loads the tower's weights; other tensors of the source are not looked at.
    ///
    /// # Errors
    /// [`Error::Config`] where a size is out of range; [`Error::Weights`] lists every missing tensor and
    /// every wrong shape.
    pub fn load(
        source: &dyn TensorSource,
        config: impl Into<ImageConfig>,
        device: &Device,
        engine: Engine,
    ) -> Result<Self> {
        let config = config.into();
        config.validate()?;
        weights::check(source, &weights::image_tensors(&config))?;
        let loader = Loader(source);
        let body: Box<dyn ImageBody> = match (&config, engine.is_host(device)) {
            (ImageConfig::Vit(vit), true) => Box::new(HostVit::load(&loader, vit, device)?),
            (ImageConfig::EfficientNet(net), true) => Box::new(HostEfficientNet::load(&loader, net, device)?),
            (ImageConfig::Vit(vit), false) => {
                Box::new(OnDevice::new(Vit::load(&loader, vit, device)?, device, engine))
            }
            (ImageConfig::EfficientNet(net), false) => Box::new(OnDevice::new(
                EfficientNet::load(&loader, net, device)?,
                device,
                engine,
            )),
        };
        Ok(Self {
            config,
            device: device.clone(),
            body,
        })
    }

    /// As [`ImageTower::load`], on a graphics card by this crate's kernels.
    ///
    /// # Errors
    /// As [`ImageTower::load`]; [`Error::Config`] also where a width is not a multiple of 4.
    #[cfg(feature = "wgpu")]
    pub fn load_on_gpu(source: &dyn TensorSource, config: impl Into<ImageConfig>, gpu: &Gpu) -> Result<Self> {
        let config = config.into();
        config.validate()?;
        let body: Box<dyn ImageBody> = match &config {
            ImageConfig::Vit(vit) => {
                GpuVit::check(vit)?;
                weights::check(source, &weights::image_tensors(vit))?;
                Box::new(GpuVit::load(&Loader(source), vit, gpu)?)
            }
            ImageConfig::EfficientNet(net) => {
                GpuEfficientNet::check(net, gpu)?;
                weights::check(source, &weights::image_tensors(net))?;
                Box::new(GpuEfficientNet::load(&Loader(source), net, gpu)?)
            }
        };
        Ok(Self {
            config,
            // What is computed comes back to the host.
            device: Device::flex(),
            body,
        })
    }

    /// The tower's sizes.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// How the weights of its blocks are kept.
    pub fn dtype(&self) -> Dtype {
        self.body.dtype()
    }

    /// Values of one image: 3 * image_size * image_size.
    pub fn image_values(&self) -> usize {
        3 * self.config.image_size() * self.config.image_size()
    }

    /// Pixels [batch, 3, image_size, image_size] to embeddings [batch, width], not normalised.
    ///
    /// # Panics
    /// Where the tensor has another shape.
    pub fn forward(&self, pixels: Tensor<4>) -> Tensor<2> {
        let [batch, channels, height, width] = pixels.dims();
        assert_eq!(
            [channels, height, width],
            [3, self.config.image_size(), self.config.image_size()],
            "an image's shape"
        );
        match self.body.forward(&pixels) {
            Some(embeddings) => embeddings,
            None => {
                let pixels = host_values(pixels);
                let raw = self.embed_raw(&pixels).expect("the shape was checked");
                Tensor::from_data(TensorData::new(raw, [batch, self.config.width()]), &self.device)
            }
        }
    }

    /// Pixels [batch, 3, image_size, image_size] on the host to embeddings [batch, width] on the host, not
    /// normalised.
    ///
    /// # Errors
    /// [`Error::Image`] where the number of values is not a multiple of an image's.
    pub fn embed_raw(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        match self.batch(pixels.len())? {
            0 => Ok(Vec::new()),
            batch => self.body.embed(pixels, batch),
        }
    }

    /// As [`ImageTower::embed_raw`], each embedding divided by its length.
    ///
    /// # Errors
    /// As [`ImageTower::embed_raw`].
    pub fn embed(&self, pixels: &[f32]) -> Result<Embeddings> {
        normalised(self.embed_raw(pixels)?, self.config.width())
    }

    /// As [`ImageTower::embed`], from crops as [`Preprocessor::crop`] makes them, \[batch, image_size, image_size, 3\], which
    /// the device normalises.
    ///
    /// # Errors
    /// As [`ImageTower::embed_raw`]; also where the preprocessor makes crops of another size.
    pub fn embed_crops(&self, crops: &[u8], preprocessor: &Preprocessor) -> Result<Embeddings> {
        let (size, own) = (preprocessor.size(), self.config.image_size());
        if size != own {
            return Err(Error::Image(format!(
                "crops of {size} x {size} pixels, expected {own} x {own}"
            )));
        }
        let raw = match self.batch(crops.len())? {
            0 => Vec::new(),
            batch => self.body.embed_bytes(crops, batch, preprocessor)?,
        };
        normalised(raw, self.config.width())
    }

    /// As [`ImageTower::embed`], for a device whose results cannot be waited for on the thread that asks, as in a
    /// browser.
    ///
    /// # Errors
    /// As [`ImageTower::embed_raw`], and [`Error::Device`] where the device fails.
    pub async fn embed_async(&self, pixels: &[f32]) -> Result<Embeddings> {
        let raw = match self.batch(pixels.len())? {
            0 => Vec::new(),
            batch => self.body.embed_async(pixels, batch).await?,
        };
        normalised(raw, self.config.width())
    }

    /// As [`ImageTower::embed_raw`], with what comes out of every step instead of the embeddings.
    ///
    /// # Errors
    /// As [`ImageTower::embed_raw`].
    pub fn trace(&self, pixels: &[f32]) -> Result<Vec<Step>> {
        self.batch(pixels.len())?;
        self.body.trace(pixels, Map::square(self.config.image_size()))
    }

    /// As [`ImageTower::trace`], of images of any size, [batch, 3, height, width]: a convolutional network can look at
    /// them all.
    ///
    /// # Errors
    /// [`Error::Image`] where the number of values is not a multiple of an image's, where an image is empty, and where the tower is a
    /// transformer and the size not its own.
    pub fn trace_sized(&self, pixels: &[f32], height: usize, width: usize) -> Result<Vec<Step>> {
        let own = self.config.image_size();
        if matches!(self.config, ImageConfig::Vit(_)) && (height, width) != (own, own) {
            return Err(Error::Image(format!(
                "{height} x {width} pixels, expected {own} x {own}, the transformer's size"
            )));
        }
        let values = height.checked_mul(width).and_then(|n| n.checked_mul(3));
        match values {
            Some(values @ 1..) if pixels.len().is_multiple_of(values) => {
                self.body.trace(pixels, Map { height, width })
            }
            _ => Err(Error::Image(format!(
                "{} values, expected a multiple of 3 x {height} x {width}",
                pixels.len()
            ))),
        }
    }

    /// How many images so many values are.
    fn batch(&self, values: usize) -> Result<usize> {
        if !values.is_multiple_of(self.image_values()) {
            let size = self.config.image_size();
            return Err(Error::Image(format!(
                "{values} values, expected a multiple of {} (3 x {size} x {size})",
                self.image_values()
            )));
        }
        Ok(values / self.image_values())
    }
}

/// What computes a text tower, from checked captions without padding; as [`ImageBody`].
trait TextBody: Send + Sync {
    fn embed(&self, words: &Words, captions: &[&[u32]]) -> Result<Vec<f32>>;

    fn embed_async<'a>(&'a self, words: &'a Words, captions: &'a [&'a [u32]]) -> Later<'a>;

    fn trace(&self, words: &Words, captions: &[&[u32]]) -> Result<Vec<Step>>;

    /// How its weights are kept.
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    /// The embeddings on the device, where it is a Burn module.
    fn forward(&self, _words: &Words, _captions: &[&[u32]]) -> Option<Tensor<2>> {
        None
    }
}

impl TextBody for HostErnie {
    fn dtype(&self) -> Dtype {
        HostErnie::dtype(self)
    }

    fn embed(&self, words: &Words, captions: &[&[u32]]) -> Result<Vec<f32>> {
        let mut output = vec![0.0; captions.len() * words.width()];
        self.forward(words, captions, &mut output);
        Ok(output)
    }

    fn embed_async<'a>(&'a self, words: &'a Words, captions: &'a [&'a [u32]]) -> Later<'a> {
        Box::pin(async move { TextBody::embed(self, words, captions) })
    }

    fn trace(&self, words: &Words, captions: &[&[u32]]) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        let mut output = vec![0.0; captions.len() * words.width()];
        self.forward_observed(words, captions, &mut output, &mut steps);
        Ok(steps)
    }
}

/// A text tower as a Burn module, with its tables, which follow with the first captions.
struct ErnieOnDevice {
    module: Ernie,
    device: Device,
    how: BurnOptions,
    tables: OnceLock<WordsOnDevice>,
}

impl ErnieOnDevice {
    fn new(module: Ernie, device: &Device, engine: Engine) -> Self {
        Self {
            module: narrowed(module.for_inference(), engine.burn().dtype()),
            device: device.clone(),
            how: engine.burn(),
            tables: OnceLock::new(),
        }
    }

    /// Captions of like length together: each group is padded to its longest only.
    fn grouped(&self, words: &Words, captions: &[&[u32]]) -> Tensor<2> {
        let tables = self.tables.get_or_init(|| words.on_device(&self.device));
        let step = self.how.token_step();
        let length = |i: usize| captions[i].len().next_multiple_of(step).min(words.positions());
        let mut order: Vec<usize> = (0..captions.len()).collect();
        order.sort_by_key(|&i| length(i));
        let groups = order.chunk_by(|&a, &b| length(a) == length(b)).map(|group| {
            let length = length(group[0]);
            let mut ids = vec![0i32; group.len() * length];
            for (ids, &i) in ids.chunks_exact_mut(length).zip(group) {
                for (to, &id) in ids.iter_mut().zip(captions[i]) {
                    *to = id as i32;
                }
            }
            let key_bias = self.key_bias(ids.iter().map(|&id| id == 0), length);
            let count = ids.len();
            let ids = Tensor::from_data(TensorData::new(ids, [count]), &self.device);
            let observe = &mut Observe::new("text", None);
            let embedded = tables.embed(ids, length);
            self.module
                .forward_observed(embedded, key_bias, self.how, observe)
        });
        let sorted = Tensor::cat(groups.collect(), 0);
        let mut place = vec![0i32; order.len()];
        for (at, &i) in order.iter().enumerate() {
            place[i] = at as i32;
        }
        let place = Tensor::from_data(TensorData::new(place, [order.len()]), &self.device);
        sorted.select(0, place)
    }

    /// The keys' bias [captions, 1, 1, length] by which tokens are padding.
    fn key_bias(&self, padding: impl Iterator<Item = bool>, length: usize) -> Tensor<4> {
        let bias: Vec<f32> = padding.map(|is| if is { -10_000.0 } else { 0.0 }).collect();
        let captions = bias.len() / length;
        Tensor::from_data(TensorData::new(bias, [captions, 1, 1, length]), &self.device)
    }
}

impl TextBody for ErnieOnDevice {
    fn embed(&self, words: &Words, captions: &[&[u32]]) -> Result<Vec<f32>> {
        Ok(host_values(self.grouped(words, captions)))
    }

    fn embed_async<'a>(&'a self, words: &'a Words, captions: &'a [&'a [u32]]) -> Later<'a> {
        Box::pin(async move { host_values_async(self.grouped(words, captions)).await })
    }

    fn trace(&self, words: &Words, captions: &[&[u32]]) -> Result<Vec<Step>> {
        let (batch, width) = (captions.len(), words.width());
        let longest = captions.iter().map(|c| c.len()).max().unwrap_or(0);
        let mut embedded = vec![0.0; batch * longest * width];
        let mut is_padding = vec![true; batch * longest];
        for (i, caption) in captions.iter().enumerate() {
            for (position, &id) in caption.iter().enumerate() {
                let row = i * longest + position;
                words.embed(id, position, &mut embedded[row * width..][..width]);
                is_padding[row] = id == 0;
            }
        }
        let embedded = TensorData::new(embedded, [batch, longest, width]);
        let embedded = Tensor::from_data(embedded, &self.device);
        let key_bias = self.key_bias(is_padding.into_iter(), longest);
        let mut steps = Vec::new();
        let mut observe = Observe::new("text", Some(&mut steps));
        self.module
            .forward_observed(embedded, key_bias, self.how, &mut observe);
        Ok(steps)
    }

    fn forward(&self, words: &Words, captions: &[&[u32]]) -> Option<Tensor<2>> {
        Some(self.grouped(words, captions))
    }
}

/// A caption's tokens, with what ERNIE 2.0 is told of each beside its id. The embeddings of this project's models
/// count positions from 0 and have all types 0; this is for comparison with other implementations.
#[derive(Debug, Clone, Copy)]
pub struct TypedCaption<'a> {
    /// The tokens' ids.
    pub ids: &'a [u32],
    /// Each token's row of the position table.
    pub positions: &'a [u32],
    /// Each token's row of the sentence-type table; not looked at where the model has none.
    pub sentence_types: &'a [u32],
    /// Each token's row of the task-type table; likewise.
    pub task_types: &'a [u32],
}

/// The text tower: token ids to embeddings.
pub struct TextTower {
    config: ErnieConfig,
    device: Device,
    words: Words,
    body: Box<dyn TextBody>,
}

impl TextTower {
    /// Loads the tower's weights; other tensors of the source are not looked at.
    ///
    /// # Errors
    /// [`Error::Config`] where a size is out of range; [`Error::Weights`] lists every missing tensor and
    /// every wrong shape.
    pub fn load(
        source: &dyn TensorSource,
        config: &ErnieConfig,
        device: &Device,
        engine: Engine,
    ) -> Result<Self> {
        config.validate()?;
        weights::check(source, &weights::text_tensors(config))?;
        let loader = Loader(source);
        let words = Words::load(&loader, config)?;
        let body: Box<dyn TextBody> = match engine.is_host(device) {
            true => Box::new(HostErnie::load(&loader, config, device)?),
            false => Box::new(ErnieOnDevice::new(
                Ernie::load(&loader, config, device)?,
                device,
                engine,
            )),
        };
        Ok(Self {
            config: config.clone(),
            device: device.clone(),
            words,
            body,
        })
    }

    /// As [`TextTower::load`], on a graphics card by this crate's kernels.
    ///
    /// # Errors
    /// As [`TextTower::load`]; [`Error::Config`] also where a width is not a multiple of 4.
    #[cfg(feature = "wgpu")]
    pub fn load_on_gpu(source: &dyn TensorSource, config: &ErnieConfig, gpu: &Gpu) -> Result<Self> {
        config.validate()?;
        GpuErnie::check(config)?;
        weights::check(source, &weights::text_tensors(config))?;
        let loader = Loader(source);
        Ok(Self {
            config: config.clone(),
            device: Device::flex(),
            words: Words::load(&loader, config)?,
            body: Box::new(GpuErnie::load(&loader, config, gpu)?),
        })
    }

    /// The tower's sizes.
    pub fn config(&self) -> &ErnieConfig {
        &self.config
    }

    /// How the weights of its blocks are kept.
    pub fn dtype(&self) -> Dtype {
        self.body.dtype()
    }

    /// Captions, each its token ids (padding at the end may be there or not), to embeddings
    /// [captions, width], not normalised.
    ///
    /// # Errors
    /// [`Error::Text`] names the caption that is empty, starts with padding, is longer than the position
    /// table, or has an id beyond the word table.
    pub fn forward(&self, captions: &[&[u32]]) -> Result<Tensor<2>> {
        let captions = self.check(captions)?;
        if let Some(embeddings) = self.body.forward(&self.words, &captions) {
            return Ok(embeddings);
        }
        let raw = self.body.embed(&self.words, &captions)?;
        Ok(Tensor::from_data(
            TensorData::new(raw, [captions.len(), self.config.width]),
            &self.device,
        ))
    }

    /// As [`TextTower::forward`], on the host.
    ///
    /// # Errors
    /// As [`TextTower::forward`].
    pub fn embed_raw(&self, captions: &[&[u32]]) -> Result<Vec<f32>> {
        match captions {
            [] => Ok(Vec::new()),
            _ => self.body.embed(&self.words, &self.check(captions)?),
        }
    }

    /// As [`TextTower::embed_raw`], each embedding divided by its length.
    ///
    /// # Errors
    /// As [`TextTower::forward`].
    pub fn embed(&self, captions: &[&[u32]]) -> Result<Embeddings> {
        normalised(self.embed_raw(captions)?, self.config.width)
    }

    /// As [`TextTower::embed`], for a device whose results cannot be waited for on the thread that asks, as in a
    /// browser.
    ///
    /// # Errors
    /// As [`TextTower::forward`], and [`Error::Device`] where the device fails.
    pub async fn embed_async(&self, captions: &[&[u32]]) -> Result<Embeddings> {
        let captions = self.check(captions)?;
        let raw = match captions.is_empty() {
            true => Vec::new(),
            false => self.body.embed_async(&self.words, &captions).await?,
        };
        normalised(raw, self.config.width)
    }

    /// As [`TextTower::embed_raw`], with what comes out of every step instead of the embeddings. The
    /// captions are computed as one batch.
    ///
    /// # Errors
    /// As [`TextTower::forward`].
    pub fn trace(&self, captions: &[&[u32]]) -> Result<Vec<Step>> {
        let captions = self.check(captions)?;
        self.body.trace(&self.words, &captions)
    }

    /// As [`TextTower::trace`], of one caption of which more is said than its ids.
    ///
    /// # Errors
    /// As [`TextTower::forward`]; [`Error::Text`] also where a list has another length than `ids`, or an entry that
    /// the model's table has no row for.
    pub fn trace_typed(&self, caption: &TypedCaption<'_>) -> Result<Vec<Step>> {
        let types = [
            (
                "sentence type",
                self.config.sentence_types,
                caption.sentence_types,
            ),
            ("task type", self.config.task_types, caption.task_types),
        ];
        let positions = ("position", Some(self.config.max_positions), caption.positions);
        let lists = types.into_iter().chain([positions]);
        for (name, rows, list) in lists.filter_map(|(name, rows, list)| Some((name, rows?, list))) {
            if list.len() != caption.ids.len() {
                let (found, expected) = (list.len(), caption.ids.len());
                return Err(Error::Text(format!(
                    "{found} {name}s, expected {expected}, one a token"
                )));
            }
            if let Some(entry) = list.iter().find(|&&entry| entry as usize >= rows) {
                return Err(Error::Text(format!(
                    "the {name} {entry}, expected less than {rows}"
                )));
            }
        }
        let captions = self.check(&[caption.ids])?;
        let types = types.iter().filter(|(_, rows, _)| rows.is_some());
        let types: Vec<_> = types.map(|&(_, _, list)| list).collect();
        self.body
            .trace(&self.words.typed(caption.positions, &types), &captions)
    }

    /// Checks the captions and cuts the padding off their ends.
    fn check<'a>(&self, captions: &[&'a [u32]]) -> Result<Vec<&'a [u32]>> {
        let check = |(i, caption): (usize, &&'a [u32])| {
            let tokens = caption.iter().rposition(|&id| id != 0).map_or(0, |last| last + 1);
            let caption = &caption[..tokens];
            let problem = if caption.first().is_none_or(|&id| id == 0) {
                "it starts with padding (id 0) or is empty, expected [CLS] first".to_owned()
            } else if tokens > self.config.max_positions {
                format!("{tokens} tokens, expected at most {}", self.config.max_positions)
            } else if let Some(id) = caption.iter().find(|&&id| id as usize >= self.config.vocab_size) {
                format!("the id {id}, expected less than {}", self.config.vocab_size)
            } else {
                return Ok(caption);
            };
            Err(Error::Text(format!("caption {i}: {problem}")))
        };
        captions.iter().enumerate().map(check).collect()
    }
}

/// Reads a tensor back to the host in single precision.
fn host_values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor
        .into_data()
        .try_into_vec_as::<f32>()
        .expect("a float tensor reads as f32")
}

/// As [`host_values`], without blocking.
async fn host_values_async<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let data = tensor.into_data_async().await;
    let data = data.map_err(|error| Error::Device(error.to_string()))?;
    Ok(data
        .try_into_vec_as::<f32>()
        .expect("a float tensor reads as f32"))
}

fn normalised(raw: Vec<f32>, width: usize) -> Result<Embeddings> {
    let mut embeddings = Embeddings::new(raw.len() / width, width, raw)?;
    embeddings.normalise()?;
    Ok(embeddings)
}

/// A model's two towers, either of which may be absent.
pub struct DualEncoder {
    /// What the model folder says of the model.
    pub config: ModelConfig,
    /// The image tower, where it was loaded.
    pub image: Option<ImageTower>,
    /// The text tower, where it was loaded.
    pub text: Option<TextTower>,
}

impl DualEncoder {
    /// Loads the towers for which there is a source.
    ///
    /// # Errors
    /// Those of [`ImageTower::load`] and [`TextTower::load`].
    pub fn load(
        config: ModelConfig,
        image: Option<&dyn TensorSource>,
        text: Option<&dyn TensorSource>,
        device: &Device,
        engine: Engine,
    ) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            image: image
                .map(|s| ImageTower::load(s, &config.image, device, engine))
                .transpose()?,
            text: text
                .map(|s| TextTower::load(s, &config.text, device, engine))
                .transpose()?,
            config,
        })
    }

    /// As [`DualEncoder::load`], on a graphics card by this crate's kernels.
    ///
    /// # Errors
    /// Those of [`ImageTower::load_on_gpu`] and [`TextTower::load_on_gpu`].
    #[cfg(feature = "wgpu")]
    pub fn load_on_gpu(
        config: ModelConfig,
        image: Option<&dyn TensorSource>,
        text: Option<&dyn TensorSource>,
        gpu: &Gpu,
    ) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            image: image
                .map(|s| ImageTower::load_on_gpu(s, &config.image, gpu))
                .transpose()?,
            text: text
                .map(|s| TextTower::load_on_gpu(s, &config.text, gpu))
                .transpose()?,
            config,
        })
    }
}
