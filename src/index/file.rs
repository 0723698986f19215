//! The index as a safetensors file.

use std::io::{self, Write};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::rows::{VectorType, Vectors};
use super::{EmbeddingIndex, NO_SOURCE};
use crate::vectors::{Matrix, Tensors, header};
use crate::{Error, Result, json};

/// What the file's metadata says under `format`.
const FORMAT: &str = "ernie-vil index 1";
/// The tensor that says where rows come from, and its checksum in the metadata.
const SOURCES: &str = "sources";
const SOURCES_SHA256: &str = "sources_sha256";

/// Writes some rows of an index in this order.
pub(super) fn save(index: &EmbeddingIndex, writer: &mut impl Write, rows: &[usize]) -> Result<()> {
    let ids = Ids { index, rows };
    let checksum = checksum(
        &index.fingerprint,
        index.dimensions,
        ids.len(),
        |task| ids.for_each_piece(task),
        &index.vectors,
        rows,
    )?;
    let sources = sources(index, rows);
    let sources_checksum = sources_checksum(&checksum, &sources);
    let mut metadata = vec![
        ("format", FORMAT),
        ("fingerprint", &index.fingerprint),
        ("sha256", &checksum),
    ];
    let matrix = |name, dtype, dimensions| Matrix {
        name,
        dtype,
        shape: [rows.len(), dimensions],
    };
    let mut matrices = match index.dtype() {
        VectorType::F32 => vec![matrix("vectors", "F32", index.dimensions)],
        VectorType::Int8 => vec![
            matrix("scales", "F32", 1),
            matrix("vectors", "I8", index.dimensions),
        ],
    };
    if !sources.is_empty() {
        metadata.push((SOURCES_SHA256, &sources_checksum));
        matrices.push(Matrix {
            name: SOURCES,
            dtype: "U8",
            shape: [sources.len(), 1],
        });
    }
    let header = header(&matrices, ids.len(), &metadata);
    writer.write_all(&header.map_err(Error::Index)?)?;
    index
        .vectors
        .for_each_piece(rows, |bytes| writer.write_all(bytes))?;
    writer.write_all(&sources)?;
    ids.for_each_piece(|bytes| writer.write_all(bytes))?;
    Ok(writer.flush()?)
}

/// The JSON list of the ids of some rows. It is never in memory as a whole: ids may be long.
struct Ids<'a> {
    index: &'a EmbeddingIndex,
    rows: &'a [usize],
}

impl Ids<'_> {
    fn for_each_piece(&self, mut task: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut piece = vec![b'['];
        for &row in self.rows {
            serde_json::to_writer(&mut piece, &*self.index.ids[row])?;
            task(&piece)?;
            piece.clear();
            piece.push(b',');
        }
        // The list that is empty has only begun.
        if self.rows.is_empty() {
            task(&piece)?;
        }
        task(b"]")
    }

    fn len(&self) -> usize {
        let mut bytes = 0;
        // Counting does not fail.
        let _ = self.for_each_piece(|piece| {
            bytes += piece.len();
            Ok(())
        });
        bytes
    }
}

/// The sources of rows, as JSON: of each source its name and, in order, the first row and the number of rows
/// of each run of rows that came from it. Nothing where no row has a source.
fn sources(index: &EmbeddingIndex, rows: &[usize]) -> Vec<u8> {
    let mut runs: Vec<Vec<(usize, usize)>> = vec![Vec::new(); index.sources.names.len() + 1];
    let mut last = NO_SOURCE;
    for (at, &row) in rows.iter().enumerate() {
        let source = index.source[row];
        let runs = &mut runs[source as usize];
        match runs.last_mut().filter(|_| source == last) {
            Some((_, count)) => *count += 1,
            None => runs.push((at, 1)),
        }
        last = source;
    }
    let mut named: Vec<(&str, _)> = (index.sources.names.iter().map(|name| &**name).zip(&runs[1..]))
        .filter(|(_, runs)| !runs.is_empty())
        .collect();
    // Whatever came before: equal indices make equal files.
    named.sort_by_key(|(_, runs)| runs[0]);
    match named.is_empty() {
        true => Vec::new(),
        false => serde_json::to_vec(&named).expect("plain data serialises"),
    }
}

/// SHA-256, in hexadecimal digits, of the checksum of the other contents and of what a file says about
/// sources.
fn sources_checksum(checksum: &str, sources: &[u8]) -> String {
    hex(&Sha256::new()
        .chain_update(checksum)
        .chain_update(sources)
        .finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Gives the rows of an index their sources, as [`sources`] wrote them.
fn assign(index: &mut EmbeddingIndex, sources: &[u8]) -> Result<(), String> {
    let list: Vec<(String, Vec<(usize, usize)>)> =
        json::from_bytes(sources).map_err(|error| format!("tensor '{SOURCES}': {error}"))?;
    for (name, runs) in list {
        let source = index.sources.number(&name);
        for (from, count) in runs {
            let rows = from
                .checked_add(count)
                .and_then(|to| index.source.get_mut(from..to));
            let rows = rows.filter(|rows| rows.iter().all(|&row| row == NO_SOURCE));
            rows.ok_or_else(|| {
                format!(
                    "tensor '{SOURCES}': {count} rows from row {} on, expected rows of the {} that no source \
                     has yet",
                    from.saturating_add(1),
                    index.ids.len()
                )
            })?
            .fill(source);
        }
    }
    Ok(())
}

pub(super) fn load(bytes: &[u8]) -> Result<EmbeddingIndex, String> {
    let tensors = Tensors::new(bytes)?;
    let metadata = |key: &str| {
        tensors
            .metadata(key)
            .ok_or_else(|| format!("no '{key}' in the metadata"))
    };
    let format = metadata("format")?;
    if format != FORMAT {
        return Err(format!("format '{format}', expected '{FORMAT}'"));
    }
    let fingerprint = metadata("fingerprint")?;
    let (vectors, rows, dimensions) = vectors(&tensors)?;
    let list = tensors.id_list()?.ok_or("no tensor 'ids'")?;
    let all: Vec<usize> = (0..rows).collect();
    let hash_list = |task: &mut dyn FnMut(&[u8]) -> io::Result<()>| task(list);
    let found = checksum(fingerprint, dimensions, list.len(), hash_list, &vectors, &all)
        .map_err(|error| error.to_string())?;
    let expected = metadata("sha256")?;
    if found != expected {
        return Err(format!(
            "the contents have the SHA-256 {found}, expected {expected}: the file is damaged"
        ));
    }
    let ids = tensors.ids()?.unwrap_or_default();
    if ids.len() != rows {
        return Err(format!("{} ids, expected {rows}, one for each vector", ids.len()));
    }

    let mut index = EmbeddingIndex::with_dtype(dimensions, fingerprint, vectors.dtype());
    for (row, id) in ids.into_iter().enumerate() {
        let at = |error: String| format!("row {}, id '{}': {error}", row + 1, id.escape_debug());
        vectors.check(row).map_err(at)?;
        index.id_bytes += id.len();
        let id: Arc<str> = id.as_str().into();
        if index.rows.insert(id.clone(), row).is_some() {
            return Err(at("this id is there twice".into()));
        }
        index.ids.push(id);
        index.order.push(row as u64);
    }
    index.added = rows as u64;
    index.vectors = vectors;
    index.source = vec![NO_SOURCE; rows];
    // The checksum of all contents is older than sources are, and is the same without them.
    match (
        tensors.tensor(SOURCES, "U8", 1)?,
        tensors.metadata(SOURCES_SHA256),
    ) {
        (None, None) => {}
        (Some((_, sources)), Some(expected)) if sources_checksum(&found, sources) == expected => {
            assign(&mut index, sources)?;
        }
        _ => {
            return Err(format!(
                "the tensor '{SOURCES}' does not have the SHA-256 '{SOURCES_SHA256}' of the metadata: the file is damaged"
            ));
        }
    }
    Ok(index)
}

/// The vectors of a file, their number and their dimensions.
fn vectors(tensors: &Tensors<'_>) -> Result<(Vectors, usize, usize), String> {
    let Some(scales) = tensors.matrix("scales")? else {
        let vectors = tensors.matrix("vectors")?.ok_or("no tensor 'vectors'")?;
        let (rows, dimensions) = (vectors.rows(), vectors.dimensions());
        return Ok((Vectors::from_f32(vectors), rows, dimensions));
    };
    let (shape, codes) = tensors.tensor("vectors", "I8", 1)?.ok_or("no tensor 'vectors'")?;
    match *shape {
        [rows, dimensions]
            if (scales.rows(), scales.dimensions()) == (rows, 1) && (rows == 0 || dimensions > 0) =>
        {
            let codes = bytemuck::cast_slice(codes).to_vec();
            let vectors = Vectors::from_int8(scales.into_data(), codes, dimensions);
            Ok((vectors, rows, dimensions))
        }
        _ => Err(format!(
            "tensor 'scales' [{}, {}] and tensor 'vectors' {shape:?}, expected [rows, 1] and [rows, dimensions]",
            scales.rows(),
            scales.dimensions()
        )),
    }
}

/// SHA-256, in hexadecimal digits, of the dimensions and the two lengths as 64-bit little-endian
/// numbers, the fingerprint, the list of ids, and the other tensors as they stand in the file.
fn checksum(
    fingerprint: &str,
    dimensions: usize,
    ids_len: usize,
    ids: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>,
    vectors: &Vectors,
    rows: &[usize],
) -> io::Result<String> {
    let mut hash = Sha256::new();
    for size in [dimensions, fingerprint.len(), ids_len] {
        hash.update((size as u64).to_le_bytes());
    }
    hash.update(fingerprint);
    let mut update = |bytes: &[u8]| {
        hash.update(bytes);
        Ok(())
    };
    ids(&mut update)?;
    vectors.for_each_piece(rows, update)?;
    Ok(hex(&hash.finalize()))
}
