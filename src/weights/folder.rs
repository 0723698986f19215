use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Write as _};
use std::io::{self, Write};

use bytemuck::NoUninit;
use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::quantised::{METADATA, Packing, Part};
use super::{
    Bits, Codes, TensorData, TensorSource, check, count, image_tensors, quoted, text_tensors, weights,
};
use crate::kernels::{PackedMatrix, PackedValues};
use crate::{ErnieConfig, Error, ImageConfig, Preprocessing, Result, json};

/// What a model folder holds beside its manifest, so that damaged files are told from sound ones.
///
/// ```
/// use ernie_vil::weights::{Manifest, ManifestFile};
///
/// let file = ManifestFile { name: "vocab.txt".into(), size: 0, sha256: "0".repeat(64), shards: Vec::new() };
/// let manifest = Manifest { format: Manifest::FORMAT, files: vec![file] };
/// assert_eq!(Manifest::from_json(manifest.to_json().as_bytes())?, manifest);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this layout; 1.
    pub format: u32,
    /// The files.
    pub files: Vec<ManifestFile>,
}

/// A file of a model folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Its name, without a path.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of its bytes, as 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Where it was cut: the files that are there in its place, and make it up behind one another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<Shard>,
}

/// A piece of a file of a model folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its name, without a path.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of its bytes, as 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl ManifestFile {
    /// The files that lie in the folder for this one, in order: its shards, or itself.
    pub fn stored(&self) -> Vec<Shard> {
        if !self.shards.is_empty() {
            return self.shards.clone();
        }
        vec![Shard {
            name: self.name.clone(),
            size: self.size,
            sha256: self.sha256.clone(),
        }]
    }
}

impl Manifest {
    /// The layout version that this library writes and reads.
    pub const FORMAT: u32 = 1;
    /// No manifest may list more files, shards included.
    const MOST_FILES: usize = 1024;

    /// The file of this name.
    pub fn file(&self, name: &str) -> Option<&ManifestFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// Reads `manifest.json` and checks it.
    ///
    /// # Errors
    /// [`Error::Config`] where it is not JSON of this layout, lists more than 1024 files or one twice, has a
    /// name that leaves the folder or a sum that is not one, or where shards do not have their file's size.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let invalid = |message: String| Err(Error::Config(format!("manifest: {message}")));
        let manifest: Self = match json::from_bytes(bytes) {
            Ok(manifest) => manifest,
            Err(error) => return invalid(error),
        };
        if manifest.format != Self::FORMAT {
            return invalid(format!(
                "format is {}, expected {}",
                manifest.format,
                Self::FORMAT
            ));
        }
        let files = manifest.files.iter().map(|file| (&file.name, &file.sha256));
        let shards = manifest.files.iter().flat_map(|file| &file.shards);
        let all: Vec<_> = files
            .chain(shards.map(|shard| (&shard.name, &shard.sha256)))
            .collect();
        if all.len() > Self::MOST_FILES {
            return invalid(format!(
                "{} files, expected at most {}",
                all.len(),
                Self::MOST_FILES
            ));
        }
        let mut names = HashSet::new();
        for (name, sha256) in all {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if !name.chars().all(plain) || name.is_empty() || name.starts_with('.') || name.len() > 128 {
                return invalid(format!(
                    "the file name {}, expected letters, digits, '.', '_' and '-'",
                    quoted(name)
                ));
            }
            if !names.insert(name) {
                return invalid(format!("the file {name} is listed twice"));
            }
            if sha256.len() != 64 || !sha256.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
                return invalid(format!(
                    "sha256 of {name}: expected 64 lower-case hexadecimal digits"
                ));
            }
        }
        for file in &manifest.files {
            let sizes = file.shards.iter().map(|shard| shard.size);
            let sum = sizes.fold(0u64, u64::saturating_add);
            if !file.shards.is_empty() && sum != file.size {
                return invalid(format!(
                    "the shards of {} have {sum} bytes, expected {}, the file's",
                    file.name, file.size
                ));
            }
        }
        Ok(manifest)
    }

    /// The text of `manifest.json`.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("plain data serialises");
        json.push('\n');
        json
    }
}

/// Passes on what is written through it and sums it up for a [`ManifestFile`].
///
/// ```
/// use std::io::Write;
///
/// let mut writer = ernie_vil::weights::HashingWriter::new(Vec::new());
/// writer.write_all(b"abc")?;
/// let (bytes, file) = writer.finish("letters.txt");
/// assert_eq!((bytes.as_slice(), file.size), (&b"abc"[..], 3));
/// assert!(file.sha256.starts_with("ba7816bf"));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct HashingWriter<W> {
    inner: W,
    size: u64,
    sha256: Sha256,
}

impl<W: Write> HashingWriter<W> {
    /// Starts with nothing written.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            size: 0,
            sha256: Sha256::new(),
        }
    }

    /// The writer, and what went through, as the manifest has it for a file of this name.
    pub fn finish(self, name: impl Into<String>) -> (W, ManifestFile) {
        let file = ManifestFile {
            name: name.into(),
            size: self.size,
            sha256: hex(self.sha256),
            shards: Vec::new(),
        };
        (self.inner, file)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.size += written as u64;
        self.sha256.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hex(sha256: Sha256) -> String {
    sha256.finalize().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string can be written to");
        text
    })
}

/// How weights are stored in a model folder, or kept where a tower computes.
///
/// ```
/// use ernie_vil::weights::{Bits, Dtype};
/// assert_eq!(Dtype::Quantised(Bits::Int8).to_string(), "int8");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// Single precision, as the checkpoint has them.
    F32,
    /// Half precision: half the size, rounded to the nearest value, ties to even.
    F16,
    /// Matrices and convolutions in eight bits or in four ([`quantise_int8`](super::quantise_int8),
    /// [`quantise_int4`](super::quantise_int4)), everything else in single precision.
    Quantised(Bits),
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Quantised(Bits::Int8) => "int8",
            Self::Quantised(Bits::Int4) => "int4",
        })
    }
}

impl PackedMatrix {
    /// Returns how the matrix is kept.
    pub(crate) fn dtype(&self) -> Dtype {
        match self.values() {
            PackedValues::F32 => Dtype::F32,
            PackedValues::Int8 => Dtype::Quantised(Bits::Int8),
            PackedValues::Int4 => Dtype::Quantised(Bits::Int4),
        }
    }
}

/// How a tensor is stored.
enum Form {
    F32,
    F16,
    Quantised(Packing),
}

impl Form {
    fn of(name: &str, shape: &[usize], dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Quantised(bits) => match Packing::of(name, shape, bits) {
                Some(packing) => Self::Quantised(packing),
                None => Self::F32,
            },
        }
    }

    /// What it is called in the line that goes into the fingerprint.
    fn name(&self) -> serde_json::Value {
        match self {
            Self::F32 => "F32".into(),
            Self::F16 => "F16".into(),
            Self::Quantised(packing) => serde_json::to_value(packing.bits()).expect("plain data serialises"),
        }
    }

    /// The tensors of the file that it becomes.
    fn parts(&self, name: &str, shape: &[usize]) -> Result<Vec<Part>> {
        let part = |dtype, size| Part {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            size,
        };
        Ok(match self {
            Self::F32 => vec![part("F32", 4)],
            Self::F16 => vec![part("F16", 2)],
            Self::Quantised(packing) => packing.parts(name)?.into(),
        })
    }
}

/// Writes tensors as a safetensors file, one at a time, so that no more than one is held in memory.
/// They are laid out by name, and the first one's data starts at a multiple of 64 bytes.
///
/// # Errors
/// [`Error::Weights`] as [`check`] where `source` does not fit `expected`, before anything is
/// written; as [`TensorSource::read`] where a value is not finite; where a value is too large for
/// half precision. [`Error::Io`] where `out` fails.
pub fn write_safetensors(
    out: &mut impl Write,
    source: &dyn TensorSource,
    expected: &[(String, Vec<usize>)],
    dtype: Dtype,
) -> Result<()> {
    check(source, expected)?;
    write_tensors(out, source, expected, dtype, |_| {})
}

/// Writes what [`check`] found to fit. `observe` sees every byte of what stands for the values: see
/// [`Converted::fingerprint`].
fn write_tensors(
    out: &mut impl Write,
    source: &dyn TensorSource,
    expected: &[(String, Vec<usize>)],
    dtype: Dtype,
    mut observe: impl FnMut(&[u8]),
) -> Result<()> {
    let mut expected: Vec<_> = expected.iter().collect();
    expected.sort();
    expected.dedup();
    let expected = expected
        .into_iter()
        .map(|(name, shape)| (name, shape, Form::of(name, shape, dtype)));
    let expected: Vec<_> = expected.collect();
    out.write_all(&header(&expected)?)?;
    for (name, shape, form) in expected {
        let entry = serde_json::json!([name, form.name(), shape]).to_string();
        observe(entry.as_bytes());
        observe(b"\n");
        let data = source.read(name)?;
        if Some(data.len()) != count(shape) {
            return weights(format!(
                "tensor {}: {} values, expected shape {shape:?}",
                quoted(name),
                data.len()
            ));
        }
        write_values(&data, &form, |bytes| {
            observe(bytes);
            Ok(out.write_all(bytes)?)
        })
        .map_err(|e| e.within(format!("tensor {}", quoted(name))))?;
    }
    Ok(())
}

/// Everything before the data: the length of the JSON text in 8 bytes, and that text, filled up with
/// spaces.
fn header(tensors: &[(&String, &Vec<usize>, Form)]) -> Result<Vec<u8>> {
    const ALIGNMENT: usize = 64;
    let mut entries = BTreeMap::new();
    let mut quantised = BTreeMap::new();
    let mut offset = 0usize;
    for (name, shape, form) in tensors {
        if let Form::Quantised(packing) = form {
            quantised.insert(name, packing);
        }
        for part in form.parts(name, shape)? {
            let (name, shape) = (part.name, part.shape);
            let end = count(&shape)
                .and_then(|n| n.checked_mul(part.size))
                .and_then(|size| offset.checked_add(size))
                .ok_or_else(|| Error::Weights(format!("tensor {}: {shape:?} is too large", quoted(&name))))?;
            let entry =
                serde_json::json!({ "dtype": part.dtype, "shape": shape, "data_offsets": [offset, end] });
            entries.insert(name, entry);
            offset = end;
        }
    }
    if !quantised.is_empty() {
        let list = serde_json::to_string(&quantised).expect("plain data serialises");
        entries.insert("__metadata__".into(), serde_json::json!({ (METADATA): list }));
    }
    let mut header = vec![0; 8];
    serde_json::to_writer(&mut header, &entries).expect("plain data serialises");
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    let length = (header.len() - 8) as u64;
    header[..8].copy_from_slice(&length.to_le_bytes());
    Ok(header)
}

/// Gives the values as little-endian bytes of a type, piece by piece.
fn write_values(data: &TensorData, form: &Form, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    /// Values at a time: their bytes stay in the cache while they are converted, hashed and written.
    const PIECE: usize = 1 << 14;
    match (data, form) {
        (data, Form::Quantised(packing)) => match packing.quantise(data)?.codes() {
            Codes::Int8(codes, scales) => {
                write(bytemuck::cast_slice(codes))?;
                write(&little_endian(scales))
            }
            Codes::Int4(codes, scales) => {
                write(codes)?;
                write(&little_endian(scales))
            }
        },
        (TensorData::Quantised(matrix), form) => {
            write_values(&TensorData::F32(matrix.to_f32().into()), form, write)
        }
        (TensorData::F32(values), Form::F32) => values
            .chunks(PIECE)
            .try_for_each(|piece| write(&little_endian(piece))),
        (TensorData::F16(values), Form::F16) => values
            .chunks(PIECE)
            .try_for_each(|piece| write(&little_endian(piece))),
        (TensorData::F16(values), Form::F32) => {
            let mut converted = vec![0.0; PIECE];
            values.chunks(PIECE).try_for_each(|piece| {
                let converted = &mut converted[..piece.len()];
                piece.convert_to_f32_slice(converted);
                write(&little_endian(converted))
            })
        }
        (TensorData::F32(values), Form::F16) => {
            let mut converted = vec![f16::ZERO; PIECE];
            values.chunks(PIECE).try_for_each(|piece| {
                let converted = &mut converted[..piece.len()];
                converted.convert_from_f32_slice(piece);
                if let Some(at) = converted.iter().position(|x| x.is_infinite()) {
                    return weights(format!("{} is too large for half precision", piece[at]));
                }
                write(&little_endian(converted))
            })
        }
    }
}

fn little_endian<T: NoUninit>(values: &[T]) -> Cow<'_, [u8]> {
    let mut bytes = Cow::Borrowed(bytemuck::cast_slice(values));
    if cfg!(target_endian = "big") {
        bytes
            .to_mut()
            .chunks_mut(size_of::<T>())
            .for_each(<[u8]>::reverse);
    }
    bytes
}

/// What [`convert`] has to tell about the weights that it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// The weights' fingerprint: vectors are comparable only where it is the same.
    ///
    /// It is the SHA-256, as 64 lower-case hexadecimal digits, of these in turn: the lines `ernie-vil weights
    /// 1`, the image tower's sizes, the text tower's sizes and the preprocessing, the last three as JSON with
    /// the keys of `config.json` in its order; then the tensors of the image file and those of the text file,
    /// each file's by name, every one as a line of JSON `["name","F32",[sizes]]` followed by its values as
    /// they stand in the file; a quantised one has `"int8"` or `"int4"` there, and its scales behind its
    /// codes. A line ends in one LF. So half and single precision give different fingerprints, as their
    /// vectors differ.
    pub fingerprint: String,
    /// Names of the source's tensors that inference does not use, sorted.
    pub extra: Vec<String>,
}

/// Writes both towers' weights as the safetensors files of a model folder, one tensor at a time, and
/// takes their fingerprint on the way.
///
/// # Errors
/// As [`write_safetensors`], and [`Error::Config`] where a configuration is not valid. Nothing is
/// written before all names and shapes were checked.
pub fn convert(
    source: &dyn TensorSource,
    image: impl Into<ImageConfig>,
    text: &ErnieConfig,
    preprocessing: Preprocessing,
    dtype: Dtype,
    image_out: &mut impl Write,
    text_out: &mut impl Write,
) -> Result<Converted> {
    let image = image.into();
    image.validate()?;
    text.validate()?;
    let image_expected = image_tensors(&image);
    let text_expected = text_tensors(text);
    let extra = check(source, &[image_expected.as_slice(), &text_expected].concat())?;

    let mut fingerprint = Sha256::new();
    let settings = [
        serde_json::to_string(&image),
        serde_json::to_string(text),
        serde_json::to_string(&preprocessing),
    ];
    fingerprint.update("ernie-vil weights 1\n");
    for line in settings {
        fingerprint.update(line.expect("plain data serialises"));
        fingerprint.update("\n");
    }
    write_tensors(image_out, source, &image_expected, dtype, |bytes| {
        fingerprint.update(bytes)
    })?;
    write_tensors(text_out, source, &text_expected, dtype, |bytes| {
        fingerprint.update(bytes)
    })?;
    Ok(Converted {
        fingerprint: hex(fingerprint),
        extra,
    })
}
