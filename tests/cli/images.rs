//! The limits of images on the command line.

use std::fs;

use crate::support::{black_pnm, remarks, run};

#[test]
fn the_message_names_the_flag_that_lets_an_image_through() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("large.ppm");
    fs::write(&picture, black_pnm(1000)).unwrap();
    let picture = picture.to_str().unwrap();
    let says = "PNM of 1000 x 1000 pixels, which takes 3907 kB of memory to decode, expected at most 2048 kB, which \
                --max-image-memory raises";

    let classify = |memory| {
        run(&[
            "classify",
            "--quiet",
            "--labels",
            "红色,蓝色",
            "--max-image-memory",
            memory,
            picture,
        ])
    };
    assert!(
        remarks(&classify("2MB")).contains(says),
        "{}",
        remarks(&classify("2MB"))
    );
    assert!(!classify("2MB").status.success());
    assert!(classify("4MB").status.success());

    let search = |memory: &[&str]| {
        let images = folder.path().to_str().unwrap();
        run(&[
            &["search", "--quiet", "--images", images, "--text", "红色"],
            memory,
        ]
        .concat())
    };
    let refused = search(&["--max-image-memory", "2MB"]);
    assert!(remarks(&refused).contains(says), "{}", remarks(&refused));
    assert!(search(&[]).status.success());
}
