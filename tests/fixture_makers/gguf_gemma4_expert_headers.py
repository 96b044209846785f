"""How the tiny Gemma 4 with experts lies in a GGUF file.

As `gguf_gemma4_headers`. Two tensors have names that the package's table does not have: the scale of the router's
states, and the factors of the experts' weights.
"""

import json
from importlib.metadata import version
from pathlib import Path

from gguf import MODEL_TENSOR, TENSOR_NAMES, Keys

from . import files
from .gguf_gemma4_headers import ARCHITECTURE, header

NAME = "gguf_gemma4_expert_headers"
FAMILY = "gemma4_moe"


def name(tensor: MODEL_TENSOR, ending: str) -> str:
    return TENSOR_NAMES[tensor].removeprefix("blk.{bid}.") + ending


OWN_NAMES = {
    "router.scale": name(MODEL_TENSOR.FFN_GATE_INP, ".scale"),
    "router.per_expert_scale": name(MODEL_TENSOR.FFN_DOWN_EXP, ".scale"),
    # Those of folders have no ending.
    "experts.gate_up_proj": name(MODEL_TENSOR.FFN_GATE_UP_EXP, ".weight"),
    "experts.down_proj": name(MODEL_TENSOR.FFN_DOWN_EXP, ".weight"),
}


def make(root: Path) -> None:
    config = json.loads((root / FAMILY / "config.json").read_text(encoding="utf-8"))
    found = header(root, FAMILY, OWN_NAMES)
    found["metadata"] |= {
        Keys.LLM.EXPERT_COUNT.format(arch=ARCHITECTURE): config["num_experts"],
        Keys.LLM.EXPERT_USED_COUNT.format(arch=ARCHITECTURE): config["top_k_experts"],
        Keys.LLM.EXPERT_FEED_FORWARD_LENGTH.format(arch=ARCHITECTURE): config["moe_intermediate_size"],
    }
    files.write_json(root / f"{NAME}.json", {"made_with": {"gguf": version("gguf")}, "families": {FAMILY: found}})
