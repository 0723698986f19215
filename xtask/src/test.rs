//! `cargo xtask test`: every check that a change has to pass.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::command::{cargo, program, root, run as run_command, run_tests, shown, succeeds};
use crate::counts::{Reader, Report, of_cargo_test, of_nextest, of_node};
use crate::web;

/// Debian's browser.
const CHROMIUM: &str = "/usr/bin/chromium";

/// What is on this machine, where it need not be.
struct Tools {
    nextest: bool,
    /// Or why there is no Node.js for the package.
    node: Result<(), String>,
    /// Or why there is no browser.
    chromium: Result<(), String>,
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
    install_browser(dry_run);
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

    let mut report = Report::default();
    let mut outcomes = Vec::new();
    for Step { name, action } in steps {
        let stopped = outcomes
            .iter()
            .any(|(_, outcome)| matches!(outcome, Outcome::Failed(..)));
        let outcome = if stopped {
            Outcome::NotRun
        } else {
            action.run(&mut report)
        };
        outcomes.push((name, outcome));
    }
    print!("\n{}", summary(&outcomes));
    if outcomes
        .iter()
        .any(|(_, outcome)| matches!(outcome, Outcome::Failed(..)))
    {
        return Err(Failure::Failed(report.to_string()));
    }
    println!("{report}");
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

/// Installs the browser where that needs nobody's password. Where it fails, the tests in it are left out, which the
/// summary says.
fn install_browser(dry_run: bool) {
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if Path::new(CHROMIUM).exists() || !is_root || !succeeds(program("apt-get", &["--version"])) {
        return;
    }
    let mut install = program(
        "apt-get",
        &["install", "-yq", "--no-install-recommends", "chromium"],
    );
    install.env("DEBIAN_FRONTEND", "noninteractive");
    for mut command in [program("apt-get", &["update", "-q"]), install] {
        if dry_run {
            println!("set-up: {}", shown(&command));
        } else if let Err(reason) = run_command(&mut command) {
            println!("'{}' failed: {reason}", shown(&command));
        }
    }
}

impl Tools {
    fn find() -> Self {
        Self {
            nextest: succeeds(cargo(&["nextest", "--version"])),
            node: web::check_node(),
            chromium: match succeeds(program(CHROMIUM, &["--version"])) {
                true => Ok(()),
                false => Err(format!(
                    "there is no {CHROMIUM}; 'sudo apt-get install chromium' installs it"
                )),
            },
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
    // What needs Node.js, and perhaps the browser too.
    let with_node = |also: &Result<(), String>, action: Action| match tools.node.as_ref().and(also.as_ref()) {
        Ok(()) => action,
        Err(reason) => Action::Skip(reason.trim_end_matches('.').to_owned()),
    };
    let this = std::env::current_exe().unwrap_or_else(|_| "xtask".into());
    let node_tests = |folder: &str| {
        let mut command = program("node", &["--test", "--test-concurrency=1", "--test-reporter=tap"]);
        command.args(test_files(&root().join(folder)));
        // It was built for the tests above.
        command.env("ERNIE_VIL_BIN", this.with_file_name("ernie-vil"));
        Action::Test(command, of_node)
    };
    let nothing = Ok(());
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
                "--features",
                "flex",
                "--lib",
                "--release",
                "--",
                "-D",
                "warnings",
            ])),
        ),
        step("lints with CUDA", Action::Run(cuda(&this))),
        step("documentation", Action::Run(documentation)),
        step("tests", tests),
        step(
            "examples in the documentation",
            Action::Test(
                cargo(&["test", "--doc", "--release", "--no-fail-fast"]),
                of_cargo_test,
            ),
        ),
        step(
            "npm package",
            with_node(&nothing, Action::Run(program(&this, &["web"]))),
        ),
        step("npm package's tests", with_node(&nothing, node_tests("pkg/test"))),
        step(
            "demo page",
            with_node(&nothing, Action::Run(program(&this, &["demo", "--no-serve"]))),
        ),
        step(
            "tests in the browser",
            with_node(&tools.chromium, node_tests("pkg/test/browser")),
        ),
        step(
            "tests of the installed package",
            with_node(&tools.chromium, node_tests("pkg/test/install")),
        ),
    ]
}

/// Lints what only a binary for NVIDIA cards has. Nothing is linked, so that neither a card nor CUDA nor LLVM is needed.
fn cuda(this: &Path) -> Command {
    let mut command = cargo(&["clippy", "--release", "--features", "cuda", "--lib", "--bins"]);
    // It tells the build script below burn-cuda to leave LLVM out. Others look at it too, hence a folder beside target/release.
    command.env("DOCS_RS", "1");
    if let Some(target) = this.ancestors().nth(2) {
        command.arg("--target-dir").arg(target.join("cuda"));
    }
    command.args(["--", "-D", "warnings"]);
    command
}

/// The tests for Node.js in a folder, in order.
fn test_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.retain(|file| file.to_string_lossy().ends_with(".test.mjs"));
    files.sort();
    files
}

impl Action {
    fn shown(&self) -> String {
        match self {
            Self::Run(command) | Self::Test(command, _) => shown(command),
            Self::Skip(reason) => format!("skipped, as {reason}"),
        }
    }

    fn run(self, report: &mut Report) -> Outcome {
        let start = Instant::now();
        let result = match self {
            Self::Skip(reason) => return Outcome::Skipped(reason),
            Self::Run(mut command) => run_command(&mut command),
            Self::Test(mut command, reader) => {
                let (found, result) = run_tests(&mut command, reader);
                report.add(found);
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

    fn commands(nextest: bool, web: bool) -> Vec<String> {
        let there =
            |there: bool, what: &str| there.then_some(()).ok_or_else(|| format!("there is no {what}."));
        let steps = steps(&Tools {
            nextest,
            node: there(web, "Node.js"),
            chromium: there(web, "browser"),
        });
        steps.iter().map(|step| step.action.shown()).collect()
    }

    #[test]
    fn everything_is_built_with_one_profile() {
        for (nextest, web) in [(false, false), (true, true)] {
            for command in commands(nextest, web) {
                let builds = command.contains("cargo ") && !command.starts_with("cargo fmt");
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
        assert_eq!(without.last().unwrap(), "skipped, as there is no Node.js");
    }

    #[test]
    fn a_failed_step_fails_and_keeps_its_counts() {
        let mut report = Report::default();
        let line = "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        let action = Action::Test(
            program("sh", &["-c", &format!("echo '{line}'; exit 1")]),
            of_cargo_test,
        );
        assert!(matches!(action.run(&mut report), Outcome::Failed(_, reason) if reason == "exit status: 1"));
        assert_eq!((report.counts.passed, report.counts.failed), (2, 1));
        let action = Action::Run(program("sh", &["-c", "exit 3"]));
        assert!(matches!(action.run(&mut report), Outcome::Failed(_, reason) if reason == "exit status: 3"));
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
            ("npm package", Outcome::Skipped("there is no Node.js".into())),
        ];
        assert_eq!(
            summary(&outcomes),
            "passed         0.8 s  formatting\n\
             FAILED    4 min 05 s  lints: exit status: 101\n\
             not run               tests\n\
             skipped               npm package: there is no Node.js\n"
        );
    }
}
