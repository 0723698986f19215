//! Which values dropout leaves out.

#[cfg(feature = "train")]
use crate::random::step;

/// What is left out at random: a function of the seed and the place of a value, so that nothing has to be
/// kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropoutMask {
    /// Which values; another seed, other values.
    pub seed: u64,
    /// The share that is left out, from 0 to below 1.
    pub share: f64,
}

#[cfg(feature = "train")]
impl DropoutMask {
    /// What value `column` of row `row` is multiplied by: 0, or 1 / (1 - share).
    #[cfg(test)]
    pub(crate) fn factor(&self, row: usize, column: usize) -> f32 {
        let [low, high] = self.key(row);
        if bits(column as u32, low, high) < self.threshold() {
            0.0
        } else {
            self.scale()
        }
    }

    pub(super) fn scale(&self) -> f32 {
        (1.0 / (1.0 - self.share)) as f32
    }

    /// Bits below it mean that a value is left out.
    pub(super) fn threshold(&self) -> u32 {
        (self.share * 4_294_967_296.0) as u32
    }

    pub(super) fn key(&self, row: usize) -> [u32; 2] {
        let key = step(self.seed ^ step(row as u64));
        [key as u32, (key >> 32) as u32]
    }

    /// Writes the factors of a row's first `n` values.
    ///
    /// # Safety
    /// `out` must be valid for `n` values.
    #[inline(always)]
    pub(super) unsafe fn factors(&self, row: usize, n: usize, out: *mut f32) {
        let [low, high] = self.key(row);
        let (threshold, scale) = (self.threshold(), self.scale());
        for i in 0..n {
            let kept = bits(i as u32, low, high) >= threshold;
            // SAFETY: `i < n`.
            unsafe { *out.add(i) = if kept { scale } else { 0.0 } };
        }
    }
}

/// Mixes a counter with a key: two rounds of multiply and shift (lowbias32's constants), the key's halves
/// entering before each.
#[cfg(feature = "train")]
#[inline(always)]
pub(super) fn bits(counter: u32, low: u32, high: u32) -> u32 {
    let mut x = counter ^ low;
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d) ^ high;
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}
