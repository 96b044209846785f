"""How a server process ends, and what its test says of one that does not."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading

import httpx
import pytest
from conftest import ENGLISH_MODEL
from model_manager.server import ServerConfig, service
from model_manager.server.service import Service
from servers import SECONDS, until

pytestmark = pytest.mark.timeout(240)
posix = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")

STAYS = """
import multiprocessing, os, signal, threading, time

def stay():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=sleep_in_a_thread, daemon=True).start()
    print("stays", flush=True)
    time.sleep(600)

def sleep_in_a_thread():
    time.sleep(600)

if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=stay, daemon=True)
    worker.start()
    stay()
"""
IGNORES = """
import signal
from model_manager.server import ServedModel, ServerConfig
from model_manager.server.main import run
signal.signal(signal.SIGHUP, signal.SIG_IGN)
run(ServerConfig(port=0, models=[ServedModel("tiny", source=MODEL)]))
"""

ENDS_EARLY = """
import os, time
from model_manager.server import ServedModel, ServerConfig, main
main._WORKER_STARTS = 600  # how long a worker may take to answer
if __name__ == "__main__":
    main.run(ServerConfig(port=0, workers=2, models=[ServedModel("tiny", source=MODEL)]))
else:
    time.sleep(3)
    os._exit(3)
"""


def test_a_worker_that_ends_before_it_answers_ends_the_server_at_once(process, tmp_path):
    """The supervisor asks each worker whether it is there, and waits for the answer."""
    path = tmp_path / "serve.py"
    path.write_text(ENDS_EARLY.replace("MODEL", repr(ENGLISH_MODEL)))
    server = process(str(path))
    assert server.wait() == 1
    assert "Traceback" not in server.text()


@posix
def test_a_server_that_does_not_end_shows_the_stacks_of_all_its_processes(process, tmp_path):
    path = tmp_path / "stays.py"
    path.write_text(STAYS)
    server = process(str(path))
    until(lambda: server.text().count("stays") == 2)
    server.popen.terminate()
    with pytest.raises(pytest.fail.Exception, match=r"did not end within 0\.2 s") as failed:
        server.wait(0.2)
    assert server.popen.poll() == -signal.SIGABRT
    assert str(failed.value).count("in sleep_in_a_thread") == 2, "of the worker too"


@posix
def test_a_hang_up_that_is_ignored_does_not_end_the_server(process, tmp_path):
    """`nohup` has the process ignore it."""
    path = tmp_path / "serve.py"
    path.write_text(IGNORES.replace("MODEL", repr(ENGLISH_MODEL)))
    server = process(str(path))
    url = server.url()
    assert httpx.get(f"{url}/ready", timeout=SECONDS).status_code == 200
    server.popen.send_signal(signal.SIGHUP)
    answer = httpx.post(f"{url}/v1/embeddings", json={"input": "a text"}, timeout=SECONDS)
    assert answer.status_code == 200
    assert "Shutting down" not in server.text()
    assert server.stop() == 0
    assert "Traceback" not in server.text()


@pytest.fixture
def impatient(monkeypatch):
    """The end of a server waits for nothing for long."""
    monkeypatch.setattr(service, "GRACE", 0.1)
    monkeypatch.setattr(service, "CLOSE_SECONDS", 0.2)


async def test_a_task_that_does_not_end_does_not_keep_the_server(impatient, caplog, manager):
    """As one that loses its cancellation, which `asyncio.wait_for` of Python 3.11 does."""
    served = Service(ServerConfig(), manager)
    begun = asyncio.Event()

    async def goes_on():
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                begun.set()
                await asyncio.sleep(SECONDS)

    task = served.spawn(goes_on())
    await begun.wait()
    await asyncio.wait_for(served.stop(), SECONDS / 2)
    assert "model_manager.goes_on did not end within 0.1 s" in caplog.text
    task.cancel()
    await task


@pytest.mark.parametrize(("ended", "seconds"), [(False, "0.2"), (True, "0.1")])
async def test_a_manager_that_does_not_close_does_not_keep_the_server(impatient, caplog, monkeypatch, ended, seconds):
    served = Service(ServerConfig(), None)
    closes, close = threading.Event(), served.manager.close
    monkeypatch.setattr(served.manager, "close", lambda: closes.wait(SECONDS))
    served.ended_requests = ended
    await asyncio.wait_for(served.stop(), SECONDS / 2)
    assert f"closing the manager did not end within {seconds} s" in caplog.text
    closes.set()
    close()


async def test_what_ends_in_time_is_not_logged(caplog):
    served = Service(ServerConfig(warm_up=True), None)
    await served.start()
    await served.stop()
    assert served.manager.closed
    assert "did not end" not in caplog.text
