//! Towers that are built while their files arrive, so that the weights are never in memory twice.

use burn::tensor::Device;

use super::image::{ImageBody, OnDevice};
use super::load::{Layered, Loader, Target, Words};
use super::text::{ErnieOnDevice, TextBody};
use super::{EfficientNet, Engine, Ernie, ImageTower, TextTower, Vit};
use crate::weights::{TensorStream, image_tensors, text_tensors};
use crate::{ErnieConfig, ImageConfig, Result};

/// An image tower in the making, from the bytes of its safetensors file.
///
/// Each block goes to the device when its last tensor has arrived, and its tensors are dropped. So memory
/// holds the tower, as it will be, and at most a block's tensors, whatever the size of the file.
///
/// ```
/// use burn::tensor::Device;
/// use ernie_vil::VitConfig;
/// use ernie_vil::towers::{Engine, ImageTowerStream};
/// use ernie_vil::weights::{Dtype, RandomWeights, image_tensors, write_safetensors};
///
/// let config = VitConfig { image_size: 32, patch_size: 16, width: 32, depth: 2, heads: 2, mlp_width: 64, epsilon: 1e-6 };
/// let text = ernie_vil::ErnieConfig::base();
/// let mut file = Vec::new();
/// write_safetensors(&mut file, &RandomWeights::new(&config, &text, 1), &image_tensors(&config), Dtype::F16)?;
///
/// let mut stream = ImageTowerStream::new(&config, &Device::flex(), Engine::Auto)?;
/// for piece in file.chunks(10_000) {
///     stream.feed(piece)?;
/// }
/// let tower = stream.finish()?;
/// assert_eq!(tower.embed(&vec![0.0; tower.image_values()])?.dimensions(), 32);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub struct ImageTowerStream {
    config: ImageConfig,
    device: Device,
    parts: Box<dyn Parts<dyn ImageBody>>,
}

/// A text tower in the making, from the bytes of its safetensors file; as [`ImageTowerStream`].
pub struct TextTowerStream {
    config: ErnieConfig,
    device: Device,
    parts: Box<dyn Parts<dyn TextBody>>,
}

impl ImageTowerStream {
    /// Waits for the file of a tower of these sizes.
    ///
    /// # Errors
    /// [`crate::Error::Config`] where a size is out of range.
    pub fn new(config: impl Into<ImageConfig>, device: &Device, engine: Engine) -> Result<Self> {
        let config = config.into();
        config.validate()?;
        engine.check_image(&config)?;
        let parts: Box<dyn Parts<_>> = match &config {
            ImageConfig::Vit(vit) => Box::new(OfModule::<Vit>::new(image_tensors(vit), vit, device, engine)),
            ImageConfig::EfficientNet(net) => Box::new(OfModule::<EfficientNet>::new(
                image_tensors(net),
                net,
                device,
                engine,
            )),
        };
        Ok(Self::of(parts, config, device))
    }

    /// As [`ImageTowerStream::new`], on the host's kernels.
    ///
    /// # Errors
    /// As [`ImageTowerStream::new`].
    pub fn on_host(config: impl Into<ImageConfig>, device: &Device) -> Result<Self> {
        Self::new(config, device, Engine::Auto)
    }

    /// As [`ImageTowerStream::new`], on a graphics card by this crate's kernels.
    ///
    /// # Errors
    /// As [`ImageTowerStream::new`], also where a width is not a multiple of 4.
    #[cfg(feature = "webgpu")]
    pub fn on_gpu(config: impl Into<ImageConfig>, gpu: &crate::webgpu::Gpu) -> Result<Self> {
        let config = config.into();
        config.validate()?;
        let parts: Box<dyn Parts<_>> = match &config {
            ImageConfig::Vit(vit) => {
                super::webgpu::GpuVit::check(vit)?;
                Box::new(Arriving::<super::webgpu::GpuVit>::new(
                    image_tensors(vit),
                    vit,
                    gpu,
                ))
            }
            ImageConfig::EfficientNet(net) => {
                super::efficientnet::GpuEfficientNet::check(net, gpu)?;
                Box::new(Arriving::<super::efficientnet::GpuEfficientNet>::new(
                    image_tensors(net),
                    net,
                    gpu,
                ))
            }
        };
        // What is computed comes back to the host.
        Ok(Self::of(parts, config, &Device::flex()))
    }

    fn of(parts: Box<dyn Parts<dyn ImageBody>>, config: ImageConfig, device: &Device) -> Self {
        Self {
            config,
            device: device.clone(),
            parts,
        }
    }

    /// Takes the next bytes of the file.
    ///
    /// # Errors
    /// As [`TensorStream::feed`]; wrong or missing tensors are told as soon as the header has arrived.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.parts.feed(bytes)
    }

    /// The tower, when the whole file has arrived.
    ///
    /// # Errors
    /// [`crate::Error::Weights`] says where the file breaks off.
    pub fn finish(self) -> Result<ImageTower> {
        let Self {
            config,
            device,
            parts,
        } = self;
        let (body, _) = parts.finish()?;
        Ok(ImageTower { config, device, body })
    }
}

impl TextTowerStream {
    /// Waits for the file of a tower of these sizes.
    ///
    /// # Errors
    /// [`crate::Error::Config`] where a size is out of range.
    pub fn new(config: &ErnieConfig, device: &Device, engine: Engine) -> Result<Self> {
        engine.check_width("text.width", config.width)?;
        let parts = OfModule::<Ernie>::new(text_tensors(config), config, device, engine);
        Self::of(parts, config, device)
    }

    /// As [`TextTowerStream::new`], on the host's kernels.
    ///
    /// # Errors
    /// As [`TextTowerStream::new`].
    pub fn on_host(config: &ErnieConfig, device: &Device) -> Result<Self> {
        Self::new(config, device, Engine::Auto)
    }

    /// As [`TextTowerStream::new`], on a graphics card by this crate's kernels.
    ///
    /// # Errors
    /// As [`TextTowerStream::new`], also where a width is not a multiple of 4.
    #[cfg(feature = "webgpu")]
    pub fn on_gpu(config: &ErnieConfig, gpu: &crate::webgpu::Gpu) -> Result<Self> {
        super::webgpu::GpuErnie::check(config)?;
        // What is computed comes back to the host.
        let parts = Arriving::<super::webgpu::GpuErnie>::new(text_tensors(config), config, gpu);
        Self::of(parts, config, &Device::flex())
    }

    fn of(parts: impl Parts<dyn TextBody> + 'static, config: &ErnieConfig, device: &Device) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            config: config.clone(),
            device: device.clone(),
            parts: Box::new(parts),
        })
    }

    /// Takes the next bytes of the file.
    ///
    /// # Errors
    /// As [`TensorStream::feed`]; wrong or missing tensors are told as soon as the header has arrived.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.parts.feed(bytes)
    }

    /// The tower, when the whole file has arrived.
    ///
    /// # Errors
    /// [`crate::Error::Weights`] says where the file breaks off.
    pub fn finish(self) -> Result<TextTower> {
        let Self {
            config,
            device,
            parts,
        } = self;
        let (body, rest) = parts.finish()?;
        let words = Words::load(&Loader(&rest), &config)?;
        Ok(TextTower {
            config,
            device,
            words,
            body,
        })
    }
}

/// A tower in the making, whichever kind it is.
trait Parts<Body: ?Sized> {
    fn feed(&mut self, bytes: &[u8]) -> Result<()>;

    /// The tower, and what it did not use.
    fn finish(self: Box<Self>) -> Result<(Box<Body>, TensorStream)>;
}

/// The blocks of a tower that are there, and the tensors of those that are not.
struct Arriving<T: Layered> {
    config: T::Config,
    stream: TensorStream,
    /// The names of each block's tensors start with this.
    prefixes: Vec<String>,
    /// The names of each block's tensors.
    names: Vec<Vec<String>>,
    blocks: Vec<Option<T::Block>>,
    target: T::Target,
}

impl<T: Layered> Arriving<T> {
    fn new(tensors: Vec<(String, Vec<usize>)>, config: &T::Config, target: &T::Target) -> Self {
        let prefixes = T::blocks(config);
        let of_block = |prefix: &String| {
            let names = tensors.iter().map(|(name, _)| name);
            names.filter(|name| name.starts_with(prefix)).cloned().collect()
        };
        Self {
            config: config.clone(),
            names: prefixes.iter().map(of_block).collect(),
            blocks: prefixes.iter().map(|_| None).collect(),
            prefixes,
            stream: TensorStream::new(tensors),
            target: target.clone(),
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        /// Bytes at a time, so that little more than a block's tensors is held.
        const PIECE: usize = 1 << 20;
        for bytes in bytes.chunks(PIECE) {
            self.stream.feed(bytes)?;
            for (i, block) in self.blocks.iter_mut().enumerate() {
                let complete = |name: &String| self.stream.is_complete(name);
                if block.is_none() && self.names[i].iter().all(complete) {
                    *block = Some(T::load_block(
                        &Loader(&self.stream),
                        &self.config,
                        &self.target,
                        &self.prefixes[i],
                    )?);
                    self.stream.discard(&self.names[i]);
                }
            }
        }
        Ok(())
    }

    fn complete(self) -> Result<(T, TensorStream)> {
        self.stream.finish()?;
        let blocks = self.blocks.into_iter().flatten().collect();
        let tower = T::assemble(&Loader(&self.stream), &self.config, &self.target, blocks)?;
        Ok((tower, self.stream))
    }
}

/// A tower that becomes a Burn module, and how that is to compute.
struct OfModule<T: Layered> {
    arriving: Arriving<T>,
    device: Device,
    engine: Engine,
}

impl<T: Layered<Target = Target>> OfModule<T> {
    fn new(tensors: Vec<(String, Vec<usize>)>, config: &T::Config, device: &Device, engine: Engine) -> Self {
        Self {
            arriving: Arriving::new(tensors, config, &engine.target(device)),
            device: device.clone(),
            engine,
        }
    }
}

/// The body that a kind of tower is.
macro_rules! parts {
    ($tower:ty, $body:ident) => {
        impl Parts<dyn $body> for Arriving<$tower> {
            fn feed(&mut self, bytes: &[u8]) -> Result<()> {
                self.take(bytes)
            }

            fn finish(self: Box<Self>) -> Result<(Box<dyn $body>, TensorStream)> {
                let (tower, rest) = self.complete()?;
                Ok((Box::new(tower), rest))
            }
        }
    };
    ($module:ty, $body:ident, $on_device:ident) => {
        impl Parts<dyn $body> for OfModule<$module> {
            fn feed(&mut self, bytes: &[u8]) -> Result<()> {
                self.arriving.take(bytes)
            }

            fn finish(self: Box<Self>) -> Result<(Box<dyn $body>, TensorStream)> {
                let (module, rest) = self.arriving.complete()?;
                Ok((
                    Box::new($on_device::new(module, &self.device, self.engine)),
                    rest,
                ))
            }
        }
    };
}
parts!(Vit, ImageBody, OnDevice);
parts!(EfficientNet, ImageBody, OnDevice);
parts!(Ernie, TextBody, ErnieOnDevice);
#[cfg(feature = "webgpu")]
parts!(super::webgpu::GpuVit, ImageBody);
#[cfg(feature = "webgpu")]
parts!(super::efficientnet::GpuEfficientNet, ImageBody);
#[cfg(feature = "webgpu")]
parts!(super::webgpu::GpuErnie, TextBody);
