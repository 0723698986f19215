use std::borrow::Cow;
use std::collections::BTreeMap;

use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::{Deserialize, Serialize};

use super::source::check_finite;
use super::{TensorData, count, quoted, transpose, weights};
use crate::{Error, Result};

/// Values of a row that share a scale in four bits.
pub const GROUP: usize = crate::kernels::GROUP;

/// The key in a file's metadata under which its quantised tensors are listed.
pub(super) const METADATA: &str = "quantised";
/// What the name of a tensor's scales has behind the tensor's.
pub(super) const SCALE: &str = ".scale";

const LARGEST_INT8: f32 = 127.0;
const LARGEST_INT4: f32 = 7.0;

/// Quantises a row to whole numbers from -127 to 127, symmetric about 0, and returns their scale: the largest
/// magnitude / 127, or 0 for a row of zeros. `codes` is as long as `row`.
///
/// ```
/// let mut codes = [0; 3];
/// let scale = ernie_vil::weights::quantise_int8(&[0.5, -1.27, 0.0], &mut codes);
/// assert_eq!((codes, scale), ([50, -127, 0], 0.01));
/// ```
pub fn quantise_int8(row: &[f32], codes: &mut [i8]) -> f32 {
    let scale = scale(row, LARGEST_INT8);
    for (code, &value) in codes.iter_mut().zip(row) {
        *code = quantise(value, scale, LARGEST_INT8);
    }
    scale
}

/// Quantises a row to whole numbers from -7 to 7, with a scale for every [`GROUP`] values: the largest
/// magnitude / 7. Two codes are packed in a byte of `packed`, the first of them in its low four bits, in
/// two's complement; `packed` is half as long as `row`, rounded up, and `scales` has as many entries as there
/// are groups, of which the last may be shorter.
///
/// ```
/// let (mut packed, mut scales) = ([0; 2], [0.0]);
/// ernie_vil::weights::quantise_int4(&[1.75, -0.5, 0.25], &mut packed, &mut scales);
/// assert_eq!((packed, scales), ([0xe7, 0x01], [0.25]));
/// ```
pub fn quantise_int4(row: &[f32], packed: &mut [u8], scales: &mut [f32]) {
    let groups = row.chunks(GROUP).zip(packed.chunks_mut(GROUP / 2)).zip(scales);
    for ((row, packed), out) in groups {
        let scale = scale(row, LARGEST_INT4);
        *out = scale;
        for (byte, pair) in packed.iter_mut().zip(row.chunks(2)) {
            let code = |value: &f32| quantise(*value, scale, LARGEST_INT4) as u8 & 15;
            *byte = code(&pair[0]) | pair.get(1).map_or(0, code) << 4;
        }
    }
}

fn scale(values: &[f32], largest: f32) -> f32 {
    values.iter().fold(0.0, |most: f32, value| most.max(value.abs())) / largest
}

/// A value in steps of the scale, to the nearest, of two the even one. It is divided, since a product with
/// the reciprocal would be rounded once more.
fn quantise(value: f32, scale: f32, largest: f32) -> i8 {
    match scale > 0.0 {
        true => (value / scale).round_ties_even().clamp(-largest, largest) as i8,
        false => 0,
    }
}

/// The code in the low or the high four bits of a byte.
fn nibble(byte: u8, high: bool) -> i8 {
    match high {
        true => byte as i8 >> 4,
        false => (byte << 4) as i8 >> 4,
    }
}

/// How a quantised tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bits {
    /// Eight bits a value and a scale in single precision for each row.
    Int8,
    /// Four bits a value and a scale in half precision for each [`GROUP`] values of a row.
    Int4,
}

/// A matrix of whole numbers with scales. A row is what one column of a linear layer's weight is made of, or
/// a convolution's output channel, or a word.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised<'a> {
    codes: Codes<'a>,
    rows: usize,
    width: usize,
    /// Whether the tensor that it stands for has the rows as its columns.
    transposed: bool,
}

/// Codes and scales, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Codes<'a> {
    Int8(Cow<'a, [i8]>, Cow<'a, [f32]>),
    /// Rows start on whole bytes.
    Int4(Cow<'a, [u8]>, Cow<'a, [f16]>),
}

impl<'a> Quantised<'a> {
    /// Quantises rows.
    ///
    /// # Errors
    /// [`Error::Weights`] where a scale is too large for half precision.
    ///
    /// # Panics
    /// Where `values` is not `rows * width` long.
    fn new(values: &[f32], rows: usize, width: usize, transposed: bool, bits: Bits) -> Result<Self> {
        assert_eq!(values.len(), rows * width, "values of a matrix");
        let all = values.chunks_exact(width.max(1));
        let codes = match bits {
            Bits::Int8 => {
                let mut codes = vec![0; values.len()];
                let some = all.zip(codes.chunks_exact_mut(width.max(1)));
                let scales = some.map(|(row, codes)| quantise_int8(row, codes)).collect();
                Codes::Int8(codes.into(), scales)
            }
            Bits::Int4 => {
                let (bytes, groups) = (width.div_ceil(2), width.div_ceil(GROUP));
                let mut packed = vec![0; rows * bytes];
                let mut scales = vec![0.0; rows * groups];
                let out = packed
                    .chunks_exact_mut(bytes)
                    .zip(scales.chunks_exact_mut(groups));
                for (row, (packed, scales)) in all.zip(out) {
                    quantise_int4(row, packed, scales);
                }
                if let Some(scale) = scales.iter().find(|&&scale| f16::from_f32(scale).is_infinite()) {
                    return weights(format!("the scale {scale} is too large for half precision"));
                }
                let scales: Vec<f16> = scales.into_iter().map(f16::from_f32).collect();
                Codes::Int4(packed.into(), scales.into())
            }
        };
        Ok(Self {
            codes,
            rows,
            width,
            transposed,
        })
    }

    /// The weight \[inputs, outputs\] of a linear layer.
    #[cfg(all(test, feature = "wgpu"))]
    pub(crate) fn of_linear(
        values: &TensorData<'_>,
        inputs: usize,
        outputs: usize,
        bits: Bits,
    ) -> Result<Quantised<'static>> {
        let packing = Packing::of("weight", &[inputs, outputs], bits);
        packing.expect("deep enough").quantise(values)
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.rows * self.width
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn codes(&self) -> &Codes<'a> {
        &self.codes
    }

    /// Whether the tensor has the rows as its columns.
    pub(crate) fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// In how many bits.
    pub fn bits(&self) -> Bits {
        match self.codes {
            Codes::Int8(..) => Bits::Int8,
            Codes::Int4(..) => Bits::Int4,
        }
    }

    /// Writes the values of a row.
    ///
    /// # Panics
    /// Where there is no such row or `out` is not as wide.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.width, "a row and its width");
        match &self.codes {
            Codes::Int8(codes, scales) => {
                let codes = &codes[row * self.width..];
                for (out, &code) in out.iter_mut().zip(codes) {
                    *out = f32::from(code) * scales[row];
                }
            }
            Codes::Int4(packed, scales) => {
                let packed = &packed[row * self.width.div_ceil(2)..];
                let scales = &scales[row * self.width.div_ceil(GROUP)..];
                for ((out, packed), scale) in out.chunks_mut(GROUP).zip(packed.chunks(GROUP / 2)).zip(scales)
                {
                    let scale = scale.to_f32();
                    for (pair, &byte) in out.chunks_mut(2).zip(packed) {
                        for (i, out) in pair.iter_mut().enumerate() {
                            *out = f32::from(nibble(byte, i == 1)) * scale;
                        }
                    }
                }
            }
        }
    }

    /// Weights of layers with the same inputs as one, their columns beside one another; `None` where they are
    /// not in as many bits.
    #[cfg(any(feature = "cube", feature = "webgpu"))]
    pub(crate) fn beside(matrices: &[&Self]) -> Option<Quantised<'static>> {
        let first = matrices.first()?;
        let fits = |other: &&Self| other.transposed && other.width == first.width;
        if !matrices.iter().all(fits) {
            return None;
        }
        let int8 = matrices.iter().map(|matrix| match &matrix.codes {
            Codes::Int8(codes, scales) => Some((&codes[..], &scales[..])),
            Codes::Int4(..) => None,
        });
        let int4 = matrices.iter().map(|matrix| match &matrix.codes {
            Codes::Int4(codes, scales) => Some((&codes[..], &scales[..])),
            Codes::Int8(..) => None,
        });
        let codes = if let Some(parts) = int8.collect::<Option<Vec<_>>>() {
            let (codes, scales): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
            Codes::Int8(codes.concat().into(), scales.concat().into())
        } else {
            let (codes, scales): (Vec<_>, Vec<_>) = int4.collect::<Option<Vec<_>>>()?.into_iter().unzip();
            Codes::Int4(codes.concat().into(), scales.concat().into())
        };
        Some(Quantised {
            codes,
            rows: matrices.iter().map(|matrix| matrix.rows).sum(),
            width: first.width,
            transposed: true,
        })
    }

    /// The tensor's values in single precision.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        if !self.transposed {
            for (row, out) in values.chunks_exact_mut(self.width.max(1)).enumerate() {
                self.row(row, out);
            }
            return values;
        }
        let mut row = vec![0.0; self.width];
        for i in 0..self.rows {
            self.row(i, &mut row);
            for (out, &value) in values[i..].iter_mut().step_by(self.rows).zip(&row) {
                *out = value;
            }
        }
        values
    }

    /// The same, holding its own values.
    pub fn into_owned(self) -> Quantised<'static> {
        Quantised {
            codes: match self.codes {
                Codes::Int8(codes, scales) => {
                    Codes::Int8(codes.into_owned().into(), scales.into_owned().into())
                }
                Codes::Int4(codes, scales) => {
                    Codes::Int4(codes.into_owned().into(), scales.into_owned().into())
                }
            },
            ..self
        }
    }

    /// # Errors
    /// [`Error::Weights`] gives the first scale that is infinite or not a number.
    pub(super) fn check_finite(&self) -> Result<()> {
        let scales = match &self.codes {
            Codes::Int8(_, scales) => scales.clone(),
            Codes::Int4(_, scales) => scales.to_f32_vec().into(),
        };
        match scales.iter().position(|scale| !scale.is_finite()) {
            None => Ok(()),
            Some(at) => weights(format!("scale {at} is {}, expected finite numbers", scales[at])),
        }
    }
}

/// What a file's metadata says of a quantised tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Packing {
    dtype: Bits,
    /// The sizes of the tensor that it stands for.
    pub(super) shape: Vec<usize>,
    /// Whether its rows are that tensor's columns.
    transposed: bool,
}

/// A part of a file: the element type's name in the header, the sizes, bytes.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) dtype: &'static str,
    pub(super) shape: Vec<usize>,
    /// Of one element.
    pub(super) size: usize,
}

impl Packing {
    /// How a tensor is stored: quantised where it is a matrix of weights or words, or a convolution, whose
    /// rows make a group at least. `None` for all others, which are few and small and weigh more in the
    /// result.
    pub(super) fn of(name: &str, shape: &[usize], dtype: Bits) -> Option<Self> {
        let transposed = match shape {
            [_, _] => !name.ends_with("_emb.weight"),
            [_, _, _, _] => false,
            _ => return None,
        };
        let packing = Self {
            dtype,
            shape: shape.to_vec(),
            transposed,
        };
        let (_, width) = packing.sizes()?;
        (width >= GROUP).then_some(packing)
    }

    pub(super) fn bits(&self) -> Bits {
        self.dtype
    }

    /// Rows, and values of a row; `None` where they cannot be counted.
    fn sizes(&self) -> Option<(usize, usize)> {
        let (first, rest) = self.shape.split_first()?;
        let rest = count(rest)?;
        first.checked_mul(rest)?;
        Some(match self.transposed {
            true => (rest, *first),
            false => (*first, rest),
        })
    }

    /// The two parts that it is stored as.
    pub(super) fn parts(&self, name: &str) -> Result<[Part; 2]> {
        let Some((rows, width)) = self.sizes() else {
            return weights(format!("tensor {}: {:?} is too large", quoted(name), self.shape));
        };
        let part = |name: String, dtype, size, shape: &[usize]| Part {
            name,
            dtype,
            shape: shape.to_vec(),
            size,
        };
        let scale = format!("{name}{SCALE}");
        Ok(match self.dtype {
            Bits::Int8 => [
                part(name.to_owned(), "I8", 1, &[rows, width]),
                part(scale, "F32", 4, &[rows]),
            ],
            Bits::Int4 => [
                part(name.to_owned(), "U8", 1, &[rows, width.div_ceil(2)]),
                part(scale, "F16", 2, &[rows, width.div_ceil(GROUP)]),
            ],
        })
    }

    /// The values as they are stored.
    pub(super) fn quantise(&self, values: &TensorData<'_>) -> Result<Quantised<'static>> {
        let (rows, width) = self.sizes().expect("a tensor in memory");
        let values = match values {
            TensorData::F32(values) => Cow::Borrowed(&**values),
            other => other.clone().into_f32(),
        };
        let values = match self.transposed {
            true => transpose(&values, rows, width).into(),
            false => values,
        };
        Quantised::new(&values, rows, width, self.transposed, self.dtype)
    }

    /// The tensor of its parts, which have the sizes that [`Packing::parts`] says.
    pub(super) fn join<'a>(&self, codes: Stored<'a>, scales: Stored<'a>) -> Result<Quantised<'a>> {
        let codes = match (codes, scales) {
            (Stored::I8(codes), Stored::Data(TensorData::F32(scales))) => Codes::Int8(codes, scales),
            (Stored::U8(codes), Stored::Data(TensorData::F16(scales))) => Codes::Int4(codes, scales),
            _ => return weights("the element types of its parts are not those of a quantised tensor"),
        };
        let (rows, width) = self.sizes().expect("checked with the header");
        let joined = Quantised {
            codes,
            rows,
            width,
            transposed: self.transposed,
        };
        joined.check_finite()?;
        Ok(joined)
    }
}

/// A part's values.
#[derive(Debug)]
pub(super) enum Stored<'a> {
    Data(TensorData<'a>),
    I8(Cow<'a, [i8]>),
    U8(Cow<'a, [u8]>),
}

impl<'a> Stored<'a> {
    /// The values of a tensor that is no part of another.
    ///
    /// # Errors
    /// [`Error::Weights`] where it is of whole numbers, and where a value is not finite.
    pub(super) fn without_scales(self) -> Result<TensorData<'a>> {
        match self {
            Self::Data(data) => check_finite(&data).map(|()| data),
            Self::I8(_) | Self::U8(_) => weights("whole numbers without scales, expected F32, F16 or BF16"),
        }
    }
}

/// The quantised tensors of a file, by name.
pub(super) type Packings = BTreeMap<String, Packing>;

/// The tensor that one of a file's is a part of: another one where it is the scales of that, itself in all
/// other cases.
pub(super) fn whole<'a>(name: &'a str, packings: &Packings) -> &'a str {
    match name.strip_suffix(SCALE) {
        Some(whole) if packings.contains_key(whole) => whole,
        _ => name,
    }
}

/// Reads the list in a file's header, and checks that the parts are there as it says.
///
/// # Errors
/// [`Error::Weights`] names the tensor, or says what is wrong with the list.
pub(super) fn packings(header: &Metadata) -> Result<Packings> {
    let Some(json) = header.metadata().as_ref().and_then(|all| all.get(METADATA)) else {
        return Ok(Packings::new());
    };
    let packings: Packings = serde_json::from_str(json)
        .map_err(|error| Error::Weights(format!("the metadata's {METADATA:?}: {error}")))?;
    for (name, packing) in &packings {
        for part in packing.parts(name)? {
            let found = header.info(&part.name);
            let fits =
                |found: &TensorInfo| found.dtype.to_string() == part.dtype && found.shape == part.shape;
            if !found.is_some_and(fits) {
                let found = found.map_or("missing".to_owned(), |found| {
                    format!("{} {:?}", found.dtype, found.shape)
                });
                return weights(format!(
                    "tensor {} is {found}, expected {} {:?}: part of a quantised tensor",
                    quoted(&part.name),
                    part.dtype,
                    part.shape
                ));
            }
        }
    }
    Ok(packings)
}
