//! Strips and tiles that are JPEG streams.

use std::borrow::Cow;

use super::colour::Colours;
use super::directory::{DEFAULT_SUBSAMPLING, Directory, photometric};
use super::layout::{BYTES_OF_JPEG, Cell, Grid, Places};
use super::{Picture, error};
use crate::image::jpeg::{Colours as Meaning, Part, Tables};
use crate::{Error, Result};

/// JPEG streams may be so many that each has this many pixels on average, since setting one up takes time ...
const PIXELS_OF_JPEG: u64 = 64;
/// ... and this many more.
const MAX_JPEGS_BESIDE: u64 = 1 << 12;

/// Decodes strips or tiles that are JPEG streams.
pub(super) fn decode(
    directory: &Directory,
    grid: &Grid,
    places: &Places,
    picture: &mut Picture,
    check_memory: &dyn Fn(u64) -> Result<()>,
) -> Result<()> {
    let mut streams = Streams::new(directory)?;
    let planes = if directory.planar {
        streams.colours.planes()
    } else {
        &[0]
    };
    let count = (grid.len() * planes.len()) as u64;
    let pixels = (picture.width * picture.height) as u64;
    if count > pixels / PIXELS_OF_JPEG + MAX_JPEGS_BESIDE {
        return Err(error(format_args!(
            "{count} JPEG streams for {pixels} pixels, expected larger strips or tiles"
        )));
    }
    // A last strip may go on where the picture ends.
    let most_pixels = (Grid::most_bytes(pixels) / BYTES_OF_JPEG) as usize;
    let plane_size = grid.width * grid.height;
    let mut buffer = vec![
        0;
        if directory.planar {
            plane_size * planes.len()
        } else {
            0
        }
    ];
    for index in 0..grid.len() {
        let cell = grid.cell(index, picture);
        let is_last = !grid.tiled && cell.y + cell.rows == picture.height;
        let most_rows = if is_last {
            most_pixels / cell.width
        } else {
            cell.stored_rows
        };
        if !directory.planar {
            let (width, pixels) = streams.decode(places.bytes(index)?, &cell, most_rows, check_memory)?;
            streams.put(&pixels, width, &cell, picture);
            continue;
        }
        buffer.fill(0);
        for (&plane, out) in planes.iter().zip(buffer.chunks_exact_mut(plane_size)) {
            let stream = places.bytes(plane * grid.len() + index)?;
            let (width, pixels) = streams.decode(stream, &cell, most_rows, check_memory)?;
            let rows = pixels.as_chunks::<3>().0.chunks_exact(width);
            for (out, row) in out.chunks_exact_mut(grid.width).zip(rows) {
                for (sample, [grey, ..]) in out.iter_mut().zip(row) {
                    *sample = *grey;
                }
            }
        }
        for line in 0..cell.rows {
            let samples = [0, 1, 2, 3].map(|plane| {
                let start = plane * plane_size + line * grid.width;
                buffer.get(start..).unwrap_or_default()
            });
            streams.colours.convert(samples, 1, 0, picture.row(&cell, line));
        }
    }
    Ok(())
}

/// What the streams of a file have in common.
struct Streams<'a> {
    tables: Option<Tables<'a>>,
    /// What the samples mean; RGB where libjpeg makes it of YCbCr.
    colours: Colours,
    /// What the components of a stream mean.
    meaning: Meaning,
    /// How the first component is sampled for one sample of the others; where the file does not say it, the
    /// first stream does.
    sampling: Option<[u64; 2]>,
}

impl<'a> Streams<'a> {
    fn new(directory: &Directory<'a>) -> Result<Self> {
        if directory.bits != 8 {
            return Err(error(format_args!(
                "JPEG of {} bits a sample, expected 8",
                directory.bits
            )));
        }
        let is_ycbcr = directory.photometric == photometric::YCBCR && !directory.planar;
        let colours = if is_ycbcr && directory.samples == 3 {
            Colours::Rgb {
                wide: false,
                alpha: false,
            }
        } else {
            Colours::of(directory)?
        };
        let meaning = match (&colours, directory.samples) {
            _ if directory.planar => Meaning::Grey,
            _ if is_ycbcr => Meaning::YCbCr,
            (Colours::Inks, _) => Meaning::Inks,
            (Colours::Rgb { alpha: true, .. }, _) => Meaning::RgbTimesAlpha,
            (_, 1) => Meaning::Grey,
            (_, 2) => Meaning::GreyOfTwo,
            (_, 3) => Meaning::Rgb,
            _ => Meaning::RgbOfFour,
        };
        let tables = directory.jpeg_tables.map(Tables::new).transpose();
        Ok(Self {
            tables: tables.map_err(in_tiff)?,
            colours,
            meaning,
            sampling: if is_ycbcr {
                directory.subsampling
            } else {
                Some([1, 1])
            },
        })
    }

    /// Decodes a stream of up to `most_rows` rows: its width and its pixels. `check_memory` is asked whether
    /// it may take so many bytes.
    fn decode(
        &mut self,
        stream: &[u8],
        cell: &Cell,
        most_rows: usize,
        check_memory: &dyn Fn(u64) -> Result<()>,
    ) -> Result<(usize, Vec<u8>)> {
        let mut stream = Cow::Borrowed(stream);
        // libtiff puts an end where there is none, after which libjpeg takes everything for zeros.
        if !stream.ends_with(&[0xFF, 0xD9]) {
            stream.to_mut().extend([0xFF, 0xD9]);
        }
        let part = Part::new(&stream, self.tables.as_ref(), self.meaning).map_err(in_tiff)?;
        let (width, height) = part.size();
        let most_rows = if width == cell.width {
            most_rows
        } else {
            cell.stored_rows
        };
        if width > cell.width || height > most_rows {
            return Err(error(format_args!(
                "a JPEG stream of {width} x {height} pixels, expected at most {} x {most_rows}",
                cell.width
            )));
        }
        let first = part.sampling().next().unwrap_or([1, 1]);
        let others_are_one = part.sampling().skip(1).all(|factors| factors == [1, 1]);
        let can_be = others_are_one && first.iter().all(|factor| matches!(factor, 1 | 2 | 4));
        let expected = *self
            .sampling
            .get_or_insert(if can_be { first } else { DEFAULT_SUBSAMPLING });
        if first != expected || !others_are_one {
            return Err(error(format_args!(
                "a JPEG stream whose first component is sampled {first:?} times, expected {expected:?} and the \
                 others once"
            )));
        }
        check_memory(part.held() + 3 * width as u64 * height as u64)?;
        Ok((width, part.decode().map_err(in_tiff)?))
    }

    /// Puts a stream's pixels into the picture. What it lacks of its cell are samples of 0.
    fn put(&self, pixels: &[u8], width: usize, cell: &Cell, picture: &mut Picture) {
        let missing = match &self.colours {
            Colours::Table { table, .. } => table[0],
            // No ink.
            Colours::Inks => [255; 3],
            _ => [0; 3],
        };
        let mut rows = pixels.as_chunks::<3>().0.chunks_exact(width);
        for line in 0..cell.rows {
            let out = picture.row(cell, line);
            let row = rows.next().unwrap_or_default();
            let row = &row[..width.min(out.len()).min(row.len())];
            let (start, rest) = out.split_at_mut(row.len());
            rest.fill(missing);
            match &self.colours {
                Colours::Table { table, .. } => {
                    for (pixel, [index, ..]) in start.iter_mut().zip(row) {
                        *pixel = table[usize::from(*index)];
                    }
                }
                _ => start.copy_from_slice(row),
            }
        }
    }
}

/// Says that a JPEG stream is one in a TIFF file.
fn in_tiff(fault: Error) -> Error {
    match fault {
        Error::Image(message) => error(message),
        other => other,
    }
}
