//! `ernie-vil serve`, the real process over real connections.
#![cfg(all(feature = "serve", feature = "scenes", unix))]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ernie_vil::index::EmbeddingIndex;
use ernie_vil::pairs::PairReader;
use ernie_vil::vectors::read_safetensors;
use serde_json::{Value, json};
use tempfile::TempDir;

const PAIRS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/scenes/test.tsv");
/// The built-in model's embeddings have so many values.
const DIMENSIONS: usize = 128;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ernie-vil"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ERNIE_VIL_")) {
        command.env_remove(name);
    }
    // Away from the repository, so that no demo page is found that was built there.
    command
        .args(args)
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null());
    command
}

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(args: &[&str]) -> Self {
        let server = Self::spawn(command(
            &[&["serve", "--listen", "127.0.0.1:0", "--quiet"], args].concat(),
        ));
        server.wait_until_ready();
        server
    }

    fn spawn(mut command: Command) -> Self {
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

    fn wait_until_ready(&self) {
        let start = Instant::now();
        while self.get("/ready").status != 200 {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "not ready after a minute"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        request(&self.address, method, path, headers, body).unwrap()
    }

    fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    fn post(&self, path: &str, body: &Value) -> Reply {
        self.json("POST", path, body.to_string().as_bytes())
    }

    fn json(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        self.send(method, path, &[("content-type", "application/json")], body)
    }

    fn metric(&self, line: &str) -> f64 {
        let text = self.get("/metrics").text();
        let found = text
            .lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        found.map_or(0.0, |value| value.parse().unwrap())
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Reply {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{} {}", self.status, self.text()))
    }

    #[track_caller]
    fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.value()
    }

    /// The error's code and message, whose form is OpenAI's.
    #[track_caller]
    fn error(&self, status: u16) -> (String, String) {
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

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// One request on a connection of its own.
fn request(
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

fn read_reply(stream: &mut TcpStream) -> std::io::Result<Reply> {
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

/// The first captions and images of the built-in model's test.
fn pairs(count: usize) -> Vec<(String, String)> {
    let file = BufReader::new(fs::File::open(PAIRS).unwrap());
    let pair = |pair: ernie_vil::Result<ernie_vil::pairs::Pair>| {
        let pair = pair.unwrap();
        (pair.caption, String::from_utf8(pair.image).unwrap())
    };
    PairReader::new(file).take(count).map(pair).collect()
}

fn floats(embedding: &Value) -> Vec<f32> {
    match embedding {
        Value::String(text) => {
            let bytes = BASE64_STANDARD.decode(text).unwrap();
            bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect()
        }
        list => list
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_f64().unwrap() as f32)
            .collect(),
    }
}

/// A vector of length 1 that an id stands for.
fn vector(seed: usize) -> Vec<f32> {
    let mut values: Vec<f32> = (0..DIMENSIONS)
        .map(|i| (((seed * 31 + i * 17) % 97) as f32) - 48.0)
        .collect();
    ernie_vil::vectors::normalise(&mut values).unwrap();
    values
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn vectors_are_those_of_embed_to_the_bit_however_they_are_batched() {
    const ROWS: usize = 48;
    let folder = TempDir::new().unwrap();
    let (input, output) = (
        folder.path().join("in.tsv"),
        folder.path().join("out.safetensors"),
    );
    let all = fs::read_to_string(PAIRS).unwrap();
    fs::write(
        &input,
        all.lines()
            .take(ROWS)
            .map(|line| format!("{line}\n"))
            .collect::<String>(),
    )
    .unwrap();
    let run = command(&[
        "embed",
        "--input",
        text(&input),
        "--output",
        text(&output),
        "--quiet",
    ])
    .output()
    .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let expected = read_safetensors(&fs::read(&output).unwrap()).unwrap();
    let (texts, images) = (expected.text.unwrap(), expected.image.unwrap());
    let pairs = pairs(ROWS);

    let server = Server::start(&["--max-wait", "20", "--image-batch", "5"]);
    // All in one request, mixed, in order.
    let input: Vec<Value> = pairs
        .iter()
        .enumerate()
        .flat_map(|(i, (caption, image))| match i % 2 {
            0 => [json!(caption), json!({ "image": image })],
            _ => [
                json!({ "text": caption }),
                json!(format!("data:image/png;base64,{image}")),
            ],
        })
        .collect();
    for format in ["float", "base64"] {
        let reply = server
            .post(
                "/v1/embeddings",
                &json!({"input": input, "encoding_format": format}),
            )
            .ok();
        assert_eq!(reply["data"].as_array().unwrap().len(), 2 * ROWS);
        for i in 0..ROWS {
            let [caption, image] = [2 * i, 2 * i + 1].map(|at| {
                assert_eq!(reply["data"][at]["index"], at);
                floats(&reply["data"][at]["embedding"])
            });
            assert_eq!(caption, texts.row(i), "{format}, caption {i}");
            assert_eq!(image, images.row(i), "{format}, image {i}");
        }
    }
    // Each alone, many at once.
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some((caption, image)) = pairs.get(i) else {
                        break;
                    };
                    let caption = server.post("/v1/embeddings", &json!({ "input": caption })).ok();
                    assert_eq!(floats(&caption["data"][0]["embedding"]), texts.row(i));
                    let image = server
                        .post("/v1/embeddings", &json!({"input": {"image": image}}))
                        .ok();
                    assert_eq!(floats(&image["data"][0]["embedding"]), images.row(i));
                }
            });
        }
    });
    // They were computed together, in fewer batches than there were items.
    let (batches, items) = (
        server.metric("ernie_vil_batch_size_count{lane=\"captions\"}"),
        server.metric("ernie_vil_batch_size_sum{lane=\"captions\"}"),
    );
    assert!(
        items == 3.0 * ROWS as f64 && batches < items,
        "{items} captions in {batches} batches"
    );
}

/// Checks a value against a schema of the document, as far as these schemas go.
fn check(document: &Value, schema: &Value, value: &Value, path: &str) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap();
        return check(document, &document["components"]["schemas"][name], value, path);
    }
    if value.is_null() && schema["nullable"] == true {
        return Ok(());
    }
    if let Some(one_of) = schema["oneOf"].as_array() {
        let fits = one_of
            .iter()
            .filter(|schema| check(document, schema, value, path).is_ok())
            .count();
        return if fits == 1 {
            Ok(())
        } else {
            Err(format!("{path}: fits {fits} of {}", one_of.len()))
        };
    }
    let is = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        other => panic!("{path}: a schema of type {other:?}"),
    };
    if !is
        || schema["enum"]
            .as_array()
            .is_some_and(|allowed| !allowed.contains(value))
    {
        return Err(format!("{path}: {value}, expected {schema}"));
    }
    for item in value.as_array().into_iter().flatten() {
        check(document, &schema["items"], item, &format!("{path}[]"))?;
    }
    let empty = serde_json::Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    for name in schema["required"].as_array().into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            return Err(format!("{path}: no {name}"));
        }
    }
    for (name, inner) in value.as_object().into_iter().flatten() {
        // What is answered is documented to the last field.
        match properties.get(name) {
            Some(schema) => check(document, schema, inner, &format!("{path}.{name}"))?,
            None if properties.is_empty() => {}
            None => return Err(format!("{path}: a field {name} that is not in the document")),
        }
    }
    Ok(())
}

#[test]
fn every_endpoint_answers_as_the_document_says() {
    let server = Server::start(&[]);
    let document = server.get("/openapi.json").ok();
    let (caption, image) = pairs(1).remove(0);
    let bodies: HashMap<&str, Value> = HashMap::from([
        (
            "embed",
            json!({"input": [caption, {"image": image}], "dimensions": DIMENSIONS, "model": "scenes"}),
        ),
        (
            "add",
            json!({"items": [{"id": "a", "image": image}, {"id": "b", "text": "一条狗"}, {"id": "c", "embedding": vector(1)}]}),
        ),
        ("search", json!({"input": [caption, {"image": image}], "k": 2})),
        (
            "classify",
            json!({"input": {"image": image}, "labels": [caption, "一条狗"], "ensemble": true}),
        ),
        ("remove", json!({"ids": ["a", "nobody"]})),
    ]);
    let mut checked = 0;
    // Adding comes first, so that there is something to find and to remove.
    for adding in [true, false] {
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap();
                if adding != (id == "add") {
                    continue;
                }
                let path = &path.replace("{model}", "scenes");
                let body = bodies.get(id).cloned().unwrap_or_default();
                let reply = match operation.get("requestBody") {
                    None => server.send(&method.to_uppercase(), path, &[], b""),
                    Some(request) => {
                        let schema = &request["content"]["application/json"]["schema"];
                        check(&document, schema, &body, id).unwrap();
                        server.json(&method.to_uppercase(), path, body.to_string().as_bytes())
                    }
                };
                assert_eq!(reply.status, 200, "{id}: {}", reply.text());
                let content = operation["responses"]["200"]["content"].as_object().unwrap();
                let (kind, content) = content.iter().next().unwrap();
                assert!(reply.header("content-type").starts_with(kind), "{id}");
                if kind == "application/json" && id != "openapi" {
                    check(&document, &content["schema"], &reply.value(), id).unwrap();
                }
                assert!(!reply.header("x-request-id").is_empty());
                checked += 1;
                // And no other method.
                for other in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
                    if operations.get(other.to_lowercase()).is_none() {
                        let refused = server.send(other, path, &[], b"");
                        assert_eq!(refused.error(405).0, "method_not_allowed", "{other} {path}");
                    }
                }
            }
        }
    }
    assert_eq!(checked, bodies.len() + 9);
    let info = server.get("/info");
    assert_eq!(
        info.header("x-model-fingerprint"),
        info.ok()["fingerprint"].as_str().unwrap()
    );
    assert_eq!(
        (&info.value()["device"], &info.value()["adapter"]),
        (&json!("cpu"), &Value::Null)
    );
    // Nobody takes the built-in model for ERNIE-ViL's.
    assert!(info.header("x-model-note").contains("not ERNIE-ViL's weights"));
    assert!(
        info.value()["note"]
            .as_str()
            .unwrap()
            .contains("not ERNIE-ViL's weights")
    );
}

#[test]
fn the_device_is_the_one_that_was_chosen() {
    let info = Server::start(&["--device", "auto"]).get("/info").ok();
    match info["device"].as_str().unwrap() {
        "cpu" => assert_eq!(info["adapter"], Value::Null),
        "wgpu" => assert!(!info["adapter"].as_str().unwrap().is_empty()),
        other => panic!("{other}, expected cpu or wgpu"),
    }
}

/// Both take batches from the queue, and it cannot be told from the vectors which did.
#[test]
fn several_devices_answer_as_one() {
    let server = Server::start(&[
        "--device",
        "cpu,flex",
        "--caption-batch",
        "2",
        "--image-batch",
        "1",
    ]);
    assert_eq!(server.get("/info").ok()["device"], "cpu,flex");
    let pairs = pairs(12);
    let items: Vec<Value> = (pairs.iter())
        .flat_map(|(caption, image)| [json!({"text": caption}), json!({"image": image})])
        .collect();
    let embed = |server: &Server| -> Vec<Vec<f32>> {
        let reply = server.post("/v1/embeddings", &json!({"input": items})).ok();
        let data = reply["data"].as_array().unwrap().iter();
        data.map(|item| floats(&item["embedding"])).collect()
    };
    let expected = embed(&Server::start(&[]));
    assert_eq!(expected.len(), 24);
    for _ in 0..3 {
        for (found, expected) in embed(&server).iter().zip(&expected) {
            let cosine: f32 = found.iter().zip(expected).map(|(a, b)| a * b).sum();
            assert!(cosine > 0.99999, "{cosine}");
        }
    }
}

/// Labels come back for every input: what is small as a request can be large as an answer.
#[test]
fn answers_have_a_limit() {
    let server = Server::start(&[]);
    let labels: Vec<String> = (0..120).map(|i| format!("{i} {}", "a".repeat(60_000))).collect();
    let mut body = json!({"input": vec!["b"; 120], "labels": labels, "k": 100});
    let reply = server.post("/v1/classify", &body);
    let (code, message) = reply.error(400);
    assert_eq!(code, "answer_too_long");
    assert!(message.contains("expected at most 33554432"), "{message}");
    body["k"] = json!(1);
    assert_eq!(
        server.post("/v1/classify", &body).ok()["data"]
            .as_array()
            .unwrap()
            .len(),
        120
    );
}

#[test]
fn texts_have_a_limit() {
    let server = Server::start(&["--max-text", "2KB"]);
    assert_eq!(server.get("/info").ok()["limits"]["text_bytes"], 2048);
    let (fits, long) = ("a".repeat(2048), "a".repeat(2049));
    server.post("/v1/embeddings", &json!({"input": ["a", fits]})).ok();
    server
        .post(
            "/v1/classify",
            &json!({"input": "a", "labels": ["b", "c"], "template": format!("{}{{}}", &fits[1..])}),
        )
        .ok();
    for (path, body, param) in [
        ("/v1/embeddings", json!({"input": ["a", long]}), "input[1]"),
        (
            "/v1/embeddings",
            json!({"input": {"text": long}}),
            "input[0].text",
        ),
        ("/v1/search", json!({"input": long}), "input[0]"),
        (
            "/v1/index",
            json!({"items": [{"id": "a", "text": "a"}, {"id": "b", "text": long}]}),
            "items[1].text",
        ),
        (
            "/v1/classify",
            json!({"input": "a", "labels": ["b", long]}),
            "labels[1]",
        ),
        (
            "/v1/classify",
            json!({"input": "a", "labels": ["b", "cd"], "template": format!("{}{{}}", &fits[1..])}),
            "labels[1]",
        ),
    ] {
        let reply = server.post(path, &body);
        let (code, message) = reply.error(400);
        assert_eq!(
            (code.as_str(), &reply.value()["error"]["param"]),
            ("text_too_long", &json!(param))
        );
        assert!(
            message.starts_with(&format!("{param}: 2049 bytes"))
                && message.ends_with("expected at most 2048 (--max-text)"),
            "{message}"
        );
    }
    // By default, what no caption has.
    drop(server);
    let server = Server::start(&[]);
    let text = "一只猫".repeat(10_000);
    let (code, message) = server.post("/v1/embeddings", &json!({"input": text})).error(400);
    assert_eq!(code, "text_too_long");
    assert_eq!(
        message,
        "input[0]: 90000 bytes, expected at most 65536 (--max-text)"
    );
}

#[test]
fn errors_say_which_item_and_what_was_expected() {
    let server = Server::start(&[
        "--max-items",
        "3",
        "--max-body",
        "64KB",
        "--max-pixels",
        "1000000",
        "--max-image-memory",
        "64KB",
    ]);
    let image = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    let cases = [
        (
            json!({"input": ["a", {"image": image(b"P6 60000 60000 255 ")}]}),
            400,
            "invalid_image",
            "input[1]: image: PNM of 60000 x 60000 pixels, expected at most 1000000, which --max-pixels raises",
        ),
        (
            json!({"input": {"image": image(b"P6 500 500 255 ")}}),
            400,
            "invalid_image",
            "input[0]: image: PNM of 500 x 500 pixels, which takes 977 kB of memory to decode, expected at most 64 kB, which \
             --max-image-memory raises",
        ),
        (
            json!({"input": {"image": image(b"\xff\xd8\xff\xe0cut")}}),
            400,
            "invalid_image",
            "input[0]: image: ",
        ),
        (
            json!({"input": {"image": image(b"GIF89a")}}),
            400,
            "invalid_image",
            "input[0]: image: a GIF image",
        ),
        (
            json!({"input": {"image": "猫"}}),
            400,
            "invalid_image",
            "input[0]: base64: byte 0",
        ),
        (
            json!({"input": "https://example.org/a.jpg"}),
            400,
            "remote_image",
            "input[0]: \"https://example.org/a.jpg\" is an address",
        ),
        (
            json!({"input": {"image": "file:///etc/passwd"}}),
            400,
            "remote_image",
            "input[0].image: ",
        ),
        (
            json!({"input": ["a", "b", "c", "d"]}),
            400,
            "too_many_items",
            "input: 4 items, expected at most 3",
        ),
        (
            json!({"input": "a", "model": "clip"}),
            404,
            "model_not_found",
            "model: this server has \"scenes\"",
        ),
        (
            json!({"input": "a", "dimensions": 64}),
            400,
            "invalid_value",
            "dimensions: 64, but input[0] becomes 128 values",
        ),
        (
            json!({"input": [[1, 2]]}),
            400,
            "invalid_value",
            "input: token ids",
        ),
    ];
    for (body, status, code, start) in cases {
        let reply = server.post("/v1/embeddings", &body);
        let (found, message) = reply.error(status);
        assert_eq!(found, code, "{message}");
        assert!(message.starts_with(start), "{message}");
        let param = start.split([':', ' ']).next().unwrap();
        assert!(
            reply.value()["error"]["param"]
                .as_str()
                .unwrap()
                .starts_with(param),
            "{message}"
        );
    }

    // Bodies that are no JSON, or that are made to hurt.
    let deep = format!("{{\"input\":{}", "[".repeat(60_000));
    let many = format!("{{\"input\":[{}0]}}", "0,".repeat(30_000));
    for body in [
        &b"{\"input\": NaN}"[..],
        b"{\"input\": \"\xff\"}",
        b"\0",
        b"{\"input\":\"a\"} {}",
        deep.as_bytes(),
        many.as_bytes(),
    ] {
        let (code, message) = server.json("POST", "/v1/embeddings", body).error(400);
        assert!(
            ["invalid_json", "too_many_values"].contains(&&*code),
            "{code}: {message}"
        );
    }
    let huge = format!("{{\"input\": {{\"image\": \"{}\"}}}}", "A".repeat(1 << 20));
    assert_eq!(
        server
            .json("POST", "/v1/embeddings", huge.as_bytes())
            .error(413)
            .0,
        "body_too_large"
    );
    assert_eq!(
        server.send("POST", "/v1/embeddings", &[], b"{}").error(415).0,
        "unsupported_media_type"
    );
    let form = [("content-type", "text/plain")];
    assert_eq!(
        server.send("POST", "/v1/index", &form, b"{}").error(415).0,
        "unsupported_media_type"
    );
    assert_eq!(server.get("/v1/nothing").error(404).0, "not_found");

    // The index's own.
    let index = |method: &str, body: Value| server.json(method, "/v1/index", body.to_string().as_bytes());
    let (code, message) = index("POST", json!({"items": [{"text": "a"}]})).error(400);
    assert_eq!(
        (code.as_str(), message.as_str()),
        (
            "invalid_value",
            "items[0].id: missing, expected a string that is not empty"
        )
    );
    let (_, message) = index("POST", json!({"items": [{"id": "a", "embedding": [1, 2]}]})).error(400);
    assert_eq!(message, "items[0]: an embedding of 2 values, expected 128");
    let (_, message) = index(
        "POST",
        json!({"items": [{"id": "a", "embedding": vec![0; DIMENSIONS]}]}),
    )
    .error(400);
    assert!(
        message.starts_with("items: index: id 'a': a vector of length 0"),
        "{message}"
    );
    let id = "x".repeat(50_000);
    let (_, message) = index(
        "POST",
        json!({"items": [{"id": "ok", "text": "a"}, {"id": [id], "text": "a"}]}),
    )
    .error(400);
    assert_eq!(
        message,
        "items[1].id: a list, expected a string that is not empty"
    );
    assert_eq!(
        server.post("/v1/classify", &json!({"input": "a"})).error(400).0,
        "no_labels"
    );
    assert_eq!(server.get("/v1/index").ok()["size"], 0);
    // After all of it the server does what it is for.
    server.post("/v1/embeddings", &json!({"input": "一只猫"})).ok();
    assert_eq!(
        server.metric("ernie_vil_rejections_total{code=\"remote_image\"}"),
        2.0
    );
}

#[test]
fn the_index_is_searched_and_classified_over_and_outlives_the_server() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("kept/index");
    let args = ["--index", text(&file)];
    let mut server = Server::start(&args);
    let pairs = pairs(64);
    let items: Vec<Value> = pairs
        .iter()
        .enumerate()
        .map(|(i, (_, image))| json!({"id": format!("{i}"), "image": image}))
        .collect();
    let change = server.post("/v1/index", &json!({ "items": items })).ok();
    assert_eq!(
        (&change["added"], &change["replaced"], &change["persisted"]),
        (&json!(64), &json!(0), &json!(true))
    );
    let captions: Vec<&String> = pairs.iter().map(|(caption, _)| caption).collect();
    let search = |server: &Server| {
        server
            .post("/v1/search", &json!({"input": captions, "k": 3}))
            .ok()["data"]
            .clone()
    };
    let found = search(&server);
    let right = (0..64)
        .filter(|i| found[i]["hits"][0]["id"] == format!("{i}"))
        .count();
    assert!(right > 55, "{right} of 64");
    // Another process cannot use the same index.
    let second = command(&["serve", "--listen", "127.0.0.1:0", "--index", text(&file)])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("is used by another process"));

    let classified = server
        .post("/v1/classify", &json!({"input": pairs[7].0, "k": 64}))
        .ok();
    let labels = classified["data"][0]["labels"].as_array().unwrap();
    assert_eq!(labels[0]["label"], "7");
    let sum: f64 = labels
        .iter()
        .map(|label| label["probability"].as_f64().unwrap())
        .sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    let own = json!({"input": {"image": pairs[3].1}, "labels": [pairs[2].0, pairs[3].0], "k": 1});
    let label = &server.post("/v1/classify", &own).ok()["data"][0]["labels"][0]["label"].clone();
    assert_eq!(label, &json!(pairs[3].0));

    // A label's vector is the mean over its templates, and what the scores are scaled by is the model's.
    let info = server.get("/info").ok();
    let scale = info["logit_scale"].as_f64().unwrap();
    assert!((scale - 2.65926f64.exp()).abs() < 1e-5, "{scale}");
    let labels = ["一只猫", "红色的圆", "雪人"];
    let classify = |more: Value| {
        let mut body = json!({"input": {"image": pairs[3].1}, "labels": labels});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        server.post("/v1/classify", &body).ok()["data"][0]["labels"].clone()
    };
    let plain = classify(json!({}));
    assert_eq!(classify(json!({"template": "{}"})), plain);
    let number = |label: &Value, key: &str| label[key].as_f64().unwrap();
    let expected = ((number(&plain[0], "score") - number(&plain[1], "score")) * scale).exp();
    let ratio = number(&plain[0], "probability") / number(&plain[1], "probability");
    assert!((ratio / expected - 1.0).abs() < 1e-3, "{plain}");
    let ensemble = classify(json!({"ensemble": true}));
    assert_eq!(classify(json!({"templates": info["templates"]})), ensemble);
    let two = classify(json!({"templates": ["{}", "一张{}的照片"]}));
    let embed = |text: String| -> Vec<f64> {
        let reply = server.post("/v1/embeddings", &json!({ "input": text })).ok();
        let vector = reply["data"][0]["embedding"].as_array().unwrap();
        vector.iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let image = server
        .post("/v1/embeddings", &json!({"input": {"image": pairs[3].1}}))
        .ok();
    let label = two[0]["label"].as_str().unwrap();
    let (a, b) = (embed(label.into()), embed(format!("一张{label}的照片")));
    let mean: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    let length = mean.iter().map(|value| value * value).sum::<f64>().sqrt();
    let values = image["data"][0]["embedding"].as_array().unwrap();
    let score: f64 = mean
        .iter()
        .zip(values)
        .map(|(a, b)| a / length * b.as_f64().unwrap())
        .sum();
    assert!((score - number(&two[0], "score")).abs() < 1e-5, "{score}, {two}");
    for (more, expected) in [
        (
            json!({"template": "照片"}),
            "template: \"照片\" has no {} where the label goes",
        ),
        (json!({"templates": []}), "templates: "),
        (json!({"templates": ["{}", 1]}), "templates[1]: "),
        (json!({"ensemble": 1}), "ensemble: "),
        (
            json!({"ensemble": true, "template": "{}"}),
            "expected `template`, `templates` or `ensemble` alone",
        ),
        (
            json!({"ensemble": true, "labels": null}),
            "ensemble: given without texts as labels",
        ),
    ] {
        let mut body = json!({"input": "a", "labels": labels});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let (_, message) = server.post("/v1/classify", &body).error(400);
        assert!(message.contains(expected), "{message}");
    }

    let remove = server
        .json(
            "DELETE",
            "/v1/index",
            json!({"ids": ["1", "2", "none"]}).to_string().as_bytes(),
        )
        .ok();
    assert_eq!((&remove["removed"], &remove["size"]), (&json!(2), &json!(62)));
    let again = server
        .post(
            "/v1/index",
            &json!({"items": [{"id": "2", "text": "一条狗"}, {"id": "3", "text": "一条狗"}]}),
        )
        .ok();
    assert_eq!((&again["added"], &again["replaced"]), (&json!(1), &json!(1)));
    let before = search(&server);

    // It was stopped, and so its log is in the file.
    server.signal("TERM");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    let saved = EmbeddingIndex::load(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(saved.len(), 63);
    assert_eq!(
        fs::metadata(folder.path().join("kept/index.log")).unwrap().len(),
        0
    );
    assert_eq!(search(&Server::start(&args)), before);
    // Of another model it is refused.
    let output = command(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--index",
        text(&file),
        "--index-type",
        "int8",
    ])
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("keeps its vectors as f32"));
}

/// What is on the disk: the file, and the log on top of it.
fn on_disk(file: &Path, fingerprint: &str) -> EmbeddingIndex {
    let mut index = match fs::read(file) {
        Ok(bytes) => EmbeddingIndex::load(&bytes).unwrap(),
        Err(_) => EmbeddingIndex::new(DIMENSIONS, fingerprint),
    };
    let log = fs::read(file.with_extension("log")).unwrap();
    index.replay(&log).unwrap();
    index
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    const ROUNDS: usize = 8;
    const CLIENTS: usize = 3;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("index");
    // What every id should be: a vector, or removed.
    let expected: Mutex<BTreeMap<String, Option<Vec<f32>>>> = Mutex::default();
    let (mut fingerprint, mut folded) = (String::new(), 0);
    for round in 0..ROUNDS {
        let mut server = Server::start(&["--index", text(&file)]);
        fingerprint = server.get("/info").ok()["fingerprint"]
            .as_str()
            .unwrap()
            .to_owned();
        let size = server.get("/v1/index").ok()["size"].as_u64().unwrap() as usize;
        let known = expected.lock().unwrap().values().flatten().count();
        assert!(size >= known, "{size} embeddings, {known} were acknowledged");
        let (address, killed) = (server.address.clone(), AtomicBool::new(false));
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (address, expected, killed) = (&address, &expected, &killed);
                scope.spawn(move || {
                    for number in 0.. {
                        let name = |i: usize| format!("{round}-{client}-{number}-{i}");
                        let seed = |i: usize| (round * 7 + client * 5 + number * 3 + i) % 1000;
                        let items: Vec<Value> = (0..200)
                            .map(|i| json!({"id": name(i), "embedding": vector(seed(i))}))
                            .collect();
                        let json = [("content-type", "application/json")];
                        let body = json!({ "items": items }).to_string();
                        match request(address, "POST", "/v1/index", &json, body.as_bytes()) {
                            Ok(reply) if reply.status == 200 => {
                                let mut expected = expected.lock().unwrap();
                                expected.extend((0..200).map(|i| (name(i), Some(vector(seed(i))))));
                            }
                            other => {
                                assert!(killed.load(Ordering::SeqCst), "{other:?}");
                                return;
                            }
                        }
                        // Whether a removal that is not acknowledged was made is open, so nothing is expected of it then.
                        expected.lock().unwrap().remove(&name(0));
                        let body = json!({"ids": [name(0)]}).to_string();
                        match request(address, "DELETE", "/v1/index", &json, body.as_bytes()) {
                            Ok(reply) if reply.status == 200 => {
                                expected.lock().unwrap().insert(name(0), None);
                            }
                            _ => return,
                        }
                    }
                });
            }
            thread::sleep(Duration::from_millis(250 + 170 * round as u64));
            killed.store(true, Ordering::SeqCst);
            server.child.kill().unwrap();
            server.child.wait().unwrap();
        });
        let index = on_disk(&file, &fingerprint);
        for (id, vector) in expected.lock().unwrap().iter() {
            let found = index.get(id);
            assert_eq!(found.as_deref(), vector.as_deref(), "{id} after round {round}");
        }
        folded += usize::from(file.exists());
    }
    let acknowledged = expected.lock().unwrap().len();
    assert!(
        acknowledged > 1_000,
        "only {acknowledged} changes were acknowledged"
    );
    assert!(
        folded > 0,
        "the log was never folded into the file, of {acknowledged} changes"
    );

    // A record that was begun is cut off, and the rest is there.
    let log = file.with_extension("log");
    let mut bytes = fs::read(&log).unwrap();
    let whole = on_disk(&file, &fingerprint).len();
    bytes.extend_from_slice(&[40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
    fs::write(&log, bytes).unwrap();
    let server = Server::start(&["--index", text(&file)]);
    assert_eq!(server.get("/v1/index").ok()["size"], whole);
}

#[test]
fn searches_and_changes_at_once_do_not_wait_for_each_other() {
    // A search that takes another one while it waits would stand behind a change that stands behind the first.
    let server = Server::start(&["--threads", "2"]);
    let items = |from: usize| -> Value {
        let item = |i: usize| json!({"id": i.to_string(), "embedding": vector(i)});
        json!({"items": (from..from + 250).map(item).collect::<Vec<_>>()})
    };
    for from in (0..5_000).step_by(250) {
        server.post("/v1/index", &items(from)).ok();
    }
    let queries: Vec<Value> = (0..200).map(|i| json!({"embedding": vector(i)})).collect();
    let search = json!({"input": queries, "k": 1});
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let searching: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..5 {
                        server.post("/v1/search", &search).ok();
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                server.post("/v1/index", &items(0)).ok();
                assert_eq!(server.get("/v1/index").ok()["size"], 5_000);
            }
        });
        // A request that is not answered within a minute fails the test.
        let ended: Vec<_> = searching.into_iter().map(|thread| thread.join()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
}

#[test]
fn a_full_disk_changes_nothing_and_is_said() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("index");
    std::os::unix::fs::symlink("/dev/full", folder.path().join("index.log")).unwrap();
    let server = Server::start(&["--index", text(&file)]);
    let items = json!({"items": [{"id": "a", "text": "一只猫"}]});
    let (code, message) = server.post("/v1/index", &items).error(507);
    assert_eq!(code, "index_not_written");
    assert!(
        message.contains("nothing was changed") && message.contains("No space left"),
        "{message}"
    );
    assert_eq!(server.get("/v1/index").ok()["size"], 0);
    assert_eq!(
        server.post("/v1/search", &json!({"input": "猫"})).ok()["data"][0]["hits"],
        json!([])
    );

    let server = Server::start(&["--max-index", "2"]);
    let add = |ids: &[&str]| {
        let items: Vec<Value> = ids.iter().map(|id| json!({"id": id, "text": id})).collect();
        server.post("/v1/index", &json!({ "items": items }))
    };
    assert_eq!(add(&["a", "b", "c"]).error(507).0, "index_full");
    add(&["a", "b"]).ok();
    add(&["b"]).ok();
    assert_eq!(add(&["c"]).error(507).0, "index_full");
}

#[test]
fn a_full_queue_refuses_and_clients_that_left_cost_nothing() {
    let server = Server::start(&["--queue", "64", "--max-items", "64", "--caption-batch", "1"]);
    let body = json!({"input": vec!["雪地里的红色汽车停在一座小房子的旁边"; 64]}).to_string();
    let (refused, served) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                for _ in 0..4 {
                    let reply = server.json("POST", "/v1/embeddings", body.as_bytes());
                    if reply.status == 429 {
                        assert_eq!(reply.error(429).0, "busy");
                        assert!(reply.header("retry-after").parse::<u64>().unwrap() >= 1);
                        refused.fetch_add(1, Ordering::Relaxed);
                    } else {
                        reply.ok();
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert!(refused.into_inner() > 0 && served.into_inner() > 0);

    let gone = "ernie_vil_abandoned_total{lane=\"captions\"}";
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let start = Instant::now();
    while server.metric(gone) == 0.0 {
        assert!(start.elapsed() < Duration::from_secs(30), "no work was dropped");
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(2));
        stream.shutdown(Shutdown::Both).unwrap();
    }
    // And their places are free again.
    let start = Instant::now();
    while server.json("POST", "/v1/embeddings", body.as_bytes()).status != 200 {
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn slow_clients_are_let_go() {
    let server = Server::start(&["--read-timeout", "1"]);
    let connect = || {
        let stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    };
    // A body that never ends.
    let mut body = connect();
    body.write_all(b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{").unwrap();
    // A head that never ends, a line now and then, and one that says nothing at all.
    let (mut head, mut silent) = (connect(), connect());
    head.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let _ = head.write_all(b"x: y\r\n");
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(read_reply(&mut body).unwrap().error(408).0, "body_timeout");
    for stream in [&mut head, &mut silent] {
        let mut rest = Vec::new();
        // Closed, be it with an answer or without.
        let _ = stream.read_to_end(&mut rest);
        assert!(!rest.starts_with(b"HTTP/1.1 200"));
    }
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    server.post("/v1/embeddings", &json!({"input": "一只猫"})).ok();
    let start = Instant::now();
    while server.metric("ernie_vil_connections") > 1.0 {
        assert!(start.elapsed() < Duration::from_secs(10), "connections are left");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn bodies_share_a_bounded_memory() {
    let server = Server::start(&[
        "--max-buffered",
        "256KB",
        "--max-body",
        "200KB",
        "--max-text",
        "200KB",
        "--read-timeout",
        "30",
    ]);
    let body = |size: usize| {
        let mut body = String::from("{\"input\": \"");
        body.push_str(&"a".repeat(size - 13));
        body.push_str("\"}");
        body
    };
    // One that holds most of it and does not end.
    let mut held = TcpStream::connect(&server.address).unwrap();
    held.write_all(b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 200000\r\n\r\n").unwrap();
    let whole = body(200_000);
    held.write_all(&whole.as_bytes()[..190_000]).unwrap();
    let start = Instant::now();
    while server.metric("ernie_vil_buffered_bytes") < 180_000.0 {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    let reply = server.json("POST", "/v1/embeddings", body(100_000).as_bytes());
    assert_eq!(reply.error(429).0, "busy");
    server.post("/v1/embeddings", &json!({"input": "一只猫"})).ok();
    held.write_all(&whole.as_bytes()[190_000..]).unwrap();
    assert_eq!(read_reply(&mut held).unwrap().status, 200);
    assert_eq!(
        server
            .json("POST", "/v1/embeddings", body(100_000).as_bytes())
            .status,
        200
    );
    let start = Instant::now();
    while server.metric("ernie_vil_buffered_bytes") > 0.0 {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}

/// A black PNG of one byte a pixel, which is much smaller than its pixels.
fn black(side: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side, side);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&vec![0; (side * side) as usize]).unwrap();
    writer.finish().unwrap();
    bytes
}

#[test]
fn a_body_counts_as_long_as_something_is_made_of_it() {
    let server = Server::start(&["--threads", "1", "--max-pixels", "300000000"]);
    let image = BASE64_STANDARD.encode(black(16_000));
    let body = json!({"input": {"image": image}}).to_string();
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let decoded = "ernie_vil_decode_seconds_count";
    assert!(server.metric(decoded) == 0.0);
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let start = Instant::now();
    while server.metric("ernie_vil_buffered_bytes") < body.len() as f64 {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    // Time enough to be parsed, and not to be decoded.
    thread::sleep(Duration::from_millis(50));
    stream.shutdown(Shutdown::Both).unwrap();
    let mut seen = 0;
    loop {
        // In this order: it may end in between.
        let buffered = server.metric("ernie_vil_buffered_bytes");
        if server.metric(decoded) > 0.0 {
            break;
        }
        assert!(
            buffered >= body.len() as f64,
            "{buffered} bytes while it is decoded"
        );
        seen += 1;
        assert!(start.elapsed() < Duration::from_secs(60), "it is not decoded");
    }
    assert!(seen > 5, "{seen}");
    let start = Instant::now();
    while server.metric("ernie_vil_buffered_bytes") > 0.0 {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}

/// The processor time of a process's threads whose name begins so, in the system's ticks.
#[cfg(target_os = "linux")]
fn ticks(pid: u32, name: &str) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let time = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        let (before, after) = stat.rsplit_once(") ")?;
        let is_it = before.split_once('(')?.1.starts_with(name);
        // In the program, and not in the system for it.
        is_it.then_some(after.split(' ').nth(11)?.parse::<u64>().ok()?)
    };
    threads.filter_map(|thread| time(thread.ok()?)).sum()
}

#[cfg(target_os = "linux")]
#[test]
fn long_answers_are_put_together_beside_the_threads_that_serve() {
    let server = Server::start(&["--threads", "2", "--timeout", "120"]);
    let items: Vec<Value> = (0..1000)
        .map(|i| json!({"id": i.to_string(), "embedding": vector(i)}))
        .collect();
    for items in items.chunks(250) {
        server.post("/v1/index", &json!({ "items": items })).ok();
    }
    let queries: Vec<Value> = (0..250).map(|i| json!({"embedding": vector(i)})).collect();
    let body = json!({"input": queries, "k": 1000});
    for path in ["/v1/search", "/v1/classify"] {
        let names = ["tokio-rt-worker", "texts", "search"];
        let before = names.map(|name| ticks(server.child.id(), name));
        for _ in 0..6 {
            let reply = server.post(path, &body);
            assert!(reply.status == 200 && reply.body.len() > 10_000_000);
        }
        let after = names.map(|name| ticks(server.child.id(), name));
        let [serving, texts, search] = [0, 1, 2].map(|i| after[i] - before[i]);
        let pool = texts + search;
        assert!(
            pool > 2 * serving,
            "{path}: {serving} ticks of {pool} on the threads that serve"
        );
    }
}

/// A server that loads its model until there is a file `go` in the folder: it waits when it opens the
/// configuration. None but on Linux, where Rust programs are linked by a C compiler.
fn loading() -> Option<(Server, TempDir)> {
    let folder = TempDir::new().unwrap();
    let [source, shim, go] = ["shim.c", "shim.so", "go"].map(|name| folder.path().join(name));
    let code = r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <fcntl.h>
        #include <stdarg.h>
        #include <stdlib.h>
        #include <string.h>
        #include <unistd.h>
        int open64(const char *path, int flags, ...) {
            va_list more;
            va_start(more, flags);
            int mode = va_arg(more, int);
            va_end(more);
            const char *name = strrchr(path, '/');
            if (name && !strcmp(name, "/config.json"))
                while (access(getenv("GO"), F_OK)) usleep(10000);
            return ((int (*)(const char *, int, ...)) dlsym(RTLD_NEXT, "open64"))(path, flags, mode);
        }
    "#;
    fs::write(&source, code).unwrap();
    fs::write(folder.path().join("config.json"), "no configuration").unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o", text(&shim), text(&source), "-ldl"]);
    if !cfg!(target_os = "linux") {
        eprintln!("skipped, as a library to be loaded first is made for Linux alone");
        return None;
    }
    assert!(compiler.status().unwrap().success());
    let mut serve = command(&["serve", "--listen", "127.0.0.1:0", "--model", text(folder.path())]);
    serve.env("LD_PRELOAD", &shim).env("GO", &go);
    Some((Server::spawn(serve), folder))
}

#[test]
fn it_is_alive_before_it_is_ready() {
    let Some((mut server, folder)) = loading() else {
        return;
    };
    assert_eq!(server.get("/health").text(), "ok\n");
    let ready = server.get("/ready");
    assert_eq!(
        (ready.error(503).0.as_str(), ready.header("retry-after")),
        ("not_ready", "1")
    );
    assert_eq!(
        server.post("/v1/embeddings", &json!({"input": "a"})).error(503).0,
        "not_ready"
    );
    assert_eq!(server.metric("ernie_vil_ready"), 0.0);
    fs::write(folder.path().join("go"), "").unwrap();
    assert_eq!(server.child.wait().unwrap().code(), Some(1));
}

/// Waits until the process ends, a while at most.
fn wait_at_most(child: &mut Child, time: Duration) -> std::process::ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(start.elapsed() < time, "it still runs after {time:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn sigterm_does_not_wait_for_the_model() {
    // Nothing lets loading end.
    let Some((mut server, _folder)) = loading() else {
        return;
    };
    assert_eq!(server.get("/ready").error(503).0, "not_ready");
    server.signal("TERM");
    let status = wait_at_most(&mut server.child, Duration::from_secs(20));
    assert_eq!(status.code(), Some(0));
}

#[test]
fn an_index_that_is_being_opened_outlives_sigterm() {
    const EMBEDDINGS: usize = 4000;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("index");
    let fingerprint;
    {
        let mut server = Server::start(&["--index", text(&file)]);
        fingerprint = server.get("/info").ok()["fingerprint"]
            .as_str()
            .unwrap()
            .to_owned();
        for from in (0..EMBEDDINGS).step_by(250) {
            let item = |i: usize| json!({"id": i.to_string(), "embedding": vector(i)});
            let items: Vec<Value> = (from..from + 250).map(item).collect();
            server.post("/v1/index", &json!({ "items": items })).ok();
        }
        // It stays in the log, at the end of which a record was begun.
        server.child.kill().unwrap();
        server.child.wait().unwrap();
    }
    let log = file.with_extension("log");
    let whole = fs::read(&log).unwrap();
    let mut begun = whole.clone();
    begun.extend_from_slice(&[40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
    for delay in 0..12 {
        fs::write(&log, &begun).unwrap();
        let mut server = Server::spawn(command(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--quiet",
            "--index",
            text(&file),
        ]));
        thread::sleep(Duration::from_millis(10 * delay));
        server.signal("TERM");
        wait_at_most(&mut server.child, Duration::from_secs(20));
        let index = on_disk(&file, &fingerprint);
        assert_eq!(index.len(), EMBEDDINGS, "after {delay}0 ms");
        assert!(index.get("17").is_some_and(|found| found == vector(17)));
        // Where it had come so far the log was folded into the file.
        if fs::read(&log).unwrap().is_empty() {
            fs::remove_file(&file).unwrap();
        }
    }
    // It is what it was for the next one, too.
    fs::write(&log, &begun).unwrap();
    let server = Server::start(&["--index", text(&file)]);
    assert_eq!(server.get("/v1/index").ok()["size"], EMBEDDINGS);
}

#[test]
fn sigterm_finishes_what_was_begun() {
    let mut server = Server::start(&["--caption-batch", "1", "--max-items", "4096", "--queue", "65536"]);
    let body = json!({"input": vec!["雪地里的红色汽车停在一座小房子的旁边"; 4096]}).to_string();
    let address = server.address.clone();
    // On a connection that would be used again, too.
    let mut idle = TcpStream::connect(&address).unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .unwrap();
    let json = [("content-type", "application/json")];
    let answers = thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| request(&address, "POST", "/v1/embeddings", &json, body.as_bytes()).unwrap())
            })
            .collect();
        let start = Instant::now();
        while server.metric("ernie_vil_queue_items{lane=\"captions\"}") < 4000.0 {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "the requests were not seen"
            );
        }
        server.signal("TERM");
        let refused = Instant::now();
        while TcpStream::connect(&address).is_ok() {
            assert!(
                refused.elapsed() < Duration::from_secs(5),
                "still takes connections"
            );
        }
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect::<Vec<_>>()
    });
    for answer in answers {
        assert_eq!(answer.ok()["data"].as_array().unwrap().len(), 4096);
    }
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn keys_origins_and_request_ids() {
    let mut serve = command(&["serve", "--quiet", "--cors-origin", "https://page.example"]);
    serve
        .env("ERNIE_VIL_LISTEN", "127.0.0.1:0")
        .env("ERNIE_VIL_API_KEY", "first,second");
    let server = Server::spawn(serve);
    server.wait_until_ready();
    for path in [
        "/v1/models",
        "/v1/index",
        "/v1/embeddings",
        "/info",
        "/metrics",
        "/v1/nothing",
    ] {
        let refused = server.get(path);
        assert_eq!(refused.error(401).0, "invalid_api_key", "{path}");
        assert_eq!(refused.header("www-authenticate"), "Bearer");
        assert_eq!(
            server
                .send("GET", path, &[("authorization", "Bearer third")], b"")
                .status,
            401
        );
    }
    for key in ["Bearer first", "bearer second"] {
        server
            .send("GET", "/v1/models", &[("authorization", key)], b"")
            .ok();
    }
    for path in ["/health", "/ready", "/openapi.json", "/docs", "/"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let preflight = |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        server.send("OPTIONS", "/v1/embeddings", &headers, b"")
    };
    let allowed = preflight("https://page.example");
    assert_eq!(
        (allowed.status, allowed.header("access-control-allow-origin")),
        (200, "https://page.example")
    );
    assert!(
        allowed
            .header("access-control-allow-headers")
            .contains("authorization")
    );
    assert_eq!(
        preflight("https://other.example").header("access-control-allow-origin"),
        ""
    );
    // A page can read why it was refused.
    let refused = server.send("GET", "/v1/models", &[("origin", "https://page.example")], b"");
    assert_eq!(
        (refused.status, refused.header("access-control-allow-origin")),
        (401, "https://page.example")
    );

    let id = |given: &str| {
        server
            .send("GET", "/health", &[("x-request-id", given)], b"")
            .header("x-request-id")
            .to_owned()
    };
    assert_eq!(id("abc-123"), "abc-123");
    let long = "x".repeat(129);
    for made in [id("two words"), id(&long)] {
        assert!(
            made.len() == 24 && made.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{made}"
        );
    }
    assert_ne!(id(" "), id(" "));
}

#[test]
fn the_log_is_json_where_that_is_asked_for() {
    let mut serve = command(&["serve", "--listen", "127.0.0.1:0", "--log-format", "json"]);
    serve.stderr(Stdio::piped());
    let mut server = Server::spawn(serve);
    server.wait_until_ready();
    server
        .send(
            "POST",
            "/v1/embeddings",
            &[("content-type", "application/json"), ("x-request-id", "mine")],
            b"{}",
        )
        .error(400);
    server.signal("INT");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    let mut log = String::new();
    server
        .child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let line = lines
        .iter()
        .find(|line| line["request_id"] == "mine")
        .expect(&log);
    assert_eq!(
        (&line["status"], &line["path"], &line["error"]),
        (&json!(400), &json!("/v1/embeddings"), &json!("invalid_value"))
    );
}

#[test]
fn files_come_whole_in_parts_and_packed_and_no_others() {
    let folder = TempDir::new().unwrap();
    let (root, models) = (folder.path().join("root"), folder.path().join("models"));
    let write = |path: &str, bytes: &[u8]| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let weights: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
    write("root/index.html", b"<p>page");
    write("root/assets/app-DmlrrWdE.js", b"plain");
    write("root/assets/app-DmlrrWdE.js.br", b"brotli");
    write("root/assets/app-DmlrrWdE.js.gz", b"gzip");
    write("root/.hidden", b"secret");
    write("models/base/text.safetensors", &weights);
    write("models/base/manifest.json", b"{}");
    write("secret.txt", b"secret");
    write("models/.key/secret.txt", b"secret");
    let link = |to: &Path, from: &str| std::os::unix::fs::symlink(to, folder.path().join(from)).unwrap();
    link(&folder.path().join("secret.txt"), "root/leak.txt");
    link(folder.path(), "root/up");
    link(&root.join(".hidden"), "root/shown.txt");
    link(&root.join("index.html"), "root/inside.html");
    let server = Server::start(&["--web-root", text(&root), "--models-dir", text(&models)]);

    let page = server.get("/");
    assert_eq!((page.status, page.text().as_str()), (200, "<p>page"));
    for (name, value) in [
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-embedder-policy", "require-corp"),
        ("cross-origin-resource-policy", "same-origin"),
        ("x-content-type-options", "nosniff"),
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "no-cache"),
    ] {
        assert_eq!(page.header(name), value);
    }
    assert_eq!(server.get("/inside.html").text(), "<p>page");
    let packed = |accept: &str| {
        let reply = server.send(
            "GET",
            "/assets/app-DmlrrWdE.js",
            &[("accept-encoding", accept)],
            b"",
        );
        assert_eq!(reply.header("content-type"), "text/javascript; charset=utf-8");
        assert!(
            reply.header("cache-control").contains("immutable")
                && reply.header("vary").contains("accept-encoding")
        );
        (reply.text(), reply.header("content-encoding").to_owned())
    };
    assert_eq!(packed("gzip, br"), ("brotli".into(), "br".into()));
    assert_eq!(packed("gzip, br;q=0"), ("gzip".into(), "gzip".into()));
    assert_eq!(packed("identity"), ("plain".into(), String::new()));

    let file = "/models/base/text.safetensors";
    let whole = server.get(file);
    assert!(whole.body == weights && whole.header("cache-control").contains("immutable"));
    assert_eq!(
        server.get("/models/base/manifest.json").header("cache-control"),
        "no-cache"
    );
    let etag = whole.header("etag").to_owned();
    assert_eq!(
        server.send("GET", file, &[("if-none-match", &etag)], b"").status,
        304
    );
    let part = |range: &str, tag: &str| server.send("GET", file, &[("range", range), ("if-range", tag)], b"");
    let middle = part("bytes=70000-140000", &etag);
    assert_eq!(
        (middle.status, middle.header("content-range")),
        (206, "bytes 70000-140000/200000")
    );
    assert!(middle.body == weights[70_000..=140_000]);
    assert!(part("bytes=-10", &etag).body == weights[199_990..]);
    // Of another version it is all of this one.
    assert_eq!(
        (
            part("bytes=0-9", "\"old\"").status,
            part("bytes=0-9", "\"old\"").body.len()
        ),
        (200, 200_000)
    );
    let beyond = part("bytes=200000-", &etag);
    assert_eq!(
        (beyond.status, beyond.header("content-range")),
        (416, "bytes */200000")
    );
    let head = server.send("HEAD", file, &[], b"");
    assert_eq!(
        (head.status, head.header("content-length"), head.body.len()),
        (200, "200000", 0)
    );

    for path in [
        "/.hidden",
        "/shown.txt",
        "/leak.txt",
        "/up/secret.txt",
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/assets/..%2f..%2fsecret.txt",
        "/models/../secret.txt",
        "/models/.key/secret.txt",
        "/models/base",
        "/assets",
        "/assets/",
        "/models//base/manifest.json",
        "/%00",
        "/none",
    ] {
        let reply = server.get(path);
        assert_eq!(reply.error(404).0, "not_found", "{path}");
    }
    assert_eq!(
        server.send("POST", "/index.html", &[], b"").error(405).0,
        "method_not_allowed"
    );

    // Without a page it says how to make one.
    let page = Server::start(&[]).get("/");
    assert!(
        page.status == 200 && page.text().contains("cargo xtask demo"),
        "{}",
        page.text()
    );
}

#[test]
fn more_connections_than_there_may_be_wait() {
    const CONNECTIONS: usize = 300;
    let server = Arc::new(Server::start(&["--max-connections", "100"]));
    let idle: Vec<TcpStream> = (0..50)
        .map(|_| TcpStream::connect(&server.address).unwrap())
        .collect();
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|i| {
            let server = server.clone();
            thread::Builder::new()
                .stack_size(1 << 18)
                .spawn(move || {
                    server
                        .post("/v1/embeddings", &json!({"input": format!("第{i}辆红色汽车")}))
                        .ok()
                })
                .unwrap()
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    drop(idle);
}

/// A server under a limit on open files, and what it said until it was stopped.
fn under_limit(limits: &str, args: &str, task: impl FnOnce(&Server)) -> String {
    let binary = env!("CARGO_BIN_EXE_ernie-vil");
    let mut shell = Command::new("bash");
    shell
        .args([
            "-c",
            &format!("{limits} && exec {binary} serve --listen 127.0.0.1:0 {args}"),
        ])
        .current_dir(std::env::temp_dir())
        .stderr(Stdio::piped());
    let mut server = Server::spawn(shell);
    let mut log = server.child.stderr.take().unwrap();
    let reading = thread::spawn(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        text
    });
    server.wait_until_ready();
    task(&server);
    server.signal("TERM");
    server.child.wait().unwrap();
    reading.join().unwrap()
}

#[test]
fn connections_fit_the_limit_on_open_files() {
    let connect = |server: &Server, count: usize| -> Vec<TcpStream> {
        let one = |_| TcpStream::connect(&server.address).unwrap();
        (0..count).map(one).collect()
    };
    // More than there may be: they wait, and no attempt to take one fails.
    let log = under_limit("ulimit -n 300", "--read-timeout 1", |server| {
        let _idle = connect(server, 300);
        server.post("/v1/embeddings", &json!({"input": "一只猫"})).ok();
    });
    assert!(
        log.contains("--max-connections is 4096, but the process may have 300 files open (ulimit -n): at most 172 connections"),
        "{log}"
    );
    assert!(!log.contains("taking a connection"), "{log}");

    // The process raises the limit that it may raise.
    let log = under_limit(
        "ulimit -Sn 100 && ulimit -Hn 1000",
        "--max-connections 300",
        |server| {
            let _idle = connect(server, 250);
            server.post("/v1/embeddings", &json!({"input": "一只猫"})).ok();
            assert_eq!(server.metric("ernie_vil_connections"), 251.0);
        },
    );
    assert!(!log.contains("WARN"), "{log}");
}

#[test]
fn a_body_in_chunks_is_read_and_an_endless_one_is_not() {
    let server = Server::start(&["--max-body", "64KB"]);
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    for chunk in ["{\"inp", "ut\": \"一只", "猫\"}"] {
        write!(stream, "{:x}\r\n{chunk}\r\n", chunk.len()).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let chunked = read_reply(&mut stream).unwrap().ok();
    let whole = server.post("/v1/embeddings", &json!({"input": "一只猫"})).ok();
    assert_eq!(chunked["data"], whole["data"]);

    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(4096));
    let mut reader = stream.try_clone().unwrap();
    let reading = thread::spawn(move || read_reply(&mut reader));
    let start = Instant::now();
    while stream.write_all(chunk.as_bytes()).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(20), "it is read for ever");
    }
    // The connection may be reset before the answer has been read.
    if let Ok(reply) = reading.join().unwrap() {
        assert_eq!(reply.error(413).0, "body_too_large");
    }
}

/// The documentation's commands, run as they stand there.
#[test]
fn the_documentation_s_commands_work() {
    if Command::new("curl").arg("--version").output().is_err() {
        println!("skipped: there is no curl");
        return;
    }
    let folder = TempDir::new().unwrap();
    let image = BASE64_STANDARD.decode(&pairs(1)[0].1).unwrap();
    fs::write(folder.path().join("photo.png"), image).unwrap();
    let server = Server::start(&[]);
    let text = include_str!("../docs/SERVING.md");
    let mut run = 0;
    for block in text
        .split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
    {
        if !block.contains("curl") {
            continue;
        }
        let script = format!(
            "set -euo pipefail\n{}",
            block.replace("localhost:8080", &server.address)
        );
        let output = Command::new("bash")
            .args(["-c", &script])
            .current_dir(&folder)
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && !printed.contains("\"error\""),
            "{block}: {printed}"
        );
        run += serde_json::Deserializer::from_str(&printed)
            .into_iter::<Value>()
            .map(Result::unwrap)
            .count();
    }
    assert_eq!(run, text.matches("curl -s").count());
    assert_eq!(server.get("/v1/index").ok()["size"], 1);

    // And the settings in the files for deployment are settings of the server.
    let help = String::from_utf8(command(&["serve", "--help"]).output().unwrap().stdout).unwrap();
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/deploy");
    let mut settings = 0;
    for entry in fs::read_dir(deploy).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for rest in text.split("ERNIE_VIL_").skip(1) {
            let end = rest.find(|c: char| !c.is_ascii_uppercase() && c != '_').unwrap();
            let name = format!("[env: ERNIE_VIL_{}=", &rest[..end]);
            let name = name.replace("API_KEY=", "API_KEY");
            assert!(help.contains(&name), "{name}");
            settings += 1;
        }
    }
    assert!(settings > 10, "{settings}");
}

#[test]
fn what_takes_too_long_is_given_up() {
    let server = Server::start(&[
        "--timeout",
        "1",
        "--caption-batch",
        "1",
        "--max-items",
        "4096",
        "--queue",
        "65536",
    ]);
    let caption = "雪地里的红色汽车停在一座小房子的旁边，天上有一只很大的鸟".repeat(2);
    let body = json!({"input": vec![caption; 4096], "encoding_format": "base64"}).to_string();
    let late = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let reply = server.json("POST", "/v1/embeddings", body.as_bytes());
                if reply.status == 504 {
                    assert_eq!(reply.error(504).0, "timeout");
                    late.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert!(late.into_inner() > 0);
    // What was given up is not computed, so the next request is served at once.
    server.post("/v1/embeddings", &json!({"input": "一只猫"})).ok();
    assert!(server.metric("ernie_vil_abandoned_total{lane=\"captions\"}") > 0.0);
}

/// The head and body of a request that is written by hand.
fn written(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Resident memory of a process in bytes.
#[cfg(target_os = "linux")]
fn resident(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().split(' ').next().unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn heavy_images_do_not_hold_up_others() {
    let server = Server::start(&["--threads", "2", "--max-pixels", "300000000", "--drain", "0"]);
    let heavy = BASE64_STANDARD.encode(black(16_000));
    let heavy = json!({"input": vec![json!({ "image": heavy }); 24]}).to_string();
    let (caption, small) = pairs(1).remove(0);
    let add = json!({"items": [{"id": "a", "image": small}]});
    server.post("/v1/index", &add).ok();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let reply = server.json("POST", "/v1/embeddings", heavy.as_bytes());
            done.store(true, Ordering::SeqCst);
            reply.ok();
        });
        let start = Instant::now();
        while server.metric("ernie_vil_decode_seconds_count") < 2.0 {
            assert!(start.elapsed() < Duration::from_secs(60), "nothing is decoded");
        }
        // All that others want is done while it is under way.
        let mut rounds = 0;
        while rounds < 3 {
            server
                .post("/v1/embeddings", &json!({"input": {"image": small}}))
                .ok();
            server
                .post("/v1/search", &json!({"input": [caption, {"image": small}]}))
                .ok();
            server.post("/v1/index", &add).ok();
            assert_eq!(server.get("/health").status, 200);
            assert!(!done.load(Ordering::SeqCst), "after {rounds} rounds");
            rounds += 1;
        }
    });
}

#[test]
fn the_end_waits_for_no_image_and_saves_the_index() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("index");
    let mut server = Server::start(&[
        "--threads",
        "2",
        "--max-pixels",
        "100000000",
        "--drain",
        "0",
        "--index",
        text(&file),
    ]);
    server
        .post("/v1/index", &json!({"items": [{"id": "a", "text": "一只猫"}]}))
        .ok();
    let heavy = BASE64_STANDARD.encode(black(6000));
    let body = json!({"input": vec![json!({ "image": heavy }); 24]}).to_string();
    let mut clients: Vec<TcpStream> = (0..3)
        .map(|_| TcpStream::connect(&server.address).unwrap())
        .collect();
    for client in &mut clients {
        client.write_all(&written("/v1/embeddings", &body)).unwrap();
    }
    let start = Instant::now();
    while server.metric("ernie_vil_decode_seconds_count") < 1.0 {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing is decoded");
    }
    server.signal("TERM");
    let status = wait_at_most(&mut server.child, Duration::from_secs(15));
    assert_eq!(status.code(), Some(0));
    assert_eq!(EmbeddingIndex::load(&fs::read(&file).unwrap()).unwrap().len(), 1);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for signals in [["TERM", "TERM"], ["INT", "TERM"]] {
        let mut server = Server::start(&["--read-timeout", "60", "--drain", "60"]);
        // Something that was begun and does not end.
        let mut client = TcpStream::connect(&server.address).unwrap();
        client.write_all(&written("/v1/embeddings", "{}")[..100]).unwrap();
        let start = Instant::now();
        while server.metric("ernie_vil_connections") < 2.0 {
            assert!(start.elapsed() < Duration::from_secs(20));
        }
        server.signal(signals[0]);
        thread::sleep(Duration::from_millis(500));
        assert!(
            server.child.try_wait().unwrap().is_none(),
            "it waits for what was begun"
        );
        server.signal(signals[1]);
        let status = wait_at_most(&mut server.child, Duration::from_secs(5));
        assert_eq!(status.code(), Some(1));
    }
}

/// A server whose index makes answers of many megabytes, and a request for one.
fn long_answers(args: &[&str], queries: usize) -> (Server, Vec<u8>) {
    let server = Server::start(&[&["--timeout", "120"], args].concat());
    let items: Vec<Value> = (0..1000)
        .map(|i| json!({"id": i.to_string(), "embedding": vector(i)}))
        .collect();
    for items in items.chunks(250) {
        server.post("/v1/index", &json!({ "items": items })).ok();
    }
    let queries: Vec<Value> = (0..queries).map(|i| json!({"embedding": vector(i)})).collect();
    let body = json!({"input": queries, "k": 1000}).to_string();
    (server, written("/v1/search", &body))
}

/// Waits until nothing is held in the server's memory any more.
#[track_caller]
fn wait_until_free(server: &Server, time: Duration) {
    let start = Instant::now();
    loop {
        let held = server.metric("ernie_vil_buffered_bytes");
        if held == 0.0 {
            return;
        }
        assert!(start.elapsed() < time, "{held} bytes are held after {time:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn answers_count_until_they_are_taken() {
    let (server, request) = long_answers(
        &[
            "--max-buffered",
            "64MB",
            "--read-timeout",
            "60",
            "--answer-timeout",
            "6",
            "--threads",
            "2",
        ],
        150,
    );
    let before = resident(server.child.id());
    // Nobody reads.
    let clients: Vec<TcpStream> = (0..60)
        .map(|_| {
            let mut client = TcpStream::connect(&server.address).unwrap();
            client.write_all(&request).unwrap();
            client
        })
        .collect();
    let start = Instant::now();
    let mut most = 0.0_f64;
    while start.elapsed() < Duration::from_secs(4) {
        most = most.max(server.metric("ernie_vil_buffered_bytes"));
        // Others are served meanwhile.
        server.post("/v1/embeddings", &json!({"input": "一只猫"})).ok();
        thread::sleep(Duration::from_millis(50));
    }
    assert!((4e6..=64.0 * 1024.0 * 1024.0).contains(&most), "{most}");
    let grown = resident(server.child.id()).saturating_sub(before);
    assert!(grown < 200 << 20, "{} MB more", grown >> 20);
    // And who takes nothing for too long is let go.
    wait_until_free(&server, Duration::from_secs(30));
    drop(clients);
}

#[test]
fn a_client_that_takes_its_answer_too_slowly_is_let_go() {
    let (server, request) = long_answers(&["--read-timeout", "2", "--min-rate", "1MB"], 200);
    let mut client = TcpStream::connect(&server.address).unwrap();
    client.write_all(&request).unwrap();
    let start = Instant::now();
    // A little now and then, so that it never stands still for long.
    let (mut piece, mut taken) = (vec![0; 16 << 10], 0);
    loop {
        match client.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(bytes) => taken += bytes,
        }
        // What the system holds is still sent after the connection was closed, and is taken at once then.
        if start.elapsed() < Duration::from_secs(8) {
            thread::sleep(Duration::from_millis(100));
        }
        assert!(start.elapsed() < Duration::from_secs(60));
    }
    assert!(taken < 8_000_000, "{taken} bytes were taken");
    wait_until_free(&server, Duration::from_secs(10));
    // One that takes it fast gets all of it, and another answer on the same connection.
    let mut client = TcpStream::connect(&server.address).unwrap();
    for _ in 0..2 {
        client.write_all(&request).unwrap();
        let mut reader = BufReader::new(&client);
        let (mut length, mut line) = (0, String::new());
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        assert!(length > 8_000_000 && body.ends_with(b"}"));
    }
}

/// What JSON writes in six bytes counts as six.
#[test]
fn answers_are_counted_as_they_are_written() {
    let server = Server::start(&["--max-answer", "4MB"]);
    assert_eq!(server.get("/info").ok()["limits"]["answer_bytes"], 4 << 20);
    let id = |i: usize| format!("{}{i}", "\u{1}".repeat(1000));
    let items: Vec<Value> = (0..200)
        .map(|i| json!({"id": id(i), "embedding": vector(i)}))
        .collect();
    server.post("/v1/index", &json!({ "items": items })).ok();
    let search = |queries: usize| {
        let queries: Vec<Value> = (0..queries).map(|i| json!({"embedding": vector(i)})).collect();
        server.post("/v1/search", &json!({"input": queries, "k": 200}))
    };
    let found = search(3);
    assert_eq!(found.ok()["data"][2]["hits"].as_array().unwrap().len(), 200);
    assert!((3_500_000..4 << 20).contains(&found.body.len()));
    assert_eq!(search(4).error(400).0, "answer_too_long");
    // Labels too, which come back as often as there are inputs.
    let labels: Vec<String> = (0..10)
        .map(|i| format!("{i}{}", "\u{1}".repeat(10_000)))
        .collect();
    let classify = |inputs: usize| {
        let body = json!({"input": vec!["a"; inputs], "labels": labels});
        server.post("/v1/classify", &body)
    };
    classify(6).ok();
    assert_eq!(classify(8).error(400).0, "answer_too_long");
    wait_until_free(&server, Duration::from_secs(10));
}

#[test]
fn what_asks_for_health_is_answered_however_many_connections_there_are() {
    let server = Server::start(&[
        "--max-connections",
        "64",
        "--read-timeout",
        "60",
        "--threads",
        "2",
    ]);
    let probe = || {
        for path in ["/health", "/ready"] {
            let start = Instant::now();
            assert_eq!(server.get(path).status, 200);
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{path}: {:?}",
                start.elapsed()
            );
        }
    };
    let open = |head: &[u8]| -> Vec<TcpStream> {
        let connect = |_| {
            let mut stream = TcpStream::connect(&server.address).unwrap();
            // It may have been closed for another one already.
            let _ = stream.write_all(head);
            stream
        };
        (0..700).map(connect).collect()
    };
    // Nothing, the beginning of a head, and requests that were answered.
    for head in [
        &b""[..],
        b"GET /health HTTP/1.1\r\nhost: localho",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ] {
        let held = open(head);
        probe();
        server.post("/v1/embeddings", &json!({"input": "一只猫"})).ok();
        drop(held);
    }
    // Bodies that do not end take all places; who asks for health needs none.
    let whole = written("/v1/embeddings", "{\"input\": \"a\"}");
    let held = open(&whole[..whole.len() - 3]);
    probe();
    drop(held);
    let start = Instant::now();
    while server.post("/v1/embeddings", &json!({"input": "一只猫"})).status != 200 {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "the places are not free again"
        );
    }
}

#[test]
fn labels_times_templates_have_a_limit_and_are_computed_once() {
    let server = Server::start(&[]);
    let labels: Vec<String> = (0..256)
        .map(|i| format!("{i}辆红色汽车停在一座小房子的旁边"))
        .collect();
    let templates: Vec<String> = (0..64).map(|i| format!("第{i}张{{}}的照片")).collect();
    let body = |templates: &[String]| json!({"input": "一只猫", "labels": labels, "templates": templates});
    let (code, message) = server.post("/v1/classify", &body(&templates)).error(400);
    assert_eq!(code, "too_many_prompts");
    assert!(
        message.contains("16384 captions, expected at most 4096 (--max-prompts)"),
        "{message}"
    );
    let computed = || server.metric("ernie_vil_batch_size_sum{lane=\"captions\"}");
    assert_eq!(computed(), 0.0);
    let first = server.post("/v1/classify", &body(&templates[..4])).ok();
    assert_eq!(computed(), 1.0 + 4.0 * 256.0);
    // They come back with every picture.
    let again = server.post("/v1/classify", &body(&templates[..4])).ok();
    assert_eq!(computed(), 2.0 + 4.0 * 256.0);
    assert_eq!(first, again);
    // A repeated one is one, and other templates are other captions.
    let few = json!({"input": "一只猫", "labels": ["红", "绿", "红"], "k": 3});
    let few = server.post("/v1/classify", &few).ok();
    assert_eq!(computed(), 5.0 + 4.0 * 256.0);
    let shown = few["data"][0]["labels"].as_array().unwrap();
    assert_eq!(shown.len(), 3);
    assert_eq!(shown.iter().filter(|label| label["label"] == "红").count(), 2);
}

/// A page whose name was made to lead to this machine has that name in `Host`.
#[test]
fn only_local_names_are_answered_on_a_loopback_address() {
    let send = |server: &Server, head: &str| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let body = r#"{"items": [{"id": "a", "text": "一只猫"}]}"#;
        let rest = format!(
            "connection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(format!("{head}\r\n{rest}").as_bytes()).unwrap();
        read_reply(&mut stream).unwrap()
    };
    let server = Server::start(&["--cors-origin", "*"]);
    let port = server.address.rsplit(':').next().unwrap();
    for head in [
        "POST /v1/index HTTP/1.1\r\nhost: evil.example".to_owned(),
        format!("POST /v1/index HTTP/1.1\r\nhost: evil.example:{port}"),
        format!("POST /v1/index HTTP/1.1\r\nhost: localhost.evil.example:{port}"),
        "POST /v1/index HTTP/1.1\r\nhost: localhost\r\nhost: evil.example".into(),
        "POST http://evil.example/v1/index HTTP/1.1\r\nhost: localhost".into(),
        "POST /index HTTP/1.1\r\nhost: evil.example".into(),
        "POST /v1/index HTTP/1.1\r\nx: y".into(),
        "POST /v1/index HTTP/1.0\r\nx: y".into(),
        "OPTIONS /v1/index HTTP/1.1\r\nhost: evil.example\r\norigin: http://evil.example\r\naccess-control-request-method: POST".into(),
    ] {
        let reply = send(&server, &head);
        let (code, message) = reply.error(421);
        assert_eq!(code, "host_not_allowed", "{head}");
        assert!(message.contains("--allowed-hosts"), "{message}");
        assert_eq!(reply.header("access-control-allow-origin"), "");
    }
    assert_eq!(server.get("/v1/index").ok()["size"], 0);
    for host in [
        "localhost",
        "LOCALHOST:1",
        "127.0.0.1",
        "[::1]:8080",
        "demo.localhost",
    ] {
        send(&server, &format!("POST /v1/index HTTP/1.1\r\nhost: {host}")).ok();
    }
    send(
        &server,
        "POST http://localhost/v1/index HTTP/1.1\r\nhost: localhost",
    )
    .ok();

    let mut serve = command(&["serve", "--quiet", "--listen", "127.0.0.1:0"]);
    serve.env("ERNIE_VIL_ALLOWED_HOSTS", "models.example,*.lan");
    let server = Server::spawn(serve);
    server.wait_until_ready();
    for host in ["models.example", "box.lan:80"] {
        send(&server, &format!("POST /v1/index HTTP/1.1\r\nhost: {host}")).ok();
    }
    send(&server, "POST /v1/index HTTP/1.1\r\nhost: lan").error(421);
}

#[test]
fn who_is_open_to_everybody_says_so() {
    let refused = |args: &[&str]| {
        let output = command(&[&["serve", "--listen"], args].concat())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let said = refused(&[listen]);
        assert!(
            said.contains("without a key") && said.contains("--no-api-key"),
            "{said}"
        );
    }
    assert!(refused(&["127.0.0.1:0", "--allowed-hosts", "a b"]).contains("--allowed-hosts"));
    for (name, value) in [("ERNIE_VIL_API_KEY", "secret"), ("ERNIE_VIL_NO_API_KEY", "1")] {
        let mut serve = command(&["serve", "--listen", "0.0.0.0:0"]);
        serve.env(name, value).stderr(Stdio::piped());
        let mut server = Server::spawn(serve);
        let port = server.address.rsplit(':').next().unwrap().to_owned();
        server.address = format!("127.0.0.1:{port}");
        server.wait_until_ready();
        // Any name, as those of a cluster's services.
        let host = [("host", "ernie-vil.default.svc")];
        let mut stream = TcpStream::connect(&server.address).unwrap();
        write!(
            stream,
            "GET /health HTTP/1.1\r\n{}: {}\r\nconnection: close\r\n\r\n",
            host[0].0, host[0].1
        )
        .unwrap();
        assert_eq!(read_reply(&mut stream).unwrap().status, 200);
        assert_eq!(server.get("/info").status, if value == "1" { 200 } else { 401 });
        server.signal("TERM");
        let mut said = String::new();
        server
            .child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(said.contains("WARN listening on"), value == "1", "{said}");
    }
}

/// What OpenAI's clients send: the one for Python, and the one for JavaScript in a page.
#[test]
fn the_clients_of_openai_work() {
    let server = Server::start(&["--cors-origin", "https://page.example"]);
    // A page asks first, for each of these.
    let asked = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version,\
                 x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout,openai-organization";
    for path in ["/v1/embeddings", "/v1/models/scenes", "/embeddings"] {
        let headers = [
            ("origin", "https://page.example"),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", asked),
        ];
        let reply = server.send("OPTIONS", path, &headers, b"");
        assert_eq!(reply.status, 200);
        let allowed = reply.header("access-control-allow-headers");
        for name in asked.split(',') {
            assert!(
                allowed.split(',').any(|allowed| allowed.trim() == name),
                "{name}: {allowed}"
            );
        }
        let other = [("origin", "https://other.example"), headers[1], headers[2]];
        let other = server.send("OPTIONS", path, &other, b"");
        assert_eq!(other.header("access-control-allow-origin"), "");
    }
    let client = [
        ("content-type", "application/json"),
        ("authorization", "Bearer unused"),
        ("user-agent", "OpenAI/Python 2.8.1"),
        ("x-stainless-lang", "python"),
        ("x-stainless-read-timeout", "600"),
    ];
    let image = pairs(1).remove(0).1;
    let uri = format!("data:image/png;base64,{image}");
    let send = |path: &str, body: &Value| server.send("POST", path, &client, body.to_string().as_bytes());
    let input = json!([
        "一只猫",
        {"type": "text", "text": "一只猫"},
        {"image": image},
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "image_url", "image_url": {"url": format!("\n {uri}"), "detail": "auto"}},
        {"type": "input_image", "image_url": uri},
        format!(" {uri}"),
    ]);
    let body = json!({"input": input, "model": "scenes", "encoding_format": "base64"});
    let expected = send("/v1/embeddings", &body).ok();
    let vectors = expected["data"].as_array().unwrap();
    assert_eq!(vectors[0]["embedding"], vectors[1]["embedding"]);
    for i in 3..7 {
        assert_eq!(vectors[2]["embedding"], vectors[i]["embedding"], "{i}");
    }
    // With a base URL that lacks /v1.
    assert_eq!(send("/embeddings", &body).ok(), expected);
    let models = server.get("/v1/models").ok();
    assert_eq!(server.get("/models").ok(), models);
    let model = &models["data"][0];
    let by = |name: &str| server.get(&format!("/v1/models/{name}"));
    assert_eq!(&by("scenes").ok(), model);
    assert_eq!(&by(model["fingerprint"].as_str().unwrap()).ok(), model);
    assert_eq!(by("text-embedding-3-small").error(404).0, "model_not_found");
    assert_eq!(by("text%2Fembedding").error(404).0, "model_not_found");
    assert!(
        server
            .get("/models/scenes")
            .error(404)
            .1
            .contains("/v1/models/scenes")
    );
    assert!(
        send("/v1/v1/embeddings", &body)
            .error(404)
            .1
            .contains("but at /v1/embeddings")
    );
    assert_eq!(
        server.metric("ernie_vil_requests_total{path=\"/v1/models/{model}\",status=\"404\"}"),
        2.0
    );

    // The key guards them under all of their addresses.
    let server = Server::start(&["--api-key", "secret"]);
    for path in ["/embeddings", "/search", "/classify", "/index"] {
        assert_eq!(
            server.json("POST", path, b"{}").error(401).0,
            "invalid_api_key",
            "{path}"
        );
    }
    for path in ["/models", "/v1/models/scenes"] {
        assert_eq!(server.get(path).error(401).0, "invalid_api_key", "{path}");
    }
    assert_eq!(server.json("DELETE", "/index", b"{}").status, 401);
}

#[test]
fn messages_say_what_was_sent_and_what_is_to_be() {
    let server = Server::start(&[]);
    let json = ("content-type", "application/json");
    // Compressed, with and without saying so.
    let gzip = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xab, 0xae, 5, 0];
    for (encoding, body) in [
        ("gzip", &gzip[..]),
        ("br", b"{}"),
        ("identity, deflate", b"{}"),
        ("", &gzip),
    ] {
        let headers = [json, ("content-encoding", encoding)];
        let reply = server.send("POST", "/v1/embeddings", &headers, body);
        let (code, message) = reply.error(415);
        assert_eq!(code, "unsupported_encoding");
        let shown = if encoding.is_empty() { "gzip" } else { encoding };
        assert!(
            message.contains(shown) && message.contains("identity"),
            "{message}"
        );
        assert_eq!(reply.header("accept-encoding"), "identity");
    }
    let plain = [json, ("content-encoding", "Identity")];
    let caption = json!({"input": "一只猫"}).to_string();
    let expected = server
        .send("POST", "/v1/embeddings", &plain, caption.as_bytes())
        .ok();
    let marked = format!("\u{feff}{caption}");
    assert_eq!(
        server.json("POST", "/v1/embeddings", marked.as_bytes()).ok(),
        expected
    );

    let reply = server.json("POST", "/v1/search", br#"{"input": ["a", {"text": "b \ud83d"}]}"#);
    let (code, message) = reply.error(400);
    assert_eq!(
        (code.as_str(), &reply.value()["error"]["param"]),
        ("invalid_json", &json!("input[1].text"))
    );
    assert!(message.contains("lone surrogate"), "{message}");

    let image = pairs(1).remove(0).1;
    let safe = image.replace('+', "-").replace('/', "_");
    assert_ne!(safe, image);
    for (text, part) in [
        (safe.as_str(), "URL-safe alphabet"),
        (&format!("data:image/png;base64,{safe}"), "URL-safe alphabet"),
        (&format!("b'{image}'"), "Python shows bytes"),
        ("/home/me/cat.jpg", "is the name of a file"),
    ] {
        let body = json!({"input": ["a", {"image": text}]});
        let (code, message) = server.post("/v1/embeddings", &body).error(400);
        assert_eq!(code, "invalid_image");
        assert!(
            message.starts_with("input[1]: base64: ") && message.contains(part),
            "{message}"
        );
    }
    for (text, code) in [
        ("blob:https://a/b", "remote_image"),
        ("s3://bucket/cat.jpg", "remote_image"),
        ("photos/cat.jpg", "invalid_value"),
        (&image, "invalid_value"),
    ] {
        let body = json!({"items": [{"id": "ok", "text": "a"}, {"id": "b", "text": "b"}]});
        server.post("/v1/index", &body).ok();
        let reply = server.post("/v1/search", &json!({"input": ["a", text]}));
        assert_eq!(reply.error(400).0, code, "{text}");
        assert_eq!(reply.value()["error"]["param"], "input[1]");
    }
}
