"""`adaptive_state` that names no folder, and habits that cannot be saved."""

from __future__ import annotations

import json
import logging
import re

import pytest
from conftest import ENGLISH_TEXT, tiny
from model_manager.errors import ConfigError

SLOT = "english_sentence"


@pytest.mark.parametrize("below", ["", "/habits"])
@pytest.mark.parametrize("given", ["keyword", "variable"])
def test_a_file_is_refused_when_the_manager_is_made(tmp_path, monkeypatch, below, given):
    (file := tmp_path / "settings.toml").write_text("")
    path = f"{file}{below}"
    settings = {"adaptive_state": path} if given == "keyword" else {}
    if given == "variable":
        monkeypatch.setenv("MODEL_MANAGER_ADAPTIVE_STATE", path)
    message = f"adaptive_state={json.dumps(path)}: {file} is no folder; name a folder, or give False for none"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        tiny(keep_alive="auto", **settings)
    with tiny(keep_alive="auto", adaptive_state=False) as manager:
        manager.embed(ENGLISH_TEXT, SLOT)


def test_habits_that_cannot_be_saved_are_reported_once(tmp_path, caplog):
    folder = tmp_path / "habits"
    with caplog.at_level(logging.WARNING), tiny(keep_alive="auto", adaptive_state=str(folder)) as manager:
        manager.embed(ENGLISH_TEXT, SLOT)
        folder.write_text("")
        manager.close()
        del manager
    reported = [record.getMessage() for record in caplog.records if "adaptive_state" in record.getMessage()]
    assert len(reported) == 1, reported
    assert str(folder) in reported[0]
