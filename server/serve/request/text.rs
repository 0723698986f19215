//! What a text stands for: a caption, an image in base64 or as a data URI, or something that is refused, such
//! as an address or the name of a file.

use ernie_vil::Error;

use super::{Problem, Result, at, quoted};

fn has_scheme(text: &str, scheme: &str) -> bool {
    text.get(..scheme.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
}

/// A text without the blanks in front of it, a mark of the byte order among them.
fn trimmed(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}')
}

pub(super) fn is_data_uri(text: &str) -> bool {
    has_scheme(trimmed(text), "data:")
}

/// Whether a text begins as an address does: with any scheme and `//`, or with one whose addresses have none.
fn is_address(text: &str) -> bool {
    const OTHERS: [&str; 12] = [
        "http:", "https:", "file:", "ftp:", "blob:", "s3:", "gs:", "oss:", "cos:", "bos:", "ipfs:", "cid:",
    ];
    let text = trimmed(text);
    let end = text.char_indices().nth(48).map_or(text.len(), |(end, _)| end);
    let is_scheme = |scheme: &str| {
        scheme.len() <= 40
            && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.'))
    };
    OTHERS.iter().any(|scheme| has_scheme(text, scheme))
        || text[..end]
            .split_once("://")
            .is_some_and(|(scheme, _)| is_scheme(scheme))
}

/// Images are never fetched: a server that opens addresses for its clients opens those inside its own network
/// too.
pub(super) fn refuse_address(text: &str, path: &str) -> Result<()> {
    if is_address(text) {
        return Err(Problem {
            code: "remote_image",
            ..at(
                path,
                format!(
                    "{} is an address, and nothing is fetched; expected the image itself as a data URI or base64, \
                     or {{\"text\": ...}} where it is a caption",
                    quoted(text)
                ),
            )
        });
    }
    Ok(())
}

/// What stands for an image without being one would be embedded as a caption, and nobody would see it.
pub(super) fn refuse_file(text: &str, path: &str) -> Result<()> {
    let what = if is_file_name(text) && !text.contains(char::is_whitespace) {
        "is the name of a file, and no file is read"
    } else if is_bytes_literal(text) {
        "is Python's way of showing bytes"
    } else if is_bare_base64(text) {
        "is an image in base64, but says so nowhere"
    } else {
        return Ok(());
    };
    Err(at(
        path,
        format!(
            "{} {what}; expected {{\"image\": ...}} with the image in base64, or {{\"text\": ...}} where it is a caption",
            quoted(text)
        ),
    ))
}

/// Whether a text is no more than a name that ends as images' names do.
fn is_file_name(text: &str) -> bool {
    const ENDS: [&str; 12] = [
        "jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "heic", "avif", "ppm", "jfif",
    ];
    let is_end = |end: &str| ENDS.iter().any(|known| known.eq_ignore_ascii_case(end));
    text.len() <= 4096
        && text
            .rsplit_once('.')
            .is_some_and(|(name, end)| !name.is_empty() && is_end(end))
}

/// Whether a text is what Python's `str` makes of bytes: `b'...'`.
fn is_bytes_literal(text: &str) -> bool {
    let text = trimmed(text).trim_end();
    ['\'', '"'].iter().any(|&quote| {
        let inner = text
            .strip_prefix(['b', 'B'])
            .and_then(|rest| rest.strip_prefix(quote));
        inner.is_some_and(|inner| inner.len() > 16 && inner.ends_with(quote))
    })
}

/// Whether a text is the base64 of a file that begins as images do.
fn is_bare_base64(text: &str) -> bool {
    // JPEG, PNG, GIF, WebP, TIFF in both orders of bytes, BMP, PNM.
    const STARTS: [&str; 11] = [
        "/9j/",
        "iVBORw0KGgo",
        "R0lGOD",
        "UklGR",
        "SUkqA",
        "TU0AK",
        "Qk",
        "UDEK",
        "UDQK",
        "UDUK",
        "UDYK",
    ];
    let text = trimmed(text);
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(&byte);
    text.len() >= 64
        && STARTS.iter().any(|start| text.starts_with(start))
        && text.trim_end().bytes().all(is_base64)
}

/// Checks that a text is base64 of the alphabet that everybody writes. The library's decoder leaves other
/// characters out as Python's does, which makes another file of it, and an error of that file.
pub fn check_base64(text: &str) -> ernie_vil::Result<()> {
    let wrong = |message: String| Err(Error::Base64(message));
    let is_plain = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=') || byte.is_ascii_whitespace()
    };
    let Some(at) = text.bytes().position(|byte| !is_plain(byte)) else {
        return Ok(());
    };
    let found = char::from(text.as_bytes()[at]);
    if is_bytes_literal(text) {
        return wrong(
            "the text is b'...', as Python shows bytes, expected the base64 alone: base64.b64encode(data).decode()".into(),
        );
    }
    if is_path(text) {
        return wrong(format!(
            "{} is the name of a file, and no file is read, expected the image itself in base64",
            quoted(text)
        ));
    }
    if !found.is_ascii() {
        // The decoder says where it is.
        return Ok(());
    }
    wrong(match found {
        '-' | '_' => format!(
            "byte {at} is '{found}', which only the URL-safe alphabet has, expected the standard one with '+' and '/' \
             (base64.b64encode, not urlsafe_b64encode)"
        ),
        '%' => format!("byte {at} is '%', as in an address, expected base64 without percent-encoding"),
        _ => format!("byte {at} is {found:?}, expected base64: A-Z, a-z, 0-9, '+', '/' and '='"),
    })
}

/// Whether a text that is no base64 is the path of a file.
fn is_path(text: &str) -> bool {
    let begins = ["./", "../", "~/", "\\\\"]
        .iter()
        .any(|start| text.starts_with(start));
    let drive = text
        .as_bytes()
        .get(1..3)
        .is_some_and(|two| matches!(two, b":\\" | b":/"));
    text.len() <= 4096 && (begins || drive || is_file_name(text))
}

/// The base64 of `data:image/jpeg;base64,...`.
pub(super) fn data_uri(mut text: String, path: &str) -> Result<String> {
    let wrong = |found: &str| {
        let message = format!(
            "{}, expected data:image/...;base64,..., or {{\"text\": ...}} where it is a caption",
            quoted(found)
        );
        at(path, message)
    };
    let start = text.len() - trimmed(&text).len();
    // Only the head is looked at; what follows may be megabytes.
    let head = &text.as_bytes()[start..];
    let Some(comma) = head.iter().take(256).position(|&byte| byte == b',') else {
        return Err(wrong(&text));
    };
    let head = text[start..start + comma].to_ascii_lowercase();
    let is_image = head.starts_with("data:image/") || head.starts_with("data:application/octet-stream");
    if !is_image || !head.ends_with(";base64") {
        return Err(wrong(&text));
    }
    Ok(text.split_off(start + comma + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_of_the_alphabet_that_is_meant() {
        for text in ["", "QUJD", "QU\r\nJD ", "QQ==", "a+/b"] {
            check_base64(text).unwrap();
        }
        for (text, part) in [
            ("_9j_4AAQ", "byte 0 is '_', which only the URL-safe alphabet has"),
            ("QU-J", "byte 2 is '-'"),
            ("b'/9j/4AAQSkZJRgABAQ=='", "Python shows bytes"),
            ("/home/me/my cat.jpg", "is the name of a file"),
            ("照片/猫.png", "is the name of a file"),
            ("C:\\cat", "is the name of a file"),
            ("QUJD%3D", "byte 4 is '%'"),
            ("<svg>", "byte 0 is '<'"),
        ] {
            let message = check_base64(text).unwrap_err().to_string();
            assert!(
                message.starts_with("base64: ") && message.contains(part),
                "{text}: {message}"
            );
        }
    }
}
