#![no_main]

use model_manager_fuzz::{prepare, target};

libfuzzer_sys::fuzz_target!(init: prepare("safetensors"), |data: &[u8]| (target("safetensors").run)(data));
