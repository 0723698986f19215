//! `ernie-vil eval`: pairs to the recall table in one go.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ernie_vil::native::input::{self, Input};
use ernie_vil::native::model::ranks;
use ernie_vil::native::pipeline::{self, Options, Times};
use ernie_vil::native::{Model, Progress as _};
use ernie_vil::pairs::{PairReader, count_rows};
use ernie_vil::recall::Report;
use ernie_vil::vectors::{Embeddings, Pairs};

use super::score;
use crate::builtin;
use crate::cli;
use crate::images;
use crate::print::note;
use crate::progress::{Progress, Unit};

pub fn run(args: &cli::Eval, global: &cli::Global) -> Result<()> {
    if let (Some(texts), Some(images)) = (&args.related.texts, &args.related.images) {
        return run_related(texts, images, args, global);
    }
    let model = builtin::load(&args.model, &args.device.each(), global)?;
    let limit = args.rows.limit.unwrap_or(u64::MAX);
    let progress = Progress::new("evaluating", Unit::Items("pairs"), global.quiet);
    match &args.input {
        Some(path) => {
            let name = path.display().to_string();
            let Input { mut file, is_stream } = input::open(path)?;
            let buffered = |file: File| BufReader::with_capacity(1 << 18, file);
            // A stream can be read once, so how much it has is not known.
            if !is_stream {
                let total = count_rows(buffered(file.try_clone()?)).with_context(|| name.clone())?;
                progress.set_total(Some(total.min(limit)));
                file.rewind().with_context(|| name.clone())?;
            }
            evaluate(&model, buffered(file), &name, args, global, progress)
        }
        None => {
            let pairs = builtin::pairs()?;
            if !global.quiet {
                note!(
                    "no --input given, so these are the 1,000 drawn pictures that \"scenes\" is tested with"
                );
            }
            progress.set_total(Some(count_rows(pairs)?.min(limit)));
            evaluate(&model, pairs, "the built-in pairs", args, global, progress)
        }
    }
}

fn evaluate(
    model: &Model,
    input: impl BufRead + Send,
    name: &str,
    args: &cli::Eval,
    global: &cli::Global,
    progress: Progress,
) -> Result<()> {
    let options = options(args, model, false);
    let (start, times) = (Instant::now(), Times::default());
    let reader = PairReader::new(input);
    let all = pipeline::embed_all(model, reader, name, &options, &times, |rows| progress.add(rows))?;
    let embedded = start.elapsed();
    drop(progress);
    let start = Instant::now();
    let (ranks, scorer) = ranks(model, &all.text, &all.image).with_context(|| name.to_owned())?;
    let report = Report::new(&ranks)?;
    if !global.quiet {
        note!(
            "{}",
            pipeline::summary(all.text.rows() as u64, "pairs", embedded, &times)
        );
        note!("scored on {scorer} in {:.2} s", start.elapsed().as_secs_f64());
    }
    for row in &all.skipped {
        note!("skipped line {}: {}", row.line, row.reason);
    }
    let published = score::published(model.config().published, args.set);
    score::print(&report, args.format, published)
}

fn options(args: &cli::Eval, model: &Model, images_only: bool) -> Options {
    Options {
        batch_size: args.rows.batch_size(&model.devices),
        on_error: args.rows.on_error.into(),
        limit: args.rows.limit,
        images_only,
        warm_up: true,
        limits: images::limits(&args.limits),
    }
}

/// A test set in Chinese-CLIP's form. What can be checked is checked before anything is computed.
fn run_related(texts: &Path, images: &Path, args: &cli::Eval, global: &cli::Global) -> Result<()> {
    ensure!(
        args.input.is_none() && args.set.is_none() && args.rows.limit.is_none(),
        "--texts and --images score by Chinese-CLIP's protocol, where --input, --set and --limit have no meaning"
    );
    let captions = score::captions(texts)?;
    // Read twice: for the ids, and for the images.
    let mut file = input::spooled(images, &std::env::temp_dir())?;
    let name = images.display().to_string();
    let ids = score::image_ids(file.try_clone().with_context(|| name.clone())?, images)?;
    file.rewind().with_context(|| name.clone())?;
    score::relations(&captions, texts, &ids)?;
    let model = builtin::load(&args.model, &args.device.each(), global)?;
    let progress = Progress::new("evaluating", Unit::Items("rows"), global.quiet);
    progress.set_total(Some((captions.len() + ids.len()) as u64));

    let (start, times) = (Instant::now(), Times::default());
    let reader = PairReader::new(BufReader::with_capacity(1 << 18, file));
    let options = options(args, &model, true);
    let all = pipeline::embed_all(&model, reader, &name, &options, &times, |rows| progress.add(rows))?;
    let mut values = Vec::new();
    for batch in captions.chunks(options.batch_size) {
        let ids: Vec<Vec<u32>> =
            (batch.iter().map(|caption| model.encode(&caption.text))).collect::<Result<_, _>>()?;
        let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        values.extend_from_slice(pipeline::embed_captions(&model, &ids, &times)?.data());
        progress.add(batch.len() as u64);
    }
    let embedded = start.elapsed();
    drop(progress);

    let pairs = Pairs {
        text: Embeddings::new(captions.len(), model.config().text.width, values)?,
        image: all.image,
    };
    // Anew: rows may have been left out.
    let relations = score::relations(&captions, texts, &all.ids)?;
    let report = score::score_related(&pairs, &relations, global.quiet)
        .with_context(|| texts.display().to_string())?;
    if !global.quiet {
        let rows = (captions.len() + all.ids.len()) as u64;
        note!("{}", pipeline::summary(rows, "rows", embedded, &times));
    }
    for row in &all.skipped {
        note!("skipped line {}: {}", row.line, row.reason);
    }
    score::print_related(&report, args.format)
}
