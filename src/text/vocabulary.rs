//! The vocabulary: which token has which id.

use std::collections::HashMap;

use crate::recognise::recognise;
use crate::{Error, Result, json};

/// The tokens of a `vocab.txt` and their ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    pub(super) ids: HashMap<String, i64>,
}

impl Vocabulary {
    /// Reads a vocabulary file: UTF-8, one token a line, `token<TAB>id`.
    ///
    /// The rules are those of the original's loader. White space around a line, a token and an id
    /// goes. A line without a tab is a token whose id is the number of lines before it, an empty
    /// line too. A line of three columns or more ends the vocabulary: it and what follows are not
    /// read. Of a token that stands there twice the later id counts. LF, CR and CRLF end a line. An
    /// id is a decimal integer with an optional sign and single underscores between its digits.
    ///
    /// Narrower than the original's: the digits are ASCII and the id fits 64 bits.
    ///
    /// # Errors
    /// [`Error::Vocabulary`] names the line that is not UTF-8 or whose id is no integer, and what the file is where it
    /// is a web page, an archive and the like ([`recognise`](crate::weights::recognise)).
    ///
    /// ```
    /// use ernie_vil::text::Vocabulary;
    /// let vocabulary = Vocabulary::parse("[PAD]\t0\n的\t5".as_bytes())?;
    /// assert_eq!(vocabulary.id("的"), Some(5));
    /// let error = Vocabulary::parse(b"[PAD]\t0\nfoo\tx").unwrap_err();
    /// assert_eq!(error.to_string(), r#"vocabulary: line 2: the id is "x", expected an integer"#);
    /// # Ok::<(), ernie_vil::Error>(())
    /// ```
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut ids = HashMap::new();
        // That of UTF-8 stays in the first token, as in the original; others say that the text is none.
        json::without_mark(bytes).map_err(Error::Vocabulary)?;
        // Every text is a vocabulary of some kind, so that these would only be missed for their special
        // tokens.
        if let Some(what) = recognise(bytes) {
            return Err(Error::Vocabulary(format!("the file is {what}")));
        }
        for (line_number, line) in (0i64..).zip(lines(bytes)) {
            let error = |message| Error::Vocabulary(format!("line {}: {message}", line_number + 1));
            let line = str::from_utf8(line).map_err(|e| {
                error(format!(
                    "byte {} is not UTF-8, expected UTF-8 text",
                    e.valid_up_to() + 1
                ))
            })?;
            let mut columns = line.trim_matches(is_space).split('\t');
            let token = columns.next().unwrap_or_default();
            let id = match (columns.next(), columns.next()) {
                (None, _) => line_number,
                (Some(id), None) => integer(id.trim_matches(is_space)).ok_or_else(|| {
                    // Enough to recognise it by; a line may be as long as the file.
                    let shown: String = id.chars().take(40).collect();
                    error(format!("the id is {shown:?}, expected an integer"))
                })?,
                (Some(_), Some(_)) => break,
            };
            ids.insert(token.trim_matches(is_space).to_owned(), id);
        }
        Ok(Self { ids })
    }

    /// The token's id, where it has one that can be a row of a word table: not negative and below
    /// 2^32.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).and_then(|&id| u32::try_from(id).ok())
    }

    /// Number of tokens. Ids may be fewer, or have gaps.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The tokens and their ids as the file gives them, in no particular order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, i64)> {
        self.ids.iter().map(|(token, &id)| (token.as_str(), id))
    }

    /// The id of `[PAD]`, which fills a row.
    pub fn pad(&self) -> Option<u32> {
        self.id("[PAD]")
    }

    /// The id of `[CLS]`, which begins a row.
    pub fn cls(&self) -> Option<u32> {
        self.id("[CLS]")
    }

    /// The id of `[SEP]`, which ends a caption.
    pub fn sep(&self) -> Option<u32> {
        self.id("[SEP]")
    }

    /// The id of `[MASK]`, which only pre-training uses.
    pub fn mask(&self) -> Option<u32> {
        self.id("[MASK]")
    }

    /// The id of `[UNK]`, a word that the vocabulary cannot build.
    pub fn unk(&self) -> Option<u32> {
        self.id("[UNK]")
    }
}

/// The lines, without what ends them. As in a Python text file, a CR alone ends one too, and
/// nothing follows the last line end.
fn lines(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let end = bytes
            .iter()
            .position(|b| matches!(b, b'\n' | b'\r'))
            .unwrap_or(bytes.len());
        let (line, rest) = bytes.split_at(end);
        bytes = rest.strip_prefix(b"\r\n").or(rest.get(1..)).unwrap_or_default();
        Some(line)
    })
}

/// White space as Python's `str.strip` has it: Unicode's and the four ASCII separators.
fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1C}'..='\u{1F}')
}

/// An integer as Python's `int` reads it, in ASCII digits.
fn integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    // Between any two underscores, and outside them, stands at least one digit.
    if !digits
        .split('_')
        .all(|group| !group.is_empty() && group.bytes().all(|b| b.is_ascii_digit()))
    {
        return None;
    }
    text.replace('_', "").parse().ok()
}
