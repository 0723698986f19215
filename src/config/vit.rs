//! The sizes of a vision transformer.

use serde::{Deserialize, Serialize};

use super::limits::{blocks, epsilon, image_size, multiple, size};
use crate::Result;

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
    /// [`Error::Config`](crate::Error::Config) names the field, its value and what was expected.
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
