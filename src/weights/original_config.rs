use serde::Deserialize;

use super::source::holdings;
use super::{TEMPERATURE, TensorSource, quoted, weights};
use crate::{Activation, ErnieConfig, Error, ImageConfig, Result, VitConfig, json};

/// The original fixes the text tower's LayerNorm epsilon in its code; Hugging Face's configurations state one.
const TEXT_EPSILON: f64 = 1e-5;
const IMAGE_EPSILON: f64 = 1e-6;
/// x * sigmoid(1.702 x), which the image tower computes, as PaddleNLP calls it.
const IMAGE_ACTIVATION: &str = "quick_gelu";
/// Width of an image tower's attention head in every published size.
const IMAGE_HEAD_WIDTH: usize = 64;

#[derive(Deserialize)]
struct TextConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_act: Activation,
    intermediate_size: Option<usize>,
    query_hidden_size_per_head: Option<usize>,
    value_hidden_size_per_head: Option<usize>,
    emb_size: Option<usize>,
    layer_norm_eps: Option<f64>,
}

/// The `config.json` of PaddleNLP's `ErnieViLModel`, a configuration for each tower; what is not said has the
/// value that PaddleNLP gives it.
#[derive(Deserialize)]
struct PaddleNlp {
    text_config: PaddleNlpText,
    vision_config: PaddleNlpVision,
}

#[derive(Deserialize)]
#[serde(default)]
struct PaddleNlpText {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_act: Activation,
    intermediate_size: usize,
    layer_norm_eps: f64,
    use_task_id: bool,
    task_id: usize,
}

impl Default for PaddleNlpText {
    fn default() -> Self {
        let base = ErnieConfig::base();
        Self {
            vocab_size: base.vocab_size,
            hidden_size: base.width,
            num_hidden_layers: base.depth,
            num_attention_heads: base.heads,
            max_position_embeddings: base.max_positions,
            hidden_act: base.activation,
            intermediate_size: base.mlp_width,
            layer_norm_eps: base.epsilon,
            use_task_id: false,
            task_id: 0,
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct PaddleNlpVision {
    image_size: usize,
    patch_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    layer_norm_eps: f64,
    hidden_act: String,
}

impl Default for PaddleNlpVision {
    fn default() -> Self {
        let base = VitConfig::base();
        Self {
            image_size: base.image_size,
            patch_size: base.patch_size,
            hidden_size: base.width,
            num_hidden_layers: base.depth,
            num_attention_heads: base.heads,
            intermediate_size: base.mlp_width,
            layer_norm_eps: base.epsilon,
            hidden_act: IMAGE_ACTIVATION.into(),
        }
    }
}

impl PaddleNlp {
    /// Reads it; `None` where the file is a configuration of another form.
    fn read(json: &[u8], what: &str) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Form {
            text_config: Option<serde::de::IgnoredAny>,
            vision_config: Option<serde::de::IgnoredAny>,
        }
        let form: Form = read(json, what)?;
        match form.text_config.is_some() || form.vision_config.is_some() {
            true => read(json, what).map(Some),
            false => Ok(None),
        }
    }

    fn text(self) -> Result<ErnieConfig> {
        let text = self.text_config;
        if text.use_task_id && text.task_id != 0 {
            return Err(Error::Config(format!(
                "text configuration: task_id is {}, expected 0",
                text.task_id
            )));
        }
        if text.num_attention_heads == 0 || !text.hidden_size.is_multiple_of(text.num_attention_heads) {
            return Err(Error::Config(format!(
                "text configuration: hidden_size is {}, expected a multiple of num_attention_heads, {}",
                text.hidden_size, text.num_attention_heads
            )));
        }
        let head_width = text.hidden_size / text.num_attention_heads;
        let config = ErnieConfig {
            vocab_size: text.vocab_size,
            max_positions: text.max_position_embeddings,
            width: text.hidden_size,
            depth: text.num_hidden_layers,
            heads: text.num_attention_heads,
            query_head_width: head_width,
            value_head_width: head_width,
            mlp_width: text.intermediate_size,
            activation: text.hidden_act,
            epsilon: text.layer_norm_eps,
            sentence_types: None,
            task_types: None,
        };
        config.validate()?;
        Ok(config)
    }

    fn image(self) -> Result<VitConfig> {
        let vision = self.vision_config;
        if vision.hidden_act != IMAGE_ACTIVATION {
            return Err(Error::Config(format!(
                "image configuration: hidden_act is {}, expected \"{IMAGE_ACTIVATION}\"",
                quoted(&vision.hidden_act)
            )));
        }
        let config = VitConfig {
            image_size: vision.image_size,
            patch_size: vision.patch_size,
            width: vision.hidden_size,
            depth: vision.num_hidden_layers,
            heads: vision.num_attention_heads,
            mlp_width: vision.intermediate_size,
            epsilon: vision.layer_norm_eps,
        };
        config.validate()?;
        Ok(config)
    }
}

/// Reads the text tower's sizes from a configuration file of the original (`text_model_config`), of Hugging
/// Face's `ErnieModel`, or of PaddleNLP's `ErnieViLModel`, which has those of both towers. Keys that do not
/// matter to inference are ignored. So are those of the sentence-type and task-type tables, as the original
/// ignores them: whether a model has these tables is seen in its weights ([`infer_type_tables`]).
///
/// # Errors
/// [`Error::Config`] where it is not JSON, where a size is missing or out of range, and where
/// `emb_size` differs from `hidden_size`.
///
/// ```
/// let json = br#"{"vocab_size": 40000, "hidden_size": 768, "num_hidden_layers": 12,
///     "num_attention_heads": 12, "max_position_embeddings": 2048, "hidden_act": "gelu"}"#;
/// let config = ernie_vil::weights::text_config_from_original(json)?;
/// assert_eq!(config, ernie_vil::ErnieConfig::base());
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub fn text_config_from_original(json: &[u8]) -> Result<ErnieConfig> {
    if let Some(config) = PaddleNlp::read(json, "text configuration")? {
        return config.text();
    }
    let original: TextConfig = read(json, "text configuration")?;
    let width = original.hidden_size;
    let heads = original.num_attention_heads;
    if let Some(size) = original.emb_size.filter(|&size| size != width) {
        return Err(Error::Config(format!(
            "text configuration: emb_size is {size}, expected hidden_size, {width}"
        )));
    }
    let head_width = |given: Option<usize>, key: &str| match given {
        Some(width) => Ok(width),
        None if heads > 0 && width.is_multiple_of(heads) => Ok(width / heads),
        None => Err(Error::Config(format!(
            "text configuration: hidden_size is {width}, expected a multiple of \
             num_attention_heads, {heads}, as {key} is not given"
        ))),
    };
    let config = ErnieConfig {
        vocab_size: original.vocab_size,
        max_positions: original.max_position_embeddings,
        width,
        depth: original.num_hidden_layers,
        heads,
        query_head_width: head_width(original.query_hidden_size_per_head, "query_hidden_size_per_head")?,
        value_head_width: head_width(original.value_hidden_size_per_head, "value_hidden_size_per_head")?,
        mlp_width: original.intermediate_size.unwrap_or(width.saturating_mul(4)),
        activation: original.hidden_act,
        epsilon: original.layer_norm_eps.unwrap_or(TEXT_EPSILON),
        sentence_types: None,
        task_types: None,
    };
    config.validate()?;
    Ok(config)
}

#[derive(Deserialize)]
struct VisionConfig {
    img_size: usize,
    patch_size: usize,
    embed_dim: usize,
    depth: usize,
    num_heads: usize,
    mlp_ratio: Option<f64>,
    qkv_bias: Option<bool>,
    epsilon: Option<f64>,
}

/// Reads the image tower's sizes from a file with the arguments of the original's vision
/// transformer: `img_size`, `patch_size`, `embed_dim`, `depth`, `num_heads`, and where they are not
/// the usual ones `mlp_ratio` (4) and `epsilon` (1e-6). Also from the `config.json` of PaddleNLP's
/// `ErnieViLModel`, which has the sizes of both towers.
///
/// # Errors
/// [`Error::Config`] where it is not JSON, where a size is missing or out of range, and where
/// `qkv_bias` is false.
///
/// ```
/// let json = br#"{"img_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}"#;
/// let config = ernie_vil::weights::vision_config_from_original(json)?;
/// assert_eq!(config, ernie_vil::VitConfig::base());
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub fn vision_config_from_original(json: &[u8]) -> Result<VitConfig> {
    if let Some(config) = PaddleNlp::read(json, "image configuration")? {
        return config.image();
    }
    let original: VisionConfig = read(json, "image configuration")?;
    if original.qkv_bias == Some(false) {
        return Err(Error::Config(
            "image configuration: qkv_bias is false, expected true".into(),
        ));
    }
    let config = VitConfig {
        image_size: original.img_size,
        patch_size: original.patch_size,
        width: original.embed_dim,
        depth: original.depth,
        heads: original.num_heads,
        // Cut off as in the original. A negative or an enormous ratio saturates and fails below.
        mlp_width: (original.embed_dim as f64 * original.mlp_ratio.unwrap_or(4.0)) as usize,
        epsilon: original.epsilon.unwrap_or(IMAGE_EPSILON),
    };
    config.validate()?;
    Ok(config)
}

/// Reads the image tower's sizes from JSON: as `config.json` has them where it says a `kind`, and otherwise as
/// [`vision_config_from_original`].
///
/// # Errors
/// [`Error::Config`] where it is not JSON of either form, and where a size is out of range.
///
/// ```
/// let json = br#"{"kind": "efficientnet", "image_size": 456, "width_multiplier": 1.6, "depth_multiplier": 2.2}"#;
/// let config = ernie_vil::weights::image_config_from_json(json)?;
/// assert_eq!(config, ernie_vil::EfficientNetConfig::b5().into());
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub fn image_config_from_json(json: &[u8]) -> Result<ImageConfig> {
    #[derive(Deserialize)]
    struct Kind {
        kind: Option<serde::de::IgnoredAny>,
    }
    if read::<Kind>(json, "image configuration")?.kind.is_none() {
        return vision_config_from_original(json).map(ImageConfig::Vit);
    }
    let config: ImageConfig = read(json, "image configuration")?;
    config.validate()?;
    Ok(config)
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T> {
    json::from_bytes(bytes).map_err(|error| Error::Config(format!("{what}: {error}")))
}

/// Adds to the text tower's sizes those of the sentence-type and the task-type table, which the weights of
/// ERNIE 2.0 have and those of ERNIE 3.0 have not.
///
/// # Errors
/// [`Error::Weights`] where one of them is not a matrix.
pub fn infer_type_tables(config: &mut ErnieConfig, source: &dyn TensorSource) -> Result<()> {
    for (name, types) in [
        ("text_model.sent_emb.weight", &mut config.sentence_types),
        ("text_model.task_emb.weight", &mut config.task_types),
    ] {
        *types = match source.shape(name).as_deref() {
            None => None,
            Some(&[rows, _]) => Some(rows),
            Some(found) => return weights(format!("{name} is {found:?}, expected 2 dimensions")),
        };
    }
    config.validate()
}

/// Reads the image tower's sizes off the shapes of its tensors. The number of heads does not show in
/// them; it is a head for every 64 columns of width, as in every published size.
///
/// # Errors
/// [`Error::Weights`] where a tensor that tells a size is missing or has the wrong number of
/// dimensions. [`Error::Config`] where the sizes are out of range or where the width is not a
/// multiple of 64, so that an image configuration is needed.
pub fn infer_vision_config(source: &dyn TensorSource) -> Result<VitConfig> {
    let [width, _, _, patch_size] = shape(source, "visual.patch_embed.proj.weight")?;
    let [_, tokens, _] = shape(source, "visual.positional_embedding")?;
    let [_, mlp_width] = shape(source, "visual.blocks.0.mlp.fc1.weight")?;
    let depth = (0..=1024)
        .take_while(|block| {
            source
                .shape(&format!("visual.blocks.{block}.norm1.weight"))
                .is_some()
        })
        .count();
    let patches = tokens.saturating_sub(1);
    let side = patches.isqrt();
    if side * side != patches || side == 0 {
        return weights(format!(
            "visual.positional_embedding has {tokens} tokens, expected 1 and a square number of patches"
        ));
    }
    if width == 0 || !width.is_multiple_of(IMAGE_HEAD_WIDTH) {
        return Err(Error::Config(format!(
            "the image tower's number of heads cannot be told from its width, {width}, which is not a \
             multiple of {IMAGE_HEAD_WIDTH}: give an image configuration with num_heads"
        )));
    }
    let config = VitConfig {
        image_size: side.saturating_mul(patch_size),
        patch_size,
        width,
        depth,
        heads: width / IMAGE_HEAD_WIDTH,
        mlp_width,
        epsilon: IMAGE_EPSILON,
    };
    config.validate()?;
    Ok(config)
}

fn shape<const N: usize>(source: &dyn TensorSource, name: &str) -> Result<[usize; N]> {
    let Some(found) = source.shape(name) else {
        // What one of the towers, of whatever size, has is no surprise.
        let known = |name: &String| {
            name.starts_with("visual.") || name.starts_with("text_model.") || name == TEMPERATURE
        };
        let known: Vec<_> = source
            .names()
            .into_iter()
            .filter(known)
            .map(|name| (name, Vec::new()))
            .collect();
        let holdings = holdings(source, &known)
            .map(|text| format!(". {text}"))
            .unwrap_or_default();
        return weights(format!(
            "{name} is missing, the image tower's sizes cannot be told{holdings}"
        ));
    };
    found
        .try_into()
        .or_else(|found: Vec<usize>| weights(format!("{name} is {found:?}, expected {N} dimensions")))
}
