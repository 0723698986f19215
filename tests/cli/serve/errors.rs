//! What is refused, and the messages that say why.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::support::{DIMENSIONS, Server, pairs};

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
