//! `ernie-vil`, the native binary: flags, commands, the terminal and the HTTP server around the library.

// They panic where nobody reads any more and where a disk is full; `print` has what to use instead.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod builtin;
mod cli;
mod commands;
mod files;
mod images;
mod print;
mod progress;
mod run_config;
#[cfg(feature = "serve")]
mod serve;
mod signals;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use cli::{Cli, Command};
#[cfg(feature = "train")]
use commands::train;
use commands::{bench, classify, convert, download, embed, eval, info, score, search, tokenize};
use print::note;

fn main() -> ExitCode {
    prepare_burn();
    signals::prepare();
    let result = match Cli::try_parse() {
        Ok(cli) => run(cli),
        Err(usage) if usage.use_stderr() => {
            // Where that cannot be written either, the exit code has to do.
            let _ = usage.print();
            return ExitCode::from(2);
        }
        // What --help and --version print.
        Err(text) => print::checked(text.print()),
    };
    match result.and_then(|()| print::flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.downcast_ref::<print::Closed>().is_some() => ExitCode::SUCCESS,
        Err(error) => {
            note!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Keeps Burn from what no command asks for. It reads an optimizer's state by way of its default device,
/// which is a graphics card in a binary that can use one, whether the machine has one or not.
fn prepare_burn() {
    const DEFAULT_DEVICE: &str = "BURN_DEVICE";
    if std::env::var_os(DEFAULT_DEVICE).is_none() {
        // SAFETY: no other thread has been started.
        unsafe { std::env::set_var(DEFAULT_DEVICE, "flex") };
    }
}

fn run(cli: Cli) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(cli.global.threads)
        .build_global()
        .context("starting the threads")?;
    files::of(&cli.command).check()?;
    let global = &cli.global;
    match &cli.command {
        Command::Convert(args) => convert::run(args, global),
        Command::Download(args) => download::run(args, global),
        Command::Info(args) => info::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Embed(args) => embed::run(args, global),
        Command::Score(args) => score::run(args, global),
        Command::Eval(args) => eval::run(args, global),
        Command::Classify(args) => classify::run(args, global),
        Command::Search(args) => search::run(args, global),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(args, global),
        #[cfg(feature = "train")]
        Command::Train(args) => train::run(args, global),
        Command::Bench(args) => bench::run(args, global),
    }
}
