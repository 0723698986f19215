//! The library's one error type.

use std::fmt;

/// What the library returns where something can go wrong.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by the stage of the data path at which it did.
///
/// A message says what was wrong, where (line, tensor, field, byte) and what was expected. The
/// caller who knows more (a file's name, a row's number) puts it in front with [`Error::within`].
///
/// ```
/// use ernie_vil::Error;
/// let error = Error::Image("width 0, expected at least 1".into()).within("row 3");
/// assert_eq!(error.to_string(), "row 3: image: width 0, expected at least 1");
/// assert_eq!(error.code(), "image");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model's or a run's configuration.
    #[error("configuration: {0}")]
    Config(String),
    /// A vocabulary file.
    #[error("vocabulary: {0}")]
    Vocabulary(String),
    /// A caption or its token ids.
    #[error("text: {0}")]
    Text(String),
    /// An image given as base64.
    #[error("base64: {0}")]
    Base64(String),
    /// An encoded image or its pixels.
    #[error("image: {0}")]
    Image(String),
    /// An image that is sound as far as it was read, but goes beyond one of the limits it was decoded with.
    #[error("image: {message}")]
    ImageLimit {
        /// Which one.
        limit: crate::image::LimitKind,
        /// What the image has or needs, and what was expected.
        message: String,
    },
    /// Weights: a checkpoint, a model folder's tensors.
    #[error("weights: {0}")]
    Weights(String),
    /// A file of caption-image pairs.
    #[error("pairs: {0}")]
    Pairs(String),
    /// Embeddings and the files that hold them.
    #[error("vectors: {0}")]
    Vectors(String),
    /// An index of embeddings.
    #[error("index: {0}")]
    Index(String),
    /// Ranking and recall.
    #[error("scoring: {0}")]
    Scoring(String),
    /// The device that a tower runs on.
    #[error("device: {0}")]
    Device(String),
    /// Reading from or writing to what the caller handed over.
    #[error("{0}")]
    Io(String),
    /// An error with the place where it happened in front of it.
    // Not called `source`: the message has it, so that a report which prints the chain of sources would say
    // it twice.
    #[error("{context}: {error}")]
    Within {
        /// The place: a file, a row, a tensor.
        context: String,
        /// What happened there.
        error: Box<Error>,
    },
}

impl Error {
    /// Puts the place where the error happened in front of its message.
    pub fn within(self, context: impl fmt::Display) -> Self {
        Error::Within {
            context: context.to_string(),
            error: Box::new(self),
        }
    }

    /// The limit that an image went beyond, where that is what happened.
    ///
    /// ```
    /// use ernie_vil::image::{LimitKind, Limits, decode};
    /// let limits = Limits { max_bytes: 5, ..Limits::default() };
    /// let error = decode(b"P5 1 1 255 \0", &limits).unwrap_err().within("a.pgm");
    /// assert_eq!(error.to_string(), "a.pgm: image: 12 bytes, expected at most 5");
    /// assert_eq!(error.limit(), Some(LimitKind::Bytes));
    /// ```
    pub fn limit(&self) -> Option<crate::image::LimitKind> {
        match self {
            Error::ImageLimit { limit, .. } => Some(*limit),
            Error::Within { error, .. } => error.limit(),
            _ => None,
        }
    }

    /// The stage as a short stable word, for programs: `"image"`, `"weights"`, ...
    pub fn code(&self) -> &'static str {
        match self {
            Error::Config(_) => "config",
            Error::Vocabulary(_) => "vocabulary",
            Error::Text(_) => "text",
            Error::Base64(_) => "base64",
            Error::Image(_) | Error::ImageLimit { .. } => "image",
            Error::Weights(_) => "weights",
            Error::Pairs(_) => "pairs",
            Error::Vectors(_) => "vectors",
            Error::Index(_) => "index",
            Error::Scoring(_) => "scoring",
            Error::Device(_) => "device",
            Error::Io(_) => "io",
            Error::Within { error, .. } => error.code(),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Error::Io(error.to_string())
    }
}
