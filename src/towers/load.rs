//! From named tensors to layers.

#[cfg(feature = "cube")]
pub(super) mod card;

use std::borrow::Cow;
use std::sync::Arc;

use burn::module::{Param, ParamId};
use burn::nn;
use burn::tensor::{Device, Int, Tensor, TensorData as BurnData};
use half::slice::HalfFloatSliceExt;

use crate::kernels::{PackedMatrix, Sequence};
#[cfg(feature = "cube")]
use crate::ops::CardOptions;
use crate::ops::{Linear, Norm, PackedLinear, PackedProjections, Projections, joined};
use crate::weights::{Codes, Quantised, TensorData, TensorSource};
use crate::{ErnieConfig, Error, Result, VitConfig};
#[cfg(feature = "cube")]
pub(super) use card::check as check_width;
#[cfg(feature = "cube")]
pub(super) use card::check_image;

/// Some columns of a linear layer's weight and bias.
pub(super) struct Columns {
    name: String,
    of: usize,
    start: usize,
    count: usize,
}

impl Columns {
    /// All `count` columns of the layer `name`.
    pub(super) fn all(name: &str, count: usize) -> Self {
        Self::part(name, count, 0, count)
    }

    /// `count` columns from `start` on, of the layer `name`, which has `of`.
    pub(super) fn part(name: &str, of: usize, start: usize, count: usize) -> Self {
        Self {
            name: name.to_owned(),
            of,
            start,
            count,
        }
    }
}

/// Where a tower's weights go, and how they are kept there.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) device: Device,
    pub(crate) layers: Layers,
}

impl Target {
    /// Whether layers are packed. In a module for JavaScript they always are, so that the compiler leaves out
    /// of the download what makes others.
    pub(super) fn is_packed(&self) -> bool {
        cfg!(feature = "web") || self.layers == Layers::Packed
    }
}

/// How a tower's layers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layers {
    /// As the host's kernels read them.
    Packed,
    /// As the kernels of a graphics card read them.
    #[cfg(feature = "cube")]
    Card(CardOptions),
    /// As tensors, those of queries, keys and values as one.
    Together,
    /// As tensors, each under its own name, as they are trained.
    #[cfg_attr(
        not(feature = "train"),
        allow(dead_code, reason = "only training keeps them so")
    )]
    Apart,
}

/// Inputs or outputs of a layer: groups of the same size, such as heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Groups {
    count: usize,
    size: usize,
}

impl Groups {
    pub(crate) fn new(count: usize, size: usize) -> Self {
        Self { count, size }
    }

    /// All of them.
    pub(crate) fn count(self) -> usize {
        self.count * self.size
    }
}

impl From<usize> for Groups {
    fn from(size: usize) -> Self {
        Self { count: 1, size }
    }
}

/// A tower that is loaded block by block, so that it can be built while its tensors arrive.
pub(crate) trait Layered: Sized {
    type Config: Clone;
    type Block;
    /// What its weights go to.
    type Target: Clone;

    /// What the names of each block's tensors start with.
    fn blocks(config: &Self::Config) -> Vec<String>;

    fn load_block(
        loader: &Loader<'_>,
        config: &Self::Config,
        target: &Self::Target,
        prefix: &str,
    ) -> Result<Self::Block>;

    /// Loads everything but the blocks.
    fn assemble(
        loader: &Loader<'_>,
        config: &Self::Config,
        target: &Self::Target,
        blocks: Vec<Self::Block>,
    ) -> Result<Self>;

    fn load(loader: &Loader<'_>, config: &Self::Config, target: &Self::Target) -> Result<Self> {
        let blocks = Self::blocks(config);
        let blocks = blocks
            .iter()
            .map(|prefix| Self::load_block(loader, config, target, prefix));
        Self::assemble(loader, config, target, blocks.collect::<Result<_>>()?)
    }
}

pub(super) fn image_blocks(config: &VitConfig) -> Vec<String> {
    (0..config.depth).map(|i| format!("visual.blocks.{i}.")).collect()
}

pub(super) fn text_blocks(config: &ErnieConfig) -> Vec<String> {
    let prefix = |i| format!("text_model.encoder_stack.block.{i}.");
    (0..config.depth).map(prefix).collect()
}

/// Reads tensors of known shapes.
pub(crate) struct Loader<'a>(pub(crate) &'a dyn TensorSource);

impl Loader<'_> {
    /// A tensor as it is stored.
    pub(super) fn read(&self, name: &str, shape: &[usize]) -> Result<TensorData<'_>> {
        self.check(name, shape)?;
        self.0.read(name)
    }

    /// As [`Loader::read`], of a tensor that is read once and kept as it is.
    fn take(&self, name: &str, shape: &[usize]) -> Result<TensorData<'_>> {
        self.check(name, shape)?;
        self.0.take(name)
    }

    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        match self.0.shape(name) {
            Some(found) if found == shape => Ok(()),
            Some(found) => Err(Error::Weights(format!(
                "{name} has the shape {found:?}, expected {shape:?}"
            ))),
            None => Err(Error::Weights(format!("{name} is missing"))),
        }
    }

    /// A tensor in single precision.
    pub(super) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self.read(name, shape)?.into_f32().into_owned())
    }

    /// A linear layer of the given columns, side by side, for the host's kernels.
    pub(super) fn packed(&self, inputs: usize, parts: &[Columns]) -> Result<crate::kernels::Linear> {
        let mut bias = Vec::new();
        let mut weights = Vec::new();
        for part in parts {
            let values = self.values(&format!("{}.bias", part.name), &[part.of])?;
            bias.extend_from_slice(&values[part.start..part.start + part.count]);
            let weight = self.read(&format!("{}.weight", part.name), &[inputs, part.of])?;
            weights.push((weight, part));
        }
        if let Some(weight) = quantised(inputs, bias.len(), &weights) {
            return Ok(crate::kernels::Linear { weight, bias });
        }
        for (weight, _) in &mut weights {
            if matches!(weight, TensorData::Quantised(_)) {
                *weight = TensorData::F32(weight.clone().into_f32());
            }
        }
        let weight = PackedMatrix::pack(inputs, bias.len(), true, |row, mut column, mut out| {
            for (weight, part) in &weights {
                if column >= part.count {
                    column -= part.count;
                    continue;
                }
                let (now, later) = out.split_at_mut(out.len().min(part.count - column));
                let from = row * part.of + part.start + column;
                match weight {
                    TensorData::F32(values) => now.copy_from_slice(&values[from..from + now.len()]),
                    TensorData::F16(values) => values[from..from + now.len()].convert_to_f32_slice(now),
                    TensorData::Quantised(_) => unreachable!("expanded above"),
                }
                (out, column) = (later, 0);
                if out.is_empty() {
                    break;
                }
            }
        });
        Ok(crate::kernels::Linear { weight, bias })
    }

    /// A tensor on a device.
    pub(crate) fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        device: &Device,
    ) -> Result<Tensor<D>> {
        let values = self.values(name, &shape)?;
        Ok(Tensor::from_data(BurnData::new(values, shape), device))
    }

    /// A parameter on a device.
    pub(crate) fn param<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        device: &Device,
    ) -> Result<Param<Tensor<D>>> {
        Ok(parameter(name, self.tensor(name, shape, device)?))
    }

    /// A linear layer.
    pub(super) fn linear(
        &self,
        name: &str,
        inputs: impl Into<Groups>,
        outputs: usize,
        target: &Target,
    ) -> Result<Linear> {
        let inputs = inputs.into();
        Ok(match target.layers {
            Layers::Packed => Linear::Packed(PackedLinear::new(
                self.packed(inputs.count(), &[Columns::all(name, outputs)])?,
            )),
            #[cfg(feature = "cube")]
            Layers::Card(options) => {
                let columns = [(name, outputs.into())];
                Linear::Card(card::layer(self, inputs, &columns, options, &target.device)?)
            }
            _ => Linear::Dense(self.dense(name, inputs.count(), outputs, &target.device)?),
        })
    }

    /// A linear layer as tensors of a device.
    pub(super) fn dense(
        &self,
        name: &str,
        inputs: usize,
        outputs: usize,
        device: &Device,
    ) -> Result<nn::Linear> {
        Ok(nn::Linear {
            weight: self.param(&format!("{name}.weight"), [inputs, outputs], device)?,
            bias: Some(self.param(&format!("{name}.bias"), [outputs], device)?),
        })
    }

    /// The layers of the queries, keys and values of `heads` heads, `width` each, that the weights have as
    /// one.
    pub(super) fn projections(
        &self,
        name: &str,
        width: usize,
        heads: usize,
        target: &Target,
    ) -> Result<Projections> {
        #[cfg(feature = "cube")]
        if let Layers::Card(options) = target.layers {
            let columns = [(name, Groups::new(3 * heads, width / heads))];
            return Ok(Projections::Card(card::layer(
                self,
                width.into(),
                &columns,
                options,
                &target.device,
            )?));
        }
        let _ = heads;
        let part = |start, columns| self.packed(width, &[Columns::part(name, 3 * width, start, columns)]);
        Ok(match target.is_packed() {
            true => Projections::Packed(PackedProjections::new([part(0, width)?, part(width, 2 * width)?])),
            false => Projections::Together(self.dense(name, width, 3 * width, &target.device)?),
        })
    }

    /// The layers of the queries, keys and values of `heads` heads by their names and widths, from `inputs`
    /// values.
    pub(super) fn three_projections(
        &self,
        parts: &[(String, usize); 3],
        inputs: usize,
        heads: usize,
        target: &Target,
    ) -> Result<Projections> {
        #[cfg(feature = "cube")]
        if let Layers::Card(options) = target.layers {
            let columns = parts.each_ref();
            let columns = columns.map(|(name, width)| (name.as_str(), Groups::new(heads, width / heads)));
            return Ok(Projections::Card(card::layer(
                self,
                inputs.into(),
                &columns,
                options,
                &target.device,
            )?));
        }
        let _ = heads;
        if target.is_packed() {
            let [q, k, v] = parts.each_ref().map(|(name, width)| Columns::all(name, *width));
            let (query, key_value) = (self.packed(inputs, &[q])?, self.packed(inputs, &[k, v])?);
            return Ok(Projections::Packed(PackedProjections::new([query, key_value])));
        }
        let dense = |(name, width): &(String, usize)| self.dense(name, inputs, *width, &target.device);
        let [q, k, v] = parts.each_ref().map(dense);
        let parts = [q?, k?, v?];
        if target.layers == Layers::Apart {
            return Ok(Projections::Apart(parts));
        }
        let (weight, bias) = joined(&parts);
        Ok(Projections::Together(nn::Linear {
            weight: Param::from_tensor(weight),
            bias: bias.map(Param::from_tensor),
        }))
    }

    /// The layer from a patch's values to its row, which the weights have as a convolution without a bias.
    pub(super) fn patch_embed(&self, name: &str, config: &VitConfig, target: &Target) -> Result<Linear> {
        let (width, values) = (config.width, config.patch_values());
        let shape = [width, 3, config.patch_size, config.patch_size];
        #[cfg(feature = "cube")]
        if let Layers::Card(options) = target.layers {
            let rows = self.values(name, &shape)?;
            let layer = card::transposed(&rows, None, [values, width], options, &target.device);
            return Ok(Linear::Card(layer));
        }
        if target.is_packed() {
            let rows = self.values(name, &shape)?;
            return Ok(Linear::Packed(PackedLinear::new(crate::kernels::Linear {
                weight: PackedMatrix::from_transposed(&rows, width, values),
                bias: Vec::new(),
            })));
        }
        let weight = self.tensor(name, shape, &target.device)?;
        let weight = weight.reshape([width, values]).transpose();
        Ok(Linear::Dense(nn::Linear {
            weight: parameter(name, weight),
            bias: None,
        }))
    }

    /// A normalisation.
    pub(super) fn norm(&self, name: &str, width: usize, epsilon: f64, target: &Target) -> Result<Norm> {
        Ok(Norm {
            scale: self.param(&format!("{name}.weight"), [width], &target.device)?,
            shift: self.param(&format!("{name}.bias"), [width], &target.device)?,
            epsilon,
        })
    }
}

/// The columns of layers whose weights are all in as many bits; `None` where they are not.
fn quantised(inputs: usize, columns: usize, weights: &[(TensorData<'_>, &Columns)]) -> Option<PackedMatrix> {
    let matrices = weights.iter().map(|(weight, part)| match weight {
        TensorData::Quantised(matrix) if matrix.is_transposed() => Some((matrix, *part)),
        _ => None,
    });
    let matrices: Vec<(&Quantised<'_>, &Columns)> = matrices.collect::<Option<_>>()?;
    // The matrix that a column is in, and its row there.
    let find = |mut column: usize| {
        for (matrix, part) in &matrices {
            if column < part.count {
                return (matrix.codes(), part.start + column);
            }
            column -= part.count;
        }
        unreachable!("there are as many columns")
    };
    let all = |is: fn(&Codes<'_>) -> bool| matrices.iter().all(|(matrix, _)| is(matrix.codes()));
    if all(|codes| matches!(codes, Codes::Int8(..))) {
        Some(PackedMatrix::pack_int8(inputs, columns, |column| {
            match find(column) {
                (Codes::Int8(codes, scales), row) => (&codes[row * inputs..][..inputs], scales[row]),
                _ => unreachable!("all are in eight bits"),
            }
        }))
    } else if all(|codes| matches!(codes, Codes::Int4(..))) {
        Some(PackedMatrix::pack_int4(
            inputs,
            columns,
            |column, out| match find(column) {
                (Codes::Int4(codes, scales), row) => {
                    scales[row * out.len()..][..out.len()].convert_to_f32_slice(out);
                    let bytes = inputs.div_ceil(2);
                    &codes[row * bytes..][..bytes]
                }
                _ => unreachable!("all are in four bits"),
            },
        ))
    } else {
        None
    }
}

/// The parameter that a tensor of this name becomes. Its id stands for the name, so that gradients and an
/// optimizer's state can be kept by name.
pub(crate) fn parameter<const D: usize>(name: &str, tensor: Tensor<D>) -> Param<Tensor<D>> {
    let tensor = match tensor.device().is_autodiff() {
        true => tensor.require_grad(),
        false => tensor,
    };
    Param::initialized(parameter_id(name), tensor)
}

/// The id of the parameter of this name.
pub(crate) fn parameter_id(name: &str) -> ParamId {
    // FNV-1a.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    ParamId::from(hash)
}

/// The tables whose sum a token's embedding is, kept on the host: only the rows that a caption uses are ever
/// looked at, and the word table alone is larger than some devices' largest buffer.
pub(super) struct Words {
    words: Arc<Table>,
    /// Row p: what is added at position p.
    positions: Vec<f32>,
    /// The sentence types and the task types, where the model has them; row 0 is added to every token.
    types: Vec<Vec<f32>>,
    width: usize,
}

/// Kept in the precision in which it was stored.
enum Table {
    F32(Vec<f32>),
    F16(Vec<half::f16>),
    Quantised(Quantised<'static>),
}

impl Words {
    pub(super) fn load(loader: &Loader<'_>, config: &ErnieConfig) -> Result<Self> {
        let width = config.width;
        let words = match loader.take("text_model.word_emb.weight", &[config.vocab_size, width])? {
            TensorData::F32(values) => Table::F32(Cow::into_owned(values)),
            TensorData::F16(values) => Table::F16(Cow::into_owned(values)),
            TensorData::Quantised(matrix) if !matrix.is_transposed() => Table::Quantised(matrix.into_owned()),
            TensorData::Quantised(matrix) => Table::F32(matrix.to_f32()),
        };
        let positions = loader.values("text_model.pos_emb.weight", &[config.max_positions, width])?;
        let types = [
            ("text_model.sent_emb.weight", config.sentence_types),
            ("text_model.task_emb.weight", config.task_types),
        ];
        let types = types
            .into_iter()
            .filter_map(|(name, types)| Some(loader.values(name, &[types?, width])));
        Ok(Self {
            words: Arc::new(words),
            positions,
            types: types.collect::<Result<_>>()?,
            width,
        })
    }

    /// The tables for one caption of which more is said than its ids: what is added at each of its places is
    /// its own. `types` has as many lists as the model has tables of types.
    pub(super) fn typed(&self, positions: &[u32], types: &[&[u32]]) -> Self {
        let width = self.width;
        let row = |table: &[f32], row: u32| table[row as usize * width..][..width].to_vec();
        let sum = |(place, &position): (usize, &u32)| {
            let mut sum = row(&self.positions, position);
            for (table, types) in self.types.iter().zip(types) {
                add(&mut sum, &row(table, types[place]));
            }
            sum
        };
        Self {
            words: self.words.clone(),
            positions: positions.iter().enumerate().flat_map(sum).collect(),
            types: Vec::new(),
            width,
        }
    }

    /// Values of one embedding.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Rows of the table of positions.
    pub(super) fn positions(&self) -> usize {
        self.positions.len() / self.width
    }

    /// Where captions lie when they stand behind one another; `place` is told the row, the id and the
    /// position of each token. Padding in the middle of a caption is seen by no token and never becomes the
    /// embedding, so it is left out like that at the end; the other tokens keep their positions.
    pub(super) fn pack(
        &self,
        captions: &[&[u32]],
        mut place: impl FnMut(usize, u32, usize),
    ) -> Vec<Sequence> {
        let mut rows = 0;
        let sequence = |caption: &&[u32]| {
            let first = rows;
            for (position, &id) in caption.iter().enumerate().filter(|(_, id)| **id != 0) {
                place(rows, id, position);
                rows += 1;
            }
            Sequence {
                query: first,
                queries: rows - first,
                key: first,
                keys: rows - first,
            }
        };
        captions.iter().map(sequence).collect()
    }

    /// The tables, to be kept on a device.
    pub(super) fn on_device(&self, device: &Device) -> WordsOnDevice {
        let table = |values: Vec<f32>| {
            let rows = values.len() / self.width;
            Tensor::from_data(BurnData::new(values, [rows, self.width]), device)
        };
        WordsOnDevice {
            words: table(match &*self.words {
                Table::F32(values) => values.clone(),
                Table::F16(values) => values.to_f32_vec(),
                Table::Quantised(matrix) => matrix.to_f32(),
            }),
            positions: table(self.positions.clone()),
            types: (self.types.iter().map(|types| table(types[..self.width].to_vec()))).collect(),
        }
    }

    /// Writes the embedding of the word `id` at `position` to `out` [width].
    pub(super) fn embed(&self, id: u32, position: usize, out: &mut [f32]) {
        let start = id as usize * self.width;
        match &*self.words {
            Table::F32(values) => out.copy_from_slice(&values[start..start + self.width]),
            Table::F16(values) => values[start..start + self.width].convert_to_f32_slice(out),
            Table::Quantised(matrix) => matrix.row(id as usize, out),
        }
        add(out, &self.positions[position * self.width..][..self.width]);
        for table in &self.types {
            add(out, &table[..self.width]);
        }
    }
}

/// The tables of [`Words`] on a device, to which only ids have to go then.
pub(super) struct WordsOnDevice {
    /// [words, width]
    words: Tensor<2>,
    /// [positions, width]
    positions: Tensor<2>,
    /// What is added to every token, [1, width] each.
    types: Vec<Tensor<2>>,
}

impl WordsOnDevice {
    /// Ids `[captions * length]` to embedded tokens `[captions * length, width]`.
    pub(super) fn embed(&self, ids: Tensor<1, Int>, length: usize) -> Tensor<2> {
        let [_, width] = self.words.dims();
        let captions = ids.dims()[0] / length;
        let words = self
            .words
            .clone()
            .select(0, ids)
            .reshape([captions, length, width]);
        let sum = words + self.positions.clone().narrow(0, 0, length).unsqueeze();
        let types = self.types.iter().cloned();
        let sum = types.fold(sum, |sum, row| sum + row.unsqueeze());
        sum.reshape([captions * length, width])
    }
}

fn add(to: &mut [f32], values: &[f32]) {
    for (x, value) in to.iter_mut().zip(values) {
        *x += value;
    }
}
