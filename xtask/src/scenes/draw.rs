//! From a scene to its picture.

use std::sync::LazyLock;

use tiny_skia::{
    Color, FillRule, LineCap, LineJoin, Paint, Path, PathBuilder, Pixmap, Rect, Stroke, Transform,
};

use super::art::{Op, Tone};
use super::backdrop;
use super::random::Random;
use super::scene::{Group, Layout, Scene, Size};
use super::words::{BLACK, COLOURS, KINDS, WHITE};

/// Pixels of a picture's side.
pub const SIDES: (usize, usize) = (96, 160);

/// Objects keep this far from the edges, in parts of the picture's side: what a crop to 224 of 256
/// pixels takes away.
const MARGIN: f32 = 0.0625;

pub type Rgb = [u8; 3];

pub struct Canvas {
    pixmap: Pixmap,
}

impl Canvas {
    fn new(side: u32) -> Self {
        Self {
            pixmap: Pixmap::new(side, side).expect("a side is not zero"),
        }
    }

    pub fn background(&mut self, [r, g, b]: Rgb) {
        self.pixmap.fill(Color::from_rgba8(r, g, b, 255));
    }

    pub fn fill(&mut self, path: &Path, colour: Rgb, transform: Transform) {
        let rule = FillRule::EvenOdd;
        self.pixmap.fill_path(path, &paint(colour), rule, transform, None);
    }

    pub fn stroke(&mut self, path: &Path, width: f32, colour: Rgb, transform: Transform) {
        let stroke = Stroke {
            width,
            line_cap: LineCap::Round,
            line_join: LineJoin::Round,
            ..Stroke::default()
        };
        self.pixmap
            .stroke_path(path, &paint(colour), &stroke, transform, None);
    }

    /// From 100 units across the picture to pixels.
    pub fn hundredths(&self) -> Transform {
        let scale = self.pixmap.width() as f32 / 100.0;
        Transform::from_scale(scale, scale)
    }

    /// A filled path in hundredths of the side.
    pub fn shape(&mut self, d: &str, colour: Rgb) {
        self.fill(&path(d), colour, self.hundredths());
    }

    /// An open line in hundredths of the side.
    pub fn line(&mut self, d: &str, width: f32, colour: Rgb) {
        self.stroke(&path(d), width, colour, self.hundredths());
    }

    pub fn rect(&mut self, x: f32, y: f32, width: f32, height: f32, colour: Rgb) {
        self.fill(&rect(x, y, width, height, 0.0), colour, self.hundredths());
    }

    pub fn oval(&mut self, x: f32, y: f32, rx: f32, ry: f32, colour: Rgb) {
        self.fill(&oval(x, y, rx, ry), colour, self.hundredths());
    }

    fn into_picture(self) -> Picture {
        let side = self.pixmap.width();
        // Everything is drawn on an opaque ground.
        let rgb = self
            .pixmap
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .flat_map(|&[r, g, b, _]| [r, g, b].map(step))
            .collect();
        Picture { side, rgb }
    }
}

/// Square, RGB.
pub struct Picture {
    pub side: u32,
    pub rgb: Vec<u8>,
}

/// Rounds to the nearest multiple of 8, which no eye sees: edges repeat more, and PNG is a fifth smaller.
fn step(value: u8) -> u8 {
    ((u16::from(value) + 4) / 8 * 8).min(255) as u8
}

fn paint([r, g, b]: Rgb) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(r, g, b, 255);
    paint
}

/// Reads the part of SVG's path syntax that the drawings use.
pub fn path(d: &str) -> Path {
    let mut numbers = Vec::new();
    let mut builder = PathBuilder::new();
    let mut rest = d;
    while let Some(command) = rest.chars().next() {
        let end = rest[1..].find(|c: char| c.is_ascii_uppercase());
        let (operands, after) = rest[1..].split_at(end.unwrap_or(rest.len() - 1));
        numbers.clear();
        numbers.extend(
            operands
                .split([' ', ','])
                .filter(|number| !number.is_empty())
                .map(|number| number.parse::<f32>().expect("a path's operands are numbers")),
        );
        match (command, numbers.as_slice()) {
            ('M', &[x, y]) => builder.move_to(x, y),
            ('L', &[x, y]) => builder.line_to(x, y),
            ('Q', &[a, b, x, y]) => builder.quad_to(a, b, x, y),
            ('C', &[a, b, c, d, x, y]) => builder.cubic_to(a, b, c, d, x, y),
            ('Z', &[]) => builder.close(),
            _ => panic!("the path {d} has a part of unknown form"),
        }
        rest = after;
    }
    builder.finish().expect("a path has a part")
}

fn oval(x: f32, y: f32, rx: f32, ry: f32) -> Path {
    let rect = Rect::from_ltrb(x - rx, y - ry, x + rx, y + ry).expect("radii are positive");
    PathBuilder::from_oval(rect).expect("an oval is a path")
}

fn rect(x: f32, y: f32, width: f32, height: f32, radius: f32) -> Path {
    if radius == 0.0 {
        return PathBuilder::from_rect(
            Rect::from_xywh(x, y, width, height).expect("width and height are positive"),
        );
    }
    let r = radius.min(width / 2.0).min(height / 2.0);
    let (right, bottom) = (x + width, y + height);
    let mut builder = PathBuilder::new();
    builder.move_to(x + r, y);
    builder.line_to(right - r, y);
    builder.quad_to(right, y, right, y + r);
    builder.line_to(right, bottom - r);
    builder.quad_to(right, bottom, right - r, bottom);
    builder.line_to(x + r, bottom);
    builder.quad_to(x, bottom, x, bottom - r);
    builder.line_to(x, y + r);
    builder.quad_to(x, y, x + r, y);
    builder.close();
    builder.finish().expect("a rectangle is a path")
}

/// A step of a drawing, ready to use.
struct Part {
    path: Path,
    tone: Tone,
    /// Of a line; fills have none.
    width: Option<f32>,
    /// Whether the object's outline runs around it.
    outlined: bool,
}

/// All kinds' drawings.
static DRAWINGS: LazyLock<Vec<Vec<Part>>> = LazyLock::new(|| {
    KINDS
        .iter()
        .map(|kind| kind.art.iter().flat_map(|&op| parts(op)).collect())
        .collect()
});

fn parts(op: Op) -> Vec<Part> {
    let fill = |path, tone| Part {
        path,
        tone,
        width: None,
        outlined: true,
    };
    match op {
        Op::Shape(d, tone) => vec![fill(path(d), tone)],
        Op::Oval(x, y, rx, ry, tone) => vec![fill(oval(x, y, rx, ry), tone)],
        Op::Rect(x, y, width, height, radius, tone) => vec![fill(rect(x, y, width, height, radius), tone)],
        Op::Line(d, width, tone) => vec![Part {
            path: path(d),
            tone,
            width: Some(width),
            outlined: width > 3.5,
        }],
        Op::Eye(x, y, r) => vec![
            fill(oval(x, y, r, r), Tone::White),
            fill(oval(x + 0.15 * r, y, 0.6 * r, 0.65 * r), Tone::Ink),
        ],
        Op::Wheel(x, y, r) => vec![
            fill(oval(x, y, r, r), Tone::Tyre),
            fill(oval(x, y, 0.5 * r, 0.5 * r), Tone::Metal),
        ],
    }
}

/// The tones that depend on an object's colour.
struct Palette {
    body: Rgb,
    shade: Rgb,
    light: Rgb,
    outline: Rgb,
}

impl Palette {
    fn new(colour: usize, jitter: i16) -> Self {
        let body = COLOURS[colour]
            .rgb
            .map(|part| (i16::from(part) + jitter).clamp(0, 255) as u8);
        let (shade, light, outline) = match colour {
            BLACK => ([84, 84, 94], [110, 110, 122], [150, 150, 162]),
            WHITE => ([206, 211, 222], [228, 232, 240], [112, 117, 130]),
            _ => (
                towards(body, 0, 0.27),
                towards(body, 255, 0.45),
                towards(body, 0, 0.55),
            ),
        };
        Self {
            body,
            shade,
            light,
            outline,
        }
    }

    fn rgb(&self, tone: Tone) -> Rgb {
        match tone {
            Tone::Body => self.body,
            Tone::Shade => self.shade,
            Tone::Light => self.light,
            Tone::Ink => [40, 36, 48],
            Tone::White => [255, 255, 255],
            Tone::Glass => [196, 230, 246],
            Tone::Tyre => [58, 58, 66],
            Tone::Metal => [200, 204, 212],
            Tone::Wood => [150, 104, 66],
            Tone::Gold => [250, 208, 84],
            Tone::Leaf => [96, 176, 88],
            Tone::Beak => [246, 156, 46],
            Tone::Cream => [252, 238, 212],
            Tone::Rose => [246, 168, 178],
            Tone::Clay => [196, 110, 76],
            Tone::Flame => [246, 124, 48],
        }
    }
}

/// A colour moved by a part of the way to black (0) or white (255).
fn towards(from: Rgb, to: u8, part: f32) -> Rgb {
    from.map(|value| (f32::from(value) + (f32::from(to) - f32::from(value)) * part) as u8)
}

/// One object's place in parts of the picture's side.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    pub x: f32,
    pub y: f32,
    pub size: f32,
}

/// Draws a scene.
pub fn draw(scene: &Scene, random: &mut Random) -> Picture {
    let side = SIDES.0 + random.below(SIDES.1 - SIDES.0 + 1);
    let mut canvas = Canvas::new(side as u32);
    backdrop::draw(&mut canvas, scene.backdrop, random);
    for (group, spots) in scene.groups.iter().zip(spots(scene, random)) {
        // Those of a group are alike, and turned a little differently.
        let palette = Palette::new(group.colour, random.below(13) as i16 - 6);
        let mirrored = random.percent(50);
        for spot in spots {
            object(&mut canvas, group.kind, &palette, spot, mirrored, random);
        }
    }
    canvas.into_picture()
}

fn object(
    canvas: &mut Canvas,
    kind: usize,
    palette: &Palette,
    spot: Spot,
    mirrored: bool,
    random: &mut Random,
) {
    let side = canvas.pixmap.width() as f32;
    let scale = spot.size * side / 100.0 * random.between(0.91, 0.98);
    // The half angle's tangent gives sine and cosine without a library's functions, whose last digits
    // differ from machine to machine.
    let t = random.between(-0.045, 0.045);
    let (sin, cos) = (2.0 * t / (1.0 + t * t), (1.0 - t * t) / (1.0 + t * t));
    let flip = if mirrored { -scale } else { scale };
    let transform = Transform::from_row(
        cos * flip,
        sin * flip,
        -sin * scale,
        cos * scale,
        spot.x * side,
        spot.y * side,
    );
    let outline = (0.011 * side).max(1.1) / scale;
    for part in DRAWINGS[kind].iter().filter(|part| part.outlined) {
        let width = part.width.unwrap_or(0.0) + 2.0 * outline;
        canvas.stroke(&part.path, width, palette.outline, transform);
    }
    for part in &DRAWINGS[kind] {
        match part.width {
            None => canvas.fill(&part.path, palette.rgb(part.tone), transform),
            Some(width) => canvas.stroke(&part.path, width, palette.rgb(part.tone), transform),
        }
    }
}

/// Each group's objects.
pub fn spots(scene: &Scene, random: &mut Random) -> Vec<Vec<Spot>> {
    let groups = &scene.groups;
    if let (Layout::Single(x, y), [group]) = (scene.layout, groups.as_slice()) {
        return vec![single(group, f32::from(x), f32::from(y), random)];
    }
    let sizes: Vec<f32> = groups
        .iter()
        .map(|group| match (group.size, groups.len()) {
            _ if group.count > 1 => 0.21,
            (Size::Small, 2) => 0.19,
            (Size::Small, _) => 0.18,
            (Size::Middle, 2) => 0.33,
            (Size::Middle, _) => 0.26,
            (Size::Large, _) => 0.5,
        })
        .collect();
    let free = 1.0 - 2.0 * MARGIN - sizes.iter().sum::<f32>();
    let gap = free / (groups.len() + 1) as f32;
    let across = 0.5 + random.between(-0.05, 0.05);
    let mut along = MARGIN;
    let mut all = Vec::with_capacity(groups.len());
    for (group, &size) in groups.iter().zip(&sizes) {
        along += gap;
        let centre = along + size / 2.0 + gap * random.between(-0.4, 0.4);
        along += size;
        // Several in a slot stand across the layout's direction.
        let pitch = size + random.between(0.03, 0.06);
        let first = across - pitch * (group.count - 1) as f32 / 2.0;
        let spots = (0..group.count).map(|at| {
            let (x, y) = (centre, first + pitch * at as f32 + random.between(-0.01, 0.01));
            match scene.layout {
                Layout::Column => Spot { x: y, y: x, size },
                _ => Spot { x, y, size },
            }
        });
        all.push(spots.collect());
    }
    all
}

fn single(group: &Group, x: f32, y: f32, random: &mut Random) -> Vec<Spot> {
    let placed = x != 0.0 || y != 0.0;
    let size = match (group.count, group.size) {
        (1, Size::Small) => 0.2,
        (1, Size::Middle) => 0.37,
        (1, Size::Large) if placed => 0.52,
        (1, Size::Large) => 0.7,
        (2, _) => 0.37,
        (3, _) => 0.32,
        _ => 0.3,
    };
    let half = (1.0 - 2.0 * MARGIN - size) / 2.0;
    let jitter = if group.count == 1 { half.min(0.05) } else { 0.02 };
    let mut nudge = || random.between(-jitter, jitter);
    let at = |x: f32, y: f32| Spot {
        x: 0.5 + x.clamp(-half, half),
        y: 0.5 + y.clamp(-half, half),
        size,
    };
    let far = half.min(0.27);
    match group.count {
        1 => vec![at(x * far + nudge(), y * far + nudge())],
        2 => vec![at(-0.21, nudge()), at(0.21, nudge())],
        3 => vec![
            at(-0.21, 0.18 + nudge()),
            at(0.21, 0.18 + nudge()),
            at(nudge(), -0.2),
        ],
        _ => vec![
            at(-0.19 + nudge(), -0.19),
            at(0.19 + nudge(), -0.19),
            at(-0.19 + nudge(), 0.19),
            at(0.19 + nudge(), 0.19),
        ],
    }
}
