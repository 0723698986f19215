//! The original's run configuration: a YAML file of flat keys.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use serde_json::Value;
use serde_saphyr::Spanned;
use serde_saphyr::options::NonFiniteFloatPolicy;

/// Keys of the original that do not change what comes out. `unk_token` says 17963 there, and the
/// original takes the vocabulary's `[UNK]` all the same.
const WITHOUT_EFFECT: [&str; 3] = ["input_dtype", "mask_token", "unk_token"];

/// Where a run computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunDevice {
    Gpu,
    Cpu,
}

/// What a configuration file says. Paths stay as they are written: relative ones start at the
/// working directory, as in the original.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunConfig {
    pub device: RunDevice,
    /// Pairs of a batch, at least 1.
    pub infer_batch_size: usize,
    /// Tokens of a caption, `[CLS]` and `[SEP]` included, at least 2.
    pub max_text_seqlen: usize,
    /// The vocabulary.
    pub vocab_file: PathBuf,
    /// The text tower's sizes, JSON in the original's form.
    pub text_model_config: PathBuf,
    /// The image tower's sizes, likewise: this project's own key, ViT-B/16 where it is absent.
    pub image_model_config: Option<PathBuf>,
    /// The caption-image pairs.
    pub test_file: PathBuf,
    /// Where the embeddings go.
    pub output_file: PathBuf,
    /// The weights.
    pub init_from_params: PathBuf,
    /// Token ids: padding, first and last of a row.
    pub pad_token: u32,
    pub cls_token: u32,
    pub sep_token: u32,
    /// Keys that nobody knows, a sentence each with the line; the original passes over them too.
    pub warnings: Vec<String>,
}

impl RunConfig {
    /// Reads a configuration; `name` is the file's, for messages.
    ///
    /// # Errors
    /// Names the file, the key, the line, and what was expected: where the text is not a YAML
    /// mapping, a key stands there twice, is missing, or has a value of the wrong kind.
    pub fn from_yaml(yaml: &str, name: &str) -> Result<Self> {
        let options = serde_saphyr::options! {
            // A key that is not known may hold anything.
            non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        };
        let entries: HashMap<Spanned<String>, Value> = serde_saphyr::from_str_with_options(yaml, options)
            .map_err(|error| anyhow!("{name}: {}", error.without_snippet()))?;
        let mut keys = Keys {
            name,
            entries: entries
                .into_iter()
                .map(|(key, value)| (key.value, (key.referenced.line(), value)))
                .collect(),
        };
        let config = Self {
            device: keys.take("device", "\"gpu\" or \"cpu\"", |value| match value.as_str()? {
                "gpu" => Some(RunDevice::Gpu),
                "cpu" => Some(RunDevice::Cpu),
                _ => None,
            })?,
            infer_batch_size: keys.size("infer_batch_size", 1)?,
            max_text_seqlen: keys.size("max_text_seqlen", 2)?,
            vocab_file: keys.path("vocab_file")?,
            text_model_config: keys.path("text_model_config")?,
            image_model_config: match keys.entries.contains_key("image_model_config") {
                true => Some(keys.path("image_model_config")?),
                false => None,
            },
            test_file: keys.path("test_file")?,
            output_file: keys.path("output_file")?,
            init_from_params: keys.path("init_from_params")?,
            pad_token: keys.token("pad_token")?,
            cls_token: keys.token("cls_token")?,
            sep_token: keys.token("sep_token")?,
            warnings: Vec::new(),
        };
        Ok(Self {
            warnings: keys.unknown(),
            ..config
        })
    }
}

/// The entries not yet taken, each with its line.
struct Keys<'a> {
    name: &'a str,
    entries: BTreeMap<String, (u64, Value)>,
}

impl Keys<'_> {
    fn take<T>(&mut self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let name = self.name;
        let Some((line, value)) = self.entries.remove(key) else {
            bail!("{name}: the key {key} is missing, expected {expected}");
        };
        read(&value).ok_or_else(|| {
            anyhow!(
                "{name}, line {line}: {key} is {}, expected {expected}",
                brief(&value)
            )
        })
    }

    fn path(&mut self, key: &str) -> Result<PathBuf> {
        self.take(key, "a path", |value| {
            value.as_str().filter(|path| !path.is_empty()).map(PathBuf::from)
        })
    }

    fn size(&mut self, key: &str, least: usize) -> Result<usize> {
        self.take(key, &format!("a whole number of at least {least}"), |value| {
            usize::try_from(value.as_u64()?)
                .ok()
                .filter(|&size| size >= least)
        })
    }

    fn token(&mut self, key: &str) -> Result<u32> {
        self.take(key, "a token id, a whole number of at least 0", |value| {
            u32::try_from(value.as_u64()?).ok()
        })
    }

    /// A warning for each entry that is left and not known, in the file's order.
    fn unknown(self) -> Vec<String> {
        let mut unknown: Vec<(u64, String)> = self
            .entries
            .into_iter()
            .filter(|(key, _)| !WITHOUT_EFFECT.contains(&key.as_str()))
            .map(|(key, (line, _))| (line, key))
            .collect();
        unknown.sort();
        let warning = |(line, key)| format!("{}, line {line}: the key {key:?} has no effect", self.name);
        unknown.into_iter().map(warning).collect()
    }
}

/// A value as a message shows it: a collection by its kind, a long text by its beginning.
fn brief(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a mapping".into(),
        Value::String(text) if text.chars().count() > 60 => {
            format!("{:?}...", text.chars().take(60).collect::<String>())
        }
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Laid out as the original's file is, with its keys and its values.
    const ORIGINAL: &str = concat!(
        "# ids\ninput_dtype: \"int64\"\n# device\ndevice: \"gpu\"\n# batch\ninfer_batch_size: 10\n\n",
        "## text\nmax_text_seqlen: 48\n## vocabulary\n",
        "vocab_file: \"./packages/ernie_base_3.0/vocab.txt\"\n",
        "text_model_config: \"./packages/ernie_base_3.0/ernie_config.base.json\"\n## input \n",
        "test_file: \"./packages/coco/your_data_path\"\n",
        "output_file: \"./test_out/cross_modal_embeddings.out\"\n",
        "init_from_params: \"./params/your_model_weights_path\"\n## tokens\n",
        "pad_token: 0\ncls_token: 1\nsep_token: 2\nmask_token: 3\nunk_token: 17963",
    );

    fn expected() -> RunConfig {
        RunConfig {
            device: RunDevice::Gpu,
            infer_batch_size: 10,
            max_text_seqlen: 48,
            vocab_file: "./packages/ernie_base_3.0/vocab.txt".into(),
            text_model_config: "./packages/ernie_base_3.0/ernie_config.base.json".into(),
            image_model_config: None,
            test_file: "./packages/coco/your_data_path".into(),
            output_file: "./test_out/cross_modal_embeddings.out".into(),
            init_from_params: "./params/your_model_weights_path".into(),
            pad_token: 0,
            cls_token: 1,
            sep_token: 2,
            warnings: Vec::new(),
        }
    }

    fn message(yaml: &str) -> String {
        format!("{:#}", RunConfig::from_yaml(yaml, "run.yaml").unwrap_err())
    }

    #[test]
    fn the_original_s_file() {
        let windows = ORIGINAL.replace('\n', "\r\n");
        let marked = format!("\u{feff}{ORIGINAL}\n...\n");
        for yaml in [ORIGINAL, &windows, &marked] {
            assert_eq!(RunConfig::from_yaml(yaml, "run.yaml").unwrap(), expected());
        }
    }

    #[test]
    fn other_ways_to_write_it() {
        let yaml = ORIGINAL
            .replace("\"gpu\"", "cpu  # no card here")
            .replace("\"./packages/coco/your_data_path\"", "'/数据/test.tsv'")
            .replace("mask_token: 3\n", "image_model_config: ./vit.json\n");
        let config = RunConfig::from_yaml(&yaml, "run.yaml").unwrap();
        let image_model_config = Some("./vit.json".into());
        assert_eq!(
            config,
            RunConfig {
                device: RunDevice::Cpu,
                test_file: "/数据/test.tsv".into(),
                image_model_config,
                ..expected()
            }
        );
    }

    #[test]
    fn unknown_keys_are_warnings() {
        let yaml = format!("zeta: .nan\n{ORIGINAL}\nextra:\n  - [1, {{a: b}}]\n7: null\n");
        let config = RunConfig::from_yaml(&yaml, "run.yaml").unwrap();
        assert_eq!(
            config.warnings,
            [
                "run.yaml, line 1: the key \"zeta\" has no effect",
                "run.yaml, line 24: the key \"extra\" has no effect",
                "run.yaml, line 26: the key \"7\" has no effect",
            ]
        );
        assert_eq!(
            RunConfig {
                warnings: Vec::new(),
                ..config
            },
            expected()
        );
    }

    #[test]
    fn every_key_that_counts_is_required() {
        let mut missing = 0;
        for line in ORIGINAL
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let key = line.split(':').next().unwrap();
            let without = ORIGINAL.replace(line, "");
            if WITHOUT_EFFECT.contains(&key) {
                assert_eq!(RunConfig::from_yaml(&without, "run.yaml").unwrap(), expected());
            } else {
                let message = message(&without);
                assert!(
                    message.starts_with(&format!("run.yaml: the key {key} is missing, expected ")),
                    "{message}"
                );
                missing += 1;
            }
        }
        assert_eq!(missing, 11);
    }

    #[test]
    fn wrong_values() {
        let cases = [
            (
                "device: \"gpu\"",
                "device: tpu",
                "line 4: device is \"tpu\", expected \"gpu\" or \"cpu\"",
            ),
            (
                "size: 10",
                "size: ten",
                "line 6: infer_batch_size is \"ten\", expected a whole number of at least 1",
            ),
            (
                "size: 10",
                "size: 0",
                "line 6: infer_batch_size is 0, expected a whole number of at least 1",
            ),
            (
                "size: 10",
                "size: -1",
                "line 6: infer_batch_size is -1, expected a whole number of at least 1",
            ),
            (
                "size: 10",
                "size: 1.5",
                "line 6: infer_batch_size is 1.5, expected a whole number of at least 1",
            ),
            (
                "size: 10",
                "size:",
                "line 6: infer_batch_size is null, expected a whole number of at least 1",
            ),
            (
                "len: 48",
                "len: 1",
                "line 9: max_text_seqlen is 1, expected a whole number of at least 2",
            ),
            (
                "len: 48",
                "len: [48]",
                "line 9: max_text_seqlen is a list, expected a whole number of at least 2",
            ),
            (
                "file: \"./packages/coco/your_data_path\"",
                "file: 3",
                "line 14: test_file is 3, expected a path",
            ),
            (
                "file: \"./packages/coco/your_data_path\"",
                "file: ''",
                "line 14: test_file is \"\", expected a path",
            ),
            (
                "token: 0",
                "token: {a: 1}",
                "line 18: pad_token is a mapping, expected a token id, a whole number of at least 0",
            ),
            (
                "cls_token: 1",
                "cls_token: 4294967296",
                "line 19: cls_token is 4294967296, expected a token id, a whole number of at least 0",
            ),
        ];
        for (from, to, expected) in cases {
            assert_eq!(
                message(&ORIGINAL.replacen(from, to, 1)),
                format!("run.yaml, {expected}")
            );
        }
        let long = message(&ORIGINAL.replace("gpu", &"g".repeat(10_000)));
        assert!(long.len() < 200, "{long}");
    }

    #[test]
    fn not_such_a_file() {
        for (yaml, line) in [
            ("device: \"gpu\ninfer", "line 1"),
            ("a: 1\nb: 2\na: 3", "line 3"),
            ("- a\n- b", "line 1"),
            ("a: [\n", "line"),
            ("a: 1\n---\nb: 1\n", "line"),
        ] {
            let message = message(yaml);
            assert!(
                message.starts_with("run.yaml: ") && message.contains(line),
                "{message}"
            );
            assert!(!message.contains('\n'), "{message}");
        }
        assert!(message("").starts_with("run.yaml: "));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_an_answer(text in any::<String>(), at in 0..ORIGINAL.len(), piece in "[-:{}\\[\\]&*!|>'\"#%@\\n\\t a1]{0,6}") {
            let _ = RunConfig::from_yaml(&text, "x");
            let _ = RunConfig::from_yaml(&format!("{}{piece}{}", &ORIGINAL[..at], &ORIGINAL[at..]), "x");
        }
    }
}
