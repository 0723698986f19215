//! A compiler for WebAssembly: found on this machine, or installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::command::{cargo, program, run as run_command, shown, succeeds};

/// The target of the browser and of other hosts of WebAssembly.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// How long rustup may take. Where it cannot reach its servers it may wait much longer for them.
const RUSTUP: Duration = Duration::from_secs(60);

/// Debian's second compiler, kept recent for its browsers, with the source of the standard library
/// and a linker.
const PACKAGES: &[&str] = &[
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev",
    "rust-web-src",
    "lld-19",
];
/// The standard library as cargo compiles it, once for every target folder.
const BUILD_STD: &[&str] = &[
    "-Z",
    "build-std=std,panic_abort",
    "-Z",
    "build-std-features=optimize_for_size",
];
/// Where Debian's packages put it.
const DEBIAN: &str = "/usr";
/// The linker among them.
const LINKER: &str = "wasm-ld-19";

/// A cargo that compiles for WebAssembly, the standard library too: made for its size, which is a twentieth of a whole
/// module, and with atomic instructions where the flags ask for them.
#[derive(Debug, PartialEq, Eq)]
pub struct Wasm {
    /// Below which folder Debian's compiler is, if it is that.
    debian: Option<PathBuf>,
}

impl Wasm {
    /// A compiler, without installing anything.
    ///
    /// # Errors
    /// What is missing.
    fn find() -> Result<Self, String> {
        toolchain_in_use()
            .or_else(|in_use| debian(Path::new(DEBIAN)).map_err(|debian| format!("{in_use}, and {debian}")))
    }

    /// A compiler, which is installed where there is none: by rustup if that can do it, else from Debian's packages.
    ///
    /// # Errors
    /// What is missing, why it could not be installed, and what to do.
    pub fn find_or_install() -> Result<Self, String> {
        let missing = match Self::find() {
            Ok(found) => return Ok(found),
            Err(missing) => missing,
        };
        println!("\nNo compiler for {TARGET}: {missing}.");
        let rustup = match add_by_rustup() {
            Ok(added) => return Ok(added),
            Err(reason) => reason,
        };
        println!("{rustup}.");
        install_from_debian()
            .map_err(|debian| format!("There is no compiler for {TARGET}. {rustup}. {debian}."))
    }

    /// A command of cargo for the target, such as `check`.
    pub fn command(&self, command: &str, arguments: &[&str]) -> Command {
        let mut command = match &self.debian {
            None => cargo(&[command]),
            Some(prefix) => {
                let binaries = prefix.join("bin");
                let mut cargo = program(binaries.join("cargo"), &[command]);
                cargo.env("RUSTC", binaries.join("rustc"));
                let linker = "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER";
                cargo.env(linker, binaries.join(LINKER));
                cargo
            }
        };
        command.args(["--target", TARGET]);
        // The options are not stable, so that the compiler has to be told to accept them.
        command.env("RUSTC_BOOTSTRAP", "1");
        command.args(BUILD_STD);
        command.args(arguments);
        command
    }

    /// Which compiler it is, in words.
    pub fn described(&self) -> String {
        match &self.debian {
            None => "the toolchain in use".to_owned(),
            Some(prefix) => format!("Debian's compiler in {}", prefix.display()),
        }
    }
}

/// The toolchain that compiled this program.
fn toolchain_in_use() -> Result<Wasm, String> {
    let sysroot = printed(program("rustc", &["--print", "sysroot"]))?;
    let source = source(Path::new(&sysroot));
    if !source.is_dir() {
        return Err(format!(
            "the toolchain in use has no source of the standard library in {}",
            source.display()
        ));
    }
    Ok(Wasm { debian: None })
}

/// Debian's compiler.
fn debian(prefix: &Path) -> Result<Wasm, String> {
    let binaries = prefix.join("bin");
    let parts = [
        binaries.join("rustc"),
        binaries.join("cargo"),
        binaries.join(LINKER),
        source(prefix),
    ];
    if let Some(missing) = parts.iter().find(|part| !part.exists()) {
        return Err(format!("there is no {}", missing.display()));
    }
    let [rustc, ..] = &parts;
    let version = printed(program(rustc, &["--version"]))?;
    let needed = env!("CARGO_PKG_RUST_VERSION");
    if release(&version) < release(needed) {
        return Err(format!(
            "{} is '{version}', where {needed} is needed",
            rustc.display()
        ));
    }
    Ok(Wasm {
        debian: Some(prefix.to_owned()),
    })
}

/// The standard library's source in a toolchain.
fn source(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library/std")
}

/// Major and minor number of a version, alone (`1.95`) or as rustc prints it.
fn release(version: &str) -> Option<(u32, u32)> {
    let number = version.split(' ').find(|word| word.contains('.'))?;
    let mut parts = number.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// Adds to the toolchain in use what it lacks.
fn add_by_rustup() -> Result<Wasm, String> {
    if !succeeds(program("rustup", &["--version"])) {
        return Err("There is no rustup to add what is missing".into());
    }
    let mut command = program("rustup", &["component", "add", "rust-src"]);
    run_for(&mut command, RUSTUP)
        .and_then(|()| toolchain_in_use())
        .map_err(|reason| format!("'{}' did not help: {reason}", shown(&command)))
}

fn install_from_debian() -> Result<Wasm, String> {
    if !succeeds(program("apt-get", &["--version"])) {
        return Err("There is no apt-get to install Debian's compiler".into());
    }
    // First the lists: old ones name an older compiler.
    let mut update = program("apt-get", &["update", "-q"]);
    let mut install = program("apt-get", &["install", "-yq", "--no-install-recommends"]);
    install.args(PACKAGES);
    if printed(program("id", &["-u"]))? != "0" {
        let (update, install) = (shown(&update), shown(&install));
        return Err(format!(
            "To install Debian's, run 'sudo {update} && sudo {install}'"
        ));
    }
    install.env("DEBIAN_FRONTEND", "noninteractive");
    for command in [&mut update, &mut install] {
        run_command(command).map_err(|reason| format!("'{}' failed: {reason}", shown(command)))?;
    }
    debian(Path::new(DEBIAN)).map_err(|reason| format!("Debian's packages did not help: {reason}"))
}

/// What the command prints, without the line's end.
fn printed(mut command: Command) -> Result<String, String> {
    let output = command.output();
    let output = output.map_err(|error| format!("'{}' could not be run: {error}", shown(&command)))?;
    if !output.status.success() {
        return Err(format!("'{}' failed: {}", shown(&command), output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Shows the command and runs it, at most for so long.
fn run_for(command: &mut Command, limit: Duration) -> Result<(), String> {
    println!("\n$ {}", shown(command));
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let start = Instant::now();
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(status.to_string()),
            None if start.elapsed() < limit => thread::sleep(Duration::from_millis(50)),
            None => {
                // It may have ended since; then there is nothing to end.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no success within {} s", limit.as_secs_f32()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_compile_the_library() {
        let shown_for = |debian: Option<&str>| {
            let debian = debian.map(PathBuf::from);
            shown(&Wasm { debian }.command("check", &["--lib"]))
        };
        let in_use = "RUSTC_BOOTSTRAP=1 cargo check --target wasm32-unknown-unknown \
                      -Z build-std=std,panic_abort -Z build-std-features=optimize_for_size --lib";
        assert_eq!(shown_for(None), in_use);
        let debian = shown_for(Some("/usr"));
        assert!(debian.contains(" RUSTC=/usr/bin/rustc "), "{debian}");
        assert!(debian.contains("_LINKER=/usr/bin/wasm-ld-19 "), "{debian}");
        assert!(
            debian.ends_with(in_use.trim_start_matches("RUSTC_BOOTSTRAP=1 ")),
            "{debian}"
        );
    }

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(release("rustc 1.96.0 (1234abcd 2026-08-01)"), Some((1, 96)));
        assert_eq!(release("1.95"), Some((1, 95)));
        assert!(release("rustc 1.85.0") < release("1.95"));
        assert!(release("rustc 1.100.0") > release("1.95"));
        assert_eq!(release("rustc"), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let nowhere = Path::new("/no/such/folder");
        let missing = debian(nowhere).unwrap_err();
        assert_eq!(missing, "there is no /no/such/folder/bin/rustc");
    }

    #[test]
    fn a_command_that_takes_too_long_is_ended() {
        let limit = Duration::from_millis(100);
        assert_eq!(
            run_for(&mut program("true", &[]), Duration::from_secs(60)),
            Ok(())
        );
        let failed = run_for(&mut program("false", &[]), Duration::from_secs(60));
        assert_eq!(failed, Err("exit status: 1".into()));
        let late = run_for(&mut program("sleep", &["600"]), limit);
        assert_eq!(late, Err("no success within 0.1 s".into()));
    }
}
