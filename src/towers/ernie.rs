//! The text tower ERNIE: post-norm blocks over the embedded tokens, and a pooler over the first of them.

use burn::module::Module;
use burn::tensor::Tensor;

use super::load::{Groups, Layered, Loader, Target, text_blocks};
use super::transformer::{Block, Encoder, NormOrder, Shape};
use crate::kernels::{self, AttentionShape};
use crate::ops::{Layout, Linear, Norm, Pass};
use crate::weights::Dtype;
use crate::{Activation, ErnieConfig, Result};

/// An ERNIE encoder behind its tables.
#[derive(Module, Debug)]
pub struct Ernie {
    ln: Norm,
    encoder: Encoder,
    pooler: Linear,
    heads: usize,
    query_head_width: usize,
    value_head_width: usize,
    has_relu: bool,
}

impl Layered for Ernie {
    type Config = ErnieConfig;
    type Block = Block;
    type Target = Target;

    fn blocks(config: &ErnieConfig) -> Vec<String> {
        text_blocks(config)
    }

    fn load_block(loader: &Loader<'_>, c: &ErnieConfig, target: &Target, prefix: &str) -> Result<Block> {
        let norm = |part: &str| loader.norm(&format!("{prefix}{part}"), c.width, c.epsilon, target);
        let linear =
            |part: &str, inputs, outputs| loader.linear(&format!("{prefix}{part}"), inputs, outputs, target);
        let (query_width, value_width) = (c.heads * c.query_head_width, c.heads * c.value_head_width);
        let parts = [("q", query_width), ("k", query_width), ("v", value_width)];
        let parts = parts.map(|(part, width)| (format!("{prefix}attn.{part}"), width));
        Ok(Block {
            norm1: norm("ln1")?,
            projections: loader.three_projections(&parts, c.width, c.heads, target)?,
            output: linear("attn.o", Groups::new(c.heads, c.value_head_width), c.width)?,
            norm2: norm("ln2")?,
            mlp_in: linear("ffn.i", c.width.into(), c.mlp_width)?,
            mlp_out: linear("ffn.o", c.mlp_width.into(), c.width)?,
        })
    }

    fn assemble(loader: &Loader<'_>, c: &ErnieConfig, target: &Target, blocks: Vec<Block>) -> Result<Self> {
        Ok(Self {
            ln: loader.norm("text_model.ln", c.width, c.epsilon, target)?,
            encoder: Encoder { blocks },
            pooler: loader.linear("text_model.pooler", c.width, c.width, target)?,
            heads: c.heads,
            query_head_width: c.query_head_width,
            value_head_width: c.value_head_width,
            has_relu: c.activation == Activation::Relu,
        })
    }
}

impl Ernie {
    /// Embedded tokens `[rows, width]` to embeddings `[sequences, width]`, not normalised.
    pub(crate) fn forward(&self, embedded: Tensor<2>, layout: &Layout, pass: &mut Pass<'_>) -> Tensor<2> {
        pass.trace.tensor("embedding_sum", &embedded);
        let x = pass.norm(&self.ln, embedded);
        pass.trace.tensor("embedding_ln", &x);
        let x = pass.drop_out(x);
        let shape = Shape {
            order: NormOrder::Post,
            attention: AttentionShape {
                heads: self.heads,
                query_head_width: self.query_head_width,
                value_head_width: self.value_head_width,
            },
            activation: match self.has_relu {
                true => kernels::Activation::Relu,
                false => kernels::Activation::Gelu,
            },
        };
        let x = self.encoder.forward(x, layout, &shape, pass);
        let pooled = pass.linear(&self.pooler, x, kernels::Activation::None);
        let pooled = pass.tanh(pooled);
        pass.trace.tensor("pooled", &pooled);
        pooled
    }

    /// Values of the widest row, where the kernels of a card compute it.
    #[cfg(feature = "cube")]
    pub(super) fn widest(&self) -> usize {
        self.encoder.widest()
    }

    /// How the weights of the blocks are kept.
    pub(super) fn dtype(&self) -> Dtype {
        self.encoder.dtype()
    }
}
