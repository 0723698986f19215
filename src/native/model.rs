//! A model folder in memory: its tokenizer, and its towers on every device that computes.
//!
//! ```no_run
//! use ernie_vil::native::{Device, Model, Towers};
//! # fn main() -> ernie_vil::native::Result<()> {
//! let model = Model::open("ernie-vil-base".as_ref(), Towers::BOTH, &[Device::Cpu.into()])?;
//! let ids = model.encode("雪地里的红色汽车")?;
//! let vector = model.embed_captions(0, &[&ids])?;
//! assert_eq!(vector.rows(), 1);
//! # Ok(())
//! # }
//! ```

use std::path::Path;

use burn::tensor::Device as BurnDevice;

use super::Result;
#[cfg(feature = "cuda")]
use super::cuda;
#[cfg(feature = "wgpu")]
use super::device::gpu;
use super::device::{Device, DeviceDtype, DeviceOptions};
use super::error::{Context, ensure};
use super::folder::{IMAGE, TEXT, check_sizes, read_config, read_manifest, read_tokenizer, tower_file};
use crate::image::Preprocessor;
use crate::recall::{self, Ranks};
use crate::text::Tokenizer;
#[cfg(feature = "wgpu")]
use crate::towers::Precision;
use crate::towers::{Attention, BurnOptions, BurnPrecision, DualEncoder, Engine, ImageTower, TextTower};
use crate::vectors::Embeddings;
use crate::weights::{SafetensorsFile, TensorSource};
use crate::{Error, ModelConfig};

/// Which towers are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Towers {
    /// The image tower.
    pub image: bool,
    /// The text tower.
    pub text: bool,
}

impl Towers {
    /// Both of them.
    pub const BOTH: Self = Self {
        image: true,
        text: true,
    };
}

/// A tokenizer and the towers.
pub struct Model {
    /// What makes token ids of captions.
    pub tokenizer: Tokenizer,
    /// The same towers on each device.
    pub encoders: Vec<DualEncoder>,
    /// What each device stands for, never `auto`.
    pub devices: Vec<Device>,
}

impl Model {
    /// Loads towers of a model folder onto devices, of which there has to be at least one. Large files are
    /// mapped, and may not change meanwhile.
    ///
    /// # Errors
    /// Where a file is missing, is not as the manifest says or is not valid, and where a device cannot be
    /// used.
    pub fn open(folder: &Path, towers: Towers, devices: &[DeviceOptions]) -> Result<Self> {
        ensure!(!devices.is_empty(), "no device, expected at least one");
        let config = read_config(folder)?;
        let manifest = read_manifest(folder)?;
        check_sizes(folder, &manifest)?;
        let tokenizer = read_tokenizer(folder, &config)?;
        let load = |name: &str, wanted: bool, towers: Towers| {
            if !wanted {
                return Ok(None);
            }
            let bytes = tower_file(folder, &manifest, name)?;
            let load = |source: &dyn TensorSource| {
                let sources = [(towers.image, source), (towers.text, source)];
                let [image, text] = sources.map(|(wanted, source)| wanted.then_some(source));
                let each = devices.iter();
                each.map(|device| encoder(config.clone(), image, text, device))
                    .collect()
            };
            let loaded: crate::Result<Vec<_>> =
                SafetensorsFile::parse(&bytes).and_then(|source| load(&source));
            loaded
                .map(Some)
                .with_context(|| folder.join(name).display().to_string())
        };
        let only = |image, text| Towers { image, text };
        let (image, text) = rayon::join(
            || load(IMAGE, towers.image, only(true, false)),
            || load(TEXT, towers.text, only(false, true)),
        );
        let (mut image, mut text) = (image?.into_iter().flatten(), text?.into_iter().flatten());
        let encoders = devices.iter().map(|_| DualEncoder {
            image: image.next().and_then(|e| e.image),
            text: text.next().and_then(|e| e.text),
            config: config.clone(),
        });
        Ok(Self {
            tokenizer,
            encoders: encoders.collect(),
            devices: devices.iter().map(|options| options.device.chosen()).collect(),
        })
    }

    /// Makes a model of parts that are in memory, on at least one device: the bytes of the vocabulary, and
    /// the weights of the image and of the text tower.
    ///
    /// # Errors
    /// Where a part is not valid, and where a device cannot be used.
    pub fn from_parts(
        config: ModelConfig,
        vocab: &[u8],
        [image, text]: [&dyn TensorSource; 2],
        devices: &[DeviceOptions],
    ) -> Result<Self> {
        ensure!(!devices.is_empty(), "no device, expected at least one");
        let tokenizer = Tokenizer::parse(vocab, config.text.vocab_size).context("the vocabulary")?;
        let load = |device| encoder(config.clone(), Some(image), Some(text), device);
        let encoders: crate::Result<Vec<_>> = devices.iter().map(load).collect();
        Ok(Self {
            tokenizer,
            encoders: encoders.context("the weights")?,
            devices: devices.iter().map(|options| options.device.chosen()).collect(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.encoders[0].config
    }

    /// The ids of a caption as the text tower takes them.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode(&self, caption: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(caption, self.config().max_text_tokens)?)
    }

    /// Vectors of captions, computed on the device of this number.
    ///
    /// # Errors
    /// Where the text tower is not loaded, or ids are none of its.
    pub fn embed_captions(&self, device: usize, ids: &[&[u32]]) -> Result<Embeddings> {
        Ok(self.text(device)?.embed(ids)?)
    }

    /// Vectors of crops, which are contiguous, computed on the device of this number.
    ///
    /// # Errors
    /// Where the image tower is not loaded, or the bytes are no whole number of crops.
    pub fn embed_images(&self, device: usize, crops: &[u8]) -> Result<Embeddings> {
        Ok(self.image(device)?.embed_crops(crops, &self.preprocessor())?)
    }

    /// What makes crops.
    pub fn preprocessor(&self) -> Preprocessor {
        Preprocessor::of(self.config())
    }

    fn image(&self, device: usize) -> Result<&ImageTower> {
        let tower = self.encoders[device].image.as_ref();
        tower.context("the image tower is not loaded")
    }

    fn text(&self, device: usize) -> Result<&TextTower> {
        let tower = self.encoders[device].text.as_ref();
        tower.context("the text tower is not loaded")
    }

    /// Runs batches of these sizes twice on a device, captions in every length, so that little is prepared
    /// during the work: kernels are compiled and tried out, and the calling thread's memory is taken.
    ///
    /// # Errors
    /// Those of [`embed_images`](Self::embed_images) and [`embed_captions`](Self::embed_captions).
    pub fn warm_up(&self, device: usize, captions: &[usize], images: &[usize]) -> Result<()> {
        /// What lengths of captions are rounded up to a multiple of.
        const STEP: usize = 8;
        let longest = self.config().max_text_tokens;
        let lengths: Vec<usize> = match self.devices[device].is_card() {
            true => (STEP..longest).step_by(STEP).chain([longest]).collect(),
            false => vec![STEP.min(longest)],
        };
        for _ in 0..2 {
            for &batch in images {
                let crops = vec![128; batch * self.preprocessor().values()];
                self.embed_images(device, &crops)?;
            }
            for (&batch, &length) in captions
                .iter()
                .flat_map(|batch| lengths.iter().map(move |n| (batch, n)))
            {
                // Any word will do.
                let caption = vec![1; length];
                self.embed_captions(device, &vec![&caption[..]; batch])?;
            }
        }
        Ok(())
    }
}

/// Loads the towers for which there is a source, with the engine that the device stands for.
///
/// # Errors
/// Where the device cannot be used or does not compute that way, and those of [`DualEncoder::load`].
pub fn encoder(
    config: ModelConfig,
    image: Option<&dyn TensorSource>,
    text: Option<&dyn TensorSource>,
    options: &DeviceOptions,
) -> crate::Result<DualEncoder> {
    let &DeviceOptions {
        device,
        dtype,
        attention,
    } = options;
    let chosen = device.chosen();
    let refused = |expected: &str| {
        Err(Error::Device(format!(
            "--dtype {dtype} on {chosen}, expected {expected}"
        )))
    };
    if attention.is_some() && !matches!(chosen, Device::Flex | Device::Cuda(_)) {
        return Err(Error::Device(format!(
            "--attention on {chosen}, expected cuda or flex: the kernels there have one way to compute it"
        )));
    }
    if cfg!(feature = "cuda-fusion")
        && matches!(
            (chosen, dtype),
            (Device::Cuda(_), DeviceDtype::Auto | DeviceDtype::F32)
        )
    {
        return refused(
            "tf32, f16 or bf16 in a binary with the feature cuda-fusion, whose kernels would lose bits",
        );
    }
    let engine = Engine::Burn(BurnOptions {
        precision: match (dtype, chosen) {
            (DeviceDtype::F16, _) => BurnPrecision::F16,
            (DeviceDtype::Bf16, _) => BurnPrecision::Bf16,
            (DeviceDtype::Auto | DeviceDtype::F32, Device::Cuda(_)) => BurnPrecision::Single,
            _ => BurnPrecision::Device,
        },
        attention: attention.unwrap_or(Attention::Products),
    });
    match chosen {
        Device::Flex if dtype == DeviceDtype::Tf32 => refused("f32, f16 or bf16"),
        Device::Flex => DualEncoder::load(config, image, text, &BurnDevice::flex(), engine),
        #[cfg(feature = "cuda")]
        Device::Cuda(number) => {
            cuda::prepare(number)?;
            DualEncoder::load(config, image, text, &BurnDevice::cuda(number), engine)
        }
        #[cfg(feature = "wgpu")]
        Device::Wgpu => {
            let gpu = gpu(device)?;
            let gpu = match dtype {
                DeviceDtype::Auto => gpu,
                DeviceDtype::F32 => gpu.with_precision(Precision::Single),
                DeviceDtype::F16 => gpu.with_precision(Precision::Half),
                DeviceDtype::Tf32 | DeviceDtype::Bf16 => return refused("f32 or f16: WebGPU has no others"),
            };
            DualEncoder::load(config, image, text, gpu.device(), gpu.engine())
        }
        // Those that this binary was built without are refused on the command line.
        _ => match dtype {
            DeviceDtype::Auto | DeviceDtype::F32 => {
                DualEncoder::load(config, image, text, &BurnDevice::flex(), Engine::Auto)
            }
            _ => refused("f32: its kernels compute in single precision (--device flex does as a card would)"),
        },
    }
}

/// The ranks of pairs: by Burn on the model's device where that is what computes there, and on the host
/// otherwise. Also says where.
///
/// # Errors
/// Those of [`recall::ranks`].
pub fn ranks(model: &Model, text: &Embeddings, image: &Embeddings) -> crate::Result<(Ranks, Device)> {
    let on = |device: &BurnDevice, engine: Engine| recall::ranks_on(text, image, device, engine);
    let device = model.devices[0];
    let ranks = match device {
        Device::Flex => on(&BurnDevice::flex(), Engine::BURN)?,
        #[cfg(feature = "cuda")]
        Device::Cuda(number) if !cfg!(feature = "cuda-fusion") => {
            on(&BurnDevice::cuda(number), Engine::BURN_SINGLE)?
        }
        _ => {
            let ranks = recall::ranks(text, image, recall::Options::default())?;
            return Ok((ranks, Device::Cpu));
        }
    };
    Ok((ranks, device))
}
