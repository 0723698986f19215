//! What the targets start from.

/// The recorded files that a target starts from, by how their names end. What lies in
/// `fuzz/seeds/TARGET/` comes in addition.
pub const RECORDED: &[(&str, &[&str])] = &[
    ("base64", &[]),
    ("caption", &["tsv"]),
    ("captions", &["jsonl"]),
    ("config", &["json"]),
    (
        "image",
        &["bin", "bmp", "gif", "jpg", "png", "ppm", "tif", "webp"],
    ),
    ("index", &["safetensors"]),
    ("npy", &[]),
    ("out", &["out"]),
    ("pairs", &["tsv"]),
    ("pickle", &["pdparams"]),
    ("request", &["json"]),
    ("safetensors", &["safetensors"]),
    ("vocabulary", &["txt"]),
];
