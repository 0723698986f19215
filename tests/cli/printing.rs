//! What every command does where its output cannot be written: a closed pipe ends it quietly, a full disk is
//! one error, and a standard error that nobody reads changes nothing.

use std::fs::OpenOptions;
use std::io::pipe;
use std::process::{Command, Stdio};

use crate::support::{Folder, first_lines, golden, read_golden, remarks, repository, text};

/// A folder with an input of each kind, and the commands that print.
struct Commands {
    folder: Folder,
}

impl Commands {
    fn new() -> Self {
        let folder = Folder::new();
        let write = |name: &str, text: &str| folder.write(name, text);
        write("pairs.tsv", &first_lines(8));
        write("texts", &"一只猫\n".repeat(20_000));
        write("vectors.out", &"1 0\t1 0\t1\n0 1\t0 1\t1\n".repeat(5));
        for name in ["r00.jpg", "r05.jpg"] {
            folder.write(&format!("pictures/{name}"), read_golden(format!("images/{name}")));
        }
        write(
            "train.yaml",
            &format!(
                "name: small\noutput: run\ntrain_file: {}\nmodel:\n  vocab_file: {}\n  max_text_tokens: 16\n  image: \
                 {{image_size: 32, patch_size: 16, width: 16, depth: 1, heads: 2, mlp_width: 32, epsilon: 1.0e-6}}\n  \
                 text: {{vocab_size: 2000, max_positions: 16, width: 16, depth: 1, heads: 2, query_head_width: 8, \
                 value_head_width: 8, mlp_width: 32, activation: gelu, epsilon: 1.0e-5}}\nbatch_size: 16\nsteps: 1\n\
                 learning_rate: 1.0e-3\n",
                golden("coco_cn_style.tsv").display(),
                golden("vocab_tiny.txt").display()
            ),
        );
        Self { folder }
    }

    /// Each command that prints results, in each of its forms, and the help.
    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = [
            "--help",
            "-h",
            "--version",
            "help embed",
            "info",
            "info --json",
            "tokenize texts",
            "eval -i pairs.tsv",
            "eval -i pairs.tsv --format json --quiet",
            "score vectors.out",
            "score vectors.out --format json",
            "score vectors.out --set coco-cn",
            "classify --labels 猫,狗 pictures/r00.jpg pictures/r05.jpg",
            "classify --labels 猫,狗 --json pictures/r00.jpg pictures/r05.jpg",
            "search --images pictures --text 猫 --text 狗",
            "search --images pictures --text 猫 --json",
            "bench --only decode --repeat 1",
            "bench --only decode --repeat 1 --json",
        ]
        .map(str::to_owned)
        .to_vec();
        let scenes = repository("models/scenes");
        let scenes = text(&scenes);
        lines.push(format!("convert --model {scenes} --output model --overwrite"));
        lines.push(format!("info --model {scenes} --verify"));
        if cfg!(feature = "train") {
            lines.push("train --config train.yaml --overwrite".into());
        }
        lines
    }

    fn command(&self, line: &str) -> Command {
        let words: Vec<&str> = line.split(' ').collect();
        self.folder.command(&words)
    }
}

/// A pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    writer.into()
}

/// A disk that is full.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// The command line's own list of commands, so that a new one has to be tried here.
#[test]
fn every_command_is_tried() {
    let commands = Commands::new();
    let help = commands.command("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let list = help
        .split("Commands:")
        .nth(1)
        .unwrap()
        .split("Options:")
        .next()
        .unwrap();
    let names: Vec<&str> = list
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(names.contains(&"search") && names.len() > 8, "{help}");
    let lines = commands.lines();
    // Of these, one prints nothing, one needs a server, and one is a server, which is tried below.
    let elsewhere = ["embed", "download", "serve"];
    for name in names {
        let is_tried = lines.iter().any(|line| line.split(' ').next() == Some(name));
        assert!(
            is_tried || elsewhere.contains(&name),
            "{name} prints to nowhere untried"
        );
    }
}

#[test]
fn a_closed_pipe_ends_every_command_quietly() {
    let commands = Commands::new();
    for line in commands.lines() {
        let output = commands.command(&line).stdout(closed()).output().unwrap();
        let remarks = remarks(&output);
        assert_eq!(output.status.code(), Some(0), "{line}: {remarks}");
        assert!(!remarks.contains("error:"), "{line}: {remarks}");
    }
}

/// As `| head -1` does: it takes a line and goes.
#[test]
fn a_reader_may_go_at_any_time() {
    use std::io::{BufRead, BufReader};
    let commands = Commands::new();
    for line in ["tokenize texts", "info", "search --images pictures --text 猫"] {
        let mut child = commands
            .command(line)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        let mut reader = BufReader::with_capacity(64, child.stdout.take().unwrap());
        reader.read_line(&mut first).unwrap();
        drop(reader);
        let output = child.wait_with_output().unwrap();
        assert!(
            !first.is_empty() && output.status.success(),
            "{line}: {}",
            remarks(&output)
        );
        assert!(!remarks(&output).contains("error:"));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_one_error_of_every_command() {
    let commands = Commands::new();
    for line in commands.lines() {
        let output = commands.command(&line).stdout(full()).output().unwrap();
        let remarks = remarks(&output);
        assert_eq!(output.status.code(), Some(1), "{line}: {remarks}");
        let errors: Vec<&str> = remarks
            .lines()
            .filter(|line| line.starts_with("error:"))
            .collect();
        assert_eq!(
            errors,
            ["error: writing to standard output: No space left on device (os error 28)"],
            "{line}"
        );
    }
}

/// Remarks are dropped; results and exit codes stay.
#[test]
#[cfg(target_os = "linux")]
fn a_standard_error_that_cannot_be_written_changes_nothing() {
    let commands = Commands::new();
    for stderr in [closed, full] {
        for line in commands.lines().iter().filter(|line| !line.starts_with("bench")) {
            let output = commands.command(line).stderr(stderr()).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{line}");
            assert!(!output.stdout.is_empty(), "{line}");
        }
        let output = commands
            .command("embed -i pairs.tsv -o vectors --overwrite")
            .stderr(stderr())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(commands.folder.path("vectors").exists());
        for (line, code) in [
            ("eval -i nowhere.tsv", 1),
            ("classify --labels 猫,狗 texts pictures/r05.jpg", 1),
            ("eval --nothing", 2),
        ] {
            let output = commands.command(line).stderr(stderr()).output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{line}");
        }
        // Both at once.
        let both = commands
            .command("info")
            .stdout(full())
            .stderr(stderr())
            .status()
            .unwrap();
        assert_eq!(both.code(), Some(1));
    }
}

/// The server goes on where nobody reads its address or its log.
#[test]
#[cfg(all(feature = "serve", target_os = "linux"))]
fn the_server_does_without_readers() {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    let commands = Commands::new();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let line = format!("serve --listen 127.0.0.1:{port}");
    for stderr in [closed, full] {
        let mut child = commands
            .command(&line)
            .stdout(closed())
            .stderr(stderr())
            .spawn()
            .unwrap();
        let start = Instant::now();
        let answer = loop {
            assert!(child.try_wait().unwrap().is_none(), "the server has ended");
            assert!(start.elapsed() < Duration::from_secs(60), "no answer");
            std::thread::sleep(Duration::from_millis(50));
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
                continue;
            };
            let request =
                format!("GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
            let mut answer = String::new();
            let asked = stream
                .write_all(request.as_bytes())
                .and_then(|()| stream.read_to_string(&mut answer));
            if asked.is_ok() && answer.contains("200 OK") {
                break answer;
            }
        };
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // Without its first line nobody would learn the port that the system chose.
    let output = commands
        .command("serve --listen 127.0.0.1:0")
        .stdout(full())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let remarks = remarks(&output);
    assert!(
        remarks.contains("error: writing to standard output: No space left"),
        "{remarks}"
    );
}
