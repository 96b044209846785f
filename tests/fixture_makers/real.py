"""What sentence-transformers says of the real models, whose weights are fetched and not committed."""

from pathlib import Path
from typing import Any

from . import files, reference
from .texts import ENGLISH, LONG, TURKISH
from .versions import VERSIONS

NAMES = ("all-MiniLM-L6-v2", "multilingual-e5-small")
DECIMALS = 7  # an error of 5e-8, far below the tolerance, for half of the size
TEXTS = [
    *TURKISH,
    *ENGLISH,
    "",
    "?",
    "İSTANBUL'UN IŞIKLARI",
    "i\u0307stanbul s\u0327eker",
    "Great job 👍🏽 tebrikler!",
    "naïve café ½ ² ＡＢＣ",
    "你好世界",
    LONG * 6,
]


def make(name: str, models: Path, root: Path) -> None:
    directory = models / name
    if not directory.is_dir():
        print(f"{name}: skipped, {directory} is not there (python scripts/fetch_models.py {models})")
        return
    model = reference.load(directory)
    found: dict[str, Any] = {
        "made_with": VERSIONS,
        "dimensions": model.get_embedding_dimension(),
        "pooling": "mean",
        "normalize": True,
        "max_length": model.max_seq_length,
        "default_prompt_name": model.default_prompt_name,
        "cases": reference.cases(model, TEXTS, decimals=DECIMALS),
    }
    if model.prompts.get("query"):
        found["prompted"] = reference.cases(model, TEXTS[:4], {"prompt_name": "query"}, DECIMALS)
    found["float64_error"] = float(f"{reference.float64_error(model, found['cases']):.1e}")
    files.write_json(root / "real" / f"{name}.json", found)
    print(f"{name}: {len(TEXTS)} texts, float64 error {found['float64_error']}", flush=True)
