//! Dequantisation and the inverse DCT, bit for bit libjpeg's accurate integer one.
//!
//! It is the algorithm of Loeffler, Ligtenberg and Moschytz (ICASSP 1989) with constants of 13
//! fraction bits: a pass over the columns that keeps 2 fraction bits, then one over the rows.
//! libjpeg computes in wide integers and reads the sample from a table by the low 10 bits of the
//! result, so bits 18 to 27 of the second pass decide; wrapping 32-bit arithmetic yields them.

/// Samples of one row or one column of a block.
const SIZE: usize = 8;
/// Fraction bits of the constants.
const CONSTANT_BITS: u32 = 13;
/// Fraction bits that the first pass keeps.
const PASS_BITS: u32 = 2;

/// A block of coefficients, row by row.
pub(super) type Block = [i16; 64];

/// The quantisation steps of a component, row by row.
#[derive(Clone)]
pub(super) struct Steps {
    steps: [u16; 64],
    /// The largest coefficients for which 16 bits suffice, see [`Steps::new`].
    #[cfg(target_arch = "x86_64")]
    limits: [u16; 64],
}

/// Bounds of the dequantised coefficients, by row, under which 16 bits hold everything in between:
/// the 8 bounds add up to 5624, a column's result of the first pass is at most 4 * 1.39 times
/// their sum, and that is below 2^15.
#[cfg(target_arch = "x86_64")]
const ROW_BOUNDS: [u16; SIZE] = [2047, 1023, 1023, 511, 255, 255, 255, 255];

impl Steps {
    pub fn new(steps: [u16; 64]) -> Self {
        Steps {
            steps,
            #[cfg(target_arch = "x86_64")]
            limits: std::array::from_fn(|i| ROW_BOUNDS[i / SIZE] / steps[i].max(1)),
        }
    }
}

/// The sample for a result of the second pass without its fraction bits.
#[inline(always)]
fn sample(value: i32) -> u8 {
    ((value << 22 >> 22) + 128).clamp(0, 255) as u8
}

/// A block with nothing but a DC coefficient.
#[inline(always)]
fn flat(dc: i16, steps: &Steps, out: &mut [u8], stride: usize) {
    let scaled = (i32::from(dc) * i32::from(steps.steps[0])) << PASS_BITS;
    let value = sample(scaled.wrapping_add(16) >> 5);
    for row in out.chunks_mut(stride).take(SIZE) {
        row[..SIZE].fill(value);
    }
}

/// One pass over 8 vectors at once, lane by lane: no rounding, all fraction bits kept.
#[inline(always)]
fn pass(input: &[[i32; SIZE]; SIZE]) -> [[i32; SIZE]; SIZE] {
    let mut output = [[0; SIZE]; SIZE];
    for lane in 0..SIZE {
        let x = |i: usize| input[i][lane];
        let times = |a: i32, b: i32| a.wrapping_mul(b);
        // Even part.
        let z1 = times(x(2).wrapping_add(x(6)), 4433);
        let t2 = z1.wrapping_sub(times(x(6), 15137));
        let t3 = z1.wrapping_add(times(x(2), 6270));
        let t0 = x(0).wrapping_add(x(4)) << CONSTANT_BITS;
        let t1 = x(0).wrapping_sub(x(4)) << CONSTANT_BITS;
        let even = [
            t0.wrapping_add(t3),
            t1.wrapping_add(t2),
            t1.wrapping_sub(t2),
            t0.wrapping_sub(t3),
        ];
        // Odd part.
        let z5 = times(
            x(7).wrapping_add(x(3)).wrapping_add(x(5)).wrapping_add(x(1)),
            9633,
        );
        let z1 = times(x(7).wrapping_add(x(1)), -7373);
        let z2 = times(x(5).wrapping_add(x(3)), -20995);
        let z3 = times(x(7).wrapping_add(x(3)), -16069).wrapping_add(z5);
        let z4 = times(x(5).wrapping_add(x(1)), -3196).wrapping_add(z5);
        let odd = [
            times(x(1), 12299).wrapping_add(z1).wrapping_add(z4),
            times(x(3), 25172).wrapping_add(z2).wrapping_add(z3),
            times(x(5), 16819).wrapping_add(z2).wrapping_add(z4),
            times(x(7), 2446).wrapping_add(z1).wrapping_add(z3),
        ];
        for i in 0..4 {
            output[i][lane] = even[i].wrapping_add(odd[i]);
            output[7 - i][lane] = even[i].wrapping_sub(odd[i]);
        }
    }
    output
}

fn transposed<T: Copy + Default>(input: &[[T; SIZE]; SIZE]) -> [[T; SIZE]; SIZE] {
    let mut output = [[T::default(); SIZE]; SIZE];
    for (i, row) in input.iter().enumerate() {
        for (j, &value) in row.iter().enumerate() {
            output[j][i] = value;
        }
    }
    output
}

/// Dequantises a block of any coefficients and steps, transforms it and writes its 8 x 8 samples to
/// `out`, whose rows are `stride` apart.
pub(super) fn portable(block: &Block, steps: &Steps, out: &mut [u8], stride: usize) {
    if block[1..].iter().fold(0, |all, &c| all | c) == 0 {
        return flat(block[0], steps, out, stride);
    }
    let mut input = [[0i32; SIZE]; SIZE];
    let mut extent = 0i32;
    for (i, row) in input.iter_mut().enumerate() {
        for (j, value) in row.iter_mut().enumerate() {
            *value = i32::from(block[SIZE * i + j]).wrapping_mul(i32::from(steps.steps[SIZE * i + j]));
            extent |= *value ^ (*value >> 31);
        }
    }
    const SHIFT: u32 = CONSTANT_BITS - PASS_BITS;
    let mut columns;
    if extent < 1 << 14 {
        columns = pass(&input);
        for value in columns.as_flattened_mut() {
            *value = (*value + (1 << (SHIFT - 1))) >> SHIFT;
        }
    } else {
        // The sums may need more than 32 bits, but what is left of them after the shift does not
        // matter beyond 32. The transform is linear, so the bits that the shift would take away
        // anyhow are done apart.
        columns = pass(&input.map(|row| row.map(|value| value & ((1 << SHIFT) - 1))));
        let high = pass(&input.map(|row| row.map(|value| value >> SHIFT)));
        for (value, high) in columns.as_flattened_mut().iter_mut().zip(high.as_flattened()) {
            *value = ((*value + (1 << (SHIFT - 1))) >> SHIFT).wrapping_add(*high);
        }
    }
    const LAST_SHIFT: u32 = CONSTANT_BITS + PASS_BITS + 3;
    let rows = pass(&transposed(&columns));
    let mut samples = [[0; SIZE]; SIZE];
    for (to, value) in samples.as_flattened_mut().iter_mut().zip(rows.as_flattened()) {
        *to = sample(value.wrapping_add(1 << (LAST_SHIFT - 1)) >> LAST_SHIFT);
    }
    for (row, samples) in out.chunks_mut(stride).zip(&transposed(&samples)) {
        row[..SIZE].copy_from_slice(samples);
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    use super::{Block, CONSTANT_BITS, PASS_BITS, SIZE, Steps, flat, portable};
    use std::arch::x86_64::*;

    /// Two vectors of 8 lanes, interleaved, for [`dot`].
    #[target_feature(enable = "avx2")]
    #[inline]
    fn pairs(a: __m128i, b: __m128i) -> __m256i {
        _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b))
    }

    /// `a * first + b * second` in each lane of [`pairs`].
    #[target_feature(enable = "avx2")]
    #[inline]
    fn dot(pairs: __m256i, first: i16, second: i16) -> __m256i {
        let factors = i32::from(second) << 16 | i32::from(first as u16);
        _mm256_madd_epi16(pairs, _mm256_set1_epi32(factors))
    }

    /// One pass over 8 vectors at once, given as pairs: 0 and 4, 2 and 6, 1 and 3, 5 and 7. The
    /// factors are the sums and differences of the constants that meet each input.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn pass(p04: __m256i, p26: __m256i, p13: __m256i, p57: __m256i, rounding: i32) -> [__m256i; SIZE] {
        const ONE: i16 = 1 << CONSTANT_BITS;
        let rounding = _mm256_set1_epi32(rounding);
        let t0 = _mm256_add_epi32(dot(p04, ONE, ONE), rounding);
        let t1 = _mm256_add_epi32(dot(p04, ONE, -ONE), rounding);
        let t2 = dot(p26, 4433, 4433 - 15137);
        let t3 = dot(p26, 4433 + 6270, 4433);
        let even = [
            _mm256_add_epi32(t0, t3),
            _mm256_add_epi32(t1, t2),
            _mm256_sub_epi32(t1, t2),
            _mm256_sub_epi32(t0, t3),
        ];
        let odd = [
            _mm256_add_epi32(
                dot(p13, 12299 - 7373 - 3196 + 9633, 9633),
                dot(p57, 9633 - 3196, 9633 - 7373),
            ),
            _mm256_add_epi32(
                dot(p13, 9633, (25172 - 20995 - 16069 + 9633) as i16),
                dot(p57, (9633 - 20995) as i16, 9633 - 16069),
            ),
            _mm256_add_epi32(
                dot(p13, 9633 - 3196, (9633 - 20995) as i16),
                dot(p57, (16819 - 20995 - 3196 + 9633) as i16, 9633),
            ),
            _mm256_add_epi32(
                dot(p13, 9633 - 7373, 9633 - 16069),
                dot(p57, 9633, (2446 - 7373 - 16069 + 9633) as i16),
            ),
        ];
        [
            _mm256_add_epi32(even[0], odd[0]),
            _mm256_add_epi32(even[1], odd[1]),
            _mm256_add_epi32(even[2], odd[2]),
            _mm256_add_epi32(even[3], odd[3]),
            _mm256_sub_epi32(even[3], odd[3]),
            _mm256_sub_epi32(even[2], odd[2]),
            _mm256_sub_epi32(even[1], odd[1]),
            _mm256_sub_epi32(even[0], odd[0]),
        ]
    }

    /// 16 values from the `i`-th 32 bytes of a block.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn load<T: Copy>(values: &[T; 64], i: usize) -> __m256i {
        const { assert!(size_of::<T>() == 2) };
        let sixteen: &[T; 16] = values.as_chunks().0.get(i).expect("a block has four of them");
        // SAFETY: 16 values of 2 bytes are 32 bytes to read; the instruction needs no alignment.
        unsafe { _mm256_loadu_si256(std::ptr::from_ref(sixteen).cast()) }
    }

    /// [`portable`] in 16 bits, as far as they go.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub fn idct(block: &Block, steps: &Steps, out: &mut [u8], stride: usize) {
        // Two rows of coefficients each.
        let coefficients: [__m256i; 4] = [load(block, 0), load(block, 1), load(block, 2), load(block, 3)];
        let [c0, c1, c2, c3] = coefficients;
        let lower = _mm256_or_si256(_mm256_or_si256(c1, c2), c3);
        let not_dc = _mm256_set_epi64x(-1, -1, -1, !0xffff);
        if _mm256_testz_si256(not_dc, c0) & _mm256_testz_si256(lower, lower) == 1 {
            return flat(block[0], steps, out, stride);
        }
        let mut excess = _mm256_setzero_si256();
        for (i, c) in coefficients.into_iter().enumerate() {
            let over = _mm256_subs_epu16(_mm256_abs_epi16(c), load(&steps.limits, i));
            excess = _mm256_or_si256(excess, over);
        }
        if _mm256_testz_si256(excess, excess) == 0 {
            return portable(block, steps, out, stride);
        }
        let [r01, r23, r45, r67] = [
            _mm256_mullo_epi16(c0, load(&steps.steps, 0)),
            _mm256_mullo_epi16(c1, load(&steps.steps, 1)),
            _mm256_mullo_epi16(c2, load(&steps.steps, 2)),
            _mm256_mullo_epi16(c3, load(&steps.steps, 3)),
        ];
        let [r0, r2, r4, r6] = [r01, r23, r45, r67].map(|r| _mm256_castsi256_si128(r));
        let [r1, r3, r5, r7] = [r01, r23, r45, r67].map(|r| _mm256_extracti128_si256(r, 1));

        // The columns. What comes out is row i, its 8 columns in the lanes.
        const SHIFT: i32 = (CONSTANT_BITS - PASS_BITS) as i32;
        let rows = pass(
            pairs(r0, r4),
            pairs(r2, r6),
            pairs(r1, r3),
            pairs(r5, r7),
            1 << (SHIFT - 1),
        );
        let rows = rows.map(|row| _mm256_srai_epi32(row, SHIFT));

        // Rows i and i + 4 as 16 bits, the columns in the order 0 4 2 6 1 3 5 7: pairs already.
        let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, 1, 8, 9, 4, 5, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
        ));
        let narrow = |i: usize| {
            let mixed = _mm256_packs_epi32(rows[i], rows[i + 4]);
            _mm256_shuffle_epi8(_mm256_permute4x64_epi64(mixed, 0b11_01_10_00), order)
        };
        let [n0, n1, n2, n3] = [narrow(0), narrow(1), narrow(2), narrow(3)];
        // Transposed by pairs, so that the rows are in the lanes.
        let (low01, high01) = (_mm256_unpacklo_epi32(n0, n1), _mm256_unpackhi_epi32(n0, n1));
        let (low23, high23) = (_mm256_unpacklo_epi32(n2, n3), _mm256_unpackhi_epi32(n2, n3));
        const LAST_SHIFT: i32 = (CONSTANT_BITS + PASS_BITS) as i32 + 3;
        let columns = pass(
            _mm256_unpacklo_epi64(low01, low23),
            _mm256_unpackhi_epi64(low01, low23),
            _mm256_unpacklo_epi64(high01, high23),
            _mm256_unpackhi_epi64(high01, high23),
            1 << (LAST_SHIFT - 1),
        );
        // Bits 18 to 27 with their sign, as in `sample`.
        let columns = columns.map(|column| _mm256_srai_epi32(_mm256_slli_epi32(column, 4), LAST_SHIFT + 4));

        // Bytes of four columns each, by column, then by row.
        let center = _mm256_set1_epi16(128);
        let narrow = |i: usize| {
            let two = _mm256_add_epi16(_mm256_packs_epi32(columns[i], columns[i + 1]), center);
            let more = _mm256_add_epi16(_mm256_packs_epi32(columns[i + 2], columns[i + 3]), center);
            let by_row = _mm256_broadcastsi128_si256(_mm_setr_epi8(
                0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
            ));
            _mm256_shuffle_epi8(_mm256_packus_epi16(two, more), by_row)
        };
        let (left, right) = (narrow(0), narrow(4));
        let (rows0145, rows2367) = (
            _mm256_unpacklo_epi32(left, right),
            _mm256_unpackhi_epi32(left, right),
        );
        let halves = [
            _mm256_castsi256_si128(rows0145),
            _mm256_castsi256_si128(rows2367),
            _mm256_extracti128_si256(rows0145, 1),
            _mm256_extracti128_si256(rows2367, 1),
        ];
        for (rows, two) in out.chunks_mut(2 * stride).zip(halves) {
            rows[..SIZE].copy_from_slice(&_mm_cvtsi128_si64(two).to_le_bytes());
            rows[stride..stride + SIZE].copy_from_slice(&_mm_extract_epi64(two, 1).to_le_bytes());
        }
    }
}
