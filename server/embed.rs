//! `ernie-vil embed`: a file of pairs to a file of vectors.

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use ernie_vil::pairs::{PairReader, count_rows};
use ernie_vil::vectors::{NpyWriter, OutWriter, SafetensorsWriter};
use ernie_vil::weights::{Renamed, infer_type_tables, infer_vision_config};
use ernie_vil::{ModelConfig, Preprocessing};

use crate::atomic_file::{AtomicFile, beside};
use crate::cli::{self, OnError, VectorFormat};
use crate::convert;
use crate::model::{self, Model};
use crate::pipeline::{self, Options, Times};
use crate::progress::{Progress, Unit};
use crate::run_config::RunConfig;
use crate::spool::{Job, Spool};

pub fn run(args: &cli::Embed, global: &cli::Global) -> Result<()> {
    let (model, input, output, batch_size) = match &args.config {
        Some(path) => {
            let yaml = model::read(path, model::LARGEST_CONFIG)?;
            let yaml = String::from_utf8(yaml).with_context(|| path.display().to_string())?;
            let config = RunConfig::from_yaml(&yaml, &path.display().to_string())?;
            if !global.quiet {
                for warning in &config.warnings {
                    eprintln!("note: {warning}");
                }
            }
            let model = configured(&config, &args.device.each())?;
            (
                model,
                config.test_file,
                config.output_file,
                config.infer_batch_size,
            )
        }
        None => {
            let model = Model::load(&args.model, &args.device.each(), global)?;
            let (Some(input), Some(output)) = (args.input.clone(), args.output.clone()) else {
                bail!("--input and --output are needed where there is no --config");
            };
            let batch_size = args.rows.batch_size(&model.devices);
            (model, input, output, batch_size)
        }
    };
    let format = args.format.unwrap_or_else(|| format_of(&output));
    let options = Options {
        batch_size,
        on_error: args.rows.on_error,
        limit: args.rows.limit,
        images_only: false,
        warm_up: true,
    };
    embed(
        &model,
        &input,
        &output,
        format,
        &options,
        args.resume,
        global.quiet,
    )
}

/// The model that a run configuration of the original describes.
fn configured(config: &RunConfig, devices: &[cli::DeviceArgs]) -> Result<Model> {
    let specials = [config.pad_token, config.cls_token, config.sep_token];
    let vocab = model::read(&config.vocab_file, model::LARGEST_VOCAB)?;
    let weights = model::map(&config.init_from_params)?;
    let file =
        model::parse_weights(&weights).with_context(|| config.init_from_params.display().to_string())?;
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

fn format_of(output: &Path) -> VectorFormat {
    match output.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => VectorFormat::Safetensors,
        Some("npy") => VectorFormat::Npy,
        _ => VectorFormat::Text,
    }
}

fn embed(
    model: &Model,
    input: &Path,
    output: &Path,
    format: VectorFormat,
    options: &Options,
    resume: bool,
    quiet: bool,
) -> Result<()> {
    let name = input.display().to_string();
    let mut file = File::open(input).with_context(|| name.clone())?;
    let config = model.config();
    let job = Job {
        input: input.to_owned(),
        input_bytes: file.metadata().with_context(|| name.clone())?.len(),
        fingerprint: config.fingerprint.clone(),
        max_tokens: config.max_text_tokens,
        skips_bad_rows: options.on_error == OnError::Skip,
        limit: options.limit,
        text_dimensions: config.text.width,
        image_dimensions: config.image.width(),
    };
    let mut spool = Spool::open(output, job, resume)?;
    let position = spool.position();
    if resume && !quiet && position.rows > 0 {
        eprintln!("resuming after {} rows", position.rows);
    }
    let progress = Progress::new("embedding", Unit::Items("pairs"), quiet);
    if let Ok(total) = File::open(input)
        .map_err(ernie_vil::Error::from)
        .and_then(|f| count_rows(BufReader::with_capacity(1 << 18, f)))
    {
        progress.set_total(Some(total.min(options.limit.unwrap_or(u64::MAX))));
    }
    progress.start_at(position.rows);
    file.seek(SeekFrom::Start(position.offset))
        .with_context(|| name.clone())?;
    let reader = PairReader::resume(BufReader::with_capacity(1 << 18, file), position);
    let (start, before, times) = (Instant::now(), spool.rows(), Times::default());
    let ran = pipeline::run(model, reader, &name, options, &times, |batch| {
        progress.add((batch.ids.len() + batch.skipped.len()) as u64);
        spool.push(batch)
    });
    let elapsed = start.elapsed();
    drop(progress);
    // Also where the run broke off: what is done is done.
    spool.save()?;
    if let Err(error) = ran {
        if spool.rows() > 0 && !quiet {
            eprintln!(
                "note: {} rows are kept; --resume goes on after them",
                spool.rows()
            );
        }
        return Err(error);
    }

    let rows = spool.rows() as usize;
    let written = match format {
        VectorFormat::Text => write_text(&mut spool, output)?,
        VectorFormat::Safetensors => write_safetensors(&mut spool, output, rows, config)?,
        VectorFormat::Npy => write_npy(&mut spool, output, rows, config)?,
    };
    let list = beside(output, ".skipped.tsv");
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
        eprintln!(
            "{} rows were skipped; {} says which and why",
            spool.skipped().len(),
            list.display()
        );
    } else if options.on_error == OnError::Skip && list.exists() {
        // It would be an earlier run's.
        std::fs::remove_file(&list).with_context(|| list.display().to_string())?;
    }
    if !quiet {
        eprintln!(
            "{}",
            pipeline::summary(rows as u64 - before, "pairs", elapsed, &times)
        );
        for path in written {
            eprintln!("wrote {}", path.display());
        }
    }
    spool.remove()
}

fn write_text(spool: &mut Spool, output: &Path) -> Result<Vec<PathBuf>> {
    let mut writer = OutWriter::new(BufWriter::with_capacity(1 << 20, AtomicFile::create(output)?));
    spool.for_each(|_, text, image| Ok(writer.write(text, image)?))?;
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
    spool.for_each(|id, text, image| {
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
    spool.for_each(|id, text, image| {
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
