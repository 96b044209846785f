#![no_main]

use model_manager_fuzz::{prepare, target};

libfuzzer_sys::fuzz_target!(init: prepare("arrow_column"), |data: &[u8]| (target("arrow_column").run)(data));
