"""How the tiny Gemma 4 generators lie in GGUF files: metadata and the names of tensors, by the `gguf` package.

As `gguf_headers`. The package names keys and tensors; it does not say what converters write for each model. What is
written here is what a reader needs, and what another file says otherwise is refused.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
from gguf import Keys
from safetensors import safe_open
from transformers import AutoConfig

from . import files

NAME = "gguf_gemma4_headers"
FAMILIES = ("gemma4_text", "gemma4_dense")
ARCHITECTURE = "gemma4"
# The divisor of the frequency of a pair that does not rotate.
NEVER = 1e30


def metadata(config: dict[str, Any], width: int, kv_heads: int) -> dict[str, Any]:
    """Layers with full attention have heads of `width` numbers, and `kv_heads` of keys."""
    full = [kind == "full_attention" for kind in config["layer_types"]]
    own_keys = config["num_hidden_layers"] - config["num_kv_shared_layers"]
    wide = [config["use_double_wide_mlp"] and index >= own_keys for index in range(config["num_hidden_layers"])]
    rope = config["rope_parameters"]
    return {
        Keys.LLM.CONTEXT_LENGTH: config["max_position_embeddings"],
        Keys.LLM.EMBEDDING_LENGTH: config["hidden_size"],
        Keys.LLM.BLOCK_COUNT: config["num_hidden_layers"],
        Keys.LLM.FEED_FORWARD_LENGTH: [config["intermediate_size"] * (1 + double) for double in wide],
        Keys.LLM.EMBD_LENGTH_PER_LAYER_INP: config["hidden_size_per_layer_input"],
        Keys.LLM.FINAL_LOGIT_SOFTCAPPING: config["final_logit_softcapping"],
        Keys.Attention.HEAD_COUNT: config["num_attention_heads"],
        Keys.Attention.HEAD_COUNT_KV: [kv_heads if one else config["num_key_value_heads"] for one in full],
        Keys.Attention.KEY_LENGTH: width,
        Keys.Attention.VALUE_LENGTH: width,
        Keys.Attention.KEY_LENGTH_SWA: config["head_dim"],
        Keys.Attention.VALUE_LENGTH_SWA: config["head_dim"],
        Keys.Attention.LAYERNORM_RMS_EPS: config["rms_norm_eps"],
        Keys.Attention.SHARED_KV_LAYERS: config["num_kv_shared_layers"],
        Keys.Attention.SLIDING_WINDOW: config["sliding_window"],
        Keys.Attention.SLIDING_WINDOW_PATTERN: [not one for one in full],
        Keys.Rope.DIMENSION_COUNT: width,
        Keys.Rope.DIMENSION_COUNT_SWA: config["head_dim"],
        Keys.Rope.FREQ_BASE: float(rope["full_attention"]["rope_theta"]),
        Keys.Rope.FREQ_BASE_SWA: float(rope["sliding_attention"]["rope_theta"]),
    }


def divisors(config: dict[str, Any], width: int) -> list[float]:
    """Of the frequencies of layers with full attention, of which the first rotate."""
    rope = config["rope_parameters"]["full_attention"]
    assert rope["rope_type"] == "proportional"
    rotated = int(rope["partial_rotary_factor"] * width // 2)
    return [1.0] * rotated + [NEVER] * (width // 2 - rotated)


def header(root: Path, family: str, own_names: dict[str, str] | None = None) -> dict[str, Any]:
    """`own_names`: ends of transformers' names, and what converters call these tensors apart from the table."""
    written = json.loads((root / family / "config.json").read_text(encoding="utf-8"))
    config = {**AutoConfig.for_model(**written).to_dict(), **written}
    width = written["global_head_dim"]
    kv_heads = written.get("num_global_key_value_heads", config["num_key_value_heads"])
    kind = next(kind for kind, text in gguf.MODEL_ARCH_NAMES.items() if text == ARCHITECTURE)
    table = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])

    def name(key: str) -> str | None:
        for theirs, ours in (own_names or {}).items():
            if key.endswith(f".{theirs}"):
                return f"blk.{key.split('.')[2]}.{ours}"
        return table.get_name(key, (".weight", ".bias"))

    with safe_open(root / family / "model.safetensors", "pt") as tensors:
        names = {key: name(key) for key in tensors.keys()}  # noqa: SIM118
    missing = [key for key, own in names.items() if own is None]
    assert not missing, (family, missing)
    own = {key.format(arch=ARCHITECTURE): value for key, value in metadata(config, width, kv_heads).items()}
    found = {"architecture": ARCHITECTURE, "metadata": own, "names": names}
    return found | {"factors": {"rope_freqs.weight": divisors(config, width)}, "permuted": None}


def make(root: Path) -> None:
    found = {family: header(root, family) for family in FAMILIES}
    files.write_json(root / f"{NAME}.json", {"made_with": {"gguf": version("gguf")}, "families": found})
