//! `ernie-vil train`, run as a user runs it.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::support::{Folder, failure, golden, success};

const CONFIG: &str = "\
name: small
output: run
train_file: PAIRS
validation_file: PAIRS
seed: 3
model:
  vocab_file: VOCAB
  max_text_tokens: 16
  image: {image_size: 32, patch_size: 16, width: 16, depth: 1, heads: 2, mlp_width: 32, epsilon: 1.0e-6}
  text:
    {vocab_size: 2000, max_positions: 16, width: 16, depth: 1, heads: 2, query_head_width: 8, value_head_width: 8,
     mlp_width: 32, activation: gelu, epsilon: 1.0e-5}
batch_size: 16
steps: 6
learning_rate: 1.0e-3
validate_every: 3
checkpoint_every: 3
pairs:
  - [image, caption, 1.0]
  - [image, image_2, 0.5]
  - [caption, caption_2, 0.5]
";

impl Folder {
    /// Writes the configuration with replacements, under a name of its own.
    fn config(&self, name: &str, replace: &[(&str, &str)]) -> &Self {
        let mut config = CONFIG.to_owned();
        for (from, to) in replace {
            assert!(config.contains(from), "{from}");
            config = config.replace(from, to);
        }
        let config = config
            .replace("PAIRS", golden("coco_cn_style.tsv").to_str().unwrap())
            .replace("VOCAB", golden("vocab_tiny.txt").to_str().unwrap());
        self.write(name, config);
        self
    }

    fn train(&self, args: &[&str]) -> Output {
        self.command(&[&["train", "--config"], args].concat())
            .output()
            .unwrap()
    }

    fn metrics(&self, run: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// The metrics without the rate, which no two runs share.
fn comparable(metrics: &[Value]) -> Vec<Value> {
    let mut metrics = metrics.to_vec();
    for metric in &mut metrics {
        if let Some(train) = metric["train"].as_object_mut() {
            train.remove("pairs_per_second");
        }
    }
    metrics
}

fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn a_run_leaves_a_model_metrics_and_curves_and_can_be_fine_tuned() {
    let folder = Folder::new();
    let printed = success(&folder.config("a.yaml", &[]).train(&["a.yaml"]));
    assert!(printed.starts_with("run/model: fingerprint "), "{printed}");
    let metrics = folder.metrics("run");
    assert_eq!(metrics.len(), 6 + 2);
    let (first, last) = (&metrics[0]["train"], &metrics[7]["validation"]);
    assert_eq!((&first["step"], &last["step"]), (&1.into(), &6.into()));
    let terms = first["terms"].as_array().unwrap();
    let sum: f64 = terms
        .iter()
        .zip([1.0, 0.5, 0.5])
        .map(|(t, w)| w * t[1].as_f64().unwrap())
        .sum();
    assert!((sum - first["loss"].as_f64().unwrap()).abs() < 1e-4);
    let svg = String::from_utf8(bytes(&folder.path("run/curves.svg"))).unwrap();
    assert!(svg.contains("mean recall, %") && svg.matches("<polyline").count() >= 2);
    success(
        &folder
            .command(&["info", "--model", "run/model", "--verify"])
            .output()
            .unwrap(),
    );
    // The scale after the last step, which is what a run that starts from the model starts with.
    let logit_scale = |model: &str| {
        let config: Value = serde_json::from_slice(&bytes(&folder.path(model).join("config.json"))).unwrap();
        config["logit_scale"].as_f64().unwrap()
    };
    let scale = logit_scale("run/model");
    let before = metrics[6]["train"]["scale"].as_f64().unwrap();
    assert!(
        scale != before && (scale / before - 1.0).abs() < 0.05,
        "{before}, {scale}"
    );
    let pairs = golden("coco_cn_style.tsv");
    let eval = [
        "eval",
        "--model",
        "run/model",
        "--input",
        pairs.to_str().unwrap(),
        "--format",
        "json",
    ];
    let scores: Value = serde_json::from_str(&success(&folder.command(&eval).output().unwrap())).unwrap();
    let mean = 100.0 * scores["mean"]["mean"].as_f64().unwrap();
    // The folder is in half precision, the validation was not: a rank of 40 may differ.
    assert!((mean - last["mean"].as_f64().unwrap()).abs() <= 2.5, "{scores}");

    // Fine-tuning with one tower frozen changes the other alone.
    let sizes = CONFIG
        .split("model:\n")
        .nth(1)
        .unwrap()
        .split("batch_size")
        .next()
        .unwrap();
    let sizes = format!("model:\n{sizes}");
    let replace = [
        (sizes.as_str(), "init_from: run/model\nfreeze: [image]\n"),
        ("output: run", "output: tuned"),
    ];
    success(&folder.config("b.yaml", &replace).train(&["b.yaml"]));
    let same = |name: &str| {
        bytes(&folder.path("run/model").join(name)) == bytes(&folder.path("tuned/model").join(name))
    };
    assert!(same("image.safetensors") && !same("text.safetensors") && same("vocab.txt"));
    let first = folder.metrics("tuned")[0]["train"]["scale"].as_f64().unwrap();
    assert!((first / scale - 1.0).abs() < 1e-5, "{first}, {scale}");
}

#[test]
fn a_run_that_was_cut_off_is_resumed_to_the_same_curve() {
    let folder = Folder::new();
    folder.config("whole.yaml", &[("output: run", "output: whole")]);
    success(&folder.train(&["whole.yaml"]));
    // A learning rate that does not depend on the run's length, so that half a run is the run's first half.
    folder.config("part.yaml", &[]);
    let mut child = folder
        .command(&["train", "--config", "part.yaml"])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Killed at any moment from its first checkpoint on.
    while !folder.path("run/checkpoint").exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let error = failure(&folder.train(&["part.yaml"]));
    assert!(
        error.contains("run/checkpoint is there already; --resume goes on"),
        "{error}"
    );
    success(&folder.train(&["part.yaml", "--resume"]));
    assert_eq!(
        comparable(&folder.metrics("run")),
        comparable(&folder.metrics("whole"))
    );
    for file in [
        "checkpoint/weights.safetensors",
        "model/image.safetensors",
        "model/text.safetensors",
    ] {
        assert_eq!(
            bytes(&folder.path("run").join(file)),
            bytes(&folder.path("whole").join(file))
        );
    }
    // Cut off while one checkpoint took another's place: the earlier one is found beside its name.
    fs::rename(folder.path("run/checkpoint"), folder.path("run/checkpoint.old")).unwrap();
    success(&folder.train(&["part.yaml", "--resume"]));
    assert_eq!(
        comparable(&folder.metrics("run")),
        comparable(&folder.metrics("whole"))
    );
    assert!(folder.path("run/checkpoint").exists() && !folder.path("run/checkpoint.old").exists());
    // Another configuration would not be the same run.
    folder.config("other.yaml", &[("1.0e-3", "2.0e-3")]);
    let error = failure(&folder.train(&["other.yaml", "--resume"]));
    assert!(error.contains("made with another configuration"), "{error}");
}

#[test]
fn what_is_wrong_is_said_before_or_while_training() {
    let folder = Folder::new();
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
    let wrong: &[Case] = &[
        (&[("seed: 3", "sed: 3")], &["c.yaml", "sed"]),
        (
            &[("batch_size: 16", "batch_size: 41")],
            &["batch_size is 41", "40 rows"],
        ),
        (
            &[("batch_size: 16", "batch_size: 1")],
            &["batch_size is 1, expected at least 2"],
        ),
        (&[("steps: 6", "steps: 0")], &["steps is 0"]),
        (
            &[("steps: 6", "steps: 6\nepochs: 1")],
            &["either steps or epochs"],
        ),
        (
            &[("learning_rate: 1.0e-3", "learning_rate: -1.0")],
            &["learning_rate is -1"],
        ),
        (&[("image_2, 0.5", "picture, 0.5")], &["c.yaml", "picture"]),
        (
            &[("caption_2, 0.5", "caption_2, -0.5")],
            &["caption-caption_2 has a weight"],
        ),
        (
            &[("train_file: PAIRS", "train_file: nowhere.tsv")],
            &["nowhere.tsv"],
        ),
        (
            &[("vocab_size: 2000", "vocab_size: 90")],
            &["word table has 90 rows"],
        ),
        (&[("[image, image_2", "[image, tags")], &["line ", "no tags"]),
        (
            &[("seed: 3", "seed: 3\naugmentation: {flip: 2.0}")],
            &["flip is 2"],
        ),
        (
            &[("seed: 3", "seed: 3\nfreeze: [image, text]")],
            &["nothing to train"],
        ),
        (
            &[("seed: 3", "seed: 3\nprecision: f16")],
            &["c.yaml", "f16", "bf16"],
        ),
        (
            &[("seed: 3", "seed: 3\nprecision: bf16")],
            &["bf16 on the CPU, expected f32"],
        ),
    ];
    for (replace, expected) in wrong {
        let error = failure(&folder.config("c.yaml", replace).train(&["c.yaml"]));
        for part in *expected {
            assert!(error.contains(part), "{replace:?}: {error}");
        }
    }

    // A row whose image is none ends the run with its line.
    let mut pairs = fs::read_to_string(golden("coco_cn_style.tsv")).unwrap();
    pairs.push_str("坏\t41\tAAAA\n");
    fs::write(folder.path("bad.tsv"), pairs).unwrap();
    let replace = [
        ("train_file: PAIRS", "train_file: bad.tsv"),
        ("batch_size: 16", "batch_size: 41"),
    ];
    let error = failure(&folder.config("bad.yaml", &replace).train(&["bad.yaml"]));
    assert!(error.contains("bad.tsv, line 41: image:"), "{error}");
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_last_one() {
    let folder = Folder::new();
    folder.config("d.yaml", &[("output: run", "output: run")]);
    success(&folder.train(&["d.yaml"]));
    let before = bytes(&folder.path("run/checkpoint/weights.safetensors"));
    // A longer run, with a file where the next checkpoint is to be prepared: it cannot be written, as on a full disk.
    folder.config("d.yaml", &[("steps: 6", "steps: 12")]);
    fs::write(folder.path("run/checkpoint.part"), "in the way").unwrap();
    let error = failure(&folder.train(&["d.yaml", "--resume"]));
    assert!(
        error.contains("saving the checkpoint of step 9 to run/checkpoint"),
        "{error}"
    );
    assert_eq!(bytes(&folder.path("run/checkpoint/weights.safetensors")), before);
}
