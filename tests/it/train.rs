//! Training against numbers recorded with PyTorch (tests/train/README.md), and what it promises.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use ernie_vil::train::{
    Batch, Compute, Dropout, EqualTexts, OptimizerSettings, Pair, Schedule, Settings, Trainer, View, Weights,
    check_pairs, contrastive_loss, epoch_order,
};
use ernie_vil::weights::{RandomWeights, SafetensorsFile, TensorSource};
use ernie_vil::{ErnieConfig, ModelConfig, Preprocessing, VitConfig};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::read;

fn recorded(name: &str) -> Vec<u8> {
    read(format!("tests/train/{name}"))
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&recorded(name)).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        value => vec![value.as_f64().unwrap()],
    }
}

fn pairs(value: &Value) -> Vec<Pair> {
    serde_json::from_value(value.clone()).unwrap()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    let values = tensor.into_data().try_into_vec_as::<f32>().unwrap();
    values.into_iter().map(f64::from).collect()
}

fn tensor<const D: usize>(values: &[f64], shape: [usize; D]) -> Tensor<D> {
    let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff()).require_grad()
}

/// Every difference is at most `tolerance`, of numbers above 1 relative to them.
fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f - e).abs() <= tolerance * e.abs().max(1.0),
            "{what}, value {i}: {f}, expected {e}"
        );
    }
}

#[test]
fn the_loss_and_its_gradients_are_pytorchs() {
    let recording = json("loss.json");
    let cases = recording["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let pairs = pairs(&case["pairs"]);
        let views: Vec<View> = View::ALL
            .into_iter()
            .filter(|view| pairs.iter().any(|p| p.0 == *view || p.1 == *view))
            .collect();
        let embeddings: Vec<(View, Tensor<2>)> = views
            .iter()
            .map(|&view| {
                let rows = &recording["embeddings"][view.name()];
                (view, tensor(&numbers(rows), [rows.as_array().unwrap().len(), 7]))
            })
            .collect();
        let temperature = tensor(&[recording["temperature"].as_f64().unwrap()], [1]);
        let groups = &case["groups"];
        let equal = (!groups.is_null()).then(|| {
            let group = |view: &str| match &groups[view] {
                Value::Null => (0..5).collect(),
                numbers => serde_json::from_value(numbers.clone()).unwrap(),
            };
            EqualTexts {
                captions: group("caption"),
                tags: group("tags"),
            }
        });
        let loss = contrastive_loss(&embeddings, &pairs, temperature.clone(), equal.as_ref());
        let terms: Vec<f64> = loss.terms.iter().flat_map(|t| values(t.clone())).collect();
        assert_close(name, &values(loss.total.clone()), &numbers(&case["loss"]), 1e-5);
        assert_close(name, &terms, &numbers(&case["terms"]), 1e-5);
        let gradients = loss.total.backward();
        for (view, x) in &embeddings {
            let found = values(x.grad(&gradients).unwrap());
            let expected = numbers(&case["gradients"][view.name()]);
            assert_close(&format!("{name}, {}", view.name()), &found, &expected, 1e-5);
        }
        let found = values(temperature.grad(&gradients).unwrap());
        assert_close(name, &found, &numbers(&case["temperature_gradient"]), 1e-5);
    }
}

/// Two rows, image embeddings (1, 0) and (0, 1), captions at angles of 30 and 120 degrees, scale s = 2.
/// With c = cos 30 and d = cos 60, the logits are s c on the diagonal; row 0's other is -s d and row 1's is s d. Let
/// p = e^(-s d) / (e^(s c) + e^(-s d)) and q = e^(s d) / (e^(s c) + e^(s d)), which are what row 0 and row 1, and so
/// columns 1 and 0, give to the wrong one. The loss is -(ln(1 - p) + ln(1 - q)) / 2. Its derivative by the logit of a
/// true pair is -(p + q) / 4, by that of row 0 and column 1 p / 2, by that of row 1 and column 0 q / 2; and by
/// ln s it is the sum of these times the logits.
#[test]
fn the_loss_and_its_gradients_are_those_computed_by_hand() {
    let (s, c, d) = (2.0f64, 30f64.to_radians().cos(), 0.5);
    let p = (-s * d).exp() / ((s * c).exp() + (-s * d).exp());
    let q = (s * d).exp() / ((s * c).exp() + (s * d).exp());
    let expected = -((1.0 - p).ln() + (1.0 - q).ln()) / 2.0;
    let (by_true, by_01, by_10) = (-(p + q) / 4.0, p / 2.0, q / 2.0);
    let by_temperature = 2.0 * by_true * s * c + by_01 * -s * d + by_10 * s * d;
    // A gradient by an embedding of length 1 is s times the sum of the other side's vectors, less its part along the
    // embedding itself.
    let captions = [[c, d], [-d, c]];
    let sum = [
        [
            by_true * captions[0][0] + by_01 * captions[1][0],
            by_true * captions[0][1] + by_01 * captions[1][1],
        ],
        [
            by_10 * captions[0][0] + by_true * captions[1][0],
            by_10 * captions[0][1] + by_true * captions[1][1],
        ],
    ];
    let by_images = [0.0, s * sum[0][1], s * sum[1][0], 0.0];

    let images = tensor(&[1.0, 0.0, 0.0, 1.0], [2, 2]);
    let texts = tensor(&captions.concat(), [2, 2]);
    let temperature = tensor(&[s.ln()], [1]);
    let embeddings = [(View::Image, images.clone()), (View::Caption, texts)];
    let pair = [Pair(View::Image, View::Caption, 1.0)];
    let loss = contrastive_loss(&embeddings, &pair, temperature.clone(), None);
    assert_close("loss", &values(loss.total.clone()), &[expected], 1e-6);
    let gradients = loss.total.backward();
    assert_close(
        "images",
        &values(images.grad(&gradients).unwrap()),
        &by_images,
        1e-6,
    );
    let found = values(temperature.grad(&gradients).unwrap());
    assert_close("temperature", &found, &[by_temperature], 1e-6);
}

/// The recorded small model and its batch.
struct Tiny {
    config: ModelConfig,
    batch: Batch,
    settings: Settings,
    recording: Value,
    tensors: Vec<u8>,
    weights: Vec<u8>,
}

impl Tiny {
    /// The recorded gradients, by the weights' names.
    fn gradients(&self) -> BTreeMap<String, Vec<f64>> {
        let file = SafeTensors::deserialize(&self.tensors).unwrap();
        let of_weights = file.tensors().into_iter().filter_map(|(name, view)| {
            let name = name.strip_prefix("gradient.")?;
            Some((name.to_owned(), floats(view.data())))
        });
        of_weights.collect()
    }

    fn read() -> Self {
        let recording = json("tiny_step.json");
        let tensors = recorded("tiny_step.safetensors");
        let part = |name: &str| recording["config"][name].clone();
        let config = model(
            serde_json::from_value(part("image")).unwrap(),
            serde_json::from_value(part("text")).unwrap(),
        );
        let ids = |view: &str| -> Vec<Vec<u32>> {
            let mut rows: Vec<Vec<u32>> = serde_json::from_value(recording["ids"][view].clone()).unwrap();
            for row in &mut rows {
                row.truncate(row.iter().rposition(|&id| id != 0).unwrap() + 1);
            }
            rows
        };
        let file = SafeTensors::deserialize(&tensors).unwrap();
        let pixels = |name: &str| -> Vec<f32> {
            let bytes = file.tensor(name).unwrap().data().to_vec();
            bytes.into_iter().map(|b| f32::from(b) / 64.0 - 2.0).collect()
        };
        let batch = Batch {
            image_size: 32,
            image: pixels("pixels.image"),
            image_2: pixels("pixels.image_2"),
            captions: ids("caption"),
            tags: ids("tags"),
        };
        let settings = Settings {
            pairs: pairs(&recording["pairs"]),
            dropout: Dropout::default(),
            ..settings(6)
        };
        Self {
            config,
            batch,
            settings,
            tensors: tensors.clone(),
            weights: recorded("tiny_weights.safetensors"),
            recording,
        }
    }

    fn trainer(&self, settings: Settings) -> Trainer {
        let weights = SafetensorsFile::parse(&self.weights).unwrap();
        Trainer::new(&weights, self.config.clone(), settings, &Device::flex()).unwrap()
    }
}

fn model(image: VitConfig, text: ErnieConfig) -> ModelConfig {
    ModelConfig {
        format: ModelConfig::FORMAT,
        name: "small".into(),
        published: None,
        note: None,
        max_text_tokens: text.max_positions,
        image: image.into(),
        text,
        preprocessing: Preprocessing::Original,
        logit_scale: None,
        fingerprint: String::new(),
        sources: Vec::new(),
    }
}

fn settings(rows_at_once: usize) -> Settings {
    Settings {
        pairs: vec![
            Pair(View::Image, View::Caption, 1.0),
            Pair(View::Image, View::Image2, 0.5),
            Pair(View::Caption, View::Caption2, 0.25),
            Pair(View::Image, View::Tags, 0.75),
        ],
        mask_equal_texts: false,
        rows_at_once,
        dropout: Dropout {
            hidden: 0.1,
            attention: 0.1,
        },
        optimizer: OptimizerSettings::default(),
        // A constant rate.
        schedule: Schedule {
            peak: 1e-3,
            warmup_steps: 0,
            steps: u64::MAX,
        },
        freeze_image: false,
        freeze_text: false,
        seed: 7,
        compute: Compute::Auto,
    }
}

fn all(weights: &Weights) -> BTreeMap<String, Vec<f64>> {
    let read = |name: &String| match weights.read(name).unwrap() {
        ernie_vil::weights::TensorData::F32(values) => values.iter().map(|&x| f64::from(x)).collect(),
        other => panic!("{other:?}"),
    };
    weights
        .names()
        .iter()
        .map(|name| (name.clone(), read(name)))
        .collect()
}

/// By the fused kernels, and by Burn's operations as on a card.
#[test]
fn the_gradient_of_every_weight_is_pytorchs() {
    for compute in [Compute::Auto, Compute::Burn] {
        let tiny = Tiny::read();
        let trainer = tiny.trainer(Settings {
            compute,
            ..tiny.settings.clone()
        });
        let gradients = trainer.gradients(&tiny.batch);
        let step = &tiny.recording["steps"][0];
        assert_close("loss", &[gradients.loss.into()], &numbers(&step["loss"]), 1e-5);
        let terms: Vec<f64> = gradients.terms.iter().map(|&x| x.into()).collect();
        assert_close("terms", &terms, &numbers(&step["terms"]), 1e-5);
        let found = all(&trainer
            .model()
            .named_gradients(&tiny.config, &gradients.parameters));
        let recorded = tiny.gradients();
        for (name, expected) in &recorded {
            assert_close(&format!("{compute:?}, {name}"), &found[name], expected, 1e-5);
        }
        assert_eq!(recorded.len(), found.len());
    }
}

/// The same in bfloat16: each gradient points where the recorded one does.
#[test]
fn gradients_in_bfloat16_point_the_same_way() {
    let tiny = Tiny::read();
    let trainer = tiny.trainer(Settings {
        compute: Compute::BurnBf16,
        ..tiny.settings.clone()
    });
    let gradients = trainer.gradients(&tiny.batch);
    let expected = tiny.recording["steps"][0]["loss"].as_f64().unwrap();
    let loss = f64::from(gradients.loss);
    assert!(
        (loss - expected).abs() < 0.02 * expected,
        "{loss}, expected {expected}"
    );
    assert!((loss - expected).abs() > 1e-6, "it was not bfloat16");
    let found = all(&trainer
        .model()
        .named_gradients(&tiny.config, &gradients.parameters));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (mut together, mut of_found, mut of_recorded) = (0.0, 0.0, 0.0);
    for (name, expected) in tiny.gradients() {
        let found = &found[&name];
        together += dot(found, &expected);
        of_found += dot(found, found);
        of_recorded += dot(&expected, &expected);
    }
    let cosine = together / (of_found * of_recorded).sqrt();
    println!("cosine of the whole gradient {cosine:.6}");
    assert!(cosine > 0.999, "{cosine}");
    assert!((of_found / of_recorded).sqrt() - 1.0 < 0.02);
}

fn floats(bytes: &[u8]) -> Vec<f64> {
    let floats = bytes.as_chunks().0.iter();
    floats.map(|b| f64::from(f32::from_le_bytes(*b))).collect()
}

#[test]
fn three_steps_are_pytorchs() {
    let tiny = Tiny::read();
    let mut trainer = tiny.trainer(tiny.settings.clone());
    for step in tiny.recording["steps"].as_array().unwrap() {
        let report = trainer.step(&tiny.batch).unwrap();
        assert_close("loss", &[report.loss.into()], &numbers(&step["loss"]), 1e-5);
        let norm = f64::from(report.gradient_norm);
        assert_close("gradient norm", &[norm], &numbers(&step["gradient_norm"]), 1e-5);
    }
    let found = all(&trainer.weights());
    let file = SafeTensors::deserialize(&tiny.tensors).unwrap();
    let mut compared = 0;
    for (name, view) in file.tensors() {
        let Some(name) = name.strip_prefix("after.") else {
            continue;
        };
        // The gradient is zero but for rounding, and Adam makes a whole step of rounding.
        let is_noise = name.ends_with("attn.k.bias");
        let expected = floats(view.data());
        let every = if found[name].len() > 512 { 8 } else { 1 };
        let found: Vec<f64> = found[name].iter().copied().step_by(every).collect();
        assert_close(name, &found, &expected, if is_noise { 4e-3 } else { 1e-5 });
        compared += 1;
    }
    assert_eq!(compared, found.len());
}

#[test]
fn gradients_of_parts_are_those_of_the_whole_batch() {
    let tiny = Tiny::read();
    let whole = tiny.trainer(tiny.settings.clone());
    let expected = whole.gradients(&tiny.batch);
    let expected_values = all(&whole.model().named_gradients(&tiny.config, &expected.parameters));
    // Parts of one length, and a last one that is shorter.
    for rows_at_once in [1, 2, 4, 5] {
        let trainer = tiny.trainer(Settings {
            rows_at_once,
            ..tiny.settings.clone()
        });
        let gradients = trainer.gradients(&tiny.batch);
        assert!((gradients.loss - expected.loss).abs() < 1e-5);
        let found = all(&trainer
            .model()
            .named_gradients(&tiny.config, &gradients.parameters));
        assert_eq!(found.len(), expected_values.len());
        for (name, expected) in &expected_values {
            assert_close(name, &found[name], expected, 1e-5);
        }
    }
}

#[test]
fn dropout_is_the_same_in_both_passes_over_a_part() {
    // A second pass with another choice would give a gradient that does not lower the loss it was computed for: with
    // the same choice, a small step along it does.
    for compute in [Compute::Auto, Compute::Burn, Compute::BurnBf16] {
        let tiny = Tiny::read();
        let settings = Settings {
            rows_at_once: 3,
            dropout: Dropout {
                hidden: 0.3,
                attention: 0.3,
            },
            compute,
            ..tiny.settings.clone()
        };
        let trainer = tiny.trainer(settings);
        let (first, again) = (trainer.gradients(&tiny.batch), trainer.gradients(&tiny.batch));
        assert_eq!(first.loss, again.loss);
        let of = |g| all(&trainer.model().named_gradients(&tiny.config, g));
        assert_eq!(of(&first.parameters), of(&again.parameters));
        let plain = tiny.trainer(tiny.settings.clone()).gradients(&tiny.batch);
        assert_ne!(first.loss, plain.loss);
        assert!(first.terms[2] > plain.terms[2], "two dropout passes differ");
    }
}

fn small() -> (ModelConfig, RandomWeights) {
    let tiny = Tiny::read();
    let weights = RandomWeights::new(&tiny.config.image, &tiny.config.text, 3);
    (tiny.config, weights)
}

#[test]
fn a_resumed_run_is_the_run() {
    let tiny = Tiny::read();
    let (config, weights) = small();
    let new = |source: &dyn TensorSource| {
        Trainer::new(source, config.clone(), settings(4), &Device::flex()).unwrap()
    };
    let mut whole = new(&weights);
    let expected: Vec<_> = (0..6).map(|_| whole.step(&tiny.batch).unwrap()).collect();
    let mut first = new(&weights);
    for report in &expected[..3] {
        assert_eq!(first.step(&tiny.batch).unwrap(), *report);
    }
    let (saved, state) = (first.weights(), first.optimizer_state().unwrap());
    let mut second = new(&saved).resume(3, state).unwrap();
    for report in &expected[3..] {
        assert_eq!(second.step(&tiny.batch).unwrap(), *report);
    }
    assert_eq!(second.weights(), whole.weights());
}

#[test]
fn a_step_that_is_not_finite_stops_the_run_and_changes_nothing() {
    let tiny = Tiny::read();
    let mut trainer = tiny.trainer(tiny.settings.clone());
    trainer.step(&tiny.batch).unwrap();
    let before = trainer.weights();
    let mut batch = tiny.batch.clone();
    batch.image[5] = f32::NAN;
    let error = trainer.step(&batch).unwrap_err().to_string();
    assert!(error.contains("step 2: the loss is NaN"), "{error}");
    assert_eq!(trainer.weights(), before);
    assert_eq!(trainer.steps(), 1);
}

#[test]
fn frozen_towers_stay_as_they_are() {
    let tiny = Tiny::read();
    for (freeze_image, freeze_text, rows_at_once) in [(true, false, 6), (false, true, 6), (true, false, 2)] {
        let mut trainer = tiny.trainer(Settings {
            freeze_image,
            freeze_text,
            rows_at_once,
            ..tiny.settings.clone()
        });
        let before = all(&trainer.weights());
        trainer.step(&tiny.batch).unwrap();
        for (name, after) in all(&trainer.weights()) {
            let is_frozen = match name.split('.').next().unwrap() {
                "visual" => freeze_image,
                "text_model" => freeze_text,
                _ => false,
            };
            assert_eq!(before[&name] == after, is_frozen, "{name}");
        }
    }
}

#[test]
fn learns_a_batch_by_heart() {
    for compute in [Compute::Auto, Compute::BurnBf16] {
        let tiny = Tiny::read();
        let mut trainer = tiny.trainer(Settings {
            pairs: vec![Pair(View::Image, View::Caption, 1.0)],
            compute,
            ..tiny.settings.clone()
        });
        let first = trainer.step(&tiny.batch).unwrap().loss;
        let last = (0..40)
            .map(|_| trainer.step(&tiny.batch).unwrap().loss)
            .last()
            .unwrap();
        assert!(last < 0.05 * first, "{compute:?}: {first} to {last}");
    }
}

#[test]
fn a_convolutional_tower_learns_too_and_keeps_its_statistics() {
    let tiny = Tiny::read();
    let image = ernie_vil::EfficientNetConfig {
        image_size: tiny.config.image.image_size(),
        width_multiplier: 0.1,
        depth_multiplier: 0.4,
        epsilon: 1e-3,
        projection: Some(tiny.config.text.width),
    };
    let config = ModelConfig {
        image: image.into(),
        ..tiny.config.clone()
    };
    let weights = RandomWeights::new(&config.image, &config.text, 3);
    for compute in [Compute::Auto, Compute::BurnBf16] {
        let settings = Settings {
            pairs: vec![Pair(View::Image, View::Caption, 1.0)],
            compute,
            ..tiny.settings.clone()
        };
        let mut trainer = Trainer::new(&weights, config.clone(), settings, &Device::flex()).unwrap();
        let before = all(&trainer.weights());
        let losses: Vec<_> = (0..15).map(|_| trainer.step(&tiny.batch).unwrap().loss).collect();
        assert!(losses[14] < 0.7 * losses[0], "{compute:?}: {losses:?}");
        for (name, after) in all(&trainer.weights()) {
            if name.starts_with("visual.") {
                assert_eq!(before[&name] == after, name.contains(".running_"), "{name}");
            }
        }
    }
}

#[test]
fn wrong_settings_are_named() {
    let pair = |a, b, w| Pair(a, b, w);
    let wrong = [
        (vec![], "pairs is empty"),
        (
            vec![pair(View::Tags, View::Tags, 1.0)],
            "tags-tags contrasts a view with itself",
        ),
        (
            vec![pair(View::Image, View::Tags, 0.0)],
            "image-tags has a weight",
        ),
        (
            vec![pair(View::Image, View::Tags, f64::NAN)],
            "image-tags has a weight",
        ),
        (
            vec![
                pair(View::Image, View::Tags, 1.0),
                pair(View::Tags, View::Image, 1.0),
            ],
            "tags-image stands there twice",
        ),
    ];
    for (pairs, expected) in wrong {
        let error = check_pairs(&pairs).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let tiny = Tiny::read();
    let mut trainer = tiny.trainer(tiny.settings.clone());
    let one = Batch {
        captions: tiny.batch.captions[..1].to_vec(),
        ..tiny.batch.clone()
    };
    let error = trainer.step(&one).unwrap_err().to_string();
    assert!(error.contains("1 rows, expected at least 2"), "{error}");
    let mut config = tiny.config.clone();
    config.text.width = 64;
    let weights = RandomWeights::new(&config.image, &config.text, 1);
    let Err(error) = Trainer::new(&weights, config, settings(6), &Device::flex()) else {
        panic!("widths that differ")
    };
    assert!(
        error.to_string().contains("image.width is 32 and text.width 64"),
        "{error}"
    );
    let Err(error) = tiny.trainer(settings(6)).resume(3, b"no such state".to_vec()) else {
        panic!("a state that is none")
    };
    assert!(error.to_string().contains("the optimizer's state"), "{error}");
}

#[test]
fn an_epoch_has_every_row_once_in_an_order_of_its_own() {
    let order = epoch_order(1_000, 5, 0);
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..1_000).collect::<Vec<u32>>());
    assert_eq!(order, epoch_order(1_000, 5, 0));
    assert_ne!(order, epoch_order(1_000, 5, 1));
    assert_ne!(order, epoch_order(1_000, 6, 0));
    assert!(epoch_order(0, 5, 0).is_empty());
}
