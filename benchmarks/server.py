#!/usr/bin/env python3
"""The server under load: cached answers, many clients with different texts, overload, a long run.

    python benchmarks/server.py [MODEL] [--requests N] [--clients N] [--soak N]
    python benchmarks/server.py [MODEL] [--requests N] [--clients N] --peers [--rounds N]

The server is a separate process on 127.0.0.1; this process sends requests with as little work per request as Python
allows. Both share the machine's cores, so the server's CPU time is shown next to the rate: 1 / "µs a request" is the
rate of one core. Different texts are compared with one `ModelManager.embed` over the same texts in this process.

--peers compares different texts with infinity-emb on PyTorch: same client, same texts, same model folder. Each server
runs alone, in a new process per round, and is warmed up before the measurement; the order rotates by one each round.
infinity-emb has its own virtual environment, created on first use: .venv-peers-server, or the one of
MODEL_MANAGER_PEERS_VENV plus "-server".
"""

import argparse
import asyncio
import base64
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import corpus
import environment
import numpy as np
import uvloop
from model_manager import ModelManager

ROOT = Path(__file__).resolve().parent.parent
START = """
import sys
from model_manager.server import ServedModel, ServerConfig
from model_manager.server.main import run
run(ServerConfig(port=0, max_waiting=int(sys.argv[2]), models=[ServedModel("model", source=sys.argv[1])]))
"""
LIMIT_S = 120
HELLO = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
OVERLOAD = 64
"""Texts that may wait in the test of overload, a quarter of its clients."""


class Server:
    """The server's process, while the `with` block runs."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.log = tempfile.NamedTemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  (closed in __exit__)
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=os.environ | environment)

    def __enter__(self) -> "Server":
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end and self.process.poll() is None:
            found = re.search(r"running on http://127\.0\.0\.1:(\d+)", Path(self.log.name).read_text("utf-8"))
            if found:
                self.port = int(found[1])
                return self
            time.sleep(0.05)
        self.__exit__()
        raise RuntimeError(f"the server did not start:\n{Path(self.log.name).read_text('utf-8')}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(LIMIT_S)
        finally:
            self.process.kill()
            self.log.close()

    def cpu_s(self) -> float:
        """Processor time so far, of all threads. NaN where the system does not report it."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        except OSError:
            return float("nan")
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text("ascii").split()[1]
        except OSError:
            return float("nan")
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def ours(model: str, max_waiting: int = 4096) -> Server:
    return Server([sys.executable, "-c", START, model, str(max_waiting)])


def infinity(python: Path, model: str) -> Server:
    """infinity-emb with PyTorch as its defaults run it on a CPU: float32, warmed up by itself, no cache of vectors.

    BetterTransformer, a default too, is no longer in the package that it came from; it would be left out anyway.
    """
    options = ["--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--url-prefix", "/v1"]
    options += ["--model-id", model, "--served-model-name", "model", "--host", "127.0.0.1", "--port", "0"]
    command = [str(python), "-c", "from infinity_emb.cli import cli; cli()", "v2", *options]
    return Server(command, HF_HUB_OFFLINE="1", DO_NOT_TRACK="1")


class Client(asyncio.Protocol):
    """One connection that sends the next request when the answer to the last one is complete."""

    def __init__(self, requests: Iterator[bytes], found: list[tuple[int, float]]) -> None:
        self.requests = requests
        self.found = found
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.received = b""
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport  # uvloop's is a Transport by its methods only
        # The server has taken the connection when it has answered once; only then does it count.
        self.transport.write(HELLO)

    def send(self) -> None:
        request = next(self.requests, None)
        if request is None:
            self.transport.close()
            self.ended.set_result(None)
            return
        self.sent = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, separator, body = self.received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self.received = body[length:]
        if not self.ready.done():
            self.ready.set_result(None)
            return
        self.found.append((int(head[9:12]), time.perf_counter() - self.sent))
        self.send()

    def connection_lost(self, error: Exception | None) -> None:
        for future in (self.ready, self.ended):
            if not future.done():
                future.set_exception(error or ConnectionError("the server closed the connection"))


def request(text: str) -> bytes:
    body = json.dumps({"input": text, "model": "model", "encoding_format": "base64"}).encode()
    head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: "
    return f"{head}{len(body)}\r\n\r\n".encode() + body


async def send(server: Server, requests: list[bytes], clients: int) -> tuple[float, list[tuple[int, float]]]:
    """Seconds for all, and status and seconds of each."""
    loop = asyncio.get_running_loop()
    found: list[tuple[int, float]] = []
    shared = iter(requests)
    made: list[Client] = []
    for _ in range(clients):
        _, client = await loop.create_connection(lambda: Client(shared, found), "127.0.0.1", server.port)
        made.append(client)
    await asyncio.wait_for(asyncio.gather(*(client.ready for client in made)), LIMIT_S)
    started = time.perf_counter()
    for client in made:
        client.send()
    await asyncio.wait_for(asyncio.gather(*(client.ended for client in made)), 10 * LIMIT_S)
    return time.perf_counter() - started, found


def percentile(found: list[tuple[int, float]], share: float, status: Callable[[int], bool] = bool) -> float:
    """Milliseconds."""
    times = sorted(seconds for code, seconds in found if status(code))
    return 1000 * times[min(len(times) - 1, int(len(times) * share))] if times else float("nan")


def show(what: str, server: Server, before: float, seconds: float, found: list[tuple[int, float]]) -> float:
    """Print one line; the rate."""
    statuses = Counter(code for code, _ in found)
    rate = len(found) / seconds
    cost = 1e6 * (server.cpu_s() - before) / len(found)
    latency = f"p50 {percentile(found, 0.5):7.2f} ms   p99 {percentile(found, 0.99):7.2f} ms"
    print(f"{what:24} {rate:8.0f} requests/s   {latency}   {cost:6.0f} µs a request   {dict(statuses)}", flush=True)
    return rate


def texts(count: int, seed: int) -> list[str]:
    """Different short sentences."""
    subjects, actions, details = corpus.SUBJECTS, corpus.ACTIONS, corpus.DETAILS
    kinds = [f"{a} {b}, {c}" for a in subjects for b in actions for c in details]
    return [f"{kinds[(number * 7919 + seed) % len(kinds)]} {seed}-{number}" for number in range(count)]


def in_process(model: str, several: list[str]) -> float:
    """Texts per second of `ModelManager.embed`, all at once."""
    with ModelManager(cache_size=0) as manager:
        manager.register("model", model)
        manager.embed(texts(64, 0), "model")
        started = time.perf_counter()
        manager.embed(several, "model")
        return len(several) / (time.perf_counter() - started)


def vectors(server: Server, several: list[str]) -> Any:
    """What the server answers, float32 [texts, dimension]."""
    body = json.dumps({"input": several, "model": "model", "encoding_format": "base64"}).encode()
    url = f"http://127.0.0.1:{server.port}/v1/embeddings"
    asked = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=LIMIT_S) as answer:
        items = json.load(answer)["data"]
    return np.stack([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in items])


async def compare(arguments: argparse.Namespace) -> None:
    """The comparison with infinity-emb, with the targets."""
    python = environment.peers_python(environment.peers_location("-server"), "requirements-server.txt")
    model, clients, count = arguments.model, arguments.clients, max(1, arguments.requests // 10)
    own, peer, batched = "model_manager, served", "infinity-emb, served", "model_manager, in process"
    starts = {own: lambda: ours(model), peer: lambda: infinity(python, model)}
    rates: dict[str, list[float]] = {name: [] for name in (batched, own, peer)}
    answers: dict[str, list[tuple[int, float]]] = {own: [], peer: []}
    found: dict[str, Any] = {}
    for turn in range(arguments.rounds):
        several = texts(count, 10 + turn)
        order = list(rates)[turn % 3 :] + list(rates)[: turn % 3]
        for name in order:
            if name == batched:
                rates[name].append(in_process(model, several))
            else:
                with starts[name]() as server:
                    await send(server, [request(text) for text in texts(8 * clients, 3)], clients)
                    seconds, times = await send(server, [request(text) for text in several], clients)
                    found[name] = vectors(server, several[:16])
                if any(status != 200 for status, _ in times):
                    sys.exit(f"{name} refused requests: {dict(Counter(status for status, _ in times))}")
                rates[name].append(count / seconds)
                answers[name] += times
            print(f"round {turn + 1} of {arguments.rounds}: {name}: {rates[name][-1]:.0f} texts/s", flush=True)

    print(f"\n{environment.machine()}\n\n{clients} clients, one short text each, uncached: {count} texts a round")
    print(f"medians of {arguments.rounds} rounds; latencies over all of them\n")
    print(f"{'':28}{'texts/s':>9}{'p50 ms':>10}{'p99 ms':>10}")
    for name, several_rates in rates.items():
        latency = "".join(f"{percentile(answers[name], share):10.2f}" for share in (0.5, 0.99) if name in answers)
        print(f"{name:28}{statistics.median(several_rates):9.0f}{latency}")
    print(f"\n{'':28}{'ratio':>9}{'lowest':>10}{'highest':>10}{'target':>10}")
    for other, target in ((peer, 5.0), (batched, 0.7)):
        ratios = [mine / its for mine, its in zip(rates[own], rates[other], strict=True)]
        low, high = min(ratios), max(ratios)
        ratio = statistics.median(ratios)
        verdict = "reached" if ratio >= target else "missed"
        print(f"{'to ' + other:28}{ratio:9.2f}{low:10.2f}{high:10.2f}{f'≥ {target:g}':>10}  {verdict}")
    print(f"\nlowest cosine between the two servers' vectors: {(found[own] * found[peer]).sum(axis=1).min():.5f}")


async def measure(arguments: argparse.Namespace) -> None:
    model, clients = arguments.model, arguments.clients
    batched = in_process(model, texts(arguments.requests // 4, 1))
    print(f"{'embed, in process':24} {batched:8.0f} texts/s", flush=True)

    with ours(model) as server:
        await send(server, [request("The weather is lovely today.")] * 200, clients)
        before = server.cpu_s()
        answers = await send(server, [request("The weather is lovely today.")] * arguments.requests, clients)
        show("cached", server, before, *answers)
        before = server.cpu_s()
        answers = await send(server, [request(text) for text in texts(arguments.requests // 4, 2)], clients)
        rate = show(f"{clients} clients, uncached", server, before, *answers)
        print(f"{'':24} {rate / batched:8.0%} of the texts/s in process", flush=True)

    with ours(model, OVERLOAD) as server:
        await send(server, [request(text) for text in texts(200, 3)], clients)
        before = server.cpu_s()
        answers = await send(server, [request(text) for text in texts(arguments.requests, 4)], 4 * OVERLOAD)
        show("overload", server, before, *answers)
        refused = percentile(answers[1], 0.99, lambda code: code == 429)
        served = percentile(answers[1], 0.99, lambda code: code == 200)
        print(f"{'':24} p99 of refusals {refused:.1f} ms, of answers {served:.1f} ms", flush=True)

    if arguments.soak:
        with ours(model) as server:
            await send(server, [request(text) for text in texts(arguments.soak // 10, 5)], clients)
            early, before = server.resident_mb(), server.cpu_s()
            # Few texts of their own and many that are not: the cache fills, and entries leave it.
            mixed = [request(text) for number in range(9) for text in texts(arguments.soak // 10, 6 + number // 8)]
            show("soak", server, before, *await send(server, mixed, clients))
            print(
                f"{'':24} resident {early:.0f} MB after a tenth, {server.resident_mb():.0f} MB at the end", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default=str(ROOT / ".models" / "all-MiniLM-L6-v2"))
    parser.add_argument("--requests", type=int, default=20_000, help="cached ones; a quarter of them uncached")
    parser.add_argument("--clients", type=int, default=32, help="connections")
    parser.add_argument("--soak", type=int, default=0, help="requests of the long run; 0: none")
    parser.add_argument(
        "--peers", action="store_true", help="compare with infinity-emb, with a tenth of the requests per round"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of --peers")
    arguments = parser.parse_args()
    uvloop.run(compare(arguments) if arguments.peers else measure(arguments))


if __name__ == "__main__":
    main()
