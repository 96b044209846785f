"""Late chunking: vectors of a text's parts, pooled from the states of one pass over the whole text."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import FIXTURES
from model_manager.errors import InputError, TaskError, UnsupportedModelError, WaitTimeoutError
from tokenizers import Tokenizer

TOLERANCE = {"rtol": 0, "atol": 2e-5}
SHORT = "Ankara is the capital. It lies inland! The fox jumps."
LONG = " ".join(f"Sentence {number} is about the fox and the dog." for number in range(40))


@pytest.fixture
def manager(make_manager):
    manager = make_manager(cache_size=0)
    for name in ("bert_plain", "bert_wordpiece", "bert_cls", "bert_dense", "colbert"):
        manager.register(name, str(FIXTURES / name), dtype="float32")
    return manager


def unit(vector):
    return vector / np.linalg.norm(vector)


def test_vectors_are_pooled_from_the_states_of_the_whole_text(manager):
    chunks, vectors = manager.embed_chunks(SHORT, "bert_plain", max_tokens=12)
    assert chunks == manager.chunk(SHORT, "bert_plain", max_tokens=12)
    assert vectors.shape == (len(chunks), 24)
    assert len(chunks) > 2
    states = manager.embed_multi(SHORT, "bert_plain")
    at = 1  # after [CLS]
    for chunk, vector in zip(chunks, vectors, strict=True):
        own = chunk.tokens - 2
        np.testing.assert_allclose(vector, unit(states[at : at + own].mean(axis=0)), **TOLERANCE)
        at += own
    assert at == len(states) - 1
    # Alone, a chunk knows nothing of its neighbors.
    assert not np.allclose(vectors[0], manager.embed(chunks[0].text, "bert_plain"), atol=1e-2)
    raw = manager.embed_chunks(SHORT, "bert_plain", max_tokens=12, normalize=False)[1]
    np.testing.assert_allclose(unit(raw[0]), vectors[0], **TOLERANCE)


def test_a_prompt_is_read_and_not_pooled(manager):
    _, vectors = manager.embed_chunks("The fox.", "bert_wordpiece", prompt_name="query")
    states = manager.embed_multi("The fox.", "bert_wordpiece", prompt_name="query")
    alone = manager.embed_multi("The fox.", "bert_wordpiece", prompt="")
    own = len(alone) - 2
    assert len(states) > len(alone)
    np.testing.assert_allclose(vectors[0], unit(states[-1 - own : -1].mean(axis=0)), **TOLERANCE)


def states_of_windows(manager, name, text):
    """The state of each token of a long text, from windows of its ids that are cut here, and where each token stands:
    neighboring windows share a quarter of their tokens, each of which takes its state from the nearer half.
    """
    tokenizer = Tokenizer.from_file(str(FIXTURES / name / "tokenizer.json"))
    tokenizer.no_truncation()
    encoded = tokenizer.encode(text, add_special_tokens=False)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    size = manager.describe(name)["max_length"] - 2
    count = len(encoded.ids)
    starts = [*range(0, count - size, size - size // 4), count - size]
    assert len(starts) > 10
    middles = [start + (before + size - start) // 2 for before, start in itertools.pairwise(starts)]
    states = []
    for start, first, last in zip(starts, [0, *middles], [*middles, count], strict=True):
        (found,), _ = manager._infer("states", [[cls, *encoded.ids[start : start + size], sep]], None, name)
        states.append(found[1 + first - start : 1 + last - start])
    return np.concatenate(states), encoded.offsets


@pytest.mark.parametrize("options", [{"max_tokens": 14, "overlap": 3}, {"max_tokens": 32}, {"max_tokens": 9}])
def test_a_long_text_is_read_in_windows(manager, options):
    chunks, vectors = manager.embed_chunks(LONG, "bert_plain", **options)
    assert chunks == manager.chunk(LONG, "bert_plain", **options)
    assert len(vectors) == len(chunks) > 10
    states, offsets = states_of_windows(manager, "bert_plain", LONG)
    for chunk, vector in zip(chunks, vectors, strict=True):
        own = [at for at, (begin, end) in enumerate(offsets) if begin < chunk.end and end > chunk.start]
        assert len(own) == chunk.tokens - 2
        np.testing.assert_allclose(vector, unit(states[own].mean(axis=0)), rtol=0, atol=2e-6)


def test_layers_behind_the_pooling_are_applied(manager):
    chunks, vectors = manager.embed_chunks("The fox.", "bert_dense")
    assert len(chunks) == 1
    assert vectors.shape == (1, 20)


def test_empty_texts(manager):
    for text in ("", "  \n "):
        chunks, vectors = manager.embed_chunks(text, "bert_plain")
        assert chunks == []
        assert vectors.shape == (0, 24)


def test_what_is_refused(manager):
    with pytest.raises(UnsupportedModelError, match=r"pooling \"cls\""):
        manager.embed_chunks(SHORT, "bert_cls")
    with pytest.raises(TaskError, match="no vectors of texts"):
        manager.embed_chunks(SHORT, "colbert")
    with pytest.raises(InputError, match="max_tokens=2"):
        manager.embed_chunks(SHORT, "bert_plain", max_tokens=2)


def test_one_timeout_limits_all_windows(manager):
    manager.load("bert_plain")
    with pytest.raises(WaitTimeoutError, match="chunks of a text"):
        manager.embed_chunks(LONG * 400, "bert_plain", timeout=0.02)
