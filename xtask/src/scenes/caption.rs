//! From a scene to a caption, and what the caption claims.

use super::random::Random;
use super::scene::{Group, Layout, Scene, Size};
use super::words::{BACKDROPS, COLOURS, KINDS, LARGE, NUMERALS, SMALL};

/// What a caption says of some objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thing {
    pub kind: usize,
    pub colour: Option<usize>,
    pub size: Option<Size>,
    /// At least so many.
    pub count: Option<usize>,
    /// Off the centre by so much to the right and down.
    pub place: Option<(i8, i8)>,
}

/// What a caption says of a scene.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    pub backdrop: Option<usize>,
    pub things: Vec<Thing>,
    /// The things follow each other from left to right or from top to bottom.
    pub order: Option<Order>,
    /// There is nothing but the one thing.
    pub alone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Across,
    Down,
}

impl Claims {
    /// Whether a reader would find all of it true of the scene. Where readers could differ, they do.
    pub fn hold_for(&self, scene: &Scene) -> bool {
        if self.backdrop.is_some_and(|backdrop| backdrop != scene.backdrop) {
            return false;
        }
        if self.alone {
            let objects: usize = scene.groups.iter().map(|group| group.count).sum();
            if self.things[0].count.is_some_and(|count| count != objects) {
                return false;
            }
        }
        let counted = |thing: &Thing| {
            let same = scene.groups.iter().filter(|group| thing.describes(group, scene));
            same.map(|group| group.count).sum::<usize>() >= thing.count.unwrap_or(1)
        };
        self.things.iter().all(counted) && self.assign(scene, 0, None)
    }

    /// Whether the things from `next` on fit groups of the scene, the one before being in group `last`.
    fn assign(&self, scene: &Scene, next: usize, last: Option<usize>) -> bool {
        let Some(thing) = self.things.get(next) else {
            return true;
        };
        (0..scene.groups.len()).any(|slot| {
            let follows = match (self.order, last) {
                (Some(order), Some(last)) => scene.in_order(last, slot, order),
                _ => true,
            };
            let there = thing.place.is_none_or(|place| scene.is_at(slot, place));
            follows
                && there
                && thing.describes(&scene.groups[slot], scene)
                && self.assign(scene, next + 1, Some(slot))
        })
    }
}

impl Thing {
    fn describes(&self, group: &Group, scene: &Scene) -> bool {
        let sized = match self.size {
            None => true,
            // Several in a slot are drawn small.
            Some(Size::Small) if group.count > 1 && scene.groups.len() > 1 => true,
            Some(size) => group.size == size,
        };
        self.kind == group.kind && self.colour.is_none_or(|colour| colour == group.colour) && sized
    }
}

impl Scene {
    /// Whether one of a group's objects can be said to be at a place.
    fn is_at(&self, slot: usize, place: (i8, i8)) -> bool {
        let (x, y) = self.place(slot);
        let several = self.groups[slot].count > 1;
        // Several objects of one group reach to all sides that the layout leaves open.
        let (wide, high) = match self.layout {
            Layout::Single(..) => (several, several),
            Layout::Row => (false, several),
            Layout::Column => (several, false),
        };
        let fits = |claim: i8, is: i8, open: bool| open || claim == is;
        match place {
            (0, 0) => fits(0, x, wide) && fits(0, y, high),
            (0, down) => fits(down, y, high),
            (right, _) => fits(right, x, wide),
        }
    }

    /// Whether an object of one group can be said to be left of, or above, one of another.
    fn in_order(&self, first: usize, second: usize, order: Order) -> bool {
        let (from, to) = (self.place(first), self.place(second));
        let several = self.groups[first].count > 1 || self.groups[second].count > 1;
        match (order, self.layout) {
            (_, Layout::Single(..)) => several,
            (Order::Across, Layout::Row) => from.0 < to.0,
            (Order::Down, Layout::Column) => from.1 < to.1,
            // Several stand across the layout, to both sides of the other's middle.
            (Order::Across, Layout::Column) | (Order::Down, Layout::Row) => several,
        }
    }
}

/// How much a caption says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Short,
    Middle,
    Full,
}

impl Level {
    pub fn draw(random: &mut Random) -> Self {
        match random.below(10) {
            0..2 => Self::Short,
            2..6 => Self::Middle,
            _ => Self::Full,
        }
    }
}

// Templates. The letters in them stand for words:
//   A B C  the groups, counted: 一只红色的猫      a b c  not counted: 红色的猫
//   F M G  the sides, 左边 中间 右边 or 上面 中间 下面   W  从左到右 or 从上到下   V  一排 or 一列
//   S      the side of a single group            N  the core of the caption
//   X      the backdrop's phrase of place        x  its noun
//   Y      图中 and its like                      Z  图片 and its like, drawn

/// Cores that are a noun phrase, by the number of groups.
const NOMINAL: [&[&str]; 3] = [
    &["A", "A", "a"],
    &["A和B", "A与B", "A、B", "a和b", "B和A", "b和a"],
    &["A、B和C", "A、B、C", "a、b和c", "C、B和A", "B、A和C"],
];

/// Cores that are a sentence: of a single group off the centre.
const PLACED: &[&str] = &["A在S", "S有A", "S是A", "a在S", "A位于S"];
/// Of a single group in the centre.
const CENTRAL: &[&str] = &["A在M", "M有A", "M是A"];
/// Of two groups, in order.
const PAIRS: &[&str] = &[
    "A在F，B在G",
    "F是A，G是B",
    "F有A，G有B",
    "G是B，F是A",
    "F是a，G是b",
    "a在b的F",
    "b在a的G",
    "A在B的F",
    "B在A的G",
    "aG有B",
    "bF是A",
    "a的G是B",
    "b的F有A",
    "W是A和B",
];
/// Of three groups, in order.
const TRIPLES: &[&str] = &[
    "F是A，M是B，G是C",
    "A在F，B在M，C在G",
    "W是A、B和C",
    "W依次是A、B、C",
    "W依次是a、b和c",
    "A、B和CW排成V",
    "M是B，F是A，G是C",
    "F有A，M有B，G有C",
    "F是a，M是b，G是c",
];
/// Of three groups, some of which go unsaid: short.
const PARTS: &[&str] = &[
    "F是a，G是c",
    "a在b的F",
    "c在b的G",
    "A和B",
    "a和c",
    "B和C",
    "M是b，G是c",
];

/// Around a noun phrase that stands before no backdrop.
const AROUND_NOMINAL: &[&str] = &[
    "N",
    "N",
    "Y有N",
    "Y是N",
    "一张画着N的Z",
    "N的Z",
    "N的照片",
    "这是N",
    "Z：N",
];
/// Around a noun phrase before a backdrop.
const AROUND_NOMINAL_THERE: &[&str] = &[
    "X有N",
    "XN",
    "X，N",
    "N在X",
    "N，背景是x",
    "Y有N，背景是x",
    "在X有N",
    "Y，X有N",
    "这是X的N",
    "X的N",
];
/// Around a sentence without a backdrop.
const AROUND_SENTENCE: &[&str] = &["N", "N", "Y，N"];
/// Around a sentence before a backdrop.
const AROUND_SENTENCE_THERE: &[&str] = &[
    "X，N",
    "X，N",
    "在X，N",
    "N，背景是x",
    "背景是x，N",
    "Y是x，N",
    "Y，X，N",
];
/// Around the single group that is all there is.
const ALONE: &[&str] = &["Y只有A"];
const ALONE_THERE: &[&str] = &["X只有A", "Y只有A，背景是x", "X，只有A"];

const FIRST: [&[&str]; 2] = [&["左边", "左侧", "左面"], &["上面", "上方", "上边"]];
const LAST: [&[&str]; 2] = [&["右边", "右侧", "右面"], &["下面", "下方", "下边"]];
const MIDDLE: &[&str] = &["中间", "中央", "正中间"];
const ALONG: [&str; 2] = ["从左到右", "从上到下"];
const LINED: [&str; 2] = ["一排", "一列"];
const WHOLE: &[&str] = &["", "画面", "图片", "画面的"];
const LEADS: &[&str] = &["图中", "图里", "画面里", "画面中", "图片里", "照片里"];
const PICTURES: &[&str] = &["图片", "图画", "插画", "画"];
const ENDS: &[&str] = &["。", "。", "。", "！", "", ""];

/// What no table holds.
const GLUE: &str = "的";
/// What people may type beyond what captions say.
const MORE: &str = "0123456789，。！？、：；,.!?:;二五六七八九十这那哪有没无不很和跟与及或在是了着个只些\
                    几多少里外前后左右上下中旁边间面方侧底顶处我你他她它们看找到要想给请把被也都还又就最更\
                    非常张幅画图片照像什么吗呢吧";
/// A caption and what it claims.
#[derive(Clone, Debug)]
pub struct Caption {
    pub text: String,
    pub claims: Claims,
}

/// What a caption says about its groups.
struct Said {
    colour: bool,
    short_colour: bool,
    size: bool,
}

impl Caption {
    pub fn draw(scene: &Scene, level: Level, random: &mut Random) -> Self {
        let several = scene.groups.len() > 1;
        let placed = several || !matches!(scene.layout, Layout::Single(0, 0));
        let (colour, backdrop, position) = match level {
            Level::Short => match random.below(5) {
                0 => (false, false, false),
                1 | 2 => (true, false, false),
                3 => (false, true, false),
                _ => (false, false, placed),
            },
            Level::Middle => match random.below(10) {
                0..5 => (true, true, false),
                5..9 => (true, false, placed),
                _ => (false, true, placed),
            },
            Level::Full => (true, true, placed || random.percent(25)),
        };
        let said = Said {
            colour: colour || scene.repeats_a_kind(),
            short_colour: random.percent(if level == Level::Full { 20 } else { 45 }),
            size: match level {
                Level::Short => random.percent(30),
                Level::Middle => random.percent(75),
                Level::Full => true,
            },
        };
        let alone =
            !several && level != Level::Short && random.percent(20) && !(placed && level == Level::Full);
        let core = if alone {
            "A"
        } else {
            match (position, scene.groups.len(), level) {
                (true, 1, _) if placed => random.pick(PLACED),
                (true, 1, _) => random.pick(CENTRAL),
                (true, 2, _) => random.pick(PAIRS),
                (true, _, Level::Short) => random.pick(PARTS),
                (true, ..) => random.pick(TRIPLES),
                (false, groups, _) => random.pick(NOMINAL[groups - 1]),
            }
        };
        let nominal = alone || !position || !core.contains(['F', 'G', 'M', 'S', 'W']);
        let around = random.pick(match (alone, nominal, backdrop) {
            (true, _, false) => ALONE,
            (true, _, true) => ALONE_THERE,
            (_, true, false) => AROUND_NOMINAL,
            (_, true, true) => AROUND_NOMINAL_THERE,
            (_, false, false) => AROUND_SENTENCE,
            (_, false, true) => AROUND_SENTENCE_THERE,
        });
        let core = around.replace('N', core);
        let ends = !nominal || core.contains('，') || random.percent(50);
        let end = if ends { random.pick(ENDS) } else { "" };
        let mut caption = Self {
            text: String::with_capacity(96),
            claims: Claims {
                alone,
                order: match scene.layout {
                    Layout::Row if !nominal => Some(Order::Across),
                    Layout::Column if !nominal => Some(Order::Down),
                    _ => None,
                },
                ..Claims::default()
            },
        };
        caption.write(&core, scene, &said, random);
        caption.text.push_str(end);
        caption
    }

    /// Fills a template in.
    fn write(&mut self, template: &str, scene: &Scene, said: &Said, random: &mut Random) {
        let axis = usize::from(match scene.layout {
            Layout::Single(_, y) => y != 0,
            Layout::Row => false,
            Layout::Column => true,
        });
        let backdrop = random.pick(BACKDROPS[scene.backdrop]);
        // One caption keeps to one word for a side.
        let side = random.below(3);
        let mut things: [Option<Thing>; 3] = [None; 3];
        for letter in template.chars() {
            let word = match letter {
                'A' | 'B' | 'C' | 'a' | 'b' | 'c' => {
                    let slot = (letter.to_ascii_uppercase() as u8 - b'A') as usize;
                    let counted = letter.is_ascii_uppercase();
                    things[slot] = Some(self.name(&scene.groups[slot], counted, said, random));
                    continue;
                }
                'F' => FIRST[axis][side],
                'G' => LAST[axis][side],
                'M' => random.pick(MIDDLE),
                'S' => {
                    // The lead has named the picture already.
                    if !template.contains('Y') {
                        self.text.push_str(random.pick(WHOLE));
                    }
                    match scene.layout {
                        Layout::Single(-1, _) | Layout::Single(_, -1) => FIRST[axis][side],
                        _ => LAST[axis][side],
                    }
                }
                'W' => ALONG[axis],
                'V' => LINED[axis],
                'X' | 'x' => {
                    self.claims.backdrop = Some(scene.backdrop);
                    if letter == 'X' { backdrop.1 } else { backdrop.0 }
                }
                'Y' => random.pick(LEADS),
                'Z' => random.pick(PICTURES),
                other => {
                    self.text.push(other);
                    continue;
                }
            };
            self.text.push_str(word);
        }
        if let (Layout::Single(x, y), Some(thing)) = (scene.layout, &mut things[0])
            && template.contains(['S', 'M'])
        {
            thing.place = Some((x, y));
        }
        self.claims.things = things.into_iter().flatten().collect();
    }

    /// Names a group.
    fn name(&mut self, group: &Group, counted: bool, said: &Said, random: &mut Random) -> Thing {
        let kind = &KINDS[group.kind];
        let colour = &COLOURS[group.colour];
        let thing = Thing {
            kind: group.kind,
            colour: said.colour.then_some(group.colour),
            size: (said.size && group.size != Size::Middle).then_some(group.size),
            count: counted.then_some(group.count),
            place: None,
        };
        if counted {
            self.text.push_str(NUMERALS[group.count - 1]);
            self.text.push_str(random.pick(kind.measures));
        }
        let sizes = match group.size {
            Size::Large => LARGE,
            _ => SMALL,
        };
        let spelled = thing.size.is_some() && random.percent(15);
        if spelled {
            self.text.push_str(sizes[1]);
        }
        match colour.short {
            _ if !said.colour => {}
            Some(short) if said.short_colour && thing.size.is_none() => self.text.push_str(short),
            _ => {
                self.text.push_str(random.pick(colour.names));
                self.text.push_str(GLUE);
            }
        }
        if thing.size.is_some() && !spelled {
            self.text.push_str(sizes[0]);
        }
        self.text.push_str(random.pick(kind.names));
        thing
    }
}

/// Every character that a caption can hold, and those that a reader may type besides, by code point.
pub fn characters() -> Vec<char> {
    let templates = NOMINAL.iter().copied().chain([
        PLACED,
        CENTRAL,
        PAIRS,
        TRIPLES,
        PARTS,
        AROUND_NOMINAL,
        AROUND_NOMINAL_THERE,
        AROUND_SENTENCE,
        AROUND_SENTENCE_THERE,
        ALONE,
        ALONE_THERE,
    ]);
    let templates = templates.flatten().flat_map(|template| template.chars());
    let words = FIRST
        .iter()
        .chain(&LAST)
        .copied()
        .chain([MIDDLE, WHOLE, LEADS, PICTURES, ENDS])
        .chain([&ALONG[..], &LINED, &NUMERALS, &LARGE, &SMALL, &[GLUE, MORE]])
        .chain(KINDS.iter().flat_map(|kind| [kind.names, kind.measures]))
        .chain(COLOURS.iter().map(|colour| colour.names));
    let words = words.flatten().copied();
    let words = words
        .chain(COLOURS.iter().filter_map(|colour| colour.short))
        .chain(
            BACKDROPS
                .iter()
                .flat_map(|names| names.iter().flat_map(|&(noun, at)| [noun, at])),
        );
    let mut all: Vec<char> = templates
        .filter(|c| !c.is_ascii_alphabetic())
        .chain(words.flat_map(str::chars))
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}
