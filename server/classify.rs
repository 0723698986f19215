//! `ernie-vil classify`: which of some labels a picture fits, without training.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ernie_vil::classify::{PLACE, TEMPLATES, label_vectors, probabilities, prompts};
use ernie_vil::image::Pixels;
use ernie_vil::vectors::Embeddings;
use rayon::prelude::*;
use serde_json::json;

use crate::cli;
use crate::model::{self, Model};
use crate::search::crop;

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
    let model = Model::load(&args.model, &[args.device], global)?;
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
            .collect::<Result<_>>()?;
        let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        values.extend_from_slice(model.embed_captions(0, &ids)?.data());
    }
    let rows = Embeddings::new(prompts.len(), width, values)?;
    let label_vectors = label_vectors(rows, templates.len())?;

    let preprocessor = model.preprocessor();
    let mut failed = 0;
    for files in args.images.chunks(BATCH) {
        let inputs: Vec<Result<Pixels>> = files.par_iter().map(|file| crop(&preprocessor, file)).collect();
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
                    eprintln!("skipped {error:#}");
                }
            }
        }
        let images = model.embed_images(0, &crops)?;
        for (file, image) in read.into_iter().zip(&images) {
            print(
                file,
                &ranking(&labels, &label_vectors, image, config.scale()),
                args,
            );
        }
    }
    match failed {
        0 => Ok(()),
        _ => bail!("{failed} of {} pictures could not be read", args.images.len()),
    }
}

/// The labels of the command line or of the file, one a line.
fn labels(args: &cli::Classify) -> Result<Vec<String>> {
    let mut labels = args.labels.clone();
    if let Some(path) = &args.labels_file {
        let name = || path.display().to_string();
        let text = String::from_utf8(model::read(path, model::LARGEST_VOCAB)?).with_context(name)?;
        labels.extend(text.lines().map(|line| line.trim().to_owned()));
        labels.retain(|label| !label.is_empty());
        ensure!(!labels.is_empty(), "{} has no label, expected one a line", name());
    }
    let mut seen = HashSet::new();
    if let Some(label) = labels.iter().find(|label| !seen.insert(*label)) {
        bail!("the label {label:?} is there twice, expected each one once");
    }
    Ok(labels)
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

fn print(file: &Path, ranking: &[(&str, f32, f32)], args: &cli::Classify) {
    let best = &ranking[..args.top.min(ranking.len())];
    if args.json {
        let labels: Vec<_> = best
            .iter()
            .map(|(label, score, share)| json!({"label": label, "score": score, "probability": share}))
            .collect();
        println!("{}", json!({"file": file, "labels": labels}));
        return;
    }
    println!("{}", file.display());
    for (label, _, share) in best {
        println!("{:8.2} %  {label}", share * 100.0);
    }
}
