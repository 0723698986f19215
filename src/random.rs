//! Random numbers that a seed determines, the same on every machine.

/// What SplitMix64's counter moves by: 2^64 over the golden ratio, made odd.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64: the counter moves on by one step, and its bits are mixed.
pub(crate) fn step(state: u64) -> u64 {
    let mut z = state.wrapping_add(GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of random numbers.
pub(crate) struct Random {
    counter: u64,
}

impl Random {
    /// The stream of a seed. Those of neighbouring seeds have nothing in common.
    pub(crate) fn new(seed: u64) -> Self {
        // Mixed once, so that seeds at a distance of GAMMA do not share their numbers.
        Self { counter: step(seed) }
    }

    /// The next 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        let bits = step(self.counter);
        self.counter = self.counter.wrapping_add(GAMMA);
        bits
    }

    /// Uniform on \[0, 1).
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Uniform on \[low, high\].
    pub(crate) fn range(&mut self, [low, high]: [f32; 2]) -> f32 {
        // Rounding can carry the sum beyond `high`.
        (low + (high - low) * self.uniform()).min(high)
    }

    /// A whole number below `end`, which is 1 to 2^32.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((self.bits() >> 32) * end) >> 32
    }

    /// True with this probability: never at 0, always at 1.
    pub(crate) fn chance(&mut self, probability: f32) -> bool {
        self.uniform() < probability
    }
}
