"""`SemanticCache` with a file that was damaged: a damaged vector is computed again, another damaged row is left out."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat

import numpy as np
import pytest
from conftest import FIXTURES, tiny
from model_manager import errors
from model_manager.semantic import SemanticCache

QUESTIONS = ["Çalışma saatleri nedir?", "Yemekhane nerede?", "Parolamı nasıl değiştiririm?"]
DAMAGED = QUESTIONS[1]


def stored(path, manager):
    with SemanticCache(manager, path=path) as cache:
        for question in QUESTIONS:
            cache.put(question, question.upper())
    return path


def damage(path, column, value):
    file = sqlite3.connect(path)
    file.execute(f"UPDATE answers SET {column} = ? WHERE question = ?", (value, DAMAGED))
    file.commit()
    file.close()


def vector(change):
    """Damages the vector of a row."""

    def of(path):
        raw = sqlite3.connect(path).execute("SELECT vector FROM answers WHERE question = ?", (DAMAGED,)).fetchone()[0]
        return change(np.frombuffer(raw, np.float32).copy())

    return of


VECTORS = {
    "shorter": lambda row: row[:10].tobytes(),
    "longer": lambda row: np.tile(row, 2).tobytes(),
    "empty": lambda _: b"",
    "no whole number of floats": lambda _: b"abc",
    "text": lambda _: "abcdefgh",
    "a number": lambda _: 7,
    "not a number": lambda row: np.full_like(row, np.nan).tobytes(),
    "infinity": lambda row: np.where(np.arange(len(row)) == 3, np.inf, row).astype(np.float32).tobytes(),
    "too long": lambda row: (1e4 * row[::-1]).tobytes(),
    "zeros": lambda row: np.zeros_like(row).tobytes(),
}


@pytest.mark.parametrize("change", VECTORS.values(), ids=list(VECTORS))
def test_a_damaged_vector_is_computed_again(manager, tmp_path, caplog, change):
    path = stored(tmp_path / "answers.db", manager)
    sound = sqlite3.connect(path).execute("SELECT * FROM answers ORDER BY question").fetchall()
    damage(path, "vector", vector(change)(path))
    with caplog.at_level(logging.WARNING, "model_manager"), SemanticCache(manager, path=path, threshold=0.999) as cache:
        assert len(cache) == 3
        # Blanks at the end do not change the tokens, and the text is not the stored one.
        assert [cache.get(f"{question} ").answer for question in QUESTIONS] == [one.upper() for one in QUESTIONS]
        assert cache.get("Bambaşka bir cümle, hiçbir şeyle ilgisi yok") is None
        for question in QUESTIONS:
            np.testing.assert_allclose(cache._vectors[cache._row_of["", question]], cache._embed(question), atol=1e-6)
    assert "1 damaged vector" in caplog.text
    # And the file is sound again.
    now = sqlite3.connect(path).execute("SELECT * FROM answers ORDER BY question").fetchall()
    for before, after in zip(sound, now, strict=True):
        assert before[:4] == after[:4]
        np.testing.assert_allclose(*(np.frombuffer(row[-1], np.float32) for row in (before, after)), atol=1e-6)


@pytest.mark.parametrize("change", ["shorter", "too long"])
def test_the_row_that_was_used_last_may_be_the_damaged_one(manager, tmp_path, change):
    path = stored(tmp_path / "answers.db", manager)
    damage(path, "used", 1e12)
    damage(path, "vector", vector(VECTORS[change])(path))
    with SemanticCache(manager, path=path, threshold=0.999) as cache:
        assert [cache.get(f"{question} ").answer for question in QUESTIONS] == [one.upper() for one in QUESTIONS]


ROWS = {
    "an answer that is no JSON": ("answer", "{"),
    "an answer that is NaN": ("answer", "NaN"),
    "an answer of bytes": ("answer", b"\xff\xfe"),
    "an answer that is nested too deeply": ("answer", "[" * 100_000 + "]" * 100_000),
    "a number of too many digits": ("answer", "9" * 100_000),
    "a time of text": ("created", "abc"),
    "a time of use that is text": ("used", "abc"),
    "an infinite time": ("created", float("inf")),
    "a question of bytes": ("question", b"\xff"),
    "a blank question": ("question", " "),
    "a scope of bytes": ("scope", b"\xff"),
    "a fingerprint of bytes": ("fingerprint", b"\xff"),
}


@pytest.mark.parametrize("ttl", [None, 1e9])
@pytest.mark.parametrize(("column", "value"), ROWS.values(), ids=list(ROWS))
def test_another_damaged_row_is_left_out(manager, tmp_path, caplog, column, value, ttl):
    path = stored(tmp_path / "answers.db", manager)
    damage(path, column, value)
    with caplog.at_level(logging.WARNING, "model_manager"):
        cache = SemanticCache(manager, path=path, threshold=0.999, ttl=ttl)
        kept = [question for question in QUESTIONS if question != DAMAGED]
        assert len(cache) == 2
        assert [question for _, question in cache._entries] == kept
        assert [cache.get(f"{question} ").answer for question in kept] == [one.upper() for one in kept]
        assert cache.get(f"{DAMAGED} ") is None
    assert "1 damaged row" in caplog.text
    assert str(path) in caplog.text
    # It can be stored again.
    cache.put(DAMAGED, "new")
    cache.close()
    with SemanticCache(manager, path=path) as again:
        assert again.get(DAMAGED).answer == "new"


@pytest.mark.parametrize("column", ["question", "scope", "answer", "fingerprint"])
def test_a_text_that_is_not_utf8_does_not_close_the_file(manager, tmp_path, column):
    path = stored(tmp_path / "answers.db", manager)
    file = sqlite3.connect(path)
    file.execute(f"UPDATE answers SET {column} = CAST(? AS TEXT) WHERE question = ?", (b'"\xff"', DAMAGED))
    file.commit()
    file.close()
    with SemanticCache(manager, path=path, threshold=0.999) as cache:
        assert len(cache) == 2
        assert cache.get(QUESTIONS[0] + " ").answer == QUESTIONS[0].upper()


def test_a_question_that_the_model_refuses_does_not_close_the_file(tmp_path):
    """Another model, or another limit, may refuse what an earlier one read."""
    path, long = tmp_path / "answers.db", "uzun " * 1000
    with tiny() as manager, SemanticCache(manager, str(FIXTURES / "bert_plain"), path=path) as cache:
        cache.put(long, "long")
        cache.put(QUESTIONS[0], "short")
        known = Refusing(cache._embedder, long)
        cache._embedder = known
        with SemanticCache(manager, str(FIXTURES / "bert_max"), path=path, threshold=0.999) as other:
            other._embedder = Refusing(other._embedder, long)
            assert len(other) == 1
            assert other.get(QUESTIONS[0] + " ").answer == "short"
            with pytest.raises(errors.InputError):
                other.get(long)
        # The answer is still there for the model that reads the question.
        with SemanticCache(manager, str(FIXTURES / "bert_plain"), path=path) as again:
            assert again.get(long).answer == "long"


class Refusing:
    """An embedder that refuses one text."""

    def __init__(self, embedder, text):
        self._embedder, self._text = embedder, text

    def __getattr__(self, name):
        return getattr(self._embedder, name)

    def queries_of_one_model(self, texts):
        if self._text in texts:
            raise errors.InputError("the text is too long")
        return self._embedder.queries_of_one_model(texts)


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_new_file_is_readable_by_its_owner_only(manager, tmp_path):
    """It holds questions and answers in plain text."""
    before = os.umask(0o022)
    try:
        path, wide = tmp_path / "answers.db", tmp_path / "wide.db"
        cache = SemanticCache(manager, path=path)
        cache.put("bir", 1)
        found = sorted(tmp_path.iterdir())
        assert path in found
        assert {oct(stat.S_IMODE(one.stat().st_mode)) for one in found} == {"0o600"}
        cache.close()
        # Whoever shares a file with others has chosen its mode.
        wide.touch()
        wide.chmod(0o664)
        with SemanticCache(manager, path=wide) as shared:
            shared.put("bir", 1)
        assert oct(stat.S_IMODE(wide.stat().st_mode)) == "0o664"
        # Where a link leads to no file yet, the file is made there.
        (tmp_path / "link.db").symlink_to(tmp_path / "target.db")
        with SemanticCache(manager, path=tmp_path / "link.db") as linked:
            linked.put("bir", 1)
        assert oct(stat.S_IMODE((tmp_path / "target.db").stat().st_mode)) == "0o600"
    finally:
        os.umask(before)
