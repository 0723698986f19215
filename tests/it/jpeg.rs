//! The JPEG decoder against the original's pixels, and against damage.

use std::time::Instant;

use ernie_vil::image::{Limits, Preprocessor, jpeg};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{json, read, read_golden, sha256};

/// The orientation of the goldens' Exif segments, whose only entry it is; 1 where there is none.
fn orientation(file: &[u8]) -> u16 {
    let Some(exif) = file.windows(6).position(|w| w == b"Exif\0\0") else {
        return 1;
    };
    let tiff = &file[exif + 6..];
    let number = |at: usize| {
        let bytes = [tiff[at], tiff[at + 1]];
        if tiff[0] == b'I' {
            u16::from_le_bytes(bytes)
        } else {
            u16::from_be_bytes(bytes)
        }
    };
    assert_eq!(number(10), 0x112);
    number(18)
}

/// Turns decoded pixels the way an Exif orientation asks for.
fn oriented(orientation: u16, width: usize, height: usize, pixels: &[u8]) -> (usize, usize, Vec<u8>) {
    let sideways = (5..=8).contains(&orientation);
    let (w, h) = if sideways {
        (height, width)
    } else {
        (width, height)
    };
    let mut out = Vec::with_capacity(pixels.len());
    for y in 0..h {
        for x in 0..w {
            let (sx, sy) = match orientation {
                2 => (width - 1 - x, y),
                3 => (width - 1 - x, height - 1 - y),
                4 => (x, height - 1 - y),
                5 => (y, x),
                6 => (y, height - 1 - x),
                7 => (width - 1 - y, height - 1 - x),
                8 => (width - 1 - y, x),
                _ => (x, y),
            };
            out.extend_from_slice(&pixels[3 * (sy * width + sx)..][..3]);
        }
    }
    (w, h, out)
}

#[test]
fn goldens() {
    let mut decoded = 0;
    for golden in json::<Vec<Value>>("tests/goldens/preprocess.json") {
        let name = golden["file"].as_str().unwrap();
        if !name.ends_with(".jpg") {
            continue;
        }
        let file = read_golden(format!("images/{name}"));
        match jpeg::decode(&file) {
            Ok((width, height, pixels)) => {
                assert_eq!(golden["ok"], true, "{name}");
                let header = jpeg::read_header(&file).unwrap();
                assert_eq!((header.width, header.height), (width, height), "{name}");
                let (width, height, pixels) =
                    oriented(orientation(&file), width as usize, height as usize, &pixels);
                assert_eq!(golden["decoded_hw"], serde_json::json!([height, width]), "{name}");
                assert_eq!(golden["decoded_sha256"], sha256(&pixels), "{name}");
                decoded += 1;
            }
            Err(error) => assert_eq!(golden["ok"], false, "{name}: {error}"),
        }
    }
    assert_eq!(decoded, 51);
}

/// Files that OpenCV 4.6 decoded: see `jpeg_cases/README.md`.
#[test]
fn cases() {
    for case in json::<Vec<Value>>("tests/jpeg_cases/expected.json") {
        let name = case["file"].as_str().unwrap();
        let file = read(format!("tests/jpeg_cases/{name}"));
        let (width, height, pixels) = jpeg::decode(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(case["hw"], serde_json::json!([height, width]), "{name}");
        assert_eq!(case["sha256"], sha256(&pixels), "{name}: {}", case["note"]);
    }
}

fn golden(name: &str) -> Vec<u8> {
    read_golden(format!("images/{name}"))
}

/// The position behind a marker's code.
fn behind(file: &[u8], marker: u8) -> usize {
    file.windows(2).position(|w| w == [0xff, marker]).unwrap() + 2
}

#[test]
fn what_is_not_read() {
    let message = |file: &[u8]| jpeg::decode(file).unwrap_err().to_string();
    let file = golden("r00.jpg");
    let frame = behind(&file, 0xc0);
    let with = |at: usize, value: u8| {
        let mut file = file.clone();
        file[at] = value;
        file
    };
    assert!(message(&[]).contains("expected the bytes FF D8"));
    assert!(message(&with(frame - 1, 0xc3)).contains("lossless coding (FF C3)"));
    assert!(message(&with(frame + 2, 12)).contains("12 bits a sample, expected 8"));
    assert!(message(&with(frame + 7, 2)).contains("2 components, expected 1, 3 or 4"));
    assert!(message(&with(frame + 9, 0x51)).contains("sampling factors 5 x 1"));
    // The second component's quantisation table.
    assert!(message(&with(frame + 13, 3)).contains("quantisation table 3, which is not defined"));
    let mut flat = file.clone();
    flat[frame + 3..frame + 5].fill(0);
    assert!(message(&flat).contains("320 x 0 pixels"));
    // Cut in the headers, before the first row of blocks, and in a file of several scans.
    assert!(message(&file[..frame + 5]).contains("bytes of data are left"));
    assert!(message(&file[..behind(&file, 0xda) + 20]).contains("before the first row of blocks"));
    let several = golden("r03.jpg");
    assert!(message(&several[..several.len() - 2]).contains("expected an end marker"));
}

/// A file of a progressive frame of `pixels` x `pixels` and as many empty scans.
fn scans_without_end(pixels: u16, scans: usize) -> Vec<u8> {
    let mut file = b"\xff\xd8\xff\xdb\x00\x43\x00".to_vec();
    file.extend([1; 64]);
    // One DC code of one bit: no difference.
    file.extend(b"\xff\xc4\x00\x14\x00\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x00");
    file.extend(b"\xff\xc2\x00\x0b\x08");
    file.extend(pixels.to_be_bytes());
    file.extend(pixels.to_be_bytes());
    file.extend(b"\x01\x01\x11\x00");
    for _ in 0..scans {
        file.extend(b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00\x2a");
    }
    file.extend(b"\xff\xd9");
    file
}

#[test]
fn scans_are_limited_by_the_blocks_and_the_bytes() {
    // More scans than any encoder makes are read of a small image, and of a large one as many as it takes.
    for (side, scans) in [(40, 64), (4000, 24)] {
        let (width, height, pixels) = jpeg::decode(&scans_without_end(side, scans)).unwrap();
        assert_eq!((width, height), (side.into(), side.into()));
        assert!(pixels.iter().all(|&value| value == 128));
    }
    let error = jpeg::decode(&scans_without_end(4000, 25)).unwrap_err();
    let expected = "more than 24 times on average, and more than 16 blocks for each byte of the file";
    assert!(error.to_string().contains(expected), "{error}");
}

/// A progressive file of which most says that nothing is to be said: 1.4 million blocks, and scans that pass
/// over 32,767 of them by two bytes.
fn scans_of_nothing(scans: usize) -> Vec<u8> {
    let side = 9300u16;
    let mut file = b"\xff\xd8\xff\xdb\x00\x43\x00".to_vec();
    file.extend([1; 64]);
    // A code of one bit each: no difference, and the end of 2^14 bands and as many as 14 bits say.
    file.extend(b"\xff\xc4\x00\x14\x00\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x00");
    file.extend(b"\xff\xc4\x00\x14\x10\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xe0");
    file.extend(b"\xff\xc2\x00\x0b\x08");
    file.extend([side, side].map(u16::to_be_bytes).as_flattened());
    file.extend(b"\x01\x01\x11\x00");
    // What the bytes warrant.
    file.extend([&b"\xff\xfe\xff\xff"[..], &[0; 65533]].concat().repeat(16));
    file.extend(b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00");
    let runs = (u32::from(side).div_ceil(8).pow(2)).div_ceil(32767);
    let bits = (0..runs).map(|_| "011111111111111").collect::<String>() + "1111111";
    let byte = |bits: &[u8]| bits.iter().fold(0, |all, bit| all << 1 | (bit & 1));
    let stuffed = |byte| if byte == 0xff { vec![0xff, 0] } else { vec![byte] };
    let data: Vec<u8> = bits
        .as_bytes()
        .chunks_exact(8)
        .map(byte)
        .flat_map(stuffed)
        .collect();
    for scan in 0..scans {
        let bits = if scan == 0 { 0x01 } else { 0x10 };
        file.extend([0xff, 0xda, 0, 8, 1, 1, 0, 1, 63, bits]);
        file.extend(&data);
    }
    file.extend(b"\xff\xd9");
    file
}

/// Scans that say nothing cost next to nothing: 32 of them not much more than one. Visits of each block would
/// take 17 times as long.
#[test]
fn blocks_of_which_nothing_is_said_take_no_time() {
    let preprocessor = Preprocessor::new(32);
    // The least of some, since others may use the machine.
    let time = |scans| {
        let file = scans_of_nothing(scans);
        let once = || {
            let start = Instant::now();
            let crop = preprocessor.decode_crop(&file, &Limits::default()).unwrap();
            assert!(crop.data().iter().all(|&value| value == 128));
            start.elapsed()
        };
        (0..5).map(|_| once()).min().unwrap()
    };
    let (one, many) = (time(1), time(32));
    assert!(many < 6 * one, "{one:?} for one scan, {many:?} for 32");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is done to a file, there is an error or as many pixels as the header says.
    #[test]
    fn damage_does_no_harm(
        which in 0..12usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        keep in any::<bool>(),
    ) {
        let names = [
            "r14.jpg", "r15.jpg", "r16.jpg", "r24.jpg", "r27.jpg", "r28.jpg", "cmyk_q.jpg", "gray_prog.jpg",
            "tiny2x1.jpg", "trunc_prog.jpg", "corrupt.jpg", "exif_be.jpg",
        ];
        let mut file = golden(names[which]);
        for (place, value) in changes {
            let place = place.index(file.len());
            file[place] = value;
        }
        if !keep {
            file.truncate(cut.index(file.len()));
        }
        // As the caller would, refuse what has become too large.
        if let Ok(header) = jpeg::read_header(&file)
            && u64::from(header.width) * u64::from(header.height) <= 1 << 20
            && let Ok((width, height, pixels)) = jpeg::decode(&file)
        {
            prop_assert_eq!((width, height), (header.width, header.height));
            prop_assert_eq!(pixels.len() as u64, u64::from(width) * u64::from(height) * 3);
        }
    }

    #[test]
    fn noise_does_no_harm(noise in prop::collection::vec(any::<u8>(), 0..300), cut in any::<prop::sample::Index>()) {
        let _ = jpeg::decode(&noise);
        // Noise behind the headers of a real file.
        let mut file = golden("r16.jpg");
        file.truncate(cut.index(file.len()));
        file.extend(noise);
        if let Ok(header) = jpeg::read_header(&file)
            && u64::from(header.width) * u64::from(header.height) <= 1 << 20
        {
            let _ = jpeg::decode(&file);
        }
    }
}
