"""What the models of `compare_transformers.py` may ask for: the values of each key of config.json, by family."""

from typing import Any

Options = dict[str, Any]
BOTH = [True, False]
ACTIVATIONS = ["silu", "gelu", "relu", "gelu_new", "gelu_pytorch_tanh"]

# None leaves the key out; rotary parameters and types of layers are drawn in place of these.
ROPE, TYPES, CONVOLUTIONS = object(), object(), object()
FULL_LAYERS, DELTA_RULES, LAYER_ROPES = object(), object(), object()


def flags(*names: str) -> Options:
    return dict.fromkeys(names, BOTH)


WINDOW: Options = {"sliding_window": [3, 7, 100], "rope_parameters": [ROPE]}
LLAMA: Options = {"hidden_act": ACTIVATIONS, "rope_parameters": [ROPE], **flags("attention_bias")}
BIASED: Options = {**LLAMA, **flags("mlp_bias")}
QWEN: Options = {**WINDOW, "max_window_layers": [0, 1, 28], **flags("use_sliding_window")}
WIDE: Options = {"head_dim": [4, 12]}
GEMMA2: Options = {
    **WIDE,
    **flags("attention_bias"),
    "sliding_window": [3, 7, 100],
    "hidden_activation": ["gelu_pytorch_tanh", "gelu"],
    "query_pre_attn_scalar": [1, 20],
    "layer_types": [None, TYPES],
}
CAPS: Options = {"attn_logit_softcapping": [1.0, 50.0], "final_logit_softcapping": [2.0, 30.0]}
FACTORS: Options = {
    "residual_multiplier": [0.3, 1.0],
    "attention_multiplier": [None, 0.1],
    "logits_scaling": [0.7, 8.0],
}
LAYER_NORM: Options = {"hidden_act": ACTIVATIONS, "layer_norm_eps": [1e-5, 1e-2], "rope_parameters": [ROPE]}
LFM2: Options = {
    **flags("conv_bias", "block_auto_adjust_ff_dim"),
    "conv_L_cache": [2, 3, 4],
    "block_multiple_of": [4, 8],
    "block_ffn_dim_multiplier": [1.0, 1.3],
    "full_attn_idxs": [None, [], [0], [1]],
    "rope_parameters": [ROPE],
}
DECODERS: dict[str, Options] = {
    "llama": {**BIASED, "head_dim": [None, 6, 12]},
    "qwen2": {**QWEN, "hidden_act": ACTIVATIONS},
    "qwen3": {**QWEN, **WIDE, **flags("attention_bias")},
    "mistral": {**WINDOW, **WIDE},
    "ministral": {**WINDOW, **WIDE, "layer_types": [None, TYPES]},
    "smollm3": {**BIASED, **WINDOW, "no_rope_layer_interval": [1, 2, 3], **flags("use_sliding_window")},
    "granite": {**BIASED, **FACTORS, "embedding_multiplier": [1.0, 3.0]},
    "phi3": {"sliding_window": [None, 3, 7], "hidden_act": ACTIVATIONS},
    "gemma": {**WIDE, "rope_parameters": [ROPE], **flags("attention_bias")},
    "gemma2": {**GEMMA2, **CAPS},
    "gemma3_text": {**GEMMA2, "final_logit_softcapping": [None, 2.0], "sliding_window_pattern": [None, 2, 3]},
    "glm4": {**LLAMA, "head_dim": [4, 8]},
    "olmo2": LLAMA,
    "exaone4": {**WINDOW, "layer_types": [None, TYPES]},
    "helium": {**BIASED, "head_dim": [4]},
    "gpt_neox": {**LAYER_NORM, **flags("attention_bias", "use_parallel_residual")},
    "phi": {**LAYER_NORM, **flags("qk_layernorm")},
    "stablelm": {**LAYER_NORM, **flags("qk_layernorm", "use_qkv_bias", "use_parallel_residual")},
    "starcoder2": {**WINDOW, "norm_epsilon": [1e-5, 1e-2], **flags("use_bias")},
    "gpt2": {"n_inner": [None, 20], "activation_function": ["gelu_new", "gelu", "relu"]},
    "lfm2": LFM2,
    "falcon": {"rope_parameters": [ROPE], **flags("new_decoder_architecture", "bias", "multi_query")},
    "gptj": {
        "rotary_dim": [2, 4, 6],
        "n_inner": [None, 20],
        "activation_function": ["gelu_new", "gelu", "relu", "silu"],
        "layer_norm_epsilon": [1e-5, 1e-2],
    },
}
EXPERTS: Options = {"num_experts": [3, 8], "num_experts_per_tok": [1, 2, 3], "norm_topk_prob": [None, True, False]}
NARROW: Options = {
    **EXPERTS,
    "moe_intermediate_size": [5, 16],
    "decoder_sparse_step": [1, 1, 2],
    "mlp_only_layers": [[], [], [0]],
}
LOCAL: Options = {"num_local_experts": [3, 8], "num_experts_per_tok": [1, 2, 3]}
DELTA: Options = {
    "head_dim": [8, 16, 24],
    "partial_rotary_factor": [None, 0.5, 1.0],
    "linear_num_key_heads": [1, 2, 4],
    "linear_num_value_heads": [4, 8],
    "linear_key_head_dim": [3, 8, 20],
    "linear_value_head_dim": [5, 16, 70],
    "linear_conv_kernel_dim": [2, 3, 4],
    "layer_types": [DELTA_RULES],
    "rope_parameters": [ROPE, None],
    "rms_norm_eps": [1e-6, 1e-2],
    **flags("attention_bias"),
}
SHARED: Options = {"moe_intermediate_size": [5, 16], "shared_expert_intermediate_size": [7, 16]}
MIXTURES: dict[str, Options] = {
    "qwen3_5_moe_text": {**DELTA, **SHARED, "num_experts": [3, 8], "num_experts_per_tok": [1, 2, 3]},
    "qwen3_next": {**DELTA, **NARROW, **SHARED},
    "qwen3_moe": {**LLAMA, **WIDE, **NARROW, **WINDOW, **flags("use_sliding_window")},
    "mixtral": {**LOCAL, **WIDE, **WINDOW, "hidden_act": ACTIVATIONS},
    "olmoe": {**LLAMA, **EXPERTS},
    "lfm2_moe": {
        **EXPERTS,
        **flags("conv_bias", "use_expert_bias"),
        "moe_intermediate_size": [5, 16],
        "num_dense_layers": [0, 1, None],
        "routed_scaling_factor": [None, 2.5],
        "conv_L_cache": [2, 3, 4],
        "layer_types": [CONVOLUTIONS],
        "rope_parameters": [ROPE],
    },
    "qwen2_moe": {
        **QWEN,
        **NARROW,
        **flags("qkv_bias"),
        "hidden_act": ACTIVATIONS,
        "shared_expert_intermediate_size": [7, 16],
    },
    "granitemoe": {**LLAMA, **FACTORS, **LOCAL, "embedding_multiplier": [1.0, 3.0]},
    "gpt_oss": {
        **LOCAL,
        **flags("attention_bias"),
        "head_dim": [4, 12],
        "sliding_window": [3, 7, 100],
        "layer_types": [None, TYPES],
        "swiglu_limit": [7.0, 0.5],
        "swiglu_alpha": [1.702, 1.0],
        "rope_parameters": [ROPE],
    },
}
LFM3: Options = {
    **flags("conv_bias", "use_sandwich_norm", "use_attention_gate", "attention_bias"),
    "head_dim": [4, 12],
    "conv_L_cache": [2, 3, 7],
    "sliding_window": [3, 7, 100],
    "layer_types": [None, TYPES, CONVOLUTIONS],
    "rope_parameters": [None, LAYER_ROPES],
}
DECODERS |= MIXTURES | {"qwen3_5_text": DELTA, "lfm3": LFM3}
# Other forms of norms, perceptrons or blocks.
COHERE: Options = {**LAYER_NORM, **flags("attention_bias"), "logit_scale": [None, 0.25, 2.0]}
ALPHA: Options = {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 100.0}
SQUARED: Options = {"hidden_act": [None, "relu2", "silu", "gelu"]}
FORMS: dict[str, Options] = {
    "cohere": {**COHERE, **flags("use_qk_norm")},
    "cohere2": {
        **COHERE,
        "sliding_window": [3, 7, 100],
        "sliding_window_pattern": [None, 2, 3],
        "layer_types": [None, TYPES],
    },
    "olmo3": {
        **flags("attention_bias"),
        "hidden_act": ACTIVATIONS,
        "sliding_window": [3, 7, 100],
        "layer_types": [None, TYPES],
        "rope_scaling": [None, ROPE],
    },
    "granitemoehybrid": {
        **LLAMA,
        **FACTORS,
        "embedding_multiplier": [1.0, 3.0],
        "num_local_experts": [0],
        "shared_intermediate_size": [5, 16],
        "layer_types": [FULL_LAYERS],
        "position_embedding_type": [None, "rope"],
        "mamba_n_heads": [1],
    },
    "hunyuan_v1_dense": {**LLAMA, **WIDE, "rope_parameters": [ROPE, ALPHA]},
    "ernie4_5": {
        **flags("use_bias"),
        "hidden_act": ACTIVATIONS,
        "head_dim": [None, 4, 12],
        "rope_parameters": [ROPE],
    },
    "seed_oss": {**BIASED, **flags("attention_out_bias"), "head_dim": [None, 4, 12]},
    "apertus": {**LLAMA, "hidden_act": [None, "xielu", "relu2", "silu"]},
    "glm": {**LLAMA, "head_dim": [4, 8]},
    "arcee": {**BIASED, **SQUARED, "head_dim": [None, 6, 12]},
    "nemotron": {**BIASED, **SQUARED, "norm_eps": [1e-5, 1e-2], "head_dim": [None, 8, 16]},
}
DECODERS |= FORMS
GEMMA4: Options = {
    **flags("attention_bias", "attention_k_eq_v", "use_double_wide_mlp"),
    "num_key_value_heads": [1],
    "num_global_key_value_heads": [None, 1],
    "head_dim": [2, 6, 16],
    "global_head_dim": [8, 24],
    "hidden_activation": ["gelu_pytorch_tanh", "gelu", "silu"],
    "sliding_window": [1, 3, 7, 100],
    "layer_types": [None, TYPES],
    "num_kv_shared_layers": [0, 1, 2],
    "final_logit_softcapping": [None, 2.0],
    "rms_norm_eps": [1e-6, 1e-2],
}
DECODERS |= {
    "gemma4_text": {
        **GEMMA4,
        **flags("enable_moe_block"),
        "hidden_size_per_layer_input": [0, 1, 7, 16],
        "vocab_size_per_layer_input": [400],
        "num_experts": [3, 8],
        "top_k_experts": [1, 2, 3],
        "moe_intermediate_size": [5, 16],
    },
    "gemma4_unified_text": GEMMA4,
}
BERT: Options = {"hidden_act": ACTIVATIONS, "type_vocab_size": [1, 2], "layer_norm_eps": [1e-12, 1e-5, 1e-1]}
ROBERTA: Options = {**BERT, "pad_token_id": [0, 1, 3]}
BUCKETS: Options = {"relative_attention_num_buckets": [8, 32], "relative_attention_max_distance": [20, 128]}
T5: Options = {**BUCKETS, "d_kv": [3, 8], "feed_forward_proj": ["relu", "gated-gelu", "gelu", "gated-silu"]}
MODERNBERT: Options = {
    **flags("norm_bias", "attention_bias", "mlp_bias"),
    "hidden_activation": ACTIVATIONS,
    "local_attention": [2, 7, 128],
    "layer_types": [None, TYPES],
    "classifier_pooling": ["cls", "mean"],
    "classifier_activation": ["gelu", "silu"],
}
DEBERTA: Options = {
    **flags("relative_attention", "share_att_key"),
    "position_buckets": [-1, 4, 8],
    "pos_att_type": [["c2p"], ["p2c"], ["c2p", "p2c"]],
    "norm_rel_ebd": ["none", "layer_norm"],
    "conv_kernel_size": [0, 3],
}
CONVBERT: Options = {
    **BERT,
    "embedding_size": [None, 7, 24],
    "head_ratio": [1, 2, 3, 9],
    "conv_kernel_size": [1, 3, 5, 9, 31],
    "num_groups": [1, 1, 2, 3],
}
EMBEDDING_GEMMA2: Options = {
    **flags("attention_bias"),
    "num_key_value_heads": [1],
    "head_dim": [2, 6, 16],
    "global_head_dim": [4, 24],
    "num_global_key_value_heads": [1],
    "hidden_activation": ["gelu_pytorch_tanh", "gelu", "silu"],
    "sliding_window": [1, 3, 7, 100],
    "sliding_window_pattern": [1, 2, 3],
    "layer_types": [None, TYPES],
    "hidden_size_per_layer_input": [1, 7, 16],
    "embedding_dim": [5, 48],
    "rms_norm_eps": [1e-6, 1e-2],
}
GROUPS: Options = {"num_hidden_groups": [1, 2], "inner_group_num": [1, 2]}
ENCODERS: dict[str, tuple[str, Options]] = {
    "bert": ("uncased", BERT),
    "xlm-roberta": ("unigram", ROBERTA),
    "roberta": ("unigram", ROBERTA),
    "camembert": ("unigram", ROBERTA),
    "electra": ("cased", {**BERT, "embedding_size": [7, 24]}),
    "albert": ("unigram", {**BERT, **GROUPS, "embedding_size": [7]}),
    "distilbert": ("cased", {"activation": ["gelu", "relu"], **flags("sinusoidal_pos_embds")}),
    "mpnet": ("mpnet", {"hidden_act": ACTIVATIONS, "layer_norm_eps": [1e-12, 1e-1]}),
    "modernbert": ("bytes", MODERNBERT),
    "gte": ("unigram", {"hidden_act": ACTIVATIONS, "type_vocab_size": [1, 2], "rope_parameters": [ROPE]}),
    "deberta-v2": ("deberta", DEBERTA),
    "convbert": ("cased", CONVBERT),
    "llama": ("qwen", DECODERS["llama"]),
    "qwen2": ("qwen", DECODERS["qwen2"]),
    "qwen3": ("qwen", DECODERS["qwen3"]),
    "mistral": ("qwen", DECODERS["mistral"]),
    "gemma3_text": ("qwen", DECODERS["gemma3_text"]),
    "eurobert": ("bytes", BIASED),
    "nomic_bert": ("uncased", {"hidden_act": ["silu", "gelu"], "rope_parameters": [ROPE]}),
    "jina_embeddings_v3": ("unigram", {"hidden_act": ACTIVATIONS, "type_vocab_size": [1]}),
    "t5": ("t5", T5),
    "mt5": ("t5", T5),
    "lfm2": ("bytes", {**LFM2, **flags("is_causal")}),
    "embedding_gemma2_text": ("bytes", EMBEDDING_GEMMA2),
    **{
        family: ("qwen", options)
        for family, options in {**MIXTURES, **FORMS, "qwen3_5_text": DELTA, "lfm3": LFM3}.items()
    },
}
SCORED = list(ENCODERS)[:15]
SPARSE = ["bert", "xlm-roberta", "roberta", "camembert", "distilbert"]
