//! The flags that raise what an image may cost.

use ernie_vil::image::{LimitKind, Limits};
use ernie_vil::native::images::ImageLimits;

use crate::cli;

/// The flags of commands. That of bytes and that of pixels are OpenCV's own and need none.
const FLAGS: [(LimitKind, &str); 1] = [(LimitKind::Memory, "--max-image-memory")];
/// The server's flags.
#[cfg(feature = "serve")]
const SERVER_FLAGS: [(LimitKind, &str); 3] = [
    (LimitKind::Bytes, "--max-body"),
    (LimitKind::Pixels, "--max-pixels"),
    (LimitKind::Memory, "--max-image-memory"),
];

/// The limits of a command.
pub fn limits(args: &cli::ImageArgs) -> ImageLimits {
    ImageLimits {
        limits: Limits {
            max_memory: args.max_image_memory,
            ..Limits::default()
        },
        raised_by: &FLAGS,
    }
}

/// The server's limits.
#[cfg(feature = "serve")]
pub fn server_limits(args: &cli::Serve) -> ImageLimits {
    ImageLimits {
        limits: Limits {
            max_bytes: args.max_body as usize,
            max_pixels: args.max_pixels,
            max_memory: args.max_image_memory,
        },
        raised_by: &SERVER_FLAGS,
    }
}
