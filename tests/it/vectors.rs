//! Embeddings and their files, against what the original wrote and what its evaluation reads.

use std::io::Cursor;

use ernie_vil::vectors::{
    Embeddings, NpyWriter, OutWriter, SafetensorsWriter, normalise, read_npy, read_out, read_safetensors,
    write_f32,
};
use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::support::{message_with_code, read_golden};

fn matrix(file: &SafeTensors, name: &str) -> Embeddings {
    let tensor = file.tensor(name).unwrap();
    let values = tensor
        .data()
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&word| f32::from_le_bytes(word));
    Embeddings::new(tensor.shape()[0], tensor.shape()[1], values.collect()).unwrap()
}

fn text_of(value: f32) -> String {
    let mut text = Vec::new();
    write_f32(&mut text, value);
    String::from_utf8(text).unwrap()
}

fn message<T: std::fmt::Debug>(result: ernie_vil::Result<T>) -> String {
    message_with_code("vectors", result)
}

#[test]
fn numbers_are_printed_as_numpy_prints_them() {
    let cases: Vec<serde_json::Value> = serde_json::from_slice(&read_golden("float32_text.json")).unwrap();
    assert!(cases.len() > 100);
    for case in cases {
        let value = f32::from_bits(case["bits"].as_u64().unwrap() as u32);
        assert_eq!(text_of(value), case["text"].as_str().unwrap());
    }
}

#[test]
fn every_range_of_numbers_has_its_notation() {
    // At both bounds the exact value counts, and long whole numbers are filled up with zeros.
    for (value, text) in [
        (1.0e-4, "1e-04"),
        (f32::from_bits(1.0e-4f32.to_bits() + 1), "0.000100000005"),
        (1e12, "1000000000000.0"),
        (1.2345678e15, "1234567800000000.0"),
        (9.999999e15, "9999999000000000.0"),
        (1e16, "1e+16"),
        (-2.5e-7, "-2.5e-07"),
        (f32::from_bits(1), "1e-45"),
        (f32::MAX, "3.4028235e+38"),
        (f32::NEG_INFINITY, "-inf"),
        (-f32::NAN, "nan"),
    ] {
        assert_eq!(text_of(value), text);
    }
}

#[test]
fn the_out_file_of_the_original_is_written_byte_for_byte() {
    let tensors = read_golden("embeddings_tiny.safetensors");
    let tensors = SafeTensors::deserialize(&tensors).unwrap();
    let (text, image) = (
        matrix(&tensors, "text_normalised"),
        matrix(&tensors, "image_normalised"),
    );
    let mut writer = OutWriter::new(Vec::new());
    for (text, image) in text.iter().zip(&image) {
        writer.write(text, image).unwrap();
    }
    let file = writer.finish().unwrap();
    assert_eq!(file, read_golden("cross_modal_embeddings_tiny.out"));

    let pairs = read_out(&file[..]).unwrap();
    assert_eq!(pairs.text, text);
    assert_eq!(pairs.image, image);
}

#[test]
fn out_files_of_the_original_come_back_the_same() {
    for name in [
        "cross_modal_embeddings_tiny.out",
        "cross_modal_embeddings_tiny_maxlen16.out",
        "cross_modal_embeddings_tiny_maxlen56.out",
        "eval/nan_text_row20.out",
    ] {
        let file = read_golden(name);
        let pairs = read_out(&file[..]).unwrap();
        let mut writer = OutWriter::new(Vec::new());
        for (text, image) in pairs.text.iter().zip(&pairs.image) {
            writer.write(text, image).unwrap();
        }
        assert!(writer.finish().unwrap() == file, "{name}");
    }
}

#[test]
fn towers_of_different_width_share_a_file() {
    let tensors = read_golden("embeddings_mid.safetensors");
    let tensors = SafeTensors::deserialize(&tensors).unwrap();
    let (text, image) = (matrix(&tensors, "text_raw"), matrix(&tensors, "image_raw"));
    assert_ne!(text.dimensions(), image.dimensions());
    let mut writer = OutWriter::new(Vec::new());
    for (text, image) in text.iter().zip(&image) {
        writer.write(text, image).unwrap();
    }
    let pairs = read_out(&writer.finish().unwrap()[..]).unwrap();
    assert_eq!((pairs.text, pairs.image), (text, image));
}

#[test]
fn the_reader_takes_what_pythons_float_takes() {
    for (text, value) in [
        ("1_0", 10.0),
        ("1_0.2_5", 10.25),
        ("1e1_0", 1e10),
        (".5", 0.5),
        ("5.", 5.0),
        ("+0007", 7.0),
        ("1E2", 100.0),
        ("-0.0", -0.0),
        ("\u{b}1\u{c}", 1.0),
        ("\u{3000}1\u{a0}", 1.0),
        ("Infinity", f32::INFINITY),
        ("-iNf", f32::NEG_INFINITY),
        ("1e400", f32::INFINITY),
        ("1e39", f32::INFINITY),
        ("1e-400", 0.0),
        ("123456789012345678901234567890", 1.2345679e29),
        ("0.00000000000000000000000000000001", 1e-32),
        ("9007199254740993", 9007199254740992.0),
        // Rounded to float64 first, this is halfway between two float32, and the even one is taken.
        ("1.00000017881393432617187499", 1.0000002),
        ("1.00000005960464477539062501", 1.0),
    ] {
        let pairs = read_out(format!("{text}\t2\t1\n").as_bytes()).unwrap();
        assert_eq!(pairs.text.row(0)[0].to_bits(), f32::to_bits(value), "{text}");
    }
    let pairs = read_out(&b"NaN -nan\t+nan 0\t1"[..]).unwrap();
    assert!(pairs.text.row(0).iter().all(|value| value.is_nan()));
    for text in [
        "",
        "_1",
        "1_",
        "1__0",
        "1_.5",
        "1._5",
        "0x10",
        "1e",
        ".",
        "e5",
        "1f",
        "--1",
        "in_f",
        "1,5",
        "\u{feff}1",
        "1\0",
        "1\u{1c}",
    ] {
        let error = message(read_out(format!("0.5\t1 {text}\t1\n").as_bytes()));
        let shown = text.escape_debug();
        assert_eq!(
            error,
            format!("vectors: line 1, column 7: '{shown}', expected a number")
        );
    }
}

#[test]
fn the_third_column_is_what_pythons_int_takes() {
    for index in [
        "1",
        "-3",
        "+4",
        " 1",
        "2 ",
        "1_0",
        "007",
        "99999999999999999999999",
    ] {
        assert_eq!(
            read_out(format!("1\t2\t{index}\n").as_bytes())
                .unwrap()
                .text
                .rows(),
            1
        );
    }
    for index in ["", "1.0", "1e2", "x", "_1", "1_", "+", "1 2"] {
        let error = message(read_out(format!("1\t2\t{index}\n").as_bytes()));
        assert_eq!(
            error,
            format!("vectors: line 1, column 5: '{index}', expected an integer")
        );
    }
}

#[test]
fn lines_end_in_lf_cr_or_crlf() {
    let expected = read_out(&b"1 2\t3\t1\n4 5\t6\t1\n"[..]).unwrap();
    assert_eq!(expected.text.data(), [1.0, 2.0, 4.0, 5.0]);
    assert_eq!(expected.image.data(), [3.0, 6.0]);
    for file in [
        "1 2\t3\t1\r\n4 5\t6\t1\r\n",
        "1 2\t3\t1\r4 5\t6\t1\r",
        "1 2\t3\t1\r4 5\t6\t1",
        "1 2\t3\t1\n4 5\t6\t1",
    ] {
        assert_eq!(read_out(file.as_bytes()).unwrap(), expected);
    }
    assert_eq!(read_out(&b""[..]).unwrap().text.rows(), 0);
}

#[test]
fn a_wrong_line_is_named() {
    for (line, expected) in [
        (
            "",
            "line 3: 1 columns, expected 3 separated by tabs: text vector, image vector, an integer",
        ),
        (
            "x\t1",
            "line 3: 2 columns, expected 3 separated by tabs: text vector, image vector, an integer",
        ),
        (
            "1 2\t3\t1\t1",
            "line 3: 4 columns, expected 3 separated by tabs: text vector, image vector, an integer",
        ),
        (
            "1\t3\t1",
            "line 3, column 1: 1 numbers in the text vector, expected 2 as in line 1",
        ),
        (
            "1 2\t3 4\t1",
            "line 3, column 5: 2 numbers in the image vector, expected 1 as in line 1",
        ),
        ("1  2\t3\t1", "line 3, column 3: '', expected a number"),
    ] {
        let file = format!("1 2\t3\t1\n1 2\t3\t1\n{line}\n1 2\t3\t1\n");
        assert_eq!(message(read_out(file.as_bytes())), format!("vectors: {expected}"));
    }
    // The message stays short, whatever stands in the file.
    let error = message(read_out(&[&b"1\t"[..], &[0xff; 100_000]].concat()[..]));
    assert!(error.len() < 300);
    let error = message(read_out(&[&b"1\t"[..], &[0xff; 100_000], b"\t1"].concat()[..]));
    assert!(error.len() < 300 && error.contains("..."), "{error}");
}

/// A reader that gives few bytes at a time, and breaks off where it is told to.
struct Slow<'a>(&'a [u8], Option<usize>);

impl std::io::Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.1.is_some_and(|left| self.0.len() <= left) {
            return Err(std::io::Error::other("the disk is gone"));
        }
        let length = buffer.len().min(self.0.len()).min(7777);
        buffer[..length].copy_from_slice(&self.0[..length]);
        self.0 = &self.0[length..];
        Ok(length)
    }
}

#[test]
fn files_of_many_blocks_keep_their_rows_and_line_numbers() {
    let rows = 30_000;
    let value = |row: usize, column: usize| ((row * 31 + column * 17) % 1000) as f32 / 1000.0 - 0.5;
    let mut writer = OutWriter::new(Vec::new());
    for row in 0..rows {
        let text: Vec<f32> = (0..9).map(|column| value(row, column)).collect();
        let image: Vec<f32> = (9..20).map(|column| value(row, column)).collect();
        writer.write(&text, &image).unwrap();
    }
    let mut file = writer.finish().unwrap();
    assert!(file.len() > 3 << 20);
    let pairs = read_out(Slow(&file, None)).unwrap();
    assert_eq!((pairs.text.rows(), pairs.image.rows()), (rows, rows));
    for row in 0..rows {
        assert!(
            pairs
                .text
                .row(row)
                .iter()
                .enumerate()
                .all(|(column, &found)| found == value(row, column))
        );
        assert!(
            pairs
                .image
                .row(row)
                .iter()
                .enumerate()
                .all(|(column, &found)| found == value(row, column + 9))
        );
    }

    let error = read_out(Slow(&file, Some(1000))).unwrap_err();
    assert_eq!(
        (error.code(), error.to_string()),
        ("io", "the disk is gone".to_string())
    );
    // Of two wrong lines the first one is reported.
    let starts: Vec<usize> = (0..file.len())
        .filter(|&at| file[at] == b'\n')
        .map(|at| at + 1)
        .collect();
    for line in [29_990, 20_000] {
        file[starts[line - 2]] = b'x';
        let error = message(read_out(&file[..]));
        assert!(
            error.starts_with(&format!("vectors: line {line}, column 1: 'x")),
            "{error}"
        );
    }
    // One line longer than a block.
    let long = format!("{}1\t2\t1\n3", "1 ".repeat(3 << 20));
    assert!(message(read_out(long.as_bytes())).contains("line 2: 1 columns"));
}

#[test]
fn the_writer_keeps_every_line_readable() {
    let mut writer = OutWriter::new(Vec::new());
    assert!(message(writer.write(&[], &[1.0])).contains("0 and 1 values"));
    let mut writer = OutWriter::new(Vec::new());
    writer.write(&[1.0, 2.0], &[3.0]).unwrap();
    assert!(message(writer.write(&[1.0], &[3.0])).contains("expected 2 and 1"));
    writer.write(&[4.0, 5.0], &[6.0]).unwrap();
    assert_eq!(writer.finish().unwrap(), b"1.0 2.0\t3.0\t1\n4.0 5.0\t6.0\t1\n");
}

#[test]
fn vectors_are_scaled_as_in_the_original() {
    for model in ["tiny", "mid", "variant"] {
        let tensors = read_golden(format!("embeddings_{model}.safetensors"));
        let tensors = SafeTensors::deserialize(&tensors).unwrap();
        for side in ["text", "image"] {
            let mut embeddings = matrix(&tensors, &format!("{side}_raw"));
            embeddings.normalise().unwrap();
            let expected = matrix(&tensors, &format!("{side}_normalised"));
            for (found, expected) in embeddings.data().iter().zip(expected.data()) {
                assert!(
                    (found - expected).abs() <= 1e-7,
                    "{model} {side}: {found}, expected {expected}"
                );
            }
        }
    }
}

#[test]
fn a_vector_without_direction_is_not_scaled() {
    let mut rows = Embeddings::new(3, 2, vec![1.0, 1.0, 0.0, -0.0, 1.0, 2.0]).unwrap();
    assert!(
        rows.normalise()
            .unwrap_err()
            .to_string()
            .starts_with("row 2: vectors: all values are zero")
    );
    for value in [f32::NAN, f32::INFINITY] {
        let mut vector = [1.0, value];
        assert!(message(normalise(&mut vector)).contains("expected finite values"));
        assert_eq!(vector[0], 1.0);
    }
    let mut tiny = [f32::from_bits(1); 4];
    normalise(&mut tiny).unwrap();
    assert_eq!(tiny, [0.5; 4]);
}

#[test]
fn embeddings_have_as_many_values_as_they_say() {
    assert!(Embeddings::new(2, 3, vec![0.0; 6]).is_ok());
    assert!(Embeddings::new(0, 3, vec![]).is_ok());
    for (rows, dimensions, values) in [(2, 3, 5), (2, 0, 0), (usize::MAX, 2, 4), (1, 4, 8)] {
        message(Embeddings::new(rows, dimensions, vec![0.0; values]));
    }
}

#[test]
fn npy_has_the_layout_that_numpy_writes() {
    let mut writer = NpyWriter::new(Vec::new(), 2, 3).unwrap();
    writer.write(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let file = writer.finish().unwrap();
    let header = format!(
        "{:117}\n",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
    );
    let mut expected = [b"\x93NUMPY\x01\x00\x76\x00", header.as_bytes()].concat();
    expected.extend((1..=6u8).flat_map(|value| f32::from(value).to_le_bytes()));
    assert_eq!(file, expected);
    assert_eq!(
        read_npy(&file).unwrap(),
        Embeddings::new(2, 3, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap()
    );
}

#[test]
fn npy_writers_keep_count() {
    let mut writer = NpyWriter::new(Vec::new(), 2, 3).unwrap();
    message(writer.write(&[1.0; 4]));
    message(writer.write(&[1.0; 9]));
    writer.write(&[1.0; 3]).unwrap();
    assert!(message(writer.finish()).contains("1 rows are missing"));
    message(NpyWriter::new(Vec::new(), 2, 0));
    message(NpyWriter::new(Vec::new(), usize::MAX, 2));
}

#[test]
fn npy_files_of_other_writers() {
    let file = |version: &[u8], header: &str, values: usize| {
        let mut file = b"\x93NUMPY".to_vec();
        file.extend_from_slice(version);
        let length = (header.len() as u32).to_le_bytes();
        file.extend_from_slice(if version[0] == 1 { &length[..2] } else { &length });
        file.extend_from_slice(header.as_bytes());
        file.extend(std::iter::repeat_n(0, values));
        file
    };
    let header = "{\"descr\": \"<f4\", \"shape\": (2, 3), \"fortran_order\": False}".replace('"', "'");
    for version in [[1, 0], [2, 0], [3, 0]] {
        assert_eq!(read_npy(&file(&version, &header, 24)).unwrap().rows(), 2);
    }
    for (header, values, expected) in [
        (header.replace("<f4", "<f8"), 48, "descr is <f8"),
        (header.replace("<f4", ">f4"), 24, "descr is >f4"),
        (header.replace("False", "True"), 24, "fortran_order"),
        (header.replace("(2, 3)", "(6,)"), 24, "shape is (6,)"),
        (header.replace("(2, 3)", "()"), 4, "shape is ()"),
        (header.replace("(2, 3)", "(2, -3)"), 24, "shape is (2, -3)"),
        (
            header.replace("(2, 3)", "(4611686018427387904, 4)"),
            0,
            "0 bytes of values",
        ),
        (header.replace("'shape'", "'size'"), 24, "no shape"),
        (header.clone(), 23, "23 bytes of values"),
        (header.clone(), 25, "25 bytes of values"),
    ] {
        let error = message(read_npy(&file(&[1, 0], &header, values)));
        assert!(error.contains(expected), "{error}");
    }
    let whole = file(&[1, 0], &header, 24);
    for length in 0..whole.len() {
        message(read_npy(&whole[..length]));
    }
    assert!(message(read_npy(&file(&[4, 0], &header, 24))).contains("format 4"));
}

#[test]
fn safetensors_hold_both_sides_and_their_ids() {
    let ids = ["a.jpg", "", "狗\"\n\u{0}"];
    // A file may start anywhere in the writer.
    let mut target = Cursor::new(b"before".to_vec());
    target.set_position(6);
    let mut writer = SafetensorsWriter::new(target, 3, Some(2), Some(1), Some("f\"1")).unwrap();
    writer
        .write(&[1.0, 2.0, 3.0, 4.0], &[7.0, 8.0], &ids[..2])
        .unwrap();
    writer.write(&[], &[], &[] as &[&str]).unwrap();
    writer.write(&[5.0, 6.0], &[9.0], &ids[2..]).unwrap();
    let target = writer.finish().unwrap();
    assert_eq!(target.position(), target.get_ref().len() as u64);
    let file = &target.get_ref()[6..];

    let tensors = SafeTensors::deserialize(file).unwrap();
    assert_eq!(matrix(&tensors, "text").data(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(matrix(&tensors, "image").data(), [7.0, 8.0, 9.0]);
    let list: Vec<String> = serde_json::from_slice(tensors.tensor("ids").unwrap().data()).unwrap();
    assert_eq!(list, ids);

    let read = read_safetensors(file).unwrap();
    assert_eq!(read.ids.as_ref().unwrap(), &ids);
    assert_eq!(read.fingerprint.as_deref(), Some("f\"1"));
    let pairs = read.into_pairs().unwrap();
    assert_eq!(pairs.text, matrix(&tensors, "text"));
    assert_eq!(pairs.image, matrix(&tensors, "image"));
}

#[test]
fn safetensors_of_one_side_or_no_rows() {
    let mut writer = SafetensorsWriter::new(Cursor::new(Vec::new()), 1, None, Some(2), None).unwrap();
    message(writer.write(&[1.0], &[1.0, 2.0], &["a"]));
    message(writer.write(&[], &[1.0], &["a"]));
    message(writer.write(&[], &[1.0; 4], &["a", "b"]));
    writer.write(&[], &[1.0, 2.0], &["a"]).unwrap();
    let file = writer.finish().unwrap().into_inner();
    SafeTensors::deserialize(&file).unwrap();
    let read = read_safetensors(&file).unwrap();
    assert_eq!((read.text.clone(), read.fingerprint.clone()), (None, None));
    assert_eq!(read.image.as_ref().unwrap().data(), [1.0, 2.0]);
    assert!(message(read.into_pairs()).contains("'text'"));

    let writer = SafetensorsWriter::new(Cursor::new(Vec::new()), 0, Some(4), Some(4), None).unwrap();
    let read = read_safetensors(&writer.finish().unwrap().into_inner()).unwrap();
    assert_eq!((read.text.unwrap().rows(), read.ids.unwrap().len()), (0, 0));

    for (rows, text, image) in [
        (1, None, None),
        (1, Some(0), Some(1)),
        (usize::MAX / 4, Some(2), None),
    ] {
        message(SafetensorsWriter::new(
            Cursor::new(Vec::new()),
            rows,
            text,
            image,
            None,
        ));
    }
}

#[test]
fn a_safetensors_file_that_broke_off_is_refused() {
    let mut writer = SafetensorsWriter::new(Cursor::new(Vec::new()), 2, Some(2), None, None).unwrap();
    writer.write(&[1.0, 2.0], &[], &["a"]).unwrap();
    assert!(message(writer.finish()).contains("1 rows were written, expected 2"));

    let mut target = Cursor::new(Vec::new());
    let mut writer = SafetensorsWriter::new(&mut target, 2, Some(2), None, None).unwrap();
    writer.write(&[1.0; 4], &[], &["a", "b"]).unwrap();
    drop(writer);
    assert!(message(read_safetensors(target.get_ref())).contains("a header of 0 bytes"));

    let mut writer = SafetensorsWriter::new(Cursor::new(Vec::new()), 2, Some(2), None, None).unwrap();
    writer.write(&[1.0; 4], &[], &["a", "b"]).unwrap();
    let file = writer.finish().unwrap().into_inner();
    for length in 0..file.len() {
        message(read_safetensors(&file[..length]));
    }
}

#[test]
fn safetensors_of_other_writers() {
    let file = |header: &str, bytes: usize| {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend(std::iter::repeat_n(0, bytes));
        file
    };
    let text = r#""text":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}"#;
    let read = read_safetensors(&file(&format!("{{{text}}}"), 16)).unwrap();
    assert_eq!((read.text.unwrap().rows(), read.image, read.ids), (2, None, None));
    for (header, bytes, expected) in [
        ("{}".to_string(), 0, "no tensor 'text' and none 'image'"),
        (format!("{{{text}"), 16, "the header: EOF"),
        (format!("{{{text}}}"), 15, "end at 16, expected 15"),
        (format!("{{{text}}}"), 17, "end at 16, expected 17"),
        (
            format!("{{{}}}", text.replace("F32", "F16")),
            16,
            "has the type F16, expected F32",
        ),
        (
            format!("{{{}}}", text.replace("[2,2]", "[4]")),
            16,
            "expected [rows, dimensions]",
        ),
        (
            format!("{{{}}}", text.replace("[2,2]", "[2,3]")),
            16,
            "do not fit its shape",
        ),
        (
            format!("{{{}}}", text.replace("[2,2]", "[4294967296,4294967296]")),
            16,
            "do not fit its shape",
        ),
        (
            format!("{{{}}}", text.replace("[0,16]", "[17,16]")),
            16,
            "lies at 17 to 16",
        ),
        (
            format!(
                "{{{}}}",
                text.replace("[2,2],\"data_offsets\":[0,16]", "[9,0],\"data_offsets\":[0,0]")
            ),
            0,
            "9 rows of 0",
        ),
        (
            format!(
                r#"{{{text},"image":{{"dtype":"F32","shape":[1,2],"data_offsets":[16,24]}},"ids":{{"dtype":"U8","shape":[7],"data_offsets":[24,31]}}}}"#
            ),
            31,
            "expected a JSON list of strings",
        ),
        (
            format!(r#"{{{text},"ids":{{"dtype":"U8","shape":[2],"data_offsets":[16,18]}}}}"#),
            18,
            "expected a JSON list of strings",
        ),
    ] {
        let error = message(read_safetensors(&file(&header, bytes)));
        assert!(error.contains(expected), "{error}");
    }
    let mut too_long = u64::MAX.to_le_bytes().to_vec();
    too_long.extend_from_slice(b"{}");
    assert!(message(read_safetensors(&too_long)).contains("a header of 18446744073709551615 bytes"));
}

/// Changes some bytes of a file, and cuts it off.
fn mutate(mut file: Vec<u8>, changes: &[(prop::sample::Index, u8)], length: prop::sample::Index) -> Vec<u8> {
    for (at, byte) in changes {
        let at = at.index(file.len());
        file[at] = *byte;
    }
    if length.index(4) == 0 {
        file.truncate(length.index(file.len()));
    }
    file
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    let byte = prop_oneof![
        any::<u8>(),
        prop::sample::select(&b"0123456789 \t\r\n.,e+-_[]{}\"'"[..])
    ];
    prop::collection::vec((any::<prop::sample::Index>(), byte), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_number_reads_back_the_same(bits in prop::collection::vec(any::<u32>(), 1000)) {
        for value in bits.into_iter().map(f32::from_bits).filter(|value| !value.is_nan()) {
            let text = text_of(value);
            prop_assert_eq!(text.parse::<f32>().unwrap().to_bits(), value.to_bits());
            let pairs = read_out(format!("{text}\t{text}\t1\n").as_bytes()).unwrap();
            prop_assert_eq!(pairs.image.row(0)[0].to_bits(), value.to_bits());
            if value.is_finite() {
                // Not a digit more than needed.
                let digits = |text: &str| {
                    let mantissa = text.split('e').next().unwrap_or_default();
                    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
                    digits.trim_matches('0').len()
                };
                prop_assert_eq!(digits(&text), digits(&format!("{value:e}")), "{}", text);
            }
        }
    }

    #[test]
    fn numbers_are_rounded_as_by_the_standard_library(
        sign in prop::sample::select(&["", "-"][..]),
        whole in "[0-9]{0,20}",
        fraction in "[0-9]{1,20}",
        exponent in prop::option::of(-60i32..60),
    ) {
        let mut text = format!("{sign}{whole}.{fraction}");
        if let Some(exponent) = exponent {
            text.push_str(&format!("e{exponent}"));
        }
        let pairs = read_out(format!("1 {text}\t{text} 1\t1").as_bytes()).unwrap();
        let expected = text.parse::<f64>().unwrap() as f32;
        prop_assert_eq!(pairs.text.row(0)[1].to_bits(), expected.to_bits());
        prop_assert_eq!(pairs.image.row(0)[0].to_bits(), expected.to_bits());
    }

    #[test]
    fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_out(&bytes[..]);
        let _ = read_npy(&bytes);
        let _ = read_npy(&[b"\x93NUMPY\x01\x00", &bytes[..]].concat());
        let _ = read_safetensors(&bytes);
    }

    #[test]
    fn lines_of_anything_like_numbers_never_panic(text in "[0-9.e_+\\- \t\r\nnaif]{0,80}") {
        if let Ok(pairs) = read_out(text.as_bytes()) {
            prop_assert_eq!(pairs.text.rows(), pairs.image.rows());
        }
    }

    #[test]
    fn changed_files_never_panic(changes in changes(), length: prop::sample::Index) {
        let out = b"0.5 -1e-05\t1.0 2.0 3.0\t1\n0.25 1.5\t4.0 5.0 6.0\t1\n".to_vec();
        if let Ok(pairs) = read_out(&mutate(out, &changes, length)[..]) {
            prop_assert_eq!(pairs.text.rows(), pairs.image.rows());
        }
        let mut npy = NpyWriter::new(Vec::new(), 2, 2).unwrap();
        npy.write(&[1.0; 4]).unwrap();
        if let Ok(read) = read_npy(&mutate(npy.finish().unwrap(), &changes, length)) {
            prop_assert_eq!(read.data().len(), 4);
        }
        let mut tensors = SafetensorsWriter::new(Cursor::new(Vec::new()), 2, Some(2), Some(1), Some("f")).unwrap();
        tensors.write(&[1.0; 4], &[1.0; 2], &["a", "b"]).unwrap();
        let file = tensors.finish().unwrap().into_inner();
        if let Ok(read) = read_safetensors(&mutate(file, &changes, length)) {
            prop_assert!(read.text.is_none_or(|side| side.data().len() <= 8));
        }
    }

    #[test]
    fn scaled_vectors_have_length_one(mut vector in prop::collection::vec(-1e3f32..1e3, 1..40)) {
        prop_assume!(vector.iter().any(|&value| value != 0.0));
        normalise(&mut vector).unwrap();
        let length: f64 = vector.iter().map(|&value| f64::from(value).powi(2)).sum();
        prop_assert!((length - 1.0).abs() < 1e-6);
    }
}
