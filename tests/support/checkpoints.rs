//! Checkpoints of the recorded models, as files and in PaddleNLP's form, and files that are no checkpoints.

use std::collections::BTreeMap;

use ernie_vil::weights::{
    Checkpoint, TEMPERATURE, TensorSource, image_tensors, text_config_from_original, text_tensors,
    vision_config_from_original,
};
use ernie_vil::{ErnieConfig, VitConfig};
use serde_json::{Value, json};

use super::read_golden;

/// Named shapes and values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub fn all(source: &dyn TensorSource) -> Tensors {
    let tensor = |name: String| {
        let values = source.read(&name).unwrap().into_f32().into_owned();
        (name.clone(), (source.shape(&name).unwrap(), values))
    };
    source.names().into_iter().map(tensor).collect()
}

/// A parameter file as Paddle writes it: a dictionary of NumPy arrays.
pub fn pdparams(tensors: &Tensors) -> Vec<u8> {
    let text = |text: &str| [&[b'X'][..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let mut file = b"\x80\x04}(".to_vec();
    for (name, (shape, values)) in tensors {
        file.extend(text(name));
        file.extend(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R(K\x01(");
        for &size in shape {
            file.push(b'J');
            file.extend((size as u32).to_le_bytes());
        }
        file.extend(b"tcnumpy\ndtype\n");
        file.extend(text("f4"));
        file.extend(b"\x89\x88\x87R\x89B");
        file.extend((4 * values.len() as u32).to_le_bytes());
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        file.extend(b"tb");
    }
    file.extend(b"u.");
    file
}

/// The same tensors as PaddleNLP's `ErnieViLModel` calls, cuts and shapes them.
pub fn as_paddlenlp(tensors: &Tensors) -> Tensors {
    let mut theirs = Tensors::new();
    for (name, (shape, values)) in tensors {
        let words: Vec<&str> = name.split('.').collect();
        let part = words[words.len() - 1];
        let name = match words[..] {
            ["visual", "class_embedding"] => {
                theirs.insert(
                    "vision_model.class_embedding".into(),
                    (shape[2..].into(), values.clone()),
                );
                continue;
            }
            ["visual", "positional_embedding"] => {
                let name = "vision_model.positional_embedding.weight".into();
                theirs.insert(name, (shape[1..].into(), values.clone()));
                continue;
            }
            ["visual", "patch_embed", "proj", _] => "vision_model.conv1.weight".into(),
            ["visual", "norm_pre", _] => format!("vision_model.ln_pre.{part}"),
            ["visual", "norm_post", _] => format!("vision_model.ln_post.{part}"),
            ["visual", "blocks", block, "attn", "qkv", _] => {
                let (columns, rows) = shape.split_last().unwrap();
                let width = columns / 3;
                for (number, of) in ["q", "k", "v"].into_iter().enumerate() {
                    let third = values
                        .chunks(*columns)
                        .flat_map(|row| &row[number * width..][..width]);
                    let name = format!("vision_model.transformer.layers.{block}.self_attn.{of}_proj.{part}");
                    theirs.insert(name, ([rows, &[width]].concat(), third.copied().collect()));
                }
                continue;
            }
            ["visual", "blocks", block, ref module @ .., _] => {
                let module = match module {
                    ["attn", "proj"] => "self_attn.out_proj",
                    ["mlp", "fc1"] => "linear1",
                    ["mlp", "fc2"] => "linear2",
                    [norm] => norm,
                    other => panic!("{other:?}"),
                };
                format!("vision_model.transformer.layers.{block}.{module}.{part}")
            }
            ["text_model", "encoder_stack", "block", block, ref module @ .., _] => {
                let module = match module {
                    ["attn", "o"] => "self_attn.out_proj".into(),
                    ["attn", of] => format!("self_attn.{of}_proj"),
                    ["ffn", "i"] => "linear1".into(),
                    ["ffn", "o"] => "linear2".into(),
                    ["ln1"] => "norm1".into(),
                    ["ln2"] => "norm2".into(),
                    other => panic!("{other:?}"),
                };
                format!("text_model.encoder.layers.{block}.{module}.{part}")
            }
            ["text_model", "pooler", _] => format!("text_model.pooler.dense.{part}"),
            ["text_model", "ln", _] => format!("text_model.embeddings.layer_norm.{part}"),
            ["text_model", table, _] => {
                let table = match table {
                    "word_emb" => "word_embeddings",
                    "pos_emb" => "position_embeddings",
                    "sent_emb" => "token_type_embeddings",
                    "task_emb" => "task_type_embeddings",
                    other => panic!("{other}"),
                };
                format!("text_model.embeddings.{table}.{part}")
            }
            _ if name == TEMPERATURE => "temperature".into(),
            _ => panic!("{name}"),
        };
        theirs.insert(name, (shape.clone(), values.clone()));
    }
    theirs
}

pub fn configs(model: &str) -> (VitConfig, ErnieConfig) {
    (
        vision_config_from_original(&read_golden(format!("models/{model}_vision_config.json"))).unwrap(),
        text_config_from_original(&read_golden(format!("models/{model}_text_config.json"))).unwrap(),
    )
}

/// The tensors that are needed of a recorded model, and its temperature.
pub fn needed(model: &str) -> Tensors {
    let bytes = read_golden(format!("models/{model}.pdparams"));
    let checkpoint = Checkpoint::parse(&bytes).unwrap();
    let (image, text) = configs(model);
    let names: Vec<_> = image_tensors(image)
        .into_iter()
        .chain(text_tensors(&text))
        .map(|(name, _)| name)
        .collect();
    let mut tensors = all(&checkpoint);
    tensors.retain(|name, _| names.contains(name) || name == TEMPERATURE);
    assert_eq!(tensors.len(), names.len() + 1);
    tensors
}

/// `config.json` of PaddleNLP: both towers in one file.
pub fn paddlenlp_config() -> Value {
    let (image, text) = configs("tiny");
    json!({
        "model_type": "ernie_vil",
        "logit_scale_init_value": 2.6592,
        "text_config": {
            "model_type": "ernie_vil_text_model", "vocab_size": text.vocab_size, "hidden_size": text.width,
            "num_hidden_layers": text.depth, "num_attention_heads": text.heads, "intermediate_size": text.mlp_width,
            "max_position_embeddings": text.max_positions, "hidden_act": "gelu", "layer_norm_eps": text.epsilon,
            "use_task_id": false, "task_type_vocab_size": 3, "type_vocab_size": 0,
        },
        "vision_config": {
            "model_type": "ernie_vil_vision_model", "image_size": image.image_size, "patch_size": image.patch_size,
            "hidden_size": image.width, "num_hidden_layers": image.depth, "num_attention_heads": image.heads,
            "intermediate_size": image.mlp_width, "hidden_act": "quick_gelu", "layer_norm_eps": image.epsilon,
        },
    })
}

/// Files that are given in the place of weights, and what has to be said.
pub fn mistaken() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let mut torch =
        b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\0\0archive/data.pkl".to_vec();
    torch.extend([0; 500]);
    let mut tar = vec![b'w'; 600];
    tar[257..262].copy_from_slice(b"ustar");
    let mut inference = vec![0; 16];
    inference.extend(b"\x08\0\0\0\x08\x05\x10\x03\x10\x04");
    vec![
        (
            "an LFS pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 815923\n".to_vec(),
            "a Git LFS pointer to a file of 815923 bytes, not the file itself: \"git lfs pull\"",
        ),
        (
            "a page",
            b"\n<!DOCTYPE html>\n<html><title>404</title>".to_vec(),
            "an HTML page",
        ),
        (
            "a page behind a mark",
            b"\xef\xbb\xbf<HTML>".to_vec(),
            "an HTML page",
        ),
        (
            "a message of a store",
            b"<?xml version=\"1.0\"?><Error><Code>NoSuchKey".to_vec(),
            "an XML document",
        ),
        (
            "a message",
            b"{\"error\":\"Repository not found\"}".to_vec(),
            "a JSON document that begins with \"{\\\"error\\\":",
        ),
        (
            "a message with a brace where safetensors have one",
            b"{\"err\": {\"code\": 404}}".to_vec(),
            "a JSON document",
        ),
        (
            "an index",
            b"{\"metadata\": {}, \"weight_map\": {\"a\": \"b\"}}".to_vec(),
            "the JSON index of a checkpoint in several files",
        ),
        (
            "PyTorch",
            torch,
            "a checkpoint of PyTorch (a zip archive by torch.save)",
        ),
        (
            "old PyTorch",
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec(),
            "a checkpoint of PyTorch (the old form",
        ),
        (
            "NumPy's arrays",
            b"PK\x03\x04\x14\0\0\0\0\0weight.npy".to_vec(),
            "a zip archive of NumPy arrays",
        ),
        (
            "a zip archive",
            b"PK\x03\x04\x14\0\0\0\0\0model/".to_vec(),
            "a zip archive: unpack it",
        ),
        (
            "gzip",
            b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec(),
            "compressed by gzip",
        ),
        ("bzip2", b"BZh91AY&SY".to_vec(), "compressed by bzip2"),
        ("xz", b"\xfd7zXZ\0\0\x04".to_vec(), "compressed by xz"),
        (
            "zstd",
            b"\x28\xb5\x2f\xfd\0\0\0\0\0".to_vec(),
            "compressed by zstd",
        ),
        ("tar", tar, "a tar archive"),
        (
            "an array",
            b"\x93NUMPY\x01\0v\0{'descr'".to_vec(),
            "a NumPy array (.npy)",
        ),
        ("HDF5", b"\x89HDF\r\n\x1a\n\0\0".to_vec(), "an HDF5 file"),
        (
            "a picture",
            b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec(),
            "a PNG picture",
        ),
        ("inference", inference, "parameters in Paddle's inference format"),
        (
            "zeros",
            vec![0; 4096],
            "all zeros at its start: it was not downloaded or copied whole",
        ),
        (
            "nothing",
            Vec::new(),
            "the file is empty: was it downloaded or copied whole?",
        ),
        (
            "text",
            "这不是权重\n".as_bytes().to_vec(),
            "the file is text that begins with \"这不是权重",
        ),
        (
            "anything",
            b"\xc3\x01\x02\x03".to_vec(),
            "the file begins with the bytes c3 01 02 03",
        ),
    ]
}
