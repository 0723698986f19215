//! Embeddings in the safetensors format: eight bytes with the header's length, a JSON header, the
//! tensors.

use std::collections::{BTreeMap, HashMap};
use std::io::{Seek, SeekFrom, Write};

use serde::{Deserialize, Serialize};

use super::{Embeddings, Pairs, from_le_bytes, push_le_bytes};
use crate::{Error, Result, json};

/// What the header's metadata says under `format`.
const FORMAT: &str = "ernie-vil embeddings 1";
/// Headers of these files take a few hundred bytes and the fingerprint.
const LONGEST_HEADER: usize = 1 << 20;

/// Writes embeddings as safetensors, batch by batch.
///
/// The file has up to three tensors: `text` F32 `[rows, dimensions]`, `image` F32
/// `[rows, dimensions]`, and `ids` U8 `[bytes]`, a JSON list of one string for each row. The
/// metadata has `format`, and `fingerprint` where the model's is given. In Python:
///
/// ```text
/// tensors = safetensors.numpy.load_file("embeddings.safetensors")
/// ids = json.loads(tensors["ids"].tobytes())
/// ```
///
/// Only the ids are held in memory. The header comes last, so a file that broke off is not readable.
///
/// ```
/// use std::io::Cursor;
/// use ernie_vil::vectors::{SafetensorsWriter, read_safetensors};
/// let mut writer = SafetensorsWriter::new(Cursor::new(Vec::new()), 2, Some(2), None, None)?;
/// writer.write(&[1.0, 0.0, 0.0, 1.0], &[], &["cat", "dog"])?;
/// let file = writer.finish()?.into_inner();
/// let read = read_safetensors(&file)?;
/// assert_eq!(read.ids.as_deref(), Some(&["cat".to_string(), "dog".to_string()][..]));
/// assert_eq!(read.text.unwrap().row(1), [0.0, 1.0]);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
#[derive(Debug)]
pub struct SafetensorsWriter<W> {
    writer: W,
    rows: usize,
    text: Option<usize>,
    image: Option<usize>,
    fingerprint: Option<String>,
    /// Position in `writer` of the file's start.
    start: u64,
    /// Bytes kept free for the length and the header.
    reserved: usize,
    rows_done: usize,
    /// The JSON list of ids so far, without its last bracket.
    ids: Vec<u8>,
}

impl<W: Write + Seek> SafetensorsWriter<W> {
    /// Starts a file of `rows` rows at the writer's position; `text` and `image` are the two sides'
    /// dimensions, where the file has them.
    ///
    /// # Errors
    /// [`Error::Vectors`] where there is neither side, a side has no dimensions or the values are too
    /// many to count, [`Error::Io`] from the writer.
    pub fn new(
        mut writer: W,
        rows: usize,
        text: Option<usize>,
        image: Option<usize>,
        fingerprint: Option<&str>,
    ) -> Result<Self> {
        let row_bytes = text
            .unwrap_or(0)
            .checked_add(image.unwrap_or(0))
            .and_then(|values| values.checked_mul(4));
        if row_bytes
            .and_then(|bytes| bytes.checked_mul(rows))
            .is_none_or(|bytes| bytes > isize::MAX as usize)
            || [text, image].contains(&Some(0))
            || (text, image) == (None, None)
        {
            return Err(Error::Vectors(format!(
                "{rows} rows of {text:?} text and {image:?} image dimensions cannot be written"
            )));
        }
        let start = writer.stream_position()?;
        let mut this = Self {
            writer,
            rows,
            text,
            image,
            fingerprint: fingerprint.map(str::to_owned),
            start,
            reserved: 0,
            rows_done: 0,
            ids: b"[".to_vec(),
        };
        // No list of ids makes the header longer.
        this.reserved = this.header(isize::MAX as usize)?.len();
        this.writer.write_all(&vec![0; this.reserved])?;
        Ok(this)
    }

    /// Writes the next rows: their text values, image values (empty for a side that the file does
    /// not have) and ids.
    ///
    /// # Errors
    /// [`Error::Vectors`] where the three do not belong to the same number of rows or are more rows
    /// than were announced, [`Error::Io`] from the writer.
    pub fn write(&mut self, text: &[f32], image: &[f32], ids: &[impl AsRef<str>]) -> Result<()> {
        let rows = ids.len();
        let left = self.rows - self.rows_done;
        let values = |side: Option<usize>| rows.checked_mul(side.unwrap_or(0));
        if rows > left || values(self.text) != Some(text.len()) || values(self.image) != Some(image.len()) {
            return Err(Error::Vectors(format!(
                "{} text values, {} image values and {rows} ids, expected the same number of rows in each and at most {left}",
                text.len(),
                image.len()
            )));
        }
        let mut bytes = Vec::new();
        let mut tensor = self.start + self.reserved as u64;
        for (dimensions, values) in [(self.text, text), (self.image, image)] {
            let row = dimensions.unwrap_or(0) as u64 * 4;
            if !values.is_empty() {
                bytes.clear();
                push_le_bytes(&mut bytes, values);
                self.writer
                    .seek(SeekFrom::Start(tensor + self.rows_done as u64 * row))?;
                self.writer.write_all(&bytes)?;
            }
            tensor += self.rows as u64 * row;
        }
        for id in ids {
            push_id(&mut self.ids, id.as_ref());
        }
        self.rows_done += rows;
        Ok(())
    }

    /// Writes the ids and the header, and hands the writer back, at the file's end.
    ///
    /// # Errors
    /// [`Error::Vectors`] where rows are missing, [`Error::Io`] from the writer.
    pub fn finish(mut self) -> Result<W> {
        if self.rows_done < self.rows {
            return Err(Error::Vectors(format!(
                "{} rows were written, expected {}",
                self.rows_done, self.rows
            )));
        }
        self.ids.push(b']');
        let values = self.rows * (self.text.unwrap_or(0) + self.image.unwrap_or(0));
        let ids_at = self.start + (self.reserved + values * 4) as u64;
        self.writer.seek(SeekFrom::Start(ids_at))?;
        self.writer.write_all(&self.ids)?;
        let mut header = self.header(self.ids.len())?;
        pad_header(&mut header, self.reserved);
        self.writer.seek(SeekFrom::Start(self.start))?;
        self.writer.write_all(&header)?;
        self.writer
            .seek(SeekFrom::Start(ids_at + self.ids.len() as u64))?;
        self.writer.flush()?;
        Ok(self.writer)
    }

    fn header(&self, ids: usize) -> Result<Vec<u8>> {
        let sides = [("text", self.text), ("image", self.image)];
        let matrices = sides.into_iter().filter_map(|(name, side)| {
            Some(Matrix {
                name,
                dtype: "F32",
                shape: [self.rows, side?],
            })
        });
        let matrices: Vec<Matrix<'_>> = matrices.collect();
        let mut metadata = vec![("format", FORMAT)];
        metadata.extend(
            self.fingerprint
                .as_deref()
                .map(|fingerprint| ("fingerprint", fingerprint)),
        );
        header(&matrices, ids, &metadata).map_err(Error::Vectors)
    }
}

/// What a safetensors file of embeddings holds.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingFile {
    /// The captions' embeddings, where the file has them.
    pub text: Option<Embeddings>,
    /// The images' embeddings, where the file has them.
    pub image: Option<Embeddings>,
    /// One id for each row, where the file has them.
    pub ids: Option<Vec<String>>,
    /// Fingerprint of the model that made the embeddings, where it is known.
    pub fingerprint: Option<String>,
}

impl EmbeddingFile {
    /// Both sides, for scoring.
    ///
    /// # Errors
    /// [`Error::Vectors`] where one is missing. That they have the same number of rows is for the protocol to say.
    pub fn into_pairs(self) -> Result<Pairs> {
        let side = |side: Option<Embeddings>, name: &str| {
            side.ok_or_else(|| {
                Error::Vectors(format!("the file has no tensor '{name}', expected both sides"))
            })
        };
        Ok(Pairs {
            text: side(self.text, "text")?,
            image: side(self.image, "image")?,
        })
    }
}

/// Reads a file that [`SafetensorsWriter`] wrote, or any other safetensors file with a float32 matrix
/// `text`, `image` or both. Further tensors are ignored.
///
/// # Errors
/// [`Error::Vectors`] where the file is broken, where it has neither matrix, or where there are `ids` and not as
/// many rows in each matrix. Without ids the two may differ, as captions and images of an N:M test set do.
pub fn read_safetensors(bytes: &[u8]) -> Result<EmbeddingFile> {
    read(bytes).map_err(Error::Vectors)
}

fn read(bytes: &[u8]) -> Result<EmbeddingFile, String> {
    let tensors = Tensors::new(bytes)?;
    let text = tensors.matrix("text")?;
    let image = tensors.matrix("image")?;
    let ids = tensors.ids()?;
    if text.is_none() && image.is_none() {
        return Err("the file has no tensor 'text' and none 'image', expected one at least".into());
    }
    for (side, name) in [(&text, "text"), (&image, "image")] {
        if let (Some(side), Some(ids)) = (side, &ids)
            && side.rows() != ids.len()
        {
            return Err(format!(
                "{} {name} rows and {} ids, expected as many of each",
                side.rows(),
                ids.len()
            ));
        }
    }
    Ok(EmbeddingFile {
        text,
        image,
        ids,
        fingerprint: tensors.metadata("fingerprint").map(str::to_owned),
    })
}

/// A matrix in a file's header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) name: &'a str,
    /// `"F32"`, `"I8"` or `"U8"`.
    pub(crate) dtype: &'a str,
    /// Rows and dimensions.
    pub(crate) shape: [usize; 2],
}

/// The length and the header of a file whose tensors are some matrices and then `ids`, filled up to a multiple of
/// eight bytes.
pub(crate) fn header(
    matrices: &[Matrix<'_>],
    ids: usize,
    metadata: &[(&str, &str)],
) -> Result<Vec<u8>, String> {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Entry<'a> {
        Metadata(BTreeMap<&'a str, &'a str>),
        Tensor {
            data_offsets: [usize; 2],
            dtype: &'a str,
            shape: &'a [usize],
        },
    }
    let mut entries = BTreeMap::new();
    entries.insert(
        "__metadata__",
        Entry::Metadata(metadata.iter().copied().collect()),
    );
    let mut at = 0;
    for matrix in matrices {
        let [rows, dimensions] = matrix.shape;
        let size = if matrix.dtype == "F32" { 4 } else { 1 };
        let end = at + rows * dimensions * size;
        let entry = Entry::Tensor {
            data_offsets: [at, end],
            dtype: matrix.dtype,
            shape: &matrix.shape,
        };
        entries.insert(matrix.name, entry);
        at = end;
    }
    let entry = Entry::Tensor {
        data_offsets: [at, at + ids],
        dtype: "U8",
        shape: &[ids],
    };
    entries.insert("ids", entry);
    let text = serde_json::to_string(&entries).expect("plain data serialises");
    if text.len() > LONGEST_HEADER - 8 {
        return Err(format!(
            "a header of {} bytes, expected at most {LONGEST_HEADER}",
            text.len()
        ));
    }
    let mut bytes = vec![0; 8];
    bytes.extend_from_slice(text.as_bytes());
    let length = bytes.len().next_multiple_of(8);
    pad_header(&mut bytes, length);
    Ok(bytes)
}

/// Makes the length and the header `length` bytes in all by spaces at the end.
fn pad_header(header: &mut Vec<u8>, length: usize) {
    header.resize(length, b' ');
    header[..8].copy_from_slice(&(length as u64 - 8).to_le_bytes());
}

/// Adds an id to a JSON list that starts with `[`.
fn push_id(list: &mut Vec<u8>, id: &str) {
    if list.len() > 1 {
        list.push(b',');
    }
    serde_json::to_writer(list, id).expect("a list takes everything");
}

/// A safetensors file in memory.
pub(crate) struct Tensors<'a> {
    header: Header,
    data: &'a [u8],
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__", default)]
    metadata: HashMap<String, String>,
    #[serde(flatten)]
    tensors: HashMap<String, Entry>,
}

/// A tensor's shape and bytes.
type Found<'h, 'a> = (&'h [usize], &'a [u8]);

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl<'a> Tensors<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, String> {
        let (length, rest) = bytes
            .split_first_chunk::<8>()
            .ok_or_else(|| format!("a file of {} bytes, expected safetensors", bytes.len()))?;
        let length = u64::from_le_bytes(*length);
        let (header, data) = usize::try_from(length)
            .ok()
            .filter(|length| (2..=LONGEST_HEADER).contains(length))
            .and_then(|length| rest.split_at_checked(length))
            .ok_or_else(|| {
                format!(
                    "a header of {length} bytes, expected 2 to {LONGEST_HEADER} and not more than the file's other {}",
                    rest.len()
                )
            })?;
        let header: Header = json::from_bytes(header).map_err(|error| format!("the header: {error}"))?;
        let ends = header.tensors.values().map(|entry| entry.data_offsets[1]);
        let end = ends.max().unwrap_or(0);
        if end != data.len() {
            return Err(format!(
                "the tensors end at {end}, expected {}, where the file ends",
                data.len()
            ));
        }
        Ok(Self { header, data })
    }

    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata.get(key).map(String::as_str)
    }

    /// A tensor of this type, whose elements take `size` bytes.
    pub(crate) fn tensor(
        &self,
        name: &str,
        dtype: &str,
        size: usize,
    ) -> Result<Option<Found<'_, 'a>>, String> {
        let Some(entry) = self.header.tensors.get(name) else {
            return Ok(None);
        };
        if entry.dtype != dtype {
            return Err(format!(
                "tensor '{name}' has the type {}, expected {dtype}",
                entry.dtype
            ));
        }
        let [from, to] = entry.data_offsets;
        let bytes =
            (self.data.get(from..to)).ok_or_else(|| format!("tensor '{name}' lies at {from} to {to}"))?;
        let expected = entry
            .shape
            .iter()
            .try_fold(size, |bytes, &size| bytes.checked_mul(size));
        if expected != Some(bytes.len()) {
            return Err(format!(
                "tensor '{name}' has {} bytes, which do not fit its shape {:?}",
                bytes.len(),
                entry.shape
            ));
        }
        Ok(Some((&entry.shape, bytes)))
    }

    /// A float32 matrix with its bytes.
    pub(crate) fn matrix(&self, name: &str) -> Result<Option<Embeddings>, String> {
        let Some((shape, bytes)) = self.tensor(name, "F32", 4)? else {
            return Ok(None);
        };
        let &[rows, dimensions] = shape else {
            return Err(format!(
                "tensor '{name}' has the shape {shape:?}, expected [rows, dimensions]"
            ));
        };
        let matrix = Embeddings::new(rows, dimensions, from_le_bytes(bytes));
        matrix
            .map(Some)
            .map_err(|error| format!("tensor '{name}': {error}"))
    }

    /// The bytes of the list of ids.
    pub(crate) fn id_list(&self) -> Result<Option<&'a [u8]>, String> {
        Ok(self.tensor("ids", "U8", 1)?.map(|(_, bytes)| bytes))
    }

    /// The list of ids.
    pub(crate) fn ids(&self) -> Result<Option<Vec<String>>, String> {
        let list = self.id_list()?;
        let ids = list.map(json::from_bytes).transpose();
        ids.map_err(|error| format!("tensor 'ids': {error}, expected a JSON list of strings"))
    }
}
