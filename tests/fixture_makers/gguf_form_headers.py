"""How converters write the generators with other forms of norms, perceptrons or blocks into GGUF files.

As `gguf_headers`, of whose functions it uses some.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
from gguf import Keys
from safetensors import safe_open

from . import files
from .gguf_headers import factors, layer_normed, metadata

# Converters call OLMo 3 by the name of OLMo 2, and Granite 4 without layers of Mamba by that of Granite.
NAMES = {
    "cohere": "command-r",
    "cohere2": "cohere2",
    "olmo3": "olmo2",
    "granitemoehybrid": "granite",
    "hunyuan_v1_dense": "hunyuan-dense",
    "ernie4_5": "ernie4_5",
    "seed_oss": "seed_oss",
    "apertus": "apertus",
    "arcee": "arcee",
    "nemotron": "nemotron",
}
PERMUTED = ("granitemoehybrid", "arcee")
NO_SCALING = gguf.RopeScalingType.NONE.value


def cohere(config: dict[str, Any]) -> dict[str, Any]:
    found = layer_normed(config)
    found[Keys.LLM.LOGIT_SCALE] = config["logit_scale"]
    found[Keys.Rope.SCALING_TYPE] = NO_SCALING
    if "sliding_window" in config:
        found[Keys.Attention.SLIDING_WINDOW] = config["sliding_window"]
        found[Keys.Attention.SLIDING_WINDOW_PATTERN] = config["sliding_window_pattern"]
        found[Keys.LLM.VOCAB_SIZE] = config["vocab_size"]
    return found


def olmo3(config: dict[str, Any]) -> dict[str, Any]:
    rope = config["rope_scaling"]
    return {
        **metadata("olmo3", config),
        Keys.Rope.SCALING_YARN_ATTN_FACTOR: rope["attention_factor"],
        Keys.Rope.SCALING_ATTN_FACTOR: rope["attention_factor"],
        Keys.Rope.SCALING_YARN_BETA_FAST: rope["beta_fast"],
        Keys.Rope.SCALING_YARN_BETA_SLOW: rope["beta_slow"],
        Keys.Attention.SLIDING_WINDOW: config["sliding_window"],
        Keys.Attention.SLIDING_WINDOW_PATTERN: [kind == "sliding_attention" for kind in config["layer_types"]],
        # The default of the family, which such a file means.
        Keys.Rope.FREQ_BASE_SWA: 500000.0,
    }


def granite(config: dict[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    found = metadata("granite", {key: value for key, value in config.items() if key != "num_experts_per_tok"})
    found[Keys.Attention.HEAD_COUNT_KV] = [config["num_key_value_heads"]] * layers
    found[Keys.LLM.EXPERT_COUNT] = 0
    found[Keys.LLM.EXPERT_USED_COUNT] = 0
    found[Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH] = config["shared_intermediate_size"]
    found[Keys.Rope.SCALING_FINETUNED] = True
    sizes = {Keys.SSM.CONV_KERNEL: 4, Keys.SSM.STATE_SIZE: 256, Keys.SSM.GROUP_COUNT: 1}
    return found | sizes | {Keys.SSM.INNER_SIZE: 64, Keys.SSM.TIME_STEP_RANK: 8}


def hunyuan(config: dict[str, Any]) -> dict[str, Any]:
    width, alpha = config["head_dim"], config["rope_scaling"]["alpha"]
    return {
        **metadata("hunyuan_v1_dense", config),
        Keys.Rope.FREQ_BASE: config["rope_theta"] * alpha ** (width / (width - 2)),
        Keys.Rope.SCALING_TYPE: NO_SCALING,
        Keys.Rope.SCALING_FACTOR: 1,
        Keys.Rope.SCALING_ORIG_CTX_LEN: 256 * 1024,
        Keys.LLM.CONTEXT_LENGTH: 256 * 1024,
    }


def nemotron(config: dict[str, Any]) -> dict[str, Any]:
    found = metadata("nemotron", {**config, "rms_norm_eps": config["norm_eps"]})
    found[Keys.Attention.LAYERNORM_EPS] = config["norm_eps"]
    found[Keys.Rope.SCALING_TYPE] = NO_SCALING
    found[Keys.LLM.VOCAB_SIZE] = config["vocab_size"]
    return found


OWN = {
    "cohere": cohere,
    "cohere2": cohere,
    "olmo3": olmo3,
    "granitemoehybrid": granite,
    "hunyuan_v1_dense": hunyuan,
    "nemotron": nemotron,
}


def make(root: Path) -> None:
    found: dict[str, Any] = {}
    for family, name in NAMES.items():
        config = json.loads((root / family / "config.json").read_text(encoding="utf-8"))
        layers = config["num_hidden_layers"]
        kind = next(kind for kind, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
        table = gguf.get_tensor_name_map(kind, layers)
        with safe_open(root / family / "model.safetensors", "pt") as tensors:
            keys = list(tensors.keys())
            numbers = {key: float(tensors.get_tensor(key).item()) for key in keys if ".act_fn." in key}
        names, slices = {}, {}
        for key in keys:
            if key in numbers:
                continue
            if "shared_mlp" in key:  # the converter names them itself
                layer = key.split(".")[2]
                if "output_linear" in key:
                    names[key] = f"blk.{layer}.ffn_down.weight"
                else:
                    slices |= {
                        f"blk.{layer}.ffn_{part}.weight": (key, half, 2) for half, part in enumerate(("gate", "up"))
                    }
                continue
            names[key] = table.get_name(key, (".weight", ".bias"))
        missing = [key for key, own in names.items() if own is None]
        assert not missing, (family, missing)
        facts = OWN[family](config) if family in OWN else metadata(family, config)
        own = {key.format(arch=name): value for key, value in facts.items()}
        for part, key in (("alpha_p", "ALPHA_P"), ("alpha_n", "ALPHA_N"), ("beta", "BETA"), ("eps", "EPS")):
            if numbers:
                own[getattr(Keys.xIELU, key)] = [numbers[f"model.layers.{i}.mlp.act_fn.{part}"] for i in range(layers)]
        permuted = {"heads": config["num_attention_heads"], "kv_heads": config["num_key_value_heads"]}
        # Its numbers are those of Llama 3 too.
        divisors = factors("olmo2", config) if family == "apertus" else {}
        found[family] = {"architecture": name, "metadata": own, "names": names, "factors": divisors}
        found[family] |= {"permuted": permuted if family in PERMUTED else None}
        if slices:
            found[family]["slices"] = slices
    files.write_json(root / "gguf_form_headers.json", {"made_with": {"gguf": version("gguf")}, "families": found})
