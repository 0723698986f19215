//! What lies behind the objects: pale and flat, each clearly its own.

use super::draw::{Canvas, Rgb};
use super::random::Random;

const SKY: Rgb = [200, 230, 250];

/// Draws the backdrop with this number in the list of words.
pub fn draw(canvas: &mut Canvas, backdrop: usize, random: &mut Random) {
    let painters: [fn(&mut Canvas, &mut Random, f32); 12] = [
        meadow, snow, desert, beach, sea, night, sky, forest, road, room, mountains, paper,
    ];
    let horizon = random.between(-3.0, 3.0);
    painters[backdrop](canvas, random, horizon);
}

/// A ground with a gently curved upper edge.
fn ground(canvas: &mut Canvas, left: f32, middle: f32, right: f32, colour: Rgb) {
    let path = format!("M-1,{left} Q50,{middle} 101,{right} L101,101 L-1,101 Z");
    canvas.shape(&path, colour);
}

/// Points in a grid's cells, one each, so that they spread evenly.
fn scatter(random: &mut Random, columns: usize, rows: usize, top: f32, bottom: f32) -> Vec<(f32, f32)> {
    let (width, height) = (100.0 / columns as f32, (bottom - top) / rows as f32);
    (0..columns * rows)
        .map(|cell| {
            let (column, row) = ((cell % columns) as f32, (cell / columns) as f32);
            (
                (column + random.between(0.15, 0.85)) * width,
                top + (row + random.between(0.15, 0.85)) * height,
            )
        })
        .collect()
}

fn meadow(canvas: &mut Canvas, random: &mut Random, h: f32) {
    canvas.background(SKY);
    ground(canvas, 36.0 + h, 22.0 - h, 34.0 + h, [170, 218, 120]);
    ground(canvas, 58.0 - h, 48.0, 66.0 + h, [148, 204, 100]);
    for (x, y) in scatter(random, 5, 4, 42.0, 98.0) {
        let tuft = format!(
            "M{},{} L{x},{} M{},{} L{x},{} M{x},{y} L{x},{}",
            x - 2.2,
            y - 3.6,
            y,
            x + 2.2,
            y - 3.6,
            y,
            y - 5.0
        );
        canvas.line(&tuft, 1.1, [104, 168, 70]);
    }
}

fn snow(canvas: &mut Canvas, random: &mut Random, h: f32) {
    canvas.background([184, 204, 222]);
    ground(canvas, 40.0 + h, 24.0, 44.0 - h, [226, 236, 246]);
    ground(canvas, 70.0 - h, 50.0, 60.0 + h, [242, 247, 252]);
    for (x, y) in scatter(random, 5, 5, 0.0, 100.0) {
        let colour = if y < 30.0 { [255; 3] } else { [198, 214, 232] };
        canvas.oval(x, y, 1.4, 1.4, colour);
    }
}

fn desert(canvas: &mut Canvas, random: &mut Random, h: f32) {
    canvas.background([253, 232, 190]);
    let peak = random.between(20.0, 80.0);
    let dune = format!(
        "M-1,{} Q{peak},{} 101,{} L101,101 L-1,101 Z",
        42.0 + h,
        12.0 + h,
        46.0 - h
    );
    canvas.shape(&dune, [240, 204, 138]);
    let dune = format!(
        "M-1,{} C30,{} 60,{} 101,{} L101,101 L-1,101 Z",
        66.0 - h,
        44.0,
        84.0,
        58.0 + h
    );
    canvas.shape(&dune, [228, 184, 112]);
    for (x, y) in scatter(random, 3, 3, 66.0, 98.0) {
        canvas.line(
            &format!("M{},{y} Q{x},{} {},{y}", x - 7.0, y - 3.0, x + 7.0),
            1.1,
            [206, 158, 88],
        );
    }
}

fn beach(canvas: &mut Canvas, random: &mut Random, h: f32) {
    canvas.background(SKY);
    canvas.rect(-1.0, 24.0 + h, 102.0, 40.0, [92, 184, 222]);
    let wave = |y: f32| {
        format!(
            "M-1,{y} Q12,{} 25,{y} Q38,{} 51,{y} Q64,{} 77,{y} Q90,{} 101,{y} L101,101 L-1,101 Z",
            y - 5.0,
            y + 4.0,
            y - 5.0,
            y + 4.0
        )
    };
    canvas.shape(&wave(46.0 + h), [250, 252, 255]);
    canvas.shape(&wave(50.0 + h), [246, 224, 170]);
    for (x, y) in scatter(random, 5, 3, 58.0, 98.0) {
        canvas.oval(x, y, 1.3, 0.9, [216, 186, 124]);
    }
}

fn sea(canvas: &mut Canvas, random: &mut Random, h: f32) {
    canvas.background([222, 240, 252]);
    canvas.rect(-1.0, 16.0 + h, 102.0, 90.0, [104, 188, 226]);
    canvas.rect(-1.0, 46.0 + h, 102.0, 60.0, [76, 166, 214]);
    canvas.rect(-1.0, 76.0 + h, 102.0, 40.0, [58, 146, 200]);
    for (x, y) in scatter(random, 4, 5, 20.0, 98.0) {
        let line = format!(
            "M{},{y} Q{},{} {x},{y} Q{},{} {},{y}",
            x - 9.0,
            x - 4.5,
            y - 4.5,
            x + 4.5,
            y - 4.5,
            x + 9.0
        );
        canvas.line(&line, 1.3, [176, 222, 244]);
    }
}

fn night(canvas: &mut Canvas, random: &mut Random, _: f32) {
    canvas.background([30, 36, 84]);
    ground(canvas, 60.0, 74.0, 54.0, [40, 48, 104]);
    for (at, (x, y)) in scatter(random, 6, 6, 0.0, 100.0).into_iter().enumerate() {
        let r = if at % 3 == 0 { 1.3 } else { 0.8 };
        canvas.oval(x, y, r, r, [246, 240, 196]);
    }
}

fn sky(canvas: &mut Canvas, random: &mut Random, _: f32) {
    canvas.background([132, 200, 248]);
    for (x, y) in scatter(random, 2, 4, 2.0, 98.0) {
        let length = random.between(8.0, 15.0);
        canvas.line(
            &format!("M{},{y} L{},{y}", x - length, x + length),
            3.4,
            [172, 220, 252],
        );
        let y = y + 3.2;
        canvas.line(
            &format!("M{x},{y} L{},{y}", x + 1.2 * length),
            3.0,
            [172, 220, 252],
        );
    }
}

fn forest(canvas: &mut Canvas, random: &mut Random, h: f32) {
    canvas.background([206, 226, 196]);
    let mut row = |step: f32, top: f32, bottom: f32, colour: Rgb| {
        let mut x = random.between(-step, 0.0);
        while x < 105.0 {
            let top = top + random.between(-6.0, 6.0);
            let (low, half) = (top + 26.0, 0.7 * step);
            canvas.shape(
                &format!(
                    "M{x},{top} L{},{low} L{},{low} L{},{bottom} L{},{bottom} L{},{low} L{},{low} Z",
                    x + 0.7 * half,
                    x + 0.45 * half,
                    x + half,
                    x - half,
                    x - 0.45 * half,
                    x - 0.7 * half
                ),
                colour,
            );
            x += step;
        }
    };
    row(13.0, 10.0 + h, 80.0, [134, 176, 132]);
    row(19.0, 24.0 + h, 90.0, [92, 142, 100]);
    ground(canvas, 76.0, 68.0 + h, 78.0, [116, 136, 82]);
    for (x, y) in scatter(random, 5, 2, 80.0, 98.0) {
        canvas.oval(x, y, 2.2, 1.0, [92, 112, 64]);
    }
}

fn road(canvas: &mut Canvas, random: &mut Random, h: f32) {
    canvas.background([214, 232, 244]);
    let mut x = random.between(-8.0, 0.0);
    while x < 100.0 {
        let (width, top) = (random.between(12.0, 19.0), random.between(4.0, 20.0));
        canvas.rect(x, top, width, 60.0, [196, 196, 212]);
        for row in 0..2 {
            for column in 0..2 {
                let (x, y) = (
                    x + 2.4 + 0.5 * width * column as f32,
                    top + 4.0 + 8.0 * row as f32,
                );
                canvas.rect(x, y, 0.25 * width, 4.0, [240, 234, 206]);
            }
        }
        x += width + 1.6;
    }
    canvas.rect(-1.0, 34.0 + h, 102.0, 70.0, [222, 214, 204]);
    canvas.rect(-1.0, 42.0 + h, 102.0, 50.0, [122, 126, 136]);
    let mut x = random.between(-16.0, 0.0);
    while x < 100.0 {
        canvas.rect(x, 65.5 + h, 15.0, 3.4, [250, 250, 244]);
        x += 26.0;
    }
}

fn room(canvas: &mut Canvas, random: &mut Random, h: f32) {
    canvas.background([250, 232, 214]);
    let mut x = random.between(2.0, 8.0);
    while x < 100.0 {
        canvas.rect(x, 0.0, 3.0, 70.0, [246, 220, 196]);
        x += 10.0;
    }
    let x = if random.percent(50) { 10.0 } else { 62.0 };
    canvas.rect(x, 8.0, 28.0, 30.0, [255; 3]);
    canvas.rect(x + 2.5, 10.5, 10.5, 25.0, [186, 222, 244]);
    canvas.rect(x + 15.0, 10.5, 10.5, 25.0, [186, 222, 244]);
    canvas.rect(-1.0, 66.0 + h, 102.0, 4.0, [255, 250, 242]);
    canvas.rect(-1.0, 70.0 + h, 102.0, 40.0, [206, 158, 112]);
    for step in 0..3 {
        let y = 79.0 + h + 9.0 * step as f32;
        canvas.rect(-1.0, y, 102.0, 0.9, [182, 132, 88]);
    }
}

fn mountains(canvas: &mut Canvas, random: &mut Random, h: f32) {
    canvas.background([224, 238, 246]);
    let mut mountain = |x: f32, top: f32, half: f32, colour: Rgb| {
        canvas.shape(&format!("M{x},{top} L{},86 L{},86 Z", x + half, x - half), colour);
        let (low, part) = (top + 14.0, 14.0 / (86.0 - top) * half);
        canvas.shape(
            &format!(
                "M{x},{top} L{},{low} L{},{} L{x},{low} L{},{} L{},{low} Z",
                x + part,
                x + 0.5 * part,
                low - 4.0,
                x - 0.5 * part,
                low - 4.0,
                x - part
            ),
            [252; 3],
        );
    };
    let shift = random.between(-8.0, 8.0);
    mountain(78.0 + shift, 18.0 + h, 46.0, [164, 172, 196]);
    mountain(28.0 + shift, 6.0 - h, 52.0, [138, 148, 178]);
    ground(canvas, 78.0, 68.0 + h, 74.0, [150, 190, 128]);
}

fn paper(canvas: &mut Canvas, random: &mut Random, _: f32) {
    canvas.background([253, 252, 246]);
    let first = random.between(6.0, 14.0);
    for row in 0..8 {
        canvas.rect(-1.0, first + 12.0 * row as f32, 102.0, 0.9, [196, 214, 236]);
    }
    canvas.rect(8.0, -1.0, 0.9, 102.0, [244, 178, 178]);
}
