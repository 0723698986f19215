//! The reader of caption-image pairs against the original's recorded rows and a naive reader.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Error as IoError, ErrorKind, Read};

use ernie_vil::pairs::{Pair, PairReader, Position, count_rows};
use proptest::prelude::*;

use crate::support::read_golden;

fn golden(name: &str) -> Vec<u8> {
    read_golden(format!("reader/{name}"))
}

fn rows(input: &[u8]) -> Vec<Pair> {
    PairReader::new(input).collect::<Result<_, _>>().unwrap()
}

#[test]
fn the_original_s_rows() {
    let expected: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&golden("expected.json")).unwrap();
    assert_eq!(expected.len(), 26);
    for (name, expected) in expected {
        let input = golden(&format!("{name}.tsv"));
        let read: Result<Vec<Pair>, _> = PairReader::new(&input[..]).collect();
        if let serde_json::Value::Array(expected) = expected {
            let read = read.unwrap();
            assert_eq!(read.len(), expected.len(), "{name}");
            assert_eq!(count_rows(&input[..]).unwrap(), expected.len() as u64, "{name}");
            for (pair, expected) in read.iter().zip(&expected) {
                assert_eq!(pair.caption, expected["text"], "{name}");
                assert_eq!(
                    std::str::from_utf8(&pair.image).unwrap(),
                    expected["image"],
                    "{name}"
                );
            }
        } else {
            let message = read.unwrap_err().to_string();
            assert_eq!(
                message, "pairs: line 1, column 1: byte 13 of the line, 0xff, does not belong in UTF-8",
                "{name}"
            );
        }
    }
}

#[test]
fn a_file_in_the_original_s_form() {
    let input = read_golden("coco_cn_style.tsv");
    let rows = rows(&input);
    assert_eq!(rows.len(), 40);
    for (row, line) in rows.iter().zip(input.split_inclusive(|&byte| byte == b'\n')) {
        assert!(input[row.offset as usize..].starts_with(line));
        let line = std::str::from_utf8(line).unwrap().trim();
        let columns: Vec<&str> = line.split('\t').collect();
        assert_eq!(columns[0], row.caption);
        assert_eq!(columns[columns.len() - 1].as_bytes(), row.image);
        let id = (columns.len() > 2).then(|| columns[1]);
        assert_eq!(id, row.image_id.as_deref());
    }
    assert_eq!(rows.iter().filter(|row| row.image_id.is_none()).count(), 1);
}

#[test]
fn image_ids() {
    let id = |line: &str| rows(line.as_bytes())[0].image_id.clone();
    assert_eq!(id("c\t7\timage"), Some("7".into()));
    assert_eq!(id("c\t7\tmore\timage"), Some("7".into()));
    assert_eq!(id("c\t\timage"), Some("".into()));
    assert_eq!(id("c\timage"), None);
    assert_eq!(id("\t7\timage"), None);
    assert_eq!(id("c"), None);
    assert_eq!(id("\n"), None);
}

#[test]
fn whitespace_is_python_s() {
    // Python defines it as bidirectional class WS, B or S, or category Zs; these are all of them.
    let mut expected: Vec<char> = ('\t'..='\r').chain('\u{1c}'..=' ').collect();
    expected.extend(['\u{85}', '\u{a0}', '\u{1680}']);
    expected.extend('\u{2000}'..='\u{200a}');
    expected.extend(['\u{2028}', '\u{2029}', '\u{202f}', '\u{205f}', '\u{3000}']);
    let stripped: Vec<char> = ('\0'..=char::MAX)
        .filter(|character| rows(format!("{character}c\ti").as_bytes())[0].caption == "c")
        .filter(|character| !"\n\r".contains(*character))
        .collect();
    // As the line's end, LF and CR never reach the strip; a tab before the caption does.
    expected.retain(|character| !"\n\r".contains(*character));
    assert_eq!(stripped, expected);
}

#[test]
fn a_bad_row_is_named_and_the_next_one_read() {
    let input = b"a\tb\tc\nd\te\xc3\xa9\xe7\x8c\tf\r\ng\th\xf0\x9f\ni\tj";
    let read: Vec<_> = PairReader::new(&input[..]).collect();
    assert_eq!(read.len(), 4);
    assert_eq!(read[0].as_ref().unwrap().line, 1);
    assert_eq!(
        read[1].as_ref().unwrap_err().to_string(),
        "pairs: line 2, column 2: byte 6 of the line, 0xe7, does not belong in UTF-8"
    );
    assert_eq!(
        read[2].as_ref().unwrap_err().to_string(),
        "pairs: line 3, column 2: byte 4 of the line, 0xf0, starts a UTF-8 character that the line's end cuts short"
    );
    assert_eq!(
        (read[3].as_ref().unwrap().line, read[3].as_ref().unwrap().offset),
        (4, 23)
    );
    assert_eq!(read[1].as_ref().unwrap_err().code(), "pairs");
}

#[test]
fn a_mark_in_front_and_files_that_are_no_text() {
    let checked = |input: &[u8]| -> Vec<Result<Pair, ernie_vil::Error>> {
        let mut slow = PairReader::new(BufReader::with_capacity(1, input)).with_file_checks();
        let mut fast = PairReader::new(input).with_file_checks();
        let rows: Vec<_> = fast.by_ref().collect();
        assert_eq!(slow.by_ref().collect::<Vec<_>>(), rows);
        assert!(slow.has_ended() && fast.has_ended());
        rows
    };
    // The columns are those that the original sees, without the mark in the first one.
    for (line, caption, image) in [
        ("\u{feff}猫\t1\tQUJD\n", "猫", "QUJD"),
        ("\u{feff}\t1\tQUJD\n", "", "QUJD"),
        ("\u{feff}QUJD", "QUJD", "QUJD"),
        ("\u{feff}\n", "", ""),
        ("猫\t\u{feff}QUJD", "猫", "\u{feff}QUJD"),
    ] {
        let input = format!("{line}\n\u{feff}狗\tREVG");
        let rows = checked(input.as_bytes());
        let first = rows[0].as_ref().unwrap();
        assert_eq!(
            (&*first.caption, &*first.image),
            (caption, image.as_bytes()),
            "{line}"
        );
        assert_eq!((first.line, first.offset), (1, 0));
        // In front of another line it is the caption's.
        assert_eq!(rows.last().unwrap().as_ref().unwrap().caption, "\u{feff}狗");
    }
    let utf16 = |bytes: fn(u16) -> [u8; 2], mark: &str| -> Vec<u8> {
        let text = format!("{mark}猫\t1\tQUJDQUJDQUJDQUJD\r\n狗\t2\tREVG\r\n");
        text.encode_utf16().flat_map(bytes).collect()
    };
    for (input, expected) in [
        (
            utf16(u16::to_le_bytes, "\u{feff}"),
            "text in UTF-16, expected UTF-8; `iconv",
        ),
        (
            utf16(u16::to_be_bytes, "\u{feff}"),
            "text in UTF-16, expected UTF-8; `iconv",
        ),
        (
            utf16(u16::to_le_bytes, ""),
            "text in UTF-16 without a byte order mark",
        ),
        (
            b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc".to_vec(),
            "compressed by gzip, expected text; `gzip -dc",
        ),
        (b"PK\x03\x04\x14\0".to_vec(), "a zip archive or a spreadsheet"),
        (b"\x28\xb5\x2f\xfd\x04".to_vec(), "compressed by zstd"),
        (b"\x89PNG\r\n\x1a\n".to_vec(), "a picture"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid".to_vec(),
            "a Git LFS pointer",
        ),
        (b"<!DOCTYPE HTML>\n<html>".to_vec(), "a web page"),
    ] {
        // One error, not one for each line.
        let rows = checked(&input);
        assert_eq!(rows.len(), 1, "{expected}");
        let error = rows[0].as_ref().unwrap_err();
        assert_eq!(error.code(), "pairs");
        let message = error.to_string();
        assert!(
            message.starts_with("pairs: the file is ") && message.contains(expected),
            "{message}"
        );
    }
    // GBK begins like nothing that is known.
    let rows = checked(b"\xc3\xa8\t1\tQUJD\n\xb9\xb7\t2\tREVG\n");
    assert_eq!(rows.len(), 2);
    let message = rows[1].as_ref().unwrap_err().to_string();
    assert!(
        message.starts_with("pairs: line 2, column 1: byte 1 of the line, 0xb9, does not belong in UTF-8; ")
    );
    assert!(message.contains("iconv -f GB18030 -t UTF-8"), "{message}");
    // Without the checks nothing is added to the original's rules.
    assert_eq!(rows_of("\u{feff}猫\tQUJD")[0].caption, "\u{feff}猫");
    let mut reader = PairReader::new(&b"\x1f\x8b\na\tb"[..]);
    assert!(reader.next().unwrap().is_err() && reader.next().unwrap().is_ok());
}

fn rows_of(input: &str) -> Vec<Pair> {
    rows(input.as_bytes())
}

/// Hands out at most the given number of bytes a call, over and over.
struct Dribble<'a> {
    rest: &'a [u8],
    sizes: std::iter::Cycle<std::slice::Iter<'a, usize>>,
    interrupt: bool,
}

impl<'a> Dribble<'a> {
    fn new(rest: &'a [u8], sizes: &'a [usize]) -> Self {
        Self {
            rest,
            sizes: sizes.iter().cycle(),
            interrupt: false,
        }
    }
}

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.interrupt = !self.interrupt;
        if self.interrupt {
            return Err(ErrorKind::Interrupted.into());
        }
        let size = (*self.sizes.next().unwrap()).min(buffer.len());
        self.rest.read(&mut buffer[..size])
    }
}

#[test]
fn the_limit_on_a_line() {
    let row = b"1234\t678";
    for (limit, good) in [(8, true), (7, false), (0, false)] {
        for end in [&b"\n"[..], b"\r\n", b"", b"\r"] {
            let input = [&row[..], end, b"b\tc"].concat();
            let input = if end.is_empty() { &row[..] } else { &input };
            for size in [1, 3, 100] {
                let sizes = [size];
                let source = BufReader::new(Dribble::new(input, &sizes));
                let mut reader = PairReader::new(source).with_max_line_bytes(limit);
                match reader.next().unwrap() {
                    Ok(pair) => assert!(good && pair.image == b"678"),
                    Err(error) => {
                        assert!(!good);
                        assert_eq!(
                            error.to_string(),
                            format!("pairs: line 1 is longer than {limit} bytes, the limit")
                        );
                        assert!(reader.next().is_none());
                    }
                }
            }
        }
    }
    // An endless line stops there: nothing beyond the limit is asked for.
    let mut endless = BufReader::with_capacity(1 << 10, std::io::repeat(b'x').take(1 << 20));
    assert!(
        PairReader::new(&mut endless)
            .with_max_line_bytes(1 << 12)
            .next()
            .unwrap()
            .is_err()
    );
    assert!(endless.into_inner().limit() >= (1 << 20) - (1 << 12) - (1 << 10));
}

#[test]
fn a_source_that_fails() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(IoError::other("the disk is gone"))
        }
    }
    let source = BufReader::new(b"a\tb\nc".chain(Broken));
    let mut reader = PairReader::new(source);
    assert!(reader.next().unwrap().is_ok());
    let error = reader.next().unwrap().unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.code()),
        ("line 2: the disk is gone", "io")
    );
    assert!(reader.next().is_none());
    let source = BufReader::new(b"a\tb\r".chain(Broken));
    let error = PairReader::new(source).next().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "line 2: the disk is gone");
    assert_eq!(
        count_rows(BufReader::new(Broken)).unwrap_err().to_string(),
        "the disk is gone"
    );
}

#[test]
fn a_row_of_50_megabytes_and_many_rows() {
    let mut input = b"large\t1\t".to_vec();
    input.resize(50 << 20, b'A');
    input.push(b'\n');
    for row in 2..=120_000 {
        input.extend_from_slice(format!("猫{row}\t{row}\tQUJD\n").as_bytes());
    }
    let mut count = 0;
    for (number, pair) in PairReader::new(BufReader::new(&input[..])).enumerate() {
        let pair = pair.unwrap();
        assert_eq!(pair.line, number as u64 + 1);
        if number == 0 {
            assert_eq!(pair.image.len(), (50 << 20) - 8);
        } else {
            assert_eq!(pair.caption, format!("猫{}", number + 1));
            assert_eq!(pair.image_id, Some(pair.line.to_string()));
        }
        count += 1;
    }
    assert_eq!(count, 120_000);
    assert_eq!(count_rows(BufReader::new(&input[..])).unwrap(), 120_000);
}

/// The same rules written the slow way: byte by byte, the whole input in memory.
fn naive(input: &[u8]) -> Vec<Option<(String, Option<String>, String)>> {
    let mut lines: Vec<Vec<u8>> = Vec::new();
    let mut line = Vec::new();
    let mut bytes = input.iter().peekable();
    let mut open = false;
    while let Some(&byte) = bytes.next() {
        open = byte != b'\n' && byte != b'\r';
        if open {
            line.push(byte);
            continue;
        }
        if byte == b'\r' {
            bytes.next_if(|&&next| next == b'\n');
        }
        lines.push(std::mem::take(&mut line));
    }
    if open {
        lines.push(line);
    }
    lines
        .into_iter()
        .map(|line| {
            let text = String::from_utf8(line).ok()?;
            let mut characters: Vec<char> = text.chars().collect();
            let space = |c: &char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(c);
            while characters.last().is_some_and(space) {
                characters.pop();
            }
            while characters.first().is_some_and(space) {
                characters.remove(0);
            }
            let text: String = characters.into_iter().collect();
            let columns: Vec<&str> = text.split('\t').collect();
            let id = (columns.len() > 2).then(|| columns[1].to_owned());
            Some((columns[0].to_owned(), id, columns[columns.len() - 1].to_owned()))
        })
        .collect()
}

fn read_all<R: BufRead>(reader: PairReader<R>) -> Vec<Option<(String, Option<String>, String)>> {
    reader
        .map(|pair| {
            let pair = pair.ok()?;
            Some((
                pair.caption,
                pair.image_id,
                String::from_utf8(pair.image).unwrap(),
            ))
        })
        .collect()
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => prop::sample::select(vec![
            &b"\n"[..], b"\r", b"\r\n", b"\t", b" ", b"\x1c", b"\xc2\x85", b"\xe3\x80\x80", b"QUJD", "猫".as_bytes(),
            b"\xe7\x8c", b"\xff", b"\0", b"\xef\xbb\xbf", b"\xe2\x80\xa8",
        ])
        .prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reads_as_the_naive_reader_does(
        input in bytes(),
        sizes in prop::collection::vec(1usize..9, 1..6),
        capacity in 1usize..20,
    ) {
        let expected = naive(&input);
        prop_assert_eq!(read_all(PairReader::new(&input[..])), expected.clone());
        let source = || BufReader::with_capacity(capacity, Dribble::new(&input, &sizes));
        prop_assert_eq!(read_all(PairReader::new(source())), expected.clone());
        prop_assert_eq!(count_rows(&input[..]).unwrap(), expected.len() as u64);
        prop_assert_eq!(count_rows(source()).unwrap(), expected.len() as u64);

        // From every position, the rest is the rest; the last position is the input's end.
        let mut reader = PairReader::new(source());
        let mut position = Position::default();
        for row in 0..=expected.len() {
            let rest = PairReader::resume(&input[position.offset as usize..], position);
            prop_assert_eq!(read_all(rest), expected[row..].to_vec());
            let mut skipping = PairReader::new(source());
            prop_assert_eq!(skipping.skip_rows(row as u64).unwrap(), row as u64);
            prop_assert_eq!(skipping.position(), position);
            if let Some(Ok(pair)) = reader.next() {
                prop_assert_eq!((pair.line, pair.offset), (position.rows + 1, position.offset));
            }
            position = reader.position();
        }
        prop_assert_eq!(position, Position { rows: expected.len() as u64, offset: input.len() as u64 });
        prop_assert_eq!(PairReader::new(source()).skip_rows(u64::MAX).unwrap(), expected.len() as u64);
    }
}
