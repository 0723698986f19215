//! `config.json` of a model folder.

use serde::{Deserialize, Serialize};

use super::{ErnieConfig, ImageConfig, Preprocessing, Structure};
use crate::{Error, Result, json};

/// What cosines are multiplied by before a softmax where a model says nothing: e to the power of 2.65926, the
/// value that ERNIE-ViL 2.0's training starts with, 14.29.
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
    /// What cosines are multiplied by before a softmax, where the weights say so: the exponential of the
    /// checkpoint's `contrastive_loss_mm.temperature_b`.
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
