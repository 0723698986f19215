use std::borrow::Cow;
use std::collections::BTreeSet;

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};

use super::names::KNOWN_NAMES;
use super::quantised::{Packings, SCALE, Stored, packings, whole};
use super::{Quantised, TEMPERATURE, quoted, weights};
use crate::recognise::{mistaken, recognise};
use crate::{Error, Result};

/// The values of a tensor, the last index running fastest.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData<'a> {
    /// Single precision.
    F32(Cow<'a, [f32]>),
    /// Half precision.
    F16(Cow<'a, [f16]>),
    /// A matrix in whole numbers with scales.
    Quantised(Quantised<'a>),
}

impl<'a> TensorData<'a> {
    /// The values in single precision.
    pub fn into_f32(self) -> Cow<'a, [f32]> {
        match self {
            TensorData::F32(values) => values,
            TensorData::F16(values) => values.to_f32_vec().into(),
            TensorData::Quantised(matrix) => matrix.to_f32().into(),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Quantised(matrix) => matrix.len(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Named tensors to load the towers from.
pub trait TensorSource {
    /// The names of all tensors, sorted.
    fn names(&self) -> Vec<String>;

    /// A tensor's sizes; `None` where there is no tensor of this name.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// A tensor's values, as many as its shape says and all of them finite.
    ///
    /// # Errors
    /// [`Error::Weights`] names the tensor: it is missing, is of an element type that weights do not
    /// have, or has a value that is infinite or not a number.
    fn read(&self, name: &str) -> Result<TensorData<'_>>;

    /// As [`TensorSource::read`], for the last time: a source that holds the values hands them over.
    ///
    /// # Errors
    /// As [`TensorSource::read`].
    fn take(&self, name: &str) -> Result<TensorData<'_>> {
        self.read(name)
    }
}

/// The tensors of a safetensors file. They are used where they lie, if they are of 32 or 16 bit floats and
/// the slice is aligned to them; bfloat16 becomes `f32`. Those that [`convert`](super::convert) quantised are
/// two tensors of the file each, and one here.
///
/// ```
/// use ernie_vil::weights::{SafetensorsFile, TensorSource};
///
/// let header = br#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
/// let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
/// bytes.extend(header);
/// bytes.extend(1.5f32.to_le_bytes());
///
/// let file = SafetensorsFile::parse(&bytes)?;
/// assert_eq!(file.names(), ["t"]);
/// assert_eq!(file.shape("t"), Some(vec![1]));
/// # Ok::<(), ernie_vil::Error>(())
/// ```
#[derive(Debug)]
pub struct SafetensorsFile<'a> {
    header: Metadata,
    data: &'a [u8],
    packings: Packings,
}

impl<'a> SafetensorsFile<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Error::Weights`] where the header is damaged or does not cover the bytes exactly.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let (length, header) =
            SafeTensors::read_metadata(bytes).map_err(|error| no_safetensors(bytes, error.to_string()))?;
        Ok(Self {
            packings: packings(&header)?,
            header,
            data: &bytes[8 + length..],
        })
    }

    /// A tensor of the file.
    fn stored(&self, name: &str) -> Result<Stored<'a>> {
        let info = self.header.info(name);
        let info = info.ok_or_else(|| Error::Weights("missing".into()))?;
        let (from, to) = info.data_offsets;
        let bytes = &self.data[from..to];
        Ok(match info.dtype {
            Dtype::F32 => Stored::Data(TensorData::F32(little_endian(bytes, f32::from_le_bytes))),
            Dtype::F16 => Stored::Data(TensorData::F16(little_endian(bytes, f16::from_le_bytes))),
            Dtype::BF16 => {
                let values = bytes.as_chunks().0.iter();
                let values = values.map(|&b| bf16::from_le_bytes(b).to_f32());
                Stored::Data(TensorData::F32(values.collect()))
            }
            Dtype::I8 => Stored::I8(bytemuck::cast_slice(bytes).into()),
            Dtype::U8 => Stored::U8(bytes.into()),
            other => return weights(format!("the element type is {other}, expected F32, F16 or BF16")),
        })
    }
}

impl TensorSource for SafetensorsFile<'_> {
    fn names(&self) -> Vec<String> {
        let mut names = self.header.offset_keys();
        names.retain(|name| whole(name, &self.packings) == name);
        names.sort_unstable();
        names
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self.packings.get(name) {
            Some(packing) => Some(packing.shape.clone()),
            None => Some(self.header.info(name)?.shape.clone()),
        }
    }

    fn read(&self, name: &str) -> Result<TensorData<'_>> {
        let read = || match (self.packings.get(name), self.stored(name)?) {
            (Some(packing), codes) => {
                let scales = self.stored(&format!("{name}{SCALE}"))?;
                Ok(TensorData::Quantised(packing.join(codes, scales)?))
            }
            (None, stored) => stored.without_scales(),
        };
        read().map_err(|e| e.within(format!("tensor {}", quoted(name))))
    }
}

/// The error for a file that is none of these: what it is where that is known, and else what is wrong with
/// it.
pub(super) fn no_safetensors(start: &[u8], problem: String) -> Error {
    let what = match (start, recognise(start)) {
        ([], _) => Some(mistaken(start)),
        (_, Some(what)) => Some(format!("the file is {what}")),
        // The length of a header may begin so, but then a header follows.
        ([0x80, 2..=5, ..], _) if start.get(8) != Some(&b'{') => {
            Some("the file is a pickle (.pdparams): \"ernie-vil convert\" makes a model folder of it".into())
        }
        _ => None,
    };
    Error::Weights(format!("not a safetensors file: {}", what.unwrap_or(problem)))
}

/// Values in place where the slice is aligned to them (the format does not promise it), else a copy.
fn little_endian<T: Pod, const N: usize>(bytes: &[u8], from_le: impl Fn([u8; N]) -> T) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(values) if cfg!(target_endian = "little") => Cow::Borrowed(values),
        _ => bytes.as_chunks().0.iter().map(|&b| from_le(b)).collect(),
    }
}

/// # Errors
/// [`Error::Weights`] gives the first value that is infinite or not a number.
pub(super) fn check_finite(data: &TensorData) -> Result<()> {
    // An exponent of only ones. Folding without a way out lets the loop run on whole vectors.
    let found = match data {
        TensorData::F32(values) => {
            let block = |block: &[f32]| block.iter().fold(false, |any, x| any | !x.is_finite());
            values.chunks(4096).any(block).then(|| {
                let at = values.iter().position(|x| !x.is_finite()).unwrap_or(0);
                (at, values[at])
            })
        }
        TensorData::F16(values) => {
            let block = |block: &[f16]| block.iter().fold(false, |any, x| any | !x.is_finite());
            values.chunks(4096).any(block).then(|| {
                let at = values.iter().position(|x| !x.is_finite()).unwrap_or(0);
                (at, values[at].to_f32())
            })
        }
        TensorData::Quantised(matrix) => return matrix.check_finite(),
    };
    match found {
        None => Ok(()),
        Some((at, value)) => weights(format!("value {at} is {value}, expected finite numbers")),
    }
}

/// Checks that every expected tensor is there and has its shape. Returns the names of the others,
/// which are ignored, sorted.
///
/// # Errors
/// [`Error::Weights`] with all tensors that are missing or have another shape; the first twenty of
/// each by name. Where some are missing it says what the file holds instead, and where all are, whose names
/// are known.
///
/// ```
/// use ernie_vil::weights::{SafetensorsFile, check};
///
/// let empty = SafetensorsFile::parse(b"\x02\0\0\0\0\0\0\0{}")?;
/// let error = check(&empty, &[("visual.class_embedding".into(), vec![1, 1, 768])]).unwrap_err().to_string();
/// assert!(error.contains("1 tensor is missing:\n  visual.class_embedding [1, 1, 768]"), "{error}");
/// assert!(error.ends_with("The file holds no tensor."), "{error}");
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub fn check(source: &dyn TensorSource, expected: &[(String, Vec<usize>)]) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    let mut misshapen = Vec::new();
    for (name, shape) in expected {
        match source.shape(name) {
            None => missing.push(format!("{name} {shape:?}")),
            Some(found) if found != *shape => {
                misshapen.push(format!("{name} is {found:?}, expected {shape:?}"));
            }
            Some(_) => {}
        }
    }
    if missing.is_empty() && misshapen.is_empty() {
        let expected: BTreeSet<_> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let mut names = source.names();
        names.retain(|name| !expected.contains(name.as_str()));
        return Ok(names);
    }
    let lists = [
        listed(&missing, "tensor is missing", "tensors are missing"),
        listed(
            &misshapen,
            "tensor has another shape",
            "tensors have another shape",
        ),
        (!missing.is_empty())
            .then(|| holdings(source, expected))
            .flatten(),
    ];
    weights(lists.into_iter().flatten().collect::<Vec<_>>().join("\n"))
}

/// What a source holds beside the tensors that are expected of it, in a sentence; `None` where that is
/// nothing.
pub(super) fn holdings(source: &dyn TensorSource, expected: &[(String, Vec<usize>)]) -> Option<String> {
    const MOST: usize = 6;
    let expected: BTreeSet<_> = expected.iter().map(|(name, _)| name.as_str()).collect();
    // A checkpoint has both towers and the temperature, of which one tower is asked for.
    let elsewhere = ["visual.", "text_model.", TEMPERATURE]
        .map(|start| Some(start).filter(|start| !expected.iter().any(|name| name.starts_with(start))));
    let is_elsewhere = |name: &str| elsewhere.iter().flatten().any(|start| name.starts_with(start));
    let names = source.names();
    let others: Vec<_> = names
        .iter()
        .filter(|name| !expected.contains(name.as_str()) && !is_elsewhere(name))
        .collect();
    if names.is_empty() {
        return Some("The file holds no tensor.".into());
    }
    if others.is_empty() {
        return None;
    }
    let shown: Vec<_> = others.iter().take(MOST).map(|name| quoted(name)).collect();
    let more = match others.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(match others.len() == names.len() {
        false => format!(
            "The file also holds {} tensors of other names: {}{more}.",
            others.len(),
            shown.join(", ")
        ),
        true => format!(
            "The file holds {} tensors, none of which has an expected name: {}{more}. Known names are {KNOWN_NAMES}.",
            others.len(),
            shown.join(", ")
        ),
    })
}

/// A heading and the first lines under it; `None` where there are none.
fn listed(lines: &[String], one: &str, many: &str) -> Option<String> {
    const MOST: usize = 20;
    let heading = match lines.len() {
        0 => return None,
        1 => format!("1 {one}:"),
        n => format!("{n} {many}:"),
    };
    let mut text = heading;
    for line in lines.iter().take(MOST) {
        text += "\n  ";
        text += line;
    }
    if lines.len() > MOST {
        text += &format!("\n  and {} more", lines.len() - MOST);
    }
    Some(text)
}
