//! TIFF as OpenCV 4.6 reads it, which is by libtiff 4.2's conversion to RGBA.
//!
//! | part | |
//! | --- | --- |
//! | files | TIFF and BigTIFF, either byte order, the first picture |
//! | layout | strips and tiles, samples together or in planes, either order of bits, all orientations |
//! | compression | none, PackBits, LZW (also as libtiff wrote it first), Deflate, fax (groups 3 and 4, RLE), JPEG |
//! | pixels | black and white, grey, palettes, RGB, CMYK, YCbCr; with an alpha, which colours are multiplied with |
//!
//! Everything else is an error that says what was found, also where libtiff makes a black picture of a
//! compression that it does not know. Some tiles are read rightly, which OpenCV does not: those of 16-bit
//! grey, of grey with alpha and of YCbCr in blocks of 4 x 4 that reach beyond the picture, and those that an
//! orientation mirrors.
//!
//! What a strip holds may be damaged: as in libtiff, what comes before the damage is kept and the rest of the
//! strip is zeros. Where strips lie may not: they have to be inside of the file and may not overlap, so that
//! a small file cannot ask for much work. Time grows with the file's bytes and the pixels, those of tiles
//! beyond the picture included, whose number is limited.

mod colour;
mod directory;
mod fax;
mod layout;
mod streams;
mod unpack;

use std::fmt::Display;

use super::Pixels;
use super::decode::{Format, Limits};
use super::orientation::Orientation;
use crate::{Error, Result};
use colour::Colours;
pub(super) use colour::{multiplied, printed};
use directory::Directory;
use layout::{Cell, Grid, Places};
use unpack::Unpacker;

/// The compressions that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    PackBits,
    Lzw,
    Deflate,
    Jpeg,
    /// Runs; a row starts at a byte.
    FaxBytes,
    /// Runs; a row starts at a pair of bytes.
    FaxWords,
    Fax3,
    Fax4,
}

impl Compression {
    fn of(number: u16) -> Result<Self> {
        let name = match number {
            1 => return Ok(Self::None),
            2 => return Ok(Self::FaxBytes),
            3 => return Ok(Self::Fax3),
            4 => return Ok(Self::Fax4),
            5 => return Ok(Self::Lzw),
            7 => return Ok(Self::Jpeg),
            8 | 32946 => return Ok(Self::Deflate),
            32771 => return Ok(Self::FaxWords),
            32773 => return Ok(Self::PackBits),
            6 => "JPEG of the old kind",
            9 | 10 | 34661 => "JBIG",
            32766 => "NeXT's",
            32809 => "ThunderScan's",
            32908 | 32909 => "Pixar's",
            34676 | 34677 => "SGI's LogLuv",
            33003 | 33004 | 33005 | 34712 => "JPEG 2000",
            34887 => "LERC",
            34925 => "LZMA",
            50000 => "Zstandard",
            34927 | 50001 => "WebP",
            50002 | 52546 => "JPEG XL",
            _ => "unknown",
        };
        Err(error(format_args!(
            "compression {number} ({name}), expected none, PackBits, LZW, Deflate, fax or JPEG"
        )))
    }

    /// Whether samples may be differences to the ones before.
    fn has_predictor(self) -> bool {
        matches!(self, Self::Lzw | Self::Deflate)
    }

    fn is_fax(self) -> bool {
        matches!(self, Self::FaxBytes | Self::FaxWords | Self::Fax3 | Self::Fax4)
    }
}

fn error(message: impl Display) -> Error {
    Error::Image(format!("TIFF: {message}"))
}

/// Decodes the first picture of a file that starts with `II` or `MM`.
///
/// Colours of 16 bits are rounded to 8, grey is cut, signed samples are taken for unsigned ones; colours are
/// multiplied with an unassociated alpha; the orientation is applied.
///
/// Memory: 3 bytes a pixel, and for the strip or tile in hand its samples as they are stored, or up to 13
/// bytes a pixel of a JPEG stream.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Pixels> {
    let (width, height) = Directory::size(bytes)?;
    limits.check(Format::Tiff, width, height)?;
    let directory = Directory::read(bytes)?;
    let grid = Grid::new(&directory)?;
    let orientation = Orientation::from_number(directory.orientation);
    let whole = u64::from(width) * u64::from(height) * if orientation.is_some() { 6 } else { 3 };
    let in_hand = match directory.compression {
        Compression::Jpeg => 13 * grid.width as u64 * grid.height as u64,
        _ => {
            let planes = if directory.planar {
                u64::from(directory.samples)
            } else {
                1
            };
            planes * grid.row as u64 * grid.height.div_ceil(grid.rows_together) as u64
        }
    };
    limits.check_memory(Format::Tiff, width, height, whole + in_hand)?;
    let places = Places::new(bytes, &directory, &grid)?;
    let mut picture = Picture {
        data: vec![0; 3 * width as usize * height as usize],
        width: width as usize,
        height: height as usize,
    };
    if directory.compression == Compression::Jpeg {
        // A last strip may hold more than its part of the picture.
        let check = |stream| limits.check_memory(Format::Tiff, width, height, whole + stream);
        streams::decode(&directory, &grid, &places, &mut picture, &check)?;
    } else {
        decode_samples(&directory, &grid, &places, &mut picture)?;
    }
    let pixels = Pixels::new(width, height, picture.data)?;
    Ok(match orientation {
        Some(orientation) => orientation.apply(&pixels),
        None => pixels,
    })
}

/// The picture as far as it is decoded.
struct Picture {
    data: Vec<u8>,
    width: usize,
    height: usize,
}

impl Picture {
    /// The pixels of a row that lie in a cell, beginning at its left.
    fn row(&mut self, cell: &Cell, line: usize) -> &mut [[u8; 3]] {
        let start = (cell.y + line) * self.width;
        let end = (cell.x + cell.width).min(self.width);
        &mut self.data.as_chunks_mut().0[start + cell.x..start + end]
    }
}

/// Decodes strips or tiles of any compression but JPEG.
fn decode_samples(directory: &Directory, grid: &Grid, places: &Places, picture: &mut Picture) -> Result<()> {
    let colours = Colours::of(directory)?;
    if directory.compression.is_fax() && directory.bits != 1 {
        return Err(error(format_args!(
            "fax of {} bits a sample, expected 1",
            directory.bits
        )));
    }
    if directory.compression.has_predictor()
        && !(directory.predictor == 1 || directory.predictor == 2 && directory.bits >= 8)
    {
        return Err(error(format_args!(
            "predictor {} of {} bits a sample, expected 1, or 2 of at least 8 bits",
            directory.predictor, directory.bits
        )));
    }

    let &Grid {
        samples,
        rows_together,
        row,
        counted_row,
        ..
    } = grid;
    let step = samples * usize::from(directory.bits.div_ceil(8));
    let plane_size = row * grid.height.div_ceil(rows_together);
    let planes = if directory.planar { colours.planes() } else { &[0] };
    let mut unpacker = Unpacker::new(directory, grid.width as u32, counted_row);
    let mut buffer = vec![0; plane_size * planes.len()];
    for index in 0..grid.len() {
        let cell = grid.cell(index, picture);
        let mut size = row * cell.stored_rows.div_ceil(rows_together);
        if !grid.tiled {
            size = size.min(counted_row * cell.stored_rows.next_multiple_of(rows_together));
        }
        for (&plane, out) in planes.iter().zip(buffer.chunks_exact_mut(plane_size)) {
            let (out, rest) = out.split_at_mut(size);
            rest.fill(0);
            let index = plane * grid.len() + index;
            let mut packed = places.bytes(index)?;
            // libtiff does not look at how many bytes there are of such strips.
            if directory.compression == Compression::None && plane > 0 && !grid.tiled {
                let (start, _) = places.place(index)?;
                packed = places.bytes.get(start..start + size).unwrap_or(packed);
            }
            unpacker.unpack(packed, out);
        }
        for line in 0..cell.rows {
            let start = line / rows_together * row;
            let size = step / samples;
            let samples = [0, 1, 2, 3].map(|sample| {
                let at = if !directory.planar {
                    start + sample * size
                } else {
                    start + sample * plane_size
                };
                buffer.get(at..).unwrap_or_default()
            });
            colours.convert(samples, step, line % rows_together, picture.row(&cell, line));
        }
    }
    Ok(())
}
