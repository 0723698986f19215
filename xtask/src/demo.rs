//! `cargo xtask demo`: the demo page, from the Rust code to an address that a browser opens.

use std::path::Path;
use std::process::Command;

use crate::command::{program, root, run as run_command, shown};
use crate::{Failure, web};

/// The page's folder in the repository.
const PAGE: &str = "www";
const DEFAULT_PORT: u16 = 4173;

pub fn run(arguments: &[&str]) -> Result<(), Failure> {
    let options = Options::parse(arguments).map_err(Failure::Usage)?;
    let mut package = vec!["--no-pack"];
    package.extend(options.fast.then_some("--fast"));
    web::run(&package)?;
    build().map_err(Failure::Failed)?;
    if options.no_serve {
        println!(
            "\nThe page is in {PAGE}/dist. Its server has to send the headers that {PAGE}/vite.config.ts names."
        );
        return Ok(());
    }
    serve(options.port).map_err(Failure::Failed)
}

/// What the command line asks for.
#[derive(Debug, PartialEq)]
struct Options {
    port: u16,
    /// Leaves wasm-opt out of the package.
    fast: bool,
    /// Builds the page and serves nothing.
    no_serve: bool,
}

impl Options {
    fn parse(arguments: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            port: DEFAULT_PORT,
            fast: false,
            no_serve: false,
        };
        let mut arguments = arguments.iter();
        while let Some(&argument) = arguments.next() {
            match argument {
                "--fast" => options.fast = true,
                "--no-serve" => options.no_serve = true,
                "--port" => {
                    let port = arguments.next().and_then(|port| port.parse().ok());
                    options.port = port
                        .filter(|&port| port > 0)
                        .ok_or("'--port' takes a number from 1 to 65535.")?;
                }
                other => return Err(format!("'demo' takes no '{other}'.")),
            }
        }
        Ok(options)
    }
}

/// Makes `www/dist`.
fn build() -> Result<(), String> {
    if !is_installed() {
        checked(&mut npm(&["ci", "--ignore-scripts", "--no-audit", "--no-fund"]))?;
    }
    checked(&mut npm(&["run", "build"]))?;
    // The page ships the package's modules, so that their licences go with it.
    let (from, to) = (
        root().join(web::LICENCES),
        root().join(PAGE).join("dist/THIRD-PARTY-LICENSES.txt"),
    );
    let copied = std::fs::copy(from, &to).map_err(|error| format!("{}: {error}", to.display()));
    copied.map(|_| ())
}

/// Whether the packages are those of the lock file, as far as the files' times tell.
fn is_installed() -> bool {
    let modified = |name: &str| {
        let path = root().join(PAGE).join(name);
        path.metadata().and_then(|metadata| metadata.modified()).ok()
    };
    let installed = modified("node_modules/.package-lock.json");
    installed.is_some() && installed >= modified("package-lock.json")
}

/// Serves the page until it is interrupted; says at which address.
fn serve(port: u16) -> Result<(), String> {
    println!(
        "\nThe page: http://localhost:{port}/ (Ctrl+C ends it). Browsers treat localhost like HTTPS; on another \
         address threads, WebGPU and working offline need HTTPS."
    );
    let port = port.to_string();
    let vite = Path::new("node_modules").join("vite/bin/vite.js");
    let mut command = program("node", &[]);
    command
        .arg(vite)
        .args(["preview", "--port", &port, "--strictPort"])
        .current_dir(root().join(PAGE));
    checked(&mut command)
}

fn npm(arguments: &[&str]) -> Command {
    let mut command = program("npm", arguments);
    command.current_dir(root().join(PAGE));
    command
}

fn checked(command: &mut Command) -> Result<(), String> {
    run_command(command).map_err(|error| format!("'{}' in {PAGE}/: {error}.", shown(command)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_read() {
        let parsed = Options::parse(&["--port", "8080", "--no-serve"]);
        let expected = Options {
            port: 8080,
            fast: false,
            no_serve: true,
        };
        assert_eq!(parsed, Ok(expected));
        for wrong in [&["--port"][..], &["--port", "0"], &["--port", "x"], &["--open"]] {
            assert!(Options::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
