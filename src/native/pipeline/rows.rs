//! Batches as they are read, and what is said of rows that are none.

use std::io::BufRead;
use std::sync::mpsc::SyncSender;

use super::times::Times;
use super::{OnError, Options, Skipped};
use crate::native::Result;
use crate::pairs::{Pair, PairReader, Position};

/// A batch as it was read.
pub(super) struct Raw {
    pub(super) rows: Vec<Result<Row, Skipped>>,
    /// In base64, each one once.
    pub(super) images: Vec<Vec<u8>>,
    pub(super) position: Position,
}

/// A row, with where its image is.
pub(super) struct Row {
    pub(super) line: u64,
    pub(super) id: String,
    pub(super) caption: String,
    /// The caption is the image's text, too: the line has no tab.
    is_one_column: bool,
    pub(super) image: Place,
}

/// Where the image of a row stands, or its vector.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// It is the last image of the batches before.
    Before,
    /// In the batch, by its number.
    Here(usize),
}

pub(super) fn read_batches<R: BufRead>(
    mut reader: PairReader<R>,
    options: &Options,
    times: &Times,
    out: &SyncSender<Result<Raw>>,
) {
    let limit = options.limit.unwrap_or(u64::MAX);
    let mut before: Option<Vec<u8>> = None;
    loop {
        let (mut rows, mut images) = (Vec::with_capacity(options.batch_size), Vec::new());
        let mut failure = None;
        Times::measure(&times.read, || {
            while rows.len() < options.batch_size && reader.position().rows < limit {
                let line = reader.position().line();
                match reader.next() {
                    None => break,
                    Some(Ok(pair)) => rows.push(row(pair, options, before.as_deref(), &mut images)),
                    // A row that is not text, if the reader goes on after it. What it cannot pass is no row
                    // to skip.
                    Some(Err(error))
                        if error.code() == "pairs"
                            && options.on_error == OnError::Skip
                            && !reader.has_ended() =>
                    {
                        rows.push(Err(Skipped {
                            line,
                            reason: error.to_string(),
                        }));
                    }
                    Some(Err(error)) => {
                        failure = Some(error);
                        break;
                    }
                }
            }
        });
        if let Some(last) = images.last() {
            before = Some(last.clone());
        }
        let is_last = rows.len() < options.batch_size;
        let raw = Raw {
            rows,
            images,
            position: reader.position(),
        };
        // Rows before a failure are finished first.
        if (!raw.rows.is_empty() && out.send(Ok(raw)).is_err()) || is_last {
            if let Some(error) = failure {
                let _ = out.send(Err(error.into()));
            }
            return;
        }
    }
}

/// Takes a pair apart. Its image is added to those of the batch, unless it is the last one that was read.
fn row(
    pair: Pair,
    options: &Options,
    before: Option<&[u8]>,
    images: &mut Vec<Vec<u8>>,
) -> Result<Row, Skipped> {
    let is_one_column = pair.is_one_column();
    if options.images_only && is_one_column {
        return Err(Skipped {
            line: pair.line,
            reason: one_column(&pair.caption, "an image id, a tab and the image in base64"),
        });
    }
    let image = match images.last() {
        Some(last) if *last == pair.image => Place::Here(images.len() - 1),
        None if before == Some(&pair.image) => Place::Before,
        _ => {
            images.push(pair.image);
            Place::Here(images.len() - 1)
        }
    };
    let (id, caption) = if options.images_only {
        (pair.caption, String::new())
    } else {
        (
            pair.image_id.unwrap_or_else(|| pair.line.to_string()),
            pair.caption,
        )
    };
    Ok(Row {
        line: pair.line,
        id,
        caption,
        is_one_column,
        image,
    })
}

/// What is wrong with a line that has no tab.
fn one_column(line: &str, expected: &str) -> String {
    let hint = match line {
        "" => return format!("the line is blank, expected {expected}; remove it"),
        line if line.starts_with(['{', '[']) => "; the line seems to be JSON",
        line if line.contains("\\t") => "; the line has a backslash and a t where a tab should be",
        line if line.contains(',') => "; columns are separated by tabs, not by commas (CSV)",
        line if line.contains([';', '|']) => "; columns are separated by tabs",
        line if line.contains(' ') => "; columns are separated by tabs, not by blanks",
        _ => "",
    };
    format!("one column, expected {expected}{hint}")
}

/// Adds to the reason why the image of a row cannot be read what the row seems to be.
pub(super) fn explained(row: &Row, options: &Options, reason: String) -> String {
    const COLUMNS: &str = "a caption, a tab, an image id, a tab and the image in base64";
    /// What the first columns of tables are called.
    const HEADERS: [&str; 17] = [
        "caption",
        "captions",
        "text",
        "texts",
        "title",
        "query",
        "sentence",
        "label",
        "description",
        "id",
        "image_id",
        "image",
        "img_id",
        "描述",
        "标题",
        "文本",
        "文字",
    ];
    /// How the usual images begin in base64.
    const IMAGES: [&str; 5] = ["/9j/", "iVBORw0KGgo", "UklGR", "SUkqA", "TU0AK"];
    let first = if options.images_only {
        &row.id
    } else {
        &row.caption
    };
    if row.is_one_column {
        return one_column(first, COLUMNS);
    }
    if first.len() > 60 && IMAGES.iter().any(|start| first.starts_with(start)) {
        let expected = match options.images_only {
            true => "an image id, a tab and the image in base64",
            false => COLUMNS,
        };
        return format!("the columns are in another order: the first one is an image, expected {expected}");
    }
    if row.line == 1 && HEADERS.contains(&first.trim_matches('"').to_lowercase().as_str()) {
        return format!("{reason}; is the line a header? Every line is read as a pair, so remove it");
    }
    reason
}
