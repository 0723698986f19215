//! Encoded images to the image tower's input, against what the original makes of the same files.

use ernie_vil::Preprocessing;
use ernie_vil::image::{LimitKind, Limits, Pixels, Preprocessor, decode, resize_linear};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{json, read, read_golden, sha256};

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// What the original made of every file.
fn records() -> Vec<Value> {
    let records: Vec<Value> = json("tests/goldens/preprocess.json");
    assert_eq!(records.len(), 90);
    records
}

fn pair(value: &Value) -> (u64, u64) {
    (value[0].as_u64().unwrap(), value[1].as_u64().unwrap())
}

/// The pixels of a recorded PNG, all of them plain 8-bit RGB, by the `png` crate alone.
fn recorded(name: &str) -> Pixels {
    let mut reader = png::Decoder::new(std::io::Cursor::new(read_golden(name)))
        .read_info()
        .unwrap();
    let mut data = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut data).unwrap();
    assert_eq!(
        (info.color_type, info.bit_depth),
        (png::ColorType::Rgb, png::BitDepth::Eight),
        "{name}"
    );
    Pixels::new(info.width, info.height, data).unwrap()
}

/// The profile of PaddleNLP, against Pillow and NumPy (benches/peers/preprocess_paddlenlp.py).
#[test]
fn the_profile_paddlenlp_gives_the_levels_of_pillow() {
    let recorded_cases: Value = json("tests/goldens/preprocess_paddlenlp.json");
    let cases = recorded_cases["cases"].as_array().unwrap();
    assert!(cases.len() > 100, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let pixels = match case["decoded"].as_str() {
            Some(name) => recorded(&format!("decoded/{name}")),
            None => {
                let (width, height) = pair(&case["noise"]);
                let level = |i: u64| ((i * 2_654_435_761 % (1 << 32)) >> 24) as u8;
                let data = (0..3 * width * height).map(level).collect();
                Pixels::new(width as u32, height as u32, data).unwrap()
            }
        };
        let size = case["size"].as_u64().unwrap() as usize;
        let preprocessor = Preprocessor::with_profile(size, Preprocessing::PaddleNlp);
        let crop = preprocessor.crop(&pixels);
        let mut tensor = vec![0.0; preprocessor.values()];
        preprocessor.tensor_into(&crop, &mut tensor);
        if preprocessor.resized(pixels.width(), pixels.height()) != pair(&case["resized"])
            || sha256(crop.data()) != case["crop_sha256"]
            || sha256(&little_endian(&tensor)) != case["tensor_sha256"]
        {
            wrong.push(case);
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), cases.len());
}

#[test]
fn every_file_decodes_to_the_same_pixels_or_is_refused() {
    let mut wrong = Vec::new();
    for record in records() {
        let file = record["file"].as_str().unwrap();
        let decoded = decode(&read_golden(format!("images/{file}")), &Limits::default());
        match (decoded, record["ok"].as_bool().unwrap()) {
            (Ok(pixels), true) => {
                let size = (u64::from(pixels.height()), u64::from(pixels.width()));
                if size != pair(&record["decoded_hw"]) || sha256(pixels.data()) != record["decoded_sha256"] {
                    wrong.push(format!("{file}: other pixels"));
                }
            }
            (Ok(_), false) => wrong.push(format!("{file}: decoded, the original refuses it")),
            (Err(error), true) => wrong.push(format!("{file}: {error}")),
            (Err(error), false) => assert_eq!(error.code(), "image", "{file}"),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_image_is_resized_cropped_and_normalised_to_the_same_bytes() {
    let preprocessor = Preprocessor::new(224);
    let mut tensor = vec![0.0; preprocessor.values()];
    for record in records() {
        let Some(name) = record["decoded_png"].as_str() else {
            continue;
        };
        let pixels = recorded(name);
        assert_eq!(sha256(pixels.data()), record["decoded_sha256"], "{name}");

        let (width, height) = preprocessor.resized(pixels.width(), pixels.height());
        assert_eq!((height, width), pair(&record["resized_hw"]), "{name}");
        let skipped = (width, height) == (pixels.width().into(), pixels.height().into());
        assert_eq!(
            if skipped { "skipped" } else { "linear" },
            record["resize"],
            "{name}"
        );

        let crop = preprocessor.crop(&pixels);
        assert_eq!(sha256(crop.data()), record["crop_sha256"], "{name}");
        if let Some(cropped) = record["crop_png"].as_str() {
            assert!(crop == recorded(cropped), "{cropped}");
        }

        // The whole resized image holds the crop at the recorded place.
        if width * height < 1 << 22 {
            let full = resize_linear(&pixels, width as u32, height as u32);
            let (x, y) = pair(&record["crop_xy"]);
            let rows = full.data().chunks_exact(3 * width as usize).skip(y as usize);
            let mut rows = rows.map(|row| &row[3 * x as usize..][..3 * 224]);
            assert!(
                crop.data()
                    .chunks_exact(3 * 224)
                    .all(|row| rows.next() == Some(row)),
                "{name}"
            );
        }

        preprocessor.tensor_into(&crop, &mut tensor);
        assert_eq!(sha256(&little_endian(&tensor)), record["tensor_sha256"], "{name}");
    }
}

#[test]
fn an_encoded_file_becomes_a_tensor_in_one_go() {
    let preprocessor = Preprocessor::new(224);
    let mut tensor = vec![f32::NAN; preprocessor.values()];
    for file in [
        "r00.jpg",
        "r22.jpg",
        "r32.png",
        "r34.webp",
        "tiff_lzw.tif",
        "wide.png",
    ] {
        let record = records()
            .into_iter()
            .find(|record| record["file"] == file)
            .unwrap();
        preprocessor
            .preprocess_into(
                &read_golden(format!("images/{file}")),
                &Limits::default(),
                &mut tensor,
            )
            .unwrap();
        assert_eq!(sha256(&little_endian(&tensor)), record["tensor_sha256"], "{file}");
    }
    let error = preprocessor
        .preprocess_into(
            &read_golden("images/r29.png"),
            &Limits::default(),
            &mut tensor[1..],
        )
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "image: room for 150527 values, expected 3 x 224 x 224"
    );
}

#[test]
fn every_byte_is_normalised_exactly() {
    let stored = read_golden("normalise.safetensors");
    let stored = safetensors::SafeTensors::deserialize(&stored).unwrap();
    let table = stored.tensor("lut").unwrap();
    let preprocessor = Preprocessor::new(16);
    let bytes = (0..=255).flat_map(|byte| [byte; 3]).collect();
    let mut tensor = vec![0.0; preprocessor.values()];
    preprocessor.tensor_into(&Pixels::new(16, 16, bytes).unwrap(), &mut tensor);
    assert_eq!(little_endian(&tensor), table.data());

    let rows = stored.tensor("r02_jpg_rows_100_104").unwrap();
    let preprocessor = Preprocessor::new(224);
    let mut tensor = vec![0.0; preprocessor.values()];
    preprocessor.tensor_into(&recorded("crop224/r02_jpg.png"), &mut tensor);
    let of_plane = |plane: &[f32]| little_endian(&plane[100 * 224..104 * 224]);
    let ours: Vec<u8> = tensor.chunks_exact(224 * 224).flat_map(of_plane).collect();
    assert_eq!(ours, rows.data());
}

/// OpenCV's formula, one value after the other.
fn reference(src: &Pixels, width: u32, height: u32) -> Vec<u8> {
    let taps = |d: u32, src: u32, dst: u32| {
        let scale = 1.0 / (f64::from(dst) / f64::from(src));
        let at = ((f64::from(d) + 0.5) * scale - 0.5) as f32;
        (at.floor() as i64, at - at.floor())
    };
    let round = |f: f32| (f * 2048.0).round_ties_even() as i64;
    let last = (i64::from(src.width()) - 1, i64::from(src.height()) - 1);
    let pixel = |x: i64, y: i64, c: i64| {
        let at = 3 * (y.clamp(0, last.1) * (last.0 + 1) + x.clamp(0, last.0)) + c;
        i64::from(src.data()[at as usize])
    };
    let mut out = Vec::new();
    for y in 0..height {
        let (top, fy) = taps(y, src.height(), height);
        for x in 0..width {
            let (mut left, mut fx) = taps(x, src.width(), width);
            if left < 0 || left >= last.0 {
                (left, fx) = (left.clamp(0, last.0), 0.0);
            }
            for c in 0..3 {
                let row = |y: i64| pixel(left, y, c) * round(1.0 - fx) + pixel(left + 1, y, c) * round(fx);
                let part = |weight: f32, row: i64| (round(weight) * (row >> 4)) >> 16;
                let sum = part(1.0 - fy, row(top)) + part(fy, row(top + 1));
                out.push(((sum + 2) >> 2).clamp(0, 255) as u8);
            }
        }
    }
    out
}

fn image() -> impl Strategy<Value = Pixels> {
    (1..40_u32, 1..40_u32)
        .prop_flat_map(|(width, height)| {
            let bytes = 3 * (width * height) as usize;
            // Extremes are where rounding and saturation show.
            let byte = prop_oneof![Just(0), Just(255), any::<u8>()];
            (Just(width), Just(height), prop::collection::vec(byte, bytes))
        })
        .prop_map(|(width, height, data)| Pixels::new(width, height, data).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn resizing_is_the_formula(src in image(), width in 1..70_u32, height in 1..70_u32) {
        let ours = resize_linear(&src, width, height);
        prop_assert_eq!((ours.width(), ours.height()), (width, height));
        prop_assert_eq!(ours.data(), reference(&src, width, height));
    }

    #[test]
    fn a_crop_is_the_middle_of_the_resized_image(src in image(), size in 1..33_usize) {
        let preprocessor = Preprocessor::new(size);
        let (width, height) = preprocessor.resized(src.width(), src.height());
        prop_assert_eq!(width.min(height), size as u64);
        let full = resize_linear(&src, width as u32, height as u32);
        let (x, y) = ((width as usize - size).div_ceil(2), (height as usize - size).div_ceil(2));
        let expected: Vec<u8> = full
            .data()
            .chunks_exact(3 * width as usize)
            .skip(y)
            .take(size)
            .flat_map(|row| &row[3 * x..][..3 * size])
            .copied()
            .collect();
        prop_assert_eq!(preprocessor.crop(&src).into_data(), expected);
    }

    #[test]
    fn bytes_of_any_kind_do_not_panic(
        magic in prop::sample::select(vec![
            &b"\xff\xd8\xff"[..], b"\x89PNG\r\n\x1a\n", b"RIFF\xff\0\0\0WEBPVP8 ", b"RIFF\xff\0\0\0WEBPVP8L",
            b"RIFF\xff\0\0\0WEBPVP8X", b"BM", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"P1 ", b"P2 ", b"P3 ",
            b"P4 ", b"P5 ", b"P6 ",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..512),
    ) {
        let bytes = [magic, &rest].concat();
        if let Ok(pixels) = decode(&bytes, &small()) {
            prop_assert!(pixels.width() > 0);
        }
    }
}

fn small() -> Limits {
    Limits {
        max_pixels: 1 << 18,
        ..Limits::default()
    }
}

/// Files of every format to damage.
fn victims() -> Vec<Vec<u8>> {
    let names = [
        "exif6.jpg",
        "r03.jpg",
        "r21.jpg",
        "cmyk_q.jpg",
        "trunc_half.jpg",
        "tiny2x1.jpg",
        "exif6.png",
        "r37.png",
        "pal_trns.png",
        "gray16.png",
        "alpha.webp",
        "alpha_lossy.webp",
        "exif6.webp",
        "pal8.bmp",
        "bmp32.bmp",
        "tiff.tif",
        "tiff_lzw.tif",
        "p6.ppm",
    ];
    names
        .iter()
        .map(|name| read_golden(format!("images/{name}")))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn damaged_files_do_not_panic(
        mut bytes in prop::sample::select(victims()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        for (at, byte, early) in changes {
            // Half of the damage goes to the headers.
            let length = if early { bytes.len().min(256) } else { bytes.len() };
            let at = at.index(length);
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(pixels) = decode(&bytes, &small()) {
            prop_assert_eq!(pixels.data().len(), 3 * pixels.width() as usize * pixels.height() as usize);
        }
    }
}

/// A TIFF file of one directory entry after the other: tag, type, count, value.
fn tiff(entries: &[(u16, u16, u32, u32)]) -> Vec<u8> {
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    bytes.extend((entries.len() as u16).to_le_bytes());
    for &(tag, kind, count, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes
}

#[test]
fn enormous_images_are_refused_by_their_header() {
    const SIDE: u32 = 60_000;
    // A PNG's header is checked by its CRC: change the sides of a real one and put the CRC right.
    let mut png = read_golden("images/tiny1.png");
    png[16..20].copy_from_slice(&SIDE.to_be_bytes());
    png[20..24].copy_from_slice(&SIDE.to_be_bytes());
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());

    let mut bmp = read_golden("images/r36.bmp");
    bmp[18..22].copy_from_slice(&SIDE.to_le_bytes());
    bmp[22..26].copy_from_slice(&SIDE.to_le_bytes());

    // A lossy or lossless WebP has sides of up to 16,383; an extended one has 24 bits for them, and its frame
    // says something of its own.
    let webp = |chunk: &[u8]| {
        [
            b"RIFF",
            &(chunk.len() as u32 + 4).to_le_bytes()[..],
            b"WEBP",
            chunk,
        ]
        .concat()
    };
    let lossy = webp(b"VP8 \x0a\0\0\0\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f");
    let lossless = webp(b"VP8L\x05\0\0\0\x2f\xfe\xbf\xff\x0f\0");
    let wide = b"VP8X\x0a\0\0\0\0\0\0\0\x5f\xea\0\x5f\xea\0VP8L\x05\0\0\0\x2f\0\0\0\0\0";
    let narrow = [&b"VP8X\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0"[..], &lossy[12..]].concat();

    let strip = |side| {
        tiff(&[
            (256, 4, 1, side),
            (257, 4, 1, side),
            (258, 3, 1, 8),
            (259, 3, 1, 1),
            (262, 3, 1, 1),
            (273, 4, 1, 8),
            (277, 3, 1, 1),
            (278, 4, 1, side),
            (279, 4, 1, 1),
        ])
    };
    let mut jpeg = read_golden("images/r00.jpg");
    let frame = jpeg.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xEA, 0x60, 0xEA, 0x60]);

    let files = [
        ("PNG", png, "60000 x 60000"),
        ("BMP", bmp, "60000 x 60000"),
        ("WebP", lossy, "16383 x 16383"),
        ("WebP", lossless, "16383 x 16383"),
        ("TIFF", strip(SIDE), "60000 x 60000"),
        ("PNM", b"P6 60000 60000 255 ".to_vec(), "60000 x 60000"),
        ("PNM", b"P1 60000 60000 ".to_vec(), "60000 x 60000"),
        ("JPEG", jpeg, "60000 x 60000"),
    ];
    let limits = Limits {
        max_pixels: 1 << 26,
        ..Limits::default()
    };
    for (format, bytes, sides) in files {
        let error = decode(&bytes, &limits).expect_err(format);
        assert_eq!(
            error.to_string(),
            format!("image: {format} of {sides} pixels, expected at most 67108864")
        );
        assert_eq!(error.limit(), Some(LimitKind::Pixels));
        // Whatever the number of pixels may be, their memory is limited too.
        let limits = Limits {
            max_pixels: u64::MAX,
            ..Limits::default()
        };
        let error = decode(&bytes, &limits).expect_err(format);
        let start = format!("image: {format} of {sides} pixels, which takes ");
        assert!(error.to_string().starts_with(&start), "{error}");
        assert_eq!(error.limit(), Some(LimitKind::Memory));
    }

    // The two sizes have to be the same, so none is believed alone.
    for (bytes, sides) in [(webp(wide), "1 x 1"), (webp(&narrow), "16383 x 16383")] {
        let error = decode(&bytes, &Limits::default()).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("image: WebP: a frame of {sides} pixels, expected ")),
            "{error}"
        );
    }

    let limits = Limits {
        max_bytes: 100,
        ..Limits::default()
    };
    let error = decode(&read_golden("images/r00.jpg"), &limits).unwrap_err();
    assert_eq!(error.to_string(), "image: 21469 bytes, expected at most 100");
}

/// Files whose metadata is damaged, or promised and absent, and arithmetic coding: see
/// `image_cases/README.md`.
#[test]
fn only_the_pixels_of_a_file_have_to_be_sound() {
    let cases: Vec<Value> = json("tests/image_cases/expected.json");
    assert_eq!(cases.len(), 92);
    let mut wrong = Vec::new();
    for case in cases {
        let file = case["file"].as_str().unwrap();
        let bytes = read(format!("tests/image_cases/{file}"));
        match (decode(&bytes, &Limits::default()), case["sha256"].as_str()) {
            (Ok(pixels), Some(sha256_of_opencv)) => {
                let size = (u64::from(pixels.height()), u64::from(pixels.width()));
                if size != pair(&case["hw"]) || sha256(pixels.data()) != sha256_of_opencv {
                    wrong.push(format!("{file}: other pixels"));
                }
                for profile in [Preprocessing::Original, Preprocessing::PaddleNlp] {
                    let preprocessor = Preprocessor::with_profile(32, profile);
                    let crop = preprocessor.decode_crop(&bytes, &Limits::default()).unwrap();
                    assert!(crop == preprocessor.crop(&pixels), "{file}");
                }
            }
            (Ok(_), None) => wrong.push(format!("{file}: decoded, OpenCV refuses it")),
            (Err(error), Some(_)) => wrong.push(format!("{file}: {error}")),
            (Err(error), None) => {
                // No panic of a crate's was caught.
                assert!(
                    !error.to_string().contains("error of this program"),
                    "{file}: {error}"
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 }
        })
    })
}

/// Decodes and compares; what is expected has been read with OpenCV 4.6.
#[track_caller]
fn assert_pixels(bytes: &[u8], (width, height): (u32, u32), expected: &[u8]) {
    let pixels = decode(bytes, &Limits::default()).unwrap();
    assert_eq!((pixels.width(), pixels.height()), (width, height));
    assert_eq!(pixels.data(), expected);
}

#[test]
fn pnm_is_read_by_the_rules_of_opencv() {
    // Binary samples stay as they are, text ones are scaled, 16 bits are cut.
    assert_pixels(b"P5 2 1 100 \x64\x0a", (2, 1), &[100, 100, 100, 10, 10, 10]);
    assert_pixels(b"P2\n2 1\n100\n200 10\n", (2, 1), &[255, 255, 255, 25, 25, 25]);
    assert_pixels(b"P6 1 1 1000 \x03\xe8\0\0\x01\0", (1, 1), &[3, 0, 1]);
    assert_pixels(b"P3 # text\n1 1 # more\n1000 999 256 7\n", (1, 1), &[3, 1, 0]);
    // Bits: 1 is black. In text nothing has to stand between them.
    assert_pixels(b"P1 3 1 101", (3, 1), &[0, 0, 0, 255, 255, 255, 0, 0, 0]);
    assert_pixels(b"P4 3 1 \x40", (3, 1), &[255, 255, 255, 0, 0, 0, 255, 255, 255]);
    for (bytes, expected) in [
        (
            &b"P2 1 1 255 12"[..],
            "the end of the file where a number was expected",
        ),
        (b"P5 2 1 255 \0", "1 bytes of samples, expected 2"),
        (b"P5 2 1 0 \0\0", "a largest value of 0, expected 1 to 65535"),
        (b"P2 1 1 255 -1 ", "0x2d at byte 11, expected a number"),
        (b"P2 1 1 255 3000000000 ", "a number above 2147483647 at byte 20"),
    ] {
        let error = decode(bytes, &Limits::default()).unwrap_err();
        assert_eq!(error.to_string(), format!("image: PNM: {expected}"));
    }
}

/// A BMP file.
fn bmp(width: u32, height: i32, bits: u16, compression: u32, after_header: &[u8], pixels: &[u8]) -> Vec<u8> {
    let start = 54 + after_header.len() as u32;
    let mut bytes = b"BM\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend([start, 40, width].map(u32::to_le_bytes).as_flattened());
    bytes.extend(height.to_le_bytes());
    bytes.extend([1, bits].map(u16::to_le_bytes).as_flattened());
    bytes.extend([compression, 0, 0, 0, 0, 0].map(u32::to_le_bytes).as_flattened());
    [&bytes, after_header, pixels].concat()
}

#[test]
fn bmp_is_read_by_the_rules_of_opencv() {
    // 5 and 6 bits are shifted, the fourth byte is dropped, a negative height means from the top.
    let pixels = [0xFF, 0x7F, 0x21, 0x04];
    assert_pixels(&bmp(2, 1, 16, 0, &[], &pixels), (2, 1), &[248, 248, 248, 8, 8, 8]);
    let masks = [0xF800, 0x07E0, 0x001F].map(u32::to_le_bytes);
    let green = bmp(2, 1, 16, 3, masks.as_flattened(), &pixels);
    assert_pixels(&green, (2, 1), &[120, 252, 248, 0, 132, 8]);
    assert_pixels(
        &bmp(1, -2, 32, 0, &[], &[1, 2, 3, 0, 4, 5, 6, 0]),
        (1, 2),
        &[3, 2, 1, 6, 5, 4],
    );
    assert_pixels(
        &bmp(1, 2, 24, 0, &[], &[1, 2, 3, 0, 4, 5, 6, 0]),
        (1, 2),
        &[6, 5, 4, 3, 2, 1],
    );

    let palette: Vec<u8> = (0..=255).flat_map(|i| [i, i + u8::from(i < 255), 7, 0]).collect();
    let colours = |indices: &[u8]| -> Vec<u8> {
        let colour = |&i: &u8| [7, i + u8::from(i < 255), i];
        indices.iter().flat_map(colour).collect()
    };
    // Runs, single pixels, a skip of two pixels and a row, and the end of the image.
    let runs = [2, 9, 0, 3, 1, 2, 3, 0, 0, 0, 1, 8, 0, 2, 2, 1, 1, 5, 0, 1];
    let expected = [0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 8, 0, 0, 0, 0, 9, 9, 1, 2, 3];
    assert_pixels(&bmp(5, 4, 8, 1, &palette, &runs), (5, 4), &colours(&expected));
    // With 4 bits a run has two colours in turn.
    let runs = [5, 0x12, 0, 0, 0, 4, 0x34, 0x56, 0, 0];
    let expected = [3, 4, 5, 6, 0, 1, 2, 1, 2, 1];
    assert_pixels(
        &bmp(5, 2, 4, 2, &palette[..64], &runs),
        (5, 2),
        &colours(&expected),
    );

    for (bytes, expected) in [
        (
            bmp(5, 1, 8, 1, &palette, &[6, 1]),
            "a run of 6 pixels in row 0, expected at most 5",
        ),
        (
            bmp(5, 1, 8, 1, &palette, &[4, 1]),
            "run-length codes end before the image is full",
        ),
        (bmp(2, 1, 24, 0, &[], &[0; 7]), "7 bytes of pixels, expected 8"),
        (
            bmp(2, 1, 2, 0, &palette, &[0; 8]),
            "2 bits a pixel with compression 0, expected 1, 4, 8, 16, 24 or 32 bits uncompressed, or 4 or 8 \
             run-length encoded",
        ),
        (b"BM".to_vec(), "2 bytes, its header is cut off"),
    ] {
        let error = decode(&bytes, &Limits::default()).unwrap_err();
        assert_eq!(error.to_string(), format!("image: BMP: {expected}"));
    }
}

#[test]
fn tiff_is_read_by_the_rules_of_libtiff() {
    let image = |bits, colour, samples, extra, orientation, pixels: &[u8]| {
        let entries = [
            (256, 4, 1, 2),
            (257, 4, 1, 1),
            (258, 3, 1, bits),
            (259, 3, 1, 1),
            (262, 3, 1, colour),
            (273, 4, 1, 8 + 2 + 12 * 11 + 4),
            (274, 3, 1, orientation),
            (277, 3, 1, samples),
            (278, 4, 1, 1),
            (279, 4, 1, pixels.len() as u32),
            (338, 3, u32::from(extra > 0), extra),
        ];
        [&tiff(&entries), pixels].concat()
    };
    // Grey is cut, colours are rounded to 8 bits.
    let grey = [0xFF, 0x80, 0xFF, 0x01];
    assert_pixels(&image(16, 1, 1, 0, 1, &grey), (2, 1), &[128, 128, 128, 1, 1, 1]);
    let colours = [0xFF, 0x01, 0, 0, 0xFF, 0xFF, 0x7F, 0x01, 0x80, 0x01, 0x81, 0x01];
    assert_pixels(&image(16, 2, 3, 0, 1, &colours), (2, 1), &[2, 0, 255, 1, 1, 1]);
    // An unassociated alpha is multiplied in, an associated one has been.
    let rgba = [200, 100, 50, 128, 1, 2, 3, 0];
    assert_pixels(&image(8, 2, 4, 2, 1, &rgba), (2, 1), &[100, 50, 25, 0, 0, 0]);
    assert_pixels(&image(8, 2, 4, 1, 1, &rgba), (2, 1), &[200, 100, 50, 1, 2, 3]);
    // The orientation counts, and white may be zero.
    assert_pixels(
        &image(8, 1, 1, 0, 6, &[10, 20]),
        (1, 2),
        &[10, 10, 10, 20, 20, 20],
    );
    assert_pixels(
        &image(8, 1, 1, 0, 2, &[10, 20]),
        (2, 1),
        &[20, 20, 20, 10, 10, 10],
    );
    assert_pixels(
        &image(8, 0, 1, 0, 1, &[10, 20]),
        (2, 1),
        &[245, 245, 245, 235, 235, 235],
    );
}

#[test]
fn only_the_first_app1_segment_of_a_jpeg_turns_it() {
    let turned = read_golden("images/exif6.jpg");
    let metadata = b"\xff\xe1\0\x1fhttp://ns.adobe.com/xap/1.0/\0";
    let hidden = [&turned[..2], metadata, &turned[2..]].concat();
    let size = |bytes: &[u8]| {
        let pixels = decode(bytes, &Limits::default()).unwrap();
        (pixels.width(), pixels.height())
    };
    assert_eq!(size(&turned), (48, 72));
    assert_eq!(size(&hidden), (72, 48));
}

#[test]
fn a_webp_or_png_that_is_cut_off_is_refused() {
    for file in ["r34.webp", "r35.webp", "alpha_lossy.webp", "r29.png"] {
        let bytes = read_golden(format!("images/{file}"));
        assert!(decode(&bytes, &Limits::default()).is_ok(), "{file}");
        assert!(
            decode(&bytes[..bytes.len() - 1], &Limits::default()).is_err(),
            "{file}"
        );
    }
}

#[test]
fn a_foreign_format_is_named() {
    for (file, name) in [
        ("gif.gif", "a GIF image"),
        ("svg.bin", "an SVG image"),
        ("empty.bin", "no bytes"),
        ("text.bin", "bytes of no known image format"),
    ] {
        let error = decode(&read_golden(format!("images/{file}")), &Limits::default()).unwrap_err();
        let expected = format!("image: {name}, expected JPEG, PNG, WebP, BMP, TIFF or PNM");
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn pixels_have_the_size_they_claim() {
    assert!(Pixels::new(0, 1, Vec::new()).is_err());
    assert!(Pixels::new(1, 0, Vec::new()).is_err());
    assert!(Pixels::new(u32::MAX, u32::MAX, vec![0; 3]).is_err());
    assert_eq!(Pixels::new(1, 2, vec![7; 6]).unwrap().into_data(), [7; 6]);
}
