//! The same work in the code that suits the processor at hand.

use super::colour;
use super::idct::{self, Block, Steps};

/// What the processor offers, and the kernels that are written for it.
pub(super) trait Level: Copy {
    /// Dequantises a block, transforms it and writes its 8 x 8 samples to `out`, whose rows are
    /// `stride` apart.
    fn idct(self, block: &Block, steps: &Steps, out: &mut [u8], stride: usize);
    /// Makes RGB pixels of as many samples of Y, Cb and Cr.
    fn rgb_row(self, samples: [&[u8]; 3], out: &mut [[u8; 3]]);
}

/// Plain Rust.
#[derive(Clone, Copy)]
struct Portable;

impl Level for Portable {
    #[inline(always)]
    fn idct(self, block: &Block, steps: &Steps, out: &mut [u8], stride: usize) {
        idct::portable(block, steps, out, stride);
    }

    #[inline(always)]
    fn rgb_row(self, samples: [&[u8]; 3], out: &mut [[u8; 3]]) {
        colour::rgb_row(samples, out);
    }
}

/// Proof that the processor has AVX2, BMI1, BMI2 and LZCNT.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Avx2(());

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    fn detect() -> Option<Self> {
        let present = std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("bmi1")
            && std::is_x86_feature_detected!("bmi2")
            && std::is_x86_feature_detected!("lzcnt");
        present.then_some(Avx2(()))
    }
}

#[cfg(target_arch = "x86_64")]
impl Level for Avx2 {
    #[inline(always)]
    fn idct(self, block: &Block, steps: &Steps, out: &mut [u8], stride: usize) {
        // SAFETY: an `Avx2` exists only where the processor has AVX2.
        unsafe { idct::avx2::idct(block, steps, out, stride) }
    }

    #[inline(always)]
    fn rgb_row(self, samples: [&[u8]; 3], out: &mut [[u8; 3]]) {
        // SAFETY: as above.
        unsafe { colour::avx2::rgb_row(samples, out) }
    }
}

/// Work that runs the faster the more the compiler may assume of the processor.
pub(super) trait Task {
    type Output;
    /// Does the work. For the compiler to compile all of it once per level, this and what it calls
    /// must be `#[inline(always)]`.
    fn run(self, level: impl Level) -> Self::Output;
}

/// Runs a task at the best level.
pub(super) fn run<T: Task>(task: T) -> T::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(level) = Avx2::detect() {
        #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
        fn run<T: Task>(task: T, level: Avx2) -> T::Output {
            task.run(level)
        }
        // SAFETY: `detect` found the features.
        return unsafe { run(task, level) };
    }
    task.run(Portable)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Numbers without end (Knuth's MMIX generator), each below 2^31.
    fn noise(seed: u64) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(seed), |x| {
            Some(
                x.wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407),
            )
        })
        .skip(1)
        .map(|x| (x >> 33) as u32)
    }

    #[test]
    fn levels_transform_alike() {
        let Some(level) = Avx2::detect() else { return };
        let mut noise = noise(1);
        let mut next = |below: u32| noise.next().unwrap_or_default() % below;
        for round in 0..40_000u32 {
            // From few small coefficients to all of 16 bits, and as wide a range of steps.
            let (size, step) = (1 << (round % 16), 1 << (round / 16 % 17));
            let density = 1 + next(64);
            let block: Block = std::array::from_fn(|_| {
                if next(64) < density {
                    (next(2 * size + 1) as i32 - size as i32) as i16
                } else {
                    0
                }
            });
            let steps = Steps::new(std::array::from_fn(|_| next(step) as u16));
            let (mut fast, mut plain) = ([7; 8 * 11], [7; 8 * 11]);
            level.idct(&block, &steps, &mut fast, 11);
            Portable.idct(&block, &steps, &mut plain, 11);
            assert_eq!(fast, plain, "{block:?}");
        }
    }

    #[test]
    fn levels_convert_colours_alike() {
        let Some(level) = Avx2::detect() else { return };
        let mut noise = noise(2);
        // All of Cb and Cr, in rows of which some do not fill a vector.
        for cb in 0..=255 {
            for length in [256, 45, 3] {
                let cr: Vec<u8> = (0..=255).rev().take(length).collect();
                let cb = vec![cb; length];
                let y: Vec<u8> = noise.by_ref().map(|x| (x >> 8) as u8).take(length).collect();
                let (mut fast, mut plain) = (vec![[0; 3]; length], vec![[1; 3]; length]);
                level.rgb_row([&y, &cb, &cr], &mut fast);
                Portable.rgb_row([&y, &cb, &cr], &mut plain);
                assert_eq!(fast, plain);
            }
        }
    }
}
