//! Each command of the binary, run as a user runs it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use ernie_vil::vectors::{read_out, read_safetensors};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    command, failure, first_lines, golden, largest_difference, read_golden, run, success, text,
};

/// Converts a recorded model; returns the new folder.
fn convert(folder: &TempDir, model: &str, more: &[&str]) -> PathBuf {
    let output = folder.path().join(format!("{model}{}", more.join("")));
    let mut convert = crate::support::convert(model, &output);
    success(&convert.args(more).output().unwrap());
    output
}

/// The pairs of an `.out` file.
fn vectors(path: &Path) -> ernie_vil::vectors::Pairs {
    read_out(fs::File::open(path).unwrap()).unwrap()
}

#[test]
#[cfg(feature = "scenes")]
fn eval_without_arguments_scores_the_built_in_model_and_says_what_it_is() {
    let output = run(&["eval", "--format", "json"]);
    let json: Value = serde_json::from_str(&success(&output)).unwrap();
    assert_eq!(json["rows"], 1_000);
    let remarks = String::from_utf8(output.stderr).unwrap();
    assert!(
        remarks.contains("scenes: a small model trained on drawn pictures; not ERNIE-ViL's weights"),
        "{remarks}"
    );
    let quiet = run(&["eval", "--quiet"]);
    assert!(quiet.stderr.is_empty());
    // models/scenes/README.md has the figures; rounding may move a few of a thousand.
    for direction in ["text_to_image", "image_to_text"] {
        let r1 = json[direction]["r1"].as_f64().unwrap();
        assert!(r1 > 0.9, "{direction}: {r1}");
    }
}

/// By the modules that a card runs.
#[test]
#[cfg(feature = "scenes")]
fn half_precision_costs_no_recall() {
    let mean = |dtype: &str| {
        let report = run(&["eval", "--device", "flex", "--dtype", dtype, "--format", "json"]);
        let json: Value = serde_json::from_str(&success(&report)).unwrap();
        json["mean"]["mean"].as_f64().unwrap()
    };
    let single = mean("f32");
    for dtype in ["f16", "bf16"] {
        let half = mean(dtype);
        assert!(
            (half - single).abs() <= 0.002,
            "{dtype}: {half}, in single precision {single}"
        );
    }
}

#[test]
fn both_engines_print_the_recorded_table() {
    let folder = TempDir::new().unwrap();
    let (model, pairs) = (convert(&folder, "tiny", &[]), golden("coco_cn_style.tsv"));
    let eval = ["eval", "--model", text(&model), "--input", text(&pairs)];
    for more in [&["cpu"][..], &["flex"], &["flex", "--attention", "fused"]] {
        let table = run(&[&eval[..], &["--device"], more].concat());
        let expected = fs::read_to_string(golden("eval_tiny.txt")).unwrap();
        assert_eq!(success(&table), expected, "{more:?}");
    }
    for (more, expected) in [
        (["--attention", "fused"], "expected cuda or flex"),
        (["--dtype", "tf32"], "--dtype tf32 on cpu, expected f32"),
    ] {
        let error = failure(&run(&[&eval[..], &more].concat()));
        assert!(error.contains(expected), "{error}");
    }
}

/// An image tower from one file and ERNIE 2.0 under Hugging Face's names from another.
#[test]
fn two_files_of_weights_make_one_model() {
    let folder = TempDir::new().unwrap();
    let vocab = folder.path().join("vocab.txt");
    let words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "猫", "[UNK]"];
    let lines: Vec<String> = (0..)
        .zip(words)
        .map(|(id, word)| format!("{word}\t{id}"))
        .collect();
    fs::write(&vocab, lines.join("\n")).unwrap();
    let model = folder.path().join("model");
    let (text_weights, text_config) = (
        golden("structures/ernie2/a_hf.safetensors"),
        golden("structures/ernie2/a_config_hf.json"),
    );
    let (image_weights, image_config) = (
        golden("models/tiny.pdparams"),
        golden("models/tiny_vision_config.json"),
    );
    success(&run(&[
        "convert",
        "--weights",
        text(&text_weights),
        "--weights",
        text(&image_weights),
        "--text-config",
        text(&text_config),
        "--image-config",
        text(&image_config),
        "--vocab",
        text(&vocab),
        "--max-tokens",
        "32",
        "--output",
        text(&model),
    ]));
    let info = success(&run(&["info", "--model", text(&model), "--json"]));
    let info: Value = serde_json::from_str(&info).unwrap();
    let sizes = &info["config"]["text"];
    assert_eq!(
        (&sizes["sentence_types"], &sizes["task_types"]),
        (&4.into(), &16.into())
    );
    assert_eq!(info["config"]["sources"][0]["file"], "a_hf.safetensors");
    assert_eq!(info["config"]["sources"][1]["file"], "tiny.pdparams");
    let table = success(&run(&[
        "eval",
        "--model",
        text(&model),
        "--input",
        text(&golden("coco_cn_style.tsv")),
    ]));
    assert!(table.contains("mean"), "{table}");
}

#[test]
fn a_model_folder_embeds_to_every_format_and_scores() {
    let folder = TempDir::new().unwrap();
    let model = convert(&folder, "tiny", &[]);
    let info = success(&run(&["info", "--model", text(&model), "--verify"]));
    assert!(info.contains("verified      4 files"), "{info}");
    let info: Value =
        serde_json::from_str(&success(&run(&["info", "--model", text(&model), "--json"]))).unwrap();
    assert_eq!(info["config"]["image"]["width"], 32);

    let input = golden("coco_cn_style.tsv");
    let recorded = vectors(&golden("cross_modal_embeddings_tiny.out"));
    let table = fs::read_to_string(golden("eval_tiny.txt")).unwrap();
    for (name, scored) in [
        ("v.out", "v.out"),
        ("v.safetensors", "v.safetensors"),
        ("v.npy", "v.text.npy"),
    ] {
        let output = folder.path().join(name);
        let args = [
            "embed",
            "--model",
            text(&model),
            "--input",
            text(&input),
            "--output",
            text(&output),
        ];
        success(&run(&args));
        let scored = folder.path().join(scored);
        assert_eq!(success(&run(&["score", text(&scored)])), table, "{name}");
        assert_eq!(
            success(&run(&["score", text(&scored), "--like-original"])),
            table,
            "{name}"
        );
    }
    let got = vectors(&folder.path().join("v.out"));
    assert!(largest_difference(got.text.data(), recorded.text.data()) < 2e-6);
    assert!(largest_difference(got.image.data(), recorded.image.data()) < 2e-6);
    let file = fs::read(folder.path().join("v.safetensors")).unwrap();
    let file = read_safetensors(&file).unwrap();
    assert_eq!(
        file.fingerprint.as_deref(),
        info["config"]["fingerprint"].as_str()
    );
    let tsv = fs::read_to_string(&input).unwrap();
    let id = |line: &str| line.split('\t').nth(1).unwrap().to_owned();
    let ids = file.ids.unwrap();
    assert_eq!(ids[3], id(tsv.lines().nth(3).unwrap()));
    let listed = fs::read_to_string(folder.path().join("v.ids.txt")).unwrap();
    assert_eq!(listed.lines().collect::<Vec<_>>(), ids);
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        !left.iter().any(|name| name.to_string_lossy().contains(".rows")),
        "{left:?}"
    );

    assert_eq!(
        success(&run(&["eval", "--model", text(&model), "--input", text(&input)])),
        table
    );
}

#[test]
fn a_folder_says_how_its_images_are_preprocessed_and_how_its_scores_are_scaled() {
    let folder = TempDir::new().unwrap();
    let original = convert(&folder, "tiny", &[]);
    let paddlenlp = convert(&folder, "tiny", &["--preprocessing", "paddlenlp"]);
    let config = |model: &Path| -> Value {
        let info: Value =
            serde_json::from_str(&success(&run(&["info", "-m", text(model), "--json"]))).unwrap();
        info["config"].clone()
    };
    let (first, second) = (config(&original), config(&paddlenlp));
    assert_eq!(
        (&first["preprocessing"], &first["max_text_tokens"]),
        (&"ernie-vil-2.0".into(), &48.into())
    );
    assert_eq!(
        (&second["preprocessing"], &second["max_text_tokens"]),
        (&"paddlenlp".into(), &64.into())
    );
    assert_ne!(first["fingerprint"], second["fingerprint"]);
    // The checkpoint has contrastive_loss_mm.temperature_b = 2.65926.
    for config in [&first, &second] {
        let scale = config["logit_scale"].as_f64().unwrap();
        assert!((scale - 2.65926f64.exp()).abs() < 1e-5, "{scale}");
    }
    // A folder that is packed anew takes it on, with its limit of tokens, and keeps it.
    let (packed, again) = (folder.path().join("packed"), folder.path().join("again"));
    let pack = |from: &Path, to: &Path, more: &[&str]| {
        success(&run(
            &[&["convert", "-m", text(from), "-o", text(to)][..], more].concat()
        ));
        config(to)
    };
    let (packed_config, again_config) = (
        pack(&original, &packed, &["--preprocessing", "paddlenlp"]),
        pack(&packed, &again, &["--max-tokens", "50"]),
    );
    for key in ["fingerprint", "preprocessing", "logit_scale"] {
        assert_eq!(packed_config[key], second[key]);
        assert_eq!(again_config[key], second[key]);
    }
    assert_eq!(
        (
            &packed_config["max_text_tokens"],
            &again_config["max_text_tokens"]
        ),
        (&64.into(), &50.into())
    );

    let embed = |model: &Path| {
        let output = folder.path().join("v.out");
        let input = golden("coco_cn_style.tsv");
        success(&run(&[
            "embed",
            "--overwrite",
            "-m",
            text(model),
            "-i",
            text(&input),
            "-o",
            text(&output),
        ]));
        vectors(&output)
    };
    let (first, second) = (embed(&original), embed(&packed));
    assert_eq!(first.text.row(2), second.text.row(2));
    let difference = largest_difference(first.image.data(), second.image.data());
    assert!((1e-3..0.5).contains(&difference), "{difference}");
}

#[test]
#[cfg(feature = "scenes")]
fn pictures_are_classified_without_training() {
    use ernie_vil::classify::TEMPLATES;
    use ernie_vil::image::decode_base64;
    let folder = TempDir::new().unwrap();
    let tsv = first_lines(usize::MAX);
    let mut right = Vec::new();
    let mut files = Vec::new();
    for (at, line) in tsv.lines().enumerate() {
        let columns: Vec<&str> = line.split('\t').collect();
        if ["帐篷", "帆船", "蝴蝶", "自行车"].contains(&columns[2])
            && right.iter().filter(|tag| **tag == columns[2]).count() < 5
        {
            let file = folder.path().join(format!("{at}.png"));
            fs::write(&file, decode_base64(columns[3].as_bytes()).unwrap()).unwrap();
            right.push(columns[2]);
            files.push(file);
        }
    }
    let names: Vec<&str> = files.iter().map(|file| text(file)).collect();
    let classify = |more: &[&str]| {
        let args = [
            &["classify", "--labels", "帐篷,帆船,蝴蝶,自行车", "--json"][..],
            more,
            &names,
        ]
        .concat();
        let lines = success(&run(&args));
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect::<Vec<Value>>()
    };
    let plain = classify(&[]);
    assert_eq!(classify(&["--template", "{}"]), plain);
    let every: Vec<&str> = TEMPLATES
        .iter()
        .flat_map(|template| ["--template", template])
        .collect();
    let ensemble = classify(&["--ensemble"]);
    assert_eq!(classify(&every), ensemble);
    assert_ne!(ensemble, plain);
    for found in [plain, ensemble] {
        assert_eq!(found.len(), files.len());
        let mut hits = 0;
        for ((line, file), right) in found.iter().zip(&names).zip(&right) {
            assert_eq!(line["file"], *file);
            let labels = line["labels"].as_array().unwrap();
            hits += usize::from(labels[0]["label"] == *right);
            let number = |label: &Value, key: &str| label[key].as_f64().unwrap();
            let sum: f64 = labels.iter().map(|label| number(label, "probability")).sum();
            assert!((sum - 1.0).abs() < 1e-5, "{line}");
            // The model has no scale of its own.
            let (a, b) = (&labels[0], &labels[1]);
            let expected = ((number(a, "score") - number(b, "score")) * 2.65926f64.exp()).exp();
            assert!(
                (number(a, "probability") / number(b, "probability") / expected - 1.0).abs() < 1e-3,
                "{line}"
            );
        }
        assert!(hits * 10 >= 8 * files.len(), "{hits} of {}", files.len());
    }

    let file = folder.path().join("labels.txt");
    fs::write(&file, "月亮\n\n 汽车\r\n雪人\n花").unwrap();
    let printed = success(&run(&[
        "classify",
        "--labels-file",
        text(&file),
        "-k",
        "2",
        names[0],
    ]));
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, names[0]));
    assert!(lines[1].contains(" %  "), "{printed}");
    for (args, expected) in [
        (&["--labels", "猫,猫"][..], "the label \"猫\" is there twice"),
        (
            &["--labels", "猫", "--template", "照片"],
            "the template \"照片\" has no {}",
        ),
    ] {
        let error = failure(&run(&[&["classify"][..], args, &[names[0]]].concat()));
        assert!(error.contains(expected), "{error}");
    }
    let output = run(&["classify", "--labels", "猫,狗", text(&file), names[0]]);
    assert!(failure(&output).contains("1 of 2 pictures could not be read"));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.starts_with(names[0]), "{printed}");
    assert_eq!(run(&["classify", "--labels", "猫"]).status.code(), Some(2));
}

#[test]
fn half_precision_halves_the_folder_and_keeps_the_vectors_close() {
    let folder = TempDir::new().unwrap();
    let model = convert(&folder, "tiny", &["--dtype", "f16"]);
    let size = fs::metadata(model.join("image.safetensors")).unwrap().len();
    let whole = convert(&folder, "tiny", &[]);
    let whole_size = fs::metadata(whole.join("image.safetensors")).unwrap().len();
    assert!(size * 2 < whole_size + 8192, "{size} of {whole_size}");
    let output = folder.path().join("half.out");
    let input = golden("coco_cn_style.tsv");
    success(&run(&[
        "embed",
        "-m",
        text(&model),
        "-i",
        text(&input),
        "-o",
        text(&output),
    ]));
    let (got, recorded) = (
        vectors(&output),
        vectors(&golden("cross_modal_embeddings_tiny.out")),
    );
    let difference = largest_difference(got.text.data(), recorded.text.data());
    assert!(difference > 0.0 && difference < 2e-3, "{difference}");
}

#[test]
fn a_folder_in_shards_is_the_same_model_and_can_be_put_together_again() {
    let folder = TempDir::new().unwrap();
    let whole = convert(&folder, "tiny", &["--dtype", "f16"]);
    let in_folder = |name: &str| folder.path().join(name);
    let (cut, joined) = (in_folder("cut"), in_folder("joined"));
    let repack = |from: &Path, to: &Path, more: &[&str]| {
        let args = [
            "convert",
            "--model",
            text(from),
            "--output",
            text(to),
            "--dtype",
            "f16",
        ];
        success(&run(&[&args[..], more].concat()))
    };
    repack(&whole, &cut, &["--shard-size", "64KB"]);
    assert!(!cut.join("image.safetensors").exists());
    let largest = fs::read_dir(&cut)
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len());
    assert_eq!(largest.max(), Some(1 << 16));
    assert!(success(&run(&["info", "--verify", "-m", text(&cut)])).contains("verified"));
    let pairs = golden("coco_cn_style.tsv");
    let table = |model: &Path| success(&run(&["eval", "-m", text(model), "-i", text(&pairs)]));
    assert_eq!(table(&cut), table(&whole));

    repack(&cut, &joined, &[]);
    for name in [
        "config.json",
        "image.safetensors",
        "text.safetensors",
        "manifest.json",
    ] {
        assert_eq!(
            fs::read(joined.join(name)).unwrap(),
            fs::read(whole.join(name)).unwrap(),
            "{name}"
        );
    }

    fs::write(cut.join("image.safetensors.001"), b"short").unwrap();
    let error = failure(&run(&["eval", "-m", text(&cut), "-i", text(&pairs)]));
    assert!(error.contains("image.safetensors.001 has 5 bytes"), "{error}");
    for (size, message) in [
        ("1KB", "at least 64KB"),
        ("5 XB", "the unit"),
        ("MB", "expected a number"),
    ] {
        let output = run(&["convert", "-m", text(&whole), "-o", "x", "--shard-size", size]);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(message),
            "{size}"
        );
    }
}

#[test]
fn a_run_configuration_of_the_original_works_as_it_is() {
    for (tokens, recorded) in [(16, "_maxlen16"), (48, ""), (56, "_maxlen56")] {
        let folder = TempDir::new().unwrap();
        let in_folder = |name: &str| folder.path().join(name);
        let tsv = fs::read_to_string(golden("coco_cn_style.tsv")).unwrap();
        let rows = if tokens == 48 { 40 } else { 12 };
        let some: String = tsv.split_inclusive('\n').take(rows).collect();
        fs::write(in_folder("pairs.data"), some).unwrap();
        // The original's file, with its paths filled in and the small image tower's sizes.
        let yaml = format!(
            "# The data type of input ids. \ninput_dtype: \"int64\"\ndevice: \"gpu\"\ninfer_batch_size: 10\n\
             max_text_seqlen: {tokens}\nvocab_file: \"{}\"\ntext_model_config: \"{}\"\nimage_model_config: \"{}\"\n\
             test_file: \"pairs.data\"\noutput_file: \"./test_out/cross_modal_embeddings.out\"\n\
             init_from_params: \"{}\"\npad_token: 0\ncls_token: 1\nsep_token: 2\nmask_token: 3\nunk_token: 17963",
            golden("vocab_tiny.txt").display(),
            golden("models/tiny_text_config.json").display(),
            golden("models/tiny_vision_config.json").display(),
            golden("models/tiny.pdparams").display(),
        );
        fs::write(in_folder("run.yaml"), yaml).unwrap();
        let output = command(&["embed", "--config", "run.yaml"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        success(&output);
        let got = vectors(&in_folder("test_out/cross_modal_embeddings.out"));
        let recorded = vectors(&golden(format!("cross_modal_embeddings_tiny{recorded}.out")));
        assert!(
            largest_difference(got.text.data(), recorded.text.data()) < 2e-6,
            "{tokens}"
        );
        assert!(
            largest_difference(got.image.data(), recorded.image.data()) < 2e-6,
            "{tokens}"
        );
    }
}

#[test]
fn tokenize_prints_what_the_original_gives() {
    let goldens: Value = serde_json::from_slice(&read_golden("tokenizer.json")).unwrap();
    let entries: Vec<&Value> = goldens["tiny_texts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| !entry["text"].as_str().unwrap().contains(['\n', '\r']))
        .collect();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("texts.txt");
    let lines: Vec<&str> = entries
        .iter()
        .map(|entry| entry["text"].as_str().unwrap())
        .collect();
    fs::write(&file, lines.join("\n")).unwrap();
    let model = convert(&folder, "tiny", &[]);
    let printed = success(&run(&["tokenize", "--model", text(&model), text(&file)]));
    let printed: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(entries.len() > 20 && printed.len() >= entries.len() - 1);
    for (got, expected) in printed.iter().zip(&entries) {
        assert_eq!(got["ids"], expected["ids"]);
        assert_eq!(
            got["tokens"].as_array().unwrap().len(),
            got["ids"].as_array().unwrap().len()
        );
    }
}

/// The recorded pairs `times` over, with image ids that tell the rows apart.
fn many_pairs(path: &Path, times: usize) {
    let tsv = fs::read_to_string(golden("coco_cn_style.tsv")).unwrap();
    let mut file = std::io::BufWriter::new(fs::File::create(path).unwrap());
    for round in 0..times {
        for (row, line) in tsv.lines().enumerate() {
            let (caption, rest) = line.split_once('\t').unwrap();
            let image = rest.rsplit('\t').next().unwrap();
            writeln!(file, "{caption}\t{round}-{row}\t{image}").unwrap();
        }
    }
}

#[test]
fn a_bad_row_stops_the_run_and_is_named_or_is_skipped_and_listed() {
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("pairs.tsv");
    let output = folder.path().join("v.safetensors");
    let tsv = fs::read_to_string(golden("coco_cn_style.tsv")).unwrap();
    let mut lines: Vec<String> = tsv.lines().map(str::to_owned).collect();
    let good = lines[24].clone();
    // As long as the good one, and no image.
    lines[24] = format!(
        "{}{}",
        &good[..good.rfind('\t').unwrap() + 1],
        "A".repeat(good.len() - good.rfind('\t').unwrap() - 1)
    );
    fs::write(&input, lines.join("\n")).unwrap();
    let args = [
        "embed",
        "-i",
        text(&input),
        "-o",
        text(&output),
        "--batch-size",
        "4",
    ];
    let error = failure(&run(&args));
    assert!(
        error.contains("pairs.tsv: line 25: ") && error.contains("image"),
        "{error}"
    );
    assert!(!output.exists());

    // What was kept for --resume is not dropped unasked.
    let skipping = [&args[..], &["--on-error", "skip"]].concat();
    let error = failure(&run(&skipping));
    assert!(
        error.contains("v.safetensors.rows has 24 rows of a run that broke off"),
        "{error}"
    );
    let replacing = [&args[..], &["--overwrite"]].concat();
    success(&run(&[&skipping[..], &["--overwrite"]].concat()));
    let bytes = fs::read(&output).unwrap();
    let kept = read_safetensors(&bytes).unwrap();
    assert_eq!(kept.ids.unwrap().len(), 39);
    let list = fs::read_to_string(folder.path().join("v.safetensors.skipped.tsv")).unwrap();
    assert!(list.starts_with("25\t") && list.lines().count() == 1, "{list}");

    // Stopped again, mended, resumed: nothing is lost and nothing is there twice.
    let error = failure(&run(&args));
    assert!(
        error.contains("v.safetensors is there already; --overwrite replaces it"),
        "{error}"
    );
    failure(&run(&replacing));
    lines[24] = good;
    fs::write(&input, lines.join("\n")).unwrap();
    let resuming = [&args[..], &["--resume"]].concat();
    let output_of_run = run(&resuming);
    success(&output_of_run);
    let remarks = String::from_utf8_lossy(&output_of_run.stderr).into_owned();
    assert!(remarks.contains("resuming after 24 rows"), "{remarks}");
    let resumed = fs::read(&output).unwrap();
    success(&run(&replacing));
    assert_eq!(resumed, fs::read(&output).unwrap());

    // What belongs to another run is not taken over.
    lines[24] = "猫\t1\tAAAA".into();
    lines.truncate(25);
    fs::write(&input, lines.join("\n")).unwrap();
    failure(&run(&replacing));
    fs::write(&input, &tsv).unwrap();
    let error = failure(&run(&resuming));
    assert!(error.contains("belongs to another run"), "{error}");
}

/// Each device takes the next batch when it is free; the slower one holds nothing back for good and nothing out of order.
#[test]
fn several_devices_share_the_work_in_order() {
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("pairs.tsv");
    // Neighbours with the same picture, also across the borders of batches.
    let tsv = fs::read_to_string(golden("coco_cn_style.tsv")).unwrap();
    let lines: Vec<&str> = tsv
        .lines()
        .flat_map(|line| std::iter::repeat_n(line, 4))
        .collect();
    fs::write(&input, lines.join("\n")).unwrap();
    let embed = |devices: &str, name: &str| {
        let output = folder.path().join(name);
        let args = [
            "embed",
            "-i",
            text(&input),
            "-o",
            text(&output),
            "--batch-size",
            "3",
            "--device",
            devices,
        ];
        success(&run(&args));
        vectors(&output)
    };
    let one = embed("cpu", "one.out");
    assert_eq!(one.text.rows(), 160);
    let two = embed("cpu,cpu", "two.out");
    assert!(one.text == two.text && one.image == two.image);
    let unlike = embed("flex,cpu", "unlike.out");
    assert!(largest_difference(one.text.data(), unlike.text.data()) < 1e-5);
    assert!(largest_difference(one.image.data(), unlike.image.data()) < 1e-5);

    let error = failure(&run(&["eval", "--device", "cpu,cpu", "--dtype", "f16"]));
    assert!(error.contains("f16"), "{error}");
    let single = run(&["search", "--device", "cpu,cpu", "--images", ".", "--text", "猫"]);
    assert_eq!(single.status.code(), Some(2));
}

#[test]
fn a_killed_run_is_resumed_to_the_same_file() {
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("pairs.tsv");
    many_pairs(&input, 60);
    let (whole, resumed) = (folder.path().join("whole.out"), folder.path().join("resumed.out"));
    let args = |output: &Path| -> Vec<String> {
        let list = [
            "embed",
            "-i",
            text(&input),
            "-o",
            text(output),
            "--batch-size",
            "8",
        ];
        list.map(str::to_owned).to_vec()
    };
    let start = |more: &[&str]| {
        let args = args(&resumed);
        let list: Vec<&str> = args
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied())
            .collect();
        command(&list)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    // Killed some way in, twice, wherever that is.
    let rows = folder.path().join("resumed.out.rows");
    for (wait, more) in [(40_000, &[][..]), (400_000, &["--resume"][..])] {
        let mut child = start(more);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60)
            && fs::metadata(&rows).map_or(0, |m| m.len()) < wait
            && child.try_wait().unwrap().is_none()
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!resumed.exists(), "the run was to be killed before its end");
    }
    let list = args(&resumed);
    let list: Vec<&str> = list.iter().map(String::as_str).chain(["--resume"]).collect();
    success(&run(&list));
    let list = args(&whole);
    success(&run(&list.iter().map(String::as_str).collect::<Vec<_>>()));
    assert_eq!(fs::read(&resumed).unwrap(), fs::read(&whole).unwrap());
    assert_eq!(fs::read_to_string(&whole).unwrap().lines().count(), 2400);
}

#[test]
fn download_fetches_converts_and_records() {
    // A server that breaks off in the middle of the weights once.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", server.local_addr().unwrap());
    let serve = std::thread::spawn(move || {
        let weights = read_golden("models/tiny.pdparams");
        let vocab = read_golden("vocab_tiny.txt");
        let mut requests = Vec::new();
        for stream in server.incoming().take(3) {
            let mut stream = stream.unwrap();
            let mut lines = Vec::new();
            for line in BufReader::new(&stream).lines() {
                let line = line.unwrap();
                if line.is_empty() {
                    break;
                }
                lines.push(line);
            }
            let body = if lines[0].contains("vocab.txt") {
                &vocab
            } else {
                &weights
            };
            let range = lines.iter().find_map(|line| {
                line.to_lowercase()
                    .strip_prefix("range: bytes=")
                    .map(str::to_owned)
            });
            let from: usize = range.map_or(0, |range| {
                range.trim_end_matches('-').parse().expect("a range to the end")
            });
            let status = match from {
                0 => "200 OK".to_owned(),
                _ => format!(
                    "206 Partial Content\r\nContent-Range: bytes {from}-{}/{}",
                    body.len() - 1,
                    body.len()
                ),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"one\"\r\nAccept-Ranges: bytes\r\nConnection: close\r\n\r\n",
                body.len() - from
            );
            stream.write_all(head.as_bytes()).unwrap();
            let is_broken = requests.len() == 1;
            let end = if is_broken { body.len() / 2 } else { body.len() };
            // The client may have gone; the next request tells.
            let _ = stream.write_all(&body[from..end]);
            requests.push((lines[0].clone(), from));
        }
        requests
    });
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("model");
    let output = run(&[
        "download",
        "--output",
        text(&model),
        "--base-url",
        &address,
        "--vocab-url",
        &format!("{address}/vocab.txt"),
        "--text-config",
        text(&golden("models/tiny_text_config.json")),
        "--image-config",
        text(&golden("models/tiny_vision_config.json")),
        "--release",
        "first",
        "--sums",
        text(&folder.path().join("sums.json")),
    ]);
    let printed = success(&output);
    assert!(printed.contains("fingerprint "), "{printed}");
    let requests = serve.join().unwrap();
    assert!(
        requests[1].0.contains("/ERNIE_VIL2_BASE_ViT.pdparams"),
        "{requests:?}"
    );
    assert!(
        requests[2].1 > 0,
        "the second attempt went on where the first broke off: {requests:?}"
    );
    let info: Value = serde_json::from_str(&success(&run(&["info", "-m", text(&model), "--json"]))).unwrap();
    assert_eq!(info["config"]["published"], "first");
    let source = &info["config"]["sources"][0];
    assert_eq!(source["file"], format!("{address}/ERNIE_VIL2_BASE_ViT.pdparams"));
    let remarks = String::from_utf8(output.stderr).unwrap();
    assert!(remarks.contains(source["sha256"].as_str().unwrap()), "{remarks}");
    assert!(!folder.path().join("model.download").exists());
    // The published figures stand beside those of a model that says which release it is.
    let table = success(&run(&[
        "eval",
        "-m",
        text(&model),
        "-i",
        text(&golden("coco_cn_style.tsv")),
    ]));
    assert!(
        table.contains("Published: ERNIE_VIL2_BASE_ViT") && table.contains("Not comparable"),
        "{table}"
    );
}

#[test]
fn search_ranks_a_folder_and_keeps_an_index() {
    let folder = TempDir::new().unwrap();
    let (pictures, index) = (folder.path().join("pictures"), folder.path().join("index"));
    fs::create_dir_all(pictures.join("more")).unwrap();
    for name in ["r00.jpg", "r05.jpg", "r30.png", "r34.webp", "text.bin"] {
        fs::copy(golden(format!("images/{name}")), pictures.join(name)).unwrap();
    }
    fs::copy(golden("images/r10.jpg"), pictures.join("more/r10.JPG")).unwrap();
    fs::copy(golden("images/random.bin"), pictures.join("broken.jpg")).unwrap();
    let args = ["search", "--images", text(&pictures), "--index", text(&index)];
    let query = pictures.join("r05.jpg");
    let by_image = [&args[..], &["--image", text(&query), "--top", "3"]].concat();
    let output = run(&by_image);
    let printed = success(&output);
    let first = printed.lines().next().unwrap();
    assert!(
        first.starts_with("1.0000  ") && first.ends_with("r05.jpg"),
        "{printed}"
    );
    assert_eq!(printed.lines().count(), 3);
    let remarks = String::from_utf8(output.stderr).unwrap();
    assert!(
        remarks.contains("skipped") && remarks.contains("broken.jpg"),
        "{remarks}"
    );

    fs::remove_file(pictures.join("r30.png")).unwrap();
    let by_text = [&args[..], &["--text", "猫", "--text", "一杯咖啡", "--json"]].concat();
    let printed = success(&run(&by_text));
    let lines: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["query"], "猫");
    let hits = lines[0]["hits"].as_array().unwrap();
    assert_eq!(hits.len(), 4, "{printed}");
    assert!(
        hits.iter()
            .any(|hit| hit["file"].as_str().unwrap().ends_with("r10.JPG"))
    );

    // An index of another model is refused.
    let other = convert(&folder, "tiny", &[]);
    let error = failure(&run(&[&by_text[..], &["--model", text(&other)]].concat()));
    assert!(error.contains("index"), "{error}");
}

#[test]
fn bench_measures_every_stage() {
    let folder = TempDir::new().unwrap();
    let model = convert(&folder, "mid", &[]);
    let report: Value = serde_json::from_str(&success(&run(&[
        "bench",
        "-m",
        text(&model),
        "--repeat",
        "1",
        "--json",
    ])))
    .unwrap();
    for stage in ["decode", "preprocess", "image_tower", "text_tower", "scoring"] {
        assert!(!report[stage].is_null(), "{stage} is missing in {report}");
    }
    assert!(report["image_tower"][1]["ms_per_image"].as_f64().unwrap() > 0.0);
    let cold: Value = serde_json::from_str(&success(&run(&[
        "bench",
        "-m",
        text(&model),
        "--cold-start",
        "--json",
    ])))
    .unwrap();
    assert!(cold["cold_start_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn bad_usage_exits_with_2_and_failures_with_1() {
    for args in [
        &["embed"][..],
        &["nothing"],
        &["score"],
        &["eval", "--batch-size", "0"],
        &["search"],
    ] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
    let error = failure(&run(&["info", "--model", "/nonexistent"]));
    assert!(error.contains("/nonexistent is not a model folder"), "{error}");
    let error = failure(&run(&["eval", "--input", "/nonexistent.tsv"]));
    assert!(error.contains("/nonexistent.tsv"), "{error}");
    let error = failure(&run(&["score", text(&golden("eval/nan_text_row20.out"))]));
    assert!(error.contains("row"), "{error}");
    let folder = TempDir::new().unwrap();
    let model = convert(&folder, "tiny", &[]);
    let weights = golden("models/tiny.pdparams");
    let config = golden("models/tiny_text_config.json");
    let vocab = golden("vocab_tiny.txt");
    let again = [
        "convert",
        "--weights",
        text(&weights),
        "--text-config",
        text(&config),
        "--vocab",
        text(&vocab),
    ];
    let error = failure(&run(&[&again[..], &["--output", text(&model)]].concat()));
    assert!(error.contains("--overwrite"), "{error}");
    // Without an image configuration, heads are width / 64, which does not divide here.
    let other = folder.path().join("other");
    let error = failure(&run(&[&again[..], &["--output", text(&other)]].concat()));
    assert!(error.contains("image configuration"), "{error}");
    assert!(!other.exists() && !folder.path().join("other.part").exists());
    // A folder that was changed after it was made.
    fs::write(model.join("vocab.txt"), "").unwrap();
    let error = failure(&run(&["eval", "--model", text(&model)]));
    assert!(error.contains("vocab.txt has 0 bytes"), "{error}");
}
