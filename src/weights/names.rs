use std::collections::BTreeMap;

use half::f16;

use super::{TensorData, TensorSource, transpose, weights};
use crate::Result;

/// Tensors under the names that the towers load by, whatever their file calls them.
///
/// Beside the checkpoint's own names it knows those that a text encoder alone has: Paddle's, which lack the prefix
/// `text_model.`, and those of Hugging Face's `ErnieModel`, whose linear weights are \[outputs, inputs\] and are
/// transposed as they are read; and those of timm's EfficientNets, which lack the prefix `visual.`. Every other tensor
/// keeps its name.
///
/// ```
/// use ernie_vil::weights::{Renamed, SafetensorsFile, TensorSource};
///
/// let header = br#"{"pooler.dense.bias":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
/// let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
/// bytes.extend(header);
/// bytes.extend(1.5f32.to_le_bytes());
///
/// let file = SafetensorsFile::parse(&bytes)?;
/// assert_eq!(Renamed::new(&file).names(), ["text_model.pooler.bias"]);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub struct Renamed<'a> {
    source: &'a dyn TensorSource,
    /// By the name here: the name there, and whether the matrix is transposed.
    names: BTreeMap<String, (String, bool)>,
}

impl<'a> Renamed<'a> {
    /// Looks at the names of `source`.
    pub fn new(source: &'a dyn TensorSource) -> Self {
        let mut names = BTreeMap::new();
        for theirs in source.names() {
            // How many batches a normalisation's statistics were taken over, which only training asks for.
            if theirs.ends_with(".num_batches_tracked") {
                continue;
            }
            let (ours, transposed) = paddle(&theirs)
                .or_else(|| timm(&theirs))
                .map(|name| (name, false))
                .or_else(|| hugging_face(&theirs))
                .unwrap_or_else(|| (theirs.clone(), false));
            names.insert(ours, (theirs, transposed));
        }
        Self { source, names }
    }
}

/// The name of a tensor of Paddle's text encoder.
fn paddle(name: &str) -> Option<String> {
    let known = [
        "word_emb.",
        "pos_emb.",
        "sent_emb.",
        "task_emb.",
        "ln.",
        "encoder_stack.block.",
    ];
    let is_pooler = matches!(name, "pooler.weight" | "pooler.bias");
    let is_known = is_pooler || known.iter().any(|start| name.starts_with(start));
    is_known.then(|| format!("text_model.{name}"))
}

/// The name of a tensor of timm's EfficientNet.
fn timm(name: &str) -> Option<String> {
    let known = [
        "conv_stem.",
        "bn1.",
        "blocks.",
        "conv_head.",
        "bn2.",
        "projection.",
    ];
    let is_known = known.iter().any(|start| name.starts_with(start));
    is_known.then(|| format!("visual.{name}"))
}

/// The name of a tensor of Hugging Face's text encoder, alone or under `ernie.`, and whether it is transposed.
fn hugging_face(name: &str) -> Option<(String, bool)> {
    let name = name.strip_prefix("ernie.").unwrap_or(name);
    let (module, part) = name.rsplit_once('.')?;
    let in_block = |rest: &str| -> Option<String> {
        let (block, module) = rest.split_once('.')?;
        let ours = match module {
            "attention.self.query" => "attn.q",
            "attention.self.key" => "attn.k",
            "attention.self.value" => "attn.v",
            "attention.output.dense" => "attn.o",
            "attention.output.LayerNorm" => "ln1",
            "intermediate.dense" => "ffn.i",
            "output.dense" => "ffn.o",
            "output.LayerNorm" => "ln2",
            _ => return None,
        };
        Some(format!("encoder_stack.block.{block}.{ours}"))
    };
    let ours = match module {
        "embeddings.word_embeddings" => "word_emb".to_owned(),
        "embeddings.position_embeddings" => "pos_emb".to_owned(),
        "embeddings.token_type_embeddings" => "sent_emb".to_owned(),
        "embeddings.task_type_embeddings" => "task_emb".to_owned(),
        "embeddings.LayerNorm" => "ln".to_owned(),
        "pooler.dense" => "pooler".to_owned(),
        _ => in_block(module.strip_prefix("encoder.layer.")?)?,
    };
    let is_linear = !module.starts_with("embeddings.") && !module.ends_with("LayerNorm");
    Some((format!("text_model.{ours}.{part}"), is_linear && part == "weight"))
}

impl TensorSource for Renamed<'_> {
    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let (theirs, transposed) = self.names.get(name)?;
        let mut shape = self.source.shape(theirs)?;
        if *transposed {
            shape.reverse();
        }
        Some(shape)
    }

    fn read(&self, name: &str) -> Result<TensorData<'_>> {
        let Some((theirs, transposed)) = self.names.get(name) else {
            return weights(format!("{name} is missing"));
        };
        let data = self.source.read(theirs)?;
        match self.shape(name).as_deref() {
            Some(&[rows, columns]) if *transposed => Ok(match data {
                TensorData::F32(values) => TensorData::F32(transpose::<f32>(&values, rows, columns).into()),
                TensorData::F16(values) => TensorData::F16(transpose::<f16>(&values, rows, columns).into()),
                TensorData::Quantised(matrix) => {
                    TensorData::F32(transpose::<f32>(&matrix.to_f32(), rows, columns).into())
                }
            }),
            _ => Ok(data),
        }
    }
}

/// Several sources as one; where two have a tensor of the same name it is that of the first.
pub struct Together<'a>(pub Vec<&'a dyn TensorSource>);

impl TensorSource for Together<'_> {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.0.iter().flat_map(|source| source.names()).collect();
        names.sort();
        names.dedup();
        names
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.iter().find_map(|source| source.shape(name))
    }

    fn read(&self, name: &str) -> Result<TensorData<'_>> {
        match self.0.iter().find(|source| source.shape(name).is_some()) {
            Some(source) => source.read(name),
            None => weights(format!("{name} is missing")),
        }
    }
}
