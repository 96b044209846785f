"""The real SmolLM2, 135 million parameters, from its Q4_1 GGUF file; and Gemma 3, 270 million, if it was fetched."""

from __future__ import annotations

import pytest
from conftest import ROOT, tiny
from generators import GREEDY, SLOT
from model_manager import isa

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def manager(smollm2):
    with tiny(generator_model=smollm2) as manager:
        yield manager


def test_a_text_continued(manager):
    answer = manager.complete("The capital of France is", **GREEDY, max_new_tokens=12)
    assert answer["text"].startswith(" Paris.")
    assert answer["prompt_tokens"] == 5


def test_a_question_answered(manager):
    messages = [{"role": "user", "content": "What is the opposite of hot?"}]
    answer = manager.complete(messages, **GREEDY, stop=".")
    assert answer["text"] == "The opposite of hot is cold"
    assert answer["finish_reason"] == "stop"
    streamed = list(manager.stream(messages, **GREEDY, stop="."))
    assert "".join(streamed) == answer["text"]
    assert len(streamed) > 3


def test_the_next_turn_reads_only_what_is_new(manager):
    messages = [{"role": "user", "content": "Name a color."}]
    first = manager.complete(messages, **GREEDY, max_new_tokens=20)
    messages += [{"role": "assistant", "content": first["text"]}, {"role": "user", "content": "Another one."}]
    again = manager.complete(messages, **GREEDY, max_new_tokens=5)
    # On AMX, quantized weights are unpacked for what is read, and an answer is read once more.
    enough = first["prompt_tokens"] - 1 if isa() == "amx" else again["prompt_tokens"] / 2
    assert again["reused_tokens"] > enough


def test_turkish_comes_in_whole_characters(manager):
    prompt = "Türkiye'nin başkenti Ankara'dır. İstanbul ise"
    stream = manager.stream(prompt, **GREEDY, max_new_tokens=30)
    pieces = list(stream)
    assert "".join(pieces) == stream.completion["text"]
    assert "\ufffd" not in stream.completion["text"]


def test_what_it_is_and_what_it_takes(manager):
    described = manager.describe_generator()
    assert described["context"] == 8192
    assert described["chat_template"] is True
    assert manager.stats()["slots"][SLOT]["bytes"] == described["bytes"] < 110e6


def test_gemma_3():
    path = ROOT / ".models" / "gemma-3-270m" / "gemma-3-270m-q4_k_m.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is missing: run scripts/fetch_models.py --only gemma-3-270m")
    with tiny(generator_model=str(path)) as manager:
        assert "capital of" in manager.complete("The capital of France is", **GREEDY, max_new_tokens=12)["text"]
        # It knows more than English: the vocabulary has 262,144 pieces.
        assert manager.complete("Türkiye'nin başkenti", **GREEDY, max_new_tokens=4)["text"].startswith(" Ankara")
