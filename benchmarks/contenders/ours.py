"""model_manager: the cache is off, so that every text is computed."""

from pathlib import Path
from typing import Any

from contenders.base import Contender, Vectors


class ModelManagerContender(Contender):
    batches = ()

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def import_package(self) -> None:
        import model_manager

        self.package: Any = model_manager

    def load(self, model: Path, onnx: Path) -> None:
        self.manager: Any = self.package.ModelManager(cache_size=0, english_model=str(model), dtype=self.dtype)
        self.manager.load("english_sentence")

    def embed(self, texts: list[str], batch: int) -> Vectors:
        vectors: Vectors = self.manager.embed(texts, model="english_sentence")
        return vectors
