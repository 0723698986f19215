//! The command line.

use std::path::PathBuf;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ernie_vil::native::{self, Device, DeviceOptions, pipeline};
use ernie_vil::towers;

/// ERNIE-ViL 2.0: Chinese captions and images as vectors of one space.
///
/// Without --model the small model "scenes" inside the binary is used, trained on drawn pictures: it shows
/// that everything works, not how well ERNIE-ViL 2.0 retrieves.
#[derive(Debug, Parser)]
#[command(name = "ernie-vil", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Threads to use; 0 is one for each core
    #[arg(
        long,
        global = true,
        env = "ERNIE_VIL_THREADS",
        default_value_t = 0,
        value_name = "N"
    )]
    pub threads: usize,
    /// Show no progress and no remarks, only results and errors
    #[arg(long, short, global = true, env = "ERNIE_VIL_QUIET", value_parser = clap::builder::FalseyValueParser::new())]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a model folder from a .pdparams checkpoint, or from another model folder
    Convert(Convert),
    /// Fetch the published Base (ViT) weights and vocabulary, and convert them
    Download(Download),
    /// Say what a model folder holds
    Info(Info),
    /// Split captions into tokens: one text a line in, one JSON object a line out
    Tokenize(Tokenize),
    /// Turn a file of caption-image pairs into vectors
    Embed(Embed),
    /// Compute recall from a file of vectors
    Score(Score),
    /// Embed a file of caption-image pairs and compute recall, in one go
    Eval(Eval),
    /// Say which of some labels pictures fit, without training
    Classify(Classify),
    /// Find the pictures of a folder that fit a text or another picture
    Search(Search),
    /// Serve embeddings, search, the demo page and model folders over HTTP
    #[cfg(feature = "serve")]
    Serve(Box<Serve>),
    /// Train a model on caption-image pairs, from random weights or from a model folder
    #[cfg(feature = "train")]
    Train(Train),
    /// Measure each stage: decoding, preprocessing, both towers, scoring
    Bench(Bench),
}

#[derive(Debug, Clone, Copy, Args)]
pub struct DeviceArgs {
    /// Where the towers run: cpu; wgpu, a graphics card by Vulkan, Metal or Direct3D 12; cuda or cuda:NUMBER, an NVIDIA card (needs the
    /// feature cuda); auto, a card that wgpu finds or else the CPU; flex, the CPU by Burn alone, to compare with
    #[arg(long, env = "ERNIE_VIL_DEVICE", default_value = "cpu", value_name = "DEVICE")]
    pub device: Device,
    #[command(flatten)]
    pub how: HowArgs,
}

#[derive(Debug, Clone, Args)]
pub struct DevicesArgs {
    /// Where the towers run: cpu; wgpu, a graphics card by Vulkan, Metal or Direct3D 12; cuda or cuda:NUMBER, an NVIDIA card (needs the
    /// feature cuda); auto, a card that wgpu finds or else the CPU; flex, the CPU by Burn alone, to compare with. Of several, with
    /// commas between, each takes the next batch when it is free: cuda:0,cuda:1
    #[arg(
        long,
        env = "ERNIE_VIL_DEVICE",
        default_value = "cpu",
        value_name = "DEVICE",
        value_delimiter = ','
    )]
    pub device: Vec<Device>,
    #[command(flatten)]
    pub how: HowArgs,
}

impl DeviceArgs {
    /// As the library takes them.
    pub fn options(&self) -> DeviceOptions {
        self.how.on(self.device)
    }
}

impl DevicesArgs {
    /// Each device for itself, as the library takes them.
    pub fn each(&self) -> Vec<DeviceOptions> {
        self.device.iter().map(|&device| self.how.on(device)).collect()
    }
}

/// How a device computes.
#[derive(Debug, Clone, Copy, Args)]
pub struct HowArgs {
    /// Precision of the weights on the device and of what is multiplied with them; normalisations and sums stay in single precision
    #[arg(long, env = "ERNIE_VIL_DEVICE_DTYPE", default_value = "auto", value_enum)]
    pub dtype: DeviceDtype,
    /// How Burn computes attention, on cuda and flex: by products, or by kernels that never write the scores, for which tokens are
    /// padded to a multiple of 32 [default: products]
    #[arg(long, env = "ERNIE_VIL_ATTENTION", value_enum)]
    pub attention: Option<Attention>,
}

impl HowArgs {
    fn on(self, device: Device) -> DeviceOptions {
        DeviceOptions {
            device,
            dtype: self.dtype.into(),
            attention: self.attention.map(towers::Attention::from),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Attention {
    /// Two products, with the softmax between them
    Products,
    /// Burn's operation
    Fused,
}

impl From<Attention> for towers::Attention {
    fn from(attention: Attention) -> Self {
        match attention {
            Attention::Products => Self::Products,
            Attention::Fused => Self::Fused,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceDtype {
    /// Single precision; on a card that wgpu finds, as the model's files have it
    Auto,
    /// Single precision
    F32,
    /// Single precision of which tensor cores multiply 11 bits: cuda
    Tf32,
    /// Half precision: cuda, wgpu, flex
    F16,
    /// bfloat16: cuda, flex
    Bf16,
}

impl From<DeviceDtype> for native::DeviceDtype {
    fn from(dtype: DeviceDtype) -> Self {
        match dtype {
            DeviceDtype::Auto => Self::Auto,
            DeviceDtype::F32 => Self::F32,
            DeviceDtype::Tf32 => Self::Tf32,
            DeviceDtype::F16 => Self::F16,
            DeviceDtype::Bf16 => Self::Bf16,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// Single precision, as in the checkpoint
    F32,
    /// Half precision: half the size, vectors differ in the fourth digit
    F16,
    /// Eight bits a weight, a quarter of the size: vectors differ in the second digit
    Int8,
    /// Four bits a weight, for phones: ranks differ here and there
    Int4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Release {
    /// OPEN_ERNIE_VIL2_BASE_ViT
    Open,
    /// ERNIE_VIL2_BASE_ViT
    First,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preprocessing {
    /// As the original does: OpenCV's bilinear resize
    #[value(name = "ernie-vil-2.0")]
    Original,
    /// As PaddleNLP's ernie_vil-2.0-base-zh does: Pillow's bicubic resize with antialiasing
    Paddlenlp,
}

#[derive(Debug, Args)]
pub struct Target {
    /// The model folder to make
    #[arg(long, short, env = "ERNIE_VIL_OUTPUT", value_name = "FOLDER", value_parser = plain_path())]
    pub output: PathBuf,
    /// Precision of the weights in the folder
    #[arg(long, env = "ERNIE_VIL_DTYPE", default_value = "f32", value_enum)]
    pub dtype: Dtype,
    /// Cut the weights into files of at most this size, for browsers: 32MB (2^20 bytes each), 500KB, bytes
    #[arg(long, env = "ERNIE_VIL_SHARD_SIZE", value_name = "SIZE", value_parser = size)]
    pub shard_size: Option<u64>,
    /// How images are preprocessed: as by the original, or as by PaddleNLP (bicubic with antialiasing), whose vectors
    /// differ slightly. The original's, or as the folder has it
    #[arg(long, env = "ERNIE_VIL_PREPROCESSING", value_enum)]
    pub preprocessing: Option<Preprocessing>,
    /// Tokens of a caption at most, [CLS] and [SEP] included; longer ones are cut. 48 (64 with --preprocessing
    /// paddlenlp), or as the folder has it
    #[arg(long, env = "ERNIE_VIL_MAX_TOKENS", value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Replace the folder where there is one
    #[arg(long, env = "ERNIE_VIL_OVERWRITE", value_parser = clap::builder::FalseyValueParser::new())]
    pub overwrite: bool,
}

/// A path without a slash at its end, so that other names can be made of it.
fn plain_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| path.components().collect())
}

/// A number of bytes, perhaps with a unit.
fn size(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        size if size >= 1 << 16 => Ok(size),
        _ => Err("expected at least 64KB".into()),
    }
}

/// Bytes of a text at most: no fewer than any plain caption has.
#[cfg(feature = "serve")]
fn text_size(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        size if size >= 1 << 10 => Ok(size),
        _ => Err("expected at least 1KB".into()),
    }
}

/// A number of bytes, with a unit or without.
fn bytes(text: &str) -> Result<u64, String> {
    let upper = text.trim().to_ascii_uppercase();
    let digits = upper.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u64 = match upper[digits.len()..].trim() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        unit => return Err(format!("the unit {unit:?}, expected KB, MB or GB")),
    };
    let count: u64 = digits.parse().map_err(|_| "expected a number, as in 32MB")?;
    count
        .checked_mul(unit)
        .ok_or_else(|| format!("expected at most {} bytes", u64::MAX))
}

/// What images may cost.
#[derive(Debug, Clone, Copy, Args)]
pub struct ImageArgs {
    /// Memory for an image while it is decoded, at most: 512MB (2^20 bytes each), bytes. JPEG and PNG need
    /// next to none, unless they are progressive or interlaced; of those and of other formats the pixels are
    /// held
    #[arg(long, env = "ERNIE_VIL_MAX_IMAGE_MEMORY", default_value = "512MB", value_name = "SIZE", value_parser = size)]
    pub max_image_memory: u64,
}

#[cfg(feature = "train")]
#[derive(Debug, Args)]
pub struct Train {
    /// What to train, on what and how: a YAML file (docs/TRAINING.md)
    #[arg(long, short, env = "ERNIE_VIL_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// Where training computes: cpu; cuda or cuda:NUMBER, an NVIDIA card (needs the feature cuda); flex, the CPU by Burn alone, to
    /// compare with
    #[arg(long, env = "ERNIE_VIL_DEVICE", default_value = "cpu", value_name = "DEVICE")]
    pub device: Device,
    /// Go on from the run's last checkpoint, where there is one
    #[arg(long, env = "ERNIE_VIL_RESUME", value_parser = clap::builder::FalseyValueParser::new())]
    pub resume: bool,
    /// Replace what an earlier run left in the output folder: its checkpoint, metrics, curves and model
    #[arg(long, env = "ERNIE_VIL_OVERWRITE", value_parser = clap::builder::FalseyValueParser::new())]
    pub overwrite: bool,
    #[command(flatten)]
    pub limits: ImageArgs,
}

#[derive(Debug, Args)]
pub struct Convert {
    /// The model folder to pack anew, in place of a checkpoint
    #[arg(long, short, value_name = "FOLDER")]
    pub model: Option<PathBuf>,
    /// The checkpoint, a .pdparams or a .safetensors file; given twice where each tower has its own
    #[arg(
        long,
        short,
        env = "ERNIE_VIL_WEIGHTS",
        value_name = "FILE",
        required_unless_present = "model"
    )]
    pub weights: Vec<PathBuf>,
    /// The text tower's sizes, JSON in the original's form or Hugging Face's
    #[arg(
        long,
        env = "ERNIE_VIL_TEXT_CONFIG",
        value_name = "FILE",
        required_unless_present = "model"
    )]
    pub text_config: Option<PathBuf>,
    /// The image tower's sizes; without it they are read off the weights, with heads = width / 64
    #[arg(long, env = "ERNIE_VIL_IMAGE_CONFIG", value_name = "FILE")]
    pub image_config: Option<PathBuf>,
    /// The vocabulary
    #[arg(
        long,
        env = "ERNIE_VIL_VOCAB",
        value_name = "FILE",
        required_unless_present = "model"
    )]
    pub vocab: Option<PathBuf>,
    /// What to call the model; the checkpoint's file name by default
    #[arg(long, env = "ERNIE_VIL_NAME", value_name = "TEXT")]
    pub name: Option<String>,
    /// A remark that users of the model have to see
    #[arg(long, env = "ERNIE_VIL_NOTE", value_name = "TEXT")]
    pub note: Option<String>,
    /// Which published release the weights are: its scores are then shown beside measured ones
    #[arg(long, env = "ERNIE_VIL_RELEASE", value_enum)]
    pub release: Option<Release>,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Debug, Args)]
pub struct Download {
    /// Which of the two published sets of weights
    #[arg(long, env = "ERNIE_VIL_RELEASE", default_value = "open", value_enum)]
    pub release: Release,
    #[command(flatten)]
    pub target: Target,
    /// The address under which the weights lie. From an address that begins with http:// anybody on the way
    /// can send other weights: give --sha256 then
    #[arg(
        long,
        env = "ERNIE_VIL_BASE_URL",
        default_value = "https://bj.bcebos.com/wenxin-models",
        value_name = "URL"
    )]
    pub base_url: String,
    /// The vocabulary's address
    #[arg(
        long,
        env = "ERNIE_VIL_VOCAB_URL",
        default_value = "https://raw.githubusercontent.com/PaddlePaddle/ERNIE/ernie-kit-open-v1.0/Research/ERNIE-ViL2/packages/ernie_base_3.0/vocab.txt",
        value_name = "URL"
    )]
    pub vocab_url: String,
    /// The SHA-256 that the weights must have, where you know it
    #[arg(long, env = "ERNIE_VIL_SHA256", value_name = "HEX")]
    pub sha256: Option<String>,
    /// The SHA-256 that the vocabulary must have; that of the published one is known
    #[arg(long, env = "ERNIE_VIL_VOCAB_SHA256", value_name = "HEX")]
    pub vocab_sha256: Option<String>,
    /// Where the sums of downloaded files are kept, which later downloads of the same address are compared
    /// with; by default ernie-vil/sums.json in the folder for caches
    #[arg(long, env = "ERNIE_VIL_SUMS", value_name = "FILE")]
    pub sums: Option<PathBuf>,
    /// Take files that are others than those which the same address gave before, and remember their sums
    /// instead
    #[arg(long, env = "ERNIE_VIL_ACCEPT_CHANGED", value_parser = clap::builder::FalseyValueParser::new())]
    pub accept_changed: bool,
    /// The text tower's sizes, where they are not those of ERNIE 3.0 Base
    #[arg(long, env = "ERNIE_VIL_TEXT_CONFIG", value_name = "FILE")]
    pub text_config: Option<PathBuf>,
    /// The image tower's sizes, where heads are not width / 64
    #[arg(long, env = "ERNIE_VIL_IMAGE_CONFIG", value_name = "FILE")]
    pub image_config: Option<PathBuf>,
    /// Keep the fetched files beside the folder, in FOLDER.download
    #[arg(long, env = "ERNIE_VIL_KEEP", value_parser = clap::builder::FalseyValueParser::new())]
    pub keep: bool,
}

#[derive(Debug, Clone, Args)]
pub struct ModelArg {
    /// The model folder; without it the small model "scenes" inside the binary
    #[arg(long, short, env = "ERNIE_VIL_MODEL", value_name = "FOLDER")]
    pub model: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Info {
    #[command(flatten)]
    pub model: ModelArg,
    /// Print JSON
    #[arg(long, env = "ERNIE_VIL_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    pub json: bool,
    /// Compute every file's SHA-256 and compare it with the manifest's
    #[arg(long, env = "ERNIE_VIL_VERIFY", value_parser = clap::builder::FalseyValueParser::new())]
    pub verify: bool,
}

#[derive(Debug, Args)]
pub struct Tokenize {
    #[command(flatten)]
    pub model: ModelArg,
    /// The texts, one a line; standard input by default
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnError {
    /// End at the first row that cannot be read, naming its line
    Stop,
    /// Leave such rows out, count them and list them in a file beside the output
    Skip,
}

impl From<OnError> for pipeline::OnError {
    fn from(on_error: OnError) -> Self {
        match on_error {
            OnError::Stop => Self::Stop,
            OnError::Skip => Self::Skip,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VectorFormat {
    /// The original's .out: text vector, tab, image vector, tab, 1
    Text,
    /// One file with the tensors text, image and ids
    Safetensors,
    /// NAME.text.npy, NAME.image.npy and NAME.ids.txt
    Npy,
}

#[derive(Debug, Args)]
pub struct Rows {
    /// Pairs that go through the towers together [default: 16, on NVIDIA cards 64]
    #[arg(long, env = "ERNIE_VIL_BATCH_SIZE", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch_size: Option<u32>,
    /// What to do with a row that cannot be read
    #[arg(long, env = "ERNIE_VIL_ON_ERROR", default_value = "stop", value_enum)]
    pub on_error: OnError,
    /// Take only this many rows, from the first on: AIC-ICC is scored on 10000
    #[arg(long, env = "ERNIE_VIL_LIMIT", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

impl Rows {
    /// The batch size for these devices.
    pub fn batch_size(&self, devices: &[Device]) -> usize {
        let usual = match devices.iter().any(|device| matches!(device, Device::Cuda(_))) {
            true => 64,
            false => 16,
        };
        self.batch_size.unwrap_or(usual) as usize
    }
}

#[derive(Debug, Args)]
pub struct Embed {
    #[command(flatten)]
    pub model: ModelArg,
    /// The pairs: caption, tab, image id, tab, image in base64
    #[arg(
        long,
        short,
        env = "ERNIE_VIL_INPUT",
        value_name = "FILE",
        required_unless_present = "config"
    )]
    pub input: Option<PathBuf>,
    /// Where the vectors go
    #[arg(
        long,
        short,
        env = "ERNIE_VIL_OUTPUT",
        value_name = "FILE",
        required_unless_present = "config"
    )]
    pub output: Option<PathBuf>,
    /// A run configuration of the original (YAML), instead of --model, --input, --output, --batch-size
    #[arg(long, short, env = "ERNIE_VIL_CONFIG", value_name = "FILE", conflicts_with_all = ["model", "input", "output"])]
    pub config: Option<PathBuf>,
    /// The vectors' format; by default what the output's name ends in, and text otherwise
    #[arg(long, env = "ERNIE_VIL_FORMAT", value_enum)]
    pub format: Option<VectorFormat>,
    #[command(flatten)]
    pub rows: Rows,
    #[command(flatten)]
    pub limits: ImageArgs,
    #[command(flatten)]
    pub device: DevicesArgs,
    /// Go on where an earlier run of the same command was broken off
    #[arg(long, env = "ERNIE_VIL_RESUME", value_parser = clap::builder::FalseyValueParser::new())]
    pub resume: bool,
    /// Replace the output where it is there already, and drop what an earlier run kept for --resume
    #[arg(long, env = "ERNIE_VIL_OVERWRITE", value_parser = clap::builder::FalseyValueParser::new())]
    pub overwrite: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// The original's table
    Table,
    /// JSON, with the mean reciprocal and the median rank too
    Json,
}

/// A test set that figures were published for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TestSet {
    /// COCO-CN's test split, 1,000 pairs
    CocoCn,
    /// AIC-ICC's validation set, the first 10,000 pairs (--limit 10000)
    AicIcc,
}

/// A test set in Chinese-CLIP's form.
#[derive(Debug, Clone, Args)]
pub struct Related {
    /// Captions in Chinese-CLIP's form (X_texts.jsonl), each with the ids of its images. Scores by Chinese-CLIP's
    /// protocol, where every image of a caption and every caption of an image counts; together with --images
    #[arg(long, env = "ERNIE_VIL_TEXTS", value_name = "FILE", requires = "images")]
    pub texts: Option<PathBuf>,
    /// The images that --texts speaks of (X_imgs.tsv): image id, tab, image in base64
    #[arg(long, env = "ERNIE_VIL_IMAGES_FILE", value_name = "FILE", requires = "texts")]
    pub images: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Score {
    /// The vectors: .out, .safetensors, or NAME.text.npy beside NAME.image.npy
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How to print the scores
    #[arg(long, env = "ERNIE_VIL_REPORT", default_value = "table", value_enum)]
    pub format: ReportFormat,
    /// Take and refuse exactly what the original's evaluation does: NaN counts as a hit, rows must be
    /// divisible by 10
    #[arg(long, env = "ERNIE_VIL_LIKE_ORIGINAL", value_parser = clap::builder::FalseyValueParser::new())]
    pub like_original: bool,
    /// The published release whose scores to show beside these
    #[arg(long, env = "ERNIE_VIL_RELEASE", value_enum)]
    pub release: Option<Release>,
    /// The test set that the vectors are of, to show the scores that were published for it [default: coco-cn, where
    /// the release is known]
    #[arg(long, env = "ERNIE_VIL_SET", value_enum)]
    pub set: Option<TestSet>,
    /// Score only this many rows, from the first on: AIC-ICC is scored on 10000
    #[arg(long, env = "ERNIE_VIL_LIMIT", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    #[command(flatten)]
    pub related: Related,
}

#[derive(Debug, Args)]
pub struct Eval {
    #[command(flatten)]
    pub model: ModelArg,
    /// The pairs: caption, tab, image id, tab, image in base64; without it the 1,000 pairs that "scenes" is tested
    /// with
    #[arg(long, short, env = "ERNIE_VIL_INPUT", value_name = "FILE")]
    pub input: Option<PathBuf>,
    #[command(flatten)]
    pub related: Related,
    /// The test set that the pairs are, to show the scores that were published for it [default: coco-cn, where the
    /// model is a published one]
    #[arg(long, env = "ERNIE_VIL_SET", value_enum)]
    pub set: Option<TestSet>,
    #[command(flatten)]
    pub rows: Rows,
    #[command(flatten)]
    pub limits: ImageArgs,
    #[command(flatten)]
    pub device: DevicesArgs,
    /// How to print the scores
    #[arg(long, env = "ERNIE_VIL_REPORT", default_value = "table", value_enum)]
    pub format: ReportFormat,
}

/// A number of results.
fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number of at least 1".into()),
        Ok(number) => Ok(number),
    }
}

#[derive(Debug, Args)]
pub struct Classify {
    #[command(flatten)]
    pub model: ModelArg,
    /// The labels, with commas between
    #[arg(
        long,
        env = "ERNIE_VIL_LABELS",
        value_name = "LABEL",
        value_delimiter = ',',
        required_unless_present = "labels_file"
    )]
    pub labels: Vec<String>,
    /// A file of labels in UTF-8, one a line
    #[arg(long, env = "ERNIE_VIL_LABELS_FILE", value_name = "FILE")]
    pub labels_file: Option<PathBuf>,
    /// A caption with {} in the label's place; of several, the mean is taken [default: the label alone]
    #[arg(
        long,
        env = "ERNIE_VIL_TEMPLATE",
        value_name = "TEXT",
        conflicts_with = "ensemble"
    )]
    pub template: Vec<String>,
    /// The mean over a dozen templates
    #[arg(long, env = "ERNIE_VIL_ENSEMBLE", value_parser = clap::builder::FalseyValueParser::new())]
    pub ensemble: bool,
    /// How many labels to show
    #[arg(
        long,
        short = 'k',
        env = "ERNIE_VIL_TOP",
        default_value_t = 5,
        value_name = "N",
        value_parser = at_least_one
    )]
    pub top: usize,
    /// Print JSON, one object a picture
    #[arg(long, env = "ERNIE_VIL_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    pub json: bool,
    #[command(flatten)]
    pub limits: ImageArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// The pictures
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Search {
    #[command(flatten)]
    pub model: ModelArg,
    /// The folder with the pictures, which are recognised by their content; its sub-folders are looked into
    /// as well
    #[arg(long, env = "ERNIE_VIL_IMAGES", value_name = "FOLDER")]
    pub images: PathBuf,
    /// Take pictures in hidden files and folders, trash and thumbnails as well
    #[arg(long, env = "ERNIE_VIL_ALL_FILES", value_parser = clap::builder::FalseyValueParser::new())]
    pub all_files: bool,
    /// Look into linked folders as well, into each folder once
    #[arg(long, env = "ERNIE_VIL_FOLLOW_LINKS", value_parser = clap::builder::FalseyValueParser::new())]
    pub follow_links: bool,
    /// What to look for; may be given several times
    #[arg(
        long,
        short,
        env = "ERNIE_VIL_TEXT",
        value_name = "TEXT",
        required_unless_present = "image"
    )]
    pub text: Vec<String>,
    /// A picture to find similar ones of; may be given several times
    #[arg(long, env = "ERNIE_VIL_IMAGE", value_name = "FILE")]
    pub image: Vec<PathBuf>,
    /// How many pictures to show
    #[arg(
        long,
        short = 'k',
        env = "ERNIE_VIL_TOP",
        default_value_t = 10,
        value_name = "N",
        value_parser = at_least_one
    )]
    pub top: usize,
    /// Keep the pictures' vectors in this file, and embed only new and changed pictures next time. What else
    /// is in it stays, and is searched too; while a server or another search writes to it, it is only read
    #[arg(long, env = "ERNIE_VIL_INDEX", value_name = "FILE")]
    pub index: Option<PathBuf>,
    /// Remove all pictures from the index that are not in the folder, also where most are gone or the index
    /// was made for another folder
    #[arg(long, env = "ERNIE_VIL_PRUNE", value_parser = clap::builder::FalseyValueParser::new())]
    pub prune: bool,
    /// Go on with an index whose log FILE.log is damaged: what is sound is kept, and a copy of the log as
    /// FILE.log.damaged
    #[arg(long, env = "ERNIE_VIL_SALVAGE_INDEX", value_parser = clap::builder::FalseyValueParser::new())]
    pub salvage_index: bool,
    /// Print JSON, one object a query
    #[arg(long, env = "ERNIE_VIL_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    pub json: bool,
    #[command(flatten)]
    pub limits: ImageArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[cfg(feature = "serve")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line of text an event
    Text,
    /// A JSON object an event
    Json,
}

#[cfg(feature = "serve")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IndexType {
    /// Vectors as they are
    F32,
    /// A quarter of the memory, scores differ in the third digit
    Int8,
}

#[cfg(feature = "serve")]
impl From<IndexType> for ernie_vil::index::VectorType {
    fn from(dtype: IndexType) -> Self {
        match dtype {
            IndexType::F32 => Self::F32,
            IndexType::Int8 => Self::Int8,
        }
    }
}

/// A number of milliseconds.
#[cfg(feature = "serve")]
fn milliseconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(ms) if (0.0..=10_000.0).contains(&ms) => Ok(ms),
        _ => Err("expected a number from 0 to 10000".into()),
    }
}

#[cfg(feature = "serve")]
#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    pub model: ModelArg,
    #[command(flatten)]
    pub device: DevicesArgs,
    /// Where to listen; with port 0 the system chooses one, which the first line on standard output says
    #[arg(
        long,
        env = "ERNIE_VIL_LISTEN",
        default_value = "127.0.0.1:8080",
        value_name = "HOST:PORT"
    )]
    pub listen: String,
    /// Keep the index in this file and in FILE.log; without it the index ends with the server
    #[arg(long, env = "ERNIE_VIL_INDEX", value_name = "FILE")]
    pub index: Option<PathBuf>,
    /// How a new index keeps its vectors [default: f32]
    #[arg(long, env = "ERNIE_VIL_INDEX_TYPE", value_enum)]
    pub index_type: Option<IndexType>,
    /// Go on with an index whose log FILE.log is damaged: what is sound is kept, and a copy of the log as
    /// FILE.log.damaged
    #[arg(long, env = "ERNIE_VIL_SALVAGE_INDEX", value_parser = clap::builder::FalseyValueParser::new())]
    pub salvage_index: bool,
    /// Embeddings in the index at most
    #[arg(
        long,
        env = "ERNIE_VIL_MAX_INDEX",
        default_value_t = 1_000_000,
        value_name = "N"
    )]
    pub max_index: usize,
    /// All ids in the index together, at most: 256MB (2^20 bytes each), 500KB, bytes
    #[arg(long, env = "ERNIE_VIL_MAX_IDS", default_value = "256MB", value_name = "SIZE", value_parser = size)]
    pub max_ids: u64,
    /// How long an item may wait for others to be computed with, in milliseconds
    #[arg(long, env = "ERNIE_VIL_MAX_WAIT", default_value = "5", value_name = "MS", value_parser = milliseconds)]
    pub max_wait: f64,
    /// Captions that go through the model together at most
    #[arg(long, env = "ERNIE_VIL_CAPTION_BATCH", default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub caption_batch: u32,
    /// Images that go through the model together at most
    #[arg(long, env = "ERNIE_VIL_IMAGE_BATCH", default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub image_batch: u32,
    /// Captions, and as many images, that may wait; more are refused with status 429
    #[arg(long, env = "ERNIE_VIL_QUEUE", default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub queue: u32,
    /// Items of one request at most
    #[arg(long, env = "ERNIE_VIL_MAX_ITEMS", default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_items: u32,
    /// A request's body at most: 32MB (2^20 bytes each), 500KB, bytes
    #[arg(long, env = "ERNIE_VIL_MAX_BODY", default_value = "32MB", value_name = "SIZE", value_parser = size)]
    pub max_body: u64,
    /// An answer at most; where more would be sent the answer is 400
    #[arg(long, env = "ERNIE_VIL_MAX_ANSWER", default_value = "32MB", value_name = "SIZE", value_parser = size)]
    pub max_answer: u64,
    /// All bodies and answers that are held at a time, at most
    #[arg(long, env = "ERNIE_VIL_MAX_BUFFERED", default_value = "256MB", value_name = "SIZE", value_parser = size)]
    pub max_buffered: u64,
    /// A caption, a label or a filled template at most: 64KB (2^10 bytes each), bytes; longer ones are refused with status 400
    #[arg(long, env = "ERNIE_VIL_MAX_TEXT", default_value = "64KB", value_name = "SIZE", value_parser = text_size)]
    pub max_text: u64,
    /// Captions that a classification makes of its labels and templates at most
    #[arg(long, env = "ERNIE_VIL_MAX_PROMPTS", default_value_t = 4096, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_prompts: u32,
    /// Pixels of an image at most
    #[arg(long, env = "ERNIE_VIL_MAX_PIXELS", default_value_t = 1 << 28, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub max_pixels: u64,
    /// Memory for an image while it is decoded, at most: 320MB (2^20 bytes each), bytes. JPEG and PNG need
    /// next to none, unless they are progressive or interlaced; of those and of other formats the pixels are
    /// held. One image more than there are cores is decoded at a time
    #[arg(long, env = "ERNIE_VIL_MAX_IMAGE_MEMORY", default_value = "320MB", value_name = "SIZE", value_parser = size)]
    pub max_image_memory: u64,
    /// For a request's result, in seconds; then the answer is 504
    #[arg(long, env = "ERNIE_VIL_TIMEOUT", default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub timeout: u32,
    /// For a request to arrive, and for a client that takes nothing of its answer, in seconds; a late body is
    /// answered with 408
    #[arg(long, env = "ERNIE_VIL_READ_TIMEOUT", default_value_t = 15, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub read_timeout: u32,
    /// For a client to take an answer, in seconds, after which the connection is closed. Files may take
    /// longer
    #[arg(long, env = "ERNIE_VIL_ANSWER_TIMEOUT", default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub answer_timeout: u32,
    /// Bytes of an answer or a file that a client has to take a second, on average and after --read-timeout
    #[arg(long, env = "ERNIE_VIL_MIN_RATE", default_value = "16KB", value_name = "SIZE", value_parser = text_size)]
    pub min_rate: u64,
    /// Requests that are worked on at a time, each on a connection of its own; more wait for their turn.
    /// Connections without a request are closed for new ones where there are too many. Fewer where the
    /// process may not open so many files
    #[arg(long, env = "ERNIE_VIL_MAX_CONNECTIONS", default_value_t = 4096, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// For requests to end when the server is to stop, in seconds
    #[arg(long, env = "ERNIE_VIL_DRAIN", default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub drain: u32,
    /// A key that requests need; may be given several times or with commas between. Others see the command line,
    /// but not the environment
    #[arg(
        long,
        env = "ERNIE_VIL_API_KEY",
        value_name = "KEY",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub api_key: Vec<String>,
    /// Listen on an address that others reach without asking for a key: all of them can use the server and
    /// change its index
    #[arg(long, env = "ERNIE_VIL_NO_API_KEY", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_api_key: bool,
    /// Names under which the server answers, beside localhost and its like: example.org, *.example.org, or *
    /// for any. On a loopback address it answers under no others, elsewhere under all unless names are given,
    /// and always to addresses; may be given several times
    #[arg(
        long,
        env = "ERNIE_VIL_ALLOWED_HOSTS",
        value_name = "HOST",
        value_delimiter = ','
    )]
    pub allowed_hosts: Vec<String>,
    /// Where pages that may use the server come from: https://example.org, or * for any; may be given several times
    #[arg(
        long,
        env = "ERNIE_VIL_CORS_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    pub cors_origin: Vec<String>,
    /// The demo page's folder, served at /; www/dist where there is one
    #[arg(long, env = "ERNIE_VIL_WEB_ROOT", value_name = "FOLDER")]
    pub web_root: Option<PathBuf>,
    /// A folder of model folders, served at /models/ for browsers
    #[arg(long, env = "ERNIE_VIL_MODELS_DIR", value_name = "FOLDER")]
    pub models_dir: Option<PathBuf>,
    /// How to write the log, on standard error
    #[arg(long, env = "ERNIE_VIL_LOG_FORMAT", default_value = "text", value_enum)]
    pub log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Structure {
    /// ViT-B/16 and ERNIE 3.0 Base
    BaseVit,
    /// ViT-L/14 and ERNIE 3.0 Large
    LargeVit,
    /// EfficientNet-B5 and ERNIE 2.0 Base
    BaseCnn,
    /// EfficientNet-L2 and ERNIE 2.0 Large
    LargeCnn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Stage {
    /// base64 and JPEG to pixels
    Decode,
    /// Pixels to the image tower's input
    Preprocess,
    /// The image tower
    ImageTower,
    /// The text tower
    TextTower,
    /// Ranks of all pairs
    Scoring,
}

#[derive(Debug, Args)]
pub struct Bench {
    #[command(flatten)]
    pub model: ModelArg,
    /// Random weights of this structure, where no model is given
    #[arg(
        long,
        env = "ERNIE_VIL_STRUCTURE",
        default_value = "base-vit",
        value_enum,
        conflicts_with = "model"
    )]
    pub structure: Structure,
    /// Measure only these stages; may be given several times or with commas between
    #[arg(long, env = "ERNIE_VIL_ONLY", value_enum, value_delimiter = ',')]
    pub only: Vec<Stage>,
    /// Images, and captions of 8 to 20 and of 48 tokens, that go through a tower together; several with commas between
    /// [default: what the documentation's tables have]
    #[arg(long, env = "ERNIE_VIL_BATCH", value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: Vec<u32>,
    /// Repetitions, of which the median and the fastest are shown
    #[arg(long, env = "ERNIE_VIL_REPEAT", default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Only measure how long it takes to load the text tower of --model and embed one caption
    #[arg(long, env = "ERNIE_VIL_COLD_START", requires = "model", value_parser = clap::builder::FalseyValueParser::new())]
    pub cold_start: bool,
    /// Print JSON
    #[arg(long, env = "ERNIE_VIL_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    pub json: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}
