//! Downloads from servers of the tests' own.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::*;
use crate::native::atomic_file::{AtomicFile, beside};
use crate::native::names_in as names;

/// An HTTP server of the test's own: one request a connection, answered by a function that
/// receives the request's number, from 0, and its head. It stops when it is dropped.
struct Server {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn new(answer: impl Fn(usize, &str, &mut TcpStream) -> io::Result<()> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, stopped) = (heads.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let mut stream = stream.unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                seen.lock().unwrap().push(head.clone());
                let number = seen.lock().unwrap().len() - 1;
                // The client may hang up at any time; that is the test's business.
                let _ = answer(number, &head, &mut stream);
            }
        });
        Self {
            address,
            heads,
            stop,
            thread: Some(thread),
        }
    }

    /// A download from here that retries at once.
    fn download(&self, folder: &Path) -> Download {
        Download {
            pause: Duration::from_millis(1),
            silence: Duration::from_millis(500),
            proxy: None,
            ..Download::new(format!("http://{}/weights", self.address), folder.join("weights"))
        }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread where it waits for a connection.
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

/// 3 MB that look like weights.
fn weights() -> Vec<u8> {
    let mut bytes = b"\x80\x04".to_vec();
    let mut state = 1u32;
    bytes.extend((0..3_000_000).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    }));
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn run(download: &Download) -> Result<Downloaded> {
    download.run(&())
}

fn message(download: &Download) -> String {
    let message = format!("{:#}", run(download).unwrap_err());
    let context = format!("downloading {}: ", download.url);
    message.strip_prefix(&context).expect("names the URL").to_owned()
}

/// The target is there, is `bytes`, and nothing else lies beside it.
fn assert_fetched(folder: &Path, bytes: &[u8]) {
    assert!(fs::read(folder.join("weights")).unwrap() == bytes);
    assert_eq!(names(folder), ["weights"]);
}

const VERSION: &str = "ETag: \"v1\"\r\n";

fn whole(stream: &mut TcpStream, headers: &str, bytes: &[u8], send: usize) -> io::Result<()> {
    let length = bytes.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    )?;
    stream.write_all(&bytes[..send.min(length)])
}

/// Where the request wants to begin.
fn range(head: &str) -> Option<usize> {
    head.split_once("range: bytes=")?
        .1
        .split_once('-')?
        .0
        .parse()
        .ok()
}

/// Answers a range as it should be, and sends at most `send` bytes.
fn ranged(head: &str, stream: &mut TcpStream, bytes: &[u8], send: usize) -> io::Result<()> {
    let Some(first) = range(head).filter(|_| head.contains("if-range: \"v1\"\r\n")) else {
        return whole(stream, VERSION, bytes, send);
    };
    let (length, last) = (bytes.len() - first, bytes.len() - 1);
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\nConnection: close\r\n{VERSION}\
         Content-Range: bytes {first}-{last}/{}\r\n\r\n",
        bytes.len()
    )?;
    stream.write_all(&bytes[first..][..send.min(length)])
}

#[test]
fn plain() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|_, _, stream| whole(stream, VERSION, &weights(), usize::MAX));
    let mut download = server.download(&folder.path().join("new"));
    download.expected_sha256 = Some(sha256(&weights()).to_uppercase());
    download.check_start = |start| match start.len() == 512 && start.starts_with(b"\x80\x04") {
        true => Ok(()),
        false => Err("not weights".into()),
    };
    let downloaded = run(&download).unwrap();
    let expected = Downloaded {
        bytes: 3_000_002,
        sha256: sha256(&weights()),
        resumed: 0,
        etag: Some("\"v1\"".into()),
        last_modified: None,
    };
    assert_eq!(downloaded, expected);
    assert_fetched(&folder.path().join("new"), &weights());
    let heads = server.heads();
    assert_eq!(heads.len(), 1);
    assert!(heads[0].starts_with("get /weights http/1.1\r\n"), "{}", heads[0]);
    assert!(heads[0].contains("accept-encoding: identity\r\n"), "{}", heads[0]);
    assert!(range(&heads[0]).is_none());
}

#[test]
fn goes_on_after_breaks() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|number, head, stream| match number {
        0..=8 => ranged(head, stream, &weights(), 300_000),
        _ => ranged(head, stream, &weights(), usize::MAX),
    });
    let mut download = server.download(folder.path());
    // Fewer attempts than breaks: those that brought enough do not count.
    download.attempts = 5;
    let downloaded = run(&download).unwrap();
    assert_eq!(
        (downloaded.bytes, downloaded.sha256),
        (3_000_002, sha256(&weights()))
    );
    assert_fetched(folder.path(), &weights());
    let starts: Vec<_> = server.heads().iter().map(|head| range(head)).collect();
    let expected: Vec<_> = (0..10)
        .map(|number| (number > 0).then_some(number * 300_000))
        .collect();
    assert_eq!(starts, expected);
}

#[test]
fn goes_on_in_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|number, head, stream| match number {
        0 => ranged(head, stream, &weights(), 1_000_000),
        1 | 2 => write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        _ => ranged(head, stream, &weights(), usize::MAX),
    });
    let download = Download {
        attempts: 1,
        ..server.download(folder.path())
    };
    assert_eq!(
        message(&download),
        "given up, attempt 1 of 1: broke off after 1000000 of 3000002 bytes: Peer disconnected"
    );
    assert_eq!(names(folder.path()), ["weights.part", "weights.part.json"]);
    // What is there survives an answer that has nothing to do with it.
    assert_eq!(message(&download), "the server answered 404 Not Found");
    assert_eq!(message(&download), "the server answered 404 Not Found");
    let downloaded = run(&download).unwrap();
    let expected = Downloaded {
        bytes: 3_000_002,
        sha256: sha256(&weights()),
        resumed: 1_000_000,
        etag: Some("\"v1\"".into()),
        last_modified: None,
    };
    assert_eq!(downloaded, expected);
    assert_fetched(folder.path(), &weights());
}

/// Leaves `part` and its notes as an earlier run would have.
fn leave(download: &Download, part: &[u8], length: Option<u64>) {
    fs::write(beside(&download.target, ".part"), part).unwrap();
    let source = Source {
        url: download.url.clone(),
        length,
        etag: Some("\"v1\"".into()),
        last_modified: None,
    };
    fs::write(
        beside(&download.target, ".part.json"),
        serde_json::to_vec(&source).unwrap(),
    )
    .unwrap();
}

#[test]
fn a_complete_part_needs_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|_, _, _| Ok(()));
    let download = server.download(folder.path());
    leave(&download, &weights(), Some(3_000_002));
    assert_eq!(run(&download).unwrap().resumed, 3_000_002);
    assert_fetched(folder.path(), &weights());
    assert!(server.heads().is_empty());
}

#[test]
fn starts_over_where_the_part_is_of_no_use() {
    let other =
        |_: usize, _: &str, stream: &mut TcpStream| whole(stream, "ETag: \"v2\"\r\n", &weights(), usize::MAX);
    let server = Server::new(other);
    let cases: [&dyn Fn(&Download); 6] = [
        // The server ignores ranges, or has another version.
        &|download| leave(download, &[1; 999], Some(3_000_002)),
        &|download| leave(download, &[1; 999], None),
        // Longer than the file.
        &|download| leave(download, &[1; 999], Some(998)),
        // Another file's, or nobody's.
        &|download| {
            leave(
                &Download {
                    url: "http://elsewhere/".into(),
                    ..download.clone()
                },
                &[1; 999],
                None,
            )
        },
        &|download| fs::write(beside(&download.target, ".part"), [1; 999]).unwrap(),
        &|download| {
            leave(download, &[1; 999], Some(3_000_002));
            fs::write(beside(&download.target, ".part.json"), "{\"url\":").unwrap();
        },
    ];
    for (number, case) in cases.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let download = server.download(folder.path());
        case(&download);
        let downloaded = run(&download).unwrap();
        assert_eq!(
            (downloaded.bytes, downloaded.resumed),
            (3_000_002, 0),
            "case {number}"
        );
        assert_fetched(folder.path(), &weights());
        let head = server.heads().pop().unwrap();
        assert_eq!(range(&head), (number < 2).then_some(999), "case {number}");
    }
}

#[test]
fn starts_over_where_the_server_sends_another_part() {
    let answers = [
        "206 Partial Content\r\nETag: \"v1\"\r\nContent-Range: bytes 998-3000001/3000002",
        "206 Partial Content\r\nETag: \"v1\"\r\nContent-Range: bytes 999-3000000/3000001",
        "206 Partial Content\r\nETag: \"v1\"\r\nContent-Range: bytes 999-3000002/3000002",
        "206 Partial Content\r\nETag: \"v1\"\r\nContent-Range: bytes 999-3000001/3000002",
        "206 Partial Content\r\nETag: \"v1\"\r\nContent-Range: bytes ?/?",
        "206 Partial Content\r\nETag: \"v1\"",
        "416 Range Not Satisfiable\r\nContent-Range: bytes */500",
    ];
    for answer in answers {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::new(move |number, _, stream| match number {
            0 => write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 4\r\n\r\nabcd"),
            _ => whole(stream, VERSION, &weights(), usize::MAX),
        });
        let download = server.download(folder.path());
        leave(&download, &[1; 999], Some(3_000_002));
        assert_eq!(run(&download).unwrap().resumed, 0, "{answer}");
        assert_fetched(folder.path(), &weights());
        assert_eq!(server.heads().len(), 2);
    }
}

#[test]
fn without_a_version_it_starts_over() {
    for headers in ["", "ETag: W/\"v1\"\r\n"] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::new(move |number, _, stream| match number {
            0 | 2 => whole(stream, headers, &weights(), 2_000_000),
            _ => whole(stream, headers, &weights(), usize::MAX),
        });
        let download = server.download(folder.path());
        assert_eq!(run(&download).unwrap().bytes, 3_000_002);
        assert_fetched(folder.path(), &weights());
        // Nothing that could not be continued is left behind.
        let again = Download {
            target: folder.path().join("again"),
            attempts: 1,
            ..download
        };
        assert!(run(&again).is_err());
        assert_fetched(folder.path(), &weights());
        assert!(server.heads().iter().all(|head| range(head).is_none()));
    }
}

#[test]
fn a_date_names_a_version_too() {
    let folder = tempfile::tempdir().unwrap();
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let server = Server::new(move |_, head, stream| {
        let headers = format!("ETag: W/\"v1\"\r\nLast-Modified: {date}\r\n");
        match range(head) {
            None => whole(stream, &headers, &weights(), 2_000_000),
            // A part whose whole is not told.
            Some(first) => {
                write!(
                    stream,
                    "HTTP/1.1 206 Partial Content\r\n{headers}Content-Range: bytes {first}-3000001/*\r\n\r\n"
                )?;
                stream.write_all(&weights()[first..])
            }
        }
    });
    run(&server.download(folder.path())).unwrap();
    assert_fetched(folder.path(), &weights());
    let heads = server.heads();
    assert!(
        heads[1].contains(&format!("if-range: {}\r\n", date.to_lowercase())),
        "{}",
        heads[1]
    );
    assert_eq!((heads.len(), range(&heads[1])), (2, Some(2_000_000)));
}

/// A server that ignores If-Range, and whose file is another one by the time of the second request: what
/// the part says of itself is all that shows it.
#[test]
fn two_versions_never_make_a_file() {
    let date = |day: usize| format!("Last-Modified: Sun, 0{day} Nov 1994 08:49:37 GMT\r\n");
    let etag = |version: &str| format!("ETag: {version}\r\n");
    let cases = [
        (etag("\"v1\""), etag("\"v2\""), "another version"),
        (etag("\"v1\""), String::new(), "does not say of which"),
        (date(5), date(6), "another version"),
        (date(5), String::new(), "does not say of which"),
        (date(5), etag("\"v2\""), "does not say of which"),
        (
            etag("\"v1\"") + &date(5),
            etag("\"v1\"") + &date(6),
            "another version",
        ),
        (
            etag("W/\"v1\"") + &date(5),
            etag("W/\"v2\"") + &date(5),
            "another version",
        ),
    ];
    for (first, then, problem) in cases {
        // Of the same length, so that this tells nothing.
        let mut newer = weights();
        newer.iter_mut().skip(2).for_each(|byte| *byte ^= 1);
        let sent = newer.clone();
        let (before, after) = (first.clone(), then.clone());
        let folder = tempfile::tempdir().unwrap();
        let server = Server::new(move |number, head, stream| match (number, range(head)) {
            (0, _) => whole(stream, &before, &weights(), 2_000_000),
            (_, None) => whole(stream, &after, &sent, usize::MAX),
            (_, Some(from)) => {
                let (length, last, all) = (sent.len() - from, sent.len() - 1, sent.len());
                write!(
                    stream,
                    "HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\n{after}\
                     Content-Range: bytes {from}-{last}/{all}\r\n\r\n"
                )?;
                stream.write_all(&sent[from..])
            }
        });
        // What is said where it goes no further.
        let download = Download {
            attempts: 2,
            ..server.download(folder.path())
        };
        let message = message(&download);
        assert!(message.contains(problem), "{first:?}, {then:?}: {message}");
        assert!(names(folder.path()).is_empty());
        // And that it starts over where it may.
        drop(server);
        let (sent, before, after) = (newer.clone(), first.clone(), then.clone());
        let server = Server::new(move |number, head, stream| match (number, range(head)) {
            (0, _) => whole(stream, &before, &weights(), 2_000_000),
            (_, None) => whole(stream, &after, &sent, usize::MAX),
            (_, Some(from)) => {
                let (last, all) = (sent.len() - 1, sent.len());
                write!(
                    stream,
                    "HTTP/1.1 206 Partial Content\r\n{after}Content-Range: bytes {from}-{last}/{all}\r\n\r\n"
                )?;
                stream.write_all(&sent[from..])
            }
        });
        let downloaded = run(&server.download(folder.path())).unwrap();
        assert_eq!(downloaded.sha256, sha256(&newer), "{first:?}, {then:?}");
        assert_fetched(folder.path(), &newer);
        let starts: Vec<_> = server.heads().iter().map(|head| range(head)).collect();
        assert_eq!(starts, [None, Some(2_000_000), None]);
    }
}

#[test]
fn another_file_than_before_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|_, _, stream| whole(stream, VERSION, &weights(), usize::MAX));
    let mut download = server.download(folder.path());
    let mut seen = Seen {
        url: download.url.clone(),
        size: 3_000_002,
        sha256: sha256(&weights()),
        etag: None,
        last_modified: None,
        first_seen: 951_782_400,
    };
    download.seen = Some(seen.clone());
    run(&download).unwrap();
    seen.sha256 = sha256(b"another");
    download.seen = Some(seen.clone());
    assert_eq!(
        message(&download),
        format!(
            "the file has changed since 2000-02-29: it had 3000002 bytes and the SHA-256 {}, now it has 3000002 \
             bytes and {}. Either its publisher has replaced it, or somebody on the way has",
            sha256(b"another"),
            sha256(&weights())
        )
    );
    // Of another length it is not even fetched.
    seen.size = 7;
    download.seen = Some(seen);
    assert!(message(&download).contains("it had 7 bytes and"));
    assert!(matches!(run(&download).unwrap_err().root(), Error::Changed(_)));
    // What was there stays.
    assert_fetched(folder.path(), &weights());
}

#[test]
fn a_damaged_part_is_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|_, head, stream| ranged(head, stream, &weights(), usize::MAX));
    let download = Download {
        expected_sha256: Some(sha256(&weights())),
        ..server.download(folder.path())
    };
    leave(&download, &[1; 999], Some(3_000_002));
    assert_eq!(run(&download).unwrap().resumed, 0);
    assert_fetched(folder.path(), &weights());
    let starts: Vec<_> = server.heads().iter().map(|head| range(head)).collect();
    assert_eq!(starts, [Some(999), None]);
}

#[test]
fn errors_that_pass_are_tried_again() {
    for status in [
        "500 Internal Server Error",
        "503 Service Unavailable",
        "429 Too Many Requests",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::new(move |number, _, stream| match number {
            0 | 1 => write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\noops"),
            2 => Ok(()),
            3 => write!(stream, "this is not HTTP\r\n\r\n"),
            _ => whole(stream, VERSION, &weights(), usize::MAX),
        });
        run(&server.download(folder.path())).unwrap();
        assert_fetched(folder.path(), &weights());
        assert_eq!(server.heads().len(), 5);
    }
}

#[test]
fn it_is_given_up_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|_, _, stream| write!(stream, "HTTP/1.1 502 Bad Gateway\r\n\r\n"));
    let download = Download {
        attempts: 3,
        ..server.download(folder.path())
    };
    assert_eq!(
        message(&download),
        "given up, attempt 3 of 3: the server answered 502 Bad Gateway"
    );
    assert_eq!(server.heads().len(), 3);
    assert!(names(folder.path()).is_empty());

    // Nobody listens.
    let url = server.download(folder.path()).url;
    drop(server);
    let download = Download {
        attempts: 2,
        url,
        ..download
    };
    assert!(message(&download).starts_with("given up, attempt 2 of 2: "));

    // A server that always breaks off at the same place and begins again.
    let server = Server::new(|_, _, stream| whole(stream, "", &weights(), 2_000_000));
    let download = Download {
        attempts: 3,
        ..server.download(folder.path())
    };
    assert!(
        message(&download).starts_with("given up, attempt 3 of 3: broke off after 2000000 of 3000002 bytes")
    );
    assert_eq!(server.heads().len(), 3);
}

#[test]
fn errors_that_last_are_not() {
    let nothing = sha256(b"");
    let cases = [
        (
            "404 Not Found\r\nContent-Length: 0",
            "",
            None,
            "the server answered 404 Not Found",
        ),
        (
            "206 Partial Content\r\nContent-Length: 1",
            "1",
            None,
            "the server answered 206 Partial Content",
        ),
        (
            "200 OK\r\nContent-Length: 30",
            "<html>The file has moved</html>",
            None,
            "not the file that was expected: no pickle; it starts with \"<html>The file has moved</html\"",
        ),
        (
            "200 OK\r\nContent-Length: 2\r\nETag: \"v1\"",
            "ab",
            Some(nothing.clone()),
            &format!("the file's SHA-256 is {}, expected {nothing}", sha256(b"ab")),
        ),
        (
            "200 OK\r\nContent-Length: 5000000000",
            "1",
            None,
            "the file has 5000000000 bytes, expected at most 4294967296",
        ),
        (
            "200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2",
            "\u{1f}x",
            None,
            "the server sent it compressed (gzip), unasked",
        ),
    ];
    for (answer, body, expected_sha256, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::new(move |_, _, stream| write!(stream, "HTTP/1.1 {answer}\r\n\r\n{body}"));
        let mut download = server.download(folder.path());
        download.expected_sha256 = expected_sha256;
        download.check_start = |start| match start.starts_with(b"<") {
            true => Err("no pickle".into()),
            false => Ok(()),
        };
        assert_eq!(message(&download), expected);
        assert_eq!(server.heads().len(), 1, "{answer}");
        assert!(names(folder.path()).is_empty(), "{answer}");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut download = Download::new("http://127.0.0.1:1/", folder.path().join("weights"));
    download.expected_sha256 = Some("123".into());
    assert_eq!(
        message(&download),
        "the expected SHA-256 is \"123\", not 64 hexadecimal digits"
    );
    for url in ["ftp://127.0.0.1/x", "weights", "http://", ""] {
        let download = Download {
            url: url.into(),
            proxy: None,
            ..Download::new("", folder.path().join("weights"))
        };
        message(&download);
    }
    assert!(names(folder.path()).is_empty());
}

#[test]
fn a_body_without_end() {
    // Written until the client hangs up; 64 MB at most, so that a failure ends too.
    fn endless(stream: &mut TcpStream, headers: &str) -> io::Result<()> {
        write!(stream, "HTTP/1.1 200 OK\r\n{headers}\r\n")?;
        (0..64).try_for_each(|_| {
            let chunk = vec![b'x'; 1_000_000];
            if headers.contains("chunked") {
                write!(stream, "{:x}\r\n", chunk.len())?;
            }
            stream.write_all(&chunk)?;
            stream.write_all(if headers.contains("chunked") { b"\r\n" } else { b"" })
        })
    }
    for headers in ["", "Transfer-Encoding: chunked\r\nETag: \"v1\"\r\n"] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::new(move |_, _, stream| endless(stream, headers));
        let download = Download {
            max_bytes: 5_000_000,
            ..server.download(folder.path())
        };
        assert_eq!(message(&download), "the server sent more than 5000000 bytes");
        assert_eq!(server.heads().len(), 1);
        assert!(names(folder.path()).is_empty());
    }
    // Where a length is given, what comes behind it is not taken.
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|_, _, stream| endless(stream, "Content-Length: 700000\r\n"));
    assert_eq!(run(&server.download(folder.path())).unwrap().bytes, 700_000);
}

#[test]
fn a_body_of_unknown_length() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|_, _, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for chunk in weights().chunks(100_000) {
            write!(stream, "{:x}\r\n", chunk.len())?;
            stream.write_all(chunk)?;
            stream.write_all(b"\r\n")?;
        }
        stream.write_all(b"0\r\n\r\n")
    });
    assert_eq!(run(&server.download(folder.path())).unwrap().bytes, 3_000_002);
    assert_fetched(folder.path(), &weights());
}

#[test]
fn slow_is_not_silent() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|number, head, stream| match number {
        // Slower in all than the silence allowed, but never silent for as long.
        0 => {
            whole(stream, VERSION, b"slow as it is", 0)?;
            for byte in b"slow as it i" {
                sleep(Duration::from_millis(100));
                stream.write_all(&[*byte])?;
            }
            // Now silent; the client hangs up.
            sleep(Duration::from_millis(1_300));
            Ok(())
        }
        // Not even a status.
        1 => {
            sleep(Duration::from_millis(1_300));
            Ok(())
        }
        _ => ranged(head, stream, b"slow as it is", usize::MAX),
    });
    let begun = Instant::now();
    run(&Download {
        silence: Duration::from_secs(1),
        ..server.download(folder.path())
    })
    .unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_fetched(folder.path(), b"slow as it is");
    let starts: Vec<_> = server.heads().iter().map(|head| range(head)).collect();
    assert_eq!(starts, [None, Some(12), Some(12)]);
}

#[test]
fn redirects_are_followed_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|_, head, stream| match head.starts_with("get /moved ") {
        true => whole(stream, VERSION, &weights(), usize::MAX),
        false => write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: /moved\r\nContent-Length: 0\r\n\r\n"
        ),
    });
    run(&server.download(folder.path())).unwrap();
    assert_fetched(folder.path(), &weights());

    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|_, _, stream| {
        write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"
        )
    });
    assert_eq!(message(&server.download(folder.path())), "too many redirects");
    assert_eq!(server.heads().len(), MAX_REDIRECTS as usize + 1);
    assert!(names(folder.path()).is_empty());
}

/// A server of https that answers every request alike.
fn https(answer: String) -> (SocketAddr, Download) {
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    let certificate = include_bytes!("../../../tests/tls/certificate.der").to_vec();
    let key = include_bytes!("../../../tests/tls/key.der").to_vec();
    let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.into()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)),
        )
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let _ = stream.write_all(answer.as_bytes());
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    let download = Download {
        pause: Duration::from_millis(1),
        proxy: None,
        // The certificate is of nobody's; what is tested is where redirects may lead.
        tls: TlsConfig::builder().disable_verification(true).build(),
        ..Download::new(format!("https://{address}/weights"), "")
    };
    (address, download)
}

#[test]
fn no_redirect_leads_from_https_to_http() {
    let folder = tempfile::tempdir().unwrap();
    let plain = Server::new(|_, _, stream| whole(stream, VERSION, &weights(), usize::MAX));
    let target = format!("http://{}/weights", plain.address);
    let answer = format!("HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n");
    let (_, mut download) = https(answer);
    download.target = folder.path().join("weights");
    assert_eq!(
        message(&download),
        format!(
            "the server redirects from https to {target}, where anybody on the way could change the file: refused"
        )
    );
    assert!(plain.heads().is_empty());
    assert!(names(folder.path()).is_empty());

    // The other way round, and from https to https.
    let (address, mut download) = https("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsafe".into());
    download.target = folder.path().join("weights");
    run(&download).unwrap();
    assert_fetched(folder.path(), b"safe");
    let answer =
        format!("HTTP/1.1 302 Found\r\nLocation: https://{address}/weights\r\nContent-Length: 0\r\n\r\n");
    let away = answer.clone();
    let plain = Server::new(move |_, _, stream| stream.write_all(away.as_bytes()));
    run(&Download {
        url: format!("http://{}/weights", plain.address),
        ..download.clone()
    })
    .unwrap();
    let (_, elsewhere) = https(answer);
    run(&Download {
        url: elsewhere.url,
        ..download
    })
    .unwrap();
    assert_fetched(folder.path(), b"safe");
}

#[test]
fn a_server_without_tls() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|_, _, stream| write!(stream, "HTTP/1.1 200 OK\r\n\r\n"));
    let download = server.download(folder.path());
    let url = download.url.replace("http://", "https://");
    let message = message(&Download {
        url,
        attempts: 1,
        ..download
    });
    assert!(
        message.starts_with("given up, attempt 1 of 1: timeout: "),
        "{message}"
    );
    assert!(names(folder.path()).is_empty());
}

#[test]
fn a_failed_download_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("weights"), "old").unwrap();
    let server = Server::new(|_, _, stream| write!(stream, "HTTP/1.1 403 Forbidden\r\n\r\n"));
    message(&server.download(folder.path()));
    assert_fetched(folder.path(), b"old");
}

#[test]
fn one_download_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(|_, _, stream| whole(stream, VERSION, &weights(), usize::MAX));
    let download = server.download(folder.path());
    let other = AtomicFile::create(&download.target).unwrap();
    assert!(message(&download).ends_with("weights.part is being written by another process"));
    assert!(server.heads().is_empty());
    drop(other);
    run(&download).unwrap();
}
