//! The pictures of a folder, as a photo program finds them: by what is in the files. What is left out is
//! counted.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

/// So many bytes of a file are looked at.
const LOOKED_AT: u64 = 4096;
/// So many names are said of each kind of what is left out.
const SHOWN: usize = 3;

/// What the names of pictures end in that can be read. A file with such a name is reported where it is none.
const READABLE: [&str; 17] = [
    "jpg", "jpeg", "jpe", "jfif", "jif", "mpo", "png", "webp", "bmp", "dib", "tif", "tiff", "pbm", "pgm",
    "ppm", "pnm", "apng",
];

/// What the names of raw photographs end in. Many of them begin as a TIFF, of which only a thumbnail would be
/// read.
const RAW: [&str; 30] = [
    "3fr", "arw", "cr2", "cr3", "crw", "dcr", "dng", "erf", "fff", "gpr", "iiq", "kdc", "mef", "mos", "mrw",
    "nef", "nrw", "orf", "ori", "pef", "raf", "raw", "rw2", "rwl", "sr2", "srf", "srw", "x3f", "k25", "bay",
];

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

/// What something is that is neither a file nor a folder.
fn irregular(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "FIFO";
        }
        if kind.is_socket() {
            return "socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "device";
        }
    }
    let _ = kind;
    "special file"
}

/// In front of a name that is not UTF-8. No path within a folder begins like that, so that all other names
/// can stay as they are.
const ESCAPED: &str = "//";

/// A path as a text. Where it is not UTF-8 its bytes are percent-encoded behind two slashes.
pub fn name_of(path: &Path) -> Option<String> {
    if let Some(name) = path.to_str() {
        return Some(name.to_owned());
    }
    let mut name = ESCAPED.to_owned();
    for chunk in bytes_of(path)?.utf8_chunks() {
        name.push_str(&chunk.valid().replace('%', "%25"));
        name.extend(chunk.invalid().iter().map(|byte| format!("%{byte:02X}")));
    }
    Some(name)
}

/// The path within `root` of a [name](Picture::name).
pub fn path_of(root: &Path, name: &str) -> PathBuf {
    let escaped = name.strip_prefix(ESCAPED);
    match escaped.and_then(unescape).and_then(path_of_bytes) {
        Some(path) => root.join(path),
        None => root.join(name),
    }
}

/// Percent-encoding decoded; none where it is not well-formed.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let code = part
            .get(..2)
            .filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    Some(bytes)
}

#[cfg(unix)]
fn bytes_of(path: &Path) -> Option<&[u8]> {
    use std::os::unix::ffi::OsStrExt;
    Some(path.as_os_str().as_bytes())
}

#[cfg(unix)]
fn path_of_bytes(bytes: Vec<u8>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Some(std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn bytes_of(_: &Path) -> Option<&[u8]> {
    None
}

#[cfg(not(unix))]
fn path_of_bytes(_: Vec<u8>) -> Option<PathBuf> {
    None
}

/// A path as results print it: its bytes as they are, where a program may go on with them.
pub fn printed(path: &Path) -> Vec<u8> {
    #[cfg(unix)]
    if let Some(bytes) = bytes_of(path) {
        return bytes.to_owned();
    }
    path.display().to_string().into_bytes()
}

/// A path for JSON, which has no place for bytes that are not UTF-8: `file`, and where some had to be
/// replaced in it also `file_encoded` with all of them, percent-encoded.
pub fn json_fields(path: &Path) -> serde_json::Map<String, serde_json::Value> {
    let mut fields = serde_json::Map::new();
    fields.insert("file".into(), path.to_string_lossy().into());
    if path.to_str().is_none()
        && let Some(name) = name_of(path)
    {
        let encoded = name.strip_prefix(ESCAPED).unwrap_or(&name);
        fields.insert("file_encoded".into(), encoded.into());
    }
    fields
}

/// Opens a regular file and nothing else. A FIFO, which may have taken its place since it was listed, would
/// keep the program waiting, and a device might never end.
fn open(path: &Path) -> io::Result<Result<File, &'static str>> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // It changes nothing for regular files.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    }
    let file = options.open(path)?;
    let kind = file.metadata()?.file_type();
    Ok(match kind.is_file() {
        true => Ok(file),
        false => Err(irregular(kind)),
    })
}

/// Whether a file is a picture by its first bytes.
pub fn is_picture(path: &Path) -> bool {
    matches!(content(path), Content::Picture | Content::Format(_))
}

/// Reads a file of a folder, of at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let name = || path.display().to_string();
    let file = match open(path).with_context(name)? {
        Ok(file) => file,
        Err(kind) => anyhow::bail!("{} is a {kind} by now, expected a file", name()),
    };
    let size = file.metadata().with_context(name)?.len();
    ensure!(
        size <= limit,
        "{} has {size} bytes, expected at most {limit}",
        name()
    );
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).with_context(name)?;
    ensure!(
        bytes.len() as u64 <= limit,
        "{} has more than {limit} bytes, the limit",
        name()
    );
    Ok(bytes)
}

/// What a file is.
enum Content {
    Picture,
    /// A picture in a format that cannot be read.
    Format(&'static str),
    /// A picture by its name, and this by its content.
    NoPicture(&'static str),
    Irregular(&'static str),
    Unreadable(io::Error),
    Other,
}

fn content(path: &Path) -> Content {
    let start = open(path).and_then(|file| match file {
        Ok(file) => {
            let mut start = Vec::new();
            file.take(LOOKED_AT).read_to_end(&mut start)?;
            Ok(Ok(start))
        }
        Err(kind) => Ok(Err(kind)),
    });
    match start {
        Ok(Ok(start)) => {
            let extension = path
                .extension()
                .unwrap_or_default()
                .to_string_lossy()
                .to_lowercase();
            content_of(&start, &extension)
        }
        Ok(Err(kind)) => Content::Irregular(kind),
        // It was removed meanwhile.
        Err(error) if error.kind() == ErrorKind::NotFound => Content::Other,
        Err(error) => Content::Unreadable(error),
    }
}

/// What a file is by its first bytes. What its name ends in, in lower case, counts where they say too little.
fn content_of(start: &[u8], extension: &str) -> Content {
    let is_named = READABLE.contains(&extension);
    let is_raw = RAW.contains(&extension);
    match start {
        // Such a file has the camera's own JPEG inside, or is a TIFF with more than the picture.
        [b'I', b'I', 42, 0, _, _, _, _, b'C', b'R', ..] => Content::Format("RAW"),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] if is_raw => Content::Format("RAW"),
        [0xff, 0xd8, 0xff, ..]
        | [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..]
        | [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..]
        | [b'I', b'I', 42 | 43, 0, ..]
        | [b'M', b'M', 0, 42 | 43, ..] => Content::Picture,
        // Two letters, with which a text may begin as well.
        [b'B', b'M', ..] if is_named || is_bmp(start) => Content::Picture,
        [b'P', b'1'..=b'6', b' ' | b'\t'..=b'\r', ..] if is_named || is_pnm(start) => Content::Picture,
        _ => match foreign(start, extension, is_raw) {
            Some(format) => Content::Format(format),
            None if is_named => Content::NoPicture(no_picture(start)),
            None => Content::Other,
        },
    }
}

/// Whether the length of a BMP's second header is one that there is.
fn is_bmp(start: &[u8]) -> bool {
    let length = start.get(14..18).and_then(|field| field.first_chunk());
    length.is_some_and(|field| matches!(u32::from_le_bytes(*field), 12 | 16 | 36..=256))
}

/// Whether a width and a height follow the two letters of a PNM.
fn is_pnm(start: &[u8]) -> bool {
    let mut rest = &start[2..];
    for _ in 0..2 {
        let before = rest.len();
        loop {
            rest = rest.trim_ascii_start();
            if rest.first() != Some(&b'#') {
                break;
            }
            let end = rest.iter().position(|&byte| byte == b'\n');
            rest = &rest[end.unwrap_or(rest.len())..];
        }
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if before == rest.len() || !(1..=7).contains(&digits) {
            return false;
        }
        rest = &rest[digits..];
    }
    // A mask needs no more, and what follows may be cut off here.
    rest.first().is_none_or(u8::is_ascii_whitespace)
}

/// The format of a picture that cannot be read.
fn foreign(start: &[u8], extension: &str, is_raw: bool) -> Option<&'static str> {
    /// By the first bytes alone.
    const FORMATS: [(&[u8], &str); 26] = [
        (b"GIF8", "GIF"),
        (b"\0\0\0\x0cjP", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"II\xbc", "JPEG XR"),
        (b"8BPS", "PSD"),
        (b"gimp xcf", "XCF"),
        (b"\x76\x2f\x31\x01", "OpenEXR"),
        (b"#?RADIANCE", "HDR"),
        (b"#?RGBE", "HDR"),
        (b"DDS ", "DDS"),
        (b"qoif", "QOI"),
        (b"BPG\xfb", "BPG"),
        (b"AT&TFORM", "DjVu"),
        (b"icns", "ICNS"),
        (b"P7\nWIDTH", "PAM"),
        (b"PF\n", "PFM"),
        (b"\x59\xa6\x6a\x95", "Sun raster"),
        (b"FUJIFILMCCD-RAW", "RAW"),
        (b"IIRO", "RAW"),
        (b"IIRS", "RAW"),
        (b"MMOR", "RAW"),
        (b"IIU\0", "RAW"),
        (b"FOVb", "RAW"),
        (b"\0MRM", "RAW"),
    ];
    if let Some((_, format)) = FORMATS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(format);
    }
    if start.get(4..8) == Some(b"ftyp") {
        return brand(start);
    }
    if start.get(6..14) == Some(b"HEAPCCDR") {
        return Some("RAW");
    }
    let text = start
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(start)
        .trim_ascii_start();
    if text.starts_with(b"<") && memchr::memmem::find(text, b"<svg").is_some() {
        return Some("SVG");
    }
    match (extension, start) {
        // These have nothing in front that would tell them.
        (_, [_, ..]) if is_raw => Some("RAW"),
        ("ico" | "cur", [0, 0, 1 | 2, 0, ..]) => Some("ICO"),
        ("tga", [_, 0 | 1, 1..=3 | 9..=11, ..]) => Some("TGA"),
        ("pcx", [10, 0..=5, ..]) => Some("PCX"),
        ("sgi" | "rgb" | "rgba" | "bw", [1, 0xda, ..]) => Some("SGI"),
        _ => None,
    }
}

/// The format of a file in the form of MP4, by the brands that it names; videos are none.
fn brand(start: &[u8]) -> Option<&'static str> {
    let length = start
        .first_chunk()
        .map_or(0, |length| u32::from_be_bytes(*length) as usize);
    let brands = start.get(8..length.min(start.len())).unwrap_or_default();
    // The major one, its version, and those that it is compatible with.
    let brands: Vec<&[u8]> = brands.chunks_exact(4).collect();
    let names = |wanted: &[&[u8; 4]]| {
        brands
            .iter()
            .any(|brand| wanted.iter().any(|name| brand == &name.as_slice()))
    };
    if names(&[b"avif", b"avis"]) {
        Some("AVIF")
    } else if names(&[
        b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1",
    ]) {
        Some("HEIC")
    } else if names(&[b"crx "]) {
        Some("RAW")
    } else {
        None
    }
}

/// What a file is that has only the name of a picture.
fn no_picture(start: &[u8]) -> &'static str {
    match start {
        [] => "it is empty",
        // What macOS keeps beside a file where the file system has no room for it.
        [0, 5, 0x16, 7, ..] => "metadata of macOS",
        _ if start.starts_with(b"version https://git-lfs") => "a Git LFS pointer",
        _ if start.trim_ascii_start().starts_with(b"<") => "a page in HTML or XML",
        _ if start.iter().all(|&byte| byte == 0) => "all zeros",
        _ => "bytes of no known image format",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(start: &[u8], extension: &str) -> &'static str {
        match content_of(start, extension) {
            Content::Picture => "picture",
            Content::Format(format) => format,
            Content::NoPicture(what) => what,
            Content::Other => "other",
            Content::Irregular(_) | Content::Unreadable(_) => unreachable!(),
        }
    }

    #[test]
    fn a_file_is_told_by_its_first_bytes() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/images");
        let mut pictures = 0;
        for entry in fs::read_dir(golden).unwrap() {
            let path = entry.unwrap().path();
            let extension = path.extension().unwrap_or_default().to_str().unwrap();
            if ["jpg", "png", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "pbm"].contains(&extension) {
                let bytes = fs::read(&path).unwrap();
                let read = ernie_vil::image::decode(&bytes, &ernie_vil::image::Limits::default()).is_ok();
                pictures += usize::from(read);
                // Whatever its name, and also without one.
                for extension in [extension, "", "txt"] {
                    assert!(
                        !read || kind(&bytes, extension) == "picture",
                        "{}",
                        path.display()
                    );
                }
            }
        }
        assert!(pictures > 30, "{pictures}");
        for (start, extension, expected) in [
            (&b"BMW is a make of cars"[..], "txt", "other"),
            (b"P1 is the first point", "md", "other"),
            (b"P3\n# made by hand\n2 2\n255\n", "", "picture"),
            (b"P6 60000 60000 255 ", "", "picture"),
            (b"P6", "ppm", "bytes of no known image format"),
            (b"", "jpg", "it is empty"),
            (b"", "", "other"),
            (b"<!DOCTYPE html>", "png", "a page in HTML or XML"),
            (b"\0\x05\x16\x07\0", "jpg", "metadata of macOS"),
            (b"GIF89a", "jpg", "GIF"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "jpg", "HEIC"),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "heic", "AVIF"),
            (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "cr3", "RAW"),
            (b"\0\0\0\x18ftypisom\0\0\0\0isommp41", "mp4", "other"),
            (b"II*\0\x10\0\0\0CR\x02\0", "", "RAW"),
            (b"II*\0\x08\0\0\0", "nef", "RAW"),
            (b"II*\0\x08\0\0\0", "nefx", "picture"),
            (b"\xef\xbb\xbf<?xml?><svg/>", "svg", "SVG"),
            (b"\0\0\x01\0\x01\0", "ico", "ICO"),
            (b"\0\0\x01\0\x01\0", "bin", "other"),
        ] {
            assert_eq!(kind(start, extension), expected, "{start:?} {extension}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn every_name_is_a_text_and_comes_back() {
        use std::os::unix::ffi::OsStrExt;
        let root = Path::new("/root");
        for (bytes, name) in [
            (&b"a/b.jpg"[..], "a/b.jpg"),
            ("猫/50%.jpg".as_bytes(), "猫/50%.jpg"),
            (b"%FF.jpg", "%FF.jpg"),
            (b"\xff.jpg", "//%FF.jpg"),
            (b"50%\xc3/\xe7\x8c\xab.jpg", "//50%25%C3/猫.jpg"),
            (b"50%25\xff", "//50%2525%FF"),
        ] {
            let path = Path::new(OsStr::from_bytes(bytes));
            assert_eq!(name_of(path).unwrap(), name);
            assert_eq!(path_of(root, name), root.join(path));
        }
        // What is no such encoding is a name as it is.
        assert_eq!(path_of(root, "//%F"), Path::new("//%F"));
        assert_eq!(name_of_id("a\tb.jpg\t5\t17"), "a\tb.jpg");
    }

    #[test]
    fn a_file_that_is_known_is_not_opened_and_one_that_changed_is() {
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

    #[cfg(unix)]
    #[test]
    fn what_took_the_place_of_a_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe.jpg");
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the name ends with a zero and lives until the call returns.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert!(matches!(content(&path), Content::Irregular("FIFO")));
        let error = read(&path, 10).unwrap_err().to_string();
        assert!(
            error.ends_with("pipe.jpg is a FIFO by now, expected a file"),
            "{error}"
        );
        assert!(matches!(
            content(Path::new("/dev/zero")),
            Content::Irregular("device")
        ));
        fs::write(folder.path().join("file"), "12345").unwrap();
        assert_eq!(read(&folder.path().join("file"), 5).unwrap(), b"12345");
        let error = read(&folder.path().join("file"), 4).unwrap_err().to_string();
        assert!(error.ends_with("file has 5 bytes, expected at most 4"), "{error}");
    }
}
