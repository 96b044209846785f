"""What transformers makes of every kind of rotary scaling: frequencies, and the factor of cosines and sines."""

from pathlib import Path
from typing import Any

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from . import files
from .versions import VERSIONS

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.01, 1.05, 1.1, 1.3, 1.5, 2.0, 2.5],
    "long_factor": [1.1, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0],
    "original_max_position_embeddings": 512,
}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 4.0},
    YARN,
    {**YARN, "attention_factor": 1.25},
    {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    {**YARN, "mscale": 0.7},
    {**YARN, "truncate": False},
    {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "rope_theta": 1000000.0},
    {**YARN, "factor": 1.0, "original_max_position_embeddings": 2},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
        "rope_theta": 500000.0,
    },
    LONG,
    {**LONG, "factor": 4.0},
    {**LONG, "attention_factor": 1.7},
    {**LONG, "partial_rotary_factor": 0.5, "short_factor": [1.0, 1.1, 2.0, 3.0], "long_factor": [2.0, 3.0, 5.0, 7.0]},
    {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.75},
    {"rope_type": "proportional", "partial_rotary_factor": 0.25},
    {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 8.0, "rope_theta": 1000000.0},
]


def case(parameters: dict[str, Any]) -> dict[str, Any]:
    config = LlamaConfig(**SIZES, max_position_embeddings=2048, rope_parameters=dict(parameters))
    init = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    frequencies, factor = init(config, "cpu")
    found = {"parameters": parameters, "frequencies": files.floats(frequencies), "factor": factor}
    if parameters["rope_type"] == "longrope":
        long, _ = init(config, "cpu", seq_len=parameters["original_max_position_embeddings"] + 1)
        found["long"] = files.floats(long)
    return found


def make(root: Path) -> None:
    directory = root / "rope"
    directory.mkdir(parents=True, exist_ok=True)
    found = {"made_with": VERSIONS, "head": 16, "context": 2048, "cases": [case(each) for each in SCALINGS]}
    files.write_json(directory / "scalings.json", found)
