//! Test sets in the forms in which they come, scored by the binary with the model inside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use ernie_vil::recall::{CaptionReader, RELATED_PROTOCOL, RelatedReport, Relations, related_ranks};
use ernie_vil::vectors::{Embeddings, Pairs, read_safetensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{golden, pairs, remarks, run, success, text};

fn stdout(args: &[&str]) -> String {
    success(&run(args))
}

/// All that a command says that fails.
fn failure(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    remarks(&output)
}

/// Caption and image of each pair that "scenes" is tested with.
fn scenes() -> Vec<(String, String)> {
    pairs(usize::MAX)
}

fn write(folder: &TempDir, name: &str, lines: &[String]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    path
}

/// The vectors of pairs, as `embed` makes them; those of an earlier call are replaced.
fn embed(folder: &TempDir, pairs: &Path, more: &[&str]) -> Pairs {
    let output = folder.path().join("pairs.safetensors");
    let args = [
        "embed",
        "--quiet",
        "--overwrite",
        "-i",
        text(pairs),
        "-o",
        text(&output),
    ];
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
    let vectors = golden("chinese_clip_protocol/odd/embeddings.safetensors");
    let error = failure(&[
        "score",
        text(&vectors),
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
        let file = |name: &str| golden(format!("chinese_clip_protocol/{case}/{name}"));
        let ids: Vec<u64> = serde_json::from_slice(&fs::read(file("image_ids.json")).unwrap()).unwrap();
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        let ids = write(&folder, "ids.tsv", &ids);
        let expected: Value = serde_json::from_slice(&fs::read(file("expected.json")).unwrap()).unwrap();
        let (vectors, texts) = (file("embeddings.safetensors"), file("texts.jsonl"));
        let args = [
            "score",
            text(&vectors),
            "--texts",
            text(&texts),
            "--images",
            text(&ids),
        ];
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

/// What comes of a file of one sound row and another one behind it.
fn second_row(folder: &TempDir, row: &str) -> String {
    let (caption, image) = &scenes()[0];
    let path = write(
        folder,
        "pairs.tsv",
        &[format!("{caption}\t1\t{image}"), row.to_owned()],
    );
    failure(&["eval", "--quiet", "-i", text(&path)])
}

#[test]
fn a_row_in_another_form_is_named_with_its_line_and_what_it_seems_to_be() {
    let folder = TempDir::new().unwrap();
    let (caption, image) = &scenes()[1];
    assert!(image.contains(['+', '/']));
    let url_safe = image.replace('+', "-").replace('/', "_");
    for (row, expected) in [
        (
            format!("{caption}\t2\t{url_safe}"),
            "base64: the text is URL-safe base64",
        ),
        (
            format!("{caption}\t2\tb'{image}'"),
            "base64: the text is a Python bytes object",
        ),
        (
            format!("{caption}\t2\tdata:image/png;base64,{image}"),
            "base64: the text is a data: URL",
        ),
        (
            format!("{caption}\t2\tphotos/2.jpg"),
            "base64: the text is a file's path (\"photos/2.jpg\")",
        ),
        (
            format!("{caption}\t2\thttps://example.org/2"),
            "base64: the text is an address (\"https://example.org/2\")",
        ),
        (format!("{caption}\t2\t"), "the text is \"2\""),
        (
            format!("{image}\t2\t{caption}"),
            "the columns are in another order: the first one is an image",
        ),
        (
            format!("\"{caption}\",2,{image}"),
            "one column, expected a caption, a tab, an image id, a tab and the image in base64; columns are separated by \
             tabs, not by commas (CSV)",
        ),
        (format!("{caption};2;{image}"), "; columns are separated by tabs"),
        (
            format!("{caption} 2 {image}"),
            "; columns are separated by tabs, not by blanks",
        ),
        (
            format!("{caption}\\t2\\t{image}"),
            "; the line has a backslash and a t where a tab should be",
        ),
        (
            json!({"text_id": 1, "text": caption, "image_ids": [1]}).to_string(),
            "; the line seems to be JSON",
        ),
        (String::new(), "the line is blank, expected a caption"),
        (" \t ".into(), "the line is blank, expected a caption"),
    ] {
        let error = second_row(&folder, &row);
        let place = "error: ".to_owned() + text(folder.path()) + "/pairs.tsv: line 2: ";
        assert!(
            error.starts_with(&place) && error.contains(expected),
            "{expected}: {error}"
        );
        assert!(error.len() < 600, "{error}");
    }

    // A header is a row like any other, which only its words tell.
    for header in [
        "caption\timage_id\timage",
        "\u{feff}text\tid\timage_base64",
        "文本\t图片",
    ] {
        let path = write(
            &folder,
            "header.tsv",
            &[header.to_owned(), format!("{caption}\t2\t{image}")],
        );
        let error = failure(&["eval", "-i", text(&path)]);
        assert!(
            error.contains("header.tsv: line 1: ") && error.contains("is the line a header?"),
            "{error}"
        );
    }
}

#[test]
fn a_mark_in_front_changes_nothing_and_what_is_no_text_is_said_at_once() {
    let folder = TempDir::new().unwrap();
    let scenes = &scenes()[..12];
    let rows: Vec<String> = scenes
        .iter()
        .enumerate()
        .map(|(at, (caption, image))| format!("{caption}\t{at}\t{image}"))
        .collect();
    let plain = write(&folder, "plain.tsv", &rows);
    let expected = stdout(&["eval", "-i", text(&plain)]);
    let all = rows.join("\n") + "\n";
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    for (name, bytes) in [
        ("marked.tsv", format!("\u{feff}{all}")),
        ("windows.tsv", all.replace('\n', "\r\n")),
        ("both.tsv", format!("\u{feff}{all}").replace('\n', "\r\n")),
        ("mac.tsv", all.replace('\n', "\r")),
    ] {
        assert_eq!(
            stdout(&["eval", "-i", text(&file(name, bytes.as_bytes()))]),
            expected,
            "{name}"
        );
    }
    // The first image's id is the one that its caption names.
    let texts: Vec<String> = (scenes.iter().enumerate())
        .map(|(at, (caption, _))| json!({"text_id": at, "text": caption, "image_ids": [at]}).to_string())
        .collect();
    let images: Vec<String> = (scenes.iter().enumerate())
        .map(|(at, (_, image))| format!("{at}\t{image}"))
        .collect();
    let set = |texts: &Path, images: &Path| {
        let output = run(&[
            "eval",
            "--format",
            "json",
            "--texts",
            text(texts),
            "--images",
            text(images),
        ]);
        let remarks = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success() && !remarks.contains("can never be found"),
            "{remarks}"
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let marked_texts = format!("\u{feff}{}\r\n\r\n\n", texts.join("\r\n"));
    let marked_images = format!("\u{feff}{}\r\n", images.join("\r\n"));
    assert_eq!(
        set(
            &file("m.jsonl", marked_texts.as_bytes()),
            &file("m.tsv", marked_images.as_bytes())
        ),
        set(
            &write(&folder, "t.jsonl", &texts),
            &write(&folder, "i.tsv", &images)
        )
    );

    let utf16: Vec<u8> = format!("\u{feff}{all}")
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let utf16 = file("utf16.tsv", &utf16);
    let gzip = file("pairs.tsv.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x0b\n\x0a\n\n");
    let output = folder.path().join("out.npy");
    for (path, what) in [
        (
            &utf16,
            "utf16.tsv: pairs: the file is text in UTF-16, expected UTF-8; `iconv",
        ),
        (
            &gzip,
            "pairs.tsv.gz: pairs: the file is compressed by gzip, expected text; `gzip -dc",
        ),
    ] {
        for on_error in ["stop", "skip"] {
            let error = failure(&["eval", "--on-error", on_error, "-i", text(path)]);
            assert!(error.contains(what), "{error}");
            let error = failure(&[
                "embed",
                "--on-error",
                on_error,
                "-i",
                text(path),
                "-o",
                text(&output),
            ]);
            assert!(error.contains(what), "{error}");
        }
        let error = failure(&["eval", "--texts", text(path), "--images", text(&plain)]);
        assert!(error.contains(what), "{error}");
        let texts = write(&folder, "t.jsonl", &texts);
        let error = failure(&["eval", "--texts", text(&texts), "--images", text(path)]);
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn a_run_that_embeds_nothing_fails() {
    let folder = TempDir::new().unwrap();
    let bad = write(&folder, "bad.tsv", &["猫\t1\t*".into(), "狗\t2\tcat.jpg".into()]);
    let empty = folder.path().join("empty.tsv");
    fs::write(&empty, "").unwrap();
    let output = folder.path().join("out.safetensors");
    fs::write(&output, "an earlier result").unwrap();
    for (input, expected) in [
        (
            &bad,
            "bad.tsv: none of the 2 rows could be read; line 1: image: no bytes",
        ),
        (&empty, "empty.tsv has no rows, expected a pair a line"),
    ] {
        let skip = ["--on-error", "skip", "-i", text(input)];
        let error = failure(&[&["eval"][..], &skip].concat());
        assert!(error.contains(expected), "{error}");
        // The first run leaves a list of the rows that it skipped.
        let embed = [
            "embed",
            "--overwrite",
            "--on-error",
            "skip",
            "-i",
            text(input),
            "-o",
        ];
        for (at, name) in ["new.out", "new.npy", "new.safetensors"].into_iter().enumerate() {
            let output = folder.path().join(name);
            let error = failure(&[&embed[..], &[text(&output)]].concat());
            assert!(error.contains(expected), "{error}");
            assert!(!output.exists(), "{at}");
            assert!(!folder.path().join(format!("{name}.rows")).exists(), "{at}");
        }
    }
    let list = fs::read_to_string(folder.path().join("new.out.skipped.tsv"));
    // The second run had no rows, and took the first one's list away.
    assert!(list.is_err());
    let args = ["embed", "--on-error", "skip", "-i", text(&bad), "-o"];
    failure(&[&args[..], &[text(&folder.path().join("new.out"))]].concat());
    let list = fs::read_to_string(folder.path().join("new.out.skipped.tsv")).unwrap();
    assert!(
        list.starts_with("1\timage: ") && list.contains("\n2\tbase64: the text is a file's path"),
        "{list}"
    );
    assert_eq!(fs::read_to_string(&output).unwrap(), "an earlier result");
    // The images of a labelled set likewise.
    let texts = write(
        &folder,
        "t.jsonl",
        &[r#"{"text_id": 1, "text": "猫", "image_ids": ["猫"]}"#.into()],
    );
    let error = failure(&[
        "eval",
        "--on-error",
        "skip",
        "--texts",
        text(&texts),
        "--images",
        text(&bad),
    ]);
    assert!(
        error.contains("bad.tsv: none of the 2 rows could be read"),
        "{error}"
    );
}

#[test]
fn labels_are_taken_one_by_one_or_it_is_said_what_is_wrong_with_them() {
    let folder = TempDir::new().unwrap();
    let image = golden("images/r00.jpg");
    let classify = |more: &[&str]| run(&[&["classify", "--json"][..], more, &[text(&image)]].concat());
    let labels = |output: Output| -> Vec<String> {
        let remarks = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{remarks}");
        let line: Value = serde_json::from_slice(&output.stdout).unwrap();
        let labels = line["labels"].as_array().unwrap();
        let mut labels: Vec<String> = (labels.iter())
            .map(|label| label["label"].as_str().unwrap().to_owned())
            .collect();
        labels.sort();
        labels
    };
    assert_eq!(labels(classify(&["--labels", " 猫, 狗 "])), ["狗", "猫"]);
    let path = folder.path().join("labels.txt");
    for (bytes, expected) in [
        ("\u{feff}猫\n狗\n", &["狗", "猫"][..]),
        ("\u{feff}猫\r\n\r\n狗\r\n", &["狗", "猫"]),
        ("猫\r狗", &["狗", "猫"]),
        ("红色，圆形\n#猫\na, b\n", &["#猫", "a, b", "红色，圆形"]),
    ] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(
            labels(classify(&["--labels-file", text(&path)])),
            expected,
            "{bytes:?}"
        );
    }
    let wrong = |output: Output, expected: &str| {
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(expected), "{expected}: {error}");
    };
    for (labels, expected) in [
        (
            "猫，狗",
            "--labels: label 1 is \"猫，狗\", expected a comma (,) between two labels, not a full-width comma (，)",
        ),
        (
            "鸟,猫、狗",
            "--labels: label 2 is \"猫、狗\", expected a comma (,) between two labels, not \"、\"",
        ),
        ("猫;狗", "expected a comma (,) between two labels, not \";\""),
        (
            "猫\n狗",
            "expected a comma (,) between two labels, not a line break",
        ),
        (
            "猫,狗,",
            "--labels: label 3 of 3 is empty; remove the comma at the end",
        ),
        (
            "猫,,狗",
            "--labels: label 2 of 3 is empty; remove the comma too many",
        ),
        (
            "猫, 猫",
            "the label \"猫\" is there twice, as label 1 of --labels and as label 2 of --labels",
        ),
        ("", "is empty"),
    ] {
        wrong(classify(&["--labels", labels]), expected);
    }
    let utf16: Vec<u8> = "\u{feff}猫\n狗\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for (bytes, expected) in [
        (
            &utf16[..],
            "labels.txt: text: the file is text in UTF-16, expected UTF-8; `iconv",
        ),
        (
            b"\x1f\x8b\x08\0",
            "labels.txt: text: the file is compressed by gzip",
        ),
        (
            b"cat\n\xc3\xa8\xb9\xb7\n",
            "labels.txt: text: line 2: byte 3 of the line, 0xb9, does not belong in UTF-8; expected",
        ),
        (b"", "labels.txt has no label, expected one a line"),
        (
            "\u{feff}\n \n".as_bytes(),
            "labels.txt has no label, expected one a line",
        ),
        (
            "猫,狗,鸟\n".as_bytes(),
            "labels.txt has one line, \"猫,狗,鸟\", expected one label a line",
        ),
        (
            "猫，狗".as_bytes(),
            "labels.txt has one line, \"猫，狗\", expected one label a line",
        ),
        (
            "猫,\n狗,\n".as_bytes(),
            "labels.txt: line 1 is \"猫,\", with a separator at its end",
        ),
        (
            "# 动物\n猫\n".as_bytes(),
            "labels.txt: line 1 is \"# 动物\", as in a comment",
        ),
        (
            "猫\t0\n狗\t1\n".as_bytes(),
            "labels.txt: line 1 is \"猫\\t0\", with a tab in it",
        ),
        (
            "[\"猫\", \"狗\"]".as_bytes(),
            "labels.txt: line 1 is \"[\\\"猫\\\", \\\"狗\\\"]\", as in JSON",
        ),
        (
            "猫\n狗\n\n猫\n".as_bytes(),
            "the label \"猫\" is there twice, as line 1 of ",
        ),
    ] {
        fs::write(&path, bytes).unwrap();
        wrong(classify(&["--labels-file", text(&path)]), expected);
    }
    wrong(
        classify(&["--labels", text(&path)]),
        "--labels-file reads them from a file",
    );
    for (template, expected) in [
        (
            "一张{label}的照片",
            "has no {} where the label goes; write {} for {label}",
        ),
        ("一张{0}的照片", "; write {} for {0}"),
        ("一张%s的照片", "; write {} for %s"),
        ("一张｛｝的照片", "; write {} for ｛｝"),
        ("一张照片", "has no {} where the label goes"),
        ("", "the template \"\" has no {}"),
    ] {
        wrong(classify(&["--labels", "猫,狗", "--template", template]), expected);
    }
    for args in [
        &["classify", "--labels", "猫", "--top", "0", text(&image)][..],
        &["search", "--images", ".", "--text", "猫", "-k", "0"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("expected a whole number of at least 1"), "{error}");
    }
}
