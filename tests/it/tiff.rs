//! TIFF files of every kind against the pixels that OpenCV 4.6 gives for them, and files that are refused.
//!
//! `tiff_cases/KIND-VARIANT.tif` has the pixels of `tiff_cases/KIND.png`, which are those of
//! `cv2.imdecode(..., IMREAD_COLOR)`. The files were made with tiffcp, Pillow and own code.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use ernie_vil::image::{Limits, Pixels, decode};
use proptest::prelude::*;

use crate::support::repository;

fn folder() -> PathBuf {
    repository("tests/tiff_cases")
}

/// The names of all files without `.tif`, and their bytes.
fn files() -> BTreeMap<String, Vec<u8>> {
    let paths = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|kind| kind == "tif"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, fs::read(path).unwrap())
        })
        .collect()
}

fn expected(name: &str) -> Pixels {
    let kind = name.split('-').next().unwrap();
    let bytes = fs::read(folder().join(format!("{kind}.png"))).unwrap();
    decode(&bytes, &Limits::default()).unwrap()
}

#[test]
fn every_kind_has_the_pixels_of_opencv() {
    let files = files();
    assert!(files.len() > 80);
    let mut wrong = Vec::new();
    for (name, bytes) in &files {
        match decode(bytes, &Limits::default()) {
            Ok(pixels) if pixels == expected(name) => {}
            Ok(_) => wrong.push(format!("{name}: other pixels")),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The type of 2 bytes and of 4.
const SHORT: u16 = 3;
const LONG: u16 = 4;

/// A file of little-endian order: strips, then the values of entries that have several, then the directory.
struct File {
    bytes: Vec<u8>,
    entries: BTreeMap<u16, (u16, Vec<u32>)>,
}

impl File {
    /// Grey of 8 bits, uncompressed, in one strip.
    fn new(width: u32, height: u32) -> Self {
        let file = Self {
            bytes: b"II*\0\0\0\0\0".to_vec(),
            entries: BTreeMap::new(),
        };
        file.with(256, LONG, &[width])
            .with(257, LONG, &[height])
            .with(258, SHORT, &[8])
            .with(259, SHORT, &[1])
            .with(262, SHORT, &[1])
            .with(277, SHORT, &[1])
            .with(278, LONG, &[height])
    }

    fn with(mut self, tag: u16, kind: u16, values: &[u32]) -> Self {
        self.entries.insert(tag, (kind, values.to_vec()));
        self
    }

    /// Puts bytes into the file.
    fn data(mut self, data: &[u8]) -> Self {
        self.bytes.extend(data);
        self
    }

    /// Says where the strips are and how long each is.
    fn strips(self, offsets: &[u32], counts: &[u32]) -> Self {
        self.with(273, LONG, offsets).with(279, LONG, counts)
    }

    fn tiles(self, sides: [u32; 2], offsets: &[u32], counts: &[u32]) -> Self {
        self.with(322, LONG, &[sides[0]])
            .with(323, LONG, &[sides[1]])
            .with(324, LONG, offsets)
            .with(325, LONG, counts)
    }

    fn finish(mut self) -> Vec<u8> {
        let mut directory = (self.entries.len() as u16).to_le_bytes().to_vec();
        for (tag, (kind, values)) in &self.entries {
            let mut data = Vec::new();
            for value in values {
                data.extend(&value.to_le_bytes()[..if *kind == SHORT { 2 } else { 4 }]);
            }
            directory.extend(tag.to_le_bytes());
            directory.extend(kind.to_le_bytes());
            directory.extend((values.len() as u32).to_le_bytes());
            if data.len() <= 4 {
                data.resize(4, 0);
                directory.extend(data);
            } else {
                directory.extend((self.bytes.len() as u32).to_le_bytes());
                self.bytes.extend(data);
            }
        }
        let at = self.bytes.len() as u32;
        self.bytes[4..8].copy_from_slice(&at.to_le_bytes());
        self.bytes.extend(directory);
        self.bytes.extend([0; 4]);
        self.bytes
    }
}

#[track_caller]
fn assert_refused(bytes: &[u8], expected: &str) {
    let error = decode(bytes, &Limits::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("image: TIFF: {expected}"));
}

/// A picture of 2 x 1 pixels with this entry in it.
fn small(tag: u16, kind: u16, values: &[u32]) -> Vec<u8> {
    let samples = if tag == 262 && values[0] > 1 { 3 } else { 1 };
    File::new(2, 1)
        .data(&[1, 2, 3, 4, 5, 6])
        .strips(&[8], &[6])
        .with(277, SHORT, &[samples])
        .with(tag, kind, values)
        .finish()
}

#[test]
fn what_is_not_read_is_named() {
    assert!(decode(&small(274, SHORT, &[1]), &Limits::default()).is_ok());
    for (number, name) in [
        (6, "JPEG of the old kind"),
        (34661, "JBIG"),
        (34712, "JPEG 2000"),
        (50000, "Zstandard"),
        (50001, "WebP"),
        (12345, "unknown"),
    ] {
        assert_refused(
            &small(259, SHORT, &[number]),
            &format!("compression {number} ({name}), expected none, PackBits, LZW, Deflate, fax or JPEG"),
        );
    }
    assert_refused(
        &small(262, SHORT, &[8]),
        "pixels of 3 samples of 8 bits with photometric interpretation 8, which is CIE L*a*b*: not supported",
    );
    assert_refused(
        &small(262, SHORT, &[32803]),
        "pixels of 3 samples of 8 bits with photometric interpretation 32803, not supported",
    );
    assert_refused(
        &small(339, SHORT, &[3]),
        "samples of format 3, expected whole numbers",
    );
    for bits in [2, 4, 12, 32] {
        assert_refused(
            &small(258, SHORT, &[bits]),
            &format!(
                "pixels of 1 samples of {bits} bits with photometric interpretation 1, expected 1, 8 or 16 bits"
            ),
        );
    }
    assert_refused(&small(277, SHORT, &[5]), "5 samples a pixel, expected 1 to 4");
    assert_refused(
        &small(256, LONG, &[1, 2]),
        "tag 256 holds 2 values, expected one of at most 4294967295",
    );
}

#[test]
fn strips_and_tiles_lie_apart_and_inside_of_the_file() {
    let grey = |offsets: &[u32], counts: &[u32]| {
        File::new(2, 4)
            .with(278, LONG, &[2])
            .data(&[1, 2, 3, 4, 5, 6, 7, 8])
            .strips(offsets, counts)
            .finish()
    };
    let pixels = decode(&grey(&[12, 8], &[4, 4]), &Limits::default()).unwrap();
    assert_eq!(pixels.data()[..3], [5, 5, 5]);
    assert_refused(&grey(&[8, 11], &[4, 4]), "strips 0 and 1 overlap");
    assert_refused(&grey(&[12, 9], &[4, 4]), "strips 1 and 0 overlap");
    assert_refused(&grey(&[8, 8], &[4, 4]), "strips 0 and 1 overlap");
    assert_refused(
        &grey(&[8, 12], &[4, 1000]),
        "strip or tile 1 has 1000 bytes at byte 12, the file has 146",
    );
    assert_refused(
        &grey(&[8], &[4]),
        "strip or tile 1 has 0 bytes at byte 0, the file has 130",
    );
    assert_refused(
        &grey(&[8, u32::MAX], &[4, u32::MAX]),
        "strip or tile 1 has 1048576 bytes at byte 4294967295, the file has 146",
    );

    let tiled = |sides, offsets: &[u32], counts: &[u32]| {
        let file = File::new(20, 16).data(&[7; 512]);
        file.tiles(sides, offsets, counts).finish()
    };
    assert!(decode(&tiled([16, 16], &[8, 264], &[256, 256]), &Limits::default()).is_ok());
    assert_refused(&tiled([16, 16], &[8, 100], &[256, 256]), "tiles 0 and 1 overlap");
    assert_refused(
        &tiled([16, 0], &[8], &[256]),
        "tiles of 16 x 0 pixels, expected at least 1 x 1",
    );
    for sides in [[1 << 30, 1 << 30], [1 << 20, 1 << 8], [u32::MAX, u32::MAX]] {
        assert_refused(
            &tiled(sides, &[8], &[512]),
            &format!(
                "tiles of {} x {} pixels for 20 x 16, expected smaller ones",
                sides[0], sides[1]
            ),
        );
    }
}

/// The time that this thread has computed; where the system does not tell, the time that has gone by.
fn computed() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let spent = fs::read_to_string("/proc/thread-self/schedstat").ok();
    let spent = spent.and_then(|line| line.split(' ').next()?.parse().ok());
    spent.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

/// Decodes, in time that leaves room for a slow machine.
#[track_caller]
fn decode_quickly(bytes: &[u8]) -> ernie_vil::Result<Pixels> {
    let start = computed();
    let decoded = decode(bytes, &Limits::default());
    let time = computed() - start;
    assert!(
        time < Duration::from_secs(3),
        "{time:?} for {} bytes",
        bytes.len()
    );
    decoded
}

/// Fourteen megabytes that every strip unpacks again would be hours of work.
#[test]
fn strips_of_the_same_bytes_are_refused_at_once() {
    const STRIPS: usize = 100_000;
    let nothing = vec![0x80; 14 << 20];
    let file = File::new(64, STRIPS as u32)
        .with(259, SHORT, &[32773])
        .with(278, LONG, &[1])
        .data(&nothing);
    let file = file.strips(&vec![8; STRIPS], &vec![nothing.len() as u32; STRIPS]);
    let error = decode_quickly(&file.finish()).unwrap_err();
    assert_eq!(error.to_string(), "image: TIFF: strips 0 and 1 overlap");
}

/// A million strips, in their order, in the opposite one, and in none.
#[test]
fn many_strips_take_little_time() {
    const STRIPS: u32 = 1 << 20;
    for (compression, strip) in [
        (1, &b"a"[..]),
        (32773, &b"\0a"[..]),
        (5, &[0x80, 0x18, 0x60, 0x20][..]),
    ] {
        let length = strip.len() as u32;
        for order in [
            |index| index,
            |index| STRIPS - 1 - index,
            |index: u32| index.wrapping_mul(0x9E37_79B1) % STRIPS,
        ] {
            let offsets: Vec<u32> = (0..STRIPS).map(|index| 8 + length * order(index)).collect();
            let file = File::new(1, STRIPS)
                .with(259, SHORT, &[compression])
                .with(278, LONG, &[1])
                .data(&strip.repeat(STRIPS as usize))
                .strips(&offsets, &vec![length; STRIPS as usize]);
            let file = file.finish();
            let pixels = decode_quickly(&file).unwrap();
            assert!(pixels.data().iter().all(|&light| light == b'a'));
        }
    }
}

/// Data that gives no pixels, or little data that gives many: time follows from both.
#[test]
fn no_compression_makes_much_work() {
    const LENGTH: usize = 8 << 20;
    let file = |width, height, bits, compression, data: &[u8]| {
        File::new(width, height)
            .with(258, SHORT, &[bits])
            .with(259, SHORT, &[compression])
            .data(data)
            .strips(&[8], &[data.len() as u32])
            .finish()
    };
    // Runs of nothing in every coding, empty Deflate blocks, LZW that only clears its table, a blank page.
    let empty_blocks = [&b"\x78\x9c"[..], &b"\0\0\0\xff\xff".repeat(LENGTH / 5)].concat();
    let clears = b"\x80\x40\x20\x10\x08\x04\x02\x01\x00".repeat(LENGTH / 9);
    let zero_runs = [0b0010_0110, 0b1010_0001, 0b1011_1001].repeat(LENGTH / 3);
    for (bits, compression, data) in [
        (8, 32773, &vec![0x80; LENGTH]),
        (8, 8, &empty_blocks),
        (8, 5, &clears),
        (1, 2, &vec![0; LENGTH]),
        (1, 3, &vec![0; LENGTH]),
        (1, 4, &zero_runs),
        (1, 4, &vec![0xFF; LENGTH]),
    ] {
        let _ = decode_quickly(&file(1 << 20, 64, bits, compression, data));
    }
    let blank = decode_quickly(&file(8192, 8192, 1, 4, &[0xFF; 1024])).unwrap();
    assert!(blank.data().iter().all(|&light| light == 0));
}

/// The directory: whether numbers have their low byte first, and where its entries are, of how many bytes
/// each.
fn directory(bytes: &[u8]) -> (bool, usize, usize, usize) {
    let little = bytes[0] == b'I';
    if number(bytes, little, 2, 2) == 43 {
        let at = number(bytes, little, 8, 8) as usize;
        (little, at + 8, number(bytes, little, at, 8) as usize, 20)
    } else {
        let at = number(bytes, little, 4, 4) as usize;
        (little, at + 2, number(bytes, little, at, 2) as usize, 12)
    }
}

fn number(bytes: &[u8], little: bool, at: usize, length: usize) -> u64 {
    let add = |number, &byte: &u8| number << 8 | u64::from(byte);
    let field = &bytes[at..at + length];
    if little {
        field.iter().rev().fold(0, add)
    } else {
        field.iter().fold(0, add)
    }
}

fn set_number(bytes: &mut [u8], little: bool, at: usize, length: usize, number: u64) {
    for index in 0..length {
        let place = if little { index } else { length - 1 - index };
        bytes[at + index] = (number >> (8 * place)) as u8;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Changes of tags, types, counts, values and data of sound files.
    #[test]
    fn changed_files_do_not_panic(
        file in prop::sample::select(files().into_values().collect::<Vec<_>>()),
        changes in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..5, prop_oneof![0..10u64, 0..300u64, any::<u64>()]),
            1..5,
        ),
    ) {
        let mut bytes = file;
        let (little, start, count, size) = directory(&bytes);
        let (count_length, value_length) = if size == 20 { (8, 8) } else { (4, 4) };
        for (index, field, number) in changes {
            let entry = start + size * index.index(count);
            match field {
                0 => set_number(&mut bytes, little, entry, 2, 250 + number % 100),
                1 => set_number(&mut bytes, little, entry + 2, 2, number % 20),
                2 => set_number(&mut bytes, little, entry + 4, count_length, number),
                3 => set_number(&mut bytes, little, entry + 4 + count_length, value_length, number),
                _ => {
                    let at = index.index(bytes.len());
                    bytes[at] = number as u8;
                }
            }
        }
        let limits = Limits { max_pixels: 1 << 18, ..Limits::default() };
        if let Ok(pixels) = decode(&bytes, &limits) {
            prop_assert!(u64::from(pixels.width()) * u64::from(pixels.height()) <= limits.max_pixels);
        }
    }
}
