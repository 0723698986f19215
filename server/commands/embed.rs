//! `ernie-vil embed`: a file of pairs to a file of vectors.

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use ernie_vil::native::atomic_file::{AtomicFile, beside};
use ernie_vil::native::folder::{LARGEST_CONFIG, LARGEST_VOCAB, parse_weights};
use ernie_vil::native::input::{self, Input};
use ernie_vil::native::pipeline::{self, OnError, Options, Times};
use ernie_vil::native::spool::{Job, Kept, Spool};
use ernie_vil::native::{DeviceOptions, Model, Progress as _};
use ernie_vil::pairs::{PairReader, count_rows};
use ernie_vil::text_file::text;
use ernie_vil::vectors::{NpyWriter, OutWriter, SafetensorsWriter};
use ernie_vil::weights::{Renamed, infer_type_tables, infer_vision_config};
use ernie_vil::{ModelConfig, Preprocessing};

use super::convert;
use crate::builtin;
use crate::cli::{self, VectorFormat};
use crate::files::{self, Files};
use crate::images;
use crate::print::note;
use crate::progress::{Progress, Unit};
use crate::run_config::RunConfig;

/// What a stream is called in the state of a run.
const STREAM: &str = "a stream";

pub fn run(args: &cli::Embed, global: &cli::Global) -> Result<()> {
    let (model, input, output, batch_size) = match &args.config {
        Some(path) => {
            let yaml = input::read(path, LARGEST_CONFIG)?;
            let yaml = text(&yaml).with_context(|| path.display().to_string())?;
            let config = RunConfig::from_yaml(yaml, &path.display().to_string())?;
            if !global.quiet {
                for warning in &config.warnings {
                    note!("note: {warning}");
                }
            }
            let mut files = Files::default();
            files
                .reads(path)
                .reads(&config.test_file)
                .reads(&config.init_from_params)
                .reads(&config.vocab_file)
                .reads(&config.text_model_config)
                .may_read(config.image_model_config.as_deref());
            check_output(files, &config.output_file, args)?;
            let model = configured(&config, &args.device.each())?;
            (
                model,
                config.test_file,
                config.output_file,
                config.infer_batch_size,
            )
        }
        None => {
            let (Some(input), Some(output)) = (args.input.clone(), args.output.clone()) else {
                bail!("--input and --output are needed where there is no --config");
            };
            let mut files = Files::default();
            files.reads(&input);
            if let Some(folder) = &args.model.model {
                files.reads_model(folder);
            }
            check_output(files, &output, args)?;
            let model = builtin::load(&args.model, &args.device.each(), global)?;
            let batch_size = args.rows.batch_size(&model.devices);
            (model, input, output, batch_size)
        }
    };
    let options = Options {
        batch_size,
        on_error: args.rows.on_error.into(),
        limit: args.rows.limit,
        images_only: false,
        warm_up: true,
        limits: images::limits(&args.limits),
    };
    embed(&model, &input, &output, &options, args, global.quiet)
}

/// The files that appear when the run is complete.
fn outputs(output: &Path, args: &cli::Embed) -> Vec<PathBuf> {
    let mut outputs = match format(output, args) {
        VectorFormat::Npy => npy_paths(output).to_vec(),
        VectorFormat::Text | VectorFormat::Safetensors => vec![output.to_owned()],
    };
    if args.rows.on_error == cli::OnError::Skip {
        outputs.push(skipped_list(output));
    }
    outputs
}

/// Checks, before anything is read, that what the run writes is none of the inputs and replaces nothing
/// unasked.
fn check_output(mut files: Files, output: &Path, args: &cli::Embed) -> Result<()> {
    let outputs = outputs(output, args);
    for path in outputs.iter().chain(&Spool::files(output)) {
        files.writes(path);
    }
    files.check()?;
    let [rows, _] = Spool::files(output);
    let may_replace = match Spool::kept(output)? {
        Kept::Rows { may_replace, .. } if args.resume => may_replace,
        Kept::Rows { rows: kept, .. } => {
            ensure!(
                args.overwrite,
                "{} has {kept} rows of a run that broke off; --resume goes on after them, --overwrite drops them",
                rows.display()
            );
            false
        }
        Kept::Unknown => {
            ensure!(args.overwrite, "{}", files::is_there(&rows));
            false
        }
        Kept::Nothing => false,
    };
    files::check_free(&outputs, args.overwrite || may_replace)
}

/// The model that a run configuration of the original describes.
fn configured(config: &RunConfig, devices: &[DeviceOptions]) -> Result<Model> {
    let specials = [config.pad_token, config.cls_token, config.sep_token];
    let vocab = input::read(&config.vocab_file, LARGEST_VOCAB)?;
    let weights = input::map_spooled(&config.init_from_params, &std::env::temp_dir())?;
    let file = parse_weights(&weights).with_context(|| config.init_from_params.display().to_string())?;
    let checkpoint = Renamed::new(&*file);
    let mut text = convert::text_config(&config.text_model_config)?;
    infer_type_tables(&mut text, &checkpoint)?;
    let model_config = ModelConfig {
        format: ModelConfig::FORMAT,
        name: config.init_from_params.display().to_string(),
        published: None,
        note: None,
        image: match &config.image_model_config {
            Some(path) => convert::image_config(path)?,
            None => infer_vision_config(&checkpoint)?.into(),
        },
        text,
        preprocessing: Preprocessing::Original,
        max_text_tokens: config.max_text_seqlen,
        logit_scale: convert::logit_scale(&checkpoint)?,
        // A model folder has one; here the checkpoint would have to be read twice for it.
        fingerprint: format!("{} without a model folder", config.init_from_params.display()),
        sources: Vec::new(),
    };
    let model = Model::from_parts(model_config, &vocab, [&checkpoint, &checkpoint], devices)
        .with_context(|| config.init_from_params.display().to_string())?;
    let vocabulary = ernie_vil::text::Vocabulary::parse(&vocab)?;
    let found = [vocabulary.pad(), vocabulary.cls(), vocabulary.sep()];
    ensure!(
        found == specials.map(Some),
        "{} has [PAD], [CLS], [SEP] as {found:?}, the run configuration says {specials:?}",
        config.vocab_file.display()
    );
    Ok(model)
}

fn format(output: &Path, args: &cli::Embed) -> VectorFormat {
    let extension = output.extension().and_then(|extension| extension.to_str());
    args.format.unwrap_or(match extension {
        Some("safetensors") => VectorFormat::Safetensors,
        Some("npy") => VectorFormat::Npy,
        _ => VectorFormat::Text,
    })
}

/// Where the rows that were left out are listed.
fn skipped_list(output: &Path) -> PathBuf {
    beside(output, ".skipped.tsv")
}

fn embed(
    model: &Model,
    input: &Path,
    output: &Path,
    options: &Options,
    args: &cli::Embed,
    quiet: bool,
) -> Result<()> {
    let name = input.display().to_string();
    let in_input = || name.clone();
    let Input { mut file, is_stream } = input::open(input)?;
    let config = model.config();
    let job = Job {
        // A stream has another name in every run, and no size.
        input: if is_stream {
            STREAM.into()
        } else {
            input.to_owned()
        },
        input_bytes: match is_stream {
            true => 0,
            false => file.metadata().with_context(in_input)?.len(),
        },
        fingerprint: config.fingerprint.clone(),
        max_tokens: config.max_text_tokens,
        skips_bad_rows: options.on_error == OnError::Skip,
        limit: options.limit,
        text_dimensions: config.text.width,
        image_dimensions: config.image.width(),
    };
    let mut spool = Spool::open(output, job, args.resume, args.overwrite)?;
    let position = spool.position();
    if args.resume && !quiet && position.rows > 0 {
        note!("resuming after {} rows", position.rows);
    }
    let progress = Progress::new("embedding", Unit::Items("pairs"), quiet);
    let buffered = |file: File| BufReader::with_capacity(1 << 18, file);
    let reader = if is_stream {
        // Rows that are done are read past. That they end at the same byte as before tells this stream from
        // another.
        let mut reader = PairReader::new(buffered(file));
        reader.skip_rows(position.rows).with_context(in_input)?;
        ensure!(
            reader.position() == position,
            "{name} is not the stream whose first {} rows are kept beside {}: these have {} bytes, not {}; \
             --overwrite in place of --resume starts anew",
            position.rows,
            output.display(),
            reader.position().offset,
            position.offset
        );
        reader
    } else {
        if let Ok(total) = count_rows(buffered(file.try_clone().with_context(in_input)?)) {
            progress.set_total(Some(total.min(options.limit.unwrap_or(u64::MAX))));
        }
        file.seek(SeekFrom::Start(position.offset))
            .with_context(in_input)?;
        PairReader::resume(buffered(file), position)
    };
    progress.start_at(position.rows);
    let (start, before, times) = (Instant::now(), spool.rows(), Times::default());
    let ran = pipeline::run(model, reader, &name, options, &times, |batch| {
        progress.add((batch.ids.len() + batch.skipped.len()) as u64);
        spool.push(batch)
    });
    let elapsed = start.elapsed();
    drop(progress);
    // Also where the run broke off: what is done is done.
    let saved = spool.save();
    if let Err(error) = ran {
        match spool.rows() {
            // There is nothing to go on from. What cannot be removed is in nobody's way.
            0 => drop(spool.remove()),
            kept if saved.is_ok() && !quiet => {
                note!("note: {kept} rows are kept; --resume goes on after them");
            }
            _ => {}
        }
        return Err(error.into());
    }
    saved?;

    // Once more: others may have made a file of this name meanwhile.
    files::check_free(&outputs(output, args), spool.may_replace())?;
    spool.begin_outputs()?;
    let list = skipped_list(output);
    if !spool.skipped().is_empty() {
        let mut file = AtomicFile::create(&list)?;
        for skipped in spool.skipped() {
            writeln!(
                file,
                "{}\t{}",
                skipped.line,
                skipped.reason.replace(['\n', '\r', '\t'], " ")
            )?;
        }
        file.commit()?;
        note!(
            "{} rows were skipped; {} says which and why",
            spool.skipped().len(),
            list.display()
        );
    } else if options.on_error == OnError::Skip && list.exists() {
        // It would be an earlier run's.
        std::fs::remove_file(&list).with_context(|| list.display().to_string())?;
    }
    let rows = spool.rows() as usize;
    if rows == 0 {
        // An output of no vectors would pass for a result, and there is nothing to go on from.
        let message = pipeline::no_rows(&name, spool.skipped());
        spool.remove()?;
        bail!(message);
    }
    let written = match format(output, args) {
        VectorFormat::Text => write_text(&mut spool, output)?,
        VectorFormat::Safetensors => write_safetensors(&mut spool, output, rows, config)?,
        VectorFormat::Npy => write_npy(&mut spool, output, rows, config)?,
    };
    if !quiet {
        note!(
            "{}",
            pipeline::summary(rows as u64 - before, "pairs", elapsed, &times)
        );
        for path in written {
            note!("wrote {}", path.display());
        }
    }
    Ok(spool.remove()?)
}

fn write_text(spool: &mut Spool, output: &Path) -> Result<Vec<PathBuf>> {
    let mut writer = OutWriter::new(BufWriter::with_capacity(1 << 20, AtomicFile::create(output)?));
    spool.for_each(|_, text, image| -> Result<()> { Ok(writer.write(text, image)?) })?;
    finish(writer.finish()?, output)
}

fn write_safetensors(
    spool: &mut Spool,
    output: &Path,
    rows: usize,
    config: &ModelConfig,
) -> Result<Vec<PathBuf>> {
    let file = BufWriter::with_capacity(1 << 20, AtomicFile::create(output)?);
    let (text, image) = (config.text.width, config.image.width());
    let mut writer = SafetensorsWriter::new(file, rows, Some(text), Some(image), Some(&config.fingerprint))?;
    // Rows are handed over a thousand at a time, since the two tensors lie far apart in the file.
    let (mut ids, mut texts, mut images) = (Vec::new(), Vec::new(), Vec::new());
    spool.for_each(|id, text, image| -> Result<()> {
        ids.push(id.to_owned());
        texts.extend_from_slice(text);
        images.extend_from_slice(image);
        if ids.len() == 1000 {
            writer.write(&texts, &images, &ids)?;
            ids.clear();
            texts.clear();
            images.clear();
        }
        Ok(())
    })?;
    writer.write(&texts, &images, &ids)?;
    finish(writer.finish()?, output)
}

/// NAME.text.npy, NAME.image.npy and NAME.ids.txt, for NAME or NAME.npy.
pub fn npy_paths(output: &Path) -> [PathBuf; 3] {
    let stem = match output.extension() {
        Some(extension) if extension == "npy" => output.with_extension(""),
        _ => output.to_owned(),
    };
    [".text.npy", ".image.npy", ".ids.txt"].map(|suffix| beside(&stem, suffix))
}

fn write_npy(spool: &mut Spool, output: &Path, rows: usize, config: &ModelConfig) -> Result<Vec<PathBuf>> {
    let paths = npy_paths(output);
    let [text_path, image_path, ids_path] = &paths;
    let create = |path: &Path| AtomicFile::create(path).map(|file| BufWriter::with_capacity(1 << 20, file));
    let mut texts = NpyWriter::new(create(text_path)?, rows, config.text.width)?;
    let mut images = NpyWriter::new(create(image_path)?, rows, config.image.width())?;
    let mut ids = create(ids_path)?;
    spool.for_each(|id, text, image| -> Result<()> {
        texts.write(text)?;
        images.write(image)?;
        Ok(writeln!(ids, "{id}")?)
    })?;
    finish(texts.finish()?, text_path)?;
    finish(images.finish()?, image_path)?;
    finish(ids, ids_path)?;
    Ok(paths.to_vec())
}

fn finish(writer: BufWriter<AtomicFile>, path: &Path) -> Result<Vec<PathBuf>> {
    let file = writer.into_inner().map_err(|error| error.into_error());
    file.with_context(|| format!("writing {}", path.display()))?
        .commit()?;
    Ok(vec![path.to_owned()])
}
