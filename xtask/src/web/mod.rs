//! `cargo xtask web`: the npm package `ernie-vil`, from the Rust code to the tarball.

mod files;
mod instances;
mod sizes;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;
use crate::command::{cargo, program, root, run as run_command, shown};
use crate::licences::{self, Product};
use crate::toolchain::{TARGET, Wasm};
use files::{files_below, mirror, unless_unchanged};
use sizes::Row;

/// The package's folder in the repository, and the compiled modules in it.
const PACKAGE: &str = "pkg";
const MODULES_FOLDER: &str = "pkg/wasm";
const SCRIPTS_FOLDER: &str = "pkg/dist";
/// The optimiser, among the packages for the package's development.
const WASM_OPT: &str = "pkg/node_modules/binaryen/bin/wasm-opt";
/// The licence texts of the crates in the modules.
pub const LICENCES: &str = "pkg/THIRD-PARTY-LICENSES.txt";
/// The WebAssembly file in a module's folder.
const MODULE_FILE: &str = "ernie_vil_bg.wasm";

/// The oldest Node.js that the package supports.
const NODE: u32 = 20;

/// What the browsers and Node.js versions that the package supports can do. With all that wasm-opt knows,
/// it writes modules that they refuse.
const WASM_FEATURES: &[&str] = &[
    "--enable-bulk-memory",
    "--enable-bulk-memory-opt",
    "--enable-multivalue",
    "--enable-mutable-globals",
    "--enable-nontrapping-float-to-int",
    "--enable-reference-types",
    "--enable-sign-ext",
    "--enable-simd",
];

/// For threads: one memory that the workers share, and what wasm-bindgen gives each thread of its own.
/// A shared memory has a largest size; this is all that 32 bits can address.
const SHARED_MEMORY: &[&str] = &[
    "--shared-memory",
    "--import-memory",
    "--max-memory=4294967296",
    "--export=__wasm_init_tls",
    "--export=__tls_size",
    "--export=__tls_align",
    "--export=__tls_base",
];

/// Bytes of TypeScript's output after gzip, all files together, as a page's bundler would have them. Of these
/// 1,500 keep folders locked in Node, Deno and Bun, which a page has no use for; but a worker is one file,
/// which nothing can be left out of.
const SCRIPTS_LIMIT: u64 = 33_000;

/// One compiled form of the library.
struct Module {
    name: &'static str,
    features: &'static str,
    /// The profile in Cargo.toml.
    profile: &'static str,
    /// Whether it has threads, which share a memory.
    threads: bool,
    /// How wasm-opt optimises.
    optimisation: &'static str,
    /// Bytes after gzip.
    limit: Option<u64>,
}

const MODULES: [Module; 3] = [
    Module {
        name: "cpu",
        features: "web,flex",
        profile: "web",
        threads: false,
        optimisation: "-O3",
        limit: Some(620_000),
    },
    Module {
        name: "webgpu",
        features: "web,webgpu",
        profile: "web",
        threads: false,
        optimisation: "-O3",
        limit: Some(2_500_000),
    },
    Module {
        name: "cpu-threads",
        features: "web-threads,flex",
        profile: "web",
        threads: true,
        optimisation: "-O3",
        limit: None,
    },
];

pub fn run(arguments: &[&str]) -> Result<(), Failure> {
    let options = Options::parse(arguments).map_err(Failure::Usage)?;
    let rows = build(&options).map_err(Failure::Failed)?;
    print!("\n{}", sizes::table(&rows));
    let excesses = sizes::excesses(&rows);
    if excesses.is_empty() {
        Ok(())
    } else {
        Err(Failure::Failed(excesses))
    }
}

/// What the command line asks for.
#[derive(Debug, Default, PartialEq)]
struct Options {
    /// The name of the one module to build.
    only: Option<&'static str>,
    /// Leaves wasm-opt out.
    fast: bool,
    /// Leaves the tarball out.
    no_pack: bool,
}

impl Options {
    fn parse(arguments: &[&str]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(&argument) = arguments.next() {
            match argument {
                "--fast" => options.fast = true,
                "--no-pack" => options.no_pack = true,
                "--only" => {
                    let names = MODULES.map(|module| module.name);
                    let name = arguments.next();
                    let found = names
                        .into_iter()
                        .find(|known| name.is_some_and(|name| name == known));
                    if found.is_none() {
                        return Err(format!("'--only' takes one of {}.", names.join(", ")));
                    }
                    options.only = found;
                }
                other => return Err(format!("'web' takes no '{other}'.")),
            }
        }
        Ok(options)
    }

    /// The one that is named, or all.
    fn wants(&self, module: &Module) -> bool {
        self.only.is_none_or(|only| only == module.name)
    }
}

/// Does everything that is asked for. What takes long comes after what can be missing.
fn build(options: &Options) -> Result<Vec<Row>, String> {
    check_node()?;
    check_versions(&read("Cargo.lock")?)?;
    install_packages()?;
    let compiler = Wasm::find_or_install()?;
    println!("\nWebAssembly: {}.", compiler.described());
    let mut rows = Vec::new();
    for module in MODULES.iter().filter(|module| options.wants(module)) {
        rows.push(module.make(&compiler, options.fast)?);
    }
    rows.push(compile_scripts()?);
    write_licences()?;
    if !options.no_pack {
        pack()?;
    }
    Ok(rows)
}

impl Module {
    /// Compiles the module, brings it into the package and says how large it is.
    fn make(&self, compiler: &Wasm, fast: bool) -> Result<Row, String> {
        // A folder for each module: in a common one, each would have the others compiled anew.
        let target = target_folder()?.join(self.name);
        checked(&mut self.compilation(compiler, &target))?;
        let compiled = target.join(TARGET).join(self.profile).join("ernie_vil.wasm");
        let finished = target.join(if fast { "fast" } else { "optimised" });
        self.finish(&compiled, &finished, fast)?;

        let folder = root().join(MODULES_FOLDER).join(self.name);
        mirror(&finished.join("module"), &folder)?;
        let bytes = files::read(&folder.join(MODULE_FILE))?;
        // What has not been optimised is larger than what is published.
        Row::new(self.name, &bytes, self.limit.filter(|_| !fast))
    }

    fn compilation(&self, compiler: &Wasm, target: &Path) -> Command {
        let mut command = compiler.command(
            "rustc",
            &[
                "--lib",
                "--crate-type",
                "cdylib",
                "--profile",
                self.profile,
                "--no-default-features",
                "--features",
                self.features,
            ],
        );
        command.arg("--target-dir").arg(target);
        // wasm-bindgen looks for the section that names the instructions in use; wasm-opt drops the rest.
        command.args(["--", "-C", "strip=debuginfo"]);
        command.env("RUSTFLAGS", self.flags());
        // It would be taken in place of the other.
        command.env_remove("CARGO_ENCODED_RUSTFLAGS");
        command
    }

    fn flags(&self) -> String {
        let mut flags = String::new();
        // The messages of panics name source files. Who uses the module need not know whose they are.
        if let Some(home) = env::home_dir() {
            let home = home.display().to_string();
            if !home.contains(char::is_whitespace) {
                flags += &format!("--remap-path-prefix={home}=home ");
            }
        }
        flags += "-C target-feature=+simd128";
        if self.threads {
            flags += ",+atomics,+bulk-memory,+mutable-globals";
            for argument in SHARED_MEMORY {
                flags += &format!(" -C link-arg={argument}");
            }
        }
        flags
    }

    /// Makes `module` in the folder from the compiled file: the JavaScript, the types, and the optimised
    /// WebAssembly. Nothing is done where it was made from the same bytes in the same way.
    fn finish(&self, compiled: &Path, folder: &Path, fast: bool) -> Result<(), String> {
        let output = folder.join("module");
        let mut bind = cargo(&["run", "--release", "--package", "xtask"]);
        bind.args(["--features", "bindgen", "--bin", "bindgen", "--"]);
        bind.arg(compiled).arg(&output);
        let unoptimised = folder.join("unoptimised.wasm");
        let mut optimise = program("node", &[WASM_OPT, self.optimisation]);
        optimise.args(WASM_FEATURES);
        if self.threads {
            optimise.arg("--enable-threads");
        }
        optimise.arg(&unoptimised).arg("-o").arg(output.join(MODULE_FILE));

        let mut recipe = format!(
            "{}\n{BINDGEN} {}\n{}\n{}\n",
            shown(&bind),
            locked(&read("Cargo.lock")?, BINDGEN)?,
            include_str!("bindgen.rs"),
            include_str!("instances.rs")
        );
        if !fast {
            recipe += &format!(
                "{}\n{}",
                shown(&optimise),
                read("pkg/node_modules/binaryen/package.json")?
            );
        }
        let input = files::read(compiled)?;
        let (known_input, known_recipe) = (folder.join("input.wasm"), folder.join("recipe.txt"));
        let known = fs::read_to_string(&known_recipe).is_ok_and(|known| known == recipe)
            && fs::read(&known_input).is_ok_and(|known| known == input);
        if known {
            println!(
                "\n{}: the compiled module is as before, and so is what follows from it.",
                self.name
            );
            return Ok(());
        }

        files::remove(folder)?;
        checked(&mut bind)?;
        let script = |text: &str, change: &dyn Fn(String) -> Result<String, String>| {
            let path = output.join(text);
            let before = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let after = change(before).map_err(|reason| format!("{}: {reason}", path.display()))?;
            files::write(&path, after.as_bytes())
        };
        script("ernie_vil.js", &|text| instances::instances(&text))?;
        script("ernie_vil.d.ts", &|text| Ok(text + instances::TYPES))?;
        if !fast {
            let made = output.join(MODULE_FILE);
            fs::rename(&made, &unoptimised).map_err(|error| format!("{}: {error}", made.display()))?;
            checked(&mut optimise)?;
        }
        run_command(&mut validation(&output.join(MODULE_FILE)))
            .map_err(|_| format!("Node.js refuses the module {}.", self.name))?;
        files::write(&known_input, &input)?;
        // Last: what it stands for is complete.
        files::write(&known_recipe, recipe.as_bytes())
    }
}

/// Fails where Node.js would not accept the module.
fn validation(module: &Path) -> Command {
    let script = r#"process.exit(WebAssembly.validate(require("fs").readFileSync(process.argv[1])) ? 0 : 1)"#;
    let mut command = program("node", &["-e", script]);
    command.arg(module);
    command
}

const BINDGEN: &str = "wasm-bindgen";
const BINDGEN_SUPPORT: &str = "wasm-bindgen-cli-support";

/// Whether what makes the JavaScript has the version of what is compiled into the module.
fn check_versions(lock: &str) -> Result<(), String> {
    let (compiled, tool) = (locked(lock, BINDGEN)?, locked(lock, BINDGEN_SUPPORT)?);
    if compiled == tool {
        return Ok(());
    }
    Err(format!(
        "Cargo.lock has {BINDGEN} {compiled} and {BINDGEN_SUPPORT} {tool}, which only work together at one \
         version. Please write '={compiled}' for {BINDGEN_SUPPORT} in xtask/Cargo.toml."
    ))
}

/// The version of a package in the lock file.
fn locked<'a>(lock: &'a str, package: &str) -> Result<&'a str, String> {
    let start = format!("name = \"{package}\"\nversion = \"");
    let version = lock.split_once(&start).and_then(|(_, rest)| rest.split_once('"'));
    version
        .map(|(version, _)| version)
        .ok_or(format!("Cargo.lock has no {package}."))
}

/// Whether there are Node.js and npm.
///
/// # Errors
/// A sentence that says what to install.
pub fn check_node() -> Result<(), String> {
    for (name, oldest) in [("node", NODE), ("npm", 0)] {
        let output = program(name, &["--version"]).output();
        let version = output.map_or("none".into(), |output| {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        });
        if major(&version).is_none_or(|major| major < oldest) {
            return Err(format!(
                "The package is built with Node.js {NODE} or later and its npm, and here is {version} of \
                 '{name}'. Please install them: from https://nodejs.org, or your system's packages nodejs \
                 and npm."
            ));
        }
    }
    Ok(())
}

/// The first number of a version such as `v20.1.0`.
fn major(version: &str) -> Option<u32> {
    let number = version.trim_start_matches('v').split('.').next()?;
    number.parse().ok()
}

/// Installs what the package is developed with.
fn install_packages() -> Result<(), String> {
    let manifests = ["pkg/package.json", "pkg/package-lock.json"];
    unless_unchanged(
        "packages",
        &manifests,
        &["pkg/node_modules/.package-lock.json"],
        || {
            let locked = root().join("pkg/package-lock.json").exists();
            let verb = if locked { "ci" } else { "install" };
            // The package's own scripts need modules, which come later.
            let arguments = [
                "--prefix",
                PACKAGE,
                verb,
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
            ];
            checked(&mut program("npm", &arguments))
        },
    )
}

/// Compiles the TypeScript, and says how large the outcome is.
fn compile_scripts() -> Result<Row, String> {
    let inputs = [
        "pkg/src",
        "pkg/tsconfig.json",
        MODULES_FOLDER,
        "pkg/package-lock.json",
    ];
    unless_unchanged("scripts", &inputs, &[SCRIPTS_FOLDER], || {
        // A file whose source is gone would stay.
        remove(Path::new(SCRIPTS_FOLDER))?;
        checked(&mut program("npm", &["--prefix", PACKAGE, "run", "build"]))
    })?;
    let mut scripts = Vec::new();
    for path in files_below(&root().join(SCRIPTS_FOLDER))? {
        if path.extension().is_some_and(|extension| extension == "js") {
            scripts.extend(files::read(&path)?);
        }
    }
    Row::new("TypeScript", &scripts, Some(SCRIPTS_LIMIT))
}

/// All modules, as the package ships them.
pub fn product() -> Product<'static> {
    licences::modules(&MODULES.map(|module| module.features), TARGET)
}

/// Writes the licence texts of all modules, whichever have been built.
fn write_licences() -> Result<(), String> {
    let inputs = [
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "xtask/src/licences.rs",
    ];
    unless_unchanged("licences", &inputs, &[LICENCES], || {
        licences::write_texts(&product(), &root().join(LICENCES))
    })
}

/// Packs the tarball that would be published.
fn pack() -> Result<(), String> {
    let tarball = format!("pkg/ernie-vil-{}.tgz", env!("CARGO_PKG_VERSION"));
    for module in &MODULES {
        if !root().join(MODULES_FOLDER).join(module.name).is_dir() {
            println!(
                "\nThe tarball will lack the module {}, which has not been built.",
                module.name
            );
        }
    }
    let inputs = package_entries()?;
    unless_unchanged("tarball", &inputs, &[&tarball], || {
        remove(Path::new(&tarball))?;
        let arguments = ["pack", "./pkg", "--pack-destination", PACKAGE, "--ignore-scripts"];
        checked(&mut program("npm", &arguments))?;
        if root().join(&tarball).exists() {
            Ok(())
        } else {
            Err(format!(
                "There is no {tarball}: does pkg/package.json have another version than the crate?"
            ))
        }
    })
}

/// What lies in the package's folder, other than its development's packages and tarballs.
fn package_entries() -> Result<Vec<PathBuf>, String> {
    let failed = |error| format!("{PACKAGE}: {error}");
    let mut entries = Vec::new();
    for entry in fs::read_dir(root().join(PACKAGE)).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let text = name.to_string_lossy();
        if text != "node_modules" && !text.ends_with(".tgz") {
            entries.push(Path::new(PACKAGE).join(name));
        }
    }
    entries.sort();
    Ok(entries)
}

/// Where cargo compiles for the web: beside what it compiles for this machine.
fn target_folder() -> Result<PathBuf, String> {
    let program = env::current_exe().map_err(|error| format!("This program has no path: {error}"))?;
    // It is target/release/xtask.
    let target = program.ancestors().nth(2);
    let target = target.ok_or(format!("{} is in no target folder.", program.display()))?;
    Ok(target.join("web"))
}

/// Shows the command and runs it; an error names it.
fn checked(command: &mut Command) -> Result<(), String> {
    run_command(command).map_err(|reason| format!("'{}' failed: {reason}", shown(command)))
}

/// A text file of the repository.
fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(root().join(path)).map_err(|error| format!("{path}: {error}"))
}

/// Removes a file or folder of the repository, if it is there.
fn remove(path: &Path) -> Result<(), String> {
    files::remove(&root().join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        assert_eq!(Options::parse(&[]), Ok(Options::default()));
        let all = Options::parse(&["--fast", "--only", "webgpu", "--no-pack"]);
        let expected = Options {
            only: Some("webgpu"),
            fast: true,
            no_pack: true,
        };
        assert_eq!(all, Ok(expected));
        for wrong in [&["--only"][..], &["--only", "gpu"], &["cpu"]] {
            assert!(Options::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn one_module_or_each_of_them() {
        let wanted = |arguments: &[&str]| {
            let options = Options::parse(arguments).unwrap();
            MODULES.iter().filter(|module| options.wants(module)).count()
        };
        assert_eq!(wanted(&[]), MODULES.len());
        for module in &MODULES {
            assert_eq!(wanted(&["--only", module.name]), 1);
        }
    }

    #[test]
    fn threads_alone_share_a_memory() {
        for module in &MODULES {
            let flags = module.flags();
            assert!(flags.contains("+simd128"), "{flags}");
            for shared in ["+atomics", "link-arg=--shared-memory", "--export=__tls_base"] {
                assert_eq!(flags.contains(shared), module.name == "cpu-threads", "{flags}");
            }
        }
    }

    #[test]
    fn the_versions_of_wasm_bindgen_agree() {
        let lock = read("Cargo.lock").unwrap();
        assert_eq!(check_versions(&lock), Ok(()));
        let version = locked(&lock, BINDGEN).unwrap();
        let entry = |name| format!("name = \"{name}\"\nversion = \"{version}\"");
        let other = lock.replace(&entry(BINDGEN), "name = \"wasm-bindgen\"\nversion = \"0.2.1\"");
        let message = check_versions(&other).unwrap_err();
        assert!(
            message.contains("'=0.2.1'") && message.contains(version),
            "{message}"
        );
        assert_eq!(check_versions(""), Err("Cargo.lock has no wasm-bindgen.".into()));
    }

    #[test]
    fn versions_of_node() {
        assert_eq!(major("v20.20.2"), Some(20));
        assert_eq!(major("11.19.1"), Some(11));
        assert_eq!(major("none"), None);
    }
}
