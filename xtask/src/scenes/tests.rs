use std::collections::HashSet;

use super::caption::{Order, Thing};
use super::scene::{Group, Layout, Size, held_out};
use super::words::{BACKDROPS, COLOURS, KINDS, NUMERALS};
use super::*;

fn recipe(split: Split, seed: u64, count: usize) -> Recipe {
    Recipe { count, seed, split }
}

fn sketches(recipe: Recipe) -> Vec<Sketch> {
    let plan = recipe.plan(ATTEMPTS).unwrap();
    (0..recipe.count)
        .map(|index| recipe.planned(plan.as_deref(), index))
        .collect()
}

fn kind(name: &str) -> usize {
    KINDS.iter().position(|kind| kind.names[0] == name).unwrap()
}

fn group(name: &str, colour: usize, size: Size, count: usize) -> Group {
    Group {
        kind: kind(name),
        colour,
        size,
        count,
    }
}

fn thing(name: &str) -> Thing {
    Thing {
        kind: kind(name),
        colour: None,
        size: None,
        count: None,
        place: None,
    }
}

fn claims(things: &[Thing]) -> Claims {
    Claims {
        things: things.to_vec(),
        ..Claims::default()
    }
}

#[test]
fn a_caption_of_a_test_file_is_true_of_its_own_scene_alone() {
    for split in [Split::Test, Split::Unseen] {
        let file = sketches(recipe(split, 3, 1000));
        for (of, captioned) in file.iter().enumerate() {
            for (other, sketch) in file.iter().enumerate() {
                let (text, claims) = (&captioned.caption.text, &captioned.caption.claims);
                assert_eq!(
                    claims.hold_for(&sketch.scene),
                    of == other,
                    "{text}: {:?}",
                    sketch.scene
                );
            }
        }
        let texts: HashSet<_> = file.iter().map(|sketch| &sketch.caption.text).collect();
        assert_eq!(texts.len(), 1000);
    }
}

#[test]
fn a_caption_of_any_split_is_true_of_its_scene() {
    for sketch in sketches(recipe(Split::Train, 4, 5000)) {
        let Sketch { scene, caption, .. } = sketch;
        assert!(caption.claims.hold_for(&scene), "{}: {scene:?}", caption.text);
    }
}

#[test]
fn claims_are_read_generously() {
    let scene = Scene {
        backdrop: 0,
        layout: Layout::Row,
        groups: vec![
            group("猫", 0, Size::Large, 1),
            group("猫", 1, Size::Middle, 2),
            group("狗", 2, Size::Small, 1),
        ],
    };
    let holds = |claims: &Claims| claims.hold_for(&scene);
    let counted = |count| Thing {
        count: Some(count),
        ..thing("猫")
    };
    assert!(holds(&claims(&[counted(1)])) && holds(&claims(&[counted(3)])));
    assert!(!holds(&claims(&[counted(4)])) && !holds(&claims(&[thing("鱼")])));

    let sized = |size| Thing {
        size: Some(size),
        ..thing("猫")
    };
    // Those of the pair are drawn small.
    assert!(holds(&claims(&[sized(Size::Large)])) && holds(&claims(&[sized(Size::Small)])));
    let dog = Thing {
        size: Some(Size::Large),
        ..thing("狗")
    };
    assert!(!holds(&claims(&[dog])));

    let at = |name, place| {
        claims(&[Thing {
            place: Some(place),
            ..thing(name)
        }])
    };
    assert!(holds(&at("猫", (-1, 0))) && holds(&at("猫", (0, 0))) && !holds(&at("猫", (1, 0))));
    assert!(holds(&at("狗", (1, 0))) && !holds(&at("狗", (0, 1))));
    // The pair stands above each other.
    assert!(holds(&at("猫", (0, 1))));

    let ordered = |first, second, order| Claims {
        order: Some(order),
        ..claims(&[thing(first), thing(second)])
    };
    assert!(holds(&ordered("猫", "狗", Order::Across)) && holds(&ordered("猫", "猫", Order::Across)));
    assert!(!holds(&ordered("狗", "猫", Order::Across)) && holds(&ordered("狗", "猫", Order::Down)));

    let mut there = claims(&[thing("猫")]);
    there.backdrop = Some(0);
    assert!(holds(&there));
    there.backdrop = Some(1);
    assert!(!holds(&there));

    let only = |count| Claims {
        alone: true,
        ..claims(&[counted(count)])
    };
    assert!(!holds(&only(1)));
    let one = Scene {
        layout: Layout::Single(0, 0),
        groups: vec![group("猫", 0, Size::Middle, 1)],
        ..scene
    };
    assert!(only(1).hold_for(&one));
    assert!(!at("猫", (-1, 0)).hold_for(&one) && !ordered("猫", "猫", Order::Across).hold_for(&one));
}

#[test]
fn the_splits_share_no_content() {
    for sketch in sketches(recipe(Split::Train, 1, 5000)) {
        assert!(!sketch.scene.for_test());
        assert!(triples(&sketch.scene).all(|held_out| !held_out));
    }
    for sketch in sketches(recipe(Split::Test, 1, 500)) {
        assert!(sketch.scene.for_test());
        assert!(triples(&sketch.scene).all(|held_out| !held_out));
    }
    for sketch in sketches(recipe(Split::Unseen, 1, 500)) {
        assert!(triples(&sketch.scene).all(|held_out| held_out));
    }
}

fn triples(scene: &Scene) -> impl Iterator<Item = bool> {
    scene
        .groups
        .iter()
        .map(|group| held_out(group.kind, group.colour, scene.backdrop))
}

#[test]
fn everything_occurs() {
    for split in [Split::Train, Split::Test, Split::Unseen] {
        let (mut kinds, mut colours, mut backdrops) = (HashSet::new(), HashSet::new(), HashSet::new());
        let (mut sizes, mut places, mut counts) = (HashSet::new(), HashSet::new(), HashSet::new());
        for Sketch { scene, .. } in sketches(recipe(split, 7, 1000)) {
            backdrops.insert(scene.backdrop);
            for (slot, group) in scene.groups.iter().enumerate() {
                kinds.insert(group.kind);
                colours.insert(group.colour);
                sizes.insert(group.size as usize);
                counts.insert((group.count, scene.groups.len()));
                places.insert((scene.place(slot), scene.groups.len()));
            }
        }
        assert_eq!(kinds.len(), KINDS.len());
        assert_eq!(colours.len(), COLOURS.len());
        assert_eq!(backdrops.len(), BACKDROPS.len());
        // One to four alone, one to three of two groups, one of three.
        assert_eq!((sizes.len(), counts.len()), (3, 4 + 3 + 1));
        // The centre and four sides; two and two ends; three and three, the middle being the same.
        assert_eq!(places.len(), 5 + 4 + 5);
    }
}

#[test]
fn a_file_follows_from_its_recipe() {
    for split in [Split::Train, Split::Test, Split::Unseen] {
        let lines = |seed| {
            let recipe = recipe(split, seed, 600);
            let mut file = Vec::new();
            let plan = recipe.plan(ATTEMPTS).unwrap();
            let bytes = recipe.write_lines(plan.as_deref(), &mut file).unwrap();
            assert_eq!(bytes, file.len() as u64);
            // Threads and chunks make no difference.
            assert!(file == recipe.lines(plan.as_deref(), 0, 600));
            String::from_utf8(file).unwrap()
        };
        let (first, second) = (lines(5), lines(6));
        assert!(first != second);
        let short = recipe(split, 5, 10);
        let short = short.lines(short.plan(ATTEMPTS).unwrap().as_deref(), 0, 10);
        assert!(
            first.as_bytes().starts_with(&short),
            "a longer file goes on where a shorter ends"
        );
        assert_eq!(first.lines().count(), 600);
        for (index, line) in first.lines().enumerate() {
            let columns: Vec<_> = line.split('\t').collect();
            let [caption, id, tags, base64] = columns[..] else {
                panic!("{line}");
            };
            assert!(!caption.is_empty());
            assert_eq!(id, format!("scene-{}-5-{index:06}", split.name()));
            for tag in tags.split(' ') {
                assert!(KINDS.iter().any(|kind| kind.names[0] == tag), "{tag}");
            }
            let png = STANDARD.decode(base64).unwrap();
            let mut reader = png::Decoder::new(io::Cursor::new(png)).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            let info = reader.next_frame(&mut pixels).unwrap();
            assert_eq!((info.width, info.color_type), (info.height, png::ColorType::Rgb));
            assert!((draw::SIDES.0..=draw::SIDES.1).contains(&(info.width as usize)));
        }
    }
}

#[test]
fn objects_keep_their_places() {
    for Sketch {
        scene, mut random, ..
    } in sketches(recipe(Split::Train, 2, 5000))
    {
        let groups = draw::spots(&scene, &mut random);
        let inside = |at: f32, size: f32| at - size / 2.0 > 0.0624 && at + size / 2.0 < 0.9376;
        let spots: Vec<_> = groups.concat();
        for (at, spot) in spots.iter().enumerate() {
            assert!(
                inside(spot.x, spot.size) && inside(spot.y, spot.size),
                "{scene:?}: {spot:?}"
            );
            for other in &spots[..at] {
                let apart = (spot.size + other.size) / 2.0;
                assert!(
                    (spot.x - other.x).abs() >= apart || (spot.y - other.y).abs() >= apart,
                    "{scene:?}: {spot:?} {other:?}"
                );
            }
        }
        for (slot, spots) in groups.iter().enumerate() {
            assert_eq!(spots.len(), scene.groups[slot].count);
            let (x, y) = scene.place(slot);
            for spot in spots {
                // Of several, some are off the place across the layout.
                let single = spots.len() == 1;
                let side = |at: f32, place: i8| match place {
                    0 => !single || (at - 0.5).abs() < 0.17,
                    place => (at - 0.5) * f32::from(place) > 0.1,
                };
                assert!(side(spot.x, x) && side(spot.y, y), "{scene:?}: {spot:?}");
                let sized = match scene.groups[slot].size {
                    Size::Small => spot.size <= 0.2,
                    Size::Middle => spot.size > 0.2 && spot.size < 0.4,
                    Size::Large => spot.size >= 0.5,
                };
                assert!(sized, "{scene:?}: {spot:?}");
            }
        }
    }
}

#[test]
fn things_are_counted_with_their_measure_words() {
    for (name, measures) in [
        ("猫", "只"),
        ("狗", "只条"),
        ("鱼", "条"),
        ("猪", "头只"),
        ("汽车", "辆"),
        ("公交车", "辆"),
        ("自行车", "辆"),
        ("飞机", "架"),
        ("帆船", "艘条"),
        ("火车", "列"),
        ("火箭", "枚支"),
        ("房子", "座栋"),
        ("塔", "座"),
        ("帐篷", "顶个"),
        ("树", "棵"),
        ("花", "朵"),
        ("仙人掌", "棵株"),
        ("星星", "颗个"),
        ("三角形", "个"),
        ("云", "朵片"),
        ("雨伞", "把"),
        ("帽子", "顶"),
        ("书", "本"),
        ("椅子", "把张"),
        ("台灯", "盏"),
        ("钥匙", "把"),
    ] {
        assert_eq!(KINDS[kind(name)].measures.concat(), measures, "{name}");
    }
    let mut counted = 0;
    for Sketch { scene, caption, .. } in sketches(recipe(Split::Train, 8, 3000)) {
        let said = caption.claims.things.iter().filter(|thing| thing.count.is_some());
        for thing in said {
            let numeral = NUMERALS[thing.count.unwrap() - 1];
            let phrase = |measure| caption.text.contains(&format!("{numeral}{measure}"));
            assert!(
                KINDS[thing.kind].measures.iter().any(phrase),
                "{}: {scene:?}",
                caption.text
            );
            counted += 1;
        }
        assert!(!caption.text.contains('二'), "{}", caption.text);
    }
    assert!(counted > 2000);
}

#[test]
fn names_are_told_apart() {
    let names: Vec<(usize, &str)> = KINDS
        .iter()
        .enumerate()
        .flat_map(|(kind, words)| words.names.iter().map(move |&name| (kind, name)))
        .collect();
    for &(kind, name) in &names {
        assert!(!name.contains(['大', '小', '\t', ' ']), "{name}");
        for &(other, part) in &names {
            assert!(kind == other || !name.contains(part), "{name} holds {part}");
        }
    }
}

#[test]
fn test_captions_are_about_as_long_as_training_captions() {
    let mean = |split| {
        let file = sketches(recipe(split, 9, 1000));
        let characters = file.iter().map(|sketch| sketch.caption.text.chars().count());
        characters.sum::<usize>() as f64 / 1000.0
    };
    let train = mean(Split::Train);
    assert!((12.0..24.0).contains(&train), "{train}");
    for split in [Split::Test, Split::Unseen] {
        let ratio = mean(split) / train;
        assert!((0.8..1.25).contains(&ratio), "{ratio}");
    }
}

#[test]
fn the_vocabulary_holds_what_captions_say() {
    let vocabulary = vocabulary();
    let tokens: Vec<&str> = vocabulary
        .split('\n')
        .enumerate()
        .map(|(at, line)| {
            let (token, id) = line.split_once('\t').unwrap();
            assert_eq!(id, at.to_string());
            token
        })
        .collect();
    assert_eq!(tokens[..4], ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]);
    assert_eq!(tokens.last(), Some(&"[UNK]"));
    let characters = &tokens[4..tokens.len() - 1];
    assert!(characters.is_sorted() && characters.iter().all(|token| token.chars().count() == 1));
    let known: HashSet<_> = characters.iter().collect();
    assert_eq!(known.len(), characters.len());
    for Sketch { caption, .. } in sketches(recipe(Split::Train, 10, 20_000)) {
        for character in caption.text.chars() {
            assert!(known.contains(&&*character.to_string()), "{}", caption.text);
        }
    }
}

#[test]
fn too_many_scenes_are_told() {
    // One attempt for each is too few: most draws belong to training.
    let message = recipe(Split::Test, 1, 100).plan(1).unwrap_err();
    assert!(
        message.starts_with("Only ") && message.ends_with("asks for 100."),
        "{message}"
    );
}

#[test]
fn a_scene_that_a_caption_cannot_tell_from_another_is_not_taken() {
    let mut file = Unique::default();
    let scene = |name| Scene {
        backdrop: 0,
        layout: Layout::Single(0, 0),
        groups: vec![group(name, 0, Size::Middle, 1)],
    };
    assert!(file.take(scene("猫"), claims(&[thing("猫")])));
    let mut elsewhere = scene("猫");
    elsewhere.backdrop = 1;
    let mut there = claims(&[thing("猫")]);
    there.backdrop = Some(1);
    assert!(!file.take(elsewhere, there));
    assert!(file.take(scene("狗"), claims(&[thing("狗")])));
    // What was said of the dog before holds here as well.
    let mut both = scene("狗");
    both.groups.push(group("鱼", 0, Size::Large, 1));
    both.layout = Layout::Row;
    assert!(!file.take(both, claims(&[thing("鱼")])));
}

#[test]
fn a_contact_sheet_holds_its_pictures() {
    let pictures: Vec<Picture> = (0..9)
        .map(|index| recipe(Split::Train, 1, 9).planned(None, index).draw())
        .collect();
    for (count, width, height) in [(1, 1, 1), (8, 8, 1), (9, 8, 2)] {
        let png = contact_sheet(&pictures[..count]);
        let reader = png::Decoder::new(io::Cursor::new(png)).read_info().unwrap();
        let cell = CELL as u32;
        assert_eq!(reader.info().size(), (width * cell, height * cell));
    }
}

#[test]
fn what_cannot_be_written_is_told() {
    let path = std::env::temp_dir().join("no such folder/vocabulary.txt");
    let Err(Failure::Failed(message)) = run(&["--vocab", path.to_str().unwrap()]) else {
        panic!("there is no such folder");
    };
    assert!(message.contains("could not be written"), "{message}");
}

#[test]
fn command_lines() {
    let parse = Options::parse;
    let options = parse(&[
        "--count", "5", "--seed", "1", "--output", "a.tsv", "--split", "unseen",
    ])
    .unwrap();
    assert_eq!(options.recipe, Some(recipe(Split::Unseen, 1, 5)));
    assert_eq!(options.output, Some("a.tsv".into()));
    let options = parse(&["--vocab", "v.txt"]).unwrap();
    assert_eq!((options.recipe, options.vocabulary), (None, Some("v.txt".into())));
    for (wrong, says) in [
        (&[][..], "none is given"),
        (&["--output", "a.tsv"], "need --count"),
        (&["--output", "a.tsv", "--count", "0", "--seed", "1"], "1 or more"),
        (
            &["--output", "a.tsv", "--count", "2", "--seed", "x"],
            "whole number",
        ),
        (&["--output", "--count"], "--output needs a value"),
        (&["--vocab", "v.txt", "--seed", "1"], "--seed goes with"),
        (&["--vocab", "v.txt", "--vocab", "v.txt"], "stands twice"),
        (&["--colour", "red"], "takes no '--colour'"),
        (
            &[
                "--sheet", "a.png", "--count", "2", "--seed", "1", "--split", "dev",
            ],
            "not 'dev'",
        ),
    ] {
        let message = parse(wrong).unwrap_err();
        assert!(message.contains(says), "{message}");
    }
}
