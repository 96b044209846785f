//! Gemma 4's generators in GGUF files: names and metadata by the `gguf` package.

use super::*;

fn header(family: &str) -> Header {
    let file =
        if family == "gemma4_moe" { "gguf_gemma4_expert_headers.json" } else { "gguf_gemma4_headers.json" };
    let json: Value = read_json(&folder(file)).unwrap();
    serde_json::from_value(json["families"][family].clone()).unwrap()
}

/// The file of `family`, without the tensors and the metadata whose names `left_out` names.
fn file(family: &str, header: &Header, left_out: &[&str]) -> Writer {
    let mut writer = with_tokenizer(Writer::default().text("general.architecture", "gemma4"));
    let weights = Weights::open(&ModelFiles::open(family, &folder(family)).unwrap().weights).unwrap();
    for (name, renamed) in header.names.iter().filter(|(_, renamed)| !left_out.contains(&renamed.as_str())) {
        let (shape, values) = (weights.shape(name).unwrap(), weights.get(name).unwrap().to_f32().unwrap());
        writer = writer.tensor(renamed, shape, 0, &f32s(&values));
    }
    for (name, values) in header.factors.iter().filter(|(name, _)| !left_out.contains(&name.as_str())) {
        writer = writer.tensor(name, &[values.len()], 0, &f32s(values));
    }
    let kept = header.metadata.iter().filter(|(key, _)| !left_out.contains(&key.as_str()));
    with_metadata(writer, &kept.map(|(key, value)| (key.clone(), value.clone())).collect())
}

#[test]
fn gguf_files_compute_what_transformers_computes() {
    for family in ["gemma4_text", "gemma4_dense"] {
        let mut header = header(family);
        assert_gguf_is(family, &file(family, &header, &[]));
        // The factor of a layer has one of two names.
        for renamed in header.names.values_mut().filter(|renamed| renamed.ends_with("layer_output_scale")) {
            renamed.push_str(".weight");
        }
        assert_gguf_is(family, &file(family, &header, &[]));
    }
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let family = "gemma4_text";
    let header = header(family);
    let refusal = |writer: &Writer| open_gguf(writer).unwrap_err().to_string();
    let changed = |key: &str| file(family, &header, &[&format!("gemma4.{key}")]);
    for (key, number, said) in [
        ("expert_count", 4, "gemma4.expert_used_count"),
        ("expert_used_count", 2, "gemma4.expert_used_count"),
        ("attention.scale", 2, "attention.scale"),
        ("rope.dimension_count", 4, "of which 4 numbers rotate"),
        ("rope.dimension_count_swa", 4, "of which 4 numbers rotate"),
        ("attention.value_length", 8, "values must be as wide"),
        ("attention.key_length", 7, "7 wide"),
        ("attention.head_count", 3, "3 heads"),
        ("attention.shared_kv_layers", 4, "sliding_attention"),
        ("attention.shared_kv_layers", 3, "full_attention"),
        ("attention.shared_kv_layers", 1, "blk.2.attn_k"),
        ("attention.sliding_window", 0, "attention.sliding_window is 0"),
        ("attention.sliding_window_pattern", 2, "attention.sliding_window_pattern"),
        ("embedding_length_per_layer_input", 4, "embedding_length_per_layer_input"),
        ("embedding_length_per_layer_input", 0, "embedding_length_per_layer_input"),
        ("feed_forward_length", 32, "ffn_gate"),
        ("block_count", 0, "block_count is 0"),
    ] {
        let error = refusal(&changed(key).number(&format!("gemma4.{key}"), number));
        assert!(error.contains(said), "{key}: {error}");
    }
    let kinds = |windows: &[bool]| {
        refusal(
            &changed("attention.sliding_window_pattern")
                .flags("gemma4.attention.sliding_window_pattern", windows),
        )
    };
    assert!(kinds(&[true, false, true, true]).contains("the last layer"));
    assert!(kinds(&[true, false]).contains("of each layer"));
    let error = refusal(&file(family, &header, &[]).text("gemma4.rope.scaling.type", "yarn"));
    assert!(error.contains("yarn"), "{error}");
    let error = refusal(&changed("final_logit_softcapping").float("gemma4.final_logit_softcapping", -1.0));
    assert!(error.contains("final_logit_softcapping"), "{error}");
    let counts = changed("attention.head_count_kv").integers("gemma4.attention.head_count_kv", &[2, 2, 1, 2]);
    assert!(refusal(&counts).contains("[2, 2, 1, 2] of keys"));
    for (missing, said) in [
        ("rope_freqs.weight", "rope_freqs.weight"),
        ("gemma4.rope.freq_base_swa", "rope.freq_base_swa"),
        ("gemma4.attention.key_length_swa", "attention.key_length_swa"),
        ("gemma4.attention.sliding_window", "attention.sliding_window"),
        ("per_layer_token_embd.weight", "per_layer_token_embd.weight"),
        ("blk.1.layer_output_scale", "blk.1.layer_output_scale"),
        ("blk.0.attn_v.weight", "blk.0.attn_v"),
        ("token_embd.weight", "token_embd.weight"),
    ] {
        let error = refusal(&file(family, &header, &[missing]));
        assert!(error.contains(said), "{missing}: {error}");
    }
    for divisors in [&[1.0; 7][..], &[0.0; 8], &[f32::NAN; 8]] {
        let without = file(family, &header, &["rope_freqs.weight"]);
        let error = refusal(&without.tensor("rope_freqs.weight", &[divisors.len()], 0, &f32s(divisors)));
        assert!(error.contains("rope_freqs.weight"), "{error}");
    }
}

/// What is no sound value is refused, or read as another model of the same tensors.
#[test]
fn wrong_metadata_ends_in_no_panic() {
    for family in ["gemma4_text", "gemma4_dense", "gemma4_moe"] {
        let header = header(family);
        for key in header.metadata.keys() {
            let without = file(family, &header, &[key]);
            let changed = [
                without.clone(),
                without.clone().number(key, 0),
                without.clone().number(key, 7),
                without.clone().number(key, u32::MAX),
                without.clone().text(key, "x"),
                without.clone().float(key, -1.5),
                without.clone().float(key, f32::NAN),
                without.clone().integers(key, &[-1, 1, 2, 3]),
                without.flags(key, &[true]),
            ];
            for writer in changed {
                let _ = open_gguf(&writer).map(drop);
            }
        }
    }
}

#[path = "gguf_gemma4_expert_tests.rs"]
mod experts;
