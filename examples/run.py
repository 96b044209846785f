"""The main job: Turkish and English sentences through one manager, with real models.

    make run

It shows that nothing is loaded before the first text, the model of each text, time and memory, answers from the cache,
the answers of a generator with 135 million parameters to a Turkish and an English prompt, and that unloading returns
the memory.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

MODELS = Path(__file__).resolve().parent.parent / ".models"
os.environ.setdefault("TURKISH_SENTENCE_MODEL", str(MODELS / "multilingual-e5-small"))
os.environ.setdefault("ENGLISH_FALLBACK_MODEL", str(MODELS / "all-MiniLM-L6-v2"))
SMOLLM2 = MODELS / "SmolLM2-135M-Instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
os.environ.setdefault("HUGGINGFACE_MODEL", str(SMOLLM2))

started = time.perf_counter()
from model_manager import is_turkish, model_manager, resident_bytes  # noqa: E402  the import is timed

IMPORT_SECONDS = time.perf_counter() - started

TEXTS = [
    "Bugün hava çok güzel, sahilde yürüyüş yapalım mı?",
    "Güneşli bir günde deniz kenarında dolaşmak çok iyi gelir.",
    "Fatura ödemesi için son gün ne zaman?",
    "The weather is lovely today, shall we walk along the beach?",
    "A stroll by the sea is the best thing on a sunny day.",
    "When is the invoice due?",
]
QUESTIONS = {"TR": "Türkiye'nin başkenti neresidir?", "EN": "What is the capital of Turkey? Answer in one sentence."}
SLOTS = ("turkish_sentence", "english_sentence", "text_generator")


def say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")


def heading(text: str) -> None:
    say(f"\n{text}\n{'─' * len(text)}")


def megabytes(count: float) -> str:
    return f"{count / 2**20:7.1f} MB"


def show_state() -> None:
    loaded = [name for name in SLOTS if model_manager.is_loaded(name)]
    say(f"loaded: {', '.join(loaded) or 'nothing'}; resident memory {megabytes(resident_bytes())}")


def main() -> None:
    heading("Before the first text")
    say(f"import took {IMPORT_SECONDS * 1e3:.1f} ms")
    show_state()
    import numpy as np  # so that its memory is not counted for the models

    before = resident_bytes()
    say(f"with numpy imported: {megabytes(before)}")

    heading("First texts: models load when they are needed")
    for text in (TEXTS[3], TEXTS[0]):
        started = time.perf_counter()
        vector = model_manager.generate_embedding(text)
        seconds = time.perf_counter() - started
        say(f"{seconds * 1e3:8.1f} ms  {model_manager.route(text):17} {len(vector)} numbers  {text}")
    for name, seconds in model_manager.get_lazy_loading_statistics()["tracker"]["load_times"].items():
        description = model_manager.describe(name)
        say(
            f"{name}: {Path(description['source']).name}, {description['dtype']}, "
            f"{megabytes(description['bytes']).strip()} of weights, loaded in {seconds * 1e3:.0f} ms"
        )
    show_state()

    heading("A batch: each text goes to the model of its language")
    started = time.perf_counter()
    vectors = model_manager.embed(TEXTS)
    seconds = time.perf_counter() - started
    say(f"{len(TEXTS)} texts in {seconds * 1e3:.1f} ms: {vectors.dtype} array of shape {vectors.shape}")
    for language, rows in (("Turkish", slice(0, 3)), ("English", slice(3, 6))):
        say(f"\n{language} similarities (cosine)")
        for text, row in zip(TEXTS[rows], vectors[rows] @ vectors[rows].T, strict=True):
            say("  " + " ".join(f"{value:.2f}" for value in row) + f"  {'TR' if is_turkish(text) else 'EN'}  {text}")
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)

    heading("The same texts again: the cache answers")
    cached = model_manager.cache_info()
    started = time.perf_counter()
    for _ in range(10_000):
        model_manager.embed(TEXTS[3])
    each = (time.perf_counter() - started) / 10_000
    hits = model_manager.cache_info()["hits"] - cached["hits"]
    say(f"{hits} hits, {each * 1e6:.2f} µs each; {model_manager.cache_info()['entries']} vectors cached")

    heading("Questions: the generator loads with the first one")
    for language, question in QUESTIONS.items():
        answer = model_manager.complete([{"role": "user", "content": question}], do_sample=False, max_new_tokens=40)
        say(f"{language}  {question}\n    {' '.join(answer['text'].split())}")
        say(
            f"    {answer['prompt_tokens']} tokens read in {answer['prefill_seconds'] * 1e3:.0f} ms, "
            f"{answer['completion_tokens']} written at {answer['tokens_per_second']:.0f} a second"
        )
    sys.stdout.write("streamed: The sea is")
    for piece in model_manager.stream("The sea is", seed=3, max_new_tokens=32):
        sys.stdout.write(piece.replace("\n", " "))
        sys.stdout.flush()
    say()
    show_state()

    heading("Unloading returns the memory")
    loaded = resident_bytes()
    del vectors
    model_manager.unload_all_models()
    after = resident_bytes()
    say(f"loaded {megabytes(loaded)}, after unloading {megabytes(after)}: {megabytes(loaded - after).strip()} returned")
    show_state()


if __name__ == "__main__":
    main()
