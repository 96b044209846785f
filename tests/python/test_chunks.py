"""Long texts: chunks that a model reads whole, and truncation that is counted, logged and can be refused."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
from conftest import tiny
from hypothesis import given, settings, strategies as st
from model_manager import errors
from model_manager.chunks import TextChunk

SLOTS = ["turkish_sentence", "english_sentence"]
STORY = (
    "Fabrikamız 1986'da kuruldu. Çalışma saatleri 08.00 ile 17.00 arasındadır.\n"
    "Yemek molası öğlen başlar; servisler kapıdan kalkar.\n\n"
    "İzin için insan kaynaklarına yazın! Cevap iki gün içinde gelir. Peki ya acil durumlar?\n\n"
    "The second shift begins at five. It ends at midnight, and buses wait at the gate."
)


@pytest.fixture(scope="module")
def manager():
    with tiny() as made:
        yield made


def check(manager, text, chunks, slot, most, prompt=""):
    """What holds for every text: places, sizes, order, nothing lost but white space and what has no tokens."""
    covered = set()
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text
        assert chunk.text == chunk.text.strip() != ""
        assert chunk.tokens == manager.count_tokens(prompt + chunk.text, slot) <= most
        covered.update(range(chunk.start, chunk.end))
    assert [chunk.start for chunk in chunks] == sorted(chunk.start for chunk in chunks)
    rest = "".join(" " if index in covered else character for index, character in enumerate(text)).split()
    assert sum(manager.count_tokens(rest, slot)) == len(rest) * manager.count_tokens("", slot)


@pytest.mark.parametrize("slot", SLOTS)
def test_chunks_end_where_sentences_and_lines_do(manager, slot):
    chunks = manager.chunk(STORY, slot)
    assert all(isinstance(chunk, TextChunk) for chunk in chunks)
    check(manager, STORY, chunks, slot, 24)
    assert len(chunks) > 3
    for chunk in chunks[:-1]:
        after = STORY[chunk.end :]
        # A sentence that alone is longer than a chunk is cut between words.
        assert chunk.text[-1] in ".!?" or after[0] in " \n" or manager.count_tokens(chunk.text + after[:1], slot) > 23
    short = "Bu. O.\n\nŞu."
    assert [chunk.text for chunk in manager.chunk(short, slot)] == [short], "what fits stays together"


@pytest.mark.parametrize("slot", SLOTS)
def test_a_chunk_is_embedded_whole(manager, slot):
    for chunk in manager.chunk(STORY, slot, overlap=4):
        assert manager.embed(chunk.text, slot, truncate=False).shape == (32,)


def test_chunks_overlap(manager):
    plain = manager.chunk(STORY, SLOTS[0], max_tokens=16)
    over = manager.chunk(STORY, SLOTS[0], max_tokens=16, overlap=6)
    check(manager, STORY, over, SLOTS[0], 16)
    assert not any(later.start < sooner.end for sooner, later in itertools.pairwise(plain))
    shared = [(sooner, later) for sooner, later in itertools.pairwise(over) if later.start < sooner.end]
    assert shared
    own = manager.count_tokens("", SLOTS[0])
    for sooner, later in shared:
        assert manager.count_tokens(STORY[later.start : sooner.end], SLOTS[0]) - own <= 6


def test_a_prompt_takes_part_of_the_tokens(manager):
    prompt = "pasaj: uzun bir istem, "
    chunks = manager.chunk(STORY, SLOTS[0], prompt=prompt)
    check(manager, STORY, chunks, SLOTS[0], 24, prompt)
    assert len(chunks) > len(manager.chunk(STORY, SLOTS[0], prompt=""))
    for chunk in chunks:
        manager.embed(chunk.text, SLOTS[0], prompt=prompt, truncate=False)


@settings(max_examples=120, deadline=None)
@given(
    st.text(st.sampled_from("aıİğş .!?\n\t,;…😀👨‍👩‍👧漢字e\u0301\u200d"), max_size=300),
    st.sampled_from(SLOTS),
    st.integers(6, 24),
    st.integers(0, 3),
)
def test_every_text_is_covered(manager, text, slot, most, overlap):
    try:
        chunks = manager.chunk(text, slot, max_tokens=most, overlap=overlap)
    except errors.ArgumentError as error:
        # One character of many bytes may have more tokens than fit.
        if "is too small" in str(error):
            return
        raise
    check(manager, text, chunks, slot, most)


def test_blank_texts_have_no_chunks(manager):
    assert manager.chunk("", SLOTS[0]) == []
    assert manager.chunk(" \n\t ", SLOTS[0]) == []
    # The tokenizer makes no token of these.
    assert manager.chunk("\u200b", SLOTS[0]) == manager.chunk("\ufeff", SLOTS[0]) == []


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"max_tokens": 25}, "max_tokens", "reads: 24"),
        ({"max_tokens": 2}, "max_tokens", "leaves no place for text"),
        ({"max_tokens": 8, "overlap": 6}, "overlap", "must be smaller than the 6 tokens"),
        ({"prompt": "çok uzun bir istem " * 20}, "max_tokens", "leaves no place for text"),
    ],
)
def test_sizes_without_sense_are_refused(manager, options, param, words):
    with pytest.raises(errors.ArgumentError, match=words) as caught:
        manager.chunk(STORY, SLOTS[0], **options)
    assert caught.value.param == param


def test_wrong_calls_are_refused(manager):
    with pytest.raises(TypeError):
        manager.chunk(["a"], SLOTS[0])
    with pytest.raises(errors.UnknownModelError):
        manager.chunk("a", "none")
    with pytest.raises(errors.InputError, match="surrogate"):
        manager.chunk("\ud800", SLOTS[0])
    with pytest.raises(errors.ArgumentError, match="max_tokens=-1: must not be negative"):
        manager.chunk("a", SLOTS[0], max_tokens=-1)


def test_a_megabyte_is_chunked(manager):
    text = STORY * 3000
    chunks = manager.chunk(text, SLOTS[1])
    assert all(text[chunk.start : chunk.end] == chunk.text and chunk.tokens <= 24 for chunk in chunks)
    assert len(chunks) > 10_000


# --- Truncation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", SLOTS)
def test_cut_texts_are_counted_and_logged_once(caplog, slot):
    caplog.set_level(logging.WARNING, "model_manager")
    with tiny(cache_size=0) as manager:

        def truncated():
            return manager.stats()["slots"][slot]["truncated"]

        fits = next(n for n in range(1, 60) if manager.count_tokens("a b " * n, slot) >= 24)
        exact = "a b " * (fits - 1) if manager.count_tokens("a b " * fits, slot) > 24 else "a b " * fits
        manager.embed([exact, "kısa"], slot)
        assert truncated() == 0
        manager.embed([STORY, "kısa", STORY + "!"], slot)
        manager.embed("x " * 200_000, slot)
        assert truncated() == 3
        manager.unload(slot)
        manager.embed(STORY, slot)
        assert truncated() == 4
        manager.embed([list(range(3, 60))], slot)
        assert truncated() == 5
        found = [record.getMessage() for record in caplog.records if "reads at most 24 tokens" in record.getMessage()]
        assert len(found) == 1
        assert "truncate=False" in found[0]


@pytest.mark.parametrize("slot", SLOTS)
def test_a_long_text_is_refused_where_nothing_may_be_cut(manager, slot):
    with pytest.raises(errors.InputError, match=r"texts\[1\] has \d+ tokens, and .* reads at most 24: split it"):
        manager.embed(["kısa", STORY], slot, truncate=False)
    # Also where the cache has the vector of its beginning.
    vector = manager.embed(STORY, slot)
    with pytest.raises(errors.InputError, match="reads at most 24"):
        manager.embed(STORY, slot, truncate=False)
    assert np.array_equal(manager.embed(STORY, slot), vector)
    with pytest.raises(errors.InputError, match="reads at most 24"):
        manager.embed([list(range(3, 60))], slot, truncate=False)


async def test_asyncio_has_the_same_option(manager):
    with pytest.raises(errors.InputError, match="reads at most 24"):
        await manager.aembed([STORY], SLOTS[0], truncate=False)
