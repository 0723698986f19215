//! A server, requests to it, and the index that it keeps on the disk.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ernie_vil::index::EmbeddingIndex;
use serde_json::Value;

use super::command;

/// The length of the built-in model's embeddings.
pub const DIMENSIONS: usize = 128;

/// A server that runs until it is dropped.
pub struct Server {
    pub child: Child,
    pub address: String,
}

impl Server {
    pub fn start(args: &[&str]) -> Self {
        let server = Self::spawn(command(
            &[&["serve", "--listen", "127.0.0.1:0", "--quiet"], args].concat(),
        ));
        server.wait_until_ready();
        server
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .trim()
            .strip_prefix("listening on http://")
            .expect(&line)
            .to_owned();
        Self { child, address }
    }

    pub fn wait_until_ready(&self) {
        let start = Instant::now();
        while self.get("/ready").status != 200 {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "not ready after a minute"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        request(&self.address, method, path, headers, body).unwrap()
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.json("POST", path, body.to_string().as_bytes())
    }

    pub fn json(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        self.send(method, path, &[("content-type", "application/json")], body)
    }

    pub fn metric(&self, line: &str) -> f64 {
        let text = self.get("/metrics").text();
        let found = text
            .lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        found.map_or(0.0, |value| value.parse().unwrap())
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The answer to a request.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{} {}", self.status, self.text()))
    }

    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.value()
    }

    /// The error's code and message, whose form is OpenAI's.
    #[track_caller]
    pub fn error(&self, status: u16) -> (String, String) {
        let value = self.value();
        assert_eq!(self.status, status, "{value}");
        let error = &value["error"];
        let kind = match status {
            401 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        assert_eq!(error["type"], kind);
        let text = |name: &str| error[name].as_str().unwrap().to_owned();
        (text("code"), text("message"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// One request on a connection of its own.
pub fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Reply> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("content-length: {}\r\n", body.len());
    }
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    stream.write_all(&bytes)?;
    read_reply(&mut stream)
}

pub fn read_reply(stream: &mut TcpStream) -> std::io::Result<Reply> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .ok_or(ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Ok(Reply {
        status,
        headers,
        body: bytes[end + 4..].to_vec(),
    })
}

/// Returns the bytes of a request that is written by hand.
pub fn handwritten(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Sends a signal by its name.
#[track_caller]
pub fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let status = Command::new("kill").args(["-s", name, &pid]).status();
    assert!(status.unwrap().success());
}

/// Returns a vector of length 1 that a number stands for.
pub fn vector(seed: usize) -> Vec<f32> {
    let value = |i: usize| ((seed * 31 + i * 17 + seed * i) % 97) as f32 - 48.0;
    let mut values: Vec<f32> = (0..DIMENSIONS).map(value).collect();
    ernie_vil::vectors::normalise(&mut values).unwrap();
    values
}

/// Returns the path of the file beside an index whose name has this ending.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    format!("{}{suffix}", path.display()).into()
}

/// Returns what is on the disk: the file, and the log on top of it.
pub fn on_disk(file: &Path) -> EmbeddingIndex {
    let log = fs::read(beside(file, ".log")).unwrap_or_default();
    let mut index = match fs::read(file) {
        Ok(bytes) => EmbeddingIndex::load(&bytes).unwrap(),
        Err(_) => EmbeddingIndex::of_log(&log).unwrap().expect("a file or a log"),
    };
    index.replay(&log).unwrap();
    index
}
