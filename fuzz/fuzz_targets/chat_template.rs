#![no_main]

use model_manager_fuzz::{prepare, target};

libfuzzer_sys::fuzz_target!(init: prepare("chat_template"), |data: &[u8]| (target("chat_template").run)(data));
