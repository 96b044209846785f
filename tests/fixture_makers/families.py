"""Tiny generators of the families that differ from Llama by a few fields, each with another rotary scaling.

They are made as those of `causal` are; their weights are bfloat16, and the references are computed in float32.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from . import causal, files
from .causal import END, HIDDEN, MESSAGES, POSITIONS, PROMPTS, TURN_END, VOCABULARY
from .gemma4 import GEMMA4
from .lfm3 import LFM3
from .versions import VERSIONS
from .weights import random_weights

FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW = {"sliding_window": 6}
GEMMA = {"head_dim": 12, "tie_word_embeddings": True}
GEMMA2 = {**GEMMA, **WINDOW, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 20}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# In place of a value: a key that all others have.
ABSENT = object()
PHI = {"model_type": "phi", "rms_norm_eps": ABSENT, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"}
STABLELM = {"model_type": "stablelm", "rms_norm_eps": ABSENT, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5}
# What each `config.json` has in addition to the sizes that all share.
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {
        **WINDOW,
        "rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 10000.0},
    },
    "ministral": {**WINDOW, "head_dim": 12, "layer_types": [SLIDING, FULL], "rope_parameters": YARN},
    "ministral3": {
        "head_dim": 12,
        "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5},
    },
    "smollm3": {
        "no_rope_layers": [1, 0],
        "layer_types": [FULL, SLIDING],
        "use_sliding_window": True,
        **WINDOW,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": {**YARN, "attention_factor": 1.3, "truncate": False},
    },
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.4,
        "logits_scaling": 0.7,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    },
    "phi3": {
        "original_max_position_embeddings": 24,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.2, 1.5], "long_factor": [1.5, 4.0, 9.0]},
        "sliding_window": 30,
    },
    "gemma": {**GEMMA, "hidden_act": "gelu_pytorch_tanh", "rope_theta": 10000.0},
    "gemma2": {**GEMMA2, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
    "gemma3_text": {
        **GEMMA2,
        "layer_types": [SLIDING, FULL],
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 100.0},
            FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        },
    },
    "glm4": {"head_dim": 12, "attention_bias": True, "partial_rotary_factor": 0.5},
    "olmo2": {"rope_parameters": {**LLAMA3, "rope_theta": 1000.0, "original_max_position_embeddings": 20}},
    "exaone4": {
        **WINDOW,
        "head_dim": 12,
        "sliding_window_pattern": "LG",
        "layer_types": [SLIDING, FULL],
        "rope_parameters": {**LLAMA3, "rope_theta": 1000.0, "original_max_position_embeddings": 20},
    },
    "helium": {"head_dim": 8, "attention_bias": True, "mlp_bias": True, "rope_theta": 1000.0},
    # Layer normalization: without `rms_norm_eps`.
    "gpt_neox": {
        "rms_norm_eps": ABSENT,
        "num_key_value_heads": ABSENT,
        "layer_norm_eps": 1e-5,
        "rotary_pct": 0.5,
        "rotary_emb_base": 1000,
        "use_parallel_residual": True,
    },
    "phi": {**PHI, "num_key_value_heads": 4},
    "phi_norms": {**PHI, "qk_layernorm": True},
    "stablelm": {**STABLELM, "use_qkv_bias": True, "tie_word_embeddings": True},
    "stablelm_parallel": {**STABLELM, "qk_layernorm": True, "use_parallel_residual": True},
    "starcoder2": {
        **WINDOW,
        "rms_norm_eps": ABSENT,
        "norm_epsilon": 1e-5,
        "use_bias": True,
        "tie_word_embeddings": True,
        "mlp_type": "default",
        "norm_type": "layer_norm",
        "scale_attn_weights": True,
    },
}

# Mixtures of experts.
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 12, "norm_topk_prob": True}
FAMILIES |= {
    "qwen3_moe": {**EXPERTS, "head_dim": 12},
    # Three of four layers have a perceptron; the tensors are as modules hold them.
    "qwen3_moe_mixed": {
        "model_type": "qwen3_moe",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "intermediate_size": 20,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
        "num_hidden_layers": 4,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 12,
    },
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 20, "rope_theta": 1000000.0},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 20, "norm_topk_prob": False},
    "qwen2_moe": {**EXPERTS, "norm_topk_prob": False, "shared_expert_intermediate_size": 20},
    "granitemoe": {
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "intermediate_size": 20,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.4,
        "logits_scaling": 0.7,
    },
}

# Other forms of norms, perceptrons or blocks.
LAYER_NORMED = {"rms_norm_eps": ABSENT, "layer_norm_eps": 1e-5, "logit_scale": 0.25, "tie_word_embeddings": True}
FAMILIES |= {
    "cohere": {**LAYER_NORMED, "use_qk_norm": True, "attention_bias": True, "rope_theta": 1000.0},
    # With the keys of its first files.
    "cohere2": {
        **LAYER_NORMED,
        **WINDOW,
        "sliding_window_pattern": 2,
        "rope_theta": 1000.0,
        "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj",
        "rotary_pct": 1.0,
        "layer_switch": 4,
        "use_gated_activation": True,
        "use_parallel_block": True,
    },
    "olmo3": {
        **WINDOW,
        "layer_types": [SLIDING, FULL],
        "rope_theta": 1000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "attention_factor": 1.2,
            "beta_fast": 16.0,
            "beta_slow": 1.0,
        },
    },
    "granitemoehybrid": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.4,
        "logits_scaling": 0.7,
        "intermediate_size": 40,
        "shared_intermediate_size": 48,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "layer_types": ["attention", "attention"],
        "position_embedding_type": "rope",
        "normalization_function": "rmsnorm",
        "mamba_n_heads": 8,
        "attention_bias": True,
    },
    "hunyuan_v1_dense": {
        "head_dim": 12,
        "attention_bias": True,
        "use_qk_norm": True,
        "rope_theta": 100.0,
        "rope_scaling": {
            "type": "dynamic",
            "alpha": 50.0,
            "factor": 1.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    },
    "ernie4_5": {"head_dim": 12, "use_bias": True, "rope_theta": 1000.0},
    "seed_oss": {"head_dim": 12, "attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
    "apertus": {
        "hidden_act": "xielu",
        "qk_norm": True,
        "rope_parameters": {**LLAMA3, "rope_theta": 1000.0, "original_max_position_embeddings": 20},
    },
    "glm": {"head_dim": 12, "attention_bias": True, "partial_rotary_factor": 0.5},
    "arcee": {"hidden_act": "relu2", "mlp_bias": True, "rope_parameters": YARN},
    "nemotron": {
        "rms_norm_eps": ABSENT,
        "norm_eps": 1e-5,
        "hidden_act": "relu2",
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
        "mlp_bias": True,
    },
}

# Models that read images too: the family of their text model, and what their `config.json` says of images.
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8}
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": (
        "gemma3_text",
        {
            "vision_config": {"model_type": "siglip_vision_model", "patch_size": 4, **VISION},
            "mm_tokens_per_image": 4,
            "boi_token_index": 1,
            "eoi_token_index": 2,
            "image_token_index": 3,
        },
    ),
    "mistral3": (
        "ministral3",
        {
            "vision_config": {"model_type": "pixtral", "patch_size": 4, "head_dim": 8, **VISION},
            "spatial_merge_size": 1,
            "image_token_index": 3,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -1,
            "multimodal_projector_bias": False,
            "tie_word_embeddings": False,
        },
    ),
    "qwen3_5": (
        "qwen3_5_text",
        {
            "vision_config": {
                "model_type": "qwen3_5_vision",
                "depth": 1,
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_heads": 1,
                "patch_size": 4,
                "temporal_patch_size": 1,
                "spatial_merge_size": 1,
                "out_hidden_size": HIDDEN,
                "num_position_embeddings": 4,
            },
            "image_token_id": 3,
            "video_token_id": 4,
            "vision_start_token_id": 5,
            "vision_end_token_id": 6,
            "tie_word_embeddings": True,
        },
    ),
}


# Families with another layer than Llama's: their whole `config.json`, less what all have.
LFM2 = {
    "model_type": "lfm2",
    "num_hidden_layers": 4,
    "block_ff_dim": 66,
    "block_multiple_of": 8,
    "block_ffn_dim_multiplier": 1.1,
    "block_auto_adjust_ff_dim": True,
    "norm_eps": 1e-5,
    "conv_L_cache": 3,
    "full_attn_idxs": [1, 3],
    "rope_theta": 10000.0,
    "tie_embedding": True,
    "num_key_value_heads": 2,
}
# Each second layer sees all tokens, with wider heads.
QWEN35 = {
    "model_type": "qwen3_5_text",
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    # The norm of a state's small outputs amplifies roundings.
    "rms_norm_eps": 1e-3,
    "attn_output_gate": True,
    "output_gate_type": "swish",
    "mamba_ssm_dtype": "float32",
    "mtp_num_hidden_layers": 1,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [1, 1, 0],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
}
QWEN35_EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", FULL],
    "tie_word_embeddings": False,
}
DELTA_RULES = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
FALCON = {"model_type": "falcon", "layer_norm_epsilon": 1e-5, "alibi": False, "num_hidden_layers": 2}
OTHERS: dict[str, dict[str, Any]] = {
    "lfm2": LFM2,
    "qwen3_5_text": QWEN35,
    "qwen3_5_moe_text": {
        **QWEN35,
        **QWEN35_EXPERTS,
        **dict.fromkeys(("intermediate_size", "full_attention_interval"), ABSENT),
        "model_type": "qwen3_5_moe_text",
    },
    "qwen3_next": {
        **QWEN35,
        **QWEN35_EXPERTS,
        "model_type": "qwen3_next",
        "num_hidden_layers": 4,
        "layer_types": ABSENT,
        "num_experts": 5,
        "decoder_sparse_step": 2,
        "norm_topk_prob": True,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0,
        **dict.fromkeys(
            ("attn_output_gate", "output_gate_type", "mamba_ssm_dtype", "mtp_num_hidden_layers", "rope_parameters"),
            ABSENT,
        ),
    },
    "lfm2_moe": {
        **EXPERTS,
        "model_type": "lfm2_moe",
        "num_hidden_layers": 4,
        "num_dense_layers": 1,
        "intermediate_size": 20,
        "layer_types": ["conv", FULL, "conv", FULL],
        "norm_eps": 1e-5,
        "num_key_value_heads": 2,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.5,
        "use_expert_bias": True,
    },
    **GEMMA4,
    "lfm2_biased": {
        **LFM2,
        "layer_types": ["conv", FULL, "conv"],
        "num_hidden_layers": 3,
        "conv_bias": True,
        "conv_L_cache": 4,
        "tie_embedding": False,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    },
    "falcon": {**FALCON, "multi_query": True, "parallel_attn": True, "bias": False, "new_decoder_architecture": False},
    "falcon_new": {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 48, "bias": False},
    "falcon_serial": {
        **FALCON,
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
        "tie_word_embeddings": False,
        "activation": "gelu_pytorch_tanh",
    },
    "gptj": {
        "model_type": "gptj",
        "n_embd": HIDDEN,
        "n_layer": 2,
        "n_head": 2,
        "n_inner": 48,
        "n_positions": POSITIONS,
        "rotary": True,
        "rotary_dim": 8,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
        **dict.fromkeys(("hidden_size", "num_attention_heads", "max_position_embeddings"), ABSENT),
    },
    **LFM3,
}


def other(name: str, vocabulary: int) -> dict[str, Any]:
    end = vocabulary - 3
    sizes = {"hidden_size": HIDDEN, "num_attention_heads": 4, "vocab_size": vocabulary}
    tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    found = {**sizes, **tokens, "max_position_embeddings": POSITIONS, **OTHERS[name]}
    found = {key: vocabulary if value is VOCABULARY else value for key, value in found.items()}
    return {key: value for key, value in found.items() if value is not ABSENT}


def config(name: str, vocabulary: int) -> dict[str, Any]:
    if name in OTHERS:
        return other(name, vocabulary)
    if name in WHOLE:
        text, images = WHOLE[name]
        own = config(text, vocabulary)
        tokens = {key: own.pop(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return {"model_type": name, "text_config": own, **images, **tokens}
    end = vocabulary - 3  # END, TURN, TURN_END come last
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": vocabulary}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS}
    tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    common = {"model_type": name, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    found = {**common, **sizes, **heads, **tokens, **FAMILIES[name]}
    return {key: value for key, value in found.items() if value is not ABSENT}


def write_tokenizer(name: str, directory: Path) -> int:
    """Gemma's texts begin with a token; the others' do not."""
    tokens = causal.write_tokenizer(directory, "llama", POSITIONS)
    if name.startswith("gemma"):
        end = tokens.token_to_id(END)
        tokens.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, end)])
        tokens.save(str(directory / "tokenizer.json"), pretty=False)
        ends = [end, tokens.token_to_id(TURN_END)]
        files.write_json(directory / "generation_config.json", {"eos_token_id": ends})
    return tokens.get_vocab_size()


def write_weights(name: str, directory: Path, seed: int) -> None:
    if name in WHOLE:
        write_whole(name, directory, seed)
        return
    empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    shapes = {key: tensor.shape for key, tensor in empty.state_dict().items()}
    if empty.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    # Gemma multiplies embeddings by the root of their length, and adds one to its norms, up to Gemma 3.
    gemma = name.startswith("gemma")
    # One that counts none has no experts.
    used = getattr(empty.config, "num_experts_per_tok", getattr(empty.config, "top_k_experts", None))
    mixture = (used or 0) > 0
    # The factors of experts' weights, and states of delta rules, amplify roundings once more.
    gain = 1.0 if name in DELTA_RULES else 1.5 if mixture else 2.0
    tensors = random_weights(shapes, seed, gain, embedding=0.1 if gemma else 0.3)
    if name in DELTA_RULES:
        tensors = centered(name, tensors)
    # Nemotron adds one too, to the scales alone.
    one_more = (gemma and not name.startswith("gemma4")) or name == "nemotron"
    norms = {key for key in tensors if one_more and key.endswith("norm.weight")}
    for key, tensor in tensors.items():
        if tensor.ndim == 2 and key.endswith("_norm.weight"):  # of each head
            tensors[key] = 1 + 0.2 * tensor
    constants = ("act_fn.beta", "act_fn.eps")
    tensors |= {key: tensor for key, tensor in empty.state_dict().items() if key.endswith(constants)}
    if "lm_head.weight" in tensors and name == "gpt_neox":  # as it was published
        tensors["embed_out.weight"] = tensors.pop("lm_head.weight")
    if name == "lfm3":
        tensors = {key.replace(".g_proj.", ".gate_proj."): tensor for key, tensor in tensors.items()}
    if mixture:  # transformers chooses the names
        empty.load_state_dict(tensors, strict=not empty.config.tie_word_embeddings)
        save(empty, directory, save_original_format=name != "qwen3_moe_mixed")
        return
    narrow = {key: (tensor - int(key in norms)).to(torch.bfloat16).contiguous() for key, tensor in tensors.items()}
    files.save_single(directory, narrow)


def centered(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gemma and Qwen3.5 add one to the scales of their norms, but for those of a delta rule's outputs."""
    if name.startswith("gemma"):
        offset = {key for key, tensor in tensors.items() if tensor.ndim == 1}
    elif name in DELTA_RULES:
        offset = {key for key in tensors if key.endswith("norm.weight") and not key.endswith("linear_attn.norm.weight")}
    else:
        return tensors
    return {key: tensor - int(key in offset) for key, tensor in tensors.items()}


def save(model: Any, directory: Path, **options: Any) -> None:
    """As transformers saves it, with the `config.json` that is there."""
    model.tie_weights()
    own = {path: path.read_bytes() for path in directory.glob("*config.json")}
    model.to(torch.bfloat16).save_pretrained(directory, **options)
    (directory / "generation_config.json").unlink()
    for path, content in own.items():
        path.write_bytes(content)


def write_whole(name: str, directory: Path, seed: int) -> None:
    """The text model has the weights that its own fixture would have; transformers chooses the names."""
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(directory))
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    gain = 1.0 if name in DELTA_RULES else 2.0
    tensors = random_weights(shapes, seed, gain, embedding=0.1 if name.startswith("gemma") else 0.3)
    model.load_state_dict(centered(name, tensors))
    save(model, directory)
    if name == "qwen3_5":  # as published, with a layer that predicts another token
        path = directory / "model.safetensors"
        mtp = {"mtp.norm.weight": torch.ones(HIDDEN), "mtp.layers.0.mlp.up_proj.weight": torch.ones(4, HIDDEN)}
        files.save_single(directory, load_file(path) | {key: value.to(torch.bfloat16) for key, value in mtp.items()})


def answers(directory: Path) -> tuple[list[dict[str, Any]], float]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    options = {"dtype": torch.float32, "attn_implementation": "eager", "experts_implementation": "eager"}
    kind = AutoModelForImageTextToText if directory.name in WHOLE else AutoModelForCausalLM
    model = kind.from_pretrained(directory, **options).eval()
    exact = kind.from_pretrained(directory, **options).eval().double()
    ends = [tokenizer.convert_tokens_to_ids(token) for token in (END, TURN_END)]
    with torch.no_grad():
        cases = [causal.case(model, exact, tokenizer, prompt) for prompt in PROMPTS]
    if any(end in case["greedy"] + case["penalised"] for case, _ in cases for end in ends):
        raise ValueError("an answer ends early, choose another seed")
    return [case for case, _ in cases], max(error for _, error in cases)


def make(name: str, root: Path) -> None:
    directory = root / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    files.write_json(directory / "config.json", config(name, write_tokenizer(name, directory)))
    # The first whose answers no rounding decides; Phi 3's first one amplifies every rounding.
    for seed in range(101 if name == "phi3" else 100, 200):
        write_weights(name, directory, seed)
        try:
            cases, error = answers(directory)
        except ValueError as unfit:
            print(f"{name}, seed {seed}: {unfit}", flush=True)
            continue
        break
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = {
        "made_with": VERSIONS,
        "seed": seed,
        "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
        "cases": cases,
        "float64_error": float(f"{error:.1e}"),
        "chat": {"messages": MESSAGES, "text": text, "ids": ids},
    }
    files.write_json(directory / "reference.json", found)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(f"{name}: seed {seed}, {size / 1000:.0f} kB, float64 error {found['float64_error']}", flush=True)
