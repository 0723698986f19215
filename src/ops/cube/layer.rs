//! Linear layers on a graphics card, and how their weights are kept there.

use burn::tensor::{DType, Device, Int, Tensor, TensorData as BurnData};
use half::f16;

use crate::weights::{Bits, Codes, Dtype, GROUP, TensorData};

/// In which numbers a card keeps weights. It multiplies in single precision whatever they are; what fewer
/// bits save is memory, and the time to read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// As they are stored, which loses nothing; halves in single precision where a program stands in for a
    /// card, since they are slow there.
    #[default]
    Stored,
    /// Single precision.
    Single,
    /// Half precision.
    Half,
}

/// How a card computes and keeps weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CardOptions {
    /// In which numbers weights are kept.
    pub precision: Precision,
    /// Whether the card is a program on the processor.
    pub is_software: bool,
    /// Bytes of the largest tensor that a kernel can read; 0 where there is no bound.
    pub largest: u64,
}

/// In which numbers one weight is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Keeping {
    F32,
    F16,
    Int8,
    Int4,
}

impl Keeping {
    /// Words of 32 bits for four columns of a row; of two rows in four bits.
    pub(super) fn words(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Int8 | Self::Int4 => 1,
        }
    }
}

/// A linear layer on a card: y = x W + b with W of `[depth, columns]`, both multiples of 4.
#[derive(Clone)]
pub(crate) struct CardLayer {
    /// W, row by row.
    pub(super) words: Tensor<1, Int>,
    /// Those of a quantised weight: one a column in eight bits, one a column and group of rows in four.
    pub(super) scales: Option<Tensor<1>>,
    pub(super) bias: Option<Tensor<1>>,
    pub(super) keeping: Keeping,
    pub(super) depth: usize,
    pub(super) columns: usize,
}

impl CardLayer {
    /// `weight` is `[depth, columns]`, both multiples of 4.
    pub(crate) fn new(
        [depth, columns]: [usize; 2],
        weight: TensorData<'_>,
        bias: Option<Vec<f32>>,
        options: CardOptions,
        device: &Device,
    ) -> Self {
        let keeping = match (options.precision, &weight) {
            (Precision::Stored, TensorData::Quantised(matrix)) => match matrix.bits() {
                Bits::Int8 => Keeping::Int8,
                Bits::Int4 => Keeping::Int4,
            },
            (Precision::Stored, TensorData::F16(_)) if !options.is_software => Keeping::F16,
            (Precision::Stored | Precision::Single, _) => Keeping::F32,
            (Precision::Half, _) => Keeping::F16,
        };
        let values = |values: Vec<f32>| {
            let count = values.len();
            Tensor::from_data(BurnData::new(values, [count]), device)
        };
        let mut scales = None;
        let bytes: Vec<u8> = match (keeping, weight) {
            (Keeping::F16, TensorData::F16(values)) => bytemuck::cast_slice(&values).to_vec(),
            (Keeping::F16, weight) => {
                let halves: Vec<f16> = weight.into_f32().iter().map(|&x| f16::from_f32(x)).collect();
                bytemuck::cast_slice(&halves).to_vec()
            }
            (Keeping::Int8 | Keeping::Int4, TensorData::Quantised(matrix)) => {
                let (codes, of) = turned(matrix.codes(), depth, columns);
                scales = Some(values(of));
                codes
            }
            (_, weight) => bytemuck::cast_slice(&weight.into_f32()).to_vec(),
        };
        Self {
            words: words(&bytes, device),
            scales,
            bias: bias.map(values),
            keeping,
            depth,
            columns,
        }
    }

    /// Values of the wider of the rows that go in and come out.
    pub(in crate::ops) fn widest(&self) -> usize {
        self.depth.max(self.columns)
    }

    /// How the weight is kept.
    pub(crate) fn dtype(&self) -> Dtype {
        match self.keeping {
            Keeping::F32 => Dtype::F32,
            Keeping::F16 => Dtype::F16,
            Keeping::Int8 => Dtype::Quantised(Bits::Int8),
            Keeping::Int4 => Dtype::Quantised(Bits::Int4),
        }
    }
}

/// Bytes on a device, as words of 32 bits, with zeros up to the last word's end.
pub(crate) fn words(bytes: &[u8], device: &Device) -> Tensor<1, Int> {
    let mut words = vec![0u32; bytes.len().div_ceil(4)];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    let count = words.len();
    Tensor::from_data(BurnData::new(words, [count]), (device, DType::U32))
}

/// Codes as the kernels read them, the columns of a row behind one another: in eight bits a byte each; in
/// four bits, four columns of one row and then the same four of the next, as a whole of four bytes. And
/// scales, likewise.
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
