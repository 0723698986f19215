//! `ernie-vil bench`: each stage of the data path, measured apart.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ernie_vil::image::{Limits, Preprocessor, decode, decode_base64};
use ernie_vil::kernels::InstructionSet;
use ernie_vil::native::folder::read_config;
use ernie_vil::native::model::encoder;
use ernie_vil::native::{Model, Towers};
use ernie_vil::pairs::PairReader;
use ernie_vil::recall;
use ernie_vil::towers::DualEncoder;
use ernie_vil::vectors::Embeddings;
use ernie_vil::weights::RandomWeights;
use ernie_vil::{ModelConfig, Preprocessing};
use serde_json::{Value, json};

use crate::cli::{self, Stage, Structure};
use crate::print::outln;

/// Forty photographs as JPEGs of the usual kinds, to decode.
const PICTURES: &[u8] = include_bytes!("../../tests/goldens/coco_cn_style.tsv");

/// Rows of the score matrix.
const SCORED: usize = 5_000;

pub fn run(args: &cli::Bench, global: &cli::Global) -> Result<()> {
    if let (Some(folder), true) = (&args.model.model, args.cold_start) {
        return cold_start(folder, args);
    }
    let wants = |stage| args.only.is_empty() || args.only.contains(&stage);
    let bench = Bench {
        batches: args.batch.iter().map(|&batch| batch as usize).collect(),
        repeat: args.repeat as usize,
        json: args.json,
    };
    let device = args.device.options();
    let mut report = json!({
        "machine": {
            "threads": rayon::current_num_threads(),
            "instruction_set": format!("{:?}", InstructionSet::detect()),
        },
        "device": device.device.chosen().to_string(),
        "adapter": device.device.adapter(),
        "dtype": device.dtype.to_string(),
        "attention": device.attention.map(|attention| format!("{attention:?}").to_lowercase()),
    });
    let config = match &args.model.model {
        Some(folder) => read_config(folder)?,
        None => random_config(args.structure),
    };
    report["model"] = json!(config.name);
    if !args.json && !global.quiet {
        outln!(
            "{}, {} threads, {:?}",
            config.name,
            rayon::current_num_threads(),
            InstructionSet::detect()
        )?;
    }
    if wants(Stage::Decode) || wants(Stage::Preprocess) {
        bench.images(&config, &mut report)?;
    }
    if wants(Stage::ImageTower) || wants(Stage::TextTower) {
        let encoder = load(
            args,
            config.clone(),
            wants(Stage::ImageTower),
            wants(Stage::TextTower),
        )?;
        bench.image_tower(&encoder, &mut report)?;
        bench.text_tower(&encoder, &mut report)?;
    }
    if wants(Stage::Scoring) {
        bench.scoring(config.image.width(), &mut report)?;
    }
    match args.json {
        true => outln!("{report}"),
        false => Ok(()),
    }
}

fn random_config(structure: Structure) -> ModelConfig {
    let structure = match structure {
        Structure::BaseVit => ernie_vil::Structure::BaseVit,
        Structure::LargeVit => ernie_vil::Structure::LargeVit,
        Structure::BaseCnn => ernie_vil::Structure::BaseCnn,
        Structure::LargeCnn => ernie_vil::Structure::LargeCnn,
    };
    ModelConfig {
        format: ModelConfig::FORMAT,
        name: format!("{} with random weights", structure.name()),
        published: None,
        note: Some("random weights".into()),
        image: structure.image(),
        text: structure.text(),
        preprocessing: Preprocessing::Original,
        max_text_tokens: 48,
        logit_scale: None,
        fingerprint: "random".into(),
        sources: Vec::new(),
    }
}

fn load(args: &cli::Bench, config: ModelConfig, image: bool, text: bool) -> Result<DualEncoder> {
    if let Some(folder) = &args.model.model {
        let model = Model::open(folder, Towers { image, text }, &[args.device.options()])?;
        return model.encoders.into_iter().next().context("a device");
    }
    let weights = RandomWeights::new(&config.image, &config.text, 1);
    let source: &dyn ernie_vil::weights::TensorSource = &weights;
    let (image, text) = (image.then_some(source), text.then_some(source));
    Ok(encoder(config, image, text, &args.device.options())?)
}

/// From nothing to one caption's vector: what a program that was just started takes.
fn cold_start(folder: &Path, args: &cli::Bench) -> Result<()> {
    let start = Instant::now();
    let towers = Towers {
        image: false,
        text: true,
    };
    let model = Model::open(folder, towers, &[args.device.options()])?;
    let ids = model.encode("雪地里的红色汽车")?;
    let loaded = start.elapsed();
    let vector = model.embed_captions(0, &[&ids])?;
    let total = start.elapsed();
    ensure!(vector.rows() == 1, "one caption gives one vector");
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    match args.json {
        true => outln!("{}", json!({"cold_start_ms": ms(total), "load_ms": ms(loaded)})),
        false => outln!(
            "cold start {:.0} ms, of which {:.0} ms loading the text tower",
            ms(total),
            ms(loaded)
        ),
    }
}

struct Bench {
    /// Empty for the usual ones.
    batches: Vec<usize>,
    repeat: usize,
    json: bool,
}

/// The median and the least of several times, in seconds.
struct Spread {
    median: f64,
    least: f64,
}

impl Bench {
    /// Runs `work` once to warm up and then as often as asked for.
    fn time(&self, mut work: impl FnMut() -> Result<()>) -> Result<Spread> {
        work()?;
        let mut times = Vec::new();
        for _ in 0..self.repeat {
            let start = Instant::now();
            work()?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        Ok(Spread {
            median: times[times.len() / 2],
            least: times[0],
        })
    }

    fn say(&self, line: String) -> Result<()> {
        match self.json {
            true => Ok(()),
            false => outln!("{line}"),
        }
    }

    /// Decoding and preprocessing of the recorded pictures, on one thread.
    fn images(&self, config: &ModelConfig, report: &mut Value) -> Result<()> {
        let pairs = PairReader::new(PICTURES).collect::<ernie_vil::Result<Vec<_>>>()?;
        let limits = Limits::default();
        let decoded = |pair: &ernie_vil::pairs::Pair| decode(&decode_base64(&pair.image)?, &limits);
        let images = pairs.iter().map(decoded).collect::<ernie_vil::Result<Vec<_>>>()?;
        let pixels: u64 = images
            .iter()
            .map(|i| u64::from(i.width()) * u64::from(i.height()))
            .sum();
        let count = images.len() as f64;
        let time = self.time(|| {
            for pair in &pairs {
                std::hint::black_box(decoded(pair)?);
            }
            Ok(())
        })?;
        let mut add = |stage: &str, time: &Spread| {
            let megapixels = pixels as f64 / time.median / 1e6;
            let ms = time.median * 1e3 / count;
            report[stage] = json!({
                "images": count,
                "ms_per_image": ms,
                "least_ms_per_image": time.least * 1e3 / count,
                "megapixels_per_second": megapixels,
            });
            self.say(format!(
                "{stage:<14}{ms:9.3} ms an image, {megapixels:.0} megapixels a second, one thread"
            ))
        };
        add("decode", &time)?;
        let preprocessor = Preprocessor::of(config);
        let mut out = vec![0.0; preprocessor.values()];
        let time = self.time(|| {
            for image in &images {
                preprocessor.tensor_into(&preprocessor.crop(image), &mut out);
            }
            Ok(())
        })?;
        add("preprocess", &time)
    }

    fn image_tower(&self, encoder: &DualEncoder, report: &mut Value) -> Result<()> {
        let Some(tower) = &encoder.image else {
            return Ok(());
        };
        let preprocessor = Preprocessor::of(&encoder.config);
        let mut rows = Vec::new();
        let batches = match &self.batches[..] {
            [] => &[1, 8, 32],
            batches => batches,
        };
        for &batch in batches {
            let crops: Vec<u8> = (0..batch * preprocessor.values())
                .map(|i| (i % 251) as u8)
                .collect();
            let time = self.time(|| {
                std::hint::black_box(tower.embed_crops(&crops, &preprocessor)?);
                Ok(())
            })?;
            let ms = time.median * 1e3 / batch as f64;
            self.say(format!("image tower   {ms:9.2} ms an image, batch {batch}"))?;
            rows.push(json!({
                "batch": batch,
                "ms_per_image": ms,
                "least_ms_per_image": time.least * 1e3 / batch as f64,
            }));
        }
        report["image_tower"] = json!(rows);
        Ok(())
    }

    fn text_tower(&self, encoder: &DualEncoder, report: &mut Value) -> Result<()> {
        let Some(tower) = &encoder.text else {
            return Ok(());
        };
        let (vocabulary, longest) = (tower.config().vocab_size as u32, encoder.config.max_text_tokens);
        let mut rows = Vec::new();
        // Captions of COCO-CN have 8 to 20 tokens, mostly.
        let cases = match &self.batches[..] {
            [] => vec![(1, 12, 12), (8, 8, 20), (8, longest, longest), (64, 8, 20)],
            batches => batches
                .iter()
                .flat_map(|&batch| [(batch, 8, 20), (batch, longest, longest)])
                .collect(),
        };
        for (batch, least, most) in cases {
            let length = |i: usize| least + i * (most - least) / (batch - 1).max(1);
            let caption = |i: usize| {
                (0..length(i) as u32).map(move |j| 1 + (i as u32 * 977 + j * 131) % (vocabulary - 1))
            };
            let captions: Vec<Vec<u32>> = (0..batch).map(|i| caption(i).collect()).collect();
            let captions: Vec<&[u32]> = captions.iter().map(Vec::as_slice).collect();
            let time = self.time(|| {
                std::hint::black_box(tower.embed(&captions)?);
                Ok(())
            })?;
            let ms = time.median * 1e3 / batch as f64;
            let tokens = match least == most {
                true => json!(least),
                false => json!(format!("{least}-{most}")),
            };
            self.say(format!(
                "text tower    {ms:9.2} ms a caption, batch {batch}, {} tokens",
                tokens.to_string().trim_matches('"')
            ))?;
            rows.push(json!({
                "batch": batch,
                "tokens": tokens,
                "ms_per_caption": ms,
                "least_ms_per_caption": time.least * 1e3 / batch as f64,
            }));
        }
        report["text_tower"] = json!(rows);
        Ok(())
    }

    fn scoring(&self, width: usize, report: &mut Value) -> Result<()> {
        let side = |seed: usize| -> Result<Embeddings> {
            let values =
                (0..SCORED * width).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.0 - 1.0);
            let mut embeddings = Embeddings::new(SCORED, width, values.collect())?;
            embeddings.normalise()?;
            Ok(embeddings)
        };
        let (text, image) = (side(1)?, side(2)?);
        let time = self.time(|| {
            std::hint::black_box(recall::ranks(&text, &image, recall::Options::default())?);
            Ok(())
        })?;
        let gigaflops = 2.0 * (SCORED * SCORED * width) as f64 / time.median / 1e9;
        self.say(format!(
            "scoring       {:9.2} ms for {SCORED} x {SCORED} x {width}, {gigaflops:.0} GFLOP/s",
            time.median * 1e3
        ))?;
        report["scoring"] = json!({
            "rows": SCORED,
            "dimensions": width,
            "ms": time.median * 1e3,
            "least_ms": time.least * 1e3,
            "gigaflops": gigaflops,
        });
        Ok(())
    }
}
