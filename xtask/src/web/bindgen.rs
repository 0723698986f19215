//! `bindgen INPUT.wasm FOLDER`: the JavaScript, the types and the final WebAssembly of a compiled module.
//!
//! A program of its own, so that what it stands on is compiled for `cargo xtask web` alone.

use std::env;
use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [input, folder] = arguments.as_slice() else {
        eprintln!("Usage: bindgen INPUT.wasm FOLDER");
        return ExitCode::from(2);
    };
    let mut bindgen = Bindgen::new();
    // The caller names the WebAssembly file. A default in the JavaScript would have bundlers ship it twice.
    bindgen.omit_default_module_path(true);
    bindgen.input_path(input).out_name("ernie_vil").typescript(true);
    bindgen.remove_producers_section(true);
    match bindgen.web(true).and_then(|bindgen| bindgen.generate(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{input}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
