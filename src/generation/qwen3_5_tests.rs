//! Qwen3.5's generator in GGUF files, whose tensors llama.cpp's converter has changed: heads of values in another order,
//! whole scales of norms, rates in place of their logarithms. And requests with little memory.

use super::*;

const HIDDEN: usize = 32;
const KEYS: usize = 2;
const KEY: usize = 8;
const VALUE: usize = 12;
/// Rows before those of values.
const QUERIES_AND_KEYS: usize = 2 * KEYS * KEY;

/// `size` numbers of each head of values: the heads of the first head of keys, then those of the second, and so on. In files,
/// heads go through those of keys in turn.
fn in_turn(values: &[f32], size: usize) -> Vec<f32> {
    let group = values.len() / size / KEYS;
    let places = (0..group).flat_map(|member| (0..KEYS).map(move |key| key * group + member));
    places.flat_map(|place| &values[place * size..][..size]).copied().collect()
}

/// The name and the numbers of a tensor in a GGUF file.
fn converted(name: &str, mut values: Vec<f32>, columns: usize) -> (String, Vec<f32>) {
    let (layer, part) = match name.strip_prefix("model.layers.") {
        Some(rest) => rest.split_once('.').unwrap(),
        None => ("", name),
    };
    let is_centered = part.ends_with("norm.weight") && !part.starts_with("linear_attn");
    if is_centered {
        values.iter_mut().for_each(|x| *x += 1.0);
    }
    let after = |values: &[f32], rows: usize, size: usize| {
        let (first, rest) = values.split_at(rows * columns);
        [first, &in_turn(rest, size * columns)].concat()
    };
    let (renamed, values) = match part {
        "linear_attn.in_proj_qkv.weight" => ("attn_qkv.weight", after(&values, QUERIES_AND_KEYS, VALUE)),
        "linear_attn.conv1d.weight" => ("ssm_conv1d.weight", after(&values, QUERIES_AND_KEYS, VALUE)),
        "linear_attn.in_proj_z.weight" => ("attn_gate.weight", after(&values, 0, VALUE)),
        "linear_attn.in_proj_b.weight" => ("ssm_beta.weight", after(&values, 0, 1)),
        "linear_attn.in_proj_a.weight" => ("ssm_alpha.weight", after(&values, 0, 1)),
        "linear_attn.dt_bias" => ("ssm_dt.bias", in_turn(&values, 1)),
        "linear_attn.A_log" => ("ssm_a", in_turn(&values, 1).into_iter().map(|log| -log.exp()).collect()),
        "linear_attn.norm.weight" => ("ssm_norm.weight", values),
        "linear_attn.out_proj.weight" => {
            ("ssm_out.weight", values.chunks(columns).flat_map(|row| in_turn(row, VALUE)).collect())
        }
        "input_layernorm.weight" => ("attn_norm.weight", values),
        "post_attention_layernorm.weight" => ("post_attention_norm.weight", values),
        "self_attn.q_proj.weight" => ("attn_q.weight", values),
        "self_attn.k_proj.weight" => ("attn_k.weight", values),
        "self_attn.v_proj.weight" => ("attn_v.weight", values),
        "self_attn.o_proj.weight" => ("attn_output.weight", values),
        "self_attn.q_norm.weight" => ("attn_q_norm.weight", values),
        "self_attn.k_norm.weight" => ("attn_k_norm.weight", values),
        "mlp.gate_proj.weight" => ("ffn_gate.weight", values),
        "mlp.up_proj.weight" => ("ffn_up.weight", values),
        "mlp.down_proj.weight" => ("ffn_down.weight", values),
        "mlp.gate.weight" => ("ffn_gate_inp.weight", values),
        "mlp.shared_expert_gate.weight" => ("ffn_gate_inp_shexp.weight", values),
        "mlp.shared_expert.gate_proj.weight" => ("ffn_gate_shexp.weight", values),
        "mlp.shared_expert.up_proj.weight" => ("ffn_up_shexp.weight", values),
        "mlp.shared_expert.down_proj.weight" => ("ffn_down_shexp.weight", values),
        "model.norm.weight" => ("output_norm.weight", values),
        "model.embed_tokens.weight" => ("token_embd.weight", values),
        "lm_head.weight" => ("output.weight", values),
        other => panic!("{other}"),
    };
    let renamed = if layer.is_empty() { renamed.to_owned() } else { format!("blk.{layer}.{renamed}") };
    (renamed, values)
}

fn with_tensors(family: &str, mut writer: Writer) -> Writer {
    let weights = Weights::open(&ModelFiles::open(family, &folder(family)).unwrap().weights).unwrap();
    let mut names: Vec<_> = weights.names().collect();
    names.sort_unstable();
    for name in names.iter().filter(|name| !name.contains(".experts.")) {
        let (mut shape, values) = (weights.shape(name).unwrap().to_vec(), weights.get(name).unwrap());
        if let [rows, 1, columns] = shape[..] {
            shape = vec![rows, columns];
        }
        let columns = if shape.len() == 1 { 1 } else { shape[1] };
        let (renamed, values) = converted(name, values.to_f32().unwrap(), columns);
        writer = writer.tensor(&renamed, &shape, 0, &f32s(&values));
    }
    for (layer, kind) in (0..2).flat_map(|layer| ["gate", "up", "down"].map(|kind| (layer, kind))) {
        let of = |expert: usize| format!("model.layers.{layer}.mlp.experts.{expert}.{kind}_proj.weight");
        let all: Vec<_> = (0..).map(of).take_while(|name| names.contains(&name.as_str())).collect();
        let Some(shape) = all.first().map(|name| weights.shape(name).unwrap()) else { continue };
        let values: Vec<f32> =
            all.iter().flat_map(|name| weights.get(name).unwrap().to_f32().unwrap()).collect();
        let name = format!("blk.{layer}.ffn_{kind}_exps.weight");
        writer = writer.tensor(&name, &[all.len(), shape[0], shape[1]], 0, &f32s(&values));
    }
    writer
}

/// The metadata, with another number in the place of one, or one more.
fn metadata(architecture: &str, blocks: u32, interval: u32, change: Option<(&str, u32)>) -> Writer {
    let key = |name: &str| format!("{architecture}.{name}");
    let mut writer = with_tokenizer(Writer::default().text("general.architecture", architecture));
    let numbers = [
        ("context_length", 64),
        ("embedding_length", HIDDEN as u32),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 16),
        ("attention.value_length", 16),
        ("rope.dimension_count", 4),
        ("ssm.conv_kernel", 4),
        ("ssm.group_count", KEYS as u32),
        ("ssm.inner_size", 6 * VALUE as u32),
        ("ssm.state_size", KEY as u32),
        ("ssm.time_step_rank", 6),
        ("block_count", blocks),
        ("full_attention_interval", interval),
    ];
    let kept = numbers.into_iter().filter(|(name, _)| change.is_none_or(|(changed, _)| changed != *name));
    for (name, number) in kept.chain(change) {
        writer = writer.number(&key(name), number);
    }
    writer
        .integers(&key("rope.dimension_sections"), &[1, 1, 0, 0])
        .float(&key("rope.freq_base"), 1e7)
        .float(&key("attention.layer_norm_rms_epsilon"), 1e-3)
}

fn text(change: Option<(&str, u32)>) -> Writer {
    metadata("qwen35", 4, 4, change).number("qwen35.feed_forward_length", 48)
}

#[test]
fn gguf_files_compute_what_transformers_computes() {
    assert_gguf_is("qwen3_5_text", &with_tensors("qwen3_5_text", text(None)));
    let experts = metadata("qwen35moe", 2, 2, None)
        .number("qwen35moe.expert_count", 8)
        .number("qwen35moe.expert_used_count", 3)
        .number("qwen35moe.expert_feed_forward_length", 12)
        .number("qwen35moe.expert_shared_feed_forward_length", 20);
    assert_gguf_is("qwen3_5_moe_text", &with_tensors("qwen3_5_moe_text", experts));
}

/// A block that predicts another token belongs to no text.
#[test]
fn blocks_that_predict_other_tokens_are_passed_over() {
    let known = with_tensors("qwen3_5_text", text(Some(("block_count", 5))));
    let with_block = known.tensor("blk.4.nextn.eh_proj.weight", &[2, 2], 0, &f32s(&[1.0; 4]));
    assert_gguf_is("qwen3_5_text", &with_block.clone().number("qwen35.nextn_predict_layers", 1));
    let error = open_gguf(&with_block).unwrap_err().to_string();
    assert!(error.contains("blk.4"), "{error}");
    let other = with_tensors("qwen3_5_text", text(None)).tensor("blk.3.ssm_a", &[6], 0, &f32s(&[-1.0; 6]));
    let error = open_gguf(&other).unwrap_err().to_string();
    assert!(error.contains("blk.3.ssm_a"), "{error}");
}

#[test]
fn metadata_is_computed_or_refused_by_name() {
    let refusal = |writer: Writer| open_gguf(&with_tensors("qwen3_5_text", writer)).unwrap_err().to_string();
    for (key, number, said) in [
        ("ssm.v_head_reordered", 1, "ssm.v_head_reordered"),
        ("ssm.inner_size", 71, "do not fit together"),
        ("ssm.group_count", 4, "do not fit together"),
        ("ssm.conv_kernel", 0, "do not fit together"),
        ("ssm.state_size", 9, "blk.0.ssm_conv1d"),
        ("rope.dimension_count", 17, "do not fit together"),
        ("attention.value_length", 8, "do not fit together"),
        ("nextn_predict_layers", 4, "do not fit together"),
        ("full_attention_interval", 2, "blk.1.attn_q"),
        ("expert_count", 8, "expert_count"),
    ] {
        let error = refusal(text(Some((key, number))));
        assert!(error.contains(said), "{key}: {error}");
    }
    let error = refusal(text(None).text("qwen35.rope.scaling.type", "yarn"));
    assert!(error.contains("yarn"), "{error}");
}

#[test]
fn sizes_beyond_the_file_take_no_memory() {
    let keys = [
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_conv_kernel_dim",
    ];
    sizes_are_refused("qwen3_5_text", &keys, &[0, 1 << 10, 1 << 27, 1 << 40, u64::MAX]);
}
