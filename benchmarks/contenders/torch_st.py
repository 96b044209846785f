"""sentence-transformers on PyTorch: what everybody uses, and the reference for accuracy."""

from pathlib import Path
from typing import Any

from contenders.base import Contender, Vectors


class TorchContender(Contender):
    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def import_package(self) -> None:
        import sentence_transformers
        import torch

        self.package, self.torch = sentence_transformers, torch

    def load(self, model: Path, onnx: Path) -> None:
        self.model: Any = self.package.SentenceTransformer(
            str(model), device="cpu", model_kwargs={"dtype": getattr(self.torch, self.dtype)}
        )

    def embed(self, texts: list[str], batch: int) -> Vectors:
        vectors = self.model.encode(texts, batch_size=batch, show_progress_bar=False, convert_to_tensor=True)
        result: Vectors = vectors.float().numpy()
        return result
