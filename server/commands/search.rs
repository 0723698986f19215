//! `ernie-vil search`: the pictures of a folder, ranked for a text or another picture.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ernie_vil::image::{Pixels, Preprocessor};
use ernie_vil::index::EmbeddingIndex;
use ernie_vil::native::atomic_file::beside;
use ernie_vil::native::images::ImageLimits;
use ernie_vil::native::index_file::{self, FOLDER, IndexFile, Kind, Opened};
use ernie_vil::native::pictures::{self, Listing, name_of_id};
use ernie_vil::native::{Error, Model, Progress as _, input};
use rayon::prelude::*;
use serde_json::json;

use crate::builtin;
use crate::cli;
use crate::images;
use crate::print::{self, note, outln};
use crate::progress::{Progress, Unit};

/// Pictures that go through the image tower together.
const BATCH: usize = 16;
/// How long what was embedded may wait to be brought to the disk.
const UNSYNCED: Duration = Duration::from_secs(1);
/// A sub-folder that had as many pictures, and has nothing in it any more, is looked at as one that is not
/// mounted.
const EMPTIED: usize = 10;
/// Names that a message shows at most.
const SHOWN: usize = 10;

pub fn run(args: &cli::Search, global: &cli::Global) -> Result<()> {
    ensure!(args.images.is_dir(), "{} is no folder", args.images.display());
    ensure!(
        args.index.is_some() || !args.prune,
        "--prune is about an index, so --index has to be given"
    );
    let model = builtin::load(&args.model, &[args.device.options()], global)?;
    let (text_width, image_width) = (model.config().text.width, model.config().image.width());
    ensure!(
        args.text.is_empty() || text_width == image_width,
        "this model's towers have different widths ({text_width} and {image_width}), so a text cannot be compared with a picture"
    );
    let index = index(&model, args, global)?;
    ensure!(
        !index.is_empty(),
        "{} has no picture that could be read, expected files in JPEG, PNG, WebP, BMP, TIFF or PNM",
        args.images.display()
    );

    let mut queries = Vec::new();
    for text in &args.text {
        queries.push((text.clone(), model.embed_captions(0, &[&model.encode(text)?])?));
    }
    for path in &args.image {
        let crop = crop(&model.preprocessor(), path, &images::limits(&args.limits))?;
        queries.push((path.display().to_string(), model.embed_images(0, crop.data())?));
    }
    let folder = source_of(&args.images)?;
    for (i, (name, query)) in queries.iter().enumerate() {
        let hits = index.search(query.row(0), args.top)?;
        let hits = hits
            .iter()
            .map(|hit| (hit.score, Found::new(&index, hit.id, args, &folder)));
        if args.json {
            let hits: Vec<_> = hits
                .map(|(score, found)| match found {
                    Found::Picture(file) => {
                        let mut hit = print::path_fields(&file);
                        hit.insert("score".into(), json!(score));
                        hit.into()
                    }
                    Found::Other(id) => json!({"id": id, "score": score}),
                })
                .collect();
            outln!("{}", json!({"query": name, "hits": hits}))?;
            continue;
        }
        if queries.len() > 1 {
            outln!("{}{name}", if i > 0 { "\n" } else { "" })?;
        }
        for (score, found) in hits {
            let name = match found {
                Found::Picture(file) => print::path_bytes(&file),
                Found::Other(id) => printable(id).into_bytes(),
            };
            print::write_lines(&[format!("{score:.4}  ").as_bytes(), &name, b"\n"].concat())?;
        }
    }
    Ok(())
}

/// What an entry of the index stands for.
enum Found<'a> {
    Picture(PathBuf),
    /// What a server's client has added, say.
    Other(&'a str),
}

impl<'a> Found<'a> {
    fn new(index: &EmbeddingIndex, id: &'a str, args: &cli::Search, folder: &str) -> Self {
        match index.source(id) {
            Some(source) if source == folder => Self::Picture(path_in(&args.images, id)),
            Some(source) => match source.strip_prefix(FOLDER) {
                Some(other) => Self::Picture(path_in(&pictures::path_of(Path::new(""), other), id)),
                None => Self::Other(id),
            },
            None if is_picture(id) => Self::Picture(path_in(&args.images, id)),
            None => Self::Other(id),
        }
    }
}

/// A text of which a terminal sees no control characters.
fn printable(text: &str) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// Whether an id has the form that [`pictures::Picture::id`] gives it.
fn is_picture(id: &str) -> bool {
    let parts: Vec<&str> = id.rsplitn(3, '\t').collect();
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    matches!(*parts, [time, size, name] if is_number(time) && is_number(size) && !name.is_empty())
}

/// What the index says about where a folder's pictures come from, whatever the folder is called.
fn source_of(folder: &Path) -> Result<String> {
    let real = fs::canonicalize(folder).with_context(|| folder.display().to_string())?;
    let name = pictures::name_of(&real).with_context(|| real.display().to_string())?;
    Ok(format!("{FOLDER}{name}"))
}

/// The file that an id stands for.
fn path_in(folder: &Path, id: &str) -> PathBuf {
    pictures::path_of(folder, name_of_id(id))
}

/// The folder's pictures, those of an earlier search taken from the index file.
fn index(model: &Model, args: &cli::Search, global: &cli::Global) -> Result<EmbeddingIndex> {
    let config = model.config();
    let Some(path) = &args.index else {
        let mut index = EmbeddingIndex::new(config.image.width(), config.fingerprint.clone());
        let pictures = Pictures::of(args, &index)?;
        let new = pictures.new_ones(&index);
        embed(model, args, global, &new, &mut index, |_| Ok(()))?;
        pictures.report(global);
        return Ok(index);
    };
    let kind = Kind {
        dimensions: config.image.width(),
        fingerprint: &config.fingerprint,
        dtype: None,
        salvage: args.salvage_index,
    };
    let why = match IndexFile::open(path, &kind, false) {
        Ok(Some(opened)) => return update(model, args, global, opened),
        Ok(None) => "another process writes to it".to_owned(),
        // Of one that may only be read there has to be something.
        Err(error) if is_there(path) && is_read_only(&error) => format!("{error:#}"),
        Err(error) => return Err(error.into()),
    };
    ensure!(
        !args.prune,
        "{} can only be read, so --prune cannot remove anything: {why}",
        path.display()
    );
    let index = index_file::read(path, &kind)?;
    note!(
        "{} is only read, and searched as it is, without what is new in the folder: {why}",
        path.display()
    );
    ensure!(!index.is_empty(), "{} has nothing to search in", path.display());
    Ok(index)
}

/// Whether there is an index to read: of one that was never saved there is only the log.
fn is_there(path: &Path) -> bool {
    path.exists() || index_file::real_path(path).is_ok_and(|path| beside(&path, ".log").exists())
}

fn is_read_only(error: &Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error.io_kind(), Some(PermissionDenied | ReadOnlyFilesystem))
}

/// Brings an index up to what is in the folder, in memory and on the disk.
fn update(model: &Model, args: &cli::Search, global: &cli::Global, opened: Opened) -> Result<EmbeddingIndex> {
    let Opened {
        mut index,
        mut file,
        notes,
    } = opened;
    for note in notes {
        note!("{note}");
    }
    let folder = source_of(&args.images)?;
    let pictures = Pictures::of(args, &index)?;
    let earlier = Earlier::in_index(&index, &folder, &pictures);
    let gone = earlier.gone(args, &pictures)?;
    index.set_source(Some(&folder))?;
    // What earlier versions made has no source, and what is in a folder that was moved another one.
    let moved = earlier.other.is_some();
    for id in earlier.there.iter().chain(&earlier.unrecorded) {
        index.assign_source(id);
    }
    index.keep_log(true);
    for id in &gone {
        index.remove(id);
    }
    let records = index.take_log();
    file.append_removals(&records, &index, |id| gone.contains(id))?;
    report_removed(&gone);

    let new = pictures.new_ones(&index);
    let mut synced = Instant::now();
    let kept = embed(model, args, global, &new, &mut index, |index| {
        let records = index.take_log();
        file.append_unsynced(&records, index)?;
        if synced.elapsed() > UNSYNCED {
            file.sync()?;
            synced = Instant::now();
        }
        Ok(())
    });
    // Whatever stopped it: what was embedded stays.
    file.sync()?;
    kept?;
    pictures.report(global);
    if file.log_bytes() > 0 || moved {
        match file.fold(&index) {
            Ok(()) => file.tidy(),
            Err(error) => note!("nothing is lost, but the index could not be saved anew: {error:#}"),
        }
    } else {
        file.tidy();
    }
    Ok(index)
}

/// The pictures that there are now, by their ids.
struct Pictures {
    ids: HashMap<String, PathBuf>,
    listing: Listing,
}

impl Pictures {
    /// Those of the folder. What the index has is not looked into again.
    fn of(args: &cli::Search, index: &EmbeddingIndex) -> Result<Self> {
        let options = pictures::Options {
            all_files: args.all_files,
            follow_links: args.follow_links,
        };
        let mut listing = pictures::list(&args.images, options, |id| index.has(id))?;
        let files = std::mem::take(&mut listing.pictures);
        let ids = files.into_iter().map(|file| (file.id(), file.path)).collect();
        Ok(Self { ids, listing })
    }

    /// Whether a picture that is not listed is no longer in the folder: not whether it could not be looked
    /// at.
    fn lack(&self, root: &Path, id: &str) -> bool {
        let file = path_in(root, id);
        !self.listing.may_hide(&file) || is_gone(&file)
    }

    /// Says what is in the folder and not among the pictures.
    fn report(&self, global: &cli::Global) {
        for line in self.listing.left_out.report(!global.quiet) {
            note!("{line}");
        }
    }

    /// Those that the index does not have, by name.
    fn new_ones(&self, index: &EmbeddingIndex) -> Vec<(&str, &Path)> {
        let all = self.ids.iter().map(|(id, file)| (id.as_str(), file.as_path()));
        let mut new: Vec<_> = all.filter(|(id, _)| !index.has(id)).collect();
        new.sort_unstable();
        new
    }
}

/// What earlier searches have put into an index.
#[derive(Default)]
struct Earlier {
    /// The folder that they were for, where it was another one.
    other: Option<String>,
    /// Of their pictures, those that are still as they were.
    there: Vec<String>,
    /// Those that are not.
    missing: Vec<String>,
    /// Pictures of this folder in an index in which others are of another kind, so that nothing is known but
    /// that.
    unrecorded: Vec<String>,
}

impl Earlier {
    fn in_index(index: &EmbeddingIndex, folder: &str, pictures: &Pictures) -> Self {
        let mut earlier = Self::default();
        let ids = index.ids();
        // Indexes of before sources were recorded are a search's where all ids look like that, and somebody
        // else's where some do not.
        let is_mixed = ids.iter().any(|id| index.source(id).is_none() && !is_picture(id));
        for id in ids {
            let source = index.source(id);
            let is_there = pictures.ids.contains_key(id);
            match source.map(|source| source.strip_prefix(FOLDER)) {
                Some(None) => continue,
                Some(Some(other)) if source != Some(folder) => earlier.other = Some(other.to_owned()),
                Some(Some(_)) => {}
                None if !is_picture(id) => continue,
                None if is_mixed && is_there => {
                    earlier.unrecorded.push(id.to_owned());
                    continue;
                }
                None if is_mixed => continue,
                None => {}
            }
            let list = if is_there {
                &mut earlier.there
            } else {
                &mut earlier.missing
            };
            list.push(id.to_owned());
        }
        earlier
    }

    /// The ids of those pictures that are to be removed, as they are gone or have changed since.
    fn gone(&self, args: &cli::Search, pictures: &Pictures) -> Result<HashSet<String>> {
        if args.prune {
            let is_gone = |id: &&String| pictures.lack(&args.images, id);
            return Ok(self.missing.iter().filter(is_gone).cloned().collect());
        }
        let names: HashSet<&str> = pictures.ids.keys().map(|id| name_of_id(id)).collect();
        // Another version of the file is there, or no file.
        let (changed, missing): (Vec<&String>, Vec<&String>) =
            self.missing.iter().partition(|id| names.contains(name_of_id(id)));
        let missing: Vec<&String> = missing
            .into_iter()
            .filter(|id| {
                let file = path_in(&args.images, id);
                // What is no picture any more is not listed. Of what is behind a link to nothing, nothing is
                // known.
                !pictures.listing.may_hide(&file) && (is_gone(&file) || pictures::is_another(&file, id))
            })
            .collect();
        let (folder, all) = (args.images.display(), self.there.len() + self.missing.len());
        if let Some(other) = &self.other
            && changed.len() + missing.len() > 0
        {
            bail!(
                "the index was made for the folder {other}, and {} of its {all} pictures are not in {folder} as they were. \
                 Nothing was removed; --prune removes those that are not in {folder}",
                changed.len() + missing.len()
            );
        }
        ensure!(
            missing.is_empty() || !pictures.ids.is_empty(),
            "{folder} has no picture, and the index has {all} of it; is something not mounted? Nothing was removed; --prune \
             removes what is gone"
        );
        ensure!(
            missing.len() * 2 <= all,
            "{} of the {all} pictures that the index has of {folder} are gone; is it another folder, or is something not \
             mounted? Nothing was removed; --prune removes what is gone",
            missing.len()
        );
        let mut emptied: BTreeMap<PathBuf, usize> = BTreeMap::new();
        for id in &missing {
            if let Some(folder) = emptied_folder(&args.images, &path_in(&args.images, id)) {
                *emptied.entry(folder).or_default() += 1;
            }
        }
        if let Some((folder, count)) = emptied.iter().find(|&(_, &count)| count >= EMPTIED) {
            bail!(
                "{} is empty, and the index has {count} pictures of it; is it not mounted? Nothing was removed; --prune \
                 removes what is gone",
                folder.display()
            );
        }
        Ok(changed.into_iter().chain(missing).cloned().collect())
    }
}

/// Whether there is no such file: not whether it could not be looked at.
fn is_gone(file: &Path) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    fs::symlink_metadata(file).is_err_and(|error| matches!(error.kind(), NotFound | NotADirectory))
}

/// The nearest folder above a file that is there, where that is below the root and has nothing in it.
fn emptied_folder(root: &Path, file: &Path) -> Option<PathBuf> {
    let mut folders = file.ancestors().skip(1).take_while(|folder| *folder != root);
    let folder = folders.find(|folder| folder.is_dir())?;
    let is_empty = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    is_empty.then(|| folder.to_owned())
}

fn report_removed(gone: &HashSet<String>) {
    if gone.is_empty() {
        return;
    }
    let mut names: Vec<String> = gone.iter().map(|id| printable(name_of_id(id))).collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    let more = if more > 0 {
        format!(", and {more} more")
    } else {
        String::new()
    };
    note!(
        "removed {} from the index, which are gone or have changed: {}{more}",
        gone.len(),
        names.join(", ")
    );
}

/// Embeds pictures into an index; `keep` is called after each batch.
fn embed(
    model: &Model,
    args: &cli::Search,
    global: &cli::Global,
    new: &[(&str, &Path)],
    index: &mut EmbeddingIndex,
    mut keep: impl FnMut(&mut EmbeddingIndex) -> Result<()>,
) -> Result<()> {
    let progress = Progress::new("embedding", Unit::Items("pictures"), global.quiet);
    progress.set_total(Some(new.len() as u64));
    let (preprocessor, limits) = (model.preprocessor(), images::limits(&args.limits));
    let mut skipped = Vec::new();
    for batch in new.chunks(BATCH) {
        let read: Vec<Result<Pixels>> = (batch.par_iter())
            .map(|(_, file)| crop_listed(&preprocessor, file, &limits))
            .collect();
        let (mut good, mut crops) = (Vec::new(), Vec::new());
        for ((id, _), crop) in batch.iter().zip(read) {
            match crop {
                Ok(crop) => {
                    crops.extend_from_slice(crop.data());
                    good.push(*id);
                }
                Err(error) => skipped.push(error),
            }
        }
        let vectors = model.embed_images(0, &crops)?;
        for (row, id) in good.into_iter().enumerate() {
            index.add(id.to_owned(), vectors.row(row))?;
        }
        keep(index)?;
        progress.add(batch.len() as u64);
    }
    drop(progress);
    for error in skipped.iter().take(SHOWN) {
        note!("skipped {error:#}");
    }
    if skipped.len() > SHOWN {
        note!("skipped {} more that could not be read", skipped.len() - SHOWN);
    }
    Ok(())
}

/// As [`crop`], of a picture that was listed, and only if it is still a file.
fn crop_listed(preprocessor: &Preprocessor, file: &Path, limits: &ImageLimits) -> Result<Pixels> {
    let bytes = pictures::read(file, limits.limits.max_bytes as u64)?;
    let crop = limits.crop(preprocessor, &bytes);
    crop.with_context(|| file.display().to_string())
}

/// Reads a picture, of which the crop is kept that the image tower sees.
pub fn crop(preprocessor: &Preprocessor, file: &Path, limits: &ImageLimits) -> Result<Pixels> {
    let bytes = input::read(file, limits.limits.max_bytes as u64)?;
    let crop = limits.crop(preprocessor, &bytes);
    crop.with_context(|| file.display().to_string())
}
