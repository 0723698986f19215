//! Running other programs.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, thread};

use crate::counts::{Counts, Reader, Report};

/// The repository's folder, in which every program runs.
pub fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&xtask).join("..")
}

/// `program` with arguments, in the repository's folder and without standard input.
pub fn program(program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root()).stdin(Stdio::null());
    command
}

/// The cargo that runs this program, with arguments.
pub fn cargo(arguments: &[&str]) -> Command {
    program(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), arguments)
}

/// The command as one would type it.
pub fn shown(command: &Command) -> String {
    let quoted = |text: &OsStr| {
        let text = text.to_string_lossy();
        if text.contains(' ') {
            format!("'{text}'")
        } else {
            text.into_owned()
        }
    };
    let variables = command.get_envs().filter_map(|(name, value)| {
        let value = quoted(value?);
        Some(format!("{}={value}", name.to_string_lossy()))
    });
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let arguments = command.get_args().map(quoted);
    let words: Vec<String> = variables.chain([quoted(program)]).chain(arguments).collect();
    words.join(" ")
}

/// Whether the command can be run and succeeds; what it prints is dropped.
pub fn succeeds(mut command: Command) -> bool {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Runs the command and returns what it prints on standard output; its standard error is passed on.
///
/// # Errors
/// A sentence that names the command, where it cannot be started or fails.
pub fn output(command: &mut Command) -> Result<String, String> {
    captured(command.stderr(Stdio::inherit())).map(|(output, _)| output)
}

/// Runs the command and returns what it prints on standard output and on standard error.
///
/// # Errors
/// As those of [`output`].
pub fn output_and_errors(command: &mut Command) -> Result<(String, String), String> {
    captured(command.stderr(Stdio::piped()))
}

fn captured(command: &mut Command) -> Result<(String, String), String> {
    let output = command.output().map_err(|error| cannot_run(command, &error))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (found, errors) = (text(&output.stdout), text(&output.stderr));
    match output.status.success() {
        true => Ok((found, errors)),
        false => Err(format!(
            "'{}' failed: {}\n{errors}",
            shown(command),
            output.status
        )),
    }
}

/// Shows the command and runs it.
///
/// # Errors
/// A sentence, where it cannot be started or fails.
pub fn run(command: &mut Command) -> Result<(), String> {
    announce(command);
    let status = command.status().map_err(|error| cannot_run(command, &error))?;
    if status.success() {
        Ok(())
    } else {
        Err(status.to_string())
    }
}

/// Names the file in which tests record that they are skipped, to the tests (`tests/support/skip.rs`). What
/// they print is hidden by the test runners where they pass.
const SKIPPED_TESTS: &str = "ERNIE_VIL_SKIPPED_TESTS";

/// Shows a command that runs tests and runs it, and counts the tests that it and they themselves report.
pub fn run_tests(command: &mut Command, reader: Reader) -> (Report, Result<(), String>) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    announce(command);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let skips = env::temp_dir().join(format!("ernie-vil-skipped-{}-{number}", process::id()));
    let _ = fs::remove_file(&skips);
    let result = pass_on(command.env(SKIPPED_TESTS, &skips), reader);
    // There is no file where no test was skipped.
    let recorded = fs::read(&skips).unwrap_or_default();
    let _ = fs::remove_file(&skips);
    let report = |counts| Report::new(counts, &String::from_utf8_lossy(&recorded));
    match result {
        Err(error) => (Report::default(), Err(cannot_run(command, &error))),
        Ok((counts, status)) if !status.success() => (report(counts), Err(status.to_string())),
        Ok((counts, _)) if counts == Counts::default() => (report(counts), Err("it reported no test".into())),
        Ok((counts, _)) => (report(counts), Ok(())),
    }
}

fn announce(command: &Command) {
    println!("\n$ {}", shown(command));
}

fn cannot_run(command: &Command, error: &io::Error) -> String {
    format!("'{}' could not be run: {error}", shown(command))
}

/// Runs the command, prints what it prints, and says what it reported and how it ended.
fn pass_on(command: &mut Command, reader: Reader) -> io::Result<(Counts, ExitStatus)> {
    if io::stderr().is_terminal()
        && env::var_os("CARGO_TERM_COLOR").is_none()
        && env::var_os("NO_COLOR").is_none()
    {
        // It sees a pipe and would leave colours out.
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let counts = thread::scope(|scope| {
        let errors = scope.spawn(|| count_lines(stderr, reader, |line| eprint!("{line}")));
        let counts = count_lines(stdout, reader, |line| print!("{line}"))?;
        let errors = errors
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        io::Result::Ok(counts + errors)
    })?;
    Ok((counts, child.wait()?))
}

/// Hands on what there is to read, line by line, and adds up the tests that it reports.
fn count_lines(from: Option<impl Read>, reader: Reader, to: impl Fn(&str)) -> io::Result<Counts> {
    let mut counts = Counts::default();
    let Some(from) = from else { return Ok(counts) };
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        to(&text);
        counts = counts + reader(&text).unwrap_or_default();
        line.clear();
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::of_cargo_test;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = program("/opt/rust/bin/cargo", &["doc", "--no-deps"]);
        command.env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(shown(&command), "RUSTDOCFLAGS='-D warnings' cargo doc --no-deps");
    }

    #[test]
    fn a_program_that_cannot_run_is_an_error() {
        let mut missing = program("no-such-program-at-all", &[]);
        assert!(run(&mut missing).unwrap_err().contains("no-such-program-at-all"));
        assert!(run_tests(&mut missing, of_cargo_test).1.is_err());
        assert!(output(&mut missing).is_err());
        assert!(!succeeds(missing));
    }

    #[test]
    fn outputs_are_captured() {
        let mut both = program("sh", &["-c", "echo out; echo err >&2"]);
        assert_eq!(output_and_errors(&mut both), Ok(("out\n".into(), "err\n".into())));
        let mut failed = program("sh", &["-c", "echo err >&2; exit 3"]);
        let message = output_and_errors(&mut failed).unwrap_err();
        assert!(message.contains("exit status: 3\nerr"), "{message}");
    }

    #[test]
    fn tests_are_counted_on_both_outputs() {
        let line = "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out";
        let script = format!("echo '{line}'; echo '{line}' >&2; printf 'no line end'");
        let (report, result) = run_tests(&mut program("sh", &["-c", &script]), of_cargo_test);
        assert_eq!(report.to_string(), "4 passed, 0 failed, 2 skipped");
        assert_eq!(result, Ok(()));
    }

    #[test]
    fn tests_that_record_a_skip_are_counted_as_skipped() {
        let line = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        let script = format!("echo 'SKIPPED it::a: no file' >> \"$ERNIE_VIL_SKIPPED_TESTS\"; echo '{line}'");
        let mut command = program("sh", &["-c", &script]);
        // A second run starts afresh.
        for _ in 0..2 {
            let (report, result) = run_tests(&mut command, of_cargo_test);
            assert_eq!(
                report.to_string(),
                "Tests that could not run here:\n  it::a: no file\n2 passed, 0 failed, 1 skipped"
            );
            assert_eq!(result, Ok(()));
        }
    }

    #[test]
    fn what_a_skipped_test_records_is_read() {
        const SKIP: &str = "XTASK_TEST_IS_SKIPPED";
        if env::var_os(SKIP).is_some() {
            return crate::skip::skipped("one line\ntwo");
        }
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "command::tests::what_a_skipped_test_records_is_read"])
            .env(SKIP, "1");
        let (report, result) = run_tests(&mut command, of_cargo_test);
        assert_eq!(result, Ok(()));
        let expected = "Tests that could not run here:\n  \
                        xtask::command::tests::what_a_skipped_test_records_is_read: one line two\n\
                        0 passed, 0 failed, ";
        assert!(report.to_string().starts_with(expected), "{report}");
    }

    #[test]
    fn success_without_a_test_is_none() {
        let (_, result) = run_tests(&mut program("sh", &["-c", "echo done"]), of_cargo_test);
        assert_eq!(result, Err("it reported no test".into()));
    }

    #[test]
    fn failed_tests_are_counted() {
        let line = "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out";
        let (report, result) = run_tests(
            &mut program("sh", &["-c", &format!("echo '{line}'; exit 101")]),
            of_cargo_test,
        );
        assert_eq!(report.to_string(), "2 passed, 3 failed, 0 skipped");
        assert_eq!(result, Err("exit status: 101".into()));
    }
}
