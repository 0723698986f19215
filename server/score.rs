//! `ernie-vil score`: recall from a file of vectors.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ernie_vil::Published;
use ernie_vil::pairs::PairReader;
use ernie_vil::recall::{self, Caption, CaptionReader, RelatedReport, Relations, Report, TestSet};
use ernie_vil::vectors::{Embeddings, Pairs, read_npy, read_out, read_safetensors};

use crate::cli::{self, ReportFormat};
use crate::{embed, model};

pub fn run(args: &cli::Score, global: &cli::Global) -> Result<()> {
    let path = &args.file;
    let in_file = || path.display().to_string();
    let mut pairs = read(path).with_context(in_file)?;
    if let (Some(texts), Some(images)) = (&args.related.texts, &args.related.images) {
        ensure!(
            !args.like_original && args.release.is_none() && args.set.is_none() && args.limit.is_none(),
            "--texts and --images score by Chinese-CLIP's protocol, where --like-original, --release, --set and \
             --limit have no meaning"
        );
        let relations = relations(&captions(texts)?, texts, &image_ids(images)?)?;
        let report = score_related(&pairs, &relations, global.quiet).with_context(in_file)?;
        print_related(&report, args.format);
        return Ok(());
    }
    if let Some(limit) = args.limit {
        pairs.text = first(pairs.text, limit)?;
        pairs.image = first(pairs.image, limit)?;
    }
    let options = recall::Options {
        like_original: args.like_original,
    };
    let report = recall::ranks(&pairs.text, &pairs.image, options).and_then(|ranks| Report::new(&ranks));
    let published = published(args.release.map(Published::from), args.set);
    print(&report.with_context(in_file)?, args.format, published);
    Ok(())
}

/// The first rows of a side.
fn first(side: Embeddings, limit: u64) -> Result<Embeddings> {
    let rows = side.rows().min(usize::try_from(limit).unwrap_or(usize::MAX));
    let dimensions = side.dimensions();
    let mut values = side.into_data();
    values.truncate(rows * dimensions);
    Ok(Embeddings::new(rows, dimensions, values)?)
}

/// Which published figures to show: those of the test set that the command line names, or of COCO-CN where the release
/// is known.
pub fn published(release: Option<Published>, set: Option<cli::TestSet>) -> Option<(Published, TestSet)> {
    let set = set.map(|set| match set {
        cli::TestSet::CocoCn => TestSet::CocoCn,
        cli::TestSet::AicIcc => TestSet::AicIcc,
    });
    match (release, set) {
        (None, None) => None,
        (release, set) => Some((release.unwrap_or(Published::First), set.unwrap_or_default())),
    }
}

/// Reads the captions of a test set in Chinese-CLIP's form.
pub fn captions(path: &Path) -> Result<Vec<Caption>> {
    let name = || path.display().to_string();
    let file = File::open(path).with_context(name)?;
    let captions = CaptionReader::new(BufReader::with_capacity(1 << 18, file));
    captions.collect::<Result<_, _>>().with_context(name)
}

/// The ids of its images, in their order. A line may be an id alone. No line may have the id of another.
pub fn image_ids(path: &Path) -> Result<Vec<String>> {
    let name = || path.display().to_string();
    let file = File::open(path).with_context(name)?;
    let mut lines = std::collections::HashMap::new();
    let mut ids = Vec::new();
    for row in PairReader::new(BufReader::with_capacity(1 << 18, file)) {
        let row = row.with_context(name)?;
        if let Some(before) = lines.insert(row.caption.clone(), row.line) {
            bail!(
                "{}: lines {before} and {} both have the image id {:?}, expected each id once",
                name(),
                row.line,
                row.caption
            );
        }
        ids.push(row.caption);
    }
    Ok(ids)
}

pub fn relations(captions: &[Caption], path: &Path, image_ids: &[String]) -> Result<Relations> {
    Relations::new(captions, image_ids).with_context(|| path.display().to_string())
}

/// Scores by Chinese-CLIP's protocol, with a remark on ids that cannot be found.
pub fn score_related(pairs: &Pairs, relations: &Relations, quiet: bool) -> Result<RelatedReport> {
    if let ([first, ..], false) = (relations.missing(), quiet) {
        eprintln!(
            "note: {} image ids that captions name are not among the images and can never be found, {first:?} the first",
            relations.missing().len()
        );
    }
    let ranks = recall::related_ranks(&pairs.text, &pairs.image, relations)?;
    Ok(RelatedReport::new(&ranks)?)
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

/// Prints a report to standard output, beside published figures where there are some.
pub fn print(report: &Report, format: ReportFormat, published: Option<(Published, TestSet)>) {
    match format {
        ReportFormat::Json => println!("{}", report.to_json().trim_end()),
        ReportFormat::Table => {
            print!("{}", report.table());
            if let Some((release, set)) = published {
                print!("\n{}", recall::comparison(report, release, set));
            }
        }
    }
}

/// Prints a report by Chinese-CLIP's protocol to standard output.
pub fn print_related(report: &RelatedReport, format: ReportFormat) {
    match format {
        ReportFormat::Json => println!("{}", report.to_json().trim_end()),
        ReportFormat::Table => print!("{}", report.table()),
    }
}
