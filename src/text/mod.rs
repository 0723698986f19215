//! Text: a caption becomes the token ids that the text tower takes.
//!
//! Caption -> words ([`words`]: cleaned, lower-cased, without accents, split at punctuation) ->
//! tokens (WordPiece over a [`Vocabulary`]) -> ids between `[CLS]` and `[SEP]` ([`Tokenizer`]).

mod normalize;
mod tokenizer;
mod unicode;
mod vocabulary;

pub use normalize::words;
pub use tokenizer::Tokenizer;
pub use unicode::UNICODE_VERSION;
pub use vocabulary::Vocabulary;
