//! `ernie-vil info`: what a model folder holds.

use std::path::Path;

use anyhow::{Context, Result};
use ernie_vil::weights::{Manifest, image_tensors, text_tensors};
use ernie_vil::{ErnieConfig, ModelConfig, VitConfig};
use serde_json::json;

use crate::cli;
use crate::{builtin, convert, model};

pub fn run(args: &cli::Info) -> Result<()> {
    let (config, manifest) = match &args.model.model {
        Some(folder) => (model::read_config(folder)?, Some(model::read_manifest(folder)?)),
        None => (builtin::config()?, None),
    };
    match args.json {
        true => println!("{:#}", to_json(&config, manifest.as_ref())),
        false => print(&config, manifest.as_ref()),
    }
    match (&args.model.model, manifest, args.verify) {
        (Some(folder), Some(manifest), true) => verify(folder, &manifest),
        _ => Ok(()),
    }
}

/// What the sizes are known as.
fn structure(config: &ModelConfig) -> &'static str {
    match (&config.image, &config.text) {
        (image, text) if *image == VitConfig::base() && *text == ErnieConfig::base() => "Base (ViT)",
        (image, text) if *image == VitConfig::large() && *text == ErnieConfig::large() => "Large (ViT)",
        _ => "other",
    }
}

fn parameters(tensors: Vec<(String, Vec<usize>)>) -> u64 {
    let values = |(_, shape): (String, Vec<usize>)| shape.iter().map(|&n| n as u64).product::<u64>();
    tensors.into_iter().map(values).sum()
}

fn to_json(config: &ModelConfig, manifest: Option<&Manifest>) -> serde_json::Value {
    json!({
        "structure": structure(config),
        "config": config,
        "parameters": {
            "image": parameters(image_tensors(&config.image)),
            "text": parameters(text_tensors(&config.text)),
        },
        "files": manifest.map(|manifest| &manifest.files),
    })
}

fn print(config: &ModelConfig, manifest: Option<&Manifest>) {
    let (image, text) = (&config.image, &config.text);
    let millions = |tensors| parameters(tensors) as f64 / 1e6;
    println!("name          {}", config.name);
    println!("structure     {}", structure(config));
    println!(
        "image tower   ViT, {} px, patches of {} px, width {}, {} blocks, {} heads, {:.1} M parameters",
        image.image_size,
        image.patch_size,
        image.width,
        image.depth,
        image.heads,
        millions(image_tensors(image))
    );
    println!(
        "text tower    ERNIE, {} words, width {}, {} blocks, {} heads, {:.1} M parameters",
        text.vocab_size,
        text.width,
        text.depth,
        text.heads,
        millions(text_tensors(text))
    );
    println!("caption       at most {} tokens", config.max_text_tokens);
    println!(
        "images        {}",
        serde_json::to_value(config.preprocessing)
            .map_or(String::new(), |name| name.as_str().unwrap_or("").into())
    );
    println!("fingerprint   {}", config.fingerprint);
    for source in &config.sources {
        println!(
            "made from     {} ({} bytes, sha256 {})",
            source.file, source.size, source.sha256
        );
    }
    for file in manifest.into_iter().flat_map(|manifest| &manifest.files) {
        println!(
            "file          {} ({} bytes, sha256 {})",
            file.name, file.size, file.sha256
        );
    }
}

fn verify(folder: &Path, manifest: &Manifest) -> Result<()> {
    let mut wrong = Vec::new();
    for file in &manifest.files {
        let found = convert::source(&folder.join(&file.name), &file.name)?;
        if (found.size, &found.sha256) != (file.size, &file.sha256) {
            wrong.push(format!(
                "{} has {} bytes and the sha256 {}",
                file.name, found.size, found.sha256
            ));
        }
    }
    if wrong.is_empty() {
        println!(
            "verified      {} files are as the manifest says",
            manifest.files.len()
        );
        return Ok(());
    }
    Err(anyhow::anyhow!(wrong.join("; "))).with_context(|| format!("{} is damaged", folder.display()))
}
