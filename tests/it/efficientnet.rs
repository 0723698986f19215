//! The EfficientNet image towers against what timm recorded.

use std::collections::HashMap;

use burn::tensor::Device;
use ernie_vil::towers::{Engine, ImageTower, ImageTowerStream, Step};
use ernie_vil::weights::{
    Bits, Dtype, RandomWeights, Renamed, SafetensorsFile, TensorSource, image_config_from_json,
    image_tensors, write_safetensors,
};
use ernie_vil::{EfficientNetConfig, ErnieConfig, Error, ImageConfig, ModelConfig, Structure};
use serde_json::Value;

use crate::support::{largest_difference, read_golden, skipped};

fn read(name: &str) -> Vec<u8> {
    read_golden(format!("structures/efficientnet/{name}"))
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&read(name)).unwrap()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap_or_else(|| panic!("{value}")) as usize
}

const MODELS: [&str; 3] = ["a", "b", "c"];

fn config(model: &str) -> EfficientNetConfig {
    let recorded = json(&format!("{model}_config.json"));
    let multiplier = |name: &str| recorded[name].as_f64().unwrap();
    EfficientNetConfig {
        image_size: 40,
        width_multiplier: multiplier("channel_multiplier"),
        depth_multiplier: multiplier("depth_multiplier"),
        epsilon: 1e-3,
        projection: None,
    }
}

/// Compares the sizes of stages, stem and head with recorded ones.
fn compare_stages(config: &EfficientNetConfig, recorded: &Value) {
    assert_eq!(config.stem(), number(&recorded["stem"]["out"]));
    assert_eq!(config.features(), number(&recorded["head"]["out"]));
    let blocks = config.blocks();
    for (i, stage) in recorded["stages"].as_array().unwrap().iter().enumerate() {
        let of: Vec<_> = blocks.iter().filter(|block| block.stage == i).collect();
        let field = |name: &str| number(&stage[name]);
        assert_eq!(of.len(), field("repeats"), "{stage}");
        for (index, block) in of.iter().enumerate() {
            let (stride, input, which) = match index {
                0 => (field("stride"), field("in"), "first"),
                _ => (1, field("out"), "rest"),
            };
            assert_eq!((block.index, block.kernel), (index, field("kernel")));
            assert_eq!(
                (block.stride, block.input, block.output),
                (stride, input, field("out"))
            );
            assert_eq!(block.expanded, field(&format!("mid_channels_{which}")), "{stage}");
            assert_eq!(block.squeezed, field(&format!("se_channels_{which}")), "{stage}");
            assert_eq!(block.expands, field("expand") == 6);
        }
    }
}

#[test]
fn sizes_are_the_recorded_ones() {
    let full = json("full_size.json");
    for (config, recorded) in [
        (EfficientNetConfig::b5(), &full["b5"]),
        (EfficientNetConfig::l2(), &full["l2"]),
    ] {
        compare_stages(&config, recorded);
        config.validate().unwrap();
        assert_eq!(config.blocks().len(), number(&recorded["blocks"]));
        assert_eq!(config.width(), number(&recorded["feature_dim"]));
        let tensors = image_tensors(&config);
        // The number of batches of each normalisation is not among ours.
        let counters = number(&recorded["batchnorm_layers"]);
        assert_eq!(
            tensors.len(),
            number(&recorded["tensors_without_classifier"]) - counters
        );
        let parameters =
            number(&recorded["params_without_classifier"]) + number(&recorded["running_stat_values"]);
        assert_eq!(ImageConfig::from(&config).parameters(), parameters as u64);
    }
    for model in MODELS {
        let (config, bytes) = (config(model), read(&format!("{model}.safetensors")));
        compare_stages(&config, &json(&format!("{model}_config.json")));
        let file = SafetensorsFile::parse(&bytes).unwrap();
        let extra = ernie_vil::weights::check(&Renamed::new(&file), &image_tensors(&config)).unwrap();
        assert!(extra.is_empty(), "{extra:?}");
    }
}

#[test]
fn all_four_structures_are_named() {
    for structure in Structure::ALL {
        let config = ModelConfig::from_json(
            serde_json::json!({
                "format": 1, "name": "", "image": structure.image(), "text": structure.text(),
                "max_text_tokens": 48, "fingerprint": "",
            })
            .to_string()
            .as_bytes(),
        )
        .unwrap();
        assert_eq!(config.structure(), structure.name());
        assert_eq!(config.image.width(), config.text.width);
        assert_eq!(
            ModelConfig::from_json(config.to_json().as_bytes()).unwrap(),
            config
        );
        let file = structure
            .name()
            .to_lowercase()
            .replace(" (", "-")
            .replace(')', "");
        let file = crate::support::read(format!("models/configs/{file}.json"));
        assert_eq!(image_config_from_json(&file).unwrap(), config.image);
        let is_cnn = structure.name().contains("CNN");
        assert_eq!(config.to_json().contains("\"kind\": \"efficientnet\""), is_cnn);
    }
}

/// In half precision by Burn, as on an NVIDIA card.
#[test]
fn half_precision_is_near() {
    for model in MODELS {
        let (bytes, io) = (
            read(&format!("{model}.safetensors")),
            read(&format!("{model}_io.safetensors")),
        );
        let (file, recorded) = (
            SafetensorsFile::parse(&bytes).unwrap(),
            SafetensorsFile::parse(&io).unwrap(),
        );
        let size = if model == "b" { 32 } else { 40 };
        let values = |name: &str| {
            let data = recorded.read(&format!("s{size}.{name}")).unwrap();
            data.into_f32().into_owned()
        };
        let config = EfficientNetConfig {
            image_size: size,
            ..config(model)
        };
        for engine in [Engine::BURN_F16, Engine::BURN_BF16] {
            let tower = ImageTower::load(&Renamed::new(&file), &config, &Device::flex(), engine).unwrap();
            let got = tower.embed_raw(&values("input")).unwrap();
            let expected = values("pooled");
            let width = config.width();
            for (got, expected) in got.chunks_exact(width).zip(expected.chunks_exact(width)) {
                let dot =
                    |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum() };
                let cosine = dot(got, expected) / (dot(got, got) * dot(expected, expected)).sqrt();
                println!("{model} {engine:?}: {cosine:.6}");
                assert!(cosine >= 0.999, "{model} {engine:?}: {cosine}");
                assert_ne!(got, expected);
            }
        }
    }
}

#[test]
fn hostile_configurations_are_refused() {
    let good = EfficientNetConfig::b5();
    good.validate().unwrap();
    let message = |config: EfficientNetConfig| match config.validate() {
        Err(Error::Config(message)) => message,
        other => panic!("{other:?} of {config:?}"),
    };
    for bad in [
        0.0,
        -1.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        1e300,
        101.0,
        -0.0,
    ] {
        for field in ["width_multiplier", "depth_multiplier"] {
            let mut config = good.clone();
            match field {
                "width_multiplier" => config.width_multiplier = bad,
                _ => config.depth_multiplier = bad,
            }
            assert!(message(config).contains(field), "{bad}");
        }
    }
    let deep = EfficientNetConfig {
        depth_multiplier: 99.0,
        ..good.clone()
    };
    assert!(message(deep).contains("1584, expected 1 to 1024"));
    for size in [0, 8193, usize::MAX] {
        let config = EfficientNetConfig {
            image_size: size,
            ..good.clone()
        };
        assert!(message(config).contains("image_size"));
    }
    for epsilon in [0.0, -1.0, 1.0, f64::NAN] {
        assert!(
            message(EfficientNetConfig {
                epsilon,
                ..good.clone()
            })
            .contains("epsilon")
        );
    }
    for projection in [Some(0), Some(usize::MAX)] {
        assert!(
            message(EfficientNetConfig {
                projection,
                ..good.clone()
            })
            .contains("projection")
        );
    }
    // The smallest and the largest that are taken have sizes that can be counted.
    for multiplier in [1e-9, 100.0] {
        let config = EfficientNetConfig {
            width_multiplier: multiplier,
            ..good.clone()
        };
        config.validate().unwrap();
        assert!(ImageConfig::from(&config).parameters() > 0);
    }
    let parse = |json: &str| serde_json::from_str::<ImageConfig>(json).unwrap_err().to_string();
    assert!(
        parse(r#"{"kind": "resnet", "image_size": 1}"#)
            .contains(r#"kind is "resnet", expected "efficientnet""#)
    );
    assert!(
        parse(r#"{"kind": "efficientnet", "image_size": 1}"#).contains("missing field `width_multiplier`")
    );
    let unknown = r#"{"kind": "efficientnet", "image_size": 1, "width_multiplier": 1, "depth_multiplier": 1, "heads": 1}"#;
    assert!(parse(unknown).contains("unknown field `heads`"));
    assert!(parse(r#"{"image_size": 1, "heads": 1, "depth_multiplier": 1}"#).contains("unknown field"));
}

/// Recorded values by name: shape and values.
type Recording = HashMap<String, (Vec<usize>, Vec<f32>)>;

fn recording(model: &str) -> Recording {
    let bytes = read(&format!("{model}_io.safetensors"));
    let file = SafetensorsFile::parse(&bytes).unwrap();
    let one = |name: String| {
        let values = file.read(&name).unwrap().into_f32().into_owned();
        (name.clone(), (file.shape(&name).unwrap(), values))
    };
    file.names().into_iter().map(one).collect()
}

/// [images, channels, places] to [images, places, channels].
fn channels_last(values: &[f32], images: usize, channels: usize) -> Vec<f32> {
    let places = values.len() / (images * channels);
    let mut out = Vec::with_capacity(values.len());
    for image in values.chunks_exact(channels * places) {
        for place in 0..places {
            out.extend(image.iter().skip(place).step_by(places));
        }
    }
    out
}

fn tower(model: &str, engine: Engine) -> ImageTower {
    let bytes = read(&format!("{model}.safetensors"));
    let file = SafetensorsFile::parse(&bytes).unwrap();
    ImageTower::load(&Renamed::new(&file), config(model), &Device::flex(), engine).unwrap()
}

/// Compares every recorded point; returns how many there were.
fn compare(steps: &[Step], recording: &Recording, size: &str, images: usize) -> usize {
    let mut compared = 0;
    for (name, (shape, values)) in recording {
        let Some(step) = name
            .strip_prefix(&format!("{size}."))
            .filter(|&step| step != "input")
        else {
            continue;
        };
        // Inside of blocks the first image alone was recorded.
        if step.starts_with("block") && images != 1 {
            continue;
        }
        let values = &values[..values.len() / shape[0] * images];
        let found = steps.iter().find(|found| found.name == format!("visual.{step}"));
        let found = found.unwrap_or_else(|| panic!("no step {step}"));
        let tolerance = if step == "pooled" { 3e-5 } else { 5e-5 };
        let difference = match found.shape.len() {
            4 => largest_difference(&found.values, values),
            _ => largest_difference(&found.values, &channels_last(values, images, shape[1])),
        };
        assert!(difference < tolerance, "{name}: {difference:e}");
        compared += 1;
    }
    compared
}

#[cfg(feature = "wgpu")]
#[test]
fn every_recorded_point_on_a_graphics_card() {
    use ernie_vil::gpu::Gpu;
    let gpu = match pollster::block_on(Gpu::open(true)) {
        Ok(gpu) => gpu,
        Err(error) => return skipped(error),
    };
    for model in MODELS {
        let recording = recording(model);
        let bytes = read(&format!("{model}.safetensors"));
        let file = SafetensorsFile::parse(&bytes).unwrap();
        let tower =
            ImageTower::load(&Renamed::new(&file), config(model), gpu.device(), gpu.engine()).unwrap();
        for (name, (shape, pixels)) in &recording {
            let Some(size) = name.strip_suffix(".input") else {
                continue;
            };
            let steps = tower.trace_sized(pixels, shape[2], shape[3]).unwrap();
            assert!(compare(&steps, &recording, size, 2) > 8);
            let one = &pixels[..pixels.len() / 2];
            let steps = tower.trace_sized(one, shape[2], shape[3]).unwrap();
            assert!(compare(&steps, &recording, size, 1) > 8);
        }
    }
    // With a projection, batches, and a file that arrives in pieces, as on the host.
    let config = EfficientNetConfig {
        projection: Some(12),
        ..config("c")
    };
    let host = ImageTower::load(&random(&config), &config, &Device::flex(), Engine::Auto).unwrap();
    let mut file = Vec::new();
    write_safetensors(&mut file, &random(&config), &image_tensors(&config), Dtype::F32).unwrap();
    let mut stream = ImageTowerStream::new(&config, gpu.device(), gpu.engine()).unwrap();
    file.chunks(9_999).for_each(|piece| stream.feed(piece).unwrap());
    let tower = stream.finish().unwrap();
    let pixels = pixels(3 * tower.image_values());
    let (got, expected) = (
        tower.embed_raw(&pixels).unwrap(),
        host.embed_raw(&pixels).unwrap(),
    );
    assert!(
        largest_difference(&got, &expected) < 5e-5,
        "{}",
        largest_difference(&got, &expected)
    );
    let error = |config| {
        let stream = ImageTowerStream::new(config, gpu.device(), gpu.engine());
        stream.err().unwrap().to_string()
    };
    let huge = EfficientNetConfig {
        image_size: 8192,
        ..config.clone()
    };
    assert!(error(huge).contains("expected at most"));
    let odd = EfficientNetConfig {
        projection: Some(6),
        ..config
    };
    assert!(error(odd).contains("image.projection is 6, expected a multiple of 4"));
}

#[test]
fn every_recorded_point() {
    for model in MODELS {
        let recording = recording(model);
        for engine in [Engine::Auto, Engine::BURN] {
            let tower = tower(model, engine);
            let mut compared = 0;
            for (name, (shape, pixels)) in &recording {
                let Some(size) = name.strip_suffix(".input") else {
                    continue;
                };
                let (height, width) = (shape[2], shape[3]);
                let one = pixels.len() / 2;
                let steps = tower.trace_sized(&pixels[..one], height, width).unwrap();
                compared += compare(&steps, &recording, size, 1);
                let steps = tower.trace_sized(pixels, height, width).unwrap();
                compare(&steps, &recording, size, 2);
            }
            let inputs = recording.keys().filter(|name| name.ends_with(".input")).count();
            assert_eq!(compared, recording.len() - inputs, "{model} {engine:?}");
        }
    }
}

fn random(config: &EfficientNetConfig) -> RandomWeights {
    RandomWeights::new(config, &ErnieConfig::base(), 3)
}

fn pixels(values: usize) -> Vec<f32> {
    (0..values)
        .map(|i| ((i * 7919) % 251) as f32 / 125.0 - 1.0)
        .collect()
}

#[test]
fn batch_and_threads_change_nothing() {
    let config = EfficientNetConfig {
        image_size: 75,
        projection: Some(24),
        ..config("a")
    };
    let tower = ImageTower::load(&random(&config), &config, &Device::flex(), Engine::Auto).unwrap();
    let image = tower.image_values();
    let pixels = pixels(7 * image);
    let all = tower.embed_raw(&pixels).unwrap();
    assert_eq!(all.len(), 7 * 24);
    for (pixels, expected) in pixels.chunks(image).zip(all.chunks(24)) {
        assert_eq!(tower.embed_raw(pixels).unwrap(), expected);
    }
    for threads in [1, 3, 5] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        assert_eq!(pool.install(|| tower.embed_raw(&pixels)).unwrap(), all);
    }
    // By Burn it is the same up to rounding.
    let other = ImageTower::load(&random(&config), &config, &Device::flex(), Engine::BURN).unwrap();
    let other = other.embed_raw(&pixels).unwrap();
    assert!(
        largest_difference(&other, &all) < 1e-4,
        "{}",
        largest_difference(&other, &all)
    );
}

#[test]
fn random_weights_keep_activations_near_one() {
    let config = EfficientNetConfig {
        image_size: 96,
        ..EfficientNetConfig::b5()
    };
    let tower = ImageTower::load(&random(&config), &config, &Device::flex(), Engine::Auto).unwrap();
    let steps = tower.trace(&pixels(tower.image_values())).unwrap();
    for step in steps
        .iter()
        .filter(|step| step.name.contains("stage") || step.name.ends_with("pooled"))
    {
        let square = step.values.iter().map(|x| x * x).sum::<f32>() / step.values.len() as f32;
        println!("{} {}", step.name, square.sqrt());
        assert!(
            (0.05..20.0).contains(&square.sqrt()),
            "{}: {}",
            step.name,
            square.sqrt()
        );
    }
}

#[test]
fn a_tower_that_arrives_in_pieces_is_the_same() {
    for projection in [None, Some(12)] {
        let config = EfficientNetConfig {
            projection,
            ..config("b")
        };
        for (engine, dtype, piece) in [
            (Engine::Auto, Dtype::F32, 4_099),
            (Engine::Auto, Dtype::F16, 1 << 20),
            (Engine::BURN, Dtype::F32, 77_777),
        ] {
            let mut file = Vec::new();
            write_safetensors(&mut file, &random(&config), &image_tensors(&config), dtype).unwrap();
            let whole = SafetensorsFile::parse(&file).unwrap();
            let expected = ImageTower::load(&whole, &config, &Device::flex(), engine).unwrap();
            let mut stream = ImageTowerStream::new(&config, &Device::flex(), engine).unwrap();
            file.chunks(piece).for_each(|piece| stream.feed(piece).unwrap());
            let tower = stream.finish().unwrap();
            let pixels = pixels(2 * tower.image_values());
            assert_eq!(tower.embed(&pixels).unwrap(), expected.embed(&pixels).unwrap());
        }
    }
}

/// One value of a tensor is another.
struct Changed<'a>(&'a dyn TensorSource, &'static str, f32);

impl TensorSource for Changed<'_> {
    fn names(&self) -> Vec<String> {
        self.0.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.shape(name)
    }

    fn read(&self, name: &str) -> ernie_vil::Result<ernie_vil::weights::TensorData<'_>> {
        let mut values = self.0.read(name)?.into_f32().into_owned();
        if name == self.1 {
            values[1] = self.2;
        }
        Ok(ernie_vil::weights::TensorData::F32(values.into()))
    }
}

#[test]
fn weights_that_make_no_numbers_are_refused() {
    let config = config("a");
    let random = random(&config);
    for engine in [Engine::Auto, Engine::BURN] {
        let flat = Changed(&random, "visual.bn1.running_var", 0.0);
        let error = |name, value| {
            let loaded = ImageTower::load(&Changed(&flat, name, value), &config, &Device::flex(), engine);
            loaded.err().unwrap().to_string()
        };
        assert_eq!(
            error("visual.blocks.1.0.bn2.running_var", -0.5),
            "weights: visual.blocks.1.0.bn2.running_var: value 1 is -0.5, expected 0 or more"
        );
        assert!(error("visual.bn1.running_mean", 3e38).contains("beyond single precision"));
    }
    let error = tower("a", Engine::Auto).trace_sized(&[0.0; 9], 2, 2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "image: 9 values, expected a multiple of 3 x 2 x 2"
    );
    assert!(tower("a", Engine::Auto).trace_sized(&[], 0, 2).is_err());
    assert!(tower("a", Engine::Auto).trace_sized(&[], usize::MAX, 2).is_err());
}

/// A pack in eight or four bits is expanded when its normalisations are folded in.
#[test]
fn small_packs_load_and_stay_near() {
    let config = ImageConfig::EfficientNet(EfficientNetConfig {
        image_size: 40,
        width_multiplier: 0.3,
        depth_multiplier: 0.25,
        projection: Some(32),
        ..EfficientNetConfig::b5()
    });
    let weights = RandomWeights::new(&config, &ErnieConfig::base(), 1);
    let load =
        |source: &dyn TensorSource| ImageTower::load(source, &config, &Device::flex(), Engine::Auto).unwrap();
    let pixels: Vec<f32> = (0..2 * 3 * 40 * 40)
        .map(|i| (i * 7 % 31) as f32 / 15.0 - 1.0)
        .collect();
    let exact = load(&weights).embed(&pixels).unwrap();
    for (dtype, least) in [
        (Dtype::F16, 0.9999),
        (Dtype::Quantised(Bits::Int8), 0.995),
        (Dtype::Quantised(Bits::Int4), 0.8),
    ] {
        let mut file = Vec::new();
        write_safetensors(&mut file, &weights, &image_tensors(&config), dtype).unwrap();
        let packed = load(&SafetensorsFile::parse(&file).unwrap())
            .embed(&pixels)
            .unwrap();
        for row in 0..2 {
            let products = exact.row(row).iter().zip(packed.row(row)).map(|(a, b)| a * b);
            let cosine: f32 = products.sum();
            println!("{dtype}: {cosine}");
            assert!(cosine > least, "{dtype}: cosine {cosine}");
        }
    }
}
