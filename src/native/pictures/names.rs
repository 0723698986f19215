//! Paths as texts, such as the ids of an index are.

use std::path::{Path, PathBuf};

/// In front of a name that is not UTF-8. No path within a folder begins like that, so that all other names
/// can stay as they are.
const ESCAPED: &str = "//";

/// A path as a text. Where it is not UTF-8 its bytes are percent-encoded behind two slashes. `None` where the
/// system's names are no bytes and it is not Unicode.
pub fn name_of(path: &Path) -> Option<String> {
    if let Some(name) = path.to_str() {
        return Some(name.to_owned());
    }
    let mut name = ESCAPED.to_owned();
    for chunk in bytes_of(path)?.utf8_chunks() {
        name.push_str(&chunk.valid().replace('%', "%25"));
        name.extend(chunk.invalid().iter().map(|byte| format!("%{byte:02X}")));
    }
    Some(name)
}

/// The path within `root` of a [name](super::Picture::name).
pub fn path_of(root: &Path, name: &str) -> PathBuf {
    let escaped = name.strip_prefix(ESCAPED);
    match escaped.and_then(unescape).and_then(path_of_bytes) {
        Some(path) => root.join(path),
        None => root.join(name),
    }
}

/// Percent-encoding decoded; none where it is not well-formed.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let code = part
            .get(..2)
            .filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    Some(bytes)
}

#[cfg(unix)]
fn bytes_of(path: &Path) -> Option<&[u8]> {
    use std::os::unix::ffi::OsStrExt;
    Some(path.as_os_str().as_bytes())
}

#[cfg(unix)]
fn path_of_bytes(bytes: Vec<u8>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Some(std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn bytes_of(_: &Path) -> Option<&[u8]> {
    None
}

#[cfg(not(unix))]
fn path_of_bytes(_: Vec<u8>) -> Option<PathBuf> {
    None
}

#[cfg(test)]
mod tests {
    #[cfg(unix)]
    use super::*;

    #[cfg(unix)]
    #[test]
    fn every_name_is_a_text_and_comes_back() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let root = Path::new("/root");
        for (bytes, name) in [
            (&b"a/b.jpg"[..], "a/b.jpg"),
            ("猫/50%.jpg".as_bytes(), "猫/50%.jpg"),
            (b"%FF.jpg", "%FF.jpg"),
            (b"\xff.jpg", "//%FF.jpg"),
            (b"50%\xc3/\xe7\x8c\xab.jpg", "//50%25%C3/猫.jpg"),
            (b"50%25\xff", "//50%2525%FF"),
        ] {
            let path = Path::new(OsStr::from_bytes(bytes));
            assert_eq!(name_of(path).unwrap(), name);
            assert_eq!(path_of(root, name), root.join(path));
        }
        // What is no such encoding is a name as it is.
        assert_eq!(path_of(root, "//%F"), Path::new("//%F"));
    }
}
