//! Text files as people's programs write them: with a byte order mark, in another encoding, compressed.

use crate::{Error, Result};

/// The byte order mark that some editors write at the start of UTF-8.
const MARK: char = '\u{feff}';
/// What converts the usual other encoding of Chinese text.
pub(crate) const OTHER_ENCODING: &str =
    "expected UTF-8; text in GBK or GB18030 is converted by `iconv -f GB18030 -t UTF-8 OLD > NEW`";

/// Reads the bytes of a text file, without the byte order mark at its start.
///
/// ```
/// use ernie_vil::text_file::text;
/// assert_eq!(text("\u{feff}猫\n狗".as_bytes())?, "猫\n狗");
/// let error = text(b"\xff\xfe+s\n\0").unwrap_err().to_string();
/// assert_eq!(
///     error,
///     "text: the file is text in UTF-16, expected UTF-8; `iconv -f UTF-16 -t UTF-8 OLD > NEW` converts it"
/// );
/// # Ok::<(), ernie_vil::Error>(())
/// ```
///
/// # Errors
/// [`Error::Text`] where they are not UTF-8. The message says what they seem to be and what to do, or else the line
/// and the byte of it.
pub fn text(bytes: &[u8]) -> Result<&str> {
    if let Some(what) = foreign(bytes) {
        return Err(Error::Text(format!("the file is {what}")));
    }
    let text = str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let start = memchr::memrchr(b'\n', before).map_or(0, |at| at + 1);
        Error::Text(format!(
            "line {}: byte {} of the line, 0x{:02x}, does not belong in UTF-8; {OTHER_ENCODING}",
            memchr::memchr_iter(b'\n', before).count() + 1,
            before.len() - start + 1,
            bytes[before.len()]
        ))
    })?;
    Ok(without_mark(text))
}

/// The text without the byte order mark that it may begin with.
pub(crate) fn without_mark(text: &str) -> &str {
    text.strip_prefix(MARK).unwrap_or(text)
}

/// What a file is that should be a text file in UTF-8, by its first bytes, with what is expected and what to
/// do about it; none where it may be one.
pub(crate) fn foreign(start: &[u8]) -> Option<&'static str> {
    Some(match start {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => {
            "text in UTF-32, expected UTF-8; `iconv -f UTF-32 -t UTF-8 OLD > NEW` converts it"
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            "text in UTF-16, expected UTF-8; `iconv -f UTF-16 -t UTF-8 OLD > NEW` converts it"
        }
        [0x1f, 0x8b, ..] => "compressed by gzip, expected text; `gzip -dc FILE > NEW` unpacks it",
        [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A', b'Y', b'&', ..] => {
            "compressed by bzip2, expected text; `bzip2 -dc FILE > NEW` unpacks it"
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            "compressed by xz, expected text; `xz -dc FILE > NEW` unpacks it"
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "compressed by zstd, expected text; `zstd -dc FILE > NEW` unpacks it",
        [b'P', b'K', 3, 4, ..] => {
            "a zip archive or a spreadsheet (.zip, .xlsx), expected text; unpack it, or save the table as text with \
             tabs in UTF-8"
        }
        [0xd0, 0xcf, 0x11, 0xe0, ..] => {
            "a spreadsheet (.xls), expected text; save the table as text with tabs in UTF-8"
        }
        [b'P', b'A', b'R', b'1', 0x15, ..] => "a Parquet file, expected text with tabs between its columns",
        [b'A', b'R', b'R', b'O', b'W', b'1', 0, ..] => {
            "an Arrow file, expected text with tabs between its columns"
        }
        [0x89, b'P', b'N', b'G', ..] | [0xff, 0xd8, 0xff, ..] => {
            "a picture, expected text, in which pictures are written in base64"
        }
        [b'%', b'P', b'D', b'F', b'-', ..] => "a PDF document, expected text",
        _ => return foreign_text(start),
    })
}

/// As [`foreign`], of what has no bytes in front that tell it.
fn foreign_text(start: &[u8]) -> Option<&'static str> {
    let start = &start[..start.len().min(512)];
    if start.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Some(
            "a Git LFS pointer, not the file itself; `git lfs pull` in its repository fetches the file",
        );
    }
    let begins = |tag: &[u8]| {
        start
            .get(..tag.len())
            .is_some_and(|begin| begin.eq_ignore_ascii_case(tag))
    };
    if begins(b"<!doctype html") || begins(b"<html") {
        return Some(
            "a web page (HTML), expected the file itself; was it downloaded from the right address?",
        );
    }
    // Base64 and what else there is of ASCII has a zero for every second byte in UTF-16.
    let zeros = memchr::memchr_iter(0, start).count();
    (start.len() >= 8 && zeros * 4 >= start.len()).then_some(
        "text in UTF-16 without a byte order mark, or no text at all, expected UTF-8; \
         `iconv -f UTF-16LE -t UTF-8 OLD > NEW` converts it",
    )
}
