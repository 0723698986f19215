//! The image tower, whichever structure it has and whatever computes it.

use std::pin::Pin;

use burn::tensor::{DType, Device, FloatDType, Int, IntDType, Tensor, TensorData};

use super::efficientnet::EfficientNet;
use super::load::{Layered, Loader};
use super::vit::Vit;
use super::{Engine, normalised, wait};
use crate::image::Preprocessor;
use crate::kernels::convolution::Map;
use crate::kernels::for_each_chunk;
use crate::ops::{How, Pass, Step, Trace, host_values, host_values_async, narrowed, to};
use crate::vectors::Embeddings;
use crate::weights::{self, Dtype, TensorSource};
use crate::{Error, ImageConfig, Result};

/// What computes an image tower. Behind a trait, so that a program that only ever makes one kind holds no
/// code of the other: in a browser each kind is a download.
pub(super) trait ImageBody: Send + Sync {
    /// Pixels of `batch` images to raw embeddings.
    fn embed(&self, pixels: &[f32], batch: usize) -> Result<Vec<f32>>;

    /// As [`ImageBody::embed`], without blocking.
    fn embed_async<'a>(&'a self, pixels: &'a [f32], batch: usize) -> Later<'a>;

    /// As [`ImageBody::embed_async`], from the bytes of `batch` crops.
    fn embed_bytes<'a>(&'a self, bytes: &'a [u8], batch: usize, preprocessor: &'a Preprocessor) -> Later<'a> {
        Box::pin(async move {
            let pixels = normalised_pixels(bytes, preprocessor);
            self.embed_async(&pixels, batch).await
        })
    }

    /// Returns the steps of images of this size. A transformer receives images of its own size only.
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

/// A future of embeddings.
pub(super) type Later<'a> = Pin<Box<dyn Future<Output = Result<Vec<f32>>> + 'a>>;

/// The size of each of `batch` square images.
pub(super) fn square(pixels: &[f32], batch: usize) -> Map {
    Map::square((pixels.len() / (3 * batch)).isqrt())
}

/// A Burn module, its device, and how it computes.
pub(super) struct OnDevice<T> {
    module: T,
    device: Device,
    #[cfg(feature = "cube")]
    engine: Engine,
    how: How,
}

impl<M: ImageModule> OnDevice<M> {
    pub(super) fn new(module: M, device: &Device, engine: Engine) -> Self {
        let how = engine.how(device);
        Self {
            module: module.narrowed(how.options().dtype()),
            device: device.clone(),
            #[cfg(feature = "cube")]
            engine,
            how,
        }
    }
}

/// An image tower as a Burn module.
pub(super) trait ImageModule: Send + Sync {
    /// With its weights in this precision.
    fn narrowed(self, dtype: FloatDType) -> Self;

    fn forward(&self, pixels: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2>;

    /// Rows that one image comes to, and the width of its embedding.
    fn sizes(&self) -> (usize, usize);

    /// Values of the widest row, where the kernels of a card compute it.
    #[cfg(feature = "cube")]
    fn widest(&self) -> usize;

    /// How its weights are kept.
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
}

impl ImageModule for Vit {
    fn narrowed(self, dtype: FloatDType) -> Self {
        narrowed(self, dtype)
    }

    fn forward(&self, pixels: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        Vit::forward(self, pixels, pass)
    }

    fn sizes(&self) -> (usize, usize) {
        Vit::sizes(self)
    }

    #[cfg(feature = "cube")]
    fn widest(&self) -> usize {
        Vit::widest(self)
    }

    fn dtype(&self) -> Dtype {
        Vit::dtype(self)
    }
}

impl ImageModule for EfficientNet {
    fn narrowed(self, dtype: FloatDType) -> Self {
        narrowed(self, dtype)
    }

    fn forward(&self, pixels: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        EfficientNet::forward(self, pixels, pass)
    }

    fn sizes(&self) -> (usize, usize) {
        EfficientNet::sizes(self)
    }

    #[cfg(feature = "cube")]
    fn widest(&self) -> usize {
        EfficientNet::widest(self)
    }
}

impl<M: ImageModule> OnDevice<M> {
    fn embeddings(&self, pixels: Tensor<4>) -> Tensor<2> {
        self.traced(pixels, Trace::new("visual", None))
    }

    fn traced(&self, pixels: Tensor<4>, trace: Trace<'_>) -> Tensor<2> {
        let embeddings = self.module.forward(pixels, &mut Pass::new(self.how, trace));
        to(embeddings, FloatDType::F32)
    }

    fn upload(&self, pixels: &[f32], size: Map) -> Tensor<4> {
        let batch = pixels.len() / (3 * size.pixels());
        Tensor::from_data(
            TensorData::new(pixels.to_vec(), [batch, 3, size.height, size.width]),
            &self.device,
        )
    }

    /// How many images are computed at once.
    fn at_once(&self, batch: usize) -> usize {
        #[cfg(feature = "cube")]
        if self.how.on_card().is_some() {
            let (rows, _) = self.module.sizes();
            return (self.engine.rows_at_once(self.module.widest()) / rows).max(1);
        }
        batch
    }

    /// The embeddings of `batch` images, so many at a time, of whose first and number `upload` makes pixels.
    async fn in_parts(&self, batch: usize, upload: impl Fn(usize, usize) -> Tensor<4>) -> Result<Vec<f32>> {
        let most = self.at_once(batch);
        // All are begun before the first is waited for.
        let parts = (0..batch).step_by(most);
        let parts: Vec<_> = parts
            .map(|first| self.embeddings(upload(first, most.min(batch - first))))
            .collect();
        let mut values = Vec::new();
        for part in parts {
            values.append(&mut host_values_async(part).await?);
        }
        Ok(values)
    }

    /// The pixels of crops, normalised on the device: a quarter of what they are afterwards goes there.
    fn upload_bytes(&self, bytes: &[u8], batch: usize, preprocessor: &Preprocessor) -> Tensor<4> {
        let size = preprocessor.size();
        #[cfg(feature = "cube")]
        if self.how.on_card().is_some() {
            return crate::ops::cube::pixels(bytes, batch, size, preprocessor.table(), &self.device);
        }
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
    fn dtype(&self) -> Dtype {
        self.module.dtype()
    }

    fn embed(&self, pixels: &[f32], batch: usize) -> Result<Vec<f32>> {
        let size = square(pixels, batch);
        #[cfg(feature = "flex")]
        if self.how.is_packed() {
            let (rows, width) = self.module.sizes();
            let values = 3 * size.pixels();
            return Ok(crate::ops::host::in_runs(batch, rows, width, |first, count| {
                let pixels = &pixels[first * values..][..count * values];
                host_values(self.embeddings(self.upload(pixels, size)))
            }));
        }
        wait(self.embed_async(pixels, batch))
    }

    fn embed_async<'a>(&'a self, pixels: &'a [f32], batch: usize) -> Later<'a> {
        if self.how.is_packed() {
            return Box::pin(async move { self.embed(pixels, batch) });
        }
        let size = square(pixels, batch);
        let values = 3 * size.pixels();
        Box::pin(self.in_parts(batch, move |first, count| {
            self.upload(&pixels[first * values..][..count * values], size)
        }))
    }

    fn embed_bytes<'a>(&'a self, bytes: &'a [u8], batch: usize, preprocessor: &'a Preprocessor) -> Later<'a> {
        if self.how.is_packed() {
            return Box::pin(async move { self.embed(&normalised_pixels(bytes, preprocessor), batch) });
        }
        let values = preprocessor.values();
        Box::pin(self.in_parts(batch, move |first, count| {
            let bytes = &bytes[first * values..][..count * values];
            self.upload_bytes(bytes, count, preprocessor)
        }))
    }

    fn trace(&self, pixels: &[f32], size: Map) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        self.traced(self.upload(pixels, size), Trace::new("visual", Some(&mut steps)));
        Ok(steps)
    }

    fn forward(&self, pixels: &Tensor<4>) -> Option<Tensor<2>> {
        // On the host the batch is cut into runs first.
        (!self.how.is_packed()).then(|| self.embeddings(pixels.clone()))
    }
}

/// The pixels of crops, normalised.
fn normalised_pixels(bytes: &[u8], preprocessor: &Preprocessor) -> Vec<f32> {
    let values = preprocessor.values();
    let mut pixels = vec![0.0; bytes.len()];
    for_each_chunk(&mut pixels, values, |i, pixels| {
        preprocessor.normalise(&bytes[i * values..][..values], pixels);
    });
    pixels
}

/// The image tower: normalised pixels to embeddings.
pub struct ImageTower {
    pub(super) config: ImageConfig,
    pub(super) device: Device,
    pub(super) body: Box<dyn ImageBody>,
}

impl ImageTower {
    /// Loads the tower's weights; other tensors of the source are not looked at.
    ///
    /// # Errors
    /// [`Error::Config`] where a size is out of range, on a card also where a width is not a multiple of 4;
    /// [`Error::Weights`] lists every missing tensor and every wrong shape.
    pub fn load(
        source: &dyn TensorSource,
        config: impl Into<ImageConfig>,
        device: &Device,
        engine: Engine,
    ) -> Result<Self> {
        let config = config.into();
        config.validate()?;
        engine.check_image(&config)?;
        weights::check(source, &weights::image_tensors(&config))?;
        let loader = Loader(source);
        let target = engine.target(device);
        let body: Box<dyn ImageBody> = match &config {
            ImageConfig::Vit(vit) => {
                Box::new(OnDevice::new(Vit::load(&loader, vit, &target)?, device, engine))
            }
            ImageConfig::EfficientNet(net) => {
                let net = EfficientNet::load(&loader, net, &target)?;
                Box::new(OnDevice::new(net, device, engine))
            }
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
    #[cfg(feature = "webgpu")]
    pub fn load_on_gpu(
        source: &dyn TensorSource,
        config: impl Into<ImageConfig>,
        gpu: &crate::webgpu::Gpu,
    ) -> Result<Self> {
        let config = config.into();
        config.validate()?;
        let body: Box<dyn ImageBody> = match &config {
            ImageConfig::Vit(vit) => {
                super::webgpu::GpuVit::check(vit)?;
                weights::check(source, &weights::image_tensors(vit))?;
                Box::new(super::webgpu::GpuVit::load(&Loader(source), vit, gpu)?)
            }
            ImageConfig::EfficientNet(net) => {
                super::efficientnet::GpuEfficientNet::check(net, gpu)?;
                weights::check(source, &weights::image_tensors(net))?;
                Box::new(super::efficientnet::GpuEfficientNet::load(
                    &Loader(source),
                    net,
                    gpu,
                )?)
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

    /// As [`ImageTower::embed`], from crops as [`Preprocessor::crop`] makes them, \[batch, image_size,
    /// image_size, 3\], which the device normalises.
    ///
    /// # Errors
    /// As [`ImageTower::embed_raw`]; also where the preprocessor makes crops of another size.
    pub fn embed_crops(&self, crops: &[u8], preprocessor: &Preprocessor) -> Result<Embeddings> {
        wait(self.embed_crops_async(crops, preprocessor))
    }

    /// As [`ImageTower::embed_crops`], for a device whose results cannot be waited for on the thread that
    /// asks, as in a browser.
    ///
    /// # Errors
    /// As [`ImageTower::embed_crops`], and [`Error::Device`] where the device fails.
    pub async fn embed_crops_async(&self, crops: &[u8], preprocessor: &Preprocessor) -> Result<Embeddings> {
        let (size, own) = (preprocessor.size(), self.config.image_size());
        if size != own {
            return Err(Error::Image(format!(
                "crops of {size} x {size} pixels, expected {own} x {own}"
            )));
        }
        let raw = match self.batch(crops.len())? {
            0 => Vec::new(),
            batch => self.body.embed_bytes(crops, batch, preprocessor).await?,
        };
        normalised(raw, self.config.width())
    }

    /// As [`ImageTower::embed`], for a device whose results cannot be waited for on the thread that asks, as
    /// in a browser.
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

    /// As [`ImageTower::trace`], of images of any size, [batch, 3, height, width]: a convolutional network
    /// can look at them all.
    ///
    /// # Errors
    /// [`Error::Image`] where the number of values is not a multiple of an image's, where an image is empty,
    /// and where the tower is a transformer and the size not its own.
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
