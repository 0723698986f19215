//! What each fuzz target does with its bytes: one function a target, of the same name.
//!
//! A target panics or aborts where the library breaks a promise. All of them hold it to these:
//! whatever the bytes, it returns, it never takes more memory than a stated multiple of their
//! number and a constant, and it takes no more of the processor's time than 2 us for each of them and 100 ms
//! ([`Bounds::new`]). What else a target checks its function says.
//!
//! [`mutate`] changes valid files by their structure. Without a fuzzer `tests/fuzz_targets.rs` runs what it makes through
//! the targets, and with one it is libFuzzer's mutator.

mod bounds;
pub mod mutate;
#[path = "../../server/serve/request/mod.rs"]
mod request;

use std::sync::OnceLock;
use std::time::Duration;

#[allow(unused_imports, reason = "a fuzzer keeps the input itself")]
pub use bounds::on_abort;
use bounds::{Bounds, within};
use ernie_vil::image::{Limits, Preprocessor, decode, decode_base64};
use ernie_vil::index::{EmbeddingIndex, Replayed, VectorType};
use ernie_vil::pairs::{PairReader, Position, count_rows};
use ernie_vil::recall::{CaptionReader, Relations};
use ernie_vil::text::{Tokenizer, Vocabulary};
use ernie_vil::vectors::{Embeddings, NpyWriter, OutWriter, read_npy, read_out, read_safetensors};
use ernie_vil::weights::{
    Checkpoint, Manifest, SafetensorsFile, TensorSource, text_config_from_original,
    vision_config_from_original,
};
use ernie_vil::{ModelConfig, Preprocessing};
use request::{Add, Classify, Embed, Encoding, Item, Problem, Remove, Search};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Base64 of an image: three bytes of four characters at most.
pub fn base64(bytes: &[u8]) {
    let decoded = within(Bounds::new(bytes.len(), 2 * bytes.len() + KIB), || {
        decode_base64(bytes)
    });
    if let Ok(decoded) = decoded {
        assert!(decoded.len() <= bytes.len() / 4 * 3 + 3);
    }
}

/// A caption: however long, its row has as many ids as it should, and a cut caption is a start of the
/// whole one.
pub fn caption(bytes: &[u8]) {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(|| {
        let vocabulary = include_bytes!("../../tests/goldens/vocab_tiny.txt");
        Tokenizer::new(Vocabulary::parse(vocabulary).unwrap()).unwrap()
    });
    let text = String::from_utf8_lossy(bytes);
    within(Bounds::new(text.len(), 256 * text.len() + 64 * KIB), || {
        let ids = tokenizer.ids(&text);
        assert_eq!(tokenizer.tokens(&text).len(), ids.len());
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.rows()));
        for most in [2, 3, 48] {
            let cut = tokenizer.encode(&text, most).unwrap();
            let kept = ids.len().min(most - 2);
            assert_eq!(cut[1..cut.len() - 1], ids[..kept]);
            assert_eq!(tokenizer.row(&text, most).unwrap().len(), most);
        }
    });
}

/// Captions with their images' ids, a line each: no more pairs than ids, and as many ids missing as are of no image.
pub fn captions(bytes: &[u8]) {
    within(Bounds::new(bytes.len(), 256 * bytes.len() + 64 * KIB), || {
        let mut lines = 0;
        // Without the lines' errors, each of which has a message.
        let captions: Vec<_> = CaptionReader::new(bytes)
            .inspect(|_| lines += 1)
            .flatten()
            .collect();
        assert!(lines <= count_rows(bytes).unwrap());
        let named: usize = captions.iter().map(|caption| caption.image_ids.len()).sum();
        if let Ok(relations) = Relations::new(&captions, &["1", "17"]) {
            assert!(relations.pairs() + relations.missing().len() <= named);
        }
    });
}

/// The configuration files, all read from the same bytes; what is written is read back.
pub fn config(bytes: &[u8]) {
    within(Bounds::new(bytes.len(), 64 * bytes.len() + 64 * KIB), || {
        if let Ok(config) = ModelConfig::from_json(bytes) {
            config.validate().unwrap();
            let again = ModelConfig::from_json(config.to_json().as_bytes()).unwrap();
            assert_eq!(again, config);
        }
        if let Ok(manifest) = Manifest::from_json(bytes) {
            let again = Manifest::from_json(manifest.to_json().as_bytes()).unwrap();
            assert_eq!(again, manifest);
        }
        if let Ok(config) = text_config_from_original(bytes) {
            config.validate().unwrap();
        }
        if let Ok(config) = vision_config_from_original(bytes) {
            config.validate().unwrap();
        }
    });
}

/// An encoded image: pixels within the limit, and a crop of the size asked for.
pub fn image(bytes: &[u8]) {
    let limits = Limits {
        max_bytes: MIB,
        max_pixels: 1 << 18,
        ..Limits::default()
    };
    // 16 bytes a pixel are promised, of blocks that reach beyond the edge too, and of a large side
    // that can be many.
    let memory = 16 * (limits.max_pixels as usize) + 4 * bytes.len() + 32 * MIB;
    // And a microsecond a pixel.
    let time = Duration::from_micros(limits.max_pixels);
    let bound = Bounds::new(bytes.len(), memory).and(time);
    let Ok(pixels) = within(bound, || decode(bytes, &limits)) else {
        return;
    };
    assert!(u64::from(pixels.width()) * u64::from(pixels.height()) <= limits.max_pixels);
    // By rows, as they are decoded, it is the same crop.
    for profile in [Preprocessing::Original, Preprocessing::PaddleNlp] {
        let preprocessor = Preprocessor::with_profile(32, profile);
        let crop = within(bound, || preprocessor.decode_crop(bytes, &limits));
        assert_eq!(crop.unwrap(), preprocessor.crop(&pixels));
    }
    within(Bounds::new(bytes.len(), MIB), || {
        let preprocessor = Preprocessor::new(32);
        let mut values = vec![f32::NAN; preprocessor.values()];
        preprocessor.tensor_into(&preprocessor.crop(&pixels), &mut values);
        assert!(values.iter().all(|value| value.is_finite()));
    });
}

/// An index: the bytes as a file and as a log, and as instructions to build one, which is saved and loaded,
/// and brought back from its log.
pub fn index(bytes: &[u8]) {
    within(Bounds::new(bytes.len(), 64 * bytes.len() + 64 * KIB), || {
        let _ = EmbeddingIndex::load(bytes);
        let read = EmbeddingIndex::new(2, "fuzz").replay(bytes);
        assert!(read.is_err() || read.is_ok_and(|read| read <= bytes.len()));
        let _ = EmbeddingIndex::of_log(bytes);
        salvage(EmbeddingIndex::new(2, "fuzz"), bytes);
    });
    // A checksum keeps changed bytes out, so what lies behind it is reached from inside.
    let Some((&first, instructions)) = bytes.split_first() else {
        return;
    };
    let dimensions = usize::from(first % 5) + 1;
    let dtype = [VectorType::F32, VectorType::Int8][usize::from(first / 5 % 2)];
    let (mut index, mut log) = within(Bounds::new(bytes.len(), 64 * bytes.len() + MIB), || {
        built(dimensions, dtype, instructions)
    });
    let mut file = Vec::new();
    index.save(&mut file).unwrap();
    // Damage at a place that the bytes choose loses no record but the one that it is in.
    let mut damaged = log.clone();
    if let (Some(&place), false) = (bytes.last(), log.is_empty()) {
        let at = usize::from(place) * log.len() / 256;
        damaged[at] ^= first | 1;
    }
    within(Bounds::new(damaged.len(), 64 * damaged.len() + 64 * KIB), || {
        let empty = || EmbeddingIndex::with_dtype(dimensions, "fuzz", dtype);
        let read = empty().replay(&damaged);
        let found = salvage(empty(), &damaged);
        assert_eq!(read.is_err(), !log.is_empty(), "{found:?}");
    });
    let loaded = within(Bounds::new(file.len(), 64 * file.len() + 64 * KIB), || {
        EmbeddingIndex::load(&file)
    })
    .unwrap();
    log.extend(index.take_log());
    let replayed = within(Bounds::new(log.len(), 64 * log.len() + 64 * KIB), || {
        let mut replayed = EmbeddingIndex::with_dtype(dimensions, "fuzz", dtype);
        assert_eq!(replayed.replay(&log).unwrap(), log.len());
        replayed
    });
    for other in [loaded, replayed] {
        assert_eq!(other.ids(), index.ids());
        for id in index.ids() {
            assert_eq!(other.get(id), index.get(id));
        }
    }
}

/// An index made by instructions, and its log. Every one of them may search, and more of them find no more.
fn built(dimensions: usize, dtype: VectorType, instructions: &[u8]) -> (EmbeddingIndex, Vec<u8>) {
    let mut index = EmbeddingIndex::with_dtype(dimensions, "fuzz", dtype);
    index.keep_log(true);
    let mut log = Vec::new();
    for instruction in instructions.chunks_exact(dimensions + 1).take(256) {
        let (id, vector) = (instruction[0] >> 1, &instruction[1..]);
        let id = format!("\u{1}\"{id}");
        if instruction[0] & 1 == 0 {
            let there = index.has(&id);
            assert_eq!(index.remove(&id), there);
            log.extend(index.take_log());
        } else {
            let vector: Vec<f32> = vector.iter().map(|&byte| f32::from(byte as i8)).collect();
            let replaced = index.has(&id);
            match index.add(id.clone(), &vector) {
                Ok(found) => {
                    assert_eq!(found, replaced);
                    let largest = vector.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                    let allowed = match dtype {
                        VectorType::F32 => 0.0,
                        VectorType::Int8 => largest / 250.0,
                    };
                    let kept = index.get(&id).unwrap();
                    assert!(kept.iter().zip(&vector).all(|(a, b)| (a - b).abs() <= allowed));
                    // The vector with itself, unless a longer one has a higher score.
                    let own: f32 = vector.iter().map(|value| value * value).sum();
                    let sum: f32 = vector.iter().map(|value| value.abs()).sum();
                    assert!(index.search(&vector, 1).unwrap()[0].score >= own - 1.02 * allowed * sum);
                }
                Err(_) => assert!(vector.iter().all(|&value| value == 0.0)),
            }
        }
    }
    (index, log)
}

/// All that is sound in a log, and where it is not: places that follow one another.
fn salvage(mut index: EmbeddingIndex, log: &[u8]) -> Option<Replayed> {
    let found = index.salvage(log).ok()?;
    let mut at = found.sound;
    for damage in &found.damage {
        assert!(at <= damage.bytes.start && damage.bytes.start < damage.bytes.end);
        at = damage.bytes.end;
    }
    assert!(at <= log.len());
    Some(found)
}

/// A NumPy file of embeddings; what was read is written and read again.
pub fn npy(bytes: &[u8]) {
    within(Bounds::new(bytes.len(), 16 * bytes.len() + 64 * KIB), || {
        if let Ok(read) = read_npy(bytes)
            && read.dimensions() > 0
        {
            let mut writer = NpyWriter::new(Vec::new(), read.rows(), read.dimensions()).unwrap();
            read.iter().for_each(|row| writer.write(row).unwrap());
            let again = read_npy(&writer.finish().unwrap()).unwrap();
            assert_eq!(bits(&again), bits(&read));
        }
    });
}

/// The original's embedding file; what was read is written and read again.
pub fn out(bytes: &[u8]) {
    let Ok(read) = within(Bounds::new(bytes.len(), 64 * bytes.len() + 64 * KIB), || {
        read_out(bytes)
    }) else {
        return;
    };
    let mut writer = OutWriter::new(Vec::new());
    for (text, image) in read.text.iter().zip(&read.image) {
        writer.write(text, image).unwrap();
    }
    let again = read_out(writer.finish().unwrap().as_slice()).unwrap();
    assert_eq!(bits(&again.text), bits(&read.text));
    assert_eq!(bits(&again.image), bits(&read.image));
}

/// Caption-image pairs: read as a whole and from a source that hands out few bytes at a time, with
/// the same rows, and gone on with from every place in between.
pub fn pairs(bytes: &[u8]) {
    within(Bounds::new(bytes.len(), 64 * bytes.len() + 64 * KIB), || {
        let mut reader = PairReader::new(bytes);
        let mut slow = PairReader::new(std::io::BufReader::with_capacity(3, bytes));
        let mut rows = 0;
        loop {
            let position = reader.position();
            let row = reader.next();
            assert_eq!(slow.next(), row);
            // From here on, where the file is small enough to do so for each row.
            if bytes.len() <= KIB {
                let rest = &bytes[position.offset as usize..];
                assert_eq!(PairReader::resume(rest, position).next(), row);
            }
            let Some(row) = row else { break };
            rows += 1;
            if let Ok(pair) = row {
                assert_eq!((pair.line, pair.offset), (position.line(), position.offset));
            }
        }
        assert_eq!(count_rows(bytes).unwrap(), rows);
        let end = Position {
            rows,
            offset: bytes.len() as u64,
        };
        assert_eq!(reader.position(), end);
        assert_eq!(PairReader::new(bytes).skip_rows(u64::MAX).unwrap(), rows);
    });
    within(Bounds::new(bytes.len(), 4 * KIB), || {
        for row in PairReader::new(bytes).with_max_line_bytes(64) {
            assert!(row.is_err() || row.is_ok_and(|pair| pair.image.len() <= 64));
        }
    });
}

/// A parameter file: all of its tensors are as long as their shapes say.
pub fn pickle(bytes: &[u8]) {
    within(Bounds::new(bytes.len(), 512 * bytes.len() + 64 * KIB), || {
        if let Ok(checkpoint) = Checkpoint::parse(bytes) {
            tensors(&checkpoint);
        }
    });
}

/// A safetensors file, read as weights and as embeddings, which have as many rows as there are ids.
pub fn safetensors(bytes: &[u8]) {
    within(Bounds::new(bytes.len(), 64 * bytes.len() + 64 * KIB), || {
        if let Ok(file) = SafetensorsFile::parse(bytes) {
            tensors(&file);
        }
    });
    within(Bounds::new(bytes.len(), 64 * bytes.len() + 64 * KIB), || {
        if let Ok(file) = read_safetensors(bytes) {
            let ids = file.ids.as_ref().map(Vec::len);
            for side in [file.text, file.image].into_iter().flatten() {
                assert_eq!(side.iter().count(), side.rows());
                assert!(ids.is_none_or(|ids| ids == side.rows()));
            }
        }
    });
}

/// A body of a request to the server, as each endpoint reads it: few enough items, numbers in their ranges, and a
/// problem that says something.
pub fn request(bytes: &[u8]) {
    let limits = request::Limits {
        items: 16,
        text: 256,
        prompts: 64,
        dimensions: 8,
    };
    let of = |items: &[Item]| {
        assert!((1..=limits.items).contains(&items.len()));
        for item in items {
            match item {
                Item::Text(text) => assert!(text.len() <= bytes.len().min(limits.text)),
                Item::Image(text) => assert!(text.len() <= bytes.len()),
                Item::Embedding(values) => assert!(values.len() <= limits.dimensions),
            }
        }
    };
    let named = |model: Option<String>| assert!(model.is_none_or(|model| model.len() <= bytes.len()));
    let problem = |problem: Problem| {
        assert!(!problem.code.is_empty() && !problem.message.is_empty());
        assert!(
            problem
                .param
                .is_none_or(|param| problem.message.starts_with(&param))
        );
    };
    within(Bounds::new(bytes.len(), 16 * bytes.len() + 256 * KIB), || {
        match Embed::parse(bytes, &limits) {
            Ok(body) => {
                of(&body.input);
                named(body.model);
                assert!(matches!(body.encoding, Encoding::Float | Encoding::Base64));
                assert!(body.dimensions.is_none_or(|number| number < 1 << 50));
            }
            Err(error) => problem(error),
        }
        match Search::parse(bytes, &limits) {
            Ok(body) => {
                of(&body.input);
                named(body.model);
                assert!((1..=1000).contains(&body.k));
            }
            Err(error) => problem(error),
        }
        match Classify::parse(bytes, &limits) {
            Ok(body) => {
                of(&body.input);
                body.labels.iter().for_each(|labels| of(labels));
                let labels = body.labels.as_ref().map_or(0, Vec::len);
                assert!(labels * body.templates.len() <= limits.prompts);
                named(body.model);
                assert!((1..=1000).contains(&body.k) && body.temperature.is_none_or(|value| value > 0.0));
                assert!((1..=64).contains(&body.templates.len()));
                assert!(body.templates.iter().all(|template| template.contains("{}")));
            }
            Err(error) => problem(error),
        }
        match Add::parse(bytes, &limits) {
            Ok(body) => {
                of(&body.items);
                named(body.model);
                assert!(body.ids.len() == body.items.len() && body.ids.iter().all(|id| !id.is_empty()));
            }
            Err(error) => problem(error),
        }
        match Remove::parse(bytes, &limits) {
            Ok(body) => assert!((1..=limits.items).contains(&body.ids.len())),
            Err(error) => problem(error),
        }
    });
}

/// A vocabulary, and where it has the special tokens, a tokeniser over it.
pub fn vocabulary(bytes: &[u8]) {
    within(Bounds::new(bytes.len(), 256 * bytes.len() + 64 * KIB), || {
        let Ok(vocabulary) = Vocabulary::parse(bytes) else {
            return;
        };
        assert_eq!(vocabulary.entries().count(), vocabulary.len());
        let known: Vec<String> = vocabulary.entries().map(|(token, _)| token.to_owned()).collect();
        if let Ok(tokenizer) = Tokenizer::new(vocabulary) {
            for token in known {
                assert!(
                    tokenizer
                        .ids(&token)
                        .iter()
                        .all(|&id| (id as usize) < tokenizer.rows())
                );
            }
        }
    });
}

/// Reads every tensor.
fn tensors(source: &dyn TensorSource) {
    let names = source.names();
    assert!(names.is_sorted());
    for name in names {
        let values: Option<usize> = source
            .shape(&name)
            .unwrap()
            .iter()
            .copied()
            .reduce(usize::saturating_mul);
        if let Ok(data) = source.read(&name) {
            assert_eq!(data.len(), values.unwrap_or(1));
        }
    }
}

/// The sizes and the values of embeddings, in a form in which not-a-number is equal to itself.
fn bits(embeddings: &Embeddings) -> (usize, usize, Vec<u32>) {
    let bits = |value: &f32| if value.is_nan() { u32::MAX } else { value.to_bits() };
    let values = embeddings.data().iter().map(bits);
    (embeddings.rows(), embeddings.dimensions(), values.collect())
}
