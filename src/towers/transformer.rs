//! The transformer that both towers are made of.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::kernels::{Activation, AttentionShape};
use crate::ops::{Layout, Linear, Norm, Pass, Projections};
use crate::weights::Dtype;

/// Where a block normalises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormOrder {
    /// Before attention and before the MLP (image tower).
    Pre,
    /// After each residual (text tower).
    Post,
}

/// What all blocks of a tower have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) order: NormOrder,
    pub(super) attention: AttentionShape,
    pub(super) activation: Activation,
}

/// One transformer block: multi-head attention and an MLP of two layers, each added to what goes into it.
#[derive(Module, Debug)]
pub struct Block {
    pub(super) norm1: Norm,
    pub(super) projections: Projections,
    pub(super) output: Linear,
    pub(super) norm2: Norm,
    pub(super) mlp_in: Linear,
    pub(super) mlp_out: Linear,
}

/// Blocks, one after the other.
#[derive(Module, Debug)]
pub struct Encoder {
    pub(super) blocks: Vec<Block>,
}

impl Encoder {
    /// Rows `[rows, width]` to the row of each sequence's first token, `[sequences, width]`: all that an
    /// embedding is made of. In the last block only the first rows are computed after keys and values.
    pub(super) fn forward(
        &self,
        mut x: Tensor<2>,
        layout: &Layout,
        shape: &Shape,
        pass: &mut Pass<'_>,
    ) -> Tensor<2> {
        for (i, block) in self.blocks.iter().enumerate() {
            pass.trace.enter(format_args!("block.{i}"));
            x = block.forward(x, layout, shape, i + 1 == self.blocks.len(), pass);
            pass.trace.leave();
        }
        pass.firsts(x, layout)
    }

    /// Values of the widest row, where the kernels of a card compute them.
    #[cfg(feature = "cube")]
    pub(super) fn widest(&self) -> usize {
        let blocks = self.blocks.iter();
        let widest = blocks.map(|block| block.projections.widest().max(block.mlp_in.widest()));
        widest.max().unwrap_or(1)
    }

    /// How the weights are kept.
    pub(super) fn dtype(&self) -> Dtype {
        self.blocks
            .first()
            .map_or(Dtype::F32, |block| block.output.dtype())
    }
}

impl Block {
    fn forward(
        &self,
        x: Tensor<2>,
        layout: &Layout,
        shape: &Shape,
        only_first: bool,
        pass: &mut Pass<'_>,
    ) -> Tensor<2> {
        let pre = shape.order == NormOrder::Pre;
        let mut input = x.clone();
        if pre {
            input = pass.norm(&self.norm1, input);
            pass.trace.tensor("norm1", &input);
        }
        let attended = pass.attend(&self.projections, input, &shape.attention, layout, only_first);
        let mut x = match only_first {
            true => pass.first_rows(x, layout),
            false => x,
        };
        x = pass.linear_add(&self.output, attended, x, "attn");
        pass.trace.tensor("attended", &x);
        if !pre {
            x = pass.norm(&self.norm1, x);
            pass.trace.tensor("ln1", &x);
        }
        let mut input = x.clone();
        if pre {
            input = pass.norm(&self.norm2, input);
        }
        let (layers, name) = ([&self.mlp_in, &self.mlp_out], if pre { "mlp" } else { "ffn" });
        x = pass.mlp_add(layers, shape.activation, input, x, name);
        if !pre {
            x = pass.norm(&self.norm2, x);
        }
        pass.trace.tensor("", &x);
        x
    }
}
