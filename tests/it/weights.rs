//! Checkpoints, safetensors files, the original's configuration files and model folders.

use std::borrow::Cow;

use ernie_vil::weights::pickle::{self, Value};
use ernie_vil::weights::{
    Checkpoint, Dtype, HashingWriter, Manifest, ManifestFile, SafetensorsFile, Shard, TensorData,
    TensorSource, check, convert, image_tensors, infer_vision_config, text_config_from_original,
    text_tensors, vision_config_from_original, write_safetensors,
};
use ernie_vil::{Activation, ErnieConfig, Error, ImageConfig, ModelConfig, Preprocessing, Result, VitConfig};
use half::f16;
use proptest::prelude::*;

use crate::support::{MODELS, Tensors, all, configs, message, read_golden};

fn to_f32(data: TensorData) -> Vec<f32> {
    match data {
        TensorData::F32(values) => values.into_owned(),
        TensorData::F16(values) => values.iter().map(|x| x.to_f32()).collect(),
        TensorData::Quantised(matrix) => matrix.to_f32(),
    }
}

/// Tensors in memory, as a source that no file could be.
struct Memory(Tensors);

impl Memory {
    fn new(tensors: &[(&str, &[usize], &[f32])]) -> Self {
        Self(
            tensors
                .iter()
                .map(|(name, shape, values)| (name.to_string(), (shape.to_vec(), values.to_vec())))
                .collect(),
        )
    }
}

impl TensorSource for Memory {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).map(|(shape, _)| shape.clone())
    }

    fn read(&self, name: &str) -> Result<TensorData<'_>> {
        Ok(TensorData::F32(Cow::Borrowed(&self.0[name].1)))
    }
}

/// Writes pickles of protocol 4, operation by operation.
#[derive(Default)]
struct Pickler(Vec<u8>);

impl Pickler {
    fn new() -> Self {
        Self(vec![0x80, 4])
    }

    fn op(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend(bytes.as_ref());
        self
    }

    fn times(self, n: usize, bytes: impl AsRef<[u8]>) -> Self {
        self.op(bytes.as_ref().repeat(n))
    }

    fn text(self, text: &str) -> Self {
        let length = u32::try_from(text.len()).unwrap();
        self.op("X").op(length.to_le_bytes()).op(text)
    }

    fn int(self, n: i64) -> Self {
        self.op(b"\x8a\x08").op(n.to_le_bytes())
    }

    fn global(self, name: &str) -> Self {
        let (module, name) = name.rsplit_once('.').unwrap();
        self.op(format!("c{module}\n{name}\n"))
    }

    fn shape(self, shape: &[i64]) -> Self {
        shape.iter().fold(self.op("("), |p, &n| p.int(n)).op("t")
    }

    fn dtype(self, code: &str) -> Self {
        self.global("numpy.dtype").text(code).op(b"\x89\x88\x87R")
    }

    fn array(self, shape: &[i64], code: &str, data: &[u8]) -> Self {
        let length = u32::try_from(data.len()).unwrap();
        self.global("numpy.core.multiarray._reconstruct")
            .global("numpy.ndarray")
            .op(b"K\x00\x85C\x01b\x87R(K\x01")
            .shape(shape)
            .dtype(code)
            .op(b"\x89B")
            .op(length.to_le_bytes())
            .op(data)
            .op("tb")
    }

    /// `{name: array}`.
    fn checkpoint(name: &str, shape: &[i64], code: &str, data: &[u8]) -> Vec<u8> {
        Self::new().op("}").text(name).array(shape, code, data).op("s.").0
    }
}

/// A safetensors file of a header and data.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

#[test]
fn every_layout_holds_the_same_tensors() {
    let values = read_golden("pickle/values.safetensors");
    let expected = all(&SafetensorsFile::parse(&values).unwrap());
    assert_eq!(expected.len(), 5);
    for layout in [
        "state_protocol2",
        "state_protocol3",
        "state_protocol4",
        "state_paddle3",
        "nested",
        "nested_paddle3",
        "numpy_dict",
        "state_with_int",
        "unpack_big_protocol2",
        "unpack_big_protocol3",
    ] {
        let bytes = read_golden(format!("pickle/{layout}.pdparams"));
        let checkpoint = Checkpoint::parse(&bytes).unwrap_or_else(|e| panic!("{layout}: {e}"));
        assert_eq!(all(&checkpoint), expected, "{layout}");
    }
}

#[test]
fn other_element_types_become_f32() {
    let bytes = read_golden("pickle/dtypes.pdparams");
    let found = all(&Checkpoint::parse(&bytes).unwrap());
    let expected: serde_json::Value =
        serde_json::from_slice(&read_golden("pickle/dtypes_expected.json")).unwrap();
    let expected: Tensors = expected
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, tensor)| {
            let list = |key: &str| tensor[key].as_array().unwrap().clone();
            let number = |v: &serde_json::Value| match v.as_bool() {
                Some(bit) => f32::from(u8::from(bit)),
                None => v.as_f64().unwrap() as f32,
            };
            let shape = list("shape")
                .iter()
                .map(|n| n.as_u64().unwrap() as usize)
                .collect();
            (name.clone(), (shape, list("values").iter().map(number).collect()))
        })
        .collect();
    assert_eq!(expected.len(), 9);
    assert_eq!(found, expected);

    for (code, bytes, value) in [("i1", &[0xff][..], -1.0), ("i2", &[0xfe, 0xff], -2.0)] {
        let bytes = Pickler::checkpoint("w", &[1], code, bytes);
        let checkpoint = Checkpoint::parse(&bytes).unwrap();
        assert_eq!(checkpoint.read("w").unwrap(), TensorData::F32(vec![value].into()));
    }
    let bytes = Pickler::checkpoint("w", &[1], "c8", &[0; 8]);
    let checkpoint = Checkpoint::parse(&bytes).unwrap();
    assert_eq!(
        message(checkpoint.read("w")),
        "tensor \"w\": weights: the element type is \"c8\", expected a float, an integer or a boolean"
    );
}

#[test]
fn column_major_and_big_endian_arrays_are_turned_around() {
    let values = read_golden("pickle/values.safetensors");
    let expected = all(&SafetensorsFile::parse(&values).unwrap())["lin.weight"].clone();
    let bytes = read_golden("pickle/fortran_bigendian.pdparams");
    let found = all(&Checkpoint::parse(&bytes).unwrap());
    let names: Vec<_> = found.keys().collect();
    assert_eq!(names, ["big_endian", "fortran"]);
    assert!(found.values().all(|tensor| *tensor == expected));
}

#[test]
fn three_dimensions_in_column_major_order() {
    // numpy.arange(24, dtype="u1").reshape(2, 3, 4, order="F"): the value at [a, b, c] is a + 2 b + 6 c.
    let data: Vec<u8> = (0..24).collect();
    let pickle = Pickler::checkpoint("w", &[2, 3, 4], "u1", &data);
    let order = pickle.iter().rposition(|&byte| byte == b'B').unwrap() - 1;
    let mut pickle = pickle;
    assert_eq!(pickle[order], 0x89);
    pickle[order] = 0x88;
    let expected: Vec<_> = (0..24)
        .map(|i| (i / 12 + 2 * (i / 4 % 3) + 6 * (i % 4)) as f32)
        .collect();
    let found = all(&Checkpoint::parse(&pickle).unwrap());
    assert_eq!(found["w"], (vec![2, 3, 4], expected));
}

#[test]
fn what_is_no_dictionary_of_tensors_is_named() {
    let error = |file: &str| message(Checkpoint::parse(&read_golden(format!("pickle/{file}.pdparams"))));
    assert_eq!(
        error("list"),
        "weights: the file holds a list of 2 items, expected a dictionary of tensors"
    );
    assert_eq!(
        error("single_tensor"),
        "weights: the file holds a single tensor of shape [3, 4], expected a dictionary of tensors"
    );
    assert_eq!(
        message(Checkpoint::parse(b"\x80\x04}X\x01\0\0\0aK\x01s.")),
        "weights: the file holds a dictionary of 1 entries and no tensor in it"
    );
}

#[test]
fn of_several_dictionaries_the_model_is_taken() {
    let nested = |keys: &[&str]| {
        let one = |p: Pickler, key: &&str| {
            p.text(key)
                .op("}")
                .text(&format!("{key}.w"))
                .array(&[1], "u1", &[7])
                .op("ss")
        };
        keys.iter().fold(Pickler::new().op("}"), one).op(".").0
    };
    for (keys, name) in [
        (&["optimizer", "model"][..], "model.w"),
        (&["state_dict", "ema"], "state_dict.w"),
        (&["whatever"], "whatever.w"),
    ] {
        assert_eq!(Checkpoint::parse(&nested(keys)).unwrap().names(), [name]);
    }
    // A scalar beside the model does not make the outer dictionary the model.
    let scalar = Pickler::new()
        .op("}")
        .text("net")
        .op("}")
        .text("w")
        .array(&[1], "u1", &[7])
        .op("ss")
        .text("best")
        .array(&[], "u1", &[9])
        .op("s.");
    assert_eq!(Checkpoint::parse(&scalar.0).unwrap().names(), ["w"]);
    assert_eq!(
        message(Checkpoint::parse(&nested(&["student", "teacher"]))),
        "weights: the file holds several dictionaries of tensors (\"student\", \"teacher\") and none is \
         called \"model\""
    );
}

#[test]
fn newer_and_rarer_layouts() {
    // collections.OrderedDict, which Paddle keeps around a state dictionary that is not at the top.
    let ordered = Pickler::new()
        .op("}")
        .text("model")
        .global("collections.OrderedDict")
        .op(")R")
        .text("w")
        .array(&[1], "u1", &[7])
        .op("ss.");
    // Protocol 5 in one piece, as NumPy 2 writes it, with a scalar beside it.
    let five = Pickler(vec![0x80, 5])
        .op("}")
        .text("w")
        .global("numpy._core.numeric._frombuffer")
        .op(b"(\x96\x01\0\0\0\0\0\0\0\x07")
        .dtype("u1")
        .shape(&[1])
        .text("C")
        .op("tRs")
        .text("scalar")
        .global("numpy._core.multiarray.scalar")
        .dtype("u1")
        .op(b"C\x01\x09\x86Rs.");
    // Protocol 2 writes empty bytes as a call.
    let empty = Pickler(vec![0x80, 2])
        .op("}")
        .text("empty")
        .global("__builtin__.bytes")
        .op(")Rs")
        .text("w")
        .array(&[1], "u1", &[7])
        .op("s.");
    for pickle in [ordered, five, empty] {
        let checkpoint = Checkpoint::parse(&pickle.0).unwrap();
        assert_eq!(checkpoint.read("w").unwrap(), TensorData::F32(vec![7.0].into()));
    }
}

#[test]
fn hostile_and_damaged_files_are_refused() {
    for (file, expected) in [
        (
            "empty",
            "weights: the file is empty: was it downloaded or copied whole?",
        ),
        (
            "eval",
            "weights: pickle, byte 35: the global \"builtins.eval\" is refused, a parameter file needs \
             arrays only",
        ),
        (
            "os",
            "weights: pickle, byte 13: the global \"posix.getcwd\" is refused, a parameter file needs \
             arrays only",
        ),
        (
            "not_pickle",
            "weights: not a pickle of protocol 2 to 5: the file is a zip archive: unpack it, and give the file \
             inside",
        ),
        (
            "shape_mismatch",
            "tensor \"lin.weight\": weights: 48 bytes of data do not fit shape [4, 4] of element type f4",
        ),
        (
            "truncated",
            "weights: pickle, byte 2: a frame of 663 bytes, but only 603 follow: the file is cut short",
        ),
    ] {
        let bytes = read_golden(format!("pickle/refuse_{file}.pdparams"));
        assert_eq!(message(Checkpoint::parse(&bytes)), expected, "{file}");
    }
}

#[test]
fn every_cut_of_a_pickle_is_an_error() {
    for file in [
        "state_protocol2",
        "state_protocol3",
        "state_protocol4",
        "unpack_big_protocol2",
    ] {
        let bytes = read_golden(format!("pickle/{file}.pdparams"));
        for end in 0..bytes.len() {
            assert!(Checkpoint::parse(&bytes[..end]).is_err(), "{file} cut at {end}");
        }
        // Python ignores what follows the end, and so does this reader.
        assert!(Checkpoint::parse(&[&bytes[..], b"more"].concat()).is_ok());
    }
}

#[test]
fn the_data_of_protocol_2_must_be_code_points_below_256() {
    let checkpoint = |text: &[u8], count: i64| {
        Pickler(vec![0x80, 2])
            .op("}")
            .text("w")
            .global("numpy.core.multiarray._reconstruct")
            .global("numpy.ndarray")
            .op(b"K\x00\x85C\x01b\x87R(K\x01")
            .shape(&[count])
            .dtype("u1")
            .op(b"\x89")
            .global("_codecs.encode")
            .op("X")
            .op(u32::try_from(text.len()).unwrap().to_le_bytes())
            .op(text)
            .text("latin1")
            .op(b"\x86Rtbs.")
            .0
    };
    let read = |text: &[u8], count| -> Result<Vec<f32>> {
        Ok(to_f32(Checkpoint::parse(&checkpoint(text, count))?.read("w")?))
    };
    // Every byte value, at every distance from the edges of the blocks that are decoded at once.
    for length in [0usize, 1, 63, 64, 65, 256, 8191, 8192, 8193, 20_000] {
        let bytes: Vec<u8> = (0..length).map(|i| (i * 7 + i / 256) as u8).collect();
        let text: String = bytes.iter().copied().map(char::from).collect();
        let expected: Vec<f32> = bytes.iter().copied().map(f32::from).collect();
        assert_eq!(
            read(text.as_bytes(), length as i64).unwrap(),
            expected,
            "{length}"
        );
    }
    for (text, count) in [
        (&b"\xc3"[..], 1),          // a lead without its second byte
        (b"\xc3a", 2),              // the same, inside
        (b"a\x80", 2),              // a second byte without its lead
        (b"\xc3\x80\x80", 2),       // one too many
        (b"\xc1\x80", 1),           // an overlong form
        ("\u{100}".as_bytes(), 1),  // a code point of 256
        ("\u{4e2d}".as_bytes(), 2), // one of three bytes
    ] {
        let message = message(read(text, count));
        assert!(message.contains("code points below 256"), "{text:?}: {message}");
    }
    assert!(message(read("éé".as_bytes(), 3)).contains("2 bytes of data do not fit shape [3]"));
}

#[test]
fn a_cut_tensor_needs_every_part_once() {
    let checkpoint = |origin: &[i64], slices: &[&str]| {
        let p = Pickler::new()
            .op("}")
            .text("w@@.0")
            .array(&[2], "u1", &[1, 2])
            .op("s")
            .text("w@@.1")
            .array(&[1], "u1", &[3])
            .op("s")
            .text("UnpackBigParamInfor@@")
            .op("}")
            .text("w")
            .op("}")
            .text("OriginShape")
            .shape(origin)
            .op("s")
            .text("slices")
            .op("](");
        slices.iter().fold(p, |p, slice| p.text(slice)).op("esss.").0
    };
    let good = checkpoint(&[3, 1], &["w@@.0", "w@@.1"]);
    let found = all(&Checkpoint::parse(&good).unwrap());
    assert_eq!(found, Memory::new(&[("w", &[3, 1], &[1.0, 2.0, 3.0])]).0);
    for (origin, slices, expected) in [
        (&[3][..], &["w@@.0", "w@@.2"][..], "the part \"w@@.2\" is missing"),
        (&[4], &["w@@.0", "w@@.0"], "the part \"w@@.0\" is missing"),
        (
            &[4],
            &["w@@.0", "w@@.1"],
            "the parts hold 3 values, expected shape [4]",
        ),
        (&[0], &[], "no parts are named"),
        (&[-3], &["w@@.0", "w@@.1"], "OriginShape is not a tuple of sizes"),
    ] {
        let message = message(Checkpoint::parse(&checkpoint(origin, slices)));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn parts_that_share_their_data_cannot_ask_for_more_than_the_file_has() {
    // One array of 10,000 bytes under 2,000 names, to be joined to one of 20,000,000 values.
    let mut p = Pickler::new()
        .op("}")
        .text("0")
        .array(&[10_000], "u1", &[1; 10_000])
        .op("q\x01s");
    for name in 1..2_000 {
        p = p.text(&name.to_string()).op("h\x01s");
    }
    p = p.text("UnpackBigParamInfor@@").op("}").text("w").op("}");
    p = p
        .text("OriginShape")
        .shape(&[20_000_000])
        .op("s")
        .text("slices")
        .op("](");
    for name in 0..2_000 {
        p = p.text(&name.to_string());
    }
    let message = message(Checkpoint::parse(&p.op("esss.").0));
    assert!(message.contains("the tensors share their data"), "{message}");
}

/// Tied weights, which are one array under several names, are no such thing.
#[test]
fn an_array_may_have_several_names() {
    let mut p = Pickler::new()
        .op("}")
        .text("0")
        .array(&[1000], "f4", &[0; 4000])
        .op("q\x01s");
    for name in 1..8 {
        p = p.text(&name.to_string()).op("h\x01s");
    }
    let bytes = p.op(".").0;
    let found = all(&Checkpoint::parse(&bytes).unwrap());
    assert_eq!(found.len(), 8);
    assert!(found.values().all(|(shape, _)| shape == &[1000]));
}

/// Of two entries with one key the later one counts, also where a table of cut tensors has a name twice.
#[test]
fn the_later_of_two_entries_counts() {
    let p = Pickler::new()
        .op("}")
        .text("w")
        .op("q\x010h\x01")
        .array(&[1], "u1", &[1])
        .op("s");
    let p = p
        .text("w")
        .array(&[1], "u1", &[2])
        .op("sh\x01")
        .array(&[1], "u1", &[3])
        .op("s.");
    let bytes = p.0;
    let checkpoint = Checkpoint::parse(&bytes).unwrap();
    assert_eq!(checkpoint.read("w").unwrap(), TensorData::F32(vec![3.0].into()));

    let about = |p: Pickler, size: i64, part: &str| {
        let p = p.text("w").op("}").text("OriginShape").shape(&[size]).op("s");
        p.text("slices").op("](").text(part).op("ess")
    };
    let p = Pickler::new().op("}").text("a").array(&[1], "u1", &[1]).op("s");
    let p = p
        .text("b")
        .array(&[2], "u1", &[2, 3])
        .op("s")
        .text("UnpackBigParamInfor@@")
        .op("}");
    let bytes = about(about(p, 1, "a"), 2, "b").op("s.").0;
    let found = all(&Checkpoint::parse(&bytes).unwrap());
    assert_eq!(found["w"], (vec![2], vec![2.0, 3.0]));
}

#[test]
fn hostile_pickles_are_refused_or_read_in_bounded_time_and_memory() {
    let million = 1_000_000;
    let refused: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "a million marks",
            Pickler::new().times(million, "(").op(".").0,
            "lacks an operand",
        ),
        (
            "lists in lists, more than the limit",
            Pickler::new().times(million, "]").times(million, "a").op(".").0,
            "more than 1048576 operations",
        ),
        (
            "nested tuples, no dictionary",
            Pickler::new().op(")").times(million, b"\x85").op(".").0,
            "holds a tuple of 1 items",
        ),
        (
            "lists in lists",
            Pickler::new().times(500_000, "]").times(499_999, "a").op(".").0,
            "holds a list of 1 items",
        ),
        (
            "a list that contains itself",
            Pickler::new().op(b"]q\x00h\x00a.").0,
            "holds a list of 1 items",
        ),
        (
            "a dictionary that contains itself",
            Pickler::new().op(b"}q\x00X\x01\0\0\0ah\x00s.").0,
            "no tensor in it",
        ),
        (
            // Every level holds the one below ten times: 10^1000 leaves if they were copied.
            "shared lists of shared lists",
            Pickler::new()
                .op("]q\x00")
                .times(
                    1_000,
                    "0](h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00eq\x00",
                )
                .op(".")
                .0,
            "holds a list of 10 items",
        ),
        (
            "a dictionary without tensors under many keys",
            {
                let inner = Pickler::new().op("}(").times(100_000, "NN").op("uq\x000");
                inner.op("}(").times(100_000, b"\x8c\x01ah\x00").op("u.").0
            },
            "no tensor in it",
        ),
        (
            "a long key used again and again",
            {
                let key = Pickler::new().text(&"k".repeat(1 << 20)).op("q\x000");
                key.op("}(").times(300_000, "h\x00N").op("u.").0
            },
            "no tensor in it",
        ),
        (
            "a string of 2^32-1 bytes",
            Pickler::new().op(b"X\xff\xff\xff\xffabc").0,
            "cut short",
        ),
        (
            "a string of 2^64-1 bytes",
            Pickler::new().op(b"\x8d").op([0xff; 8]).0,
            "cut short",
        ),
        (
            "bytes of 2^63 bytes",
            Pickler::new().op(b"\x8e\0\0\0\0\0\0\0\x80").0,
            "cut short",
        ),
        (
            "a frame of 2^64-1 bytes",
            Pickler::new().op(b"\x95").op([0xff; 8]).0,
            "cut short",
        ),
        (
            "an integer of -1 bytes",
            Pickler::new().op(b"\x8b\xff\xff\xff\xff.").0,
            "a length of -1",
        ),
        (
            "an integer of 9 bytes",
            Pickler::new().op(b"\x8a\x09123456789.").0,
            "expected at most 8",
        ),
        (
            "an unknown memory",
            Pickler::new().op(b"j\xff\xff\xff\xff.").0,
            "was not remembered",
        ),
        (
            "a value below the mark",
            Pickler::new().op("N(.").0,
            "lacks an operand",
        ),
        (
            "a call below the mark",
            Pickler::new().op("cnumpy\ndtype\n)(R.").0,
            "lacks an operand",
        ),
        (
            "a close without a mark",
            Pickler::new().op("t.").0,
            "lacks its mark",
        ),
        (
            "a key without a value",
            Pickler::new().op("}(Nu.").0,
            "a key lacks its value",
        ),
        (
            "an entry of a list",
            Pickler::new().op("]NNs.").0,
            "what is not a dictionary",
        ),
        (
            "an item of a dictionary",
            Pickler::new().op("}Na.").0,
            "what is not a list",
        ),
        (
            "a call of a string",
            Pickler::new().text("os").op(")R.").0,
            "what is not a function",
        ),
        (
            "a state of a list",
            Pickler::new().op("])b.").0,
            "a list of 0 items is given an unknown state",
        ),
        (
            "a class",
            Pickler::new().op(b"cnumpy\nndarray\n)\x81.").0,
            "the operation 0x81 is refused",
        ),
        (
            "a persistent id",
            Pickler::new().op("NQ.").0,
            "the operation 0x51 is refused",
        ),
        (
            "a name without an end",
            Pickler::new().op("c").times(1_000, "x").0,
            "does not end",
        ),
        (
            "a name in pieces",
            Pickler::new().text("os").text("system").op(b"\x93.").0,
            "\"os.system\" is refused",
        ),
        (
            "another name of NumPy",
            Pickler::new().global("numpy.load").op(".").0,
            "\"numpy.load\" is refused",
        ),
        (
            "another encoding",
            Pickler::new()
                .global("_codecs.encode")
                .text("a")
                .text("rot13")
                .op(b"\x86R.")
                .0,
            "a call of Encode with unknown arguments",
        ),
        (
            "a negative size",
            Pickler::checkpoint("w", &[-1], "f4", &[]),
            "an array's size is -1",
        ),
        (
            "sizes whose product overflows to the length",
            Pickler::checkpoint("w", &[1 << 32, 1 << 32, 1], "f4", &[]),
            "0 bytes of data do not fit",
        ),
        (
            "sizes whose product in bytes overflows",
            Pickler::checkpoint("w", &[1 << 62], "f4", &[]),
            "0 bytes of data do not fit",
        ),
        (
            "many dimensions",
            Pickler::checkpoint("w", &[1; 17], "u1", &[1]),
            "expected a tuple of at most 16 sizes",
        ),
        (
            "a structured type",
            Pickler::new()
                .dtype("V4")
                .op("(K\x03")
                .text("<")
                .op(b"N)NJ\xff\xff\xff\xff")
                .op("tb.")
                .0,
            "an element type is given an unknown state",
        ),
        (
            "an array of objects",
            Pickler::new()
                .global("numpy.core.multiarray._reconstruct")
                .global("numpy.ndarray")
                .op(b"K\x00\x85C\x01b\x87R(K\x01")
                .shape(&[1])
                .dtype("O8")
                .op(b"\x89](Ne")
                .op("tb.")
                .0,
            "an array without content is given an unknown state",
        ),
        (
            "an array without content",
            Pickler::new()
                .op("}")
                .text("w")
                .global("numpy.core.multiarray._reconstruct")
                .global("numpy.ndarray")
                .op(b"\x85Rs.")
                .0,
            "no tensor in it",
        ),
    ];
    for (what, bytes, expected) in refused {
        let message = message(Checkpoint::parse(&bytes));
        assert!(message.contains(expected), "{what}: {message}");
        assert!(message.len() < 400, "{what}: {message}");
    }
}

#[test]
fn plain_data_is_read_as_it_was_written() {
    // pickle.dumps([None, True, 255, 65535, -1, 2**40, 0.5, "中", b"\x00", (), (1,), {"a": 1}], 4)
    let bytes = b"\x80\x04\x95:\x00\x00\x00\x00\x00\x00\x00]\x94(N\x88K\xffM\xff\xffJ\xff\xff\xff\xff\
        \x8a\x06\x00\x00\x00\x00\x00\x01G?\xe0\x00\x00\x00\x00\x00\x00\x8c\x03\xe4\xb8\xad\x94C\x01\x00\
        \x94)K\x01\x85\x94}\x94\x8c\x01a\x94K\x01se.";
    let pickle = pickle::parse(bytes).unwrap();
    let items = pickle.items(pickle.root());
    assert_eq!(items.len(), 12);
    assert_eq!(items[..2], [Value::None, Value::Bool(true)]);
    assert_eq!(items[2..6], [255, 65535, -1, 1 << 40].map(Value::Int));
    assert_eq!(items[6], Value::Float(0.5));
    assert!(matches!(items[7], Value::Text(text) if text.as_str() == Some("中")));
    assert_eq!(items[8], Value::Bytes(pickle::Bytes::Raw(&[0])));
    assert!(matches!(items[9], Value::Tuple(_)));
    assert_eq!(pickle.items(items[10]), [Value::Int(1)]);
    assert!(matches!(
        pickle.entries(items[11]),
        [(Value::Text(key), Value::Int(1))] if key.as_str() == Some("a")
    ));
}

#[test]
fn the_models_hold_exactly_what_their_towers_need() {
    for name in MODELS {
        let (image, text) = configs(name);
        let bytes = read_golden(format!("models/{name}.pdparams"));
        let checkpoint = Checkpoint::parse(&bytes).unwrap();
        let expected = [image_tensors(&image), text_tensors(&text)].concat();
        assert_eq!(
            check(&checkpoint, &expected).unwrap(),
            ["contrastive_loss_mm.temperature_b"],
            "{name}"
        );
        let TensorData::F32(temperature) = checkpoint.read("contrastive_loss_mm.temperature_b").unwrap()
        else {
            panic!("a checkpoint gives f32");
        };
        assert_eq!(*temperature, [2.65926]);
    }
    let full = [
        image_tensors(VitConfig::base()),
        text_tensors(&ErnieConfig::base()),
    ]
    .concat();
    let values: usize = full
        .iter()
        .map(|(_, shape)| shape.iter().product::<usize>())
        .sum();
    assert_eq!((full.len() + 1, values + 1), (350, 203_738_881));
}

#[test]
fn protocols_2_and_4_hold_the_same_model() {
    let (four, two) = (
        read_golden("models/tiny.pdparams"),
        read_golden("models/tiny_protocol2.pdparams"),
    );
    let four = all(&Checkpoint::parse(&four).unwrap());
    assert_eq!(all(&Checkpoint::parse(&two).unwrap()), four);
}

#[test]
fn the_original_configurations() {
    let (image, text) = configs("variant");
    assert_eq!(
        text,
        ErnieConfig {
            vocab_size: 2004,
            max_positions: 48,
            width: 24,
            depth: 1,
            heads: 3,
            query_head_width: 6,
            value_head_width: 10,
            mlp_width: 40,
            activation: Activation::Relu,
            epsilon: 1e-5,
            sentence_types: None,
            task_types: None,
        }
    );
    assert_eq!(
        image,
        VitConfig {
            image_size: 224,
            patch_size: 28,
            width: 24,
            depth: 1,
            heads: 3,
            mlp_width: 48,
            epsilon: 1e-6,
        }
    );
    let (_, text) = configs("tiny");
    assert_eq!(
        (text.mlp_width, text.query_head_width, text.value_head_width),
        (128, 8, 8)
    );

    let text = |change: (&str, &str)| {
        let json = r#"{"vocab_size": 10, "hidden_size": 12, "num_hidden_layers": 1, "hidden_act": "gelu",
            "num_attention_heads": 3, "max_position_embeddings": 8, "use_sent_id": true, "emb_size": 12}"#;
        assert!(json.contains(change.0));
        message(text_config_from_original(
            json.replace(change.0, change.1).as_bytes(),
        ))
    };
    for (change, expected) in [
        (
            (r#""emb_size": 12"#, r#""emb_size": 6"#),
            "emb_size is 6, expected hidden_size, 12",
        ),
        (
            (r#""num_attention_heads": 3"#, r#""num_attention_heads": 5"#),
            "a multiple of num_attention_heads, 5",
        ),
        (
            (r#""num_attention_heads": 3"#, r#""num_attention_heads": 0"#),
            "a multiple of num_attention_heads, 0",
        ),
        (("gelu", "tanh"), "unknown variant `tanh`"),
        (("hidden_size", "hidden"), "missing field `hidden_size`"),
        (
            (r#""hidden_size": 12"#, r#""hidden_size": 1e30"#),
            "expected usize",
        ),
        (
            (r#""vocab_size": 10"#, r#""vocab_size": 18446744073709551615"#),
            "text.vocab_size is 18446744073709551615",
        ),
    ] {
        let message = text(change);
        assert!(
            message.starts_with("configuration: ") && message.contains(expected),
            "{message}"
        );
    }
    let vision = |more: &str| {
        let json = r#"{"img_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 1, "num_heads": 2"#;
        vision_config_from_original(format!("{json}{more}}}").as_bytes())
    };
    assert_eq!(
        vision(r#", "mlp_ratio": 2.55, "drop": 0.1"#).unwrap().mlp_width,
        20
    );
    assert!(message(vision(r#", "qkv_bias": false"#)).contains("qkv_bias is false"));
    assert!(message(vision(r#", "mlp_ratio": -1"#)).contains("image.mlp_width is 0"));
    assert!(message(vision(r#", "epsilon": 2"#)).contains("image.epsilon is 2"));
}

/// A source that has shapes only.
struct Shapes(Vec<(String, Vec<usize>)>);

impl TensorSource for Shapes {
    fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, shape)| shape.clone())
    }

    fn read(&self, name: &str) -> Result<TensorData<'_>> {
        Err(Error::Weights(format!("{name} has a shape only")))
    }
}

#[test]
fn the_image_sizes_show_in_the_shapes() {
    for config in [VitConfig::base(), VitConfig::large()] {
        assert_eq!(
            infer_vision_config(&Shapes(image_tensors(&config))).unwrap(),
            config
        );
    }
    let bytes = read_golden("models/mid.pdparams");
    let (mid, _) = configs("mid");
    let found = infer_vision_config(&Checkpoint::parse(&bytes).unwrap()).unwrap();
    assert_eq!(found, VitConfig { heads: 1, ..mid });

    let bytes = read_golden("models/tiny.pdparams");
    let message = |source: &dyn TensorSource| message(infer_vision_config(source));
    assert_eq!(
        message(&Checkpoint::parse(&bytes).unwrap()),
        "configuration: the image tower's number of heads cannot be told from its width, 32, which is \
         not a multiple of 64: give an image configuration with num_heads"
    );
    let changed = |name: &str, shape: Option<Vec<usize>>| {
        let mut tensors = image_tensors(VitConfig::base());
        tensors.retain(|(n, _)| n != name);
        tensors.extend(shape.map(|shape| (name.to_string(), shape)));
        message(&Shapes(tensors))
    };
    let position = "visual.positional_embedding";
    assert!(changed(position, None).contains("visual.positional_embedding is missing"));
    assert!(changed(position, Some(vec![197, 768])).contains("is [197, 768], expected 3 dimensions"));
    assert!(changed(position, Some(vec![1, 196, 768])).contains("has 196 tokens"));
    assert!(changed(position, Some(vec![1, 0, 768])).contains("has 0 tokens"));
    let patch = "visual.patch_embed.proj.weight";
    let huge = vec![768, 3, usize::MAX, usize::MAX];
    assert!(changed(patch, Some(huge)).contains("image.image_size is"));
    assert!(changed(patch, Some(vec![0, 3, 16, 16])).contains("its width, 0"));
}

#[test]
fn all_missing_and_misshapen_tensors_are_told_at_once() {
    let source = Shapes(vec![
        ("a".into(), vec![1, 2]),
        ("b".into(), vec![3]),
        ("more".into(), vec![]),
        ("extra".into(), vec![]),
    ]);
    let expected = |list: &[(&str, &[usize])]| -> Vec<(String, Vec<usize>)> {
        list.iter()
            .map(|(name, shape)| (name.to_string(), shape.to_vec()))
            .collect()
    };
    let wanted = expected(&[("a", &[2, 1]), ("b", &[3]), ("c", &[4]), ("d", &[5])]);
    assert_eq!(
        message(check(&source, &wanted)),
        "weights: 2 tensors are missing:\n  c [4]\n  d [5]\n\
         1 tensor has another shape:\n  a is [1, 2], expected [2, 1]\n\
         The file also holds 2 tensors of other names: \"more\", \"extra\"."
    );
    assert_eq!(
        check(&source, &expected(&[("b", &[3])])).unwrap(),
        ["a", "more", "extra"]
    );

    let message = message(check(&source, &image_tensors(VitConfig::base())));
    let lines: Vec<_> = message.lines().collect();
    assert_eq!(lines.len(), 23);
    assert_eq!(lines[0], "weights: 151 tensors are missing:");
    assert_eq!(lines[1], "  visual.class_embedding [1, 1, 768]");
    assert_eq!(lines[21], "  and 131 more");
    let holds = "The file holds 4 tensors, none of which has an expected name: \"a\", \"b\", \"more\", \"extra\". Known names are";
    assert!(lines[22].starts_with(holds), "{}", lines[22]);
}

#[test]
fn infinite_and_undefined_weights_are_refused() {
    for (value, name) in [
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (f32::NEG_INFINITY, "-inf"),
    ] {
        let mut values = vec![1.0f32; 5000];
        values[4500] = value;
        let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let expected = format!("weights: value 4500 is {name}, expected finite numbers");
        let bytes = Pickler::checkpoint("w", &[5000], "f4", &data);
        let checkpoint = Checkpoint::parse(&bytes).unwrap();
        assert_eq!(message(checkpoint.read("w")), format!("tensor \"w\": {expected}"));
        for (dtype, data) in [
            ("F32", data),
            (
                "F16",
                values
                    .iter()
                    .flat_map(|&x| f16::from_f32(x).to_le_bytes())
                    .collect(),
            ),
        ] {
            let header = format!(
                r#"{{"w":{{"dtype":"{dtype}","shape":[5000],"data_offsets":[0,{}]}}}}"#,
                data.len()
            );
            let bytes = safetensors(&header, &data);
            let file = SafetensorsFile::parse(&bytes).unwrap();
            assert_eq!(message(file.read("w")), format!("tensor \"w\": {expected}"));
        }
    }
    // A double that only becomes infinite as a single.
    let bytes = Pickler::checkpoint("w", &[1], "f8", &1e300f64.to_le_bytes());
    assert!(message(Checkpoint::parse(&bytes).unwrap().read("w")).contains("value 0 is inf"));
}

#[test]
fn safetensors_files_of_any_alignment_and_float_type() {
    let header = |dtype: &str, size: usize| {
        format!(
            r#"{{"w":{{"dtype":"{dtype}","shape":[3],"data_offsets":[0,{}]}}}}"#,
            3 * size
        )
    };
    let values = [1.5f32, -2.25, 65504.0];
    let single: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let half: Vec<u8> = values
        .iter()
        .flat_map(|&x| f16::from_f32(x).to_le_bytes())
        .collect();
    let brain: Vec<u8> = single.chunks(4).flat_map(|b| [b[2], b[3]]).collect();
    for (file, f16_expected, expected) in [
        (safetensors(&header("F32", 4), &single), false, values),
        (safetensors(&header("F16", 2), &half), true, values),
        (
            safetensors(&header("BF16", 2), &brain),
            false,
            [1.5, -2.25, 65280.0],
        ),
    ] {
        // One of these starts is not a multiple of the element's size.
        for start in 0..4 {
            let bytes = [vec![0; start], file.clone()].concat();
            let file = SafetensorsFile::parse(&bytes[start..]).unwrap();
            let data = file.read("w").unwrap();
            assert_eq!(matches!(data, TensorData::F16(_)), f16_expected);
            assert_eq!(to_f32(data), expected);
        }
    }
    let bytes = safetensors(&header("I64", 8), &[0; 24]);
    let file = SafetensorsFile::parse(&bytes).unwrap();
    assert_eq!(
        message(file.read("w")),
        "tensor \"w\": weights: the element type is I64, expected F32, F16 or BF16"
    );
    assert_eq!(message(file.read("v")), "tensor \"v\": weights: missing");
    assert!(message(SafetensorsFile::parse(b"")).starts_with("weights: not a safetensors file: "));
    assert!(SafetensorsFile::parse(&bytes[..bytes.len() - 1]).is_err());
}

struct Folder {
    image: Vec<u8>,
    text: Vec<u8>,
    fingerprint: String,
}

fn converted(source: &dyn TensorSource, name: &str, dtype: Dtype) -> Folder {
    let (image, text) = configs(name);
    let (mut image_out, mut text_out) = (Vec::new(), Vec::new());
    let converted = convert(
        source,
        &image,
        &text,
        Preprocessing::Original,
        dtype,
        &mut image_out,
        &mut text_out,
    )
    .unwrap();
    assert_eq!(converted.fingerprint.len(), 64);
    Folder {
        image: image_out,
        text: text_out,
        fingerprint: converted.fingerprint,
    }
}

/// Both files of a folder as one source.
struct Both<'a>(SafetensorsFile<'a>, SafetensorsFile<'a>);

impl TensorSource for Both<'_> {
    fn names(&self) -> Vec<String> {
        [self.0.names(), self.1.names()].concat()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.shape(name).or_else(|| self.1.shape(name))
    }

    fn read(&self, name: &str) -> Result<TensorData<'_>> {
        self.0.read(name).or_else(|_| self.1.read(name))
    }
}

impl Folder {
    fn source(&self) -> Both<'_> {
        Both(
            SafetensorsFile::parse(&self.image).unwrap(),
            SafetensorsFile::parse(&self.text).unwrap(),
        )
    }
}

#[test]
fn a_converted_model_has_the_checkpoint_s_values() {
    for name in MODELS {
        let bytes = read_golden(format!("models/{name}.pdparams"));
        let checkpoint = Checkpoint::parse(&bytes).unwrap();
        let mut expected = all(&checkpoint);
        assert!(expected.remove("contrastive_loss_mm.temperature_b").is_some());

        let single = converted(&checkpoint, name, Dtype::F32);
        assert_eq!(all(&single.source()), expected);
        let half = converted(&checkpoint, name, Dtype::F16);
        for (_, values) in expected.values_mut() {
            values.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
        }
        assert_eq!(all(&half.source()), expected);
        assert!(matches!(
            half.source().read("visual.class_embedding").unwrap(),
            TensorData::F16(_)
        ));
        assert_ne!(single.fingerprint, half.fingerprint);

        // A folder converts to itself, whatever its type, and half precision widens exactly.
        let again = converted(&single.source(), name, Dtype::F32);
        assert!(again.image == single.image && again.text == single.text);
        assert_eq!(again.fingerprint, single.fingerprint);
        let again = converted(&half.source(), name, Dtype::F16);
        assert!(again.image == half.image && again.text == half.text);
        assert_eq!(again.fingerprint, half.fingerprint);
        assert_eq!(
            all(&converted(&half.source(), name, Dtype::F32).source()),
            expected
        );

        for file in [&single.image, &single.text, &half.image, &half.text] {
            let header = u64::from_le_bytes(file[..8].try_into().unwrap());
            assert_eq!((header + 8) % 64, 0);
        }
    }
}

#[test]
fn the_fingerprint_stands_for_values_and_settings() {
    let (four, two) = (
        read_golden("models/tiny.pdparams"),
        read_golden("models/tiny_protocol2.pdparams"),
    );
    let checkpoint = Checkpoint::parse(&four).unwrap();
    let fingerprint = converted(&checkpoint, "tiny", Dtype::F32).fingerprint;
    let from_two = converted(&Checkpoint::parse(&two).unwrap(), "tiny", Dtype::F32);
    assert_eq!(from_two.fingerprint, fingerprint);

    let (image, text) = configs("tiny");
    let of = |source: &dyn TensorSource, image: &VitConfig| {
        let outs = (&mut Vec::new(), &mut Vec::new());
        convert(
            source,
            image,
            &text,
            Preprocessing::Original,
            Dtype::F32,
            outs.0,
            outs.1,
        )
        .unwrap()
        .fingerprint
    };
    assert_eq!(of(&checkpoint, &image), fingerprint);
    let other_heads = VitConfig {
        heads: 2,
        ..image.clone()
    };
    assert_ne!(of(&checkpoint, &other_heads), fingerprint);
    let mut changed = Memory(all(&checkpoint));
    assert_eq!(of(&changed, &image), fingerprint);
    let (_, values) = changed.0.get_mut("text_model.pooler.bias").unwrap();
    values[0] = f32::from_bits(values[0].to_bits() ^ 1);
    assert_ne!(of(&changed, &image), fingerprint);

    // As its definition says, from the files that were written.
    use sha2::{Digest, Sha256};
    let folder = converted(&checkpoint, "tiny", Dtype::F16);
    let mut sum = Sha256::new();
    sum.update("ernie-vil weights 1\n");
    sum.update(r#"{"image_size":224,"patch_size":32,"width":32,"depth":2,"heads":4,"mlp_width":128,"#);
    sum.update(r#""epsilon":1e-6}"#);
    sum.update("\n");
    sum.update(r#"{"vocab_size":2004,"max_positions":64,"width":32,"depth":2,"heads":4,"#);
    sum.update(r#""query_head_width":8,"value_head_width":8,"mlp_width":128,"activation":"gelu","#);
    sum.update(r#""epsilon":0.00001}"#);
    sum.update("\n\"ernie-vil-2.0\"\n");
    for file in [&folder.image, &folder.text] {
        let file = safetensors::SafeTensors::deserialize(file).unwrap();
        let mut names = file.names();
        names.sort();
        for name in names {
            let tensor = file.tensor(name).unwrap();
            let shape: Vec<_> = tensor.shape().iter().map(usize::to_string).collect();
            sum.update(format!("[\"{name}\",\"F16\",[{}]]\n", shape.join(",")));
            sum.update(tensor.data());
        }
    }
    let sum: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(sum, folder.fingerprint);
}

#[test]
fn half_precision_rounds_to_even_and_refuses_what_is_too_large() {
    let write = |values: &[f32], dtype| -> Result<Vec<f32>> {
        let shape = [values.len()];
        let source = Memory::new(&[("w", &shape, values)]);
        let mut out = Vec::new();
        write_safetensors(&mut out, &source, &[("w".into(), shape.to_vec())], dtype)?;
        Ok(to_f32(SafetensorsFile::parse(&out)?.read("w")?))
    };
    // One unit of the last place of f16 at 1 is 2^-10; a half of it ties.
    let ulp = 2f32.powi(-10);
    let values = [
        1.0 + 0.5 * ulp,
        1.0 + 1.5 * ulp,
        1.0 + 0.51 * ulp,
        65519.0,
        2f32.powi(-25),
        -0.0,
    ];
    let expected = [1.0, 1.0 + 2.0 * ulp, 1.0 + ulp, 65504.0, 0.0, -0.0];
    assert_eq!(write(&values, Dtype::F16).unwrap(), expected);
    assert_eq!(write(&values, Dtype::F32).unwrap(), values);
    // A tensor that is asked for twice is written once.
    let source = Memory::new(&[("w", &[1], &[1.0])]);
    let mut out = Vec::new();
    let twice = vec![("w".to_string(), vec![1]); 2];
    write_safetensors(&mut out, &source, &twice, Dtype::F32).unwrap();
    assert_eq!(all(&SafetensorsFile::parse(&out).unwrap()), source.0);
    let mut long = vec![0.25; 40_000];
    long[39_999] = -65520.0;
    assert_eq!(
        message(write(&long, Dtype::F16)),
        "tensor \"w\": weights: -65520 is too large for half precision"
    );
    assert_eq!(write(&long, Dtype::F32).unwrap(), long);
}

#[test]
fn nothing_is_written_where_the_source_does_not_fit() {
    let bytes = read_golden("models/tiny.pdparams");
    let checkpoint = Checkpoint::parse(&bytes).unwrap();
    let (image, text) = configs("tiny");
    let text = ErnieConfig { depth: 3, ..text };
    let (mut image_out, mut text_out) = (Vec::new(), Vec::new());
    let result = convert(
        &checkpoint,
        &image,
        &text,
        Preprocessing::Original,
        Dtype::F32,
        &mut image_out,
        &mut text_out,
    );
    let message = message(result);
    assert!(message.starts_with("weights: 16 tensors are missing:\n  text_model.encoder_stack.block.2."));
    assert!(image_out.is_empty() && text_out.is_empty());
}

#[test]
fn a_failing_writer_is_an_error() {
    let source = Memory::new(&[("w", &[1], &[1.0])]);
    let mut space = [0; 66];
    let result = write_safetensors(&mut &mut space[..], &source, &[("w".into(), vec![1])], Dtype::F32);
    assert_eq!(result.unwrap_err().code(), "io");
}

#[test]
fn manifests() {
    use std::io::Write;
    let mut writer = HashingWriter::new(Vec::new());
    writer.write_all(&[b'a'; 70_000]).unwrap();
    writer.write_all(b"b").unwrap();
    let (bytes, file) = writer.finish("image.safetensors");
    assert_eq!(bytes.len(), 70_001);
    assert_eq!(file.size, 70_001);
    // sha256sum of the same bytes.
    assert_eq!(
        file.sha256,
        "e95c49ee951562749d152bc0f8d3c2fcfadf80c8495993462b905888a69e3046"
    );

    let manifest = Manifest {
        format: 1,
        files: vec![file],
    };
    let json = manifest.to_json();
    assert!(json.ends_with("}\n"));
    assert_eq!(Manifest::from_json(json.as_bytes()).unwrap(), manifest);

    let with = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = manifest.clone();
        change(&mut manifest);
        message(Manifest::from_json(manifest.to_json().as_bytes()))
    };
    for name in ["", "../x", "a/b", "a\\b", ".hidden", "中", "c:x", "a\0"] {
        let message = with(&|manifest| manifest.files[0].name = name.into());
        assert!(
            message.starts_with("configuration: manifest: the file name"),
            "{message}"
        );
    }
    for sum in ["", "0", &"g".repeat(64), &"A".repeat(64)] {
        assert!(with(&|manifest| manifest.files[0].sha256 = sum.into()).contains("64 lower-case"));
    }
    assert!(with(&|manifest| manifest.format = 2).contains("format is 2, expected 1"));
    assert!(with(&|manifest| manifest.files.push(manifest.files[0].clone())).contains("listed twice"));
    let many = (0..1025).map(|i| ManifestFile {
        name: format!("file{i}"),
        ..manifest.files[0].clone()
    });
    let many: Vec<_> = many.collect();
    assert!(with(&|manifest| manifest.files = many.clone()).contains("1025 files, expected at most 1024"));
    let shard = |name: &str, size| Shard {
        name: name.into(),
        size,
        sha256: "0".repeat(64),
    };
    let size = manifest.files[0].size;
    let mut whole = manifest.clone();
    whole.files[0].shards = vec![shard("first", 1), shard("second", size - 1)];
    assert_eq!(Manifest::from_json(whole.to_json().as_bytes()).unwrap(), whole);
    let stored: Vec<_> = whole.files[0]
        .stored()
        .into_iter()
        .map(|shard| shard.name)
        .collect();
    assert_eq!(stored, ["first", "second"]);
    let short = with(&|manifest| manifest.files[0].shards = vec![shard("first", size - 1)]);
    assert!(short.contains("expected"), "{short}");
    let twice = vec![shard("first", 1), shard("first", size - 1)];
    assert!(with(&|manifest| manifest.files[0].shards = twice.clone()).contains("listed twice"));
    let leaves = vec![shard("../first", size)];
    assert!(with(&|manifest| manifest.files[0].shards = leaves.clone()).contains("the file name"));
    assert!(message(Manifest::from_json(b"{}")).contains("missing field `format`"));
}

/// Parses and reads everything, as a program would that trusts nothing.
fn read_all(bytes: &[u8]) {
    if let Ok(checkpoint) = Checkpoint::parse(bytes) {
        for name in checkpoint.names() {
            if let Ok(data) = checkpoint.read(&name) {
                let shape = checkpoint.shape(&name).unwrap();
                assert_eq!(data.len(), shape.iter().product::<usize>());
                // No element type is smaller than a byte.
                assert!(data.len() <= bytes.len());
            }
        }
    }
    if let Ok(file) = SafetensorsFile::parse(bytes) {
        for name in file.names() {
            let _ = file.read(&name);
        }
    }
}

/// Operations that build something, so that random programs get further than their first byte.
fn operation() -> impl Strategy<Value = Vec<u8>> {
    let plain: Vec<Vec<u8>> = b"N\x88\x89)]}(.0122aestuld\x85\x86\x87\x93\x94Rbbbu"
        .iter()
        .map(|&byte| vec![byte])
        .chain([
            b"cnumpy\nndarray\n".to_vec(),
            b"cnumpy\ndtype\n".to_vec(),
            b"cnumpy.core.multiarray\n_reconstruct\n".to_vec(),
            b"cnumpy.core.multiarray\nscalar\n".to_vec(),
            b"cnumpy.core.numeric\n_frombuffer\n".to_vec(),
            b"c_codecs\nencode\n".to_vec(),
            b"cbuiltins\ntuple\n".to_vec(),
            b"\x8c\x02f4".to_vec(),
            b"\x8c\x01<".to_vec(),
            b"\x8c\x01w".to_vec(),
            b"\x8c\x06latin1".to_vec(),
            b"C\x04abcd".to_vec(),
            Pickler::default().array(&[1], "f4", &[0; 4]).0,
            Pickler::default().array(&[2, 2], "u1", &[0; 4]).0,
        ])
        .collect();
    prop_oneof![
        8 => proptest::sample::select(plain),
        2 => (0u8..8).prop_map(|key| vec![b'q', key]),
        2 => (0u8..8).prop_map(|key| vec![b'h', key]),
        1 => any::<u8>().prop_map(|n| vec![b'K', n]),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn random_bytes_do_no_harm(protocol in 2u8..=5, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        read_all(&bytes);
        read_all(&[&[0x80, protocol], &bytes[..]].concat());
    }

    #[test]
    fn random_programs_do_no_harm(operations in proptest::collection::vec(operation(), 0..80)) {
        let program = operations.concat();
        read_all(&[b"\x80\x04", &program[..], b"."].concat());
        read_all(&[b"\x80\x04}\x8c\x01w", &program[..], b"s."].concat());
    }

    #[test]
    fn changed_files_do_no_harm(
        file in proptest::sample::select(&[
            "dtypes.pdparams",
            "fortran_bigendian.pdparams",
            "nested.pdparams",
            "state_protocol2.pdparams",
            "state_protocol3.pdparams",
            "unpack_big_protocol2.pdparams",
            "unpack_big_protocol3.pdparams",
            "values.safetensors",
        ][..]),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = read_golden(format!("pickle/{file}"));
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        read_all(&bytes);
    }

    #[test]
    fn random_configurations_do_no_harm(
        json in "\\{(\"(hidden_size|depth|num_heads|files)\":[0-9e.-]{1,20},?){0,4}\\}?",
    ) {
        let _ = text_config_from_original(json.as_bytes());
        let _ = vision_config_from_original(json.as_bytes());
        let _ = Manifest::from_json(json.as_bytes());
        let _ = ModelConfig::from_json(json.as_bytes());
    }

    #[test]
    fn changed_model_configurations_are_refused_or_hold_together(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let config = ModelConfig {
            format: ModelConfig::FORMAT,
            name: "one".into(),
            published: None,
            note: None,
            image: VitConfig::base().into(),
            text: ErnieConfig::base(),
            preprocessing: Preprocessing::Original,
            max_text_tokens: 48,
            logit_scale: Some(14.5),
            fingerprint: "0".repeat(64),
            sources: Vec::new(),
        };
        let mut json = config.to_json().into_bytes();
        prop_assert_eq!(ModelConfig::from_json(&json).unwrap(), config);
        let at = at.index(json.len());
        json[at] = byte;
        if let Ok(read) = ModelConfig::from_json(&json) {
            let ImageConfig::Vit(vit) = &read.image else {
                return Ok(());
            };
            prop_assert!(vit.tokens() > 1 && vit.width % vit.heads == 0);
            prop_assert!(read.max_text_tokens <= read.text.max_positions);
        }
    }
}
