//! The files of a model folder on the disk.

use std::fs;
use std::ops::Deref;
use std::path::Path;

use super::Result;
use super::error::{Context, bail, ensure};
use super::input::{FileBytes, map, read_regular};
use crate::ModelConfig;
use crate::text::Tokenizer;
use crate::weights::{Checkpoint, Manifest, ManifestFile, SafetensorsFile, TensorSource};

/// The name of the configuration.
pub const CONFIG: &str = "config.json";
/// The name of the vocabulary.
pub const VOCAB: &str = "vocab.txt";
/// The name of the image tower's weights.
pub const IMAGE: &str = "image.safetensors";
/// The name of the text tower's weights.
pub const TEXT: &str = "text.safetensors";
/// The name of the manifest.
pub const MANIFEST: &str = "manifest.json";

/// A configuration or manifest of more bytes is none.
pub const LARGEST_CONFIG: u64 = 1 << 20;
/// A vocabulary of more bytes is none; the published one has 416 kB.
pub const LARGEST_VOCAB: u64 = 64 << 20;

/// Reads the configuration of a model folder.
///
/// # Errors
/// Where the folder has none, or one that is not valid.
pub fn read_config(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join(CONFIG);
    let json = read_regular(&path, LARGEST_CONFIG).with_context(|| {
        format!(
            "{} is not a model folder (`ernie-vil convert` makes one)",
            folder.display()
        )
    })?;
    ModelConfig::from_json(&json).with_context(|| path.display().to_string())
}

/// Reads the manifest of a model folder.
///
/// # Errors
/// Where the folder has none, or one that is not valid.
pub fn read_manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST);
    Manifest::from_json(&read_regular(&path, LARGEST_CONFIG)?).with_context(|| path.display().to_string())
}

/// Reads the vocabulary of a model folder.
///
/// # Errors
/// Where the folder has none, or one that is not the configuration's.
pub(crate) fn read_tokenizer(folder: &Path, config: &ModelConfig) -> Result<Tokenizer> {
    let path = folder.join(VOCAB);
    Tokenizer::parse(&read_regular(&path, LARGEST_VOCAB)?, config.text.vocab_size)
        .with_context(|| path.display().to_string())
}

/// The bytes of a tower's file.
#[derive(Debug)]
pub enum TowerFile {
    /// Of one file.
    Whole(FileBytes),
    /// Put together from its shards.
    Joined(Vec<u8>),
}

impl Deref for TowerFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Joined(bytes) => bytes,
        }
    }
}

/// Opens the file `name` of a folder ([`IMAGE`] or [`TEXT`]), be it there whole or in shards. Large files are
/// mapped.
///
/// # Errors
/// Where one of the files cannot be read.
pub fn tower_file(folder: &Path, manifest: &Manifest, name: &str) -> Result<TowerFile> {
    match manifest.file(name).map_or(&[][..], |file| &file.shards) {
        [] => Ok(TowerFile::Whole(map(&folder.join(name))?)),
        shards => {
            let mut bytes = Vec::new();
            for shard in shards {
                bytes.extend_from_slice(&map(&folder.join(&shard.name))?);
            }
            Ok(TowerFile::Joined(bytes))
        }
    }
}

/// Takes a file of weights apart: a checkpoint of Paddle's, or safetensors.
///
/// # Errors
/// Those of [`Checkpoint::parse`] and [`SafetensorsFile::parse`].
pub fn parse_weights(bytes: &[u8]) -> crate::Result<Box<dyn TensorSource + '_>> {
    // A safetensors file starts with its header's length and the header, a pickle with its protocol.
    Ok(match bytes.get(8) {
        Some(b'{') => Box::new(SafetensorsFile::parse(bytes)?),
        _ => Box::new(Checkpoint::parse(bytes)?),
    })
}

/// Checks every file's size, which tells a broken copy at no cost.
pub(crate) fn check_sizes(folder: &Path, manifest: &Manifest) -> Result<()> {
    for file in manifest.files.iter().flat_map(ManifestFile::stored) {
        let path = folder.join(&file.name);
        let size = fs::metadata(&path)
            .with_context(|| path.display().to_string())?
            .len();
        ensure!(
            size == file.size,
            "{} has {size} bytes, expected {} (by {MANIFEST}); was it copied whole?",
            path.display(),
            file.size
        );
    }
    for name in [CONFIG, VOCAB, IMAGE, TEXT] {
        if manifest.file(name).is_none() {
            bail!("{} does not list {name}", folder.join(MANIFEST).display());
        }
    }
    Ok(())
}
