//! From the start of a server to its end, and its log.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{fs, thread};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ernie_vil::index::EmbeddingIndex;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    Server, black_png, command, handwritten, library_to_preload, on_disk, request, skipped, text, vector,
    wait_at_most,
};

/// A server that loads its model until there is a file `go` in the folder: it waits when it opens the
/// configuration. Or why there is none.
fn loading() -> Result<(Server, TempDir), &'static str> {
    let folder = TempDir::new().unwrap();
    let go = folder.path().join("go");
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
    let library = library_to_preload(folder.path(), code)?;
    fs::write(folder.path().join("config.json"), "no configuration").unwrap();
    let mut serve = command(&["serve", "--listen", "127.0.0.1:0", "--model", text(folder.path())]);
    serve.env("LD_PRELOAD", &library).env("GO", &go);
    Ok((Server::spawn(serve), folder))
}

#[test]
fn it_is_alive_before_it_is_ready() {
    let (mut server, folder) = match loading() {
        Ok(loading) => loading,
        Err(reason) => return skipped(reason),
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

#[test]
fn sigterm_does_not_wait_for_the_model() {
    // Nothing lets loading end.
    let (mut server, _folder) = match loading() {
        Ok(loading) => loading,
        Err(reason) => return skipped(reason),
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
    {
        let mut server = Server::start(&["--index", text(&file)]);
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
        let index = on_disk(&file);
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
    let heavy = BASE64_STANDARD.encode(black_png(6000));
    let body = json!({"input": vec![json!({ "image": heavy }); 24]}).to_string();
    let mut clients: Vec<TcpStream> = (0..3)
        .map(|_| TcpStream::connect(&server.address).unwrap())
        .collect();
    for client in &mut clients {
        client.write_all(&handwritten("/v1/embeddings", &body)).unwrap();
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
        client
            .write_all(&handwritten("/v1/embeddings", "{}")[..100])
            .unwrap();
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
