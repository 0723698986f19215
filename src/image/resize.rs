//! Bilinear resizing, bit for bit as OpenCV resizes 8-bit pixels with `INTER_LINEAR`.
//!
//! A target position `d` samples the source at `f32((d + 0.5) * scale - 0.5)`: two neighbours with
//! the weights `1 - f` and `f`, rounded to 11 bits. The horizontal sums are exact; they lose four
//! bits before the vertical pass, which adds the upper halves of two 16 x 16 bit products:
//!
//! ```text
//! h = (p[s] * c0 + p[s + 1] * c1) >> 4
//! pixel = (((y0 * h0) >> 16) + ((y1 * h1) >> 16) + 2) >> 2
//! ```
//!
//! `h` fits 15 bits, so that is also the form in which rows wait for the vertical pass.

use super::Pixels;

/// The weight 1, with 11 bits after the point.
const WEIGHT_ONE: f32 = 2048.0;
/// A pixel is read with the one to its right as eight bytes, two of them beyond the second pixel.
const READ: usize = 8;

/// A row after the horizontal pass. The fourth value of a pixel means nothing: it keeps pixels at
/// a stride that vectors like.
type Row = [[i16; 4]];

/// Resizes an image as OpenCV 4.6 does with `INTER_LINEAR` on 8-bit pixels.
///
/// There is no antialiasing: however small the result, a pixel is made from 2 x 2 pixels. A side of
/// 0 gives an image of that side 1.
///
/// ```
/// use ernie_vil::image::{Pixels, resize_linear};
/// let pixels = Pixels::new(2, 1, vec![0, 0, 0, 200, 100, 0])?;
/// let wide = resize_linear(&pixels, 4, 1);
/// assert_eq!(wide.data(), [0, 0, 0, 50, 25, 0, 150, 75, 0, 200, 100, 0]);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub fn resize_linear(src: &Pixels, width: u32, height: u32) -> Pixels {
    let (width, height) = (width.max(1), height.max(1));
    let full = (u64::from(width), u64::from(height));
    resize_window(src, full, (0, 0), width, height)
}

/// The `width` x `height` pixels from `at` of `src` resized to `full` (both as x, y).
///
/// Nothing outside of the window is computed. The window lies within `full`.
pub(super) fn resize_window(
    src: &Pixels,
    full: (u64, u64),
    at: (u64, u64),
    width: u32,
    height: u32,
) -> Pixels {
    Window::new((src.width, src.height), full, at, width, height).of(src)
}

/// What the pixels of a window of a resized image are made from.
#[derive(Debug, Clone)]
pub(super) struct Window {
    /// Of each column the left one of two source columns and the weights of both.
    columns: Vec<(usize, [i16; 2])>,
    /// Of each row two source rows, which may be the same, and their weights.
    rows: Vec<([usize; 2], [i16; 2])>,
}

impl Window {
    /// The arguments are those of [`resize_window`]; of the source only the size is needed.
    pub fn new(
        (src_width, src_height): (u32, u32),
        full: (u64, u64),
        at: (u64, u64),
        width: u32,
        height: u32,
    ) -> Self {
        let last = i64::from(src_width) - 1;
        let across = scale(src_width, full.0);
        let column = |x| match sample(at.0 + u64::from(x), across) {
            (left, _) if left < 0 => (0, weights(0.0)),
            (left, _) if left >= last => (last as usize, weights(0.0)),
            (left, f) => (left as usize, weights(f)),
        };
        let last = i64::from(src_height) - 1;
        let down = scale(src_height, full.1);
        let row = |y| {
            let (above, f) = sample(at.1 + u64::from(y), down);
            let weights = weights(f);
            // Beyond an edge both rows are the edge's. A row without weight need not be computed.
            let rows = match weights {
                [_, 0] => [above; 2],
                [0, _] => [above + 1; 2],
                _ => [above, above + 1],
            };
            (rows.map(|row| row.clamp(0, last) as usize), weights)
        };
        Self {
            columns: (0..width).map(column).collect(),
            rows: (0..height).map(row).collect(),
        }
    }

    /// The source columns and the source rows that the window needs, each in rising order.
    pub fn needed(&self) -> (Vec<usize>, Vec<usize>) {
        let sorted = |mut all: Vec<usize>| {
            all.sort_unstable();
            all.dedup();
            all
        };
        let columns = self.columns.iter().flat_map(|&(left, weights)| {
            let right = (weights[1] != 0).then_some(left + 1);
            [left].into_iter().chain(right)
        });
        let rows = self.rows.iter().flat_map(|&(rows, _)| rows);
        (sorted(columns.collect()), sorted(rows.collect()))
    }

    /// The same window of a source of which only these columns and rows are left.
    pub fn of_needed(mut self, (columns, rows): (&[usize], &[usize])) -> Self {
        let place = |all: &[usize], wanted: usize| all.partition_point(|&one| one < wanted);
        for (left, _) in &mut self.columns {
            *left = place(columns, *left);
        }
        for (pair, _) in &mut self.rows {
            *pair = pair.map(|row| place(rows, row));
        }
        self
    }

    /// The window's pixels.
    pub fn of(&self, src: &Pixels) -> Pixels {
        self.with(Kernel::best(), src)
    }

    fn with(&self, kernel: Kernel, src: &Pixels) -> Pixels {
        let columns = Columns::new(&self.columns);
        let stride = 3 * src.width as usize;
        let (width, height) = (self.columns.len(), self.rows.len());

        // The two source rows in use after their horizontal pass, and which they are.
        let mut rows = [columns.empty_row(), columns.empty_row()];
        let mut held = [usize::MAX; 2];
        let mut tail = Vec::new();
        let mut data = vec![0; 3 * width * height];
        for (&([top, bottom], weights), out) in self.rows.iter().zip(data.chunks_exact_mut(3 * width)) {
            if held[1] == top {
                rows.swap(0, 1);
                held.swap(0, 1);
            }
            for (slot, row) in [(0, top), (1, bottom)] {
                if held[slot] != row && (slot == 0 || row != top) {
                    let start = row * stride;
                    let mut bytes = &src.data[start..];
                    if bytes.len() < columns.reach {
                        // The image's last row: what is read beyond it has to exist.
                        tail.clear();
                        tail.extend_from_slice(bytes);
                        tail.resize(columns.reach, 0);
                        bytes = &tail;
                    }
                    kernel.horizontal(bytes, &columns, &mut rows[slot]);
                    held[slot] = row;
                }
            }
            let bottom = if bottom == top { &rows[0] } else { &rows[1] };
            kernel.vertical(&rows[0], bottom, weights, out);
        }
        Pixels {
            width: width as u32,
            height: height as u32,
            data,
        }
    }
}

/// Source pixels per target pixel.
fn scale(src: u32, dst: u64) -> f64 {
    1.0 / (dst as f64 / f64::from(src))
}

/// The source position of a target position: its whole part and the rest.
fn sample(d: u64, scale: f64) -> (i64, f32) {
    let at = ((d as f64 + 0.5) * scale - 0.5) as f32;
    let whole = at.floor();
    (whole as i64, at - whole)
}

fn weights(f: f32) -> [i16; 2] {
    [1.0 - f, f].map(|weight| (weight * WEIGHT_ONE).round_ties_even() as i16)
}

/// Where the columns of the window come from.
struct Columns {
    /// Offset in a row's bytes of the left one of the two pixels, in whole groups of [`GROUP`].
    offsets: Vec<usize>,
    /// Weights of the left and the right pixel, once for each of the four values of a pixel.
    weights: Vec<[[i16; 2]; 4]>,
    /// Every offset plus [`READ`] is at most this.
    reach: usize,
}

/// The kernels work on this many pixels at once.
const GROUP: usize = 8;

impl Columns {
    fn new(window: &[(usize, [i16; 2])]) -> Self {
        let padded = window.len().next_multiple_of(GROUP);
        let mut columns = Self {
            offsets: vec![0; padded],
            weights: vec![[[0; 2]; 4]; padded],
            reach: READ,
        };
        for (x, &(left, weights)) in window.iter().enumerate() {
            columns.offsets[x] = 3 * left;
            columns.weights[x] = [weights; 4];
            columns.reach = columns.reach.max(columns.offsets[x] + READ);
        }
        columns
    }

    fn empty_row(&self) -> Vec<[i16; 4]> {
        vec![[0; 4]; self.offsets.len()]
    }

    /// The columns by groups, with a row's results.
    fn groups<'a>(&'a self, out: &'a mut Row) -> impl Iterator<Item = Group<'a>> {
        let groups = self.offsets.as_chunks().0.iter().zip(self.weights.as_chunks().0);
        groups
            .zip(out.as_chunks_mut().0)
            .map(|((offsets, weights), out)| Group {
                offsets,
                weights,
                out,
            })
    }
}

/// What a kernel works on at once.
struct Group<'a> {
    offsets: &'a [usize; GROUP],
    weights: &'a [[[i16; 2]; 4]; GROUP],
    out: &'a mut [[i16; 4]; GROUP],
}

/// Which instructions do the work. The results are the same.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kernel {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Kernel {
    fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return Kernel::Avx2;
        }
        Kernel::Portable
    }

    /// One source row, resampled to the window's columns. `bytes` has `columns.reach` of them.
    fn horizontal(self, bytes: &[u8], columns: &Columns, out: &mut Row) {
        match self {
            Kernel::Portable => portable::horizontal(bytes, columns, out),
            // SAFETY: `Avx2` is only made where AVX2 has been detected.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => unsafe { avx2::horizontal(bytes, columns, out) },
        }
    }

    /// One row of pixels from two rows.
    fn vertical(self, top: &Row, bottom: &Row, weights: [i16; 2], out: &mut [u8]) {
        match self {
            Kernel::Portable => portable::vertical(top, bottom, weights, out),
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => unsafe { avx2::vertical(top, bottom, weights, out) },
        }
    }
}

/// Written so that the compiler finds the vectors.
mod portable {
    use super::{Columns, GROUP, Group, Row};

    pub(super) fn horizontal(bytes: &[u8], columns: &Columns, out: &mut Row) {
        for Group {
            offsets,
            weights,
            out,
        } in columns.groups(out)
        {
            let (mut left, mut right) = ([[0; 4]; GROUP], [[0; 4]; GROUP]);
            for i in 0..GROUP {
                let pair = &bytes[offsets[i]..offsets[i] + 7];
                left[i].copy_from_slice(&pair[..4]);
                right[i].copy_from_slice(&pair[3..]);
            }
            let (left, right) = (left.as_flattened(), right.as_flattened());
            let weights = weights.as_flattened();
            for (i, out) in out.as_flattened_mut().iter_mut().enumerate() {
                let left = i32::from(left[i]) * i32::from(weights[i][0]);
                let right = i32::from(right[i]) * i32::from(weights[i][1]);
                *out = ((left + right) >> 4) as i16;
            }
        }
    }

    pub(super) fn vertical(top: &Row, bottom: &Row, weights: [i16; 2], out: &mut [u8]) {
        let mut rows = top.as_chunks().0.iter().zip(bottom.as_chunks().0);
        let (groups, rest) = out.as_chunks_mut();
        for (out, (top, bottom)) in groups.iter_mut().zip(&mut rows) {
            blend(top, bottom, weights, out);
        }
        if let Some((top, bottom)) = rows.next() {
            let mut out = [0; 3 * GROUP];
            blend(top, bottom, weights, &mut out);
            rest.copy_from_slice(&out[..rest.len()]);
        }
    }

    fn blend(
        top: &[[i16; 4]; GROUP],
        bottom: &[[i16; 4]; GROUP],
        [y0, y1]: [i16; 2],
        out: &mut [u8; 3 * GROUP],
    ) {
        let upper = |a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16;
        let (top, bottom) = (top.as_flattened(), bottom.as_flattened());
        let mut values = [0; 4 * GROUP];
        for (i, value) in values.iter_mut().enumerate() {
            *value = ((upper(top[i], y0) + upper(bottom[i], y1) + 2) >> 2).clamp(0, 255) as u8;
        }
        for i in 0..GROUP - 1 {
            // Four bytes are moved at once: the next pixel overwrites the fourth.
            out[3 * i..3 * i + 4].copy_from_slice(&values[4 * i..4 * i + 4]);
        }
        out[3 * GROUP - 3..].copy_from_slice(&values[4 * GROUP - 4..4 * GROUP - 1]);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Columns, GROUP, Group, Row, portable};

    #[target_feature(enable = "avx2")]
    pub(super) fn horizontal(bytes: &[u8], columns: &Columns, out: &mut Row) {
        assert!(bytes.len() >= columns.reach);
        // Of the eight bytes r g b r' g' b' . . the pairs r r', g g', b b' as 16-bit numbers.
        let pairs = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
        ));
        for Group {
            offsets,
            weights,
            out,
        } in columns.groups(out)
        {
            for i in (0..GROUP).step_by(4) {
                // SAFETY: an offset is at most `reach` - 8, and `bytes` has `reach` bytes. `at` and the
                // one after it are below `GROUP`, and a pixel's weights are 16 bytes.
                let two = |at: usize| unsafe {
                    let left = _mm_loadl_epi64(bytes.as_ptr().add(offsets[at]).cast());
                    let right = _mm_loadl_epi64(bytes.as_ptr().add(offsets[at + 1]).cast());
                    let both = _mm256_shuffle_epi8(_mm256_set_m128i(right, left), pairs);
                    let weights = _mm256_loadu_si256(weights.as_ptr().add(at).cast());
                    _mm256_srli_epi32::<4>(_mm256_madd_epi16(both, weights))
                };
                // Packing works by halves and leaves the pixels as 0 2 1 3.
                let packed = _mm256_packs_epi32(two(i), two(i + 2));
                let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
                // SAFETY: four results are 32 bytes.
                unsafe { _mm256_storeu_si256(out[i..i + 4].as_mut_ptr().cast(), packed) };
            }
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn vertical(top: &Row, bottom: &Row, weights: [i16; 2], out: &mut [u8]) {
        let y0 = _mm256_set1_epi16(weights[0]);
        let y1 = _mm256_set1_epi16(weights[1]);
        // Without the fourth byte of each pixel, the rest moved up.
        let compact = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1,
        ));
        let blend = |top: &[[i16; 4]], bottom: &[[i16; 4]]| {
            let (top, bottom) = (&top[..4], &bottom[..4]);
            // SAFETY: both are 32 bytes.
            let (top, bottom) = unsafe {
                (
                    _mm256_loadu_si256(top.as_ptr().cast()),
                    _mm256_loadu_si256(bottom.as_ptr().cast()),
                )
            };
            let sum = _mm256_add_epi16(_mm256_mulhi_epi16(top, y0), _mm256_mulhi_epi16(bottom, y1));
            _mm256_srai_epi16::<2>(_mm256_add_epi16(sum, _mm256_set1_epi16(2)))
        };
        let whole = out.len() / (3 * GROUP) * GROUP;
        let (out, rest) = out.split_at_mut(3 * whole);
        let rows = top
            .as_chunks::<GROUP>()
            .0
            .iter()
            .zip(bottom.as_chunks::<GROUP>().0);
        for ((top, bottom), out) in rows.zip(out.as_chunks_mut::<{ 3 * GROUP }>().0) {
            let words = _mm256_packus_epi16(blend(top, bottom), blend(&top[4..], &bottom[4..]));
            // Packing works by halves and leaves pairs of pixels as 0 2 1 3.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let pixels = _mm256_shuffle_epi8(words, compact);
            let (low, high) = (
                _mm256_castsi256_si128(pixels),
                _mm256_extracti128_si256::<1>(pixels),
            );
            let to = out.as_mut_ptr();
            // SAFETY: `out` is 24 bytes. Of the 16 stored first, 12 count.
            unsafe {
                _mm_storeu_si128(to.cast(), low);
                _mm_storel_epi64(to.add(12).cast(), high);
                _mm_storeu_si32(to.add(20).cast(), _mm_srli_si128::<8>(high));
            }
        }
        portable::vertical(&top[whole..], &bottom[whole..], weights, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_gives_the_same_bytes() {
        let noise = |size: u32| {
            (0..3 * size)
                .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
                .collect()
        };
        for (width, height) in [(1, 1), (2, 3), (3, 1), (64, 5), (101, 67), (300, 200)] {
            let src = Pixels::new(width, height, noise(width * height)).unwrap();
            for (to_width, to_height) in [(1, 1), (3, 2), (7, 9), (8, 8), (31, 64), (225, 224), (500, 2)] {
                let full = (u64::from(to_width), u64::from(to_height));
                let window = Window::new((width, height), full, (0, 0), to_width, to_height);
                let resize = |kernel| window.with(kernel, &src).into_data();
                assert!(resize(Kernel::Portable) == resize(Kernel::best()));
            }
        }
    }
}
