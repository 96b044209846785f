#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (model_manager_fuzz::target("http_body").run)(data));
