//! `ernie-vil eval`: pairs to the recall table in one go.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::Instant;

use anyhow::{Context, Result};
use ernie_vil::pairs::{PairReader, count_rows};
use ernie_vil::recall::{self, Report};

use crate::cli;
use crate::model::Model;
use crate::pipeline::{self, Options, Times};
use crate::progress::{Progress, Unit};
use crate::{builtin, score};

pub fn run(args: &cli::Eval, global: &cli::Global) -> Result<()> {
    let model = Model::load(&args.model, &args.device, global)?;
    let progress = Progress::new("evaluating", Unit::Items("pairs"), global.quiet);
    match &args.input {
        Some(path) => {
            let name = path.display().to_string();
            let open = || {
                let file = File::open(path).with_context(|| name.clone())?;
                Ok::<_, anyhow::Error>(BufReader::with_capacity(1 << 18, file))
            };
            let total = count_rows(open()?).with_context(|| name.clone())?;
            progress.set_total(Some(total));
            evaluate(&model, open()?, &name, args, global, progress)
        }
        None => {
            let pairs = builtin::pairs()?;
            if !global.quiet {
                eprintln!(
                    "no --input given, so these are the 1,000 drawn pictures that \"scenes\" is tested with"
                );
            }
            progress.set_total(Some(count_rows(pairs)?));
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
    let options = Options {
        batch_size: args.rows.batch_size as usize,
        on_error: args.rows.on_error,
    };
    let (start, times) = (Instant::now(), Times::default());
    let reader = PairReader::new(input);
    let all = pipeline::embed_all(model, reader, name, &options, &times, |rows| progress.add(rows))?;
    let embedded = start.elapsed();
    drop(progress);
    let start = Instant::now();
    let ranks =
        recall::ranks(&all.text, &all.image, recall::Options::default()).with_context(|| name.to_owned())?;
    let report = Report::new(&ranks)?;
    if !global.quiet {
        eprintln!("{}", pipeline::summary(all.text.rows() as u64, embedded, &times));
        eprintln!("scored in {:.2} s", start.elapsed().as_secs_f64());
    }
    for row in &all.skipped {
        eprintln!("skipped line {}: {}", row.line, row.reason);
    }
    score::print(&report, args.format, model.config().published);
    Ok(())
}
