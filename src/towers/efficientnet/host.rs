//! On the host's own memory, over [`crate::kernels`]. An image is stored pixel by pixel, the channels of a pixel beside
//! one another.

use std::sync::Mutex;

use burn::tensor::Device;

use super::{block, folded, prefixes};
use crate::Result;
use crate::config::{EfficientNetBlock, EfficientNetConfig};
use crate::kernels::convolution::{Depthwise, Map, convolve_planes};
use crate::kernels::{Activation, Buffer, Linear, PackedMatrix, Rows, RowsMut, for_each_chunk, linear};
use crate::ops::host::runs;
use crate::ops::{Step, Trace};
use crate::towers::load::{Columns, Layered, Loader};

/// The image tower.
pub(crate) struct HostEfficientNet {
    config: EfficientNetConfig,
    stem: Linear,
    blocks: Vec<Block>,
    head: Linear,
    projection: Option<Linear>,
    pool: Pool,
}

pub(crate) struct Block {
    of: EfficientNetBlock,
    expansion: Option<Linear>,
    depthwise: Depthwise,
    reduce: Linear,
    expand: Linear,
    projection: Linear,
}

/// The buffers of one image's pass.
#[derive(Default)]
struct Workspace {
    /// What goes into a block, and what comes out.
    x: Buffer,
    next: Buffer,
    convolved: Buffer,
    /// The projection's weights times the gate.
    scaled: Buffer,
}

/// Buffers that are not in use.
#[derive(Default)]
struct Pool(Mutex<Vec<Workspace>>);

impl Pool {
    fn with<T>(&self, f: impl FnOnce(&mut Workspace) -> T) -> T {
        let taken = self.0.lock().ok().and_then(|mut free| free.pop());
        let mut work = taken.unwrap_or_default();
        let result = f(&mut work);
        if let Ok(mut free) = self.0.lock() {
            free.push(work);
        }
        result
    }
}

/// Floats from one pixel to the next: rows a power of two apart would fall into the same few cache sets.
fn stride(channels: usize) -> usize {
    match channels.is_multiple_of(128) {
        true => channels + 16,
        false => channels,
    }
}

fn view(buffer: &Buffer, map: Map, channels: usize) -> Rows<'_> {
    Rows::new(buffer, map.pixels(), channels, stride(channels))
}

fn view_mut(buffer: &mut Buffer, map: Map, channels: usize) -> RowsMut<'_> {
    // Whole registers are read at the last pixel too.
    buffer.resize(map.pixels() * stride(channels) + 16);
    RowsMut::new(buffer, map.pixels(), channels, stride(channels))
}

/// A convolution of single pixels, [outputs, inputs, 1, 1], with its normalisation.
fn pointwise(loader: &Loader<'_>, conv: &str, norm: &str, sizes: [usize; 2], epsilon: f64) -> Result<Linear> {
    let [inputs, outputs] = sizes;
    let (weight, bias) = folded(loader, conv, norm, &[outputs, inputs, 1, 1], epsilon)?;
    Ok(Linear {
        weight: PackedMatrix::from_transposed(&weight, outputs, inputs),
        bias,
    })
}

/// A layer of one row alone; it is too small to share.
fn one_row(x: &[f32], layer: &Linear, activation: Activation) -> Vec<f32> {
    let mut y = vec![0.0; layer.weight.columns()];
    let width = y.len();
    let out = &mut RowsMut::new(&mut y, 1, width, width);
    linear(
        Rows::new(x, 1, x.len(), x.len()),
        layer,
        out,
        activation,
        false,
        false,
    );
    y
}

impl Layered for HostEfficientNet {
    type Config = EfficientNetConfig;
    type Block = Block;
    type Target = Device;

    fn blocks(config: &EfficientNetConfig) -> Vec<String> {
        prefixes(config)
    }

    fn load_block(loader: &Loader<'_>, c: &EfficientNetConfig, _: &Device, prefix: &str) -> Result<Block> {
        let of = block(c, prefix);
        let names = of.tensors();
        let name = |part: &str| format!("{prefix}{part}");
        let convolution =
            |(conv, norm): (&str, &str), sizes| pointwise(loader, &name(conv), &name(norm), sizes, c.epsilon);
        let excitation = |part: &str, inputs: usize, outputs: usize| -> Result<Linear> {
            let weight = loader.values(&name(&format!("{part}.weight")), &[outputs, inputs, 1, 1])?;
            Ok(Linear {
                weight: PackedMatrix::from_transposed(&weight, outputs, inputs),
                bias: loader.values(&name(&format!("{part}.bias")), &[outputs])?,
            })
        };
        let (conv, norm) = names.depthwise;
        let shape = [of.expanded, 1, of.kernel, of.kernel];
        let (weight, bias) = folded(loader, &name(conv), &name(norm), &shape, c.epsilon)?;
        Ok(Block {
            expansion: names
                .expansion
                .map(|names| convolution(names, [of.input, of.expanded]))
                .transpose()?,
            depthwise: Depthwise::new(of.kernel, of.stride, &weight, &bias),
            reduce: excitation(names.reduce, of.expanded, of.squeezed)?,
            expand: excitation(names.expand, of.squeezed, of.expanded)?,
            projection: convolution(names.projection, [of.expanded, of.output])?,
            of,
        })
    }

    fn assemble(loader: &Loader<'_>, c: &EfficientNetConfig, _: &Device, blocks: Vec<Block>) -> Result<Self> {
        let shape = [c.stem(), 3, 3, 3];
        let (weight, bias) = folded(loader, "visual.conv_stem", "visual.bn1", &shape, c.epsilon)?;
        let output = blocks.last().map_or(c.stem(), |block| block.of.output);
        let sizes = [output, c.features()];
        Ok(Self {
            stem: Linear {
                weight: PackedMatrix::from_transposed(&weight, c.stem(), 27),
                bias,
            },
            blocks,
            head: pointwise(loader, "visual.conv_head", "visual.bn2", sizes, c.epsilon)?,
            projection: c
                .projection
                .map(|width| loader.packed(c.features(), &[Columns::all("visual.projection", width)]))
                .transpose()?,
            config: c.clone(),
            pool: Pool::default(),
        })
    }
}

impl HostEfficientNet {
    /// Values of one embedding.
    pub(crate) fn width(&self) -> usize {
        self.config.width()
    }

    /// `pixels` [batch, 3, height, width] to `output` [batch, width].
    pub(crate) fn forward(&self, pixels: &[f32], map: Map, output: &mut [f32]) {
        let (image, width) = (3 * map.pixels(), self.width());
        let (run, count) = runs(output.len() / width, map.pixels());
        let (alone, together) = output.split_at_mut(run * count * width);
        let some = |pixels: &[f32], output: &mut [f32], parallel| {
            for (pixels, output) in pixels.chunks_exact(image).zip(output.chunks_exact_mut(width)) {
                self.image(pixels, map, output, parallel, &mut Trace::new("visual", None));
            }
        };
        for_each_chunk(alone, run * width, |i, output| {
            some(&pixels[i * run * image..][..run * image], output, false);
        });
        some(&pixels[run * count * image..], together, true);
    }

    /// As [`HostEfficientNet::forward`], showing what comes out of every step.
    pub(crate) fn forward_observed(&self, pixels: &[f32], map: Map) -> Vec<Step> {
        let mut all: Vec<Step> = Vec::new();
        for pixels in pixels.chunks_exact(3 * map.pixels()) {
            let mut steps = Vec::new();
            let mut output = vec![0.0; self.width()];
            self.image(
                pixels,
                map,
                &mut output,
                true,
                &mut Trace::new("visual", Some(&mut steps)),
            );
            Step::append(&mut all, steps);
        }
        all
    }

    fn image(&self, pixels: &[f32], map: Map, output: &mut [f32], parallel: bool, trace: &mut Trace<'_>) {
        self.pool.with(|work| {
            let (whole, mut channels) = (map, self.config.stem());
            let mut map = whole.convolved(3, 2).0;
            let mut x = view_mut(&mut work.x, map, channels);
            convolve_planes(pixels, whole, 3, 2, &self.stem, &mut x, parallel);
            trace.rows("stem", &view(&work.x, map, channels));
            for (i, block) in self.blocks.iter().enumerate() {
                trace.enter(format_args!("block{}.{}", block.of.stage, block.of.index));
                map = block.forward(work, map, parallel, trace);
                trace.leave();
                channels = block.of.output;
                let next = self.blocks.get(i + 1);
                if next.is_none_or(|next| next.of.stage > block.of.stage) {
                    trace.rows(&format!("stage{}", block.of.stage), &view(&work.x, map, channels));
                }
            }
            let features = self.config.features();
            linear(
                view(&work.x, map, channels),
                &self.head,
                &mut view_mut(&mut work.next, map, features),
                Activation::Swish,
                false,
                parallel,
            );
            let head = view(&work.next, map, features);
            trace.rows("head", &head);
            let mut pooled = vec![0.0; features];
            for pixel in 0..head.rows {
                for (sum, value) in pooled.iter_mut().zip(head.row(pixel)) {
                    *sum += value;
                }
            }
            pooled.iter_mut().for_each(|sum| *sum /= head.rows as f32);
            trace.rows("pooled", &Rows::new(&pooled, 1, features, features));
            match &self.projection {
                None => output.copy_from_slice(&pooled),
                Some(layer) => output.copy_from_slice(&one_row(&pooled, layer, Activation::None)),
            }
        });
    }
}

impl Block {
    /// Takes `work.x`, an image of `map`, through the block, and returns the size of what is there then.
    fn forward(&self, work: &mut Workspace, map: Map, parallel: bool, trace: &mut Trace<'_>) -> Map {
        let of = &self.of;
        let out = self.depthwise.map(map);
        if let (true, Some(layer)) = (trace.is_on(), &self.expansion) {
            // It is there in pieces only.
            let mut all = Buffer::default();
            let rows = &mut view_mut(&mut all, map, of.expanded);
            linear(
                view(&work.x, map, of.input),
                layer,
                rows,
                Activation::Swish,
                false,
                parallel,
            );
            trace.rows("expand", &view(&all, map, of.expanded));
        }
        let mut mean = vec![0.0; of.expanded];
        self.depthwise.forward(
            view(&work.x, map, of.input),
            map,
            self.expansion.as_ref(),
            &mut view_mut(&mut work.convolved, out, of.expanded),
            &mut mean,
            parallel,
        );
        let convolved = view(&work.convolved, out, of.expanded);
        trace.rows("depthwise", &convolved);
        let squeezed = one_row(&mean, &self.reduce, Activation::Swish);
        let mut gate = one_row(&squeezed, &self.expand, Activation::None);
        for x in &mut gate {
            *x = 1.0 / (1.0 + (-*x).exp());
        }
        trace.push(
            "se",
            || vec![convolved.rows, convolved.width],
            || {
                let row = |i| convolved.row(i).iter().zip(&gate).map(|(x, gate)| x * gate);
                (0..convolved.rows).flat_map(row).collect()
            },
        );
        // A factor for each channel of every pixel is one for each row of the weights, which are fewer.
        let memory = std::mem::take(&mut work.scaled);
        let scaled = Linear {
            weight: self.projection.weight.scaled(&gate, memory, parallel),
            bias: self.projection.bias.clone(),
        };
        if of.is_residual() {
            let mut x = view_mut(&mut work.x, out, of.output);
            linear(convolved, &scaled, &mut x, Activation::None, true, parallel);
        } else {
            let mut next = view_mut(&mut work.next, out, of.output);
            linear(convolved, &scaled, &mut next, Activation::None, false, parallel);
            std::mem::swap(&mut work.x, &mut work.next);
            trace.rows("project", &view(&work.x, out, of.output));
        }
        work.scaled = scaled.weight.into_memory();
        out
    }
}
