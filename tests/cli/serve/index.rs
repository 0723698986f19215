//! The index of a server, and what is left of it after kills and a full disk.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, thread};

use ernie_vil::index::EmbeddingIndex;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Server, command, on_disk, pairs, request, text, vector};

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

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    const ROUNDS: usize = 8;
    const CLIENTS: usize = 3;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("index");
    // What every id should be: a vector, or removed.
    let expected: Mutex<BTreeMap<String, Option<Vec<f32>>>> = Mutex::default();
    let mut folded = 0;
    for round in 0..ROUNDS {
        let mut server = Server::start(&["--index", text(&file)]);
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
                        // Whether a removal that is not acknowledged was made is open, so nothing is expected
                        // of it then.
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
        let index = on_disk(&file);
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
    let whole = on_disk(&file).len();
    bytes.extend_from_slice(&[40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
    fs::write(&log, bytes).unwrap();
    let server = Server::start(&["--index", text(&file)]);
    assert_eq!(server.get("/v1/index").ok()["size"], whole);
}

#[test]
fn searches_and_changes_at_once_do_not_wait_for_each_other() {
    // A search that takes another one while it waits would stand behind a change that stands behind the
    // first.
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
