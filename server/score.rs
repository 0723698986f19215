//! `ernie-vil score`: recall from a file of vectors.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use ernie_vil::Published;
use ernie_vil::recall::{self, Report};
use ernie_vil::vectors::{Pairs, read_npy, read_out, read_safetensors};

use crate::cli::{self, ReportFormat};
use crate::{embed, model};

pub fn run(args: &cli::Score) -> Result<()> {
    let path = &args.file;
    let options = recall::Options {
        like_original: args.like_original,
    };
    let report = read(path)
        .and_then(|pairs| Ok(recall::ranks(&pairs.text, &pairs.image, options)?))
        .and_then(|ranks| Ok(Report::new(&ranks)?))
        .with_context(|| path.display().to_string())?;
    print(&report, args.format, args.release.map(Published::from));
    Ok(())
}

/// Reads vectors by what the file's name ends in; text is the original's format.
fn read(path: &Path) -> Result<Pairs> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => Ok(read_safetensors(&model::map(path)?)?.into_pairs()?),
        Some("npy") => {
            let name = path.to_string_lossy();
            let stem = [".text.npy", ".image.npy", ".npy"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix));
            let [text, image, _] = embed::npy_paths(Path::new(stem.unwrap_or(&name)));
            let read = |path: &Path| read_npy(&model::map(path)?).with_context(|| path.display().to_string());
            Ok(Pairs {
                text: read(&text)?,
                image: read(&image)?,
            })
        }
        _ => Ok(read_out(File::open(path)?)?),
    }
}

/// Prints a report to standard output, beside the published figures where the release is known.
pub fn print(report: &Report, format: ReportFormat, release: Option<Published>) {
    match format {
        ReportFormat::Json => println!("{}", report.to_json().trim_end()),
        ReportFormat::Table => {
            print!("{}", report.table());
            if let Some(release) = release {
                print!("\n{}", recall::comparison(report, release));
            }
        }
    }
}
