use std::collections::BTreeMap;

use half::f16;

use super::{TEMPERATURE, TensorData, TensorSource, transpose, weights};
use crate::Result;

/// Tensors under the names that the towers load by, whatever their file calls them.
///
/// Beside the checkpoint's own names it knows those of
///
/// - PaddleNLP's `ErnieViLModel`, a port of the same model: its towers are `vision_model.` and `text_model.`, queries, keys
///   and values of the image tower are tensors of their own, and its tables have fewer dimensions; also those of its
///   `ErnieModel` alone;
/// - a text encoder alone: Paddle's, which lack the prefix `text_model.`, and Hugging Face's `ErnieModel`, whose linear
///   weights are \[outputs, inputs\] and are transposed as they are read;
/// - timm's EfficientNets, which lack the prefix `visual.`.
///
/// Every other tensor keeps its name.
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
    names: BTreeMap<String, Origin>,
}

/// The schemes of names, for a message.
pub(super) const KNOWN_NAMES: &str = "the original's (\"visual.\" and \"text_model.encoder_stack.\"), those of PaddleNLP's \
    ErnieViLModel (\"vision_model.\" and \"text_model.embeddings.\"), of an ErnieModel alone by Paddle (\"word_emb.\"), \
    PaddleNLP or Hugging Face (\"embeddings.\"), and of timm's EfficientNets (\"conv_stem.\")";

/// What a tensor is in the file.
enum Origin {
    /// A tensor of this name.
    Same(String),
    /// The transpose of one.
    Transposed(String),
    /// The values of one with dimensions of 1 in front, as many as make up this number.
    Deeper(String, usize),
    /// The columns of three, one behind the other.
    Joined([String; 3]),
}

impl Origin {
    /// The names of the file's tensors.
    fn names(&self) -> &[String] {
        match self {
            Self::Same(name) | Self::Transposed(name) | Self::Deeper(name, _) => std::slice::from_ref(name),
            Self::Joined(names) => names,
        }
    }
}

impl<'a> Renamed<'a> {
    /// Looks at the names of `source`.
    pub fn new(source: &'a dyn TensorSource) -> Self {
        let mut names = BTreeMap::new();
        let theirs = source.names();
        // By all of them and not by each: "pooler.dense.weight" is transposed in one scheme and not in
        // another.
        let is_paddlenlp = theirs.iter().any(|name| has_paddlenlp_s_form(name));
        for theirs in theirs {
            // How many batches a normalisation's statistics were taken over, which only training asks for.
            if theirs.ends_with(".num_batches_tracked") {
                continue;
            }
            let renamed = match is_paddlenlp {
                true => paddlenlp(&theirs),
                false => paddle(&theirs)
                    .or_else(|| timm(&theirs))
                    .map(|ours| (ours, Origin::Same(theirs.clone())))
                    .or_else(|| hugging_face(&theirs)),
            };
            let (ours, origin) = renamed.unwrap_or_else(|| (theirs.clone(), Origin::Same(theirs)));
            names.insert(ours, origin);
        }
        // One of three that is there promises the others; where they are not, it keeps its name, and the
        // whole is missing.
        let has = |name: &String| source.shape(name).is_some();
        let (broken, mut names): (BTreeMap<_, _>, BTreeMap<_, _>) = names
            .into_iter()
            .partition(|(_, origin)| !origin.names().iter().all(has));
        for origin in broken.values() {
            let there = origin.names().iter().filter(|name| has(name));
            names.extend(there.map(|name| (name.clone(), Origin::Same(name.clone()))));
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

/// The name of one of PaddleNLP's tensors without the prefixes of the text encoder, or of the whole model.
fn bare(name: &str) -> &str {
    let name = name.strip_prefix("ernie_vil.").unwrap_or(name);
    ["text_model.", "ernie."]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name)
}

/// Whether only PaddleNLP's models have a tensor of this name.
fn has_paddlenlp_s_form(name: &str) -> bool {
    let name = bare(name);
    name.starts_with("vision_model.")
        || name.starts_with("embeddings.layer_norm.")
        || name.starts_with("encoder.layers.") && name.contains(".self_attn.")
}

/// The name of a tensor of PaddleNLP's, and what it is made of.
fn paddlenlp(theirs: &str) -> Option<(String, Origin)> {
    let name = bare(theirs);
    if name == "temperature" {
        return Some((TEMPERATURE.into(), Origin::Same(theirs.into())));
    }
    match name.strip_prefix("vision_model.") {
        Some(name) => paddlenlp_image(theirs, name),
        None => {
            let ours = paddlenlp_text(name)?;
            Some((format!("text_model.{ours}"), Origin::Same(theirs.into())))
        }
    }
}

fn paddlenlp_text(name: &str) -> Option<String> {
    let (module, part) = name.rsplit_once('.')?;
    let ours = match module {
        "embeddings.word_embeddings" => "word_emb",
        "embeddings.position_embeddings" => "pos_emb",
        "embeddings.token_type_embeddings" => "sent_emb",
        "embeddings.task_type_embeddings" => "task_emb",
        "embeddings.layer_norm" => "ln",
        "pooler.dense" => "pooler",
        _ => {
            let (block, module) = module.strip_prefix("encoder.layers.")?.split_once('.')?;
            let ours = match module {
                "self_attn.q_proj" => "attn.q",
                "self_attn.k_proj" => "attn.k",
                "self_attn.v_proj" => "attn.v",
                "self_attn.out_proj" => "attn.o",
                "norm1" => "ln1",
                "linear1" => "ffn.i",
                "linear2" => "ffn.o",
                "norm2" => "ln2",
                _ => return None,
            };
            return Some(format!("encoder_stack.block.{block}.{ours}.{part}"));
        }
    };
    Some(format!("{ours}.{part}"))
}

/// `name` is `theirs` without the tower's prefix.
fn paddlenlp_image(theirs: &str, name: &str) -> Option<(String, Origin)> {
    let same = |ours: String| Some((format!("visual.{ours}"), Origin::Same(theirs.into())));
    let deeper = |ours: &str| Some((format!("visual.{ours}"), Origin::Deeper(theirs.into(), 3)));
    if let Some(name) = name.strip_prefix("transformer.layers.") {
        let (block, name) = name.split_once('.')?;
        let (module, part) = name.rsplit_once('.')?;
        let ours = match module {
            "self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj" => {
                let start = &theirs[..theirs.len() - name.len()];
                let names = ["q", "k", "v"].map(|of| format!("{start}self_attn.{of}_proj.{part}"));
                let ours = format!("visual.blocks.{block}.attn.qkv.{part}");
                return Some((ours, Origin::Joined(names)));
            }
            "self_attn.out_proj" => "attn.proj",
            "norm1" => "norm1",
            "linear1" => "mlp.fc1",
            "linear2" => "mlp.fc2",
            "norm2" => "norm2",
            _ => return None,
        };
        return same(format!("blocks.{block}.{ours}.{part}"));
    }
    match name {
        "class_embedding" => deeper("class_embedding"),
        "positional_embedding.weight" => deeper("positional_embedding"),
        "conv1.weight" => same("patch_embed.proj.weight".into()),
        _ => match name.rsplit_once('.')? {
            ("ln_pre", part) => same(format!("norm_pre.{part}")),
            ("ln_post", part) => same(format!("norm_post.{part}")),
            _ => None,
        },
    }
}

/// The name of a tensor of Hugging Face's text encoder, alone or under `ernie.`, and what it is made of.
fn hugging_face(theirs: &str) -> Option<(String, Origin)> {
    let name = theirs.strip_prefix("ernie.").unwrap_or(theirs);
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
    let origin = match is_linear && part == "weight" {
        true => Origin::Transposed(theirs.into()),
        false => Origin::Same(theirs.into()),
    };
    Some((format!("text_model.{ours}.{part}"), origin))
}

impl TensorSource for Renamed<'_> {
    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let origin = self.names.get(name)?;
        let [first, ..] = origin.names() else { return None };
        let mut shape = self.source.shape(first)?;
        match origin {
            Origin::Same(_) => {}
            Origin::Transposed(_) => shape.reverse(),
            Origin::Deeper(_, dimensions) => {
                let missing = dimensions.saturating_sub(shape.len());
                shape.splice(0..0, std::iter::repeat_n(1, missing));
            }
            Origin::Joined([_, others @ ..]) => {
                for other in others {
                    let other = self.source.shape(other)?;
                    let (columns, rows) = shape.split_last_mut()?;
                    let (more, other) = other.split_last()?;
                    // Of different heights they make no matrix.
                    if rows != other {
                        return None;
                    }
                    *columns = columns.checked_add(*more)?;
                }
            }
        }
        Some(shape)
    }

    fn read(&self, name: &str) -> Result<TensorData<'_>> {
        let Some(origin) = self.names.get(name) else {
            return weights(format!("{name} is missing"));
        };
        match (origin, self.shape(name).as_deref()) {
            (Origin::Transposed(theirs), Some(&[rows, columns])) => Ok(match self.source.read(theirs)? {
                TensorData::F32(values) => TensorData::F32(transpose::<f32>(&values, rows, columns).into()),
                TensorData::F16(values) => TensorData::F16(transpose::<f16>(&values, rows, columns).into()),
                TensorData::Quantised(matrix) => {
                    TensorData::F32(transpose::<f32>(&matrix.to_f32(), rows, columns).into())
                }
            }),
            (Origin::Joined(parts), shape) => {
                let rows = shape
                    .and_then(|shape| shape.split_last())
                    .map_or(0, |(_, rows)| rows.iter().product());
                let [q, k, v] = parts.each_ref().map(|part| self.source.read(part));
                Ok(match [q?, k?, v?] {
                    [TensorData::F16(q), TensorData::F16(k), TensorData::F16(v)] => {
                        TensorData::F16(beside(rows, [&q, &k, &v]).into())
                    }
                    parts => {
                        let [q, k, v] = parts.map(TensorData::into_f32);
                        TensorData::F32(beside(rows, [&q, &k, &v]).into())
                    }
                })
            }
            (Origin::Same(theirs) | Origin::Transposed(theirs) | Origin::Deeper(theirs, _), _) => {
                self.source.read(theirs)
            }
        }
    }
}

/// Matrices of `rows` rows as one, the columns of each behind those of the one before.
fn beside<T: Copy>(rows: usize, matrices: [&[T]; 3]) -> Vec<T> {
    let columns = matrices.map(|matrix| matrix.len().checked_div(rows).unwrap_or(0));
    let mut joined = Vec::with_capacity(matrices.iter().map(|matrix| matrix.len()).sum());
    for row in 0..rows {
        for (matrix, columns) in matrices.iter().zip(columns) {
            joined.extend_from_slice(&matrix[row * columns..][..columns]);
        }
    }
    joined
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
