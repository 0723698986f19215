//! Text by its lines, and JSON by its tokens.

use super::{Random, items, noise};

/// Strings that something may not be prepared for.
const ODD: [&str; 16] = [
    "",
    " ",
    "\t",
    "\0",
    "\r",
    "\u{feff}",
    "\u{200d}\u{301}",
    "\u{1f1e8}\u{1f1f3}",
    "\u{2028}",
    "[PAD]",
    "[UNK]",
    "##",
    "-",
    "_",
    "1_0",
    "\u{ff11}",
];

/// Lines and the columns in them.
pub fn lines(random: &mut Random, bytes: &[u8], most: usize) -> Vec<u8> {
    if bytes.is_empty() {
        return noise(random, Vec::new());
    }
    let mut lines: Vec<Vec<u8>> = bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    let total = lines.len();
    items(random, &mut lines, |random, line| {
        let mut columns: Vec<Vec<u8>> = line.split(|&byte| byte == b'\t').map(<[u8]>::to_vec).collect();
        items(random, &mut columns, |random, column| match random.below(5) {
            0 => *column = noise(random, std::mem::take(column)),
            1 => *column = random.number(total as u64).to_string().into_bytes(),
            2 => column.extend(random.pick(&ODD).bytes()),
            3 => {
                let at = random.below(column.len() + 1);
                column.splice(at..at, random.pick(&ODD).bytes());
            }
            _ => {
                let times = 1 << random.below(13);
                *column = column.repeat(times.min(most / column.len().max(1)));
            }
        });
        *line = columns.join(random.pick(&[&b"\t"[..], b"\t\t", b" ", b"\t"]));
    });
    let mut joined = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        if number > 0 {
            joined.extend_from_slice(if random.one_in(64) { b"\r\n" } else { b"\n" });
        }
        joined.extend(line);
        if joined.len() > most {
            break;
        }
    }
    joined
}

/// Cuts JSON, or what is written like it, into its tokens: strings with their quotes, numbers and words,
/// single signs and the space between.
fn tokens(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut tokens = Vec::new();
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_');
        let length = match first {
            b'"' | b'\'' => {
                let mut length = 1;
                while length < rest.len() && rest[length] != first {
                    length += if rest[length] == b'\\' { 2 } else { 1 };
                }
                (length + 1).min(rest.len())
            }
            _ if is_word(&first) => rest.iter().take_while(|byte| is_word(byte)).count(),
            _ if first.is_ascii_whitespace() => {
                rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
            }
            _ => 1,
        };
        tokens.push(rest[..length].to_vec());
        rest = &rest[length..];
    }
    tokens
}

/// The tokens from the one at `at`, which opens something, to the one that closes it.
fn group(tokens: &[Vec<u8>], at: usize) -> usize {
    let mut depth = 0usize;
    for (number, token) in tokens[at..].iter().enumerate() {
        match token.as_slice() {
            b"{" | b"[" | b"(" => depth += 1,
            b"}" | b"]" | b")" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at + number + 1;
        }
    }
    tokens.len()
}

/// JSON by its tokens: numbers, strings and what they make up.
pub fn json(random: &mut Random, bytes: &[u8], most: usize) -> Vec<u8> {
    let mut tokens = tokens(bytes);
    let Some(at) = random.place(tokens.len()) else {
        return random.pick(&["{}", "[]", "null", "\"\"", "0"]).into();
    };
    let end = group(&tokens, at);
    match random.below(8) {
        // A value, or a key, where another one is expected.
        0 => {
            let from = random.below(tokens.len());
            let copy = tokens[from..group(&tokens, from)].to_vec();
            tokens.splice(at..end, copy);
        }
        // Many of them.
        1 => {
            let group = &tokens[at..end];
            let size: usize = group.iter().map(Vec::len).sum();
            let times = (1usize << random.below(14)).min(most / (size + 1).max(1));
            let comma = random.one_in(2);
            let mut copies = Vec::new();
            for number in 0..times {
                copies.extend_from_slice(group);
                if comma && number + 1 < times {
                    copies.push(b",".to_vec());
                }
            }
            tokens.splice(at..end, copies);
        }
        // Many levels around it.
        2 => {
            let depth = 1 << random.below(12);
            let (open, close) = random.pick(&[("[", "]"), ("{\"a\":", "}")]);
            let size = depth * (open.len() + close.len());
            if size < most {
                tokens.insert(end, close.repeat(depth).into());
                tokens.insert(at, open.repeat(depth).into());
            }
        }
        3 => drop(tokens.drain(at..end)),
        _ => items(random, &mut tokens, |random, token| match token.first() {
            Some(quote @ (b'"' | b'\'')) => {
                let quote = *quote;
                let inner = random.pick(&[
                    "\\ud800",
                    "\\ud83d\\ude00",
                    "\\u0000",
                    "\\\"",
                    "\\/",
                    "\u{feff}",
                    "data:image/png;base64,",
                    "e",
                    "\\",
                    "F32",
                    "I8",
                    "1",
                    "<f4",
                    "__metadata__",
                    "\u{732b}",
                ]);
                match random.below(4) {
                    0 => *token = noise(random, std::mem::take(token)),
                    1 => {
                        let inner = inner.repeat((1usize << random.below(12)).min(most / inner.len()));
                        *token = [&[quote], inner.as_bytes(), &[quote]].concat();
                    }
                    _ => {
                        let at = 1.min(token.len());
                        token.splice(at..at, inner.bytes());
                    }
                }
            }
            Some(b'0'..=b'9' | b'-') => {
                let old = str::from_utf8(token)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .unwrap_or(0);
                *token = match random.below(6) {
                    0 => random
                        .pick(&[
                            "-1", "1e999", "1e-999", "0.5", "-0", "01", "NaN", "null", "true", "\"1\"",
                        ])
                        .into(),
                    1 => "9".repeat(1 << random.below(9)).into(),
                    _ => random.number(old).to_string().into(),
                };
            }
            _ => {
                *token = random
                    .pick(&[
                        "{", "}", "[", "]", ",", ":", " ", "null", "true", "false", "\"", "(",
                    ])
                    .into()
            }
        }),
    }
    tokens.concat()
}
