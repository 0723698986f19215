//! What a scene holds, and which split may hold it.

use super::random::{Random, hash};
use super::words::{BACKDROPS, COLOURS, KINDS};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Small,
    /// No caption names it.
    Middle,
    Large,
}

/// One to four objects alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    pub kind: usize,
    pub colour: usize,
    pub size: Size,
    pub count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One group, off the centre by so much to the right and down: -1, 0 or 1 each.
    Single(i8, i8),
    /// Two or three groups from left to right.
    Row,
    /// Two or three groups from top to bottom.
    Column,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scene {
    pub backdrop: usize,
    pub layout: Layout,
    pub groups: Vec<Group>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Test,
    Unseen,
}

impl Split {
    pub const ALL: [(&'static str, Self); 3] = [
        ("train", Self::Train),
        ("test", Self::Test),
        ("unseen", Self::Unseen),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

/// Keeps the two hashes apart from each other and from the random streams.
const TRIPLES: u64 = 0x7472_6970;
const SIGNATURES: u64 = 0x7369_676e;

/// Whether no scene of the training and test splits shows this kind in this colour before this backdrop.
pub fn held_out(kind: usize, colour: usize, backdrop: usize) -> bool {
    let triple = [TRIPLES, kind as u64, colour as u64, backdrop as u64];
    hash(&triple).is_multiple_of(10)
}

impl Scene {
    /// Draws a scene of a split; not every draw gives one.
    pub fn draw(random: &mut Random, split: Split) -> Option<Self> {
        let backdrop = random.below(BACKDROPS.len());
        let (layout, slots) = match random.below(100) {
            0..20 => (Layout::Single(0, 0), 1),
            20..32 => (random.pick(&SIDES), 1),
            32..46 => (Layout::Single(0, 0), 1),
            46..66 => (Layout::Row, 2),
            66..80 => (Layout::Column, 2),
            80..92 => (Layout::Row, 3),
            _ => (Layout::Column, 3),
        };
        let several = layout == Layout::Single(0, 0) && random.percent(41);
        let mut groups: Vec<Group> = Vec::with_capacity(slots);
        let alike = slots > 1 && random.percent(6);
        for slot in 0..slots {
            let (kind, colour) = loop {
                let kind = match groups.first() {
                    Some(first) if alike && slot == 1 => first.kind,
                    _ => random.below(KINDS.len()),
                };
                let colour = random.below(COLOURS.len());
                let new = groups.iter().enumerate().all(|(at, other)| {
                    let twin = alike && at == 0 && slot == 1;
                    if twin {
                        other.colour != colour
                    } else {
                        other.kind != kind
                    }
                });
                if new && held_out(kind, colour, backdrop) == (split == Split::Unseen) {
                    break (kind, colour);
                }
                // Few of a kind's colours may be held out before a backdrop.
                if alike && random.percent(5) {
                    return None;
                }
            };
            let count = match slots {
                1 if several => 2 + random.below(3),
                2 if random.percent(18) => 2 + random.below(2),
                _ => 1,
            };
            let large = slots == 1 || slots == 2 && groups.iter().all(|other| other.size != Size::Large);
            let size = match random.below(100) {
                _ if count > 1 => Size::Middle,
                0..22 => Size::Small,
                22..44 if large => Size::Large,
                _ => Size::Middle,
            };
            groups.push(Group {
                kind,
                colour,
                size,
                count,
            });
        }
        let scene = Self {
            backdrop,
            layout,
            groups,
        };
        let fits = match split {
            Split::Train => !scene.for_test(),
            Split::Test => scene.for_test(),
            Split::Unseen => true,
        };
        fits.then_some(scene)
    }

    /// Whether the scene's content belongs to the test split rather than to training.
    pub fn for_test(&self) -> bool {
        let layout = match self.layout {
            Layout::Single(x, y) => (3 * (x + 1) + y + 1) as u64,
            Layout::Row => 9,
            Layout::Column => 10,
        };
        let mut parts = vec![SIGNATURES, self.backdrop as u64, layout];
        for group in &self.groups {
            let numbers = [group.kind, group.colour, group.size as usize, group.count];
            parts.extend(numbers.map(|number| number as u64));
        }
        hash(&parts).is_multiple_of(16)
    }

    /// A group's place, from -1 to 1 to the right and down.
    pub fn place(&self, slot: usize) -> (i8, i8) {
        // Of two: the ends; of three: the middle as well.
        let along = match (slot, self.groups.len()) {
            (0, _) => -1,
            (1, 3) => 0,
            _ => 1,
        };
        match self.layout {
            Layout::Single(x, y) => (x, y),
            Layout::Row => (along, 0),
            Layout::Column => (0, along),
        }
    }

    /// Whether only their colours tell two groups apart.
    pub fn repeats_a_kind(&self) -> bool {
        let kinds = self.groups.iter().map(|group| group.kind);
        kinds
            .enumerate()
            .any(|(slot, kind)| self.groups[..slot].iter().any(|other| other.kind == kind))
    }

    /// The kinds' names in layout order, each once.
    pub fn tags(&self) -> String {
        let mut tags: Vec<&str> = Vec::new();
        for group in &self.groups {
            let name = KINDS[group.kind].names[0];
            if !tags.contains(&name) {
                tags.push(name);
            }
        }
        tags.join(" ")
    }
}

const SIDES: [Layout; 4] = [
    Layout::Single(-1, 0),
    Layout::Single(1, 0),
    Layout::Single(0, -1),
    Layout::Single(0, 1),
];
