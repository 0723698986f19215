//! `cargo xtask test`: every check that a change has to pass.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::command::{cargo, program, root, run as run_command, run_tests, shown, succeeds};
use crate::counts::{Reader, Report, of_cargo_test, of_nextest, of_node};
use crate::licences::OWN;
use crate::web;

/// What is tested beside the default features. Without a driver for a card its tests are skipped.
const FEATURES: &str = "wgpu";

/// Debian's browser.
const CHROMIUM: &str = "/usr/bin/chromium";
/// Where Vulkan's loader finds drivers on Linux, and Debian's package of those that need no hardware.
const VULKAN: [&str; 2] = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"];
const VULKAN_PACKAGE: &str = "mesa-vulkan-drivers";
/// Seconds for which `--all` changes files of each parser, and for which it drives the server.
const FUZZ_SECONDS: &str = "600";
const SOAK_SECONDS: &str = "300";
/// What the comparison with ONNX Runtime imports (benches/peers/requirements.txt).
const PEERS: &str = "import numpy, onnx, onnxruntime, PIL, safetensors";

/// What is on this machine, where it need not be.
struct Tools {
    nextest: bool,
    /// Or why there is no Node.js for the package.
    node: Result<(), String>,
    /// Or why there is no browser.
    chromium: Result<(), String>,
    /// Or why these parts of `--all` cannot be run.
    python: Result<(), String>,
    peers: Result<(), String>,
    deny: Result<(), String>,
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
    let (mut all, mut dry_run) = (false, false);
    for &argument in arguments {
        match argument {
            "--all" => all = true,
            "--dry-run" => dry_run = true,
            other => return Err(Failure::Usage(format!("'test' takes no '{other}'."))),
        }
    }
    set_up(dry_run)?;
    install_packages(dry_run);
    let tools = Tools::find();
    if !tools.nextest {
        println!(
            "cargo-nextest is not installed, so 'cargo test' runs the tests, one program after the other. \
             'cargo install cargo-nextest --locked' makes the next run faster."
        );
    }
    let mut steps = steps(&tools);
    if all {
        steps.extend(further_steps(&tools));
    }
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

/// Installs the browser and a software driver for Vulkan where that needs nobody's password. Where it fails,
/// the tests with them are left out, which the summary says.
fn install_packages(dry_run: bool) {
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let mut packages = Vec::new();
    packages.extend((!Path::new(CHROMIUM).exists()).then_some("chromium"));
    packages.extend((!has_vulkan()).then_some(VULKAN_PACKAGE));
    if packages.is_empty() || !is_root || !succeeds(program("apt-get", &["--version"])) {
        return;
    }
    let mut install = program("apt-get", &["install", "-yq", "--no-install-recommends"]);
    install.args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    for mut command in [program("apt-get", &["update", "-q"]), install] {
        if dry_run {
            println!("set-up: {}", shown(&command));
        } else if let Err(reason) = run_command(&mut command) {
            println!("'{}' failed: {reason}", shown(&command));
        }
    }
}

/// Whether a GPU can be asked for: other systems have their own interface, Linux needs a driver for Vulkan.
fn has_vulkan() -> bool {
    let names_driver = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.path().extension().is_some_and(|ending| ending == "json"))
    };
    let has_driver = |folder| std::fs::read_dir(folder).is_ok_and(|mut entries| entries.any(names_driver));
    !cfg!(target_os = "linux") || VULKAN.iter().any(has_driver)
}

/// The reason, where something is not there.
fn or(there: bool, reason: &str) -> Result<(), String> {
    there.then_some(()).ok_or_else(|| reason.to_owned())
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
            python: or(
                succeeds(program("python3", &["--version"])),
                "there is no python3",
            ),
            peers: or(
                succeeds(program("python3", &["-c", PEERS])),
                "'pip install -r benches/peers/requirements.txt' has not been run",
            ),
            deny: or(
                succeeds(cargo(&["deny", "--version"])),
                "cargo-deny is not installed; 'cargo install cargo-deny --locked' does so",
            ),
        }
    }
}

/// The steps, in order: what is quick to fail comes first.
///
/// All of them build with the release profile. The dependencies are large, and so are built once for
/// each set of features rather than once more for each profile.
fn steps(tools: &Tools) -> Vec<Step> {
    let step = |name, action| Step { name, action };
    let mut documentation = cargo(&["doc", "--no-deps", "--lib", "--release", "--features", FEATURES]);
    documentation.env("RUSTDOCFLAGS", "-D warnings");
    let tests = if tools.nextest {
        let mut command = cargo(&["nextest", "run", "--workspace", "--release", "--no-fail-fast"]);
        command.args(["--features", FEATURES]);
        Action::Test(command, of_nextest)
    } else {
        // All that nextest runs: the examples in the documentation are a step of their own.
        let mut command = cargo(&["test", "--workspace", "--release", "--no-fail-fast"]);
        command.args(["--features", FEATURES, "--lib", "--bins", "--tests", "--examples"]);
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
        step("crate's package", Action::Run(program(&this, &["package"]))),
        step("licences", Action::Run(program(&this, &["licences"]))),
        step(
            "lints",
            Action::Run(cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--release",
                "--features",
                FEATURES,
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
                cargo(&[
                    "test",
                    "--doc",
                    "--release",
                    "--no-fail-fast",
                    "--features",
                    FEATURES,
                ]),
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

/// What `--all` adds: what takes hours, or needs what few have installed.
fn further_steps(tools: &Tools) -> Vec<Step> {
    let this = std::env::current_exe().unwrap_or_else(|_| "xtask".into());
    let step = |name, there: &Result<(), String>, command| Step {
        name,
        action: match there {
            Ok(()) => Action::Run(command),
            Err(reason) => Action::Skip(reason.clone()),
        },
    };
    // It was built for the tests.
    let with_binary = |script, arguments: &[&str]| {
        let mut command = program("python3", &[script, "--binary"]);
        command.arg(this.with_file_name(OWN)).args(arguments);
        command
    };
    let rules = ["deny", "check", "bans", "licenses", "sources"];
    let verified = ["package", "--package", OWN, "--allow-dirty", "--locked"];
    let compared = ["--size", "small", "--check-only"];
    vec![
        step("cargo-deny's rules", &tools.deny, cargo(&rules)),
        step("crate built from its package", &Ok(()), cargo(&verified)),
        step(
            "comparison with ONNX Runtime",
            &tools.peers,
            with_binary("benches/peers/towers_onnx.py", &compared),
        ),
        step(
            "server under bad clients",
            &tools.python,
            with_binary("benches/soak.py", &["--seconds", SOAK_SECONDS]),
        ),
        step(
            "fuzzing",
            &Ok(()),
            program(&this, &["fuzz", "mutate", FUZZ_SECONDS]),
        ),
    ]
}

/// Lints what only a binary for NVIDIA cards has. Nothing is linked, so that neither a card nor CUDA nor LLVM
/// is needed.
fn cuda(this: &Path) -> Command {
    let mut command = cargo(&["clippy", "--release", "--features", "cuda", "--lib", "--bins"]);
    // It tells the build script below burn-cuda to leave LLVM out. Others look at it too, hence a folder
    // beside target/release.
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

    fn tools(nextest: bool, others: bool) -> Tools {
        Tools {
            nextest,
            node: or(others, "there is no Node.js."),
            chromium: or(others, "there is no browser."),
            python: or(others, "there is no python3"),
            peers: or(others, "there is no onnxruntime"),
            deny: or(others, "there is no cargo-deny"),
        }
    }

    fn commands(nextest: bool, others: bool) -> Vec<String> {
        let steps = steps(&tools(nextest, others));
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
    fn all_adds_what_is_too_heavy_for_each_change() {
        let shown = |others| {
            let steps = further_steps(&tools(true, others));
            steps.iter().map(|step| step.action.shown()).collect::<Vec<_>>()
        };
        let (with, without) = (shown(true), shown(false));
        for part in [
            "cargo deny check",
            "cargo package",
            "towers_onnx.py",
            "soak.py",
            "fuzz mutate 600",
        ] {
            assert!(with.iter().any(|command| command.contains(part)), "{part}");
        }
        assert!(!with.iter().any(|command| command.starts_with("skipped")));
        let skipped = without.iter().filter(|command| command.starts_with("skipped"));
        assert_eq!((with.len(), skipped.count()), (without.len(), 3));
        assert!(matches!(run(&["--all", "--dry"]), Err(Failure::Usage(_))));
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
