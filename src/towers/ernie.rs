//! The text tower as a Burn module, for any device.

use burn::module::Module;
use burn::nn;
use burn::tensor::activation::{gelu, relu, softmax};
use burn::tensor::{Device, Tensor};

use super::Observe;
use super::load::Loader;
use crate::{Activation, ErnieConfig, Result};

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
    pub(super) fn load(loader: &Loader<'_>, c: &ErnieConfig, device: &Device) -> Result<Self> {
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
        self.forward_observed(embedded, key_bias, &mut Observe::new("text", None))
    }

    pub(super) fn forward_observed(
        &self,
        embedded: Tensor<3>,
        key_bias: Tensor<4>,
        observe: &mut Observe<'_>,
    ) -> Tensor<2> {
        observe.tensor("embedding_sum", &embedded);
        let mut x = self.ln.forward(embedded);
        observe.tensor("embedding_ln", &x);
        for (i, block) in self.blocks.iter().enumerate() {
            observe.enter(format_args!("block.{i}"));
            x = block.forward(x, key_bias.clone(), i + 1 == self.blocks.len(), observe);
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
        let attended = softmax(scores, 3)
            .matmul(v)
            .swap_dims(1, 2)
            .reshape([batch, rows, self.heads * dv]);
        let attended = self.o.forward(attended);
        observe.tensor("attn", &attended);
        let x = self.ln1.forward(x + attended);
        observe.tensor("ln1", &x);
        let hidden = self.ffn_i.forward(x.clone());
        let hidden = if self.has_relu { relu(hidden) } else { gelu(hidden) };
        let ffn = self.ffn_o.forward(hidden);
        observe.tensor("ffn", &ffn);
        let x = self.ln2.forward(x + ffn);
        observe.tensor("", &x);
        x
    }
}
