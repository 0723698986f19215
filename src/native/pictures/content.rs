//! What a file is: a picture or not, by its first bytes.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use crate::native::Result;
use crate::native::error::{Context, bail, ensure};

/// So many bytes of a file are looked at.
const LOOKED_AT: u64 = 4096;

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

/// What something is that is neither a file nor a folder.
pub(super) fn irregular(kind: FileType) -> &'static str {
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

/// Reads a file of a folder, of at most `limit` bytes, and only if it is still a regular file.
///
/// # Errors
/// Where it cannot be read, has more bytes or is no regular file.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let name = || path.display().to_string();
    let file = match open(path).with_context(name)? {
        Ok(file) => file,
        Err(kind) => bail!("{} is a {kind} by now, expected a file", name()),
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
pub(super) enum Content {
    Picture,
    /// A picture in a format that cannot be read.
    Format(&'static str),
    /// A picture by its name, and this by its content.
    NoPicture(&'static str),
    Irregular(&'static str),
    Unreadable(io::Error),
    Other,
}

pub(super) fn content(path: &Path) -> Content {
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
    use std::fs;

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
                let read = crate::image::decode(&bytes, &crate::image::Limits::default()).is_ok();
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
