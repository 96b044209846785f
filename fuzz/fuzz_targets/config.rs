#![no_main]

use model_manager_fuzz::{prepare, target};

libfuzzer_sys::fuzz_target!(init: prepare("config"), |data: &[u8]| (target("config").run)(data));
