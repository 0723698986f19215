#![no_main]

use ernie_vil_fuzz::mutate;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|bytes: &[u8]| ernie_vil_fuzz::pickle(bytes));

fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
    mutate::in_place("pickle", data, size, most, seed).unwrap_or_else(|| fuzzer_mutate(data, size, most))
});
