//! Running the binary.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::golden;

pub const BINARY: &str = env!("CARGO_BIN_EXE_ernie-vil");

/// Returns a command that runs the binary with these arguments, in the environment that `clean` leaves.
pub fn command(args: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(BINARY);
    clean(command.args(args));
    command
}

/// Removes standard input and the settings that are in the environment of the tests, and leaves the
/// repository, so that no demo page is found that was built there.
pub fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ERNIE_VIL_")) {
        command.env_remove(name);
    }
    command.current_dir(std::env::temp_dir()).stdin(Stdio::null())
}

/// Runs the binary with these arguments.
pub fn run(args: &[impl AsRef<OsStr>]) -> Output {
    command(args).output().unwrap()
}

/// Returns the command that converts a recorded model to a folder.
pub fn convert(model: &str, output: &Path) -> Command {
    let file = |suffix: &str| golden(format!("models/{model}{suffix}"));
    command(&[
        "convert",
        "--weights",
        text(&file(".pdparams")),
        "--text-config",
        text(&file("_text_config.json")),
        "--image-config",
        text(&file("_vision_config.json")),
        "--vocab",
        text(&golden("vocab_tiny.txt")),
        "--output",
        text(output),
    ])
}

/// Returns what a command printed, which has to have succeeded.
#[track_caller]
pub fn success(output: &Output) -> String {
    assert!(output.status.success(), "{}", remarks(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Returns the error line of a command, which has to have failed with this one error.
#[track_caller]
pub fn failure(output: &Output) -> String {
    let text = remarks(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    errors[0].to_owned()
}

/// Returns what a command wrote to standard error, which must not be a panic.
#[track_caller]
pub fn remarks(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// Returns a path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Waits until the process ends, and reads what it writes into pipes meanwhile.
#[track_caller]
pub fn finish(mut child: Child, longest: Duration) -> Output {
    let collect = |pipe: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            bytes
        })
    };
    let stdout = collect(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = collect(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    Output {
        status: wait_at_most(&mut child, longest),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

/// Waits until the process ends. One that takes longer than this is killed, and the test fails.
#[track_caller]
pub fn wait_at_most(child: &mut Child, longest: Duration) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > longest {
            let _ = child.kill();
            let _ = child.wait();
            panic!("it still runs after {longest:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}
