//! Captions and vocabularies against what the original makes of them.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use ernie_vil::text::{Tokenizer, UNICODE_VERSION, Vocabulary, words};
use ernie_vil::{Error, Result};
use proptest::prelude::*;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::support::{read_golden, repository, skipped};

fn tokenizer(vocabulary: &[u8]) -> Result<Tokenizer> {
    Tokenizer::new(Vocabulary::parse(vocabulary)?)
}

fn tiny() -> Tokenizer {
    tokenizer(&read_golden("vocab_tiny.txt")).unwrap()
}

/// The real vocabulary, which is not part of the repository: from `ERNIE_VIL_VOCAB`, or from beside
/// the checkout. Or why there is none.
fn real_vocabulary() -> std::result::Result<Vec<u8>, String> {
    let beside = || repository("../shared/reference/vocab.txt");
    let path = std::env::var_os("ERNIE_VIL_VOCAB").map_or_else(beside, PathBuf::from);
    std::fs::read(&path).map_err(|error| {
        format!(
            "{}: {error}; set ERNIE_VIL_VOCAB to ERNIE 3.0 Base's vocab.txt",
            path.display()
        )
    })
}

#[derive(Deserialize)]
struct Recorded {
    texts: Vec<RecordedText>,
    tiny_texts: Vec<RecordedIds>,
}

#[derive(Deserialize)]
struct RecordedText {
    text: String,
    tokens: Vec<String>,
    ids: Vec<u32>,
    row48: Vec<u32>,
    row16: Option<Vec<u32>>,
    #[serde(default)]
    differs_under_unicode: Vec<String>,
}

#[derive(Deserialize)]
struct RecordedIds {
    text: String,
    ids: Vec<u32>,
}

fn recorded() -> Recorded {
    serde_json::from_slice(&read_golden("tokenizer.json")).unwrap()
}

#[test]
fn real_vocabulary_gives_the_original_ids() {
    let vocabulary = match real_vocabulary() {
        Ok(bytes) => bytes,
        Err(reason) => return skipped(reason),
    };
    let vocabulary = Vocabulary::parse(&vocabulary).unwrap();
    assert_eq!(vocabulary.len(), 39_979);
    assert_eq!(vocabulary.id("$"), Some(18_005));
    assert_eq!(
        [
            vocabulary.pad(),
            vocabulary.cls(),
            vocabulary.sep(),
            vocabulary.mask(),
            vocabulary.unk()
        ],
        [0, 1, 2, 3, 39_979].map(Some)
    );
    let tokenizer = Tokenizer::new(vocabulary).unwrap();
    assert_eq!(tokenizer.rows(), 39_980);

    let (major, minor, update) = UNICODE_VERSION;
    let version = format!("{major}.{minor}.{update}");
    let texts = recorded().texts;
    assert_eq!(texts.len(), 360);
    for recorded in texts {
        let text = &recorded.text;
        // The ids as recorded hold for every version but those named.
        assert!(!recorded.differs_under_unicode.contains(&version), "{text:?}");
        assert_eq!(tokenizer.tokens(text), recorded.tokens, "{text:?}");
        assert_eq!(tokenizer.ids(text), recorded.ids, "{text:?}");
        assert_eq!(tokenizer.row(text, 48).unwrap(), recorded.row48, "{text:?}");
        if let Some(row) = recorded.row16 {
            assert_eq!(tokenizer.row(text, 16).unwrap(), row, "{text:?}");
        }
    }
}

#[test]
fn tiny_vocabulary_gives_the_original_ids() {
    let tokenizer = tiny();
    assert_eq!(tokenizer.rows(), 2000);
    let texts = recorded().tiny_texts;
    assert_eq!(texts.len(), 40);
    for recorded in texts {
        assert_eq!(tokenizer.ids(&recorded.text), recorded.ids, "{:?}", recorded.text);
    }
}

/// The rows that went into the original's text tower, for a file of captions.
#[test]
fn tiny_vocabulary_gives_the_rows_of_the_embeddings() {
    let tokenizer = tiny();
    let bytes = read_golden("embeddings_tiny.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let rows = tensors.tensor("input_ids").unwrap();
    assert_eq!(rows.shape(), [40, 48]);
    let rows: Vec<u64> = rows
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|id| u64::from_le_bytes(*id))
        .collect();
    let pairs = String::from_utf8(read_golden("coco_cn_style.tsv")).unwrap();
    let ids = pairs.lines().flat_map(|line| {
        let caption = line.trim().split('\t').next().unwrap();
        tokenizer.row(caption, 48).unwrap()
    });
    assert_eq!(ids.map(u64::from).collect::<Vec<_>>(), rows);
}

/// Every character alone, against a digest of what the original's own tokeniser makes of it under
/// Python 3.11, whose tables are Unicode 14.0's. It says no if the compiler's or a crate's tables
/// change what a caption becomes.
#[test]
fn every_character_gives_the_original_words() {
    let mut digest = Sha256::new();
    for character in '\0'..=char::MAX {
        let line = words(character.encode_utf8(&mut [0; 4])).join(" ") + "\n";
        digest.update(line);
    }
    let hex: String = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(
        hex,
        "054de89efb4e20207a606cb79759bbe6f5b6fdce97a822d664b85eafc47685cc"
    );
}

#[test]
fn vocabulary_files_load_as_in_the_original() {
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Expected {
        Vocab(HashMap<String, i64>),
        Error(String),
    }
    let cases: BTreeMap<String, Expected> =
        serde_json::from_slice(&read_golden("vocab_cases/expected.json")).unwrap();
    assert_eq!(cases.len(), 12);
    for (name, expected) in cases {
        let loaded = Vocabulary::parse(&read_golden(format!("vocab_cases/{name}.txt")));
        match expected {
            Expected::Vocab(expected) => {
                let loaded = loaded.unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(loaded.len(), expected.len(), "{name}");
                for (token, id) in loaded.entries() {
                    assert_eq!(expected.get(token), Some(&id), "{name}: {token:?}");
                }
            }
            Expected::Error(message) => {
                assert!(message.contains("invalid literal"), "{name}: {message}");
                assert_eq!(
                    loaded.expect_err(&name).to_string(),
                    r#"vocabulary: line 2: the id is "x", expected an integer"#
                );
            }
        }
    }
}

#[test]
fn vocabulary_lines_end_at_lf_cr_and_crlf() {
    let vocabulary = Vocabulary::parse(b"a\rb\nc\r\nd\n\re\r").unwrap();
    let ids = ["a", "b", "c", "d", "", "e"].map(|token| vocabulary.id(token));
    assert_eq!(ids, [0, 1, 2, 3, 4, 5].map(Some));
    assert_eq!(vocabulary.len(), 6);
    assert!(Vocabulary::parse(b"").unwrap().is_empty());
}

#[test]
fn vocabulary_ids_are_read_as_python_reads_them() {
    for (id, expected) in [
        ("007", 7),
        ("+4", 4),
        ("-0", 0),
        ("1_000_000", 1_000_000),
        (" 5\u{3000}", 5),
    ] {
        let vocabulary = Vocabulary::parse(format!("a\t{id}").as_bytes()).unwrap();
        assert_eq!(vocabulary.id("a"), Some(expected), "{id:?}");
    }
    for id in [
        "_1",
        "1_",
        "1__0",
        "+_1",
        "+",
        "--1",
        "+-1",
        "1 0",
        "0x1",
        "1.0",
        "1e3",
        "9223372036854775808",
    ] {
        let error = Vocabulary::parse(format!("a\n\nb\t{id}").as_bytes()).unwrap_err();
        assert!(matches!(error, Error::Vocabulary(_)));
        assert_eq!(
            error.to_string(),
            format!("vocabulary: line 3: the id is {id:?}, expected an integer")
        );
    }
    let negative = Vocabulary::parse(b"a\t-1\nb\t4294967296\nc\t4294967295").unwrap();
    assert_eq!(
        ["a", "b", "c"].map(|token| negative.id(token)),
        [None, None, Some(u32::MAX)]
    );
}

#[test]
fn vocabulary_that_is_not_utf8_names_the_line_and_byte() {
    let error = Vocabulary::parse(b"[PAD]\nab\xff\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "vocabulary: line 2: byte 3 is not UTF-8, expected UTF-8 text"
    );
}

#[test]
fn tokenizer_says_what_the_vocabulary_lacks() {
    let message = |vocabulary: &str| tokenizer(vocabulary.as_bytes()).unwrap_err().to_string();
    assert_eq!(
        message("[PAD]\n[UNK]"),
        "vocabulary: no id for [CLS], [SEP], expected [PAD], [CLS], [SEP] and [UNK] among the tokens"
    );
    assert!(message("").contains("no id for [PAD], [CLS], [SEP], [UNK],"));
    assert_eq!(
        message("[PAD]\t4\n[CLS]\n[SEP]\n[UNK]"),
        "vocabulary: [PAD] has the id 4, expected 0"
    );
    assert_eq!(
        message("[PAD]\n[CLS]\n[SEP]\n[UNK]\nbar\t-1"),
        "vocabulary: \"bar\" has the id -1, expected 0 to 4294967295"
    );
}

#[test]
fn row_is_cut_and_filled() {
    let tokenizer = tokenizer("[PAD]\n[CLS]\n[SEP]\n[UNK]\n猫\n##s\nsit".as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("", 2).unwrap(), [1, 2]);
    assert_eq!(tokenizer.encode("猫 sits", 2).unwrap(), [1, 2]);
    assert_eq!(tokenizer.encode("猫 sits", 4).unwrap(), [1, 4, 6, 2]);
    assert_eq!(tokenizer.encode("猫 sits", 5).unwrap(), [1, 4, 6, 5, 2]);
    assert_eq!(tokenizer.encode("猫 sits", usize::MAX).unwrap(), [1, 4, 6, 5, 2]);
    assert_eq!(tokenizer.row("猫", 5).unwrap(), [1, 4, 2, 0, 0]);
    for max_tokens in [0, 1] {
        let error = tokenizer.encode("猫", max_tokens).unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error}");
        assert_eq!(tokenizer.row("猫", max_tokens), Err(error));
    }
}

#[test]
fn special_tokens_in_a_caption_are_plain_text() {
    assert_eq!(words("[CLS]"), ["[", "cls", "]"]);
    let tokenizer = tiny();
    let cls = Vocabulary::parse(&read_golden("vocab_tiny.txt"))
        .unwrap()
        .cls()
        .unwrap();
    assert!(!tokenizer.ids("[CLS] 猫").contains(&cls));
}

#[test]
fn control_and_unassigned_characters_vanish() {
    assert_eq!(
        words("a\0b\u{B}c\u{1C}d\u{85}e\u{FFFD}f\u{FEFF}g\u{200D}h\u{AD}i"),
        ["abcdefghi"]
    );
    // Private use, a noncharacter, unassigned in Unicode 14.0: always, until 15.0.
    assert_eq!(words("a\u{E000}b\u{FFFF}c\u{378}d\u{1FAE8}e"), ["abcde"]);
    assert_eq!(words("\u{200B}\0"), Vec::<String>::new());
}

#[test]
fn white_space_separates() {
    let spaces = [
        '\t', '\n', '\r', ' ', '\u{A0}', '\u{1680}', '\u{2003}', '\u{2028}', '\u{2029}', '\u{202F}',
        '\u{3000}',
    ];
    for space in spaces {
        assert_eq!(
            words(&format!("{space}a{space}{space}b{space}")),
            ["a", "b"],
            "{space:?}"
        );
    }
}

#[test]
fn ideographs_stand_alone() {
    for ideograph in
        "一鿿㐀䶿\u{20000}\u{2A6DF}\u{2A700}\u{2B738}\u{2B740}\u{2B81D}\u{2B820}\u{2CEA1}\u{FA0E}".chars()
    {
        assert_eq!(
            words(&format!("a{ideograph}b")),
            ["a", &ideograph.to_string(), "b"]
        );
    }
    // Compatibility ideographs become the unified ones.
    assert_eq!(words("a豈b\u{2F800}"), ["a", "豈", "b", "丽"]);
    // Kana, Bopomofo, radicals and the extensions from F on do not stand alone.
    assert_eq!(
        words("aあァㄅ⼀〇\u{2CEB0}\u{30000}b"),
        ["aあァㄅ⼀〇\u{2CEB0}\u{30000}b"]
    );
}

#[test]
fn lower_case_is_the_full_one() {
    assert_eq!(words("ÀẞǅⅧⒶＡ"), ["aßǆⅷⓐａ"]);
    // The dot that lower-casing makes of the capital's is a mark.
    assert_eq!(words("İI"), ["ii"]);
    assert_eq!(
        words("ΑΣ ΣΑΣ Σ ΑΣ. ΑΣΑ ΑΣ'Α"),
        ["ας", "σας", "σ", "ας", ".", "ασα", "ασ", "'", "α"]
    );
    // The lower-casing sees the word as it is between white space, with its marks.
    assert_eq!(words("Α\u{301}Σ\u{301} Α中Σ"), ["ας", "α", "中", "σ"]);
}

#[test]
fn marks_go_and_hangul_falls_apart() {
    assert_eq!(words("é e\u{301} ệ が ̈"), ["e", "e", "e", "か"]);
    // Only Mn is dropped: enclosing (Me) and spacing (Mc) marks stay.
    assert_eq!(words("a\u{20DD} \u{93E}"), ["a\u{20DD}", "\u{93E}"]);
    assert_eq!(words("각"), ["\u{1100}\u{1161}\u{11A8}"]);
    assert_eq!(words("Å"), ["a"]);
}

#[test]
fn punctuation_stands_alone() {
    let ascii = (0..128u8).map(char::from).filter(char::is_ascii_punctuation);
    for mark in ascii.chain("，。！“”…—《》·¿﹏・".chars()) {
        assert_eq!(
            words(&format!("a{mark}b{mark}{mark}")),
            ["a", &mark.to_string(), "b", &mark.to_string(), &mark.to_string()]
        );
        assert_eq!(words(&format!("é{mark}")), ["e", &mark.to_string()]);
    }
    // Symbols are not punctuation; what decomposes to a mark of punctuation is.
    assert_eq!(words("a＄é€b￥"), ["a＄e€b￥"]);
    assert_eq!(words("a\u{37E}b\u{1FEF}c"), ["a", ";", "b", "`", "c"]);
}

#[test]
fn words_of_more_than_100_characters_are_unknown() {
    let tokenizer =
        tokenizer(format!("[PAD]\n[CLS]\n[SEP]\n[UNK]\nа\n##а\n{}", "b".repeat(101)).as_bytes()).unwrap();
    assert_eq!(tokenizer.ids(&"а".repeat(100)).len(), 100);
    assert_eq!(tokenizer.ids(&"а".repeat(101)), [3]);
    // Counted after the marks are gone.
    assert_eq!(tokenizer.ids(&"а\u{301}".repeat(100)).len(), 100);
    // Even one that the vocabulary holds.
    assert_eq!(tokenizer.ids(&"b".repeat(101)), [3]);
    assert_eq!(tokenizer.tokens(&"b".repeat(101)), ["[UNK]"]);
    // One piece that fails takes the whole word with it.
    assert_eq!(tokenizer.tokens("аz а"), ["[UNK]", "а"]);
}

#[test]
fn caption_of_ten_megabytes_is_taken() {
    let tokenizer = tiny();
    let one = tokenizer.ids("一只猫, ");
    let many = tokenizer.ids(&"一只猫, ".repeat(1 << 20));
    assert_eq!(many.len(), one.len() << 20);
    assert_eq!(many[many.len() - one.len()..], one);
    assert_eq!(
        tokenizer.ids(&"각\u{301}".repeat(2 << 20)),
        tokenizer.ids("\u{1F600}")
    );
}

/// Strings in which the rules meet: marks, cases, spaces, ideographs, punctuation, anything.
fn caption() -> impl Strategy<Value = String> {
    let character = prop_oneof![
        any::<char>(),
        proptest::char::range('\0', '\u{7F}'),
        proptest::char::range('\u{300}', '\u{3FF}'),
        proptest::char::range('\u{2000}', '\u{206F}'),
        proptest::char::range('\u{3000}', '\u{30FF}'),
        proptest::char::range('\u{4E00}', '\u{4EFF}'),
        proptest::char::range('\u{AC00}', '\u{FFFF}'),
    ];
    proptest::collection::vec(character, 0..200).prop_map(String::from_iter)
}

proptest! {
    #[test]
    fn any_text_gives_clean_words(text in caption()) {
        for word in words(&text) {
            prop_assert!(!word.is_empty());
            prop_assert!(!word.contains(|c: char| c.is_whitespace() || c.is_control()), "{word:?}");
            prop_assert!(!word.contains(|c: char| c.is_ascii_uppercase()), "{word:?}");
            let punctuation = word.contains(|c: char| c.is_ascii_punctuation());
            prop_assert!(!punctuation || word.len() == 1, "{word:?}");
        }
    }

    #[test]
    fn any_text_gives_ids_of_the_vocabulary(text in caption(), max_tokens in 2usize..64) {
        let tokenizer = tiny();
        let ids = tokenizer.ids(&text);
        prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.rows()));

        let vocabulary = Vocabulary::parse(&read_golden("vocab_tiny.txt")).unwrap();
        let tokens = tokenizer.tokens(&text);
        let of_tokens: Vec<u32> = tokens.iter().map(|token| vocabulary.id(token).unwrap()).collect();
        prop_assert_eq!(&of_tokens, &ids);

        let encoded = tokenizer.encode(&text, max_tokens).unwrap();
        let kept = ids.len().min(max_tokens - 2);
        prop_assert_eq!(encoded.len(), kept + 2);
        prop_assert_eq!(&encoded[1..=kept], &ids[..kept]);
        let row = tokenizer.row(&text, max_tokens).unwrap();
        prop_assert_eq!(row.len(), max_tokens);
        prop_assert_eq!(&row[..encoded.len()], &encoded[..]);
        prop_assert!(row[encoded.len()..].iter().all(|&id| id == 0));
    }

    /// Each piece is the longest that the vocabulary has for what is left, and the pieces put
    /// together are the word.
    #[test]
    fn pieces_are_the_longest_there_are(word in "[ab]{1,12}") {
        let list = "[PAD] [CLS] [SEP] [UNK] a ab aba bb ##a ##b ##ba ##bab ##aabb";
        let tokenizer = tokenizer(list.replace(' ', "\n").as_bytes()).unwrap();
        let tokens = tokenizer.tokens(&word);
        if word.starts_with("ba") || word == "b" {
            prop_assert_eq!(tokens, ["[UNK]"]);
            return Ok(());
        }
        let mut rest = word.as_str();
        for token in &tokens {
            let prefix = if rest.len() == word.len() { "" } else { "##" };
            let longest = (1..=rest.len()).rev().map(|end| format!("{prefix}{}", &rest[..end]));
            let longest = longest.into_iter().find(|piece| list.split(' ').any(|known| known == piece));
            prop_assert_eq!(Some(token), longest.as_ref());
            rest = &rest[token.len() - prefix.len()..];
        }
        prop_assert_eq!(rest, "");
    }

    #[test]
    fn any_bytes_are_a_vocabulary_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        match Vocabulary::parse(&bytes) {
            Ok(vocabulary) => prop_assert!(vocabulary.len() <= bytes.len()),
            Err(error) => prop_assert_eq!(error.code(), "vocabulary"),
        }
    }

    /// Near enough to a vocabulary that every rule is met.
    #[test]
    fn any_lines_are_a_vocabulary_or_an_error(
        text in "([a猫 ]{0,3}(\t[0-9_+ x-]{0,5}){0,2}(\r|\n|\r\n)){0,12}",
    ) {
        match Vocabulary::parse(text.as_bytes()) {
            Ok(vocabulary) => prop_assert!(vocabulary.len() <= 24),
            Err(error) => prop_assert!(error.to_string().starts_with("vocabulary: line "), "{error}"),
        }
    }
}
