//! `ernie-vil info`: what a model folder holds.

use std::path::Path;

use anyhow::{Context, Result};
use ernie_vil::native::folder::{read_config, read_manifest};
use ernie_vil::weights::{Manifest, ManifestFile};
use ernie_vil::{ImageConfig, ModelConfig};
use serde_json::json;

use super::convert;
use crate::builtin;
use crate::cli;
use crate::print::outln;

pub fn run(args: &cli::Info) -> Result<()> {
    let (config, manifest) = match &args.model.model {
        Some(folder) => (read_config(folder)?, Some(read_manifest(folder)?)),
        None => (builtin::config()?, None),
    };
    match args.json {
        true => outln!("{:#}", to_json(&config, manifest.as_ref()))?,
        false => print(&config, manifest.as_ref())?,
    }
    match (&args.model.model, manifest, args.verify) {
        (Some(folder), Some(manifest), true) => verify(folder, &manifest),
        _ => Ok(()),
    }
}

fn to_json(config: &ModelConfig, manifest: Option<&Manifest>) -> serde_json::Value {
    json!({
        "structure": config.structure(),
        "config": config,
        "parameters": {
            "image": config.image.parameters(),
            "text": config.text.parameters(),
        },
        "files": manifest.map(|manifest| &manifest.files),
    })
}

fn print(config: &ModelConfig, manifest: Option<&Manifest>) -> Result<()> {
    let text = &config.text;
    let millions = |parameters| parameters as f64 / 1e6;
    outln!("name          {}", config.name)?;
    if let Some(note) = &config.note {
        outln!("note          {note}")?;
    }
    outln!("structure     {}", config.structure())?;
    let image = match &config.image {
        ImageConfig::Vit(vit) => format!(
            "ViT, {} px, patches of {} px, width {}, {} blocks, {} heads",
            vit.image_size, vit.patch_size, vit.width, vit.depth, vit.heads
        ),
        ImageConfig::EfficientNet(net) => format!(
            "EfficientNet, {} px, {} times the channels and {} times the blocks of B0, {} blocks, width {}",
            net.image_size,
            net.width_multiplier,
            net.depth_multiplier,
            net.blocks().len(),
            net.width()
        ),
    };
    outln!(
        "image tower   {image}, {:.1} M parameters",
        millions(config.image.parameters())
    )?;
    outln!(
        "text tower    ERNIE, {} words, width {}, {} blocks, {} heads, {:.1} M parameters",
        text.vocab_size,
        text.width,
        text.depth,
        text.heads,
        millions(text.parameters())
    )?;
    outln!("caption       at most {} tokens", config.max_text_tokens)?;
    outln!(
        "images        {}",
        serde_json::to_value(config.preprocessing)
            .map_or(String::new(), |name| name.as_str().unwrap_or("").into())
    )?;
    outln!("logit scale   {:.2}", config.scale())?;
    outln!("fingerprint   {}", config.fingerprint)?;
    for source in &config.sources {
        outln!(
            "made from     {} ({} bytes, sha256 {})",
            source.file,
            source.size,
            source.sha256
        )?;
    }
    for file in manifest.into_iter().flat_map(|manifest| &manifest.files) {
        outln!(
            "file          {} ({} bytes, sha256 {})",
            file.name,
            file.size,
            file.sha256
        )?;
    }
    Ok(())
}

fn verify(folder: &Path, manifest: &Manifest) -> Result<()> {
    let mut wrong = Vec::new();
    let files: Vec<_> = manifest.files.iter().flat_map(ManifestFile::stored).collect();
    for file in &files {
        let found = convert::source(&folder.join(&file.name), &file.name)?;
        if (found.size, &found.sha256) != (file.size, &file.sha256) {
            wrong.push(format!(
                "{} has {} bytes and the sha256 {}",
                file.name, found.size, found.sha256
            ));
        }
    }
    if wrong.is_empty() {
        return outln!("verified      {} files are as the manifest says", files.len());
    }
    Err(anyhow::anyhow!(wrong.join("; "))).with_context(|| format!("{} is damaged", folder.display()))
}
