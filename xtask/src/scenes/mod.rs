//! `cargo xtask scenes`: small drawn pictures with Chinese captions.

mod art;
mod backdrop;
mod caption;
mod draw;
mod random;
mod scene;
#[cfg(test)]
mod tests;
mod words;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::Failure;
use caption::{Caption, Claims, Level};
use draw::Picture;
use random::Random;
use scene::{Scene, Split};

/// Scenes that a thread draws before its lines are written.
const CHUNK: usize = 256;
/// Draws for one scene of a test split, before there seem to be no more.
const ATTEMPTS: u64 = 2000;
/// Pictures on a contact sheet, and in one of its rows.
const SHEET: (usize, usize) = (64, 8);
/// Pixels of a contact sheet's cells.
const CELL: usize = draw::SIDES.1 + 4;

pub fn run(arguments: &[&str]) -> Result<(), Failure> {
    let options = Options::parse(arguments).map_err(Failure::Usage)?;
    if let Some(path) = &options.vocabulary {
        write(path, |file| file.write_all(vocabulary().as_bytes()))?;
    }
    let Some(recipe) = options.recipe else {
        return Ok(());
    };
    let started = Instant::now();
    let plan = recipe.plan(ATTEMPTS).map_err(Failure::Usage)?;
    if let Some(path) = &options.output {
        let mut bytes = 0;
        write(path, |file| {
            bytes = recipe.write_lines(plan.as_deref(), file)?;
            Ok(())
        })?;
        let seconds = started.elapsed().as_secs_f64();
        eprintln!(
            "{} scenes, {bytes} bytes in {seconds:.1} s: {}",
            recipe.count,
            path.display()
        );
    }
    if let Some(path) = &options.sheet {
        let first = 0..recipe.count.min(SHEET.0);
        let pictures: Vec<Picture> = first
            .map(|index| recipe.planned(plan.as_deref(), index).draw())
            .collect();
        let png = contact_sheet(&pictures);
        write(path, |file| file.write_all(&png))?;
    }
    Ok(())
}

/// What the command line asks for.
#[derive(Debug, PartialEq)]
struct Options {
    recipe: Option<Recipe>,
    output: Option<PathBuf>,
    sheet: Option<PathBuf>,
    vocabulary: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: &[&str]) -> Result<Self, String> {
        let mut given: HashMap<&str, &str> = HashMap::new();
        let mut rest = arguments.iter();
        while let Some(&option) = rest.next() {
            const KNOWN: [&str; 6] = ["--count", "--output", "--seed", "--sheet", "--split", "--vocab"];
            if !KNOWN.contains(&option) {
                return Err(format!("'scenes' takes no '{option}', but {}.", KNOWN.join(", ")));
            }
            let value = rest.next().filter(|value| !value.starts_with("--"));
            let value = value.ok_or_else(|| format!("{option} needs a value."))?;
            if given.insert(option, value).is_some() {
                return Err(format!("{option} stands twice."));
            }
        }
        let path = |option| given.get(option).map(PathBuf::from);
        let (output, sheet, vocabulary) = (path("--output"), path("--sheet"), path("--vocab"));
        let drawn = output.is_some() || sheet.is_some();
        if !drawn && vocabulary.is_none() {
            return Err("'scenes' writes to --output, --sheet or --vocab; none is given.".into());
        }
        let recipe = if drawn {
            let number = |option: &str| match given.get(option) {
                None => Err(format!("--output and --sheet need {option}.")),
                Some(value) => value
                    .parse::<u64>()
                    .map_err(|_| format!("{option} is a whole number, not '{value}'.")),
            };
            let count = usize::try_from(number("--count")?).unwrap_or(0);
            // Image ids number the scenes with six digits.
            if !(1..=1_000_000).contains(&count) {
                return Err("--count is 1 or more, and 1000000 at most.".into());
            }
            let name = given.get("--split").copied().unwrap_or("train");
            let split = Split::ALL.iter().find(|(known, _)| *known == name);
            let &(_, split) =
                split.ok_or_else(|| format!("--split is train, test or unseen, not '{name}'."))?;
            Some(Recipe {
                count,
                seed: number("--seed")?,
                split,
            })
        } else if let Some(option) = ["--count", "--seed", "--split"]
            .iter()
            .find(|o| given.contains_key(*o))
        {
            return Err(format!("{option} goes with --output or --sheet."));
        } else {
            None
        };
        Ok(Self {
            recipe,
            output,
            sheet,
            vocabulary,
        })
    }
}

/// What the scenes of a file follow from.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Recipe {
    count: usize,
    seed: u64,
    split: Split,
}

/// A scene with its caption, and the random stream that its picture goes on with.
struct Sketch {
    scene: Scene,
    caption: Caption,
    random: Random,
}

impl Sketch {
    fn draw(mut self) -> Picture {
        draw::draw(&self.scene, &mut self.random)
    }
}

impl Recipe {
    fn random(&self, index: usize, attempt: u64) -> Random {
        Random::new(&[self.seed, self.split as u64, index as u64, attempt])
    }

    /// The attempts that give the scenes, where it matters what the other scenes of the file are.
    fn plan(&self, attempts: u64) -> Result<Option<Vec<u64>>, String> {
        if self.split == Split::Train {
            return Ok(None);
        }
        let mut file = Unique::default();
        let mut plan = Vec::with_capacity(self.count);
        for index in 0..self.count {
            let attempt = (0..attempts).find(|&attempt| {
                let sketch = self.sketch(index, attempt);
                sketch.is_some_and(|sketch| file.take(sketch.scene, sketch.caption.claims))
            });
            plan.push(attempt.ok_or_else(|| {
                format!(
                    "Only {index} scenes were found that their captions tell apart; --count asks for {}.",
                    self.count
                )
            })?);
        }
        Ok(Some(plan))
    }

    /// The scene that an attempt gives, if any.
    fn sketch(&self, index: usize, attempt: u64) -> Option<Sketch> {
        let mut random = self.random(index, attempt);
        let scene = Scene::draw(&mut random, self.split)?;
        let level = Level::draw(&mut random);
        let caption = Caption::draw(&scene, level, &mut random);
        Some(Sketch {
            scene,
            caption,
            random,
        })
    }

    /// The scene with this number.
    fn planned(&self, plan: Option<&[u64]>, index: usize) -> Sketch {
        let sketch = match plan {
            Some(plan) => self.sketch(index, plan[index]),
            None => (0..).find_map(|attempt| self.sketch(index, attempt)),
        };
        sketch.expect("what the plan names can be drawn")
    }

    /// Writes the lines in order; returns how many bytes they have.
    fn write_lines(&self, plan: Option<&[u64]>, file: &mut dyn Write) -> io::Result<u64> {
        let threads = thread::available_parallelism().map_or(1, |threads| threads.get());
        let mut bytes = 0;
        for round in (0..self.count).step_by(threads * CHUNK) {
            let chunks: Vec<Vec<u8>> = thread::scope(|scope| {
                let starts = (round..self.count).step_by(CHUNK).take(threads);
                let workers: Vec<_> = starts
                    .map(|start| scope.spawn(move || self.lines(plan, start, self.count.min(start + CHUNK))))
                    .collect();
                let joined = workers.into_iter().map(|worker| worker.join());
                joined
                    .map(|chunk| chunk.expect("drawing does not panic"))
                    .collect()
            });
            for chunk in chunks {
                file.write_all(&chunk)?;
                bytes += chunk.len() as u64;
            }
        }
        Ok(bytes)
    }

    fn lines(&self, plan: Option<&[u64]>, from: usize, to: usize) -> Vec<u8> {
        let mut lines = String::new();
        for index in from..to {
            let sketch = self.planned(plan, index);
            let (split, seed) = (self.split.name(), self.seed);
            let (caption, tags) = (&sketch.caption.text, sketch.scene.tags());
            lines += &format!("{caption}\tscene-{split}-{seed}-{index:06}\t{tags}\t");
            let picture = sketch.draw();
            STANDARD.encode_string(png(picture.side, picture.side, &picture.rgb), &mut lines);
            lines.push('\n');
        }
        lines.into_bytes()
    }
}

/// Scenes each of which is the only one that its caption is true of.
#[derive(Default)]
struct Unique {
    taken: Vec<(Scene, Claims)>,
    /// Which scenes hold a kind.
    scenes: HashMap<usize, Vec<usize>>,
    /// Which captions name a kind first.
    captions: HashMap<usize, Vec<usize>>,
}

impl Unique {
    /// Takes a scene in if it and its caption are told apart from all others.
    fn take(&mut self, scene: Scene, claims: Claims) -> bool {
        let first = claims.things[0].kind;
        let none = Vec::new();
        let captioned = scene
            .groups
            .iter()
            .flat_map(|group| self.captions.get(&group.kind).unwrap_or(&none));
        let clear = captioned
            .into_iter()
            .all(|&at| !self.taken[at].1.hold_for(&scene))
            && self
                .scenes
                .get(&first)
                .unwrap_or(&none)
                .iter()
                .all(|&at| !claims.hold_for(&self.taken[at].0));
        if clear {
            let at = self.taken.len();
            self.captions.entry(first).or_default().push(at);
            for group in &scene.groups {
                self.scenes.entry(group.kind).or_default().push(at);
            }
            self.taken.push((scene, claims));
        }
        clear
    }
}

/// The captions' vocabulary: a token and its id a line.
fn vocabulary() -> String {
    let mut tokens: Vec<String> = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"].map(String::from).into();
    tokens.extend(caption::characters().into_iter().map(String::from));
    tokens.push("[UNK]".into());
    let lines: Vec<String> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| format!("{token}\t{id}"))
        .collect();
    lines.join("\n")
}

/// RGB as PNG.
fn png(width: u32, height: u32, rgb: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    // For flat colours the smallest, and half again as fast as the level above.
    encoder.set_deflate_compression(png::DeflateCompression::Level(5));
    encoder.set_filter(png::Filter::NoFilter);
    let mut writer = encoder.write_header().expect("a vector takes everything");
    writer
        .write_image_data(rgb)
        .expect("the data has the header's size");
    writer.finish().expect("a vector takes everything");
    bytes
}

/// Pictures side by side, each in the middle of its cell.
fn contact_sheet(pictures: &[Picture]) -> Vec<u8> {
    let columns = SHEET.1.min(pictures.len());
    let (width, height) = (CELL * columns, CELL * pictures.len().div_ceil(columns));
    let mut rgb = vec![255; 3 * width * height];
    for (at, picture) in pictures.iter().enumerate() {
        let side = picture.side as usize;
        let margin = (CELL - side) / 2;
        let (left, top) = (at % columns * CELL + margin, at / columns * CELL + margin);
        for (row, line) in picture.rgb.chunks_exact(3 * side).enumerate() {
            let start = 3 * ((top + row) * width + left);
            rgb[start..start + line.len()].copy_from_slice(line);
        }
    }
    png(width as u32, height as u32, &rgb)
}

/// Writes a file whole or not at all.
fn write(path: &Path, contents: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".part");
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file = BufWriter::new(File::create(&temporary)?);
        contents(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?;
        fs::rename(&temporary, path)
    })();
    written.map_err(|error| {
        // What is left of it is of no use; that it could not be made is told below.
        let _ = fs::remove_file(&temporary);
        Failure::Failed(format!("{} could not be written: {error}", path.display()))
    })
}
