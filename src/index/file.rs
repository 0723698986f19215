//! The index as a safetensors file.

use std::io::{self, Write};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::EmbeddingIndex;
use super::rows::{VectorType, Vectors};
use crate::vectors::{Matrix, Tensors, header, push_id};
use crate::{Error, Result};

/// What the file's metadata says under `format`.
const FORMAT: &str = "ernie-vil index 1";

pub(super) fn save(index: &EmbeddingIndex, writer: &mut impl Write) -> Result<()> {
    let rows = index.in_order();
    let mut ids = vec![b'['];
    for &row in &rows {
        push_id(&mut ids, &index.ids[row]);
    }
    ids.push(b']');
    let checksum = checksum(&index.fingerprint, index.dimensions, &ids, &index.vectors, &rows)?;
    let metadata = [
        ("format", FORMAT),
        ("fingerprint", &index.fingerprint),
        ("sha256", &checksum),
    ];
    let matrix = |name, dtype, dimensions| Matrix {
        name,
        dtype,
        shape: [rows.len(), dimensions],
    };
    let matrices = match index.dtype() {
        VectorType::F32 => vec![matrix("vectors", "F32", index.dimensions)],
        VectorType::Int8 => vec![
            matrix("scales", "F32", 1),
            matrix("vectors", "I8", index.dimensions),
        ],
    };
    let header = header(&matrices, ids.len(), &metadata);
    writer.write_all(&header.map_err(Error::Index)?)?;
    index
        .vectors
        .for_each_piece(&rows, |bytes| writer.write_all(bytes))?;
    writer.write_all(&ids)?;
    Ok(writer.flush()?)
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
    let found = checksum(fingerprint, dimensions, list, &vectors, &all).map_err(|error| error.to_string())?;
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
        let id: Arc<str> = id.as_str().into();
        if index.rows.insert(id.clone(), row).is_some() {
            return Err(at("this id is there twice".into()));
        }
        index.ids.push(id);
        index.order.push(row as u64);
    }
    index.added = rows as u64;
    index.vectors = vectors;
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
    ids: &[u8],
    vectors: &Vectors,
    rows: &[usize],
) -> io::Result<String> {
    let mut hash = Sha256::new();
    for size in [dimensions, fingerprint.len(), ids.len()] {
        hash.update((size as u64).to_le_bytes());
    }
    hash.update(fingerprint);
    hash.update(ids);
    vectors.for_each_piece(rows, |bytes| {
        hash.update(bytes);
        Ok(())
    })?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
