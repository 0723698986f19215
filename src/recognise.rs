//! What a file is that was given in the place of another one.

/// As many bytes at most are looked at.
const LOOKED_AT: usize = 4096;

/// Says what a file is that is neither weights nor a configuration, by its first bytes, and what to do about
/// it; `None` for what is not known. The answer goes behind "the file is".
///
/// ```
/// use ernie_vil::weights::recognise;
///
/// let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 815923\n";
/// let message = recognise(pointer).unwrap();
/// assert!(message.starts_with("a Git LFS pointer to a file of 815923 bytes"), "{message}");
/// assert_eq!(recognise(b"\x80\x04}."), None);
/// ```
pub fn recognise(bytes: &[u8]) -> Option<String> {
    let start = &bytes[..bytes.len().min(LOOKED_AT)];
    text(start)
        .or_else(|| archive(start))
        .or_else(|| compressed(start).map(str::to_owned))
        .or_else(|| other(start).map(str::to_owned))
}

/// A web server's answer, or the text that stands for a file in a repository.
fn text(start: &[u8]) -> Option<String> {
    let start = start
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(start)
        .trim_ascii_start();
    let begins = |with: &str| {
        let begin = start.get(..with.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(with.as_bytes()))
    };
    if begins("version https://git-lfs") || begins("version http://git-media") {
        let size = start
            .split(|&byte| byte == b'\n')
            .find_map(|line| line.strip_prefix(b"size "))
            .and_then(|size| str::from_utf8(size.trim_ascii()).ok()?.parse::<u64>().ok());
        let of = size.map(|size| format!(" of {size} bytes")).unwrap_or_default();
        return Some(format!(
            "a Git LFS pointer to a file{of}, not the file itself: \"git lfs pull\" in that repository fetches it"
        ));
    }
    if begins("<!doctype html") || begins("<html") || begins("<head") || begins("<body") {
        return Some(
            "an HTML page, such as a web site shows in the place of a file: download the file itself (on Hugging Face \
             an address with /resolve/ in it, on GitHub \"Raw\")"
                .into(),
        );
    }
    if begins("<?xml") || begins("<error") {
        return Some(
            "an XML document, such as a server's message of an error: download the file again, from an address that \
             has it"
                .into(),
        );
    }
    // Not every text in brackets: a vocabulary begins with "[PAD]".
    let is_json = match start {
        [b'{', rest @ ..] => matches!(rest.trim_ascii_start(), [] | [b'"' | b'}', ..]),
        [b'[', rest @ ..] => matches!(rest.trim_ascii_start(), [] | [b'{' | b'[' | b'"' | b']', ..]),
        _ => false,
    };
    if is_json && is_text(start) {
        if contains(start, b"\"weight_map\"") {
            return Some(
                "the JSON index of a checkpoint in several files: give the files that it lists, each by a --weights of \
                 its own"
                    .into(),
            );
        }
        return Some(format!(
            "a JSON document that begins with {}: a configuration, or a server's message of an error",
            shown(start)
        ));
    }
    None
}

fn archive(start: &[u8]) -> Option<String> {
    if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        // PyTorch writes `NAME/data.pkl` first, NumPy `NAME.npy`.
        return Some(match () {
            () if contains(start, b"data.pkl") || contains(start, b"/data/") => {
                "a checkpoint of PyTorch (a zip archive by torch.save), which is not read: load it in Python and save \
                 its tensors by safetensors.torch.save_file"
            }
            () if contains(start, b".npy") => {
                "a zip archive of NumPy arrays (.npz), which is not read: save its arrays by \
                 safetensors.numpy.save_file"
            }
            () => "a zip archive: unpack it, and give the file inside",
        }
        .into());
    }
    let is_tar = start.get(257..262) == Some(b"ustar");
    is_tar.then(|| "a tar archive: unpack it, and give the file inside".into())
}

fn compressed(start: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 7] = [
        (
            b"\x1f\x8b",
            "compressed by gzip (.gz, .tgz): unpack it by \"gunzip\" or \"tar xzf\"",
        ),
        (
            b"BZh",
            "compressed by bzip2: unpack it by \"bunzip2\" or \"tar xjf\"",
        ),
        (
            b"\xfd7zXZ\0",
            "compressed by xz: unpack it by \"unxz\" or \"tar xJf\"",
        ),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it by \"unzstd\""),
        (b"\x04\x22\x4d\x18", "compressed by lz4: unpack it by \"unlz4\""),
        (
            b"7z\xbc\xaf\x27\x1c",
            "a 7z archive: unpack it, and give the file inside",
        ),
        (
            b"Rar!\x1a\x07",
            "a RAR archive: unpack it, and give the file inside",
        ),
    ];
    KINDS
        .iter()
        .find(|(magic, _)| start.starts_with(magic))
        .map(|&(_, what)| what)
}

fn other(start: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 9] = [
        (
            // The magic number that torch.save wrote in front before it wrote zip archives.
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19",
            "a checkpoint of PyTorch (the old form of torch.save), which is not read: load it in Python and save its \
             tensors by safetensors.torch.save_file",
        ),
        (
            b"\x93NUMPY",
            "a NumPy array (.npy), which has no names of tensors",
        ),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file (.h5), which is not read"),
        (b"GGUF", "a GGUF file, which is not read"),
        (b"%PDF-", "a PDF document"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"\x7fELF", "a program (ELF)"),
        (
            b"(dp",
            "a pickle of protocol 0 or 1: save it with protocol 2 or a later one",
        ),
    ];
    if let Some((_, what)) = KINDS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(what);
    }
    if start.len() >= 64 && start.iter().all(|&byte| byte == 0) {
        return Some("all zeros at its start: it was not downloaded or copied whole");
    }
    // A tensor of Paddle's inference format: its version, no level of detail, the version of the tensor, and
    // the length of a description that begins with the field 1.
    if let (Some([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Some([length, 0, 0, 0, 8])) =
        (start.first_chunk::<16>(), start.get(16..21))
        && *length > 0
    {
        return Some(
            "parameters in Paddle's inference format (.pdiparams), which have no names: give the .pdparams of the same \
             model",
        );
    }
    None
}

/// Whether the bytes are UTF-8 without control characters, up to where they were cut.
fn is_text(start: &[u8]) -> bool {
    let text = match str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            str::from_utf8(&start[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.chars().any(|c| c.is_control() && !c.is_whitespace())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(bytes, part).is_some()
}

/// The first bytes as text in quotes.
pub(crate) fn shown(start: &[u8]) -> String {
    const MOST: usize = 40;
    let text = String::from_utf8_lossy(&start[..start.len().min(MOST)]);
    format!("{text:?}")
}

/// What is wrong with a file that does not begin as it should: what it is where that is known, and else its
/// first bytes.
pub(crate) fn mistaken(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "the file is empty: was it downloaded or copied whole?".into();
    }
    match recognise(bytes) {
        Some(what) => format!("the file is {what}"),
        None if is_text(&bytes[..bytes.len().min(LOOKED_AT)]) => {
            format!("the file is text that begins with {}", shown(bytes))
        }
        None => {
            let start: Vec<_> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            format!("the file begins with the bytes {}", start.join(" "))
        }
    }
}
