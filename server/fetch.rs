//! `ernie-vil download`: the published weights and vocabulary, to a model folder.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use ernie_vil::ErnieConfig;

use crate::atomic_file::beside;
use crate::cli::{self, Release};
use crate::convert::{self, Conversion};
use crate::download::Download;
use crate::progress::{Progress, Unit};

pub fn run(args: &cli::Download, global: &cli::Global) -> Result<()> {
    Conversion::check_target(&args.target)?;
    let text = match &args.text_config {
        Some(path) => convert::text_config(path)?,
        None => ErnieConfig::base(),
    };
    let image = args.image_config.as_deref().map(convert::image_config).transpose()?;
    let file = match args.release {
        Release::Open => "OPEN_ERNIE_VIL2_BASE_ViT.pdparams",
        Release::First => "ERNIE_VIL2_BASE_ViT.pdparams",
    };
    // Both stay here until the folder is made, so that a run that breaks off anywhere goes on there.
    let folder = beside(&args.target.output, ".download");
    let fetch = |url: String, name: &str, limits: (u64, fn(&[u8]) -> Result<(), String>), sha256| {
        let mut download = Download::new(&url, folder.join(name));
        (download.max_bytes, download.check_start) = limits;
        download.expected_sha256 = sha256;
        if let Some(there) = finished(&download)? {
            return Ok((there, url));
        }
        let progress = Progress::new(name, Unit::Bytes, global.quiet);
        let done = download.run(&progress)?;
        drop(progress);
        if !global.quiet {
            let resumed = match done.resumed {
                0 => String::new(),
                bytes => format!(", {bytes} of them by an earlier run"),
            };
            eprintln!("fetched {url}: {} bytes{resumed}", done.bytes);
            eprintln!("sha256 {}", done.sha256);
        }
        Ok::<(PathBuf, String), anyhow::Error>((download.target, url))
    };
    // The small file first: where it cannot be had, nobody waits for the large one.
    let vocab = fetch(args.vocab_url.clone(), "vocab.txt", (64 << 20, looks_like_vocabulary), None)?;
    let url = format!("{}/{file}", args.base_url.trim_end_matches('/'));
    let weights = fetch(url, file, (4 << 30, looks_like_pickle), args.sha256.clone())?;
    let conversion = Conversion {
        name: format!("ERNIE-ViL 2.0 Base (ViT), {}", file.trim_end_matches(".pdparams")),
        published: Some(args.release.into()),
        image,
        text,
        sources: [weights, vocab],
        target: &args.target,
        quiet: global.quiet,
    };
    conversion.run()?;
    if !args.keep {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}

/// The file, where an earlier run fetched it whole (it has its name only then) and it has the sum that
/// was asked for.
fn finished(download: &Download) -> Result<Option<PathBuf>> {
    if !download.target.is_file() {
        return Ok(None);
    }
    let found = convert::source(&download.target, "")?;
    let is_right = download
        .expected_sha256
        .as_ref()
        .is_none_or(|sha256| sha256.eq_ignore_ascii_case(&found.sha256));
    Ok(is_right.then(|| download.target.clone()))
}

fn looks_like_pickle(start: &[u8]) -> Result<(), String> {
    match start {
        [0x80, 2..=5, ..] => Ok(()),
        _ => Err(format!("it starts with {}, which is no .pdparams file", show(start))),
    }
}

fn looks_like_vocabulary(start: &[u8]) -> Result<(), String> {
    let line = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
    match line.iter().position(|&byte| byte == b'\t') {
        Some(tab) if !line[tab + 1..].is_empty() => Ok(()),
        _ => Err(format!("it starts with {}, which is no line of a vocabulary", show(start))),
    }
}

fn show(start: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&start[..start.len().min(40)]))
}
