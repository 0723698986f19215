//! `cargo xtask test`: every check that a change has to pass.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::command::{cargo, program, run as run_command, run_tests, shown, succeeds};
use crate::counts::{Counts, Reader, of_cargo_test, of_nextest};

/// The target of the browser and of other hosts of WebAssembly.
const WASM: &str = "wasm32-unknown-unknown";

/// What is on this machine, where it need not be.
struct Tools {
    nextest: bool,
    wasm: bool,
}

struct Step {
    name: &'static str,
    action: Action,
}

enum Action {
    /// Has to succeed.
    Run(Command),
    /// Has to succeed and to report tests.
    Test(Command, Reader),
    /// Cannot be run here, for this reason.
    Skip(String),
}

/// How a step ended.
enum Outcome {
    Passed(Duration),
    Failed(Duration, String),
    Skipped(String),
    NotRun,
}

pub fn run(arguments: &[&str]) -> Result<(), Failure> {
    let dry_run = match arguments {
        [] => false,
        ["--dry-run"] => true,
        [other, ..] => return Err(Failure::Usage(format!("'test' takes no '{other}'."))),
    };
    set_up(dry_run)?;
    let tools = Tools::find();
    if !tools.nextest {
        println!(
            "cargo-nextest is not installed, so 'cargo test' runs the tests, one program after the other. \
             'cargo install cargo-nextest --locked' makes the next run faster."
        );
    }
    let steps = steps(&tools);
    if dry_run {
        for Step { name, action } in &steps {
            println!("{name}: {}", action.shown());
        }
        return Ok(());
    }

    let mut counts = Counts::default();
    let mut outcomes = Vec::new();
    for Step { name, action } in steps {
        let stopped = outcomes
            .iter()
            .any(|(_, outcome)| matches!(outcome, Outcome::Failed(..)));
        let outcome = if stopped {
            Outcome::NotRun
        } else {
            action.run(&mut counts)
        };
        outcomes.push((name, outcome));
    }
    print!("\n{}", summary(&outcomes));
    if outcomes
        .iter()
        .any(|(_, outcome)| matches!(outcome, Outcome::Failed(..)))
    {
        return Err(Failure::Failed(counts.to_string()));
    }
    println!("{counts}");
    Ok(())
}

/// Sees to the parts of the toolchain that every check needs.
fn set_up(dry_run: bool) -> Result<(), Failure> {
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        let there = || succeeds(cargo(&[subcommand, "--version"]));
        if there() {
            continue;
        }
        let mut add = program("rustup", &["component", "add", component]);
        if dry_run {
            println!("set-up: {}", shown(&add));
        } else if run_command(&mut add).is_err() || !there() {
            return Err(Failure::Failed(format!(
                "The toolchain has no {component}, and '{}' did not bring it. Please install it.",
                shown(&add)
            )));
        }
    }
    Ok(())
}

impl Tools {
    fn find() -> Self {
        let library = program("rustc", &["--print", "target-libdir", "--target", WASM]).output();
        let wasm = library.is_ok_and(|found| {
            let folder = String::from_utf8_lossy(&found.stdout);
            found.status.success() && std::path::Path::new(folder.trim()).is_dir()
        });
        Self {
            nextest: succeeds(cargo(&["nextest", "--version"])),
            wasm,
        }
    }
}

/// The steps, in order: what is quick to fail comes first.
///
/// All of them build with the release profile. The dependencies are large, and so are built once for
/// each set of features rather than once more for each profile.
fn steps(tools: &Tools) -> Vec<Step> {
    let step = |name, action| Step { name, action };
    let mut documentation = cargo(&["doc", "--no-deps", "--lib", "--release"]);
    documentation.env("RUSTDOCFLAGS", "-D warnings");
    let tests = if tools.nextest {
        let command = cargo(&["nextest", "run", "--workspace", "--release", "--no-fail-fast"]);
        Action::Test(command, of_nextest)
    } else {
        // All that nextest runs: the examples in the documentation are a step of their own.
        let mut command = cargo(&["test", "--workspace", "--release", "--no-fail-fast"]);
        command.args(["--lib", "--bins", "--tests", "--examples"]);
        Action::Test(command, of_cargo_test)
    };
    let wasm = if tools.wasm {
        Action::Run(cargo(&[
            "check",
            "--target",
            WASM,
            "--no-default-features",
            "--lib",
            "--release",
        ]))
    } else {
        Action::Skip(format!(
            "the target {WASM} is not installed ('rustup target add {WASM}' does so)"
        ))
    };
    vec![
        step("formatting", Action::Run(cargo(&["fmt", "--all", "--check"]))),
        step(
            "lints",
            Action::Run(cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--release",
                "--",
                "-D",
                "warnings",
            ])),
        ),
        step(
            "lints without native parts",
            Action::Run(cargo(&[
                "clippy",
                "--no-default-features",
                "--lib",
                "--release",
                "--",
                "-D",
                "warnings",
            ])),
        ),
        step("documentation", Action::Run(documentation)),
        step("tests", tests),
        step(
            "examples in the documentation",
            Action::Test(
                cargo(&["test", "--doc", "--release", "--no-fail-fast"]),
                of_cargo_test,
            ),
        ),
        step("library for WebAssembly", wasm),
    ]
}

impl Action {
    fn shown(&self) -> String {
        match self {
            Self::Run(command) | Self::Test(command, _) => shown(command),
            Self::Skip(reason) => format!("skipped, as {reason}"),
        }
    }

    fn run(self, counts: &mut Counts) -> Outcome {
        let start = Instant::now();
        let result = match self {
            Self::Skip(reason) => return Outcome::Skipped(reason),
            Self::Run(mut command) => run_command(&mut command),
            Self::Test(mut command, reader) => {
                let (found, result) = run_tests(&mut command, reader);
                *counts = *counts + found;
                result
            }
        };
        match result {
            Ok(()) => Outcome::Passed(start.elapsed()),
            Err(reason) => Outcome::Failed(start.elapsed(), reason),
        }
    }
}

/// A line for each step.
fn summary(outcomes: &[(&str, Outcome)]) -> String {
    let mut text = String::new();
    for (name, outcome) in outcomes {
        let (word, time, reason) = match outcome {
            Outcome::Passed(time) => ("passed", Some(time), None),
            Outcome::Failed(time, reason) => ("FAILED", Some(time), Some(reason)),
            Outcome::Skipped(reason) => ("skipped", None, Some(reason)),
            Outcome::NotRun => ("not run", None, None),
        };
        let time = time.map_or_else(String::new, |time| seconds(*time));
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        text += &format!("{word:7} {time:>12}  {name}{reason}\n");
    }
    text
}

fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        whole => format!("{} min {:02} s", whole / 60, whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(nextest: bool, wasm: bool) -> Vec<String> {
        let steps = steps(&Tools { nextest, wasm });
        steps.iter().map(|step| step.action.shown()).collect()
    }

    #[test]
    fn everything_is_built_with_one_profile() {
        for (nextest, wasm) in [(false, false), (true, true)] {
            for command in commands(nextest, wasm) {
                let builds = !command.starts_with("cargo fmt") && !command.starts_with("skipped");
                assert_eq!(command.contains("--release"), builds, "{command}");
            }
        }
    }

    #[test]
    fn what_is_not_installed_is_replaced_or_named() {
        let with = commands(true, true);
        let without = commands(false, false);
        assert!(
            with.iter()
                .any(|command| command.starts_with("cargo nextest run"))
        );
        assert!(!without.iter().any(|command| command.contains("nextest")));
        assert_eq!(with.len(), without.len());
        assert!(
            without
                .last()
                .unwrap()
                .contains("rustup target add wasm32-unknown-unknown")
        );
    }

    #[test]
    fn a_failed_step_fails_and_keeps_its_counts() {
        let mut counts = Counts::default();
        let line = "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        let action = Action::Test(
            program("sh", &["-c", &format!("echo '{line}'; exit 1")]),
            of_cargo_test,
        );
        assert!(matches!(action.run(&mut counts), Outcome::Failed(_, reason) if reason == "exit status: 1"));
        assert_eq!((counts.passed, counts.failed), (2, 1));
        let action = Action::Run(program("sh", &["-c", "exit 3"]));
        assert!(matches!(action.run(&mut counts), Outcome::Failed(_, reason) if reason == "exit status: 3"));
    }

    #[test]
    fn the_summary_names_every_step() {
        let outcomes = [
            ("formatting", Outcome::Passed(Duration::from_millis(812))),
            (
                "lints",
                Outcome::Failed(Duration::from_secs(245), "exit status: 101".into()),
            ),
            ("tests", Outcome::NotRun),
            (
                "library for WebAssembly",
                Outcome::Skipped("there is no target".into()),
            ),
        ];
        assert_eq!(
            summary(&outcomes),
            "passed         0.8 s  formatting\n\
             FAILED    4 min 05 s  lints: exit status: 101\n\
             not run               tests\n\
             skipped               library for WebAssembly: there is no target\n"
        );
    }
}
