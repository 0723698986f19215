//! `cargo xtask licences`: whether what is linked and shipped may be, and the licence texts that go with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Failure;
use crate::command::{cargo, output, program, root};

/// The project's own crate, whose licences lie beside the file.
pub const OWN: &str = "ernie-vil";
/// Where the licences are named that are allowed.
const RULES: &str = "deny.toml";
/// The lock files of the npm package and of the demo page.
const NPM_LOCKS: [&str; 2] = ["pkg/package-lock.json", "www/package-lock.json"];
/// What a crate's licence is called where its manifest names only a file.
const UNDECLARED: [(&str, &str); 1] = [("cfg_block", "Apache-2.0")];
/// How the names of files begin that have to go with a crate.
const FILES: [&str; 6] = ["licen", "copying", "copyright", "notice", "unlicense", "patents"];
/// Files with these endings are something else, whatever their names are.
const OTHERS: [&str; 9] = ["rs", "py", "js", "json", "toml", "yml", "yaml", "html", "sh"];
/// Folders of a crate of which nothing is linked.
const NOT_LINKED: [&str; 4] = ["benches", "examples", "target", "tests"];

/// What is linked together and distributed.
pub struct Product<'a> {
    /// What the file says that it is about.
    name: &'a str,
    /// `None` stands for the machine that this runs on.
    target: Option<&'a str>,
    /// Cargo's flags for its features, one list for each program in it.
    builds: Vec<Vec<&'a str>>,
}

pub fn run(arguments: &[&str]) -> Result<(), Failure> {
    let options = Options::parse(arguments).map_err(Failure::Usage)?;
    let done = match options.output {
        Some(path) => write_texts(&options.binary(), Path::new(path)),
        None => check(&options),
    };
    done.map_err(Failure::Failed)
}

/// What the command line asks for.
#[derive(Debug, Default, PartialEq)]
struct Options<'a> {
    /// Where the licence texts of the binary are written.
    output: Option<&'a str>,
    /// Of the binary, beside its default features.
    features: Option<&'a str>,
    target: Option<&'a str>,
}

impl<'a> Options<'a> {
    fn parse(arguments: &[&'a str]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(&argument) = arguments.next() {
            let option = match argument {
                "--output" => &mut options.output,
                "--features" => &mut options.features,
                "--target" => &mut options.target,
                other => return Err(format!("'licences' takes no '{other}'.")),
            };
            let value = arguments.next();
            *option = Some(*value.ok_or_else(|| format!("'{argument}' takes a value."))?);
        }
        Ok(options)
    }

    fn binary(&self) -> Product<'a> {
        let features = self.features.map(|features| vec!["--features", features]);
        Product {
            name: "program ernie-vil",
            target: self.target,
            builds: vec![features.unwrap_or_default()],
        }
    }
}

/// The WebAssembly modules of the npm package.
pub fn modules<'a>(features: &[&'a str], target: &'a str) -> Product<'a> {
    let flags = |&features| vec!["--no-default-features", "--features", features];
    Product {
        name: "npm package ernie-vil",
        target: Some(target),
        builds: features.iter().map(flags).collect(),
    }
}

/// Checks the binary, the binary for NVIDIA GPUs, the modules, and what the npm packages depend on.
fn check(options: &Options) -> Result<(), String> {
    let rules = read(&root().join(RULES))?;
    let allowed = allowed(&rules)?;
    let mut cuda = options.binary();
    cuda.builds = vec![vec!["--features", "cuda"]];
    let mut refused = Vec::new();
    let mut counts = BTreeMap::<String, usize>::new();
    for product in [options.binary(), cuda, crate::web::product()] {
        let packages = product.packages()?;
        // A crate whose licence text is nowhere is found now, and not when it is to be shipped.
        let size = texts(product.name, &packages)?.len().div_ceil(1000);
        println!(
            "{}: {} crates, {size} kB of licences.",
            product.shown(),
            packages.len()
        );
        for package in packages {
            if !permitted(&package.licence, &allowed)? {
                refused.push(format!("{} ({})", package.title(), package.licence));
            }
            *counts.entry(package.licence).or_default() += 1;
        }
    }
    for path in NPM_LOCKS {
        let packages = shipped_by_npm(&json(&read(&root().join(path))?)?);
        println!("{path}: {} packages are shipped.", packages.len());
        for (name, licence) in packages {
            if !permitted(&licence, &allowed)? {
                refused.push(format!("{name} in {path} ({licence})"));
            }
        }
    }
    refused.sort();
    refused.dedup();
    if refused.is_empty() {
        println!("{} expressions, all of them allowed by {RULES}.", counts.len());
        return Ok(());
    }
    Err(format!(
        "{RULES} does not allow the licence of: {}.",
        refused.join(", ")
    ))
}

/// Writes the licence texts of everything that is linked into the product.
pub fn write_texts(product: &Product, path: &Path) -> Result<(), String> {
    let packages = product.packages()?;
    let text = texts(product.name, &packages)?;
    fs::write(path, &text).map_err(|error| format!("{}: {error}", path.display()))?;
    println!(
        "{}: the licences of {} crates, {} kB.",
        path.display(),
        packages.len(),
        text.len().div_ceil(1000)
    );
    Ok(())
}

/// A crate that is linked.
#[derive(Debug, Clone, PartialEq)]
struct Package {
    name: String,
    version: String,
    /// An SPDX expression.
    licence: String,
    authors: Vec<String>,
    folder: PathBuf,
}

impl Product<'_> {
    fn shown(&self) -> String {
        let builds: Vec<_> = self.builds.iter().map(|flags| flags.join(" ")).collect();
        let builds = builds.join(" | ");
        format!(
            "{} [{}]",
            self.name,
            if builds.is_empty() { "default" } else { &builds }
        )
    }

    /// All crates that are linked, by name and version, without the project's own.
    fn packages(&self) -> Result<Vec<Package>, String> {
        let host;
        let target = match self.target {
            Some(target) => target,
            None => {
                host = output(&mut program("rustc", &["--print", "host-tuple"]))?;
                host.trim()
            }
        };
        let mut found = BTreeMap::new();
        for flags in &self.builds {
            let mut tree = cargo(&["tree", "--locked", "--package", OWN]);
            tree.args(["--edges", "normal,no-proc-macro", "--prefix", "none"]);
            tree.args(["--format", "{p}", "--target", target]).args(flags);
            let mut metadata = cargo(&["metadata", "--locked", "--format-version", "1"]);
            metadata.args(["--filter-platform", target]).args(flags);
            let metadata = described(&json(&output(&mut metadata)?)?)?;
            for (name, version) in linked(&output(&mut tree)?) {
                let key = (name.to_owned(), version.to_owned());
                let package = metadata.get(&key);
                let package = package.ok_or_else(|| format!("cargo metadata has no {name} {version}."))?;
                found.insert(key, package.clone());
            }
        }
        Ok(found.into_values().collect())
    }
}

impl Package {
    fn title(&self) -> String {
        format!("{} {}", self.name, self.version)
    }
}

/// The names and versions in the output of `cargo tree`, without the project's own crate.
fn linked(tree: &str) -> impl Iterator<Item = (&str, &str)> {
    tree.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (name, version) = (words.next()?, words.next()?);
        (name != OWN).then(|| (name, version.trim_start_matches('v')))
    })
}

/// The packages in the output of `cargo metadata`, by name and version.
fn described(metadata: &Value) -> Result<BTreeMap<(String, String), Package>, String> {
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let (name, manifest) = (text("name"), PathBuf::from(text("manifest_path")));
        let known = UNDECLARED.iter().find(|(known, _)| *known == name);
        let licence = match (package["license"].as_str(), known) {
            (Some(licence), _) => licence.to_owned(),
            (None, Some((_, licence))) => (*licence).to_owned(),
            // No crate that is linked may be one of these: an empty expression is refused.
            (None, None) => String::new(),
        };
        let folder = manifest
            .parent()
            .ok_or_else(|| format!("{name} has no folder."))?
            .to_owned();
        let authors = package["authors"].as_array().into_iter().flatten();
        let package = Package {
            version: text("version"),
            licence,
            authors: authors.filter_map(Value::as_str).map(str::to_owned).collect(),
            folder,
            name,
        };
        found.insert((package.name.clone(), package.version.clone()), package);
    }
    Ok(found)
}

/// What npm installs beside a package where it is used: the names and their licences.
fn shipped_by_npm(lock: &Value) -> Vec<(String, String)> {
    let packages = lock["packages"].as_object().into_iter().flatten();
    let shipped = packages.filter(|(path, package)| {
        let for_development = package["dev"] == true || package["link"] == true;
        path.contains("node_modules/") && !for_development
    });
    shipped
        .map(|(path, package)| {
            let name = path.rsplit("node_modules/").next().unwrap_or(path);
            let licence = package["license"].as_str().unwrap_or_default();
            (name.to_owned(), licence.to_owned())
        })
        .collect()
}

/// The licences that the rules allow: the strings in the list `allow` of the table `[licenses]`.
fn allowed(rules: &str) -> Result<Vec<&str>, String> {
    let list = rules
        .split_once("\n[licenses]")
        .and_then(|(_, table)| table.split_once("\nallow = ["))
        .and_then(|(_, list)| list.split_once(']'));
    let (list, _) = list.ok_or_else(|| format!("{RULES} has no list 'allow' in [licenses]."))?;
    let lines = list
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    Ok(lines
        .flat_map(|line| line.split('"').skip(1).step_by(2))
        .collect())
}

/// Whether an SPDX expression can be met with allowed licences.
fn permitted(expression: &str, allowed: &[&str]) -> Result<bool, String> {
    // Old manifests have '/' for 'OR'.
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words: Vec<_> = spaced.split_whitespace().rev().collect();
    let permitted = any_of(&mut words, allowed).filter(|_| words.is_empty());
    permitted
        .or(expression.is_empty().then_some(false))
        .ok_or_else(|| format!("'{expression}' is no SPDX expression that is understood."))
}

/// One or more alternatives. The words stand in reverse order.
fn any_of(words: &mut Vec<&str>, allowed: &[&str]) -> Option<bool> {
    let mut permitted = all_of(words, allowed)?;
    while words.pop_if(|word| *word == "OR").is_some() {
        permitted |= all_of(words, allowed)?;
    }
    Some(permitted)
}

fn all_of(words: &mut Vec<&str>, allowed: &[&str]) -> Option<bool> {
    let mut permitted = one(words, allowed)?;
    while words.pop_if(|word| *word == "AND").is_some() {
        permitted &= one(words, allowed)?;
    }
    Some(permitted)
}

fn one(words: &mut Vec<&str>, allowed: &[&str]) -> Option<bool> {
    match words.pop()? {
        "(" => {
            let permitted = any_of(words, allowed)?;
            words.pop_if(|word| *word == ")").map(|_| permitted)
        }
        ")" | "OR" | "AND" | "WITH" => None,
        licence if words.pop_if(|word| *word == "WITH").is_some() => {
            let licence = format!("{licence} WITH {}", words.pop()?);
            Some(allowed.contains(&licence.as_str()))
        }
        licence => Some(allowed.contains(&licence)),
    }
}

/// The file: a list of the crates, and each licence text once, with the crates that it belongs to.
fn texts(product: &str, packages: &[Package]) -> Result<String, String> {
    let own = OwnTexts::read()?;
    // By their words, as files differ in line ends and indentation; with the first form that was found.
    let mut found = BTreeMap::<String, (String, Vec<String>)>::new();
    let mut add = |title: String, text: String| {
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let (_, titles) = found.entry(words).or_insert((text, Vec::new()));
        if !titles.contains(&title) {
            titles.push(title);
        }
    };
    let mut without = Vec::new();
    for package in packages {
        let files = licence_files(&package.folder)?;
        for file in &files {
            add(package.title(), plain(&read(file)?));
        }
        if files.is_empty() {
            without.push(package);
        }
    }
    for package in without {
        add(package.title(), own.stand_in(package, packages)?);
    }
    add(
        "the Rust standard library".into(),
        own.mit("The Rust Project Contributors"),
    );

    let mut file = format!(
        "Third-party licences\n\nThe {product} contains the libraries below, unchanged, under these licences. \
         The source of each is at\nhttps://crates.io/crates/NAME/VERSION, that of the Rust standard library \
         (MIT OR Apache-2.0) at\nhttps://github.com/rust-lang/rust.\n\n"
    );
    for package in packages {
        let _ = writeln!(file, "  {}: {}", package.title(), package.licence);
    }
    let mut groups: Vec<_> = found.into_values().collect();
    // The text that most crates have comes first.
    groups.sort_by(|(_, a), (_, b)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    for (text, titles) in groups {
        let _ = write!(file, "\n{}\n", "-".repeat(80));
        let _ = write!(file, "{}\n\n{}\n", wrapped(&titles), text.trim_matches('\n'));
    }
    Ok(file)
}

/// The project's own licence files, which have the words of the standard ones.
struct OwnTexts {
    mit: String,
    apache: String,
}

impl OwnTexts {
    fn read() -> Result<Self, String> {
        let [mit, apache] = ["LICENSE-MIT", "LICENSE-APACHE"].map(|name| read(&root().join(name)));
        Ok(Self {
            mit: plain(&mit?),
            apache: plain(&apache?),
        })
    }

    /// The MIT licence by someone else.
    fn mit(&self, holder: &str) -> String {
        let line = |line: &str| match line.starts_with("Copyright (c) ") {
            true => format!("Copyright (c) {holder}\n"),
            false => format!("{line}\n"),
        };
        self.mit.lines().map(line).collect()
    }

    /// What stands for the file of a crate that has none.
    fn stand_in(&self, package: &Package, packages: &[Package]) -> Result<String, String> {
        let authors: Vec<_> = package.authors.iter().map(|author| author_name(author)).collect();
        let holder = match authors.as_slice() {
            [] => format!("the authors of {}", package.name),
            authors => authors.join(", "),
        };
        if permitted(&package.licence, &["MIT"])? {
            return Ok(self.mit(&holder));
        }
        if permitted(&package.licence, &["Apache-2.0"])? {
            return Ok(self.apache.clone());
        }
        // Another crate under the same licence may have its text.
        let others = packages.iter().filter(|other| other.licence == package.licence);
        for other in others {
            if let Some(file) = licence_files(&other.folder)?.first() {
                return Ok(plain(&read(file)?));
            }
        }
        Err(format!(
            "{} ({}) has no licence file, and nothing else has that text.",
            package.title(),
            package.licence
        ))
    }
}

/// An author without the address.
fn author_name(author: &str) -> &str {
    author.split_once(" <").map_or(author, |(name, _)| name).trim()
}

/// The files of a crate that have to go with it, in order.
fn licence_files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error| format!("{}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_lowercase();
        let ending = path
            .extension()
            .unwrap_or_default()
            .to_string_lossy()
            .to_lowercase();
        if path.is_dir() {
            if !NOT_LINKED.contains(&name.as_str()) && !name.starts_with('.') {
                files.extend(licence_files(&path)?);
            }
        } else if FILES.iter().any(|start| name.starts_with(start)) && !OTHERS.contains(&ending.as_str()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The text with plain line ends and without spaces at them.
fn plain(text: &str) -> String {
    let lines: Vec<_> = text
        .trim_start_matches('\u{feff}')
        .lines()
        .map(str::trim_end)
        .collect();
    lines.join("\n")
}

/// The titles with commas between them, in lines of 80 columns.
fn wrapped(titles: &[String]) -> String {
    let mut text = String::new();
    let mut column = 0;
    for (index, title) in titles.iter().enumerate() {
        let comma = if index + 1 < titles.len() { "," } else { "" };
        let length = title.chars().count() + comma.len();
        if column > 0 {
            let fits = column + 1 + length <= 80;
            text.push(if fits { ' ' } else { '\n' });
            column = if fits { column + 1 } else { 0 };
        }
        text += title;
        text += comma;
        column += length;
    }
    text
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))
}

/// A text file, with replacements for what is not UTF-8.
fn read(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn command_lines() {
        assert_eq!(Options::parse(&[]), Ok(Options::default()));
        let options = Options::parse(&["--features", "cuda", "--output", "F"]).unwrap();
        assert_eq!((options.output, options.features), (Some("F"), Some("cuda")));
        assert_eq!(options.binary().builds, [["--features", "cuda"]]);
        for wrong in [&["--output"][..], &["--check"], &["F"]] {
            assert!(Options::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn expressions() {
        let allowed = ["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"];
        let permitted = |expression| permitted(expression, &allowed);
        for expression in [
            "MIT",
            "GPL-3.0-only OR MIT",
            "GPL-3.0-only/MIT",
            "MIT AND Zlib",
            "(MIT OR Apache-2.0) AND Zlib",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0-only",
            "GPL-3.0-only AND Zlib OR MIT",
        ] {
            assert_eq!(permitted(expression), Ok(true), "{expression}");
        }
        for expression in [
            "",
            "GPL-3.0-only",
            "MIT AND Apache-2.0",
            "Apache-2.0",
            "MIT WITH LLVM-exception",
            "(MIT OR Apache-2.0) AND GPL-3.0-only",
        ] {
            assert_eq!(permitted(expression), Ok(false), "{expression}");
        }
        for expression in ["MIT OR", "(MIT", "MIT Zlib", "MIT)", "AND MIT", "MIT WITH"] {
            assert!(permitted(expression).is_err(), "{expression}");
        }
    }

    #[test]
    fn the_rules_allow_what_the_project_has_itself() {
        let rules = read(&root().join(RULES)).unwrap();
        let allowed = allowed(&rules).unwrap();
        for licence in ["MIT", "Apache-2.0", "Unicode-3.0"] {
            assert!(allowed.contains(&licence), "{allowed:?}");
        }
        assert!(!allowed.iter().any(|licence| licence.contains("GPL")));
        let rules = "\n[licenses]\n\nallow = [\n    \"A\", # not \"B\"\n    \"C\",\n]\nother = [\"D\"]\n";
        assert_eq!(super::allowed(rules), Ok(vec!["A", "C"]));
        assert!(super::allowed("").is_err());
    }

    #[test]
    fn crates_are_read_from_what_cargo_prints() {
        let tree = "ernie-vil v0.1.0 (/somewhere)\nburn v0.22.1\nspirv v0.4.0+sdk-1.4 (*)\n\n";
        let linked: Vec<_> = linked(tree).collect();
        assert_eq!(linked, [("burn", "0.22.1"), ("spirv", "0.4.0+sdk-1.4")]);
        let package = |name: &str, licence: Value| {
            json!({"name": name, "version": "1.0.0", "license": licence, "manifest_path": "/x/Cargo.toml",
                "authors": ["A <a@example.org>"]})
        };
        let metadata = json!({"packages": [
            package("a", json!("MIT")), package("b", Value::Null), package("cfg_block", Value::Null)
        ]});
        let found = described(&metadata).unwrap();
        let licences: Vec<_> = found.values().map(|package| package.licence.as_str()).collect();
        assert_eq!(licences, ["MIT", "", "Apache-2.0"]);
        let first = found.values().next().unwrap();
        assert_eq!(first.folder, Path::new("/x"));
        assert_eq!(author_name(&first.authors[0]), "A");
    }

    #[test]
    fn npm_packages_for_development_are_not_shipped() {
        let lock = json!({"packages": {
            "": {"license": "MIT"},
            "../pkg": {"license": "MIT"},
            "node_modules/ernie-vil": {"link": true, "resolved": "../pkg"},
            "node_modules/typescript": {"dev": true, "license": "Apache-2.0"},
            "node_modules/a/node_modules/@b/c": {"license": "GPL-3.0-only"},
            "node_modules/d": {},
        }});
        let expected = [("@b/c", "GPL-3.0-only"), ("d", "")];
        let found = shipped_by_npm(&lock);
        let found: Vec<_> = found
            .iter()
            .map(|(name, licence)| (name.as_str(), licence.as_str()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn equal_texts_appear_once_and_none_is_missing() {
        let folder = std::env::temp_dir().join(format!("ernie-vil-licences-{}", std::process::id()));
        let package = |name: &str, licence: &str| Package {
            name: name.into(),
            version: "1.0.0".into(),
            licence: licence.into(),
            authors: vec!["Ann <ann@example.org>".into()],
            folder: folder.join(name),
        };
        for (path, text) in [
            ("a/LICENSE", "Do as\nyou like."),
            ("b/licence.txt", "  Do as you\r\nlike.\r\n"),
            ("b/third_party/c/COPYING", "Keep this."),
            ("b/tests/LICENSE", "Not linked."),
            ("b/src/license.rs", "code"),
            ("d/README.md", "nothing"),
        ] {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let packages = [
            package("a", "X"),
            package("b", "X"),
            package("d", "GPL-3.0-only OR MIT"),
        ];
        let text = texts("program", &packages).unwrap();
        assert!(text.contains("  d 1.0.0: GPL-3.0-only OR MIT\n"), "{text}");
        assert!(text.contains("a 1.0.0, b 1.0.0\n\nDo as\nyou like.\n"), "{text}");
        assert!(text.contains("b 1.0.0\n\nKeep this.\n"), "{text}");
        assert!(text.contains("Copyright (c) Ann\n"), "{text}");
        assert!(
            text.contains("Copyright (c) The Rust Project Contributors\n"),
            "{text}"
        );
        assert!(!text.contains("Not linked") && !text.contains("code"), "{text}");
        let unknown = [package("d", "Other-1.0")];
        assert!(
            texts("program", &unknown)
                .unwrap_err()
                .contains("d 1.0.0 (Other-1.0)")
        );
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn titles_are_wrapped() {
        let titles: Vec<_> = (0..20).map(|index| format!("crate-{index} 1.0.0")).collect();
        let text = wrapped(&titles);
        assert!(
            text.lines().all(|line| line.len() <= 80) && text.lines().count() > 3,
            "{text}"
        );
        assert_eq!(text.replace('\n', " "), titles.join(", "));
    }
}
