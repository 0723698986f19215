use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use half::{bf16, f16};

use super::pickle::{Array, Bytes, MOST_DIMENSIONS, Pickle, Value, parse};
use super::source::{TensorData, TensorSource, check_finite};
use super::{count, quoted, weights};
use crate::{Error, Result};

/// Paddle's table of the tensors that were cut into parts.
const CUT_TENSORS: &str = "UnpackBigParamInfor@@";
/// The data of all tensors together may be so many times as long as the file: an array may be there under
/// several names, as tied weights are, but a small file of a large array under thousands of names would take
/// hours.
const MOST_SHARED: usize = 8;
/// Where a training checkpoint keeps the model among others, the first that is there.
const MODEL_KEYS: [&str; 2] = ["model", "state_dict"];

/// The tensors of a Paddle parameter file (`.pdparams`), read without running anything in it.
///
/// Every layout that Paddle writes is understood: a state dictionary, plain NumPy arrays, pairs of a
/// name and an array, either of them one level down under a key of its own, and tensors that were
/// cut into parts. What is not a tensor is ignored. The values stay in the input until
/// [`TensorSource::read`], which gives them as `f32` whatever they were stored as: 16, 32 and 64 bit
/// floats, integers, booleans, and bfloat16, which Paddle stores as unsigned 16 bit integers.
///
/// ```
/// use ernie_vil::weights::{Checkpoint, TensorSource};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/pickle/state_protocol4.pdparams");
/// # let bytes = std::fs::read(path).expect("a golden");
/// let checkpoint = Checkpoint::parse(&bytes)?;
/// assert_eq!(checkpoint.shape("lin.weight"), Some(vec![3, 4]));
/// assert_eq!(checkpoint.read("lin.weight")?.len(), 12);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint<'a> {
    tensors: BTreeMap<&'a str, Stored<'a>>,
}

/// A tensor as it lies in the file; most have one part.
#[derive(Debug)]
struct Stored<'a> {
    shape: Vec<usize>,
    parts: Vec<Array<'a>>,
}

impl<'a> Checkpoint<'a> {
    /// Finds the tensors of a pickled state dictionary.
    ///
    /// # Errors
    /// [`Error::Weights`] where the bytes are not a pickle or ask for more than plain data and arrays
    /// (see [`parse`]), where there is no dictionary of tensors, where there are several and none is
    /// called `model` or `state_dict`, where a tensor's data is not as long as its shape asks for, and where
    /// tensors share so much data that all of them are more than eight times as long as the file.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let pickle = parse(bytes)?;
        let root = pickle.root();
        if !matches!(root, Value::Dict(_)) {
            let found = match tensor(&pickle, root) {
                Some(array) => format!("a single tensor of shape {:?}", array.shape),
                None => pickle.describe(root),
            };
            return weights(format!(
                "the file holds {found}, expected a dictionary of tensors"
            ));
        }
        let tensors = state_dict(&pickle, root)?;
        let table = lookup(&pickle, tensors, CUT_TENSORS);
        let mut checkpoint = Self::collect(&pickle, tensors, bytes.len().saturating_mul(MOST_SHARED))?;
        if let Some(table) = table {
            checkpoint.join(&pickle, table, bytes.len())?;
        }
        Ok(checkpoint)
    }

    /// Takes the tensors of a dictionary, of which the data has `most` bytes at most.
    fn collect(pickle: &Pickle<'a>, dict: Value<'a>, most: usize) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        let mut bytes = 0usize;
        for (key, value) in latest(pickle.entries(dict)) {
            let Some(array) = tensor(pickle, value) else {
                continue;
            };
            let Value::Text(text) = key else {
                return weights(format!("a tensor's name is {}", pickle.describe(key)));
            };
            let Some(name) = text.as_str() else {
                return weights("a tensor's name is not UTF-8 of at most 4096 bytes");
            };
            // The same name may be written twice.
            let Entry::Vacant(entry) = tensors.entry(name) else {
                continue;
            };
            check_length(array).map_err(|e| e.within(format!("tensor {}", quoted(name))))?;
            bytes = bytes.saturating_add(match array.data {
                Bytes::Raw(data) | Bytes::Latin1(data) => data.len(),
            });
            if bytes > most {
                return weights(format!(
                    "the tensors share their data: all of them have more than {most} bytes, {MOST_SHARED} times the \
                     file's"
                ));
            }
            entry.insert(Stored {
                shape: array.shape.clone(),
                parts: vec![array.clone()],
            });
        }
        Ok(Self { tensors })
    }

    /// Joins the tensors that the table says were cut; `most` values at most.
    fn join(&mut self, pickle: &Pickle<'a>, table: Value<'a>, most: usize) -> Result<()> {
        // Apart from the parts, so that none of them is a part of another: each of the file's is taken once.
        let mut all = BTreeMap::new();
        for (key, about) in latest(pickle.entries(table)) {
            let Some(name) = text(key) else {
                return weights(format!("{CUT_TENSORS}: a name is {}", pickle.describe(key)));
            };
            let Entry::Vacant(entry) = all.entry(name) else {
                continue;
            };
            let joined = self
                .joined(pickle, about, most)
                .map_err(|e| e.within(format!("{CUT_TENSORS}, {}", quoted(name))))?;
            entry.insert(joined);
        }
        self.tensors.extend(all);
        Ok(())
    }

    fn joined(&mut self, pickle: &Pickle<'a>, about: Value<'a>, most: usize) -> Result<Stored<'a>> {
        let field = |name| lookup(pickle, about, name).map_or(&[][..], |value| pickle.items(value));
        let sizes = field("OriginShape")
            .iter()
            .take(MOST_DIMENSIONS + 1)
            .map(|&size| match size {
                Value::Int(size) => usize::try_from(size).ok(),
                _ => None,
            });
        let shape: Vec<usize> = sizes
            .collect::<Option<_>>()
            .filter(|shape: &Vec<usize>| shape.len() <= MOST_DIMENSIONS)
            .ok_or_else(|| Error::Weights("OriginShape is not a tuple of sizes".into()))?;
        let slices = field("slices");
        if slices.is_empty() {
            return weights("no parts are named");
        }
        let mut parts = Vec::new();
        let mut values = 0usize;
        for &slice in slices {
            let Some(name) = text(slice) else {
                return weights(format!("the name of a part is {}", pickle.describe(slice)));
            };
            let Some(part) = self.tensors.remove(name) else {
                return weights(format!("the part {} is missing", quoted(name)));
            };
            values = values.saturating_add(count(&part.shape).unwrap_or(usize::MAX));
            parts.extend(part.parts);
        }
        // Parts that share their data could ask for far more memory than the file has bytes.
        if count(&shape) != Some(values) || values > most {
            return weights(format!(
                "the parts hold {values} values, expected shape {shape:?}"
            ));
        }
        Ok(Stored { shape, parts })
    }
}

impl TensorSource for Checkpoint<'_> {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().map(|&name| name.into()).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|tensor| tensor.shape.clone())
    }

    fn read(&self, name: &str) -> Result<TensorData<'_>> {
        let read = || {
            let stored = self
                .tensors
                .get(name)
                .ok_or_else(|| Error::Weights("missing".into()))?;
            let values = match stored.parts.as_slice() {
                [array] => values(array)?,
                parts => {
                    let mut joined = Vec::with_capacity(count(&stored.shape).unwrap_or(0));
                    for part in parts {
                        joined.extend_from_slice(&values(part)?);
                    }
                    Cow::Owned(joined)
                }
            };
            let data = TensorData::F32(values);
            check_finite(&data)?;
            Ok(data)
        };
        read().map_err(|e: Error| e.within(format!("tensor {}", quoted(name))))
    }
}

/// The dictionary that holds the model: the one under a key of [`MODEL_KEYS`], or else this one, or
/// else the only one in it.
fn state_dict<'a>(pickle: &Pickle<'a>, root: Value<'a>) -> Result<Value<'a>> {
    // Scalars do not count: training writes its best score beside the model.
    let holds_tensors = |dict| {
        let mut arrays = pickle
            .entries(dict)
            .iter()
            .filter_map(|&(_, value)| tensor(pickle, value));
        arrays.any(|array| !array.shape.is_empty())
    };
    let mut inner = BTreeMap::new();
    // One dictionary may stand under many keys, and is looked through once.
    let mut seen = HashMap::new();
    for (key, value) in latest(pickle.entries(root)) {
        if let (Some(key), Value::Dict(id)) = (text(key), value)
            && *seen.entry(id).or_insert_with(|| holds_tensors(value))
        {
            inner.entry(key).or_insert(value);
        }
    }
    if let Some(&model) = MODEL_KEYS.iter().find_map(|key| inner.get(key)) {
        return Ok(model);
    }
    if holds_tensors(root) {
        return Ok(root);
    }
    let mut dicts = inner.values();
    match (dicts.next(), dicts.next()) {
        (Some(&dict), None) => Ok(dict),
        (None, _) => weights(format!(
            "the file holds {} and no tensor in it",
            pickle.describe(root)
        )),
        _ => {
            let keys: Vec<_> = inner.keys().take(8).map(|key| quoted(key)).collect();
            weights(format!(
                "the file holds several dictionaries of tensors ({}) and none is called \"model\"",
                keys.join(", ")
            ))
        }
    }
}

/// The array of a value that is one, or a pair of a name and one.
fn tensor<'p, 'a>(pickle: &'p Pickle<'a>, value: Value) -> Option<&'p Array<'a>> {
    match (value, pickle.items(value)) {
        (Value::Tuple(_), &[Value::Text(_), array]) => pickle.array(array),
        _ => pickle.array(value),
    }
}

fn text<'a>(value: Value<'a>) -> Option<&'a str> {
    match value {
        Value::Text(text) => text.as_str(),
        _ => None,
    }
}

/// The value under a key; where it was set twice, the later one.
fn lookup<'a>(pickle: &Pickle<'a>, dict: Value<'a>, key: &str) -> Option<Value<'a>> {
    let mut entries = pickle.entries(dict).iter().rev();
    entries
        .find(|(name, _)| matches!(name, Value::Text(text) if text.is(key)))
        .map(|&(_, value)| value)
}

/// Entries from the last one to the first. Those whose key is not only equal to that of a later one but
/// stands at the same place of the file are left out: a long key that is used again and again is looked at
/// once.
fn latest<'e, 'a>(
    entries: &'e [(Value<'a>, Value<'a>)],
) -> impl Iterator<Item = (Value<'a>, Value<'a>)> + use<'e, 'a> {
    let mut seen = HashSet::new();
    entries.iter().rev().copied().filter(move |(key, _)| match key {
        Value::Text(text) => seen.insert(text.place()),
        _ => true,
    })
}

/// The element types that become `f32`.
#[derive(Clone, Copy)]
enum Element {
    F16,
    F32,
    F64,
    Bf16,
    Bool,
    U8,
    I8,
    I16,
    I32,
    I64,
}

impl Element {
    fn find(code: &str) -> Option<Self> {
        Some(match code {
            "f2" => Self::F16,
            "f4" => Self::F32,
            "f8" => Self::F64,
            // Paddle has no unsigned 16 bit tensors: this is how it stores bfloat16.
            "u2" => Self::Bf16,
            "b1" => Self::Bool,
            "u1" => Self::U8,
            "i1" => Self::I8,
            "i2" => Self::I16,
            "i4" => Self::I32,
            "i8" => Self::I64,
            _ => return None,
        })
    }

    fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }
}

/// Whether an array's data is as long as its shape asks for. At protocol 2 this can only be said
/// exactly once the data is decoded, see [`values`]. Arrays of other types are left alone.
fn check_length(array: &Array) -> Result<()> {
    let Some(element) = Element::find(array.dtype.code) else {
        return Ok(());
    };
    let expected = count(&array.shape).and_then(|n| n.checked_mul(element.size()));
    let (fits, found) = match array.data {
        Bytes::Raw(bytes) => (expected == Some(bytes.len()), bytes.len()),
        Bytes::Latin1(text) => {
            let fits = expected.is_some_and(|n| n <= text.len() && text.len().div_ceil(2) <= n);
            (fits, text.len())
        }
    };
    if fits { Ok(()) } else { misfit(array, found) }
}

fn misfit<T>(array: &Array, found: usize) -> Result<T> {
    let Array { shape, dtype, .. } = array;
    weights(format!(
        "{found} bytes of data do not fit shape {shape:?} of element type {}",
        dtype.code
    ))
}

/// An array's values in row-major order: borrowed where they lie in the file as they are needed.
fn values<'a>(array: &Array<'a>) -> Result<Cow<'a, [f32]>> {
    let Some(element) = Element::find(array.dtype.code) else {
        return weights(format!(
            "the element type is {}, expected a float, an integer or a boolean",
            quoted(array.dtype.code)
        ));
    };
    if let (Element::F32, false, false, Bytes::Raw(bytes)) =
        (element, array.dtype.big_endian, array.fortran_order, array.data)
        && cfg!(target_endian = "little")
        && let Ok(values) = bytemuck::try_cast_slice(bytes)
    {
        return Ok(Cow::Borrowed(values));
    }
    let total = count(&array.shape).unwrap_or(0);
    let mut values = Vec::with_capacity(total);
    match array.data {
        Bytes::Raw(bytes) => convert(element, array.dtype.big_endian, bytes, &mut values),
        Bytes::Latin1(text) => {
            let mut decoder = Latin1::new(text);
            let mut length = 0;
            while let Some(block) = decoder.decode()? {
                length += block.len();
                convert(element, array.dtype.big_endian, block, &mut values);
            }
            if length != total * element.size() {
                return misfit(array, length);
            }
        }
    }
    if array.fortran_order {
        values = row_major(&values, &array.shape);
    }
    Ok(Cow::Owned(values))
}

/// Appends elements as `f32`.
fn convert(element: Element, big_endian: bool, bytes: &[u8], out: &mut Vec<f32>) {
    macro_rules! convert {
        ($type:ty, $to_f32:expr) => {
            if big_endian {
                out.extend(
                    bytes
                        .as_chunks()
                        .0
                        .iter()
                        .map(|&e| $to_f32(<$type>::from_be_bytes(e))),
                )
            } else {
                out.extend(
                    bytes
                        .as_chunks()
                        .0
                        .iter()
                        .map(|&e| $to_f32(<$type>::from_le_bytes(e))),
                )
            }
        };
    }
    match element {
        Element::F16 => convert!(f16, f16::to_f32),
        Element::F32 => convert!(f32, |x| x),
        Element::F64 => convert!(f64, |x| x as f32),
        Element::Bf16 => convert!(bf16, bf16::to_f32),
        Element::Bool => convert!(u8, |x| f32::from(x != 0)),
        Element::U8 => convert!(u8, f32::from),
        Element::I8 => convert!(i8, f32::from),
        Element::I16 => convert!(i16, f32::from),
        Element::I32 => convert!(i32, |x| x as f32),
        Element::I64 => convert!(i64, |x| x as f32),
    }
}

/// Values of which the first index runs fastest, with the last index running fastest.
fn row_major(values: &[f32], shape: &[usize]) -> Vec<f32> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = 1;
    for &size in shape {
        strides.push(stride);
        stride *= size;
    }
    let mut index = vec![0; shape.len()];
    let mut from = 0;
    let mut out = Vec::with_capacity(values.len());
    for _ in 0..values.len() {
        out.push(values[from]);
        // The next index, as an odometer counts.
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            from += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            from -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    out
}

/// Turns UTF-8 of code points below 256 back into bytes, block by block, so that no decoded copy of a
/// whole tensor is needed beside its values.
struct Latin1<'a> {
    rest: &'a [u8],
    /// The byte before `rest`.
    previous: u8,
    block: [u8; 1 << 13],
    /// How many bytes of `block` are decoded, and how many of these were given out.
    filled: usize,
    given: usize,
}

impl<'a> Latin1<'a> {
    /// Every element type's size divides it.
    const ALIGNMENT: usize = 8;

    fn new(text: &'a [u8]) -> Self {
        Self {
            rest: text,
            previous: 0,
            block: [0; _],
            filled: 0,
            given: 0,
        }
    }

    /// The next bytes: a multiple of [`Self::ALIGNMENT`] of them, or at the end what is left.
    fn decode(&mut self) -> Result<Option<&[u8]>> {
        /// Bytes of text at a time.
        const CHUNK: usize = 64;
        self.block.copy_within(self.given..self.filled, 0);
        self.filled -= self.given;
        let mut invalid = false;
        while !self.rest.is_empty()
            && let Some(out) = self.block[self.filled..].first_chunk_mut::<CHUNK>()
        {
            let (chunk, rest) = self.rest.split_at(self.rest.len().min(CHUNK));
            self.rest = rest;
            let mut text = [0; 1 + CHUNK];
            text[0] = self.previous;
            text[1..=chunk.len()].copy_from_slice(chunk);
            self.previous = text[chunk.len()];
            // In two steps: this one runs on whole vectors,
            let mut values = [0; CHUNK];
            let mut ends = [0; CHUNK];
            for i in 0..CHUNK {
                let (previous, byte) = (text[i], text[i + 1]);
                let continues = byte & 0xc0 == 0x80;
                values[i] = if continues {
                    previous << 6 | byte & 0x3f
                } else {
                    byte
                };
                ends[i] = u8::from(byte < 0xc0);
                invalid |= (previous >= 0xc0) != continues;
                invalid |= byte >= 0xc0 && byte & 0xfe != 0xc2;
            }
            // and here every byte is written but only the last one of a code point stays, so that no
            // branch depends on the data, which is close to random.
            let mut length = 0;
            for i in 0..chunk.len() {
                out[length % CHUNK] = values[i];
                length += usize::from(ends[i]);
            }
            self.filled += length;
        }
        self.given = self.filled;
        if self.rest.is_empty() {
            invalid |= self.previous >= 0xc0;
        } else {
            self.given -= self.filled % Self::ALIGNMENT;
        }
        if invalid {
            return weights("the data is not text of code points below 256");
        }
        Ok((self.given > 0).then_some(&self.block[..self.given]))
    }
}
