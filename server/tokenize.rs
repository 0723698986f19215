//! `ernie-vil tokenize`: one text a line in, one JSON object a line out.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

use anyhow::{Context, Result, bail};
use ernie_vil::text::Tokenizer;
use serde::Serialize;

use crate::cli;
use crate::{builtin, model};

/// A longer line is refused: no caption is that long, and it must fit into memory.
const LONGEST_LINE: u64 = 16 << 20;

#[derive(Serialize)]
struct Tokens {
    tokens: Vec<String>,
    ids: Vec<u32>,
}

pub fn run(args: &cli::Tokenize) -> Result<()> {
    let tokenizer = match &args.model.model {
        Some(folder) => {
            let vocab = model::read(&folder.join(model::VOCAB), model::LARGEST_VOCAB)?;
            Tokenizer::parse(&vocab, model::read_config(folder)?.text.vocab_size)?
        }
        None => Tokenizer::parse(builtin::vocab()?, builtin::config()?.text.vocab_size)?,
    };
    let (name, input): (String, Box<dyn Read>) = match &args.file {
        Some(path) => {
            let file = File::open(path).with_context(|| path.display().to_string())?;
            (path.display().to_string(), Box::new(file))
        }
        None => ("standard input".into(), Box::new(io::stdin())),
    };
    let mut input = BufReader::new(input);
    let mut output = BufWriter::new(io::stdout().lock());
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        let read = (&mut input).take(LONGEST_LINE + 1).read_until(b'\n', &mut line);
        if read.with_context(|| format!("reading {name}"))? == 0 {
            break;
        }
        if line.len() as u64 > LONGEST_LINE {
            bail!("{name}: line {number} is longer than {LONGEST_LINE} bytes");
        }
        let text = str::from_utf8(&line).with_context(|| format!("{name}: line {number}"))?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        let tokens = Tokens {
            tokens: tokenizer.tokens(text),
            ids: tokenizer.ids(text),
        };
        serde_json::to_writer(&mut output, &tokens).map_err(io::Error::from)?;
        output.write_all(b"\n")?;
    }
    output.flush()?;
    Ok(())
}
