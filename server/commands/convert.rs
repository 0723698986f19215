//! `ernie-vil convert`: a checkpoint to a model folder.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use ernie_vil::native::folder::{
    CONFIG, IMAGE, LARGEST_CONFIG, LARGEST_VOCAB, MANIFEST, TEXT, VOCAB, parse_weights, read_config,
    read_manifest, tower_file,
};
use ernie_vil::native::{Progress as _, atomic_file, input};
use ernie_vil::text::Tokenizer;
use ernie_vil::weights::{
    Bits, Dtype, HashingWriter, Manifest, ManifestFile, Renamed, SafetensorsFile, Shard, TEMPERATURE,
    TensorSource, Together, image_config_from_json, infer_type_tables, infer_vision_config,
    text_config_from_original,
};
use ernie_vil::{ErnieConfig, ImageConfig, ModelConfig, ModelSource, Preprocessing, Published};
use sha2::{Digest, Sha256};

use crate::cli;
use crate::files;
use crate::print::{note, outln};
use crate::progress::{Progress, Unit};

pub fn run(args: &cli::Convert, global: &cli::Global) -> Result<()> {
    if let Some(folder) = &args.model {
        return repack(folder, args, global);
    }
    let ([first, ..], Some(text_config), Some(vocab)) = (&args.weights[..], &args.text_config, &args.vocab)
    else {
        bail!("--weights, --text-config and --vocab, or --model, have to be given");
    };
    let name = match &args.name {
        Some(name) => name.clone(),
        None => first
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    };
    let conversion = Conversion {
        name,
        published: args.release.map(Published::from),
        note: args.note.clone(),
        image: args.image_config.as_deref().map(image_config).transpose()?,
        text: self::text_config(text_config)?,
        weights: args
            .weights
            .iter()
            .map(|path| (path.clone(), file_name(path)))
            .collect(),
        vocab: (vocab.clone(), file_name(vocab)),
        target: &args.target,
        quiet: global.quiet,
    };
    conversion.run()
}

/// Packs a model folder anew: in another precision, in shards or whole.
fn repack(folder: &Path, args: &cli::Convert, global: &cli::Global) -> Result<()> {
    Conversion::check_target(&args.target)?;
    let mut config = read_config(folder)?;
    let manifest = read_manifest(folder)?;
    let vocab = input::read_regular(&folder.join(VOCAB), LARGEST_VOCAB)?;
    if let Some(name) = &args.name {
        config.name.clone_from(name);
    }
    if args.note.is_some() {
        config.note.clone_from(&args.note);
    }
    // Another preprocessing brings its own limit, as far as the position table reaches.
    if let Some(preprocessing) = args.target.preprocessing.map(Preprocessing::from)
        && preprocessing != config.preprocessing
    {
        config.preprocessing = preprocessing;
        config.max_text_tokens = preprocessing.max_text_tokens().min(config.text.max_positions);
    }
    if let Some(max_tokens) = args.target.max_tokens {
        config.max_text_tokens = max_tokens;
    }
    config.validate()?;
    let file = |name| tower_file(folder, &manifest, name);
    let (image, text) = (file(IMAGE)?, file(TEXT)?);
    let parse = |bytes, name: &str| {
        SafetensorsFile::parse(bytes).with_context(|| folder.join(name).display().to_string())
    };
    let (image, text) = (parse(&image, IMAGE)?, parse(&text, TEXT)?);
    let weights = Together(vec![&image, &text]);
    let output = &args.target.output;
    let pack = Pack::of(&args.target);
    write_folder(output, &weights, &mut config, &vocab, pack, global.quiet)
        .with_context(|| folder.display().to_string())?;
    outln!("{}: fingerprint {}", output.display(), config.fingerprint)
}

/// How a folder holds its weights.
#[derive(Clone, Copy)]
pub struct Pack {
    pub dtype: cli::Dtype,
    /// Largest size of a file of weights.
    pub shard_size: Option<u64>,
}

impl Pack {
    fn of(target: &cli::Target) -> Self {
        Self {
            dtype: target.dtype,
            shard_size: target.shard_size,
        }
    }
}

/// Everything that a model folder is made of.
pub struct Conversion<'a> {
    pub name: String,
    pub published: Option<Published>,
    pub note: Option<String>,
    /// Read off the weights where it is not given.
    pub image: Option<ImageConfig>,
    /// Whether it has tables of types is read off the weights.
    pub text: ErnieConfig,
    /// The checkpoint, or a file for each tower, each with what to call it.
    pub weights: Vec<(PathBuf, String)>,
    /// The vocabulary, likewise.
    pub vocab: (PathBuf, String),
    pub target: &'a cli::Target,
    pub quiet: bool,
}

impl Conversion<'_> {
    /// Checks what can be checked before a long download.
    pub fn check_target(target: &cli::Target) -> Result<()> {
        files::check_folder(&target.output, target.overwrite)
    }

    pub fn run(self) -> Result<()> {
        let (vocab, _) = &self.vocab;
        let output = &self.target.output;
        Self::check_target(self.target)?;
        let vocab_bytes = input::read(vocab, LARGEST_VOCAB)?;
        Tokenizer::parse(&vocab_bytes, self.text.vocab_size).with_context(|| vocab.display().to_string())?;

        let names: Vec<_> = self
            .weights
            .iter()
            .map(|(path, _)| path.display().to_string())
            .collect();
        let in_weights = || names.join(" and ");
        let mut mapped = Vec::new();
        for (path, _) in &self.weights {
            ensure!(
                !path.is_dir(),
                "{} is a folder, expected a file of weights, such as a .pdparams in it",
                path.display()
            );
            mapped.push(input::map_spooled(path, &std::env::temp_dir())?);
        }
        let mut files = Vec::new();
        for (bytes, name) in mapped.iter().zip(&names) {
            files.push(parse_weights(bytes).with_context(|| name.clone())?);
        }
        let renamed: Vec<_> = files.iter().map(|file| Renamed::new(&**file)).collect();
        let checkpoint = Together(renamed.iter().map(|file| file as &dyn TensorSource).collect());
        let image = match self.image {
            Some(image) => image,
            None => infer_vision_config(&checkpoint).with_context(in_weights)?.into(),
        };
        let mut text = self.text;
        infer_type_tables(&mut text, &checkpoint).with_context(in_weights)?;
        let mut sources = Vec::new();
        // Of the bytes at hand: a stream cannot be read again.
        for ((_, name), bytes) in self.weights.iter().zip(&mapped) {
            sources.push(source_of(name, bytes));
        }
        sources.push(source_of(&self.vocab.1, &vocab_bytes));
        let preprocessing = self
            .target
            .preprocessing
            .map_or_else(Preprocessing::default, From::from);
        let most_tokens = preprocessing.max_text_tokens().min(text.max_positions);
        let mut config = ModelConfig {
            format: ModelConfig::FORMAT,
            name: self.name,
            published: self.published,
            note: self.note,
            image,
            text,
            preprocessing,
            max_text_tokens: self.target.max_tokens.unwrap_or(most_tokens),
            logit_scale: logit_scale(&checkpoint).with_context(in_weights)?,
            fingerprint: String::new(),
            sources,
        };
        config.validate()?;

        let pack = Pack::of(self.target);
        let extra = write_folder(output, &checkpoint, &mut config, &vocab_bytes, pack, self.quiet)
            .with_context(in_weights)?;
        if !self.quiet {
            for name in extra.iter().filter(|name| *name != TEMPERATURE) {
                note!("note: {name:?} is not used by inference and was left out");
            }
            for source in &config.sources {
                note!("{}  {} ({} bytes)", source.sha256, source.file, source.size);
            }
        }
        outln!("{}: fingerprint {}", output.display(), config.fingerprint)
    }
}

/// Writes a model folder, which appears under its name only when it is complete and replaces what had it.
/// Sets the configuration's fingerprint, and returns the names of the tensors that were left out.
pub fn write_folder(
    output: &Path,
    weights: &dyn TensorSource,
    config: &mut ModelConfig,
    vocab: &[u8],
    pack: Pack,
    quiet: bool,
) -> Result<Vec<String>> {
    atomic_file::write_folder(output, |folder| {
        write(folder, weights, config, vocab, pack, quiet)
    })
}

/// Writes the folder's files and returns the names of the tensors that were left out.
fn write(
    folder: &Path,
    weights: &dyn TensorSource,
    config: &mut ModelConfig,
    vocab: &[u8],
    pack: Pack,
    quiet: bool,
) -> Result<Vec<String>> {
    let progress = Progress::new("converting", Unit::Bytes, quiet);
    let (dtype, sixteenths) = match pack.dtype {
        cli::Dtype::F32 => (Dtype::F32, 64),
        cli::Dtype::F16 => (Dtype::F16, 32),
        cli::Dtype::Int8 => (Dtype::Quantised(Bits::Int8), 16),
        // A scale of two bytes for 32 weights.
        cli::Dtype::Int4 => (Dtype::Quantised(Bits::Int4), 9),
    };
    progress.set_total(Some(
        (config.image.parameters() + config.text.parameters()) * sixteenths / 16,
    ));
    let create = |name: &'static str, shard_size| {
        let output = Output {
            folder,
            name,
            shard_size,
            shards: Vec::new(),
            open: None,
            progress: &progress,
        };
        HashingWriter::new(BufWriter::with_capacity(1 << 20, output))
    };
    let finish = |writer: HashingWriter<BufWriter<Output<'_>>>, name: &str| -> Result<ManifestFile> {
        let writing = || format!("writing {name}");
        let (writer, mut entry) = writer.finish(name);
        let output = writer.into_inner().map_err(|error| error.into_error());
        entry.shards = output.and_then(Output::finish).with_context(writing)?;
        Ok(entry)
    };
    let (mut image, mut text) = (create(IMAGE, pack.shard_size), create(TEXT, pack.shard_size));
    let converted = ernie_vil::weights::convert(
        weights,
        &config.image,
        &config.text,
        config.preprocessing,
        dtype,
        &mut image,
        &mut text,
    )?;
    config.fingerprint = converted.fingerprint;
    let mut files = vec![finish(image, IMAGE)?, finish(text, TEXT)?];
    for (name, bytes) in [(CONFIG, config.to_json().as_bytes()), (VOCAB, vocab)] {
        let mut writer = create(name, None);
        writer
            .write_all(bytes)
            .with_context(|| format!("writing {name}"))?;
        files.push(finish(writer, name)?);
    }
    let manifest = Manifest {
        format: Manifest::FORMAT,
        files,
    };
    fs::write(folder.join(MANIFEST), manifest.to_json()).context("writing the manifest")?;
    Ok(converted.extra)
}

/// A file of the folder, or the shards that stand for it; its bytes show on the progress bar.
struct Output<'a> {
    folder: &'a Path,
    name: &'a str,
    shard_size: Option<u64>,
    /// Those that are complete.
    shards: Vec<Shard>,
    /// The file being written, and its bytes so far.
    open: Option<(HashingWriter<File>, u64)>,
    progress: &'a Progress,
}

impl Output<'_> {
    /// Completes the file being written.
    fn close(&mut self) -> io::Result<()> {
        let Some((writer, _)) = self.open.take() else {
            return Ok(());
        };
        let (file, entry) = writer.finish(self.file_name());
        file.sync_all()?;
        self.shards.push(Shard {
            name: entry.name,
            size: entry.size,
            sha256: entry.sha256,
        });
        Ok(())
    }

    /// The name of the file being written.
    fn file_name(&self) -> String {
        match self.shard_size {
            Some(_) => format!("{}.{:03}", self.name, self.shards.len()),
            None => self.name.to_owned(),
        }
    }

    /// The shards, where it is in shards.
    fn finish(mut self) -> io::Result<Vec<Shard>> {
        self.close()?;
        Ok(match self.shard_size {
            Some(_) => self.shards,
            None => Vec::new(),
        })
    }
}

impl Write for Output<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let most = self.shard_size.unwrap_or(u64::MAX);
        if self.open.as_ref().is_some_and(|(_, size)| *size == most) {
            self.close()?;
        }
        if self.open.is_none() {
            let file = File::create(self.folder.join(self.file_name()))?;
            self.open = Some((HashingWriter::new(file), 0));
        }
        let Some((writer, size)) = &mut self.open else {
            unreachable!("a file was opened");
        };
        let room = usize::try_from(most - *size).unwrap_or(usize::MAX);
        let written = writer.write(&buffer[..buffer.len().min(room)])?;
        *size += written as u64;
        self.progress.add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What cosines are multiplied by before a softmax, where the weights have it.
pub fn logit_scale(weights: &dyn TensorSource) -> Result<Option<f64>> {
    if weights.shape(TEMPERATURE).is_none() {
        return Ok(None);
    }
    match *weights.read(TEMPERATURE)?.into_f32() {
        [temperature] => Ok(Some(f64::from(temperature).exp())),
        ref values => bail!("{TEMPERATURE} has {} values, expected 1", values.len()),
    }
}

/// A file's size and SHA-256.
pub fn source(path: &Path, name: &str) -> Result<ModelSource> {
    let mut file = input::open_regular(path)?;
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = file
            .read(&mut buffer)
            .with_context(|| format!("reading {}", path.display()))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        size += read as u64;
    }
    Ok(ModelSource {
        file: name.to_owned(),
        size,
        sha256: format!("{:x}", hash.finalize()),
    })
}

/// The size and SHA-256 of a file that was read.
fn source_of(name: &str, bytes: &[u8]) -> ModelSource {
    ModelSource {
        file: name.to_owned(),
        size: bytes.len() as u64,
        sha256: format!("{:x}", Sha256::digest(bytes)),
    }
}

pub fn text_config(path: &Path) -> Result<ErnieConfig> {
    text_config_from_original(&input::read(path, LARGEST_CONFIG)?).with_context(|| path.display().to_string())
}

pub fn image_config(path: &Path) -> Result<ImageConfig> {
    image_config_from_json(&input::read(path, LARGEST_CONFIG)?).with_context(|| path.display().to_string())
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

impl From<cli::Preprocessing> for Preprocessing {
    fn from(preprocessing: cli::Preprocessing) -> Self {
        match preprocessing {
            cli::Preprocessing::Original => Self::Original,
            cli::Preprocessing::Paddlenlp => Self::PaddleNlp,
        }
    }
}

impl From<cli::Release> for Published {
    fn from(release: cli::Release) -> Self {
        match release {
            cli::Release::Open => Published::Open,
            cli::Release::First => Published::First,
        }
    }
}
