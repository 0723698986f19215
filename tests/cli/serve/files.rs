//! The files of a page, which the server hands out.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::support::{Server, text};

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
