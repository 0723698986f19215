//! Kernels for graphics cards, through WebGPU: in a browser, and natively on Vulkan, Metal and Direct3D 12.
//!
//! [`Gpu`] is a device with its compiled kernels; [`crate::towers`] runs on one. The matrix products read weights in
//! single or in half precision, and compute in single precision either way, so that a file in half precision loses
//! nothing by staying as it is.

mod shaders;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use half::f16;
use wgpu::{BufferUsages, DeviceType};

use crate::kernels::convolution::Map;
use crate::kernels::{AttentionShape, Sequence};
use crate::weights::{Codes, Dtype, GROUP, TensorData};
use crate::{Error, Result};
pub(crate) use shaders::Epilogue;
use shaders::{COPY_THREADS, Kernel, LINEAR_COLUMNS, MEAN_COLUMNS, SLICED_COLUMNS};

/// A graphics card, or a program that stands in for one. Cheap to clone.
#[derive(Clone)]
pub struct Gpu {
    shared: Arc<Shared>,
    precision: Precision,
}

/// How weights are kept on a card. It computes in single precision either way; what half precision saves is memory, and
/// the time to read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// As they are stored, which loses nothing; in single precision where a program stands in for a card, since half
    /// precision is slow there.
    #[default]
    Stored,
    /// Single precision.
    Single,
    /// Half precision.
    Half,
}

struct Shared {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    /// Bytes of the largest buffer that a kernel can read.
    largest: u64,
    kernels: Mutex<HashMap<Kernel, wgpu::ComputePipeline>>,
    /// The first failure that nobody was waiting for.
    failure: Arc<Mutex<Option<String>>>,
}

/// A lock that a panic elsewhere does not spoil: what it guards is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Takes the system's preferred adapter: a fast one, unless that is a program (`software`: that one will do).
    ///
    /// # Errors
    /// [`Error::Device`] where there is no adapter, or where it gives no device.
    pub async fn open(software: bool) -> Result<Self> {
        let instance = wgpu::Instance::default();
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = instance.request_adapter(&options).await;
        let adapter = adapter.map_err(|error| {
            Error::Device(format!(
                "no adapter ({error}), expected a graphics card and its driver"
            ))
        })?;
        let info = adapter.get_info();
        if info.device_type == DeviceType::Cpu && !software {
            return Err(Error::Device(format!(
                "{:?} computes on the processor, expected a graphics card",
                info.name
            )));
        }
        let offered = adapter.limits();
        let descriptor = wgpu::DeviceDescriptor {
            required_limits: wgpu::Limits {
                max_buffer_size: offered.max_buffer_size,
                max_storage_buffer_binding_size: offered.max_storage_buffer_binding_size,
                ..wgpu::Limits::default()
            },
            ..Default::default()
        };
        let device = adapter.request_device(&descriptor).await;
        let (device, queue) = device.map_err(|error| Error::Device(format!("{:?}: {error}", info.name)))?;
        let failure = Arc::new(Mutex::new(None));
        let seen = failure.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&seen).get_or_insert_with(|| error.to_string());
        }));
        let shared = Shared {
            largest: offered
                .max_storage_buffer_binding_size
                .min(offered.max_buffer_size),
            device,
            queue,
            info,
            kernels: Mutex::default(),
            failure,
        };
        Ok(Self {
            shared: Arc::new(shared),
            precision: Precision::default(),
        })
    }

    /// The same card, on which weights are kept in the given way.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The adapter's name, as its driver tells it; empty in browsers that keep it for themselves.
    pub fn name(&self) -> &str {
        &self.shared.info.name
    }

    /// Whether a program on the processor stands in for a graphics card.
    pub fn is_software(&self) -> bool {
        self.shared.info.device_type == DeviceType::Cpu
    }

    /// Bytes of the largest buffer that a kernel can read.
    pub(crate) fn largest(&self) -> u64 {
        self.shared.largest
    }

    fn buffer(&self, bytes: u64, usage: BufferUsages) -> wgpu::Buffer {
        self.shared.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            // A buffer of nothing cannot be bound.
            size: bytes.max(16),
            usage: usage | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// Bytes that stay, such as weights.
    fn constant(&self, bytes: &[u8]) -> wgpu::Buffer {
        let buffer = self.buffer(bytes.len() as u64, BufferUsages::STORAGE | BufferUsages::COPY_SRC);
        self.shared.queue.write_buffer(&buffer, 0, bytes);
        buffer
    }

    /// Values that stay, such as a bias.
    pub(crate) fn values(&self, values: &[f32]) -> wgpu::Buffer {
        self.constant(bytemuck::cast_slice(values))
    }

    /// Copies `from` to each of these places in `to`, counted in values.
    pub(crate) fn repeat(&self, from: &wgpu::Buffer, to: &GpuBuffer, places: impl Iterator<Item = usize>) {
        let mut encoder = self.shared.device.create_command_encoder(&Default::default());
        for place in places {
            encoder.copy_buffer_to_buffer(from, 0, to.get(), place as u64 * 4, from.size());
        }
        self.shared.queue.submit([encoder.finish()]);
    }

    /// A linear layer. `weight` is [depth, columns], both multiples of 4.
    pub(crate) fn linear(
        &self,
        depth: usize,
        columns: usize,
        weight: TensorData<'_>,
        bias: &[f32],
    ) -> GpuLinear {
        let dtype = match (self.precision, &weight) {
            (Precision::Stored, TensorData::Quantised(matrix)) => Dtype::Quantised(matrix.bits()),
            (Precision::Stored, TensorData::F16(_)) if !self.is_software() => Dtype::F16,
            (Precision::Stored | Precision::Single, _) => Dtype::F32,
            (Precision::Half, _) => Dtype::F16,
        };
        let mut scales = None;
        let weight = match (dtype, weight) {
            (Dtype::F16, TensorData::F16(values)) => self.constant(bytemuck::cast_slice(&values)),
            (Dtype::F16, weight) => {
                let values = weight.into_f32();
                let values: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
                self.constant(bytemuck::cast_slice(&values))
            }
            (Dtype::Quantised(_), TensorData::Quantised(matrix)) => {
                let turned = turned(matrix.codes(), depth, columns);
                scales = Some(self.values(&turned.1));
                self.constant(&turned.0)
            }
            (_, weight) => self.values(&weight.into_f32()),
        };
        GpuLinear {
            weight,
            scales,
            bias: self.values(bias),
            dtype,
            depth: depth as u32 / 4,
            columns: columns as u32 / 4,
        }
    }

    /// A convolution with a swish behind it. `weight` is [channels, planes, kernel, kernel], with one plane a depthwise
    /// one; there are as many channels as `bias` has values, a multiple of 4.
    pub(crate) fn convolution(
        &self,
        kernel: usize,
        stride: usize,
        planes: usize,
        weight: &[f32],
        bias: &[f32],
    ) -> Convolution {
        let (channels, taps) = (bias.len(), planes * kernel * kernel);
        let mut values = vec![0.0; weight.len()];
        for (channel, weight) in weight.chunks_exact(taps).enumerate() {
            for (tap, &value) in weight.iter().enumerate() {
                values[tap * channels + channel] = value;
            }
        }
        Convolution {
            weight: self.values(&values),
            bias: self.values(bias),
            kernel,
            stride,
            planes,
            columns: channels as u32 / 4,
        }
    }

    /// Sends what was written so far on its way, so that it need not be kept for longer.
    pub(crate) fn flush(&self) {
        self.shared.queue.submit([]);
    }

    fn pipeline(&self, kernel: Kernel) -> wgpu::ComputePipeline {
        let make = || {
            let module = self
                .shared
                .device
                .create_shader_module(wgpu::ShaderModuleDescriptor {
                    label: None,
                    source: wgpu::ShaderSource::Wgsl(kernel.source().into()),
                });
            self.shared
                .device
                .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                    label: None,
                    layout: None,
                    module: &module,
                    entry_point: Some("main"),
                    compilation_options: Default::default(),
                    cache: None,
                })
        };
        lock(&self.shared.kernels)
            .entry(kernel)
            .or_insert_with(make)
            .clone()
    }

    /// Reads the first `values` of a buffer, when everything submitted is done.
    pub(crate) async fn read(&self, buffer: &wgpu::Buffer, values: usize) -> Result<Vec<f32>> {
        let size = values as u64 * 4;
        let staging = self.shared.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.shared.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, size);
        self.shared.queue.submit([encoder.finish()]);
        let mapped = Signal::default();
        let done = mapped.clone();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            done.set(result.map_err(|e| e.to_string()))
        });
        // In a browser the callback comes by itself.
        #[cfg(not(target_family = "wasm"))]
        self.shared
            .device
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|error| Error::Device(error.to_string()))?;
        let mapped = mapped.await;
        // A kernel that failed says more than the buffer that it left.
        if let Some(failure) = lock(&self.shared.failure).clone() {
            return Err(Error::Device(failure));
        }
        mapped.map_err(Error::Device)?;
        let range = staging
            .get_mapped_range(..)
            .map_err(|error| Error::Device(error.to_string()))?;
        Ok(bytemuck::pod_collect_to_vec(&range))
    }
}

/// Codes as the kernels read them, the columns of a row behind one another: in eight bits a byte each; in four bits,
/// four columns of one row and then the same four of the next, as a whole of four bytes. And scales, likewise.
fn turned(codes: &Codes<'_>, depth: usize, columns: usize) -> (Vec<u8>, Vec<f32>) {
    match codes {
        Codes::Int8(codes, scales) => {
            let mut turned = vec![0; depth * columns];
            for (column, codes) in codes.chunks_exact(depth).enumerate() {
                for (out, &code) in turned[column..].iter_mut().step_by(columns).zip(codes) {
                    *out = code as u8;
                }
            }
            (turned, scales.to_vec())
        }
        Codes::Int4(codes, scales) => {
            let groups = depth.div_ceil(GROUP);
            let mut turned = vec![0; depth / 2 * columns];
            let mut turned_scales = vec![0.0; groups * columns];
            for (column, codes) in codes.chunks_exact(depth / 2).enumerate() {
                let at = column / 4 * 4 + column % 4 / 2;
                let shift = column % 2 * 4;
                for (pair, &byte) in codes.iter().enumerate() {
                    let at = pair * columns + at;
                    turned[at] |= (byte & 15) << shift;
                    turned[at + 2] |= byte >> 4 << shift;
                }
                let scales = &scales[column * groups..][..groups];
                for (out, scale) in turned_scales[column..].iter_mut().step_by(columns).zip(scales) {
                    *out = scale.to_f32();
                }
            }
            (turned, turned_scales)
        }
    }
}

/// What a callback will say.
#[derive(Clone, Default)]
struct Signal(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    result: Option<Result<(), String>>,
    waiting: Option<Waker>,
}

impl Signal {
    fn set(&self, result: Result<(), String>) {
        let mut state = lock(&self.0);
        state.result = Some(result);
        if let Some(waker) = state.waiting.take() {
            waker.wake();
        }
    }
}

impl Future for Signal {
    type Output = Result<(), String>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.0);
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waiting = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// A linear layer on a card.
pub(crate) struct GpuLinear {
    weight: wgpu::Buffer,
    /// Those of a quantised weight.
    scales: Option<wgpu::Buffer>,
    bias: wgpu::Buffer,
    dtype: Dtype,
    /// In fours.
    depth: u32,
    columns: u32,
}

impl GpuLinear {
    /// How the weight is kept.
    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Values of a row that comes out.
    pub(crate) fn columns(&self) -> usize {
        4 * self.columns as usize
    }
}

/// A convolution on a card: a depthwise one, or one over the planes of an image.
pub(crate) struct Convolution {
    weight: wgpu::Buffer,
    bias: wgpu::Buffer,
    kernel: usize,
    stride: usize,
    planes: usize,
    /// In fours.
    columns: u32,
}

/// A normalisation on a card.
pub(crate) struct GpuNorm {
    pub(crate) scale: wgpu::Buffer,
    pub(crate) shift: wgpu::Buffer,
    pub(crate) width: usize,
    pub(crate) epsilon: f32,
}

/// Rows of values on a card, which are used for one pass after the other and grow as needed.
#[derive(Default)]
pub(crate) struct GpuBuffer(Option<wgpu::Buffer>);

impl GpuBuffer {
    /// Makes room for `values` values; what was there is lost where it has to grow.
    pub(crate) fn reserve(&mut self, gpu: &Gpu, values: usize) {
        let bytes = values as u64 * 4;
        if self.0.as_ref().is_none_or(|buffer| buffer.size() < bytes) {
            self.0 = Some(gpu.buffer(bytes, BufferUsages::STORAGE | BufferUsages::COPY_SRC));
        }
    }

    /// Writes values to the front, or from the value `at` on.
    pub(crate) fn write(&self, gpu: &Gpu, at: usize, values: &[f32]) {
        gpu.shared
            .queue
            .write_buffer(self.get(), at as u64 * 4, bytemuck::cast_slice(values));
    }

    pub(crate) fn get(&self) -> &wgpu::Buffer {
        self.0.as_ref().expect("room was made for it")
    }
}

/// Which part of its input and output a linear layer works on. Widths and columns in values, multiples of 4.
#[derive(Clone, Copy, Default)]
pub(crate) struct Part {
    /// First row of the input.
    pub(crate) x_row: usize,
    /// First row of the output.
    pub(crate) y_row: usize,
    /// First column of the weight and of the output.
    pub(crate) column: usize,
    /// Columns; 0 for all.
    pub(crate) columns: usize,
}

/// How a matrix product is spread over threads.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Threads {
    /// Rows of four columns that a thread computes.
    rows: u32,
    /// Threads that share the depth.
    slices: u32,
}

impl Threads {
    /// For so many rows of so many fours of columns.
    fn of(rows: u32, columns: u32, software: bool) -> Self {
        // A thread with seven rows reads least for each of them; with fewer, less is computed in vain.
        let (by_four, by_seven) = (rows.div_ceil(4) * 5, rows.div_ceil(7) * 8);
        let per_thread = match rows {
            1 => 1,
            _ if by_four < by_seven => 4,
            _ => 7,
        };
        let groups = columns.div_ceil(LINEAR_COLUMNS) * rows.div_ceil(per_thread);
        // A card has thousands of threads to keep busy; in software, sharing only costs.
        let slices = match groups {
            0..96 if !software => 8,
            _ => 1,
        };
        Self {
            rows: per_thread,
            slices,
        }
    }
}

/// Kernels in the order in which they run, until they are submitted.
pub(crate) struct Recorder<'a> {
    gpu: &'a Gpu,
    /// Each kernel's parameters.
    parameters: Vec<u8>,
    /// Where the parameters go.
    uniform: &'a mut GpuUniform,
    steps: Vec<Recorded>,
}

struct Recorded {
    kernel: Kernel,
    buffers: Vec<wgpu::Buffer>,
    groups: [u32; 3],
}

/// The parameters' buffer.
#[derive(Default)]
pub(crate) struct GpuUniform(Option<wgpu::Buffer>);

/// Rows of an image whose sum a workgroup takes.
const MEAN_SHARE: usize = 512;

/// Bytes from one kernel's parameters to the next: the least that WebGPU promises to take.
const PARAMETERS: usize = 256;

impl<'a> Recorder<'a> {
    pub(crate) fn new(gpu: &'a Gpu, uniform: &'a mut GpuUniform) -> Self {
        Self {
            gpu,
            parameters: Vec::new(),
            uniform,
            steps: Vec::new(),
        }
    }

    fn push(&mut self, kernel: Kernel, buffers: &[&wgpu::Buffer], parameters: &[u32], groups: [u32; 3]) {
        debug_assert_eq!(kernel.buffers() as usize, buffers.len());
        self.parameters
            .extend_from_slice(bytemuck::cast_slice(parameters));
        self.parameters
            .resize(self.parameters.len().next_multiple_of(PARAMETERS), 0);
        self.steps.push(Recorded {
            kernel,
            buffers: buffers.iter().map(|&buffer| buffer.clone()).collect(),
            groups,
        });
    }

    /// Rows of `x` [.., depth] through a layer to rows of `y` [.., y_width].
    pub(crate) fn linear(
        &mut self,
        x: &GpuBuffer,
        layer: &GpuLinear,
        (y, y_width): (&GpuBuffer, usize),
        rows: usize,
        part: Part,
        epilogue: Epilogue,
    ) {
        let rows = rows as u32;
        let columns = match part.columns as u32 / 4 {
            0 => layer.columns,
            columns => columns,
        };
        let threads = Threads::of(rows, columns, self.gpu.is_software());
        self.linear_by(threads, x, layer, (y, y_width), [rows, columns], part, epilogue);
    }

    #[allow(clippy::too_many_arguments)]
    fn linear_by(
        &mut self,
        threads: Threads,
        x: &GpuBuffer,
        layer: &GpuLinear,
        (y, y_width): (&GpuBuffer, usize),
        [rows, columns]: [u32; 2],
        part: Part,
        epilogue: Epilogue,
    ) {
        let tile = match threads.slices {
            1 => LINEAR_COLUMNS,
            _ => SLICED_COLUMNS,
        };
        let mut buffers = vec![x.get(), &layer.weight, &layer.bias];
        buffers.extend(&layer.scales);
        buffers.push(y.get());
        self.push(
            Kernel::Linear {
                rows: threads.rows,
                slices: threads.slices,
                dtype: layer.dtype,
                epilogue,
            },
            &buffers,
            &[
                rows,
                layer.depth,
                columns,
                layer.columns,
                part.column as u32 / 4,
                layer.depth,
                part.x_row as u32,
                y_width as u32 / 4,
                part.y_row as u32,
                part.column as u32 / 4,
            ],
            [columns.div_ceil(tile), rows.div_ceil(threads.rows), 1],
        );
    }

    /// Normalises rows of `x` to rows of `y` from `y_row` on.
    pub(crate) fn layer_norm(
        &mut self,
        x: &GpuBuffer,
        norm: &GpuNorm,
        y: &GpuBuffer,
        y_row: usize,
        rows: usize,
    ) {
        self.push(
            Kernel::LayerNorm { in_place: false },
            &[x.get(), &norm.scale, &norm.shift, y.get()],
            &[norm.width as u32 / 4, norm.epsilon.to_bits(), y_row as u32],
            [rows as u32, 1, 1],
        );
    }

    /// Normalises rows of `y` where they are.
    pub(crate) fn layer_norm_in_place(&mut self, norm: &GpuNorm, y: &GpuBuffer, rows: usize) {
        self.push(
            Kernel::LayerNorm { in_place: true },
            &[&norm.scale, &norm.shift, y.get()],
            &[norm.width as u32 / 4, norm.epsilon.to_bits(), 0],
            [rows as u32, 1, 1],
        );
    }

    /// `qkv` [.., heads * (2 * query width + value width)] to `y` [.., heads * value width].
    pub(crate) fn attention(
        &mut self,
        shape: &AttentionShape,
        scale: f32,
        qkv: &GpuBuffer,
        sequences: &GpuSequences,
        y: &GpuBuffer,
    ) {
        let queries = if sequences.longest <= 16 { 16 } else { 64 };
        self.push(
            Kernel::Attention {
                queries,
                query_width: shape.query_head_width as u32 / 4,
                value_width: shape.value_head_width as u32 / 4,
            },
            &[qkv.get(), &sequences.buffer, y.get()],
            &[shape.heads as u32, scale.to_bits()],
            [
                sequences.longest.div_ceil(queries),
                shape.heads as u32,
                sequences.count,
            ],
        );
    }

    /// The first row of each sequence's keys, behind one another.
    pub(crate) fn first_rows(
        &mut self,
        x: &GpuBuffer,
        width: usize,
        sequences: &GpuSequences,
        y: &GpuBuffer,
    ) {
        let width = width as u32 / 4;
        self.push(
            Kernel::FirstRows,
            &[x.get(), &sequences.buffer, y.get()],
            &[width],
            [width.div_ceil(COPY_THREADS), sequences.count, 1],
        );
    }

    /// `x`, an image of `map`, to `y`.
    pub(crate) fn convolution(&mut self, x: &GpuBuffer, map: Map, layer: &Convolution, y: &GpuBuffer) {
        let (out, [top, left]) = map.convolved(layer.kernel, layer.stride);
        self.push(
            Kernel::Convolution {
                kernel: layer.kernel as u32,
                stride: layer.stride as u32,
                planes: layer.planes as u32,
            },
            &[x.get(), &layer.weight, &layer.bias, y.get()],
            &[
                map.height as u32,
                map.width as u32,
                layer.columns,
                out.width as u32,
                top as u32,
                left as u32,
            ],
            [
                (out.width as u32 * layer.columns).div_ceil(COPY_THREADS),
                out.height as u32,
                1,
            ],
        );
    }

    /// Rows of sums that [`Recorder::mean`] takes so many rows to first.
    pub(crate) fn mean_parts(rows: usize) -> usize {
        rows.div_ceil(MEAN_SHARE)
    }

    /// The mean of each of the columns of `x`, [rows, width], to a row of `y`, by way of `parts`.
    pub(crate) fn mean(
        &mut self,
        x: &GpuBuffer,
        [rows, width]: [usize; 2],
        parts: &GpuBuffer,
        (y, y_row): (&GpuBuffer, usize),
    ) {
        let columns = width as u32 / 4;
        let count = Self::mean_parts(rows);
        let mut step = |x: &GpuBuffer, rows: usize, share: usize, y: &GpuBuffer, y_row: usize, scale: f32| {
            self.push(
                Kernel::Mean,
                &[x.get(), y.get()],
                &[rows as u32, columns, share as u32, y_row as u32, scale.to_bits()],
                [columns.div_ceil(MEAN_COLUMNS), rows.div_ceil(share) as u32, 1],
            );
        };
        step(x, rows, MEAN_SHARE, parts, 0, 1.0);
        step(parts, count, count, y, y_row, 1.0 / rows as f32);
    }

    /// Each channel of `y`, an image of `map`, times its factor.
    pub(crate) fn gate(&mut self, factors: &GpuBuffer, y: &GpuBuffer, map: Map, channels: usize) {
        let columns = channels as u32 / 4;
        let row = map.width as u32 * columns;
        self.push(
            Kernel::Gate,
            &[factors.get(), y.get()],
            &[columns, row],
            [row.div_ceil(COPY_THREADS), map.height as u32, 1],
        );
    }

    /// Lets them run.
    pub(crate) fn submit(&mut self) {
        let shared = &self.gpu.shared;
        let size = self.parameters.len() as u64;
        if self.uniform.0.as_ref().is_none_or(|buffer| buffer.size() < size) {
            self.uniform.0 = Some(self.gpu.buffer(size, BufferUsages::UNIFORM));
        }
        let uniform = self.uniform.0.as_ref().expect("made above");
        shared.queue.write_buffer(uniform, 0, &self.parameters);
        let mut encoder = shared.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for (i, step) in self.steps.iter().enumerate() {
                let pipeline = self.gpu.pipeline(step.kernel);
                let parameters = wgpu::BufferBinding {
                    buffer: uniform,
                    offset: (i * PARAMETERS) as u64,
                    size: std::num::NonZeroU64::new(PARAMETERS as u64),
                };
                let mut entries = vec![wgpu::BindGroupEntry {
                    binding: 0,
                    resource: wgpu::BindingResource::Buffer(parameters),
                }];
                entries.extend(
                    step.buffers
                        .iter()
                        .zip(1..)
                        .map(|(buffer, binding)| wgpu::BindGroupEntry {
                            binding,
                            resource: buffer.as_entire_binding(),
                        }),
                );
                let group = shared.device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: None,
                    layout: &pipeline.get_bind_group_layout(0),
                    entries: &entries,
                });
                pass.set_pipeline(&pipeline);
                pass.set_bind_group(0, &group, &[]);
                let [x, y, z] = step.groups;
                pass.dispatch_workgroups(x, y, z);
            }
        }
        shared.queue.submit([encoder.finish()]);
        self.steps.clear();
        self.parameters.clear();
    }
}

/// Where sequences lie in the rows.
pub(crate) struct GpuSequences {
    buffer: wgpu::Buffer,
    count: u32,
    /// Queries of the one that has most.
    longest: u32,
}

impl GpuSequences {
    pub(crate) fn new(gpu: &Gpu, sequences: &[Sequence]) -> Self {
        let rows: Vec<[u32; 4]> = sequences
            .iter()
            .map(|s| [s.query, s.queries, s.key, s.keys].map(|n| n as u32))
            .collect();
        Self {
            buffer: gpu.constant(bytemuck::cast_slice(&rows)),
            count: sequences.len() as u32,
            longest: sequences.iter().map(|s| s.queries as u32).max().unwrap_or(0),
        }
    }
}
