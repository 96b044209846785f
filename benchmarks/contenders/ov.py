"""OpenVINO on the plain graph: several streams for batches, every core on one text for a single one."""

import threading
from pathlib import Path
from typing import Any

from contenders.base import Tokenized, Vectors, pool


class OpenVinoContender(Tokenized):
    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.local = threading.local()

    def import_package(self) -> None:
        import openvino
        import tokenizers  # noqa: F401  (part of what this way of embedding imports)

        self.package: Any = openvino

    def compile(self, hint: str) -> Any:
        options = {"INFERENCE_PRECISION_HINT": self.precision, "PERFORMANCE_HINT": hint}
        return self.core.compile_model(self.graph, "CPU", options)

    def load(self, model: Path, onnx: Path) -> None:
        self.load_tokenizer(model)
        self.core = self.package.Core()
        self.graph = self.core.read_model(str(onnx))
        self.streams = self.compile("THROUGHPUT")
        self.single: Any = None

    def embed(self, texts: list[str], batch: int) -> Vectors:
        import numpy as np

        if len(texts) <= batch:  # one batch: one stream; each calling thread has a request of its own
            if not hasattr(self.local, "request"):
                self.local.request = self.streams.create_infer_request()
            return self.run_batches(texts, batch, lambda ids, mask: self.local.request.infer([ids, mask])[0])
        queue = self.package.AsyncInferQueue(self.streams)
        done: list[tuple[list[int], Vectors]] = []

        def finished(request: Any, userdata: Any) -> None:
            places, mask = userdata
            done.append((places, pool(request.get_output_tensor(0).data, mask)))

        queue.set_callback(finished)
        for places, ids, mask in self.padded(texts, batch):
            queue.start_async([ids, mask], (places, mask))
        queue.wait_all()
        result: Vectors = np.empty((len(texts), done[0][1].shape[1]), np.float32)
        for places, vectors in done:
            result[places] = vectors
        return result

    def embed_one(self, text: str) -> Vectors:
        if self.single is None:
            self.single = self.compile("LATENCY").create_infer_request()
        return self.run_batches([text], 1, lambda ids, mask: self.single.infer([ids, mask])[0])
