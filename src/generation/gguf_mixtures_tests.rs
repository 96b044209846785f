//! GGUF files with mixtures of experts as other converters write them, and what is missing from them or too much.

use super::*;

fn open(writer: &Writer) -> Result<TextModel> {
    let (_folder, path) = writer.write();
    from_gguf("m", &path, WeightFormat::F32, Isa::best())
}

fn refusal(writer: &Writer) -> String {
    open(writer).unwrap_err().to_string()
}

fn assert_as_in_transformers(family: &str, writer: &Writer) {
    let (model, expected) = (open(writer).unwrap(), reference(family));
    for case in &expected.cases {
        let error = furthest(&logits(&model, &[&case.ids]), &case.logits);
        assert!(error < 1e-4, "{family} {:?}: {error}", case.prompt);
    }
}

fn header(family: &str) -> Header {
    headers().remove(family).unwrap()
}

/// The header without the tensors and metadata whose names contain `part`, and transformers' names of these tensors.
fn without(family: &str, part: &str) -> (Header, Vec<(String, String)>) {
    let mut header = header(family);
    header.metadata.retain(|name, _| !name.contains(part));
    let (gone, names) = header.names.into_iter().partition(|(_, name)| name.contains(part));
    header.names = names;
    let gone: BTreeMap<String, String> = gone;
    (header, gone.into_iter().collect())
}

fn values(family: &str, names: &[&String]) -> Vec<f32> {
    let weights = Weights::open(&ModelFiles::open(family, &folder(family)).unwrap().weights).unwrap();
    names.iter().flat_map(|name| weights.get(name).unwrap().to_f32().unwrap()).collect()
}

#[test]
fn biases_that_choose_are_where_the_family_has_them() {
    let (header, gone) = without("lfm2_moe", "exp_probs_b");
    assert_eq!(gone.len(), 3);
    let error = refusal(&written("lfm2_moe", &header));
    assert!(error.contains("blk.1.exp_probs_b.bias") && error.contains("missing"), "{error}");
    let header = self::header("qwen3_moe");
    let more = written("qwen3_moe", &header).tensor("blk.0.exp_probs_b.bias", &[8], 0, &f32s(&[0.5; 8]));
    assert!(refusal(&more).contains("exp_probs_b.bias"));
}

/// Such a bias would always or never choose its expert, and the result would be finite.
#[test]
fn a_bias_that_is_not_finite_is_refused() {
    for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (header, gone) = without("lfm2_moe", "exp_probs_b");
        let mut writer = written("lfm2_moe", &header);
        for (_, name) in &gone {
            writer = writer.tensor(name, &[8], 0, &f32s(&[0.0, 0.0, 0.0, number, 0.0, 0.0, 0.0, 0.0]));
        }
        let error = refusal(&writer);
        assert!(error.contains("layers.1.feed_forward.expert_bias") && error.contains("damaged"), "{error}");
    }
}

#[test]
fn the_first_form_of_mixtral_is_refused_with_a_remedy() {
    let mut header = header("mixtral");
    for (name, experts) in std::mem::take(&mut header.experts) {
        for (index, expert) in experts.into_iter().enumerate() {
            header.names.insert(expert, name.replace("_exps", &format!(".{index}")));
        }
    }
    let error = refusal(&written("mixtral", &header));
    assert!(
        error.contains("blk.0.ffn_gate.0.weight") && error.contains("convert the model again"),
        "{error}"
    );
}

#[test]
fn a_missing_tensor_of_experts_has_the_name_of_the_file() {
    for family in ["qwen3_moe", "mixtral", "lfm2_moe"] {
        let mut header = header(family);
        header.experts.clear();
        let error = refusal(&written(family, &header));
        assert!(error.contains(".ffn_gate_exps.weight") && error.contains("missing"), "{error}");
    }
}

#[test]
fn gates_and_first_matrices_may_be_one_tensor() {
    for family in ["lfm2_moe", "qwen3_moe"] {
        let mut header = header(family);
        let all = std::mem::take(&mut header.experts);
        let mut fused = Vec::new();
        for (name, gates) in &all {
            if name.contains("ffn_down_exps") {
                header.experts.insert(name.clone(), gates.clone());
            } else if name.contains("ffn_gate_exps") {
                let ups = &all[&name.replace("ffn_gate_exps", "ffn_up_exps")];
                let names: Vec<_> = gates.iter().zip(ups).flat_map(|(gate, up)| [gate, up]).collect();
                let rows = values(family, &names);
                let wide = rows.len() / names.len() / 32;
                fused.push((
                    name.replace("ffn_gate_exps", "ffn_gate_up_exps"),
                    [gates.len(), 2 * wide, 32],
                    rows,
                ));
            }
        }
        assert!(fused.len() >= 2);
        let mut writer = written(family, &header);
        for (name, shape, rows) in fused {
            writer = writer.tensor(&name, &shape, 0, &f32s(&rows));
        }
        assert_as_in_transformers(family, &writer);
    }
}

#[test]
fn tensors_say_the_sizes_of_experts_where_the_metadata_does_not() {
    for family in ["qwen2_moe", "qwen3_moe", "olmoe"] {
        assert_as_in_transformers(family, &written(family, &without(family, "expert_feed_forward_length").0));
    }
    let shared = without("qwen2_moe", "expert_shared_feed_forward_length").0;
    assert_as_in_transformers("qwen2_moe", &written("qwen2_moe", &shared));
}

/// As llama.cpp's converter writes it.
#[test]
fn the_gate_of_the_shared_expert_may_be_a_vector() {
    let (header, gone) = without("qwen2_moe", "ffn_gate_inp_shexp");
    let mut writer = written("qwen2_moe", &header);
    for (theirs, name) in &gone {
        writer = writer.tensor(name, &[32], 0, &f32s(&values("qwen2_moe", &[theirs])));
    }
    assert_as_in_transformers("qwen2_moe", &writer);
}

/// As in llama.cpp.
#[test]
fn all_layers_have_experts_where_the_metadata_does_not_say_otherwise() {
    let error = refusal(&written("lfm2_moe", &without("lfm2_moe", "leading_dense_block_count").0));
    assert!(error.contains("blk.0.ffn_gate_inp.weight"), "{error}");
}
