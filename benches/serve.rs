//! Load on `ernie-vil serve`: requests a second, times, processor time and memory at 1, 8 and 64 connections, beside the
//! bare model.
//!
//! ```sh
//! cargo bench --bench serve                                  # the built-in model
//! cargo bench --bench serve -- --seconds 10 --model base     # another one; its captions need not be alike
//! cargo bench --bench serve -- --requests 100000             # does memory grow?
//! ```
//!
//! Server and clients share the machine's cores, so the server has less than it would have alone.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use ernie_vil::ModelConfig;
use ernie_vil::text::Tokenizer;
use ernie_vil::towers::{DualEncoder, Engine};
use ernie_vil::weights::SafetensorsFile;

/// With `[CLS]` and `[SEP]` a caption of 12 tokens.
const CAPTION: &str = "红色的圆在蓝色的方上";

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(model: Option<&str>, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ernie-vil"));
        command
            .args(["serve", "--quiet", "--listen", "127.0.0.1:0"])
            .args(args);
        if let Some(model) = model {
            command.args(["--model", model]);
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .trim()
            .strip_prefix("listening on http://")
            .unwrap()
            .to_owned();
        let server = Self { child, address };
        let ready = b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n";
        while Client::new(&server.address).send(ready).0 != 200 {
            thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// Resident memory in MB.
    fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().split(' ').next()?.parse::<f64>().ok())
            .unwrap_or(f64::NAN)
            / 1024.0
    }
}

/// Processor time of a process in seconds: on a machine that does other things too it says more than the time that passed.
fn processor(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the name in parentheses: user and system time are the fields 14 and 15, in hundredths.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection that is kept.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn new(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// The status and the bytes of the body.
    fn send(&mut self, request: &[u8]) -> (u16, usize) {
        self.stream.get_mut().write_all(request).unwrap();
        let (mut status, mut length, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            assert!(
                self.stream.read_line(&mut line).unwrap() > 0,
                "the connection was closed"
            );
            let text = line.trim_end();
            if let Some(rest) = text.strip_prefix("HTTP/1.1 ") {
                status = rest[..3].parse().unwrap();
            } else if let Some(rest) = text.strip_prefix("content-length: ") {
                length = rest.parse().unwrap();
            } else if text.is_empty() {
                break;
            }
        }
        std::io::copy(
            &mut self.stream.by_ref().take(length as u64),
            &mut std::io::sink(),
        )
        .unwrap();
        (status, length)
    }
}

fn post(body: &str) -> Vec<u8> {
    format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Sends the same request over and over on so many connections, for some seconds or so many requests.
fn load(
    server: &Server,
    name: &str,
    request: &[u8],
    connections: usize,
    seconds: f64,
    requests: Option<u64>,
) {
    let (start, sent) = (Instant::now(), AtomicU64::new(0));
    let process = server.child.id().to_string();
    let before = processor(&process);
    let goes_on = || match requests {
        Some(most) => sent.fetch_add(1, Ordering::Relaxed) < most,
        None => start.elapsed().as_secs_f64() < seconds,
    };
    let mut times: Vec<f64> = thread::scope(|scope| {
        let client = || {
            let (mut client, mut times) = (Client::new(&server.address), Vec::new());
            while goes_on() {
                let start = Instant::now();
                let (status, _) = client.send(request);
                assert_eq!(status, 200);
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            times
        };
        let clients: Vec<_> = (0..connections).map(|_| scope.spawn(client)).collect();
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    });
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    let work = (processor(&process) - before) * 1e6 / times.len() as f64;
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{name:<34}{connections:>3} connections {rate:>6.0} requests/s  p50 {:>6.2}  p95 {:>6.2}  p99 {:>6.2} ms  {work:>6.0} us of processor each  {:.0} MB",
        at(0.5),
        at(0.95),
        at(0.99),
        server.memory()
    );
}

/// What the model does without a server around it.
fn bare(folder: &str) {
    let read = |name: &str| std::fs::read(format!("{folder}/{name}")).unwrap();
    let config = ModelConfig::from_json(&read("config.json")).unwrap();
    let tokenizer = Tokenizer::parse(&read("vocab.txt"), config.text.vocab_size).unwrap();
    let ids = tokenizer.encode(CAPTION, config.max_text_tokens).unwrap();
    let weights = read("text.safetensors");
    let source = SafetensorsFile::parse(&weights).unwrap();
    let encoder = DualEncoder::load(config, None, Some(&source), &Device::flex(), Engine::Auto).unwrap();
    let tower = encoder.text.unwrap();
    for batch in [1, 8, 64] {
        let captions = vec![ids.as_slice(); batch];
        let (start, before, mut count) = (Instant::now(), processor("self"), 0);
        while start.elapsed().as_secs_f64() < 2.0 {
            std::hint::black_box(tower.embed(&captions).unwrap());
            count += batch;
        }
        let rate = count as f64 / start.elapsed().as_secs_f64();
        let work = (processor("self") - before) * 1e6 / count as f64;
        println!(
            "the bare model, batches of {batch:<8}{rate:>22.0} captions/s  {work:>6.0} us of processor each, {} tokens",
            ids.len()
        );
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1).map(String::as_str)
    };
    let model = value("--model");
    let seconds: f64 = value("--seconds").map_or(3.0, |text| text.parse().unwrap());
    let requests = value("--requests").map(|text| text.parse().unwrap());
    bare(model.unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/models/scenes")));

    let caption = post(&format!(
        "{{\"input\": \"{CAPTION}\", \"encoding_format\": \"base64\"}}"
    ));
    if requests.is_some() {
        let server = Server::start(model, &[]);
        println!("{:.0} MB before", server.memory());
        for _ in 0..4 {
            load(&server, "a caption, base64", &caption, 64, seconds, requests);
        }
        return;
    }
    let floats = post(&format!("{{\"input\": \"{CAPTION}\"}}"));
    let many = post(&format!(
        "{{\"input\": {:?}, \"encoding_format\": \"base64\"}}",
        [CAPTION; 64]
    ));
    // A JPEG of 21 kB, as base64.
    let row = include_str!("../tests/goldens/coco_cn_style.tsv")
        .lines()
        .next()
        .unwrap();
    let picture = row.split('\t').nth(2).unwrap();
    let image = post(&format!(
        "{{\"input\": {{\"image\": \"{picture}\"}}, \"encoding_format\": \"base64\"}}"
    ));
    for (batching, args) in [
        ("", &[][..]),
        (", one at a time", &["--caption-batch", "1", "--image-batch", "1"]),
    ] {
        let server = Server::start(model, args);
        for connections in [1, 8, 64] {
            load(
                &server,
                &format!("a caption, base64{batching}"),
                &caption,
                connections,
                seconds,
                None,
            );
        }
        if batching.is_empty() {
            load(&server, "a caption, numbers", &floats, 64, seconds, None);
            load(&server, "64 captions, base64", &many, 4, seconds, None);
        }
        for connections in [1, 8, 64] {
            load(
                &server,
                &format!("a photograph{batching}"),
                &image,
                connections,
                seconds,
                None,
            );
        }
    }
}
