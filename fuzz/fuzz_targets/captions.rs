#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ernie_vil_fuzz::captions(bytes));
