//! The index against a plain list, its eight-bit form against the exact one, and its file and its log against
//! damage.

use ernie_vil::index::{EmbeddingIndex, Hit, VectorType};
use ernie_vil::vectors::{Embeddings, normalise};
use proptest::prelude::*;
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

use crate::support::{memory::measured, message_with_code};

const TYPES: [VectorType; 2] = [VectorType::F32, VectorType::Int8];

/// Runs `task` on some bytes, and sees to it that it takes memory in proportion to them at most.
fn in_proportion<T>(bytes: &[u8], task: impl FnOnce() -> T) -> T {
    let (result, most) = measured(task);
    assert!(
        most <= 64 * bytes.len() + 4096,
        "{most} bytes of memory for {}",
        bytes.len()
    );
    result
}

fn load(file: &[u8]) -> ernie_vil::Result<EmbeddingIndex> {
    in_proportion(file, || EmbeddingIndex::load(file))
}

fn found(hits: &[Hit<'_>]) -> Vec<(String, f32)> {
    hits.iter().map(|hit| (hit.id.to_string(), hit.score)).collect()
}

fn message<T: std::fmt::Debug>(result: ernie_vil::Result<T>) -> String {
    message_with_code("index", result)
}

fn saved(index: &EmbeddingIndex) -> Vec<u8> {
    let mut file = Vec::new();
    index.save(&mut file).unwrap();
    file
}

fn example() -> EmbeddingIndex {
    example_of(VectorType::F32)
}

fn example_of(dtype: VectorType) -> EmbeddingIndex {
    let mut index = EmbeddingIndex::with_dtype(2, "model", dtype);
    for (id, vector) in [("a", [1.0, 0.0]), ("狗\"\n", [0.0, 1.0]), ("", [0.5, 0.5])] {
        assert!(!index.add(id.into(), &vector).unwrap());
    }
    index
}

#[test]
fn the_best_come_first_and_equal_ones_in_their_order() {
    let mut index = EmbeddingIndex::new(2, "");
    for (id, vector) in [
        ("a", [1.0, 0.0]),
        ("b", [2.0, 5.0]),
        ("c", [1.0, 7.0]),
        ("d", [3.0, 0.0]),
    ] {
        index.add(id.into(), &vector).unwrap();
    }
    let hits = index.search(&[1.0, 0.0], 10).unwrap();
    let expected =
        [("d", 3.0), ("b", 2.0), ("a", 1.0), ("c", 1.0)].map(|(id, score)| (id.to_string(), score));
    assert_eq!(found(&hits), expected);
    for count in 0..4 {
        assert_eq!(
            found(&index.search(&[1.0, 0.0], count).unwrap()),
            expected[..count]
        );
    }
    // The last row moves to the place of a removed one, and keeps its turn.
    assert!(index.remove("b"));
    index.add("b".into(), &[1.0, 1.0]).unwrap();
    assert_eq!(index.ids(), ["a", "c", "d", "b"]);
    let hits = index.search(&[1.0, 0.0], usize::MAX).unwrap();
    assert_eq!(
        hits.iter().map(|hit| hit.id).collect::<Vec<_>>(),
        ["d", "a", "c", "b"]
    );
    // -0 and 0 are one score.
    let hits = index.search(&[0.0, -1e-3], 2).unwrap();
    assert_eq!(
        hits.iter().map(|hit| (hit.id, hit.score)).collect::<Vec<_>>(),
        [("a", 0.0), ("d", 0.0)]
    );
}

#[test]
fn replacing_and_removing() {
    let mut index = example();
    assert!(index.add("a".into(), &[0.0, -1.0]).unwrap());
    assert_eq!(index.len(), 3);
    assert_eq!(index.get("a").as_deref(), Some(&[0.0, -1.0][..]));
    assert!(index.has("a") && !index.has("b"));
    assert_eq!(index.ids(), ["a", "狗\"\n", ""]);
    assert!(index.remove("a") && !index.remove("a"));
    assert_eq!((index.get("a"), index.len()), (None, 2));
    assert!(index.remove("") && index.remove("狗\"\n"));
    assert!(index.is_empty());
    assert!(index.search(&[1.0, 0.0], 5).unwrap().is_empty());
}

#[test]
fn wrong_vectors_are_refused_and_change_nothing() {
    let mut index = example();
    for (vector, expected) in [
        (&[1.0][..], "1 dimensions, expected 2"),
        (&[1.0, 2.0, 3.0], "3 dimensions, expected 2"),
        (&[f32::NAN, 1.0], "a vector of length NaN, expected 1e-12 to 1e18"),
        (&[f32::INFINITY, 1.0], "a vector of length inf"),
        (&[0.0, 0.0], "a vector of length 0"),
        (&[1e19, 1.0], "a vector of length 9999999980506"),
    ] {
        let before = saved(&index);
        assert!(
            message(index.add("n\u{0}".into(), vector)).starts_with(&format!("index: id 'n\\0': {expected}"))
        );
        message(index.add("a".into(), vector));
        assert_eq!(saved(&index), before);
        assert!(message(index.search(vector, 1)).starts_with(&format!("index: query: {expected}")));
    }
    let queries = Embeddings::new(2, 2, vec![1.0, 0.0, f32::NAN, 0.0]).unwrap();
    assert!(message(index.search_batch(&queries, 1)).contains("query 2: a vector of length NaN"));
    let queries = Embeddings::new(1, 3, vec![1.0; 3]).unwrap();
    assert!(message(index.search_batch(&queries, 1)).contains("query 1: 3 dimensions"));
    assert!(index.search_batch(&Embeddings::default(), 1).unwrap().is_empty());
}

#[test]
fn a_saved_index_is_a_safetensors_file() {
    for dtype in TYPES {
        is_a_safetensors_file(example_of(dtype));
    }
}

fn is_a_safetensors_file(index: EmbeddingIndex) {
    let file = saved(&index);
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let vectors = tensors.tensor("vectors").unwrap();
    assert_eq!(vectors.shape(), [3, 2]);
    if index.dtype() == VectorType::Int8 {
        assert_eq!(vectors.data(), [127, 0, 0, 127, 127, 127]);
        let scales = tensors.tensor("scales").unwrap();
        assert_eq!(scales.shape(), [3, 1]);
        let expected = [1.0f32 / 127.0, 1.0 / 127.0, 0.5 / 127.0].map(f32::to_le_bytes);
        assert_eq!(scales.data(), expected.as_flattened());
    }
    let ids: Vec<String> = serde_json::from_slice(tensors.tensor("ids").unwrap().data()).unwrap();
    assert_eq!(ids, ["a", "狗\"\n", ""]);

    let loaded = EmbeddingIndex::load(&file).unwrap();
    assert_eq!(
        (loaded.dimensions(), loaded.fingerprint(), loaded.ids()),
        (2, "model", index.ids())
    );
    assert_eq!(loaded.dtype(), index.dtype());
    assert_eq!(saved(&loaded), file);
    loaded.check_fingerprint("model").unwrap();
    assert!(message(loaded.check_fingerprint("other")).contains("by the model 'model', expected 'other'"));

    let empty = EmbeddingIndex::with_dtype(768, "m", index.dtype());
    let empty = EmbeddingIndex::load(&saved(&empty)).unwrap();
    assert_eq!(
        (empty.len(), empty.dimensions(), empty.dtype()),
        (0, 768, index.dtype())
    );
}

#[test]
fn files_of_the_first_version_are_read_and_written() {
    let file = include_bytes!("../../fuzz/seeds/index/three.index");
    let index = EmbeddingIndex::load(file).unwrap();
    assert_eq!(index.ids(), ["cat.jpg", "猫\t\"1\"", ""]);
    assert_eq!(index.get("cat.jpg").as_deref(), Some(&[1.0, 0.0][..]));
    // That file was written by another program. This is what ours were to the byte.
    let header = concat!(
        r#"{"__metadata__":{"fingerprint":"model-a","format":"ernie-vil index 1","#,
        r#""sha256":"50f6c11e330b403642fc21f4b9f441f467125b492af212817c0949a38d1241be"},"#,
        r#""ids":{"data_offsets":[24,51],"dtype":"U8","shape":[27]},"#,
        r#""vectors":{"data_offsets":[0,24],"dtype":"F32","shape":[3,2]}}      "#,
    );
    let expected = [&file[..8], header.as_bytes(), &file[8 + header.len()..]].concat();
    assert_eq!(saved(&index), expected);
}

#[test]
fn a_file_that_was_cut_or_changed_is_refused() {
    for (dtype, vectors) in TYPES.into_iter().zip([24, 12 + 6]) {
        changed_anywhere(&saved(&example_of(dtype)), vectors);
    }
}

/// `vectors` bytes of the file are vectors, or scales and codes.
fn changed_anywhere(file: &[u8], vectors: usize) {
    for length in 0..file.len() {
        message(EmbeddingIndex::load(&file[..length]));
    }
    assert!(message(EmbeddingIndex::load(&[file, b" "].concat())).contains("end at"));
    damaged_anywhere(file, vectors + "[\"a\",\"狗\\\"\\n\",\"\"]".len());
}

/// `data` bytes of the file are behind the header.
fn damaged_anywhere(file: &[u8], data: usize) {
    let text = String::from_utf8_lossy(file).into_owned();
    let data = file.len() - data;
    for at in 0..file.len() {
        for flipped in [1, 0x20, 0x80] {
            let mut changed = file.to_vec();
            changed[at] ^= flipped;
            match load(&changed) {
                Err(error) => assert_eq!(error.code(), "index"),
                // Nothing but the space behind the header can change without a trace.
                Ok(loaded) => {
                    assert!(at < data && file[at] == b' ', "byte {at} of {text}");
                    assert_eq!(saved(&loaded), file);
                }
            }
        }
    }
}

#[test]
fn files_that_are_no_index_say_what_is_missing() {
    let file = saved(&example());
    let changed = |from: &str, to: &str| with_header(&file, from, to);
    assert!(
        changed("ernie-vil index 1", "ernie-vil index 2").contains("format 'ernie-vil index 2', expected")
    );
    assert!(changed("\"fingerprint\"", "\"other\"").contains("no 'fingerprint' in the metadata"));
    assert!(changed("\"sha256\"", "\"other\"").contains("no 'sha256' in the metadata"));
    assert!(changed("\"vectors\"", "\"other\"").contains("no tensor 'vectors'"));
    assert!(changed("\"ids\"", "\"other\"").contains("no tensor 'ids'"));
    assert!(changed("\"model\"", "\"moden\"").contains("the file is damaged"));
    assert!(changed("[3,2]", "[2,3]").contains("the file is damaged"));
    // Sizes that no file has are no reason to ask for memory.
    assert!(changed("[3,2]", "[4611686018427387904,2]").contains("do not fit its shape"));
    assert!(changed("[3,2]", "[3,18446744073709551615]").contains("do not fit its shape"));
    assert!(changed("[3,2]", "[6]").contains("expected [rows, dimensions]"));

    let file = saved(&example_of(VectorType::Int8));
    let changed = |from: &str, to: &str| with_header(&file, from, to);
    assert!(changed("\"scales\"", "\"other\"").contains("tensor 'vectors' has the type I8, expected F32"));
    assert!(changed("\"vectors\"", "\"other\"").contains("vectors"));
    assert!(changed("\"I8\"", "\"U8\"").contains("U8"));
    assert!(changed("[3,1]", "[1,3]").contains("'scales' [1, 3]"));
    assert!(changed("[3,2]", "[2,3]").contains("[2, 3]"));
    assert!(changed("[3,2]", "[6]").contains("[6]"));
    assert!(changed("\"model\"", "\"moden\"").contains("the file is damaged"));
    changed("[3,2]", "[4611686018427387904,2]");
}

/// The message about a file in whose header a text was replaced by another one.
fn with_header(file: &[u8], from: &str, to: &str) -> String {
    let length = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let header = std::str::from_utf8(&file[8..8 + length]).unwrap();
    assert!(header.contains(from));
    let header = header.replacen(from, to, 1);
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend_from_slice(header.as_bytes());
    changed.extend_from_slice(&file[8 + length..]);
    message(load(&changed))
}

#[test]
fn types_have_names() {
    for dtype in TYPES {
        assert_eq!(dtype.to_string().parse::<VectorType>().unwrap(), dtype);
    }
    assert!(message("int4".parse::<VectorType>()).contains("'int4', expected f32 or int8"));
}

#[test]
fn several_are_added_together_or_not_at_all() {
    for dtype in TYPES {
        let mut index = example_of(dtype);
        index.keep_log(true);
        let before = saved(&index);
        let vectors = Embeddings::new(3, 2, vec![1.0, 2.0, 3.0, 4.0, 0.0, 0.0]).unwrap();
        let refused = message(index.add_all(&["a", "new", "zero"], &vectors));
        assert!(refused.contains("id 'zero': a vector of length 0"), "{refused}");
        let refused = message(index.add_all(&["a", "new"], &vectors));
        assert!(
            refused.contains("2 ids for 3 vectors, expected one for each"),
            "{refused}"
        );
        let vectors = Embeddings::new(1, 3, vec![1.0; 3]).unwrap();
        assert!(message(index.add_all(&["new"], &vectors)).contains("id 'new': 3 dimensions, expected 2"));
        assert_eq!((saved(&index), index.take_log()), (before, Vec::new()));

        let vectors = Embeddings::new(3, 2, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let ids = ["a", "new", "new"].map(String::from);
        assert_eq!(index.add_all(&ids, &vectors).unwrap(), 2);
        let mut one_by_one = example_of(dtype);
        for (id, vector) in ids.into_iter().zip(&vectors) {
            one_by_one.add(id, vector).unwrap();
        }
        assert_eq!(saved(&index), saved(&one_by_one));
        assert_eq!(index.add_all(&[""; 0], &Embeddings::default()).unwrap(), 0);
    }
}

#[test]
fn ids_have_a_largest_length() {
    let mut index = EmbeddingIndex::new(2, "");
    index.keep_log(true);
    let longest = "x".repeat(65_536);
    assert!(!index.add(longest.clone(), &[1.0, 2.0]).unwrap());
    let refused = message(index.add("界".repeat(21_846), &[1.0, 2.0]));
    assert!(
        refused.contains("界…' of 65538 bytes, expected at most 65536"),
        "{refused}"
    );
    assert!(refused.len() < 300);
    let mut again = EmbeddingIndex::new(2, "");
    again.replay(&index.take_log()).unwrap();
    assert!(again.has(&longest) && again.len() == 1);
}

#[test]
fn what_is_there_stays_in_its_place_as_more_comes() {
    let dimensions = 16;
    let vector = |row: usize| -> Vec<f32> {
        let value = |i: usize| ((row * 31 + i * 7) % 64) as f32 - 31.5;
        (0..dimensions).map(value).collect()
    };
    let place = |index: &EmbeddingIndex, row: usize| index.get(&row.to_string()).unwrap().as_ptr();
    let mut index = EmbeddingIndex::new(dimensions, "");
    for row in 0..10_000 {
        index.add(row.to_string(), &vector(row)).unwrap();
    }
    let places: Vec<_> = (0..10_000).map(|row| place(&index, row)).collect();
    for row in 10_000..25_000 {
        index.add(row.to_string(), &vector(row)).unwrap();
    }
    assert!((0..10_000).all(|row| place(&index, row) == places[row]));
    for dtype in TYPES {
        let mut some = EmbeddingIndex::with_dtype(dimensions, "", dtype);
        let mut row = 0;
        // Across the ends of parts, up and down, into and out of the last place.
        for (add, remove) in [(9_000, 5_000), (4_200, 8_100), (13_000, 3), (0, 13_096)] {
            for _ in 0..add {
                some.add(row.to_string(), &vector(row)).unwrap();
                row += 1;
            }
            let ids: Vec<String> = some.ids().into_iter().map(String::from).collect();
            for id in ids.iter().step_by(3).chain(ids.iter().rev()).take(2 * remove) {
                if some.len() + remove > ids.len() {
                    some.remove(id);
                }
            }
            assert_eq!(some.len(), ids.len() - remove);
            let mut expected = EmbeddingIndex::with_dtype(dimensions, "", dtype);
            for id in some.ids() {
                expected.add(id.into(), &vector(id.parse().unwrap())).unwrap();
            }
            let file = saved(&some);
            assert!(file == saved(&expected));
            let mut loaded = EmbeddingIndex::load(&file).unwrap();
            assert!(saved(&loaded) == file);
            let query = vector(5);
            let hits = some.search(&query, 30).unwrap();
            assert_eq!(hits, expected.search(&query, 30).unwrap());
            assert_eq!(hits, loaded.search(&query, 30).unwrap());
            // What was loaded grows and shrinks as well.
            for more in 30_000..30_010 {
                for index in [&mut loaded, &mut expected] {
                    index.add(more.to_string(), &vector(more)).unwrap();
                }
            }
            let first = some
                .ids()
                .first()
                .map_or("30000".to_string(), |id| id.to_string());
            assert!(loaded.remove(&first) && expected.remove(&first));
            assert!(saved(&loaded) == saved(&expected));
        }
        assert_eq!(some.len(), 1);
    }
}

/// Numbers with the normal distribution, from a seed.
fn normal(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 40) as f32 + 0.5) / (1u64 << 24) as f32
    };
    move || (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos()
}

/// `count` unit vectors: vector i goes in one of `clusters` random directions, and `far(i)` times as far in
/// one of its own.
fn clustered(
    count: usize,
    clusters: usize,
    dimensions: usize,
    random: &mut impl FnMut() -> f32,
    far: impl Fn(usize) -> f32,
) -> Vec<Vec<f32>> {
    let mut unit = || {
        let mut vector: Vec<f32> = (0..dimensions).map(|_| random()).collect();
        normalise(&mut vector).unwrap();
        vector
    };
    let centres: Vec<_> = (0..clusters).map(|_| unit()).collect();
    let about = |i: usize| {
        let values = centres[i % clusters].iter().zip(unit());
        let mut vector: Vec<f32> = values.map(|(centre, own)| centre + far(i) * own).collect();
        normalise(&mut vector).unwrap();
        vector
    };
    (0..count).map(about).collect()
}

/// Of the ten best of 10,000 for each of 100 queries, in percent, how many an index of eight bits finds.
fn recall_at_10(far: impl Fn(usize) -> f32) -> f64 {
    let dimensions = 768;
    let mut vectors = clustered(10_100, 100, dimensions, &mut normal(5), far);
    let queries = vectors.split_off(10_000);
    let queries = Embeddings::new(100, dimensions, queries.concat()).unwrap();
    let [mut exact, mut small] = TYPES.map(|dtype| EmbeddingIndex::with_dtype(dimensions, "", dtype));
    for (row, vector) in vectors.iter().enumerate() {
        exact.add(row.to_string(), vector).unwrap();
        small.add(row.to_string(), vector).unwrap();
    }
    let mut right = 0;
    let expected = exact.search_batch(&queries, 10).unwrap();
    for (hits, expected) in small.search_batch(&queries, 10).unwrap().iter().zip(&expected) {
        let is_expected = |hit: &&Hit<'_>| expected.iter().any(|other| other.id == hit.id);
        right += hits.iter().filter(is_expected).count();
    }
    right as f64 / 10.0
}

#[test]
fn eight_bits_find_what_all_bits_find() {
    // Clusters that are dense in the middle.
    let found = recall_at_10(|i| 0.5 + (i / 100 % 100) as f32 / 100.0);
    assert!(found >= 99.0, "{found} %");
    // No clusters.
    let found = recall_at_10(|_| 1e6);
    assert!(found >= 97.5, "{found} %");
    // The hardest: a hundred vectors, all as near to the query but for chance.
    let found = recall_at_10(|_| 1.0);
    assert!(found >= 97.5, "{found} %");
}

#[test]
fn scores_of_eight_bits_are_within_their_bound() {
    let largest = |vector: &[f32]| {
        vector
            .iter()
            .fold(0.0f64, |most, &value| most.max(f64::from(value.abs())))
    };
    let sum = |vector: &[f32]| vector.iter().map(|&value| f64::from(value.abs())).sum::<f64>();
    let dot = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum::<f64>()
    };
    for dimensions in [1, 2, 31, 768, 1024, 1500] {
        let mut random = normal(dimensions as u64);
        let mut vectors = clustered(300, 10, dimensions, &mut random, |_| 0.9);
        // Others than unit vectors too: long and short ones, and such as have all in a few values, or next
        // to a half of a step away from a whole one.
        for (row, vector) in vectors.iter_mut().enumerate() {
            match row % 6 {
                0 => vector[0] *= 100.0,
                1 => vector.iter_mut().for_each(|value| *value = value.powi(9)),
                2 => vector.iter_mut().for_each(|value| *value *= 1e15),
                3 => {
                    vector.fill(0.5 / 127.0);
                    vector[0] = 1.0;
                }
                _ => {}
            }
        }
        let mut index = EmbeddingIndex::with_dtype(dimensions, "", VectorType::Int8);
        for (row, vector) in vectors.iter().enumerate() {
            index.add(row.to_string(), vector).unwrap();
        }
        let queries: Vec<_> = vectors.iter().step_by(7).cloned().collect();
        let batch = Embeddings::new(queries.len(), dimensions, queries.concat()).unwrap();
        let results = index.search_batch(&batch, usize::MAX).unwrap();
        let mut differences = Vec::new();
        for (query, hits) in queries.iter().zip(results) {
            assert_eq!(index.search(query, usize::MAX).unwrap(), hits);
            assert_eq!(hits.len(), vectors.len());
            for hit in hits {
                let row: usize = hit.id.parse().unwrap();
                let vector = &vectors[row];
                let difference = f64::from(hit.score) - dot(vector, query);
                let bound = largest(vector) * sum(query) / 250.0 + largest(query) * sum(vector) / 16_000.0;
                assert!(difference.abs() <= bound, "{difference} for a bound of {bound}");
                let is_plain = row % 6 > 3 && (dot(query, query) - 1.0).abs() < 1e-3 && largest(query) < 0.2;
                differences.extend(is_plain.then_some(difference * difference));
            }
        }
        if dimensions == 768 {
            let deviation = (differences.iter().sum::<f64>() / differences.len() as f64).sqrt();
            assert!((0.0002..0.00035).contains(&deviation), "{deviation}");
        }
    }
}

/// The index as a plain list.
#[derive(Debug, Default)]
struct Model(Vec<(String, Vec<f32>)>);

impl Model {
    /// An index that was only added to.
    fn built(&self, dtype: VectorType) -> EmbeddingIndex {
        let mut index = EmbeddingIndex::with_dtype(DIMENSIONS, "model", dtype);
        for (id, vector) in &self.0 {
            index.add(id.clone(), vector).unwrap();
        }
        index
    }

    fn position(&self, id: &str) -> Option<usize> {
        self.0.iter().position(|(other, _)| other == id)
    }

    fn search(&self, query: &[f32], count: usize) -> Vec<(String, f32)> {
        let score = |vector: &[f32]| vector.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
        let mut all: Vec<_> = self
            .0
            .iter()
            .map(|(id, vector)| (id.clone(), score(vector)))
            .collect();
        all.sort_by(|(_, a), (_, b)| b.partial_cmp(a).unwrap());
        all.truncate(count);
        all
    }
}

#[derive(Debug, Clone)]
enum Step {
    Add(u8, Vec<f32>),
    Remove(u8),
    Search(Vec<f32>, usize),
    SaveAndLoad,
}

const DIMENSIONS: usize = 3;

fn dtype() -> impl Strategy<Value = VectorType> {
    prop::sample::select(&TYPES[..])
}

/// Small whole numbers, so that sums are exact and scores often tie.
fn vector() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec((-2i8..=2).prop_map(f32::from), DIMENSIONS)
        .prop_filter("a direction", |vector| vector.iter().any(|&value| value != 0.0))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..40, vector()).prop_map(|(id, vector)| Step::Add(id, vector)),
        3 => (0u8..40).prop_map(Step::Remove),
        2 => (vector(), 0usize..50).prop_map(|(query, count)| Step::Search(query, count)),
        1 => Just(Step::SaveAndLoad),
    ]
}

/// What a log is read as: where each record begins and what its contents are.
fn records(log: &[u8]) -> Vec<(usize, &[u8])> {
    let mut records = Vec::new();
    let mut at = 0;
    while at < log.len() {
        let length = u64::from_le_bytes(*log[at..].first_chunk().unwrap()) as usize;
        records.push((at, &log[at + 16..at + 16 + length]));
        at += 16 + length;
    }
    records
}

/// A sound record.
fn record(contents: &[u8]) -> Vec<u8> {
    let length = (contents.len() as u64).to_le_bytes();
    let hash = Sha256::new()
        .chain_update(length)
        .chain_update(contents)
        .finalize();
    [&length, &hash[..8], contents].concat()
}

/// A log of a few changes, taken in two pieces, and the file of the index after each of its records.
fn logged(dtype: VectorType) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut index = EmbeddingIndex::with_dtype(2, "model", dtype);
    index.keep_log(true);
    let mut log = Vec::new();
    let mut states = Vec::new();
    states.push(saved(&index));
    for (id, vector) in [("a", [1.0, 2.0]), ("狗", [-0.5, 0.25]), ("a", [3.0, 1.0])] {
        index.add(id.into(), &vector).unwrap();
        states.push(saved(&index));
    }
    log.extend(index.take_log());
    states.push(saved(&index));
    index.remove("a");
    states.push(saved(&index));
    index.remove("none");
    index.add("".into(), &[1e-6, -1e-7]).unwrap();
    states.push(saved(&index));
    log.extend(index.take_log());
    assert!(index.take_log().is_empty());
    (log, states)
}

fn replayed(log: &[u8], dtype: VectorType) -> ernie_vil::Result<(usize, EmbeddingIndex)> {
    in_proportion(log, || {
        let mut index = EmbeddingIndex::with_dtype(2, "model", dtype);
        Ok((index.replay(log)?, index))
    })
}

#[test]
fn a_log_cut_anywhere_is_what_was_done_until_then() {
    for dtype in TYPES {
        let (log, states) = logged(dtype);
        let records = records(&log);
        let kinds: Vec<u8> = records.iter().map(|(_, contents)| contents[0]).collect();
        assert_eq!(kinds, b"H+++H-+");
        let ends: Vec<usize> = records[1..]
            .iter()
            .map(|&(at, _)| at)
            .chain([log.len()])
            .collect();
        for length in 0..=log.len() {
            let whole = ends.iter().filter(|&&end| end <= length).count();
            let (read, index) = replayed(&log[..length], dtype).unwrap();
            assert_eq!(read, if whole == 0 { 0 } else { ends[whole - 1] });
            assert_eq!(saved(&index), states[whole.saturating_sub(1)]);
        }
    }
}

#[test]
fn a_damaged_record_is_told_from_an_end_that_was_torn_off() {
    for dtype in TYPES {
        let (log, states) = logged(dtype);
        let records = records(&log);
        let empty = || EmbeddingIndex::with_dtype(2, "model", dtype);
        for at in 0..log.len() {
            let record = records.iter().rposition(|&(start, _)| start <= at).unwrap();
            let start = records[record].0;
            let end = records.get(record + 1).map_or(log.len(), |record| record.0);
            let behind = records.len() - 1 - record;
            for bit in 0..8 {
                let mut changed = log.clone();
                changed[at] ^= 1 << bit;
                // Also one that was not torn off: no byte of it is missing.
                let mut index = empty();
                let refused = message(in_proportion(&changed, || index.replay(&changed)));
                let place = format!("log, byte {start}: damage of {} bytes, ", end - start);
                assert!(refused.contains(&place), "{refused}");
                let follows = match behind {
                    0 => "in a record that was written whole".to_owned(),
                    1 => format!("with 1 sound record behind it, at byte {end}"),
                    _ => format!("with {behind} sound records behind it, from byte {end} on"),
                };
                assert!(refused.ends_with(&follows), "{refused}");
                assert_eq!(saved(&index), states[record.saturating_sub(1)]);

                // All others are there where that is asked for.
                let mut index = empty();
                let salvaged = in_proportion(&changed, || index.salvage(&changed)).unwrap();
                assert_eq!(salvaged.sound, start);
                let [damage] = &salvaged.damage[..] else {
                    panic!("{salvaged:?}");
                };
                assert_eq!((&damage.bytes, damage.records), (&(start..end), behind));
                let header = if record == 0 { &log[..end] } else { &[] };
                let without = [header, &log[..start], &log[end..]].concat();
                let mut expected = empty();
                assert_eq!(expected.replay(&without).unwrap(), without.len());
                assert_eq!(saved(&index), saved(&expected));
            }
        }
        // Two damaged records, and a torn end.
        let mut changed = log[..log.len() - 1].to_vec();
        changed[records[2].0 + 3] ^= 1;
        changed[records[4].0 + 20] ^= 1;
        let mut index = empty();
        assert!(message(index.replay(&changed)).contains(&format!("byte {}: ", records[2].0)));
        let salvaged = index.salvage(&changed).unwrap();
        let counts: Vec<usize> = salvaged.damage.iter().map(|damage| damage.records).collect();
        assert_eq!((counts, salvaged.changes), (vec![1, 1], 3));

        // The room that a file system made before it broke down.
        let mut changed = log.clone();
        changed.extend([0; 100]);
        assert_eq!(replayed(&changed, dtype).unwrap().0, log.len());
        let last = records[records.len() - 1].0;
        changed[last + 20..].fill(0);
        changed.extend([0; 512]);
        assert_eq!(replayed(&changed, dtype).unwrap().0, last);
        changed.fill(0);
        assert_eq!(replayed(&changed, dtype).unwrap().0, 0);
    }
}

#[test]
fn looking_for_records_behind_damage_takes_time_in_proportion() {
    // At every eighth byte begins what could be a removal of 60 KB.
    let (mut log, _) = logged(VectorType::F32);
    let like = 0xEA2D_u64.to_le_bytes();
    log.extend(like.repeat(1 << 19));
    let start = std::time::Instant::now();
    let mut index = EmbeddingIndex::new(2, "model");
    let refused = message(index.replay(&log));
    assert!(
        refused.ends_with("behind which sound records may follow"),
        "{refused}"
    );
    let kind = EmbeddingIndex::of_log(&log[10..]).unwrap();
    // It had another header in it that was sound.
    assert_eq!(kind.unwrap().fingerprint(), "model");
    assert!(EmbeddingIndex::of_log(&like.repeat(1 << 19)).unwrap().is_none());
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn a_log_says_what_index_it_is_of() {
    for dtype in TYPES {
        let (log, _) = logged(dtype);
        let records = records(&log);
        let kind = EmbeddingIndex::of_log(&log).unwrap().unwrap();
        assert_eq!(
            (kind.dtype(), kind.dimensions(), kind.fingerprint(), kind.len()),
            (dtype, 2, "model", 0)
        );
        // Where the first header is damaged the next one says it, and where none is whole nothing does.
        let mut changed = log.clone();
        changed[20] ^= 1;
        assert_eq!(EmbeddingIndex::of_log(&changed).unwrap().unwrap().dtype(), dtype);
        assert!(
            EmbeddingIndex::of_log(&log[..records[1].0 - 1])
                .unwrap()
                .is_none()
        );
    }
    assert!(EmbeddingIndex::of_log(b"").unwrap().is_none());
    for wrong in [
        "Hernie-vil log 2\nf32\n2\nm",
        "Hernie-vil log 1\nf16\n2\nm",
        "Hernie-vil log 1\nf32\nx\nm",
        "H",
    ] {
        assert!(message(EmbeddingIndex::of_log(&record(wrong.as_bytes()))).contains("log, byte 0: "));
    }
}

/// Embeddings with a source, without one, and with another one; and the log of all that.
fn sourced(dtype: VectorType) -> (EmbeddingIndex, Vec<u8>) {
    let mut index = EmbeddingIndex::with_dtype(2, "model", dtype);
    index.keep_log(true);
    let mut log = Vec::new();
    for (source, ids) in [
        (None, "a b"),
        (Some("x"), "c d"),
        (Some("狗\"\n"), "e"),
        (Some("x"), "f"),
        (None, "g"),
    ] {
        index.set_source(source).unwrap();
        for id in ids.split(' ') {
            index.add(id.into(), &[1.0, 2.0]).unwrap();
        }
        if source.is_none() {
            log.extend(index.take_log());
        }
    }
    // Replaced by another source, by the same one and by none.
    index.set_source(Some("x")).unwrap();
    index.add("a".into(), &[0.5, 2.0]).unwrap();
    index.add("c".into(), &[0.5, 2.0]).unwrap();
    log.extend(index.take_log());
    index.set_source(None).unwrap();
    index.add("d".into(), &[0.5, 2.0]).unwrap();
    index.remove("b");
    log.extend(index.take_log());
    (index, log)
}

#[test]
fn embeddings_keep_their_source() {
    for dtype in TYPES {
        let (index, log) = sourced(dtype);
        let expected = [
            ("a", Some("x")),
            ("c", Some("x")),
            ("d", None),
            ("e", Some("狗\"\n")),
            ("f", Some("x")),
            ("g", None),
        ];
        let sources = |index: &EmbeddingIndex| -> Vec<(String, Option<String>)> {
            let ids = index.ids().into_iter();
            ids.map(|id| (id.to_owned(), index.source(id).map(str::to_owned)))
                .collect()
        };
        let expected: Vec<_> = expected
            .map(|(id, source)| (id.to_owned(), source.map(str::to_owned)))
            .into();
        assert_eq!(sources(&index), expected);
        assert_eq!(index.source("none"), None);
        let file = saved(&index);
        let mut loaded = load(&file).unwrap();
        assert_eq!(sources(&loaded), expected);
        assert_eq!(saved(&loaded), file);
        let (read, replayed) = replayed(&log, dtype).unwrap();
        assert_eq!(read, log.len());
        assert_eq!(sources(&replayed), expected);
        assert_eq!(saved(&replayed), file);

        // A part of it is saved.
        let mut part = Vec::new();
        loaded.save_where(&mut part, |id| id < "d").unwrap();
        let part = load(&part).unwrap();
        assert_eq!(sources(&part), expected[..2]);
        // What was there already gets a source.
        loaded.set_source(Some("y")).unwrap();
        assert!(loaded.assign_source("d") && !loaded.assign_source("none"));
        assert_eq!(loaded.source("d"), Some("y"));
        assert_eq!(load(&saved(&loaded)).unwrap().source("d"), Some("y"));
        for wrong in ["", &"x".repeat(65_537)] {
            assert!(message(loaded.set_source(Some(wrong))).contains("expected 1 to 65536"));
        }
        assert!(index.id_bytes() == 6 && loaded.id_bytes() == 6 && replayed.id_bytes() == 6);

        // Rows 1, 2 and 5, and row 4, as a tensor that says which, and that cannot be changed without a
        // trace.
        let list = "[[\"x\",[[0,2],[4,1]]],[\"狗\\\"\\n\",[[3,1]]]]";
        let tensors = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(tensors.tensor("sources").unwrap().data(), list.as_bytes());
        let vectors = if dtype == VectorType::F32 { 48 } else { 24 + 12 };
        damaged_anywhere(&file, list.len() + vectors + 25);
        for (from, to) in [("\"sources\"", "\"other\""), ("\"sources_sha256\"", "\"other\"")] {
            assert!(with_header(&file, from, to).contains("'sources'"));
        }
    }
    // Sound records with a name that is none.
    let log = logged(VectorType::F32).0;
    for (wrong, expected) in [
        (record(b"S"), "a source's name of 0 bytes"),
        (record(b"S\xFF"), "a source's name: invalid utf-8"),
    ] {
        let log = [&log[..], &wrong].concat();
        assert!(message(replayed(&log, VectorType::F32)).contains(expected));
    }
}

#[test]
fn a_log_of_something_else_is_refused() {
    let (log, _) = logged(VectorType::F32);
    for (mut index, expected) in [
        (
            EmbeddingIndex::new(3, "model"),
            "f32\\n2\\nmodel\", expected \"Hernie-vil log 1\\nf32\\n3",
        ),
        (
            EmbeddingIndex::new(2, "other"),
            "f32\\n2\\nmodel\", expected \"Hernie-vil log 1\\nf32\\n2\\nother",
        ),
        (
            EmbeddingIndex::with_dtype(2, "model", VectorType::Int8),
            "f32\\n2\\nmodel\", expected",
        ),
    ] {
        let refused = message(index.replay(&log));
        assert!(
            refused.starts_with("index: log, byte 0: ") && refused.contains(expected),
            "{refused}"
        );
        assert!(index.is_empty());
    }
    let mut index = EmbeddingIndex::new(2, "model");
    for file in [&b"some text"[..], &[0xFF; 64], b"\0\0\0\x01", &saved(&example())] {
        assert!(message(index.replay(file)).contains("byte 0: no sound record"));
    }
    // Sound records in the wrong place, or with the wrong contents.
    let header = record(records(&log)[0].1);
    let put = |id: &[u8], values: [f32; 2]| {
        let values = values.map(f32::to_le_bytes);
        record(&[b"+", id, values.as_flattened()].concat())
    };
    assert!(message(index.replay(&put(b"a", [1.0, 2.0]))).contains("expected \"Hernie-vil log 1"));
    let long = vec![b'x'; 65_537];
    for (wrong, expected) in [
        (record(b""), "an empty record"),
        (
            record(b"?a"),
            "a record of kind 63, expected 'H', 'S', '+' or '-'",
        ),
        (record(b"H"), "\"H\", expected \"Hernie-vil log 1"),
        (record(b"-\xFF"), "an id: invalid utf-8"),
        (
            record(b"+1234567"),
            "7 bytes, expected an id of at most 65536 and an embedding of 8",
        ),
        (
            put(&long, [1.0, 2.0]),
            "65545 bytes, expected an id of at most 65536",
        ),
        (put(b"\xFF", [1.0, 2.0]), "an id: invalid utf-8"),
        (put(b"b", [0.0, 0.0]), "id 'b': a vector of length 0"),
        (put(b"b", [f32::NAN, 0.0]), "id 'b': a vector of length NaN"),
    ] {
        let log = [&header[..], &put(b"a", [1.0, 2.0]), &wrong].concat();
        let at = log.len() - wrong.len();
        let mut index = EmbeddingIndex::new(2, "model");
        let refused = message(index.replay(&log));
        assert!(
            refused.starts_with(&format!("index: log, byte {at}: {expected}")),
            "{refused}"
        );
        assert_eq!(index.ids(), ["a"]);
    }
    let (log, _) = logged(VectorType::Int8);
    let header = record(records(&log)[0].1);
    for (scale, codes, expected) in [
        (1.0f32, [127u8, 5], None),
        (1e-24, [5, 129], None),
        (f32::NAN, [127, 5], Some("a scale of NaN, expected 1e-24 to 1e16")),
        (-1.0, [127, 5], Some("a scale of -1e0")),
        (0.0, [127, 5], Some("a scale of 0e0")),
        (1e17, [127, 5], Some("a scale of 1e17")),
        (
            1.0,
            [126, 5],
            Some("codes of up to 126, expected the largest one to be 127"),
        ),
        (1.0, [127, 128], Some("codes of up to 128")),
        (1.0, [0, 0], Some("codes of up to 0")),
    ] {
        let put = record(&[&b"+c"[..], &scale.to_le_bytes(), &codes].concat());
        let replayed = replayed(&[&header[..], &put].concat(), VectorType::Int8);
        match expected {
            None => assert!(replayed.unwrap().1.has("c")),
            Some(expected) => assert!(message(replayed).contains(&format!("id 'c': {expected}"))),
        }
    }
}

#[test]
fn a_log_is_kept_where_it_is_asked_for() {
    let mut index = example();
    assert!(index.take_log().is_empty());
    index.keep_log(true);
    index.add("b".into(), &[1.0, 1.0]).unwrap();
    index.keep_log(true);
    let piece = index.take_log();
    assert_eq!(records(&piece).len(), 2);
    index.add("c".into(), &[1.0, 1.0]).unwrap();
    index.keep_log(false);
    index.keep_log(true);
    assert!(index.take_log().is_empty());
    // Nothing is recorded of what is replayed, nor of what is refused or was not there.
    assert_eq!(index.replay(&piece).unwrap(), piece.len());
    index.add("d".into(), &[0.0, 0.0]).unwrap_err();
    index.remove("d");
    assert!(index.take_log().is_empty());
    assert_eq!(index.replay(b"").unwrap(), 0);
    assert_eq!(index.ids(), ["a", "狗\"\n", "", "b", "c"]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_steps_do_what_they_do_to_a_list(steps in prop::collection::vec(step(), 1..120), dtype in dtype()) {
        let mut index = EmbeddingIndex::with_dtype(DIMENSIONS, "model", dtype);
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Add(id, vector) => {
                    let id = format!("id {id}");
                    let position = model.position(&id);
                    prop_assert_eq!(index.add(id.clone(), &vector).unwrap(), position.is_some());
                    match position {
                        Some(position) => model.0[position].1 = vector,
                        None => model.0.push((id, vector)),
                    }
                }
                Step::Remove(id) => {
                    let id = format!("id {id}");
                    let position = model.position(&id);
                    prop_assert_eq!(index.remove(&id), position.is_some());
                    if let Some(position) = position {
                        model.0.remove(position);
                    }
                }
                Step::Search(query, count) => {
                    let hits = index.search(&query, count).unwrap();
                    if dtype == VectorType::F32 {
                        prop_assert_eq!(found(&hits), model.search(&query, count));
                    }
                    let built = model.built(dtype);
                    prop_assert_eq!(hits, built.search(&query, count).unwrap());
                }
                Step::SaveAndLoad => index = EmbeddingIndex::load(&saved(&index)).unwrap(),
            }
            prop_assert_eq!(index.len(), model.0.len());
        }
        let ids: Vec<&str> = model.0.iter().map(|(id, _)| id.as_str()).collect();
        prop_assert_eq!(index.ids(), ids);
        for (id, vector) in &model.0 {
            let kept = index.get(id).unwrap();
            if dtype == VectorType::F32 {
                prop_assert_eq!(&kept[..], &vector[..]);
            }
            prop_assert!(kept.iter().zip(vector).all(|(a, b)| (a - b).abs() <= 0.01));
        }
        prop_assert_eq!(saved(&index), saved(&model.built(dtype)));
    }

    #[test]
    fn a_log_brings_back_the_index(
        steps in prop::collection::vec((step(), any::<bool>()), 1..60),
        start in prop::collection::vec((0u8..40, vector()), 0..10),
        cut in any::<prop::sample::Index>(),
        dtype in dtype(),
    ) {
        // On top of a saved index, which may be empty.
        let mut index = EmbeddingIndex::with_dtype(DIMENSIONS, "model", dtype);
        for (id, vector) in start {
            index.add(format!("id {id}"), &vector).unwrap();
        }
        let before = saved(&index);
        index.keep_log(true);
        let mut log = Vec::new();
        let mut states = vec![before.clone()];
        for (step, take) in steps {
            let changed = match step {
                Step::Add(id, vector) => index.add(format!("id {id}"), &vector).is_ok(),
                Step::Remove(id) => index.remove(&format!("id {id}")),
                Step::Search(..) | Step::SaveAndLoad => false,
            };
            if changed {
                states.push(saved(&index));
            }
            if take {
                log.extend(index.take_log());
            }
        }
        log.extend(index.take_log());

        let mut again = EmbeddingIndex::load(&before).unwrap();
        prop_assert_eq!(again.replay(&log).unwrap(), log.len());
        prop_assert_eq!(saved(&again), saved(&index));
        // Once more changes no embedding.
        prop_assert_eq!(again.replay(&log).unwrap(), log.len());
        prop_assert_eq!(again.len(), index.len());
        for id in index.ids() {
            prop_assert_eq!(again.get(id), index.get(id));
        }

        let cut = cut.index(log.len() + 1);
        let mut again = EmbeddingIndex::load(&before).unwrap();
        let read = again.replay(&log[..cut]).unwrap();
        prop_assert!(read <= cut);
        let changes = records(&log[..read]).iter().filter(|(_, contents)| contents[0] != b'H').count();
        prop_assert_eq!(&saved(&again), &states[changes]);
        // What is appended there goes on from there.
        again.keep_log(true);
        again.add("more".into(), &[1.0; DIMENSIONS]).unwrap();
        let longer = [&log[..read], &again.take_log()].concat();
        let mut third = EmbeddingIndex::load(&before).unwrap();
        prop_assert_eq!(third.replay(&longer).unwrap(), longer.len());
        prop_assert_eq!(saved(&third), saved(&again));
    }

    #[test]
    fn sound_records_of_anything_never_panic(
        contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..24), 0..20),
        kinds in prop::collection::vec(prop::sample::select(&b"H+-"[..]), 20),
        dtype in dtype(),
    ) {
        let mut log = record(format!("Hernie-vil log 1\n{dtype}\n2\nmodel").as_bytes());
        for (contents, kind) in contents.iter().zip(kinds) {
            log.extend(record(&[&[kind], &contents[..]].concat()));
        }
        let _ = replayed(&log, dtype);
    }

    #[test]
    fn searching_many_at_once_is_searching_one_by_one(
        vectors in prop::collection::vec(prop::collection::vec(-1.0f32..1.0, 5), 1..600),
        queries in prop::collection::vec(prop::collection::vec(-1.0f32..1.0, 5), 1..150),
        count in 1usize..20,
    ) {
        let mut index = EmbeddingIndex::new(5, "");
        for (row, vector) in vectors.iter().enumerate() {
            index.add(row.to_string(), vector).unwrap();
        }
        let batch = Embeddings::new(queries.len(), 5, queries.concat()).unwrap();
        let results = index.search_batch(&batch, count).unwrap();
        prop_assert_eq!(results.len(), queries.len());
        for (query, hits) in queries.iter().zip(results) {
            prop_assert_eq!(&index.search(query, count).unwrap(), &hits);
            prop_assert_eq!(hits.len(), count.min(vectors.len()));
            prop_assert!(hits.is_sorted_by(|a, b| a.score >= b.score));
            // Nothing better was left out.
            let lowest = f64::from(hits[hits.len() - 1].score);
            let higher = vectors.iter().filter(|vector| {
                let score: f64 = vector.iter().zip(query).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                score > lowest + 1e-5
            });
            prop_assert!(higher.count() < hits.len());
        }
    }

    #[test]
    fn changed_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        digits in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 0..4),
        dtype in dtype(),
    ) {
        let mut file = saved(&example_of(dtype));
        for (at, byte) in changes.into_iter().chain(digits) {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Ok(index) = load(&file) {
            prop_assert_eq!(index.len(), 3);
        }
        let mut bytes = file.split_off(8);
        bytes.truncate(100);
        prop_assert!(load(&bytes).is_err());
    }
}
