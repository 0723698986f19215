//! The queue's lanes: one for each kind of item, as each tower takes one kind.

pub const CAPTIONS: usize = 0;
pub const IMAGES: usize = 1;
pub const LANES: usize = 2;

pub fn lane_name(lane: usize) -> &'static str {
    ["captions", "images"][lane]
}
