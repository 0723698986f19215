//! On the kernels of [`crate::webgpu`], in the same steps as on the host's, one image after the other.

use std::sync::Mutex;

use super::{block, prefixes};
use crate::config::{EfficientNetBlock, EfficientNetConfig};
use crate::kernels::convolution::Map;
use crate::ops::{Step, Trace};
use crate::towers::convolution::folded;
use crate::towers::image::{ImageBody, Later, square};
use crate::towers::load::{Layered, Loader};
use crate::towers::wait;
use crate::towers::webgpu::{Watch, check, padded, with_workspace};
use crate::webgpu::{Convolution, Epilogue, Gpu, GpuBuffer, GpuLinear, GpuUniform, Part, Recorder};
use crate::weights::{Dtype, TensorData};
use crate::{Error, Result};

/// The image tower.
pub(in crate::towers) struct GpuEfficientNet {
    gpu: Gpu,
    config: EfficientNetConfig,
    stem: Convolution,
    blocks: Vec<Block>,
    head: GpuLinear,
    projection: Option<GpuLinear>,
    work: Mutex<Vec<Workspace>>,
}

pub(in crate::towers) struct Block {
    of: EfficientNetBlock,
    expansion: Option<GpuLinear>,
    depthwise: Convolution,
    reduce: GpuLinear,
    expand: GpuLinear,
    projection: GpuLinear,
}

/// The buffers of a pass.
#[derive(Default)]
struct Workspace {
    uniform: GpuUniform,
    image: GpuBuffer,
    /// What goes into a block, and what comes out.
    x: GpuBuffer,
    next: GpuBuffer,
    expanded: GpuBuffer,
    convolved: GpuBuffer,
    /// Sums over parts of an image.
    parts: GpuBuffer,
    mean: GpuBuffer,
    squeezed: GpuBuffer,
    gate: GpuBuffer,
    /// One row an image.
    pooled: GpuBuffer,
    output: GpuBuffer,
}

/// A layer from weights [columns, depth], with zeros up to `sizes`, [depth, columns], which are multiples of 4.
fn layer(gpu: &Gpu, weight: &[f32], bias: &[f32], depth: usize, sizes: [usize; 2]) -> GpuLinear {
    let [rows, columns] = sizes;
    let mut values = vec![0.0; rows * columns];
    for (column, weight) in weight.chunks_exact(depth).enumerate() {
        for (row, &value) in weight.iter().enumerate() {
            values[row * columns + column] = value;
        }
    }
    let mut bias = bias.to_vec();
    bias.resize(columns, 0.0);
    gpu.linear(rows, columns, TensorData::F32(values.into()), &bias)
}

/// A convolution of single pixels with its normalisation.
fn pointwise(
    loader: &Loader<'_>,
    [conv, norm]: [&str; 2],
    [inputs, outputs]: [usize; 2],
    epsilon: f64,
    gpu: &Gpu,
) -> Result<GpuLinear> {
    let (weight, bias) = folded(loader, conv, norm, &[outputs, inputs, 1, 1], epsilon)?;
    Ok(layer(gpu, &weight, &bias, inputs, [inputs, outputs]))
}

impl Layered for GpuEfficientNet {
    type Config = EfficientNetConfig;
    type Block = Block;
    type Target = Gpu;

    fn blocks(config: &EfficientNetConfig) -> Vec<String> {
        prefixes(config)
    }

    fn load_block(loader: &Loader<'_>, c: &EfficientNetConfig, gpu: &Gpu, prefix: &str) -> Result<Block> {
        let of = block(c, prefix);
        let names = of.tensors();
        let convolution = |(conv, norm): (&str, &str), sizes| {
            let names = [conv, norm].map(|part| format!("{prefix}{part}"));
            pointwise(loader, [&names[0], &names[1]], sizes, c.epsilon, gpu)
        };
        let excitation = |part: &str, inputs: usize, outputs: usize| -> Result<GpuLinear> {
            let weight = loader.values(&format!("{prefix}{part}.weight"), &[outputs, inputs, 1, 1])?;
            let bias = loader.values(&format!("{prefix}{part}.bias"), &[outputs])?;
            Ok(layer(
                gpu,
                &weight,
                &bias,
                inputs,
                [padded(inputs), padded(outputs)],
            ))
        };
        let (conv, norm) = names.depthwise;
        let shape = [of.expanded, 1, of.kernel, of.kernel];
        let (conv, norm) = (format!("{prefix}{conv}"), format!("{prefix}{norm}"));
        let (weight, bias) = folded(loader, &conv, &norm, &shape, c.epsilon)?;
        let block = Block {
            expansion: names
                .expansion
                .map(|names| convolution(names, [of.input, of.expanded]))
                .transpose()?,
            depthwise: gpu.convolution(of.kernel, of.stride, 1, &weight, &bias),
            reduce: excitation(names.reduce, of.expanded, of.squeezed)?,
            expand: excitation(names.expand, of.squeezed, of.expanded)?,
            projection: convolution(names.projection, [of.expanded, of.output])?,
            of,
        };
        gpu.flush();
        Ok(block)
    }

    fn assemble(loader: &Loader<'_>, c: &EfficientNetConfig, gpu: &Gpu, blocks: Vec<Block>) -> Result<Self> {
        let shape = [c.stem(), 3, 3, 3];
        let (weight, bias) = folded(loader, "visual.conv_stem", "visual.bn1", &shape, c.epsilon)?;
        let output = blocks.last().map_or(c.stem(), |block| block.of.output);
        let (features, head) = (c.features(), ["visual.conv_head", "visual.bn2"]);
        let projection = match c.projection {
            None => None,
            Some(width) => {
                let weight = loader.values("visual.projection.weight", &[features, width])?;
                let bias = loader.values("visual.projection.bias", &[width])?;
                Some(gpu.linear(features, width, TensorData::F32(weight.into()), &bias))
            }
        };
        Ok(Self {
            stem: gpu.convolution(3, 2, 3, &weight, &bias),
            blocks,
            head: pointwise(loader, head, [output, features], c.epsilon, gpu)?,
            projection,
            config: c.clone(),
            gpu: gpu.clone(),
            work: Mutex::default(),
        })
    }
}

impl GpuEfficientNet {
    /// Refuses what the kernels or the card do not take. Channels are multiples of 8 always.
    pub(in crate::towers) fn check(c: &EfficientNetConfig, gpu: &Gpu) -> Result<()> {
        /// Workgroups along one side, as WebGPU promises, times the rows of a product that one takes at least.
        const MOST_ROWS: usize = 65_535 * 4;
        check("image.projection", c.projection.unwrap_or(4))?;
        let size = c.image_size;
        let mut map = Map::square(size).convolved(3, 2).0;
        let mut largest = 3 * size * size;
        if map.pixels() > MOST_ROWS {
            return Err(Error::Config(format!(
                "image.image_size is {size}, expected at most {} on a graphics card",
                2 * MOST_ROWS.isqrt()
            )));
        }
        for block in c.blocks() {
            largest = largest.max(map.pixels() * block.expanded);
            map = map.convolved(block.kernel, block.stride).0;
        }
        match 4 * largest as u64 <= gpu.largest() {
            true => Ok(()),
            false => Err(Error::Config(format!(
                "an image of {size} px needs {} bytes in one buffer, of which the graphics card takes {}",
                4 * largest,
                gpu.largest()
            ))),
        }
    }

    async fn forward(&self, pixels: &[f32], map: Map, steps: Option<&mut Vec<Step>>) -> Result<Vec<f32>> {
        let (c, gpu) = (&self.config, &self.gpu);
        let image = 3 * map.pixels();
        let (batch, features) = (pixels.len() / image, c.features());
        let mut steps = steps;
        with_workspace(&self.work, async |work: &mut Workspace| {
            work.pooled.reserve(gpu, batch * features);
            work.image.reserve(gpu, image);
            let mut uniform = std::mem::take(&mut work.uniform);
            let mut recorder = Recorder::new(gpu, &mut uniform);
            for (i, pixels) in pixels.chunks_exact(image).enumerate() {
                let mut of_image = Vec::new();
                let mut watch = Watch {
                    gpu,
                    trace: Trace::new("visual", steps.is_some().then_some(&mut of_image)),
                };
                work.image.write(gpu, 0, pixels);
                self.image(&mut recorder, work, map, i, &mut watch);
                if let Some(steps) = steps.as_deref_mut() {
                    Step::append(steps, of_image);
                }
            }
            let (result, width) = match &self.projection {
                None => (&work.pooled, features),
                Some(layer) => {
                    work.output.reserve(gpu, batch * c.width());
                    let output = (&work.output, c.width());
                    recorder.linear(
                        &work.pooled,
                        layer,
                        output,
                        batch,
                        Part::default(),
                        Epilogue::None,
                    );
                    (&work.output, c.width())
                }
            };
            recorder.submit();
            work.uniform = uniform;
            gpu.read(result.get(), batch * width).await
        })
        .await
    }

    /// Takes `work.image` to row `row` of `work.pooled`.
    fn image(
        &self,
        recorder: &mut Recorder<'_>,
        work: &mut Workspace,
        map: Map,
        row: usize,
        watch: &mut Watch<'_>,
    ) {
        let (c, gpu) = (&self.config, &self.gpu);
        let (whole, mut channels) = (map, c.stem());
        let mut map = whole.convolved(3, 2).0;
        work.x.reserve(gpu, map.pixels() * channels);
        recorder.convolution(&work.image, whole, &self.stem, &work.x);
        watch.rows(recorder, "stem", &work.x, map.pixels(), channels);
        for (i, block) in self.blocks.iter().enumerate() {
            watch
                .trace
                .enter(format_args!("block{}.{}", block.of.stage, block.of.index));
            map = block.forward(recorder, work, map, watch);
            watch.trace.leave();
            channels = block.of.output;
            let next = self.blocks.get(i + 1);
            if next.is_none_or(|next| next.of.stage > block.of.stage) {
                let name = format!("stage{}", block.of.stage);
                watch.rows(recorder, &name, &work.x, map.pixels(), channels);
            }
        }
        let (pixels, features) = (map.pixels(), c.features());
        work.next.reserve(gpu, pixels * features);
        let head = (&work.next, features);
        recorder.linear(
            &work.x,
            &self.head,
            head,
            pixels,
            Part::default(),
            Epilogue::Swish,
        );
        watch.rows(recorder, "head", &work.next, pixels, features);
        work.parts.reserve(gpu, Recorder::mean_parts(pixels) * features);
        recorder.mean(&work.next, [pixels, features], &work.parts, (&work.pooled, row));
        if watch.trace.is_on() {
            // Alone, and not behind those of the images before.
            work.mean.reserve(gpu, features);
            recorder.mean(&work.next, [pixels, features], &work.parts, (&work.mean, 0));
            watch.rows(recorder, "pooled", &work.mean, 1, features);
        }
        recorder.submit();
    }
}

impl Block {
    /// Takes `work.x`, an image of `map`, through the block, and returns the size of what is there then.
    fn forward(
        &self,
        recorder: &mut Recorder<'_>,
        work: &mut Workspace,
        map: Map,
        watch: &mut Watch<'_>,
    ) -> Map {
        let (of, gpu, all) = (&self.of, watch.gpu, Part::default());
        let out = map.convolved(of.kernel, of.stride).0;
        let (before, after, expanded) = (map.pixels(), out.pixels(), of.expanded);
        work.convolved.reserve(gpu, after * expanded);
        work.parts.reserve(gpu, Recorder::mean_parts(after) * expanded);
        work.mean.reserve(gpu, expanded);
        work.squeezed.reserve(gpu, self.reduce.columns());
        work.gate.reserve(gpu, expanded);
        let input = match &self.expansion {
            None => &work.x,
            Some(layer) => {
                work.expanded.reserve(gpu, before * expanded);
                let y = (&work.expanded, expanded);
                recorder.linear(&work.x, layer, y, before, all, Epilogue::Swish);
                watch.rows(recorder, "expand", &work.expanded, before, expanded);
                &work.expanded
            }
        };
        recorder.convolution(input, map, &self.depthwise, &work.convolved);
        watch.rows(recorder, "depthwise", &work.convolved, after, expanded);
        recorder.mean(&work.convolved, [after, expanded], &work.parts, (&work.mean, 0));
        let squeezed = (&work.squeezed, self.reduce.columns());
        recorder.linear(&work.mean, &self.reduce, squeezed, 1, all, Epilogue::Swish);
        let gate = (&work.gate, expanded);
        recorder.linear(&work.squeezed, &self.expand, gate, 1, all, Epilogue::Sigmoid);
        recorder.gate(&work.gate, &work.convolved, out, expanded);
        watch.rows(recorder, "se", &work.convolved, after, expanded);
        if of.is_residual() {
            let y = (&work.x, of.output);
            recorder.linear(&work.convolved, &self.projection, y, after, all, Epilogue::Add);
        } else {
            work.next.reserve(gpu, after * of.output);
            let y = (&work.next, of.output);
            recorder.linear(&work.convolved, &self.projection, y, after, all, Epilogue::None);
            std::mem::swap(&mut work.x, &mut work.next);
            watch.rows(recorder, "project", &work.x, after, of.output);
        }
        recorder.submit();
        out
    }
}

impl ImageBody for GpuEfficientNet {
    fn dtype(&self) -> Dtype {
        self.head.dtype()
    }

    fn embed(&self, pixels: &[f32], batch: usize) -> Result<Vec<f32>> {
        wait(self.forward(pixels, square(pixels, batch), None))
    }

    fn embed_async<'a>(&'a self, pixels: &'a [f32], batch: usize) -> Later<'a> {
        Box::pin(self.forward(pixels, square(pixels, batch), None))
    }

    fn trace(&self, pixels: &[f32], size: Map) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        wait(self.forward(pixels, size, Some(&mut steps)))?;
        Ok(steps)
    }
}
