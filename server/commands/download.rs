//! `ernie-vil download`: the published weights and vocabulary, to a model folder.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use ernie_vil::ErnieConfig;
use ernie_vil::native::Error;
use ernie_vil::native::atomic_file::beside;
use ernie_vil::native::download::Download;
use ernie_vil::native::folder::LARGEST_VOCAB;
use ernie_vil::native::sums::{self, Seen, Sums};
use ernie_vil::weights::recognise;

use super::convert::{self, Conversion};
use crate::cli::{self, Release};
use crate::print::note;
use crate::progress::{Progress, Unit};

/// The vocabulary that ERNIE-ViL 2.0 was published with: the end of its address, and the SHA-256 of the file
/// in Baidu's repository.
const VOCAB: (&str, &str) = (
    "//raw.githubusercontent.com/PaddlePaddle/ERNIE/ernie-kit-open-v1.0/Research/ERNIE-ViL2/packages/ernie_base_3.0/vocab.txt",
    "e46b9391f7d6b20023be4ab9e286f3b984d1aad958d545fac27bd816734eb967",
);

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
    vocab.max_bytes = LARGEST_VOCAB;
    vocab.check_start = looks_like_vocabulary;
    vocab.expected_sha256 = args
        .vocab_sha256
        .clone()
        .or_else(|| args.vocab_url.ends_with(VOCAB.0).then(|| VOCAB.1.into()));
    let url = format!("{}/{file}", args.base_url.trim_end_matches('/'));
    let mut weights = Download::new(url, folder.join(file));
    weights.check_start = looks_like_pickle;
    weights.expected_sha256 = args.sha256.clone();
    if let Some(sums) = &args.sums {
        ensure!(
            !sums.starts_with(&args.target.output),
            "{} lies in the model folder {}, which is made anew; choose another place for --sums",
            sums.display(),
            args.target.output.display()
        );
    }
    let sums = args.sums.clone().or_else(sums_of_user).map(Sums::at);
    // The small file first: where it cannot be had, nobody waits for the large one.
    for (download, flag) in [(&mut vocab, "--vocab-sha256"), (&mut weights, "--sha256")] {
        // Where a sum is given it says what the file has to be.
        if download.expected_sha256.is_none() && !args.accept_changed {
            download.seen = sums
                .as_ref()
                .map(|sums| sums.get(&download.url))
                .transpose()?
                .flatten();
        }
        download.use_proxy_of_environment();
        fetch(download, sums.as_ref(), flag, global.quiet)?;
    }
    let fetched = [weights.target.clone(), vocab.target.clone()];
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
        for file in fetched {
            fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
        }
        // With what else is in it, the folder stays.
        match fs::remove_dir(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => {
                return Err(error).with_context(|| format!("removing {}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// `ernie-vil/sums.json` in the user's folder for caches; none where the environment names no such folder.
fn sums_of_user() -> Option<PathBuf> {
    let variable = |name| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let home = |below: &str| variable("HOME").map(|home| home.join(below));
    let folder = match () {
        () if cfg!(windows) => variable("LOCALAPPDATA"),
        () if cfg!(target_os = "macos") => home("Library/Caches"),
        () => variable("XDG_CACHE_HOME").or_else(|| home(".cache")),
    };
    Some(folder?.join("ernie-vil").join("sums.json"))
}

/// Fetches a file, unless an earlier run fetched it whole. `flag` is the one that takes its sum.
fn fetch(download: &Download, sums: Option<&Sums>, flag: &str, quiet: bool) -> Result<()> {
    if is_finished(download)? {
        return Ok(());
    }
    if !download.is_https() && download.expected_sha256.is_none() && download.seen.is_none() {
        note!(
            "warning: {} is not encrypted: anybody on the way can send another file. {flag} says which one is taken",
            download.url
        );
    }
    let name = download.target.file_name().unwrap_or_default().to_string_lossy();
    let progress = Progress::new(&name, Unit::Bytes, quiet);
    let done = download.run(&progress);
    drop(progress);
    let done = done.map_err(|error| match (sums, &download.seen, error.root()) {
        (Some(sums), Some(seen), Error::Changed(_)) => error.context(format!(
            "{name} is not taken: --accept-changed takes it in the place of {}, which {} has",
            seen.sha256,
            sums.path().display()
        )),
        // Not where the server answered, whatever it said.
        (.., Error::Http(_)) if download.is_https() => error.context(format!(
            "{name} was not fetched (where the server has no https, an address with http:// does without encryption)"
        )),
        _ => error,
    })?;
    if let Some(sums) = sums {
        let seen = Seen {
            url: download.url.clone(),
            size: done.bytes,
            sha256: done.sha256.clone(),
            etag: done.etag.clone(),
            last_modified: done.last_modified.clone(),
            first_seen: sums::now(),
        };
        // The file is there and as it should be; only the next one cannot be compared with it.
        if let Err(error) = sums.record(seen) {
            note!("warning: the sum of {name} was not recorded: {error:#}");
        }
    }
    if !quiet {
        let resumed = match done.resumed {
            0 => String::new(),
            bytes => format!(", {bytes} of them by an earlier run"),
        };
        note!("fetched {}: {} bytes{resumed}", download.url, done.bytes);
        note!("sha256 {}", done.sha256);
    }
    Ok(())
}

/// Whether the file is there (it has its name only when it is whole) and has the sum that it should have.
fn is_finished(download: &Download) -> Result<bool> {
    let seen = download.seen.as_ref().map(|seen| &seen.sha256);
    Ok(download.target.is_file()
        && match download.expected_sha256.as_ref().or(seen) {
            None => true,
            Some(sha256) => convert::source(&download.target, "")?
                .sha256
                .eq_ignore_ascii_case(sha256),
        })
}

fn looks_like_pickle(start: &[u8]) -> Result<(), String> {
    match (recognise(start), start) {
        (Some(what), _) => Err(format!("it is {what}")),
        (None, [0x80, 2..=5, ..]) => Ok(()),
        (None, _) => Err(format!(
            "it starts with {}, which is no .pdparams file",
            show(start)
        )),
    }
}

fn looks_like_vocabulary(start: &[u8]) -> Result<(), String> {
    if let Some(what) = recognise(start) {
        return Err(format!("it is {what}"));
    }
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
