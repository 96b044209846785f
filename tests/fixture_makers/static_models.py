"""Tiny static models in both forms, with the answers of model2vec and of sentence-transformers."""

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from model2vec import StaticModel
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from . import files, vocabularies
from .texts import CORPUS, REFERENCE
from .versions import VERSIONS

WIDTH = 12
PROMPTS = {"query": "query: ", "passage": "passage: "}


def words() -> Tokenizer:
    """Whole words alone: most texts have unknown ones."""
    splitter, lower = pre_tokenizers.BertPreTokenizer(), normalizers.Lowercase()
    found = {word for text in CORPUS for word, _ in splitter.pre_tokenize_str(lower.normalize_str(text))}
    entries = ["[PAD]", "[UNK]", *sorted(found)[::3]]
    tokenizer = Tokenizer(models.WordLevel({entry: index for index, entry in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = lower, splitter
    return tokenizer


def rows(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def quantized(seed: int) -> StaticModel:
    """Tokens share rows of whole numbers, and each has a factor of its own."""
    tokenizer = vocabularies.unigram()
    size, random = tokenizer.get_vocab_size(), np.random.default_rng(seed)
    return StaticModel(
        vectors=np.rint(40 * rows(50, seed)).clip(-127, 127).astype(np.int8),
        tokenizer=tokenizer,
        weights=random.uniform(0.01, 2, size).astype(np.float32),
        token_mapping=random.integers(0, 50, size),
        normalize=True,
    )


def plain(seed: int) -> StaticModel:
    """Words in half precision, cut after six tokens, not normalized."""
    tokenizer = words()
    table = rows(tokenizer.get_vocab_size(), seed).astype(np.float16)
    return StaticModel(vectors=table, tokenizer=tokenizer, normalize=False, max_length=6)


def of_model2vec(model: StaticModel, folder: Path) -> list[dict[str, Any]]:
    """As its first versions wrote it: no `modules.json`."""
    model.save_pretrained(str(folder))
    for name in ("modules.json", "README.md"):
        (folder / name).unlink()
    # Means in float32, whatever the rows are.
    table = model.embedding.astype(np.float32)
    reading = StaticModel.from_pretrained(str(folder))
    exact = StaticModel(
        vectors=table,
        tokenizer=reading.tokenizer,
        weights=reading.weights,
        token_mapping=reading.token_mapping,
        normalize=reading.normalize,
        max_length=reading.max_length,
    )
    assert np.abs(exact.encode(REFERENCE) - reading.encode(REFERENCE)).max() < 2e-3
    return [{"text": text, "embedding": files.floats(exact.encode(text))} for text in REFERENCE]


def of_sentence_transformers(folder: Path, prompts: list[str | None]) -> list[dict[str, Any]]:
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return [
        {
            "text": text,
            **({"prompt_name": prompt} if prompt else {}),
            "embedding": files.floats(model.encode(text, prompt_name=prompt, show_progress_bar=False)),
        }
        for prompt in prompts
        for text in REFERENCE[: None if prompt is None else 4]
    ]


def module(folder: Path, seed: int) -> list[dict[str, Any]]:
    tokenizer = vocabularies.wordpiece(lowercase=True)
    static = StaticEmbedding(tokenizer, embedding_weights=rows(tokenizer.get_vocab_size(), seed))
    model = SentenceTransformer(modules=[static, Normalize()], prompts=PROMPTS, device="cpu")
    model.save(str(folder), create_model_card=False)
    return of_sentence_transformers(folder, [None, *PROMPTS])


def folded(folder: Path, seed: int) -> list[dict[str, Any]]:
    """A model of model2vec with `modules.json`: sentence-transformers reads it, and counts unknown tokens."""
    quantized(seed).save_pretrained(str(folder))
    (folder / "README.md").unlink()
    return of_sentence_transformers(folder, [None])


STATIC: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "model2vec": lambda folder: of_model2vec(quantized(71), folder),
    "model2vec_words": lambda folder: of_model2vec(plain(72), folder),
    "model2vec_modules": lambda folder: folded(folder, 73),
    "static_embedding": lambda folder: module(folder, 74),
}


def make(name: str, root: Path) -> None:
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cases = STATIC[name](folder)
    versions = {**VERSIONS, "model2vec": version("model2vec")}
    for path in folder.rglob("*.json"):  # one line each
        if path.name == "tokenizer.json":
            path.write_text(json.dumps(json.loads(path.read_text("utf-8")), ensure_ascii=False), "utf-8")
    files.write_json(folder / "reference.json", {"made_with": versions, "cases": cases})
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name}: {size / 1000:.0f} kB", flush=True)
