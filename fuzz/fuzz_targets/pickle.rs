#![no_main]

use model_manager_fuzz::{prepare, target};

libfuzzer_sys::fuzz_target!(init: prepare("pickle"), |data: &[u8]| (target("pickle").run)(data));
