//! How a picture is cut into strips or tiles, and where in the file they are.

use super::directory::{DEFAULT_SUBSAMPLING, Directory, Values, photometric};
use super::{Compression, Picture, error};
use crate::Result;

/// The pixels of tiles may be this many times those of the picture ...
const MAX_TILED: u64 = 4;
/// ... and this many more, for pictures that are smaller than their tiles.
const MAX_TILED_BESIDE: u64 = 1 << 24;

/// The bytes of a strip's or tile's samples for each pixel of the picture, beside the pixels themselves ...
const MAX_BYTES: u64 = 13;
/// ... and this many more, for the same reason.
const MAX_BYTES_BESIDE: u64 = 16 << 20;

/// The bytes that a JPEG stream takes for each of its pixels: coefficients of up to four components, and RGB.
pub(super) const BYTES_OF_JPEG: u64 = 12;

/// How a picture is cut into strips or tiles.
pub(super) struct Grid {
    /// Pixels of a strip or tile; a strip has as many columns as the picture.
    pub width: usize,
    pub height: usize,
    pub across: usize,
    pub down: usize,
    pub tiled: bool,
    /// Samples of a pixel in a strip or tile.
    pub samples: usize,
    /// Rows of pixels in a row of samples: several where blocks of pixels share samples.
    pub rows_together: usize,
    /// Bytes of a row of samples.
    pub row: usize,
    /// What libtiff counts for a row of pixels.
    pub counted_row: usize,
}

/// A strip or a tile: where its top left pixel is, its width, and its rows that are in the picture.
pub(super) struct Cell {
    pub x: usize,
    pub y: usize,
    pub width: usize,
    pub rows: usize,
    /// The rows that are stored.
    pub stored_rows: usize,
}

impl Grid {
    pub fn new(directory: &Directory) -> Result<Self> {
        let (width, height) = (u64::from(directory.width), u64::from(directory.height));
        let pixels = width * height;
        let (tile_width, tile_height) = match directory.tile {
            Some((tile_width, tile_height)) => (u64::from(tile_width), u64::from(tile_height)),
            None => (width, u64::from(directory.rows_per_strip).min(height)),
        };
        let (across, down) = (width.div_ceil(tile_width), height.div_ceil(tile_height));
        if directory.tile.is_some() {
            let sides = (across * tile_width).checked_mul(down * tile_height);
            let most = MAX_TILED * pixels + MAX_TILED_BESIDE;
            if sides.is_none_or(|stored| stored > most) {
                return Err(error(format_args!(
                    "tiles of {tile_width} x {tile_height} pixels for {width} x {height}, expected smaller ones"
                )));
            }
        }
        let bytes = match directory.compression {
            Compression::Jpeg => BYTES_OF_JPEG,
            _ => u64::from(directory.samples) * u64::from(directory.bits.div_ceil(8)),
        };
        // Fax needs the runs of two rows.
        let beside = if directory.compression.is_fax() {
            16 * tile_width
        } else {
            0
        };
        if tile_width * tile_height * bytes + beside > Self::most_bytes(pixels) {
            return Err(error(format_args!(
                "strips or tiles of {tile_width} x {tile_height} pixels for {width} x {height}, expected smaller ones"
            )));
        }
        let samples = if directory.planar { 1 } else { directory.samples };
        let plain_row = |pixels: u64| (pixels * u64::from(samples) * u64::from(directory.bits)).div_ceil(8);
        let is_packed = directory.photometric == photometric::YCBCR
            && !directory.planar
            && directory.compression != Compression::Jpeg;
        let (rows_together, row) = match directory.subsampling.unwrap_or(DEFAULT_SUBSAMPLING) {
            _ if !is_packed => (1, plain_row(tile_width)),
            [across @ (1 | 2 | 4), down @ (1 | 2 | 4)] => {
                (down, tile_width.div_ceil(across) * (across * down + 2))
            }
            [across, down] => {
                return Err(error(format_args!(
                    "YCbCr in blocks of {across} x {down} pixels, expected 1, 2 or 4 each way"
                )));
            }
        };
        Ok(Self {
            width: tile_width as usize,
            height: tile_height as usize,
            across: across as usize,
            down: down as usize,
            tiled: directory.tile.is_some(),
            samples: usize::from(samples),
            rows_together: rows_together as usize,
            row: row as usize,
            // Differences of samples start anew in other rows in tiles.
            counted_row: match directory.tile {
                Some(_) => plain_row(tile_width) as usize,
                None => (row / rows_together) as usize,
            },
        })
    }

    /// The most bytes that a strip or tile may take while it is decoded.
    pub fn most_bytes(pixels: u64) -> u64 {
        MAX_BYTES * pixels + MAX_BYTES_BESIDE
    }

    /// Strips or tiles of a plane.
    pub fn len(&self) -> usize {
        self.across * self.down
    }

    pub fn cell(&self, index: usize, picture: &Picture) -> Cell {
        let y = index / self.across * self.height;
        let rows = self.height.min(picture.height - y);
        Cell {
            x: index % self.across * self.width,
            y,
            width: self.width,
            rows,
            stored_rows: if self.tiled { self.height } else { rows },
        }
    }
}

/// Where the strips or tiles are in the file.
pub(super) struct Places<'a> {
    pub bytes: &'a [u8],
    offsets: Values<'a>,
    counts: Counts<'a>,
}

/// How long strips or tiles are.
enum Counts<'a> {
    Stored {
        counts: Values<'a>,
        /// The most that libtiff reads of a strip or tile of more than a megabyte.
        most: u64,
    },
    /// As libtiff makes it up where it is missing or wrong.
    Estimated(u64),
}

impl<'a> Places<'a> {
    /// Checks that no strip or tile overlaps another or is outside of the file.
    pub fn new(bytes: &'a [u8], directory: &Directory<'a>, grid: &Grid) -> Result<Self> {
        let planes = if directory.planar {
            usize::from(directory.samples)
        } else {
            1
        };
        let count = grid.len() * planes;
        if count > bytes.len() {
            return Err(error(format_args!(
                "{count} {} in {} bytes, so that some overlap",
                if grid.tiled { "tiles" } else { "strips" },
                bytes.len()
            )));
        }
        let places = Self {
            bytes,
            offsets: directory.offsets,
            counts: Self::counts(bytes, directory, grid, count)?,
        };
        let mut end = 0;
        let mut in_order = true;
        for index in 0..count {
            let (start, length) = places.place(index)?;
            in_order &= end <= start;
            end = start + length;
        }
        if !in_order {
            let mut order = Vec::with_capacity(count);
            for index in 0..count {
                order.push((places.place(index)?.0, index as u32));
            }
            order.sort_unstable();
            for pair in order.windows(2) {
                let (start, length) = places.place(pair[0].1 as usize)?;
                if start + length > pair[1].0 {
                    return Err(error(format_args!(
                        "{} {} and {} overlap",
                        if grid.tiled { "tiles" } else { "strips" },
                        pair[0].1,
                        pair[1].1
                    )));
                }
            }
        }
        Ok(places)
    }

    /// The lengths of `count` strips or tiles.
    fn counts(bytes: &[u8], directory: &Directory<'a>, grid: &Grid, count: usize) -> Result<Counts<'a>> {
        let whole = (grid.row * grid.height.div_ceil(grid.rows_together)) as u64;
        // Where strips have not all the same height, libtiff is mistaken.
        let rows = directory.height as usize / grid.down;
        let size = if grid.tiled {
            whole
        } else {
            (grid.counted_row * rows) as u64
        };
        let length = bytes.len() as u64;
        let packed = directory.compression != Compression::None;
        let first = directory.offsets.get(0).unwrap_or(0);
        if let Some(counts) = directory.byte_counts {
            let get = |index| counts.get(index).unwrap_or(0);
            let wrong = if count == 1 && !grid.tiled {
                let missing =
                    get(0) == 0 || !packed && (get(0) > length.saturating_sub(first) || get(0) < size);
                missing && first != 0
            } else {
                count > 2 && !packed && !directory.planar && get(0) != 0 && get(1) != 0 && get(0) != get(1)
            };
            if !wrong {
                return Ok(Counts::Stored {
                    counts,
                    most: (10 * whole + 4096).max(1 << 20),
                });
            }
        } else if count
            != if directory.planar {
                usize::from(directory.samples)
            } else {
                1
            }
        {
            return Err(error("no byte counts of strips or tiles"));
        }
        let planes = if directory.planar {
            u64::from(directory.samples)
        } else {
            1
        };
        Ok(Counts::Estimated(if packed {
            let space = length.checked_sub(directory.extent).unwrap_or(length) / planes;
            let last = directory.offsets.get(count - 1).unwrap_or(0);
            if count == 1 {
                space.min(length.saturating_sub(last))
            } else {
                space
            }
        } else {
            size
        }))
    }

    /// Where a strip or tile starts and how many bytes it has, which are in the file.
    pub fn place(&self, index: usize) -> Result<(usize, usize)> {
        let (start, length) = (
            self.offsets.get(index).unwrap_or(0),
            match self.counts {
                Counts::Stored { counts, most } => counts.get(index).unwrap_or(0).min(most),
                Counts::Estimated(length) => length,
            },
        );
        let end = start
            .checked_add(length)
            .and_then(|end| usize::try_from(end).ok());
        if length == 0 || end.is_none_or(|end| end > self.bytes.len()) {
            return Err(error(format_args!(
                "strip or tile {index} has {length} bytes at byte {start}, the file has {}",
                self.bytes.len()
            )));
        }
        Ok((start as usize, length as usize))
    }

    pub fn bytes(&self, index: usize) -> Result<&'a [u8]> {
        let (start, length) = self.place(index)?;
        Ok(&self.bytes[start..start + length])
    }
}
