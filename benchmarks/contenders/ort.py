"""onnxruntime on the graph that its own optimizer fused (attention, GELU, layer norms), in f32 or quantized to int8."""

from pathlib import Path
from typing import Any

from contenders.base import Tokenized, Vectors


class OrtContender(Tokenized):
    def __init__(self, graph: str) -> None:
        self.graph = graph

    def import_package(self) -> None:
        import onnxruntime
        import tokenizers  # noqa: F401  (part of what this way of embedding imports)

        self.package: Any = onnxruntime

    def load(self, model: Path, onnx: Path) -> None:
        self.load_tokenizer(model)
        graph = onnx.with_name(self.graph)
        self.session = self.package.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    def embed(self, texts: list[str], batch: int) -> Vectors:
        def run(ids: Any, mask: Any) -> Any:
            return self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

        return self.run_batches(texts, batch, run)
