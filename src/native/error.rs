//! What goes wrong with files, downloads and devices, and where.

use std::fmt;
use std::io;

/// What the functions of [`native`](super) return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the places where it happened around it.
///
/// As with other errors, `{}` shows the outermost message only and [`source`](std::error::Error::source)
/// leads to the next one; `{:#}` shows all of them in one line, with colons between. [`Error::root`] is the
/// innermost one, by whose variant a program can tell what happened.
///
/// ```
/// use ernie_vil::native::{Error, input};
/// let error = input::read(std::path::Path::new("no/such/file"), 100).unwrap_err();
/// assert_eq!(error.to_string(), "no/such/file");
/// assert!(format!("{error:#}").starts_with("no/such/file: "));
/// assert_eq!(error.io_kind(), Some(std::io::ErrorKind::NotFound));
/// assert!(matches!(error.root(), Error::Io(_)));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// What the rest of the library refused.
    Library(crate::Error),
    /// What the system refused.
    Io(io::Error),
    /// A file of ours that is no JSON, or JSON of another form.
    Json(serde_json::Error),
    /// A request over HTTP that failed before there was an answer: names, connections, certificates, proxies.
    Http(Box<dyn std::error::Error + Send + Sync>),
    /// A download that differs from what the same address gave before.
    Changed(String),
    /// Whatever else is not as it has to be. The message says what was found and what was expected.
    Refused(String),
    /// A message in front of another error: the file in which it happened, or what was being done.
    Context {
        /// The message.
        context: String,
        /// What happened there.
        source: Box<Error>,
    },
}

impl Error {
    /// The error below all messages that were put in front of it.
    pub fn root(&self) -> &Error {
        let mut error = self;
        while let Error::Context { source, .. } = error {
            error = source;
        }
        error
    }

    /// The kind of the system's error, where it is one.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self.root() {
            Error::Io(error) => Some(error.kind()),
            _ => None,
        }
    }

    /// Puts a message in front.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Self {
        Error::Context {
            context: context.to_string(),
            source: Box::new(self),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Library(error) => write!(f, "{error}")?,
            Error::Io(error) => write!(f, "{error}")?,
            Error::Json(error) => write!(f, "{error}")?,
            Error::Http(error) => write!(f, "{error}")?,
            Error::Changed(message) | Error::Refused(message) => f.write_str(message)?,
            Error::Context { context, .. } => f.write_str(context)?,
        }
        if f.alternate() {
            let mut source = std::error::Error::source(self);
            while let Some(error) = source {
                write!(f, ": {error}")?;
                source = error.source();
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    // The errors of others are shown as they are, so what follows them is what they say themselves.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Library(error) => error.source(),
            Error::Io(error) => error.source(),
            Error::Json(error) => error.source(),
            Error::Http(error) => error.source(),
            Error::Changed(_) | Error::Refused(_) => None,
            Error::Context { source, .. } => Some(&**source),
        }
    }
}

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        Self::Library(error)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error)
    }
}

/// Puts messages in front of errors.
pub(crate) trait Context<T> {
    /// Puts a message in front of the error.
    fn context(self, context: impl fmt::Display) -> Result<T>;

    /// As `context`, with a message that is made only where there is an error.
    fn with_context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context(self, context: impl fmt::Display) -> Result<T> {
        self.map_err(|error| error.into().context(context))
    }

    fn with_context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| error.into().context(context()))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, context: impl fmt::Display) -> Result<T> {
        self.ok_or_else(|| Error::Refused(context.to_string()))
    }

    fn with_context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.ok_or_else(|| Error::Refused(context().to_string()))
    }
}

/// An [`Error::Refused`] with a message.
macro_rules! refused {
    ($($text:tt)*) => {
        $crate::native::Error::Refused(format!($($text)*))
    };
}

/// Returns an [`Error::Refused`] with a message.
macro_rules! bail {
    ($($text:tt)*) => {
        return Err($crate::native::error::refused!($($text)*).into())
    };
}

/// Returns an [`Error::Refused`] with a message unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            $crate::native::error::bail!($($text)*);
        }
    };
}

pub(crate) use {bail, ensure, refused};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_chained_as_the_command_line_shows_them() {
        let inner: Result<(), crate::Error> = Err(crate::Error::Index("no index".into()).within("byte 7"));
        let error = inner.context("a.idx").context("opening").unwrap_err();
        assert_eq!(error.to_string(), "opening");
        assert_eq!(format!("{error:#}"), "opening: a.idx: byte 7: index: no index");
        assert!(matches!(error.root(), Error::Library(_)) && error.io_kind().is_none());
        // An error around another one of the system is shown once.
        let system = io::Error::other(io::Error::from(io::ErrorKind::NotFound));
        let error = Error::from(system).context("file");
        assert_eq!(format!("{error:#}"), format!("{:#}", joined(&error)));
        assert_eq!(error.io_kind(), Some(io::ErrorKind::Other));
        assert_eq!(None::<()>.context("nothing").unwrap_err().to_string(), "nothing");
    }

    /// The chain of sources, joined.
    fn joined(error: &dyn std::error::Error) -> String {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            text += &format!(": {error}");
            source = error.source();
        }
        text
    }
}
