"""What ends an answer: a model's several end tokens, and stop texts that are special tokens."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import FIXTURES
from generators import GREEDY, SLOT, TEXT
from model_manager.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def test_all_end_tokens_may_be_given(make_writer):
    manager = make_writer("gemma")
    described = manager.describe_generator(SLOT)
    own, every = described["eos_token_id"], described["eos_token_ids"]
    assert own in every
    assert every == [316, 318]
    pipeline = manager.text_generator
    plain = pipeline(TEXT, max_new_tokens=4)
    for given in (own, [own], every, tuple(reversed(every)), np.int64(own)):
        assert pipeline(TEXT, max_new_tokens=4, eos_token_id=given) == plain
    for wrong in (318, [318], [316, 5], []):
        with pytest.raises(InputError, match="only the model's own tokens, 316, 318, end its text; use stop strings"):
            pipeline(TEXT, max_new_tokens=4, eos_token_id=wrong)
    for wrong in (True, 316.0, "316"):
        with pytest.raises(TypeError, match="eos_token_id"):
            pipeline(TEXT, max_new_tokens=4, eos_token_id=wrong)


def with_special_token(folder: Path, token: int) -> str:
    """A copy of the tiny GPT-2 in which this token is special, and its spelling."""
    shutil.copytree(FIXTURES / "gpt2", folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    [spelling] = [text for text, number in tokenizer["model"]["vocab"].items() if number == token]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"].append({"id": token, "content": spelling, **added})
    tokenizer["added_tokens"].sort(key=lambda one: one["id"])
    path.write_text(json.dumps(tokenizer), "utf-8")
    return spelling


def test_a_special_token_may_be_a_stop_text(gpt2, make_writer, tmp_path):
    options = {**GREEDY, "max_new_tokens": 12}
    tokens = gpt2.complete([5, 6, 7], **options)["tokens"]
    special = next(token for token in tokens[2:] if token not in tokens[:2])
    place = tokens.index(special)
    spelling = with_special_token(tmp_path / "model", special)
    manager = make_writer(generator_model=str(tmp_path / "model"))
    free = manager.complete([5, 6, 7], **options)
    assert free["tokens"] == tokens
    assert spelling not in free["text"]
    stopped = manager.complete([5, 6, 7], stop=["never", spelling], **options)
    assert (stopped["tokens"], stopped["finish_reason"]) == (tokens[: place + 1], "stop")
    assert stopped["text"] == manager.complete([5, 6, 7], **{**options, "max_new_tokens": place})["text"]
    assert "".join(manager.stream([5, 6, 7], stop=spelling, **options)) == stopped["text"]
