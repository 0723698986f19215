//! `ernie-vil search`: the pictures of a folder, ranked for a text or another picture.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};
use ernie_vil::image::{Limits, Pixels, Preprocessor, decode};
use ernie_vil::index::EmbeddingIndex;
use rayon::prelude::*;
use serde_json::json;

use crate::atomic_file::AtomicFile;
use crate::cli;
use crate::model::{self, Model};
use crate::progress::{Progress, Unit};

/// Pictures that go through the image tower together.
const BATCH: usize = 16;
/// What the names of pictures end in.
const EXTENSIONS: [&str; 10] = [
    "jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "pnm",
];

pub fn run(args: &cli::Search, global: &cli::Global) -> Result<()> {
    ensure!(args.images.is_dir(), "{} is no folder", args.images.display());
    let model = Model::load(&args.model, &[args.device], global)?;
    let (text_width, image_width) = (model.config().text.width, model.config().image.width());
    ensure!(
        args.text.is_empty() || text_width == image_width,
        "this model's towers have different widths ({text_width} and {image_width}), so a text cannot be compared with a picture"
    );
    let index = index(&model, args, global)?;
    ensure!(
        !index.is_empty(),
        "{} has no picture that could be read (names ending in {})",
        args.images.display(),
        EXTENSIONS.join(", ")
    );

    let mut queries = Vec::new();
    for text in &args.text {
        queries.push((text.clone(), model.embed_captions(0, &[&model.encode(text)?])?));
    }
    for path in &args.image {
        let crop = crop(&model.preprocessor(), path)?;
        queries.push((path.display().to_string(), model.embed_images(0, crop.data())?));
    }
    for (i, (name, query)) in queries.iter().enumerate() {
        let hits = index.search(query.row(0), args.top)?;
        let hits = hits
            .iter()
            .map(|hit| (hit.score, args.images.join(file_of(hit.id))));
        if args.json {
            let hits: Vec<_> = hits
                .map(|(score, file)| json!({"file": file, "score": score}))
                .collect();
            println!("{}", json!({"query": name, "hits": hits}));
            continue;
        }
        if queries.len() > 1 {
            println!("{}{name}", if i > 0 { "\n" } else { "" });
        }
        for (score, file) in hits {
            println!("{score:.4}  {}", file.display());
        }
    }
    Ok(())
}

/// An index entry's id: the file within the folder, its size and its time of change. A changed file is
/// another entry, so the vector of what it was is never found under its name.
fn id_of(root: &Path, file: &Path) -> Result<String> {
    let metadata = fs::metadata(file).with_context(|| file.display().to_string())?;
    let changed = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let name = file.strip_prefix(root).unwrap_or(file);
    let name = name
        .to_str()
        .with_context(|| format!("{} is not a name in UTF-8", file.display()))?;
    Ok(format!(
        "{name}\t{}\t{}",
        metadata.len(),
        changed.map_or(0, |time| time.as_nanos())
    ))
}

fn file_of(id: &str) -> &str {
    id.rsplitn(3, '\t').last().unwrap_or(id)
}

/// The folder's pictures, those of an earlier search taken from the index file.
fn index(model: &Model, args: &cli::Search, global: &cli::Global) -> Result<EmbeddingIndex> {
    let config = model.config();
    let mut index = match &args.index {
        Some(path) if path.exists() => {
            let in_index = || path.display().to_string();
            let index = EmbeddingIndex::load(&model::map(path)?).with_context(in_index)?;
            index
                .check_fingerprint(&config.fingerprint)
                .with_context(in_index)?;
            index
        }
        _ => EmbeddingIndex::new(config.image.width(), config.fingerprint.clone()),
    };
    let mut files = Vec::new();
    list(&args.images, &mut files)?;
    let mut ids = HashMap::new();
    for file in &files {
        match id_of(&args.images, file) {
            Ok(id) => {
                ids.insert(id, file.as_path());
            }
            Err(error) => eprintln!("skipped {error:#}"),
        }
    }
    let before: HashSet<String> = index.ids().into_iter().map(str::to_owned).collect();
    for gone in before.iter().filter(|id| !ids.contains_key(*id)) {
        index.remove(gone);
    }
    let mut new: Vec<(&String, &&Path)> = ids.iter().filter(|(id, _)| !before.contains(*id)).collect();
    new.sort();
    let changed = !new.is_empty() || index.len() != before.len();

    let progress = Progress::new("embedding", Unit::Items("pictures"), global.quiet);
    progress.set_total(Some(new.len() as u64));
    let preprocessor = model.preprocessor();
    let mut skipped = Vec::new();
    for batch in new.chunks(BATCH) {
        let read: Vec<Result<Pixels>> = (batch.par_iter())
            .map(|(_, file)| crop(&preprocessor, file))
            .collect();
        let (mut good, mut crops) = (Vec::new(), Vec::new());
        for ((id, _), crop) in batch.iter().zip(read) {
            match crop {
                Ok(crop) => {
                    crops.extend_from_slice(crop.data());
                    good.push(id);
                }
                Err(error) => skipped.push(error),
            }
        }
        let vectors = model.embed_images(0, &crops)?;
        for (row, id) in good.into_iter().enumerate() {
            index.add(String::clone(id), vectors.row(row))?;
        }
        progress.add(batch.len() as u64);
    }
    drop(progress);
    for error in skipped {
        eprintln!("skipped {error:#}");
    }
    if let (Some(path), true) = (&args.index, changed) {
        let mut file = std::io::BufWriter::new(AtomicFile::create(path)?);
        index.save(&mut file)?;
        file.into_inner().map_err(|error| error.into_error())?.commit()?;
    }
    Ok(index)
}

/// Reads a picture, of which the crop is kept that the image tower sees.
pub fn crop(preprocessor: &Preprocessor, file: &Path) -> Result<Pixels> {
    let limits = Limits::default();
    let bytes = model::read(file, limits.max_bytes as u64)?;
    let pixels = decode(&bytes, &limits).with_context(|| file.display().to_string())?;
    Ok(preprocessor.crop(&pixels))
}

/// Lists the pictures of a folder and its sub-folders, by name; links to folders are not followed.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    let mut entries = entries.with_context(|| folder.display().to_string())?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, kind) = (entry.path(), entry.file_type()?);
        let extension = path
            .extension()
            .unwrap_or_default()
            .to_string_lossy()
            .to_lowercase();
        if kind.is_dir() {
            list(&path, files)?;
        } else if EXTENSIONS.contains(&extension.as_str()) {
            files.push(path);
        }
    }
    Ok(())
}
