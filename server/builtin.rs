//! The recorded model and pairs inside the binary, for a first run without any file.

use anyhow::{Context, Result};
use ernie_vil::weights::{Checkpoint, text_config_from_original, vision_config_from_original};
use ernie_vil::{ModelConfig, Preprocessing};

use crate::cli;
use crate::model::Model;

const WEIGHTS: &[u8] = include_bytes!("../tests/goldens/models/tiny.pdparams");
const TEXT_CONFIG: &[u8] = include_bytes!("../tests/goldens/models/tiny_text_config.json");
const IMAGE_CONFIG: &[u8] = include_bytes!("../tests/goldens/models/tiny_vision_config.json");
const VOCAB: &[u8] = include_bytes!("../tests/goldens/vocab_tiny.txt");

/// Forty captions with their pictures, in the original's format.
pub const PAIRS: &[u8] = include_bytes!("../tests/goldens/coco_cn_style.tsv");

/// What the user must know of them.
pub const NOTICE: &str = "note: no --model given, so this is \"tiny\": a recorded test model with RANDOM weights. \
     Its numbers check the arithmetic and say nothing about ERNIE-ViL 2.0.";

/// What is known of the model without loading it.
pub fn config() -> Result<ModelConfig> {
    Ok(ModelConfig {
        format: ModelConfig::FORMAT,
        name: "tiny (random weights, for tests)".into(),
        published: None,
        image: vision_config_from_original(IMAGE_CONFIG)?,
        text: text_config_from_original(TEXT_CONFIG)?,
        preprocessing: Preprocessing::Original,
        max_text_tokens: 48,
        // Vectors of the same checkpoint converted to a folder carry a fingerprint of their own; these
        // are never kept beside them.
        fingerprint: "built-in tiny".into(),
        sources: Vec::new(),
    })
}

/// Loads the model.
pub fn model(device: cli::Device) -> Result<Model> {
    let weights = Checkpoint::parse(WEIGHTS)?;
    Model::from_parts(config()?, VOCAB, &weights, device).context("the built-in model")
}

/// The model's vocabulary.
pub fn vocab() -> &'static [u8] {
    VOCAB
}
