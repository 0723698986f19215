//! Both towers on the host's own memory, over [`crate::kernels`].
//!
//! The same arithmetic as the Burn modules beside this file, which serve every other device and
//! training. A tower keeps its buffers and uses them again.

use std::sync::Mutex;

use burn::tensor::Device;

use super::load::{Columns, Layered, Loader, Words, image_blocks, text_blocks};
use super::{Observe, Step};
use crate::Result;
use crate::config::{Activation as TextActivation, ErnieConfig, VitConfig};
use crate::kernels::{
    Activation, AttentionShape, Buffer, LayerNorm, Linear, Rows, RowsMut, Sequence, attention,
    for_each_chunk, linear, row_block, threads,
};
use crate::weights::Dtype;

/// Where a block normalises.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum NormOrder {
    /// Before attention and before the MLP (image tower).
    Pre,
    /// After each residual (text tower).
    Post,
}

/// One transformer block.
pub(super) struct Block {
    order: NormOrder,
    norm1: LayerNorm,
    query: Linear,
    key_value: Linear,
    attention: AttentionShape,
    projection: Linear,
    norm2: LayerNorm,
    mlp_in: Linear,
    activation: Activation,
    mlp_out: Linear,
}

/// The buffers of one forward pass. Rows stand a cache line further apart than they are wide, since
/// rows a power of two apart fall into the same few cache sets.
#[derive(Default)]
pub(super) struct Workspace {
    tokens: Buffer,
    normed: Buffer,
    query: Buffer,
    key_value: Buffer,
    context: Buffer,
    hidden: Buffer,
    patches: Buffer,
}

/// Floats from one row of a buffer to the next.
fn stride(width: usize) -> usize {
    width.next_multiple_of(16) + 16
}

fn view(buffer: &Buffer, rows: usize, width: usize) -> Rows<'_> {
    Rows::new(buffer, rows, width, stride(width))
}

fn view_mut(buffer: &mut Buffer, rows: usize, width: usize) -> RowsMut<'_> {
    buffer.resize(rows * stride(width));
    RowsMut::new(buffer, rows, width, stride(width))
}

/// Moves the first row of each sequence to the front, in order.
fn keep_first_rows(buffer: &mut Buffer, sequences: &[Sequence], width: usize) {
    for (i, s) in sequences.iter().enumerate() {
        let from = s.query * stride(width);
        buffer.copy_within(from..from + width, i * stride(width));
    }
}

impl Block {
    /// Takes `work.tokens` [rows, width] through the block. With `only_first` the result has one row a
    /// sequence, that of its first token: all that the embedding is made of after the last block.
    /// Returns the number of rows.
    fn forward(
        &self,
        work: &mut Workspace,
        rows: usize,
        sequences: &[Sequence],
        only_first: bool,
        parallel: bool,
        observe: &mut Observe<'_>,
    ) -> usize {
        let width = self.projection.weight.columns();
        let shape = &self.attention;
        let (query_width, value_width) = (shape.query_width(), shape.value_width());

        if self.order == NormOrder::Pre {
            self.norm1.forward(
                view(&work.tokens, rows, width),
                &mut view_mut(&mut work.normed, rows, width),
                parallel,
            );
            observe.rows("norm1", &view(&work.normed, rows, width));
        }
        let input = match self.order {
            NormOrder::Pre => &mut work.normed,
            NormOrder::Post => &mut work.tokens,
        };
        linear(
            view(input, rows, width),
            &self.key_value,
            &mut view_mut(&mut work.key_value, rows, query_width + value_width),
            Activation::None,
            false,
            parallel,
        );
        let all_rows = rows;
        let mut rows = rows;
        let firsts: Vec<Sequence>;
        let mut sequences = sequences;
        if only_first {
            keep_first_rows(&mut work.tokens, sequences, width);
            if self.order == NormOrder::Pre {
                keep_first_rows(&mut work.normed, sequences, width);
            }
            rows = sequences.len();
            let first = |(i, s): (usize, &Sequence)| Sequence {
                query: i,
                queries: 1,
                ..*s
            };
            firsts = sequences.iter().enumerate().map(first).collect();
            sequences = &firsts;
        }
        let input = match self.order {
            NormOrder::Pre => &work.normed,
            NormOrder::Post => &work.tokens,
        };
        linear(
            view(input, rows, width),
            &self.query,
            &mut view_mut(&mut work.query, rows, query_width),
            Activation::None,
            false,
            parallel,
        );
        attention(
            shape,
            sequences,
            view(&work.query, rows, query_width),
            view(&work.key_value, all_rows, query_width + value_width),
            &mut view_mut(&mut work.context, rows, value_width),
            parallel,
        );
        linear(
            view(&work.context, rows, value_width),
            &self.projection,
            &mut view_mut(&mut work.tokens, rows, width),
            Activation::None,
            true,
            parallel,
        );
        observe.rows("attended", &view(&work.tokens, rows, width));
        match self.order {
            NormOrder::Pre => self.norm2.forward(
                view(&work.tokens, rows, width),
                &mut view_mut(&mut work.normed, rows, width),
                parallel,
            ),
            NormOrder::Post => {
                let mut tokens = view_mut(&mut work.tokens, rows, width);
                self.norm1.in_place(&mut tokens, parallel);
                observe.rows("ln1", &view(&work.tokens, rows, width));
            }
        }

        // One thread takes a block of rows through both layers, while the hidden values are in its cache.
        let mlp_width = self.mlp_in.weight.columns();
        let block = if parallel { rows } else { row_block(rows) };
        for first in (0..rows).step_by(block.max(1)) {
            let some = block.min(rows - first);
            let at = first * stride(width);
            let input = match self.order {
                NormOrder::Pre => &work.normed[at..],
                NormOrder::Post => &work.tokens[at..],
            };
            linear(
                Rows::new(input, some, width, stride(width)),
                &self.mlp_in,
                &mut view_mut(&mut work.hidden, some, mlp_width),
                self.activation,
                false,
                parallel,
            );
            linear(
                view(&work.hidden, some, mlp_width),
                &self.mlp_out,
                &mut RowsMut::new(&mut work.tokens[at..], some, width, stride(width)),
                Activation::None,
                true,
                parallel,
            );
        }
        if self.order == NormOrder::Post {
            self.norm2
                .in_place(&mut view_mut(&mut work.tokens, rows, width), parallel);
        }
        observe.rows("", &view(&work.tokens, rows, width));
        rows
    }
}

/// Buffers that are not in use.
#[derive(Default)]
pub(super) struct Pool<W = Workspace>(Mutex<Vec<W>>);

impl<W: Default> Pool<W> {
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut W) -> T) -> T {
        let taken = self.0.lock().ok().and_then(|mut free| free.pop());
        let mut work = taken.unwrap_or_default();
        let result = f(&mut work);
        if let Ok(mut free) = self.0.lock() {
            free.push(work);
        }
        result
    }
}

/// Cuts `items` into runs that one thread takes through the tower alone, and a rest that all threads take
/// together: returns the length of a run and the number of runs. `rows` is what one item comes to.
///
/// A thread on its own waits for nobody and keeps its activations in its cache, so that is the rule, as
/// soon as there is enough for each thread; the rest is what would leave threads idle.
pub(super) fn runs(items: usize, rows: usize) -> (usize, usize) {
    /// Below this a thread would spend its time waiting for the weights.
    const LEAST_ROWS: usize = 96;
    /// Above this the activations would leave the cache.
    const MOST_ROWS: usize = 400;
    let threads = threads();
    let share = items / threads;
    if share * rows < LEAST_ROWS {
        return (0, 0);
    }
    let rounds = (share * rows).div_ceil(MOST_ROWS).min(share);
    (share / rounds, rounds * threads)
}

/// The image tower.
pub(super) struct HostVit {
    config: VitConfig,
    patch_embed: Linear,
    class_and_positions: Vec<f32>,
    norm_pre: LayerNorm,
    blocks: Vec<Block>,
    norm_post: LayerNorm,
    pool: Pool,
}

impl Layered for HostVit {
    type Config = VitConfig;
    type Block = Block;
    type Target = Device;

    fn blocks(config: &VitConfig) -> Vec<String> {
        image_blocks(config)
    }

    fn load_block(loader: &Loader<'_>, config: &VitConfig, _: &Device, prefix: &str) -> Result<Block> {
        let width = config.width;
        let norm = |part: &str| loader.norm(&format!("{prefix}{part}"), width, config.epsilon);
        let all = |part: &str, inputs, columns| {
            loader.linear(inputs, &[Columns::all(&format!("{prefix}{part}"), columns)])
        };
        let qkv = format!("{prefix}attn.qkv");
        let part = |start, columns| loader.linear(width, &[Columns::part(&qkv, 3 * width, start, columns)]);
        Ok(Block {
            order: NormOrder::Pre,
            norm1: norm("norm1")?,
            query: part(0, width)?,
            key_value: part(width, 2 * width)?,
            attention: AttentionShape {
                heads: config.heads,
                query_head_width: config.head_width(),
                value_head_width: config.head_width(),
            },
            projection: all("attn.proj", width, width)?,
            norm2: norm("norm2")?,
            mlp_in: all("mlp.fc1", width, config.mlp_width)?,
            activation: Activation::QuickGelu,
            mlp_out: all("mlp.fc2", config.mlp_width, width)?,
        })
    }

    fn assemble(loader: &Loader<'_>, config: &VitConfig, _: &Device, blocks: Vec<Block>) -> Result<Self> {
        let (width, patch) = (config.width, config.patch_size);
        let norm = |name: &str| loader.norm(name, width, config.epsilon);
        let patches = loader.values("visual.patch_embed.proj.weight", &[width, 3, patch, patch])?;
        let mut class_and_positions =
            loader.values("visual.positional_embedding", &[1, config.tokens(), width])?;
        let class = loader.values("visual.class_embedding", &[1, 1, width])?;
        for (position, class) in class_and_positions.iter_mut().zip(class) {
            *position += class;
        }
        Ok(Self {
            patch_embed: Linear {
                weight: crate::kernels::PackedMatrix::from_transposed(&patches, width, config.patch_values()),
                bias: Vec::new(),
            },
            class_and_positions,
            norm_pre: norm("visual.norm_pre")?,
            blocks,
            norm_post: norm("visual.norm_post")?,
            config: config.clone(),
            pool: Pool::default(),
        })
    }
}

impl HostVit {
    /// Values of one embedding.
    pub(super) fn width(&self) -> usize {
        self.config.width
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.blocks[0].query.weight.dtype()
    }

    /// `pixels` [batch, 3, image_size, image_size] to `output` [batch, width].
    pub(super) fn forward(&self, pixels: &[f32], output: &mut [f32]) {
        let image = 3 * self.config.image_size * self.config.image_size;
        let batch = pixels.len() / image;
        assert_eq!(
            (pixels.len(), output.len()),
            (batch * image, batch * self.config.width)
        );
        let (run, count) = runs(batch, self.config.tokens());
        let (alone, together) = output.split_at_mut(run * count * self.config.width);
        for_each_chunk(alone, run * self.config.width, |i, output| {
            let pixels = &pixels[i * run * image..][..run * image];
            self.forward_run(pixels, output, false, None);
        });
        if !together.is_empty() {
            self.forward_run(&pixels[run * count * image..], together, true, None);
        }
    }

    /// As [`HostVit::forward`], showing what comes out of every step.
    pub(super) fn forward_observed(&self, pixels: &[f32], output: &mut [f32], steps: &mut Vec<Step>) {
        self.forward_run(pixels, output, true, Some(steps));
    }

    fn forward_run(&self, pixels: &[f32], output: &mut [f32], parallel: bool, steps: Option<&mut Vec<Step>>) {
        let c = &self.config;
        let (width, tokens) = (c.width, c.tokens());
        let image = 3 * c.image_size * c.image_size;
        let batch = pixels.len() / image;
        let rows = batch * tokens;
        let mut observe = Observe::new("visual", steps);
        self.pool.with(|work| {
            work.tokens.resize(rows * stride(width));
            for (i, pixels) in pixels.chunks_exact(image).enumerate() {
                let x = &mut work.tokens[i * tokens * stride(width)..];
                for (row, values) in self.class_and_positions.chunks_exact(width).enumerate() {
                    x[row * stride(width)..][..width].copy_from_slice(values);
                }
                work.patches.resize(c.patches() * stride(c.patch_values()));
                patches(c, pixels, stride(c.patch_values()), &mut work.patches);
                linear(
                    view(&work.patches, c.patches(), c.patch_values()),
                    &self.patch_embed,
                    &mut RowsMut::new(&mut x[stride(width)..], c.patches(), width, stride(width)),
                    Activation::None,
                    true,
                    parallel,
                );
            }
            observe.rows("tokens_plus_pos", &view(&work.tokens, rows, width));
            self.norm_pre
                .in_place(&mut view_mut(&mut work.tokens, rows, width), parallel);
            observe.rows("norm_pre", &view(&work.tokens, rows, width));
            let sequence = |i| Sequence {
                query: i * tokens,
                queries: tokens,
                key: i * tokens,
                keys: tokens,
            };
            let sequences: Vec<Sequence> = (0..batch).map(sequence).collect();
            for (i, block) in self.blocks.iter().enumerate() {
                observe.enter(format_args!("block.{i}"));
                block.forward(work, rows, &sequences, i + 1 == c.depth, parallel, &mut observe);
                observe.leave();
            }
            self.norm_post.forward(
                view(&work.tokens, batch, width),
                &mut RowsMut::new(output, batch, width, width),
                false,
            );
        });
        observe.rows("norm_post", &Rows::new(output, batch, width, width));
    }
}

/// Cuts an image [3, size, size] into patches [patches, 3 * patch * patch], row by row, each in the order
/// of the convolution's weights. They begin `stride` values apart.
pub(super) fn patches(config: &VitConfig, pixels: &[f32], stride: usize, out: &mut [f32]) {
    let (size, patch) = (config.image_size, config.patch_size);
    let across = size / patch;
    for channel in 0..3 {
        for y in 0..size {
            let line = &pixels[(channel * size + y) * size..][..size];
            let at = (channel * patch + y % patch) * patch;
            for (x, values) in line.chunks_exact(patch).enumerate() {
                out[(y / patch * across + x) * stride + at..][..patch].copy_from_slice(values);
            }
        }
    }
}

/// The text tower.
pub(super) struct HostErnie {
    config: ErnieConfig,
    norm: LayerNorm,
    blocks: Vec<Block>,
    pooler: Linear,
    pool: Pool,
}

impl Layered for HostErnie {
    type Config = ErnieConfig;
    type Block = Block;
    type Target = Device;

    fn blocks(config: &ErnieConfig) -> Vec<String> {
        text_blocks(config)
    }

    fn load_block(loader: &Loader<'_>, config: &ErnieConfig, _: &Device, prefix: &str) -> Result<Block> {
        let width = config.width;
        let norm = |part: &str| loader.norm(&format!("{prefix}{part}"), width, config.epsilon);
        let all = |part: &str, columns| Columns::all(&format!("{prefix}{part}"), columns);
        let attention = AttentionShape {
            heads: config.heads,
            query_head_width: config.query_head_width,
            value_head_width: config.value_head_width,
        };
        let (query_width, value_width) = (attention.query_width(), attention.value_width());
        Ok(Block {
            order: NormOrder::Post,
            norm1: norm("ln1")?,
            query: loader.linear(width, &[all("attn.q", query_width)])?,
            key_value: loader.linear(width, &[all("attn.k", query_width), all("attn.v", value_width)])?,
            attention,
            projection: loader.linear(value_width, &[all("attn.o", width)])?,
            norm2: norm("ln2")?,
            mlp_in: loader.linear(width, &[all("ffn.i", config.mlp_width)])?,
            activation: match config.activation {
                TextActivation::Gelu => Activation::Gelu,
                TextActivation::Relu => Activation::Relu,
            },
            mlp_out: loader.linear(config.mlp_width, &[all("ffn.o", width)])?,
        })
    }

    fn assemble(loader: &Loader<'_>, config: &ErnieConfig, _: &Device, blocks: Vec<Block>) -> Result<Self> {
        let width = config.width;
        Ok(Self {
            norm: loader.norm("text_model.ln", width, config.epsilon)?,
            blocks,
            pooler: loader.linear(width, &[Columns::all("text_model.pooler", width)])?,
            config: config.clone(),
            pool: Pool::default(),
        })
    }
}

impl HostErnie {
    pub(super) fn dtype(&self) -> Dtype {
        self.blocks[0].query.weight.dtype()
    }

    /// Captions to `output` [captions, width]. They stand behind one another without padding: every
    /// step but attention works on single rows, and attention knows where each caption ends.
    pub(super) fn forward(&self, words: &Words, captions: &[&[u32]], output: &mut [f32]) {
        let width = self.config.width;
        assert_eq!(output.len(), captions.len() * width);
        let rows: usize = captions.iter().map(|c| c.len()).sum();
        let (run, count) = runs(captions.len(), rows.div_ceil(captions.len().max(1)));
        let (alone, together) = output.split_at_mut(run * count * width);
        for_each_chunk(alone, run * width, |i, output| {
            self.forward_run(words, &captions[i * run..][..run], output, false, None);
        });
        if !together.is_empty() {
            self.forward_run(words, &captions[run * count..], together, true, None);
        }
    }

    /// As [`HostErnie::forward`], showing what comes out of every step.
    pub(super) fn forward_observed(
        &self,
        words: &Words,
        captions: &[&[u32]],
        output: &mut [f32],
        steps: &mut Vec<Step>,
    ) {
        self.forward_run(words, captions, output, true, Some(steps));
    }

    fn forward_run(
        &self,
        words: &Words,
        captions: &[&[u32]],
        output: &mut [f32],
        parallel: bool,
        steps: Option<&mut Vec<Step>>,
    ) {
        let c = &self.config;
        let width = c.width;
        let mut observe = Observe::new("text", steps);
        self.pool.with(|work| {
            work.tokens
                .resize(captions.iter().map(|c| c.len()).sum::<usize>() * stride(width));
            let sequences = words.pack(captions, |row, id, position| {
                words.embed(id, position, &mut work.tokens[row * stride(width)..][..width]);
            });
            let rows = sequences.last().map_or(0, |s| s.query + s.queries);
            observe.rows("embedding_sum", &view(&work.tokens, rows, width));
            self.norm
                .in_place(&mut view_mut(&mut work.tokens, rows, width), parallel);
            observe.rows("embedding_ln", &view(&work.tokens, rows, width));
            for (i, block) in self.blocks.iter().enumerate() {
                observe.enter(format_args!("block.{i}"));
                block.forward(work, rows, &sequences, i + 1 == c.depth, parallel, &mut observe);
                observe.leave();
            }
            linear(
                view(&work.tokens, captions.len(), width),
                &self.pooler,
                &mut RowsMut::new(output, captions.len(), width, width),
                Activation::None,
                false,
                parallel,
            );
        });
        for x in &mut *output {
            *x = x.tanh();
        }
        observe.rows("pooled", &Rows::new(output, captions.len(), width, width));
    }
}
