//! Repeatable chance: SplitMix64, the same on every machine.

/// A stream of random numbers.
pub struct Random(u64);

impl Random {
    /// The stream that belongs to these numbers: others give another one.
    pub fn new(parts: &[u64]) -> Self {
        Self(hash(parts))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// Uniform on 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        // The high half of the product: free of the low bits' bias, and of a division.
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// Uniform on [low, high).
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * ((self.next() >> 40) as f32 / (1u32 << 24) as f32)
    }

    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A hash of numbers in their order.
pub fn hash(parts: &[u64]) -> u64 {
    parts
        .iter()
        .fold(0, |hash, &part| mix((hash ^ part).wrapping_add(GOLDEN)))
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
