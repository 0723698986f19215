//! The text tower as a Burn module, for any device.

use burn::module::{Module, Param};
use burn::nn;
use burn::tensor::activation::{gelu, relu};
use burn::tensor::{Device, FloatDType, Tensor};

use super::BurnOptions;
use super::Observe;
use super::load::{Layered, Loader, text_blocks};
use super::precision::{dtype, norm, to};
use crate::{Activation, ErnieConfig, Result};

/// An ERNIE encoder: post-norm blocks over the embedded tokens and a pooler over the first.
#[derive(Module, Debug)]
pub struct Ernie {
    ln: nn::LayerNorm,
    blocks: Vec<ErnieBlock>,
    pooler: nn::Linear,
    epsilon: f64,
}

#[derive(Module, Debug)]
pub struct ErnieBlock {
    qkv: Projections,
    o: nn::Linear,
    ln1: nn::LayerNorm,
    ffn_i: nn::Linear,
    ffn_o: nn::Linear,
    ln2: nn::LayerNorm,
    heads: usize,
    query_head_width: usize,
    value_head_width: usize,
    has_relu: bool,
}

/// What makes queries, keys and values of tokens.
// There is one of them in a block, so the room of the larger kind is no matter.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum Projections {
    /// A layer for each, as the weights have them and as they are trained.
    Apart([nn::Linear; 3]),
    /// One layer for all, whose outputs stand in that order: one product instead of three.
    Together(nn::Linear),
}

impl Projections {
    fn together(self) -> Self {
        match self {
            Self::Apart(parts) => {
                let weights = parts.iter().map(|part| part.weight.val()).collect();
                let biases = parts.iter().filter_map(|part| Some(part.bias.as_ref()?.val()));
                Self::Together(nn::Linear {
                    weight: Param::from_tensor(Tensor::cat(weights, 1)),
                    bias: Some(Param::from_tensor(Tensor::cat(biases.collect(), 0))),
                })
            }
            together => together,
        }
    }
}

impl Layered for Ernie {
    type Config = ErnieConfig;
    type Block = ErnieBlock;
    type Target = Device;

    fn blocks(config: &ErnieConfig) -> Vec<String> {
        text_blocks(config)
    }

    fn load_block(loader: &Loader<'_>, c: &ErnieConfig, device: &Device, prefix: &str) -> Result<ErnieBlock> {
        let norm = |part: &str| loader.burn_norm(&format!("{prefix}{part}"), c.width, c.epsilon, device);
        let linear = |part: &str, inputs, outputs| {
            loader.burn_linear(&format!("{prefix}{part}"), inputs, outputs, device)
        };
        let (query_width, value_width) = (c.heads * c.query_head_width, c.heads * c.value_head_width);
        Ok(ErnieBlock {
            qkv: Projections::Apart([
                linear("attn.q", c.width, query_width)?,
                linear("attn.k", c.width, query_width)?,
                linear("attn.v", c.width, value_width)?,
            ]),
            o: linear("attn.o", value_width, c.width)?,
            ln1: norm("ln1")?,
            ffn_i: linear("ffn.i", c.width, c.mlp_width)?,
            ffn_o: linear("ffn.o", c.mlp_width, c.width)?,
            ln2: norm("ln2")?,
            heads: c.heads,
            query_head_width: c.query_head_width,
            value_head_width: c.value_head_width,
            has_relu: c.activation == Activation::Relu,
        })
    }

    fn assemble(
        loader: &Loader<'_>,
        c: &ErnieConfig,
        device: &Device,
        blocks: Vec<ErnieBlock>,
    ) -> Result<Self> {
        Ok(Self {
            ln: loader.burn_norm("text_model.ln", c.width, c.epsilon, device)?,
            blocks,
            pooler: loader.burn_linear("text_model.pooler", c.width, c.width, device)?,
            epsilon: c.epsilon,
        })
    }
}

impl Ernie {
    /// As it computes fastest, which is not how it is trained.
    pub(super) fn for_inference(mut self) -> Self {
        let together = |block: ErnieBlock| ErnieBlock {
            qkv: block.qkv.together(),
            ..block
        };
        self.blocks = self.blocks.into_iter().map(together).collect();
        self
    }

    /// Embedded tokens [batch, tokens, width] and what is added to the scores of each key
    /// [batch, 1, 1, tokens] (0 for a token, -10000 for padding) to embeddings [batch, width], not
    /// normalised.
    pub fn forward(&self, embedded: Tensor<3>, key_bias: Tensor<4>) -> Tensor<2> {
        self.forward_observed(
            embedded,
            key_bias,
            BurnOptions::default(),
            &mut Observe::new("text", None),
        )
    }

    pub(super) fn forward_observed(
        &self,
        embedded: Tensor<3>,
        key_bias: Tensor<4>,
        how: BurnOptions,
        observe: &mut Observe<'_>,
    ) -> Tensor<2> {
        observe.tensor("embedding_sum", &embedded);
        let dtype = dtype(&self.pooler.weight.val());
        let key_bias = to(key_bias, dtype);
        let mut x = norm(&self.ln, embedded, dtype);
        observe.tensor("embedding_ln", &x);
        for (i, block) in self.blocks.iter().enumerate() {
            observe.enter(format_args!("block.{i}"));
            x = block.forward(x, key_bias.clone(), i + 1 == self.blocks.len(), how, observe);
            observe.leave();
        }
        let pooled = how.linear(&self.pooler, x.narrow(1, 0, 1).squeeze_dim::<2>(1));
        let pooled = to(pooled, FloatDType::F32).tanh();
        observe.tensor("pooled", &pooled);
        pooled
    }
}

impl ErnieBlock {
    /// [batch, tokens, width] to the same shape, or with `only_first` to the first rows, of which one is used.
    fn forward(
        &self,
        x: Tensor<3>,
        key_bias: Tensor<4>,
        only_first: bool,
        how: BurnOptions,
        observe: &mut Observe<'_>,
    ) -> Tensor<3> {
        let [batch, tokens, _] = x.dims();
        let (dq, dv) = (self.query_head_width, self.value_head_width);
        let rows = if only_first {
            how.first_rows(tokens)
        } else {
            tokens
        };
        let first = |x: Tensor<3>| x.narrow(1, 0, rows);
        let (q, k, v) = match &self.qkv {
            Projections::Apart([q, k, v]) => (
                how.linear(q, first(x.clone())),
                how.linear(k, x.clone()),
                how.linear(v, x.clone()),
            ),
            Projections::Together(layer) => {
                let all = how.linear(layer, x.clone());
                let (queries, values) = (self.heads * dq, self.heads * dv);
                (
                    first(all.clone()).narrow(2, 0, queries),
                    all.clone().narrow(2, queries, queries),
                    all.narrow(2, 2 * queries, values),
                )
            }
        };
        let x = first(x);
        // [batch, heads, tokens, head width]
        let q = q.reshape([batch, rows, self.heads, dq]).swap_dims(1, 2);
        let k = k.reshape([batch, tokens, self.heads, dq]).swap_dims(1, 2);
        let v = v.reshape([batch, tokens, self.heads, dv]).swap_dims(1, 2);
        let attended =
            how.attend(q, k, v, Some(key_bias))
                .swap_dims(1, 2)
                .reshape([batch, rows, self.heads * dv]);
        let attended = how.linear(&self.o, attended);
        observe.tensor("attn", &attended);
        let dtype = dtype(&x);
        let x = norm(&self.ln1, x + attended, dtype);
        observe.tensor("ln1", &x);
        let hidden = how.linear(&self.ffn_i, x.clone());
        let hidden = if self.has_relu { relu(hidden) } else { gelu(hidden) };
        let ffn = how.linear(&self.ffn_o, hidden);
        observe.tensor("ffn", &ffn);
        let x = norm(&self.ln2, x + ffn, dtype);
        observe.tensor("", &x);
        x
    }
}

/// The same with training's kernels, and with values left out at random.
#[cfg(feature = "train")]
mod training {
    use burn::tensor::Tensor;

    use super::{Ernie, ErnieBlock, Projections};
    use crate::kernels::{Activation, AttentionShape};
    use crate::towers::training::{dense, norm};
    use crate::train::Dropping;
    use crate::train::kernels::{Compute, add_drop_out, attention, drop_out, linear, single};

    impl Ernie {
        pub(crate) fn forward_training(
            &self,
            embedded: Tensor<3>,
            key_bias: Tensor<4>,
            dropping: &mut Dropping,
            compute: Compute,
        ) -> Tensor<2> {
            let normed = norm(&self.ln, embedded, self.epsilon, compute);
            let mut x = drop_out(normed, dropping.hidden(), compute);
            for (i, block) in self.blocks.iter().enumerate() {
                let is_last = i + 1 == self.blocks.len();
                x = block.forward_training(x, key_bias.clone(), is_last, self.epsilon, dropping, compute);
            }
            let pooled = dense(&self.pooler, x.squeeze_dim::<2>(1), Activation::None, compute);
            single(pooled).tanh()
        }
    }

    impl ErnieBlock {
        fn forward_training(
            &self,
            x: Tensor<3>,
            key_bias: Tensor<4>,
            only_first: bool,
            epsilon: f64,
            dropping: &mut Dropping,
            compute: Compute,
        ) -> Tensor<3> {
            let shape = AttentionShape {
                heads: self.heads,
                query_head_width: self.query_head_width,
                value_head_width: self.value_head_width,
            };
            let Projections::Apart(parts) = &self.qkv else {
                unreachable!("a module in training keeps its weights apart");
            };
            let parts = parts.each_ref();
            let weight = Tensor::cat(parts.map(|part| part.weight.val()).to_vec(), 1);
            let bias = parts.map(|part| part.bias.as_ref().expect("a bias").val());
            let bias = Some(Tensor::cat(bias.to_vec(), 0));
            let qkv = linear(x.clone(), weight, bias, Activation::None, compute);
            let drop = Some(dropping.attention());
            let attended = attention(qkv, Some(key_bias), &shape, drop, only_first, compute);
            let attended = dense(&self.o, attended, Activation::None, compute);
            let x = if only_first { x.narrow(1, 0, 1) } else { x };
            let sum = add_drop_out(x, attended, dropping.hidden(), compute);
            let x = norm(&self.ln1, sum, epsilon, compute);
            let activation = if self.has_relu {
                Activation::Relu
            } else {
                Activation::Gelu
            };
            let hidden = dense(&self.ffn_i, x.clone(), activation, compute);
            let ffn = dense(&self.ffn_o, hidden, Activation::None, compute);
            let sum = add_drop_out(x, ffn, dropping.hidden(), compute);
            norm(&self.ln2, sum, epsilon, compute)
        }
    }
}
