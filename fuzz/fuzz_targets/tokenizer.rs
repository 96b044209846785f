#![no_main]

use model_manager_fuzz::{prepare, target};

libfuzzer_sys::fuzz_target!(init: prepare("tokenizer"), |data: &[u8]| (target("tokenizer").run)(data));
