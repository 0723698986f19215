//! `ernie-vil convert`: a checkpoint to a model folder.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ernie_vil::weights::{
    Checkpoint, Dtype, HashingWriter, Manifest, ManifestFile, TensorSource, infer_vision_config,
    text_config_from_original, vision_config_from_original,
};
use ernie_vil::{ErnieConfig, ModelConfig, ModelSource, Preprocessing, Published, VitConfig};
use sha2::{Digest, Sha256};

use crate::atomic_file;
use crate::cli;
use crate::model::{self, CONFIG, IMAGE, MANIFEST, TEXT, VOCAB};
use crate::progress::{Progress, Unit};

pub fn run(args: &cli::Convert, global: &cli::Global) -> Result<()> {
    let text = text_config(&args.text_config)?;
    let image = args.image_config.as_deref().map(image_config).transpose()?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => args
            .weights
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    };
    let sources = [
        (args.weights.clone(), file_name(&args.weights)),
        (args.vocab.clone(), file_name(&args.vocab)),
    ];
    let conversion = Conversion {
        name,
        published: args.release.map(Published::from),
        image,
        text,
        sources,
        target: &args.target,
        quiet: global.quiet,
    };
    conversion.run()
}

/// Everything that a model folder is made of.
pub struct Conversion<'a> {
    pub name: String,
    pub published: Option<Published>,
    /// Read off the weights where it is not given.
    pub image: Option<VitConfig>,
    pub text: ErnieConfig,
    /// The checkpoint and the vocabulary, each with what to call it.
    pub sources: [(PathBuf, String); 2],
    pub target: &'a cli::Target,
    pub quiet: bool,
}

impl Conversion<'_> {
    /// Checks what can be checked before a long download.
    pub fn check_target(target: &cli::Target) -> Result<()> {
        let output = &target.output;
        ensure!(
            target.overwrite || !output.exists(),
            "{} is there already; --overwrite replaces it",
            output.display()
        );
        // Only what looks like a model folder is ever removed.
        ensure!(
            !output.exists() || output.join(CONFIG).is_file() || is_empty_folder(output),
            "{} is not a model folder, so it is not replaced",
            output.display()
        );
        Ok(())
    }

    pub fn run(self) -> Result<()> {
        let [(weights, weights_name), (vocab, vocab_name)] = &self.sources;
        let output = &self.target.output;
        Self::check_target(self.target)?;
        let vocab_bytes = model::read(vocab, model::LARGEST_VOCAB)?;
        model::tokenizer(&vocab_bytes, &self.text).with_context(|| vocab.display().to_string())?;

        let mapped = model::map(weights)?;
        let in_weights = || weights.display().to_string();
        let checkpoint = Checkpoint::parse(&mapped).with_context(in_weights)?;
        let image = match self.image {
            Some(image) => image,
            None => infer_vision_config(&checkpoint).with_context(in_weights)?,
        };
        let mut config = ModelConfig {
            format: ModelConfig::FORMAT,
            name: self.name,
            published: self.published,
            image,
            text: self.text,
            preprocessing: Preprocessing::Original,
            max_text_tokens: self.target.max_tokens,
            fingerprint: String::new(),
            sources: vec![source(weights, weights_name)?, source(vocab, vocab_name)?],
        };
        config.validate()?;

        let dtype = self.target.dtype;
        let extra = write_folder(output, &checkpoint, &mut config, &vocab_bytes, dtype, self.quiet)
            .with_context(in_weights)?;
        if !self.quiet {
            for name in extra {
                eprintln!("note: {name:?} is not used by inference and was left out");
            }
            for source in &config.sources {
                eprintln!("{}  {} ({} bytes)", source.sha256, source.file, source.size);
            }
        }
        println!("{}: fingerprint {}", output.display(), config.fingerprint);
        Ok(())
    }
}

/// Writes a model folder, which appears under its name only when it is complete and replaces what had it.
/// Sets the configuration's fingerprint, and returns the names of the tensors that were left out.
pub fn write_folder(
    output: &Path,
    weights: &dyn TensorSource,
    config: &mut ModelConfig,
    vocab: &[u8],
    dtype: cli::Dtype,
    quiet: bool,
) -> Result<Vec<String>> {
    atomic_file::write_folder(output, |folder| {
        write(folder, weights, config, vocab, dtype, quiet)
    })
}

/// Writes the folder's files and returns the names of the tensors that were left out.
fn write(
    folder: &Path,
    weights: &dyn TensorSource,
    config: &mut ModelConfig,
    vocab: &[u8],
    dtype: cli::Dtype,
    quiet: bool,
) -> Result<Vec<String>> {
    let progress = Progress::new("converting", Unit::Bytes, quiet);
    let bytes = match dtype {
        cli::Dtype::F32 => 4,
        cli::Dtype::F16 => 2,
    };
    let values = |expected: Vec<(String, Vec<usize>)>| -> usize {
        expected
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    };
    let values = values(ernie_vil::weights::image_tensors(&config.image))
        + values(ernie_vil::weights::text_tensors(&config.text));
    progress.set_total(Some((values * bytes) as u64));
    let create = |name: &str| -> Result<HashingWriter<BufWriter<Counted<'_>>>> {
        let file = File::create(folder.join(name)).with_context(|| format!("creating {name}"))?;
        let counted = Counted {
            file,
            progress: &progress,
        };
        Ok(HashingWriter::new(BufWriter::with_capacity(1 << 20, counted)))
    };
    let finish = |writer: HashingWriter<BufWriter<Counted<'_>>>, name: &str| -> Result<ManifestFile> {
        let (writer, entry) = writer.finish(name);
        let counted = writer.into_inner().map_err(|error| error.into_error());
        let counted = counted.with_context(|| format!("writing {name}"))?;
        counted
            .file
            .sync_all()
            .with_context(|| format!("writing {name}"))?;
        Ok(entry)
    };
    let (mut image, mut text) = (create(IMAGE)?, create(TEXT)?);
    let dtype = match dtype {
        cli::Dtype::F32 => Dtype::F32,
        cli::Dtype::F16 => Dtype::F16,
    };
    let converted =
        ernie_vil::weights::convert(weights, &config.image, &config.text, dtype, &mut image, &mut text)?;
    config.fingerprint = converted.fingerprint;
    let mut files = vec![finish(image, IMAGE)?, finish(text, TEXT)?];
    for (name, bytes) in [(CONFIG, config.to_json().as_bytes()), (VOCAB, vocab)] {
        let mut writer = create(name)?;
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

/// A file whose bytes show on the progress bar.
struct Counted<'a> {
    file: File,
    progress: &'a Progress,
}

impl Write for Counted<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.progress.add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// A file's size and SHA-256.
pub fn source(path: &Path, name: &str) -> Result<ModelSource> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
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

pub fn text_config(path: &Path) -> Result<ErnieConfig> {
    text_config_from_original(&model::read(path, model::LARGEST_CONFIG)?)
        .with_context(|| path.display().to_string())
}

pub fn image_config(path: &Path) -> Result<VitConfig> {
    vision_config_from_original(&model::read(path, model::LARGEST_CONFIG)?)
        .with_context(|| path.display().to_string())
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn is_empty_folder(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

impl From<cli::Release> for Published {
    fn from(release: cli::Release) -> Self {
        match release {
            cli::Release::Open => Published::Open,
            cli::Release::First => Published::First,
        }
    }
}
