//! The project's own commands, `cargo xtask VERB`: one module for each verb.

mod command;
mod counts;
mod demo;
mod fuzz;
mod licences;
mod package;
#[cfg(test)]
mod paths;
mod scenes;
#[cfg(test)]
#[path = "../../tests/support/skip.rs"]
mod skip;
mod test;
mod toolchain;
mod web;

use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask VERB

  test [--all] [--dry-run]
      Sets up and runs every check that a change has to pass: formatting, licences, lints, documentation, tests.
      --all adds what takes hours: ten minutes of fuzzing for each parser, the server under bad clients, the crate
      built from its package, cargo-deny's rules and the comparison with ONNX Runtime, where these are installed.
      At the end it says how many tests ran, and which could not run on this machine and why.
      With --dry-run it only shows the commands.

  fuzz [mutate] [TARGET] [SECONDS]
      Fuzzes one parser, or each in turn, for so many seconds (60). Needs cargo-fuzz and a C++ compiler. With mutate it
      needs neither, and changes valid files by their structure.

  scenes --count N --seed S [--split train|test|unseen] [--output F.tsv] [--sheet F.png] [--vocab V.txt]
      Draws small pictures with Chinese captions: lines of caption, image id, tags and PNG in base64.
      No scene of the test split is in training; unseen shows kinds in colours and places that neither
      has. In both, each caption is true of its own scene alone. --sheet writes the first 64 pictures
      as one. --vocab writes the captions' vocabulary, and needs neither --count nor --seed.

  web [--only cpu|webgpu|cpu-threads] [--fast] [--no-pack]
      Builds the npm package in pkg/: the library as WebAssembly, in three modules or the one that is named,
      the JavaScript around it, and the tarball. Says how large they are, and fails where one is too large.
      Needs Node.js with npm, and a compiler for WebAssembly: where the toolchain has none, rustup adds it,
      else Debian's packages do. --fast leaves the optimisation by wasm-opt out, --no-pack the tarball.

  demo [--port P] [--fast] [--no-serve]
      Builds the npm package and the demo page in www/, serves the page (on port 4173) and prints its address.

  package
      Checks the list of files in the crate's package: that what the code embeds is in it, that tests and the like
      are not, and that crates.io would accept its size.

  licences [--output FILE] [--features F] [--target TRIPLE]
      Checks the licences of all crates in the binary and in the WebAssembly modules, and of the npm packages that
      are shipped, by the list in deny.toml. With --output it writes the licence texts of the crates in the binary,
      which have to go with it; --features and --target are what the binary was built with.

It works from any folder of the main workspace. The exit code is 0, 1 on failure, 2 for a wrong command line.
";

/// Why a verb did not do its work.
#[derive(Debug, PartialEq)]
enum Failure {
    /// The command line is wrong.
    Usage(String),
    /// Something else is.
    Failed(String),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => {
            eprint!("{message}\n\n{HELP}");
            ExitCode::from(2)
        }
        Err(Failure::Failed(message)) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<(), Failure> {
    match arguments {
        [] | ["help" | "--help" | "-h", ..] => {
            print!("{HELP}");
            Ok(())
        }
        ["test", rest @ ..] => test::run(rest),
        ["fuzz", rest @ ..] => fuzz::run(rest),
        ["scenes", rest @ ..] => scenes::run(rest),
        ["web", rest @ ..] => web::run(rest),
        ["demo", rest @ ..] => demo::run(rest),
        ["package", rest @ ..] => package::run(rest),
        ["licences", rest @ ..] => licences::run(rest),
        [verb, ..] => Err(Failure::Usage(format!("There is no verb '{verb}'."))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_command_line_is_told_from_a_failure() {
        assert_eq!(run(&["--help"]), Ok(()));
        for arguments in [
            &["tests"][..],
            &["test", "--dry"],
            &["fuzz", "no-such-target"],
            &["fuzz", "mutate", "no-such-target"],
            &["web", "gpu"],
            &["licences", "--output"],
            &["package", "--all"],
        ] {
            assert!(matches!(run(arguments), Err(Failure::Usage(_))), "{arguments:?}");
        }
    }
}
