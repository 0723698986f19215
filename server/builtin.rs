//! The model that a command works with: a folder, or the small model "scenes" for a first run without any
//! file.

use anyhow::Result;
use ernie_vil::ModelConfig;
#[cfg(feature = "scenes")]
use ernie_vil::native::scenes;
use ernie_vil::native::{DeviceOptions, Model, Towers};

use crate::cli;

/// Loads both towers of the model that the command line names, or the built-in one where it names none, of
/// which it says so.
pub fn load(model: &cli::ModelArg, devices: &[DeviceOptions], global: &cli::Global) -> Result<Model> {
    match &model.model {
        Some(folder) => Ok(Model::open(folder, Towers::BOTH, devices)?),
        None => built_in(devices, global),
    }
}

#[cfg(feature = "scenes")]
fn built_in(devices: &[DeviceOptions], global: &cli::Global) -> Result<Model> {
    let model = scenes::model(devices)?;
    if !global.quiet {
        crate::print::note!("{}", scenes::NOTICE);
    }
    Ok(model)
}

/// What is known of the model without loading it.
#[cfg(feature = "scenes")]
pub fn config() -> Result<ModelConfig> {
    Ok(scenes::config()?)
}

/// The model's vocabulary.
#[cfg(feature = "scenes")]
pub fn vocab() -> Result<&'static [u8]> {
    Ok(scenes::VOCAB)
}

/// A thousand captions with their pictures, none of which the model saw in training.
#[cfg(feature = "scenes")]
pub fn pairs() -> Result<&'static [u8]> {
    Ok(scenes::PAIRS)
}

/// Why there is no model.
#[cfg(not(feature = "scenes"))]
fn missing<T>(flag: &str) -> Result<T> {
    anyhow::bail!("no {flag} given, and this binary was built without a model inside (the feature `scenes`)")
}

#[cfg(not(feature = "scenes"))]
fn built_in(_devices: &[DeviceOptions], _global: &cli::Global) -> Result<Model> {
    missing("--model")
}

#[cfg(not(feature = "scenes"))]
pub fn config() -> Result<ModelConfig> {
    missing("--model")
}

#[cfg(not(feature = "scenes"))]
pub fn vocab() -> Result<&'static [u8]> {
    missing("--model")
}

#[cfg(not(feature = "scenes"))]
pub fn pairs() -> Result<&'static [u8]> {
    missing("--input")
}
