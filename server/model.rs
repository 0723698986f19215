//! Model folders on the disk, and models in memory.

use std::fs;
use std::ops::Deref;
use std::path::Path;
#[cfg(feature = "wgpu")]
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
#[cfg(feature = "wgpu")]
use ernie_vil::gpu::{Gpu, Precision};
use ernie_vil::image::Preprocessor;
use ernie_vil::recall::{self, Ranks};
use ernie_vil::text::Tokenizer;
#[cfg(feature = "wgpu")]
use ernie_vil::towers::check_gpu;
use ernie_vil::towers::{Attention, BurnOptions, BurnPrecision, DualEncoder, Engine, ImageTower, TextTower};
use ernie_vil::vectors::Embeddings;
use ernie_vil::weights::{Checkpoint, Manifest, ManifestFile, SafetensorsFile, TensorSource};
use ernie_vil::{Error, ModelConfig};

use crate::builtin;
use crate::cli::{self, DeviceDtype};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::input::{FileBytes, read_regular};
pub use crate::input::{map, read};
use crate::print::note;

/// The files of a model folder.
pub const CONFIG: &str = "config.json";
pub const VOCAB: &str = "vocab.txt";
pub const IMAGE: &str = "image.safetensors";
pub const TEXT: &str = "text.safetensors";
pub const MANIFEST: &str = "manifest.json";

/// A configuration or manifest larger than this is none.
pub const LARGEST_CONFIG: u64 = 1 << 20;
/// So is a larger vocabulary; the published one has 416 kB.
pub const LARGEST_VOCAB: u64 = 64 << 20;

/// Which towers a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Towers {
    pub image: bool,
    pub text: bool,
}

impl Towers {
    pub const BOTH: Self = Self {
        image: true,
        text: true,
    };
}

/// A tokenizer and the towers.
pub struct Model {
    pub tokenizer: Tokenizer,
    /// The same towers on each device.
    pub encoders: Vec<DualEncoder>,
    /// What each device stands for, never `auto`.
    pub devices: Vec<cli::Device>,
}

impl Model {
    /// Loads both towers of the model that the command line names, or the built-in one where it names none, of which
    /// it says so.
    pub fn load(model: &cli::ModelArg, devices: &[cli::DeviceArgs], global: &cli::Global) -> Result<Self> {
        match &model.model {
            Some(folder) => Self::open(folder, Towers::BOTH, devices),
            None => {
                let model = builtin::model(devices)?;
                if !global.quiet {
                    note!("{}", builtin::NOTICE);
                }
                Ok(model)
            }
        }
    }

    /// Loads a model folder.
    pub fn open(folder: &Path, towers: Towers, devices: &[cli::DeviceArgs]) -> Result<Self> {
        let config = read_config(folder)?;
        let manifest = read_manifest(folder)?;
        check_sizes(folder, &manifest)?;
        let path = folder.join(VOCAB);
        let tokenizer = Tokenizer::parse(&read_regular(&path, LARGEST_VOCAB)?, config.text.vocab_size)
            .with_context(|| path.display().to_string())?;
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
            let loaded: ernie_vil::Result<Vec<_>> =
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
            devices: devices.iter().map(|args| chosen(args.device)).collect(),
        })
    }

    /// Makes a model of parts that are in memory.
    pub fn from_parts(
        config: ModelConfig,
        vocab: &[u8],
        [image, text]: [&dyn TensorSource; 2],
        devices: &[cli::DeviceArgs],
    ) -> Result<Self> {
        let tokenizer = Tokenizer::parse(vocab, config.text.vocab_size).context("the vocabulary")?;
        let load = |device| encoder(config.clone(), Some(image), Some(text), device);
        let encoders: ernie_vil::Result<Vec<_>> = devices.iter().map(load).collect();
        Ok(Self {
            tokenizer,
            encoders: encoders.context("the weights")?,
            devices: devices.iter().map(|args| chosen(args.device)).collect(),
        })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.encoders[0].config
    }

    /// The ids of a caption as the text tower takes them.
    pub fn encode(&self, caption: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(caption, self.config().max_text_tokens)?)
    }

    /// Vectors of captions, computed on the device of this number.
    pub fn embed_captions(&self, device: usize, ids: &[&[u32]]) -> Result<Embeddings> {
        Ok(self.text(device)?.embed(ids)?)
    }

    /// Vectors of crops, which stand behind one another, computed on the device of this number.
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

    /// Runs batches of these sizes twice on a device, captions in every length, so that little is prepared during the work:
    /// kernels are compiled and tried out, and the calling thread's memory is taken.
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
pub fn encoder(
    config: ModelConfig,
    image: Option<&dyn TensorSource>,
    text: Option<&dyn TensorSource>,
    args: &cli::DeviceArgs,
) -> ernie_vil::Result<DualEncoder> {
    let &cli::DeviceArgs { device, how } = args;
    let cli::HowArgs { dtype, attention } = how;
    let chosen = chosen(device);
    let refused = |expected: &str| {
        Err(Error::Device(format!(
            "--dtype {dtype} on {chosen}, expected {expected}"
        )))
    };
    if attention.is_some() && !matches!(chosen, cli::Device::Flex | cli::Device::Cuda(_)) {
        return Err(Error::Device(format!(
            "--attention on {chosen}, expected cuda or flex: the kernels there have one way to compute it"
        )));
    }
    if cfg!(feature = "cuda-fusion")
        && matches!(
            (chosen, dtype),
            (cli::Device::Cuda(_), DeviceDtype::Auto | DeviceDtype::F32)
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
            (DeviceDtype::Auto | DeviceDtype::F32, cli::Device::Cuda(_)) => BurnPrecision::Single,
            _ => BurnPrecision::Device,
        },
        attention: match attention {
            None | Some(cli::Attention::Products) => Attention::Products,
            Some(cli::Attention::Fused) => Attention::Fused,
        },
    });
    match chosen {
        cli::Device::Flex if dtype == DeviceDtype::Tf32 => refused("f32, f16 or bf16"),
        cli::Device::Flex => DualEncoder::load(config, image, text, &Device::flex(), engine),
        #[cfg(feature = "cuda")]
        cli::Device::Cuda(number) => {
            cuda::prepare(number)?;
            DualEncoder::load(config, image, text, &Device::cuda(number), engine)
        }
        #[cfg(feature = "wgpu")]
        cli::Device::Wgpu => {
            let gpu = gpu(device)?;
            let gpu = match dtype {
                DeviceDtype::Auto => gpu,
                DeviceDtype::F32 => gpu.with_precision(Precision::Single),
                DeviceDtype::F16 => gpu.with_precision(Precision::Half),
                DeviceDtype::Tf32 | DeviceDtype::Bf16 => return refused("f32 or f16: WebGPU has no others"),
            };
            DualEncoder::load_on_gpu(config, image, text, &gpu)
        }
        // Those that this binary was built without are refused on the command line.
        _ => match dtype {
            DeviceDtype::Auto | DeviceDtype::F32 => {
                DualEncoder::load(config, image, text, &Device::flex(), Engine::Auto)
            }
            _ => refused("f32: its kernels compute in single precision (--device flex does as a card would)"),
        },
    }
}

/// The ranks of pairs: by Burn on the model's device where that is what computes there, and on the host otherwise. Also says
/// where.
pub fn ranks(
    model: &Model,
    text: &Embeddings,
    image: &Embeddings,
) -> ernie_vil::Result<(Ranks, cli::Device)> {
    let on = |device: &Device, engine: Engine| recall::ranks_on(text, image, device, engine);
    let device = model.devices[0];
    let ranks = match device {
        cli::Device::Flex => on(&Device::flex(), Engine::BURN)?,
        #[cfg(feature = "cuda")]
        cli::Device::Cuda(number) if !cfg!(feature = "cuda-fusion") => {
            on(&Device::cuda(number), Engine::BURN_SINGLE)?
        }
        _ => {
            let ranks = recall::ranks(text, image, recall::Options::default())?;
            return Ok((ranks, cli::Device::Cpu));
        }
    };
    Ok((ranks, device))
}

/// The device that one stands for: `auto` is a graphics card where there is one, and the CPU otherwise.
pub fn chosen(device: cli::Device) -> cli::Device {
    match device {
        #[cfg(feature = "wgpu")]
        cli::Device::Auto if gpu(device).is_ok() => cli::Device::Wgpu,
        cli::Device::Auto => cli::Device::Cpu,
        device => device,
    }
}

/// The name of the graphics card that a device stands for, where wgpu computes on one.
pub fn adapter(device: cli::Device) -> Option<String> {
    match chosen(device) {
        #[cfg(feature = "wgpu")]
        cli::Device::Wgpu => Some(gpu(device).ok()?.name().to_owned()),
        _ => None,
    }
}

/// The graphics card, which all towers share. Where it is asked for by name a program may stand in for one, which is
/// slow.
#[cfg(feature = "wgpu")]
fn gpu(device: cli::Device) -> ernie_vil::Result<Gpu> {
    static GPU: OnceLock<ernie_vil::Result<Gpu>> = OnceLock::new();
    let open = || {
        pollster::block_on(async {
            let gpu = Gpu::open(device == cli::Device::Wgpu).await?;
            check_gpu(&gpu).await?;
            Ok(gpu)
        })
    };
    GPU.get_or_init(open).clone()
}

/// A file of weights: a checkpoint of Paddle's, or safetensors.
pub fn parse_weights(bytes: &[u8]) -> ernie_vil::Result<Box<dyn TensorSource + '_>> {
    // A safetensors file starts with its header's length and the header, a pickle with its protocol.
    Ok(match bytes.get(8) {
        Some(b'{') => Box::new(SafetensorsFile::parse(bytes)?),
        _ => Box::new(Checkpoint::parse(bytes)?),
    })
}

/// The bytes of a tower's file.
pub enum TowerFile {
    Whole(FileBytes),
    /// Put together from its shards.
    Joined(Vec<u8>),
}

impl Deref for TowerFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Joined(bytes) => bytes,
        }
    }
}

/// The file `name` of a folder, be it there whole or in shards.
pub fn tower_file(folder: &Path, manifest: &Manifest, name: &str) -> Result<TowerFile> {
    match manifest.file(name).map_or(&[][..], |file| &file.shards) {
        [] => Ok(TowerFile::Whole(map(&folder.join(name))?)),
        shards => {
            let mut bytes = Vec::new();
            for shard in shards {
                bytes.extend_from_slice(&map(&folder.join(&shard.name))?);
            }
            Ok(TowerFile::Joined(bytes))
        }
    }
}

pub fn read_config(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join(CONFIG);
    let json = read_regular(&path, LARGEST_CONFIG).with_context(|| {
        format!(
            "{} is not a model folder (`ernie-vil convert` makes one)",
            folder.display()
        )
    })?;
    ModelConfig::from_json(&json).with_context(|| path.display().to_string())
}

pub fn read_manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST);
    Manifest::from_json(&read_regular(&path, LARGEST_CONFIG)?).with_context(|| path.display().to_string())
}

/// Checks every file's size, which tells a broken copy at no cost; `info --verify` compares the sums.
fn check_sizes(folder: &Path, manifest: &Manifest) -> Result<()> {
    for file in manifest.files.iter().flat_map(ManifestFile::stored) {
        let path = folder.join(&file.name);
        let size = fs::metadata(&path)
            .with_context(|| path.display().to_string())?
            .len();
        ensure!(
            size == file.size,
            "{} has {size} bytes, expected {} (by {MANIFEST}); was it copied whole?",
            path.display(),
            file.size
        );
    }
    for name in [CONFIG, VOCAB, IMAGE, TEXT] {
        if manifest.file(name).is_none() {
            bail!("{} does not list {name}", folder.join(MANIFEST).display());
        }
    }
    Ok(())
}
