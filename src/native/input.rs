//! Opening what a command reads: files, and streams such as pipes, FIFOs and process substitutions.
//!
//! A stream can be read once, from its beginning to its end. What needs more than that copies it to a
//! temporary file first ([`spooled`]). What belongs to a folder of ours is never a stream ([`read_regular`],
//! [`map`]).
//!
//! ```
//! use ernie_vil::native::input;
//! let folder = tempfile::tempdir().unwrap();
//! let path = folder.path().join("labels.txt");
//! std::fs::write(&path, "猫\n狗\n").unwrap();
//! assert_eq!(input::read(&path, 100).unwrap(), "猫\n狗\n".as_bytes());
//! assert!(input::read(&path, 5).is_err());
//! assert_eq!(input::map(&path).unwrap().len(), 8);
//! ```

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use super::Result;
use super::error::{Context, bail, ensure, refused};
use super::mapping::Watch;

/// Smaller files are read. A larger one is mapped: it takes no memory that the system could not have back,
/// but it may not shrink meanwhile.
const LEAST_MAPPED: u64 = 64 << 20;

/// An input that is open.
#[derive(Debug)]
pub struct Input {
    /// What is open, at its beginning.
    pub file: File,
    /// It can be read once only, and its length is not known.
    pub is_stream: bool,
}

/// Opens a file or a stream. Of a FIFO this waits for its writer, as every program does.
///
/// # Errors
/// Where it cannot be opened, and where it is neither a file nor a stream that ends.
pub fn open(path: &Path) -> Result<Input> {
    let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
    if metadata.is_file() {
        return Ok(Input {
            file: open_file(path)?,
            is_stream: false,
        });
    }
    check_stream(path, &metadata)?;
    Ok(Input {
        file: open_file(path)?,
        is_stream: true,
    })
}

/// Opens a regular file, and nothing else.
///
/// # Errors
/// Where it cannot be opened or is something else.
pub fn open_regular(path: &Path) -> Result<File> {
    let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
    ensure!(
        metadata.is_file(),
        "{} is {}, expected a file",
        path.display(),
        kind(&metadata)
    );
    open_file(path)
}

/// Opens an input that is read more than once: of a stream, a copy in a file in the folder `temporary` that
/// has no name.
///
/// # Errors
/// Those of [`open`], and those of reading the stream and of writing its copy.
pub fn spooled(path: &Path, temporary: &Path) -> Result<File> {
    let input = open(path)?;
    match input.is_stream {
        true => spool(input.file, path, temporary),
        false => Ok(input.file),
    }
}

/// Reads a whole input of at most `limit` bytes.
///
/// # Errors
/// Those of [`open`], and where it has more bytes or cannot be read.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    read_open(open(path)?.file, path, limit)
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// Those of [`open_regular`], and where it has more bytes or cannot be read.
pub fn read_regular(path: &Path, limit: u64) -> Result<Vec<u8>> {
    read_open(open_regular(path)?, path, limit)
}

/// The bytes of a file, which stay as they were only if nobody changes the file meanwhile.
///
/// # Errors
/// Those of [`open_regular`], and where it cannot be read or mapped.
pub fn map(path: &Path) -> Result<FileBytes> {
    FileBytes::new(open_regular(path)?, path)
}

/// The bytes of a file, or of a stream up to its end, of which a copy is kept as by [`spooled`].
///
/// # Errors
/// Those of [`spooled`], and where it cannot be read or mapped.
pub fn map_spooled(path: &Path, temporary: &Path) -> Result<FileBytes> {
    FileBytes::new(spooled(path, temporary)?, path)
}

/// What is in a file.
#[derive(Debug)]
pub enum FileBytes {
    /// A small file's bytes, in memory.
    Read(Vec<u8>),
    /// A large file's, mapped.
    Mapped(Mapping),
}

impl FileBytes {
    fn new(file: File, path: &Path) -> Result<Self> {
        let name = || path.display().to_string();
        if file.metadata().with_context(name)?.len() < LEAST_MAPPED {
            return read_open(file, path, u64::MAX).map(Self::Read);
        }
        // SAFETY: as everywhere where files are mapped, this stands on nobody changing the file while it is
        // in use. Values that change would give other numbers; they are never used as sizes or addresses
        // twice. Of a file that becomes shorter, a handler finds the name by
        // `Watch` and can say so before the process ends.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("mapping {}", path.display()))?;
        let watch = Watch::new(&map, file, path);
        Ok(Self::Mapped(Mapping { _watch: watch, map }))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Mapped(mapping) => &mapping.map,
        }
    }
}

/// A mapped file.
#[derive(Debug)]
pub struct Mapping {
    // Dropped first: it points into the mapping.
    _watch: Watch,
    map: Mmap,
}

/// What something is that is no regular file.
fn kind(metadata: &Metadata) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = metadata.file_type();
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    match metadata.is_dir() {
        true => "a folder",
        false => "no file",
    }
}

/// Checks that something is a stream that ends.
fn check_stream(path: &Path, metadata: &Metadata) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = metadata.file_type();
        let is_stream = kind.is_fifo()
            // A socket has no other name by which it could be opened.
            || (kind.is_socket() && is_stdin(path))
            // A terminal is read up to Ctrl-D. Other devices may never end.
            || (kind.is_char_device() && is_terminal_or_null(path));
        if is_stream {
            return Ok(());
        }
    }
    bail!(
        "{} is {}, expected a file or a pipe",
        path.display(),
        kind(metadata)
    )
}

/// Whether a path stands for standard input.
fn is_stdin(path: &Path) -> bool {
    ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"]
        .iter()
        .any(|name| path == Path::new(name))
}

#[cfg(unix)]
fn is_terminal_or_null(path: &Path) -> bool {
    use std::io::IsTerminal;
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let real = real.to_string_lossy();
    real == "/dev/null"
        || real.starts_with("/dev/tty")
        || real.starts_with("/dev/pts/")
        || (is_stdin(path) && io::stdin().is_terminal())
}

fn open_file(path: &Path) -> Result<File> {
    let opened = File::open(path);
    // The name opens a file anew. That fails for a socket and for what another user opened, although it can
    // be read.
    #[cfg(unix)]
    if opened.is_err() && is_stdin(path) {
        use std::os::fd::AsFd;
        let stdin = io::stdin().as_fd().try_clone_to_owned();
        return Ok(stdin.with_context(|| path.display().to_string())?.into());
    }
    opened.with_context(|| path.display().to_string())
}

/// Reads from here to the end.
fn read_open(file: File, path: &Path, limit: u64) -> Result<Vec<u8>> {
    let name = || path.display().to_string();
    let metadata = file.metadata().with_context(name)?;
    let size = if metadata.is_file() { metadata.len() } else { 0 };
    ensure!(
        size <= limit,
        "{} has {size} bytes, expected at most {limit}",
        path.display()
    );
    let mut bytes = Vec::new();
    // One more than there are, so that the end is seen without growing.
    let capacity = usize::try_from(size).unwrap_or(usize::MAX).saturating_add(1);
    bytes
        .try_reserve_exact(capacity)
        .map_err(|error| refused!("{error}"))
        .with_context(|| format!("{}: no memory for its {size} bytes", path.display()))?;
    // A stream, or a file that has grown since.
    let read = file.take(limit.saturating_add(1)).read_to_end(&mut bytes);
    read.with_context(|| format!("reading {}", path.display()))?;
    ensure!(
        bytes.len() as u64 <= limit,
        "{} has more than {limit} bytes, expected at most that",
        path.display()
    );
    Ok(bytes)
}

/// Copies a stream to a file without a name, which ends with the process.
fn spool(mut stream: File, path: &Path, folder: &Path) -> Result<File> {
    let place = || {
        format!(
            "keeping what comes from {} in a temporary file in {} (TMPDIR names another folder)",
            path.display(),
            folder.display()
        )
    };
    let mut copy = tempfile::tempfile_in(folder).with_context(place)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => copy.write_all(&buffer[..read]).with_context(place)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }
    copy.seek(SeekFrom::Start(0)).with_context(place)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_is_read_and_a_large_one_is_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "small").unwrap();
        let small = map(&path).unwrap();
        assert!(matches!(small, FileBytes::Read(_)) && &small[..] == b"small");
        File::create(&path).unwrap().set_len(LEAST_MAPPED).unwrap();
        let large = map(&path).unwrap();
        assert!(matches!(large, FileBytes::Mapped(_)) && large.len() as u64 == LEAST_MAPPED);
        // What was read is not touched by what happens to the file.
        assert_eq!(&small[..], b"small");
    }

    #[test]
    fn reading_has_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        let error = read(&path, 4).unwrap_err().to_string();
        assert!(error.ends_with("file has 5 bytes, expected at most 4"), "{error}");
        let error = read(folder.path(), 4).unwrap_err().to_string();
        assert!(
            error.ends_with(" is a folder, expected a file or a pipe"),
            "{error}"
        );
        let error = map(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with(" is a folder, expected a file"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_no_inputs() {
        for name in ["/dev/zero", "/dev/urandom"] {
            let error = read(Path::new(name), 10).unwrap_err().to_string();
            assert_eq!(error, format!("{name} is a device, expected a file or a pipe"));
        }
        assert_eq!(read(Path::new("/dev/null"), 10).unwrap(), b"");
        let error = map(Path::new("/dev/null")).unwrap_err().to_string();
        assert_eq!(error, "/dev/null is a device, expected a file");
    }
}
