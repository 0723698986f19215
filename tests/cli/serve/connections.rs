//! Connections: how many there may be, and how a request comes over them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{BINARY, Server, clean, handwritten, read_reply};

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
    let mut shell = Command::new("bash");
    let script = format!("{limits} && exec {BINARY} serve --listen 127.0.0.1:0 {args}");
    clean(shell.args(["-c", &script])).stderr(Stdio::piped());
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
    let whole = handwritten("/v1/embeddings", "{\"input\": \"a\"}");
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
