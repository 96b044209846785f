"""Numbers of settings at the ends of what is taken, and as errors show them: as they were written."""

from __future__ import annotations

import pickle
import re

import pytest
from conftest import ENGLISH_MODEL
from model_manager import Config
from model_manager.errors import ArgumentError, ConfigError

LARGE = 10**30


@pytest.mark.parametrize("value", [LARGE, -LARGE, 2**63, -(2**63) - 1, 10**308])
def test_a_keep_alive_of_any_size_is_taken_as_register_takes_it(make_manager, value):
    config = Config(keep_alive=value)
    assert config.keep_alive == value
    assert type(config.keep_alive) is int
    assert f"keep_alive={value}" in repr(config)
    assert pickle.loads(pickle.dumps(config)) == config
    assert Config(**config.to_dict()) == config
    manager = make_manager(keep_alive=value)
    manager.register("own", ENGLISH_MODEL, keep_alive=value)
    for slot in ("english_sentence", "own"):
        manager.load(slot)
        assert manager.stats()["slots"][slot]["unload_in_seconds"] is None, "without limit"


def test_seconds_of_any_size_are_taken():
    assert Config(load_timeout=LARGE).load_timeout == 1e30


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("max_text_bytes", LARGE, "must be less than 2**63"),
        ("cache_size", -LARGE, "must not be negative"),
        ("threads", LARGE, "must be less than 2**63"),
        ("temperature", LARGE, "must lie between 0 and 100"),
        ("load_timeout", -LARGE, "must be a number of seconds, finite and not negative"),
        ("memory_budget", LARGE, "expected bytes"),
        ("cache_disk_bytes", LARGE, "must be bytes or text"),
        ("lazy_loading", LARGE, "must be True or False"),
        ("cache_disk_ttl", LARGE, "must be seconds greater than 0"),
    ],
)
def test_an_integer_is_named_as_it_was_written(name, value, reason):
    with pytest.raises(ConfigError, match=re.escape(f"{name}={value}: {reason}")):
        Config(**{name: value})


@pytest.mark.parametrize(
    ("value", "shown"),
    [(10**400, "10{75,}…"), (-(10**400), "-10{75,}…"), (10**5000, "…")],
    ids=["large", "negative", "more digits than Python writes"],
)
def test_an_integer_that_no_float_holds_is_refused(manager, value, shown):
    message = f"keep_alive={shown}: is too large$"
    with pytest.raises(ConfigError, match=message):
        Config(keep_alive=value)
    with pytest.raises(ArgumentError, match=message):
        manager.register("own", ENGLISH_MODEL, keep_alive=value)
    with pytest.raises(ArgumentError, match=message):
        manager.embed("one text", keep_alive=value)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("temperature", -1e-300, "-1e-300"),
        ("temperature", 1e300, "1e+300"),
        ("cleanup_interval", -0.00005, "-5e-05"),
        ("temperature", 101.0, "101.0"),
        ("temperature", 1e16, "1e+16"),
        ("temperature", float("nan"), "nan"),
        ("load_timeout", float("-inf"), "-inf"),
        ("temperature", -0.1, "-0.1"),
    ],
)
def test_a_float_is_shown_as_python_writes_it(name, value, shown):
    assert repr(value) == shown
    with pytest.raises(ConfigError, match=re.escape(f"{name}={shown}: must")):
        Config(**{name: value})


@pytest.mark.parametrize("value", [1e-300, -1e300])
def test_numbers_of_slots_and_calls_are_short(manager, value):
    with pytest.raises(ArgumentError, match=re.escape(f"cold_start_price={value!r}: must be a number of seconds")):
        manager.register("own", ENGLISH_MODEL, keep_alive="auto", cold_start_price=value)
    with pytest.raises(ArgumentError, match=re.escape(f"cleanup_interval={value!r}: must be a number of seconds")):
        manager.set_auto_cleanup(True, cleanup_interval=value)
    with pytest.raises(ArgumentError, match=re.escape(f"timeout={-abs(value)!r} must be a number of seconds")):
        manager.load("english_sentence", timeout=-abs(value))
