//! From a caption to the words that WordPiece cuts into tokens.

use std::ops::ControlFlow;

use unicode_normalization::char::{canonical_combining_class, decompose_canonical};

use super::unicode::{Class, class};

/// The words of a caption, as WordPiece gets them.
///
/// Control characters and unassigned code points are dropped, CJK ideographs stand alone, what is
/// left is split at white space; each part is lower-cased, decomposed (NFD), loses its marks of
/// category Mn, and is split at punctuation, every mark of which is a word.
///
/// This is the original's order, which differs from the usual BERT normaliser: the full lower-casing
/// comes before the marks are dropped and knows the final sigma, and Hangul stays in its jamo.
///
/// ```
/// use ernie_vil::text::words;
/// assert_eq!(words("Café里的Ｔ恤, ΑΣ!"), ["cafe", "里", "的", "ｔ", "恤", ",", "ας", "!"]);
/// ```
pub fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let _ = for_each_word(text, |word| {
        words.push(word.to_owned());
        ControlFlow::Continue(())
    });
    words
}

/// Calls `visit` with each of the caption's [`words`], until it breaks.
pub(super) fn for_each_word(text: &str, mut visit: impl FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
    let mut splitter = Splitter::default();
    for character in text.chars() {
        match class(character) {
            Class::Dropped => {}
            Class::Space => splitter.finish(&mut visit)?,
            _ if is_unified_ideograph(character) => {
                splitter.finish(&mut visit)?;
                visit(character.encode_utf8(&mut [0; 4]))?;
            }
            _ if is_compatibility_ideograph(character) => {
                splitter.finish(&mut visit)?;
                splitter.part.push(character);
                splitter.finish(&mut visit)?;
            }
            _ => splitter.part.push(character),
        }
    }
    splitter.finish(&mut visit)
}

/// Turns the parts of a caption between white space into words.
#[derive(Default)]
struct Splitter {
    /// The part as it stands in the caption, but for what was dropped.
    part: String,
    /// The word under way, where it is not a slice of the part.
    word: String,
    /// The part's decomposition, each character with its combining class.
    decomposed: Vec<(u8, char)>,
}

impl Splitter {
    /// Ends the part: visits its words and leaves it empty.
    fn finish(&mut self, visit: &mut impl FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
        let visited = if self.part.is_ascii() {
            self.split_ascii(visit)
        } else {
            self.split_decomposed(visit)
        };
        self.part.clear();
        visited
    }

    /// ASCII has nothing to decompose, so its words are slices of the part.
    fn split_ascii(&mut self, visit: &mut impl FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
        self.part.make_ascii_lowercase();
        let mut rest = self.part.as_str();
        while let Some(at) = rest.find(|c: char| c.is_ascii_punctuation()) {
            if at > 0 {
                visit(&rest[..at])?;
            }
            visit(&rest[at..at + 1])?;
            rest = &rest[at + 1..];
        }
        if rest.is_empty() {
            return ControlFlow::Continue(());
        }
        visit(rest)
    }

    /// Any other part: lower-cased, decomposed and without its marks, then split.
    fn split_decomposed(&mut self, visit: &mut impl FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
        self.word.clear();
        // The string's lower-casing, not its characters': only that one knows the final sigma.
        decompose(&self.part.to_lowercase(), &mut self.decomposed);
        for &(_, character) in &self.decomposed {
            match class(character) {
                Class::Mark => {}
                Class::Punctuation => {
                    if !self.word.is_empty() {
                        visit(&self.word)?;
                        self.word.clear();
                    }
                    visit(character.encode_utf8(&mut [0; 4]))?;
                }
                _ => self.word.push(character),
            }
        }
        if self.word.is_empty() {
            return ControlFlow::Continue(());
        }
        visit(&self.word)
    }
}

/// Writes the canonical decomposition (NFD) of `text` to `out`.
///
/// unicode-normalization's iterator does the same, but holds the tables of the compatibility forms too, a tenth of
/// the module that browsers download.
fn decompose(text: &str, out: &mut Vec<(u8, char)>) {
    out.clear();
    for character in text.chars() {
        decompose_canonical(character, |part| {
            out.push((canonical_combining_class(part), part))
        });
    }
    // Marks stand behind their base by class; those of one class as they came.
    for sequence in out.chunk_by_mut(|_, (class, _)| *class != 0) {
        sequence.sort_by_key(|(class, _)| *class);
    }
}

/// An ideograph that stands alone and is its own lower case and decomposition.
///
/// The ranges are the original's: of the extensions they hold A to E, and later ones make words as
/// letters do.
fn is_unified_ideograph(character: char) -> bool {
    matches!(
        character,
        '\u{4E00}'..='\u{9FFF}'
            | '\u{3400}'..='\u{4DBF}'
            | '\u{20000}'..='\u{2A6DF}'
            | '\u{2A700}'..='\u{2CEAF}'
    )
}

/// An ideograph that stands alone and mostly decomposes to a unified one.
fn is_compatibility_ideograph(character: char) -> bool {
    matches!(character, '\u{F900}'..='\u{FAFF}' | '\u{2F800}'..='\u{2FA1F}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use unicode_normalization::UnicodeNormalization;

    use super::decompose;

    fn decomposed(text: &str) -> String {
        let mut out = Vec::new();
        decompose(text, &mut out);
        out.into_iter().map(|(_, character)| character).collect()
    }

    #[test]
    fn every_character_decomposes_as_the_standard_says() {
        for character in '\0'..=char::MAX {
            // Between marks of other classes, so that the order shows.
            let text = format!("a\u{0301}{character}\u{0323}\u{0301}b");
            assert_eq!(decomposed(&text), text.nfd().collect::<String>(), "{character:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_does(text in "\\PC*") {
            prop_assert_eq!(decomposed(&text), text.nfd().collect::<String>());
        }
    }
}
