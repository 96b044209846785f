"""`keep_alive="auto"` through the public interface. What the policy decides is tested in Rust."""

from __future__ import annotations

import json
import os
import time

import pytest
from conftest import ENGLISH_MODEL, tiny
from model_manager import _core
from model_manager.errors import ArgumentError, ConfigError, UnknownModelError

SLOT = "english_sentence"


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_off_by_default(manager, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    manager.embed("one text", SLOT)
    assert manager.stats()["adaptive"] == {}
    assert manager.forecast() == []
    assert manager.hint(SLOT) is False
    assert manager.explain(SLOT) == {
        "slot": SLOT,
        "profile": "compatible",
        "adaptive": False,
        "sentence": "It stays until it is unloaded by name or evicted by the memory budget.",
    }
    manager.close()
    assert not list(tmp_path.iterdir())


def test_a_hint_loads_and_is_no_use(make_manager):
    manager = make_manager(keep_alive="auto", adaptive_state=False)
    assert manager.config.keep_alive == "auto"
    assert manager.hint(SLOT, user="ayşe") is True
    wait_until(lambda: manager.is_loaded(SLOT))
    stats = manager.stats()
    assert stats["adaptive"][SLOT]["prewarms"] == 1
    assert stats["adaptive"][SLOT]["prewarms_used"] == 0
    assert stats["slots"][SLOT]["leases"] == 0
    manager.embed("one text", SLOT, user="ayşe")
    figures = manager.stats()["adaptive"][SLOT]
    assert figures["prewarms_used"] == 1
    assert figures["adaptive"]["cold_starts"] == 0
    assert figures["fixed"]["cold_starts"] == 1
    assert figures["keep_alive"] == 600
    with pytest.raises(UnknownModelError):
        manager.hint("nothing")
    with pytest.raises(UnknownModelError):
        manager.explain("nothing")


def test_one_slot_alone(manager):
    manager.register("auto", ENGLISH_MODEL, keep_alive="auto", cold_start_price=900)
    manager.register("fixed", ENGLISH_MODEL, keep_alive="5m")
    explained = manager.explain("auto")
    assert explained["adaptive"] is True
    assert explained["cold_start_price"] == 900
    assert "8 are needed" in explained["sentence"]
    assert manager.explain("fixed")["sentence"] == "It stays 300 s after a use, as configured."
    assert list(manager.stats()["adaptive"]) == ["auto"]
    with pytest.raises(ArgumentError, match="cold_start_price"):
        manager.register("wrong", ENGLISH_MODEL, keep_alive="auto", cold_start_price=0)
    for more in ({}, {"keep_alive": "5m"}, {"pinned": True}):
        with pytest.raises(ArgumentError, match='cold_start_price is for a slot with keep_alive="auto"'):
            manager.register("wrong", ENGLISH_MODEL, cold_start_price=900, **more)
    assert "wrong" not in manager.slots()
    # For one use a stay must be said.
    with pytest.raises(ArgumentError, match="keep_alive"):
        manager.embed("one text", "auto", keep_alive="auto")


def test_a_slot_is_adaptive_as_it_was_registered_last(make_manager):
    manager = make_manager(keep_alive="auto", adaptive_state=False, auto_cleanup=True)
    price = lambda: manager.explain("s")["cold_start_price"]  # noqa: E731
    manager.register("s", ENGLISH_MODEL, cold_start_price=100)
    assert price() == 100
    manager.register("s", ENGLISH_MODEL, cold_start_price=5000, replace=True)
    assert price() == 5000
    manager.unregister("s")
    manager.register("s", ENGLISH_MODEL)
    assert price() == 1200
    manager.register(SLOT, ENGLISH_MODEL, cold_start_price=7777)
    assert manager.explain(SLOT)["cold_start_price"] == 7777
    # One that is not adaptive any more is neither hinted nor loaded ahead.
    assert manager.hint("s") is True
    for options in ({"keep_alive": "5m"}, {"pinned": True}):
        manager.register("s", ENGLISH_MODEL, replace=True, **options)
        assert manager.hint("s") is False
        assert manager.explain("s")["adaptive"] is False
        assert manager.forecast() == []
        assert "s" not in manager.stats()["adaptive"]
    manager.register("s", ENGLISH_MODEL, replace=True)
    assert manager.hint("s") is True
    manager.unregister("s")
    assert manager.forecast() == []


def test_the_usual_stay_follows_set_auto_cleanup(make_manager):
    manager = make_manager(keep_alive="auto", adaptive_state=False, auto_cleanup=True)
    manager.register("later", ENGLISH_MODEL)
    manager.embed("a text", SLOT)
    assert 590 < manager.stats()["slots"][SLOT]["unload_in_seconds"] <= 600
    manager.set_auto_cleanup(True, 300, 50)
    manager.register("after", ENGLISH_MODEL)
    for slot in (SLOT, "later", "after"):
        manager.load(slot)
        assert "It stays 50 s after a use, as configured" in manager.explain(slot)["sentence"]
        assert 40 < manager.stats()["slots"][slot]["unload_in_seconds"] <= 50
    manager.set_auto_cleanup(False)
    assert "It stays 50 s" in manager.explain(SLOT)["sentence"]


def test_a_hint_evicts_nobody(make_manager):
    size = make_manager()
    size.load(SLOT)
    budget = int(size.stats()["slots"][SLOT]["bytes"] * 1.5)
    manager = make_manager(keep_alive="auto", adaptive_state=False, memory_budget=budget)
    manager.embed("one text", SLOT)
    manager.register("other", str(ENGLISH_MODEL), pooling="cls", keep_alive="auto")
    assert manager.hint("other") is True
    time.sleep(0.5)
    assert manager.is_loaded(SLOT)
    assert not manager.is_loaded("other")
    assert manager.stats()["slots"]["other"]["last_error"] is None
    # A use may evict.
    manager.embed("one text", "other")
    assert manager.is_loaded("other")


def test_what_was_learned_is_saved_and_damage_is_ignored(tmp_path):
    with tiny(keep_alive="auto", adaptive_state=str(tmp_path)) as manager:
        manager.embed("one text", SLOT)
    (file,) = tmp_path.iterdir()
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert saved["version"] == 2
    assert SLOT in saved["slots"]
    assert "one text" not in file.read_text(encoding="utf-8")
    gaps = saved["slots"][SLOT]["gaps"]
    gaps[20] = 40.0
    file.write_text(json.dumps(saved), encoding="utf-8")
    with tiny(keep_alive="auto", adaptive_state=str(tmp_path)) as manager:
        explained = manager.explain(SLOT)
        assert explained["figures"]["known_gaps"] == 40
        assert explained["window"] is not None
        sentence = explained["sentence"]
    with tiny(keep_alive="auto", adaptive_state=str(tmp_path)) as manager:
        assert manager.explain(SLOT)["sentence"] == sentence, "the same decision after a restart"
    for damaged in ("", "{", json.dumps({**saved, "version": 1}), json.dumps({**saved, "slots": {SLOT: 3}})):
        file.write_text(damaged, encoding="utf-8")
        with tiny(keep_alive="auto", adaptive_state=str(tmp_path)) as manager:
            assert manager.explain(SLOT)["figures"]["known_gaps"] == 0


@pytest.mark.skipif(os.name == "nt", reason="no pipes with names, no modes")
def test_the_state_is_private_and_what_is_no_file_is_left_out(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (left := tmp_path / "killed.tmp").write_text("{")
    os.utime(left, (0, 0))
    with tiny(keep_alive="auto", adaptive_state=str(tmp_path)) as manager:
        manager.embed("one text", SLOT)
    names = {path.name for path in tmp_path.iterdir()}
    assert "pipe.json" in names
    assert "killed.tmp" not in names
    (state,) = (path for path in tmp_path.iterdir() if path.is_file())
    assert state.stat().st_mode & 0o777 == 0o600


def test_a_load_ahead_of_a_daily_use_is_planned(tmp_path):
    with tiny(keep_alive="auto", adaptive_state=str(tmp_path)) as manager:
        manager.embed("one text", SLOT)
    (file,) = tmp_path.iterdir()
    saved = json.loads(file.read_text(encoding="utf-8"))
    for days in ("working", "weekend"):
        daily = saved["slots"][SLOT]["daily"][days]
        daily["days"], daily["used"], daily["seen"] = 5.0, [5.0] * 144, [0b11111] * 144
    file.write_text(json.dumps(saved), encoding="utf-8")
    with tiny(keep_alive="auto", adaptive_state=str(tmp_path)) as manager:
        planned = manager.forecast()
        assert planned[0]["slot"] == SLOT
        assert planned[0]["reason"] == "daily"
        assert planned[0]["probability"] == pytest.approx(1)
        assert 0 <= planned[0]["seconds"] <= 600
        # In these ten minutes it is usually used: it is loaded without a use.
        wait_until(lambda: manager.is_loaded(SLOT))


def test_the_simulation_is_the_policy():
    figures, cold = _core._simulate_adaptive([hour * 3600.0 for hour in range(24 * 7)], load_seconds=2.0)
    assert sum(cold[24:]) <= 0.05 * len(cold[24:])
    assert figures["fixed"]["cold_starts"] == len(cold)
    assert figures["prewarms_used"] > 100


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="max_keep_alive"):
        tiny(max_keep_alive=0)
    with pytest.raises(ConfigError, match="auto"):
        tiny(keep_alive="automatic")
