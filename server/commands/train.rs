//! `ernie-vil train`: from pairs and a configuration to a model folder.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use ernie_vil::image::Preprocessor;
use ernie_vil::native::atomic_file::{self, AtomicFile};
use ernie_vil::native::folder::{
    IMAGE, LARGEST_CONFIG, LARGEST_VOCAB, TEXT, VOCAB, read_config, read_manifest, tower_file,
};
use ernie_vil::native::images::ImageLimits;
use ernie_vil::native::model::ranks;
use ernie_vil::native::pipeline::{self, OnError, Options, Times};
use ernie_vil::native::{self, Model, Progress as _, input};
use ernie_vil::pairs::PairReader;
use ernie_vil::recall::{self, Report};
use ernie_vil::text::Tokenizer;
use ernie_vil::train::{self, StepReport, Trainer};
use ernie_vil::weights::{Dtype, RandomWeights, SafetensorsFile, TensorSource, Together, write_safetensors};
use ernie_vil::{ModelConfig, Preprocessing};
use serde::{Deserialize, Serialize};

use super::train_config::{Precision, TrainConfig};
use super::train_data::{Batches, TrainData};
use super::{convert, plot};
use crate::cli;
use crate::files::{self, Files};
use crate::images;
use crate::print::{note, outln};
use crate::progress::{Progress, Unit};

/// The parts of a run's folder.
const CHECKPOINT: &str = "checkpoint";
const METRICS: &str = "metrics.jsonl";
const CURVES: &str = "curves.svg";
const MODEL: &str = "model";
/// The parts of a checkpoint.
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.bin";
const STATE: &str = "state.json";
/// An optimizer's state larger than this is none.
const LARGEST_STATE: u64 = 1 << 36;

/// What a checkpoint says of itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: u32,
    step: u64,
    config: TrainConfig,
}

/// A line of the metrics file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// A step.
    Train {
        step: u64,
        loss: f32,
        terms: Vec<(String, f32)>,
        gradient_norm: f32,
        learning_rate: f64,
        scale: f32,
        /// Pairs a second since the run was started, everything included.
        pairs_per_second: f64,
    },
    /// Recall on the validation file, in percent.
    Validation {
        step: u64,
        text_to_image: [f64; 3],
        image_to_text: [f64; 3],
        mean: f64,
    },
}

pub fn run(args: &cli::Train, global: &cli::Global) -> Result<()> {
    let config = TrainConfig::read(&args.config)?;
    files(&config, &args.config).check()?;
    let run = Run::prepare(config, args, global)?;
    run.train()
}

/// What a run reads and writes.
fn files(config: &TrainConfig, path: &Path) -> Files {
    let mut files = Files::default();
    files
        .reads(path)
        .reads(&config.train_file)
        .may_read(config.validation_file.as_deref())
        .may_read(config.model.as_ref().map(|fresh| fresh.vocab_file.as_path()));
    if let Some(folder) = &config.init_from {
        files.reads_model(folder);
    }
    for name in [METRICS, CURVES] {
        files.writes(&config.output.join(name));
    }
    for name in [CHECKPOINT, MODEL] {
        files.writes_folder(&config.output.join(name));
    }
    files
}

/// Checks that the run replaces nothing unasked. A run that goes on replaces what is its own.
fn check_output(output: &Path, args: &cli::Train) -> Result<()> {
    let (checkpoint, model) = (output.join(CHECKPOINT), output.join(MODEL));
    let goes_on = args.resume && checkpoint.exists();
    let replaces = args.overwrite || goes_on;
    ensure!(
        replaces || !checkpoint.exists(),
        "{} is there already; --resume goes on from it, --overwrite starts anew without it",
        checkpoint.display()
    );
    if !goes_on {
        files::check_only(&checkpoint, "a checkpoint", &[WEIGHTS, OPTIMIZER, STATE])?;
    }
    // A run that is cut off before its first checkpoint leaves nothing but its metrics, which are empty
    // before the first step.
    let metrics = output.join(METRICS);
    let is_empty = fs::metadata(&metrics).is_ok_and(|metadata| metadata.len() == 0);
    files::check_free(&[metrics], replaces || args.resume || is_empty)?;
    files::check_free(&[output.join(CURVES)], replaces)?;
    files::check_folder(&model, replaces)
}

/// Where training computes.
fn training_device(device: native::Device, precision: Precision) -> Result<Device> {
    match device {
        native::Device::Cpu if precision != Precision::F32 => bail!(
            "precision bf16 on the CPU, expected f32: its kernels compute in single precision (--device flex does as a \
             card would)"
        ),
        native::Device::Cpu | native::Device::Flex => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        native::Device::Cuda(number) => {
            native::cuda::prepare(number)?;
            Ok(Device::cuda(number))
        }
        other => bail!("training does not run on {other}, expected cpu, cuda or flex"),
    }
}

struct Run<'a> {
    config: TrainConfig,
    global: &'a cli::Global,
    limits: ImageLimits,
    device: native::Device,
    data: TrainData,
    /// The validation file.
    validation: Option<File>,
    tokenizer: Tokenizer,
    vocab: Vec<u8>,
    model: ModelConfig,
    trainer: Trainer,
    steps: u64,
}

impl<'a> Run<'a> {
    fn prepare(config: TrainConfig, args: &cli::Train, global: &'a cli::Global) -> Result<Self> {
        let (resume, device) = (args.resume, training_device(args.device, config.precision)?);
        let data = TrainData::open(&config.train_file)?;
        ensure!(
            data.rows() >= config.batch_size,
            "batch_size is {}, but {} has {} rows",
            config.batch_size,
            config.train_file.display(),
            data.rows()
        );
        let checkpoint = config.output.join(CHECKPOINT);
        atomic_file::restore_folder(&checkpoint)?;
        check_output(&config.output, args)?;
        let validation = config
            .validation_file
            .as_deref()
            .map(|path| input::spooled(path, &std::env::temp_dir()))
            .transpose()?;
        let (vocab, model) = start(&config)?;
        let tokenizer = Tokenizer::parse(&vocab, model.text.vocab_size)?;
        let steps = config.total_steps(data.rows());
        let settings = config.settings(steps, args.device == native::Device::Flex);
        let new = |source: &dyn TensorSource| Trainer::new(source, model.clone(), settings, &device);
        let trainer = if resume && checkpoint.exists() {
            let path = checkpoint.join(STATE);
            let state: State = serde_json::from_slice(&input::read_regular(&path, LARGEST_CONFIG)?)
                .with_context(|| path.display().to_string())?;
            ensure!(
                state.format == 1,
                "{}: format {}, expected 1",
                path.display(),
                state.format
            );
            // Only where it writes and how long it runs may be another.
            let mut same = state.config.clone();
            (same.output, same.steps, same.epochs) = (config.output.clone(), config.steps, config.epochs);
            (same.validate_every, same.checkpoint_every) = (config.validate_every, config.checkpoint_every);
            ensure!(
                same == config,
                "{}: the checkpoint was made with another configuration, so the run would not be the same; choose \
                 another output",
                checkpoint.display()
            );
            let path = checkpoint.join(WEIGHTS);
            let mapped = input::map(&path)?;
            let weights = SafetensorsFile::parse(&mapped).with_context(|| path.display().to_string())?;
            let path = checkpoint.join(OPTIMIZER);
            new(&weights)?
                .resume(state.step, input::read_regular(&path, LARGEST_STATE)?)
                .with_context(|| path.display().to_string())?
        } else if let Some(folder) = &config.init_from {
            let manifest = read_manifest(folder)?;
            let file = |name| tower_file(folder, &manifest, name);
            let (image, text) = (file(IMAGE)?, file(TEXT)?);
            new(&Together(vec![
                &SafetensorsFile::parse(&image)?,
                &SafetensorsFile::parse(&text)?,
            ]))
            .with_context(|| folder.display().to_string())?
        } else {
            new(&RandomWeights::new(&model.image, &model.text, config.seed))?
        };
        Ok(Self {
            config,
            global,
            limits: images::limits(&args.limits),
            device: args.device,
            data,
            validation,
            tokenizer,
            vocab,
            model,
            trainer,
            steps,
        })
    }

    fn train(self) -> Result<()> {
        let output = self.config.output.clone();
        fs::create_dir_all(&output).with_context(|| format!("creating {}", output.display()))?;
        let first = self.trainer.steps();
        let checkpoint = output.join(CHECKPOINT);
        if first == 0 && checkpoint.exists() {
            // With --overwrite. Left there, it would pass for this run's until this run has one.
            fs::remove_dir_all(&checkpoint).with_context(|| format!("removing {}", checkpoint.display()))?;
        }
        let mut metrics = Metrics::open(&output.join(METRICS), first)?;
        let every = (self.steps / 20).max(1);
        let validate_every = self.config.validate_every.unwrap_or(every);
        let checkpoint_every = self.config.checkpoint_every.unwrap_or(every);
        if !self.global.quiet {
            let values: usize = train::tensors(&self.model)
                .iter()
                .map(|(_, shape)| shape.iter().product::<usize>())
                .sum();
            note!(
                "{}: {} pairs, {} steps of {} pairs, {values} parameters{}",
                self.config.name,
                self.data.rows(),
                self.steps,
                self.config.batch_size,
                match first {
                    0 => String::new(),
                    step => format!(", going on after step {step}"),
                }
            );
        }
        let progress = Progress::new("training", Unit::Items("steps"), self.global.quiet);
        progress.set_total(Some(self.steps));
        progress.start_at(first);
        let mut trainer = self.trainer;
        let config = &self.config;
        let batches = Batches {
            data: &self.data,
            tokenizer: &self.tokenizer,
            config,
            preprocessor: Preprocessor::of(&self.model),
            max_text_tokens: self.model.max_text_tokens,
            limits: self.limits,
        };
        let (start, mut recall) = (Instant::now(), String::new());
        let names: Vec<String> = config.pairs.iter().map(|pair| pair.name()).collect();
        batches.run(first, self.steps, |batches| {
            for batch in batches {
                let report = trainer.step(&batch?)?;
                let done = (report.step - first) * config.batch_size as u64;
                let rate = done as f64 / start.elapsed().as_secs_f64();
                metrics.write(train_metric(&report, &names, rate))?;
                progress.add(1);
                progress.note(&format!("loss {:.4}{recall}", report.loss));
                let is_last = report.step == self.steps;
                if let (Some(path), Some(file)) = (&config.validation_file, &self.validation)
                    && (is_last || report.step % validate_every == 0)
                {
                    let weights = trainer.weights();
                    let sources: [&dyn TensorSource; 2] = [&weights, &weights];
                    let devices = [self.device.into()];
                    let model = Model::from_parts(self.model.clone(), &self.vocab, sources, &devices)?;
                    let metric = validate(&model, file, path, report.step, self.limits)?;
                    if let Metric::Validation { mean, .. } = metric {
                        recall = format!(", recall {mean:.2} %");
                        if !self.global.quiet {
                            progress.print(format!(
                                "step {}: loss {:.4}, mean recall {mean:.2} %, {rate:.0} pairs/s",
                                report.step, report.loss
                            ));
                        }
                    }
                    metrics.write(metric)?;
                }
                if is_last || report.step % checkpoint_every == 0 {
                    save(&trainer, &self.model, config)?;
                    metrics.plot(&output.join(CURVES), &config.name)?;
                }
            }
            Ok(())
        })?;
        drop(progress);
        let folder = output.join(MODEL);
        let mut model = self.model;
        model.logit_scale = Some(f64::from(trainer.scale()));
        convert::write_folder(
            &folder,
            &trainer.weights(),
            &mut model,
            &self.vocab,
            convert::Pack {
                dtype: cli::Dtype::F16,
                shard_size: None,
            },
            true,
        )?;
        outln!("{}: fingerprint {}", folder.display(), model.fingerprint)
    }
}

/// The vocabulary and the sizes of the model to train.
fn start(config: &TrainConfig) -> Result<(Vec<u8>, ModelConfig)> {
    if let Some(folder) = &config.init_from {
        let model = ModelConfig {
            name: config.name.clone(),
            published: None,
            note: config.note.clone(),
            sources: Vec::new(),
            ..read_config(folder)?
        };
        let vocab = input::read_regular(&folder.join(VOCAB), LARGEST_VOCAB)?;
        return Ok((vocab, model));
    }
    let fresh = config.model.as_ref().context("neither init_from nor model")?;
    let model = ModelConfig {
        format: ModelConfig::FORMAT,
        name: config.name.clone(),
        published: None,
        note: config.note.clone(),
        image: fresh.image.clone(),
        text: fresh.text.clone(),
        preprocessing: Preprocessing::Original,
        max_text_tokens: fresh.max_text_tokens,
        logit_scale: None,
        fingerprint: String::new(),
        sources: Vec::new(),
    };
    model.validate()?;
    Ok((input::read(&fresh.vocab_file, LARGEST_VOCAB)?, model))
}

fn train_metric(report: &StepReport, names: &[String], pairs_per_second: f64) -> Metric {
    Metric::Train {
        step: report.step,
        loss: report.loss,
        terms: names.iter().cloned().zip(report.terms.iter().copied()).collect(),
        gradient_norm: report.gradient_norm,
        learning_rate: report.learning_rate,
        scale: report.scale,
        pairs_per_second,
    }
}

/// Recall of the weights as they are now, by the towers that inference uses.
fn validate(model: &Model, mut file: &File, path: &Path, step: u64, limits: ImageLimits) -> Result<Metric> {
    let name = path.display().to_string();
    file.rewind().with_context(|| name.clone())?;
    let file = BufReader::with_capacity(1 << 18, file);
    let options = Options {
        batch_size: 64,
        on_error: OnError::Stop,
        limit: None,
        images_only: false,
        // Once more and again in a run.
        warm_up: false,
        limits,
    };
    let reader = PairReader::new(file);
    let all = pipeline::embed_all(model, reader, &name, &options, &Times::default(), |_| ())?;
    let (ranks, _) = ranks(model, &all.text, &all.image)?;
    let figures = Report::new(&ranks)?.figures();
    let direction = |r: recall::Recall| [r.r1 * 100.0, r.r5 * 100.0, r.r10 * 100.0];
    Ok(Metric::Validation {
        step,
        text_to_image: direction(figures.text_to_image),
        image_to_text: direction(figures.image_to_text),
        mean: figures.mean.mean * 100.0,
    })
}

/// Writes the checkpoint, which takes the earlier one's place only when it is complete.
fn save(trainer: &Trainer, model: &ModelConfig, config: &TrainConfig) -> Result<()> {
    let folder = config.output.join(CHECKPOINT);
    let fill = |part: &Path| {
        let file = |name: &str, write: &dyn Fn(&mut File) -> Result<()>| -> Result<()> {
            let mut file = File::create(part.join(name)).with_context(|| name.to_owned())?;
            write(&mut file)
                .and_then(|()| Ok(file.sync_all()?))
                .with_context(|| name.to_owned())
        };
        let weights = trainer.weights();
        file(WEIGHTS, &|file| {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            write_safetensors(&mut out, &weights, &train::tensors(model), Dtype::F32)?;
            Ok(out.flush()?)
        })?;
        let state = trainer.optimizer_state()?;
        file(OPTIMIZER, &|file| Ok(file.write_all(&state)?))?;
        let state = State {
            format: 1,
            step: trainer.steps(),
            config: config.clone(),
        };
        file(STATE, &|file| {
            Ok(file.write_all(&serde_json::to_vec_pretty(&state)?)?)
        })
    };
    atomic_file::write_folder(&folder, fill).with_context(|| {
        format!(
            "saving the checkpoint of step {} to {} (an earlier one stays as it was)",
            trainer.steps(),
            folder.display()
        )
    })
}

/// The metrics file, and what it holds.
struct Metrics {
    path: PathBuf,
    out: File,
    all: Vec<Metric>,
}

impl Metrics {
    /// Goes on with the lines up to step `first`.
    fn open(path: &Path, first: u64) -> Result<Self> {
        let place = || path.display().to_string();
        let mut all = Vec::new();
        if first > 0 && path.exists() {
            for (i, line) in BufReader::new(File::open(path).with_context(place)?)
                .lines()
                .enumerate()
            {
                let line = line.with_context(place)?;
                // A run that was cut off may have left half a line.
                let Ok(metric) = serde_json::from_str::<Metric>(&line) else {
                    break;
                };
                let (Metric::Train { step, .. } | Metric::Validation { step, .. }) = &metric;
                ensure!(
                    *step as usize <= i + 2 || i > 0,
                    "{}: not a metrics file",
                    place()
                );
                if *step > first {
                    break;
                }
                all.push(metric);
            }
        }
        let mut rewritten = AtomicFile::create(path)?;
        for metric in &all {
            serde_json::to_writer(&mut rewritten, metric)?;
            rewritten.write_all(b"\n").with_context(place)?;
        }
        rewritten.commit()?;
        let out = OpenOptions::new().append(true).open(path).with_context(place)?;
        Ok(Self {
            path: path.to_owned(),
            out,
            all,
        })
    }

    fn write(&mut self, metric: Metric) -> Result<()> {
        let mut line = serde_json::to_vec(&metric)?;
        line.push(b'\n');
        // One write a line: whoever follows the file sees whole lines.
        self.out
            .write_all(&line)
            .with_context(|| self.path.display().to_string())?;
        self.all.push(metric);
        Ok(())
    }

    fn plot(&self, path: &Path, title: &str) -> Result<()> {
        let mut loss = Vec::new();
        let mut recall = Vec::new();
        for metric in &self.all {
            match metric {
                Metric::Train {
                    step, loss: value, ..
                } => loss.push((*step as f64, f64::from(*value))),
                Metric::Validation { step, mean, .. } => recall.push((*step as f64, *mean)),
            }
        }
        if loss.is_empty() {
            bail!("no step was taken");
        }
        let svg = plot::curves(title, &loss, &recall)?;
        let mut file = AtomicFile::create(path)?;
        file.write_all(svg.as_bytes())
            .with_context(|| path.display().to_string())?;
        Ok(file.commit()?)
    }
}
