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
    #[error("{context}: {source}")]
    Within {
        /// The place: a file, a row, a tensor.
        context: String,
        /// What happened there.
        source: Box<Error>,
    },
}

impl Error {
    /// Puts the place where the error happened in front of its message.
    pub fn within(self, context: impl fmt::Display) -> Self {
        Error::Within {
            context: context.to_string(),
            source: Box::new(self),
        }
    }

    /// The stage as a short stable word, for programs: `"image"`, `"weights"`, ...
    pub fn code(&self) -> &'static str {
        match self {
            Error::Config(_) => "config",
            Error::Vocabulary(_) => "vocabulary",
            Error::Text(_) => "text",
            Error::Base64(_) => "base64",
            Error::Image(_) => "image",
            Error::Weights(_) => "weights",
            Error::Pairs(_) => "pairs",
            Error::Vectors(_) => "vectors",
            Error::Index(_) => "index",
            Error::Scoring(_) => "scoring",
            Error::Device(_) => "device",
            Error::Io(_) => "io",
            Error::Within { source, .. } => source.code(),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Error::Io(error.to_string())
    }
}
