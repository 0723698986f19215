//! PNG as OpenCV reads it, which is by libpng.
//!
//! The `png` crate sees a file of nothing but its header, its palette, its pixels and its end. Metadata
//! changes no pixel that OpenCV gives, and libpng goes on where it is damaged, but the crate refuses some
//! files for it (0.18.1: the animation's chunks, cICP, a palette that is not needed), and panics at others:
//! where PLTE has a length that is no multiple of 3, which is up to the one that calls it. Transparency is
//! left out in any case, so tRNS is not read either.

use std::fmt::Display;
use std::ops::Range;

use super::chain::Chain;
use super::decode::Format;
use super::orientation::Orientation;
use super::rows::Rows;
use crate::{Error, Result};

/// Bytes of a chunk beside its data: length, name and checksum.
const AROUND: usize = 12;
/// The last chunk, as it should be.
const END: [u8; AROUND] = *b"\0\0\0\0IEND\xae\x42\x60\x82";
/// Chunks that need not be there, of those that libpng 1.6 reads.
const KNOWN: [&[u8; 4]; 17] = [
    b"bKGD", b"cHRM", b"eXIf", b"gAMA", b"hIST", b"iCCP", b"iTXt", b"oFFs", b"pCAL", b"pHYs", b"sBIT",
    b"sCAL", b"sPLT", b"sRGB", b"tEXt", b"tIME", b"tRNS",
];
/// The first pixel and the distance of the next one, across and down, in each pass of an interlaced image.
const PASSES: [[usize; 4]; 7] = [
    [0, 0, 8, 8],
    [4, 0, 8, 8],
    [0, 4, 4, 8],
    [2, 0, 4, 4],
    [0, 2, 2, 4],
    [1, 0, 2, 2],
    [0, 1, 1, 2],
];

fn damaged(message: impl Display) -> Error {
    Error::Image(format!("{}: {message}", Format::Png))
}

/// A file whose chunks were looked through.
pub(super) struct Png<'a> {
    pub width: u32,
    pub height: u32,
    pub orientation: Option<Orientation>,
    /// Whether rows do not come from top to bottom.
    pub interlaced: bool,
    /// Bytes of a pixel in the file, at least 1.
    pixel: u64,
    /// What stands before the pixels, as the crate is to see it.
    head: Vec<u8>,
    /// The first sequence of IDAT chunks.
    data: &'a [u8],
}

struct Chunk<'a> {
    name: [u8; 4],
    body: &'a [u8],
    /// The whole chunk's bytes in the file.
    place: Range<usize>,
    intact: bool,
}

impl<'a> Chunk<'a> {
    /// The chunk at a byte of the file. A damaged one of those that count is an error.
    fn at(bytes: &'a [u8], at: usize) -> Result<Self> {
        let rest = &bytes[at..];
        let cut = || {
            damaged(format_args!(
                "{} bytes, a chunk at byte {at} is cut off",
                bytes.len()
            ))
        };
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let name = *after.first_chunk::<4>().ok_or_else(cut)?;
        let length = u32::from_be_bytes(*length);
        if length > i32::MAX as u32 || !name.iter().all(u8::is_ascii_alphabetic) {
            return Err(damaged(format_args!(
                "a chunk {:?} of {length} bytes at byte {at}, expected a name of letters and at most {} bytes",
                name.escape_ascii().to_string(),
                i32::MAX
            )));
        }
        let end = (length as usize).checked_add(AROUND).ok_or_else(cut)?;
        let chunk = rest.get(..end).ok_or_else(cut)?;
        let (checked, sum) = chunk[4..].split_last_chunk::<4>().ok_or_else(cut)?;
        // The crate checks IDAT as it reads it.
        let intact = name == *b"IDAT" || crc(checked) == u32::from_be_bytes(*sum);
        if !intact && name[0].is_ascii_uppercase() {
            return Err(damaged(format_args!(
                "the checksum of the chunk {} at byte {at} is wrong",
                name.escape_ascii()
            )));
        }
        Ok(Self {
            name,
            body: &checked[4..],
            place: at..at + end,
            intact,
        })
    }
}

impl<'a> Png<'a> {
    /// Looks through the file's chunks by libpng's rules.
    pub fn open(bytes: &'a [u8]) -> Result<Self> {
        let mut header = Chunk::at(bytes, 8)?;
        // What libpng does not know it passes over even there.
        while header.name[0].is_ascii_lowercase() && !KNOWN.contains(&&header.name) {
            header = Chunk::at(bytes, header.place.end)?;
        }
        let Some(&[width, height, kind]) = (header.body.len() == 13)
            .then_some(header.body.as_chunks::<4>().0)
            .filter(|_| &header.name == b"IHDR")
            .and_then(|fields| fields.first_chunk())
        else {
            return Err(damaged("expected IHDR of 13 bytes first"));
        };
        let [depth, colour, ..] = kind;
        let samples = match colour {
            2 => 3,
            4 => 2,
            6 => 4,
            _ => 1,
        };
        let indexed = colour == 3;
        let mut palette = None;
        let mut exif = None;
        let mut data: Option<Range<usize>> = None;
        let mut at = header.place.end;
        loop {
            let Chunk {
                name,
                body,
                place,
                intact,
            } = Chunk::at(bytes, at)?;
            at = place.end;
            match &name {
                b"IDAT" => match &mut data {
                    None => data = Some(place),
                    Some(data) if data.end == place.start => data.end = place.end,
                    // Of another sequence only its checksum counts.
                    Some(_) => {
                        let (checked, sum) = bytes[place.start + 4..place.end].split_at(body.len() + 4);
                        if crc(checked).to_be_bytes() != sum {
                            return Err(damaged(format_args!(
                                "the checksum of the chunk IDAT at byte {} is wrong",
                                place.start
                            )));
                        }
                    }
                },
                b"IEND" if data.is_some() => break,
                b"PLTE" if palette.is_some() => return Err(damaged("a second palette (PLTE)")),
                b"PLTE" if data.is_some() => {}
                b"PLTE" => {
                    let fits = body.len() <= 768 && body.len().is_multiple_of(3);
                    // In an image of colours a palette is a hint, in one of grey levels a mistake. An empty
                    // one is refused where it is looked at.
                    if indexed && !fits || colour & 2 != 0 && body.is_empty() {
                        return Err(damaged(format_args!(
                            "a palette (PLTE) of {} bytes, expected 3 for each of 1 to 256 colours",
                            body.len()
                        )));
                    }
                    palette = Some(body);
                }
                b"eXIf" => {
                    // libpng keeps the first that may be one.
                    let sound = matches!(body, [first, second, ..] if second == first || matches!(second, b'M' | b'I'));
                    if intact && sound && exif.is_none() {
                        exif = Some(body);
                    }
                }
                [b'A'..=b'Z', ..] => {
                    return Err(damaged(format_args!(
                        "the chunk {} at byte {}, which does not belong there",
                        name.escape_ascii(),
                        place.start
                    )));
                }
                _ => {}
            }
        }
        let data = &bytes[data.unwrap_or_default()];

        let mut head = [&bytes[..8], &bytes[header.place]].concat();
        if indexed {
            let palette = palette.ok_or_else(|| damaged("no palette (PLTE) before the pixels"))?;
            // Colours that the file does not have are black.
            let mut chunk = [&[0, 0, 3, 0], &b"PLTE"[..], palette].concat();
            chunk.truncate(8 + (3 << depth.min(8)));
            chunk.resize(8 + 768, 0);
            let sum = crc(&chunk[4..]);
            head.extend(chunk);
            head.extend(sum.to_be_bytes());
        }
        Ok(Self {
            width: u32::from_be_bytes(width),
            height: u32::from_be_bytes(height),
            orientation: exif.and_then(Orientation::from_exif),
            interlaced: header.body[12] != 0,
            pixel: samples * u64::from(depth.div_ceil(8)),
            head,
            data,
        })
    }

    /// Bytes that are held beside the rows: a few rows of the file, and all of an interlaced image.
    pub fn held(&self) -> u64 {
        32 * self.pixel * u64::from(self.width)
    }

    /// Decodes the pixels. An interlaced image's rows come more than once, each with pixels added to it.
    pub fn read(&self, rows: &mut dyn Rows) -> Result<()> {
        let mut options = png::DecodeOptions::default();
        options.set_ignore_adler32(false);
        let chain = Chain::new([&self.head, self.data, &END]);
        let mut decoder = png::Decoder::new_with_options(chain, options);
        // Beside rows, whose length is checked, the decoder reserves no more than the file holds.
        decoder.set_limits(png::Limits { bytes: usize::MAX });
        decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
        let mut reader = decoder.read_info().map_err(damaged)?;
        let (width, height) = (self.width as usize, self.height as usize);
        let length = reader
            .output_line_size(self.width)
            .ok_or_else(|| damaged(png::DecodingError::LimitsExceeded))?;
        let samples = reader.output_color_type().0.samples();
        let mut line = vec![0; length];
        let passes = if self.interlaced {
            &PASSES[..]
        } else {
            &[[0, 0, 1, 1]]
        };
        for &[left, top, across, down] in passes {
            if left >= width {
                continue;
            }
            for y in (top..height).step_by(down) {
                reader.read_row(&mut line).map_err(damaged)?;
                let Some(row) = rows.slot(y) else { continue };
                let row = &mut row.as_chunks_mut::<3>().0[left..];
                match samples {
                    3 if across == 1 => row.as_flattened_mut().copy_from_slice(&line),
                    // Grey, with an alpha or without.
                    1 | 2 => {
                        for (pixel, from) in row.iter_mut().step_by(across).zip(line.chunks_exact(samples)) {
                            *pixel = [from[0]; 3];
                        }
                    }
                    _ => {
                        for (pixel, from) in row.iter_mut().step_by(across).zip(line.chunks_exact(samples)) {
                            *pixel = [from[0], from[1], from[2]];
                        }
                    }
                }
                rows.done(y);
            }
        }
        // What is left of the data counts by its checksums: libpng accepts no file in which they are wrong.
        reader.finish().map_err(damaged)
    }
}

/// The checksum of a chunk's name and data.
fn crc(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut sum = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                sum = sum >> 1 ^ if sum & 1 == 1 { 0xEDB8_8320 } else { 0 };
                bit += 1;
            }
            table[byte] = sum;
            byte += 1;
        }
        table
    };
    !bytes
        .iter()
        .fold(!0, |sum, &byte| sum >> 8 ^ TABLE[usize::from(sum as u8 ^ byte)])
}
