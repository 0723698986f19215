//! What an image may cost, and what raises it.

use crate::image::{LimitKind, Limits, Pixels, Preprocessor, decode};
use crate::{Error, Result};

/// Limits on images, with what a user sets to raise them.
///
/// ```
/// use ernie_vil::image::{LimitKind, Limits};
/// use ernie_vil::native::images::ImageLimits;
/// let limits = ImageLimits {
///     limits: Limits { max_memory: 5, ..Limits::default() },
///     raised_by: &[(LimitKind::Memory, "--max-image-memory")],
/// };
/// let error = limits.decode(b"P6 2 1 255 abcdef").unwrap_err();
/// assert!(error.to_string().ends_with(", which --max-image-memory raises"));
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct ImageLimits {
    /// The limits.
    pub limits: Limits,
    /// What messages say raises a limit, such as a flag. Of limits that are not listed they say nothing.
    pub raised_by: &'static [(LimitKind, &'static str)],
}

impl ImageLimits {
    /// Decodes an image and crops it.
    ///
    /// # Errors
    /// Those of [`Preprocessor::decode_crop`]. The message of an image beyond a limit names what raises it.
    pub fn crop(&self, preprocessor: &Preprocessor, bytes: &[u8]) -> Result<Pixels> {
        let crop = preprocessor.decode_crop(bytes, &self.limits);
        crop.map_err(|error| self.named(error))
    }

    /// Decodes an image.
    ///
    /// # Errors
    /// Those of [`decode`]. The message of an image beyond a limit names what raises it.
    pub fn decode(&self, bytes: &[u8]) -> Result<Pixels> {
        decode(bytes, &self.limits).map_err(|error| self.named(error))
    }

    /// Names what raises the limit that an image is beyond, where something does.
    fn named(&self, error: Error) -> Error {
        match error {
            Error::ImageLimit { limit, message } => {
                let raised_by = self.raised_by.iter().find(|(raised, _)| *raised == limit);
                let message = match raised_by {
                    Some((_, name)) => format!("{message}, which {name} raises"),
                    None => message,
                };
                Error::ImageLimit { limit, message }
            }
            other => other,
        }
    }
}
