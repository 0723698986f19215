//! Checkpoints in other projects' names, and files that are no checkpoints at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use burn::tensor::Device;
use ernie_vil::text::{Tokenizer, Vocabulary};
use ernie_vil::towers::{Engine, ImageTower, TextTower};
use ernie_vil::weights::{
    Checkpoint, Manifest, Renamed, SafetensorsFile, TEMPERATURE, TensorSource, TensorStream, check,
    image_tensors, infer_type_tables, infer_vision_config, recognise, text_config_from_original,
    text_tensors, vision_config_from_original,
};
use ernie_vil::{ErnieConfig, Error, ModelConfig, VitConfig};
use serde_json::{Value, json};
use tempfile::TempDir;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens")).join(name)
}

fn read(name: &str) -> Vec<u8> {
    fs::read(golden(name)).unwrap()
}

fn message<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.to_string(),
    }
}

/// Named shapes and values.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn all(source: &dyn TensorSource) -> Tensors {
    let tensor = |name: String| {
        let values = source.read(&name).unwrap().into_f32().into_owned();
        (name.clone(), (source.shape(&name).unwrap(), values))
    };
    source.names().into_iter().map(tensor).collect()
}

/// A parameter file as Paddle writes it: a dictionary of NumPy arrays.
fn pdparams(tensors: &Tensors) -> Vec<u8> {
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
fn as_paddlenlp(tensors: &Tensors) -> Tensors {
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

fn configs(model: &str) -> (VitConfig, ErnieConfig) {
    (
        vision_config_from_original(&read(&format!("models/{model}_vision_config.json"))).unwrap(),
        text_config_from_original(&read(&format!("models/{model}_text_config.json"))).unwrap(),
    )
}

/// The tensors that are needed of a recorded model, and its temperature.
fn needed(model: &str) -> Tensors {
    let bytes = read(&format!("models/{model}.pdparams"));
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

#[test]
fn paddlenlp_s_names_hold_the_same_tensors() {
    for model in ["tiny", "mid"] {
        let ours = needed(model);
        let theirs = as_paddlenlp(&ours);
        assert!(ours.keys().all(|name| !theirs.contains_key(name)), "{model}");
        // Under the name of the whole model, as a model around it saves them, and under none.
        for prefix in ["", "ernie_vil."] {
            let prefixed: Tensors = theirs
                .clone()
                .into_iter()
                .map(|(name, tensor)| (format!("{prefix}{name}"), tensor))
                .collect();
            let file = pdparams(&prefixed);
            let checkpoint = Checkpoint::parse(&file).unwrap();
            assert_eq!(checkpoint.names().len(), theirs.len());
            let renamed = Renamed::new(&checkpoint);
            let found = all(&renamed);
            assert_eq!(found.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
            // To the bit.
            assert!(found == ours, "{model}");
            let (image, text) = configs(model);
            assert_eq!(
                check(&renamed, &text_tensors(&text)).unwrap().len(),
                image_tensors(&image).len() + 1
            );
        }
    }
}

#[test]
fn paddlenlp_s_names_give_the_same_vectors() {
    let ours = needed("tiny");
    let (image, text) = configs("tiny");
    let files = [pdparams(&ours), pdparams(&as_paddlenlp(&ours))];
    let vectors = files.map(|file| {
        let checkpoint = Checkpoint::parse(&file).unwrap();
        let source = Renamed::new(&checkpoint);
        let device = Device::flex();
        let image = ImageTower::load(&source, &image, &device, Engine::Auto).unwrap();
        let text = TextTower::load(&source, &text, &device, Engine::Auto).unwrap();
        let pixels: Vec<f32> = (0..3 * 224 * 224)
            .map(|i| (i % 255) as f32 / 127.5 - 1.0)
            .collect();
        [
            image.embed(&pixels).unwrap(),
            text.embed(&[&[1, 5, 6, 7, 2]]).unwrap(),
        ]
        .map(|found| found.data().to_vec())
    });
    assert_eq!(vectors[0], vectors[1]);
}

/// What PaddleNLP's own code computes with weights of its own.
#[test]
fn paddlenlp_s_model_is_as_recorded() {
    let bytes = read("paddlenlp/model_state.pdparams");
    let checkpoint = Checkpoint::parse(&bytes).unwrap();
    let source = Renamed::new(&checkpoint);
    let config = read("paddlenlp/config.json");
    let image = vision_config_from_original(&config).unwrap();
    let mut text = text_config_from_original(&config).unwrap();
    infer_type_tables(&mut text, &source).unwrap();
    assert_eq!((text.sentence_types, text.task_types), (Some(2), Some(3)));
    let mut needed = [image_tensors(image.clone()), text_tensors(&text)].concat();
    needed.push((TEMPERATURE.into(), vec![1]));
    assert_eq!(check(&source, &needed).unwrap(), [""; 0]);
    let recorded: Value = serde_json::from_slice(&read("paddlenlp/io.json")).unwrap();
    let numbers = |value: &Value| -> Vec<f64> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|number| number.as_f64().unwrap())
            .collect()
    };
    let assert_near = |found: &[f32], recorded: &Value| {
        let recorded = numbers(recorded);
        assert_eq!(found.len(), recorded.len());
        for (found, recorded) in found.iter().zip(recorded) {
            assert!((f64::from(*found) - recorded).abs() < 1e-5, "{found}, {recorded}");
        }
    };
    for engine in [Engine::Auto, Engine::BURN] {
        let device = Device::flex();
        let tower = TextTower::load(&source, &text, &device, engine).unwrap();
        for (ids, recorded) in recorded["ids"]
            .as_array()
            .unwrap()
            .iter()
            .zip(recorded["text"].as_array().unwrap())
        {
            let ids: Vec<u32> = numbers(ids)
                .into_iter()
                .map(|id| id as u32)
                .filter(|&id| id != 0)
                .collect();
            assert_near(&tower.embed_raw(&[&ids]).unwrap(), recorded);
        }
        let tower = ImageTower::load(&source, &image, &device, engine).unwrap();
        let pixels: Vec<f32> = (0..3 * 24 * 24).map(|i| f64::from(i).sin() as f32).collect();
        assert_near(&tower.embed_raw(&pixels).unwrap(), &recorded["image"][0]);
    }
}

/// A text encoder alone is called after its model, or not at all; and is not taken for Hugging Face's, whose
/// matrices are the other way round.
#[test]
fn an_ernie_model_of_paddlenlp_alone() {
    let ours: Tensors = needed("tiny")
        .into_iter()
        .filter(|(name, _)| name.starts_with("text_model."))
        .collect();
    for prefix in ["", "ernie."] {
        let theirs = as_paddlenlp(&ours).into_iter().map(|(name, tensor)| {
            (
                format!("{prefix}{}", name.strip_prefix("text_model.").unwrap()),
                tensor,
            )
        });
        let file = pdparams(&theirs.collect());
        let checkpoint = Checkpoint::parse(&file).unwrap();
        assert!(all(&Renamed::new(&checkpoint)) == ours);
    }
}

#[test]
fn a_part_that_is_missing_is_missing() {
    let mut theirs = as_paddlenlp(&needed("tiny"));
    theirs
        .remove("vision_model.transformer.layers.1.self_attn.k_proj.bias")
        .unwrap();
    let weight = theirs
        .get_mut("vision_model.transformer.layers.0.self_attn.v_proj.weight")
        .unwrap();
    // Another number of rows than the others have.
    weight.0 = vec![weight.0[0] / 2, weight.0[1] * 2];
    let file = pdparams(&theirs);
    let checkpoint = Checkpoint::parse(&file).unwrap();
    let (image, _) = configs("tiny");
    let message = message(check(&Renamed::new(&checkpoint), &image_tensors(image)));
    assert!(message.contains("2 tensors are missing"), "{message}");
    assert!(message.contains("visual.blocks.1.attn.qkv.bias"), "{message}");
    assert!(message.contains("visual.blocks.0.attn.qkv.weight"), "{message}");
    assert!(
        message.contains("vision_model.transformer.layers.1.self_attn.q_proj.bias"),
        "{message}"
    );
}

/// `config.json` of PaddleNLP: both towers in one file.
fn paddlenlp_config() -> Value {
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

#[test]
fn paddlenlp_s_configuration_has_both_towers() {
    let read = |json: &Value| {
        let json = json.to_string().into_bytes();
        (
            vision_config_from_original(&json),
            text_config_from_original(&json),
        )
    };
    let (image, text) = configs("tiny");
    assert_eq!(read(&paddlenlp_config()), (Ok(image), Ok(text)));
    // What is not said is Base.
    let base = (Ok(VitConfig::base()), Ok(ErnieConfig::base()));
    assert_eq!(read(&json!({"text_config": {}, "vision_config": {}})), base);
    for (tower, key, value, expected) in [
        (
            "vision_config",
            "hidden_act",
            json!("gelu"),
            "hidden_act is \"gelu\", expected \"quick_gelu\"",
        ),
        ("vision_config", "patch_size", json!(0), "image.patch_size"),
        (
            "text_config",
            "num_attention_heads",
            json!(5),
            "hidden_size is 32, expected a multiple of",
        ),
        (
            "text_config",
            "num_attention_heads",
            json!(0),
            "hidden_size is 32, expected a multiple of",
        ),
    ] {
        let mut changed = paddlenlp_config();
        changed[tower][key] = value;
        let (image, text) = read(&changed);
        let found = if tower == "vision_config" {
            message(image)
        } else {
            message(text)
        };
        assert!(found.contains(expected), "{found}");
    }
    let mut changed = paddlenlp_config();
    changed["text_config"]["use_task_id"] = json!(true);
    assert!(read(&changed).1.is_ok());
    changed["text_config"]["task_id"] = json!(2);
    assert!(message(read(&changed).1).contains("task_id is 2, expected 0"));
    assert!(message(read(&json!({"text_config": {}})).0).contains("missing field `vision_config`"));
}

#[test]
fn names_of_no_known_scheme_are_told_with_those_that_are() {
    let theirs: Tensors = needed("tiny")
        .into_iter()
        .map(|(name, tensor)| (format!("student.{name}"), tensor))
        .collect();
    let file = pdparams(&theirs);
    let checkpoint = Checkpoint::parse(&file).unwrap();
    let renamed = Renamed::new(&checkpoint);
    let (image, text) = configs("tiny");
    for message in [
        message(check(&renamed, &image_tensors(image))),
        message(check(&renamed, &text_tensors(&text))),
        message(infer_vision_config(&renamed)),
    ] {
        assert!(
            message.contains(&format!("The file holds {} tensors", theirs.len())),
            "{message}"
        );
        assert!(
            message.contains("\"student.contrastive_loss_mm.temperature_b\""),
            "{message}"
        );
        assert!(
            message.contains("PaddleNLP's ErnieViLModel (\"vision_model.\""),
            "{message}"
        );
        assert!(message.contains("Hugging Face"), "{message}");
    }
    // One tower alone says what it is, and no more.
    let only: Tensors = needed("tiny")
        .into_iter()
        .filter(|(name, _)| name.starts_with("text_model."))
        .collect();
    let file = pdparams(&only);
    let message = message(infer_vision_config(&Checkpoint::parse(&file).unwrap()));
    assert!(
        message.ends_with("the image tower's sizes cannot be told"),
        "{message}"
    );
    // Thousands of long names make no long message.
    let many: Tensors = (0..5000)
        .map(|number| (format!("{number}{}", "x".repeat(1000)), (vec![1], vec![0.0])))
        .collect();
    let file = pdparams(&many);
    let message = self::message(check(&Checkpoint::parse(&file).unwrap(), &text_tensors(&text)));
    assert!(
        message.len() < 4000 && message.contains("and 4994 more"),
        "{message}"
    );
}

/// Files that are given in the place of weights, and what has to be said.
fn mistaken() -> Vec<(&'static str, Vec<u8>, &'static str)> {
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

#[test]
fn what_is_no_checkpoint_is_called_by_its_name() {
    for (what, bytes, expected) in mistaken() {
        let message = message(Checkpoint::parse(&bytes));
        assert!(message.contains(expected), "{what}: {message}");
        assert!(
            !message.contains("expected 0x80") && message.len() < 400,
            "{what}: {message}"
        );
        // The start of it is enough.
        if bytes.len() > 300 {
            let start = &bytes[..300];
            assert_eq!(recognise(start), recognise(&bytes), "{what}");
        }
    }
    // In the place of a model folder's file, read whole or as it arrives.
    for (what, bytes, expected) in mistaken() {
        if matches!(what, "text" | "anything" | "nothing" | "zeros" | "inference") {
            continue;
        }
        let whole = message(SafetensorsFile::parse(&bytes));
        assert!(whole.contains(expected), "{what}: {whole}");
        let mut stream = TensorStream::new(Vec::new());
        if bytes.len() > 100 {
            let arriving = message(stream.feed(&bytes));
            assert!(arriving.contains(expected), "{what}: {arriving}");
        }
    }
    let pickle = read("models/tiny.pdparams");
    let message = message(SafetensorsFile::parse(&pickle));
    assert!(message.contains("the file is a pickle (.pdparams)"), "{message}");
    assert_eq!(recognise(&pickle), None);
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_file() {
    let marked = |bytes: &[u8]| [b"\xef\xbb\xbf", bytes].concat();
    let text = read("models/tiny_text_config.json");
    assert_eq!(
        text_config_from_original(&marked(&text)),
        text_config_from_original(&text)
    );
    let vision = read("models/tiny_vision_config.json");
    assert_eq!(
        vision_config_from_original(&marked(&vision)),
        vision_config_from_original(&vision)
    );
    let vocabulary = read("vocab_tiny.txt");
    // But of a vocabulary's first token, as in the original.
    let parsed = Vocabulary::parse(&marked(&vocabulary)).unwrap();
    assert_eq!((parsed.id("[PAD]"), parsed.id("\u{feff}[PAD]")), (None, Some(0)));
    assert!(message(Tokenizer::new(parsed)).contains("begins with a byte order mark"));
    let manifest = fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/models/scenes/manifest.json"
    ))
    .unwrap();
    assert_eq!(
        Manifest::from_json(&marked(&manifest)),
        Manifest::from_json(&manifest)
    );
    let config = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/models/scenes/config.json")).unwrap();
    assert_eq!(
        ModelConfig::from_json(&marked(&config)),
        ModelConfig::from_json(&config)
    );

    let wide: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let expected = "the text is in UTF-16, by its byte order mark; save it as UTF-8";
    assert!(message(ModelConfig::from_json(&wide)).contains(expected));
    assert!(message(Vocabulary::parse(&wide)).contains(expected));
}

#[test]
fn what_is_no_configuration_and_no_vocabulary_is_called_by_its_name() {
    let (_, pointer, expected) = mistaken().swap_remove(0);
    let (_, page, html) = mistaken().swap_remove(1);
    for message in [
        message(ModelConfig::from_json(&pointer)),
        message(Manifest::from_json(&pointer)),
        message(text_config_from_original(&pointer)),
        message(Vocabulary::parse(&pointer)),
    ] {
        assert!(message.contains(expected), "{message}");
    }
    assert!(message(ModelConfig::from_json(&page)).contains(html));
    assert!(message(Vocabulary::parse(&page)).contains(html));
    assert!(message(ModelConfig::from_json(b" \n")).contains("it is empty, expected JSON"));
    // What is JSON in parts says where it is wrong.
    let broken = message(ModelConfig::from_json(b"{\"format\": 1,}"));
    assert!(broken.contains("line 1 column 14"), "{broken}");
}

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ernie-vil"));
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ERNIE_VIL_")) {
        command.env_remove(name);
    }
    command.output().unwrap()
}

/// `convert` on this file of weights; the folder's fingerprint, or the message.
fn convert(
    folder: &Path,
    weights: &[u8],
    config: &Path,
    image_config: Option<&Path>,
) -> Result<String, String> {
    let path = folder.join("model_state.pdparams");
    fs::write(&path, weights).unwrap();
    let (vocab, output) = (golden("vocab_tiny.txt"), folder.join("model"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut args = vec!["convert".to_owned(), "--overwrite".into()];
    args.extend([
        "--weights".into(),
        text(&path),
        "--text-config".into(),
        text(config),
    ]);
    args.extend(["--vocab".into(), text(&vocab), "--output".into(), text(&output)]);
    args.extend(
        image_config
            .into_iter()
            .flat_map(|path| ["--image-config".into(), text(path)]),
    );
    let output = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

#[test]
fn convert_takes_paddlenlp_s_folder_as_it_is() {
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("config.json");
    fs::write(&config, paddlenlp_config().to_string()).unwrap();
    let ours = needed("tiny");
    let (text, vision) = (
        golden("models/tiny_text_config.json"),
        golden("models/tiny_vision_config.json"),
    );
    let original = convert(folder.path(), &pdparams(&ours), &text, Some(&vision)).unwrap();
    let theirs = convert(
        folder.path(),
        &pdparams(&as_paddlenlp(&ours)),
        &config,
        Some(&config),
    )
    .unwrap();
    assert!(original.contains("fingerprint "));
    assert_eq!(original, theirs);
    let config = fs::read(folder.path().join("model/config.json")).unwrap();
    assert!(ModelConfig::from_json(&config).unwrap().logit_scale.is_some());
}

#[test]
fn convert_says_what_is_wrong_once() {
    let folder = TempDir::new().unwrap();
    let (text, vision) = (
        golden("models/tiny_text_config.json"),
        golden("models/tiny_vision_config.json"),
    );
    let mut broken = needed("tiny");
    broken.get_mut("visual.norm_pre.bias").unwrap().1[3] = f32::NAN;
    let message = convert(folder.path(), &pdparams(&broken), &text, Some(&vision)).unwrap_err();
    assert_eq!(message.matches("value 3 is NaN").count(), 1, "{message}");
    assert_eq!(message.matches("visual.norm_pre.bias").count(), 1, "{message}");
    for (what, bytes, expected) in mistaken() {
        let message = convert(folder.path(), &bytes, &text, Some(&vision)).unwrap_err();
        assert!(
            message.contains("model_state.pdparams: weights: "),
            "{what}: {message}"
        );
        assert_eq!(message.matches(expected).count(), 1, "{what}: {message}");
    }
    // Cut short, and a folder in its place.
    let whole = pdparams(&needed("tiny"));
    let message = convert(folder.path(), &whole[..whole.len() / 2], &text, Some(&vision)).unwrap_err();
    assert!(message.contains("the file is cut short or damaged"), "{message}");
    let path = folder.path().to_str().unwrap();
    let text = text.to_str().unwrap();
    let vocab = golden("vocab_tiny.txt");
    let args = [
        "convert",
        "--weights",
        path,
        "--text-config",
        text,
        "--vocab",
        vocab.to_str().unwrap(),
        "--output",
    ];
    let output = run(&[&args[..], &["nowhere"]].concat());
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains(path) && message.contains("is a folder, expected a file of weights"),
        "{message}"
    );
}
