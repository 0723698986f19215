//! `ernie-vil convert` on checkpoints in other projects' names, and on files that are no checkpoints.

use std::fs;
use std::path::Path;

use ernie_vil::ModelConfig;
use tempfile::TempDir;

use crate::support::{as_paddlenlp, golden, mistaken, needed, paddlenlp_config, pdparams, run, text};

/// `convert` on this file of weights; the folder's fingerprint, or the message.
fn convert(
    folder: &Path,
    weights: &[u8],
    config: &Path,
    image_config: Option<&Path>,
) -> Result<String, String> {
    let path = folder.join("model_state.pdparams");
    fs::write(&path, weights).unwrap();
    let (vocab, output) = (golden("vocab_tiny.txt"), folder.join("model"));
    let text = |path: &Path| text(path).to_owned();
    let mut args = vec!["convert".to_owned(), "--overwrite".into()];
    args.extend([
        "--weights".into(),
        text(&path),
        "--text-config".into(),
        text(config),
    ]);
    args.extend(["--vocab".into(), text(&vocab), "--output".into(), text(&output)]);
    args.extend(
        image_config
            .into_iter()
            .flat_map(|path| ["--image-config".into(), text(path)]),
    );
    let output = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

#[test]
fn convert_takes_paddlenlp_s_folder_as_it_is() {
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("config.json");
    fs::write(&config, paddlenlp_config().to_string()).unwrap();
    let ours = needed("tiny");
    let (text, vision) = (
        golden("models/tiny_text_config.json"),
        golden("models/tiny_vision_config.json"),
    );
    let original = convert(folder.path(), &pdparams(&ours), &text, Some(&vision)).unwrap();
    let theirs = convert(
        folder.path(),
        &pdparams(&as_paddlenlp(&ours)),
        &config,
        Some(&config),
    )
    .unwrap();
    assert!(original.contains("fingerprint "));
    assert_eq!(original, theirs);
    let config = fs::read(folder.path().join("model/config.json")).unwrap();
    assert!(ModelConfig::from_json(&config).unwrap().logit_scale.is_some());
}

#[test]
fn convert_says_what_is_wrong_once() {
    let folder = TempDir::new().unwrap();
    let (text, vision) = (
        golden("models/tiny_text_config.json"),
        golden("models/tiny_vision_config.json"),
    );
    let mut broken = needed("tiny");
    broken.get_mut("visual.norm_pre.bias").unwrap().1[3] = f32::NAN;
    let message = convert(folder.path(), &pdparams(&broken), &text, Some(&vision)).unwrap_err();
    assert_eq!(message.matches("value 3 is NaN").count(), 1, "{message}");
    assert_eq!(message.matches("visual.norm_pre.bias").count(), 1, "{message}");
    for (what, bytes, expected) in mistaken() {
        let message = convert(folder.path(), &bytes, &text, Some(&vision)).unwrap_err();
        assert!(
            message.contains("model_state.pdparams: weights: "),
            "{what}: {message}"
        );
        assert_eq!(message.matches(expected).count(), 1, "{what}: {message}");
    }
    // Cut short, and a folder in its place.
    let whole = pdparams(&needed("tiny"));
    let message = convert(folder.path(), &whole[..whole.len() / 2], &text, Some(&vision)).unwrap_err();
    assert!(message.contains("the file is cut short or damaged"), "{message}");
    let path = folder.path().to_str().unwrap();
    let text = text.to_str().unwrap();
    let vocab = golden("vocab_tiny.txt");
    let args = [
        "convert",
        "--weights",
        path,
        "--text-config",
        text,
        "--vocab",
        vocab.to_str().unwrap(),
        "--output",
    ];
    let output = run(&[&args[..], &["nowhere"]].concat());
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains(path) && message.contains("is a folder, expected a file of weights"),
        "{message}"
    );
}
