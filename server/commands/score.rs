//! `ernie-vil score`: recall from a file of vectors.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ernie_vil::Published;
use ernie_vil::native::input;
use ernie_vil::pairs::PairReader;
use ernie_vil::recall::{self, Caption, CaptionReader, RelatedReport, Relations, Report, TestSet};
use ernie_vil::vectors::{Embeddings, Pairs, read_npy, read_out, read_safetensors};

use super::embed;
use crate::cli::{self, ReportFormat};
use crate::print::{note, out, outln};

pub fn run(args: &cli::Score, global: &cli::Global) -> Result<()> {
    let path = &args.file;
    let in_file = || path.display().to_string();
    let mut pairs = read(path)?;
    if let (Some(texts), Some(images)) = (&args.related.texts, &args.related.images) {
        ensure!(
            !args.like_original && args.release.is_none() && args.set.is_none() && args.limit.is_none(),
            "--texts and --images score by Chinese-CLIP's protocol, where --like-original, --release, --set and \
             --limit have no meaning"
        );
        let relations = relations(
            &captions(texts)?,
            texts,
            &image_ids(input::open(images)?.file, images)?,
        )?;
        let report = score_related(&pairs, &relations, global.quiet).with_context(in_file)?;
        return print_related(&report, args.format);
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
    print(&report.with_context(in_file)?, args.format, published)
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
    let file = input::open(path)?.file;
    let captions = CaptionReader::new(BufReader::with_capacity(1 << 18, file));
    captions.collect::<Result<_, _>>().with_context(name)
}

/// The ids of its images, in their order. A line may be an id alone, and a blank one has none. No line may
/// have the id of another.
pub fn image_ids(file: File, path: &Path) -> Result<Vec<String>> {
    let name = || path.display().to_string();
    let mut lines = std::collections::HashMap::new();
    let mut ids = Vec::new();
    for row in PairReader::new(BufReader::with_capacity(1 << 18, file)).with_file_checks() {
        let row = row.with_context(name)?;
        if row.caption.is_empty() {
            continue;
        }
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
        note!(
            "note: {} image ids that captions name are not among the images and can never be found, {first:?} the first",
            relations.missing().len()
        );
    }
    let ranks = recall::related_ranks(&pairs.text, &pairs.image, relations)?;
    Ok(RelatedReport::new(&ranks)?)
}

/// Reads vectors by what the file's name ends in, or else by how they begin; text is the original's format.
fn read(path: &Path) -> Result<Pairs> {
    let in_file = || path.display().to_string();
    let safetensors = |bytes: &[u8]| {
        let vectors = read_safetensors(bytes).and_then(|vectors| vectors.into_pairs());
        vectors.with_context(in_file)
    };
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => safetensors(&input::map_spooled(path, &std::env::temp_dir())?),
        Some("npy") => {
            let name = path.to_string_lossy();
            let stem = [".text.npy", ".image.npy", ".npy"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix));
            let [text, image, _] = embed::npy_paths(Path::new(stem.unwrap_or(&name)));
            let read = |path: &Path| {
                read_npy(&input::map_spooled(path, &std::env::temp_dir())?)
                    .with_context(|| path.display().to_string())
            };
            Ok(Pairs {
                text: read(&text)?,
                image: read(&image)?,
            })
        }
        _ => {
            let mut file = input::open(path)?.file;
            let mut bytes = Vec::new();
            (&mut file)
                .take(9)
                .read_to_end(&mut bytes)
                .with_context(in_file)?;
            // A pipe's name says nothing. A safetensors file begins with its header's length and the header,
            // which no row of text does.
            if bytes.get(8) == Some(&b'{') {
                file.read_to_end(&mut bytes).with_context(in_file)?;
                return safetensors(&bytes);
            }
            read_out(bytes.as_slice().chain(file)).with_context(in_file)
        }
    }
}

/// Prints a report to standard output, beside published figures where there are some.
pub fn print(report: &Report, format: ReportFormat, published: Option<(Published, TestSet)>) -> Result<()> {
    match (format, published) {
        (ReportFormat::Json, _) => outln!("{}", report.to_json().trim_end()),
        (ReportFormat::Table, None) => out!("{}", report.table()),
        (ReportFormat::Table, Some((release, set))) => {
            out!("{}\n{}", report.table(), recall::comparison(report, release, set))
        }
    }
}

/// Prints a report by Chinese-CLIP's protocol to standard output.
pub fn print_related(report: &RelatedReport, format: ReportFormat) -> Result<()> {
    match format {
        ReportFormat::Json => outln!("{}", report.to_json().trim_end()),
        ReportFormat::Table => out!("{}", report.table()),
    }
}
