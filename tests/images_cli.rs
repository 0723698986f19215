//! The limits of images on the command line.

use std::fs;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ernie-vil"));
    command.arg("--quiet").args(arguments).output().unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A black picture of `P4`, one bit a pixel: its pixels are held, 4 bytes each.
fn bits(side: usize) -> Vec<u8> {
    let mut file = format!("P4 {side} {side} ").into_bytes();
    file.resize(file.len() + side.div_ceil(8) * side, 0xff);
    file
}

#[test]
fn the_message_names_the_flag_that_lets_an_image_through() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("large.ppm");
    fs::write(&picture, bits(1000)).unwrap();
    let picture = picture.to_str().unwrap();
    let says = "PNM of 1000 x 1000 pixels, which takes 3907 kB of memory to decode, expected at most 2048 kB, which \
                --max-image-memory raises";

    let classify = |memory| {
        run(&[
            "classify",
            "--labels",
            "红色,蓝色",
            "--max-image-memory",
            memory,
            picture,
        ])
    };
    assert!(
        error(&classify("2MB")).contains(says),
        "{}",
        error(&classify("2MB"))
    );
    assert!(!classify("2MB").status.success());
    assert!(classify("4MB").status.success());

    let search = |memory: &[&str]| {
        let images = folder.path().to_str().unwrap();
        run(&[&["search", "--images", images, "--text", "红色"], memory].concat())
    };
    let refused = search(&["--max-image-memory", "2MB"]);
    assert!(error(&refused).contains(says), "{}", error(&refused));
    assert!(search(&[]).status.success());
}
