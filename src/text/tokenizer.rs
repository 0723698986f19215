//! From a caption to token ids.

use std::fmt;
use std::ops::ControlFlow;

use tokenizers::models::wordpiece::WordPiece;
use tokenizers::{Model, Token};

use super::normalize::for_each_word;
use super::vocabulary::Vocabulary;
use crate::{Error, Result};

/// A longer word is `[UNK]`, in characters. The original's number.
const LONGEST_WORD: usize = 100;

/// Turns captions into token ids as the original does.
///
/// The `tokenizers` crate's WordPiece model works on words that [`super::words`] finds. The crate's
/// pipeline around a model is left out: it keeps for every character where in the caption it came
/// from, which nothing here asks for and which takes most of the time, and its BERT normaliser and
/// pre-tokeniser have other rules and other Unicode tables than the original.
///
/// ```
/// use ernie_vil::text::{Tokenizer, Vocabulary};
/// let vocabulary = "[PAD]\n[CLS]\n[SEP]\n[UNK]\n猫\nsit\n##s\n.";
/// let tokenizer = Tokenizer::new(Vocabulary::parse(vocabulary.as_bytes())?)?;
/// assert_eq!(tokenizer.tokens("猫 Sits."), ["猫", "sit", "##s", "."]);
/// assert_eq!(tokenizer.ids("猫 Sits."), [4, 5, 6, 7]);
/// assert_eq!(tokenizer.encode("猫狗", 8)?, [1, 4, 3, 2]);
/// assert_eq!(tokenizer.row("猫狗", 8)?, [1, 4, 3, 2, 0, 0, 0, 0]);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    model: WordPiece,
    cls: u32,
    sep: u32,
    rows: usize,
}

impl Tokenizer {
    /// Reads a vocabulary file for a model whose word table has so many rows.
    ///
    /// # Errors
    /// As [`Vocabulary::parse`] and [`Tokenizer::new`], and [`Error::Vocabulary`] where an id is beyond the
    /// table.
    pub fn parse(vocabulary: &[u8], table_rows: usize) -> Result<Self> {
        let tokenizer = Self::new(Vocabulary::parse(vocabulary)?)?;
        if tokenizer.rows > table_rows {
            return Err(Error::Vocabulary(format!(
                "the largest id is {}, but the model's word table has {table_rows} rows",
                tokenizer.rows - 1
            )));
        }
        Ok(tokenizer)
    }

    /// A tokeniser over this vocabulary.
    ///
    /// # Errors
    /// [`Error::Vocabulary`] where a special token is missing (it says which), where `[PAD]` is not
    /// 0, the id that fills a row and that the text tower's mask leaves out, and where a token's id
    /// can be no row of a word table.
    pub fn new(vocabulary: Vocabulary) -> Result<Self> {
        let (Some(pad), Some(cls), Some(sep), Some(_)) = (
            vocabulary.pad(),
            vocabulary.cls(),
            vocabulary.sep(),
            vocabulary.unk(),
        ) else {
            let missing = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"].into_iter();
            let missing: Vec<_> = missing.filter(|token| vocabulary.id(token).is_none()).collect();
            let hint = match missing
                .iter()
                .any(|token| vocabulary.id(&format!("\u{feff}{token}")).is_some())
            {
                true => {
                    "; the file begins with a byte order mark, which is a part of its first token: save it without"
                }
                false => "",
            };
            return Err(Error::Vocabulary(format!(
                "no id for {}, expected [PAD], [CLS], [SEP] and [UNK] among the tokens{hint}",
                missing.join(", ")
            )));
        };
        if pad != 0 {
            return Err(Error::Vocabulary(format!("[PAD] has the id {pad}, expected 0")));
        }
        // Reading an empty list is how to get an empty map of the crate's own type without naming
        // the crate that the type is from.
        let mut ids = WordPiece::read_bytes(&[]).map_err(|e| Error::Vocabulary(e.to_string()))?;
        let mut rows = 0;
        for (token, id) in vocabulary.ids {
            let id = u32::try_from(id).map_err(|_| {
                // Enough to recognise it by; a token may be as long as the file.
                let token: String = token.chars().take(40).collect();
                Error::Vocabulary(format!("{token:?} has the id {id}, expected 0 to {}", u32::MAX))
            })?;
            rows = rows.max((id as usize).saturating_add(1));
            ids.insert(token, id);
        }
        let model = WordPiece::builder()
            .vocab(ids)
            .unk_token("[UNK]".into())
            .continuing_subword_prefix("##".into())
            .max_input_chars_per_word(LONGEST_WORD)
            .build()
            .map_err(|e| Error::Vocabulary(e.to_string()))?;
        Ok(Self {
            model,
            cls,
            sep,
            rows,
        })
    }

    /// How many rows the text tower's word table must have at least: one more than the largest id.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The caption's tokens, without `[CLS]` and `[SEP]`, however many.
    pub fn tokens(&self, text: &str) -> Vec<String> {
        let mut tokens = Vec::new();
        let _ = for_each_word(text, |word| {
            tokens.extend(self.pieces(word).into_iter().map(|piece| piece.value));
            ControlFlow::Continue(())
        });
        tokens
    }

    /// The ids of the caption's tokens, without `[CLS]` and `[SEP]`, however many.
    pub fn ids(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.append_ids(text, usize::MAX, &mut ids);
        ids
    }

    /// `[CLS]`, at most `max_tokens - 2` ids of the caption, `[SEP]`: from 2 to `max_tokens` ids.
    ///
    /// Nothing behind the word that gives the last id is looked at, so a long caption costs no more
    /// than a short one.
    ///
    /// # Errors
    /// [`Error::Config`] where `max_tokens` is below 2.
    pub fn encode(&self, text: &str, max_tokens: usize) -> Result<Vec<u32>> {
        let room = max_tokens.checked_sub(2).ok_or_else(|| {
            Error::Config(format!(
                "a caption may have {max_tokens} tokens, expected at least 2 ([CLS] and [SEP])"
            ))
        })?;
        let mut ids = Vec::with_capacity(max_tokens.min(text.len().saturating_add(2)));
        ids.push(self.cls);
        self.append_ids(text, room, &mut ids);
        ids.push(self.sep);
        Ok(ids)
    }

    /// [`encode`](Self::encode), filled up with 0 to `max_tokens` ids.
    ///
    /// # Errors
    /// [`Error::Config`] where `max_tokens` is below 2.
    pub fn row(&self, text: &str, max_tokens: usize) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, max_tokens)?;
        ids.resize(max_tokens, 0);
        Ok(ids)
    }

    /// Appends the ids of the caption's tokens, at most `most`.
    fn append_ids(&self, text: &str, most: usize, ids: &mut Vec<u32>) {
        if most == 0 {
            return;
        }
        let end = ids.len().saturating_add(most);
        let _ = for_each_word(text, |word| {
            // Most words of a caption are an ideograph and stand in the vocabulary as they are:
            // looking there first spares the model's lists. Bytes are never fewer than characters.
            match self.model.token_to_id(word) {
                Some(id) if word.len() <= LONGEST_WORD => ids.push(id),
                _ => ids.extend(self.pieces(word).into_iter().map(|piece| piece.id)),
            }
            if ids.len() < end {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        ids.truncate(end);
    }

    /// The tokens of one word.
    fn pieces(&self, word: &str) -> Vec<Token> {
        let pieces = self.model.tokenize(word);
        pieces.expect("the model's only error is a vocabulary without [UNK], which new() refuses")
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.model.fmt(f)
    }
}
