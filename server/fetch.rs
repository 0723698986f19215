//! `ernie-vil download`: the published weights and vocabulary, to a model folder.

use std::fs;

use anyhow::{Context, Result};
use ernie_vil::ErnieConfig;

use crate::atomic_file::beside;
use crate::cli::{self, Release};
use crate::convert::{self, Conversion};
use crate::download::Download;
use crate::model;
use crate::progress::{Progress, Unit};

pub fn run(args: &cli::Download, global: &cli::Global) -> Result<()> {
    Conversion::check_target(&args.target)?;
    let text = match &args.text_config {
        Some(path) => convert::text_config(path)?,
        None => ErnieConfig::base(),
    };
    let image = args
        .image_config
        .as_deref()
        .map(convert::image_config)
        .transpose()?;
    let file = match args.release {
        Release::Open => "OPEN_ERNIE_VIL2_BASE_ViT.pdparams",
        Release::First => "ERNIE_VIL2_BASE_ViT.pdparams",
    };
    // Both stay here until the folder is made, so that a run that breaks off anywhere goes on there.
    let folder = beside(&args.target.output, ".download");
    let mut vocab = Download::new(&args.vocab_url, folder.join("vocab.txt"));
    vocab.max_bytes = model::LARGEST_VOCAB;
    vocab.check_start = looks_like_vocabulary;
    let url = format!("{}/{file}", args.base_url.trim_end_matches('/'));
    let mut weights = Download::new(url, folder.join(file));
    weights.check_start = looks_like_pickle;
    weights.expected_sha256 = args.sha256.clone();
    // The small file first: where it cannot be had, nobody waits for the large one.
    for download in [&vocab, &weights] {
        fetch(download, global.quiet)?;
    }
    let conversion = Conversion {
        name: format!("ERNIE-ViL 2.0 Base (ViT), {}", file.trim_end_matches(".pdparams")),
        published: Some(args.release.into()),
        note: None,
        image,
        text,
        weights: vec![(weights.target, weights.url)],
        vocab: (vocab.target, vocab.url),
        target: &args.target,
        quiet: global.quiet,
    };
    conversion.run()?;
    if !args.keep {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}

/// Fetches a file, unless an earlier run fetched it whole.
fn fetch(download: &Download, quiet: bool) -> Result<()> {
    if is_finished(download)? {
        return Ok(());
    }
    let name = download.target.file_name().unwrap_or_default().to_string_lossy();
    let progress = Progress::new(&name, Unit::Bytes, quiet);
    let done = download.run(&progress)?;
    drop(progress);
    if !quiet {
        let resumed = match done.resumed {
            0 => String::new(),
            bytes => format!(", {bytes} of them by an earlier run"),
        };
        eprintln!("fetched {}: {} bytes{resumed}", download.url, done.bytes);
        eprintln!("sha256 {}", done.sha256);
    }
    Ok(())
}

/// Whether the file is there (it has its name only when it is whole) and has the sum that was asked for.
fn is_finished(download: &Download) -> Result<bool> {
    Ok(download.target.is_file()
        && match &download.expected_sha256 {
            None => true,
            Some(sha256) => convert::source(&download.target, "")?
                .sha256
                .eq_ignore_ascii_case(sha256),
        })
}

fn looks_like_pickle(start: &[u8]) -> Result<(), String> {
    match start {
        [0x80, 2..=5, ..] => Ok(()),
        _ => Err(format!(
            "it starts with {}, which is no .pdparams file",
            show(start)
        )),
    }
}

fn looks_like_vocabulary(start: &[u8]) -> Result<(), String> {
    let line = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
    match line.iter().position(|&byte| byte == b'\t') {
        Some(tab) if !line[tab + 1..].is_empty() => Ok(()),
        _ => Err(format!(
            "it starts with {}, which is no line of a vocabulary",
            show(start)
        )),
    }
}

fn show(start: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&start[..start.len().min(40)]))
}
