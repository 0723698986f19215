//! Weights in eight and four bits, against the recording.

use ernie_vil::weights::{
    Bits, Dtype, GROUP, SafetensorsFile, TensorData, TensorSource, TensorStream, quantise_int4,
    quantise_int8, write_safetensors,
};
use ernie_vil::{Error, Result};
use safetensors::SafeTensors;

use crate::support::read_golden;

const RECORDING: &str = "structures/quantisation/quantisation.safetensors";

const MATRICES: [&str; 9] = [
    "normal",
    "outliers",
    "special_rows",
    "ties_int8",
    "ties_int4",
    "ragged",
    "odd_width",
    "tiny_values",
    "single_column",
];

struct Recording<'a>(SafeTensors<'a>);

impl Recording<'_> {
    fn shape(&self, name: &str) -> Vec<usize> {
        self.0.tensor(name).unwrap().shape().to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let tensor = self.0.tensor(name).unwrap();
        let values = tensor.data().as_chunks().0.iter();
        values.map(|&b| f32::from_le_bytes(b)).collect()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.0.tensor(name).unwrap().data().to_vec()
    }
}

#[test]
fn codes_and_scales_are_the_recorded_ones() {
    let bytes = read_golden(RECORDING);
    let recording = Recording(SafeTensors::deserialize(&bytes).unwrap());
    for matrix in MATRICES {
        let get = |name: &str| recording.floats(&format!("{matrix}.{name}"));
        let width = recording.shape(&format!("{matrix}.weight"))[1];
        let groups = width.div_ceil(GROUP);
        let codes8 = recording.bytes(&format!("{matrix}.int8.q"));
        let packed4 = recording.bytes(&format!("{matrix}.int4.packed"));
        for (i, row) in get("weight").chunks_exact(width).enumerate() {
            let mut codes = vec![0; width];
            let scale = quantise_int8(row, &mut codes);
            assert_eq!(scale, get("int8.scale")[i], "{matrix}, row {i}");
            let expected: Vec<i8> = codes8[i * width..][..width].iter().map(|&b| b as i8).collect();
            assert_eq!(codes, expected, "{matrix}, row {i}");

            let (mut packed, mut scales) = (vec![0; width.div_ceil(2)], vec![0.0; groups]);
            quantise_int4(row, &mut packed, &mut scales);
            assert_eq!(
                scales,
                get("int4.scale")[i * groups..][..groups],
                "{matrix}, row {i}"
            );
            assert_eq!(
                packed,
                packed4[i * packed.len()..][..packed.len()],
                "{matrix}, row {i}"
            );
        }
    }
}

/// The matrix as a linear layer's weight, [inputs, outputs], and as a table of words, [words, width].
struct Weights(Vec<(String, Vec<usize>, Vec<f32>)>);

impl Weights {
    fn of(matrix: &[f32], width: usize) -> Self {
        let rows = matrix.len() / width;
        let turned = (0..matrix.len()).map(|i| matrix[i % rows * width + i / rows]);
        Self(vec![
            ("a.bias".into(), vec![rows], matrix[..rows].to_vec()),
            ("a.weight".into(), vec![width, rows], turned.collect()),
            ("word_emb.weight".into(), vec![rows, width], matrix.to_vec()),
        ])
    }

    fn expected(&self) -> Vec<(String, Vec<usize>)> {
        let names = self.0.iter();
        names
            .map(|(name, shape, _)| (name.clone(), shape.clone()))
            .collect()
    }

    fn file(&self, bits: Bits) -> Vec<u8> {
        let mut file = Vec::new();
        write_safetensors(&mut file, self, &self.expected(), Dtype::Quantised(bits)).unwrap();
        file
    }
}

impl TensorSource for Weights {
    fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, ..)| name.clone()).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let found = self.0.iter().find(|(found, ..)| found == name);
        found.map(|(_, shape, _)| shape.clone())
    }

    fn read(&self, name: &str) -> Result<TensorData<'_>> {
        match self.0.iter().find(|(found, ..)| found == name) {
            Some((_, _, values)) => Ok(TensorData::F32(values.into())),
            None => Err(Error::Weights("missing".into())),
        }
    }
}

#[test]
fn a_file_gives_the_recorded_values_back() {
    let bytes = read_golden(RECORDING);
    let recording = Recording(SafeTensors::deserialize(&bytes).unwrap());
    for matrix in MATRICES {
        let get = |name: &str| recording.floats(&format!("{matrix}.{name}"));
        let width = recording.shape(&format!("{matrix}.weight"))[1];
        let weights = Weights::of(&get("weight"), width);
        for (bits, dequantised) in [
            (Bits::Int8, get("int8.dequantised")),
            (Bits::Int4, get("int4.dequantised")),
        ] {
            let file = weights.file(bits);
            let parsed = SafetensorsFile::parse(&file).unwrap();
            assert_eq!(parsed.names(), weights.names());
            let mut stream = TensorStream::new(weights.expected());
            file.chunks(7).for_each(|piece| stream.feed(piece).unwrap());
            stream.finish().unwrap();
            for source in [&parsed as &dyn TensorSource, &stream] {
                assert_eq!(source.read("a.bias").unwrap(), weights.read("a.bias").unwrap());
                let values = |name: &str| {
                    assert_eq!(source.shape(name), weights.shape(name));
                    let data = source.read(name).unwrap();
                    // A row too short for a group is left as it is.
                    assert_eq!(matches!(data, TensorData::Quantised(_)), width >= GROUP);
                    data.into_f32().into_owned()
                };
                let (linear, table) = (values("a.weight"), values("word_emb.weight"));
                let rows = table.len() / width;
                for (i, &value) in table.iter().enumerate() {
                    assert_eq!(value, linear[i % width * rows + i / width]);
                    let expected = match width >= GROUP {
                        true => dequantised[i],
                        false => get("weight")[i],
                    };
                    // Scales of groups are kept in half precision, whose smallest step is 2^-24.
                    let most = match bits {
                        Bits::Int8 => 0.0,
                        Bits::Int4 => expected.abs() / 2048.0 + 7.0 / (1 << 25) as f32,
                    };
                    assert!(
                        (value - expected).abs() <= most,
                        "{matrix}: {value}, expected {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn damaged_files_are_refused() {
    let values: Vec<f32> = (0..64 * 3).map(|i| i as f32 / 64.0).collect();
    let file = Weights::of(&values, 64).file(Bits::Int8);
    let text = String::from_utf8_lossy(&file).into_owned();
    let length = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let message = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        let header = String::from_utf8(file[8..8 + length].to_vec()).unwrap();
        let header = header.replacen(from, to, 1);
        let mut damaged = (header.len() as u64).to_le_bytes().to_vec();
        damaged.extend(header.bytes());
        damaged.extend(&file[8 + length..]);
        let mut stream = TensorStream::new(Weights::of(&values, 64).expected());
        let streamed = stream.feed(&damaged).unwrap_err().to_string();
        let parsed = SafetensorsFile::parse(&damaged).unwrap_err().to_string();
        assert_eq!(parsed, streamed);
        parsed
    };
    let list = r#"\"shape\":[64,3],\"transposed\":true"#;
    for (change, expected) in [
        (r#"\"shape\":[65,3],\"transposed\":true"#, "expected I8 [3, 65]"),
        (r#"\"shape\":[64,3],\"transposed\":false"#, "expected I8 [64, 3]"),
        (r#"\"shape\":[],\"transposed\":true"#, "is too large"),
        (
            r#"\"shape\":[4294967296,4294967296],\"transposed\":true"#,
            "is too large",
        ),
        (r#"\"shape\":[64,3]"#, "missing field `transposed`"),
    ] {
        let message = message(list, change);
        assert!(message.contains(expected), "{message}");
    }
    assert!(message(r#"\"dtype\":\"int8\""#, r#"\"dtype\":\"int2\""#).contains("unknown variant `int2`"));
    assert!(message(r#"\"a.weight\":"#, r#"\"b.weight\":"#).contains("\"b.weight\" is missing"));

    let mut infinite = file.clone();
    let scale = SafeTensors::deserialize(&file).unwrap();
    let scale = scale.tensor("a.weight.scale").unwrap().data().as_ptr() as usize - file.as_ptr() as usize;
    infinite[scale..scale + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let parsed = SafetensorsFile::parse(&infinite).unwrap();
    let error = parsed.read("a.weight").unwrap_err().to_string();
    assert!(error.contains("scale 0 is NaN"), "{error}");
}
