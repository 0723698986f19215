//! Which files a command reads and which it writes, compared before it touches any of them.
//!
//! Two rules hold for every command. A file that is read is never written, by whatever name it goes. And an
//! output that is there already is replaced only where `--overwrite` says so.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use ernie_vil::native::atomic_file::beside;
use ernie_vil::native::{folder, index_file, pictures};

use crate::cli::{self, Command};

/// What tells whether two paths name the same file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Identity {
    /// Device and inode, which links of both kinds share.
    #[cfg(unix)]
    Inode(u64, u64),
    #[cfg(not(unix))]
    Path(PathBuf),
}

impl Identity {
    /// That of an existing file or folder; links are followed.
    fn of(path: &Path) -> Option<Self> {
        #[cfg(unix)]
        return fs::metadata(path).ok().map(|metadata| Self::new(&metadata));
        #[cfg(not(unix))]
        return fs::canonicalize(path).ok().map(Self::Path);
    }

    #[cfg(unix)]
    fn new(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self::Inode(metadata.dev(), metadata.ino())
    }
}

/// The files of a command.
#[derive(Debug, Default)]
pub struct Files {
    inputs: Vec<PathBuf>,
    outputs: Vec<PathBuf>,
    output_folders: Vec<PathBuf>,
    /// A folder that is read, with everything below it.
    pictures: Option<PathBuf>,
}

impl Files {
    pub fn reads(&mut self, path: &Path) -> &mut Self {
        self.inputs.push(path.to_owned());
        self
    }

    pub fn may_read(&mut self, path: Option<&Path>) -> &mut Self {
        self.inputs.extend(path.map(Path::to_owned));
        self
    }

    /// A model folder, with the files that a model has in it; results may well be written beside those.
    pub fn reads_model(&mut self, folder: &Path) -> &mut Self {
        self.reads(folder);
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if is_of_model(&entry.file_name().to_string_lossy()) {
                self.reads(&entry.path());
            }
        }
        self
    }

    /// A file that is replaced when the new one is complete.
    pub fn writes(&mut self, path: &Path) -> &mut Self {
        for path in [path, &really(path)] {
            self.outputs.extend([path.to_owned(), beside(path, ".part")]);
        }
        self
    }

    /// A folder that is replaced when the new one is complete.
    pub fn writes_folder(&mut self, folder: &Path) -> &mut Self {
        let names = [folder.to_owned(), beside(folder, ".part"), beside(folder, ".old")];
        self.output_folders.extend(names);
        self
    }

    /// An index, which is a file with a log of changes and a lock beside it.
    fn keeps_index(&mut self, path: &Path) -> &mut Self {
        let real = index_file::real_path(path).unwrap_or_else(|_| path.to_owned());
        for path in [path, &real] {
            self.writes(path)
                .writes(&beside(path, ".log"))
                .writes(&beside(path, ".lock"));
        }
        self
    }

    /// Checks that no output is one of the inputs, nor holds one.
    pub fn check(&self) -> Result<()> {
        let inputs = by_identity(&self.inputs);
        for output in &self.outputs {
            if let Some(input) = Identity::of(output).and_then(|identity| inputs.get(&identity)) {
                bail!(
                    "{} would be written and is the same file as the input {}; choose another output",
                    output.display(),
                    input.display()
                );
            }
        }
        let folders = by_identity(&self.output_folders);
        for input in &self.inputs {
            let Ok(real) = fs::canonicalize(input) else {
                continue;
            };
            // By what the folders are, not by their names: one may be reached by several.
            for folder in real.ancestors().filter(|_| !folders.is_empty()) {
                let Some(output) = Identity::of(folder).and_then(|identity| folders.get(&identity)) else {
                    continue;
                };
                match real == folder {
                    true => bail!(
                        "{} would be replaced and is the same folder as the input {}; choose another output",
                        output.display(),
                        input.display()
                    ),
                    false => bail!(
                        "{} would be replaced and holds the input {}; choose another output",
                        output.display(),
                        input.display()
                    ),
                }
            }
        }
        #[cfg(unix)]
        if let Some(input) = printed_to().and_then(|identity| inputs.get(&identity).copied()) {
            bail!(
                "standard output goes to the same file as the input {}; choose another one",
                input.display()
            );
        }
        self.check_pictures()
    }

    /// Checks that no output is a picture of the folder, nor a link to one. The index itself may lie in the
    /// folder.
    fn check_pictures(&self) -> Result<()> {
        let outputs = by_identity(&self.outputs);
        // Most often there is no index yet, and nothing to compare.
        let mut folders: Vec<PathBuf> = self.pictures.iter().cloned().collect();
        while let (Some(folder), false) = (folders.pop(), outputs.is_empty()) {
            // A folder that cannot be read is reported by the search.
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() {
                    folders.push(path);
                    continue;
                }
                let Some(output) = Identity::of(&path).and_then(|identity| outputs.get(&identity)) else {
                    continue;
                };
                let is_itself = match (fs::canonicalize(&path), fs::canonicalize(output)) {
                    (Ok(path), Ok(output)) => path == output && !kind.is_symlink(),
                    _ => false,
                };
                ensure!(
                    is_itself && !pictures::is_picture(&path),
                    "{} would be written and is the same file as the picture {}; choose another index",
                    output.display(),
                    path.display()
                );
            }
        }
        Ok(())
    }
}

/// The paths at which there is something, by what it is.
fn by_identity(paths: &[PathBuf]) -> HashMap<Identity, &Path> {
    let found = paths
        .iter()
        .filter_map(|path| Some((Identity::of(path)?, path.as_path())));
    found.collect()
}

/// Where a file of this name really lies, and with it what is written beside it.
fn really(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The file that standard output goes to, where it is one.
#[cfg(unix)]
fn printed_to() -> Option<Identity> {
    use std::os::fd::AsFd;
    let file: File = std::io::stdout().as_fd().try_clone_to_owned().ok()?.into();
    let metadata = file.metadata().ok()?;
    metadata.is_file().then(|| Identity::new(&metadata))
}

/// The files that the command line names. A command whose configuration file names more checks those itself.
pub fn of(command: &Command) -> Files {
    let mut files = Files::default();
    let mut model = |model: &cli::ModelArg| {
        if let Some(folder) = &model.model {
            files.reads_model(folder);
        }
    };
    match command {
        Command::Convert(args) => {
            if let Some(folder) = &args.model {
                files.reads_model(folder);
            }
            for path in args
                .weights
                .iter()
                .chain(&args.text_config)
                .chain(&args.image_config)
                .chain(&args.vocab)
            {
                files.reads(path);
            }
            files.writes_folder(&args.target.output);
        }
        Command::Download(args) => {
            files
                .may_read(args.text_config.as_deref())
                .may_read(args.image_config.as_deref())
                .writes_folder(&args.target.output)
                .writes_folder(&beside(&args.target.output, ".download"));
        }
        Command::Info(args) => model(&args.model),
        Command::Tokenize(args) => {
            model(&args.model);
            files.may_read(args.file.as_deref());
            if args.file.is_none() {
                files.reads(Path::new("/dev/stdin"));
            }
        }
        // Named by a configuration file, or known only with it.
        Command::Embed(_) => {}
        #[cfg(feature = "train")]
        Command::Train(_) => {}
        Command::Score(args) => {
            files.reads(&args.file);
            files
                .may_read(args.related.texts.as_deref())
                .may_read(args.related.images.as_deref());
        }
        Command::Eval(args) => {
            model(&args.model);
            files
                .may_read(args.input.as_deref())
                .may_read(args.related.texts.as_deref())
                .may_read(args.related.images.as_deref());
        }
        Command::Classify(args) => {
            model(&args.model);
            for path in args.images.iter().chain(&args.labels_file) {
                files.reads(path);
            }
        }
        Command::Search(args) => {
            model(&args.model);
            for path in &args.image {
                files.reads(path);
            }
            files.pictures = Some(args.images.clone());
            if let Some(path) = &args.index {
                files.keeps_index(path);
            }
        }
        #[cfg(feature = "serve")]
        Command::Serve(args) => {
            model(&args.model);
            if let Some(path) = &args.index {
                files.keeps_index(path);
            }
        }
        Command::Bench(args) => model(&args.model),
    }
    files
}

/// Checks that outputs can take their names: what is there already is replaced with `--overwrite` alone, and
/// then only if it is a plain file.
pub fn check_free(outputs: &[PathBuf], overwrite: bool) -> Result<()> {
    for path in outputs {
        let Some(metadata) = metadata(path)? else { continue };
        ensure!(
            metadata.is_file(),
            "{} is there already and is not a plain file, so it is not replaced",
            path.display()
        );
        ensure!(overwrite, "{}", is_there(path));
    }
    Ok(())
}

/// What is said of an output that is in the way.
pub fn is_there(path: &Path) -> String {
    format!("{} is there already; --overwrite replaces it", path.display())
}

/// Of what has this name, if there is something; a link is followed.
fn metadata(path: &Path) -> Result<Option<Metadata>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Checks that a model folder can take this name: what is there already is replaced with `--overwrite` alone,
/// and then only if nothing else than a model would be lost.
pub fn check_folder(folder: &Path, overwrite: bool) -> Result<()> {
    let (part, old) = (beside(folder, ".part"), beside(folder, ".old"));
    let found = metadata(folder)?;
    if let Some(metadata) = &found {
        ensure!(overwrite, "{}", is_there(folder));
        ensure!(
            metadata.is_dir(),
            "{} is not a model folder, so it is not replaced",
            folder.display()
        );
        check_model(folder)?;
    }
    // These names are needed while one folder takes the other's place. What a run that was cut off left is
    // removed, or gets its name back; nothing else is.
    if metadata(&part)?.is_some() {
        check_model(&part)?;
    }
    ensure!(
        metadata(&old)?.is_none() || (found.is_none() && metadata(&part)?.is_some()),
        "{} is in the way: this command needs the name. Where a run that was cut off left it there, remove it; \
         otherwise rename it",
        old.display()
    );
    Ok(())
}

/// Whether a file of this name holds a tower's weights: the whole, or a shard (NAME.000).
fn is_weights(name: &str) -> bool {
    [folder::IMAGE, folder::TEXT].iter().any(|weights| {
        name.strip_prefix(weights).is_some_and(|end| {
            let number = end.strip_prefix('.').unwrap_or(end);
            number.bytes().all(|digit| digit.is_ascii_digit())
        })
    })
}

/// Whether a model folder has a file of this name.
fn is_of_model(name: &str) -> bool {
    is_weights(name) || [folder::CONFIG, folder::VOCAB, folder::MANIFEST].contains(&name)
}

/// Checks that a folder holds a model, or a part of one, and nothing else.
fn check_model(folder: &Path) -> Result<()> {
    let (ours, others) = contents(folder, is_of_model)?;
    // Other projects' folders have a config.json and a vocab.txt, too.
    let is_model = ours
        .iter()
        .any(|name| is_weights(name) || name == folder::MANIFEST);
    ensure!(
        is_model || (ours.is_empty() && others.is_empty()),
        "{} is not a model folder, so it is not replaced",
        folder.display()
    );
    nothing_else(folder, "a model folder", &others)
}

/// Checks that a folder, where there is one, holds nothing but files of these names.
#[cfg(feature = "train")]
pub fn check_only(folder: &Path, what: &str, names: &[&str]) -> Result<()> {
    match metadata(folder)? {
        Some(_) => nothing_else(folder, what, &contents(folder, |name| names.contains(&name))?.1),
        None => Ok(()),
    }
}

fn nothing_else(folder: &Path, what: &str, others: &[String]) -> Result<()> {
    ensure!(
        others.is_empty(),
        "{} also holds {:?}, which is no part of {what} and would be lost, so it is not replaced",
        folder.display(),
        others[0]
    );
    Ok(())
}

/// The names of a folder's files that are ours, and of everything else in it.
fn contents(folder: &Path, is_ours: impl Fn(&str) -> bool) -> Result<(Vec<String>, Vec<String>)> {
    let in_folder = || folder.display().to_string();
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).with_context(in_folder)? {
        let entry = entry.with_context(in_folder)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_file = entry.file_type().with_context(in_folder)?.is_file();
        match is_file && is_ours(&name) {
            true => ours.push(name),
            false => others.push(name),
        }
    }
    others.sort();
    Ok((ours, others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_replaced_only_if_nothing_else_is_lost() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("model");
        check_folder(&folder, false).unwrap();
        fs::create_dir(&folder).unwrap();
        check_folder(&folder, true).unwrap();
        let error = check_folder(&folder, false).unwrap_err().to_string();
        assert!(
            error.ends_with("model is there already; --overwrite replaces it"),
            "{error}"
        );
        // Other projects' folders have a file of this name, too.
        fs::write(folder.join("config.json"), "{}").unwrap();
        let error = check_folder(&folder, true).unwrap_err().to_string();
        assert!(
            error.ends_with("is not a model folder, so it is not replaced"),
            "{error}"
        );
        for name in [
            "manifest.json",
            "text.safetensors",
            "image.safetensors.000",
            "vocab.txt",
        ] {
            fs::write(folder.join(name), "").unwrap();
        }
        check_folder(&folder, true).unwrap();
        fs::write(folder.join("notes.txt"), "").unwrap();
        let error = check_folder(&folder, true).unwrap_err().to_string();
        assert!(error.contains("also holds \"notes.txt\""), "{error}");
        fs::remove_file(folder.join("notes.txt")).unwrap();

        // A copy that a user made.
        let old = base.path().join("model.old");
        fs::rename(&folder, &old).unwrap();
        let error = check_folder(&folder, true).unwrap_err().to_string();
        assert!(error.contains("model.old is in the way"), "{error}");
        // What a run leaves that is cut off between two renames.
        fs::create_dir(base.path().join("model.part")).unwrap();
        check_folder(&folder, false).unwrap();
        fs::write(base.path().join("model.part/novel.txt"), "").unwrap();
        assert!(check_folder(&folder, false).is_err());
    }

    #[test]
    fn an_output_holds_no_input() {
        let base = tempfile::tempdir().unwrap();
        let (folder, input) = (base.path().join("model"), base.path().join("model/weights"));
        fs::create_dir(&folder).unwrap();
        fs::write(&input, "").unwrap();
        let check = |input: &Path, output: &Path| {
            let mut files = Files::default();
            files.reads(input).writes_folder(output);
            files.check()
        };
        check(&input, &base.path().join("other")).unwrap();
        check(&input, &base.path().join("mod")).unwrap();
        let error = check(&input, &folder).unwrap_err().to_string();
        assert!(
            error.contains("model would be replaced and holds the input"),
            "{error}"
        );
        let error = check(&folder, &base.path().join("model/."))
            .unwrap_err()
            .to_string();
        assert!(error.contains("is the same folder as the input"), "{error}");
        fs::rename(&folder, base.path().join("model.part")).unwrap();
        assert!(check(&base.path().join("model.part/weights"), &folder).is_err());
    }
}
