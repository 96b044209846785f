#![no_main]

use model_manager_fuzz::{prepare, target};

libfuzzer_sys::fuzz_target!(init: prepare("remote_reply"), |data: &[u8]| (target("remote_reply").run)(data));
