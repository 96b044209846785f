#![no_main]

use model_manager_fuzz::{prepare, target};

libfuzzer_sys::fuzz_target!(init: prepare("modules"), |data: &[u8]| (target("modules").run)(data));
