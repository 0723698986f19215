//! Base64 as a caption-image file holds it.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::{Error, Result};

/// Padded base64 of the standard alphabet. Bits left over in the last character are dropped.
const PADDED: GeneralPurpose = engine(DecodePaddingMode::RequireCanonical);
/// The same without padding.
const BARE: GeneralPurpose = engine(DecodePaddingMode::RequireNone);

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
