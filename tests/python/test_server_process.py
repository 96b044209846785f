"""The server as a process: start, several workers, shutdown with running requests."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from conftest import ENGLISH_MODEL, TURKISH_MODEL, run_python
from model_manager.errors import ConfigError
from model_manager.server import ServerConfig
from model_manager.server.main import Supervisor, _drain_first, run
from model_manager.server.service import Service
from servers import SECONDS, until

pytestmark = pytest.mark.timeout(240)
"""Each test starts several interpreters, which takes long on a busy machine."""

SLOW = """
import signal, time
from model_manager import ModelManager
from model_manager.server import ServedModel, ServerConfig
from model_manager.server.main import run

def load():
    # The answer waits for this load, longer than the signal takes to arrive.
    print("loading", flush=True)
    time.sleep(1)
    return "an object"

if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
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
    """Whether nothing listens there."""
    try:
        httpx.get(f"{url}/health", timeout=SECONDS)
    except httpx.TransportError:
        return True
    return False


def late(url):
    """The status of a new request on a new connection, which a server that drains refuses in the right form."""
    answer = httpx.post(f"{url}/v1/embeddings", json={"input": "a text"}, headers=HEADERS, timeout=SECONDS)
    if answer.status_code == 503:
        assert answer.json()["error"]["code"] == "shutting_down"
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers.get_list("connection") == ["close"]
    return answer.status_code


def drains(url):
    """Whether new requests are refused. Of several workers, one without requests ends at once, and with it the
    connections that it has just taken.
    """
    try:
        return late(url) == 503
    except httpx.TransportError:
        return False


def begun(url):
    """A connection with a request whose body lacks its last byte: it runs until `ended`."""
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname, address.port), timeout=SECONDS)
    body = b'{"input": "a text"}'
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer secret\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\nexpect: 100-continue\r\n\r\n"
    connection.sendall(head.encode())
    # Sent when the endpoint asks for the body: the request is under way.
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
    connection.sendall(body[:-1])
    return connection


def ended(connection):
    """The whole answer after the last byte of the body."""
    connection.sendall(b"}")
    with connection:
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_start_and_stop(process, tmp_path):
    server = process(script(tmp_path, SERVE, WORKERS=1, MODEL=ENGLISH_MODEL))
    assert embeds(server.url()) == 200
    assert server.stop() == 0
    assert "Application shutdown complete" in server.text()
    assert "Traceback" not in server.text()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_requests_under_way_are_finished(process, tmp_path, name):
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
        server.popen.send_signal(getattr(signal, name))
        request.join(SECONDS)
    assert answers[0].status_code == 200
    assert answers[0].json()["loaded"] is True
    assert server.wait() == 0
    assert "Traceback" not in server.text()


@pytest.mark.parametrize("workers", [1, 2])
def test_requests_that_arrive_while_it_stops(process, tmp_path, workers):
    """They are refused with an answer; a connection that is not read would be reset at the end."""
    server = process(script(tmp_path, SERVE, WORKERS=workers, MODEL=ENGLISH_MODEL))
    url = server.url(workers)
    running = begun(url)
    server.popen.terminate()
    until(lambda: late(url) == 503)
    # Whichever process takes the connection.
    assert [late(url) for _ in range(20)] == [503] * 20
    probe = httpx.get(f"{url}/ready", timeout=SECONDS)
    assert (probe.status_code, probe.json()["status"]) == (503, "draining")
    assert httpx.get(f"{url}/health", timeout=SECONDS).status_code == 200
    answer = ended(running)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.lower().count(b"connection: close") == 1
    assert server.wait() == 0
    assert refuses(url)
    assert "Traceback" not in server.text()


def test_a_server_with_workers_fails_where_another_begins_to_listen_first(caplog):
    """Both have bound the address, as programs can that are started at the same moment."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))

        class Config(uvicorn.Config):
            def bind_socket(self):
                bound = super().bind_socket()
                other.listen()
                return bound

        config = Config("no:app", port=other.getsockname()[1], workers=2, log_config=None)
        with pytest.raises(SystemExit) as ended:
            Supervisor.of(config, *multiprocessing.Pipe(duplex=False))
    assert ended.value.code == 1
    assert "is in use by another program" in caplog.text


def test_an_open_connection_is_answered_while_the_server_stops(process, tmp_path):
    server = process(script(tmp_path, SERVE, WORKERS=1, MODEL=ENGLISH_MODEL))
    url = server.url()
    with httpx.Client(base_url=url, headers=HEADERS, timeout=SECONDS) as idle:
        assert idle.get("/v1/models").status_code == 200
        running = begun(url)
        server.popen.terminate()
        until(lambda: late(url) == 503)
        refused = idle.get("/v1/models")
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
    assert ended(running).startswith(b"HTTP/1.1 200 ")
    assert server.wait() == 0


def test_several_workers_end_what_takes_too_long_with_an_answer(process, tmp_path):
    server = process(script(tmp_path, SERVE, WORKERS=2, MODEL=ENGLISH_MODEL), MODEL_MANAGER_SERVER_DRAIN_TIMEOUT="0.2")
    running = begun(server.url(workers=2))
    assert server.stop() == 0
    with running:
        assert running.recv(1 << 16).startswith(b"HTTP/1.1 503 ")


@pytest.fixture
def own_signals():
    """The handlers of this process, as they were before the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Listening:
    """What uvicorn's server is to the handler of signals."""

    def __init__(self):
        self.servers = [self]
        self.closed = False
        self.stopped = []

    def close(self):
        self.closed = True

    def handle_exit(self, number, frame):
        self.stopped.append(number)


@pytest.mark.parametrize("others_answer", [False, True])
async def test_a_worker_goes_on_until_its_requests_have_finished(own_signals, others_answer):
    """One that is replaced no longer listens, because the others answer; it refuses nothing."""
    replaced, replacing = multiprocessing.Pipe(duplex=False)
    server = Listening()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    service = Service(ServerConfig(), None)
    service.in_flight = 1
    _drain_first(service, replaced)
    if others_answer:
        replacing.send_bytes(b"1")
        signal.raise_signal(signal.SIGTERM)
        replaced.recv_bytes()
    for number in (signal.SIGINT, signal.SIGTERM):  # as after Ctrl-C in a terminal
        signal.raise_signal(number)
    await asyncio.sleep(0)
    assert (service.draining, service.leaving) == (not others_answer, others_answer)
    assert server.closed is others_answer
    assert service.drained is not None
    assert server.stopped == []
    service.in_flight = 0
    service.quiet.set()
    await service.drained
    assert server.stopped == [signal.SIGTERM if others_answer else signal.SIGINT]
    service.manager.close()


def test_a_worker_that_is_replaced_finishes_its_requests(process, tmp_path):
    server = process(script(tmp_path, SERVE, WORKERS=2, MODEL=ENGLISH_MODEL))
    url = server.url(workers=2)
    running = begun(url)
    with httpx.Client(base_url=url, headers=HEADERS, timeout=SECONDS) as idle:
        assert idle.get("/v1/models").status_code == 200
        server.popen.send_signal(signal.SIGHUP)
        until(lambda: "1 requests are running" in server.text())
        assert [embeds(url) for _ in range(10)] == [200] * 10
        assert ended(running).startswith(b"HTTP/1.1 200 ")
    until(lambda: server.text().count("Application startup complete") == 4)
    until(lambda: server.text().count("Finished server process") == 2)
    assert [embeds(url) for _ in range(10)] == [200] * 10
    assert server.stop() == 0
    assert "Traceback" not in server.text()


def test_a_signal_while_workers_are_replaced_ends_the_server_after_the_current_one():
    supervisor = object.__new__(Supervisor)
    supervisor.replaced, supervisor.replacing = multiprocessing.Pipe(duplex=False)
    supervisor.processes, supervisor.signal_queue, supervisor.should_exit = [], [], threading.Event()
    with supervisor._replacing():
        assert not supervisor.should_exit.is_set()
        supervisor.handle_exit(signal.SIGTERM, None)
        assert supervisor.should_exit.is_set()
    assert supervisor.signal_queue == [signal.SIGTERM]
    assert not supervisor.replaced.poll()


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
    with begun(url) as asking:
        until(lambda: httpx.get(f"{url}/api/status", timeout=SECONDS).json()["requests"]["in_flight"] == 4)
        until(lambda: "loading" in server.text())
        assert server.stop() == -15, "it does not wait for the load"
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
    url = server.url(workers)
    # A request without its whole body runs until the body timeout.
    with begun(url):
        server.popen.send_signal(number)
        until(lambda: drains(url))
        assert server.popen.poll() is None, "it lets the request finish"
        assert server.stop(number) == -number
    until(lambda: refuses(url))


def test_workers(process, tmp_path):
    server = process(script(tmp_path, SERVE, WORKERS=2, MODEL=ENGLISH_MODEL))
    url = server.url(workers=2)
    assert [embeds(url) for _ in range(4)] == [200] * 4
    assert server.stop() == 0
    assert server.text().count("Application shutdown complete") == 2
    assert "Traceback" not in server.text()


def test_workers_end_with_a_supervisor_that_is_killed(process, tmp_path):
    """They free the port at once, and finish what they have begun."""
    server = process(script(tmp_path, SERVE, WORKERS=2, MODEL=ENGLISH_MODEL))
    url = server.url(workers=2)
    running = begun(url)
    server.popen.kill()
    server.wait()
    until(lambda: server.text().count("the other workers answer new ones") == 2)
    assert ended(running).startswith(b"HTTP/1.1 200 ")
    until(lambda: server.text().count("Application shutdown complete") == 2)
    assert server.text().count("The process that started this worker has ended") == 2
    assert refuses(url)


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


def test_the_gauges_of_a_killed_worker_are_no_longer_added_up(process, tmp_path):
    figures = tmp_path / "figures"
    figures.mkdir()
    server = process(script(tmp_path, SERVE, WORKERS=2, MODEL=ENGLISH_MODEL), PROMETHEUS_MULTIPROC_DIR=str(figures))
    url = server.url(workers=2)

    def workers():
        return {int(one.stem.rsplit("_", 1)[1]) for one in figures.glob("gauge_livesum_*.db")}

    def counted():
        """The workers whose requests are counted, which the end of one does not change."""
        return {int(one.stem.rsplit("_", 1)[1]) for one in figures.glob("counter_*.db")}

    before = workers()
    assert len(before) == 2
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    until(lambda: server.text().count("Application startup complete") == 3)
    until(lambda: killed not in workers())
    assert len(workers()) == 2
    assert counted() == before | workers()
    assert httpx.get(f"{url}/metrics", headers=HEADERS, timeout=SECONDS).status_code == 200
    assert server.stop() == 0


def test_what_workers_have_together(tmp_path):
    """Sums of what each has for itself; a card, and whether something is so, are counted once."""
    code = """
import sys
from model_manager.server.prometheus import Metrics
metrics = Metrics()
metrics._queued.set(2)
metrics._card_total.labels("card").set(100)
metrics._loaded.labels("a").set(int(sys.argv[1]))
metrics._working.labels("redis").set(int(sys.argv[1]))
print("done", flush=True)
sys.stdin.read()
if sys.argv[1] == "0":
    print(metrics.expose().decode())
"""
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, number], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in "110"
    ]
    for worker in workers:
        assert worker.stdout.readline() == "done\n"
    text, _ = workers[-1].communicate(timeout=SECONDS)
    for worker in workers[:-1]:
        worker.communicate(timeout=SECONDS)
    for line in (
        "model_manager_queued_inputs 6.0",
        'model_manager_device_total_bytes{device="card"} 100.0',
        'model_manager_model_loaded{slot="a"} 1.0',
        'model_manager_cache_tier_working{tier="redis"} 0.0',
    ):
        assert line in text.splitlines()


def test_an_address_in_use(process, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code = f"from model_manager.server.main import run\nrun(ServerConfig(port={taken.getsockname()[1]}))"
        server = process("-c", f"from model_manager.server import ServerConfig\n{code}")
        assert server.wait() == 1
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


@pytest.mark.parametrize(
    "refused", [{"MODEL_MANAGER_DTYPE": "nonsense"}, {"PROMETHEUS_MULTIPROC_DIR": "/no/such/folder"}]
)
def test_workers_are_not_started_with_settings_that_each_of_them_would_refuse(process, tmp_path, refused):
    server = process(script(tmp_path, SERVE, WORKERS=2, MODEL=ENGLISH_MODEL), **refused)
    assert server.wait() == 1
    assert all(name in server.text() for name in refused)
    assert "process" not in server.text(), "uvicorn has started nothing"


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ({"MODEL_MANAGER_SERVER_OPEN_PATHS": "/helth"}, "open_paths: '/helth' is the path of no endpoint; GET / lists"),
        ({"MODEL_MANAGER_SERVER_OPEN_PATHS": "helth"}, "open_paths: 'helth' must begin with a slash"),
        ({"PROMETHEUS_MULTIPROC_DIR": "/no/such/folder"}, "must be a folder that exists"),
        ({"MODEL_MANAGER_DTYPE": "nonsense"}, 'MODEL_MANAGER_DTYPE="nonsense"'),
        ({"OLLAMA_MODEL_NAME": "english_sentence"}, "choose another OLLAMA_MODEL_NAME"),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_the_command_says_once_what_is_wrong_with_its_settings(process, workers, refused, message):
    command = ("-m", "model_manager", "serve", "--port=0", f"--workers={workers}", "--model", TURKISH_MODEL)
    server = process(*command, **refused)
    assert server.wait() == 2
    (line,) = server.text().splitlines()
    assert line.startswith("Error: ")
    assert message in line


FAILS = """
from model_manager.errors import InputError
from model_manager.server import main
if __name__ != "__main__":
    def create_app(*_):
        raise InputError("not in this process")
    main.create_app = create_app
"""


def test_a_worker_that_cannot_start_ends_the_server(process, tmp_path):
    """Its successors would fail in the same way."""
    server = process(script(tmp_path, FAILS + SERVE, WORKERS=2, MODEL=ENGLISH_MODEL))
    assert server.wait() == 1
    assert "not in this process" in server.text()
    assert "Traceback" not in server.text()


def test_workers_cannot_share_a_manager(manager):
    with pytest.raises(ConfigError, match="workers"):
        run(ServerConfig(workers=2), manager)
