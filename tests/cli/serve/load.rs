//! A server under load: its queue, its memory, slow clients and long answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::support::{Server, black_png, clear_png, handwritten, pairs, read_reply, vector};

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

#[cfg(target_os = "linux")]
#[test]
fn a_body_counts_as_long_as_something_is_made_of_it() {
    let server = Server::start(&["--threads", "1", "--max-pixels", "300000000"]);
    let image = BASE64_STANDARD.encode(clear_png(16_000));
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
    // A client that leaves before its picture's turn has it not decoded at all.
    let start = Instant::now();
    while ticks(server.child.id(), "decode") == 0 {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "no decoder has taken it"
        );
        thread::sleep(Duration::from_millis(5));
    }
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

#[test]
fn heavy_images_do_not_hold_up_others() {
    let server = Server::start(&["--threads", "2", "--max-pixels", "300000000", "--drain", "0"]);
    let heavy = BASE64_STANDARD.encode(black_png(16_000));
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
    (server, handwritten("/v1/search", &body))
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
