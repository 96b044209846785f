"""The server as a process: start, several workers, shutdown with running requests."""

from __future__ import annotations

import signal
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import ENGLISH_MODEL, run_python
from model_manager.errors import ConfigError
from model_manager.server import ServerConfig
from model_manager.server.main import run
from servers import SECONDS, until

SLOW = """
import threading, time
from model_manager import ModelManager
from model_manager.server import ServedModel, ServerConfig
from model_manager.server.main import run

def load():
    # The answer waits for this load, longer than the signal takes to arrive.
    print("loading", flush=True)
    time.sleep(1)
    return "an object"

manager = ModelManager(auto_cleanup=False)
manager.register("slow", loader=load)
run(ServerConfig(port=0, models=[ServedModel("tiny", source=MODEL), ServedModel("slow")]), manager)
"""
NEVER = """
import time
from model_manager import ModelManager
from model_manager.server import ServedModel, ServerConfig
from model_manager.server.main import run

def load():
    print("loading", flush=True)
    time.sleep(600)

manager = ModelManager(auto_cleanup=False)
manager.register("never", loader=load)
run(ServerConfig(port=0, models=[ServedModel("never")], drain_timeout=0.2), manager)
"""
SERVE = """
from model_manager.server import ServedModel, ServerConfig
from model_manager.server.main import run
if __name__ == "__main__":
    run(ServerConfig(port=0, workers=WORKERS, models=[ServedModel("tiny", source=MODEL)], api_keys=["secret"]))
"""
HEADERS = {"authorization": "Bearer secret"}


def script(tmp_path, code, **values):
    path = tmp_path / "serve.py"
    for name, value in values.items():
        code = code.replace(name, repr(value))
    path.write_text(code)
    return str(path)


def embeds(url):
    return httpx.post(f"{url}/v1/embeddings", json={"input": "a text"}, headers=HEADERS, timeout=SECONDS).status_code


def refuses(url):
    try:
        httpx.get(f"{url}/health", timeout=SECONDS)
    except httpx.TransportError:
        return True
    return False


def test_start_and_stop(process, tmp_path):
    server = process(script(tmp_path, SERVE, WORKERS=1, MODEL=ENGLISH_MODEL))
    assert embeds(server.url()) == 200
    assert server.stop() == 0
    assert "Application shutdown complete" in server.text()
    assert "Traceback" not in server.text()


def test_requests_under_way_are_finished(process, tmp_path):
    server = process(script(tmp_path, SLOW, MODEL=ENGLISH_MODEL))
    url = server.url()
    answers = []
    with httpx.Client(base_url=url, timeout=SECONDS) as idle:
        assert idle.get("/ready").status_code == 200
        request = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/api/load", json={"model": "slow"}, timeout=SECONDS))
        )
        request.start()
        until(lambda: "loading" in server.text())
        server.popen.terminate()
        until(lambda: refuses(url))
        request.join(SECONDS)
    assert answers[0].status_code == 200
    assert answers[0].json()["loaded"] is True
    assert server.popen.wait(SECONDS) == 0
    assert "Traceback" not in server.text()


def test_what_never_ends_does_not_keep_it(process, tmp_path):
    server = process(script(tmp_path, NEVER))
    url = server.url()
    answers = []

    def asks(path, body):
        answers.append(httpx.post(f"{url}{path}", json=body, timeout=SECONDS))

    bodies = [("/api/load", {"model": "never"})] * 2 + [("/v1/embeddings", {"model": "never", "input": "a"})]
    requests = [threading.Thread(target=asks, args=one) for one in bodies]
    for request in requests:
        request.start()
    until(lambda: "loading" in server.text())
    time.sleep(0.3)
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as asking:
        head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9"
        asking.sendall(f"{head}\r\n\r\n{{".encode())
        time.sleep(0.2)
        assert server.stop() == -15, "it does not wait for the load"
        asking.settimeout(SECONDS)
        assert asking.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
    assert server.text().count("loading") == 1
    for request in requests:
        request.join(SECONDS)
    assert [answer.status_code for answer in answers] == [503] * 3
    for answer in answers:
        error = answer.json()["error"]
        assert "drain_timeout" in (error if isinstance(error, str) else error["message"])
    assert "Traceback" not in server.text()


def test_an_interrupt_of_several_workers(process, tmp_path):
    server = process(script(tmp_path, SERVE, WORKERS=2, MODEL=ENGLISH_MODEL))
    server.url(workers=2)
    assert server.stop(signal.SIGINT) in {-signal.SIGINT, 130}, "as every command that Ctrl-C ends"


@pytest.mark.parametrize(("workers", "number"), [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_second_signal_ends_it_at_once(process, tmp_path, workers, number):
    server = process(script(tmp_path, SERVE, WORKERS=workers, MODEL=ENGLISH_MODEL))
    address = urlsplit(server.url(workers))
    with socket.create_connection((address.hostname, address.port)) as asking:
        # A request without its body runs until the drain timeout.
        asking.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\ncontent-length: 9\r\n\r\n{"
        )
        time.sleep(0.2)
        server.popen.send_signal(number)
        until(lambda: "Shutting down" in server.text() or "exiting" in server.text())
        time.sleep(0.3)
        assert server.popen.poll() is None, "it lets the request finish"
        started = time.monotonic()
        assert server.stop(number) == -number
        assert time.monotonic() - started < 3
    until(lambda: refuses(f"http://{address.netloc}"))


def test_workers(process, tmp_path):
    server = process(script(tmp_path, SERVE, WORKERS=2, MODEL=ENGLISH_MODEL))
    url = server.url(workers=2)
    assert [embeds(url) for _ in range(4)] == [200] * 4
    assert server.stop() == 0
    assert server.text().count("Application shutdown complete") == 2
    assert "Traceback" not in server.text()


def test_uvicorns_own_command(process, tmp_path):
    figures = tmp_path / "figures"
    figures.mkdir()
    server = process(
        "-m",
        "uvicorn",
        "--factory",
        "model_manager.server:create_app",
        "--port=0",
        "--workers=2",
        MODEL_MANAGER_SERVER_MODEL=ENGLISH_MODEL,
        OLLAMA_MODEL_NAME="tiny",
        PROMETHEUS_MULTIPROC_DIR=str(figures),
    )
    url = server.url(workers=2)
    # A connection each, so that both workers get some.
    assert [embeds(url) for _ in range(10)] == [200] * 10
    line = 'model_manager_http_requests_total{method="POST",path="/v1/embeddings",status="200"} 10.0'
    for _ in range(4):
        assert line in httpx.get(f"{url}/metrics").text, "whichever worker answers, the figures are those of all"
    assert server.stop() in {0, -15}
    assert "Traceback" not in server.text()


def test_an_address_in_use(process, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code = f"from model_manager.server.main import run\nrun(ServerConfig(port={taken.getsockname()[1]}))"
        server = process("-c", f"from model_manager.server import ServerConfig\n{code}")
        assert server.popen.wait(SECONDS) == 1
        assert "is in use by another program" in server.text()


def test_settings_are_checked_before_anything_starts():
    failed = run_python("from model_manager.server.main import run; run()", check=False, API_PORT="http")
    assert failed.returncode == 1
    assert "API_PORT='http'" in failed.stderr
    failed = run_python(
        "from model_manager.server import create_app; create_app()",
        check=False,
        PROMETHEUS_MULTIPROC_DIR="/no/such/folder",
    )
    assert "PROMETHEUS_MULTIPROC_DIR" in failed.stderr


def test_workers_cannot_share_a_manager(manager):
    with pytest.raises(ConfigError, match="workers"):
        run(ServerConfig(workers=2), manager)
