//! Every setting in every way it can be given.

use std::collections::HashMap;

use super::*;

struct Environment(HashMap<&'static str, &'static str>);

impl Host for Environment {
    fn env(&self, name: &str) -> Option<String> {
        self.0.get(name).map(ToString::to_string)
    }

    fn package_dir(&self, _: &str) -> Option<PathBuf> {
        None
    }
}

fn environment<const N: usize>(pairs: [(&'static str, &'static str); N]) -> Environment {
    Environment(pairs.into())
}

#[test]
fn keywords_beat_the_environment_which_beats_defaults() {
    let host = environment([("MEMORY_EFFICIENT_CACHE_SIZE", "7"), ("AI_TEMPERATURE", "0.5")]);
    let settings = Settings::resolve(&host, [("cache_size", SettingValue::Int(9))]).unwrap();
    assert_eq!((settings.cache_size, settings.temperature, settings.max_tokens), (9, 0.5, 150));
    assert!(settings.is_given("cache_size") && !settings.is_given("temperature"));
}

#[test]
fn a_dtype_of_ones_own_goes_first_and_auto_is_what_the_machine_multiplies() {
    let held = |own: DTypeChoice, configured: DTypeChoice| own.or(configured).weight_format(Isa::Portable);
    for (choice, word) in DTypeChoice::ALL {
        let expected = if *choice == DTypeChoice::Auto { "float32" } else { word };
        assert_eq!(held(*choice, DTypeChoice::Auto).name(), expected);
        assert_eq!(held(DTypeChoice::Auto, *choice).name(), expected);
        assert_eq!(held(DTypeChoice::Int4, *choice), WeightFormat::Int4);
    }
    assert_eq!(DTypeChoice::parse(" INT8 "), Ok(DTypeChoice::Int8));
    let error = DTypeChoice::parse("int3").unwrap_err().to_string();
    assert!(error.contains("dtype=int3") && error.contains("int4"), "{error}");
    for isa in Isa::available() {
        let expected = match isa {
            Isa::Avx512Fp16 => WeightFormat::F16,
            Isa::Avx512Bf16 | Isa::Amx => WeightFormat::Bf16,
            _ => WeightFormat::F32,
        };
        assert_eq!(DTypeChoice::Auto.weight_format(isa), expected, "{isa}");
    }
}

#[test]
fn an_empty_variable_is_no_variable() {
    let settings = Settings::resolve(&environment([("MAX_IDLE_TIME_SECONDS", " ")]), []).unwrap();
    assert_eq!(settings, Settings::default());
}

#[test]
fn every_setting_reads_its_variable_and_its_keyword_and_refuses_nonsense_by_name() {
    struct One(&'static str, String);
    impl Host for One {
        fn env(&self, name: &str) -> Option<String> {
            (name == self.0).then(|| self.1.clone())
        }
        fn package_dir(&self, _: &str) -> Option<PathBuf> {
            None
        }
    }
    for field in Settings::fields() {
        assert!(!field.doc.is_empty() && field.doc.ends_with('.'), "{}", field.name);
        // A value that is not the default.
        let value = match (field.annotation.as_str(), field.name) {
            ("bool", _) => SettingValue::Bool(field.default == SettingValue::Bool(false)),
            ("int", _) => SettingValue::Int(3),
            ("float" | "float | None", _) => SettingValue::Float(42.5),
            (_, "cache_disk_bytes") => SettingValue::Text("3GB".into()),
            (_, "cache_disk_ttl" | "cache_url_ttl") => SettingValue::Text("2d".into()),
            (_, "eviction") => SettingValue::Text("cost".into()),
            (_, "cache_disk_dtype") => SettingValue::Text("int8".into()),
            (_, "cache_policy") => SettingValue::Text("lfu".into()),
            (_, "profile") => SettingValue::Text("multilingual".into()),
            (_, "language_detector") => SettingValue::Text("improved".into()),
            (_, "dtype" | "generator_dtype") => SettingValue::Text("float32".into()),
            (_, "device") => SettingValue::Text("cpu".into()),
            ("int | None", _) => SettingValue::Int(3),
            (_, "memory_budget" | "kv_memory") => SettingValue::Text("2GB".into()),
            (_, "keep_alive") => SettingValue::Text("5m".into()),
            (_, "adaptive_state" | "cache_dir" | "cache_disk") => {
                SettingValue::Text(std::path::absolute("other").unwrap().display().to_string())
            }
            _ => SettingValue::Text("other".into()),
        };
        let by_keyword = Settings::default().with([(field.name, value.clone())]).unwrap();
        assert_eq!(by_keyword.get(field.name), Some(value.clone()), "{}", field.name);
        assert_ne!(by_keyword, Settings::default());
        let host = One(field.environment, value.plain());
        assert_eq!(Settings::resolve(&host, []).unwrap(), by_keyword, "{}", field.environment);
        // Text settings take any text; the others refuse this one.
        if !matches!(field.annotation.as_str(), "str" | "str | None" | "bool | str") {
            let host = One(field.environment, "nonsense!".into());
            let error = Settings::resolve(&host, []).unwrap_err();
            assert!(error.to_string().starts_with(field.environment), "{error}");
        }
        let error = Settings::default().with([(field.name, SettingValue::Other("list".into()))]).unwrap_err();
        assert!(error.to_string().starts_with(field.name), "{error}");
    }
}

#[test]
fn values_out_of_range_name_the_variable_that_gave_them_or_the_keyword_that_replaces_it() {
    for (name, variable, text, allowed) in [
        ("cleanup_interval", "CLEANUP_INTERVAL_SECONDS", "0", "must be greater than 0"),
        ("temperature", "AI_TEMPERATURE", "101", "must lie between 0 and 100"),
        ("threads", "MODEL_MANAGER_THREADS", "18446744073709551615", "must lie between 0 and 4096"),
        ("max_keep_alive", "MODEL_MANAGER_MAX_KEEP_ALIVE", "29", "must be at least 30"),
    ] {
        let host = environment([(variable, text)]);
        let error = Settings::resolve(&host, []).unwrap_err().to_string();
        assert_eq!(error, format!("{variable}={text:?}: {allowed}"));
        assert!(Settings::resolve(&host, [(name, SettingValue::Int(30))]).is_ok(), "{name}");
        let error = Settings::resolve(&host, [(name, SettingValue::Int(-1))]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name}=-1: must")), "{error}");
    }
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    for (name, value) in [
        ("cache_size", SettingValue::Int(-1)),
        ("temperature", SettingValue::Float(-0.1)),
        ("temperature", SettingValue::Float(f64::NAN)),
        ("max_tokens", SettingValue::Int(0)),
        ("max_queue", SettingValue::Int(0)),
        ("threads", SettingValue::Int(5000)),
        ("cleanup_interval", SettingValue::Int(0)),
        ("max_idle_time", SettingValue::Float(-1.0)),
        ("cache_ttl", SettingValue::Float(f64::INFINITY)),
        ("cache_disk", SettingValue::Int(1)),
        ("cache_disk_bytes", SettingValue::Int(1000)),
        ("cache_disk_bytes", SettingValue::Text("0.5".into())),
        ("cache_disk_ttl", SettingValue::Text("0".into())),
        ("cache_url_ttl", SettingValue::Text("-1".into())),
        ("cache_timeout", SettingValue::Int(0)),
        ("max_keep_alive", SettingValue::Int(29)),
        ("cold_start_price", SettingValue::Int(-1)),
        ("cold_start_price", SettingValue::Int(0)),
        ("cache_disk", SettingValue::Text("~someone/cache".into())),
        ("max_parallel", SettingValue::Int(0)),
        ("max_parallel", SettingValue::Int(2000)),
        ("max_generation_queue", SettingValue::Int(0)),
        ("max_context", SettingValue::Int(0)),
        ("kv_memory", SettingValue::Float(1.5)),
        ("memory_budget", SettingValue::Float(1.5)),
        ("kv_memory", SettingValue::Float(2.0)),
        ("memory_budget", SettingValue::Int(2)),
        ("memory_budget", SettingValue::Text("512".into())),
        ("kv_memory", SettingValue::Text("2.0".into())),
        ("memory_budget", SettingValue::Float(65_535.0)),
        ("memory_budget", SettingValue::Text("lots".into())),
        ("keep_alive", SettingValue::Text("soon".into())),
        ("english_model", SettingValue::Text("  ".into())),
    ] {
        let error = Settings::default().with([(name, value.clone())]).unwrap_err();
        assert!(
            matches!(&error, Error::Config { setting, .. } if setting == name),
            "{name}={value}: {error}"
        );
    }
    for taken in
        [SettingValue::Float(65_536.0), SettingValue::Int(65_536), SettingValue::Text("512 B".into())]
    {
        assert!(Settings::default().with([("kv_memory", taken)]).is_ok());
    }
    let error = Settings::default().with([("cache_sise", SettingValue::Int(1))]).unwrap_err();
    assert!(error.to_string().contains("cache_size"), "{error}");
}

#[test]
fn the_profile_multilingual_gives_both_sentence_slots_one_model() {
    let sources = |settings: &Settings| {
        (settings.turkish_model.as_str().to_owned(), settings.english_model.as_str().to_owned())
    };
    let text = |value: &str| SettingValue::Text(value.into());
    let one = |name: &str| (name.to_owned(), name.to_owned());
    let profile = ("profile", text("multilingual"));
    let none = environment([]);
    let settings = Settings::resolve(&none, [profile.clone()]).unwrap();
    assert_eq!(sources(&settings), one(PROFILE_MODEL));
    // Back to the defaults, as if there had been no profile.
    assert_eq!(settings.with([("profile", text("compatible"))]).unwrap(), Settings::default());
    // A slot that is not set follows the other one, and both may be set.
    let host = environment([("TURKISH_SENTENCE_MODEL", "a/tr"), ("MODEL_MANAGER_PROFILE", "Multilingual")]);
    assert_eq!(sources(&Settings::resolve(&host, []).unwrap()), one("a/tr"));
    let settings = Settings::resolve(&none, [profile.clone(), ("english_model", text("an/en"))]).unwrap();
    assert_eq!(sources(&settings), one("an/en"));
    let settings = Settings::resolve(&host, [("english_model", text("an/en"))]).unwrap();
    assert_eq!(sources(&settings), ("a/tr".to_owned(), "an/en".to_owned()));
    let error = Settings::resolve(&none, [("profile", text("turkish"))]).unwrap_err().to_string();
    assert!(error.contains("profile") && error.contains("multilingual"), "{error}");
}
