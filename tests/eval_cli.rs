//! Test sets in the forms in which they come, scored by the binary with the model inside it.
#![cfg(feature = "scenes")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ernie_vil::recall::{CaptionReader, RELATED_PROTOCOL, RelatedReport, Relations, related_ranks};
use ernie_vil::vectors::{Embeddings, Pairs, read_safetensors};
use serde_json::{Value, json};
use tempfile::TempDir;

const LABELLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/chinese_clip_protocol");

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ernie-vil"));
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ERNIE_VIL_")) {
        command.env_remove(name);
    }
    command.output().unwrap()
}

fn stdout(args: &[&str]) -> String {
    let output = run(args);
    let remarks = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {remarks}");
    String::from_utf8(output.stdout).unwrap()
}

fn failure(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Caption and image of each pair that "scenes" is tested with.
fn scenes() -> Vec<(String, String)> {
    let tsv = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/models/scenes/test.tsv")).unwrap();
    let ends = |line: &str| {
        let mut columns = line.split('\t');
        let caption = columns.next().unwrap().to_owned();
        (caption, columns.next_back().unwrap().to_owned())
    };
    tsv.lines().map(ends).collect()
}

fn write(folder: &TempDir, name: &str, lines: &[String]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    path
}

/// The vectors of pairs, as `embed` makes them.
fn embed(folder: &TempDir, pairs: &Path, more: &[&str]) -> Pairs {
    let output = folder.path().join("pairs.safetensors");
    let args = ["embed", "--quiet", "-i", text(pairs), "-o", text(&output)];
    stdout(&[&args[..], more].concat());
    read_safetensors(&fs::read(&output).unwrap())
        .unwrap()
        .into_pairs()
        .unwrap()
}

/// Image i has the captions 5 i to 5 i + 4, its own among them, and every seventh caption belongs to the image after
/// its own, too. One caption belongs to no image, and one names an image that is not there.
fn labels(images: usize) -> Vec<Vec<String>> {
    let id = |image: usize| format!("scene-{}", image % images);
    let mut labels: Vec<Vec<String>> = (0..5 * images)
        .map(|caption| match caption % 7 {
            0 => vec![id(caption / 5), id(caption / 5 + 1), id(caption / 5)],
            _ => vec![id(caption / 5)],
        })
        .collect();
    labels[3].clear();
    labels[8].push("nowhere".into());
    labels
}

#[test]
fn a_set_in_chinese_clips_form_is_scored_by_its_protocol() {
    const IMAGES: usize = 30;
    let folder = TempDir::new().unwrap();
    let scenes = scenes();
    let labels = labels(IMAGES);
    // The image of caption 5 i.
    let images: Vec<String> = (0..IMAGES)
        .map(|image| format!("scene-{image}\t{}", scenes[5 * image].1))
        .collect();
    let texts: Vec<String> = (labels.iter().zip(&scenes).enumerate())
        .map(|(at, (ids, (caption, _)))| {
            json!({"text_id": at, "text": caption, "image_ids": ids}).to_string()
        })
        .collect();
    let (texts_file, images_file) = (
        write(&folder, "x_texts.jsonl", &texts),
        write(&folder, "x_imgs.tsv", &images),
    );
    let set = ["--texts", text(&texts_file), "--images", text(&images_file)];

    // The same by the library, of the vectors that `embed` makes of the pairs.
    let pairs: Vec<String> = scenes[..5 * IMAGES]
        .iter()
        .map(|(caption, image)| format!("{caption}\t{image}"))
        .collect();
    let vectors = embed(&folder, &write(&folder, "pairs.tsv", &pairs), &[]);
    let image = (0..IMAGES).flat_map(|image| vectors.image.row(5 * image).to_vec());
    let image = Embeddings::new(IMAGES, vectors.image.dimensions(), image.collect()).unwrap();
    let captions = CaptionReader::new(fs::read(&texts_file).unwrap().as_slice())
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let ids: Vec<String> = (0..IMAGES).map(|image| format!("scene-{image}")).collect();
    let relations = Relations::new(&captions, &ids).unwrap();
    let ranks = related_ranks(&vectors.text, &image, &relations).unwrap();
    let expected = RelatedReport::new(&ranks).unwrap();
    // A fifth of the captions are of their image's picture.
    assert!(expected.image_to_text.recall.r5 > 0.8, "{expected:?}");

    let table = stdout(&[&["eval"][..], &set].concat());
    assert!(table.starts_with(RELATED_PROTOCOL), "{table}");
    assert_eq!(table, expected.table());
    let json = stdout(
        &[
            &["eval", "--quiet", "--format", "json", "--batch-size", "7"][..],
            &set,
        ]
        .concat(),
    );
    assert_eq!(json, expected.to_json());
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["text_to_image"]["queries"], 5 * IMAGES);
    let remarks = String::from_utf8(run(&[&["eval"][..], &set].concat()).stderr).unwrap();
    assert!(
        remarks.contains("1 image ids that captions name are not among the images"),
        "{remarks}"
    );

    // An image that cannot be read: an error, or none of the images.
    let mut broken = images.clone();
    broken[4] = "scene-4\t*".into();
    broken[6] = "scene-6".into();
    let broken = write(&folder, "broken.tsv", &broken);
    let set = ["--texts", text(&texts_file), "--images", text(&broken)];
    let error = failure(&[&["eval"][..], &set].concat());
    assert!(error.contains("broken.tsv: line 5: "), "{error}");
    let output = run(&[&["eval", "--on-error", "skip", "--format", "json"][..], &set].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["images"], &report["texts"]), (&28.into(), &150.into()));
    let remarks = String::from_utf8(output.stderr).unwrap();
    assert!(
        remarks.contains("skipped line 7: one column, expected an image id, a tab and the image in base64"),
        "{remarks}"
    );
    assert!(remarks.contains("3 image ids that captions name"), "{remarks}");
}

#[test]
fn what_is_wrong_with_a_labelled_set_is_said_with_its_place() {
    let folder = TempDir::new().unwrap();
    let lines = |lines: &[&str]| lines.iter().map(|line| line.to_string()).collect::<Vec<_>>();
    let one = r#"{"text_id": 1, "text": "猫", "image_ids": [1]}"#;
    let good_texts = write(&folder, "texts.jsonl", &lines(&[one]));
    let good_images = write(&folder, "images.tsv", &lines(&["1\tQUJD"]));
    let cut = write(&folder, "cut.jsonl", &lines(&[one, r#"{"text_id": 2"#]));
    let twice = write(&folder, "twice.jsonl", &lines(&[one, one]));
    let images_twice = write(&folder, "twice.tsv", &lines(&["1\tQUJD", "2\tQUJD", "1\tQUJD"]));
    let elsewhere = write(&folder, "elsewhere.tsv", &lines(&["2\tQUJD"]));
    for (texts, images, expected) in [
        (&cut, &good_images, "cut.jsonl: pairs: line 2, column 13: EOF"),
        (
            &twice,
            &good_images,
            "twice.jsonl: scoring: lines 1 and 2 both have the text_id \"1\"",
        ),
        (
            &good_texts,
            &images_twice,
            "twice.tsv: lines 1 and 3 both have the image id \"1\"",
        ),
        (&good_texts, &good_images, "images.tsv: line 1: image: "),
        (&good_texts, &folder.path().join("none.tsv"), "none.tsv"),
    ] {
        let error = failure(&["eval", "--texts", text(texts), "--images", text(images)]);
        assert!(error.contains(expected), "{error}");
    }
    let vectors = format!("{LABELLED}/odd/embeddings.safetensors");
    let error = failure(&[
        "score",
        &vectors,
        "--texts",
        text(&good_texts),
        "--images",
        text(&elsewhere),
    ]);
    assert!(
        error.contains("13 text vectors and 15 image vectors, expected 1 and 1"),
        "{error}"
    );
    let both = [
        "--texts",
        text(&good_texts),
        "--images",
        text(&good_images),
        "--limit",
        "2",
    ];
    let error = failure(&[&["eval"][..], &both].concat());
    assert!(error.contains("--limit have no meaning"), "{error}");
    assert_eq!(run(&["eval", "--texts", "x"]).status.code(), Some(2));
}

#[test]
fn recorded_vectors_of_a_labelled_set_are_scored() {
    let folder = TempDir::new().unwrap();
    for case in ["main", "captions5", "images3", "ties", "odd"] {
        let file = |name: &str| format!("{LABELLED}/{case}/{name}");
        let ids: Vec<u64> = serde_json::from_slice(&fs::read(file("image_ids.json")).unwrap()).unwrap();
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        let ids = write(&folder, "ids.tsv", &ids);
        let expected: Value = serde_json::from_slice(&fs::read(file("expected.json")).unwrap()).unwrap();
        let (vectors, texts) = (file("embeddings.safetensors"), file("texts.jsonl"));
        let args = ["score", &vectors, "--texts", &texts, "--images", text(&ids)];
        let report: Value =
            serde_json::from_str(&stdout(&[&args[..], &["--format", "json"]].concat())).unwrap();
        for direction in ["text_to_image", "image_to_text"] {
            let (found, expected) = (&report[direction], &expected[direction]);
            assert_eq!(found["queries"], expected["queries"], "{case}");
            let hits = ["hits_at_1", "hits_at_5", "hits_at_10"].map(|key| &expected[key]);
            assert_eq!(found["hits"], json!(hits), "{case}");
        }
        let table = stdout(&args);
        assert!(table.starts_with(RELATED_PROTOCOL), "{table}");
        let mean = expected["text_to_image"]["mean_recall"].as_f64().unwrap();
        let line = table.lines().find(|line| line.contains("Text2Image")).unwrap();
        assert!(line.ends_with(&format!("{mean:.2} |")), "{line}");
    }
}

#[test]
fn five_captions_of_an_image_are_five_rows_and_the_first_rows_are_scored() {
    let folder = TempDir::new().unwrap();
    let scenes = scenes();
    let row =
        |(at, (caption, _)): (usize, &(String, String))| format!("{caption}\t{at}\t{}", scenes[at / 5 * 5].1);
    let mut rows: Vec<String> = scenes[..60].iter().enumerate().map(row).collect();
    let all = write(&folder, "aic.tsv", &rows);
    // The same with another image between any two, so that none stands behind itself.
    let apart: Vec<String> = (rows.iter())
        .flat_map(|row| [row.clone(), format!("图\t{}", scenes[999].1)])
        .collect();
    let apart = embed(
        &folder,
        &write(&folder, "apart.tsv", &apart),
        &["--batch-size", "32"],
    );
    for batch in ["1", "3", "16", "60"] {
        let together = embed(&folder, &all, &["--batch-size", batch]);
        for row in 0..60 {
            assert_eq!(
                together.text.row(row),
                apart.text.row(2 * row),
                "{batch}: row {row}"
            );
            assert_eq!(
                together.image.row(row),
                apart.image.row(2 * row),
                "{batch}: row {row}"
            );
        }
    }
    let embedded = embed(&folder, &all, &["--limit", "40"]);
    assert_eq!((embedded.text.rows(), embedded.image.rows()), (40, 40));

    let first = write(&folder, "first.tsv", &rows[..40]);
    let expected = stdout(&["eval", "-i", text(&first)]);
    assert_eq!(stdout(&["eval", "-i", text(&all), "--limit", "40"]), expected);
    assert_eq!(stdout(&["eval", "-i", text(&first), "--limit", "1000"]), expected);
    let vectors = folder.path().join("pairs.safetensors");
    embed(&folder, &all, &[]);
    assert_eq!(stdout(&["score", text(&vectors), "--limit", "40"]), expected);
    let report = stdout(&["eval", "-i", text(&all), "--limit", "40", "--set", "aic-icc"]);
    let (ours, beside) = report.split_once("\n\n").unwrap();
    assert_eq!(format!("{ours}\n"), expected);
    assert!(
        beside.starts_with(
            "Published: ERNIE_VIL2_BASE_ViT, one-to-one, AIC-ICC validation, first 10,000 pairs\nNot comparable: these are 40 pairs"
        ),
        "{beside}"
    );

    // A bad image makes all rows that have it bad ones, also in the batches after.
    for row in &mut rows[5..10] {
        *row = "坏\t0\tQUJD".into();
    }
    let broken = write(&folder, "broken.tsv", &rows);
    for batch in ["2", "7", "60"] {
        let args = [
            "eval",
            "-i",
            text(&broken),
            "--on-error",
            "skip",
            "--batch-size",
            batch,
            "--format",
            "json",
        ];
        let output = run(&args);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["rows"], 55);
        let remarks = String::from_utf8(output.stderr).unwrap();
        assert_eq!(remarks.matches("skipped line ").count(), 5, "{remarks}");
        assert!(
            remarks.contains("skipped line 6: ") && remarks.contains("skipped line 10: "),
            "{remarks}"
        );
    }
    let error = failure(&["eval", "-i", text(&broken)]);
    assert!(error.contains("broken.tsv: line 6: image: "), "{error}");
}
