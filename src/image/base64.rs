//! Base64 as a caption-image file holds it.

use base64::Engine;
use base64::alphabet::{self, STANDARD};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::{Error, Result};

/// Padded base64 of the standard alphabet. Bits left over in the last character are dropped.
const PADDED: GeneralPurpose = engine(DecodePaddingMode::RequireCanonical);
/// The same without padding.
const BARE: GeneralPurpose = engine(DecodePaddingMode::RequireNone);

/// The other alphabet, without padding.
const URL_SAFE: GeneralPurpose =
    GeneralPurpose::new(&alphabet::URL_SAFE, base64::engine::general_purpose::NO_PAD);

const fn engine(padding: DecodePaddingMode) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(padding);
    GeneralPurpose::new(&STANDARD, config)
}

/// Decodes base64 as leniently as Python's `base64.b64decode` does.
///
/// ASCII characters outside of the standard alphabet (`A-Z a-z 0-9 + /`) are skipped, line breaks
/// and the URL-safe `-` and `_` among them. Decoding ends at the first padding that completes a
/// group of four; what follows it is not looked at. Padding anywhere else is skipped.
///
/// # Errors
/// [`Error::Base64`] where the text holds a byte beyond ASCII, and where it ends inside of a group
/// of four characters.
///
/// ```
/// use ernie_vil::image::decode_base64;
/// assert_eq!(decode_base64(b"QUJD")?, b"ABC");
/// assert_eq!(decode_base64(b" QU-JD\n REQ= and the rest")?, b"ABCDD");
/// assert!(decode_base64(b"QUJDRA").is_err());
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub fn decode_base64(text: &[u8]) -> Result<Vec<u8>> {
    // Well-formed text, nearly every row, is decoded without a second look. The strict decoder
    // accepts no text that the rules above read differently.
    if let Ok(bytes) = PADDED.decode(text) {
        return Ok(bytes);
    }
    if let Some(at) = text.iter().position(|byte| !byte.is_ascii()) {
        return Err(Error::Base64(format!(
            "byte {at} is 0x{:02x}, expected ASCII characters only",
            text[at]
        )));
    }
    let mut kept = Vec::with_capacity(text.len());
    let mut padding = 0;
    let mut ended = false;
    for &byte in text {
        if byte == b'=' {
            // One character of a group says too little to be ended by padding.
            if kept.len() % 4 >= 2 {
                padding += 1;
                if kept.len() % 4 + padding >= 4 {
                    ended = true;
                    break;
                }
            }
        } else if byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/' {
            kept.push(byte);
            padding = 0;
        }
    }
    let over = kept.len() % 4;
    if over != 0 && !ended {
        return Err(Error::Base64(format!(
            "{} characters of the base64 alphabet without the padding that ends them, expected a multiple of 4 \
             or `=` after the last",
            kept.len()
        )));
    }
    BARE.decode(&kept)
        .map_err(|error| Error::Base64(format!("{error}, expected base64")))
}

/// Decodes the image of a row, as [`decode_base64`] does, but refuses a text that is plainly something else:
/// a `data:` URL, a Python bytes object, an address, URL-safe base64, escaped line breaks. Of these the
/// lenient rules make bytes that are no image or, at worst, another one.
///
/// ```
/// use ernie_vil::image::decode_base64_of_row;
/// assert_eq!(decode_base64_of_row(b"QUJD\n")?, b"ABC");
/// let error = decode_base64_of_row(b"data:image/png;base64,iVBORw0KGgo=").unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "base64: the text is a data: URL, expected the base64 after its comma alone"
/// );
/// # Ok::<(), ernie_vil::Error>(())
/// ```
///
/// # Errors
/// [`Error::Base64`] as there, and where the text is of such a form, which it names.
pub fn decode_base64_of_row(text: &[u8]) -> Result<Vec<u8>> {
    if let Ok(bytes) = PADDED.decode(text) {
        return Ok(bytes);
    }
    match other_form(text.trim_ascii()) {
        Some(what) => Err(Error::Base64(format!("the text is {what}"))),
        None => decode_base64(text),
    }
}

/// Adds to the error of an image what its text in base64 seems to be, where that helps: a file's path,
/// hexadecimal, base64 that was encoded twice or that a spreadsheet cut off. A short text is shown.
///
/// ```
/// use ernie_vil::image::{Limits, decode, decode_base64_of_row, explain_base64};
/// let text = b"images/17.jpg";
/// let image = decode_base64_of_row(text).and_then(|bytes| decode(&bytes, &Limits::default()));
/// assert_eq!(
///     explain_base64(text, image.unwrap_err()).to_string(),
///     "base64: the text is a file's path (\"images/17.jpg\"), expected the bytes of the file in base64"
/// );
/// ```
pub fn explain_base64(text: &[u8], error: Error) -> Error {
    let text = text.trim_ascii();
    if let Some(what) = other_form(text).or_else(|| likely_form(text)) {
        return Error::Base64(format!("the text is {what}"));
    }
    let hint = if text.is_empty() {
        return error;
    } else if text.len() <= SHOWN {
        format!("; the text is {}", shown(text))
    } else if text.len() == CELL {
        "; the text is cut off at 32767 characters, the most that a cell of a spreadsheet holds".into()
    } else {
        return error;
    };
    match error {
        Error::Image(message) => Error::Image(message + &hint),
        Error::Base64(message) => Error::Base64(message + &hint),
        other => other,
    }
}

/// A text of so many bytes at most is shown whole.
const SHOWN: usize = 60;
/// Characters of a spreadsheet's cell.
const CELL: usize = 32_767;

/// The start of a text, in quotes.
fn shown(text: &[u8]) -> String {
    let start = String::from_utf8_lossy(&text[..text.len().min(SHOWN)]);
    match text.len() > SHOWN {
        true => format!("{start:?}..."),
        false => format!("{start:?}"),
    }
}

/// What a text is that is certainly no base64 of an image, with what was expected.
fn other_form(text: &[u8]) -> Option<String> {
    let start = &text[..text.len().min(64)];
    let begins = |with: &str| {
        let begin = start.get(..with.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(with.as_bytes()))
    };
    let contains = |part: &[u8]| memchr::memmem::find(text, part).is_some();
    let bare = start.strip_prefix(b"\"").unwrap_or(start);
    if begins("data:") || begins("\"data:") || memchr::memmem::find(start, b";base64,").is_some() {
        return Some("a data: URL, expected the base64 after its comma alone".into());
    }
    if begins("base64,") || begins("base64:") || begins("base64://") {
        return Some("base64 behind the word \"base64\", expected the base64 alone".into());
    }
    if ["b'", "b\"", "bytes(b'", "bytearray(b'"]
        .iter()
        .any(|form| bare.starts_with(form.as_bytes()))
    {
        return Some(
            "a Python bytes object as it is printed (b'...'), expected the base64 alone: \
             base64.b64encode(image).decode()"
                .into(),
        );
    }
    if scheme(bare) {
        return Some(format!(
            "an address ({}), expected the image itself in base64; download it first",
            shown(text)
        ));
    }
    if let [b'[', rest @ ..] = start
        && let [b'0'..=b'9' | b'-', ..] = rest.trim_ascii_start()
    {
        return Some("a list of numbers, expected the image's bytes in base64".into());
    }
    if is_path(text) {
        return Some(format!(
            "a file's path ({}), expected the bytes of the file in base64",
            shown(text)
        ));
    }
    if ["%2B", "%2F", "%3D", "%2b", "%2f", "%3d"]
        .iter()
        .any(|code| contains(code.as_bytes()))
    {
        return Some("base64 with its characters percent-encoded (%2B), expected it decoded once".into());
    }
    if contains(b"\\n") || contains(b"\\r") {
        return Some(
            "base64 with line breaks written as a backslash and a letter, expected base64 without them"
                .into(),
        );
    }
    if text.ends_with(b"...") || text.ends_with("\u{2026}".as_bytes()) {
        return Some(
            "cut off where it ends with \"...\", as texts are to be shown, expected all of it".into(),
        );
    }
    // Of a thousand characters one is a "+", but for one text in a million.
    if text.len() >= 1000 && text.contains(&b' ') && !text.contains(&b'+') {
        return Some(
            "base64 with blanks for \"+\", as a URL's decoding makes them, expected each \"+\"".into(),
        );
    }
    is_url_safe(text).then(|| {
        "URL-safe base64 (with - and _), expected the standard alphabet: + for each - and / for each _".into()
    })
}

/// Whether a text begins with the scheme of a URL.
fn scheme(start: &[u8]) -> bool {
    if start.starts_with(b"blob:") {
        return true;
    }
    let Some(end) = memchr::memmem::find(start, b"://") else {
        return false;
    };
    let of_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    (1..=16).contains(&end) && start[0].is_ascii_alphabetic() && start[..end].iter().all(of_scheme)
}

fn is_url_safe(text: &[u8]) -> bool {
    let of_alphabet =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'=' | b'\n' | b'\r');
    if memchr::memchr2(b'-', b'_', text).is_none() || !text.iter().all(of_alphabet) {
        return false;
    }
    // An id is shorter than any image, and begins as none does.
    let start = &text[..text.len().min(32) & !3];
    text.len() >= 80 || URL_SAFE.decode(start).is_ok_and(|bytes| is_image(&bytes))
}

/// What a text of which no image came seems to be.
fn likely_form(text: &[u8]) -> Option<String> {
    let start = &text[..text.len().min(64)];
    let digits = start
        .strip_prefix(b"0x")
        .or(start.strip_prefix(b"\\x"))
        .unwrap_or(start);
    let digits = &digits[..digits.len() & !1];
    let hexadecimal: Option<Vec<u8>> = (digits.chunks_exact(2))
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    if hexadecimal.is_some_and(|bytes| is_image(&bytes)) {
        return Some("an image in hexadecimal, expected base64".into());
    }
    let once = decode_base64(&start[..start.len() & !3]).ok()?;
    if once.starts_with(b"\x1f\x8b") {
        return Some("base64 of what is compressed by gzip, expected the image itself".into());
    }
    let twice = PADDED.decode(&once[..once.len() & !3]).ok()?;
    is_image(&twice).then(|| "base64 that was encoded to base64 once more, expected it encoded once".into())
}

fn is_path(text: &[u8]) -> bool {
    const EXTENSIONS: [&str; 15] = [
        "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "tif", "tiff", "gif", "avif", "heic",
        "ppm", "svg",
    ];
    if text.len() > 4096 || text.contains(&b'\n') {
        return false;
    }
    let text = text.strip_suffix(b"\"").unwrap_or(text);
    let extension = memchr::memrchr(b'.', text).map(|at| &text[at + 1..]);
    let has_extension = extension.is_some_and(|found| {
        EXTENSIONS
            .iter()
            .any(|known| found.eq_ignore_ascii_case(known.as_bytes()))
    });
    has_extension
        || ["./", "../", "~/", "\\\\"]
            .iter()
            .any(|start| text.starts_with(start.as_bytes()))
        || matches!(text, [b'A'..=b'Z' | b'a'..=b'z', b':', b'\\' | b'/', ..])
}

/// Whether bytes begin as an image of a usual format does.
fn is_image(bytes: &[u8]) -> bool {
    let magic: [&[u8]; 6] = [b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"II*\0", b"MM\0*"];
    magic.iter().any(|magic| bytes.starts_with(magic))
}
