"""Known texts are in the cache before somebody asks for them."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from conftest import tiny
from model_manager.errors import ClosedError, ModelNotFoundError

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
    for ending in ("csv", "tsv", "parquet"):
        table = tmp_path / f"faq.{ending}"
        table.write_text("id,text\n1,first\n", encoding="utf-8")
        with pytest.raises(ValueError, match=rf"faq\.{ending}: is a table.*list"):
            manager.preload(table)
    with pytest.raises(FileNotFoundError):
        manager.preload(tmp_path / "missing.txt")
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
