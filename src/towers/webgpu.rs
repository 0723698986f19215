//! Both towers on the kernels of [`crate::webgpu`], in the same steps as on the host's.

use std::sync::Mutex;

use super::image::{ImageBody, Later};
use super::load::{Layered, Loader, Words, image_blocks, text_blocks};
use super::text::TextBody;
use super::transformer::NormOrder;
use super::wait;
use crate::config::{Activation as TextActivation, ErnieConfig, VitConfig};
use crate::kernels::convolution::Map;
use crate::kernels::{AttentionShape, Sequence, patches};
use crate::ops::{Step, Trace};
use crate::webgpu::{Epilogue, Gpu, GpuBuffer, GpuLinear, GpuNorm, GpuSequences, GpuUniform, Part, Recorder};
use crate::weights::{Dtype, Quantised, TensorData};
use crate::{Error, Result};

/// Rows of all sequences that are computed at once. It bounds the buffers, and how long a card is busy at a time: a
/// system may take one away that does not answer.
const MOST_ROWS: usize = 4096;

/// One transformer block.
pub(super) struct GpuBlock {
    order: NormOrder,
    norm1: GpuNorm,
    /// Queries, keys and values side by side.
    qkv: GpuLinear,
    /// With widths of heads that are multiples of 4.
    attention: AttentionShape,
    /// 1 / sqrt(a query's true width)
    scale: f32,
    projection: GpuLinear,
    norm2: GpuNorm,
    mlp_in: GpuLinear,
    activation: Epilogue,
    mlp_out: GpuLinear,
}

/// The buffers of a pass.
#[derive(Default)]
struct Workspace {
    uniform: GpuUniform,
    patches: GpuBuffer,
    tokens: GpuBuffer,
    /// The tokens' first rows, and those of `normed`.
    first: GpuBuffer,
    first_normed: GpuBuffer,
    normed: GpuBuffer,
    qkv: GpuBuffer,
    context: GpuBuffer,
    hidden: GpuBuffer,
    output: GpuBuffer,
}

/// Shows what comes out of steps. Waiting for a card is only possible outside of a browser.
pub(super) struct Watch<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) trace: Trace<'a>,
}

impl Watch<'_> {
    pub(super) fn rows(
        &mut self,
        recorder: &mut Recorder<'_>,
        name: &str,
        buffer: &GpuBuffer,
        rows: usize,
        width: usize,
    ) {
        let gpu = self.gpu;
        self.trace.push(
            name,
            || vec![rows, width],
            || {
                recorder.submit();
                wait(gpu.read(buffer.get(), rows * width)).expect("the card works")
            },
        );
    }
}

impl GpuBlock {
    /// Takes `work.tokens` [rows, width] through the block. With `first`, which says where the sequences' first rows
    /// will lie, the result is `work.first`, one row a sequence.
    fn forward(
        &self,
        recorder: &mut Recorder<'_>,
        work: &Workspace,
        rows: usize,
        sequences: &GpuSequences,
        first: Option<(&GpuSequences, usize)>,
        watch: &mut Watch<'_>,
    ) {
        let shape = &self.attention;
        let (width, qkv_width) = (self.norm1.width, self.qkv.columns());
        let qkv = (&work.qkv, qkv_width);
        if self.order == NormOrder::Pre {
            recorder.layer_norm(&work.tokens, &self.norm1, &work.normed, 0, rows);
            watch.rows(recorder, "norm1", &work.normed, rows, width);
        }
        let input = match self.order {
            NormOrder::Pre => &work.normed,
            NormOrder::Post => &work.tokens,
        };
        let (mut tokens, mut rows, mut queries) = (&work.tokens, rows, sequences);
        match first {
            None => recorder.linear(input, &self.qkv, qkv, rows, Part::default(), Epilogue::None),
            Some((firsts, count)) => {
                let keys_values = Part {
                    column: shape.query_width(),
                    columns: qkv_width - shape.query_width(),
                    ..Part::default()
                };
                recorder.linear(input, &self.qkv, qkv, rows, keys_values, Epilogue::None);
                recorder.first_rows(&work.tokens, width, sequences, &work.first);
                let input = match self.order {
                    NormOrder::Pre => {
                        recorder.first_rows(&work.normed, width, sequences, &work.first_normed);
                        &work.first_normed
                    }
                    NormOrder::Post => &work.first,
                };
                let only_queries = Part {
                    columns: shape.query_width(),
                    ..Part::default()
                };
                recorder.linear(input, &self.qkv, qkv, count, only_queries, Epilogue::None);
                (tokens, rows, queries) = (&work.first, count, firsts);
            }
        }
        let all = Part::default();
        recorder.attention(shape, self.scale, &work.qkv, queries, &work.context);
        recorder.linear(
            &work.context,
            &self.projection,
            (tokens, width),
            rows,
            all,
            Epilogue::Add,
        );
        watch.rows(recorder, "attended", tokens, rows, width);
        let input = match self.order {
            NormOrder::Pre => {
                recorder.layer_norm(tokens, &self.norm2, &work.normed, 0, rows);
                &work.normed
            }
            NormOrder::Post => {
                recorder.layer_norm_in_place(&self.norm1, tokens, rows);
                watch.rows(recorder, "ln1", tokens, rows, width);
                tokens
            }
        };
        let hidden = (&work.hidden, self.mlp_in.columns());
        recorder.linear(input, &self.mlp_in, hidden, rows, all, self.activation);
        recorder.linear(
            &work.hidden,
            &self.mlp_out,
            (tokens, width),
            rows,
            all,
            Epilogue::Add,
        );
        if self.order == NormOrder::Post {
            recorder.layer_norm_in_place(&self.norm2, tokens, rows);
        }
        watch.rows(recorder, "", tokens, rows, width);
        recorder.submit();
    }

    /// Values of the widest row of its buffers.
    fn widest_row(&self) -> usize {
        self.qkv.columns().max(self.mlp_in.columns())
    }

    /// Makes room for `rows` rows of `sequences` sequences.
    fn reserve(&self, gpu: &Gpu, work: &mut Workspace, rows: usize, sequences: usize) {
        let (shape, width) = (&self.attention, self.norm1.width);
        for (buffer, rows, width) in [
            (&mut work.tokens, rows, width),
            (&mut work.normed, rows, width),
            (&mut work.first, sequences, width),
            (&mut work.first_normed, sequences, width),
            (&mut work.qkv, rows, self.qkv.columns()),
            (&mut work.context, rows, shape.value_width()),
            (&mut work.hidden, rows, self.mlp_in.columns()),
        ] {
            buffer.reserve(gpu, rows * width);
        }
    }
}

/// Rows that fit in a pass, with the widest row of `width` values.
fn rows_of_a_pass(gpu: &Gpu, width: usize) -> usize {
    let most = gpu.largest() / (4 * width as u64);
    MOST_ROWS.min(usize::try_from(most).unwrap_or(usize::MAX))
}

/// Refuses what the kernels do not take.
pub(super) fn check(name: &str, width: usize) -> Result<()> {
    match width.is_multiple_of(4) {
        true => Ok(()),
        false => Err(Error::Config(format!(
            "{name} is {width}, expected a multiple of 4: the kernels for graphics cards compute four values at a time"
        ))),
    }
}

fn norm(loader: &Loader<'_>, name: &str, width: usize, epsilon: f64, gpu: &Gpu) -> Result<GpuNorm> {
    Ok(GpuNorm {
        scale: gpu.values(&loader.values(&format!("{name}.weight"), &[width])?),
        shift: gpu.values(&loader.values(&format!("{name}.bias"), &[width])?),
        width,
        epsilon: epsilon as f32,
    })
}

/// Rows or columns of a weight: groups of the same size, such as heads.
#[derive(Clone, Copy)]
struct Groups {
    count: usize,
    size: usize,
}

impl Groups {
    fn one(size: usize) -> Self {
        Self { count: 1, size }
    }

    fn stored(self) -> usize {
        self.count * self.size
    }

    /// With zeros behind each group up to a multiple of 4. They change no sum.
    fn padded(self) -> usize {
        self.count * padded(self.size)
    }
}

/// The next multiple of 4, which the kernels compute at a time.
pub(super) fn padded(size: usize) -> usize {
    size.next_multiple_of(4)
}

/// A layer of the checkpoint's.
struct Stored {
    name: String,
    columns: Groups,
}

/// Layers' columns side by side.
fn linear(loader: &Loader<'_>, depth: Groups, layers: &[Stored], gpu: &Gpu) -> Result<GpuLinear> {
    let columns: usize = layers.iter().map(|layer| layer.columns.padded()).sum();
    let mut bias = vec![0.0; columns];
    let mut weights = Vec::new();
    let mut column = 0;
    for Stored {
        name,
        columns: groups,
    } in layers
    {
        let values = loader.values(&format!("{name}.bias"), &[groups.stored()])?;
        place(&values, Groups::one(1), *groups, &mut bias[column..], 0);
        column += groups.padded();
        let shape = [depth.stored(), groups.stored()];
        weights.push(loader.read(&format!("{name}.weight"), &shape)?);
    }
    let weight = if let Some(weights) = all(&weights, |weight| match weight {
        TensorData::F16(values) => Some(&**values),
        _ => None,
    }) {
        TensorData::F16(joined(&weights, depth, layers).into())
    } else if let Some(matrices) = all(&weights, |weight| match weight {
        TensorData::Quantised(matrix) => Some(matrix),
        _ => None,
    }) && depth.padded() == depth.stored()
        && layers
            .iter()
            .all(|layer| layer.columns.padded() == layer.columns.stored())
        && let Some(matrix) = Quantised::beside(&matrices)
    {
        TensorData::Quantised(matrix)
    } else {
        let weights: Vec<_> = weights.into_iter().map(TensorData::into_f32).collect();
        let weights: Vec<&[f32]> = weights.iter().map(|values| &**values).collect();
        TensorData::F32(joined(&weights, depth, layers).into())
    };
    Ok(gpu.linear(depth.padded(), columns, weight, &bias))
}

/// What `find` finds in every one.
fn all<'a, T, F>(items: &'a [T], find: impl Fn(&'a T) -> Option<F>) -> Option<Vec<F>> {
    items.iter().map(find).collect()
}

/// The layers' weights as one matrix.
fn joined<T: Copy + Default>(weights: &[&[T]], depth: Groups, layers: &[Stored]) -> Vec<T> {
    let width: usize = layers.iter().map(|layer| layer.columns.padded()).sum();
    let mut joined = vec![T::default(); depth.padded() * width];
    let mut column = 0;
    for (values, layer) in weights.iter().zip(layers) {
        place(values, depth, layer.columns, &mut joined[column..], width);
        column += layer.columns.padded();
    }
    joined
}

/// Writes a matrix whose rows begin `width` apart in `out`, with room behind each group.
fn place<T: Copy>(values: &[T], rows: Groups, columns: Groups, out: &mut [T], width: usize) {
    for (row, values) in values.chunks_exact(columns.stored()).enumerate() {
        let row = row / rows.size * padded(rows.size) + row % rows.size;
        for (group, values) in values.chunks_exact(columns.size).enumerate() {
            out[row * width + group * padded(columns.size)..][..columns.size].copy_from_slice(values);
        }
    }
}

/// The image tower.
pub(super) struct GpuVit {
    gpu: Gpu,
    config: VitConfig,
    /// Values of a patch, up to a multiple of 4.
    patch_width: usize,
    patch_embed: GpuLinear,
    class_and_positions: wgpu::Buffer,
    norm_pre: GpuNorm,
    blocks: Vec<GpuBlock>,
    norm_post: GpuNorm,
    work: Mutex<Vec<Workspace>>,
}

impl Layered for GpuVit {
    type Config = VitConfig;
    type Block = GpuBlock;
    type Target = Gpu;

    fn blocks(config: &VitConfig) -> Vec<String> {
        image_blocks(config)
    }

    fn load_block(loader: &Loader<'_>, c: &VitConfig, gpu: &Gpu, prefix: &str) -> Result<GpuBlock> {
        let norm = |part: &str| norm(loader, &format!("{prefix}{part}"), c.width, c.epsilon, gpu);
        let linear = |part: &str, depth, columns| {
            let name = format!("{prefix}{part}");
            linear(loader, depth, &[Stored { name, columns }], gpu)
        };
        let (width, mlp_width) = (Groups::one(c.width), Groups::one(c.mlp_width));
        let heads = |count| Groups {
            count,
            size: c.head_width(),
        };
        let block = GpuBlock {
            order: NormOrder::Pre,
            norm1: norm("norm1")?,
            qkv: linear("attn.qkv", width, heads(3 * c.heads))?,
            attention: AttentionShape {
                heads: c.heads,
                query_head_width: padded(c.head_width()),
                value_head_width: padded(c.head_width()),
            },
            scale: (c.head_width() as f32).powf(-0.5),
            projection: linear("attn.proj", heads(c.heads), width)?,
            norm2: norm("norm2")?,
            mlp_in: linear("mlp.fc1", width, mlp_width)?,
            activation: Epilogue::QuickGelu,
            mlp_out: linear("mlp.fc2", mlp_width, width)?,
        };
        gpu.flush();
        Ok(block)
    }

    fn assemble(loader: &Loader<'_>, c: &VitConfig, gpu: &Gpu, blocks: Vec<GpuBlock>) -> Result<Self> {
        let (width, patch) = (c.width, c.patch_size);
        let norm = |name: &str| norm(loader, name, width, c.epsilon, gpu);
        let stored = loader.values("visual.patch_embed.proj.weight", &[width, 3, patch, patch])?;
        let patch_width = padded(c.patch_values());
        let mut patch_embed = vec![0.0; patch_width * width];
        for (column, values) in stored.chunks_exact(c.patch_values()).enumerate() {
            for (row, &value) in values.iter().enumerate() {
                patch_embed[row * width + column] = value;
            }
        }
        let mut class_and_positions =
            loader.values("visual.positional_embedding", &[1, c.tokens(), width])?;
        let class = loader.values("visual.class_embedding", &[1, 1, width])?;
        for (position, class) in class_and_positions.iter_mut().zip(class) {
            *position += class;
        }
        Ok(Self {
            patch_embed: gpu.linear(
                patch_width,
                width,
                TensorData::F32(patch_embed.into()),
                &vec![0.0; width],
            ),
            patch_width,
            class_and_positions: gpu.values(&class_and_positions),
            norm_pre: norm("visual.norm_pre")?,
            blocks,
            norm_post: norm("visual.norm_post")?,
            config: c.clone(),
            gpu: gpu.clone(),
            work: Mutex::default(),
        })
    }
}

impl GpuVit {
    /// Refuses what the kernels do not take.
    pub(super) fn check(c: &VitConfig) -> Result<()> {
        check("image.width", c.width)
    }

    async fn forward(&self, pixels: &[f32], batch: usize, steps: Option<&mut Vec<Step>>) -> Result<Vec<f32>> {
        let (c, gpu) = (&self.config, &self.gpu);
        let (width, tokens, patch_count) = (c.width, c.tokens(), c.patches());
        let image = pixels.len() / batch.max(1);
        let widest = self.blocks[0].widest_row().max(self.patch_width);
        let most = (rows_of_a_pass(gpu, widest) / tokens).max(1);
        let mut watch = Watch {
            gpu,
            trace: Trace::new("visual", steps),
        };
        with_workspace(&self.work, async |work: &mut Workspace| {
            work.output.reserve(gpu, batch * width);
            for (pass, pixels) in pixels.chunks(most * image).enumerate() {
                let count = pixels.len() / image;
                let rows = count * tokens;
                self.blocks[0].reserve(gpu, work, rows, count);
                work.patches.reserve(gpu, count * patch_count * self.patch_width);
                let mut cut = vec![0.0; patch_count * self.patch_width];
                for (i, pixels) in pixels.chunks_exact(image).enumerate() {
                    patches(c.image_size, c.patch_size, pixels, self.patch_width, &mut cut);
                    work.patches.write(gpu, i * cut.len(), &cut);
                }
                let places = (0..count).map(|i| i * tokens * width);
                gpu.repeat(&self.class_and_positions, &work.tokens, places);
                let sequence = |i| Sequence {
                    query: i * tokens,
                    queries: tokens,
                    key: i * tokens,
                    keys: tokens,
                };
                let sequences: Vec<Sequence> = (0..count).map(sequence).collect();
                let mut uniform = std::mem::take(&mut work.uniform);
                let mut recorder = Recorder::new(gpu, &mut uniform);
                for i in 0..count {
                    let part = Part {
                        x_row: i * patch_count,
                        y_row: i * tokens + 1,
                        ..Part::default()
                    };
                    let (x, y) = (&work.patches, (&work.tokens, width));
                    recorder.linear(x, &self.patch_embed, y, patch_count, part, Epilogue::Add);
                }
                watch.rows(&mut recorder, "tokens_plus_pos", &work.tokens, rows, width);
                recorder.layer_norm_in_place(&self.norm_pre, &work.tokens, rows);
                watch.rows(&mut recorder, "norm_pre", &work.tokens, rows, width);
                through_blocks(&self.blocks, &mut recorder, work, &sequences, &mut watch);
                recorder.layer_norm(&work.first, &self.norm_post, &work.output, pass * most, count);
                watch.rows(&mut recorder, "norm_post", &work.output, count, width);
                recorder.submit();
                work.uniform = uniform;
            }
            gpu.read(work.output.get(), batch * width).await
        })
        .await
    }
}

/// Takes `work.tokens` through all blocks to `work.first`, one row a sequence.
fn through_blocks(
    blocks: &[GpuBlock],
    recorder: &mut Recorder<'_>,
    work: &Workspace,
    sequences: &[Sequence],
    watch: &mut Watch<'_>,
) {
    let (rows, count) = (rows_of(sequences), sequences.len());
    let firsts = GpuSequences::new(watch.gpu, &only_first(sequences));
    let sequences = GpuSequences::new(watch.gpu, sequences);
    for (i, block) in blocks.iter().enumerate() {
        watch.trace.enter(format_args!("block.{i}"));
        let first = (i + 1 == blocks.len()).then_some((&firsts, count));
        block.forward(recorder, work, rows, &sequences, first, watch);
        watch.trace.leave();
    }
}

/// Rows that sequences behind one another have.
fn rows_of(sequences: &[Sequence]) -> usize {
    sequences.last().map_or(0, |s| s.query + s.queries)
}

/// Each sequence's first query alone, where it lies when it is all that is left.
fn only_first(sequences: &[Sequence]) -> Vec<Sequence> {
    let first = |(i, s): (usize, &Sequence)| Sequence {
        query: i,
        queries: 1,
        ..*s
    };
    sequences.iter().enumerate().map(first).collect()
}

/// Lends buffers that are not in use.
pub(super) async fn with_workspace<W: Default, T>(
    free: &Mutex<Vec<W>>,
    work: impl AsyncFnOnce(&mut W) -> T,
) -> T {
    let taken = free.lock().ok().and_then(|mut free| free.pop());
    let mut workspace = taken.unwrap_or_default();
    let result = work(&mut workspace).await;
    if let Ok(mut free) = free.lock() {
        free.push(workspace);
    }
    result
}

impl ImageBody for GpuVit {
    fn dtype(&self) -> Dtype {
        self.blocks[0].qkv.dtype()
    }

    fn embed(&self, pixels: &[f32], batch: usize) -> Result<Vec<f32>> {
        wait(self.forward(pixels, batch, None))
    }

    fn embed_async<'a>(&'a self, pixels: &'a [f32], batch: usize) -> Later<'a> {
        Box::pin(self.forward(pixels, batch, None))
    }

    fn trace(&self, pixels: &[f32], size: Map) -> Result<Vec<Step>> {
        let batch = pixels.len() / (3 * size.pixels());
        let mut steps = Vec::new();
        wait(self.forward(pixels, batch, Some(&mut steps)))?;
        Ok(steps)
    }
}

/// The text tower.
pub(super) struct GpuErnie {
    gpu: Gpu,
    config: ErnieConfig,
    norm: GpuNorm,
    blocks: Vec<GpuBlock>,
    pooler: GpuLinear,
    work: Mutex<Vec<Workspace>>,
}

impl Layered for GpuErnie {
    type Config = ErnieConfig;
    type Block = GpuBlock;
    type Target = Gpu;

    fn blocks(config: &ErnieConfig) -> Vec<String> {
        text_blocks(config)
    }

    fn load_block(loader: &Loader<'_>, c: &ErnieConfig, gpu: &Gpu, prefix: &str) -> Result<GpuBlock> {
        let norm = |part: &str| norm(loader, &format!("{prefix}{part}"), c.width, c.epsilon, gpu);
        let stored = |part: &str, columns| Stored {
            name: format!("{prefix}{part}"),
            columns,
        };
        let linear = |depth, layers: &[Stored]| linear(loader, depth, layers, gpu);
        let (width, mlp_width) = (Groups::one(c.width), Groups::one(c.mlp_width));
        let heads = |size| Groups { count: c.heads, size };
        let (queries, values) = (heads(c.query_head_width), heads(c.value_head_width));
        let qkv = [("attn.q", queries), ("attn.k", queries), ("attn.v", values)];
        let block = GpuBlock {
            order: NormOrder::Post,
            norm1: norm("ln1")?,
            qkv: linear(width, &qkv.map(|(part, columns)| stored(part, columns)))?,
            attention: AttentionShape {
                heads: c.heads,
                query_head_width: padded(c.query_head_width),
                value_head_width: padded(c.value_head_width),
            },
            scale: (c.query_head_width as f32).powf(-0.5),
            projection: linear(values, &[stored("attn.o", width)])?,
            norm2: norm("ln2")?,
            mlp_in: linear(width, &[stored("ffn.i", mlp_width)])?,
            activation: match c.activation {
                TextActivation::Gelu => Epilogue::Gelu,
                TextActivation::Relu => Epilogue::Relu,
            },
            mlp_out: linear(mlp_width, &[stored("ffn.o", width)])?,
        };
        gpu.flush();
        Ok(block)
    }

    fn assemble(loader: &Loader<'_>, c: &ErnieConfig, gpu: &Gpu, blocks: Vec<GpuBlock>) -> Result<Self> {
        let width = Groups::one(c.width);
        let pooler = Stored {
            name: "text_model.pooler".into(),
            columns: width,
        };
        Ok(Self {
            norm: norm(loader, "text_model.ln", c.width, c.epsilon, gpu)?,
            blocks,
            pooler: linear(loader, width, &[pooler], gpu)?,
            config: c.clone(),
            gpu: gpu.clone(),
            work: Mutex::default(),
        })
    }
}

impl GpuErnie {
    /// Refuses what the kernels do not take.
    pub(super) fn check(c: &ErnieConfig) -> Result<()> {
        check("text.width", c.width)
    }

    async fn forward(
        &self,
        words: &Words,
        captions: &[&[u32]],
        steps: Option<&mut Vec<Step>>,
    ) -> Result<Vec<f32>> {
        let (width, gpu) = (self.config.width, &self.gpu);
        let most = rows_of_a_pass(gpu, self.blocks[0].widest_row());
        let mut watch = Watch {
            gpu,
            trace: Trace::new("text", steps),
        };
        let mut output = with_workspace(&self.work, async |work: &mut Workspace| {
            work.output.reserve(gpu, captions.len() * width);
            let mut done = 0;
            while done < captions.len() {
                let captions = first_rows(&captions[done..], most);
                let mut embedded = vec![0.0; captions.iter().map(|c| c.len()).sum::<usize>() * width];
                let sequences = words.pack(captions, |row, id, position| {
                    words.embed(id, position, &mut embedded[row * width..][..width]);
                });
                let (rows, count) = (rows_of(&sequences), captions.len());
                self.blocks[0].reserve(gpu, work, rows, count);
                work.tokens.write(gpu, 0, &embedded[..rows * width]);
                let mut uniform = std::mem::take(&mut work.uniform);
                let mut recorder = Recorder::new(gpu, &mut uniform);
                watch.rows(&mut recorder, "embedding_sum", &work.tokens, rows, width);
                recorder.layer_norm_in_place(&self.norm, &work.tokens, rows);
                watch.rows(&mut recorder, "embedding_ln", &work.tokens, rows, width);
                through_blocks(&self.blocks, &mut recorder, work, &sequences, &mut watch);
                let part = Part {
                    y_row: done,
                    ..Part::default()
                };
                let y = (&work.output, width);
                recorder.linear(&work.first, &self.pooler, y, count, part, Epilogue::None);
                recorder.submit();
                work.uniform = uniform;
                done += count;
            }
            gpu.read(work.output.get(), captions.len() * width).await
        })
        .await?;
        for x in &mut output {
            *x = x.tanh();
        }
        watch
            .trace
            .push("pooled", || vec![captions.len(), width], || output.clone());
        Ok(output)
    }
}

/// The first captions that have at most `most` rows together, and at least one.
fn first_rows<'a, 'b>(captions: &'a [&'b [u32]], most: usize) -> &'a [&'b [u32]] {
    let mut rows = 0;
    let fit = captions.iter().take_while(|caption| {
        rows += caption.len();
        rows <= most
    });
    &captions[..fit.count().max(1)]
}

impl TextBody for GpuErnie {
    fn dtype(&self) -> Dtype {
        self.blocks[0].qkv.dtype()
    }

    fn embed(&self, words: &Words, captions: &[&[u32]]) -> Result<Vec<f32>> {
        wait(self.forward(words, captions, None))
    }

    fn embed_async<'a>(&'a self, words: &'a Words, captions: &'a [&'a [u32]]) -> Later<'a> {
        Box::pin(self.forward(words, captions, None))
    }

    fn trace(&self, words: &Words, captions: &[&[u32]]) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        wait(self.forward(words, captions, Some(&mut steps)))?;
        Ok(steps)
    }
}
