"""Unloading gives the memory back to the operating system."""

from __future__ import annotations

import pytest
from conftest import run_python


@pytest.mark.real
@pytest.mark.timeout(180)
def test_twenty_rounds_of_loading_and_unloading(minilm):
    """Within 10 MB of before, a second after every round at most: threads that end give theirs back when they do.
    A first round fills the allocators' own stores.
    """
    code = f"""
import time
from model_manager import ModelManager, resident_bytes
texts = ["a short text", "a longer text about the weather of tomorrow " * 20, "Bugün hava çok güzel."] * 8
with ModelManager(english_model={minilm!r}, cache_size=0, auto_cleanup=False) as m:
    def round():
        m.embed(texts, "english_sentence")
        loaded = resident_bytes()
        assert m.unload("english_sentence")
        deadline = time.monotonic() + 1
        while (after := resident_bytes()) - before > 10e6 and time.monotonic() < deadline:
            time.sleep(0.02)
        return loaded, after
    before = 2**62
    round()
    before = resident_bytes()
    rounds = [round() for _ in range(20)]
    for loaded, after in rounds:
        assert loaded - before > 25e6, loaded - before
        assert abs(after - before) < 10e6, [after - before for _, after in rounds]
    returned = m.tracker.get_statistics()["bytes_returned"]["english_sentence"]
    assert returned > 20 * 25e6, returned
"""
    run_python(code, timeout=170)


@pytest.mark.real
def test_the_first_load_is_returned_too(minilm):
    run_python(
        f"""
import numpy  # noqa
from model_manager import ModelManager, resident_bytes
with ModelManager(english_model={minilm!r}, cache_size=0, auto_cleanup=False) as m:
    m.register("tiny", {str(__import__("conftest").ENGLISH_MODEL)!r})
    m.embed("warm up numpy, the threads and the tokenizer's tables", "tiny")
    m.unload("tiny")
    before = resident_bytes()
    m.embed(["a text"] * 4, "english_sentence")
    m.unload("english_sentence")
    assert resident_bytes() - before < 10e6, resident_bytes() - before
"""
    )


def test_embedding_for_a_long_time_does_not_grow():
    run_python(
        """
from conftest import tiny
from model_manager import resident_bytes
m = tiny()
def some(n):
    for k in range(300):
        m.embed([f"{n} {k} {j} some words" for j in range(10)], "english_sentence")
        m.embed(f"{n} {k}", "english_sentence")
some(0)
before = resident_bytes()
for n in range(1, 6):
    some(n)
assert resident_bytes() - before < 8e6, resident_bytes() - before
"""
    )
