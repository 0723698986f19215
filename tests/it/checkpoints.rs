//! Checkpoints in other projects' names, and files that are no checkpoints at all.

use burn::tensor::Device;
use ernie_vil::text::{Tokenizer, Vocabulary};
use ernie_vil::towers::{Engine, ImageTower, TextTower};
use ernie_vil::weights::{
    Checkpoint, Manifest, Renamed, SafetensorsFile, TEMPERATURE, TensorSource, TensorStream, check,
    image_tensors, infer_type_tables, infer_vision_config, recognise, text_config_from_original,
    text_tensors, vision_config_from_original,
};
use ernie_vil::{ErnieConfig, ModelConfig, VitConfig};
use serde_json::{Value, json};

use crate::support::{
    Tensors, all, as_paddlenlp, configs, message, mistaken, needed, paddlenlp_config, pdparams, read,
    read_golden,
};

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
    let bytes = read_golden("paddlenlp/model_state.pdparams");
    let checkpoint = Checkpoint::parse(&bytes).unwrap();
    let source = Renamed::new(&checkpoint);
    let config = read_golden("paddlenlp/config.json");
    let image = vision_config_from_original(&config).unwrap();
    let mut text = text_config_from_original(&config).unwrap();
    infer_type_tables(&mut text, &source).unwrap();
    assert_eq!((text.sentence_types, text.task_types), (Some(2), Some(3)));
    let mut needed = [image_tensors(image.clone()), text_tensors(&text)].concat();
    needed.push((TEMPERATURE.into(), vec![1]));
    assert_eq!(check(&source, &needed).unwrap(), [""; 0]);
    let recorded: Value = serde_json::from_slice(&read_golden("paddlenlp/io.json")).unwrap();
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
    let pickle = read_golden("models/tiny.pdparams");
    let message = message(SafetensorsFile::parse(&pickle));
    assert!(message.contains("the file is a pickle (.pdparams)"), "{message}");
    assert_eq!(recognise(&pickle), None);
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_file() {
    let marked = |bytes: &[u8]| [b"\xef\xbb\xbf", bytes].concat();
    let text = read_golden("models/tiny_text_config.json");
    assert_eq!(
        text_config_from_original(&marked(&text)),
        text_config_from_original(&text)
    );
    let vision = read_golden("models/tiny_vision_config.json");
    assert_eq!(
        vision_config_from_original(&marked(&vision)),
        vision_config_from_original(&vision)
    );
    let vocabulary = read_golden("vocab_tiny.txt");
    // But of a vocabulary's first token, as in the original.
    let parsed = Vocabulary::parse(&marked(&vocabulary)).unwrap();
    assert_eq!((parsed.id("[PAD]"), parsed.id("\u{feff}[PAD]")), (None, Some(0)));
    assert!(message(Tokenizer::new(parsed)).contains("begins with a byte order mark"));
    let manifest = read("models/scenes/manifest.json");
    assert_eq!(
        Manifest::from_json(&marked(&manifest)),
        Manifest::from_json(&manifest)
    );
    let config = read("models/scenes/config.json");
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
