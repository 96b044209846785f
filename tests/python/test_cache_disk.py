"""Results on disk: they outlive the process, and nothing that happens to the files gives a wrong vector."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, TURKISH_MODEL, run_python, tiny

SLOT = "english_sentence"
TEXTS = [f"text number {number}" for number in range(40)]


@pytest.fixture
def expected():
    with tiny(cache_size=0) as manager:
        return manager.embed(TEXTS, SLOT)


def stored(folder, texts=TEXTS, **settings):
    """Have `texts` embedded and stored in `folder`; the disk tier's figures."""
    with tiny(cache_disk=str(folder), **settings) as manager:
        manager.embed(texts, SLOT)
        deadline = time.monotonic() + 20
        while (disk := manager.cache_info()["tiers"]["disk"])["writes"] < len(texts) and time.monotonic() < deadline:
            manager.cache_flush()
            time.sleep(0.02)
        return disk


def test_off_by_default(manager, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    manager.embed("one text", SLOT)
    assert manager.cache_info()["tiers"] == {}
    assert manager.config.cache_disk is False
    assert not list(tmp_path.iterdir())


def test_a_restart_answers_without_loading_the_model(tmp_path, expected):
    assert stored(tmp_path)["writes"] == len(TEXTS)
    with tiny(cache_disk=str(tmp_path)) as manager:
        np.testing.assert_array_equal(manager.embed(TEXTS, SLOT), expected)
        np.testing.assert_array_equal(manager.embed(TEXTS[3], SLOT), expected[3])
        assert not manager.is_loaded(SLOT)
        info = manager.cache_info()
        assert info["tiers"]["disk"]["hits"] == len(TEXTS)
        assert info["models"][SLOT]["hits"] == len(TEXTS) + 1
        assert info["entries"] == len(TEXTS)
        # A text that is not there loads the model.
        assert manager.embed("a new text", SLOT).shape == expected[0].shape
        assert manager.is_loaded(SLOT)


def flushed(manager, writes):
    """Wait until so many results are stored: what a model is made of is computed in the background."""
    deadline = time.monotonic() + 20
    while manager.cache_info()["tiers"]["disk"]["writes"] < writes:
        assert time.monotonic() < deadline
        manager.cache_flush()
        time.sleep(0.02)


async def test_asyncio_is_answered_from_disk_too(tmp_path, expected):
    stored(tmp_path)
    with tiny(cache_disk=str(tmp_path)) as manager:
        np.testing.assert_array_equal(await manager.aembed(TEXTS, SLOT), expected)
        mixed = await manager.aembed([TEXTS[0], "a new text"], SLOT)
        np.testing.assert_array_equal(mixed[0], expected[0])


def test_the_usual_folder_is_the_users_and_private(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with tiny(cache_disk=True) as manager:
        manager.embed("one text", SLOT)
        flushed(manager, 1)
    folder = tmp_path / "model_manager" / "vectors"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".vec", ".key", ".json"}
    if os.name == "posix":
        assert all(path.stat().st_mode & 0o077 == 0 for path in files)
        assert (folder / "segments").stat().st_mode & 0o077 == 0


def test_a_model_replaced_under_the_same_name_is_another_model(tmp_path):
    model, cache = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(ENGLISH_MODEL, model)
    settings = {"english_model": str(model)}
    stored(cache, TEXTS[:3], **settings)
    with tiny(cache_disk=str(cache), **settings) as manager:
        before = manager.embed(TEXTS[:3], SLOT)
        assert not manager.is_loaded(SLOT)
    # The same path and length, other content.
    config = model / "sentence_bert_config.json"
    text = config.read_text(encoding="utf-8") if config.exists() else '{"max_seq_length": 64}'
    config.write_text(
        text.replace("64", "4").replace("128", "4").replace("256", "4").replace("512", "4"), encoding="utf-8"
    )
    with tiny(cache_disk=str(cache), **settings) as manager:
        manager.embed(TEXTS[:3], SLOT)
        assert manager.is_loaded(SLOT)
    # Put back, it is the old model again, whose results are still there.
    shutil.rmtree(model)
    shutil.copytree(ENGLISH_MODEL, model)
    with tiny(cache_disk=str(cache), **settings) as manager:
        manager.load(SLOT)
        np.testing.assert_array_equal(manager.embed(TEXTS[:3], SLOT), before)


def test_parameters_of_a_call_have_results_of_their_own(tmp_path):
    with tiny(cache_disk=str(tmp_path)) as manager:
        first = [
            manager.embed("one text", SLOT),
            manager.embed("one text", SLOT, truncate_dim=4),
            manager.embed("one text", SLOT, normalize=False),
            manager.embed("one text", SLOT, prompt="query: "),
            manager.embed("one text", "turkish_sentence"),
        ]
        flushed(manager, 5)
    with tiny(cache_disk=str(tmp_path)) as manager:
        for before, (slot, options) in zip(
            first,
            [
                (SLOT, {}),
                (SLOT, {"truncate_dim": 4}),
                (SLOT, {"normalize": False}),
                (SLOT, {"prompt": "query: "}),
                ("turkish_sentence", {}),
            ],
            strict=True,
        ):
            np.testing.assert_array_equal(manager.embed("one text", slot, **options), before)
        assert not manager.is_loaded(SLOT)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 1e-3), ("int8", 1e-2)])
def test_smaller_formats(tmp_path, expected, dtype, error):
    full = stored(tmp_path / "full")["bytes"]
    small = stored(tmp_path / "small", cache_disk_dtype=dtype)["bytes"]
    assert small < full
    with tiny(cache_disk=str(tmp_path / "small")) as manager:
        np.testing.assert_allclose(manager.embed(TEXTS, SLOT), expected, atol=error)
        assert not manager.is_loaded(SLOT)


def test_a_folder_that_cannot_be_used_costs_nothing_but_a_warning(tmp_path, expected, caplog):
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level("WARNING"), tiny(cache_disk=str(tmp_path / "file" / "below")) as manager:
        for number in range(3):
            np.testing.assert_allclose(manager.embed(TEXTS, SLOT), expected, atol=1e-6)
            np.testing.assert_allclose(manager.embed(f"other {number}", SLOT), manager.embed(f"other {number}", SLOT))
        deadline = time.monotonic() + 20
        while manager.cache_info()["tiers"]["disk"]["working"] and time.monotonic() < deadline:
            manager.embed("a text of no cache", SLOT)
            manager.cache_flush()
        assert manager.cache_info()["tiers"]["disk"]["working"] is False
    assert sum("nothing more is stored there" in record.message for record in caplog.records) == 1


def test_a_folder_that_cannot_be_used_is_reported_at_once(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level("WARNING"), tiny(cache_disk=str(tmp_path / "file" / "below")):
        (record,) = caplog.records
    assert f"{tmp_path}/file/below" in record.message
    assert "nothing more is stored there" in record.message
    with tiny(cache_disk=str(tmp_path / "fine")):
        assert len(caplog.records) == 1
        assert not any(path.is_file() for path in (tmp_path / "fine").rglob("*"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to become a user without rights")
def test_a_handler_of_the_log_may_use_the_manager_when_the_folder_is_lost(tmp_path):
    """The warning is written when the lock of the folder's index is free."""
    folder = tmp_path / "cache"
    code = f"""
import logging, pathlib, shutil
from model_manager import ModelManager

manager = ModelManager(english_model={ENGLISH_MODEL!r}, cache_disk={str(folder)!r})
manager.cache_info()

class Asking(logging.Handler):
    def emit(self, record):
        manager.stats()

logging.getLogger("model_manager").addHandler(Asking())
shutil.rmtree({str(folder)!r}, ignore_errors=True)
pathlib.Path({str(folder)!r}).write_text("a file")
manager.embed("one", "english_sentence")
manager.cache_flush(1)
manager.embed("two", "english_sentence")
print(manager.stats()["cache"] is not None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_folder_that_is_read_only_is_read(tmp_path, expected):
    stored(tmp_path)
    nobody = 65534
    for path in [tmp_path, *tmp_path.rglob("*")]:
        os.chown(path, nobody, nobody)
        path.chmod(0o555 if path.is_dir() else 0o444)
    # The folders above are those of the user who runs the tests.
    for path in [*tmp_path.parents][:4]:
        path.chmod(path.stat().st_mode | 0o011)
    code = f"""
import logging, os, sys
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
import numpy as np
from conftest import tiny
from model_manager.errors import ModelManagerError
warnings = []
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger().addHandler(handler)
with tiny(cache_disk={str(tmp_path)!r}) as manager:
    os.setgid({nobody}); os.setuid({nobody})
    known = manager.embed({TEXTS!r}, "english_sentence")
    assert not manager.is_loaded("english_sentence")
    for number in range(3):
        manager.embed(f"other {{number}}", "english_sentence")
        manager.cache_flush()
    disk = manager.cache_info()["tiers"]["disk"]
    assert disk["hits"] == {len(TEXTS)} and not disk["working"], disk
    assert sum("nothing more is stored there" in warning for warning in warnings) == 1, warnings
    assert manager.embed({TEXTS!r}, "english_sentence").tolist() == known.tolist()
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout.strip() == "ok", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_switches_writing_off(tmp_path, expected):
    # Every file of the process may have 100 kB: the disk is full soon.
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
from conftest import tiny
from test_cache_disk import flushed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with tiny(cache_disk={str(tmp_path)!r}, cache_size=0) as manager:
    manager.embed("a first text", "english_sentence")
    flushed(manager, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    for part in range(12):
        manager.embed([f"text {{part}} {{n}}" for n in range(100)], "english_sentence")
    manager.cache_flush()
    disk = manager.cache_info()["tiers"]["disk"]
    assert not disk["working"] and disk["errors"], disk
    assert manager.embed("still works", "english_sentence").shape == (32,)
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout.strip() == "ok", done.stderr
    with tiny(cache_disk=str(tmp_path)) as manager:
        assert manager.cache_verify()["damaged"] <= 1


def _writer(folder: str, start: int) -> None:
    with tiny(cache_disk=folder, cache_size=0) as manager:
        for number in range(start, start + 10**6):
            manager.embed([f"text {number} {part}" for part in range(8)], SLOT)


@pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
def test_kill_9_while_writing_loses_the_end_at_most(tmp_path):
    context = multiprocessing.get_context("spawn")
    for round_ in range(3):
        writers = [context.Process(target=_writer, args=(str(tmp_path), 10**7 * (4 * round_ + n))) for n in range(2)]
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + 30
        known = set(tmp_path.rglob("*.vec"))
        # Each process writes a file of its own.
        while time.monotonic() < deadline:
            own = set(tmp_path.rglob("*.vec")) - known
            if len(own) >= 2 and min(path.stat().st_size for path in own) > 10_000:
                break
            time.sleep(0.02)
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    with tiny(cache_disk=str(tmp_path)) as manager, tiny(cache_size=0) as plain:
        verified = manager.cache_verify()
        # An entry is written after its value: none is damaged.
        assert verified["damaged"] == 0
        assert verified["whole"] > 100
        texts = [f"text 0 {part}" for part in range(8)]
        np.testing.assert_array_equal(manager.embed(texts, SLOT), plain.embed(texts, SLOT))
        assert not manager.is_loaded(SLOT)


def _worker(folder: str, number: int, queue) -> None:
    with tiny(cache_disk=folder) as manager:
        texts = [f"text {(number * 7 + n) % 60}" for n in range(60)]
        vectors = [manager.embed(text, SLOT) for text in texts]
        deadline = time.monotonic() + 20
        while manager.cache_info()["tiers"]["disk"]["writes"] == 0 and time.monotonic() < deadline:
            manager.cache_flush()
            time.sleep(0.02)
        queue.put(dict(zip(texts, [vector.tolist() for vector in vectors], strict=True)))


def test_four_processes_use_one_folder(tmp_path):
    stored(tmp_path, ["text 59"])
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_worker, args=(str(tmp_path), number, queue)) for number in range(4)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=50) for _ in workers]
    for worker in workers:
        worker.join(20)
    assert all(result == results[0] for result in results)
    with tiny(cache_disk=str(tmp_path)) as manager:
        assert manager.cache_verify()["damaged"] == 0
        manager.embed(list(results[0]), SLOT)
        assert not manager.is_loaded(SLOT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_writes_a_segment_of_its_own(tmp_path, expected):
    with tiny(cache_disk=str(tmp_path)) as manager:
        manager.embed(TEXTS[:10], SLOT)
        flushed(manager, 10)
        before = {path.name for path in tmp_path.rglob("*.key")}
        child = os.fork()
        if child == 0:
            try:
                vectors = manager.embed(TEXTS, SLOT)
                manager.cache_flush()
                after = {path.name for path in tmp_path.rglob("*.key")}
                os._exit(0 if np.array_equal(vectors, expected) and len(after) == len(before) + 1 else 3)
            finally:
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with tiny(cache_disk=str(tmp_path)) as manager:
        np.testing.assert_array_equal(manager.embed(TEXTS, SLOT), expected)
        assert not manager.is_loaded(SLOT)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are Unix's")
def test_an_earlier_export_stays_when_the_next_one_fails(tmp_path):
    """The disk is full in the middle of the file."""
    code = f"""
import resource
from pathlib import Path
from model_manager import ModelManager
export = Path({str(tmp_path / "export")!r})
manager = ModelManager(english_model={ENGLISH_MODEL!r}, cache_disk={str(tmp_path / "cache")!r})
ticket = manager.preload([f"text {{number}}" for number in range(200)], "english_sentence", when="now")
ticket.wait()
assert manager.cache_flush(60) is None
whole = manager.cache_export(export), export.read_bytes()
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole[1]) // 2, limits[1]))
try:
    manager.cache_export(export)
except OSError as error:
    print(str(export) in str(error), ".tmp" not in str(error))
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
print(whole[0], export.read_bytes() == whole[1], sorted(path.name for path in export.parent.iterdir()))
"""
    assert run_python(code).stdout.splitlines() == ["True True", "200 True ['cache', 'export']"]


def test_export_import_clear(tmp_path, expected):
    stored(tmp_path / "one")
    with tiny(cache_disk=str(tmp_path / "one")) as manager:
        assert manager.cache_export(str(tmp_path / "export")) == len(TEXTS)
        assert manager.cache_verify() == {"whole": len(TEXTS), "damaged": 0}
        manager.cache_clear()
        assert manager.cache_verify()["whole"] == len(TEXTS)
        manager.cache_clear(tiers=True)
        assert manager.cache_verify()["whole"] == 0
        assert manager.cache_import(str(tmp_path / "export")) == len(TEXTS)
        np.testing.assert_array_equal(manager.embed(TEXTS, SLOT), expected)
        assert not manager.is_loaded(SLOT)
        (tmp_path / "other").write_bytes(b"no export of a cache")
        with pytest.raises(ValueError, match="no export"):
            manager.cache_import(str(tmp_path / "other"))
    with tiny() as manager, pytest.raises(ValueError, match="cache_disk"):
        manager.cache_verify()


def test_a_tier_that_is_not_there_is_named(make_manager, tmp_path, caplog):
    manager = make_manager(cache_disk=str(tmp_path))
    manager.register("one", ENGLISH_MODEL, cache={"tiers": ["memory", "disk", "redis"]})
    [said] = [record.getMessage() for record in caplog.records]
    assert said == 'one: the cache tier "redis" takes no part, because cache_url is not set'


def test_each_model_has_a_policy(make_manager, tmp_path):
    manager = make_manager(cache_disk=str(tmp_path))
    manager.register("own", ENGLISH_MODEL, cache={"size": 2, "policy": "arc", "ttl": "1h", "tiers": ["memory"]})
    manager.register("off", TURKISH_MODEL, cache=False)
    manager.register("disk", TURKISH_MODEL, cache={"tiers": ["disk"]})
    for _ in range(2):
        for slot in ("own", "off", "disk"):
            manager.embed("one text", slot)
        flushed(manager, 1)
    info = manager.cache_info()
    assert info["entries"] == 0
    assert info["models"]["own"] == {"hits": 1, "misses": 1, "off": False, "entries": 1, "max_entries": 2}
    assert info["models"]["off"]["off"] is True
    assert (info["models"]["off"]["hits"], info["models"]["off"]["misses"]) == (0, 2)
    assert info["models"]["disk"]["hits"] == 1
    assert info["tiers"]["disk"]["writes"] == 1


def test_a_segment_that_was_seen_while_it_was_begun_is_read_later(tmp_path, expected):
    stored(tmp_path / "whole")
    begun = tmp_path / "begun"
    shutil.copytree(tmp_path / "whole", begun)
    segments = list((begun / "segments").iterdir())
    for path in segments:
        path.write_bytes(b"")
    if os.name != "nt":
        # Whoever opens a pipe waits for its other end.
        os.mkfifo(begun / "segments" / "pipe.key")
        os.mkfifo(begun / "segments" / "pipe.vec")
    with tiny(cache_disk=str(begun), cache_size=0) as manager:
        assert manager.cache_verify()["whole"] == 0
        for path in segments:
            path.write_bytes((tmp_path / "whole" / "segments" / path.name).read_bytes())
        deadline = time.monotonic() + 20
        while manager.cache_info()["tiers"]["disk"]["hits"] < len(TEXTS) and time.monotonic() < deadline:
            np.testing.assert_array_equal(manager.embed(TEXTS, SLOT), expected)
            time.sleep(0.1)
        assert manager.cache_info()["tiers"]["disk"]["hits"] >= len(TEXTS)


@pytest.mark.parametrize(
    ("cache", "match"),
    [
        ({"sise": 3}, "size"),
        ({"size": -1}, "size=-1"),
        ({"policy": "fifo"}, "arc"),
        ({"ttl": "soon"}, "1h30m"),
        ({"tiers": ["tape"]}, "memory, disk, redis"),
        ({"tiers": "disk"}, "cache tiers must be a list of names, not str"),
        ({"tiers": [1]}, "cache tiers must be a list of names, not list"),
        ({"tiers": None}, "cache tiers must be a list of names, not NoneType"),
        ({"policy": 5}, "cache policy must be a name, not int"),
        ({"size": True}, "size=True"),
        ({"ttl": True}, "cache ttl must be seconds"),
        ({"ttl": [1]}, "cache ttl must be seconds"),
        ([], "cache must be"),
    ],
)
def test_wrong_policies_are_refused_by_name(manager, cache, match):
    with pytest.raises((ValueError, TypeError), match=match):
        manager.register("wrong", ENGLISH_MODEL, cache=cache)
