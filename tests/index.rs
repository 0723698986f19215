//! The index against a plain list, and its file against damage.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ernie_vil::index::{EmbeddingIndex, Hit};
use ernie_vil::vectors::Embeddings;
use proptest::prelude::*;
use safetensors::SafeTensors;

/// The system's allocator, which also counts what each thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: every call is handed on to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.get().wrapping_add(layout.size() as isize);
        HELD.set(held);
        MOST.set(MOST.get().max(held));
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().wrapping_sub(layout.size() as isize));
        // SAFETY: the caller's duties are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Loads an index, and sees to it that this takes memory in proportion to the file at most.
fn load(file: &[u8]) -> ernie_vil::Result<EmbeddingIndex> {
    let before = HELD.get();
    MOST.set(before);
    let index = EmbeddingIndex::load(file);
    let most = MOST.get() - before;
    assert!(most > 0 || index.is_err());
    assert!(
        most <= 64 * file.len() as isize + 4096,
        "{most} bytes of memory for a file of {}",
        file.len()
    );
    index
}

fn found(hits: &[Hit<'_>]) -> Vec<(String, f32)> {
    hits.iter().map(|hit| (hit.id.to_string(), hit.score)).collect()
}

fn message<T: std::fmt::Debug>(result: ernie_vil::Result<T>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.code(), "index");
    error.to_string()
}

fn saved(index: &EmbeddingIndex) -> Vec<u8> {
    let mut file = Vec::new();
    index.save(&mut file).unwrap();
    file
}

fn example() -> EmbeddingIndex {
    let mut index = EmbeddingIndex::new(2, "model");
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
    assert_eq!(index.get("a"), Some(&[0.0, -1.0][..]));
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
    let index = example();
    let file = saved(&index);
    let tensors = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(tensors.tensor("vectors").unwrap().shape(), [3, 2]);
    let ids: Vec<String> = serde_json::from_slice(tensors.tensor("ids").unwrap().data()).unwrap();
    assert_eq!(ids, ["a", "狗\"\n", ""]);

    let loaded = EmbeddingIndex::load(&file).unwrap();
    assert_eq!(
        (loaded.dimensions(), loaded.fingerprint(), loaded.ids()),
        (2, "model", index.ids())
    );
    assert_eq!(saved(&loaded), file);
    loaded.check_fingerprint("model").unwrap();
    assert!(message(loaded.check_fingerprint("other")).contains("by the model 'model', expected 'other'"));

    let empty = EmbeddingIndex::load(&saved(&EmbeddingIndex::new(768, "m"))).unwrap();
    assert_eq!((empty.len(), empty.dimensions()), (0, 768));
}

#[test]
fn a_file_that_was_cut_or_changed_is_refused() {
    let file = saved(&example());
    for length in 0..file.len() {
        message(EmbeddingIndex::load(&file[..length]));
    }
    assert!(message(EmbeddingIndex::load(&[&file[..], b" "].concat())).contains("end at"));
    let text = String::from_utf8_lossy(&file).into_owned();
    let data = file.len() - 24 - "[\"a\",\"狗\\\"\\n\",\"\"]".len();
    for at in 0..file.len() {
        for flipped in [1, 0x20, 0x80] {
            let mut changed = file.clone();
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
    let length = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let header = std::str::from_utf8(&file[8..8 + length]).unwrap();
    let changed = |from: &str, to: &str| {
        assert!(header.contains(from));
        let header = header.replacen(from, to, 1);
        let mut changed = (header.len() as u64).to_le_bytes().to_vec();
        changed.extend_from_slice(header.as_bytes());
        changed.extend_from_slice(&file[8 + length..]);
        message(load(&changed))
    };
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
}

/// The index as a plain list.
#[derive(Debug, Default)]
struct Model(Vec<(String, Vec<f32>)>);

impl Model {
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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_steps_do_what_they_do_to_a_list(steps in prop::collection::vec(step(), 1..120)) {
        let mut index = EmbeddingIndex::new(DIMENSIONS, "model");
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
                    prop_assert_eq!(found(&index.search(&query, count).unwrap()), model.search(&query, count));
                }
                Step::SaveAndLoad => index = EmbeddingIndex::load(&saved(&index)).unwrap(),
            }
            prop_assert_eq!(index.len(), model.0.len());
        }
        let ids: Vec<&str> = model.0.iter().map(|(id, _)| id.as_str()).collect();
        prop_assert_eq!(index.ids(), ids);
        for (id, vector) in &model.0 {
            prop_assert_eq!(index.get(id), Some(&vector[..]));
        }
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
    ) {
        let mut file = saved(&example());
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
