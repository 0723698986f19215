//! Vectors of `f32`, one implementation per instruction set.
//!
//! Kernels are written once over [`Simd`] and instantiated by [`dispatch!`] inside functions that have
//! the instruction set switched on. Everything on the way is `#[inline(always)]`: code that is not
//! inlined into such a function would be compiled without those instructions.

/// A register of `LANES` floats and what the kernels do with it.
///
/// # Safety
/// The methods may be called only where the processor has the instruction set; pointers must be valid
/// for the floats read or written (no alignment is asked for).
pub(super) trait Simd: Copy {
    type V: Copy;
    const LANES: usize;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// `LANES` whole numbers of eight bits.
    unsafe fn load_int8(p: *const i8) -> Self::V;
    /// `LANES` bytes of two whole numbers each: those in the low four bits, and those in the high ones.
    unsafe fn load_int4(p: *const u8) -> [Self::V; 2];
    /// The first `n < LANES` floats; the other lanes are 0.
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V;
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// a / b to a few units in the last place, for b between 2^-126 and 2^126.
    #[inline(always)]
    unsafe fn quotient(a: Self::V, b: Self::V) -> Self::V {
        unsafe { Self::div(a, b) }
    }
    /// a * b + c, with one rounding where the instruction set has that.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// x * 2^n, for n that holds an integer between -126 and 127.
    unsafe fn scale_by_power_of_two(x: Self::V, n: Self::V) -> Self::V;
    /// Asks for two registers' worth of memory that will be read soon; any address will do.
    unsafe fn prefetch(p: *const f32);
    /// Whether [`Simd::touch`] is of use, since there is no instruction for [`Simd::prefetch`].
    const TOUCHES: bool = false;
    /// Reads a byte and forgets it, so that its surroundings are near when they are needed.
    #[inline(always)]
    unsafe fn touch(_: *const u8) {}
    unsafe fn sum(v: Self::V) -> f32;
    unsafe fn largest(v: Self::V) -> f32;
}

/// Which instruction set the kernels run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructionSet {
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// WebAssembly with SIMD128, which is chosen when the module is built: a processor is not asked.
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    Simd128,
    /// Whatever the compiler makes of arrays of eight floats.
    Portable,
}

impl InstructionSet {
    /// The best one that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            // Each check is a load and a test: the standard library keeps the answers.
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("fma")
            {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        return Self::Simd128;
        #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
        Self::Portable
    }
}

/// Defines a safe-to-dispatch function that calls the generic `$generic` with the best [`Simd`].
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $generic:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                    unsafe { $generic::<crate::kernels::simd::Avx512>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                    unsafe { $generic::<crate::kernels::simd::Avx2>($($arg),*) }
                }
                match crate::kernels::simd::InstructionSet::detect() {
                    crate::kernels::simd::InstructionSet::Avx512 => return unsafe { avx512($($arg),*) },
                    crate::kernels::simd::InstructionSet::Avx2 => return unsafe { avx2($($arg),*) },
                    crate::kernels::simd::InstructionSet::Portable => {}
                }
            }
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            return unsafe { $generic::<crate::kernels::simd::Simd128>($($arg),*) };
            #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
            unsafe { $generic::<crate::kernels::simd::Portable>($($arg),*) }
        }
    };
}
pub(super) use dispatch;

/// Arrays of eight floats, which LLVM turns into what the target has (NEON, SSE2).
#[derive(Clone, Copy)]
#[cfg_attr(
    target_feature = "simd128",
    expect(dead_code, reason = "there is always something better")
)]
pub(super) struct Portable;

#[cfg_attr(target_feature = "simd128", expect(dead_code, reason = "as `Portable`"))]
#[inline(always)]
fn zip(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_int8(p: *const i8) -> Self::V {
        unsafe { p.cast::<[i8; 8]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_int4(p: *const u8) -> [Self::V; 2] {
        let bytes = unsafe { p.cast::<[u8; 8]>().read_unaligned() };
        let low = bytes.map(|byte| f32::from((byte << 4) as i8 >> 4));
        [low, bytes.map(|byte| f32::from(byte as i8 >> 4))]
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        let mut v = [0.0; 8];
        unsafe { std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n) };
        v
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize) {
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), p, n) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Where the target has no fused instruction, `f32::mul_add` would call a library function.
        std::array::from_fn(|i| {
            if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
                a[i].mul_add(b[i], c[i])
            } else {
                a[i] * b[i] + c[i]
            }
        })
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn scale_by_power_of_two(x: Self::V, n: Self::V) -> Self::V {
        zip(x, n, |x, n| x * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    unsafe fn largest(v: Self::V) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512;

    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_int8(p: *const i8) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_int4(p: *const u8) -> [__m512; 2] {
            unsafe {
                let bytes = _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()));
                let low = _mm512_srai_epi32::<28>(_mm512_slli_epi32::<28>(bytes));
                [
                    _mm512_cvtepi32_ps(low),
                    _mm512_cvtepi32_ps(_mm512_srai_epi32::<4>(bytes)),
                ]
            }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> __m512 {
            unsafe { _mm512_maskz_loadu_ps((1u16 << n) - 1, p) }
        }
        #[inline(always)]
        unsafe fn store_first(p: *mut f32, v: __m512, n: usize) {
            unsafe { _mm512_mask_storeu_ps(p, (1u16 << n) - 1, v) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_div_ps(a, b) }
        }
        /// A division keeps its port busy for 16 cycles; an estimate and one step of Newton's method take four
        /// instructions.
        #[inline(always)]
        unsafe fn quotient(a: __m512, b: __m512) -> __m512 {
            unsafe {
                let r = _mm512_rcp14_ps(b);
                let error = _mm512_fnmadd_ps(b, r, _mm512_set1_ps(1.0));
                _mm512_mul_ps(a, _mm512_fmadd_ps(r, error, r))
            }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn scale_by_power_of_two(x: __m512, n: __m512) -> __m512 {
            unsafe { _mm512_scalef_ps(x, n) }
        }
        #[inline(always)]
        unsafe fn prefetch(p: *const f32) {
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(p.cast());
                _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(16).cast());
            }
        }
        #[inline(always)]
        unsafe fn sum(v: __m512) -> f32 {
            unsafe { _mm512_reduce_add_ps(v) }
        }
        #[inline(always)]
        unsafe fn largest(v: __m512) -> f32 {
            unsafe { _mm512_reduce_max_ps(v) }
        }
    }

    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2;

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_int8(p: *const i8) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_int4(p: *const u8) -> [__m256; 2] {
            unsafe {
                let bytes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
                let low = _mm256_srai_epi32::<28>(_mm256_slli_epi32::<28>(bytes));
                [
                    _mm256_cvtepi32_ps(low),
                    _mm256_cvtepi32_ps(_mm256_srai_epi32::<4>(bytes)),
                ]
            }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> __m256 {
            let mut v = [0.0f32; 8];
            unsafe {
                std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n);
                _mm256_loadu_ps(v.as_ptr())
            }
        }
        #[inline(always)]
        unsafe fn store_first(p: *mut f32, v: __m256, n: usize) {
            let mut lanes = [0.0f32; 8];
            unsafe {
                _mm256_storeu_ps(lanes.as_mut_ptr(), v);
                std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
            }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn scale_by_power_of_two(x: __m256, n: __m256) -> __m256 {
            unsafe {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
            }
        }
        #[inline(always)]
        unsafe fn prefetch(p: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn sum(v: __m256) -> f32 {
            unsafe {
                let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
            }
        }
        #[inline(always)]
        unsafe fn largest(v: __m256) -> f32 {
            unsafe {
                let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
            }
        }
    }
}

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(super) use wasm::Simd128;

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm {
    use super::Simd;
    use std::arch::wasm32::*;

    /// One register of four floats. There is no fused multiplication and addition: it would round
    /// once where this rounds twice, and not every engine has it.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Simd128;

    impl Simd for Simd128 {
        type V = v128;
        const LANES: usize = 4;

        #[inline(always)]
        unsafe fn splat(x: f32) -> v128 {
            f32x4_splat(x)
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> v128 {
            unsafe { v128_load(p.cast()) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: v128) {
            unsafe { v128_store(p.cast(), v) }
        }
        #[inline(always)]
        unsafe fn load_int8(p: *const i8) -> v128 {
            let codes = unsafe { v128_load32_zero(p.cast()) };
            f32x4_convert_i32x4(i32x4_extend_low_i16x8(i16x8_extend_low_i8x16(codes)))
        }
        #[inline(always)]
        unsafe fn load_int4(p: *const u8) -> [v128; 2] {
            let bytes = unsafe { v128_load32_zero(p.cast()) };
            let bytes = i32x4_extend_low_i16x8(i16x8_extend_low_i8x16(bytes));
            let low = i32x4_shr(i32x4_shl(bytes, 28), 28);
            [f32x4_convert_i32x4(low), f32x4_convert_i32x4(i32x4_shr(bytes, 4))]
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> v128 {
            unsafe {
                match n {
                    0 => f32x4_splat(0.0),
                    1 => v128_load32_zero(p.cast()),
                    2 => v128_load64_zero(p.cast()),
                    _ => v128_load32_lane::<2>(v128_load64_zero(p.cast()), p.add(2).cast()),
                }
            }
        }
        #[inline(always)]
        unsafe fn store_first(p: *mut f32, v: v128, n: usize) {
            unsafe {
                match n {
                    0 => {}
                    1 => v128_store32_lane::<0>(v, p.cast()),
                    2 => v128_store64_lane::<0>(v, p.cast()),
                    _ => {
                        v128_store64_lane::<0>(v, p.cast());
                        v128_store32_lane::<2>(v, p.add(2).cast());
                    }
                }
            }
        }
        #[inline(always)]
        unsafe fn add(a: v128, b: v128) -> v128 {
            f32x4_add(a, b)
        }
        #[inline(always)]
        unsafe fn sub(a: v128, b: v128) -> v128 {
            f32x4_sub(a, b)
        }
        #[inline(always)]
        unsafe fn mul(a: v128, b: v128) -> v128 {
            f32x4_mul(a, b)
        }
        #[inline(always)]
        unsafe fn div(a: v128, b: v128) -> v128 {
            f32x4_div(a, b)
        }
        #[inline(always)]
        unsafe fn mul_add(a: v128, b: v128, c: v128) -> v128 {
            f32x4_add(f32x4_mul(a, b), c)
        }
        // The "pseudo" minimum and maximum are one comparison and choice, and one instruction on x86-64.
        // They hand over their first operand where one is NaN, so the operands change places.
        #[inline(always)]
        unsafe fn max(a: v128, b: v128) -> v128 {
            f32x4_pmax(b, a)
        }
        #[inline(always)]
        unsafe fn min(a: v128, b: v128) -> v128 {
            f32x4_pmin(b, a)
        }
        #[inline(always)]
        unsafe fn scale_by_power_of_two(x: v128, n: v128) -> v128 {
            // Adding 1.5 * 2^23 leaves the integer in the low bits of the sum, and the bits above it are
            // shifted out: cheaper than a conversion, which has to saturate.
            let exponent = i32x4_shl(f32x4_add(n, f32x4_splat(12_582_912.0)), 23);
            f32x4_mul(x, i32x4_add(exponent, f32x4_splat(1.0)))
        }
        #[inline(always)]
        unsafe fn prefetch(_: *const f32) {}
        const TOUCHES: bool = true;
        #[inline(always)]
        unsafe fn touch(p: *const u8) {
            unsafe { p.read_volatile() };
        }
        #[inline(always)]
        unsafe fn sum(v: v128) -> f32 {
            let v = f32x4_add(v, i32x4_shuffle::<2, 3, 0, 1>(v, v));
            f32x4_extract_lane::<0>(v) + f32x4_extract_lane::<1>(v)
        }
        #[inline(always)]
        unsafe fn largest(v: v128) -> f32 {
            let v = f32x4_pmax(v, i32x4_shuffle::<2, 3, 0, 1>(v, v));
            f32x4_extract_lane::<0>(v).max(f32x4_extract_lane::<1>(v))
        }
    }
}
