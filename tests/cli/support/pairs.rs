//! The pairs that the built-in model "scenes" is tested with.

use super::shared::read;

/// Returns the first lines of the file.
pub fn first_lines(count: usize) -> String {
    let all = String::from_utf8(read("models/scenes/test.tsv")).unwrap();
    all.split_inclusive('\n').take(count).collect()
}

/// Returns the first captions and their images in base64.
pub fn pairs(count: usize) -> Vec<(String, String)> {
    let ends = |line: &str| {
        let mut columns = line.split('\t');
        let caption = columns.next().unwrap().to_owned();
        (caption, columns.next_back().unwrap().to_owned())
    };
    first_lines(count).lines().map(ends).collect()
}
