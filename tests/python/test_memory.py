"""Unloading returns memory to the operating system."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import run_python


@pytest.mark.real
@pytest.mark.timeout(180)
def test_twenty_rounds_of_loading_and_unloading(minilm):
    """Within 10 MB of the start, at most five seconds after every round, because ending threads return memory late.
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
        deadline = time.monotonic() + 5
        while (after := resident_bytes()) - before > 10e6 and time.monotonic() < deadline:
            time.sleep(0.02)
        return loaded, after
    before = 2**62
    round()
    before = resident_bytes()
    rounds = [round() for _ in range(20)]
    for loaded, after in rounds:
        assert loaded - before > 20e6, loaded - before
        assert abs(after - before) < 10e6, [after - before for _, after in rounds]
    returned = m.tracker.get_statistics()["bytes_returned"]["english_sentence"]
    assert returned > 20 * 20e6, returned
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


LIMITED = """
import resource, sys
from conftest import ENGLISH_MODEL, tiny
from model_manager.errors import OutOfMemoryError

def mapped():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

class Within:
    "So many more bytes of address space and no more."
    def __init__(self, more):
        self.more = more
    def __enter__(self):
        resource.setrlimit(resource.RLIMIT_AS, (mapped() + self.more, resource.RLIM_INFINITY))
    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def refused(call, *kinds):
    try:
        call()
    except kinds or OutOfMemoryError as error:
        assert isinstance(error, MemoryError)
        return str(error)
    raise AssertionError("it had the memory")

MB = 1 << 20
m = tiny(cache_size=0, max_text_bytes=64 * MB)
expected = m.embed("a small text", "english_sentence").tobytes()
m.embed(["several", "texts"], "english_sentence")

def still_works():
    assert m.embed("a small text", "english_sentence").tobytes() == expected
"""


PLAIN = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
"""glibc returns large blocks at once and reserves nothing, so that only the limit decides."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_call_that_needs_more_memory_than_there_is_raises():
    """The copies of the texts, their token ids, and the array fail in turn; the process goes on."""
    run_python(
        LIMITED
        + """
long = "a" * (40 * MB)
with Within(20 * MB):
    refused(lambda: m.embed(long, "english_sentence"))
    refused(lambda: m.embed([long], "english_sentence"))
    still_works()
texts = ["a"] * 500_000
# Some 12 MB of list, 15 MB of texts, 4 MB of numbers and 61 MB of vectors.
for more in (4, 18, 29, 55):
    with Within(more * MB):
        said = refused(lambda: m.embed(texts, "english_sentence"))
        assert "out of memory" in said, said
        still_works()
ids = [[5]] * 2_000_000
# Memory freed by earlier calls may suffice for a small copy, but not for 244 MB of vectors.
for more in (4, 55):
    with Within(more * MB):
        refused(lambda: m.embed(ids, "english_sentence"))
texts = ["a"] * 2_000_000
with Within(8 * MB):
    refused(lambda: m.count_tokens(texts, "english_sentence"))
    refused(lambda: m.get("english_sentence").encode(texts), MemoryError)
    still_works()
assert m.stats()["slots"]["english_sentence"]["queued"] == 0, "what was refused waits nowhere"
m.close()
""",
        **PLAIN,
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_an_answer_as_json_that_finds_no_memory_is_told():
    """The vectors fit and their JSON does not: the callback gets the error."""
    run_python(
        LIMITED
        + """
import queue
reported = queue.Queue()
def ask(texts):
    m.submit_response(texts, lambda *result: reported.put(result), "english_sentence", served_model="m")
    return reported.get(timeout=20)
body, tokens, error = ask(["a"] * 3000)
assert len(body) > 500_000 and error is None
texts = ["a"] * 60_000
# Some 3 MB of texts, 8 MB of vectors and 37 MB of JSON, which Python then copies.
for more, kind in (24, OutOfMemoryError), (54, MemoryError):
    with Within(more * MB):
        body, tokens, error = ask(texts)
        assert (body, tokens) == (None, 0) and isinstance(error, kind), error
        still_works()
""",
        **PLAIN,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tables_of_a_large_vocabulary_leave_nothing(tmp_path):
    """Freed by several threads one after the other, each of which has a heap of its own."""
    pieces = [["<unk>", 0.0], *([f"▁{number:05x}", -1.0 - number / 1e6] for number in range(120_000))]
    model = {"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": pieces}
    (path := tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": model}))
    run_python(
        f"""
import threading
from pathlib import Path
from model_manager import trim_memory
from model_manager._core import _Tokenizer
def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) * 1024
def load():
    assert _Tokenizer({str(path)!r}).ids(["▁0000a"]) == [[11]]
    loaded.append(True)
loaded = []
trim_memory()
before = private()
for _ in range(3):
    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
trim_memory()
assert len(loaded) == 6
assert private() - before < 2.5e6, private() - before
"""
    )
