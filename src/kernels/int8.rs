//! Inner products of vectors in eight bits a value with queries in fifteen.
//!
//! The products are summed as integers, so a score is the same on every processor, and does not depend on
//! which vectors stand beside it.

use super::simd::InstructionSet;

/// The largest magnitude of a vector's code.
pub(crate) const LARGEST: i8 = 127;
/// The largest magnitude of a query's code.
const LARGEST_OF_QUERY: f32 = 16_383.0;
/// Values that are summed in 32 bits: 1,024 * 128 * 16,383 is below 2^31.
const BLOCK: usize = 1024;
/// Vectors that are gone through together: one load of the query serves them all, and as many streams come
/// from memory at a time.
const ROWS: usize = 8;
/// How far ahead of their use, in bytes, codes are asked for: eight vectors of the base model. The
/// processor's own prefetching stops at the end of each page.
#[cfg(target_arch = "x86_64")]
const PREFETCH: usize = 6144;

/// Writes the vector's codes and returns the scale: code * scale is within half a scale of the value.
///
/// The scale is the largest magnitude / 127, so 127 or -127 is among the codes.
pub(crate) fn quantise(vector: &[f32], codes: &mut [i8]) -> f32 {
    let largest = largest(vector);
    let inverse = f32::from(LARGEST) / largest;
    for (code, &value) in codes.iter_mut().zip(vector) {
        *code = round(value * inverse) as i8;
    }
    largest / f32::from(LARGEST)
}

fn largest(vector: &[f32]) -> f32 {
    // Several side by side, which the compiler may put into vector registers.
    let mut all = [0.0f32; 16];
    let (chunks, rest) = vector.as_chunks::<16>();
    for chunk in chunks.iter().map(|chunk| &chunk[..]).chain([rest]) {
        for (largest, value) in all.iter_mut().zip(chunk) {
            *largest = largest.max(value.abs());
        }
    }
    all.into_iter().fold(0.0, f32::max)
}

/// The nearest whole number, of two the even one; for magnitudes below 2^22.
fn round(x: f32) -> i32 {
    // From 2^23 to 2^24 the floats are the whole numbers, so that the sum is rounded to one, and its last
    // bits are that number's. Unlike `round_ties_even` this needs no instruction that some targets lack.
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits()) as i32
}

/// A query, ready for [`scores`].
pub(crate) struct Int8Query {
    codes: Vec<i16>,
    scale: f64,
}

impl Int8Query {
    /// Takes a query, not all zeros, whose values are finite.
    pub(crate) fn new(query: &[f32]) -> Self {
        let largest = largest(query);
        let inverse = LARGEST_OF_QUERY / largest;
        Self {
            codes: query.iter().map(|&value| round(value * inverse) as i16).collect(),
            scale: f64::from(largest) / f64::from(LARGEST_OF_QUERY),
        }
    }
}

/// The inner products of vectors, given by their codes and scales, with queries: `out` is
/// `[vectors, queries]`.
///
/// # Panics
/// Where the lengths do not fit one another.
pub(crate) fn scores(codes: &[i8], scales: &[f32], queries: &[Int8Query], out: &mut [f32]) {
    let (Some(first), false) = (queries.first(), scales.is_empty()) else {
        return;
    };
    let dimensions = first.codes.len();
    assert!(queries.iter().all(|query| query.codes.len() == dimensions));
    assert_eq!(codes.len(), scales.len() * dimensions);
    assert_eq!(out.len(), scales.len() * queries.len());
    match InstructionSet::detect() {
        // SAFETY: the processor has the instructions, as was just detected.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 => unsafe { x86::scores_avx512(codes, scales, queries, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => unsafe { x86::scores_avx2(codes, scales, queries, out) },
        // SAFETY: these need nothing that the whole program was not compiled with.
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        _ => unsafe { scores_with::<wasm::Simd128>(codes, scales, queries, out) },
        // SAFETY: as above.
        #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
        _ => unsafe { scores_with::<Portable>(codes, scales, queries, out) },
    }
}

/// Sums of products in 32 bits, several side by side.
///
/// # Safety
/// The methods may be called only where the processor has the instructions.
trait Sums: Copy {
    /// Values that [`add`](Self::add) takes.
    const STEP: usize;

    unsafe fn zero() -> Self;
    /// Adds `STEP` products; the pointers must be valid for that many values.
    unsafe fn add(self, codes: *const i8, query: *const i16) -> Self;
    unsafe fn total(self) -> i32;
}

/// # Safety
/// The lengths must fit, as [`scores`] checks, and the processor must have the instructions of `S`.
#[inline(always)]
unsafe fn scores_with<S: Sums>(codes: &[i8], scales: &[f32], queries: &[Int8Query], out: &mut [f32]) {
    let dimensions = queries[0].codes.len();
    let some = scales.chunks(ROWS).zip(out.chunks_mut(ROWS * queries.len()));
    for ((scales, out), codes) in some.zip(codes.chunks(ROWS * dimensions)) {
        for (i, query) in queries.iter().enumerate() {
            let mut sums = [0; ROWS];
            // SAFETY: there are `dimensions` codes for each scale, and as many in the query.
            unsafe {
                let query = query.codes.as_ptr();
                if scales.len() == ROWS {
                    sums = sums_of::<S, ROWS>(codes.as_ptr(), query, dimensions);
                } else {
                    for (sum, codes) in sums.iter_mut().zip(codes.chunks_exact(dimensions)) {
                        [*sum] = sums_of::<S, 1>(codes.as_ptr(), query, dimensions);
                    }
                }
            }
            for ((&scale, sum), out) in scales
                .iter()
                .zip(sums)
                .zip(out[i..].iter_mut().step_by(queries.len()))
            {
                *out = (sum as f64 * (f64::from(scale) * query.scale)) as f32;
            }
        }
    }
}

/// The sums of products of `N` vectors, one behind another, with a query.
///
/// # Safety
/// The pointers must be valid for as many values, and the processor must have the instructions of `S`.
#[inline(always)]
unsafe fn sums_of<S: Sums, const N: usize>(
    codes: *const i8,
    query: *const i16,
    dimensions: usize,
) -> [i64; N] {
    let mut totals = [0; N];
    for start in (0..dimensions).step_by(BLOCK) {
        let length = BLOCK.min(dimensions - start);
        // SAFETY: `start + length` is at most `dimensions`.
        unsafe {
            let query = query.add(start);
            let rows: [_; N] = std::array::from_fn(|row| codes.add(row * dimensions + start));
            let mut sums = [S::zero(); N];
            let mut i = 0;
            while length - i >= S::STEP {
                for (sum, row) in sums.iter_mut().zip(rows) {
                    *sum = sum.add(row.add(i), query.add(i));
                }
                i += S::STEP;
            }
            for ((total, sum), row) in totals.iter_mut().zip(sums).zip(rows) {
                let mut sum = sum.total();
                for i in i..length {
                    sum += i32::from(*row.add(i)) * i32::from(*query.add(i));
                }
                *total += i64::from(sum);
            }
        }
    }
    totals
}

/// No instructions of its own: all is left to the plain loop over a rest, which the compiler puts into
/// vector registers for what the program is compiled for (SSE2, NEON).
#[derive(Clone, Copy)]
#[cfg_attr(
    target_feature = "simd128",
    expect(dead_code, reason = "there is always something better")
)]
struct Portable;

impl Sums for Portable {
    const STEP: usize = usize::MAX;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self
    }
    #[inline(always)]
    unsafe fn add(self, _: *const i8, _: *const i16) -> Self {
        self
    }
    #[inline(always)]
    unsafe fn total(self) -> i32 {
        0
    }
}

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm {
    use super::Sums;
    use std::arch::wasm32::*;

    #[derive(Clone, Copy)]
    pub(super) struct Simd128(v128);

    impl Sums for Simd128 {
        const STEP: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> Self {
            Self(i32x4_splat(0))
        }
        #[inline(always)]
        unsafe fn add(self, codes: *const i8, query: *const i16) -> Self {
            // SAFETY: the caller vouches for the pointers; the loads ask for no alignment.
            unsafe {
                let low = i32x4_dot_i16x8(i16x8_load_extend_i8x8(codes), v128_load(query.cast()));
                let high = i32x4_dot_i16x8(
                    i16x8_load_extend_i8x8(codes.add(8)),
                    v128_load(query.add(8).cast()),
                );
                Self(i32x4_add(i32x4_add(self.0, low), high))
            }
        }
        #[inline(always)]
        unsafe fn total(self) -> i32 {
            let halves = i32x4_add(self.0, i32x4_shuffle::<2, 3, 0, 1>(self.0, self.0));
            i32x4_extract_lane::<0>(halves) + i32x4_extract_lane::<1>(halves)
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Int8Query, PREFETCH, Sums, scores_with};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn scores_avx512(codes: &[i8], scales: &[f32], queries: &[Int8Query], out: &mut [f32]) {
        // SAFETY: the caller's duties are the same.
        unsafe { scores_with::<Avx512>(codes, scales, queries, out) }
    }

    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn scores_avx2(codes: &[i8], scales: &[f32], queries: &[Int8Query], out: &mut [f32]) {
        // SAFETY: the caller's duties are the same.
        unsafe { scores_with::<Avx2>(codes, scales, queries, out) }
    }

    #[derive(Clone, Copy)]
    pub(super) struct Avx512(__m512i);

    impl Sums for Avx512 {
        const STEP: usize = 32;

        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Self(_mm512_setzero_si512()) }
        }
        #[inline(always)]
        unsafe fn add(self, codes: *const i8, query: *const i16) -> Self {
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(PREFETCH));
                let codes = _mm512_cvtepi8_epi16(_mm256_loadu_si256(codes.cast()));
                let products = _mm512_madd_epi16(codes, _mm512_loadu_si512(query.cast()));
                Self(_mm512_add_epi32(self.0, products))
            }
        }
        #[inline(always)]
        unsafe fn total(self) -> i32 {
            unsafe { _mm512_reduce_add_epi32(self.0) }
        }
    }

    #[derive(Clone, Copy)]
    pub(super) struct Avx2(__m256i);

    impl Sums for Avx2 {
        const STEP: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Self(_mm256_setzero_si256()) }
        }
        #[inline(always)]
        unsafe fn add(self, codes: *const i8, query: *const i16) -> Self {
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(PREFETCH));
                let codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(codes.cast()));
                let products = _mm256_madd_epi16(codes, _mm256_loadu_si256(query.cast()));
                Self(_mm256_add_epi32(self.0, products))
            }
        }
        #[inline(always)]
        unsafe fn total(self) -> i32 {
            unsafe {
                let sum = _mm_add_epi32(
                    _mm256_castsi256_si128(self.0),
                    _mm256_extracti128_si256::<1>(self.0),
                );
                let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
                _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of the ways to compute scores.
    type Scores = unsafe fn(&[i8], &[f32], &[Int8Query], &mut [f32]);

    /// Every way that this processor has.
    fn ways() -> Vec<Scores> {
        #[allow(unused_mut)]
        let mut ways: Vec<Scores> = vec![scores_with::<Portable>, |codes, scales, queries, out| {
            scores(codes, scales, queries, out)
        }];
        #[cfg(target_arch = "x86_64")]
        match InstructionSet::detect() {
            InstructionSet::Avx512 => ways.extend([x86::scores_avx512 as Scores, x86::scores_avx2]),
            InstructionSet::Avx2 => ways.push(x86::scores_avx2),
            _ => {}
        }
        ways
    }

    #[test]
    fn every_instruction_set_gives_the_exact_sums() {
        let mut seed = 11u32;
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed >> 16
        };
        for (vectors, dimensions, count) in [
            (1, 1, 1),
            (9, 5, 3),
            (17, 33, 2),
            (24, 768, 1),
            (13, 1024, 2),
            (3, 1025, 1),
            (10, 3000, 2),
        ] {
            let codes: Vec<i8> = (0..vectors * dimensions).map(|_| random() as i8).collect();
            let scales: Vec<f32> = (0..vectors).map(|_| (random() + 1) as f32 * 1e-6).collect();
            let queries: Vec<Int8Query> = (0..count)
                .map(|_| Int8Query {
                    codes: (0..dimensions)
                        .map(|_| (random() % 32_767) as i16 - 16_383)
                        .collect(),
                    scale: f64::from(random() + 1) * 1e-7,
                })
                .collect();
            for way in ways() {
                let mut out = vec![f32::NAN; vectors * count];
                unsafe { way(&codes, &scales, &queries, &mut out) };
                for (i, &score) in out.iter().enumerate() {
                    let (vector, query) = (i / count, &queries[i % count]);
                    let codes = &codes[vector * dimensions..][..dimensions];
                    let products = codes
                        .iter()
                        .zip(&query.codes)
                        .map(|(&a, &b)| i64::from(a) * i64::from(b));
                    let sum: i64 = products.sum();
                    let expected = sum as f64 * (f64::from(scales[vector]) * query.scale);
                    assert_eq!(score, expected as f32, "{vectors} of {dimensions}, {i}");
                }
            }
        }
    }

    #[test]
    fn the_largest_sums_do_not_overflow() {
        let dimensions = 2 * BLOCK + 40;
        let codes = [vec![i8::MIN; dimensions], vec![127; dimensions]].concat();
        for code in [16_383, -16_383] {
            let query = Int8Query {
                codes: vec![code; dimensions],
                scale: 1.0,
            };
            for way in ways() {
                let mut out = [0.0; 2];
                unsafe { way(&codes, &[1.0; 2], std::slice::from_ref(&query), &mut out) };
                let all = dimensions as f32 * f32::from(code);
                assert_eq!(out, [-128.0 * all, 127.0 * all]);
            }
        }
    }

    #[test]
    fn codes_are_within_half_a_scale() {
        let vector: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 1e-9).collect();
        let mut codes = vec![0; vector.len()];
        let scale = quantise(&vector, &mut codes);
        assert!(codes.contains(&127) || codes.contains(&-127));
        for (&value, &code) in vector.iter().zip(&codes) {
            assert!((value - scale * f32::from(code)).abs() <= 0.5001 * scale);
        }
        let query = Int8Query::new(&vector);
        for (&value, &code) in vector.iter().zip(&query.codes) {
            assert!((f64::from(value) - query.scale * f64::from(code)).abs() <= 0.51 * query.scale);
        }
    }
}
