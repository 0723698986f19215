//! libjpeg-turbo's guess at coefficients that a progressive file leaves out.
//!
//! Where a file ends properly but has not told the lowest AC coefficients to their last bit, those
//! that are still zero are estimated from the DC coefficients of the 5 x 5 blocks around. Without
//! it such a picture would be blocky.

use super::frame::{Component, Frame, Scan, ZIGZAG};
use super::idct::Block;

/// DC and the first nine AC coefficients, in the order of the file.
const COUNT: usize = 10;

/// Weights of the DC coefficients around a block, row by row, in 256ths, for each coefficient.
type Weights = [[i32; 25]; COUNT];

/// If nothing is known of the AC coefficients: a smooth surface, whose mean the DC keeps.
#[rustfmt::skip]
const FROM_DC_ALONE: Weights = [
    [-2, -6, -8, -6, -2, -6, 6, 42, 6, -6, -8, 42, 152, 42, -8, -6, 6, 42, 6, -6, -2, -6, -8, -6, -2],
    [-1, -1, 0, 1, 1, -3, 13, 0, -13, 3, -3, 38, 0, -38, 3, -3, 13, 0, -13, 3, -1, -1, 0, 1, 1],
    [-1, -3, -3, -3, -1, -1, 13, 38, 13, -1, 0, 0, 0, 0, 0, 1, -13, -38, -13, 1, 1, 3, 3, 3, 1],
    [0, 0, 1, 0, 0, 0, 2, 7, 2, 0, 0, -5, -14, -5, 0, 0, 2, 7, 2, 0, 0, 0, 1, 0, 0],
    [-1, 0, 0, 0, 1, 0, 9, 0, -9, 0, 0, 0, 0, 0, 0, 0, -9, 0, 9, 0, 1, 0, 0, 0, -1],
    [0, 0, 0, 0, 0, 0, 2, -5, 2, 0, 1, 7, -14, 7, 1, 0, 2, -5, 2, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 1, 0, -1, 0, 0, 2, 0, -2, 0, 0, 1, 0, -1, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 1, -3, 1, 0, 0, 0, 0, 0, 0, 0, -1, 3, -1, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 1, 0, -1, 0, 0, -3, 0, 3, 0, 0, 1, 0, -1, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 1, 2, 1, 0, 0, 0, 0, 0, 0, 0, -1, -2, -1, 0, 0, 0, 0, 0, 0],
];

/// If something is known of them: only the first five are estimated, by a sharper kernel.
#[rustfmt::skip]
const BESIDE_AC: Weights = [
    [0; 25],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -7, 50, 0, -50, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, -7, 0, 0, 0, 0, 50, 0, 0, 0, 0, 0, 0, 0, 0, 0, -50, 0, 0, 0, 0, 7, 0, 0],
    [0, 0, -1, 0, 0, 0, 0, 13, 0, 0, 0, 0, -24, 0, 0, 0, 0, 13, 0, 0, 0, 0, -1, 0, 0],
    [0, -1, 0, 1, 0, -1, 10, 0, -10, 1, 0, 0, 0, 0, 0, 1, -10, 0, 10, -1, 0, 1, 0, -1, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 13, -24, 13, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0; 25],
    [0; 25],
    [0; 25],
    [0; 25],
];

/// How exactly a component's coefficients are known: the bit that the last scan told of each, -1
/// if none did.
#[derive(Clone, Copy)]
struct Knowledge {
    now: [i32; COUNT],
    /// The same before the component's last scan.
    before: [i32; COUNT],
}

/// What the scans of a progressive file have told so far.
pub(super) struct Progress {
    components: Vec<Knowledge>,
    scans: usize,
    /// The last strip of which the last scan told anything.
    pub last_told: usize,
}

impl Progress {
    pub fn new(frame: &Frame) -> Self {
        let nothing = Knowledge {
            now: [-1; COUNT],
            before: [-1; COUNT],
        };
        Progress {
            components: vec![nothing; frame.components.len()],
            scans: 0,
            last_told: 0,
        }
    }

    /// Notes what a scan is about to tell.
    pub fn begin(&mut self, scan: &Scan) {
        self.scans += 1;
        for component in &scan.components {
            let knowledge = &mut self.components[component.index];
            knowledge.before = if self.scans > 1 { knowledge.now } else { [0; COUNT] };
            for k in scan.first..=scan.last.min(COUNT - 1) {
                knowledge.now[k] = scan.low as i32;
            }
        }
    }

    /// Whether there is anything to estimate, and the means to.
    pub fn is_lacking(&self, steps: &[[u16; 64]]) -> bool {
        let usable = self.components.iter().zip(steps).all(|(knowledge, steps)| {
            knowledge.now[0] >= 0
                && ZIGZAG[..COUNT]
                    .iter()
                    .all(|&position| steps[usize::from(position)] > 0)
        });
        usable
            && self
                .components
                .iter()
                .any(|knowledge| knowledge.now[1..] != [0; COUNT - 1])
    }

    /// A block with the estimates put in.
    pub fn smoothed(
        &self,
        index: usize,
        component: &Component,
        frame: &Frame,
        steps: &[u16; 64],
        (row, column): (usize, usize),
        block: impl Fn(usize, usize) -> Block,
    ) -> Block {
        let strip = row / component.v;
        let Knowledge { now, before } = &self.components[index];
        let known = match strip > self.last_told {
            true if self.scans > 1 => before,
            true => &[-1; COUNT],
            false => now,
        };
        let alone = known[1..] == [-1; COUNT - 1];
        let around = around(component, frame, (row, column), |row, column| {
            block(row, column)[0]
        });
        let mut block = block(row, column);
        let weights = if alone { &FROM_DC_ALONE } else { &BESIDE_AC };
        for k in 0..if alone { COUNT } else { 6 } {
            let position = usize::from(ZIGZAG[k]);
            // The DC is known, but is blended with those around.
            let estimated = if k == 0 {
                alone
            } else {
                known[k] != 0 && block[position] == 0
            };
            if !estimated {
                continue;
            }
            let sum: i32 = weights[k]
                .iter()
                .zip(&around)
                .map(|(w, &dc)| w * i32::from(dc))
                .sum();
            let size = i64::from(sum.abs()) * i64::from(steps[0]);
            let step = i64::from(steps[position]);
            let mut estimate = ((step << 7) + size) / (step << 8);
            if k > 0 && known[k] > 0 {
                // Not more than would have been told.
                estimate = estimate.min((1 << known[k]) - 1);
            }
            block[position] = (if sum < 0 { -estimate } else { estimate }) as i16;
        }
        block
    }
}

/// The DC coefficients of the 5 x 5 blocks around one, with libjpeg-turbo's replacements for those
/// beyond the edges.
fn around(
    component: &Component,
    frame: &Frame,
    (row, column): (usize, usize),
    dc: impl Fn(usize, usize) -> i16,
) -> [i16; 25] {
    let (strip, place) = (row / component.v, row % component.v);
    let strips_left = frame.strips - 1 - strip;
    let rows_left = component.v.min(component.blocks_high - strip * component.v) - 1 - place;
    let above = if row > 0 { row - 1 } else { row };
    let far_above = if place > 1 || strip > 1 { row - 2 } else { above };
    let below = if rows_left > 0 || strips_left > 0 {
        row + 1
    } else {
        row
    };
    let far_below = if rows_left > 1 || strips_left > 1 {
        row + 2
    } else {
        below
    };
    let wide = component.blocks_wide;
    let columns: [usize; 5] = std::array::from_fn(|i| match (column + i).saturating_sub(2) {
        // In a component of two columns the left one stands in on both sides.
        beyond if beyond >= wide && wide == 2 => 0,
        inside => inside.min(wide - 1),
    });
    let rows = [far_above, above, row, below, far_below];
    std::array::from_fn(|i| dc(rows[i / 5], columns[i % 5]))
}
