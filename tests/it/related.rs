//! Chinese-CLIP's protocol, against recorded figures and against plain loops.

use ernie_vil::Error;
use ernie_vil::recall::{
    Caption, CaptionReader, RELATED_PROTOCOL, RelatedRanks, RelatedReport, Relations, related_ranks,
};
use ernie_vil::vectors::{Embeddings, read_safetensors};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{read_golden, whole_numbers};

const CASES: [&str; 5] = ["main", "captions5", "images3", "ties", "odd"];

fn golden(name: &str) -> Vec<u8> {
    read_golden(format!("chinese_clip_protocol/{name}"))
}

fn captions(bytes: &[u8]) -> Vec<Caption> {
    CaptionReader::new(bytes).collect::<Result<_, _>>().unwrap()
}

fn image_ids(case: &str) -> Vec<String> {
    let ids: Vec<u64> = serde_json::from_slice(&golden(&format!("{case}/image_ids.json"))).unwrap();
    ids.iter().map(u64::to_string).collect()
}

#[test]
fn every_recorded_case_comes_out_the_same() {
    for case in CASES {
        let captions = captions(&golden(&format!("{case}/texts.jsonl")));
        let ids = image_ids(case);
        let vectors = read_safetensors(&golden(&format!("{case}/embeddings.safetensors"))).unwrap();
        let pairs = vectors.into_pairs().unwrap();
        let relations = Relations::new(&captions, &ids).unwrap();
        let ranks = related_ranks(&pairs.text, &pairs.image, &relations).unwrap();
        let report = RelatedReport::new(&ranks).unwrap();

        let expected: Value = serde_json::from_slice(&golden(&format!("{case}/expected.json"))).unwrap();
        assert_eq!(expected["texts"], report.texts, "{case}");
        assert_eq!(expected["images"], report.images, "{case}");
        let named: usize = captions.iter().map(|caption| caption.image_ids.len()).sum();
        assert_eq!(expected["text_image_pairs"], named, "{case}");
        let numbers = |name: &str| -> Vec<String> {
            let list = expected[name].as_array().unwrap();
            list.iter().map(Value::to_string).collect()
        };
        assert_eq!(
            numbers("ground_truth_images_not_in_gallery"),
            relations.missing(),
            "{case}"
        );
        let without: Vec<_> = (ids.iter().zip(&ranks.image_to_text))
            .filter(|(_, rank)| rank.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        assert_eq!(numbers("images_without_text"), without, "{case}");
        for (name, found) in [
            ("text_to_image", report.text_to_image),
            ("image_to_text", report.image_to_text),
        ] {
            let expected = &expected[name];
            assert_eq!(expected["queries"], found.queries, "{case}, {name}");
            let hits =
                ["hits_at_1", "hits_at_5", "hits_at_10"].map(|key| expected[key].as_u64().unwrap() as usize);
            assert_eq!(hits, found.hits, "{case}, {name}");
            let recall = found.recall;
            for (key, share) in [
                ("r1", recall.r1),
                ("r5", recall.r5),
                ("r10", recall.r10),
                ("mean_recall", recall.mean),
            ] {
                let difference = expected[key].as_f64().unwrap() - 100.0 * share;
                assert!(difference.abs() < 1e-9, "{case}, {name}, {key}: {difference}");
            }
        }
    }
}

#[test]
fn a_report_names_its_protocol() {
    let ranks = RelatedRanks {
        text_to_image: vec![Some(0), None, Some(6)],
        image_to_text: vec![None, Some(3)],
    };
    let report = RelatedReport::new(&ranks).unwrap();
    assert_eq!(
        report.table(),
        "\
Chinese-CLIP's protocol (N:M): not comparable with figures of the one-to-one protocol
| Name       |   R@1 |    R@5 |   R@10 |   meanRecall |
|------------|-------|--------|--------|--------------|
| Text2Image | 33.33 |  33.33 |  66.67 |        44.44 |
| Image2Text |  0.00 | 100.00 | 100.00 |        66.67 |
"
    );
    let json: Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["protocol"], RELATED_PROTOCOL);
    assert_eq!((&json["texts"], &json["images"]), (&3.into(), &2.into()));
    assert_eq!(json["text_to_image"]["queries"], 3);
    assert_eq!(json["image_to_text"]["hits"], serde_json::json!([0, 1, 1]));
    assert_eq!(json["image_to_text"]["r5"], 1.0);
}

#[test]
fn what_cannot_be_read_or_scored_is_named() {
    let first = r#"{"text_id": 1, "text": "一", "image_ids": [1]}"#;
    for (line, expected) in [
        ("", "line 2, column 0: EOF while parsing"),
        ("[]", "line 2, column"),
        (r#"{"text_id": 2, "text": "二"}"#, "missing field `image_ids`"),
        (
            r#"{"text_id": 2.5, "text": "二", "image_ids": []}"#,
            "expected an id, a whole number or a string",
        ),
        (r#"{"text_id": "", "text": "二", "image_ids": []}"#, "an empty id"),
        (
            r#"{"text_id": 2, "text": null, "image_ids": []}"#,
            "invalid type: null",
        ),
        (
            r#"{"text_id": 2, "text": "二", "image_ids": [{}]}"#,
            "line 2, column",
        ),
    ] {
        let text = format!("{first}\n{line}\n{first}");
        let mut reader = CaptionReader::new(text.as_bytes());
        assert_eq!(reader.next().unwrap().unwrap().line, 1);
        let error = reader.next().unwrap().unwrap_err();
        assert!(matches!(error, Error::Pairs(_)));
        assert!(error.to_string().contains(expected), "{line}: {error}");
        assert!(error.to_string().contains("line 2"), "{line}: {error}");
        assert_eq!(reader.next().unwrap().unwrap().line, 3);
    }
    let long = format!("{first}\n{}", " ".repeat((1 << 20) + 1));
    let mut reader = CaptionReader::new(long.as_bytes());
    reader.next().unwrap().unwrap();
    let error = reader.next().unwrap().unwrap_err().to_string();
    assert_eq!(error, "pairs: line 2 is longer than 1048576 bytes, the limit");
    assert!(reader.next().is_none());

    let one = captions(first.as_bytes());
    let twice = captions(format!("{first}\n{first}").as_bytes());
    let error = Relations::new(&twice, &["1"]).unwrap_err().to_string();
    assert_eq!(
        error,
        "scoring: lines 1 and 2 both have the text_id \"1\", expected each id once"
    );
    let error = Relations::new(&one, &["2", "1", "2"]).unwrap_err().to_string();
    assert_eq!(
        error,
        "scoring: images 1 and 3 both have the id \"2\", expected each id once"
    );

    let vectors = |rows: usize, value: f32| Embeddings::new(rows, 2, vec![value; 2 * rows]).unwrap();
    let relations = Relations::new(&one, &["1"]).unwrap();
    let error = |text: &Embeddings, image: &Embeddings, relations: &Relations| {
        related_ranks(text, image, relations).unwrap_err().to_string()
    };
    assert!(error(&vectors(2, 1.0), &vectors(1, 1.0), &relations).contains("expected 1 and 1"));
    assert!(
        error(&vectors(1, f32::NAN), &vectors(1, 1.0), &relations)
            .contains("text row 1: a vector of length NaN")
    );
    assert!(
        error(&vectors(1, 1.0), &vectors(1, 1e30), &relations).contains("image row 1: a vector of length")
    );
    let other = Embeddings::new(1, 3, vec![1.0; 3]).unwrap();
    assert!(
        error(&vectors(1, 1.0), &other, &relations)
            .contains("text vectors of 2 dimensions and image vectors of 3")
    );
    let nothing = Relations::new(&one, &["2"]).unwrap();
    assert_eq!(nothing.missing(), ["1"]);
    assert!(
        error(&vectors(1, 1.0), &vectors(1, 1.0), &nothing)
            .contains("no caption belongs to any of the images")
    );
    assert!(
        RelatedReport::new(&RelatedRanks {
            text_to_image: vec![None],
            image_to_text: vec![None]
        })
        .is_err()
    );
}

#[test]
fn lines_as_other_programs_write_them() {
    let first = r#"{"text_id": 1, "text": "一", "image_ids": [1]}"#;
    let second = r#"{"image_ids": ["1"], "text_id": "b", "text": "\ud83d\ude00", "more": ["\ud83d", {}]}"#;
    let expected = captions(format!("{first}\n{second}").as_bytes());
    assert_eq!((&*expected[1].text, &*expected[1].text_id), ("😀", "b"));
    for text in [
        format!("\u{feff}{first}\n{second}\n"),
        format!("{first}\r\n{second}\r\n"),
        format!("{first}\r{second}"),
        format!("{first}\n{second}\n\n"),
        format!("{first}\n{second}\n \t\r\n\n\u{3000}\n"),
    ] {
        assert_eq!(captions(text.as_bytes()), expected, "{text:?}");
    }
    for text in ["", "\n", "\u{feff}", "\u{feff}\n\n"] {
        assert_eq!(captions(text.as_bytes()), []);
    }
    // Blank lines with others behind them are one error, and the others are read.
    let read: Vec<_> = CaptionReader::new(format!("{first}\n\n \n{second}\n\n").as_bytes()).collect();
    assert_eq!(read.len(), 3);
    let error = read[1].as_ref().unwrap_err().to_string();
    assert!(
        error.contains("line 2") && error.contains("the line is blank"),
        "{error}"
    );
    assert_eq!(read[2].as_ref().unwrap().line, 4);

    for (line, expected) in [
        (
            r#"{"text_id": 2, "text": "猫\ud83d", "image_ids": []}"#,
            "line 2, column 32: text: \\ud83d is one half of a surrogate pair",
        ),
        (
            r#"{"text_id": 2, "text": "\ud83dA", "image_ids": []}"#,
            "text: \\ud83d is one half",
        ),
        (
            r#"{"text_id": 2, "text": "\ud83d\u0041", "image_ids": []}"#,
            "text: \\ud83d is one half",
        ),
        (
            r#"{"text_id": 2, "text": "\uDE00", "image_ids": []}"#,
            "text: \\uDE00 is one half",
        ),
        (
            r#"{"text_id": 2, "text": "", "image_ids": ["1", "\ud83d"]}"#,
            "image_ids: \\ud83d is one half",
        ),
        (
            r#"{"text_id": "\ud83d", "text": "", "image_ids": []}"#,
            "text_id: \\ud83d is one half",
        ),
        (
            r#"{"text_id": 2, "text": 5, "image_ids": []}"#,
            "text: invalid type: integer `5`, expected a string",
        ),
        (
            r#"{"text_id": 2, "text": "a", "text": "b", "image_ids": []}"#,
            "duplicate field `text`",
        ),
        (
            r#"[{"text_id": 2, "text": "二", "image_ids": []}]"#,
            "one JSON list: `jq -c '.[]'",
        ),
        ("{", "laid out over several lines: `jq -c . OLD"),
        ("17\t/9j/4AAQ", "is this the file of the images?"),
        (
            r#"{"text_id": 2, "text": "at line 7", "image_ids": 3}"#,
            "image_ids: invalid type: integer `3`, expected a sequence",
        ),
    ] {
        let text = format!("{first}\n{line}\n{first}");
        let read: Vec<_> = CaptionReader::new(text.as_bytes()).collect();
        assert_eq!(read.len(), 3);
        let error = read[1].as_ref().unwrap_err().to_string();
        assert!(
            error.contains("line 2, column") && error.contains(expected),
            "{line}: {error}"
        );
    }
    let utf16: Vec<u8> = format!("\u{feff}{first}\n{first}\n")
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for (bytes, expected) in [
        (&utf16[..], "the file is text in UTF-16"),
        (b"\x1f\x8b\x08\0\n\n", "the file is compressed by gzip"),
        (
            b"{\"text_id\": \"\xc3\xa8\xb9\"}",
            "line 1, column 1: byte 16 of the line, 0xb9, does not belong",
        ),
    ] {
        let read: Vec<_> = CaptionReader::new(bytes).collect();
        assert_eq!(read.len(), 1);
        let error = read[0].as_ref().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Sorts all candidates of a query, as the rules say it, and looks for the first that belongs to it.
fn sorted(
    queries: &Embeddings,
    candidates: &Embeddings,
    belongs: impl Fn(usize, usize) -> bool,
) -> Vec<Option<u32>> {
    let score = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let rank = |query: usize| {
        let mut order: Vec<usize> = (0..candidates.rows()).collect();
        let scores: Vec<f32> = candidates
            .iter()
            .map(|row| score(queries.row(query), row))
            .collect();
        order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap());
        order
            .iter()
            .position(|&candidate| belongs(query, candidate))
            .map(|rank| rank as u32)
    };
    (0..queries.rows()).map(rank).collect()
}

fn compare_with_sorting(texts: usize, images: usize, dimensions: usize, seed: u64) {
    let text = whole_numbers(texts, dimensions, seed);
    let image = whole_numbers(images, dimensions, seed.rotate_left(32) ^ 1);
    let belongs = |text: usize, image: usize| {
        (text * 7 + image * 13 + seed as usize % 5).is_multiple_of(images / 2 + 3)
    };
    let ids: Vec<String> = (0..images).map(|image| image.to_string()).collect();
    let captions: Vec<Caption> = (0..texts)
        .map(|text| Caption {
            line: text as u64 + 1,
            text_id: text.to_string(),
            text: String::new(),
            image_ids: (0..images)
                .rev()
                .filter(|&image| belongs(text, image))
                .map(|image| ids[image].clone())
                .collect(),
        })
        .collect();
    let relations = Relations::new(&captions, &ids).unwrap();
    if relations.pairs() == 0 {
        return;
    }
    let found = related_ranks(&text, &image, &relations).unwrap();
    assert!(
        found.text_to_image == sorted(&text, &image, belongs),
        "{texts} x {images}"
    );
    assert!(
        found.image_to_text == sorted(&image, &text, |image, text| belongs(text, image)),
        "{texts} x {images}"
    );
}

#[test]
fn tiles_of_any_size_give_the_ranks_of_sorting() {
    for (texts, images) in [
        (1, 1),
        (31, 33),
        (239, 513),
        (240, 512),
        (241, 511),
        (500, 40),
        (40, 1030),
    ] {
        compare_with_sorting(texts, images, 3, (texts * images) as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_sets_rank_as_by_sorting(texts in 1usize..300, images in 1usize..600, dimensions in 1usize..5, seed: u64) {
        compare_with_sorting(texts, images, dimensions, seed);
    }
}
