//! `ernie-vil classify`: which of some labels a picture fits, without training.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ernie_vil::classify::{PLACE, TEMPLATES, label_vectors, probabilities, prompts};
use ernie_vil::image::Pixels;
use ernie_vil::native::folder::LARGEST_VOCAB;
use ernie_vil::native::input;
use ernie_vil::text_file::text;
use ernie_vil::vectors::Embeddings;
use rayon::prelude::*;
use serde_json::json;

use super::search::crop;
use crate::builtin;
use crate::cli;
use crate::images;
use crate::print::{self, note, outln};

/// Pictures, and prompts, that go through a tower together.
const BATCH: usize = 16;

pub fn run(args: &cli::Classify, global: &cli::Global) -> Result<()> {
    let labels = labels(args)?;
    let templates: Vec<&str> = if args.ensemble {
        TEMPLATES.to_vec()
    } else if args.template.is_empty() {
        vec![PLACE]
    } else {
        args.template.iter().map(String::as_str).collect()
    };
    let prompts = prompts(&labels, &templates)?;
    let model = builtin::load(&args.model, &[args.device.options()], global)?;
    let config = model.config();
    let (text_width, width) = (config.text.width, config.image.width());
    ensure!(
        text_width == width,
        "this model's towers have different widths ({text_width} and {width}), so a label cannot be compared with a picture"
    );
    let mut values = Vec::new();
    for batch in prompts.chunks(BATCH) {
        let ids: Vec<Vec<u32>> = batch
            .iter()
            .map(|text| model.encode(text))
            .collect::<Result<_, _>>()?;
        let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        values.extend_from_slice(model.embed_captions(0, &ids)?.data());
    }
    let rows = Embeddings::new(prompts.len(), width, values)?;
    let label_vectors = label_vectors(rows, templates.len())?;

    let (preprocessor, limits) = (model.preprocessor(), images::limits(&args.limits));
    let mut failed = 0;
    for files in args.images.chunks(BATCH) {
        let inputs: Vec<Result<Pixels>> = files
            .par_iter()
            .map(|file| crop(&preprocessor, file, &limits))
            .collect();
        let mut read = Vec::new();
        let mut crops = Vec::new();
        for (file, input) in files.iter().zip(inputs) {
            match input {
                Ok(crop) => {
                    read.push(file);
                    crops.extend_from_slice(crop.data());
                }
                Err(error) => {
                    failed += 1;
                    note!("skipped {error:#}");
                }
            }
        }
        let images = model.embed_images(0, &crops)?;
        for (file, image) in read.into_iter().zip(&images) {
            print(
                file,
                &ranking(&labels, &label_vectors, image, config.scale()),
                args,
            )?;
        }
    }
    match failed {
        0 => Ok(()),
        _ => bail!("{failed} of {} pictures could not be read", args.images.len()),
    }
}

/// A label and where it stands.
struct Label {
    text: String,
    place: String,
}

/// The labels of the command line and of the file.
fn labels(args: &cli::Classify) -> Result<Vec<String>> {
    let mut labels = labels_of_arguments(&args.labels)?;
    if let Some(path) = &args.labels_file {
        let name = path.display().to_string();
        let bytes = input::read(path, LARGEST_VOCAB)?;
        let text = text(&bytes).with_context(|| name.clone())?;
        labels.extend(labels_of_file(text, &name)?);
    }
    let mut places = HashMap::new();
    for Label { text, place } in &labels {
        if let Some(before) = places.insert(text, place) {
            bail!("the label {text:?} is there twice, as {before} and as {place}, expected each one once");
        }
    }
    Ok(labels.into_iter().map(|label| label.text).collect())
}

/// The labels of `--labels`, which clap took apart at its commas.
fn labels_of_arguments(arguments: &[String]) -> Result<Vec<Label>> {
    if let [only] = arguments
        && Path::new(only).is_file()
    {
        bail!(
            "--labels is the name of a file, {only:?}, expected labels; --labels-file reads them from a file"
        );
    }
    let mut labels = Vec::new();
    for (at, text) in arguments.iter().enumerate() {
        let (text, number) = (text.trim(), at + 1);
        ensure!(
            !text.is_empty(),
            "--labels: label {number} of {} is empty; remove the comma {}",
            arguments.len(),
            if number == arguments.len() {
                "at the end"
            } else {
                "too many"
            }
        );
        if let Some(separator) = text.chars().find(|c| SEPARATORS.contains(c)) {
            bail!(
                "--labels: label {number} is {text:?}, expected a comma (,) between two labels, not {}; a label that \
                 has one goes into a file (--labels-file)",
                name_of(separator)
            );
        }
        labels.push(Label {
            text: text.to_owned(),
            place: format!("label {number} of --labels"),
        });
    }
    Ok(labels)
}

/// What people write between labels instead of a comma.
const SEPARATORS: [char; 8] = ['，', '、', '；', ';', '|', '\n', '\r', '\t'];

fn name_of(separator: char) -> String {
    match separator {
        '，' => "a full-width comma (，)".into(),
        '\n' | '\r' => "a line break".into(),
        '\t' => "a tab".into(),
        other => format!("{other:?}").replace('\'', "\""),
    }
}

/// The labels of a file, one a line.
fn labels_of_file(text: &str, name: &str) -> Result<Vec<Label>> {
    let mut labels: Vec<Label> = Vec::new();
    let ends = |c| c == '\n' || c == '\r';
    for (line, label) in (1..).zip(text.replace("\r\n", "\n").split(ends)) {
        let label = label.trim();
        if label.is_empty() {
            continue;
        }
        let wrong = if labels.is_empty() && label.starts_with(['[', '{']) {
            "as in JSON"
        } else if label.contains('\t') {
            "with a tab in it"
        } else if label.starts_with("# ") || label.starts_with("//") || label == "#" {
            "as in a comment, which a file of labels cannot have"
        } else if label.ends_with([',', '，', '、', ';', '；']) {
            "with a separator at its end"
        } else {
            labels.push(Label {
                text: label.to_owned(),
                place: format!("line {line} of {name}"),
            });
            continue;
        };
        bail!(
            "{name}: line {line} is {:?}, {wrong}, expected a label alone on each line",
            shortened(label)
        );
    }
    if let [only] = &labels[..]
        && only.text.contains([',', '，', '、', ';', '；'])
    {
        bail!(
            "{name} has one line, {:?}, expected one label a line, not several with commas between",
            shortened(&only.text)
        );
    }
    ensure!(!labels.is_empty(), "{name} has no label, expected one a line");
    Ok(labels)
}

/// Enough of a text to recognise it by.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// A label, its score and its share, the likeliest first.
fn ranking<'a>(
    labels: &'a [String],
    vectors: &Embeddings,
    image: &[f32],
    scale: f64,
) -> Vec<(&'a str, f32, f32)> {
    let score = |label: &[f32]| label.iter().zip(image).map(|(a, b)| a * b).sum::<f32>();
    let scores: Vec<f32> = vectors.iter().map(score).collect();
    let shares = probabilities(&scores, scale);
    let mut ranking: Vec<_> = (labels.iter().zip(scores).zip(shares))
        .map(|((label, score), share)| (label.as_str(), score, share))
        .collect();
    ranking.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranking
}

fn print(file: &Path, ranking: &[(&str, f32, f32)], args: &cli::Classify) -> Result<()> {
    let best = &ranking[..args.top.min(ranking.len())];
    if args.json {
        let labels: Vec<_> = best
            .iter()
            .map(|(label, score, share)| json!({"label": label, "score": score, "probability": share}))
            .collect();
        let mut line = print::path_fields(file);
        line.insert("labels".into(), labels.into());
        return outln!("{}", serde_json::Value::from(line));
    }
    print::write_lines(&[&print::path_bytes(file)[..], b"\n"].concat())?;
    for (label, _, share) in best {
        outln!("{:8.2} %  {label}", share * 100.0)?;
    }
    Ok(())
}
