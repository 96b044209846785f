"""Rows of random blocks in every quantized format of GGUF files, and the weights that the `gguf` package reads in them.

A file has `ROWS` rows of `COLUMNS` weights as blocks, then the same weights as float32.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from . import files
from .versions import VERSIONS

ROWS, COLUMNS = 2, 512
# Where a block has numbers in float16: its scales and minima.
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "MXFP4": (),
}


def make(root: Path) -> None:
    directory = root / "gguf_blocks"
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    for name, halves in HALVES.items():
        kind = GGMLQuantizationType[name]
        elements, size = GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (ROWS * COLUMNS // elements, size), dtype=np.uint8)
        for at in halves:
            numbers = random.uniform(-0.1, 0.1, len(blocks)).astype(np.float16)
            blocks[:, at : at + 2] = numbers.view(np.uint8).reshape(-1, 2)
        if name == "MXFP4":  # exponents of powers of two near one
            blocks[:, 0] = random.integers(118, 134, len(blocks))
        rows = blocks.reshape(ROWS, -1)
        weights = dequantize(rows, kind).astype("<f4")
        assert weights.shape == (ROWS, COLUMNS)
        assert np.isfinite(weights).all()
        (directory / f"{name}.bin").write_bytes(rows.tobytes() + weights.tobytes())
    versions = {"gguf": version("gguf"), "numpy": VERSIONS["numpy"]}
    files.write_json(directory / "made_with.json", versions)
