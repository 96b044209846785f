"""What sentence-transformers' `community_detection` says of seeded vectors."""

from pathlib import Path

import numpy as np
import torch
from sentence_transformers.util import community_detection

from . import files
from .versions import VERSIONS

CASES = [
    {"seed": 1, "clusters": 12, "rows": 200, "noise": 0.1, "threshold": 0.9, "min_size": 2},
    {"seed": 2, "clusters": 12, "rows": 200, "noise": 0.35, "threshold": 0.8, "min_size": 3},
    {"seed": 3, "clusters": 40, "rows": 600, "noise": 0.2, "threshold": 0.95, "min_size": 4},
    {"seed": 4, "clusters": 5, "rows": 300, "noise": 0.6, "threshold": 0.7, "min_size": 10},
]


def make(fixtures: Path) -> None:
    """Write `semantic/reference.json`."""
    cases = []
    for case in CASES:
        rng = np.random.default_rng(case["seed"])
        centers = rng.normal(size=(case["clusters"], 16))
        rows = centers[rng.integers(0, case["clusters"], case["rows"])] + case["noise"] * rng.normal(
            size=(case["rows"], 16)
        )
        groups = community_detection(
            torch.from_numpy(rows.astype(np.float32)), threshold=case["threshold"], min_community_size=case["min_size"]
        )
        cases.append({**case, "groups": [[int(row) for row in group] for group in groups]})
    files.write_json(fixtures / "semantic" / "reference.json", {"made_with": VERSIONS, "communities": cases})
