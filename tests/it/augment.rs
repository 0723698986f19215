//! Random changes to training pictures.

use ernie_vil::Error;
use ernie_vil::image::{Augmentation, Pixels, Preprocessor};
use proptest::prelude::*;

fn noise(width: u32, height: u32) -> Pixels {
    let byte = |i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8;
    Pixels::new(width, height, (0..3 * width * height).map(byte).collect()).unwrap()
}

/// `size` x `size` pixels of one colour: what a tower of that size sees is the picture itself.
fn plain(size: u32, colour: [u8; 3]) -> Pixels {
    Pixels::new(size, size, colour.repeat((size * size) as usize)).unwrap()
}

/// Nothing but what `set` switches on; every jitter range is 0.
fn only(set: impl FnOnce(&mut Augmentation)) -> Augmentation {
    let mut augmentation = Augmentation::none();
    let jitter = &mut augmentation.jitter;
    (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) = (0.0, 0.0, 0.0, 0.0);
    set(&mut augmentation);
    augmentation.validate().unwrap();
    augmentation
}

fn jitter(set: impl FnOnce(&mut ernie_vil::image::Jitter)) -> Augmentation {
    only(|a| {
        a.jitter.probability = 1.0;
        set(&mut a.jitter);
    })
}

fn pixels(picture: &Pixels) -> &[[u8; 3]] {
    picture.data().as_chunks().0
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

#[test]
fn the_seed_determines_the_picture() {
    let photo = noise(90, 70);
    let recipe = Augmentation::original();
    let seen: Vec<_> = (0..50).map(|seed| recipe.apply(&photo, 32, seed)).collect();
    for (seed, first) in seen.iter().enumerate() {
        assert_eq!(*first, recipe.apply(&photo, 32, seed as u64));
        assert!(seen[..seed].iter().all(|other| other != first), "seed {seed}");
    }
}

#[test]
fn without_probability_nothing_happens() {
    assert_eq!(Augmentation::none(), Augmentation::default());
    for (width, height) in [(90, 70), (33, 200), (32, 32)] {
        let photo = noise(width, height);
        let expected = Preprocessor::new(32).crop(&photo);
        for seed in 0..20 {
            assert_eq!(Augmentation::none().apply(&photo, 32, seed), expected);
        }
    }
    // Neither does it by a jitter of no width, as values go to f32 and back.
    assert_eq!(jitter(|_| {}).apply(&noise(32, 32), 32, 1), noise(32, 32));
}

#[test]
fn probabilities_are_kept() {
    let photo = noise(2, 2);
    let flip = only(|a| a.flip = 0.3);
    let flipped = (0..10_000)
        .filter(|&seed| flip.apply(&photo, 2, seed) != photo)
        .count();
    // Five standard deviations are 230.
    assert!((2770..=3230).contains(&flipped), "{flipped}");
}

#[test]
fn effects_draw_independently() {
    let photo = noise(40, 40);
    let both = only(|a| (a.crop.probability, a.flip) = (1.0, 1.0));
    let crop = only(|a| a.crop.probability = 1.0);
    let flip = only(|a| a.flip = 1.0);
    for seed in 0..20 {
        let cropped = crop.apply(&photo, 24, seed);
        assert_eq!(both.apply(&photo, 24, seed), flip.apply(&cropped, 24, 0));
    }
}

#[test]
fn a_flip_mirrors_rows_and_undoes_itself() {
    let flip = only(|a| a.flip = 1.0);
    for size in [1, 2, 7, 32] {
        let photo = noise(size, size);
        let flipped = flip.apply(&photo, size as usize, 3);
        let rows = pixels(&photo).chunks(size as usize);
        for (row, mirrored) in rows.zip(pixels(&flipped).chunks(size as usize)) {
            assert!(row.iter().eq(mirrored.iter().rev()));
        }
        assert_eq!(flip.apply(&flipped, size as usize, 4), photo);
    }
}

#[test]
fn grey_has_equal_channels_and_the_luma_of_the_colour() {
    let grey = only(|a| a.grey = 1.0);
    let photo = noise(33, 33);
    for (from, to) in pixels(&photo).iter().zip(pixels(&grey.apply(&photo, 33, 1))) {
        let luma = 0.299 * f64::from(from[0]) + 0.587 * f64::from(from[1]) + 0.114 * f64::from(from[2]);
        assert!(to[0] == to[1] && to[1] == to[2]);
        assert!((f64::from(to[0]) - luma).abs() < 0.501, "{from:?} to {to:?}");
    }
}

#[test]
fn a_crop_and_a_blur_keep_a_plain_picture() {
    let augmentation = only(|a| (a.crop.probability, a.blur.probability) = (1.0, 1.0));
    for colour in [[0, 0, 0], [255, 255, 255], [3, 129, 254]] {
        let photo = plain(37, colour);
        for seed in 0..30 {
            assert_eq!(augmentation.apply(&photo, 19, seed), plain(19, colour));
        }
    }
}

#[test]
fn a_crop_keeps_to_its_area_and_proportions() {
    // Red counts columns and green rows, two pixels for each, so the corners tell the part.
    let side = 400;
    let value = |x: u32, y: u32| [(x / 2) as u8, (y / 2) as u8, 0];
    let data = (0..side * side).flat_map(|i| value(i % side, i / side)).collect();
    let photo = Pixels::new(side, side, data).unwrap();
    let crop = only(|a| {
        a.crop.probability = 1.0;
        a.crop.area = [0.1, 0.5];
        a.crop.ratio = [0.5, 2.0];
    });
    let (mut least, mut most, mut narrowest, mut widest) = (1.0f64, 0.0f64, 2.0f64, 0.5f64);
    for seed in 0..500 {
        let seen = crop.apply(&photo, 64, seed);
        let (first, last) = (pixels(&seen)[0], pixels(&seen)[64 * 64 - 1]);
        // The outermost samples are half of a 64th inside of the part.
        let extent = |channel: usize| {
            2.0 * (f64::from(last[channel]) - f64::from(first[channel])) * 64.0 / 63.0 / f64::from(side)
        };
        let (area, ratio) = (extent(0) * extent(1), extent(0) / extent(1));
        (least, most) = (least.min(area), most.max(area));
        (narrowest, widest) = (narrowest.min(ratio), widest.max(ratio));
    }
    assert!(
        (0.095..0.12).contains(&least) && (0.45..0.51).contains(&most),
        "{least} {most}"
    );
    assert!(
        (0.48..0.55).contains(&narrowest) && (1.82..2.08).contains(&widest),
        "{narrowest} {widest}"
    );
}

#[test]
fn brightness_multiplies_within_its_range() {
    let augmentation = jitter(|j| j.brightness = 0.25);
    let photo = plain(4, [100, 40, 0]);
    let factors: Vec<_> = (0..500)
        .map(|seed| {
            let [red, green, blue] = pixels(&augmentation.apply(&photo, 4, seed))[0];
            assert!((f64::from(red) * 0.4 - f64::from(green)).abs() <= 0.7 && blue == 0);
            f64::from(red) / 100.0
        })
        .collect();
    assert!(factors.iter().all(|factor| (0.75..=1.25).contains(factor)));
    let reached = |low: f64, high: f64| factors.iter().any(|factor| (low..=high).contains(factor));
    assert!(reached(0.75, 0.77) && reached(1.23, 1.25));
}

#[test]
fn contrast_scales_the_distance_from_the_mean() {
    let augmentation = jitter(|j| j.contrast = 0.5);
    let columns = [[60, 60, 60], [140, 140, 140]].as_flattened().repeat(2);
    let photo = Pixels::new(2, 2, columns).unwrap();
    let mut seen = Vec::new();
    for seed in 0..500 {
        let [low, high] = [0, 1].map(|at| pixels(&augmentation.apply(&photo, 2, seed))[at][0]);
        assert!((199..=201).contains(&(u32::from(low) + u32::from(high))));
        seen.push(high - low);
    }
    assert!(seen.iter().all(|distance| (40..=120).contains(distance)));
    assert!(seen.iter().any(|&distance| distance < 43) && seen.iter().any(|&distance| distance > 117));
}

#[test]
fn saturation_keeps_the_luma_and_greys() {
    let augmentation = jitter(|j| j.saturation = 1.0);
    let colour = [120, 100, 90];
    let luma = |[r, g, b]: [u8; 3]| 0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b);
    let mut spreads = Vec::new();
    for seed in 0..500 {
        let seen = pixels(&augmentation.apply(&plain(2, colour), 2, seed))[0];
        assert!((luma(seen) - luma(colour)).abs() <= 0.51, "{seen:?}");
        spreads.push(seen[0] - seen[2]);
        assert_eq!(augmentation.apply(&plain(2, [77; 3]), 2, seed), plain(2, [77; 3]));
    }
    assert!(spreads.iter().all(|&spread| spread <= 60));
    assert!(spreads.iter().any(|&spread| spread < 3) && spreads.iter().any(|&spread| spread > 57));
}

/// Turns of the colour circle from red.
fn hue([r, g, b]: [u8; 3]) -> f64 {
    let [r, g, b] = [r, g, b].map(f64::from);
    // The angle in the plane across the grey axis, by cases as in the definition of HSV.
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    let sixths = if most == r {
        (g - b) / (most - least)
    } else if most == g {
        2.0 + (b - r) / (most - least)
    } else {
        4.0 + (r - g) / (most - least)
    };
    (sixths / 6.0).rem_euclid(1.0)
}

#[test]
fn a_hue_moves_within_its_range_and_keeps_value_and_chroma() {
    for colour in [
        [250, 10, 10],
        [10, 250, 30],
        [40, 10, 250],
        [250, 250, 10],
        [10, 200, 250],
        [250, 10, 240],
    ] {
        for most in [0.1, 0.5] {
            let augmentation = jitter(|j| j.hue = most);
            let moves: Vec<_> = (0..300)
                .map(|seed| {
                    let seen = pixels(&augmentation.apply(&plain(1, colour), 1, seed))[0];
                    assert_eq!(seen.iter().max(), colour.iter().max(), "{colour:?} to {seen:?}");
                    assert_eq!(seen.iter().min(), colour.iter().min(), "{colour:?} to {seen:?}");
                    (hue(seen) - hue(colour) + 0.5).rem_euclid(1.0) - 0.5
                })
                .collect();
            let most = f64::from(most);
            assert!(moves.iter().all(|by| by.abs() <= most + 0.002));
            let reached = |sign: f64| moves.iter().any(|by| by * sign > 0.95 * most);
            assert!(reached(1.0) && reached(-1.0));
        }
    }
    // The same move for every pixel of a picture, whichever of its channels is the greatest.
    let augmentation = jitter(|j| j.hue = 0.5);
    let photo = Pixels::new(
        3,
        3,
        [[255, 0, 0], [0, 255, 0], [0, 0, 255]].as_flattened().repeat(3),
    )
    .unwrap();
    for seed in 0..50 {
        let seen = augmentation.apply(&photo, 3, seed);
        let [[a, b, c], [d, e, f], [g, h, i]] = [0, 1, 2].map(|at| pixels(&seen)[at]);
        assert_eq!(([a, b, c], [a, b, c]), ([e, f, d], [i, g, h]));
    }
}

#[test]
fn a_blur_is_a_gaussian() {
    for size in [21usize, 40] {
        let sigma = 1.5;
        let blur = only(|a| {
            a.blur.probability = 1.0;
            a.blur.sigma = [sigma; 2];
        });
        let mut data = vec![0; 3 * size * size];
        let centre = size / 2;
        data[3 * (centre * size + centre)..][..3].fill(255);
        let photo = Pixels::new(size as u32, size as u32, data).unwrap();
        let seen = blur.apply(&photo, size, 1);
        for (at, pixel) in pixels(&seen).iter().enumerate() {
            let square = |at: usize| (at as f64 - centre as f64).powi(2);
            let distance = square(at % size) + square(at / size);
            let variance = f64::from(sigma).powi(2);
            let expected =
                255.0 * (-0.5 * distance / variance).exp() / (2.0 * std::f64::consts::PI * variance);
            assert!(
                (f64::from(pixel[0]) - expected).abs() < 0.7,
                "{at}: {pixel:?}, {expected}"
            );
        }
    }
    // However wide: nearly one colour.
    let wide = only(|a| {
        a.blur.probability = 1.0;
        a.blur.sigma = [100.0; 2];
    });
    let seen = wide.apply(&noise(9, 9), 9, 1);
    let values = seen.data().iter().map(|&value| f64::from(value));
    let centre = mean(values.clone());
    assert!(values.into_iter().all(|value| (value - centre).abs() < 40.0));
}

#[test]
fn a_field_out_of_range_is_named() {
    Augmentation::original().validate().unwrap();
    type Case = (fn(&mut Augmentation), &'static str);
    let message = |set: fn(&mut Augmentation)| {
        let mut augmentation = Augmentation::original();
        set(&mut augmentation);
        match augmentation.validate() {
            Err(Error::Config(message)) => message,
            other => panic!("{other:?}"),
        }
    };
    let cases: [Case; 17] = [
        (|a| a.flip = 1.5, "flip is 1.5, expected 0 to 1"),
        (|a| a.flip = f32::NAN, "flip is NaN, expected 0 to 1"),
        (|a| a.grey = -0.1, "grey is -0.1,"),
        (|a| a.crop.probability = 2.0, "crop.probability is 2,"),
        (
            |a| a.jitter.probability = f32::INFINITY,
            "jitter.probability is inf,",
        ),
        (|a| a.jitter.brightness = 1.1, "jitter.brightness is 1.1,"),
        (|a| a.jitter.contrast = -1.0, "jitter.contrast is -1,"),
        (|a| a.jitter.saturation = f32::NAN, "jitter.saturation is NaN,"),
        (|a| a.jitter.hue = 0.6, "jitter.hue is 0.6, expected 0 to 0.5"),
        (|a| a.blur.probability = f32::NAN, "blur.probability is NaN,"),
        (
            |a| a.crop.area = [0.0, 1.0],
            "crop.area is [0, 1], expected a number above 0",
        ),
        (|a| a.crop.area = [0.5, 0.4], "crop.area is [0.5, 0.4],"),
        (|a| a.crop.area = [0.5, 1.5], "crop.area is [0.5, 1.5],"),
        (|a| a.crop.area = [f32::NAN, 1.0], "crop.area is [NaN, 1],"),
        (
            |a| a.crop.ratio = [0.5, f32::INFINITY],
            "crop.ratio is [0.5, inf],",
        ),
        (|a| a.blur.sigma = [0.1, f32::NAN], "blur.sigma is [0.1, NaN],"),
        (|a| a.blur.sigma = [1.0, 101.0], "blur.sigma is [1, 101],"),
    ];
    for (set, expected) in cases {
        let message = message(set);
        assert!(message.starts_with(expected), "{message}, expected {expected}");
    }
}

#[test]
fn a_file_needs_to_name_only_what_it_changes() {
    let read = |text| serde_json::from_str::<Augmentation>(text);
    assert_eq!(read("{}").unwrap(), Augmentation::none());
    let changed = read(r#"{"flip": 0.5, "crop": {"probability": 1, "area": [0.5, 1]}}"#).unwrap();
    let mut expected = Augmentation::none();
    (expected.flip, expected.crop.probability, expected.crop.area) = (0.5, 1.0, [0.5, 1.0]);
    assert_eq!(changed, expected);
    for text in [
        r#"{"flop": 1}"#,
        r#"{"crop": {"size": 1}}"#,
        r#"{"jitter": {"hues": 1}}"#,
        r#"{"blur": {"x": 1}}"#,
    ] {
        assert!(
            read(text).unwrap_err().to_string().contains("unknown field"),
            "{text}"
        );
    }
    let text = serde_json::to_string(&Augmentation::original()).unwrap();
    assert_eq!(read(&text).unwrap(), Augmentation::original());
}

proptest! {
    #[test]
    fn any_picture_and_any_range_give_a_picture(
        (width, height) in prop_oneof![
            Just((1u32, 1u32)), Just((1, 5000)), Just((5000, 1)), (1..70u32, 1..70u32),
        ],
        size in 1..70usize,
        seed: u64,
        area in (1e-30..1f32, 1e-30..1f32),
        ratio in (prop_oneof![1e-30..1f32, 1f32..1e30], prop_oneof![1e-30..1f32, 1f32..1e30]),
        sigma in (prop_oneof![1e-40..1f32, 1f32..100.0], prop_oneof![1e-40..1f32, 1f32..100.0]),
        most in 0..=1u8,
    ) {
        let ordered = |(a, b): (f32, f32)| [a.min(b), a.max(b)];
        let mut augmentation = Augmentation::original();
        augmentation.crop.area = ordered(area);
        augmentation.crop.ratio = ordered(ratio);
        augmentation.blur.sigma = ordered(sigma);
        if most == 1 {
            let jitter = &mut augmentation.jitter;
            (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) = (1.0, 1.0, 1.0, 0.5);
        }
        let seen = augmentation.apply(&noise(width, height), size, seed);
        prop_assert_eq!((seen.width() as usize, seen.height() as usize), (size, size));
        prop_assert_eq!(seen.data().len(), 3 * size * size);
    }
}
