"""Rows of random blocks in every quantized format of GGUF files, and the weights that the `gguf` package reads in them.

A file has `ROWS` rows of `COLUMNS` weights as blocks, then the same weights as float32.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, dequantize

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
# Formats of one to three bits. IQ1_M has its scale in the highest bits of four numbers.
LOW_HALVES = {
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ1_S": (0,),
    "IQ1_M": (),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
# The formats whose vectors `grids.bin` holds, with the bits of each number there. IQ1_M has those of IQ1_S.
GRIDS = {IQ2_XXS: 2, IQ2_XS: 2, IQ2_S: 2, IQ3_XXS: 4, IQ3_S: 4, IQ1_S: 2}


def make(root: Path) -> None:
    directory = root / "gguf_blocks"
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory, HALVES, np.random.default_rng(7))
    _write(directory, LOW_HALVES, np.random.default_rng(8))
    versions = {"gguf": version("gguf"), "numpy": VERSIONS["numpy"]}
    files.write_json(directory / "made_with.json", versions)


def make_grids(path: Path) -> None:
    """The vectors of all grids: of each number its place among those of the format, the first in the lowest bits."""
    packed = b""
    for kind, bits in GRIDS.items():
        kind.init_grid()
        codes = np.searchsorted(kind.grid_map, kind.grid.reshape(-1)).astype(np.uint8)
        codes = codes.reshape(-1, 8 // bits) << np.arange(0, 8, bits, dtype=np.uint8)
        packed += np.bitwise_or.reduce(codes, axis=1).astype(np.uint8).tobytes()
    path.write_bytes(packed)


def _write(directory: Path, kinds: dict[str, tuple[int, ...]], random: np.random.Generator) -> None:
    for name, halves in kinds.items():
        kind = GGMLQuantizationType[name]
        elements, size = GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (ROWS * COLUMNS // elements, size), dtype=np.uint8)
        for at in halves:
            numbers = random.uniform(-0.1, 0.1, len(blocks)).astype(np.float16)
            blocks[:, at : at + 2] = numbers.view(np.uint8).reshape(-1, 2)
        if name == "MXFP4":  # exponents of powers of two near one
            blocks[:, 0] = random.integers(118, 134, len(blocks))
        if name == "IQ1_M":
            scale = random.uniform(0.01, 0.1, len(blocks)).astype(np.float16).view(np.uint16)
            for place in range(4):
                at = 49 + 2 * place
                blocks[:, at] = (blocks[:, at] & 15) | ((scale >> (4 * place) & 15) << 4).astype(np.uint8)
        rows = blocks.reshape(ROWS, -1)
        weights = dequantize(rows, kind).astype("<f4")
        assert weights.shape == (ROWS, COLUMNS)
        assert np.isfinite(weights).all()
        (directory / f"{name}.bin").write_bytes(rows.tobytes() + weights.tobytes())
