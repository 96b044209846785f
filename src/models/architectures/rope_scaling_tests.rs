use super::*;

const DEFAULTS: RopeDefaults = RopeDefaults {
    head: 16,
    context: 2048,
    base: 10_000.0,
    part: Some(1.0),
    style: RopeStyle::Neox,
    odd_parts: true,
};

fn read(json: &Value) -> Result<Rotary, String> {
    RopeConfig::deserialize(json).unwrap().rotary(&DEFAULTS, None, &[])
}

#[derive(Deserialize)]
struct Case {
    parameters: Value,
    frequencies: Vec<f32>,
    factor: f32,
    long: Option<Vec<f32>>,
}

fn cases() -> Vec<Case> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rope/scalings.json");
    let json: Value = crate::models::json::read_json(&path).unwrap();
    serde_json::from_value(json["cases"].clone()).unwrap()
}

fn close(ours: &[f32], theirs: &[f32]) -> bool {
    ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() <= b.abs() * 2e-6)
}

#[test]
fn every_kind_of_scaling_equals_transformers() {
    let mut kinds = std::collections::HashSet::new();
    for Case { parameters, frequencies, factor, long } in cases() {
        for key in ["rope_parameters", "rope_scaling"] {
            let rotary = read(&serde_json::json!({ key: parameters })).unwrap();
            assert!(close(&rotary.frequencies, &frequencies), "{parameters}: {rotary:?}");
            assert!((rotary.factor - factor).abs() < 1e-6, "{parameters}: {rotary:?}");
            let ours = rotary.long.as_ref().map(|long| &long.frequencies[..]);
            assert_eq!(ours.is_some(), long.is_some());
            assert!(ours.zip(long.as_deref()).is_none_or(|(ours, long)| close(ours, long)), "{rotary:?}");
            assert!(rotary.long.is_none_or(|long| long.from == 512));
        }
        kinds.insert(parameters["rope_type"].as_str().unwrap().to_owned());
    }
    assert_eq!(kinds.len(), 6, "{kinds:?}");
}

#[test]
fn families_that_rotate_whole_heads_refuse_a_part() {
    let whole = RopeDefaults { part: None, ..DEFAULTS };
    let read = |json: Value| RopeConfig::deserialize(&json).unwrap().rotary(&whole, None, &[]);
    for json in [
        serde_json::json!({"partial_rotary_factor": 0.5}),
        serde_json::json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
        serde_json::json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.25}}),
    ] {
        let error = read(json.clone()).unwrap_err();
        assert!(error.contains("partial_rotary_factor is 0."), "{json}: {error}");
    }
    assert_eq!(read(serde_json::json!({"partial_rotary_factor": 1.0})), read(serde_json::json!({})));
}

#[test]
fn an_odd_part_has_one_value_more_where_transformers_has() {
    let odd = |kind: Value| {
        let mut parameters = serde_json::json!({"partial_rotary_factor": 0.4385});
        parameters.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
        serde_json::json!({ "rope_parameters": parameters })
    };
    // `inv_freq` of GPT-NeoX, Phi-3, GLM, Nemotron and Qwen3.5 in transformers 5.24, whose heads have 16 values.
    let (plain, linear, llama3) = (
        [1.0, 7.1969e-2, 5.1795e-3, 3.7276e-4],
        [0.5, 3.5984e-2, 2.5897e-3, 1.8638e-4],
        [1.0, 3.5984e-2, 2.5897e-3, 1.8638e-4],
    );
    for (kind, expected) in [
        (serde_json::json!({"rope_type": "default"}), plain),
        (serde_json::json!({"rope_type": "linear", "factor": 2.0}), linear),
        (
            serde_json::json!({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32}),
            llama3,
        ),
    ] {
        let found = read(&odd(kind)).unwrap().frequencies;
        let near = found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= b * 2e-5);
        assert!(near && found.len() == 4, "{found:?}");
    }
    let refusal = |kind: Value, defaults: &RopeDefaults| {
        RopeConfig::deserialize(odd(kind)).unwrap().rotary(defaults, None, &[]).unwrap_err()
    };
    let yarn = serde_json::json!({"rope_type": "yarn", "factor": 2.0});
    assert!(refusal(yarn, &DEFAULTS).contains("7 values of each head"));
    let even = RopeDefaults { odd_parts: false, ..DEFAULTS };
    assert!(refusal(serde_json::json!({}), &even).contains("7 values of each head"));
    // The product is that of doubles: 100 · 0.29 is below 29, in floats it is 29.
    let wide = RopeDefaults { head: 100, ..DEFAULTS };
    let config = RopeConfig::deserialize(serde_json::json!({"partial_rotary_factor": 0.29})).unwrap();
    assert_eq!(config.rotary(&wide, None, &[]).unwrap(), Rotary::new(10_000.0, 28, RopeStyle::Neox));
}

#[test]
fn every_spelling_of_the_same_is_read() {
    let old = read(&serde_json::json!({"rope_theta": 1000.0, "partial_rotary_factor": 0.5})).unwrap();
    let parameters =
        serde_json::json!({"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5});
    let new = read(&serde_json::json!({ "rope_parameters": parameters })).unwrap();
    assert_eq!((old.frequencies.len(), &old), (4, &new));
    let nested = serde_json::json!({"rope_parameters": {"sliding_attention": parameters}});
    let config = RopeConfig::deserialize(&nested).unwrap();
    assert_eq!(config.rotary(&DEFAULTS, Some("sliding_attention"), &[]).unwrap(), new);
    // A number of the object goes before one outside of it, except for the original length.
    let inner =
        read(&serde_json::json!({"rope_theta": 5.0, "rope_scaling": {"rope_theta": 1000.0}})).unwrap();
    assert_eq!(inner, Rotary::new(1000.0, 16, RopeStyle::Neox));
    let outer = serde_json::json!({"original_max_position_embeddings": 100, "rope_scaling": {
        "type": "su", "short_factor": [1, 1, 1, 1, 1, 1, 1, 1], "long_factor": [2, 2, 2, 2, 2, 2, 2, 2]}});
    let outer = read(&outer).unwrap();
    assert_eq!(outer.long.unwrap().from, 100);
    assert!((outer.factor - (1.0 + 20.48_f32.ln() / 100_f32.ln()).sqrt()).abs() < 1e-6);
}

#[test]
fn what_is_not_understood_is_named() {
    let refusal = |scaling: Value| read(&serde_json::json!({ "rope_scaling": scaling })).unwrap_err();
    assert!(refusal(serde_json::json!({"type": "klingon"})).contains("\"klingon\""));
    assert!(refusal(serde_json::json!({"type": "linear"})).contains("no positive factor"));
    assert!(refusal(serde_json::json!({"type": "dynamic", "factor": -1.0})).contains("no positive factor"));
    assert!(refusal(serde_json::json!({"mrope_section": [1, 2]})).contains("mrope_section"));
    assert!(refusal(serde_json::json!({"rope_theta": 0.0})).contains("rope_theta is 0"));
    assert!(
        refusal(serde_json::json!({"partial_rotary_factor": 1.5})).contains("partial_rotary_factor is 1.5")
    );
    assert!(refusal(serde_json::json!({"type": "yarn", "factor": "x"})).contains("cannot be read"));
    let short = refusal(serde_json::json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}));
    assert!(short.contains("8 positive numbers as long_factor, not 1"), "{short}");
}
