"""`SemanticCache` with a file: what survives, several processes with one file, forks, and other models."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, FIXTURES, TURKISH_MODEL, give_other_weights, tiny
from model_manager import errors
from model_manager._embedder import Embedder
from model_manager.semantic import SemanticCache, _fork
from test_semantic_cache import QUESTION, Clock


def test_an_answer_that_another_process_stored_since_stays_in_the_file(manager, tmp_path):
    clock, path = Clock(), tmp_path / "answers.db"
    options = {"path": path, "clock": clock, "threshold": 1.0}
    # It expires in one process, and the other one has computed it again.
    with SemanticCache(manager, ttl=100, **options) as one, SemanticCache(manager, ttl=100, **options) as other:
        one.put(QUESTION, "old")
        assert len(other) == 1
        clock.now += 150
        other.put(QUESTION, "new")
        one.put("başka bir soru", "x")
        with SemanticCache(manager, ttl=100, **options) as third:
            assert third.get(QUESTION).answer == "new"
    # It makes way in one process.
    with SemanticCache(manager, max_entries=2, **options) as one, SemanticCache(manager, **options) as other:
        assert (len(one), len(other)) == (2, 2)
        clock.now += 1
        other.put(QUESTION, "newer")
        for number in range(2):
            one.put(f"soru {number}", number)
        with SemanticCache(manager, **options) as third:
            assert third.get(QUESTION).answer == "newer"
            assert third.get("başka bir soru") is None


def test_closing_does_not_set_back_a_later_use(manager, tmp_path):
    clock, path = Clock(), tmp_path / "answers.db"
    one, other = (SemanticCache(manager, path=path, clock=clock) for _ in range(2))
    one.put(QUESTION, "x")
    clock.now += 10
    assert other.get(QUESTION)
    other.close()
    one.close()
    assert sqlite3.connect(path).execute("SELECT used FROM answers").fetchall() == [(clock.now,)]


def test_entries_are_counted_before_the_file_is_read(make_manager, tmp_path):
    manager, clock, path = make_manager(), Clock(), tmp_path / "answers.db"
    options = {"path": path, "clock": clock}
    with SemanticCache(manager, **options) as cache:
        assert cache.stats()["entries"] == 0
        cache.put("eski", "x")
        clock.now += 60
        for number in range(3):
            cache.put(f"soru {number}", number, scope="tr")
        assert cache.stats()["entries"] == 4
    manager.unload(cache._embedder.slot)
    for more, count in (({}, 4), ({"ttl": 60}, 3), ({"max_entries": 2}, 2)):
        again = SemanticCache(manager, **options, **more)
        assert again.stats() == {"entries": count, "hits": 0, "misses": 0, "evicted": 0}
        assert "file not read yet" in repr(again)
        assert not manager.is_loaded(cache._embedder.slot), "counting loads no model"
        again.close()
    with SemanticCache(manager, **options) as again:
        assert again.stats()["entries"] == len(again) == again.stats()["entries"] == 4
        assert "4 of 10000 entries" in repr(again)


def test_entries_survive_the_process(manager, tmp_path):
    path = tmp_path / "folder" / "answers.db"
    with SemanticCache(manager, threshold=0.5, path=path) as cache:
        cache.put(QUESTION, ["09.00", "18.00"], scope="tr")
        cache.put("başka", 1)
    with SemanticCache(manager, threshold=0.5, path=path) as again:
        assert len(again) == 2
        assert again.get(QUESTION + " ?", scope="tr").answer == ["09.00", "18.00"]
        assert again.remove("başka")
    with SemanticCache(manager, path=path) as last:
        assert len(last) == 1
        last.clear()
    assert sqlite3.connect(path).execute("SELECT count(*) FROM answers").fetchone() == (0,)


def test_opening_a_file_of_the_same_model_embeds_no_question(manager, tmp_path, monkeypatch):
    path = tmp_path / "answers.db"
    with SemanticCache(manager, path=path) as cache:
        for word in ("bir", "iki", "üç"):
            cache.put(f"soru {word}", word)
    embedded = []
    real = Embedder.queries_of_one_model
    monkeypatch.setattr(
        Embedder, "queries_of_one_model", lambda self, texts: embedded.extend(texts) or real(self, texts)
    )
    with SemanticCache(manager, path=path) as cache:
        assert len(cache) == 3
    assert embedded == []


def test_an_answer_is_the_same_before_and_after_reopening(manager, tmp_path):
    """JSON knows fewer types than Python, and the vectors of a question may have any length."""
    path, answer = tmp_path / "answers.db", {1: ("09.00", "18.00")}
    asked = [QUESTION, QUESTION + " ?", "başka bir soru", "something else"]
    with SemanticCache(manager, threshold=0.1, path=path) as cache:
        cache.put(QUESTION, answer)
        before = [(one.answer, one.score) for one in map(cache.get, asked) if one is not None]
    with SemanticCache(manager, threshold=0.1, path=path) as again:
        after = [(one.answer, one.score) for one in map(again.get, asked[1:]) if one is not None]
    assert before[0] == ({"1": ["09.00", "18.00"]}, 1.0)
    assert before[1:] == after


def test_a_kept_entry_is_what_was_used_last(manager, tmp_path):
    clock, path = Clock(), tmp_path / "answers.db"
    with SemanticCache(manager, path=path, clock=clock) as cache:
        for name in ("a", "b", "c"):
            clock.now += 1
            cache.put(f"soru {name}", name)
        clock.now += 1
        assert cache.get("soru a")
    with SemanticCache(manager, path=path, threshold=1.0, max_entries=2, clock=clock) as small:
        assert [small.get(f"soru {name}") is not None for name in "abc"] == [True, False, True]


@pytest.mark.parametrize("scope", [None, "tr"])
@pytest.mark.parametrize("read_before", [True, False])
def test_clearing_removes_what_other_processes_stored(manager, tmp_path, scope, read_before):
    path = tmp_path / "answers.db"
    with SemanticCache(manager, path=path) as other, SemanticCache(manager, path=path) as cache:
        if read_before:
            assert len(cache) == 0
        other.put("Yemek ne zaman?", "12.00", scope="tr")
        other.put("When is lunch?", "12:00", scope="en")
        cache.clear(scope=scope)
        kept = ["When is lunch?"] if scope else []
        with SemanticCache(manager, path=path) as again:
            assert [question for _, question in again._entries] == []
            assert len(again) == len(kept)
            assert [question for _, question in again._entries] == kept


@pytest.mark.parametrize("second", ["put", "remove", "clear"])
def test_memory_and_file_change_in_one_order(manager, tmp_path, second):
    """A call that begins while another one writes the file does not come between its two changes."""
    path = tmp_path / "answers.db"
    cache = SemanticCache(manager, path=path)
    assert len(cache) == 0
    writes, go_on = threading.Event(), threading.Event()
    write = cache._store.write

    def waiting(*args):
        writes.set()
        assert go_on.wait(30)
        write(*args)

    cache._store.write = waiting
    first = threading.Thread(target=cache.put, args=(QUESTION, "first"))
    first.start()
    assert writes.wait(30)
    cache._store.write = write
    change = {
        "put": lambda: cache.put(QUESTION, "second"),
        "remove": lambda: cache.remove(QUESTION),
        "clear": cache.clear,
    }[second]
    other = threading.Thread(target=change)
    other.start()
    # Without an order the other call would end now, and the first one write after it.
    other.join(0.3)
    go_on.set()
    first.join(30)
    other.join(30)
    in_memory = cache.get(QUESTION)
    cache.close()
    with SemanticCache(manager, path=path) as again:
        in_file = again.get(QUESTION)
    expected = "second" if second == "put" else None
    assert [found and found.answer for found in (in_memory, in_file)] == [expected, expected]


def test_what_the_file_does_not_take_changes_nothing_in_memory(manager, tmp_path, monkeypatch):
    with SemanticCache(manager, path=tmp_path / "answers.db", max_entries=2, threshold=0.9999) as cache:
        cache.put("bir", "A")
        cache.put("iki", "B")
        before = cache.stats()

        def full(*_):
            raise errors.ModelIOError("no space left")

        with monkeypatch.context() as broken:
            broken.setattr(cache._store, "write", full)
            for question in ("bir", "üç"):  # one is replaced, and one makes way
                with pytest.raises(errors.ModelIOError):
                    cache.put(question, "C")
        assert {name: cache.stats()[name] for name in ("entries", "evicted")} == {
            name: before[name] for name in ("entries", "evicted")
        }
        found = [cache.get(question) for question in ("bir", "iki")]
        assert [one.answer for one in found] == ["A", "B"]
        assert cache.get("üç") is None
        # The least recently used one is that of before.
        cache.put("üç", "C")
        assert cache.get("bir") is None


def test_a_folder_that_cannot_be_made_is_named(manager, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.ModelIOError, match=r"file/folder cannot be made: .*Name a folder that can be written"):
        SemanticCache(manager, path=tmp_path / "file" / "folder" / "answers.db")


def test_a_file_that_cannot_be_opened_need_not_be_removed(tmp_path):
    with pytest.raises(errors.ModelIOError, match="cannot be read or written: unable to open") as error:
        SemanticCache(path=tmp_path)
    assert not error.value.transient
    assert "emove" not in str(error.value)


def test_another_model_embeds_the_questions_again(tmp_path):
    path = tmp_path / "answers.db"
    with tiny() as first, SemanticCache(first, TURKISH_MODEL, path=path) as cache:
        cache.put(QUESTION, "x")
    with tiny() as second:
        with SemanticCache(second, ENGLISH_MODEL, path=path, threshold=0.999) as cache:
            assert cache.get(QUESTION + " ") is not None or cache.get(QUESTION).score == 1.0
            cache._load()
            own = Embedder(second, ENGLISH_MODEL).query(QUESTION)
            row = cache._vectors[next(iter(cache._rows))]
            np.testing.assert_allclose(row, own / np.linalg.norm(own), atol=1e-6)
        stored = sqlite3.connect(path).execute("SELECT fingerprint, vector FROM answers").fetchone()
        assert stored[0] == cache._embedder.query_fingerprint
        np.testing.assert_allclose(np.frombuffer(stored[1], np.float32), row, atol=1e-6)


def test_another_checkpoint_of_the_same_name_embeds_the_questions_again(tmp_path):
    """Two folders of one name, and everything but the weights is equal."""
    folders = [tmp_path / name / "model" for name in ("old", "new")]
    for folder in folders:
        shutil.copytree(FIXTURES / "bert_plain", folder)
    give_other_weights(folders[1])
    path = tmp_path / "answers.db"
    questions = [QUESTION, "başka bir soru"]
    with tiny() as manager:
        with SemanticCache(manager, str(folders[0]), path=path) as cache:
            for question in questions:
                cache.put(question, "x")
        for folder in (folders[1], folders[1], folders[0]):
            with SemanticCache(manager, str(folder), path=path) as cache:
                assert len(cache) == 2
                for question in questions:
                    stored = cache._vectors[cache._row_of["", question]]
                    np.testing.assert_allclose(stored, cache._embed(question), atol=1e-5)


@pytest.mark.parametrize("kept", [False, True])
def test_a_model_that_is_replaced_meanwhile_embeds_the_questions_again(tmp_path, kept):
    path = tmp_path / "answers.db" if kept else None
    other = str(FIXTURES / "bert_bin")  # of another dimension, or with other vectors
    with tiny() as manager:
        manager.register("m", TURKISH_MODEL)
        with SemanticCache(manager, "m", path=path, threshold=0.999, max_entries=3) as cache:
            for question in (QUESTION, "başka bir soru"):
                cache.put(question, question)
            for model in (ENGLISH_MODEL, other, TURKISH_MODEL):
                manager.register("m", model, replace=True)
                found = cache.get(QUESTION + " ")
                assert found is not None
                assert found.question == QUESTION
                assert cache.get("hiç sorulmamış bir şey") is None
                assert len(cache) == 2
                for question in (QUESTION, "başka bir soru"):
                    vector = cache._vectors[cache._row_of["", question]]
                    np.testing.assert_allclose(vector, cache._embed(question), atol=1e-6)
            cache.put("üçüncü soru", "x")
            cache.put("dördüncü soru", "y")
            assert (len(cache), cache.stats()["evicted"]) == (3, 1)
        if kept:
            with SemanticCache(manager, "m", path=path) as again:
                assert len(again) == 3


@pytest.mark.parametrize("other", ["bert_max", "bert_cls"], ids=["same width", "another width"])
@pytest.mark.parametrize("kept", [False, True], ids=["memory", "file"])
def test_a_slot_with_another_model_embeds_the_questions_again(tmp_path, other, kept):
    path = tmp_path / "answers.db" if kept else None
    with tiny(cache_size=0) as manager:
        manager.register("s", str(FIXTURES / "bert_plain"))
        cache = SemanticCache(manager, "s", path=path, threshold=0.999)
        cache.put(QUESTION, "x")
        former = cache._embedder.query_fingerprint
        manager.register("s", str(FIXTURES / other), replace=True)
        # Blanks at the end do not change the tokens, and the text is not the stored one.
        found = cache.get(QUESTION + " ")
        assert (found.answer, found.question) == ("x", QUESTION)
        cache.put("başka bir soru", "y")
        for question in (QUESTION, "başka bir soru"):
            own = manager.embed(question, "s", prompt_name=None)
            row = cache._vectors[cache._row_of["", question]]
            np.testing.assert_allclose(row, own / np.linalg.norm(own), atol=1e-6)
        if kept:
            with sqlite3.connect(path) as file:
                rows = file.execute("SELECT fingerprint, answer FROM answers ORDER BY question").fetchall()
            now = cache._embedder.query_fingerprint
            assert rows == [(now, '"y"'), (now, '"x"')]
            assert former != rows[0][0]
        # An emptied cache has no width.
        cache.clear()
        manager.register("s", str(FIXTURES / "bert_plain"), replace=True)
        cache.put(QUESTION, "z")
        assert cache.get(QUESTION + " ").answer == "z"
        cache.close()


def test_another_prompt_for_questions_embeds_them_again(tmp_path):
    path, found = tmp_path / "answers.db", []
    for prompt in ("query: ", "task: "):
        with tiny() as manager:
            manager.register("prompted", TURKISH_MODEL, prompts={"query": prompt, "document": "passage: "})
            with SemanticCache(manager, "prompted", path=path, threshold=0.99) as cache:
                if not len(cache):
                    cache.put(QUESTION, "x")
                found.append(cache._embed(QUESTION))
                np.testing.assert_allclose(cache._vectors[cache._row_of["", QUESTION]], found[-1], atol=1e-6)
    assert float(found[0] @ found[1]) < 0.999


def test_the_file_does_not_outgrow_the_cache(manager, tmp_path):
    """What has expired, and what is more than the limit, leaves the file too."""
    clock, path = Clock(), tmp_path / "answers.db"

    def rows():
        return {question for (question,) in sqlite3.connect(path).execute("SELECT question FROM answers")}

    for run in range(3):
        clock.now += 100
        with SemanticCache(manager, path=path, ttl=60, max_entries=8, clock=clock) as cache:
            for number in range(6):
                clock.now += 1
                cache.put(f"soru {run} {number}", number)
        assert rows() == {f"soru {run} {number}" for number in range(6)}
    with SemanticCache(manager, path=path, max_entries=2, clock=clock) as small:
        assert len(small) == 2
    assert rows() == {"soru 2 4", "soru 2 5"}
    clock.now += 55  # one of them has expired
    with SemanticCache(manager, path=path, ttl=56, clock=clock) as late:
        assert len(late) == 1
    assert rows() == {"soru 2 5"}


def test_a_file_of_something_else_is_refused(manager, tmp_path):
    (tmp_path / "text.db").write_text("no database at all, but long enough to be read as one" * 40)
    foreign = sqlite3.connect(tmp_path / "foreign.db")
    foreign.execute("CREATE TABLE answers (x)")
    foreign.commit()
    foreign.close()
    for name, words in [("text.db", "not a database"), ("foreign.db", "another program's database")]:
        with pytest.raises(errors.InvalidFileError, match=words) as caught:
            SemanticCache(manager, path=tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "Remove the file" in str(caught.value)


def test_an_answer_that_the_file_does_not_take_is_not_stored(manager, tmp_path, monkeypatch):
    cache = SemanticCache(manager, path=tmp_path / "answers.db")
    cache.put(QUESTION, "x")

    def full(*_):
        raise errors.ModelIOError("the disk is full")

    monkeypatch.setattr(cache._store, "write", full)
    with pytest.raises(errors.ModelIOError):
        cache.put("başka bir soru", "y")
    assert cache.get("başka bir soru") is None
    assert len(cache) == 1
    monkeypatch.undo()
    cache.close()


@pytest.mark.chaos
def test_a_killed_process_loses_no_stored_answer(tmp_path):
    path = tmp_path / "answers.db"
    script = f"""
import os, sys
sys.path.insert(0, {str(FIXTURES.parent / "python")!r})
from conftest import tiny
from model_manager.semantic import SemanticCache
cache = SemanticCache(tiny(), path={str(path)!r})
for number in range(5):
    cache.put(f"soru {{number}}", number)
print("ready", flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("ready\n", -9), done.stderr
    with tiny() as manager, SemanticCache(manager, path=path) as cache:
        assert [cache.get(f"soru {number}").answer for number in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_its_own_connection(manager, tmp_path):
    cache = SemanticCache(manager, path=tmp_path / "answers.db", threshold=1.0)
    cache.put("bir", 1)
    child = os.fork()
    if child == 0:
        try:
            cache.put("iki", 2)
            os._exit(0 if cache.get("bir").answer == 1 else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    cache.put("üç", 3)
    cache.close()
    with SemanticCache(manager, path=tmp_path / "answers.db") as again:
        assert len(again) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("held", ["_writing", "_loading", "_lock"])
def test_a_forked_child_does_not_wait_for_threads_of_its_parent(manager, tmp_path, monkeypatch, held):
    monkeypatch.setattr(_fork, "_WAIT", 0.1)
    cache = SemanticCache(manager, path=tmp_path / "answers.db", threshold=1.0)
    cache.put("bir", 1)
    holds, leave = threading.Event(), threading.Event()

    def hold():
        with getattr(cache, held):
            holds.set()
            assert leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(30)
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # it ends the child if it hangs
        try:
            cache.clear(scope="other")
            cache.put("iki", 2)
            os._exit(0 if cache.get("bir").answer == 1 else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    leave.set()
    thread.join(30)
    cache.put("üç", 3)
    cache.close()
    with SemanticCache(manager, path=tmp_path / "answers.db") as again:
        assert len(again) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_waits_until_the_file_is_written(manager, tmp_path):
    """SQLite's own locks would be held in the child."""
    cache = SemanticCache(manager, path=tmp_path / "answers.db")
    writes, go_on, written = threading.Event(), threading.Event(), threading.Event()

    def write():
        with cache._store.lock:
            writes.set()
            assert go_on.wait(30)
            written.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert writes.wait(30)
    threading.Timer(0.1, go_on.set).start()
    child = os.fork()
    if child == 0:
        os._exit(0 if written.is_set() else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join(30)
    cache.put("bir", 1)
    cache.close()
