//! Base64 against the original's decoding.

use ernie_vil::image::decode_base64;
use proptest::prelude::*;
use serde_json::Value;

const CASES: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/goldens/base64_cases.json"
));

#[test]
fn decodes_what_the_original_decodes_and_refuses_what_it_refuses() {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
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
