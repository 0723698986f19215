//! The sizes of the two towers and what else a model folder's `config.json` says.

mod efficientnet;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, json, weights};

pub use efficientnet::{EfficientNetBlock, EfficientNetConfig};

/// No width, depth or count in a configuration may be larger: the largest published model stays
/// far below, and sizes that are products of two such numbers cannot overflow.
const LARGEST_SIZE: usize = 1 << 22;
/// No tower may have more blocks than this.
const MOST_BLOCKS: usize = 1 << 10;

/// The sizes of a vision transformer ([`crate::towers::ImageTower`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Height and width of the input, in pixels.
    pub image_size: usize,
    /// Height and width of a patch, in pixels.
    pub patch_size: usize,
    /// Width of a token, and of the embedding.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads of a block; `width` is a multiple of it.
    pub heads: usize,
    /// Width inside the block's MLP.
    pub mlp_width: usize,
    /// LayerNorm's epsilon.
    pub epsilon: f64,
}

impl VitConfig {
    /// ViT-B/16 at 224 px, the image tower of ERNIE-ViL 2.0 Base (ViT).
    pub fn base() -> Self {
        Self {
            image_size: 224,
            patch_size: 16,
            width: 768,
            depth: 12,
            heads: 12,
            mlp_width: 3072,
            epsilon: 1e-6,
        }
    }

    /// ViT-L/14 at 224 px, the image tower of ERNIE-ViL 2.0 Large (ViT).
    pub fn large() -> Self {
        Self {
            image_size: 224,
            patch_size: 14,
            width: 1024,
            depth: 24,
            heads: 16,
            mlp_width: 4096,
            epsilon: 1e-6,
        }
    }

    /// Patches of one image.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Tokens of one image: the class token and the patches.
    pub fn tokens(&self) -> usize {
        self.patches() + 1
    }

    /// Values of one patch: three channels of `patch_size` x `patch_size`.
    pub fn patch_values(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }

    /// Width of one attention head.
    pub fn head_width(&self) -> usize {
        self.width / self.heads
    }

    /// Checks every size.
    ///
    /// # Errors
    /// [`Error::Config`] names the field, its value and what was expected.
    pub fn validate(&self) -> Result<()> {
        image_size(self.image_size)?;
        size("image.patch_size", self.patch_size)?;
        size("image.width", self.width)?;
        size("image.heads", self.heads)?;
        size("image.mlp_width", self.mlp_width)?;
        blocks("image.depth", self.depth)?;
        epsilon("image.epsilon", self.epsilon)?;
        multiple(
            "image.image_size",
            self.image_size,
            "image.patch_size",
            self.patch_size,
        )?;
        multiple("image.width", self.width, "image.heads", self.heads)
    }
}

/// The image tower: which kind it is, and its sizes.
///
/// In JSON a vision transformer is its sizes alone; others say what they are.
///
/// ```
/// use ernie_vil::{EfficientNetConfig, ImageConfig};
/// let json = r#"{"kind": "efficientnet", "image_size": 456, "width_multiplier": 1.6, "depth_multiplier": 2.2}"#;
/// let config: ImageConfig = serde_json::from_str(json)?;
/// assert_eq!(config, EfficientNetConfig::b5().into());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum ImageConfig {
    /// A vision transformer.
    Vit(VitConfig),
    /// A convolutional network.
    EfficientNet(EfficientNetConfig),
}

impl ImageConfig {
    /// Height and width of the input, in pixels.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Vit(vit) => vit.image_size,
            Self::EfficientNet(net) => net.image_size,
        }
    }

    /// Width of the embedding.
    pub fn width(&self) -> usize {
        match self {
            Self::Vit(vit) => vit.width,
            Self::EfficientNet(net) => net.width(),
        }
    }

    /// Places of an image that the tower looks at beside one another: patches, or what is left of the pixels at the
    /// end.
    pub fn patches(&self) -> usize {
        match self {
            Self::Vit(vit) => vit.patches(),
            Self::EfficientNet(net) => net.image_size.div_ceil(32).pow(2),
        }
    }

    /// Number of the tower's weights.
    pub fn parameters(&self) -> u64 {
        parameters(&weights::image_tensors(self))
    }

    /// Checks every size.
    ///
    /// # Errors
    /// [`Error::Config`] names the field, its value and what was expected.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Vit(vit) => vit.validate(),
            Self::EfficientNet(net) => net.validate(),
        }
    }
}

impl Serialize for ImageConfig {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(tag = "kind")]
        enum Tagged<'a> {
            #[serde(rename = "efficientnet")]
            EfficientNet(&'a EfficientNetConfig),
        }
        match self {
            Self::Vit(vit) => vit.serialize(serializer),
            Self::EfficientNet(net) => Tagged::EfficientNet(net).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ImageConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        /// The fields of all kinds: one reader for them is less code than one for each.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            kind: Option<String>,
            image_size: usize,
            patch_size: Option<usize>,
            width: Option<usize>,
            depth: Option<usize>,
            heads: Option<usize>,
            mlp_width: Option<usize>,
            epsilon: Option<f64>,
            width_multiplier: Option<f64>,
            depth_multiplier: Option<f64>,
            projection: Option<usize>,
        }
        let fields = Fields::deserialize(deserializer)?;
        let is_vit = fields.kind.is_none();
        let others = match fields.kind.as_deref() {
            None => [
                ("width_multiplier", fields.width_multiplier.is_some()),
                ("depth_multiplier", fields.depth_multiplier.is_some()),
                ("projection", fields.projection.is_some()),
                ("", false),
                ("", false),
            ],
            Some("efficientnet") => [
                ("patch_size", fields.patch_size.is_some()),
                ("width", fields.width.is_some()),
                ("depth", fields.depth.is_some()),
                ("heads", fields.heads.is_some()),
                ("mlp_width", fields.mlp_width.is_some()),
            ],
            Some(kind) => {
                return Err(D::Error::custom(format_args!(
                    "kind is {kind:?}, expected \"efficientnet\", or none for a vision transformer"
                )));
            }
        };
        if let Some((name, _)) = others.into_iter().find(|(_, given)| *given) {
            return Err(D::Error::custom(format_args!(
                "unknown field `{name}` of this kind of tower"
            )));
        }
        let size = |name, value: Option<usize>| value.ok_or_else(|| D::Error::missing_field(name));
        let number = |name, value: Option<f64>| value.ok_or_else(|| D::Error::missing_field(name));
        Ok(match is_vit {
            true => Self::Vit(VitConfig {
                image_size: fields.image_size,
                patch_size: size("patch_size", fields.patch_size)?,
                width: size("width", fields.width)?,
                depth: size("depth", fields.depth)?,
                heads: size("heads", fields.heads)?,
                mlp_width: size("mlp_width", fields.mlp_width)?,
                epsilon: number("epsilon", fields.epsilon)?,
            }),
            false => Self::EfficientNet(EfficientNetConfig {
                image_size: fields.image_size,
                width_multiplier: number("width_multiplier", fields.width_multiplier)?,
                depth_multiplier: number("depth_multiplier", fields.depth_multiplier)?,
                epsilon: fields.epsilon.unwrap_or(efficientnet::EPSILON),
                projection: fields.projection,
            }),
        })
    }
}

impl From<EfficientNetConfig> for ImageConfig {
    fn from(net: EfficientNetConfig) -> Self {
        Self::EfficientNet(net)
    }
}

impl From<&EfficientNetConfig> for ImageConfig {
    fn from(net: &EfficientNetConfig) -> Self {
        Self::EfficientNet(net.clone())
    }
}

impl From<VitConfig> for ImageConfig {
    fn from(vit: VitConfig) -> Self {
        Self::Vit(vit)
    }
}

impl From<&VitConfig> for ImageConfig {
    fn from(vit: &VitConfig) -> Self {
        Self::Vit(vit.clone())
    }
}

impl From<&ImageConfig> for ImageConfig {
    fn from(config: &ImageConfig) -> Self {
        config.clone()
    }
}

/// The activation inside a text block's feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// The exact GELU, by the error function.
    Gelu,
    /// max(x, 0).
    Relu,
}

/// The sizes of an ERNIE text encoder ([`crate::towers::TextTower`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErnieConfig {
    /// Rows of the word table; may be more than the vocabulary has words.
    pub vocab_size: usize,
    /// Rows of the position table: the longest caption in tokens.
    pub max_positions: usize,
    /// Width of a token, and of the embedding.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Width of one head's query and key.
    pub query_head_width: usize,
    /// Width of one head's value.
    pub value_head_width: usize,
    /// Width inside the block's feed-forward layer.
    pub mlp_width: usize,
    /// The activation inside the feed-forward layer.
    pub activation: Activation,
    /// LayerNorm's epsilon.
    pub epsilon: f64,
    /// Rows of the sentence-type table, where the model has one (ERNIE 2.0); row 0 is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentence_types: Option<usize>,
    /// Rows of the task-type table, where the model has one (ERNIE 2.0); row 0 is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_types: Option<usize>,
}

impl ErnieConfig {
    /// ERNIE 3.0 Base, the text tower of ERNIE-ViL 2.0 Base (ViT).
    pub fn base() -> Self {
        Self {
            vocab_size: 40_000,
            max_positions: 2_048,
            width: 768,
            depth: 12,
            heads: 12,
            query_head_width: 64,
            value_head_width: 64,
            mlp_width: 3072,
            activation: Activation::Gelu,
            epsilon: 1e-5,
            sentence_types: None,
            task_types: None,
        }
    }

    /// ERNIE 3.0 Large, the text tower of ERNIE-ViL 2.0 Large (ViT).
    pub fn large() -> Self {
        Self {
            width: 1024,
            depth: 24,
            heads: 16,
            mlp_width: 4096,
            ..Self::base()
        }
    }

    /// ERNIE 2.0 Base, as the text tower of ERNIE-ViL 2.0 Base (CNN), with the vocabulary of the other structures: its
    /// own was never published.
    pub fn ernie2_base() -> Self {
        Self::base().ernie2()
    }

    /// ERNIE 2.0 Large, as the text tower of ERNIE-ViL 2.0 Large (CNN); as [`ErnieConfig::ernie2_base`].
    pub fn ernie2_large() -> Self {
        Self::large().ernie2()
    }

    fn ernie2(self) -> Self {
        Self {
            max_positions: 512,
            sentence_types: Some(4),
            task_types: Some(16),
            ..self
        }
    }

    /// Number of the tower's weights.
    pub fn parameters(&self) -> u64 {
        parameters(&weights::text_tensors(self))
    }

    /// Checks every size.
    ///
    /// # Errors
    /// [`Error::Config`] names the field, its value and what was expected.
    pub fn validate(&self) -> Result<()> {
        size("text.vocab_size", self.vocab_size)?;
        size("text.max_positions", self.max_positions)?;
        size("text.width", self.width)?;
        size("text.heads", self.heads)?;
        size("text.query_head_width", self.query_head_width)?;
        size("text.value_head_width", self.value_head_width)?;
        size("text.mlp_width", self.mlp_width)?;
        blocks("text.depth", self.depth)?;
        epsilon("text.epsilon", self.epsilon)?;
        size(
            "text.heads * text.query_head_width",
            self.heads * self.query_head_width,
        )?;
        size(
            "text.heads * text.value_head_width",
            self.heads * self.value_head_width,
        )?;
        size("text.sentence_types", self.sentence_types.unwrap_or(1))?;
        size("text.task_types", self.task_types.unwrap_or(1))
    }
}

/// The structures of the original's paper.
///
/// ```
/// use ernie_vil::Structure;
/// let names = Structure::ALL.map(Structure::name);
/// assert_eq!(names, ["Base (ViT)", "Large (ViT)", "Base (CNN)", "Large (CNN)"]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Structure {
    /// ViT-B/16 and ERNIE 3.0 Base.
    BaseVit,
    /// ViT-L/14 and ERNIE 3.0 Large.
    LargeVit,
    /// EfficientNet-B5 and ERNIE 2.0 Base.
    BaseCnn,
    /// EfficientNet-L2 and ERNIE 2.0 Large.
    LargeCnn,
}

impl Structure {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::BaseVit, Self::LargeVit, Self::BaseCnn, Self::LargeCnn];

    /// What the original calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::BaseVit => "Base (ViT)",
            Self::LargeVit => "Large (ViT)",
            Self::BaseCnn => "Base (CNN)",
            Self::LargeCnn => "Large (CNN)",
        }
    }

    /// The image tower's sizes. The original never published what its CNNs put on top of the pooled channels; here it
    /// is a linear layer to the text tower's width.
    pub fn image(self) -> ImageConfig {
        let projected = |net| EfficientNetConfig {
            projection: Some(self.text().width),
            ..net
        };
        match self {
            Self::BaseVit => VitConfig::base().into(),
            Self::LargeVit => VitConfig::large().into(),
            Self::BaseCnn => projected(EfficientNetConfig::b5()).into(),
            Self::LargeCnn => projected(EfficientNetConfig::l2()).into(),
        }
    }

    /// The text tower's sizes.
    pub fn text(self) -> ErnieConfig {
        match self {
            Self::BaseVit => ErnieConfig::base(),
            Self::LargeVit => ErnieConfig::large(),
            Self::BaseCnn => ErnieConfig::ernie2_base(),
            Self::LargeCnn => ErnieConfig::ernie2_large(),
        }
    }
}

/// How an image becomes the tensor that the image tower takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Preprocessing {
    /// The original's: OpenCV's bilinear resize of the short side, centre crop, ImageNet's mean and
    /// standard deviation.
    #[default]
    #[serde(rename = "ernie-vil-2.0")]
    Original,
    /// That of PaddleNLP's `ernie_vil-2.0-base-zh`, another front end of the same weights: Pillow's bicubic resize of the
    /// short side with antialiasing, centre crop, the same mean and standard deviation. Its vectors differ slightly.
    #[serde(rename = "paddlenlp")]
    PaddleNlp,
}

impl Preprocessing {
    /// Tokens of a caption at most, where nothing else is said.
    pub fn max_text_tokens(self) -> usize {
        match self {
            Self::Original => 48,
            Self::PaddleNlp => 64,
        }
    }
}

/// What cosines are multiplied by before a softmax where a model says nothing: e to the power of 2.65926, the value that
/// ERNIE-ViL 2.0's training starts with, 14.29.
pub const LOGIT_SCALE: f64 = 14.285_713_758_103_183;

/// A published model whose scores are known, so that they can stand beside measured ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Published {
    /// `ERNIE_VIL2_BASE_ViT.pdparams`, the weights of the first release.
    First,
    /// `OPEN_ERNIE_VIL2_BASE_ViT.pdparams`, the weights of the open release.
    Open,
}

/// A file that a model was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSource {
    /// Its name, or the address it was fetched from.
    pub file: String,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of its bytes, as 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// What a model folder's `config.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Version of this layout; 1.
    pub format: u32,
    /// What the model is, in a few words, for people.
    pub name: String,
    /// Which published release the weights are, where they are one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<Published>,
    /// A remark that users of the model have to see: that it is small, or that its weights are random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The image tower's sizes.
    pub image: ImageConfig,
    /// The text tower's sizes.
    pub text: ErnieConfig,
    /// How an image is preprocessed.
    #[serde(default)]
    pub preprocessing: Preprocessing,
    /// Tokens of a caption at most, `[CLS]` and `[SEP]` included; longer ones are cut.
    pub max_text_tokens: usize,
    /// What cosines are multiplied by before a softmax, where the weights say so: the exponential of the checkpoint's
    /// `contrastive_loss_mm.temperature_b`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_scale: Option<f64>,
    /// Fingerprint of the weights: vectors are comparable only where it is the same.
    pub fingerprint: String,
    /// The files that the model was made from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<ModelSource>,
}

impl ModelConfig {
    /// The layout version that this library writes and reads.
    pub const FORMAT: u32 = 1;

    /// Reads `config.json` and checks it.
    ///
    /// # Errors
    /// [`Error::Config`] where it is not JSON of this layout, or where a size is out of range.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let config: Self = json::from_bytes(bytes).map_err(Error::Config)?;
        config.validate()?;
        Ok(config)
    }

    /// The text of `config.json`.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("plain data serialises");
        json.push('\n');
        json
    }

    /// What cosines are multiplied by before a softmax: the model's own, or else [`LOGIT_SCALE`].
    pub fn scale(&self) -> f64 {
        self.logit_scale.unwrap_or(LOGIT_SCALE)
    }

    /// What the original calls a model of these sizes; "other" for any that it does not have.
    ///
    /// ```
    /// use ernie_vil::{ErnieConfig, ModelConfig, VitConfig};
    /// let (image, text) = (VitConfig::base(), ErnieConfig::base());
    /// let json = serde_json::json!({
    ///     "format": 1, "name": "", "image": image, "text": text, "max_text_tokens": 48, "fingerprint": "",
    /// });
    /// let config = ModelConfig::from_json(json.to_string().as_bytes())?;
    /// assert_eq!(config.structure(), "Base (ViT)");
    /// # Ok::<(), ernie_vil::Error>(())
    /// ```
    pub fn structure(&self) -> &'static str {
        Structure::ALL
            .into_iter()
            .find(|structure| structure.image() == self.image && structure.text() == self.text)
            .map_or("other", Structure::name)
    }

    /// Checks every size.
    ///
    /// # Errors
    /// [`Error::Config`] names the field, its value and what was expected.
    pub fn validate(&self) -> Result<()> {
        if self.format != Self::FORMAT {
            return Err(Error::Config(format!(
                "format is {}, expected {}",
                self.format,
                Self::FORMAT
            )));
        }
        self.image.validate()?;
        self.text.validate()?;
        if !(2..=self.text.max_positions).contains(&self.max_text_tokens) {
            return Err(Error::Config(format!(
                "max_text_tokens is {}, expected 2 to {} (text.max_positions)",
                self.max_text_tokens, self.text.max_positions
            )));
        }
        if !(1e-4..=1e4).contains(&self.scale()) {
            return Err(Error::Config(format!(
                "logit_scale is {}, expected 0.0001 to 10000",
                self.scale()
            )));
        }
        Ok(())
    }
}

fn parameters(tensors: &[(String, Vec<usize>)]) -> u64 {
    let values = |shape: &[usize]| shape.iter().map(|&n| n as u64).product::<u64>();
    tensors.iter().map(|(_, shape)| values(shape)).sum()
}

fn size(field: &str, value: usize) -> Result<()> {
    if (1..=LARGEST_SIZE).contains(&value) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{field} is {value}, expected 1 to {LARGEST_SIZE}"
    )))
}

fn image_size(value: usize) -> Result<()> {
    const LARGEST: usize = 1 << 13;
    if (1..=LARGEST).contains(&value) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "image.image_size is {value}, expected 1 to {LARGEST}"
    )))
}

fn blocks(field: &str, value: usize) -> Result<()> {
    if (1..=MOST_BLOCKS).contains(&value) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{field} is {value}, expected 1 to {MOST_BLOCKS}"
    )))
}

fn epsilon(field: &str, value: f64) -> Result<()> {
    if value > 0.0 && value < 1.0 {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{field} is {value}, expected a number between 0 and 1"
    )))
}

fn multiple(field: &str, value: usize, of_field: &str, of: usize) -> Result<()> {
    if value.is_multiple_of(of) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{field} is {value}, expected a multiple of {of_field}, {of}"
    )))
}
