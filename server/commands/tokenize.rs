//! `ernie-vil tokenize`: one text a line in, one JSON object a line out.

use std::io::{self, BufRead, BufReader, Read};

use anyhow::{Context, Result, bail};
use ernie_vil::native::folder::{LARGEST_VOCAB, VOCAB, read_config};
use ernie_vil::native::input;
use ernie_vil::text::Tokenizer;
use ernie_vil::text_file;
use serde::Serialize;

use crate::cli;
use crate::{builtin, print};

/// A longer line is refused: no caption is that long, and it must fit into memory.
const LONGEST_LINE: u64 = 16 << 20;
/// Bytes of results that are put together before they are written.
const MOST_BUFFERED: usize = 1 << 16;

#[derive(Serialize)]
struct Tokens {
    tokens: Vec<String>,
    ids: Vec<u32>,
}

pub fn run(args: &cli::Tokenize) -> Result<()> {
    let tokenizer = match &args.model.model {
        Some(folder) => {
            let vocab = input::read_regular(&folder.join(VOCAB), LARGEST_VOCAB)?;
            Tokenizer::parse(&vocab, read_config(folder)?.text.vocab_size)?
        }
        None => Tokenizer::parse(builtin::vocab()?, builtin::config()?.text.vocab_size)?,
    };
    let (name, input): (String, Box<dyn Read>) = match &args.file {
        Some(path) => (path.display().to_string(), Box::new(input::open(path)?.file)),
        None => ("standard input".into(), Box::new(io::stdin())),
    };
    let mut input = BufReader::new(input);
    let mut output = Vec::new();
    let mut line = Vec::new();
    for number in 1u64.. {
        // Before it waits for more: a program at the other end may wait for the answer to the last line.
        if input.buffer().is_empty() || output.len() >= MOST_BUFFERED {
            print::write_lines(&output)?;
            output.clear();
        }
        line.clear();
        let read = (&mut input).take(LONGEST_LINE + 1).read_until(b'\n', &mut line);
        if read.with_context(|| format!("reading {name}"))? == 0 {
            break;
        }
        if line.len() as u64 > LONGEST_LINE {
            bail!("{name}: line {number} is longer than {LONGEST_LINE} bytes");
        }
        let text = match number {
            // Also tells a file that is no text by its start.
            1 => text_file::text(&line).with_context(|| name.clone())?,
            _ => str::from_utf8(&line).with_context(|| format!("{name}: line {number}"))?,
        };
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        let tokens = Tokens {
            tokens: tokenizer.tokens(text),
            ids: tokenizer.ids(text),
        };
        serde_json::to_writer(&mut output, &tokens)?;
        output.push(b'\n');
    }
    print::write_lines(&output)
}
