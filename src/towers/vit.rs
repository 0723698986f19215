//! The image tower ViT: pre-norm blocks over patches and a class token.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::load::{Groups, Layered, Loader, Target, image_blocks};
use super::transformer::{Block, Encoder, NormOrder, Shape};
use crate::kernels::{Activation, AttentionShape};
use crate::ops::{Linear, Norm, Pass};
use crate::weights::Dtype;
use crate::{Result, VitConfig};

/// Stored `[width, 3, patch, patch]`, used `[3 * patch * patch, width]`.
pub(crate) const PATCH_EMBED: &str = "visual.patch_embed.proj.weight";

/// A vision transformer.
#[derive(Module, Debug)]
pub struct Vit {
    /// `[3 * patch * patch, width]`, without a bias: a convolution whose stride is its size is a matmul with
    /// the patches.
    patch_embed: Linear,
    /// `[1, 1, width]`
    class_embedding: Param<Tensor<3>>,
    /// `[1, tokens, width]`
    positional_embedding: Param<Tensor<3>>,
    norm_pre: Norm,
    encoder: Encoder,
    norm_post: Norm,
    patch_size: usize,
    heads: usize,
}

impl Layered for Vit {
    type Config = VitConfig;
    type Block = Block;
    type Target = Target;

    fn blocks(config: &VitConfig) -> Vec<String> {
        image_blocks(config)
    }

    fn load_block(loader: &Loader<'_>, c: &VitConfig, target: &Target, prefix: &str) -> Result<Block> {
        let norm = |part: &str| loader.norm(&format!("{prefix}{part}"), c.width, c.epsilon, target);
        let linear =
            |part: &str, inputs, outputs| loader.linear(&format!("{prefix}{part}"), inputs, outputs, target);
        let heads = Groups::new(c.heads, c.head_width());
        Ok(Block {
            norm1: norm("norm1")?,
            projections: loader.projections(&format!("{prefix}attn.qkv"), c.width, c.heads, target)?,
            output: linear("attn.proj", heads, c.width)?,
            norm2: norm("norm2")?,
            mlp_in: linear("mlp.fc1", c.width.into(), c.mlp_width)?,
            mlp_out: linear("mlp.fc2", c.mlp_width.into(), c.width)?,
        })
    }

    fn assemble(loader: &Loader<'_>, c: &VitConfig, target: &Target, blocks: Vec<Block>) -> Result<Self> {
        let norm = |name: &str| loader.norm(name, c.width, c.epsilon, target);
        let positions = [1, c.tokens(), c.width];
        let device = &target.device;
        Ok(Self {
            patch_embed: loader.patch_embed(PATCH_EMBED, c, target)?,
            class_embedding: loader.param("visual.class_embedding", [1, 1, c.width], device)?,
            positional_embedding: loader.param("visual.positional_embedding", positions, device)?,
            norm_pre: norm("visual.norm_pre")?,
            encoder: Encoder { blocks },
            norm_post: norm("visual.norm_post")?,
            patch_size: c.patch_size,
            heads: c.heads,
        })
    }
}

impl Vit {
    /// Pixels `[batch, 3, size, size]` to embeddings `[batch, width]`, not normalised.
    pub(crate) fn forward(&self, pixels: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        let [_, tokens, width] = self.positional_embedding.dims();
        let batch = pixels.dims()[0];
        let (class, positions) = (self.class_embedding.val(), self.positional_embedding.val());
        let x = pass.tokens(pixels, &self.patch_embed, class, positions, self.patch_size);
        pass.trace.tensor("tokens_plus_pos", &x);
        let x = pass.norm(&self.norm_pre, x);
        pass.trace.tensor("norm_pre", &x);
        let (x, layout) = pass.pad(x, batch, tokens);
        let shape = Shape {
            order: NormOrder::Pre,
            attention: AttentionShape {
                heads: self.heads,
                query_head_width: width / self.heads,
                value_head_width: width / self.heads,
            },
            activation: Activation::QuickGelu,
        };
        let x = self.encoder.forward(x, &layout, &shape, pass);
        let x = pass.norm_single(&self.norm_post, x);
        pass.trace.tensor("norm_post", &x);
        x
    }

    /// The rows of one image, and the width of its embedding.
    pub(super) fn sizes(&self) -> (usize, usize) {
        let [_, tokens, width] = self.positional_embedding.dims();
        (tokens, width)
    }

    /// Values of the widest row, where the kernels of a card compute it.
    #[cfg(feature = "cube")]
    pub(super) fn widest(&self) -> usize {
        self.encoder.widest().max(self.patch_embed.widest())
    }

    /// How the weights of the blocks are kept.
    pub(super) fn dtype(&self) -> Dtype {
        self.encoder.dtype()
    }
}
