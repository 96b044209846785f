"""Known texts are in the cache before somebody asks for them."""

from __future__ import annotations

import logging
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, FIXTURES, TURKISH_MODEL, run_python, tiny
from model_manager import ModelManager, _preload
from model_manager.errors import ArgumentError, ClosedError, InputError, MissingFileError, ModelNotFoundError

SLOT = "english_sentence"
TEXTS = [f"known text {number}" for number in range(100)]


def test_now_loads_and_everything_hits(make_manager):
    manager = make_manager(cache_size=1000)
    ticket = manager.preload(TEXTS, SLOT, when="now")
    assert ticket.wait(30)
    assert (ticket.done, ticket.total, ticket.ended) == (100, 100, True)
    texts = manager.stats()["queue"]["texts"]
    manager.embed(TEXTS, SLOT)
    assert manager.stats()["queue"]["texts"] == texts
    assert "100/100" in repr(ticket)


@pytest.mark.parametrize("timeout", [None, float("inf"), 1e300, np.float32(30)])
def test_long_waits(timeout):
    ticket = _preload.PreloadTicket(0)
    ending = threading.Timer(0.1, ticket._ended.set)
    ending.start()
    assert ticket.wait(timeout)
    ending.join()


@pytest.mark.parametrize("timeout", ["1", True, -1, float("nan")])
def test_a_timeout_is_a_number_of_seconds(make_manager, timeout):
    with pytest.raises((TypeError, ArgumentError), match="timeout"):
        make_manager().preload([], SLOT).wait(timeout)


def test_idle_never_loads_by_itself(make_manager):
    manager = make_manager(cache_size=1000)
    ticket = manager.preload(TEXTS, SLOT)
    time.sleep(0.3)
    assert (ticket.done, ticket.ended, manager.is_loaded(SLOT)) == (0, False, False)
    assert not ticket.wait(0.01)
    manager.embed("a real text", SLOT)
    assert ticket.wait(30)
    assert ticket.done == 100


def test_idle_stays_out_of_the_way_of_steady_calls(make_manager):
    manager = make_manager(cache_size=1000)
    manager.embed("a real text", SLOT)
    tickets = [manager.preload(TEXTS, SLOT), manager.preload(TEXTS[:50], SLOT)]
    calls = [time.monotonic()]
    for number in range(40):
        manager.embed(f"a real text {number}", SLOT)
        calls.append(time.monotonic())
        time.sleep(0.02)
    done = [ticket.done for ticket in tickets]
    # On a machine that stood still for so long there was no call.
    if max(after - before for before, after in pairwise(calls)) < 0.4:
        assert done == [0, 0]
    assert all(ticket.wait(30) for ticket in tickets)
    assert [ticket.done for ticket in tickets] == [100, 50]


def test_cancelled_closed_and_failed(make_manager):
    manager = make_manager(cache_size=1000)
    ticket = manager.preload(TEXTS, SLOT)
    ticket.cancel()
    assert ticket.wait(30)
    assert ticket.done == 0
    waiting = manager.preload(TEXTS, SLOT)
    manager.close()
    assert waiting.wait(30)
    for when in ("idle", "now"):
        with pytest.raises(ClosedError):
            manager.preload(TEXTS, SLOT, when=when)
    other = make_manager(english_model="/no/such/folder")
    with pytest.raises(ModelNotFoundError):
        other.preload(TEXTS, SLOT, when="now").wait(30)


def test_files(make_manager, tmp_path):
    lines, plain = tmp_path / "faq.jsonl", tmp_path / "faq.txt"
    lines.write_text('{"text": "first"}\n\n"second"\n', encoding="utf-8")
    plain.write_text("first\n\nsecond\n", encoding="utf-8")
    manager = make_manager()
    for file in (lines, str(plain)):
        assert manager.preload(file, SLOT).total == 2
    lines.write_text('{"text": "first"}\n{"other": 1}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"faq\.jsonl:2"):
        manager.preload(lines)
    lines.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"faq\.jsonl:1"):
        manager.preload(lines)
    for ending in ("tsv", "parquet"):
        table = tmp_path / f"faq.{ending}"
        table.write_text("id,text\n1,first\n", encoding="utf-8")
        with pytest.raises(ValueError, match=rf"faq\.{ending}: each line of it would be taken for a text"):
            manager.preload(table)
    with pytest.raises(FileNotFoundError):
        manager.preload(tmp_path / "missing.txt")
    for text in ("What are your hours?", "long " * 2000, "a\0b"):
        with pytest.raises(MissingFileError, match=r"^there is no readable file .*; texts go into a list$") as caught:
            manager.preload(text)
        assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="first_load"):
        manager.preload(["text"], when="soon")
    with pytest.raises(TypeError, match="texts"):
        manager.preload([1])


def test_a_restart_reads_them_from_disk_without_a_model(tmp_path):
    with tiny(cache_disk=str(tmp_path), cache_size=1000) as manager:
        manager.preload(TEXTS, SLOT, when="now").wait(30)
        deadline = time.monotonic() + 40
        while manager.cache_info()["tiers"]["disk"]["writes"] < 100 and time.monotonic() < deadline:
            manager.cache_flush()
            time.sleep(0.02)
    with tiny(cache_disk=str(tmp_path), cache_size=1000) as manager:
        manager.embed(TEXTS, SLOT)
        assert not manager.is_loaded(SLOT)
        assert manager.cache_info()["tiers"]["disk"]["hits"] == 100


def test_pinned_texts_stay_when_the_cache_is_full(make_manager):
    manager = make_manager(cache_size=20)
    assert manager.preload(TEXTS[:10], SLOT, when="now", pin=True).wait(30)
    manager.embed([f"other text {number}" for number in range(100)], SLOT)
    info = manager.cache_info()
    assert (info["pinned"], info["entries"]) == (10, 20)
    texts = manager.stats()["queue"]["texts"]
    manager.embed(TEXTS[:10], SLOT)
    assert manager.stats()["queue"]["texts"] == texts
    # What is there already is pinned too.
    other = make_manager(cache_size=20)
    other.embed(TEXTS[0], SLOT)
    other.preload(TEXTS[:1], SLOT, pin=True).wait(30)
    assert other.cache_info()["pinned"] == 1
    other.cache_clear()
    assert other.cache_info()["pinned"] == 0


@pytest.mark.parametrize("size", [0, 9])
def test_more_texts_than_the_cache_holds_are_not_pinned(make_manager, size):
    manager = make_manager(cache_size=size)
    with pytest.raises(InputError, match=f"10 texts .* cache_size={size}; raise cache_size") as refused:
        manager.preload([*TEXTS[:10], TEXTS[0]], SLOT, when="now", pin=True)
    assert refused.value.param == "pin"
    assert not manager.is_loaded(SLOT)


def test_a_cache_that_is_too_small_is_a_warning(make_manager, tmp_path, caplog):
    manager = make_manager(cache_size=9)
    assert manager.preload([*TEXTS[:9], TEXTS[0]], SLOT, when="now").wait(30)
    assert manager.preload(TEXTS[:9], SLOT, when="now", pin=True).wait(30)
    # A tier keeps what leaves the memory.
    stored = make_manager(cache_size=9, cache_disk=str(tmp_path))
    assert stored.preload(TEXTS[:10], SLOT, when="now").wait(30)
    assert caplog.records == []
    assert manager.preload(TEXTS[:10], SLOT, when="now").wait(30)
    (record,) = caplog.records
    assert "cache_size=9" in record.getMessage()


def test_a_slot_with_a_cache_of_its_own_has_room_of_its_own(make_manager):
    manager = make_manager(cache_size=3)
    texts = [f"text {number}" for number in range(10)]
    manager.register("own", str(FIXTURES / "bert_plain"), cache={"size": 10})
    assert manager.preload(texts, "own", when="now", pin=True).wait(60)
    before = manager.stats()["queue"]["texts"]
    manager.embed(texts, "own")
    assert manager.stats()["queue"]["texts"] == before
    manager.register("small", str(FIXTURES / "bert_plain"), cache={"size": 9})
    with pytest.raises(InputError, match=r"10 texts .*register\(cache=\.\.\.\)=9"):
        manager.preload(texts, "small", when="now", pin=True)
    manager.register("none", str(FIXTURES / "bert_plain"), cache=False)
    with pytest.raises(InputError, match=r"=0; raise"):
        manager.preload(texts, "none", when="now", pin=True)
    # It may go to several models.
    manager.preload(texts, when="first_load", pin=True)


def test_texts_that_could_not_be_pinned_are_counted(make_manager, caplog):
    """`cache_bytes` is a bound too; how many results it holds is known when they are there."""
    manager = make_manager(cache_size=100, cache_bytes=0)
    assert manager.preload(TEXTS[:10], SLOT, when="now", pin=True).wait(30)
    (record,) = caplog.records
    assert "0 of 10 texts are pinned" in record.getMessage()


def test_the_latest_results_are_in_memory_after_a_restart(tmp_path):
    with tiny(cache_disk=str(tmp_path), cache_size=1000) as manager:
        expected = manager.embed(TEXTS, SLOT)
        deadline = time.monotonic() + 40
        while manager.cache_info()["tiers"]["disk"]["writes"] < 100 and time.monotonic() < deadline:
            manager.cache_flush()
            time.sleep(0.02)
    assert tiny().config.warm_restart == 0
    with tiny(cache_disk=str(tmp_path), cache_size=1000, warm_restart=1000) as manager:
        deadline = time.monotonic() + 40
        while manager.cache_info()["tiers"]["disk"]["read_ahead"] < 100 and time.monotonic() < deadline:
            time.sleep(0.02)
        for path in tmp_path.rglob("*.vec"):
            path.write_bytes(b"")
        np.testing.assert_array_equal(manager.embed(TEXTS, SLOT), expected)
        assert not manager.is_loaded(SLOT)


def test_the_variable_is_for_every_manager(tmp_path, monkeypatch):
    file = tmp_path / "faq.txt"
    file.write_text("first\nsecond\n", encoding="utf-8")
    monkeypatch.setenv("MODEL_MANAGER_PRELOAD", str(file))
    with tiny() as manager:
        manager.embed("a real text", SLOT)
        manager.embed("Bugün hava çok güzel", "turkish_sentence")
        deadline = time.monotonic() + 40
        while manager.cache_info()["entries"] < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert manager.cache_info()["entries"] == 4


MODELS = {"ENGLISH_FALLBACK_MODEL": ENGLISH_MODEL, "TURKISH_SENTENCE_MODEL": TURKISH_MODEL}
WAIT_FOR_ENTRIES = """
import time
deadline = time.monotonic() + 40
while model_manager.cache_info()["entries"] < 3 and time.monotonic() < deadline:
    time.sleep(0.02)
print(model_manager.cache_info()["entries"])
"""
"""The cache of the process-wide manager has the two known texts and the one that was embedded."""


def test_an_import_starts_nothing_and_fixes_no_setting(tmp_path):
    """The host reads its own settings after it has imported the package."""
    file = tmp_path / "faq.txt"
    file.write_text("first known text\nsecond known text\n", encoding="utf-8")
    code = f"""
import os, threading
from model_manager import model_manager
assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
os.environ["MEMORY_EFFICIENT_CACHE_SIZE"] = "77"
model_manager.embed("a real text", {SLOT!r})
assert model_manager.config.cache_size == 77
{WAIT_FOR_ENTRIES}
"""
    assert run_python(code, MODEL_MANAGER_PRELOAD=str(file), **MODELS).stdout == "3\n"


@pytest.mark.parametrize("dotenv", [True, False], ids=["from the file", "by the host"])
def test_the_variable_may_be_set_after_the_import(tmp_path, dotenv):
    file = tmp_path / "faq.txt"
    file.write_text("first known text\nsecond known text\n", encoding="utf-8")
    if dotenv:
        (tmp_path / ".env").write_text(f"MODEL_MANAGER_PRELOAD='{file}'\n", encoding="utf-8")
    code = f"""
import os
from model_manager import model_manager
os.chdir({str(tmp_path)!r})
if not {dotenv}:
    os.environ["MODEL_MANAGER_PRELOAD"] = {str(file)!r}
model_manager.embed("a real text", {SLOT!r})
{WAIT_FOR_ENTRIES}
"""
    assert run_python(code, MODEL_MANAGER_DOTENV=str(dotenv), **MODELS).stdout == "3\n"


def test_a_file_that_cannot_be_read_is_logged_at_the_first_use(tmp_path):
    missing = tmp_path / "missing.txt"
    code = f"""
import logging, sys
from model_manager import model_manager
logging.basicConfig(stream=sys.stdout, format="%(message)s")
print("imported")
for text in ("a real text", "another"):
    assert model_manager.embed(text, {SLOT!r}).shape == (32,)
"""
    lines = run_python(code, MODEL_MANAGER_PRELOAD=str(missing), **MODELS).stdout.splitlines()
    assert lines[0] == "imported"
    assert lines[1].startswith(f"MODEL_MANAGER_PRELOAD={str(missing)!r} is not preloaded: ")
    assert lines[1].endswith("correct or unset the variable")
    assert len(lines) == 2


@pytest.mark.parametrize("content", [None, b"\xff\n", b"{"], ids=["missing", "bytes", "json"])
def test_a_manager_of_its_own_works_without_the_file(tmp_path, monkeypatch, caplog, content):
    file = tmp_path / "faq.jsonl"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("MODEL_MANAGER_PRELOAD", str(file))
    with caplog.at_level(logging.WARNING), tiny() as manager:
        assert manager.embed("a real text", SLOT).shape == (32,)
    (record,) = [one for one in caplog.records if "MODEL_MANAGER_PRELOAD" in one.getMessage()]
    assert str(file) in record.getMessage()


def test_the_variable_does_not_use_a_manager_before_its_owner(tmp_path, monkeypatch):
    """A derived class reads its settings at the first use too."""
    watched = threading.Event()
    looks, routed = [], []

    class Derived(ModelManager):
        @property
        def tracker(self):
            looks.append(1)
            if len(looks) == 2:
                watched.set()
            return super().tracker

        def route(self, text):
            routed.append(text)
            return super().route(text)

    file = tmp_path / "faq.txt"
    file.write_text("first known text\n", encoding="utf-8")
    monkeypatch.setenv("MODEL_MANAGER_PRELOAD", str(file))
    with Derived() as manager:
        assert watched.wait(30), "the preload waits for a first use"
        assert routed == []
        monkeypatch.setenv("MEMORY_EFFICIENT_CACHE_SIZE", "77")
        assert manager.config.cache_size == 77


@pytest.mark.parametrize(("queued", "leases"), [(1, 0), (0, 1)])
def test_texts_in_the_queue_or_a_model_in_use_are_no_quiet(monkeypatch, queued, leases):
    class Others:
        queued, leases = 0, 0

        def stats(self):
            slots = {"a": {"leases": 0}, "b": {"leases": self.leases}}
            return {"queue": {"requests": 5, "queued": self.queued}, "slots": slots}

    clock = [0.0]
    monkeypatch.setattr(_preload.time, "monotonic", lambda: clock[-1])
    others, quiet = Others(), _preload._Quiet()
    assert not quiet.look(others)
    others.queued, others.leases = queued, leases
    for now in (10.0, 20.0):
        clock.append(now)
        assert not quiet.look(others)
    others.queued, others.leases = 0, 0
    clock.append(20.4)
    assert not quiet.look(others)
    clock.append(20.6)
    assert quiet.look(others)
