//! The pictures of a folder, as a photo program finds them: by what is in the files. What is left out is
//! counted.
//!
//! ```
//! use ernie_vil::native::pictures::{self, Options};
//! let folder = tempfile::tempdir().unwrap();
//! std::fs::write(folder.path().join("a.bin"), b"P5 1 1 255 \0").unwrap();
//! std::fs::write(folder.path().join("b.jpg"), b"no picture").unwrap();
//! let listing = pictures::list(folder.path(), Options::default(), |_| false).unwrap();
//! assert_eq!(listing.pictures.len(), 1);
//! assert_eq!(listing.pictures[0].name, "a.bin");
//! assert_eq!(
//!     listing.left_out.report(false),
//!     ["skipped 1 that are pictures only by their names: b.jpg (bytes of no known image format)"]
//! );
//! ```

mod content;
mod names;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, FileType, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;

use super::Result;
use super::error::Context;
use content::{Content, content, irregular};

pub use content::{is_picture, read};
pub use names::{name_of, path_of};

/// So many names are said of each kind of what is left out.
const SHOWN: usize = 3;

/// Files and folders beside the hidden ones that systems and programs make, in lower case.
const JUNK: [&str; 15] = [
    // Synology, QNAP.
    "@eadir",
    "@tmp",
    "#recycle",
    "#snapshot",
    "@recycle",
    "@__thumb",
    "@recently-snapshot",
    // Windows.
    "$recycle.bin",
    "recycler",
    "system volume information",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    // Linux, macOS.
    "lost+found",
    "__macosx",
];

/// What is listed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Hidden files and folders, trash and thumbnails as well.
    pub all_files: bool,
    /// Linked folders as well.
    pub follow_links: bool,
}

/// A file that is a picture by its first bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Where it is.
    pub path: PathBuf,
    /// Its path within the folder, as a text from which [`path_of`] makes the path again.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was changed, in nanoseconds since 1970; 0 where that is not known.
    pub changed: u128,
}

impl Picture {
    /// Its id in an index: name, size and time of change. A changed file is another entry, so the vector of
    /// what it was is never found under its name.
    pub fn id(&self) -> String {
        format!("{}\t{}\t{}", self.name, self.bytes, self.changed)
    }
}

/// Whether a file is there that is no longer the one of an [id](Picture::id): another size, or changed since.
pub fn is_another(path: &Path, id: &str) -> bool {
    fs::metadata(path).is_ok_and(|metadata| {
        let now = format!("\t{}\t{}", metadata.len(), changed(&metadata));
        !id.ends_with(&now)
    })
}

/// The name within an [id](Picture::id).
pub fn name_of_id(id: &str) -> &str {
    id.rsplitn(3, '\t').last().unwrap_or(id)
}

/// What a folder holds.
#[derive(Debug)]
pub struct Listing {
    /// The pictures, ordered by their paths.
    pub pictures: Vec<Picture>,
    /// What could not be looked into, files and folders: a file there may exist although it is not listed.
    pub unseen: Vec<PathBuf>,
    /// What is not among the pictures.
    pub left_out: LeftOut,
}

impl Listing {
    /// Whether a file may exist although it is not listed.
    pub fn may_hide(&self, path: &Path) -> bool {
        self.unseen.iter().any(|unseen| path.starts_with(unseen))
    }
}

/// Files and folders that are not listed, by the reason.
#[derive(Debug, Default)]
pub struct LeftOut {
    /// Hidden files, trash and the like.
    junk: Names,
    linked_folders: Names,
    /// Linked folders that were looked into already.
    seen_folders: Names,
    broken_links: Names,
    /// Other names of a file that is listed.
    same_files: Names,
    /// FIFOs, sockets and devices.
    irregular: BTreeMap<&'static str, usize>,
    irregular_names: Names,
    /// Pictures in formats that cannot be read.
    formats: BTreeMap<&'static str, usize>,
    /// Files that are pictures only by their names.
    no_pictures: Names,
    /// Files and folders that could not be read, with the reason.
    errors: Names,
}

/// A number of files, and the first of their names.
#[derive(Debug, Default)]
struct Names {
    count: usize,
    first: Vec<String>,
}

impl Names {
    fn add(&mut self, name: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(name());
        }
    }

    /// The names in a message.
    fn shown(&self) -> String {
        let more = if self.count > self.first.len() {
            ", ..."
        } else {
            ""
        };
        format!("{}{more}", self.first.join(", "))
    }
}

impl LeftOut {
    /// What a user should know, a line each. What is left out by intent is among it only with `remarks`.
    pub fn report(&self, remarks: bool) -> Vec<String> {
        let mut lines = Vec::new();
        let mut say = |names: &Names, what: &str| {
            if names.count > 0 {
                lines.push(format!("skipped {} {what}: {}", names.count, names.shown()));
            }
        };
        say(&self.errors, "that could not be read");
        say(&self.no_pictures, "that are pictures only by their names");
        if !self.irregular.is_empty() {
            let kinds = counted(&self.irregular);
            say(
                &self.irregular_names,
                &format!("that are no regular files ({kinds})"),
            );
        }
        say(&self.broken_links, "links that lead to nothing");
        say(
            &self.linked_folders,
            "linked folders (--follow-links looks into them)",
        );
        if !self.formats.is_empty() {
            lines.push(format!(
                "not read: {}; expected JPEG, PNG, WebP, BMP, TIFF or PNM",
                counted(&self.formats)
            ));
        }
        if remarks {
            let mut note = |names: &Names, what: &str| {
                if names.count > 0 {
                    lines.push(format!("note: {} {what}: {}", names.count, names.shown()));
                }
            };
            note(
                &self.junk,
                "hidden files and folders, trash and thumbnails were left out (--all-files takes them)",
            );
            note(&self.same_files, "other names of the same files were left out");
            note(&self.seen_folders, "linked folders are looked into elsewhere");
        }
        lines
    }
}

fn counted(kinds: &BTreeMap<&'static str, usize>) -> String {
    let kinds: Vec<String> = kinds
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    kinds.join(", ")
}

/// Lists the pictures of a folder and its sub-folders. A file of which `known` knows the [id](Picture::id) is
/// not opened: it was a picture when it was last changed.
///
/// # Errors
/// Where the folder itself cannot be read. What is within it and cannot be read is counted.
pub fn list(root: &Path, options: Options, known: impl Fn(&str) -> bool + Sync) -> Result<Listing> {
    let mut walk = Walk {
        root,
        options,
        files: Vec::new(),
        folders: vec![root.to_owned()],
        links: VecDeque::new(),
        unseen: Vec::new(),
        left_out: LeftOut::default(),
    };
    walk.run().with_context(|| root.display().to_string())?;
    let Walk {
        files,
        unseen,
        mut left_out,
        ..
    } = walk;
    // Of several names of a file the one that is no link is listed, of these one that is known, and of these
    // the first.
    let mut files: Vec<_> = files
        .into_par_iter()
        .map(|file| (!known(&file.picture.id()), file))
        .collect();
    files.sort_by(|(a_is_new, a), (b_is_new, b)| {
        (a.is_link, a_is_new, &a.picture.path).cmp(&(b.is_link, b_is_new, &b.picture.path))
    });
    let contents: Vec<Content> = files
        .par_iter()
        .map(|(is_new, file)| match is_new {
            false => Content::Picture,
            true => content(&file.picture.path),
        })
        .collect();
    let mut pictures = Vec::new();
    let mut seen = HashSet::new();
    for ((_, file), content) in files.into_iter().zip(contents) {
        let name = || shown(root, &file.picture.path);
        match content {
            Content::Picture if file.identity.is_none_or(|identity| seen.insert(identity)) => {
                pictures.push(file.picture);
            }
            Content::Picture => left_out.same_files.add(name),
            Content::Format(format) => *left_out.formats.entry(format).or_default() += 1,
            Content::NoPicture(what) => left_out.no_pictures.add(|| format!("{} ({what})", name())),
            Content::Irregular(kind) => {
                *left_out.irregular.entry(kind).or_default() += 1;
                left_out.irregular_names.add(name);
            }
            Content::Unreadable(error) => left_out.errors.add(|| format!("{} ({error})", name())),
            Content::Other => {}
        }
    }
    pictures.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Listing {
        pictures,
        unseen,
        left_out,
    })
}

/// A path within the folder, for people.
fn shown(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

/// A regular file.
struct Found {
    picture: Picture,
    /// Whether its own name is a link.
    is_link: bool,
    identity: Option<Identity>,
}

/// By which two names are the same file: device, inode, size and time of change. Some file systems number
/// their files anew, so that two different ones may share the first two.
type Identity = (u64, u64, u64, u128);

struct Walk<'a> {
    root: &'a Path,
    options: Options,
    files: Vec<Found>,
    /// Folders that are still to be looked into, and behind them those to which links lead, so that a folder
    /// is found under its own name if it has one here.
    folders: Vec<PathBuf>,
    links: VecDeque<PathBuf>,
    unseen: Vec<PathBuf>,
    left_out: LeftOut,
}

impl Walk<'_> {
    fn run(&mut self) -> io::Result<()> {
        let mut seen = HashSet::new();
        while let Some(folder) = self.folders.pop().or_else(|| self.links.pop_front()) {
            // Without links there is no way round to a folder that was seen.
            if self.options.follow_links {
                match fs::metadata(&folder) {
                    Ok(metadata) if !seen.insert(folder_identity(&folder, &metadata)) => {
                        self.left_out.seen_folders.add(|| shown(self.root, &folder));
                        continue;
                    }
                    // What is wrong is seen below.
                    Ok(_) | Err(_) => {}
                }
            }
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if folder == self.root => return Err(error),
                Err(error) => {
                    self.failed(&folder, &error);
                    continue;
                }
            };
            let mut paths = Vec::new();
            for entry in entries {
                match entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))) {
                    Ok(entry) => paths.push(entry),
                    // It was removed meanwhile.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => {
                        self.failed(&folder, &error);
                        break;
                    }
                }
            }
            paths.sort_by(|a, b| a.0.cmp(&b.0));
            for (path, kind) in paths {
                self.entry(path, kind);
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: PathBuf, kind: FileType) {
        if !self.options.all_files && is_junk(path.file_name().unwrap_or_default()) {
            self.left_out.junk.add(|| shown(self.root, &path));
            return;
        }
        if kind.is_dir() {
            self.folders.push(path);
            return;
        }
        let is_link = kind.is_symlink();
        if !is_link && !kind.is_file() {
            *self.left_out.irregular.entry(irregular(kind)).or_default() += 1;
            self.left_out.irregular_names.add(|| shown(self.root, &path));
            return;
        }
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if is_link && leads_to_nothing(&error) => {
                self.left_out.broken_links.add(|| shown(self.root, &path));
                // It may lead to a folder that is not mounted.
                self.unseen.push(path);
                return;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(error) => return self.failed(&path, &error),
        };
        if metadata.is_dir() {
            match self.options.follow_links {
                true => self.links.push_back(path),
                false => self.left_out.linked_folders.add(|| shown(self.root, &path)),
            }
        } else if metadata.is_file() {
            let Some(name) = name_of(path.strip_prefix(self.root).unwrap_or(&path)) else {
                self.left_out
                    .errors
                    .add(|| format!("{} (the name is not Unicode)", shown(self.root, &path)));
                return;
            };
            let picture = Picture {
                name,
                bytes: metadata.len(),
                changed: changed(&metadata),
                path,
            };
            self.files.push(Found {
                identity: identity(&metadata, picture.changed),
                picture,
                is_link,
            });
        } else {
            *self
                .left_out
                .irregular
                .entry(irregular(metadata.file_type()))
                .or_default() += 1;
            self.left_out.irregular_names.add(|| shown(self.root, &path));
        }
    }

    /// Counts what could not be looked into.
    fn failed(&mut self, path: &Path, error: &io::Error) {
        self.unseen.push(path.to_owned());
        self.left_out
            .errors
            .add(|| format!("{} ({error})", shown(self.root, path)));
    }
}

/// Whether the error of a link is that it leads to nothing, or round to itself.
fn leads_to_nothing(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(libc::ELOOP) {
        return true;
    }
    error.kind() == ErrorKind::NotFound
}

fn is_junk(name: &OsStr) -> bool {
    let name = name.to_string_lossy().to_lowercase();
    // The last one holds Lightroom's previews.
    name.starts_with('.') || JUNK.contains(&&*name) || name.ends_with(".lrdata")
}

fn changed(metadata: &Metadata) -> u128 {
    let time = metadata.modified().ok();
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |time| time.as_nanos())
}

#[cfg(unix)]
fn identity(metadata: &Metadata, changed: u128) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino(), metadata.len(), changed))
}

#[cfg(not(unix))]
fn identity(_: &Metadata, _: u128) -> Option<Identity> {
    None
}

/// By which two paths are the same folder.
#[cfg(unix)]
fn folder_identity(_: &Path, metadata: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

#[cfg(not(unix))]
fn folder_identity(folder: &Path, _: &Metadata) -> PathBuf {
    fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_file_that_is_known_is_not_opened_and_one_that_changed_is() {
        assert_eq!(name_of_id("a\tb.jpg\t5\t17"), "a\tb.jpg");
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("sub")).unwrap();
        for name in ["b.jpg", "sub/a.jpg", "c.txt"] {
            fs::write(root.join(name), b"\xff\xd8\xff").unwrap();
        }
        let listed = |known: &(dyn Fn(&str) -> bool + Sync)| {
            let listing = list(root, Options::default(), known).unwrap();
            assert_eq!(listing.unseen, [] as [PathBuf; 0]);
            listing.pictures
        };
        let first = listed(&|_| false);
        let names: Vec<&str> = first.iter().map(|picture| &*picture.name).collect();
        assert_eq!(names, ["b.jpg", "c.txt", "sub/a.jpg"]);
        // The ids of index files that exist.
        let metadata = fs::metadata(root.join("b.jpg")).unwrap();
        let changed = metadata
            .modified()
            .unwrap()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_nanos();
        assert_eq!(first[0].id(), format!("b.jpg\t3\t{changed}"));
        let ids: Vec<String> = first.iter().map(Picture::id).collect();
        // Their content would no longer do.
        for picture in &first {
            fs::write(&picture.path, "tex").unwrap();
            let file = File::options().write(true).open(&picture.path).unwrap();
            file.set_modified(UNIX_EPOCH + std::time::Duration::from_nanos(picture.changed as u64))
                .unwrap();
        }
        let known = |id: &str| ids.iter().any(|known| known == id);
        assert_eq!(listed(&known), first);
        fs::write(root.join("b.jpg"), "longer").unwrap();
        assert_eq!(listed(&known), first[1..]);
    }

    #[cfg(unix)]
    #[test]
    fn what_could_not_be_looked_into_may_still_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::write(root.join("a.jpg"), b"\xff\xd8\xff").unwrap();
        // A link whose target has a name that is too long.
        std::os::unix::fs::symlink("x".repeat(300), root.join("link")).unwrap();
        let listing = list(root, Options::default(), |_| false).unwrap();
        assert_eq!(listing.pictures.len(), 1);
        assert_eq!(listing.unseen, [root.join("link")]);
        assert!(listing.may_hide(&root.join("link/b.jpg")) && listing.may_hide(&root.join("link")));
        assert!(!listing.may_hide(&root.join("link.jpg")) && !listing.may_hide(&root.join("b.jpg")));
        assert!(list(&root.join("gone"), Options::default(), |_| false).is_err());
    }
}
