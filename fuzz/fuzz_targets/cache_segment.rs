#![no_main]

use model_manager_fuzz::{prepare, target};

libfuzzer_sys::fuzz_target!(init: prepare("cache_segment"), |data: &[u8]| (target("cache_segment").run)(data));
