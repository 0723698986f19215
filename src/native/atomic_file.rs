//! Files and folders that appear under their names only when they are complete.
//!
//! ```
//! use std::io::Write;
//! use ernie_vil::native::atomic_file::AtomicFile;
//! let folder = tempfile::tempdir().unwrap();
//! let target = folder.path().join("vectors.out");
//! let mut file = AtomicFile::create(&target).unwrap();
//! file.write_all(b"half").unwrap();
//! assert!(!target.exists());
//! file.commit().unwrap();
//! assert_eq!(std::fs::read(&target).unwrap(), b"half");
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::Error;
use super::Result;
use super::error::{Context, bail};

/// What a folder's name has behind it while another one takes its place.
const OLD: &str = ".old";

/// A file being written beside its target, as `<target>.part`, and renamed when it is complete.
///
/// Dropped before [`commit`](Self::commit) it is removed, unless [`keep`](Self::keep) was called.
/// One process at a time can hold it, by a lock on the file. Reads and writes go straight to the
/// file: wrap it in a [`io::BufWriter`] where pieces are small.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    part: PathBuf,
    target: PathBuf,
    keep: bool,
}

impl AtomicFile {
    /// Starts an empty file, together with the folders it is to lie in.
    ///
    /// # Errors
    /// Those of [`resume`](Self::resume).
    pub fn create(target: &Path) -> Result<Self> {
        let file = Self::resume(target)?;
        file.truncate(0)?;
        Ok(file)
    }

    /// Opens what an earlier run left, or an empty file where there is nothing, at its start.
    ///
    /// # Errors
    /// Where it cannot be opened, where another process writes it, and where something has the target's name
    /// that is no plain file.
    pub fn resume(target: &Path) -> Result<Self> {
        let target = follow(target)?;
        if let Some(folder) = target.parent() {
            create_folders(folder)?;
        }
        let part = beside(&target, ".part");
        // A link would be renamed in the place of what it leads to.
        if fs::symlink_metadata(&part).is_ok_and(|metadata| metadata.is_symlink()) {
            bail!("{} is a link, expected a file or nothing", part.display());
        }
        let file = open_locked(&part)?
            .with_context(|| format!("{} is being written by another process", part.display()))?;
        Ok(Self {
            file,
            part,
            target,
            keep: false,
        })
    }

    /// Says whether the unfinished file stays when this is dropped, to be resumed.
    pub fn keep(&mut self, keep: bool) {
        self.keep = keep;
    }

    /// Bytes that the unfinished file has.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn length(&self) -> Result<u64> {
        let metadata = self.file.metadata();
        Ok(metadata.with_context(|| self.part.display().to_string())?.len())
    }

    /// Cuts the unfinished file off after `length` bytes and goes on from there.
    ///
    /// # Errors
    /// Where the system refuses it.
    pub fn truncate(&self, length: u64) -> Result<()> {
        self.file
            .set_len(length)
            .and_then(|()| (&self.file).seek(SeekFrom::Start(length)))
            .with_context(|| format!("cutting {} to {length} bytes", self.part.display()))?;
        Ok(())
    }

    /// Makes the unfinished file `length` bytes long, all of which the disk has room for then: writing over
    /// them does not fail for want of it.
    ///
    /// # Errors
    /// Where the disk has not so much room. The file is as long as before then.
    pub fn allocate(&self, length: u64) -> Result<()> {
        let before = self.length()?;
        if length <= before {
            return Ok(());
        }
        allocate(&self.file, before, length - before).with_context(|| {
            // What there was room for is given back, so that it fails as a whole.
            let _ = self.file.set_len(before);
            format!("making room for {length} bytes in {}", self.part.display())
        })
    }

    /// Whether the unfinished file still has its name.
    pub fn is_in_place(&self) -> bool {
        is_at(&self.file, &self.part).unwrap_or(false)
    }

    /// Brings the contents to the disk and gives the file its name, replacing what had it.
    ///
    /// # Errors
    /// Where the system refuses it.
    pub fn commit(self) -> Result<()> {
        let target = self.target.clone();
        self.rename()?;
        sync_folder_of(&target)
    }

    /// As [`commit`](Self::commit), but the name is not on the disk before [`sync_folder_of`] has brought it
    /// there. Returns the file, which stays locked as long as it is open.
    ///
    /// # Errors
    /// Where the system refuses it. The target is as it was then.
    pub fn rename(mut self) -> Result<File> {
        let renaming = || format!("renaming {} to {}", self.part.display(), self.target.display());
        self.file
            .sync_all()
            .with_context(|| format!("writing {} to the disk", self.part.display()))?;
        let file = self.file.try_clone().with_context(renaming)?;
        fs::rename(&self.part, &self.target).with_context(renaming)?;
        self.keep = true;
        Ok(file)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.keep && self.is_in_place() {
            // Nobody is left to be told; what stays is overwritten by the next run.
            let _ = fs::remove_file(&self.part);
        }
    }
}

impl Read for AtomicFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// Makes a folder that appears under its name only when `fill` has completed it and all of it is on the disk,
/// in the place of what had the name. Where `fill` fails nothing is left of it, and what had the name stays.
///
/// # Errors
/// Those of `fill`, and where the system refuses a step.
pub fn write_folder<T, E: From<Error>>(
    target: &Path,
    fill: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let (part, old) = (beside(target, ".part"), beside(target, OLD));
    let remove = |folder: &Path| match folder.exists() {
        true => fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display())),
        false => Ok(()),
    };
    let rename = |from: &Path, to: &Path| {
        fs::rename(from, to).with_context(|| format!("renaming {} to {}", from.display(), to.display()))
    };
    restore_folder(target)?;
    remove(&part)?;
    create_folders(&part)?;
    let filled = fill(&part)
        .and_then(|filled| Ok(sync_all_in(&part).map(|()| filled)?))
        .inspect_err(|_| {
            // What is half written is of no use to anybody.
            let _ = fs::remove_dir_all(&part);
        })?;
    // A folder cannot be renamed over another one. Between the two renames only the old one is there, beside
    // its name, where `restore_folder` finds it.
    remove(&old)?;
    if target.exists() {
        rename(target, &old)?;
    }
    rename(&part, target)?;
    // The old one goes when the disk has the new one's name.
    sync_folder_of(target)?;
    remove(&old)?;
    Ok(filled)
}

/// Gives a folder its name back where [`write_folder`] was cut off between taking it away and putting the new
/// one there.
///
/// # Errors
/// Where it cannot be renamed.
pub fn restore_folder(target: &Path) -> Result<()> {
    let old = beside(target, OLD);
    if !target.exists() && old.exists() {
        fs::rename(&old, target).with_context(|| format!("renaming {}", old.display()))?;
        sync_folder_of(target)?;
    }
    Ok(())
}

/// Creates a folder, with those that it lies in, and brings their names to the disk.
///
/// # Errors
/// Where one cannot be created.
pub fn create_folders(folder: &Path) -> Result<()> {
    let is_new = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let new: Vec<&Path> = folder.ancestors().take_while(is_new).collect();
    // Also where it is there: what is no folder is refused.
    if !folder.as_os_str().is_empty() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    for folder in new {
        sync_folder_of(folder)?;
    }
    Ok(())
}

/// Brings the names of the folder that a file or folder lies in to the disk: a file that was created, renamed
/// or removed is so for good only then.
///
/// # Errors
/// Where the folder cannot be written to the disk. File systems that have no such operation are passed over.
pub fn sync_folder_of(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => sync_folder(Path::new(".")),
        Some(folder) => sync_folder(folder),
        None => Ok(()),
    }
}

/// Brings the names in a folder to the disk. Only Unix has that, and there not every file system.
fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // EINVAL, ENOTSUP and ENOSYS: the file system has no such operation.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
            ) =>
        {
            Ok(())
        }
        synced => synced.with_context(|| format!("writing the names in {} to the disk", folder.display())),
    }
}

/// Brings a folder with all that is in it to the disk.
fn sync_all_in(folder: &Path) -> Result<()> {
    let in_folder = || folder.display().to_string();
    for entry in fs::read_dir(folder).with_context(in_folder)? {
        let entry = entry.with_context(in_folder)?;
        let (path, kind) = (entry.path(), entry.file_type().with_context(in_folder)?);
        if kind.is_dir() {
            sync_all_in(&path)?;
        } else if kind.is_file() && cfg!(unix) {
            // Elsewhere a file has to be open for writing; those who write large ones synchronise them
            // themselves.
            let synced = File::open(&path).and_then(|file| file.sync_all());
            synced.with_context(|| format!("writing {} to the disk", path.display()))?;
        }
    }
    sync_folder(folder)
}

/// The path with `suffix` behind its file name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Where a new file under this name would really lie: a link is followed, not replaced.
fn follow(target: &Path) -> Result<PathBuf> {
    match fs::metadata(target) {
        Ok(metadata) if metadata.is_file() => {
            fs::canonicalize(target).with_context(|| target.display().to_string())
        }
        // A rename would put a plain file in the place of a device such as /dev/null.
        Ok(_) => bail!("{} exists and is not a plain file", target.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(target.to_owned()),
        Err(error) => Err(error).with_context(|| target.display().to_string()),
    }
}

/// Opens or creates a file and locks it for this process; none where another one has locked it.
pub(crate) fn open_locked(path: &Path) -> Result<Option<File>> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        if !lock(&file).with_context(|| format!("locking {}", path.display()))? {
            return Ok(None);
        }
        // Another process may have renamed or removed it between the opening and the lock.
        if is_at(&file, path)? {
            return Ok(Some(file));
        }
    }
}

/// Locks a file for this process; false where another one has locked it.
pub(crate) fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        // Some network file systems have no locks; there it goes on without.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether the path leads to this file, and not to another one or to nothing.
#[cfg(unix)]
pub(crate) fn is_at(file: &File, path: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let here = identity(file.metadata().with_context(|| path.display().to_string())?);
    match fs::metadata(path) {
        Ok(there) => Ok(identity(there) == here),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Elsewhere a file that is open keeps its name.
#[cfg(not(unix))]
pub(crate) fn is_at(_: &File, _: &Path) -> Result<bool> {
    Ok(true)
}

/// Makes a file longer by `length` bytes from byte `from` on, where it ends, that the disk has room for.
fn allocate(file: &File, from: u64, length: u64) -> io::Result<()> {
    #[cfg(all(feature = "serve", any(target_os = "linux", target_os = "freebsd")))]
    {
        use std::os::fd::AsRawFd;
        let (from, length) = (from as libc::off_t, length as libc::off_t);
        // SAFETY: the descriptor is open as long as `file` is, and nothing else is handed over.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), from, length) } {
            0 => return Ok(()),
            // Not on this file system.
            libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
    let mut file = file;
    file.seek(SeekFrom::Start(from))?;
    io::copy(&mut io::repeat(0).take(length), &mut file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::names_in as names;

    #[test]
    fn appears_when_committed() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("new/out.tsv");
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"whole").unwrap();
        assert_eq!(names(target.parent().unwrap()), ["out.tsv.part"]);
        file.commit().unwrap();
        assert_eq!(names(target.parent().unwrap()), ["out.tsv"]);
        assert_eq!(fs::read(&target).unwrap(), b"whole");

        // The old contents stay until the new ones are complete.
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"n").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"whole");
        drop(file);
        assert_eq!(names(target.parent().unwrap()), ["out.tsv"]);
        assert_eq!(fs::read(&target).unwrap(), b"whole");
    }

    #[test]
    fn is_kept_and_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"rows 1 and 2, half of 3").unwrap();
        file.keep(true);
        drop(file);
        assert_eq!(names(folder.path()), ["out.part"]);

        let mut file = AtomicFile::resume(&target).unwrap();
        let mut left = String::new();
        file.read_to_string(&mut left).unwrap();
        assert_eq!(
            (left.as_str(), file.length().unwrap()),
            ("rows 1 and 2, half of 3", 23)
        );
        file.truncate(12).unwrap();
        file.write_all(b", 3").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"rows 1 and 2, 3");
        assert_eq!(names(folder.path()), ["out"]);

        // Starting anew forgets what was left.
        fs::write(folder.path().join("out.part"), "left").unwrap();
        AtomicFile::create(&target).unwrap().commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"");
    }

    #[test]
    fn has_one_writer() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let mut first = AtomicFile::create(&target).unwrap();
        first.write_all(b"first").unwrap();
        let error = AtomicFile::create(&target).unwrap_err().to_string();
        assert!(
            error.ends_with("out.part is being written by another process"),
            "{error}"
        );
        first.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"first");
        AtomicFile::create(&target).unwrap();
    }

    #[test]
    fn refuses_what_it_would_destroy() {
        let folder = tempfile::tempdir().unwrap();
        let error = AtomicFile::create(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("exists and is not a plain file"), "{error}");
        let below_a_file = folder.path().join("file/out");
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(AtomicFile::create(&below_a_file).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn follows_links_and_leaves_devices() {
        assert!(AtomicFile::create(Path::new("/dev/null")).is_err());
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("disk")).unwrap();
        fs::write(folder.path().join("disk/out"), "old").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("disk/out", &link).unwrap();
        let mut file = AtomicFile::create(&link).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(folder.path().join("disk/out")).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}
