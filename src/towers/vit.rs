//! The image tower as a Burn module, for any device.

use burn::module::{Module, Param};
use burn::nn;
use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, FloatDType, Tensor};

use super::BurnOptions;
use super::Observe;
use super::load::{Layered, Loader, image_blocks, parameter};
use super::precision::{dtype, norm};
use crate::{Result, VitConfig};

/// Stored [width, 3, patch, patch], used [3 * patch * patch, width].
pub(crate) const PATCH_EMBED: &str = "visual.patch_embed.proj.weight";

/// A vision transformer: pre-norm blocks over patches and a class token.
#[derive(Module, Debug)]
pub struct Vit {
    /// [3 * patch * patch, width]: a convolution whose stride is its size is a product with the patches.
    patch_embed: Param<Tensor<2>>,
    /// [1, 1, width]
    class_embedding: Param<Tensor<3>>,
    /// [1, tokens, width]
    positional_embedding: Param<Tensor<3>>,
    norm_pre: nn::LayerNorm,
    blocks: Vec<VitBlock>,
    norm_post: nn::LayerNorm,
    patch_size: usize,
    epsilon: f64,
}

#[derive(Module, Debug)]
pub struct VitBlock {
    norm1: nn::LayerNorm,
    /// [width, 3 * width], ordered query, key, value, then heads.
    qkv: nn::Linear,
    proj: nn::Linear,
    norm2: nn::LayerNorm,
    fc1: nn::Linear,
    fc2: nn::Linear,
    heads: usize,
}

impl Layered for Vit {
    type Config = VitConfig;
    type Block = VitBlock;
    type Target = Device;

    fn blocks(config: &VitConfig) -> Vec<String> {
        image_blocks(config)
    }

    fn load_block(loader: &Loader<'_>, c: &VitConfig, device: &Device, prefix: &str) -> Result<VitBlock> {
        let norm = |part: &str| loader.burn_norm(&format!("{prefix}{part}"), c.width, c.epsilon, device);
        let linear = |part: &str, inputs, outputs| {
            loader.burn_linear(&format!("{prefix}{part}"), inputs, outputs, device)
        };
        Ok(VitBlock {
            norm1: norm("norm1")?,
            qkv: linear("attn.qkv", c.width, 3 * c.width)?,
            proj: linear("attn.proj", c.width, c.width)?,
            norm2: norm("norm2")?,
            fc1: linear("mlp.fc1", c.width, c.mlp_width)?,
            fc2: linear("mlp.fc2", c.mlp_width, c.width)?,
            heads: c.heads,
        })
    }

    fn assemble(loader: &Loader<'_>, c: &VitConfig, device: &Device, blocks: Vec<VitBlock>) -> Result<Self> {
        let norm = |name: &str| loader.burn_norm(name, c.width, c.epsilon, device);
        let patch = [c.width, 3, c.patch_size, c.patch_size];
        let patch_embed = loader
            .tensor(PATCH_EMBED, patch, device)?
            .reshape([c.width, c.patch_values()])
            .transpose();
        let positions = [1, c.tokens(), c.width];
        Ok(Self {
            patch_embed: parameter(PATCH_EMBED, patch_embed),
            class_embedding: loader.param("visual.class_embedding", [1, 1, c.width], device)?,
            positional_embedding: loader.param("visual.positional_embedding", positions, device)?,
            norm_pre: norm("visual.norm_pre")?,
            blocks,
            norm_post: norm("visual.norm_post")?,
            patch_size: c.patch_size,
            epsilon: c.epsilon,
        })
    }
}

impl Vit {
    /// Pixels [batch, 3, size, size] to embeddings [batch, width], not normalised.
    pub fn forward(&self, pixels: Tensor<4>) -> Tensor<2> {
        self.forward_observed(pixels, BurnOptions::default(), &mut Observe::new("visual", None))
    }

    /// Pixels [batch, 3, size, size] to patches [batch, patches, 3 * patch * patch].
    fn patches(&self, pixels: Tensor<4>) -> Tensor<3> {
        let [batch, channels, height, width] = pixels.dims();
        let p = self.patch_size;
        let (down, across) = (height / p, width / p);
        // [batch, 3, down, p, across, p] to [batch, down, across, 3, p, p]
        pixels
            .reshape([batch, channels, down, p, across, p])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, down * across, channels * p * p])
    }

    pub(super) fn forward_observed(
        &self,
        pixels: Tensor<4>,
        how: BurnOptions,
        observe: &mut Observe<'_>,
    ) -> Tensor<2> {
        let dtype = dtype(&pixels);
        let patches = self.patches(pixels);
        let [batch, ..] = patches.dims();
        let x = how.matmul(patches, self.patch_embed.val().unsqueeze());
        observe.tensor("patch_embed", &x);
        let class = self.class_embedding.val().repeat_dim(0, batch);
        let x = Tensor::cat(vec![class, x], 1) + self.positional_embedding.val();
        observe.tensor("tokens_plus_pos", &x);
        let x = norm(&self.norm_pre, x, dtype);
        observe.tensor("norm_pre", &x);
        let (mut x, key_bias) = how.pad_tokens(x);
        for (i, block) in self.blocks.iter().enumerate() {
            observe.enter(format_args!("block.{i}"));
            x = block.forward(x, key_bias.clone(), i + 1 == self.blocks.len(), how, observe);
            observe.leave();
        }
        let x = norm(&self.norm_post, x.narrow(1, 0, 1), FloatDType::F32).squeeze_dim(1);
        observe.tensor("norm_post", &x);
        x
    }
}

impl VitBlock {
    /// [batch, tokens, width] to the same shape, or with `only_first` to the first rows: the class token's, which after
    /// the last block is all that is used, and those that the attention cannot do without.
    fn forward(
        &self,
        x: Tensor<3>,
        key_bias: Option<Tensor<4>>,
        only_first: bool,
        how: BurnOptions,
        observe: &mut Observe<'_>,
    ) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let head_width = width / self.heads;
        let dtype = dtype(&x);
        let normed = norm(&self.norm1, x.clone(), dtype);
        observe.tensor("norm1", &normed);
        let qkv = how.linear(&self.qkv, normed);
        // [batch, heads, tokens, head_width]
        let part = |i: usize| {
            qkv.clone()
                .narrow(2, i * width, width)
                .reshape([batch, tokens, self.heads, head_width])
                .swap_dims(1, 2)
        };
        let (mut q, k, v) = (part(0), part(1), part(2));
        let mut x = x;
        let mut rows = tokens;
        if only_first {
            rows = how.first_rows(tokens);
            q = q.narrow(2, 0, rows);
            x = x.narrow(1, 0, rows);
        }
        let attended = how
            .attend(q, k, v, key_bias)
            .swap_dims(1, 2)
            .reshape([batch, rows, width]);
        let attended = how.linear(&self.proj, attended);
        observe.tensor("attn", &attended);
        let x = x + attended;
        let hidden = how.linear(&self.fc1, norm(&self.norm2, x.clone(), dtype));
        let hidden = hidden.clone() * sigmoid(hidden * 1.702);
        let mlp = how.linear(&self.fc2, hidden);
        observe.tensor("mlp", &mlp);
        let x = x + mlp;
        observe.tensor("", &x);
        x
    }
}

/// The same with training's kernels.
#[cfg(feature = "train")]
mod training {
    use burn::tensor::Tensor;

    use super::{Vit, VitBlock};
    use crate::kernels::{Activation, AttentionShape};
    use crate::towers::training::{dense, norm};
    use crate::train::kernels::{Compute, attention, linear, single};

    impl Vit {
        pub(crate) fn forward_training(&self, pixels: Tensor<4>, compute: Compute) -> Tensor<2> {
            let patches = self.patches(pixels);
            let [batch, ..] = patches.dims();
            let x = linear(patches, self.patch_embed.val(), None, Activation::None, compute);
            let class = self.class_embedding.val().repeat_dim(0, batch);
            let x = Tensor::cat(vec![class, single(x)], 1) + self.positional_embedding.val();
            let mut x = norm(&self.norm_pre, x, self.epsilon, compute);
            for (i, block) in self.blocks.iter().enumerate() {
                x = block.forward_training(x, i + 1 == self.blocks.len(), self.epsilon, compute);
            }
            norm(&self.norm_post, x, self.epsilon, compute).squeeze_dim(1)
        }
    }

    impl VitBlock {
        fn forward_training(
            &self,
            x: Tensor<3>,
            only_first: bool,
            epsilon: f64,
            compute: Compute,
        ) -> Tensor<3> {
            let [_, _, width] = x.dims();
            let shape = AttentionShape {
                heads: self.heads,
                query_head_width: width / self.heads,
                value_head_width: width / self.heads,
            };
            let normed = norm(&self.norm1, x.clone(), epsilon, compute);
            let qkv = dense(&self.qkv, normed, Activation::None, compute);
            let attended = attention(qkv, None, &shape, None, only_first, compute);
            let attended = dense(&self.proj, attended, Activation::None, compute);
            let x = if only_first { x.narrow(1, 0, 1) } else { x };
            let x = x + single(attended);
            let normed = norm(&self.norm2, x.clone(), epsilon, compute);
            let hidden = dense(&self.fc1, normed, Activation::QuickGelu, compute);
            x + single(dense(&self.fc2, hidden, Activation::None, compute))
        }
    }
}
