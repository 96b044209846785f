#![no_main]

use model_manager_fuzz::{prepare, target};

libfuzzer_sys::fuzz_target!(init: prepare("vocabulary"), |data: &[u8]| (target("vocabulary").run)(data));
