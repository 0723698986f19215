//! Photographs of 200 million pixels, in the memory of a few rows.

use ernie_vil::Preprocessing;
use ernie_vil::image::{LimitKind, Limits, Pixels, Preprocessor, decode};

use crate::support::memory::measured;

/// An EXIF segment that says how the camera was held.
fn exif(orientation: u8) -> Vec<u8> {
    let mut segment =
        b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    segment[28] = orientation;
    segment
}

/// Bits of a JPEG scan.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    waiting: u32,
    count: u32,
}

impl Bits {
    fn put(&mut self, bits: u32, count: u32) {
        self.waiting = self.waiting << count | bits;
        self.count += count;
        while self.count >= 8 {
            self.count -= 8;
            let byte = (self.waiting >> self.count) as u8;
            self.bytes.push(byte);
            if byte == 0xff {
                self.bytes.push(0);
            }
            self.waiting &= (1 << self.count) - 1;
        }
    }
}

/// A baseline JPEG with chroma of half the width and height: squares of many greys, whose colours change
/// slowly.
fn jpeg(width: u16, height: u16, orientation: u8) -> Vec<u8> {
    let mut file = b"\xff\xd8".to_vec();
    file.extend(exif(orientation));
    file.extend(b"\xff\xdb\0\x43\0");
    file.extend([8; 64]);
    // DC: a code of 4 bits for each of 0 to 11 bits. AC: one bit ends a block, two a coefficient of one bit.
    file.extend(b"\xff\xc4\0\x1f\0\0\0\0\x0c\0\0\0\0\0\0\0\0\0\0\0\0");
    file.extend(0..12);
    file.extend(b"\xff\xc4\0\x15\x10\x01\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01");
    file.extend(b"\xff\xc0\0\x11\x08");
    file.extend([height, width].map(u16::to_be_bytes).as_flattened());
    file.extend(b"\x03\x01\x22\0\x02\x11\0\x03\x11\0");
    file.extend(b"\xff\xda\0\x0c\x03\x01\0\x02\0\x03\0\0\x3f\0");
    let mut bits = Bits::default();
    let mut last = [0i32; 3];
    let mut block = |bits: &mut Bits, component: usize, level: i32, detail: bool| {
        let difference = level - last[component];
        last[component] = level;
        let size = 32 - difference.unsigned_abs().leading_zeros();
        bits.put(size, 4);
        let low = if difference < 0 {
            difference - 1
        } else {
            difference
        };
        bits.put(low as u32 & ((1 << size) - 1), size);
        if detail {
            bits.put(0b101, 3);
        }
        bits.put(0, 1);
    };
    let (across, down) = (i32::from(width.div_ceil(16)), i32::from(height.div_ceil(16)));
    for y in 0..down {
        for x in 0..across {
            for part in 0..4 {
                let square = (2 * x + part % 2) / 11 * 37 + (2 * y + part / 2) / 9 * 61;
                block(&mut bits, 0, square % 201 - 100, square % 3 == 0);
            }
            block(&mut bits, 1, x * 120 / across - 60, false);
            block(&mut bits, 2, y * 120 / down - 60, false);
        }
    }
    bits.put(0x7f, 7);
    file.extend(bits.bytes);
    file.extend(b"\xff\xd9");
    file
}

/// A PNG of squares.
fn png(width: u32, height: u32, orientation: u8, colour: png::ColorType) -> Vec<u8> {
    let mut file = Vec::new();
    let mut info = png::Info::with_size(width, height);
    info.color_type = colour;
    info.bit_depth = png::BitDepth::Eight;
    info.exif_metadata = Some(exif(orientation)[10..].to_vec().into());
    let mut encoder = png::Encoder::with_info(&mut file, info).unwrap();
    encoder.set_compression(png::Compression::Fastest);
    let mut writer = encoder.write_header().unwrap();
    let mut stream = writer.stream_writer().unwrap();
    let samples = colour.samples() as u32;
    let mut row = vec![0; (width * samples) as usize];
    for y in 0..height {
        if y % 53 == 0 {
            for (i, sample) in row.iter_mut().enumerate() {
                let x = i as u32 / samples;
                *sample = (x / 97 * 31 + y / 53 * 17 + i as u32 % samples * 80) as u8;
            }
        }
        std::io::Write::write_all(&mut stream, &row).unwrap();
    }
    stream.finish().unwrap();
    writer.finish().unwrap();
    file
}

/// One for each profile.
fn preprocessors(size: usize) -> [Preprocessor; 2] {
    [Preprocessing::Original, Preprocessing::PaddleNlp]
        .map(|profile| Preprocessor::with_profile(size, profile))
}

#[test]
fn rows_as_they_come_make_the_crop_of_all_pixels() {
    let limits = Limits::default();
    for orientation in 1..=8 {
        for (width, height) in [
            (1200, 900),
            (37, 501),
            (1000, 12),
            (224, 300),
            (13, 13),
            (448, 224),
        ] {
            let files = [
                jpeg(width, height, orientation),
                png(width.into(), height.into(), orientation, png::ColorType::Rgb),
                png(
                    width.into(),
                    height.into(),
                    orientation,
                    png::ColorType::GrayscaleAlpha,
                ),
            ];
            for file in files {
                let pixels = decode(&file, &limits).unwrap();
                let sides = [pixels.width(), pixels.height()];
                let turned = [u32::from(width), u32::from(height)];
                assert_eq!(
                    sides,
                    if orientation > 4 {
                        [turned[1], turned[0]]
                    } else {
                        turned
                    }
                );
                for preprocessor in preprocessors(224).into_iter().chain(preprocessors(40)) {
                    let crop = preprocessor.decode_crop(&file, &limits).unwrap();
                    assert!(
                        crop == preprocessor.crop(&pixels),
                        "{width} x {height}, orientation {orientation}, {preprocessor:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_jpeg_that_is_cut_off_makes_the_crop_of_its_pixels() {
    let file = jpeg(600, 400, 6);
    for cut in [file.len() / 5, file.len() / 2, file.len() - 3, file.len() - 2] {
        let file = &file[..cut];
        let pixels = decode(file, &Limits::default()).unwrap();
        for preprocessor in preprocessors(96) {
            let crop = preprocessor.decode_crop(file, &Limits::default()).unwrap();
            assert!(crop == preprocessor.crop(&pixels), "{cut} bytes");
        }
    }
}

/// The mean of each channel of a square of the crop, to know the picture by.
fn means(crop: &Pixels, left: usize, top: usize) -> [u8; 3] {
    let rows = crop
        .data()
        .chunks_exact(3 * crop.width() as usize)
        .skip(top)
        .take(40);
    let pixels: Vec<&[u8]> = rows
        .flat_map(|row| row[3 * left..][..120].chunks_exact(3))
        .collect();
    std::array::from_fn(|channel| {
        let sum: usize = pixels.iter().map(|pixel| usize::from(pixel[channel])).sum();
        (sum / pixels.len()) as u8
    })
}

#[test]
fn two_hundred_megapixels_take_a_few_megabytes() {
    const MB: usize = 1 << 20;
    let limits = Limits {
        max_memory: 64 << 20,
        ..Limits::default()
    };
    for orientation in [1, 6] {
        let jpeg = jpeg(20_000, 10_000, orientation);
        for preprocessor in preprocessors(224) {
            let (crop, bytes) = measured(|| preprocessor.decode_crop(&jpeg, &limits));
            assert!(bytes < 16 * MB, "JPEG: {bytes} bytes");
            // Red grows to the bottom of the file's picture and blue to its right.
            let crop = crop.unwrap();
            let [start, end] = [means(&crop, 0, 0), means(&crop, 184, 184)];
            let growing = if orientation == 1 { [0, 2] } else { [2, 2] };
            assert!(
                growing.iter().all(|&channel| start[channel] + 30 < end[channel]),
                "{start:?} {end:?}"
            );
        }
        let png = png(20_000, 10_000, orientation, png::ColorType::Grayscale);
        for preprocessor in preprocessors(224) {
            let (crop, bytes) = measured(|| preprocessor.decode_crop(&png, &limits));
            assert!(bytes < 16 * MB, "PNG: {bytes} bytes");
            assert_eq!(crop.unwrap().width(), 224);
        }
    }
}

#[test]
fn what_has_to_be_held_is_limited_by_its_memory() {
    let limits = |max_memory| Limits {
        max_memory,
        ..Limits::default()
    };
    // 8000 x 6000 pixels of a progressive JPEG: its header, and a scan of DC values that are all the same.
    let mut progressive = b"\xff\xd8\xff\xdb\0\x43\0".to_vec();
    progressive.extend([8; 64]);
    progressive.extend(b"\xff\xc4\0\x14\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    progressive.extend(b"\xff\xc2\0\x11\x08\x17\x70\x1f\x40\x03\x01\x22\0\x02\x11\0\x03\x11\0");
    progressive.extend(b"\xff\xda\0\x0c\x03\x01\0\x02\0\x03\0\0\0\0\xff\xd9");
    let preprocessor = Preprocessor::new(224);
    // A photograph of 48 million pixels is decoded under the limits of the command line and of the server.
    for most in [512 << 20, 320 << 20] {
        let (crop, bytes) = measured(|| preprocessor.decode_crop(&progressive, &limits(most)));
        assert!(crop.unwrap().data().iter().all(|&level| level == 128));
        assert!(bytes < most as usize, "{bytes} bytes");
    }
    let (error, bytes) = measured(|| {
        preprocessor
            .decode_crop(&progressive, &limits(100 << 20))
            .unwrap_err()
    });
    assert_eq!(
        error.to_string(),
        "image: JPEG of 8000 x 6000 pixels, which takes 146 MB of memory to decode, expected at most 100 MB"
    );
    assert_eq!(error.limit(), Some(LimitKind::Memory));
    assert!(bytes < 1 << 20, "{bytes} bytes");

    // Of a BMP, an interlaced PNG and others all pixels are held, and of a file that is turned upright twice.
    let error = decode(&jpeg(3000, 2000, 6), &limits(20 << 20)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("takes 35 MB of memory to decode, expected at most 20 MB"),
        "{error}"
    );
    let error = preprocessor
        .decode_crop(b"P6 3000 2000 255 ", &limits(20 << 20))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("takes 23 MB of memory to decode, expected at most 20 MB"),
        "{error}"
    );
}
