//! Files that are only written where they change, and work that is only done where its files changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::command::root;

/// Where it is kept what the steps have seen. Who removes the packages has every step done again.
const SEEN: &str = "pkg/node_modules/.cache/ernie-vil";

/// Does the work unless it has been done and neither its inputs nor its outputs (files and folders of the
/// repository) have changed since.
pub fn unless_unchanged(
    name: &str,
    inputs: &[impl AsRef<Path>],
    outputs: &[impl AsRef<Path>],
    work: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    unless_unchanged_in(&root().join(SEEN).join(name), name, inputs, outputs, work)
}

fn unless_unchanged_in(
    record: &Path,
    name: &str,
    inputs: &[impl AsRef<Path>],
    outputs: &[impl AsRef<Path>],
    work: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let before = seen(inputs)?;
    let known = fs::read_to_string(record).ok();
    if known.is_some_and(|known| seen(outputs).is_ok_and(|after| known == before.clone() + &after)) {
        println!("\n{name}: unchanged.");
        return Ok(());
    }
    work()?;
    // The inputs as they were: who changed one during the work has it done again.
    write(record, (before + &seen(outputs)?).as_bytes())
}

/// A line for each file, with its length and its time; also for what is missing.
fn seen(paths: &[impl AsRef<Path>]) -> Result<String, String> {
    let mut lines = String::new();
    for path in paths {
        let path = root().join(path);
        lines += &format!("{}\n", path.display());
        for file in files_below(&path)? {
            let metadata = fs::metadata(&file).map_err(|error| named(&file, &error))?;
            let time = metadata.modified().map_err(|error| named(&file, &error))?;
            let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            lines += &format!("{} {} {}\n", file.display(), metadata.len(), time.as_nanos());
        }
    }
    Ok(lines)
}

/// The files in a folder and in the folders in it, in order; of a file, itself; of nothing, none.
pub fn files_below(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() {
        return Ok(Vec::from_iter(path.exists().then(|| path.to_owned())));
    }
    let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut paths: Vec<_> = entries
        .map_err(|error| named(path, &error))?
        .into_iter()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        files.extend(files_below(&path)?);
    }
    Ok(files)
}

/// Makes a folder have the files of another, and no others. Those that are equal are left as they are.
pub fn mirror(from: &Path, to: &Path) -> Result<(), String> {
    for old in files_below(to)? {
        if old.strip_prefix(to).is_ok_and(|name| !from.join(name).exists()) {
            remove(&old)?;
        }
    }
    for new in files_below(from)? {
        let copy = to.join(new.strip_prefix(from).unwrap_or(&new));
        let bytes = read(&new)?;
        if !fs::read(&copy).is_ok_and(|old| old == bytes) {
            write(&copy, &bytes)?;
        }
    }
    Ok(())
}

pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| named(path, &error))
}

/// Writes a file, and makes its folder where there is none.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    folder
        .and_then(|()| fs::write(path, bytes))
        .map_err(|error| named(path, &error))
}

/// Removes a file or a folder, if it is there.
pub fn remove(path: &Path) -> Result<(), String> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named(path, &error)),
        _ => Ok(()),
    }
}

fn named(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process;

    use super::*;

    /// An empty folder, removed in the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("ernie-vil-{name}-{}", process::id()));
            remove(&path).unwrap();
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            remove(&self.0).unwrap();
        }
    }

    #[test]
    fn a_mirror_has_the_files_of_the_other_folder_and_no_others() {
        let folder = Folder::new("mirror");
        let (from, to) = (folder.0.join("from"), folder.0.join("to"));
        for (name, text) in [("equal", "1"), ("changed", "2"), ("in/folders/new", "3")] {
            write(&from.join(name), text.as_bytes()).unwrap();
        }
        for (name, text) in [("equal", "1"), ("changed", "1"), ("old/gone", "1")] {
            write(&to.join(name), text.as_bytes()).unwrap();
        }
        let time = |name| fs::metadata(to.join(name)).unwrap().modified().unwrap();
        let before = time("equal");
        mirror(&from, &to).unwrap();
        assert_eq!(time("equal"), before);
        let names: Vec<_> = files_below(&to)
            .unwrap()
            .iter()
            .map(|file| file.strip_prefix(&to).unwrap().to_owned())
            .collect();
        assert_eq!(names, ["changed", "equal", "in/folders/new"].map(PathBuf::from));
        assert_eq!(read(&to.join("changed")).unwrap(), b"2");
        assert_eq!(read(&to.join("in/folders/new")).unwrap(), b"3");
    }

    #[test]
    fn work_is_done_again_where_a_file_changed() {
        let folder = Folder::new("unchanged");
        let [input, output, record] = ["input", "output", "record"].map(|name| folder.0.join(name));
        write(&input, b"1").unwrap();
        let mut times = 0;
        let mut step = || {
            let work = || write(&output, b"made");
            let done = unless_unchanged_in(&record, "step", &[&input], &[&output], || {
                times += 1;
                work()
            });
            done.unwrap();
            times
        };
        assert_eq!([step(), step()], [1, 1]);
        write(&input, b"longer").unwrap();
        assert_eq!([step(), step()], [2, 2]);
        remove(&output).unwrap();
        assert_eq!([step(), step()], [3, 3]);
        write(&output, b"of others").unwrap();
        assert_eq!([step(), step()], [4, 4]);
        remove(&input).unwrap();
        assert_eq!([step(), step()], [5, 5]);
        let failed = unless_unchanged_in(&record, "step", &[&record], &[&output], || Err("no".into()));
        assert_eq!(failed, Err("no".into()));
    }
}
