"""How converters write the tiny generators into GGUF files: metadata and the names of tensors, by the `gguf` package.

The test writes such files from the fixtures' own weights, and compares their logits with the same references.
"""

import json
import math
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
from gguf import Keys
from safetensors import safe_open
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from . import files

# The name of a family in GGUF files, where it is another, and the families whose queries and keys are permuted.
NAMES = {
    "ministral3": "mistral3",
    "gemma3_text": "gemma3",
    "gpt_neox": "gptneox",
    "phi": "phi2",
    "stablelm_parallel": "stablelm",
    "falcon_new": "falcon",
    "mixtral": "llama",
    **{name: name.replace("_", "") for name in ("qwen2_moe", "qwen3_moe", "lfm2_moe")},
}
PERMUTED = ("llama", "ministral3", "granite", "mixtral", "granitemoe")
# In the order in which they are stacked. The package has no name for what Granite joins.
EXPERTS = re.compile(r"(.*)\.(?:mlp|block_sparse_moe|feed_forward)\.experts\.(\d+)\.(\w+)\.weight")
KINDS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}
JOINED = {"input_linear": ("gate", "up"), "output_linear": ("down",)}
FAMILIES = ("gpt2", "llama", "qwen2", "qwen3", "ministral3", "granite", "phi3", "gemma", "gemma2", "gemma3_text")
FAMILIES += ("glm4", "olmo2", "exaone4", "gpt_neox", "phi", "stablelm", "stablelm_parallel", "starcoder2")
FAMILIES += ("falcon", "falcon_new", "lfm2", "qwen3_moe", "mixtral", "olmoe", "lfm2_moe", "qwen2_moe", "granitemoe")
ENCODERS = {
    "bert_wordpiece": "bert",
    "xlmr": "bert",
    "nomic_2048": "nomic-bert",
    "jina_v2": "jina-bert-v2",
    "modernbert": "modern-bert",
    "gemma_embedding": "gemma-embedding",
}
# Spelled as llama.cpp has it; the package does not have it yet.
ACTIVATION = "{arch}.hidden_activation"
# Inputs and outputs of the Dense modules.
DENSE = {("dense_2", "in"): 24, ("dense_2", "out"): 40, ("dense_3", "in"): 40, ("dense_3", "out"): 20}


def scaling(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope.get("full_attention", rope)
    if rope.get("rope_type") not in ("linear", "yarn"):
        return {}
    found = {Keys.Rope.SCALING_TYPE: rope["rope_type"], Keys.Rope.SCALING_FACTOR: rope["factor"]}
    if rope["rope_type"] == "yarn":
        found[Keys.Rope.SCALING_ORIG_CTX_LEN] = rope["original_max_position_embeddings"]
    return found


def pooling(root: Path, family: str) -> int:
    config = json.loads((root / family / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    return int(gguf.PoolingType.CLS if config.get("pooling_mode_cls_token") else gguf.PoolingType.MEAN)


def encoder(family: str, config: dict[str, Any]) -> dict[str, Any]:
    def either(*names: str) -> Any:
        return next(config[name] for name in names if config.get(name) is not None)

    # XLM-R's table has two rows that no token has.
    positions = either("max_position_embeddings", "n_positions") - (2 if family == "xlmr" else 0)
    found = {
        Keys.LLM.CONTEXT_LENGTH: positions,
        Keys.LLM.EMBEDDING_LENGTH: either("hidden_size", "n_embd"),
        Keys.LLM.FEED_FORWARD_LENGTH: either("intermediate_size", "n_inner"),
        Keys.LLM.BLOCK_COUNT: either("num_hidden_layers", "n_layer"),
        Keys.Attention.HEAD_COUNT: either("num_attention_heads", "n_head"),
        Keys.Attention.LAYERNORM_EPS: either("layer_norm_eps", "layer_norm_epsilon", "norm_eps"),
        Keys.Attention.CAUSAL: False,
    }
    if family == "nomic_2048":
        found[Keys.Rope.FREQ_BASE] = float(config["rotary_emb_base"])
    if family == "modernbert":
        full = AutoConfig.for_model(**config)
        rope = full.rope_parameters
        found[Keys.Attention.SLIDING_WINDOW] = full.local_attention
        found[Keys.Attention.SLIDING_WINDOW_PATTERN] = config.get("global_attn_every_n_layers", 3)
        found[Keys.Rope.FREQ_BASE] = float(rope["full_attention"]["rope_theta"])
        found[Keys.Rope.FREQ_BASE_SWA] = float(rope["sliding_attention"]["rope_theta"])
        found[Keys.Rope.SCALING_TYPE] = gguf.RopeScalingType.NONE.value
        found[Keys.LLM.VOCAB_SIZE] = config["vocab_size"]
        found[ACTIVATION] = full.hidden_activation
    return found


def layer_normed(config: dict[str, Any]) -> dict[str, Any]:
    """Generators with layer normalization and rotary positions."""
    full = AutoConfig.for_model(**config)
    rope = full.rope_parameters
    head = config["hidden_size"] // config["num_attention_heads"]
    found = {
        Keys.LLM.CONTEXT_LENGTH: config["max_position_embeddings"],
        Keys.LLM.EMBEDDING_LENGTH: config["hidden_size"],
        Keys.LLM.FEED_FORWARD_LENGTH: config["intermediate_size"],
        Keys.LLM.BLOCK_COUNT: config["num_hidden_layers"],
        Keys.Attention.HEAD_COUNT: config["num_attention_heads"],
        Keys.Attention.LAYERNORM_EPS: config.get("layer_norm_eps") or config["norm_epsilon"],
        Keys.Rope.DIMENSION_COUNT: int(head * rope.get("partial_rotary_factor", 1)),
        Keys.Rope.FREQ_BASE: float(rope["rope_theta"]),
    }
    if "num_key_value_heads" in config:
        found[Keys.Attention.HEAD_COUNT_KV] = config["num_key_value_heads"]
    if config["model_type"] in ("gpt_neox", "stablelm"):  # converters say so of every StableLM
        found[Keys.LLM.USE_PARALLEL_RESIDUAL] = True
    if config["model_type"] == "starcoder2":
        found[Keys.Attention.SLIDING_WINDOW] = config["sliding_window"]
    return found


def falcon(config: dict[str, Any]) -> dict[str, Any]:
    """Converters name no rotary positions: they have the default's base."""
    full = AutoConfig.for_model(**config)
    return {
        Keys.LLM.CONTEXT_LENGTH: full.max_position_embeddings,
        Keys.LLM.TENSOR_DATA_LAYOUT: "jploski",
        Keys.LLM.EMBEDDING_LENGTH: full.hidden_size,
        Keys.LLM.FEED_FORWARD_LENGTH: full.ffn_hidden_size,
        Keys.LLM.BLOCK_COUNT: full.num_hidden_layers,
        Keys.Attention.HEAD_COUNT: full.num_attention_heads,
        Keys.Attention.HEAD_COUNT_KV: full.num_kv_heads if full.new_decoder_architecture else 1,
        Keys.Attention.LAYERNORM_EPS: full.layer_norm_epsilon,
    }


def experts(config: dict[str, Any]) -> dict[str, Any]:
    """Converters leave out whether weights are normalized, and factors of 1: a reader knows it by the architecture."""
    found = {
        Keys.LLM.EXPERT_COUNT: config.get("num_experts") or config["num_local_experts"],
        Keys.LLM.EXPERT_USED_COUNT: config["num_experts_per_tok"],
    }
    names = {
        "moe_intermediate_size": Keys.LLM.EXPERT_FEED_FORWARD_LENGTH,
        "shared_expert_intermediate_size": Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH,
        "num_dense_layers": Keys.LLM.LEADING_DENSE_BLOCK_COUNT,
        "routed_scaling_factor": Keys.LLM.EXPERT_WEIGHTS_SCALE,
    }
    found |= {key: config[name] for name, key in names.items() if name in config}
    if config["model_type"] == "lfm2_moe":
        found[Keys.LLM.EXPERT_GATING_FUNC] = int(gguf.ExpertGatingFuncType.SIGMOID)
    return found


def lfm2(config: dict[str, Any]) -> dict[str, Any]:
    """Layers without heads of keys have a convolution."""
    full = AutoConfig.for_model(**config)
    if full.model_type == "lfm2_moe":
        length = full.intermediate_size
    else:
        wide = int(full.block_ffn_dim_multiplier * int(2 * full.intermediate_size / 3))
        length = -(-wide // full.block_multiple_of) * full.block_multiple_of
    return {
        Keys.LLM.VOCAB_SIZE: full.vocab_size,
        Keys.LLM.CONTEXT_LENGTH: full.max_position_embeddings,
        Keys.LLM.EMBEDDING_LENGTH: full.hidden_size,
        Keys.LLM.FEED_FORWARD_LENGTH: length,
        Keys.LLM.BLOCK_COUNT: full.num_hidden_layers,
        Keys.Attention.HEAD_COUNT: full.num_attention_heads,
        Keys.Attention.HEAD_COUNT_KV: [
            full.num_key_value_heads if kind == "full_attention" else 0 for kind in full.layer_types
        ],
        Keys.Attention.LAYERNORM_RMS_EPS: full.norm_eps,
        Keys.Rope.FREQ_BASE: float(full.rope_parameters["rope_theta"]),
        Keys.ShortConv.L_CACHE: full.conv_L_cache,
    }


def metadata(family: str, config: dict[str, Any]) -> dict[str, Any]:
    """Names have `{arch}` where that of the architecture belongs."""
    if family == "gpt2":
        return {
            Keys.LLM.CONTEXT_LENGTH: config["n_positions"],
            Keys.LLM.EMBEDDING_LENGTH: config["n_embd"],
            Keys.LLM.FEED_FORWARD_LENGTH: 4 * config["n_embd"],
            Keys.LLM.BLOCK_COUNT: config["n_layer"],
            Keys.Attention.HEAD_COUNT: config["n_head"],
            Keys.Attention.LAYERNORM_EPS: config["layer_norm_epsilon"],
        }
    if family in ENCODERS and family != "gemma_embedding":
        return encoder(family, config)
    if config["model_type"] == "falcon":
        return falcon(config)
    if config["model_type"] == "lfm2_moe":
        return lfm2(config) | experts(config)
    if config["model_type"] == "lfm2":
        return lfm2(config)
    if "layer_norm_eps" in config or "norm_epsilon" in config:
        return layer_normed(config)
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    found = {
        Keys.LLM.CONTEXT_LENGTH: config["max_position_embeddings"],
        Keys.LLM.EMBEDDING_LENGTH: config["hidden_size"],
        Keys.LLM.FEED_FORWARD_LENGTH: config["intermediate_size"],
        Keys.LLM.BLOCK_COUNT: config["num_hidden_layers"],
        Keys.Attention.HEAD_COUNT: config["num_attention_heads"],
        Keys.Attention.HEAD_COUNT_KV: config["num_key_value_heads"],
        Keys.Attention.KEY_LENGTH: head,
        Keys.Attention.VALUE_LENGTH: head,
        Keys.Attention.LAYERNORM_RMS_EPS: config["rms_norm_eps"],
        Keys.Rope.FREQ_BASE: rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
        Keys.Rope.DIMENSION_COUNT: int(head * config.get("partial_rotary_factor", 1)),
        **scaling(config),
    }
    if "num_experts_per_tok" in config:
        found |= experts(config)
    if family in ("granite", "granitemoe"):
        found[Keys.LLM.EMBEDDING_SCALE] = config["embedding_multiplier"]
        found[Keys.LLM.RESIDUAL_SCALE] = config["residual_multiplier"]
        found[Keys.LLM.LOGIT_SCALE] = config["logits_scaling"]
        found[Keys.Attention.SCALE] = config["attention_multiplier"]
    if family in ("phi3", "gemma2", "gemma3_text"):
        found[Keys.Attention.SLIDING_WINDOW] = config["sliding_window"]
    if family == "exaone4":
        found[Keys.Attention.SLIDING_WINDOW] = config["sliding_window"]
        flags = [kind == "sliding_attention" for kind in config["layer_types"]]
        found[Keys.Attention.SLIDING_WINDOW_PATTERN] = flags
    if family == "gemma3_text":
        found[Keys.Attention.SLIDING_WINDOW_PATTERN] = 2
        found["{arch}.rope.freq_base_swa"] = config["rope_parameters"]["sliding_attention"]["rope_theta"]
    if family == "gemma_embedding":
        found[Keys.Attention.SLIDING_WINDOW] = config["sliding_window"]
        found[Keys.Attention.SLIDING_WINDOW_PATTERN] = config["sliding_window_pattern"]
        found[Keys.Rope.FREQ_BASE_SWA] = config["rope_local_base_freq"]
        found[Keys.Attention.CAUSAL] = False
        for layer in ("dense_2", "dense_3"):
            sizes = {Keys.LLM.DENSE_FEAT_IN_SIZE: "in", Keys.LLM.DENSE_FEAT_OUT_SIZE: "out"}
            found |= {key.replace("{dense}", layer): DENSE[layer, side] for key, side in sizes.items()}
    if family == "gemma2":
        found[Keys.LLM.ATTN_LOGIT_SOFTCAPPING] = config["attn_logit_softcapping"]
        found[Keys.LLM.FINAL_LOGIT_SOFTCAPPING] = config["final_logit_softcapping"]
    if family == "phi3":
        original = config["original_max_position_embeddings"]
        growth = math.log(config["max_position_embeddings"] / original) / math.log(original)
        found[Keys.Rope.SCALING_ORIG_CTX_LEN] = original
        found[Keys.Rope.SCALING_ATTN_FACTOR] = math.sqrt(1 + growth)
    if family == "ministral3":
        found[Keys.Attention.TEMPERATURE_SCALE] = rope["llama_4_scaling_beta"]
    return found


def factors(family: str, config: dict[str, Any]) -> dict[str, list[float]]:
    """Tensors of divisors of the frequencies."""
    if family == "phi3":
        scaling = config["rope_scaling"]
        names = {"short": "rope_factors_short.weight", "long": "rope_factors_long.weight"}
        return {name: scaling[f"{kind}_factor"] for kind, name in names.items()}
    if family in ("olmo2", "exaone4"):
        full = AutoConfig.for_model(**config)
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](full, "cpu")
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        plain = [full.rope_parameters["rope_theta"] ** (-pair / width) for pair in range(0, width, 2)]
        return {"rope_freqs.weight": [own / float(other) for own, other in zip(plain, scaled, strict=True)]}
    return {}


def merged_experts(names: dict[str, str]) -> tuple[dict[str, list[str]], dict[str, tuple[str, int, int]]]:
    """Takes the matrices of experts out of `names`: those that become one tensor, in their order, and the halves of the
    rows of each expert that become one (the file's name → tensor, half, halves)."""
    merged: dict[str, list[str]] = {}
    slices: dict[str, tuple[str, int, int]] = {}
    for key in list(names):
        layer = re.match(r"model\.layers\.(\d+)\.", key)
        if (match := EXPERTS.fullmatch(key)) and layer:
            merged.setdefault(f"blk.{layer[1]}.ffn_{KINDS[match[3]]}_exps.weight", []).append(key)
        elif layer and (joined := key.split(".")[-2]) in JOINED:
            kinds = JOINED[joined]
            for half, kind in enumerate(kinds):
                slices[f"blk.{layer[1]}.ffn_{kind}_exps.weight"] = (key, half, len(kinds))
        else:
            continue
        del names[key]
    for keys in merged.values():
        keys.sort(key=lambda key: int(EXPERTS.fullmatch(key)[2]))  # type: ignore[index]
    return merged, slices


def make(root: Path) -> None:
    found: dict[str, Any] = {}
    for family in (*FAMILIES, *ENCODERS):
        config = json.loads((root / family / "config.json").read_text(encoding="utf-8"))
        name = ENCODERS.get(family) or NAMES.get(family, family)
        kind = next(kind for kind, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
        layers = config.get("num_hidden_layers") or config["n_layer"]
        table = gguf.get_tensor_name_map(kind, layers)
        with safe_open(root / family / "model.safetensors", "np") as tensors:
            stored = tensors.keys()
        keys = [key for key in stored if not key.startswith("pooler.") and "position_ids" not in key]
        # Converters take the prefix of a masked language model away.
        bare = {key: key.removeprefix("model.") if family == "modernbert" else key for key in keys}
        bare |= {key: f"model.{key}" for key in keys if family == "gemma_embedding"}
        # Norms of single heads become the rows of one tensor.
        heads = sorted(key for key in keys if ".norms." in key)
        stacked: dict[str, list[str]] = {}
        for key in heads:
            own = table.get_name(bare.pop(key).split(".norms.")[0])
            stacked.setdefault(f"{own}.weight", []).append(key)
        merged, slices = merged_experts(bare)
        # Converters give this bias the name of a module.
        own_names = {key: own.replace(".expert_bias", ".expert_bias.bias") for key, own in bare.items()}
        names = {key: table.get_name(own, (".weight", ".bias")) for key, own in own_names.items()}
        missing = [key for key, own in names.items() if own is None]
        assert not missing, (family, missing)
        facts = metadata(family, config)
        if family in ENCODERS:
            facts[Keys.LLM.POOLING_TYPE] = pooling(root, family)
        own = {key.format(arch=name): value for key, value in facts.items()}
        permuted = {"heads": config.get("num_attention_heads"), "kv_heads": config.get("num_key_value_heads")}
        found[family] = {"architecture": name, "metadata": own, "names": names}
        found[family] |= {"permuted": permuted if family in PERMUTED else None}
        found[family] |= {"factors": factors(family, config)}
        if stacked:
            found[family] |= {"stacked": stacked}
        if merged:
            found[family] |= {"experts": merged}
        if slices:
            found[family] |= {"slices": slices}
    versions = {"gguf": version("gguf")}
    encoders = {name: found.pop(name) for name in ENCODERS}
    whole = {"made_with": versions, "families": found, "encoders": encoders}
    files.write_json(root / "gguf_headers.json", whole)
