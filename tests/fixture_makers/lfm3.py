"""LFM3 as it is published, and with everything that can be switched."""

from typing import Any

CONVOLUTION, SLIDING, FULL = "conv", "sliding_attention", "full_attention"
COMMON = {"model_type": "lfm3", "intermediate_size": 40, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 6}
LFM3: dict[str, dict[str, Any]] = {
    # The gates have the name that they have in published files.
    "lfm3": {**COMMON, "num_hidden_layers": 5, "norm_eps": 1e-5},
    "lfm3_biased": {
        **COMMON,
        "num_hidden_layers": 3,
        "layer_types": [SLIDING, CONVOLUTION, FULL],
        "conv_bias": True,
        "conv_L_cache": 4,
        "attention_bias": True,
        "use_sandwich_norm": False,
        "use_attention_gate": False,
        "tie_word_embeddings": False,
        "rope_parameters": {
            SLIDING: {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0},
            FULL: {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16},
        },
    },
}
