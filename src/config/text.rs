//! The sizes of a text tower.

use serde::{Deserialize, Serialize};

use super::limits::{blocks, epsilon, size};
use crate::Result;

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

    /// ERNIE 2.0 Base, as the text tower of ERNIE-ViL 2.0 Base (CNN), with the vocabulary of the other
    /// structures: its own was never published.
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

    /// Checks every size.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) names the field, its value and what was expected.
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
