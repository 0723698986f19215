//! The towers against the recorded vectors and intermediate values of the original.

use std::collections::HashMap;
use std::fmt;

use burn::tensor::Device;
#[cfg(feature = "wgpu")]
use ernie_vil::gpu::Gpu;
use ernie_vil::image::{Limits, Pixels, Preprocessor, decode, decode_base64};
use ernie_vil::towers::{
    Attention, BurnOptions, BurnPrecision, Engine, ImageTower, ImageTowerStream, Step, TextTower,
    TextTowerStream, TypedCaption,
};
use ernie_vil::weights::{
    Bits, Checkpoint, Dtype, RandomWeights, Renamed, SafetensorsFile, TensorSource, image_tensors,
    infer_type_tables, text_config_from_original, text_tensors, vision_config_from_original,
    write_safetensors,
};
use ernie_vil::{Activation, ErnieConfig, Preprocessing, VitConfig};
use safetensors::SafeTensors;

use crate::support::{MODELS, configs, partly_skipped, read_golden};

/// What computes.
enum On {
    Host,
    Burn,
    Split,
    Fused,
    #[cfg(feature = "wgpu")]
    Gpu(Gpu),
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            On::Host => write!(f, "on the host"),
            On::Burn => write!(f, "by Burn"),
            On::Split => write!(f, "by Burn, in halves"),
            On::Fused => write!(f, "by Burn's attention"),
            #[cfg(feature = "wgpu")]
            On::Gpu(gpu) => write!(f, "on {:?}", gpu.name()),
        }
    }
}

/// Everything that can compute here; a program may stand in for a graphics card.
fn everything() -> Vec<On> {
    #[allow(unused_mut)]
    let mut found = vec![On::Host, On::Burn, On::Split, On::Fused];
    #[cfg(feature = "wgpu")]
    match pollster::block_on(Gpu::open(true)) {
        Ok(gpu) => found.push(On::Gpu(gpu)),
        Err(error) => partly_skipped(format!("no graphics card: {error}")),
    }
    found
}

/// The float and the integer tensors of a recording.
struct Recording(HashMap<String, (Vec<usize>, Vec<f64>)>);

impl Recording {
    fn read(name: &str) -> Self {
        let bytes = read_golden(name);
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let values = |view: safetensors::tensor::TensorView<'_>| match view.dtype() {
            safetensors::Dtype::F32 => view
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|b| f64::from(f32::from_le_bytes(*b)))
                .collect(),
            safetensors::Dtype::I64 => view
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|b| i64::from_le_bytes(*b) as f64)
                .collect(),
            safetensors::Dtype::U8 => view.data().iter().map(|&x| x.into()).collect(),
            other => panic!("{other:?}"),
        };
        let all = tensors.tensors().into_iter();
        Self(
            all.map(|(name, view)| (name, (view.shape().to_vec(), values(view))))
                .collect(),
        )
    }

    fn get(&self, name: &str) -> &[f64] {
        &self
            .0
            .get(name)
            .unwrap_or_else(|| panic!("{name} was not recorded"))
            .1
    }
}

fn largest_difference(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    got.iter()
        .zip(expected)
        .map(|(a, b)| (f64::from(*a) - b).abs())
        .fold(0.0, f64::max)
}

impl On {
    fn is_gpu(&self) -> bool {
        !matches!(self, On::Host) && !self.is_burn()
    }

    fn is_burn(&self) -> bool {
        matches!(self, On::Burn | On::Split | On::Fused)
    }

    fn device(&self) -> Device {
        match self {
            #[cfg(feature = "wgpu")]
            On::Gpu(gpu) => gpu.device().clone(),
            _ => Device::flex(),
        }
    }

    fn engine(&self) -> Engine {
        match self {
            #[cfg(feature = "wgpu")]
            On::Gpu(gpu) => gpu.engine(),
            On::Host => Engine::Auto,
            On::Split => Engine::BURN_SINGLE,
            On::Fused => Engine::Burn(BurnOptions {
                attention: Attention::Fused,
                ..BurnOptions::default()
            }),
            _ => Engine::BURN,
        }
    }

    fn image(&self, source: &dyn TensorSource, config: &VitConfig) -> ImageTower {
        ImageTower::load(source, config, &self.device(), self.engine()).unwrap()
    }

    fn text(&self, source: &dyn TensorSource, config: &ErnieConfig) -> TextTower {
        TextTower::load(source, config, &self.device(), self.engine()).unwrap()
    }

    fn image_stream(&self, config: &VitConfig) -> ImageTowerStream {
        ImageTowerStream::new(config, &self.device(), self.engine()).unwrap()
    }

    fn text_stream(&self, config: &ErnieConfig) -> TextTowerStream {
        TextTowerStream::new(config, &self.device(), self.engine()).unwrap()
    }
}

fn towers(model: &str, on: &On) -> (ImageTower, TextTower) {
    let bytes = read_golden(format!("models/{model}.pdparams"));
    let weights = Checkpoint::parse(&bytes).unwrap();
    let (image, text) = configs(model);
    (on.image(&weights, &image), on.text(&weights, &text))
}

/// The 40 rows' pixels, from the recorded crops.
fn pixels() -> Vec<f32> {
    let list: Vec<serde_json::Value> =
        serde_json::from_slice::<serde_json::Value>(&read_golden("images.json"))
            .map(|json| match json {
                serde_json::Value::Array(list) => list,
                serde_json::Value::Object(map) => map
                    .into_iter()
                    .map(|(name, mut entry)| {
                        entry["file"] = name.into();
                        entry
                    })
                    .collect(),
                other => panic!("{other}"),
            })
            .unwrap();
    let mut files: Vec<String> = list
        .iter()
        .filter(|entry| entry["group"] == "tsv")
        .map(|entry| entry["file"].as_str().unwrap().to_owned())
        .collect();
    files.sort();
    assert_eq!(files.len(), 40);
    let preprocessor = Preprocessor::new(224);
    let mut out = vec![0.0; 40 * 3 * 224 * 224];
    for (file, out) in files.iter().zip(out.chunks_exact_mut(3 * 224 * 224)) {
        let png = read_golden(format!("crop224/{}.png", file.replace('.', "_")));
        let crop = decode(&png, &Limits::default()).unwrap();
        preprocessor.tensor_into(&crop, out);
    }
    out
}

fn rows(recording: &Recording) -> Vec<Vec<u32>> {
    let ids = recording.get("input_ids");
    ids.chunks_exact(48)
        .map(|row| row.iter().map(|&id| id as u32).collect())
        .collect()
}

fn slices(rows: &[Vec<u32>]) -> Vec<&[u32]> {
    rows.iter().map(Vec::as_slice).collect()
}

#[test]
fn vectors_of_all_models() {
    let pixels = pixels();
    for model in MODELS {
        let recording = Recording::read(&format!("embeddings_{model}.safetensors"));
        let ids = rows(&recording);
        for on in everything() {
            let (image, text) = towers(model, &on);
            let image_raw =
                largest_difference(&image.embed_raw(&pixels).unwrap(), recording.get("image_raw"));
            let text_raw =
                largest_difference(&text.embed_raw(&slices(&ids)).unwrap(), recording.get("text_raw"));
            let embedded = image.embed(&pixels).unwrap();
            let image_normalised = largest_difference(embedded.data(), recording.get("image_normalised"));
            let embedded = text.embed(&slices(&ids)).unwrap();
            let text_normalised = largest_difference(embedded.data(), recording.get("text_normalised"));
            println!(
                "{model} {on}: raw {image_raw:.1e} {text_raw:.1e}, normalised {image_normalised:.1e} {text_normalised:.1e}"
            );
            assert!(image_normalised < 1e-5 && text_normalised < 1e-5, "{model} {on}");
            assert!(image_raw < 1e-4 && text_raw < 1e-4, "{model} {on}");
        }
    }
}

/// The least cosine of two rows.
fn least_cosine(got: &[f32], expected: &[f64], width: usize) -> f64 {
    assert_eq!(got.len(), expected.len());
    let cosine = |(a, b): (&[f32], &[f64])| {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let a: Vec<f64> = a.iter().map(|&a| a.into()).collect();
        dot(&a, b) / (dot(&a, &a) * dot(b, b)).sqrt()
    };
    let rows = got.chunks_exact(width).zip(expected.chunks_exact(width));
    rows.map(cosine).fold(1.0, f64::min)
}

/// Half precision by Burn, as on an NVIDIA card.
#[test]
fn vectors_in_half_precision() {
    let pixels = pixels();
    for model in MODELS {
        let recording = Recording::read(&format!("embeddings_{model}.safetensors"));
        let bytes = read_golden(format!("models/{model}.pdparams"));
        let weights = Checkpoint::parse(&bytes).unwrap();
        let (image, text) = configs(model);
        let ids = rows(&recording);
        let device = Device::flex();
        let fused = |precision| {
            Engine::Burn(BurnOptions {
                precision,
                attention: Attention::Fused,
            })
        };
        for engine in [
            Engine::BURN_F16,
            Engine::BURN_BF16,
            fused(BurnPrecision::F16),
            fused(BurnPrecision::Bf16),
        ] {
            let image = ImageTower::load(&weights, &image, &device, engine).unwrap();
            let text = TextTower::load(&weights, &text, &device, engine).unwrap();
            let vectors = [
                ("image", image.embed(&pixels).unwrap()),
                ("text", text.embed(&slices(&ids)).unwrap()),
            ];
            for (name, vectors) in vectors {
                let expected = recording.get(&format!("{name}_normalised"));
                let cosine = least_cosine(vectors.data(), expected, vectors.dimensions());
                println!("{model} {name} {engine:?}: {cosine:.6}");
                assert!(cosine >= 0.999, "{model} {name} {engine:?}: {cosine}");
                // Else it was not half precision.
                assert!(largest_difference(vectors.data(), expected) > 1e-5);
            }
        }
    }
}

/// Crops go to a device as bytes; there they become bit for bit what the preprocessor makes of them.
#[test]
fn bytes_of_crops_become_the_same_input_everywhere() {
    // Every byte in every channel, and no symmetry that would hide a wrong axis.
    let crops: Vec<u8> = (0..2 * 3 * 224 * 224u32)
        .map(|i| (i * 7 + i / 672 * 11) as u8)
        .collect();
    for profile in [Preprocessing::Original, Preprocessing::PaddleNlp] {
        let preprocessor = Preprocessor::with_profile(224, profile);
        let mut pixels = vec![0.0; crops.len()];
        let values = preprocessor.values();
        for (crop, out) in crops.chunks_exact(values).zip(pixels.chunks_exact_mut(values)) {
            let crop = Pixels::new(224, 224, crop.to_vec()).unwrap();
            preprocessor.tensor_into(&crop, out);
        }
        for on in everything() {
            let (image, _) = towers(MODELS[0], &on);
            let got = image.embed_crops(&crops, &preprocessor).unwrap();
            assert_eq!(got, image.embed(&pixels).unwrap(), "{on} {profile:?}");
            let error = image.embed_crops(&crops[1..], &preprocessor).unwrap_err();
            assert!(error.to_string().contains("301055 values"), "{error}");
            let error = image.embed_crops(&crops, &Preprocessor::new(112)).unwrap_err();
            assert!(
                error.to_string().contains("112 x 112 pixels, expected 224 x 224"),
                "{error}"
            );
        }
    }
}

#[test]
fn vectors_from_the_encoded_files() {
    let tsv = String::from_utf8(read_golden("coco_cn_style.tsv")).unwrap();
    let preprocessor = Preprocessor::new(224);
    let mut pixels = vec![0.0; 40 * 3 * 224 * 224];
    for (line, out) in tsv.lines().zip(pixels.chunks_exact_mut(3 * 224 * 224)) {
        let bytes = decode_base64(line.rsplit('\t').next().unwrap().trim().as_bytes()).unwrap();
        preprocessor
            .preprocess_into(&bytes, &Limits::default(), out)
            .unwrap();
    }
    for model in MODELS {
        let (image, _) = towers(model, &On::Host);
        let recording = Recording::read(&format!("embeddings_{model}.safetensors"));
        let got = image.embed(&pixels).unwrap();
        let expected = recording.get("image_normalised");
        for (row, expected) in expected.chunks_exact(got.dimensions()).enumerate() {
            let cosine: f64 = got
                .row(row)
                .iter()
                .zip(expected)
                .map(|(a, b)| f64::from(*a) * b)
                .sum();
            assert!(cosine >= 0.9999, "{model}, row {row}: cosine {cosine}");
        }
    }
}

/// The step of this name; the last block's steps have the first token's row only.
fn find<'a>(steps: &'a [Step], name: &str) -> &'a Step {
    steps
        .iter()
        .find(|step| step.name == name)
        .unwrap_or_else(|| panic!("no step {name}"))
}

fn compare(steps: &[Step], name: &str, expected: &[f64]) {
    let step = find(steps, name);
    // Where a step computes the first rows only, the recording goes on after them.
    let difference = largest_difference(&step.values, &expected[..step.values.len()]);
    assert!(difference < 1e-5, "{name}: {difference:e}");
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

#[test]
fn every_intermediate_value_of_tiny() {
    let recording = Recording::read("intermediates_tiny.safetensors");
    let embeddings = Recording::read("embeddings_tiny.safetensors");
    let image_values = 3 * 224 * 224;
    let pixels = &pixels()[2 * image_values..3 * image_values];
    let ids = &rows(&embeddings)[9];
    let tokens = ids.iter().filter(|&&id| id != 0).count();
    // Fused attention has rows of padding besides.
    for on in everything().into_iter().filter(|on| !matches!(on, On::Fused)) {
        let (image, text) = towers("tiny", &on);
        let steps = image.trace(pixels).unwrap();
        for name in ["tokens_plus_pos", "norm_pre", "norm_post"] {
            compare(
                &steps,
                &format!("visual.{name}"),
                recording.get(&format!("visual.{name}")),
            );
        }
        compare(&steps, "visual.norm_post", recording.get("visual.embedding"));
        if on.is_burn() {
            compare(&steps, "visual.patch_embed", recording.get("visual.patch_embed"));
        }
        let mut before = recording.get("visual.norm_pre");
        for block in ["visual.block.0", "visual.block.1"] {
            let get = |part: &str| recording.get(&format!("{block}.{part}"));
            compare(&steps, block, recording.get(block));
            compare(&steps, &format!("{block}.norm1"), get("norm1"));
            match on {
                On::Burn | On::Split | On::Fused => {
                    compare(&steps, &format!("{block}.attn"), get("attn"));
                    compare(&steps, &format!("{block}.mlp"), get("mlp"));
                }
                // The kernels add the residual as they store, so that is where they can be seen.
                _ => compare(&steps, &format!("{block}.attended"), &sum(before, get("attn"))),
            }
            before = recording.get(block);
        }

        // The original computes 48 tokens, of which those after the caption's end are padding.
        let steps = text.trace(&[ids]).unwrap();
        for name in ["embedding_sum", "embedding_ln", "pooled"] {
            compare(
                &steps,
                &format!("text.{name}"),
                recording.get(&format!("text.{name}")),
            );
        }
        assert_eq!(find(&steps, "text.embedding_sum").values.len(), tokens * 32);
        let mut before = recording.get("text.embedding_ln");
        for block in ["text.block.0", "text.block.1"] {
            let get = |part: &str| recording.get(&format!("{block}.{part}"));
            compare(&steps, block, recording.get(block));
            compare(&steps, &format!("{block}.ln1"), get("ln1"));
            match on {
                On::Burn | On::Split | On::Fused => {
                    compare(&steps, &format!("{block}.attn"), get("attn"));
                    compare(&steps, &format!("{block}.ffn"), get("ffn"));
                }
                _ => compare(&steps, &format!("{block}.attended"), &sum(before, get("attn"))),
            }
            before = recording.get(block);
        }
    }
}

#[test]
fn batch_padding_and_threads_change_nothing() {
    let pixels = pixels();
    let image_values = 3 * 224 * 224;
    let embeddings = Recording::read("embeddings_mid.safetensors");
    let ids = rows(&embeddings);
    for on in everything() {
        let (image, text) = towers("mid", &on);
        let all_images = image.embed_raw(&pixels).unwrap();
        let all_texts = text.embed_raw(&slices(&ids)).unwrap();
        // The card here is likely a slow one in software.
        let batches: &[usize] = if on.is_gpu() { &[1, 16] } else { &[1, 3, 7, 16] };
        for &batch in batches {
            for (i, chunk) in pixels.chunks(batch * image_values).enumerate() {
                let got = image.embed_raw(chunk).unwrap();
                same(&got, &all_images[i * batch * 64..][..got.len()]);
            }
            for (i, chunk) in ids.chunks(batch).enumerate() {
                let cut: Vec<&[u32]> = chunk
                    .iter()
                    .map(|row| &row[..row.iter().filter(|&&id| id != 0).count()])
                    .collect();
                let got = text.embed_raw(&cut).unwrap();
                same(&got, &all_texts[i * batch * 48..][..got.len()]);
            }
        }
        for threads in [1, 2, 5] {
            if on.is_gpu() {
                break;
            }
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            same(&pool.install(|| image.embed_raw(&pixels)).unwrap(), &all_images);
            same(
                &pool.install(|| text.embed_raw(&slices(&ids))).unwrap(),
                &all_texts,
            );
        }
    }
}

fn same(got: &[f32], expected: &[f32]) {
    for (a, b) in got.iter().zip(expected) {
        assert!((a - b).abs() <= 2e-6, "{a} and {b}");
    }
}

#[test]
fn captions_that_cannot_be_embedded_are_named() {
    let (image, text) = towers("tiny", &On::Host);
    let error = |captions: &[&[u32]]| text.embed(captions).unwrap_err().to_string();
    assert_eq!(
        error(&[&[1, 2], &[]]),
        "text: caption 1: it starts with padding (id 0) or is empty, expected [CLS] first"
    );
    assert_eq!(
        error(&[&[1; 65]]),
        "text: caption 0: 65 tokens, expected at most 64"
    );
    assert_eq!(
        error(&[&[1, 2004]]),
        "text: caption 0: the id 2004, expected less than 2004"
    );
    assert!(
        image
            .embed(&[0.0; 5])
            .unwrap_err()
            .to_string()
            .contains("expected a multiple of 150528")
    );
    assert!(text.embed_raw(&[]).unwrap().is_empty());
}

#[test]
fn tensors_in_and_out() {
    use burn::tensor::{Tensor, TensorData};
    let pixels = pixels()[..2 * 3 * 224 * 224].to_vec();
    let (image, text) = towers("tiny", &On::Host);
    let tensor: Tensor<4> =
        Tensor::from_data(TensorData::new(pixels.clone(), [2, 3, 224, 224]), &Device::flex());
    let out = image.forward(tensor);
    assert_eq!(out.dims(), [2, 32]);
    assert_eq!(
        out.into_data().try_into_vec::<f32>().unwrap(),
        image.embed_raw(&pixels).unwrap()
    );
    let out = text.forward(&[&[1, 5, 2], &[1, 2]]).unwrap();
    assert_eq!(out.dims(), [2, 32]);
}

/// Whole numbers of a recording.
fn numbers(recording: &Recording, name: &str) -> Vec<u32> {
    recording.get(name).iter().map(|&x| x as u32).collect()
}

/// ERNIE 2.0, in Paddle's names and in Hugging Face's: everything that was recorded of rows that hold a
/// token.
#[test]
fn ernie2_is_as_recorded_in_either_names() {
    const LENGTH: usize = 14;
    for (model, form) in ["a", "b", "c"]
        .into_iter()
        .flat_map(|m| [(m, "hf"), (m, "paddle")])
    {
        let file = |name: &str| format!("structures/ernie2/{model}_{name}");
        let recording = Recording::read(&file("io.safetensors"));
        let weights = read_golden(file(&format!("{form}.safetensors")));
        let weights = SafetensorsFile::parse(&weights).unwrap();
        let weights = Renamed::new(&weights);
        let mut config =
            text_config_from_original(&read_golden(file(&format!("config_{form}.json")))).unwrap();
        infer_type_tables(&mut config, &weights).unwrap();
        assert_eq!(
            (config.sentence_types, config.task_types),
            match model {
                "a" => (Some(4), Some(16)),
                "b" => (Some(2), Some(3)),
                _ => (Some(4), None),
            }
        );
        for on in everything() {
            if on.is_gpu() && !config.width.is_multiple_of(4) {
                continue;
            }
            let tower = on.text(&weights, &config);
            for case in ["main", "defaults", "positions"] {
                let all_ids = numbers(&recording, &format!("{case}.input_ids"));
                for (row, ids) in all_ids.chunks_exact(LENGTH).enumerate() {
                    let list = |name: &str| match (case, name, config.task_types) {
                        ("defaults", "position", _) => (0..LENGTH as u32).collect(),
                        ("defaults", ..) | (_, "task", None) => vec![0; LENGTH],
                        _ => numbers(&recording, &format!("{case}.{name}_ids"))[row * LENGTH..][..LENGTH]
                            .to_vec(),
                    };
                    let caption = TypedCaption {
                        ids,
                        positions: &list("position"),
                        sentence_types: &list("sentence"),
                        task_types: &list("task"),
                    };
                    let steps = tower.trace_typed(&caption).unwrap();
                    // Rows of padding are not computed, be it at the end or inside.
                    let recorded = |name: &str| -> Vec<f64> {
                        let of_row = &recording.get(&format!("{case}.{name}"))[row * LENGTH * config.width..];
                        let rows = of_row.chunks_exact(config.width).zip(ids);
                        let real = rows.filter(|(_, id)| **id != 0 || on.is_burn());
                        real.flat_map(|(values, _)| values.to_vec()).collect()
                    };
                    compare(&steps, "text.embedding_ln", &recorded("embeddings"));
                    for layer in (0..config.depth).filter(|_| case == "main") {
                        compare(
                            &steps,
                            &format!("text.block.{layer}"),
                            &recorded(&format!("layer{layer}")),
                        );
                    }
                    let pooled = recording.get(&format!("{case}.pooled"));
                    compare(
                        &steps,
                        "text.pooled",
                        &pooled[row * config.width..][..config.width],
                    );
                }
            }
            // The usual way: positions from 0, all types 0.
            let ids = numbers(&recording, "defaults.input_ids");
            let rows: Vec<&[u32]> = ids.chunks_exact(LENGTH).collect();
            let difference =
                largest_difference(&tower.embed_raw(&rows).unwrap(), recording.get("defaults.pooled"));
            println!("{model} {form} {on}: {difference:.1e}");
            assert!(difference < 1e-5, "{model} {form} {on}");
        }
    }
}

/// The large structure at small widths: 257 tokens, 16 heads.
#[test]
fn the_large_structure_is_as_recorded() {
    let file = |name: &str| format!("structures/large_vit/{name}");
    let recording = Recording::read(&file("io.safetensors"));
    let image = vision_config_from_original(&read_golden(file("vision_config.json"))).unwrap();
    let text = text_config_from_original(&read_golden(file("text_config.json"))).unwrap();
    let bytes = [
        read_golden(file("model.pdparams")),
        read_golden(file("model.safetensors")),
    ];
    let checkpoint = Checkpoint::parse(&bytes[0]).unwrap();
    let tensors = SafetensorsFile::parse(&bytes[1]).unwrap();
    let pixels = recording
        .get("pixels_u8")
        .iter()
        .map(|&x| (x as f32 - 128.0) / 64.0);
    let pixels: Vec<f32> = pixels.collect();
    let ids = rows(&recording);
    for source in [&checkpoint as &dyn TensorSource, &tensors] {
        for on in everything() {
            let (image, text) = (on.image(source, &image), on.text(source, &text));
            for (name, got) in [
                ("image_raw", image.embed_raw(&pixels).unwrap()),
                ("text_raw", text.embed_raw(&slices(&ids)).unwrap()),
                ("image_normalised", image.embed(&pixels).unwrap().data().to_vec()),
                (
                    "text_normalised",
                    text.embed(&slices(&ids)).unwrap().data().to_vec(),
                ),
            ] {
                let difference = largest_difference(&got, recording.get(name));
                println!("{name} {on}: {difference:.1e}");
                assert!(difference < 1e-5, "{name} {on}");
            }
            let steps = image.trace(&pixels[..image.image_values()]).unwrap();
            for name in ["norm_pre", "block.0", "block.1", "norm_post"] {
                let name = format!("visual.{name}");
                let step = find(&steps, &name);
                let all: Vec<&[f32]> = step.values.chunks_exact(64).collect();
                // After the last block only the class token is left.
                let kept = [0, 1, 2, 16, 17, 128, 241, 256]
                    .into_iter()
                    .filter(|&token| token < all.len());
                let got: Vec<f32> = kept.flat_map(|token| all[token].to_vec()).collect();
                let expected = &recording.get(&format!("{name}.tokens"))[..got.len()];
                assert!(largest_difference(&got, expected) < 2e-5, "{name} {on}");
            }
            let steps = text.trace(&[&ids[1]]).unwrap();
            for name in ["embedding_ln", "block.0", "block.1", "block.2"] {
                let name = format!("text.{name}");
                compare(&steps, &name, recording.get(&name));
            }
        }
    }
}

/// Sizes that nothing recorded has: odd widths, one head, sentence and task types, one block and more.
#[test]
fn all_agree_on_other_structures() {
    let vit = |image_size, patch_size, width, depth, heads, mlp_width| VitConfig {
        image_size,
        patch_size,
        width,
        depth,
        heads,
        mlp_width,
        epsilon: 1e-6,
    };
    let ernie = |width, depth, heads, query_head_width, value_head_width, activation, types| ErnieConfig {
        vocab_size: 97,
        max_positions: 40,
        width,
        depth,
        heads,
        query_head_width,
        value_head_width,
        mlp_width: width * 3 + 1,
        activation,
        epsilon: 1e-5,
        sentence_types: types,
        task_types: types,
    };
    let structures = [
        (
            vit(96, 12, 130, 3, 2, 517),
            ernie(130, 3, 2, 65, 65, Activation::Gelu, Some(4)),
        ),
        (
            vit(8, 8, 5, 1, 5, 1),
            ernie(7, 1, 1, 3, 50, Activation::Relu, None),
        ),
        // Graphics cards take widths that are a multiple of 4: from here on.
        (
            vit(30, 5, 36, 2, 1, 40),
            ernie(32, 2, 3, 1, 1, Activation::Gelu, Some(1)),
        ),
        (
            vit(28, 14, 20, 2, 2, 99),
            ernie(20, 2, 3, 7, 50, Activation::Relu, Some(2)),
        ),
        (
            vit(160, 8, 128, 1, 1, 4),
            ernie(36, 1, 2, 72, 4, Activation::Gelu, None),
        ),
    ];
    let captions: Vec<Vec<u32>> = (1..40)
        .map(|n| (0..n).map(|i| 1 + (n * 31 + i * 7) % 96).collect())
        .collect();
    for (image_config, text_config) in structures {
        let weights = RandomWeights::new(&image_config, &text_config, 5);
        let everything = everything();
        let those = |width: usize| {
            let takes = move |on: &&On| !on.is_gpu() || width.is_multiple_of(4);
            everything.iter().filter(takes)
        };
        let images = those(image_config.width).map(|on| {
            let image = on.image(&weights, &image_config);
            let pixels: Vec<f32> = (0..5 * image.image_values())
                .map(|i| (i % 17) as f32 / 8.0 - 1.0)
                .collect();
            image.embed_raw(&pixels).unwrap()
        });
        let texts = those(text_config.width).map(|on| {
            let text = on.text(&weights, &text_config);
            text.embed_raw(&slices(&captions)).unwrap()
        });
        let [images, texts]: [Vec<Vec<f32>>; 2] = [images.collect(), texts.collect()];
        for results in [images, texts] {
            assert!(results[0].iter().any(|&x| x.abs() > 0.01));
            for other in &results[1..] {
                assert_eq!(other.len(), results[0].len());
                for (a, b) in results[0].iter().zip(other) {
                    assert!(
                        (a - b).abs() < 2e-5,
                        "{a} and {b} for {image_config:?}, {text_config:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn missing_weights_are_all_listed() {
    let (image, text) = configs("tiny");
    let deeper = VitConfig {
        depth: 4,
        ..image.clone()
    };
    let weights = RandomWeights::new(&image, &text, 1);
    let error = ImageTower::load(&weights, &deeper, &Device::flex(), Engine::Auto)
        .err()
        .unwrap()
        .to_string();
    for name in ["visual.blocks.2.attn.qkv.weight", "visual.blocks.3.norm1.bias"] {
        assert!(error.contains(name), "{error}");
    }
}

/// Both towers' files.
fn files(model: &str, dtype: Dtype) -> [Vec<u8>; 2] {
    let bytes = read_golden(format!("models/{model}.pdparams"));
    let weights = Checkpoint::parse(&bytes).unwrap();
    let (image, text) = configs(model);
    [image_tensors(&image), text_tensors(&text)].map(|tensors| {
        let mut file = Vec::new();
        write_safetensors(&mut file, &weights, &tensors, dtype).unwrap();
        file
    })
}

#[test]
fn a_tower_that_arrives_in_pieces_is_the_same() {
    let recording = Recording::read("embeddings_tiny.safetensors");
    let rows = rows(&recording);
    let pixels = pixels();
    let (image, text) = configs("tiny");
    for on in everything() {
        for (dtype, piece) in [
            (Dtype::F32, 1 << 20),
            (Dtype::F16, 4_099),
            (Dtype::F32, 777),
            (Dtype::Quantised(Bits::Int8), 1_001),
            (Dtype::Quantised(Bits::Int4), 5_003),
        ] {
            let [image_file, text_file] = files("tiny", dtype);
            let whole = SafetensorsFile::parse(&image_file).unwrap();
            let expected = on.image(&whole, &image);
            let mut stream = on.image_stream(&image);
            image_file
                .chunks(piece)
                .for_each(|piece| stream.feed(piece).unwrap());
            let tower = stream.finish().unwrap();
            assert_eq!(tower.embed(&pixels).unwrap(), expected.embed(&pixels).unwrap());

            let whole = SafetensorsFile::parse(&text_file).unwrap();
            let expected = on.text(&whole, &text);
            let mut stream = on.text_stream(&text);
            text_file
                .chunks(piece)
                .for_each(|piece| stream.feed(piece).unwrap());
            let tower = stream.finish().unwrap();
            let rows = slices(&rows);
            assert_eq!(tower.embed(&rows).unwrap(), expected.embed(&rows).unwrap());
        }
    }
}

/// Whatever a device makes of weights in eight or four bits, it computes with the values that they stand for.
#[test]
fn small_packs_compute_as_their_values_do() {
    let pixels = &pixels()[..4 * 3 * 224 * 224];
    for model in MODELS {
        let (image, text) = configs(model);
        let rows = rows(&Recording::read(&format!("embeddings_{model}.safetensors")));
        let rows = slices(&rows);
        for (bits, least) in [(Bits::Int8, 0.999), (Bits::Int4, 0.9)] {
            let packed = files(model, Dtype::Quantised(bits));
            let packed = [0, 1].map(|i| SafetensorsFile::parse(&packed[i]).unwrap());
            let expanded = [image_tensors(&image), text_tensors(&text)];
            let expanded = [0, 1].map(|i| {
                let mut file = Vec::new();
                write_safetensors(&mut file, &packed[i], &expanded[i], Dtype::F32).unwrap();
                file
            });
            let expanded = [0, 1].map(|i| SafetensorsFile::parse(&expanded[i]).unwrap());
            let (exact_image, exact_text) = towers(model, &On::Host);
            for on in everything() {
                let images = [&packed[0], &expanded[0]].map(|source| on.image(source, &image));
                let images = images.map(|tower| tower.embed(pixels).unwrap());
                let texts = [&packed[1], &expanded[1]].map(|source| on.text(source, &text));
                let texts = texts.map(|tower| tower.embed(&rows).unwrap());
                for ([packed, expanded], exact) in [
                    (images, exact_image.embed(pixels).unwrap()),
                    (texts, exact_text.embed(&rows).unwrap()),
                ] {
                    same(packed.data(), expanded.data());
                    for row in 0..exact.rows() {
                        let products = packed.row(row).iter().zip(exact.row(row)).map(|(a, b)| a * b);
                        let cosine: f32 = products.sum();
                        assert!(cosine > least, "{model} {on} {bits:?}: cosine {cosine}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_file_that_breaks_off_or_is_another_is_told() {
    let [image_file, text_file] = files("tiny", Dtype::F32);
    let (image, _) = configs("tiny");
    let feed = |bytes: &[u8]| {
        let mut stream = ImageTowerStream::new(&image, &Device::flex(), Engine::Auto).unwrap();
        stream.feed(bytes)?;
        stream.finish().map(drop)
    };
    let message = |bytes: &[u8]| feed(bytes).unwrap_err().to_string();
    feed(&image_file).unwrap();
    assert!(message(&image_file[..5]).contains("breaks off in its header"));
    assert!(message(&image_file[..9]).contains("breaks off in its header"));
    assert!(message(&image_file[..image_file.len() - 1]).contains("breaks off in tensor"));
    assert!(message(&[&image_file[..], b"x"].concat()).contains("1 bytes behind the last tensor"));
    assert!(message(&text_file).contains("are missing"));
    assert!(message(&[0xff; 64]).contains("a header of 18446744073709551615 bytes"));
    assert!(message(b"\x02\0\0\0\0\0\0\0[]").contains("not a safetensors file"));
    let mut infinite = image_file.clone();
    let end = infinite.len();
    infinite[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    assert!(message(&infinite).contains("inf, expected finite numbers"));
}
