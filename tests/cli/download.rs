//! `ernie-vil download` against a server of the test's own: what it refuses, warns of and remembers.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use crate::support::{command, golden, read_golden, remarks, run, success, text};

/// A server that has a vocabulary, and weights that can be replaced. It ends with the process.
struct Server {
    address: SocketAddr,
    weights: Arc<Mutex<Vec<u8>>>,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            weights: Arc::new(Mutex::new(read_golden("models/tiny.pdparams"))),
            requests: Arc::default(),
        };
        let (weights, requests) = (server.weights.clone(), server.requests.clone());
        std::thread::spawn(move || {
            let vocab = read_golden("vocab_tiny.txt");
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let head: Vec<String> = BufReader::new(&stream)
                    .lines()
                    .map_while(Result::ok)
                    .take_while(|line| !line.is_empty())
                    .collect();
                let body = match head.first().is_some_and(|line| line.contains("vocab.txt")) {
                    true => vocab.clone(),
                    false => weights.lock().unwrap().clone(),
                };
                requests.fetch_add(1, SeqCst);
                let _ = answer(&mut stream, &body);
            }
        });
        server
    }

    fn download(&self, folder: &Path, more: &[&str]) -> Output {
        let model = folder.join("model");
        command(&["download", "--overwrite", "--output", text(&model)])
            .args(["--base-url", &format!("http://{}", self.address)])
            .args(["--vocab-url", &format!("http://{}/vocab.txt", self.address)])
            .args(["--text-config", text(&golden("models/tiny_text_config.json"))])
            .args(["--image-config", text(&golden("models/tiny_vision_config.json"))])
            .args(["--sums", text(&folder.join("sums.json"))])
            .args(more)
            .env("NO_PROXY", "*")
            .output()
            .unwrap()
    }
}

fn answer(stream: &mut TcpStream, body: &[u8]) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)
}

#[test]
fn another_file_at_the_same_address_is_refused_until_it_is_accepted() {
    let folder = TempDir::new().unwrap();
    let server = Server::new();
    let first = server.download(folder.path(), &[]);
    assert!(first.status.success(), "{}", remarks(&first));
    let sums = fs::read_to_string(folder.path().join("sums.json")).unwrap();
    assert_eq!(sums.matches("\"sha256\"").count(), 2, "{sums}");
    // The same again.
    let again = server.download(folder.path(), &[]);
    assert!(again.status.success(), "{}", remarks(&again));
    assert_eq!(first.stdout, again.stdout);

    // Other weights, of the same length.
    let mut weights = server.weights.lock().unwrap().clone();
    let other = weights.len() / 2;
    weights[other] ^= 1;
    *server.weights.lock().unwrap() = weights;
    let refused = server.download(folder.path(), &[]);
    let message = remarks(&refused);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("the file has changed since "), "{message}");
    assert!(
        message.contains("--accept-changed takes it in the place of "),
        "{message}"
    );
    assert!(message.contains("sums.json"), "{message}");
    assert_eq!(fs::read_to_string(folder.path().join("sums.json")).unwrap(), sums);

    let accepted = server.download(folder.path(), &["--accept-changed"]);
    assert!(accepted.status.success(), "{}", remarks(&accepted));
    assert_ne!(first.stdout, accepted.stdout);
    // From now on it is that one.
    let last = server.download(folder.path(), &[]);
    assert!(last.status.success(), "{}", remarks(&last));
    assert_ne!(fs::read_to_string(folder.path().join("sums.json")).unwrap(), sums);
}

#[test]
fn what_is_not_encrypted_is_warned_of() {
    let folder = TempDir::new().unwrap();
    let server = Server::new();
    let first = server.download(folder.path(), &["--quiet"]);
    let message = remarks(&first);
    let warnings = || {
        message
            .lines()
            .filter(|line| line.starts_with("warning: "))
            .collect::<Vec<_>>()
    };
    assert_eq!(warnings().len(), 2, "{message}");
    assert!(
        message.contains("is not encrypted: anybody on the way can send another file. --sha256 says"),
        "{message}"
    );
    assert!(message.contains("--vocab-sha256 says"), "{message}");
    // A file whose sum is known needs none.
    let again = remarks(&server.download(folder.path(), &["--quiet"]));
    assert!(!again.contains("warning"), "{again}");
    let wrong = server.download(folder.path(), &["--vocab-sha256", &"0".repeat(64)]);
    let message = remarks(&wrong);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(
        message.contains(&format!("expected {}", "0".repeat(64))),
        "{message}"
    );
}

#[test]
fn a_page_in_the_place_of_weights_is_called_one() {
    let server = Server::new();
    for (body, expected) in [
        (
            &b"<!DOCTYPE html><html><body>Moved</body></html>"[..],
            "it is an HTML page",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 815923\n",
            "it is a Git LFS pointer",
        ),
        (b"{\"error\": \"no such bucket\"}", "it is a JSON document"),
        (b"PK\x03\x04\0\0archive/data.pkl", "it is a checkpoint of PyTorch"),
    ] {
        *server.weights.lock().unwrap() = body.to_vec();
        let folder = TempDir::new().unwrap();
        let output = server.download(folder.path(), &[]);
        let message = remarks(&output);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(expected), "{message}");
        // It is no file whose sum counts.
        let sums = fs::read_to_string(folder.path().join("sums.json")).unwrap();
        assert!(!sums.contains("pdparams"), "{sums}");
    }
}

#[test]
fn sums_that_cannot_be_read_are_an_error() {
    let folder = TempDir::new().unwrap();
    let server = Server::new();
    fs::write(folder.path().join("sums.json"), "{").unwrap();
    let output = server.download(folder.path(), &[]);
    let message = remarks(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains("sums.json (the sums of earlier downloads"),
        "{message}"
    );
    assert_eq!(server.requests.load(SeqCst), 0);
}

/// The published addresses, as the help shows them.
#[test]
fn the_published_addresses_are_https() {
    let help = success(&run(&["download", "--help"]));
    assert!(
        help.contains("[default: https://bj.bcebos.com/wenxin-models]"),
        "{help}"
    );
    assert!(help.contains("https://raw.githubusercontent.com/"), "{help}");
    assert!(!help.contains("[default: http://"), "{help}");
}
