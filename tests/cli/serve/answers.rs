//! What the endpoints answer: vectors, and what the document and the clients of OpenAI say.

use std::collections::HashMap;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, thread};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ernie_vil::vectors::read_safetensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    DIMENSIONS, Server, first_lines, pairs, repository, run, skipped, success, text, vector,
};

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

#[test]
fn vectors_are_those_of_embed_to_the_bit_however_they_are_batched() {
    const ROWS: usize = 48;
    let folder = TempDir::new().unwrap();
    let (input, output) = (
        folder.path().join("in.tsv"),
        folder.path().join("out.safetensors"),
    );
    fs::write(&input, first_lines(ROWS)).unwrap();
    success(&run(&[
        "embed",
        "--input",
        text(&input),
        "--output",
        text(&output),
        "--quiet",
    ]));
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

/// The documentation's commands, run as they stand there.
#[test]
fn the_documentation_s_commands_work() {
    if Command::new("curl").arg("--version").output().is_err() {
        return skipped("there is no curl");
    }
    let folder = TempDir::new().unwrap();
    let image = BASE64_STANDARD.decode(&pairs(1)[0].1).unwrap();
    fs::write(folder.path().join("photo.png"), image).unwrap();
    let server = Server::start(&[]);
    let text = include_str!("../../../docs/SERVING.md");
    let mut answers = 0;
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
        answers += serde_json::Deserializer::from_str(&printed)
            .into_iter::<Value>()
            .map(Result::unwrap)
            .count();
    }
    assert_eq!(answers, text.matches("curl -s").count());
    assert_eq!(server.get("/v1/index").ok()["size"], 1);

    // And the settings in the files for deployment are settings of the server.
    let help = success(&run(&["serve", "--help"]));
    let deploy = repository("docs/deploy");
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
