#![no_main]

use model_manager_fuzz::{prepare, target};

libfuzzer_sys::fuzz_target!(init: prepare("http_body"), |data: &[u8]| (target("http_body").run)(data));
