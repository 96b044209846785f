"""A real redis-server on a free port of 127.0.0.1, ended by the test that started it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class RedisServer:
    """One process, which can be started again on the same port."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.folder = folder
        self.options = options
        self.start()

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(
            [*command, "--dir", str(self.folder), *(word.format(port=self.port) for word in self.options)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError("redis-server did not start")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(20)

    def call(self, *words: str) -> bytes:
        """The answer to one short command."""
        request = b"".join(
            [b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words)]
        )
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(request)
            return connection.recv(1 << 20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RedisCluster:
    """Three nodes that share the slots."""

    def __init__(self, nodes: list[RedisServer]) -> None:
        self.nodes = nodes
        first, *others = nodes
        for number, node in enumerate(nodes):
            slots = (number * 16384 // len(nodes), (number + 1) * 16384 // len(nodes) - 1)
            assert node.call("CLUSTER", "ADDSLOTSRANGE", *map(str, slots)) == b"+OK\r\n"
            node.call("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for node in others:
            bus = node.options[node.options.index("--cluster-port") + 1]
            first.call("CLUSTER", "MEET", "127.0.0.1", str(node.port), bus)
        deadline = time.monotonic() + 30
        while not all(b"cluster_state:ok" in node.call("CLUSTER", "INFO") for node in nodes):
            assert time.monotonic() < deadline, "the nodes do not find each other"
            time.sleep(0.05)

    @property
    def url(self) -> str:
        """The address of one node: the client learns the others from it."""
        return self.nodes[1].url.replace("redis://", "redis+cluster://")

    def keys(self, node: RedisServer) -> int:
        return int(node.call("DBSIZE")[1:].strip())


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[RedisServer] | object]:
    """A function that starts servers: ``redis_server(*options)``."""
    if shutil.which("redis-server") is None:
        if os.environ.get("REQUIRE_REDIS"):
            pytest.fail("redis-server is not installed")
        pytest.skip("redis-server is not installed")
    servers: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        servers.append(RedisServer(tmp_path_factory.mktemp("redis"), *options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def redis_cluster(redis_server: Callable[..., RedisServer]) -> RedisCluster:
    """A cluster of three nodes."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "5000", "--cluster-port")
    return RedisCluster([redis_server(*options, str(free_port())) for _ in range(3)])
