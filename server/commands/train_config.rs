//! What `ernie-vil train` reads: a YAML file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ernie_vil::image::Augmentation;
use ernie_vil::native::folder::LARGEST_CONFIG;
use ernie_vil::native::input;
use ernie_vil::text_file::text;
use ernie_vil::train::{Compute, Dropout, OptimizerSettings, Pair, Schedule, Settings, View, check_pairs};
use ernie_vil::{ErnieConfig, ImageConfig};
use serde::{Deserialize, Serialize};

/// The file. Paths are taken from the working directory, as in the original's configurations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// What to call the model.
    pub name: String,
    /// The run's folder: checkpoint, metrics, curves, and at the end the model.
    pub output: PathBuf,
    /// A remark that users of the model have to see.
    #[serde(default)]
    pub note: Option<String>,
    /// The pairs to learn from.
    pub train_file: PathBuf,
    /// Pairs whose recall is computed now and then.
    #[serde(default)]
    pub validation_file: Option<PathBuf>,
    /// A model folder to start from...
    #[serde(default)]
    pub init_from: Option<PathBuf>,
    /// ... or the sizes of a model with random weights.
    #[serde(default)]
    pub model: Option<Fresh>,
    #[serde(default)]
    pub seed: u64,
    /// How products are computed; the rest is in single precision in any case.
    #[serde(default)]
    pub precision: Precision,
    pub batch_size: usize,
    /// Rows in memory at once; fewer than a batch has: gradient caching. The batch size by default.
    #[serde(default)]
    pub rows_at_once: Option<usize>,
    /// Steps of the run...
    #[serde(default)]
    pub steps: Option<u64>,
    /// ... or passes over the data.
    #[serde(default)]
    pub epochs: Option<f64>,
    pub learning_rate: f64,
    #[serde(default)]
    pub warmup_steps: u64,
    #[serde(default)]
    pub optimizer: OptimizerSettings,
    #[serde(default = "plain")]
    pub pairs: Vec<Pair>,
    #[serde(default)]
    pub mask_equal_texts: bool,
    #[serde(default = "Augmentation::original")]
    pub augmentation: Augmentation,
    #[serde(default = "dropout")]
    pub text_dropout: Dropout,
    /// Towers that stay as they are.
    #[serde(default)]
    pub freeze: Vec<Tower>,
    /// Steps between two validations; by default a twentieth of the run.
    #[serde(default)]
    pub validate_every: Option<u64>,
    /// Steps between two checkpoints; by default as for validation.
    #[serde(default)]
    pub checkpoint_every: Option<u64>,
}

/// A model that starts with random weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fresh {
    pub vocab_file: PathBuf,
    pub image: ImageConfig,
    pub text: ErnieConfig,
    pub max_text_tokens: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    F32,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tower {
    Image,
    Text,
}

fn plain() -> Vec<Pair> {
    vec![Pair(View::Image, View::Caption, 1.0)]
}

fn dropout() -> Dropout {
    Dropout {
        hidden: 0.1,
        attention: 0.1,
    }
}

impl TrainConfig {
    /// Reads and checks the file at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = input::read(path, LARGEST_CONFIG)?;
        let yaml = text(&bytes).with_context(|| name.clone())?;
        let config: Self =
            serde_saphyr::from_str(yaml).map_err(|error| anyhow!("{name}: {}", error.without_snippet()))?;
        config.check().with_context(|| name)?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        check_pairs(&self.pairs)?;
        self.augmentation.validate()?;
        self.optimizer.validate()?;
        ensure!(
            self.init_from.is_some() != self.model.is_some(),
            "expected either init_from (a model folder) or model (the sizes of a new one)"
        );
        ensure!(
            self.steps.is_some() != self.epochs.is_some(),
            "expected either steps or epochs"
        );
        ensure!(
            self.batch_size >= 2,
            "batch_size is {}, expected at least 2",
            self.batch_size
        );
        ensure!(
            self.rows_at_once != Some(0),
            "rows_at_once is 0, expected at least 1"
        );
        for (name, rate) in [
            ("text_dropout.hidden", self.text_dropout.hidden),
            ("text_dropout.attention", self.text_dropout.attention),
        ] {
            ensure!(
                (0.0..1.0).contains(&rate),
                "{name} is {rate}, expected 0 to below 1"
            );
        }
        ensure!(
            self.learning_rate > 0.0 && self.learning_rate.is_finite(),
            "learning_rate is {}, expected a number above 0",
            self.learning_rate
        );
        for (name, every) in [
            ("steps", self.steps),
            ("validate_every", self.validate_every),
            ("checkpoint_every", self.checkpoint_every),
        ] {
            ensure!(every != Some(0), "{name} is 0, expected at least 1");
        }
        if let Some(epochs) = self.epochs {
            ensure!(
                epochs > 0.0 && epochs.is_finite(),
                "epochs is {epochs}, expected a number above 0"
            );
        }
        if self.freeze.contains(&Tower::Image) && self.freeze.contains(&Tower::Text) {
            bail!("freeze names both towers, so there is nothing to train");
        }
        Ok(())
    }

    /// Whether a pair names the view.
    pub fn has_view(&self, view: View) -> bool {
        self.pairs.iter().any(|pair| pair.0 == view || pair.1 == view)
    }

    /// The run's steps over `rows` rows of data.
    pub fn total_steps(&self, rows: usize) -> u64 {
        let of_an_epoch = (rows / self.batch_size) as f64;
        match (self.steps, self.epochs) {
            (Some(steps), _) => steps,
            (None, epochs) => ((epochs.unwrap_or(1.0) * of_an_epoch).round() as u64).max(1),
        }
    }

    /// `by_burn`: by Burn's operations on the CPU, too.
    pub fn settings(&self, steps: u64, by_burn: bool) -> Settings {
        Settings {
            pairs: self.pairs.clone(),
            mask_equal_texts: self.mask_equal_texts,
            rows_at_once: self.rows_at_once.unwrap_or(self.batch_size),
            dropout: self.text_dropout,
            optimizer: self.optimizer,
            schedule: Schedule {
                peak: self.learning_rate,
                warmup_steps: self.warmup_steps,
                steps,
            },
            freeze_image: self.freeze.contains(&Tower::Image),
            freeze_text: self.freeze.contains(&Tower::Text),
            seed: self.seed,
            compute: match self.precision {
                Precision::Bf16 => Compute::BurnBf16,
                Precision::F32 if by_burn => Compute::Burn,
                Precision::F32 => Compute::Auto,
            },
        }
    }
}
