#![no_main]

use model_manager_fuzz::{prepare, target};

libfuzzer_sys::fuzz_target!(init: prepare("gguf"), |data: &[u8]| (target("gguf").run)(data));
