//! Base64 against the original's decoding.

use ernie_vil::image::decode_base64;
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{json, read_golden};

#[test]
fn decodes_what_the_original_decodes_and_refuses_what_it_refuses() {
    let cases: Vec<Value> = json("tests/goldens/base64_cases.json");
    assert!(cases.len() >= 38);
    for case in &cases {
        let input = case["input"].as_str().unwrap();
        let ours = decode_base64(input.as_bytes());
        match case["hex"].as_str() {
            Some(hex) => {
                let bytes = ours.unwrap_or_else(|error| panic!("{input:?}: {error}"));
                let ours: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(ours, hex, "{input:?}");
            }
            None => {
                let error = ours.expect_err(input);
                assert_eq!(error.code(), "base64");
            }
        }
    }
}

#[test]
fn an_error_says_what_was_expected() {
    assert_eq!(
        decode_base64("QUJD\u{732b}".as_bytes()).unwrap_err().to_string(),
        "base64: byte 4 is 0xe7, expected ASCII characters only"
    );
    assert_eq!(
        decode_base64(b"QUJDR").unwrap_err().to_string(),
        "base64: 5 characters of the base64 alphabet without the padding that ends them, expected a multiple \
         of 4 or `=` after the last"
    );
}

/// How pictures reach a file of pairs in another form, and what is said of each.
#[test]
fn a_text_that_is_no_base64_of_an_image_is_named() {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    use ernie_vil::image::{Limits, decode, decode_base64_of_row, explain_base64};
    let read = |text: &str| {
        let image =
            decode_base64_of_row(text.as_bytes()).and_then(|bytes| decode(&bytes, &Limits::default()));
        image.map_err(|error| explain_base64(text.as_bytes(), error).to_string())
    };
    let image = read_golden("images/r00.jpg");
    let good = STANDARD.encode(&image);
    assert!(good.contains('+') && good.contains('/'));
    let whole = read(&good).unwrap();
    // What the original takes is taken as it takes it.
    for text in [
        good.replace('/', "\\/"),
        format!("\"{good}\""),
        format!(" {good}\r\n"),
        format!("{good}rest"),
    ] {
        if text.ends_with("rest") && !good.ends_with('=') {
            continue;
        }
        assert_eq!(read(&text).unwrap(), whole);
    }
    let hexadecimal: String = image.iter().map(|byte| format!("{byte:02x}")).collect();
    let numbers: Vec<String> = image.iter().map(u8::to_string).collect();
    let cases = [
        (URL_SAFE.encode(&image), "URL-safe base64 (with - and _)"),
        (URL_SAFE_NO_PAD.encode(&image), "URL-safe base64 (with - and _)"),
        (
            format!("b'{good}'"),
            "a Python bytes object as it is printed (b'...')",
        ),
        (format!("b\"{good}\""), "a Python bytes object"),
        (format!("\"b'{good}'\""), "a Python bytes object"),
        (r"b'\xff\xd8\xff\xe0'".into(), "a Python bytes object"),
        (
            format!("data:image/jpeg;base64,{good}"),
            "a data: URL, expected the base64 after its comma alone",
        ),
        (format!("DATA:;base64,{good}"), "a data: URL"),
        (format!("image/png;base64,{good}"), "a data: URL"),
        (format!("base64,{good}"), "base64 behind the word"),
        (
            "https://example.org/cat.jpg".into(),
            "an address (\"https://example.org/cat.jpg\")",
        ),
        ("s3://bucket/key".into(), "an address (\"s3://bucket/key\")"),
        ("blob:null/1234".into(), "an address"),
        ("images/0001.jpg".into(), "a file's path (\"images/0001.jpg\")"),
        ("0001.PNG".into(), "a file's path"),
        (r"C:\new\cat".into(), "a file's path"),
        ("../cats/17".into(), "a file's path"),
        (hexadecimal.clone(), "an image in hexadecimal"),
        (
            format!("0x{}", hexadecimal.to_uppercase()),
            "an image in hexadecimal",
        ),
        (
            STANDARD.encode(&good),
            "base64 that was encoded to base64 once more",
        ),
        (format!("[{}]", numbers.join(", ")), "a list of numbers"),
        (good.replace('+', "%2B"), "percent-encoded (%2B)"),
        (good.replace('+', " "), "base64 with blanks for \"+\""),
        (
            format!("{}\\n{}", &good[..76], &good[76..]),
            "line breaks written as a backslash and a letter",
        ),
        (
            good[..32_767.min(good.len())].to_owned() + "...",
            "cut off where it ends with",
        ),
        ("word".into(), "; the text is \"word\""),
        (
            "猫".into(),
            "byte 0 is 0xe7, expected ASCII characters only; the text is \"猫\"",
        ),
    ];
    for (text, expected) in cases {
        let start: String = text.chars().take(40).collect();
        let message = read(&text).expect_err(&start);
        assert!(message.contains(expected), "{start}: {message}");
        assert!(
            message.starts_with("base64: ") || message.starts_with("image: "),
            "{message}"
        );
        assert!(message.len() < 300, "{message}");
    }
    // A cell of a spreadsheet ends there, in the middle of the image.
    let large = STANDARD_NO_PAD.encode([&image[..], &[0; 40_000]].concat());
    let message = read(&large[..32_767]).unwrap_err();
    assert!(message.contains("cut off at 32767 characters"), "{message}");
    // An id is none of these, however it is written.
    let message = read("scene-0001-abcdefghijklmnopqrstuvwx").unwrap_err();
    assert!(message.contains("the text is \"scene-0001-"), "{message}");
    assert!(!message.contains("URL-safe"), "{message}");
    assert_eq!(
        read("").unwrap_err(),
        "image: no bytes, expected JPEG, PNG, WebP, BMP, TIFF or PNM"
    );
}

/// The rules of `binascii.a2b_base64` one bit string at a time.
fn reference(text: &[u8]) -> Option<Vec<u8>> {
    if text.iter().any(|&byte| byte > 127) {
        return None;
    }
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut padding) = (Vec::new(), 0, 0);
    let bytes = |bits: &[bool]| -> Vec<u8> {
        let byte = |chunk: &[bool]| chunk.iter().fold(0, |byte, &bit| byte << 1 | u8::from(bit));
        bits.chunks_exact(8).map(byte).collect()
    };
    for &byte in text {
        if byte == b'=' {
            if count % 4 > 1 {
                padding += 1;
                if count % 4 + padding > 3 {
                    return Some(bytes(&bits));
                }
            }
        } else if let Some(value) = alphabet.iter().position(|&letter| letter == byte) {
            bits.extend((0..6).rev().map(|bit| value >> bit & 1 == 1));
            count += 1;
            padding = 0;
        }
    }
    (count % 4 == 0).then(|| bytes(&bits))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn agrees_with_the_rules(text in "[A-Za-z0-9+/=]{0,24}|[AQ=\n -]{0,12}|.{0,12}") {
        prop_assert_eq!(decode_base64(text.as_bytes()).ok(), reference(text.as_bytes()));
    }

    #[test]
    fn agrees_with_the_rules_on_bytes(text in prop::collection::vec(any::<u8>(), 0..16)) {
        prop_assert_eq!(decode_base64(&text).ok(), reference(&text));
    }
}
