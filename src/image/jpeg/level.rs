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
