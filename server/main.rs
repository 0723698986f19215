//! `ernie-vil`, the native binary: files, threads and the terminal around the library.

mod atomic_file;
mod bench;
mod builtin;
mod classify;
mod cli;
mod convert;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod download;
mod embed;
mod eval;
mod fetch;
mod info;
mod model;
mod pipeline;
#[cfg(feature = "train")]
mod plot;
mod progress;
mod run_config;
mod score;
mod search;
#[cfg(feature = "serve")]
mod serve;
mod spool;
mod tokenize;
#[cfg(feature = "train")]
mod train;
#[cfg(feature = "train")]
mod train_config;
#[cfg(feature = "train")]
mod train_data;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    // Bad usage ends here, with exit code 2.
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has seen enough (`| head`) is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(cli.global.threads)
        .build_global()
        .context("starting the threads")?;
    let global = &cli.global;
    match &cli.command {
        Command::Convert(args) => convert::run(args, global),
        Command::Download(args) => fetch::run(args, global),
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

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
