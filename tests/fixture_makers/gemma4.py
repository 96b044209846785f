"""The text models of Gemma 4, in the forms of the published sizes."""

from typing import Any

from .causal import VOCABULARY

FULL, SLIDING = "full_attention", "sliding_attention"
COMMON = {
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "sliding_window": 6,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
}
GEMMA4: dict[str, dict[str, Any]] = {
    # As the smallest models: inputs of layers with a table, and layers with the keys and values of earlier ones.
    "gemma4_text": {
        **COMMON,
        "model_type": "gemma4_text",
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "use_bidirectional_attention": None,
        "enable_moe_block": False,
        "final_logit_softcapping": 30.0,
    },
    # As the large dense ones: keys are values too in layers that see all tokens, with one head of them.
    "gemma4_dense": {
        **COMMON,
        "model_type": "gemma4_text",
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "use_bidirectional_attention": "vision",
        "final_logit_softcapping": 5.0,
    },
    # As the one with experts next to the perceptron of each layer.
    "gemma4_moe": {
        **COMMON,
        "model_type": "gemma4_text",
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "num_hidden_layers": 3,
        "layer_types": [SLIDING, SLIDING, FULL],
        "enable_moe_block": True,
        "num_experts": 6,
        "top_k_experts": 3,
        "moe_intermediate_size": 12,
        "tie_word_embeddings": True,
        "final_logit_softcapping": 30.0,
    },
}
