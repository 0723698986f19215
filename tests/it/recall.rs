//! Ranks and recall, against what the original's evaluation prints and against plain loops.

use burn::tensor::Device;
use ernie_vil::recall::{Options, Ranks, Report, TestSet, comparison, published, ranks, ranks_on};
use ernie_vil::towers::Engine;
use ernie_vil::vectors::{Embeddings, read_out};
use ernie_vil::{Published, Result};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{read_golden, whole_numbers};

const LIKE_ORIGINAL: Options = Options { like_original: true };

fn score(file: &[u8], options: Options) -> Result<(Ranks, Report)> {
    let pairs = read_out(file)?;
    let ranks = ranks(&pairs.text, &pairs.image, options)?;
    let report = Report::new(&ranks)?;
    Ok((ranks, report))
}

fn numbers(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|rank| rank.as_u64().unwrap() as u32)
        .collect()
}

#[test]
fn every_recorded_evaluation_comes_out_the_same() {
    let cases: serde_json::Map<String, Value> =
        serde_json::from_slice(&read_golden("eval/expected.json")).unwrap();
    assert_eq!(cases.len(), 35);
    let mut refused = 0;
    for (name, case) in cases {
        let found = score(&read_golden(format!("eval/{name}")), LIKE_ORIGINAL);
        if case["exit_code"] != 0 {
            assert!(
                found.is_err(),
                "{name}: accepted, the original says {}",
                case["error"]
            );
            refused += 1;
            continue;
        }
        let (ranks, report) = found.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(report.table(), case["stdout"].as_str().unwrap(), "{name}");
        if !case["rank_text2image"].is_null() {
            assert_eq!(ranks.text_to_image, numbers(&case["rank_text2image"]), "{name}");
            assert_eq!(ranks.image_to_text, numbers(&case["rank_image2text"]), "{name}");
        }
    }
    assert_eq!(refused, 13);
}

#[test]
fn the_recorded_run_is_scored_as_in_the_original() {
    let (_, report) = score(
        &read_golden("cross_modal_embeddings_tiny.out"),
        Options::default(),
    )
    .unwrap();
    assert_eq!(report.table().as_bytes(), read_golden("eval_tiny.txt"));
    assert_eq!(report.rows, 40);
}

#[test]
fn any_number_of_rows_is_scored_unless_as_in_the_original() {
    for (name, rows) in [("eval/count5.out", 5), ("eval/count15.out", 15)] {
        let file = read_golden(name);
        let (_, report) = score(&file, Options::default()).unwrap();
        assert_eq!(report.rows, rows);
        let error = score(&file, LIKE_ORIGINAL).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("scoring: {rows} rows, expected a multiple of 10 as in the original")
        );
    }
    for options in [Options::default(), LIKE_ORIGINAL] {
        let error = score(b"", options).unwrap_err().to_string();
        assert_eq!(error, "scoring: 0 rows, expected 1 to 4294967295");
        let error = score(&read_golden("eval/bad_dims.out"), options)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("10 text vectors of 3 dimensions and 10 image vectors of 2"),
            "{error}"
        );
        let one = Embeddings::new(1, 2, vec![1.0, 0.0]).unwrap();
        let two = Embeddings::new(2, 2, vec![1.0, 0.0, 1.0, 0.0]).unwrap();
        assert!(ranks(&one, &two, options).is_err());
    }
}

#[test]
fn vectors_without_a_score_are_named_unless_as_in_the_original() {
    for (name, expected) in [
        ("nan_text_row20", "row 8, text: a vector of length NaN"),
        ("nan_image_value20", "row 4, image: a vector of length NaN"),
        ("inf_text20", "row 6, text: a vector of length inf"),
        ("neginf_text20", "row 6, text: a vector of length inf"),
        ("zeros10", "row 1, text: a vector of length 0"),
        ("large_dim20", "row 1, text: a vector of length"),
    ] {
        let file = read_golden(format!("eval/{name}.out"));
        let error = score(&file, Options::default()).unwrap_err();
        assert_eq!(error.code(), "scoring");
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert!(
            error.to_string().contains("expected 1e-12 to 1e18"),
            "{name}: {error}"
        );
    }
    // What the original accepts in good order is scored the same without its rules.
    for name in [
        "pairs1000",
        "ties30",
        "dup_images30",
        "allsame10",
        "formats_odd10",
        "crlf10",
    ] {
        let file = read_golden(format!("eval/{name}.out"));
        let (ranks, _) = score(&file, Options::default()).unwrap();
        assert_eq!(ranks, score(&file, LIKE_ORIGINAL).unwrap().0, "{name}");
    }
}

/// No row is all zeros.
fn numbers_of_rows(rows: usize, dimensions: usize, seed: u64) -> Embeddings {
    let mut values = whole_numbers(rows, dimensions, seed).data().to_vec();
    for row in values.chunks_exact_mut(dimensions) {
        row[0] = 1.0;
    }
    Embeddings::new(rows, dimensions, values).unwrap()
}

fn plain_loops(text: &Embeddings, image: &Embeddings) -> Ranks {
    let score =
        |i: usize, j: usize| -> f32 { text.row(i).iter().zip(image.row(j)).map(|(a, b)| a * b).sum() };
    let all = 0..text.rows();
    let count = |higher: &dyn Fn(usize) -> bool| all.clone().filter(|&other| higher(other)).count() as u32;
    Ranks {
        text_to_image: all
            .clone()
            .map(|i| count(&|j| score(i, j) > score(i, i)))
            .collect(),
        image_to_text: all
            .clone()
            .map(|j| count(&|i| score(i, j) > score(j, j)))
            .collect(),
    }
}

/// The ranks by Burn, with products as a device does them and in halves.
fn by_burn(text: &Embeddings, image: &Embeddings) -> [Ranks; 2] {
    [Engine::BURN, Engine::BURN_SINGLE].map(|engine| ranks_on(text, image, &Device::flex(), engine).unwrap())
}

#[test]
fn a_device_gives_the_same_ranks() {
    // One tile, one and a row, and some.
    for rows in [1, 2, 33, 2047, 2048, 2049, 4500] {
        let text = numbers_of_rows(rows, 7, rows as u64);
        let image = numbers_of_rows(rows, 7, 1007);
        let expected = ranks(&text, &image, Options::default()).unwrap();
        for found in by_burn(&text, &image) {
            assert!(found == expected, "{rows} rows");
        }
    }
    let one = numbers_of_rows(1, 7, 1);
    let error = ranks_on(&one, &numbers_of_rows(2, 7, 1), &Device::flex(), Engine::BURN);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("expected the same of each")
    );
}

#[test]
fn tiles_of_any_size_give_the_ranks_of_plain_loops() {
    for rows in [1, 2, 31, 32, 33, 239, 240, 241, 480, 511, 512, 513, 1025] {
        for dimensions in [1, 3, 16, 33] {
            let text = numbers_of_rows(rows, dimensions, rows as u64);
            let image = numbers_of_rows(rows, dimensions, dimensions as u64 + 1000);
            let found = ranks(&text, &image, Options::default()).unwrap();
            assert!(found == plain_loops(&text, &image), "{rows} rows of {dimensions}");
        }
    }
}

#[test]
fn more_rows_than_are_packed_at_once() {
    // Row i scores (i, 1) . (1, -j) = i - j against image j, so that i images beat its own.
    let rows = 33_000usize;
    let text = (0..rows).flat_map(|row| [row as f32, 1.0]).collect();
    let image = (0..rows).flat_map(|row| [1.0, -(row as f32)]).collect();
    let text = Embeddings::new(rows, 2, text).unwrap();
    let image = Embeddings::new(rows, 2, image).unwrap();
    let found = ranks(&text, &image, Options::default()).unwrap();
    assert!(
        found
            .text_to_image
            .iter()
            .enumerate()
            .all(|(row, &rank)| rank as usize == row)
    );
    assert!(
        found
            .image_to_text
            .iter()
            .enumerate()
            .all(|(row, &rank)| rank as usize == rows - 1 - row)
    );
}

#[test]
fn equal_vectors_tie_exactly_wherever_they_stand() {
    // Values that every order of summation rounds differently, in rows that come back at odd distances.
    // Of unit vectors only copies score as high as the partner, so one wrong bit is one wrong rank.
    for dimensions in [7, 64, 400, 769] {
        let (rows, distinct) = (2100, 37);
        let value = |row: usize, column: usize| ((row % distinct * 31 + column * 7) as f32 * 0.37).sin();
        let values = (0..rows * dimensions).map(|at| value(at / dimensions, at % dimensions));
        let mut text = Embeddings::new(rows, dimensions, values.collect()).unwrap();
        text.normalise().unwrap();
        let found = ranks(&text, &text, Options::default()).unwrap();
        assert_eq!(found.text_to_image, vec![0; rows], "{dimensions} dimensions");
        assert_eq!(found.image_to_text, vec![0; rows], "{dimensions} dimensions");
        assert!(by_burn(&text, &text) == [found.clone(), found]);
    }
}

#[test]
fn scores_that_differ_in_the_last_bit_do_not_tie() {
    let next = f32::from_bits(1.0f32.to_bits() + 1);
    let text = Embeddings::new(2, 1, vec![1.0, 1.0]).unwrap();
    let image = Embeddings::new(2, 1, vec![1.0, next]).unwrap();
    let found = ranks(&text, &image, Options::default()).unwrap();
    assert_eq!(found.text_to_image, [1, 0]);
    assert_eq!(found.image_to_text, [0, 0]);
}

#[test]
fn recall_is_summed_up_by_its_definition() {
    let report = Report::new(&Ranks {
        text_to_image: vec![0, 1, 4, 5, 9, 10, 99, 0],
        image_to_text: vec![3, 3, 3, 3, 3, 3, 3, 0],
    })
    .unwrap();
    let text = report.text_to_image;
    assert_eq!(
        (text.recall.r1, text.recall.r5, text.recall.r10),
        (0.25, 0.5, 0.75)
    );
    assert_eq!(text.recall.mean, 0.5);
    let reciprocal = [
        1.0,
        1.0 / 2.0,
        1.0 / 5.0,
        1.0 / 6.0,
        1.0 / 10.0,
        1.0 / 11.0,
        1.0 / 100.0,
        1.0,
    ];
    assert!((text.mrr - reciprocal.iter().sum::<f64>() / 8.0).abs() < 1e-12);
    // Places 1, 1, 2, 5, 6, 10, 11, 100.
    assert_eq!(text.median_rank, 5.5);
    assert_eq!(report.image_to_text.median_rank, 4.0);
    assert_eq!(
        (report.mean.r1, report.mean.r5, report.mean.r10),
        (0.1875, 0.75, 0.875)
    );
    let odd = Report::new(&Ranks {
        text_to_image: vec![8, 0, 2],
        image_to_text: vec![0, 0, 0],
    })
    .unwrap();
    assert_eq!(odd.text_to_image.median_rank, 3.0);

    let json: Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["rows"], 8);
    assert_eq!(json["text_to_image"]["r10"], 0.75);
    assert_eq!(json["text_to_image"]["median_rank"], 5.5);
    assert_eq!(json["mean"]["r1"], 0.1875);

    for (text_to_image, image_to_text) in [(vec![], vec![]), (vec![0], vec![0, 1])] {
        assert!(
            Report::new(&Ranks {
                text_to_image,
                image_to_text
            })
            .is_err()
        );
    }
}

#[test]
fn percentages_are_rounded_as_numpy_rounds() {
    // Shares whose percentage has five thousandths at its end, and what numpy 1.26 makes of them.
    for (hits, rows, text) in [
        (1, 4000, "0.02"),
        (3, 4000, "0.08"),
        (13, 4000, "0.32"),
        (5574, 8000, "69.68"),
        (5217, 20000, "26.08"),
        (19409, 20000, "97.04"),
        (1, 3, "33.33"),
    ] {
        let ranks: Vec<u32> = (0..rows).map(|row| if row < hits { 0 } else { 99 }).collect();
        let report = Report::new(&Ranks {
            text_to_image: ranks.clone(),
            image_to_text: ranks,
        })
        .unwrap();
        let table = report.table();
        let cell = table.lines().nth(2).unwrap().split('|').nth(2).unwrap().trim();
        assert_eq!(cell, text, "{hits} of {rows}");
    }
}

#[test]
fn published_figures_stand_as_they_were_published() {
    assert_eq!(
        published(Published::First).table(),
        "\
| Name       |   R@1 |   R@5 |   R@10 |   meanRecall |
|------------|-------|-------|--------|--------------|
| Text2Image | 66.00 | 90.00 |  96.10 |        84.03 |
| Image2Text | 65.90 | 91.40 |  96.30 |        84.53 |
| MeanRecall | 65.95 | 90.70 |  96.20 |        84.28 |
"
    );
    let open = published(Published::Open).table();
    assert!(open.contains("| Text2Image | 65.90 | 90.10 |  96.10 |"), "{open}");
    assert!(open.contains("| Image2Text | 66.50 | 91.60 |  96.20 |"), "{open}");
    assert!(
        open.contains("| MeanRecall | 66.20 | 90.85 |  96.15 |        84.40 |"),
        "{open}"
    );
}

#[test]
fn a_report_stands_beside_the_published_figures() {
    // 660 of 1,000 captions find their image at once, as published; one image more than published.
    let ranks = |bounds: [usize; 3]| {
        (0..1000)
            .map(|row| match row {
                row if row < bounds[0] => 0,
                row if row < bounds[1] => 4,
                row if row < bounds[2] => 9,
                _ => 500,
            })
            .collect::<Vec<u32>>()
    };
    let mut both = Ranks {
        text_to_image: ranks([660, 900, 961]),
        image_to_text: ranks([660, 912, 963]),
    };
    let report = Report::new(&both).unwrap();
    assert_eq!(
        comparison(&report, Published::First, TestSet::CocoCn),
        "\
Published: ERNIE_VIL2_BASE_ViT, one-to-one, COCO-CN test, 1,000 pairs
| Name       |   R@1 |   R@5 |   R@10 |   meanRecall |
|------------|-------|-------|--------|--------------|
| Text2Image | 66.00 | 90.00 |  96.10 |        84.03 |
| published  | 66.00 | 90.00 |  96.10 |        84.03 |
| difference | +0.00 | +0.00 |  +0.00 |        +0.00 |
| Image2Text | 66.00 | 91.20 |  96.30 |        84.50 |
| published  | 65.90 | 91.40 |  96.30 |        84.53 |
| difference | +0.10 | -0.20 |  +0.00 |        -0.03 |
| MeanRecall | 66.00 | 90.60 |  96.20 |        84.27 |
| published  | 65.95 | 90.70 |  96.20 |        84.28 |
| difference | +0.05 | -0.10 |  +0.00 |        -0.01 |
"
    );
    both.text_to_image.pop();
    both.image_to_text.pop();
    let text = comparison(&Report::new(&both).unwrap(), Published::Open, TestSet::CocoCn);
    let mut lines = text.lines();
    assert_eq!(
        lines.next().unwrap(),
        "Published: OPEN_ERNIE_VIL2_BASE_ViT, one-to-one, COCO-CN test, 1,000 pairs"
    );
    assert_eq!(
        lines.next().unwrap(),
        "Not comparable: these are 999 pairs, so not that test split"
    );

    let places = vec![5; 10_000];
    let report = Report::new(&Ranks {
        text_to_image: places.clone(),
        image_to_text: places,
    })
    .unwrap();
    let expected = "\
Published: ERNIE_VIL2_BASE_ViT, one-to-one, AIC-ICC validation, first 10,000 pairs
| Name       |    R@1 |   R@5 |   R@10 |   meanRecall |
|------------|--------|-------|--------|--------------|
| Text2Image |   0.00 |  0.00 | 100.00 |        33.33 |
| published  |  17.93 |     - |      - |            - |
| difference | -17.93 |     - |      - |            - |
| Image2Text |   0.00 |  0.00 | 100.00 |        33.33 |
| published  |  30.41 |     - |      - |            - |
| difference | -30.41 |     - |      - |            - |
| MeanRecall |   0.00 |  0.00 | 100.00 |        33.33 |
| published  |      - |     - |      - |        38.57 |
| difference |      - |     - |      - |        -5.24 |
";
    assert_eq!(comparison(&report, Published::First, TestSet::AicIcc), expected);
    let text = comparison(&report, Published::Open, TestSet::AicIcc);
    assert!(text.starts_with("Published: ERNIE_VIL2_BASE_ViT (not the open release), one-to-one, AIC-ICC"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_embeddings_rank_as_in_plain_loops(rows in 1usize..300, dimensions in 1usize..20, seed: u64) {
        let text = numbers_of_rows(rows, dimensions, seed);
        let image = numbers_of_rows(rows, dimensions, seed.rotate_left(32) ^ 1);
        let found = ranks(&text, &image, Options::default()).unwrap();
        prop_assert_eq!(found, plain_loops(&text, &image));
    }
}
