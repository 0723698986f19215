use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use bytemuck::Pod;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::quantised::{Packings, SCALE, Stored, packings, whole};
use super::source::no_safetensors;
use super::{TensorData, TensorSource, check, count, quoted, weights};
use crate::{Error, Result, json};

/// A longer header is none: those of the largest towers have 60 kB.
const LONGEST_HEADER: usize = 4 << 20;

/// The tensors of a safetensors file that arrives in pieces, front to back, each held from when it is
/// complete until it is taken.
///
/// ```
/// use ernie_vil::weights::{TensorSource, TensorStream};
///
/// let header = br#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
/// let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
/// bytes.extend(header);
/// bytes.extend(1.5f32.to_le_bytes());
///
/// let mut stream = TensorStream::new(vec![("t".into(), vec![2])]);
/// stream.feed(&bytes)?;
/// assert!(!stream.is_complete("t"));
/// stream.feed(&2.5f32.to_le_bytes())?;
/// assert!(stream.is_complete("t"));
/// assert_eq!(stream.take("t")?.len(), 2);
/// stream.finish()?;
/// # Ok::<(), ernie_vil::Error>(())
/// ```
#[derive(Debug)]
pub struct TensorStream {
    expected: Vec<(String, Vec<usize>)>,
    /// The length and the JSON text, as far as they have arrived; empty once they were read.
    header: Vec<u8>,
    /// The tensors to come, the next one last.
    coming: Vec<Coming>,
    has_header: bool,
    shapes: BTreeMap<String, Vec<usize>>,
    packings: Packings,
    /// The codes of quantised tensors whose scales have not arrived, or the other way round.
    halves: HashMap<String, Stored<'static>>,
    complete: RefCell<HashMap<String, TensorData<'static>>>,
}

/// A tensor whose bytes are arriving.
#[derive(Debug)]
struct Coming {
    name: String,
    bytes: usize,
    dtype: Dtype,
    /// Whether anybody wants it.
    wanted: bool,
    filled: usize,
    values: Values,
}

#[derive(Debug)]
enum Values {
    None,
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    I8(Vec<i8>),
    U8(Vec<u8>),
}

impl TensorStream {
    /// Waits for a file with these tensors; others are passed over.
    pub fn new(expected: Vec<(String, Vec<usize>)>) -> Self {
        Self {
            expected,
            header: Vec::new(),
            coming: Vec::new(),
            has_header: false,
            shapes: BTreeMap::new(),
            packings: Packings::new(),
            halves: HashMap::new(),
            complete: RefCell::default(),
        }
    }

    /// Takes the next bytes of the file.
    ///
    /// # Errors
    /// [`Error::Weights`] where they are not those of a safetensors file, as [`check`] where its tensors
    /// are not the expected ones, where a value is not finite, and where bytes follow behind the end.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<()> {
        if !self.has_header {
            bytes = self.feed_header(bytes)?;
            if !self.has_header {
                return Ok(());
            }
        }
        while let Some(tensor) = self.coming.last_mut() {
            let (now, later) = bytes.split_at(bytes.len().min(tensor.bytes - tensor.filled));
            tensor.fill(now);
            bytes = later;
            if tensor.filled < tensor.bytes {
                return Ok(());
            }
            let tensor = self.coming.pop().expect("there is a last one");
            if let Some((name, stored)) = tensor.finish()? {
                self.arrived(name, stored)?;
            }
        }
        if bytes.is_empty() {
            return Ok(());
        }
        weights(format!("{} bytes behind the last tensor", bytes.len()))
    }

    fn arrived(&mut self, name: String, stored: Stored<'static>) -> Result<()> {
        let whole = whole(&name, &self.packings);
        let data = match (self.packings.get(whole), stored) {
            (None, stored) => stored.without_scales(),
            (Some(packing), stored) => {
                let other = match whole == name {
                    true => format!("{name}{SCALE}"),
                    false => whole.to_owned(),
                };
                match self.halves.remove(&other) {
                    None => {
                        self.halves.insert(name, stored);
                        return Ok(());
                    }
                    Some(codes) if whole != name => packing.join(codes, stored),
                    Some(scales) => packing.join(stored, scales),
                }
                .map(TensorData::Quantised)
            }
        };
        let data = data.map_err(|error| error.within(format!("tensor {}", quoted(whole))))?;
        self.complete.get_mut().insert(whole.to_owned(), data);
        Ok(())
    }

    /// Whether the tensor has arrived and was not taken yet.
    pub fn is_complete(&self, name: &str) -> bool {
        self.complete.borrow().contains_key(name)
    }

    /// Drops tensors that are no longer needed.
    pub fn discard(&mut self, names: &[impl AsRef<str>]) {
        for name in names {
            self.complete.get_mut().remove(name.as_ref());
        }
    }

    /// Checks that the file has arrived whole.
    ///
    /// # Errors
    /// [`Error::Weights`] names the tensor at which it breaks off.
    pub fn finish(&self) -> Result<()> {
        match self.coming.last() {
            _ if !self.has_header => weights("the file breaks off in its header"),
            None => Ok(()),
            Some(tensor) => weights(format!(
                "the file breaks off in tensor {}, {} of its {} bytes are there",
                quoted(&tensor.name),
                tensor.filled,
                tensor.bytes
            )),
        }
    }

    /// Collects the header; returns what comes behind it.
    fn feed_header<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8]> {
        let mut rest = bytes;
        let mut collect = |header: &mut Vec<u8>, length: usize| {
            let (now, later) = rest.split_at(rest.len().min(length - header.len()));
            header.extend_from_slice(now);
            rest = later;
            header.len() == length
        };
        if self.header.len() < 8 && !collect(&mut self.header, 8) {
            return Ok(rest);
        }
        let length = u64::from_le_bytes(*self.header.first_chunk().expect("eight bytes are there"));
        if length > LONGEST_HEADER as u64 {
            let start: Vec<_> = [&self.header, rest].concat();
            let problem = format!("a header of {length} bytes, expected at most {LONGEST_HEADER}");
            return Err(no_safetensors(&start, problem));
        }
        if collect(&mut self.header, 8 + length as usize) {
            self.read_header()?;
            self.has_header = true;
            self.header = Vec::new();
        }
        Ok(rest)
    }

    fn read_header(&mut self) -> Result<()> {
        let invalid = |problem: String| Error::Weights(format!("not a safetensors file: {problem}"));
        let metadata: Metadata = json::from_bytes(&self.header[8..]).map_err(invalid)?;
        self.packings = packings(&metadata)?;
        let expected: HashSet<_> = self.expected.iter().map(|(name, _)| name.as_str()).collect();
        let mut end = 0;
        for name in metadata.offset_keys() {
            let info = metadata.info(&name).expect("the name comes from the header");
            let bits = count(&info.shape).and_then(|n| n.checked_mul(info.dtype.bitsize()));
            let (start, next) = info.data_offsets;
            if start != end || next < start || Some(next - start) != bits.map(|bits| bits / 8) {
                let shape = &info.shape;
                return Err(invalid(format!(
                    "tensor {} of {shape:?} {} has the bytes {start} to {next} behind {end}",
                    quoted(&name),
                    info.dtype,
                )));
            }
            end = next;
            let whole = whole(&name, &self.packings);
            if whole == name {
                let packing = self.packings.get(&name);
                let shape = packing.map_or(&info.shape, |packing| &packing.shape);
                self.shapes.insert(name.clone(), shape.clone());
            }
            self.coming.push(Coming {
                wanted: expected.contains(whole),
                bytes: next - start,
                dtype: info.dtype,
                filled: 0,
                values: Values::None,
                name,
            });
        }
        self.coming.reverse();
        check(self, &self.expected)?;
        Ok(())
    }
}

impl Coming {
    /// Takes bytes, no more than are missing.
    fn fill(&mut self, bytes: &[u8]) {
        if self.wanted && self.filled == 0 {
            // As many as the shape says, by the header's own check; the shape is one of those expected.
            self.values = match self.dtype {
                Dtype::F32 => Values::F32(vec![0.0; self.bytes / 4]),
                Dtype::F16 => Values::F16(vec![f16::ZERO; self.bytes / 2]),
                Dtype::BF16 => Values::Bf16(vec![bf16::ZERO; self.bytes / 2]),
                Dtype::I8 => Values::I8(vec![0; self.bytes]),
                Dtype::U8 => Values::U8(vec![0; self.bytes]),
                _ => Values::None,
            };
        }
        let at = self.filled..self.filled + bytes.len();
        match &mut self.values {
            Values::None => {}
            Values::F32(values) => bytemuck::cast_slice_mut::<_, u8>(values)[at].copy_from_slice(bytes),
            Values::F16(values) => bytemuck::cast_slice_mut::<_, u8>(values)[at].copy_from_slice(bytes),
            Values::Bf16(values) => bytemuck::cast_slice_mut::<_, u8>(values)[at].copy_from_slice(bytes),
            Values::I8(values) => bytemuck::cast_slice_mut::<_, u8>(values)[at].copy_from_slice(bytes),
            Values::U8(values) => values[at].copy_from_slice(bytes),
        }
        self.filled += bytes.len();
    }

    fn finish(self) -> Result<Option<(String, Stored<'static>)>> {
        if !self.wanted {
            return Ok(None);
        }
        let stored = match self.values {
            Values::F32(values) => Stored::Data(TensorData::F32(native_endian(values).into())),
            Values::F16(values) => Stored::Data(TensorData::F16(native_endian(values).into())),
            Values::Bf16(values) => {
                let values = native_endian(values);
                let values = values.into_iter().map(bf16::to_f32).collect();
                Stored::Data(TensorData::F32(values))
            }
            Values::I8(codes) => Stored::I8(codes.into()),
            Values::U8(codes) => Stored::U8(codes.into()),
            Values::None => {
                return weights(format!(
                    "tensor {}: the element type is {}, expected F32, F16 or BF16",
                    quoted(&self.name),
                    self.dtype
                ));
            }
        };
        Ok(Some((self.name, stored)))
    }
}

/// Values that were filled with little-endian bytes.
fn native_endian<T: Pod>(mut values: Vec<T>) -> Vec<T> {
    if cfg!(target_endian = "big") {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        bytes.chunks_exact_mut(size_of::<T>()).for_each(<[u8]>::reverse);
    }
    values
}

impl TensorSource for TensorStream {
    fn names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shapes.get(name).cloned()
    }

    /// A copy of a tensor that is complete.
    fn read(&self, name: &str) -> Result<TensorData<'_>> {
        match self.complete.borrow().get(name) {
            Some(data) => Ok(data.clone()),
            None => weights(format!("tensor {} has not arrived yet", quoted(name))),
        }
    }

    fn take(&self, name: &str) -> Result<TensorData<'_>> {
        match self.complete.borrow_mut().remove(name) {
            Some(data) => Ok(data),
            None => weights(format!("tensor {} has not arrived yet", quoted(name))),
        }
    }
}
