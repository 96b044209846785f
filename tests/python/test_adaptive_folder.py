"""Relative folders in settings: each is the one of the working directory in which the setting was given."""

from __future__ import annotations

import os
import pickle

import pytest
from conftest import ENGLISH_TEXT, tiny
from model_manager import Config

ADAPTIVE = {"keep_alive": "auto", "adaptive_state": "habits"}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two working directories, of which the first is the current one."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    return tmp_path / "first", tmp_path / "second"


@pytest.mark.parametrize("moves", ["before its first use", "while it is used"])
def test_habits_are_saved_where_the_manager_was_made(folders, monkeypatch, moves):
    first, second = folders
    with tiny(**ADAPTIVE) as manager:
        if moves == "before its first use":
            monkeypatch.chdir(second)
        manager.embed(ENGLISH_TEXT, "english_sentence")
        monkeypatch.chdir(second)
        manager.unload("english_sentence")
        manager.embed(ENGLISH_TEXT + " again", "english_sentence")
    assert list((first / "habits").glob("*.json"))
    assert not list(second.iterdir())


@pytest.mark.parametrize("name", ["adaptive_state", "cache_disk", "cache_dir"])
def test_a_setting_holds_the_whole_path(folders, monkeypatch, name):
    first, second = folders
    config = Config(**{name: "of its own"})
    monkeypatch.setenv(f"MODEL_MANAGER_{name.upper()}", "of the environment")
    from_environment = Config()
    monkeypatch.chdir(second)
    assert getattr(config, name) == os.path.join(first, "of its own")
    assert getattr(pickle.loads(pickle.dumps(config)), name) == os.path.join(first, "of its own")
    assert getattr(from_environment, name) == os.path.join(first, "of the environment")
