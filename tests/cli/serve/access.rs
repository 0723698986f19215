//! Who may ask: keys, origins and host names.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use crate::support::{Server, command, read_reply};

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
