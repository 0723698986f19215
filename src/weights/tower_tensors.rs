//! The tensors that the towers are made of, by a checkpoint's names, with their shapes.

use crate::{EfficientNetConfig, ErnieConfig, ImageConfig, VitConfig};

/// What a checkpoint calls the temperature, whose exponential is the logits' scale. Inference computes no
/// vector with it.
pub const TEMPERATURE: &str = "contrastive_loss_mm.temperature_b";

/// The tensors of an image tower, with their shapes.
pub fn image_tensors(config: impl Into<ImageConfig>) -> Vec<(String, Vec<usize>)> {
    match config.into() {
        ImageConfig::Vit(vit) => vit_tensors(&vit),
        ImageConfig::EfficientNet(net) => efficientnet_tensors(&net),
    }
}

fn vit_tensors(config: &VitConfig) -> Vec<(String, Vec<usize>)> {
    let width = config.width;
    let mut tensors = Tensors::under("visual.");
    tensors.add("class_embedding", [1, 1, width]);
    tensors.add("positional_embedding", [1, config.tokens(), width]);
    tensors.add(
        "patch_embed.proj.weight",
        [width, 3, config.patch_size, config.patch_size],
    );
    tensors.norm("norm_pre", width);
    tensors.norm("norm_post", width);
    for block in 0..config.depth {
        let name = |part| format!("blocks.{block}.{part}");
        tensors.norm(&name("norm1"), width);
        tensors.linear(&name("attn.qkv"), width, 3 * width);
        tensors.linear(&name("attn.proj"), width, width);
        tensors.norm(&name("norm2"), width);
        tensors.linear(&name("mlp.fc1"), width, config.mlp_width);
        tensors.linear(&name("mlp.fc2"), config.mlp_width, width);
    }
    tensors.list
}

/// The names are those of timm's networks.
fn efficientnet_tensors(config: &EfficientNetConfig) -> Vec<(String, Vec<usize>)> {
    let mut tensors = Tensors::under("visual.");
    tensors.add("conv_stem.weight", [config.stem(), 3, 3, 3]);
    tensors.batch_norm("bn1", config.stem());
    let mut output = config.stem();
    for block in config.blocks() {
        let names = block.tensors();
        let name = |part: &str| format!("blocks.{}.{}.{part}", block.stage, block.index);
        let convolution = |part: &str| format!("{}.weight", name(part));
        let (expanded, kernel) = (block.expanded, block.kernel);
        if let Some((conv, norm)) = names.expansion {
            tensors.add(&convolution(conv), [expanded, block.input, 1, 1]);
            tensors.batch_norm(&name(norm), expanded);
        }
        let (conv, norm) = names.depthwise;
        tensors.add(&convolution(conv), [expanded, 1, kernel, kernel]);
        tensors.batch_norm(&name(norm), expanded);
        for (part, inputs, outputs) in [
            (names.reduce, expanded, block.squeezed),
            (names.expand, block.squeezed, expanded),
        ] {
            tensors.add(&convolution(part), [outputs, inputs, 1, 1]);
            tensors.add(&format!("{}.bias", name(part)), [outputs]);
        }
        let (conv, norm) = names.projection;
        tensors.add(&convolution(conv), [block.output, expanded, 1, 1]);
        tensors.batch_norm(&name(norm), block.output);
        output = block.output;
    }
    let features = config.features();
    tensors.add("conv_head.weight", [features, output, 1, 1]);
    tensors.batch_norm("bn2", features);
    if let Some(width) = config.projection {
        tensors.linear("projection", features, width);
    }
    tensors.list
}

/// The tensors of a text encoder, with their shapes.
pub fn text_tensors(config: &ErnieConfig) -> Vec<(String, Vec<usize>)> {
    let width = config.width;
    let mut tensors = Tensors::under("text_model.");
    tensors.add("word_emb.weight", [config.vocab_size, width]);
    tensors.add("pos_emb.weight", [config.max_positions, width]);
    if let Some(types) = config.sentence_types {
        tensors.add("sent_emb.weight", [types, width]);
    }
    if let Some(types) = config.task_types {
        tensors.add("task_emb.weight", [types, width]);
    }
    tensors.norm("ln", width);
    for block in 0..config.depth {
        let name = |part| format!("encoder_stack.block.{block}.{part}");
        tensors.linear(&name("attn.q"), width, config.heads * config.query_head_width);
        tensors.linear(&name("attn.k"), width, config.heads * config.query_head_width);
        tensors.linear(&name("attn.v"), width, config.heads * config.value_head_width);
        tensors.linear(&name("attn.o"), config.heads * config.value_head_width, width);
        tensors.norm(&name("ln1"), width);
        tensors.linear(&name("ffn.i"), width, config.mlp_width);
        tensors.linear(&name("ffn.o"), config.mlp_width, width);
        tensors.norm(&name("ln2"), width);
    }
    tensors.linear("pooler", width, width);
    tensors.list
}

struct Tensors {
    prefix: &'static str,
    list: Vec<(String, Vec<usize>)>,
}

impl Tensors {
    fn under(prefix: &'static str) -> Self {
        Self {
            prefix,
            list: Vec::new(),
        }
    }

    fn add(&mut self, name: &str, shape: impl Into<Vec<usize>>) {
        self.list.push((format!("{}{name}", self.prefix), shape.into()));
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.add(&format!("{name}.weight"), [width]);
        self.add(&format!("{name}.bias"), [width]);
    }

    fn batch_norm(&mut self, name: &str, width: usize) {
        self.norm(name, width);
        self.add(&format!("{name}.running_mean"), [width]);
        self.add(&format!("{name}.running_var"), [width]);
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.add(&format!("{name}.weight"), [inputs, outputs]);
        self.add(&format!("{name}.bias"), [outputs]);
    }
}

impl ImageConfig {
    /// Number of the tower's weights.
    pub fn parameters(&self) -> u64 {
        parameters(&image_tensors(self))
    }
}

impl ErnieConfig {
    /// Number of the tower's weights.
    pub fn parameters(&self) -> u64 {
        parameters(&text_tensors(self))
    }
}

/// Returns the number of values of all `tensors`.
fn parameters(tensors: &[(String, Vec<usize>)]) -> u64 {
    let values = |shape: &[usize]| shape.iter().map(|&n| n as u64).product::<u64>();
    tensors.iter().map(|(_, shape)| values(shape)).sum()
}
