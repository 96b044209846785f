"""A model without `modules.json`: sentence-transformers then reads none of its own files, and neither does the core."""

from __future__ import annotations

import json
import shutil

import numpy as np
from conftest import FIXTURES

TEXTS = ["Merhaba dünya", "one two three four five six seven eight nine ten eleven twelve"]
LEFT_BEHIND = {
    "sentence_bert_config.json": {"max_seq_length": 6, "do_lower_case": True},
    "config_sentence_transformers.json": {
        "prompts": {"query": "query: "},
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
    },
}


def folder(path, *, modules, files):
    shutil.copytree(FIXTURES / "bert_wordpiece", path)
    for name in LEFT_BEHIND:
        (path / name).unlink(missing_ok=True)
    if not modules:
        (path / "modules.json").unlink()
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    return str(path)


def test_files_left_of_another_model_are_not_read(make_manager, tmp_path, caplog):
    manager = make_manager()
    manager.register("plain", folder(tmp_path / "plain", modules=False, files={}), kind="embedding")
    manager.register("left", folder(tmp_path / "left", modules=False, files=LEFT_BEHIND), kind="embedding")
    expected = manager.embed(TEXTS, "plain")
    assert not [record for record in caplog.records if "is not read" in record.getMessage()]
    np.testing.assert_array_equal(manager.embed(TEXTS, "left"), expected)
    said = [record.getMessage() for record in caplog.records if "is not read" in record.getMessage()]
    assert [name in line for name, line in zip(LEFT_BEHIND, said, strict=True)] == [True, True]
    known = manager.describe("left")
    assert (known["prompts"], known["default_prompt_name"], known["similarity"]) == ({}, None, "cosine")
    assert known["max_length"] == manager.describe("plain")["max_length"] > 6


def test_with_the_list_of_modules_they_are_read(make_manager, tmp_path):
    manager = make_manager()
    manager.register("whole", folder(tmp_path / "whole", modules=True, files=LEFT_BEHIND))
    known = manager.describe("whole")
    assert (known["prompts"], known["max_length"], known["similarity"]) == ({"query": "query: "}, 6, "dot")
