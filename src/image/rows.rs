//! Rows of pixels that are used as they are decoded.

use super::Pixels;

/// Takes an image's rows from top to bottom, before the file's orientation is applied.
///
/// A decoder asks for a place for each row in turn. Rows that nobody needs are not made.
pub(super) trait Rows {
    /// Where the row `y` goes, 3 bytes a pixel; `None` where it is not needed.
    fn slot(&mut self, y: usize) -> Option<&mut [u8]>;
    /// The slot of the row `y` is filled.
    fn done(&mut self, y: usize);
}

/// All of an image.
pub(super) struct Whole {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl Whole {
    pub fn new(width: u32, height: u32) -> Self {
        Self {
            width,
            height,
            data: vec![0; 3 * width as usize * height as usize],
        }
    }

    pub fn finish(self) -> Pixels {
        Pixels {
            width: self.width,
            height: self.height,
            data: self.data,
        }
    }
}

impl Rows for Whole {
    fn slot(&mut self, y: usize) -> Option<&mut [u8]> {
        let row = 3 * self.width as usize;
        Some(&mut self.data[y * row..][..row])
    }

    fn done(&mut self, _: usize) {}
}
