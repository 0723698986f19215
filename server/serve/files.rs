//! Files of a folder over HTTP: the demo page and model folders.
//!
//! A name is looked up only where each of its parts is plain, and what it leads to has to lie within the folder
//! when all links have been followed. Files are sent in pieces as they are read.

use std::fs::{File, Metadata};
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE, VARY,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use ernie_vil::native::atomic_file::beside;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 16;

/// What makes a page isolated from others, without which it has no threads of WebAssembly, and closed to them.
const HEADERS: [(&str, &str); 5] = [
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-embedder-policy", "require-corp"),
    ("cross-origin-resource-policy", "same-origin"),
    ("content-security-policy", "frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
];

/// A folder whose files are served.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
}

/// A file that was found, opened.
struct Found {
    file: File,
    metadata: Metadata,
    name: String,
    /// `br` or `gzip`, where a compressed one lies beside it and may be sent.
    encoding: Option<&'static str>,
}

impl Folder {
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let root = path.canonicalize()?;
        if !root.is_dir() {
            return Err(std::io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { root })
    }

    /// The response for a path within the folder, percent-encoded as it came; none where there is no such file.
    pub async fn respond(&self, path: &str, method: &Method, headers: &HeaderMap) -> Option<Response> {
        let segments = segments(path)?;
        let (root, accepted) = (self.root.clone(), accepted(headers));
        let wanted = move || find(&root, &segments, accepted);
        let found = tokio::task::spawn_blocking(wanted).await.ok()??;
        respond(found, method, headers).await
    }
}

/// The parts of a path, decoded; none where one of them is not plain.
fn segments(path: &str) -> Option<Vec<String>> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let mut segments = Vec::new();
    for segment in path.split('/') {
        let segment = percent_decode(segment)?;
        // Neither `.` and `..` nor hidden files, no other system's separators and drives.
        if segment.starts_with('.') || segment.contains(['/', '\\', '\0', ':']) {
            return None;
        }
        segments.push(segment);
    }
    // A folder's own page; an empty part elsewhere is no name.
    if segments.last().is_some_and(String::is_empty) {
        segments.pop();
        segments.push("index.html".into());
    }
    (!segments.iter().any(String::is_empty)).then_some(segments)
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            rest = after;
            let digit = |byte: u8| char::from(byte).to_digit(16);
            bytes.push((digit(digits[0])? * 16 + digit(digits[1])?) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Which compressed forms the client takes, the better one first. Parts of a file are always of its plain form.
fn accepted(headers: &HeaderMap) -> [bool; 2] {
    if headers.contains_key(RANGE) {
        return [false; 2];
    }
    let list = headers
        .get(ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    ["br", "gzip"].map(|wanted| {
        list.split(',').any(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let refused =
                |part: &str| part.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()) == Some(0.0);
            parts.next().is_some_and(|name| name.eq_ignore_ascii_case(wanted)) && !parts.any(refused)
        })
    })
}

/// Opens a file, or a compressed form of it that lies beside it.
fn find(root: &Path, segments: &[String], [br, gzip]: [bool; 2]) -> Option<Found> {
    let mut path = root.to_owned();
    path.extend(segments);
    let name = segments.last()?.clone();
    let open = |path: &Path| {
        let path = path.canonicalize().ok()?;
        if !path.starts_with(root) {
            return None;
        }
        // A link may lead to a hidden file too.
        let hidden = |part: &std::ffi::OsStr| part.as_encoded_bytes().starts_with(b".");
        if path.strip_prefix(root).ok()?.iter().any(hidden) {
            return None;
        }
        // Opening a pipe would wait for its other end.
        path.metadata().ok().filter(Metadata::is_file)?;
        let file = File::open(path).ok()?;
        let metadata = file.metadata().ok()?;
        metadata.is_file().then_some((file, metadata))
    };
    let (file, metadata) = open(&path)?;
    for (wanted, encoding, suffix) in [(br, "br", ".br"), (gzip, "gzip", ".gz")] {
        if wanted && let Some((file, metadata)) = open(&beside(&path, suffix)) {
            return Some(Found {
                file,
                metadata,
                name,
                encoding: Some(encoding),
            });
        }
    }
    Some(Found {
        file,
        metadata,
        name,
        encoding: None,
    })
}

async fn respond(found: Found, method: &Method, request: &HeaderMap) -> Option<Response> {
    let length = found.metadata.len();
    let changed = found
        .metadata
        .modified()
        .ok()?
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let encoding = found
        .encoding
        .map_or(String::new(), |encoding| format!("-{encoding}"));
    let etag = format!("\"{length:x}-{:x}{encoding}\"", changed.as_nanos());

    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    for (name, value) in HEADERS {
        set(HeaderName::from_static(name), value);
    }
    set(ETAG, &etag);
    set(LAST_MODIFIED, &http_date(changed.as_secs()));
    set(VARY, "accept-encoding");
    set(ACCEPT_RANGES, "bytes");
    set(CONTENT_TYPE, content_type(&found.name));
    set(CACHE_CONTROL, cache_control(&found.name));
    if let Some(encoding) = found.encoding {
        set(CONTENT_ENCODING, encoding);
    }
    let matches = |list: &str| {
        let tags = list.split(',').map(|tag| tag.trim().trim_start_matches("W/"));
        list.trim() == "*" || tags.into_iter().any(|tag| tag == etag)
    };
    let text = |name: HeaderName| request.get(name).and_then(|value| value.to_str().ok());
    if text(IF_NONE_MATCH).is_some_and(matches) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().remove(CONTENT_TYPE);
        return Some(response);
    }
    // Parts of another version are no use to the client: it gets all of this one.
    let same = text(IF_RANGE).is_none_or(|tag| tag.trim() == etag);
    let range = text(RANGE).filter(|_| same && method == Method::GET);
    let (start, end) = match range.map_or(Wanted::All, |range| wanted(range, length)) {
        Wanted::All => (0, length),
        Wanted::Part(start, end) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let value = format!("bytes {start}-{}/{length}", end - 1);
            response.headers_mut().insert(CONTENT_RANGE, value.parse().ok()?);
            (start, end)
        }
        Wanted::Nothing => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            let value = format!("bytes */{length}");
            response.headers_mut().insert(CONTENT_RANGE, value.parse().ok()?);
            return Some(response);
        }
    };
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, (end - start).into());
    if method == Method::GET && end > start {
        let mut file = tokio::fs::File::from_std(found.file);
        if start > 0 {
            file.seek(SeekFrom::Start(start)).await.ok()?;
        }
        *response.body_mut() = Body::from_stream(ReaderStream::with_capacity(file.take(end - start), PIECE));
    }
    Some(response)
}

/// The bytes that a client asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    /// From, and up to without.
    Part(u64, u64),
    /// None that there are.
    Nothing,
}

/// Several parts at once are not sent; the client gets everything, as it may.
fn wanted(range: &str, length: u64) -> Wanted {
    let Some((first, last)) = range
        .trim()
        .strip_prefix("bytes=")
        .filter(|parts| !parts.contains(','))
        .and_then(|part| part.split_once('-'))
    else {
        return Wanted::All;
    };
    let (first, last) = (first.trim(), last.trim());
    let number = |text: &str| {
        text.parse::<u64>()
            .ok()
            .filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let (start, end) = match (number(first), number(last)) {
        (None, Some(count)) if first.is_empty() => (length.saturating_sub(count), length),
        (Some(start), None) if last.is_empty() => (start, length),
        (Some(start), Some(end)) if start <= end => (start, end.saturating_add(1).min(length)),
        _ => return Wanted::All,
    };
    if start < end {
        Wanted::Part(start, end)
    } else {
        Wanted::Nothing
    }
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "wasm" => "application/wasm",
        "txt" => "text/plain; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        _ => "application/octet-stream",
    }
}

/// Files whose name has a hash of what is in them, and weights, whose SHA-256 a model's manifest has (the package
/// fetches a file anew that has another), are kept for good. Of all others the client asks whether they changed.
fn cache_control(name: &str) -> &'static str {
    if has_hash(name) || is_weights(name) {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    }
}

/// `index-DmlrrWdE.js`
fn has_hash(name: &str) -> bool {
    let stem = name
        .trim_end_matches(".map")
        .rsplit_once('.')
        .map_or("", |(stem, _)| stem);
    let Some((_, hash)) = stem
        .char_indices()
        .rev()
        .nth(8)
        .and_then(|(i, c)| (c == '-').then(|| stem.split_at(i + 1)))
    else {
        return false;
    };
    // A word of eight letters is no hash; one of them has a digit or capitals.
    hash.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        && hash
            .bytes()
            .any(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
}

/// `text.safetensors` and its shards, `text.safetensors.000`.
fn is_weights(name: &str) -> bool {
    let shard = name
        .rsplit_once('.')
        .filter(|(_, number)| number.bytes().all(|byte| byte.is_ascii_digit()));
    shard.map_or(name, |(stem, _)| stem).ends_with(".safetensors")
}

/// Seconds since 1970 as HTTP writes a date.
fn http_date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a date by eras of 400 years, which begin on the first of March.
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = era * 400 + year_of_era + u64::from(month < 2);
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    let months = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    format!(
        "{weekday}, {day:02} {} {year} {:02}:{:02}:{:02} GMT",
        months[month as usize],
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_looked_up() {
        let parts = |path| segments(path).map(|parts| parts.join("|"));
        assert_eq!(parts("/").as_deref(), Some("index.html"));
        assert_eq!(parts("/a/b.js").as_deref(), Some("a|b.js"));
        assert_eq!(parts("/a/").as_deref(), Some("a|index.html"));
        assert_eq!(parts("/%E7%8C%AB.png").as_deref(), Some("猫.png"));
        for bad in [
            "/../x",
            "/%2e%2e/x",
            "/a/..%2fx",
            "/a%2fb",
            "/.git/config",
            "/a//b",
            "/%00",
            "/c%3a",
            "/a%5cb",
            "/%zz",
            "/%ff",
        ] {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }

    #[test]
    fn ranges() {
        assert_eq!(wanted("bytes=0-0", 10), Wanted::Part(0, 1));
        assert_eq!(wanted("bytes=5-", 10), Wanted::Part(5, 10));
        assert_eq!(wanted("bytes=-3", 10), Wanted::Part(7, 10));
        assert_eq!(wanted("bytes=-30", 10), Wanted::Part(0, 10));
        assert_eq!(wanted("bytes=8-99", 10), Wanted::Part(8, 10));
        assert_eq!(wanted("bytes=10-", 10), Wanted::Nothing);
        assert_eq!(wanted("bytes=-0", 10), Wanted::Nothing);
        for all in ["bytes=1-2,4-5", "items=1-2", "bytes=5-2", "bytes=-", "bytes=+1-2"] {
            assert_eq!(wanted(all, 10), Wanted::All, "{all}");
        }
    }

    #[test]
    fn what_is_kept_for_good() {
        for name in [
            "index-DmlrrWdE.js",
            "index-DNzjq_qy.css",
            "index-DmlrrWdE.js.map",
            "text.safetensors",
            "text.safetensors.003",
        ] {
            assert!(cache_control(name).ends_with("immutable"), "{name}");
        }
        for name in [
            "index.html",
            "manifest.json",
            "config.json",
            "sw.js",
            "my-computer.js",
            "001.png",
            "vocab.txt",
        ] {
            assert_eq!(cache_control(name), "no-cache", "{name}");
        }
    }

    #[test]
    fn dates() {
        assert_eq!(http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(http_date(1_709_210_096), "Thu, 29 Feb 2024 12:34:56 GMT");
    }
}
