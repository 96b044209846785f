"""Packages that write text. All do the same work: `tokens` tokens, the likeliest each, whatever they are."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any


class Writer(ABC):
    @abstractmethod
    def load(self, model: Path) -> None:
        """Imports the package and loads the model."""

    @abstractmethod
    def count(self, text: str) -> int:
        """Tokens of a prompt."""

    @abstractmethod
    def write(self, text: str, tokens: int) -> None:
        """Reads a prompt and writes so many tokens."""


class Ours(Writer):
    def __init__(self, dtype: str = "auto") -> None:
        self.dtype = dtype

    def load(self, model: Path) -> None:
        import model_manager

        self.manager: Any = model_manager.ModelManager(generator_model=str(model), generator_dtype=self.dtype)
        self.manager.load("text_generator")

    def count(self, text: str) -> int:
        return int(self.manager.count_tokens(text, "text_generator"))

    def write(self, text: str, tokens: int) -> None:
        self.answer(text, tokens)

    def answer(self, text: str, tokens: int) -> str:
        """What it writes."""
        done = self.manager.complete(text, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)
        return str(done["text"])

    def write_together(self, texts: list[str], tokens: int) -> None:
        threads = [threading.Thread(target=self.write, args=(text, tokens)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class LlamaCpp(Writer):
    def load(self, model: Path) -> None:
        import os

        from llama_cpp import Llama

        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        options = {"n_threads": threads, "n_threads_batch": threads, "n_ctx": 1024, "n_batch": 512}
        self.llama: Any = Llama(str(model), verbose=False, **options)

    def count(self, text: str) -> int:
        return len(self.llama.tokenize(text.encode()))

    def write(self, text: str, tokens: int) -> None:
        # `generate` does not stop at the end-of-text token.
        written = self.llama.generate(self.llama.tokenize(text.encode()), temp=0.0)
        for _ in range(tokens):
            next(written)


class Transformers(Writer):
    def load(self, model: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch: Any = torch
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)

    def count(self, text: str) -> int:
        return len(self.tokenizer(text)["input_ids"])

    def write(self, text: str, tokens: int) -> None:
        inputs = self.tokenizer(text, return_tensors="pt")
        with self.torch.inference_mode():
            self.model.generate(**inputs, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0)


# Name → (class, arguments). Those of model_manager run in the Python of this checkout, the others in the peers'.
WRITERS: dict[str, tuple[str, dict[str, str]]] = {
    "model_manager": ("Ours", {}),
    "model_manager-f32": ("Ours", {"dtype": "float32"}),
    "model_manager-int8": ("Ours", {"dtype": "int8"}),
    "llama-cpp-python": ("LlamaCpp", {}),
    "transformers-f32": ("Transformers", {}),
}


def create(name: str) -> Writer:
    cls, arguments = WRITERS[name]
    writer: Writer = getattr(import_module(__name__), cls)(**arguments)
    return writer
