//! The drawings of all kinds, in a square from -50 to 50 to the right and down.

/// A colour in a drawing: the object's own and its relatives, and some that never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Body,
    /// The body's colour, darker (lighter on black).
    Shade,
    /// The body's colour, lighter.
    Light,
    Ink,
    White,
    Glass,
    Tyre,
    Metal,
    Wood,
    Gold,
    Leaf,
    Beak,
    Cream,
    Rose,
    Clay,
    Flame,
}
use Tone::*;

/// A step of a drawing; later ones cover earlier ones.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// A filled outline, in the path syntax of SVG with absolute M, L, Q, C and Z.
    Shape(&'static str, Tone),
    /// Centre and radii.
    Oval(f32, f32, f32, f32, Tone),
    /// Left, top, width, height and the corners' radius.
    Rect(f32, f32, f32, f32, f32, Tone),
    /// An open line and its width.
    Line(&'static str, f32, Tone),
    /// An eye that looks ahead: its centre and radius.
    Eye(f32, f32, f32),
    /// A wheel: its centre and radius.
    Wheel(f32, f32, f32),
}
use Op::*;

pub const CAT: &[Op] = &[
    Line("M18,40 C50,44 50,10 38,6", 8.0, Body),
    Shape("M-24,47 C-30,20 -16,2 0,2 C16,2 30,20 24,47 Z", Body),
    Oval(0.0, 32.0, 11.0, 13.0, Light),
    Shape("M-33,-14 L-32,-48 L-6,-36 Z", Body),
    Shape("M33,-14 L32,-48 L6,-36 Z", Body),
    Shape("M-28,-28 L-27,-40 L-16,-35 Z", Rose),
    Shape("M28,-28 L27,-40 L16,-35 Z", Rose),
    Oval(0.0, -15.0, 34.0, 25.0, Body),
    Eye(-13.0, -18.0, 7.0),
    Eye(13.0, -18.0, 7.0),
    Shape("M-5,-8 L5,-8 L0,-3 Z", Rose),
    Line(
        "M-14,-4 L-40,-9 M-14,0 L-39,4 M14,-4 L40,-9 M14,0 L39,4",
        1.8,
        Shade,
    ),
    Line("M-7,2 Q-3,6 0,-2 Q3,6 7,2", 2.0, Shade),
];

pub const DOG: &[Op] = &[
    Line("M-32,0 C-46,-6 -46,-18 -42,-26", 8.0, Body),
    Rect(-34.0, 10.0, 11.0, 36.0, 4.0, Body),
    Rect(-20.0, 10.0, 10.0, 36.0, 4.0, Shade),
    Rect(4.0, 10.0, 10.0, 36.0, 4.0, Shade),
    Rect(15.0, 10.0, 11.0, 36.0, 4.0, Body),
    Rect(-37.0, -9.0, 66.0, 32.0, 15.0, Body),
    Shape("M8,14 L8,-20 L34,-14 L28,10 Z", Body),
    Oval(22.0, -24.0, 21.0, 19.0, Body),
    Rect(24.0, -25.0, 25.0, 18.0, 8.0, Body),
    Rect(27.0, -16.0, 20.0, 9.0, 4.0, Light),
    Oval(46.0, -23.0, 5.0, 4.5, Ink),
    Shape("M10,-42 C-4,-40 -6,-14 2,-4 C12,0 18,-20 18,-38 Z", Shade),
    Eye(26.0, -29.0, 5.0),
];

pub const RABBIT: &[Op] = &[
    Shape("M-22,-6 C-34,-26 -28,-49 -18,-49 C-8,-49 -4,-28 -6,-12 Z", Body),
    Shape("M22,-6 C34,-26 28,-49 18,-49 C8,-49 4,-28 6,-12 Z", Body),
    Shape(
        "M-18,-14 C-25,-28 -22,-43 -18,-43 C-13,-43 -11,-28 -12,-14 Z",
        Rose,
    ),
    Shape("M18,-14 C25,-28 22,-43 18,-43 C13,-43 11,-28 12,-14 Z", Rose),
    Oval(0.0, 29.0, 26.0, 20.0, Body),
    Oval(-16.0, 45.0, 12.0, 5.0, Body),
    Oval(16.0, 45.0, 12.0, 5.0, Body),
    Oval(0.0, 32.0, 14.0, 13.0, Light),
    Oval(0.0, -1.0, 26.0, 20.0, Body),
    Eye(-11.0, -4.0, 5.5),
    Eye(11.0, -4.0, 5.5),
    Rect(-4.0, 8.0, 8.0, 8.0, 1.0, White),
    Shape("M-4,3 L4,3 L0,8 Z", Rose),
];

pub const BIRD: &[Op] = &[
    Line("M-6,24 L-8,44 M8,24 L8,44", 3.0, Beak),
    Line("M-15,45 L-3,45 M2,45 L14,45", 3.0, Beak),
    Shape("M-18,2 L-49,-4 L-46,8 L-48,18 L-14,20 Z", Shade),
    Shape("M34,-24 L50,-15 L33,-8 Z", Beak),
    Shape(
        "M-26,6 C-20,-8 -8,-12 -2,-20 C4,-42 38,-42 38,-16 C38,10 24,30 0,30 C-16,30 -28,20 -26,6 Z",
        Body,
    ),
    Oval(14.0, 12.0, 14.0, 13.0, Light),
    Shape("M8,-8 C-8,-14 -26,4 -36,18 C-16,26 12,20 8,-8 Z", Shade),
    Eye(22.0, -20.0, 5.5),
];

pub const FISH: &[Op] = &[
    Shape("M-20,0 L-48,-26 C-42,-8 -42,8 -48,26 Z", Shade),
    Shape("M-14,-18 C-8,-42 18,-40 24,-20 Z", Shade),
    Shape("M-8,18 C-6,36 6,38 16,20 Z", Shade),
    Oval(9.0, 0.0, 39.0, 26.0, Body),
    Line("M14,-20 C6,-10 6,10 14,20", 3.0, Light),
    Line("M0,-20 C-8,-10 -8,10 0,20", 3.0, Light),
    Line("M-14,-14 C-20,-6 -20,6 -14,14", 3.0, Light),
    Eye(31.0, -6.0, 7.0),
    Line("M46,8 Q40,12 35,9", 2.4, Shade),
];

pub const TURTLE: &[Op] = &[
    Shape("M-32,16 L-49,24 L-30,24 Z", Light),
    Line("M24,16 C32,14 32,4 38,2", 12.0, Light),
    Oval(38.0, -4.0, 12.0, 11.0, Light),
    Rect(-30.0, 14.0, 14.0, 22.0, 6.0, Light),
    Rect(10.0, 14.0, 14.0, 22.0, 6.0, Light),
    Shape("M-40,20 C-38,-40 30,-40 32,20 Z", Body),
    Rect(-43.0, 15.0, 78.0, 9.0, 4.0, Shade),
    Shape("M-14,-14 L-3,-20 L8,-14 L8,-1 L-3,5 L-14,-1 Z", Shade),
    Shape("M-34,8 L-28,-10 L-19,-4 L-20,8 Z", Shade),
    Shape("M27,8 L21,-10 L13,-4 L14,8 Z", Shade),
    Eye(42.0, -7.0, 4.0),
];

pub const BUTTERFLY: &[Op] = &[
    Line(
        "M-2,-22 C-4,-36 -10,-42 -16,-42 M2,-22 C4,-36 10,-42 16,-42",
        2.4,
        Ink,
    ),
    Shape("M0,-8 C-14,-44 -48,-44 -48,-20 C-48,0 -24,8 0,4 Z", Body),
    Shape("M0,-8 C14,-44 48,-44 48,-20 C48,0 24,8 0,4 Z", Body),
    Shape("M0,2 C-26,4 -42,14 -36,32 C-28,48 -6,36 0,12 Z", Body),
    Shape("M0,2 C26,4 42,14 36,32 C28,48 6,36 0,12 Z", Body),
    Oval(-30.0, -18.0, 9.0, 9.0, Light),
    Oval(30.0, -18.0, 9.0, 9.0, Light),
    Oval(-22.0, 24.0, 7.0, 7.0, Shade),
    Oval(22.0, 24.0, 7.0, 7.0, Shade),
    Oval(0.0, 3.0, 4.5, 27.0, Ink),
    Oval(0.0, -24.0, 6.0, 6.0, Ink),
];

pub const DUCK: &[Op] = &[
    Shape("M32,-24 C42,-24 50,-20 50,-16 C46,-10 36,-10 32,-12 Z", Beak),
    Shape(
        "M-46,-8 C-34,0 -14,2 4,0 C10,-4 8,-10 4,-16 C-2,-36 12,-46 22,-45 C38,-44 42,-24 32,-10 C30,-4 36,2 36,14 C36,34 16,42 -6,42 C-32,42 -46,20 -46,-8 Z",
        Body,
    ),
    Shape(
        "M16,12 C4,6 -18,8 -30,4 C-28,24 -12,32 2,30 C14,28 18,20 16,12 Z",
        Shade,
    ),
    Eye(25.0, -27.0, 5.0),
];

pub const PIG: &[Op] = &[
    Line(
        "M-36,-4 C-46,-6 -48,-18 -40,-18 C-34,-18 -36,-8 -46,-12",
        4.0,
        Shade,
    ),
    Rect(-28.0, 16.0, 14.0, 27.0, 4.0, Shade),
    Rect(12.0, 16.0, 14.0, 27.0, 4.0, Shade),
    Oval(-6.0, 2.0, 36.0, 30.0, Body),
    Shape("M6,-22 L2,-42 L22,-32 Z", Shade),
    Shape("M34,-24 L42,-42 L22,-34 Z", Shade),
    Oval(22.0, -6.0, 26.0, 25.0, Body),
    Oval(28.0, 2.0, 14.0, 11.0, Light),
    Oval(23.0, 2.0, 3.0, 4.5, Ink),
    Oval(33.0, 2.0, 3.0, 4.5, Ink),
    Eye(12.0, -14.0, 4.5),
    Eye(32.0, -16.0, 4.5),
];

pub const SNAIL: &[Op] = &[
    Line("M32,6 L28,-16 M38,6 L44,-14", 3.4, Light),
    Shape(
        "M-46,40 C-40,26 -20,24 0,26 C20,26 22,16 24,8 C28,-4 46,-4 46,10 C46,30 36,40 22,40 Z",
        Light,
    ),
    Oval(-8.0, -2.0, 33.0, 33.0, Body),
    Line(
        "M-8,-2 C-8,-10 4,-10 6,0 C8,14 -18,18 -22,2 C-24,-18 -4,-26 10,-18",
        5.0,
        Shade,
    ),
    Eye(28.0, -18.0, 5.0),
    Eye(44.0, -16.0, 5.0),
];

pub const CRAB: &[Op] = &[
    Line(
        "M-26,14 L-44,18 L-48,30 M-24,22 L-38,32 L-36,44 M26,14 L44,18 L48,30 M24,22 L38,32 L36,44",
        5.0,
        Shade,
    ),
    Line("M-24,6 L-38,-8 M24,6 L38,-8", 7.0, Body),
    Shape(
        "M-40,-4 C-52,-18 -48,-38 -34,-40 L-36,-24 L-24,-34 C-18,-20 -26,-6 -40,-4 Z",
        Body,
    ),
    Shape(
        "M40,-4 C52,-18 48,-38 34,-40 L36,-24 L24,-34 C18,-20 26,-6 40,-4 Z",
        Body,
    ),
    Line("M-10,0 L-12,-16 M10,0 L12,-16", 4.0, Shade),
    Shape("M-34,12 C-34,-10 34,-10 34,12 C34,40 -34,40 -34,12 Z", Body),
    Eye(-12.0, -18.0, 6.5),
    Eye(12.0, -18.0, 6.5),
    Line("M-12,18 Q0,27 12,18", 3.0, Shade),
];

pub const PENGUIN: &[Op] = &[
    Oval(-12.0, 45.0, 12.0, 5.0, Beak),
    Oval(12.0, 45.0, 12.0, 5.0, Beak),
    Shape("M-22,-6 C-36,2 -44,18 -40,28 C-30,26 -24,18 -20,12 Z", Shade),
    Shape("M22,-6 C36,2 44,18 40,28 C30,26 24,18 20,12 Z", Shade),
    Shape(
        "M0,-48 C20,-48 24,-32 24,-20 C32,0 32,44 0,44 C-32,44 -32,0 -24,-20 C-24,-32 -20,-48 0,-48 Z",
        Body,
    ),
    Shape(
        "M-2,-14 C-14,-32 -24,-16 -18,-6 C-26,14 -20,40 0,40 C20,40 26,14 18,-6 C24,-16 14,-32 2,-14 Z",
        White,
    ),
    Oval(-10.0, -18.0, 3.6, 4.6, Ink),
    Oval(10.0, -18.0, 3.6, 4.6, Ink),
    Shape("M-7,-11 L7,-11 L0,-1 Z", Beak),
];

pub const CAR: &[Op] = &[
    Shape(
        "M-49,22 L-49,6 C-48,-4 -40,-6 -32,-8 L-20,-27 C-18,-30 14,-30 18,-28 L34,-8 C46,-6 49,0 49,8 L49,22 Z",
        Body,
    ),
    Shape("M-24,-8 L-15,-22 L-3,-22 L-3,-8 Z", Glass),
    Shape("M3,-8 L3,-22 L14,-22 L25,-8 Z", Glass),
    Rect(-49.0, 12.0, 98.0, 5.0, 0.0, Shade),
    Oval(45.0, 4.0, 4.0, 5.0, Gold),
    Rect(6.0, -3.0, 9.0, 3.0, 1.0, Shade),
    Wheel(-27.0, 22.0, 12.0),
    Wheel(27.0, 22.0, 12.0),
];

pub const BUS: &[Op] = &[
    Rect(-49.0, -36.0, 98.0, 64.0, 9.0, Body),
    Rect(-43.0, -28.0, 17.0, 21.0, 2.0, Glass),
    Rect(-22.0, -28.0, 17.0, 21.0, 2.0, Glass),
    Rect(-1.0, -28.0, 17.0, 21.0, 2.0, Glass),
    Rect(21.0, -28.0, 13.0, 48.0, 2.0, Glass),
    Rect(26.5, -28.0, 2.0, 48.0, 0.0, Shade),
    Rect(38.0, -28.0, 11.0, 24.0, 2.0, Glass),
    Rect(-49.0, 0.0, 67.0, 6.0, 0.0, Light),
    Oval(45.0, 16.0, 3.0, 4.0, Gold),
    Wheel(-28.0, 28.0, 12.0),
    Wheel(32.0, 28.0, 12.0),
];

pub const TRUCK: &[Op] = &[
    Rect(-46.0, 14.0, 92.0, 10.0, 2.0, Tyre),
    Rect(-49.0, -36.0, 62.0, 54.0, 3.0, Body),
    Line("M-34,-30 L-34,12 M-18,-30 L-18,12 M-2,-30 L-2,12", 3.0, Shade),
    Shape("M16,22 L16,-16 L34,-16 C40,-16 49,-2 49,4 L49,22 Z", Shade),
    Shape("M22,-10 L33,-10 C37,-8 41,-2 42,2 L22,2 Z", Glass),
    Oval(47.0, 12.0, 3.0, 4.0, Gold),
    Wheel(-32.0, 25.0, 12.0),
    Wheel(-4.0, 25.0, 12.0),
    Wheel(33.0, 25.0, 12.0),
];

pub const BICYCLE: &[Op] = &[
    Shape(
        "M-49,14 C-49,-14 -7,-14 -7,14 C-7,42 -49,42 -49,14 Z M-43,14 C-43,34 -13,34 -13,14 C-13,-6 -43,-6 -43,14 Z",
        Tyre,
    ),
    Shape(
        "M49,14 C49,-14 7,-14 7,14 C7,42 49,42 49,14 Z M43,14 C43,34 13,34 13,14 C13,-6 43,-6 43,14 Z",
        Tyre,
    ),
    Line("M-28,14 L-16,-16 L18,-16 L0,14 Z", 7.0, Body),
    Line("M0,14 L-18,-24", 7.0, Body),
    Line("M28,14 L14,-30", 7.0, Body),
    Line("M8,-31 L24,-31 C30,-31 30,-24 24,-23", 5.0, Body),
    Rect(-30.0, -30.0, 22.0, 7.0, 3.0, Tyre),
    Oval(0.0, 14.0, 6.0, 6.0, Metal),
    Line("M0,14 L8,24 M4,25 L13,25", 3.0, Tyre),
];

pub const PLANE: &[Op] = &[
    Shape("M-44,-8 L-50,-36 L-36,-36 L-20,-8 Z", Shade),
    Shape("M2,-8 L-12,-34 L0,-34 L22,-8 Z", Shade),
    Shape(
        "M-48,-8 L26,-12 C42,-12 50,-4 50,2 C50,8 42,12 30,12 L-30,12 C-42,12 -48,4 -48,-8 Z",
        Body,
    ),
    Shape("M34,-10 C42,-10 46,-4 48,-1 L34,-1 Z", Glass),
    Oval(-22.0, -2.0, 3.4, 3.6, Glass),
    Oval(-10.0, -2.0, 3.4, 3.6, Glass),
    Oval(2.0, -2.0, 3.4, 3.6, Glass),
    Oval(14.0, -2.0, 3.4, 3.6, Glass),
    Oval(26.0, -2.0, 3.4, 3.6, Glass),
    Shape("M14,4 L-14,40 L-28,40 L-10,4 Z", Shade),
];

pub const SAILBOAT: &[Op] = &[
    Rect(-3.0, -49.0, 5.0, 74.0, 1.0, Wood),
    Shape("M5,-46 C26,-30 38,-6 40,16 L5,16 Z", Body),
    Shape("M-6,-36 C-16,-22 -28,0 -36,16 L-6,16 Z", Light),
    Shape(
        "M-48,22 L48,22 C44,38 36,46 28,46 L-26,46 C-36,46 -44,36 -48,22 Z",
        Shade,
    ),
    Rect(-42.0, 27.0, 84.0, 4.0, 2.0, Light),
];

pub const TRAIN: &[Op] = &[
    Oval(26.0, -43.0, 6.0, 5.0, Metal),
    Oval(14.0, -46.0, 4.0, 3.0, Metal),
    Shape("M20,-14 L18,-36 L36,-36 L34,-14 Z", Shade),
    Rect(2.0, -22.0, 11.0, 12.0, 4.0, Gold),
    Rect(-12.0, -14.0, 56.0, 34.0, 9.0, Body),
    Rect(-46.0, -38.0, 40.0, 58.0, 2.0, Body),
    Rect(-50.0, -43.0, 48.0, 7.0, 2.0, Shade),
    Rect(-38.0, -28.0, 24.0, 20.0, 2.0, Glass),
    Rect(-46.0, 14.0, 90.0, 10.0, 1.0, Shade),
    Shape("M40,18 L50,38 L32,38 L32,18 Z", Tyre),
    Line("M12,-14 L12,14 M28,-14 L28,14", 3.0, Light),
    Oval(44.0, 0.0, 5.0, 6.0, Gold),
    Wheel(-30.0, 29.0, 13.0),
    Wheel(0.0, 33.0, 9.0),
    Wheel(22.0, 33.0, 9.0),
];

pub const ROCKET: &[Op] = &[
    Shape("M-12,30 C-14,40 -6,44 0,50 C6,44 14,40 12,30 Z", Flame),
    Shape("M-6,30 C-6,36 -2,40 0,43 C2,40 6,36 6,30 Z", Gold),
    Shape("M-14,2 L-34,24 L-32,38 L-12,26 Z", Shade),
    Shape("M14,2 L34,24 L32,38 L12,26 Z", Shade),
    Shape("M0,-50 C18,-34 22,0 14,32 L-14,32 C-22,0 -18,-34 0,-50 Z", Body),
    Shape(
        "M0,-50 C7,-43 12,-34 15,-24 L-15,-24 C-12,-34 -7,-43 0,-50 Z",
        Shade,
    ),
    Oval(0.0, -6.0, 10.0, 10.0, Metal),
    Oval(0.0, -6.0, 7.0, 7.0, Glass),
    Rect(-15.0, 20.0, 30.0, 5.0, 0.0, Light),
];

pub const BALLOON: &[Op] = &[
    Line("M-20,14 L-9,34 M20,14 L9,34 M0,18 L0,34", 2.4, Wood),
    Shape(
        "M0,-50 C26,-50 38,-32 38,-15 C38,4 20,16 12,24 L-12,24 C-20,16 -38,4 -38,-15 C-38,-32 -26,-50 0,-50 Z",
        Body,
    ),
    Shape(
        "M0,-50 C12,-50 16,-32 16,-15 C16,4 10,16 6,24 L-6,24 C-10,16 -16,4 -16,-15 C-16,-32 -12,-50 0,-50 Z",
        Light,
    ),
    Rect(-14.0, 18.0, 28.0, 6.0, 1.0, Shade),
    Rect(-11.0, 34.0, 22.0, 15.0, 3.0, Wood),
];

pub const HOUSE: &[Op] = &[
    Rect(18.0, -40.0, 12.0, 26.0, 1.0, Clay),
    Rect(-38.0, -8.0, 76.0, 54.0, 1.0, Body),
    Shape("M0,-48 L49,-6 L-49,-6 Z", Shade),
    Rect(-28.0, 6.0, 20.0, 20.0, 1.0, Glass),
    Line("M-18,6 L-18,26 M-28,16 L-8,16", 2.4, White),
    Rect(6.0, 8.0, 22.0, 38.0, 1.0, Wood),
    Oval(23.0, 28.0, 2.4, 2.4, Gold),
    Oval(0.0, -20.0, 7.0, 7.0, Glass),
];

pub const PAGODA: &[Op] = &[
    Line("M0,-50 L0,-36", 4.0, Gold),
    Rect(-12.0, -30.0, 24.0, 18.0, 0.0, Body),
    Shape(
        "M-26,-24 C-14,-26 -6,-32 0,-40 C6,-32 14,-26 26,-24 L20,-19 L-20,-19 Z",
        Shade,
    ),
    Rect(-17.0, -6.0, 34.0, 20.0, 0.0, Body),
    Shape(
        "M-34,0 C-22,-2 -16,-6 -12,-12 L12,-12 C16,-6 22,-2 34,0 L28,5 L-28,5 Z",
        Shade,
    ),
    Rect(-22.0, 20.0, 44.0, 24.0, 0.0, Body),
    Shape(
        "M-42,22 C-30,20 -22,18 -17,13 L17,13 C22,18 30,20 42,22 L36,28 L-36,28 Z",
        Shade,
    ),
    Rect(-30.0, 43.0, 60.0, 6.0, 1.0, Metal),
    Rect(-3.5, -17.0, 7.0, 6.0, 0.0, Gold),
    Rect(-12.0, 6.0, 7.0, 7.0, 0.0, Gold),
    Rect(5.0, 6.0, 7.0, 7.0, 0.0, Gold),
    Shape("M-7,44 L-7,36 C-7,30 7,30 7,36 L7,44 Z", Wood),
];

pub const CASTLE: &[Op] = &[
    Line("M-33,-48 L-33,-36 M33,-48 L33,-36", 2.4, Wood),
    Shape("M-32,-49 L-20,-45 L-32,-41 Z", Gold),
    Shape("M34,-49 L46,-45 L34,-41 Z", Gold),
    Shape(
        "M-24,46 L-24,-8 L-14,-8 L-14,-1 L-5,-1 L-5,-8 L5,-8 L5,-1 L14,-1 L14,-8 L24,-8 L24,46 Z",
        Body,
    ),
    Rect(-45.0, -18.0, 25.0, 64.0, 0.0, Body),
    Rect(20.0, -18.0, 25.0, 64.0, 0.0, Body),
    Shape("M-33,-40 L-17,-14 L-49,-14 Z", Shade),
    Shape("M33,-40 L49,-14 L17,-14 Z", Shade),
    Shape("M-12,46 L-12,28 C-12,12 12,12 12,28 L12,46 Z", Wood),
    Rect(-37.0, -2.0, 9.0, 15.0, 4.0, Glass),
    Rect(28.0, -2.0, 9.0, 15.0, 4.0, Glass),
    Rect(-37.0, 22.0, 9.0, 13.0, 0.0, Shade),
    Rect(28.0, 22.0, 9.0, 13.0, 0.0, Shade),
];

pub const TENT: &[Op] = &[
    Line("M-4,-46 L0,-36 M4,-46 L0,-36", 4.0, Wood),
    Shape("M0,-38 L49,40 L-49,40 Z", Body),
    Shape("M0,-38 L20,40 L-20,40 Z", Light),
    Shape("M0,-10 L14,40 L-14,40 Z", Ink),
    Shape("M0,-10 L14,40 L24,40 Z", Shade),
    Line("M-40,26 L-26,26 M40,26 L28,26", 3.0, Shade),
];

pub const WINDMILL: &[Op] = &[
    Shape("M-18,-18 L18,-18 L29,48 L-29,48 Z", Body),
    Shape("M-23.5,16 L23.5,16 L26,30 L-26,30 Z", Light),
    Shape("M-21,-16 C-19,-38 19,-38 21,-16 Z", Shade),
    Shape("M-8,48 L-8,38 C-8,30 8,30 8,38 L8,48 Z", Wood),
    Shape("M-2,-16 L-14,-50 L0,-50 L4,-18 Z", Cream),
    Shape("M2,-14 L14,20 L0,20 L-4,-12 Z", Cream),
    Shape("M2,-16 L42,-30 L42,-16 L4,-12 Z", Cream),
    Shape("M-2,-14 L-42,0 L-42,-14 L-4,-18 Z", Cream),
    Line(
        "M0,-15 L-7,-50 M0,-15 L7,20 M0,-15 L42,-23 M0,-15 L-42,-7",
        2.4,
        Wood,
    ),
    Oval(0.0, -15.0, 5.0, 5.0, Wood),
];

pub const TREE: &[Op] = &[
    Shape("M-8,48 L-6,6 L6,6 L8,48 Z", Wood),
    Line("M0,26 L16,8 M0,30 L-14,12", 5.0, Wood),
    Oval(-22.0, -4.0, 22.0, 20.0, Body),
    Oval(22.0, -4.0, 22.0, 20.0, Body),
    Oval(0.0, -24.0, 28.0, 25.0, Body),
    Oval(0.0, 0.0, 24.0, 16.0, Body),
    Oval(-10.0, -30.0, 9.0, 7.0, Light),
    Oval(-26.0, -8.0, 7.0, 5.0, Light),
    Oval(16.0, -6.0, 9.0, 6.0, Shade),
];

pub const FLOWER: &[Op] = &[
    Line("M0,0 C2,18 -2,34 0,48", 6.0, Leaf),
    Shape("M0,40 C-10,22 -26,20 -34,22 C-30,36 -14,44 0,40 Z", Leaf),
    Shape("M0,34 C8,18 24,14 32,18 C28,32 14,38 0,34 Z", Leaf),
    Oval(0.0, -37.0, 12.0, 13.0, Body),
    Oval(19.0, -26.0, 13.0, 12.0, Body),
    Oval(19.0, -5.0, 13.0, 12.0, Body),
    Oval(0.0, 5.0, 12.0, 12.0, Body),
    Oval(-19.0, -5.0, 13.0, 12.0, Body),
    Oval(-19.0, -26.0, 13.0, 12.0, Body),
    Oval(0.0, -16.0, 19.0, 19.0, Body),
    Oval(0.0, -16.0, 11.0, 11.0, Gold),
];

pub const CACTUS: &[Op] = &[
    Line("M0,14 L-20,14 C-30,14 -32,8 -32,-10", 13.0, Body),
    Line("M0,4 L18,4 C28,4 30,-4 30,-22", 13.0, Body),
    Rect(-13.0, -48.0, 26.0, 82.0, 13.0, Body),
    Line("M-5,-34 L-5,24 M5,-34 L5,24", 3.0, Light),
    Shape("M-24,26 L24,26 L18,49 L-18,49 Z", Clay),
    Rect(-27.0, 22.0, 54.0, 8.0, 2.0, Clay),
];

pub const MUSHROOM: &[Op] = &[
    Shape(
        "M-13,0 L13,0 C12,20 16,34 20,42 C20,48 -20,48 -20,42 C-16,34 -12,20 -13,0 Z",
        Cream,
    ),
    Shape(
        "M-48,6 C-50,-30 -24,-46 0,-46 C24,-46 50,-30 48,6 C24,14 -24,14 -48,6 Z",
        Body,
    ),
    Oval(-24.0, -12.0, 8.0, 9.0, White),
    Oval(4.0, -30.0, 9.0, 8.0, White),
    Oval(28.0, -10.0, 8.0, 9.0, White),
    Oval(2.0, 0.0, 6.0, 5.0, White),
    Line("M-40,7 C-20,13 20,13 40,7", 3.0, Shade),
];

pub const APPLE: &[Op] = &[
    Line("M0,-24 C0,-34 4,-42 8,-46", 5.0, Wood),
    Shape("M4,-32 C8,-46 26,-48 34,-44 C32,-30 16,-26 4,-32 Z", Leaf),
    Shape(
        "M0,-22 C12,-34 42,-30 42,2 C42,28 22,46 10,46 C4,46 4,43 0,43 C-4,43 -4,46 -10,46 C-22,46 -42,28 -42,2 C-42,-30 -12,-34 0,-22 Z",
        Body,
    ),
    Oval(-24.0, -6.0, 7.0, 11.0, Light),
    Line("M-7,-20 Q0,-14 7,-20", 3.0, Shade),
];

pub const CIRCLE: &[Op] = &[Oval(0.0, 0.0, 45.0, 45.0, Body)];
pub const TRIANGLE: &[Op] = &[Shape("M0,-44 L48,40 L-48,40 Z", Body)];
pub const SQUARE: &[Op] = &[Rect(-41.0, -41.0, 82.0, 82.0, 0.0, Body)];
pub const STAR: &[Op] = &[Shape(
    "M0,-50 L12.5,-15 L49,-13.5 L20,9 L30,44 L0,23 L-30,44 L-20,9 L-49,-13.5 L-12.5,-15 Z",
    Body,
)];
pub const HEART: &[Op] = &[Shape(
    "M0,44 C-20,28 -48,8 -48,-16 C-48,-46 -10,-48 0,-22 C10,-48 48,-46 48,-16 C48,8 20,28 0,44 Z",
    Body,
)];
pub const DIAMOND: &[Op] = &[Shape("M0,-49 L36,0 L0,49 L-36,0 Z", Body)];

pub const SUN: &[Op] = &[
    Shape(
        "M0,-50 L8,-30 L-8,-30 Z M0,50 L8,30 L-8,30 Z M50,0 L30,8 L30,-8 Z M-50,0 L-30,8 L-30,-8 Z",
        Body,
    ),
    Shape(
        "M35,-35 L28,-15 L15,-28 Z M35,35 L28,15 L15,28 Z M-35,35 L-28,15 L-15,28 Z M-35,-35 L-28,-15 L-15,-28 Z",
        Body,
    ),
    Oval(0.0, 0.0, 28.0, 28.0, Body),
    Eye(-10.0, -5.0, 4.5),
    Eye(10.0, -5.0, 4.5),
    Line("M-11,8 Q0,19 11,8", 3.0, Shade),
];

pub const MOON: &[Op] = &[
    Shape(
        "M14,-48 C-20,-46 -40,-22 -38,6 C-36,34 -8,52 20,46 C30,44 38,38 42,32 C16,38 -6,24 -8,-2 C-10,-22 -2,-38 14,-48 Z",
        Body,
    ),
    Eye(-21.0, -8.0, 4.5),
    Line("M-20,14 Q-14,22 -4,22", 3.0, Shade),
];

pub const CLOUD: &[Op] = &[
    Oval(-26.0, 10.0, 22.0, 18.0, Body),
    Oval(26.0, 8.0, 23.0, 20.0, Body),
    Oval(-6.0, -8.0, 25.0, 24.0, Body),
    Oval(16.0, -6.0, 18.0, 17.0, Body),
    Rect(-40.0, 8.0, 80.0, 20.0, 10.0, Body),
    Oval(-12.0, -14.0, 9.0, 6.0, Light),
];

pub const UMBRELLA: &[Op] = &[
    Line("M0,-46 L0,36 C0,48 18,48 18,36", 5.0, Wood),
    Shape(
        "M-49,4 C-48,-30 -24,-44 0,-44 C24,-44 48,-30 49,4 C42,-6 30,-6 25,4 C18,-6 7,-6 0,4 C-7,-6 -18,-6 -25,4 C-30,-6 -42,-6 -49,4 Z",
        Body,
    ),
    Shape("M0,-44 C-16,-36 -24,-16 -25,4 C-18,-6 -7,-6 0,4 Z", Light),
    Shape(
        "M0,-44 C16,-36 24,-16 25,4 C30,-6 42,-6 49,4 C48,-30 24,-44 0,-44 Z",
        Shade,
    ),
];

pub const CUP: &[Op] = &[
    Line("M24,-10 C48,-16 48,26 22,24", 8.0, Body),
    Shape("M-36,-22 L28,-22 L24,36 C22,46 -30,46 -32,36 Z", Body),
    Oval(-4.0, -22.0, 32.0, 7.0, Light),
    Oval(-4.0, -21.0, 26.0, 4.5, Wood),
    Rect(-34.0, 4.0, 60.0, 9.0, 0.0, Light),
    Line(
        "M-14,-34 C-20,-40 -8,-42 -14,-49 M4,-34 C-2,-40 10,-42 4,-49",
        3.0,
        Metal,
    ),
];

pub const HAT: &[Op] = &[
    Oval(0.0, 28.0, 49.0, 13.0, Body),
    Shape(
        "M-28,24 L-32,-34 C-30,-44 30,-44 32,-34 L28,24 C20,30 -20,30 -28,24 Z",
        Body,
    ),
    Shape("M-29,8 C-18,14 18,14 29,8 L28,24 C18,30 -18,30 -28,24 Z", Shade),
    Oval(0.0, -34.0, 32.0, 7.0, Light),
];

pub const BOOK: &[Op] = &[
    Shape("M-38,-40 L30,-46 L40,40 L-28,46 C-36,46 -38,38 -38,34 Z", Shade),
    Shape("M-30,34 L36,28 L38,38 L-26,43 C-32,42 -32,36 -30,34 Z", White),
    Shape("M-38,-40 L30,-46 L36,28 L-30,33 C-36,34 -37,36 -38,38 Z", Body),
    Shape("M-20,-24 L18,-28 L20,-10 L-18,-6 Z", Cream),
    Line("M-14,-15 L14,-18", 3.0, Wood),
    Line("M-31,-38 L-26,32", 3.0, Shade),
];

pub const CHAIR: &[Op] = &[
    Rect(-30.0, -48.0, 10.0, 96.0, 3.0, Body),
    Rect(18.0, -48.0, 10.0, 60.0, 3.0, Body),
    Rect(-30.0, -46.0, 58.0, 12.0, 3.0, Body),
    Rect(-30.0, -26.0, 58.0, 9.0, 2.0, Body),
    Rect(-22.0, 14.0, 8.0, 26.0, 2.0, Shade),
    Rect(24.0, 12.0, 10.0, 36.0, 3.0, Body),
    Rect(-34.0, 4.0, 72.0, 13.0, 4.0, Body),
    Rect(-30.0, 4.0, 64.0, 6.0, 3.0, Light),
];

pub const LAMP: &[Op] = &[
    Rect(-4.0, 0.0, 8.0, 42.0, 1.0, Metal),
    Shape("M-26,48 C-26,38 26,38 26,48 Z", Shade),
    Oval(0.0, 4.0, 12.0, 10.0, Gold),
    Shape("M-20,-46 L20,-46 L42,4 L-42,4 Z", Body),
    Shape("M-20,-46 L20,-46 L23,-39 L-23,-39 Z", Shade),
    Shape("M-39,-3 L39,-3 L42,4 L-42,4 Z", Shade),
    Line("M28,4 L28,18", 2.4, Metal),
    Oval(28.0, 20.0, 3.0, 3.0, Gold),
];

pub const GIFT: &[Op] = &[
    Shape("M0,-22 C-10,-48 -36,-46 -32,-30 C-28,-22 -12,-20 0,-22 Z", Shade),
    Shape("M0,-22 C10,-48 36,-46 32,-30 C28,-22 12,-20 0,-22 Z", Shade),
    Rect(-36.0, -4.0, 72.0, 50.0, 2.0, Body),
    Rect(-42.0, -22.0, 84.0, 22.0, 2.0, Body),
    Rect(-36.0, 0.0, 72.0, 5.0, 0.0, Shade),
    Rect(-7.0, -22.0, 14.0, 68.0, 0.0, Shade),
];

pub const KEY: &[Op] = &[
    Rect(-8.0, -6.0, 56.0, 12.0, 3.0, Body),
    Rect(24.0, 2.0, 9.0, 20.0, 2.0, Body),
    Rect(38.0, 2.0, 9.0, 16.0, 2.0, Body),
    Shape(
        "M-4,0 C-4,32 -49,32 -49,0 C-49,-32 -4,-32 -4,0 Z M-17,0 C-17,-13 -36,-13 -36,0 C-36,13 -17,13 -17,0 Z",
        Body,
    ),
    Line("M-2,0 L42,0", 2.4, Light),
];
