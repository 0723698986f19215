//! The text tower as a Burn module, for any device.

use burn::module::Module;
use burn::nn;
use burn::tensor::activation::{gelu, relu, softmax};
use burn::tensor::{Device, Distribution, Tensor};

use super::Observe;
use super::load::Loader;
use crate::{Activation, ErnieConfig, Result};

/// The shares of values that training leaves out at random, each from 0 to below 1.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropout {
    /// Of the embedded tokens and of what each layer adds to them (`hidden_dropout_prob`).
    pub hidden: f64,
    /// Of the attention's weights (`attention_probs_dropout_prob`).
    pub attention: f64,
}

/// Sets a share of the values to 0 and scales the others up, so that the expected sum stays.
fn drop_out<const D: usize>(x: Tensor<D>, share: f64) -> Tensor<D> {
    if share == 0.0 {
        return x;
    }
    let kept = x.random_like(Distribution::Bernoulli(1.0 - share));
    x * (kept / (1.0 - share))
}

/// An ERNIE encoder: post-norm blocks over the embedded tokens and a pooler over the first.
#[derive(Module, Debug)]
pub struct Ernie {
    ln: nn::LayerNorm,
    blocks: Vec<ErnieBlock>,
    pooler: nn::Linear,
}

#[derive(Module, Debug)]
struct ErnieBlock {
    q: nn::Linear,
    k: nn::Linear,
    v: nn::Linear,
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

impl Ernie {
    pub(crate) fn load(loader: &Loader<'_>, c: &ErnieConfig, device: &Device) -> Result<Self> {
        let norm = |name: &str| loader.burn_norm(name, c.width, c.epsilon, device);
        let block = |i: usize| {
            let name = |part: &str| format!("text_model.encoder_stack.block.{i}.{part}");
            let linear =
                |part: &str, inputs, outputs| loader.burn_linear(&name(part), inputs, outputs, device);
            let (query_width, value_width) = (c.heads * c.query_head_width, c.heads * c.value_head_width);
            Ok(ErnieBlock {
                q: linear("attn.q", c.width, query_width)?,
                k: linear("attn.k", c.width, query_width)?,
                v: linear("attn.v", c.width, value_width)?,
                o: linear("attn.o", value_width, c.width)?,
                ln1: norm(&name("ln1"))?,
                ffn_i: linear("ffn.i", c.width, c.mlp_width)?,
                ffn_o: linear("ffn.o", c.mlp_width, c.width)?,
                ln2: norm(&name("ln2"))?,
                heads: c.heads,
                query_head_width: c.query_head_width,
                value_head_width: c.value_head_width,
                has_relu: c.activation == Activation::Relu,
            })
        };
        Ok(Self {
            ln: norm("text_model.ln")?,
            blocks: (0..c.depth).map(block).collect::<Result<_>>()?,
            pooler: loader.burn_linear("text_model.pooler", c.width, c.width, device)?,
        })
    }

    /// Embedded tokens [batch, tokens, width] and what is added to the scores of each key
    /// [batch, 1, 1, tokens] (0 for a token, -10000 for padding) to embeddings [batch, width], not
    /// normalised.
    pub fn forward(&self, embedded: Tensor<3>, key_bias: Tensor<4>) -> Tensor<2> {
        self.forward_training(embedded, key_bias, Dropout::default())
    }

    /// As [`Ernie::forward`], with values left out at random as in training.
    pub fn forward_training(&self, embedded: Tensor<3>, key_bias: Tensor<4>, dropout: Dropout) -> Tensor<2> {
        self.run(embedded, key_bias, dropout, &mut Observe::new("text", None))
    }

    pub(super) fn forward_observed(
        &self,
        embedded: Tensor<3>,
        key_bias: Tensor<4>,
        observe: &mut Observe<'_>,
    ) -> Tensor<2> {
        self.run(embedded, key_bias, Dropout::default(), observe)
    }

    fn run(
        &self,
        embedded: Tensor<3>,
        key_bias: Tensor<4>,
        dropout: Dropout,
        observe: &mut Observe<'_>,
    ) -> Tensor<2> {
        observe.tensor("embedding_sum", &embedded);
        let mut x = self.ln.forward(embedded);
        observe.tensor("embedding_ln", &x);
        x = drop_out(x, dropout.hidden);
        for (i, block) in self.blocks.iter().enumerate() {
            observe.enter(format_args!("block.{i}"));
            let is_last = i + 1 == self.blocks.len();
            x = block.forward(x, key_bias.clone(), is_last, dropout, observe);
            observe.leave();
        }
        let pooled = self.pooler.forward(x.squeeze_dim::<2>(1)).tanh();
        observe.tensor("pooled", &pooled);
        pooled
    }
}

impl ErnieBlock {
    /// [batch, tokens, width] to the same shape, or with `only_first` to [batch, 1, width].
    fn forward(
        &self,
        x: Tensor<3>,
        key_bias: Tensor<4>,
        only_first: bool,
        dropout: Dropout,
        observe: &mut Observe<'_>,
    ) -> Tensor<3> {
        let [batch, tokens, _] = x.dims();
        let (dq, dv) = (self.query_head_width, self.value_head_width);
        let (k, v) = (self.k.forward(x.clone()), self.v.forward(x.clone()));
        let mut x = x;
        let mut rows = tokens;
        if only_first {
            rows = 1;
            x = x.narrow(1, 0, 1);
        }
        let q = self.q.forward(x.clone()) * (dq as f64).powf(-0.5);
        // [batch, heads, tokens, head width]
        let q = q.reshape([batch, rows, self.heads, dq]).swap_dims(1, 2);
        let k = k.reshape([batch, tokens, self.heads, dq]).swap_dims(1, 2);
        let v = v.reshape([batch, tokens, self.heads, dv]).swap_dims(1, 2);
        let scores = q.matmul(k.transpose()) + key_bias;
        let attended = drop_out(softmax(scores, 3), dropout.attention)
            .matmul(v)
            .swap_dims(1, 2)
            .reshape([batch, rows, self.heads * dv]);
        let attended = self.o.forward(attended);
        observe.tensor("attn", &attended);
        let x = self.ln1.forward(x + drop_out(attended, dropout.hidden));
        observe.tensor("ln1", &x);
        let hidden = self.ffn_i.forward(x.clone());
        let hidden = if self.has_relu { relu(hidden) } else { gelu(hidden) };
        let ffn = self.ffn_o.forward(hidden);
        observe.tensor("ffn", &ffn);
        let x = self.ln2.forward(x + drop_out(ffn, dropout.hidden));
        observe.tensor("", &x);
        x
    }
}
