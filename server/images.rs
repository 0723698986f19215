//! What an image may cost, and the flags that raise it.

use ernie_vil::Error;
use ernie_vil::image::{LimitKind, Limits, Pixels, Preprocessor};

use crate::cli;

/// The flags of commands. That of bytes and that of pixels are OpenCV's own and need none.
const FLAGS: [(LimitKind, &str); 1] = [(LimitKind::Memory, "--max-image-memory")];
/// The server's flags.
#[cfg(feature = "serve")]
pub const SERVER_FLAGS: [(LimitKind, &str); 3] = [
    (LimitKind::Bytes, "--max-body"),
    (LimitKind::Pixels, "--max-pixels"),
    (LimitKind::Memory, "--max-image-memory"),
];

/// The limits of a command.
pub fn limits(args: &cli::ImageArgs) -> Limits {
    Limits {
        max_memory: args.max_image_memory,
        ..Limits::default()
    }
}

/// Decodes an image and crops it. The message of an image beyond a limit names the flag that raises it.
pub fn crop(preprocessor: &Preprocessor, bytes: &[u8], limits: &Limits) -> ernie_vil::Result<Pixels> {
    let crop = preprocessor.decode_crop(bytes, limits);
    crop.map_err(|error| with_flag(error, &FLAGS))
}

/// As [`crop`], but gives all pixels.
#[cfg(feature = "train")]
pub fn decode(bytes: &[u8], limits: &Limits) -> ernie_vil::Result<Pixels> {
    ernie_vil::image::decode(bytes, limits).map_err(|error| with_flag(error, &FLAGS))
}

/// Names the flag that raises the limit an image is beyond, where one of these does.
pub fn with_flag(error: Error, flags: &[(LimitKind, &str)]) -> Error {
    match error {
        Error::ImageLimit { limit, message } => {
            let flag = flags.iter().find(|(raised, _)| *raised == limit);
            let message = match flag {
                Some((_, flag)) => format!("{message}, which {flag} raises"),
                None => message,
            };
            Error::ImageLimit { limit, message }
        }
        other => other,
    }
}
