"""Shared by the tests of generation over HTTP: servers, the SDK, raw requests."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import openai
import orjson
import pytest
from generators import TEXT, writer
from model_manager.server import ServerConfig, create_app
from servers import SECONDS, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx
    from model_manager import ModelManager
    from servers import Running

TURN = [{"role": "user", "content": TEXT}]
ASK = {"messages": TURN, "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def gpt2_server() -> Iterator[Running]:
    """A server with a text generator, for tests that do not look at its state."""
    with writer() as manager, running(create_app(ServerConfig(), manager)) as found:
        yield found


@pytest.fixture
def endless_server(endless: ModelManager, serve: Callable[..., Running]) -> Running:
    """A server on `endless`."""
    return serve(endless)


@pytest.fixture
def sdk(gpt2_server: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's client of `gpt2_server`."""
    with openai.OpenAI(base_url=f"{gpt2_server.url}/v1", api_key="any", max_retries=0, timeout=SECONDS) as client:
        yield client


def events(response: httpx.Response) -> list[bytes]:
    """The data of a stream's lines."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.content.split(b"\n\n")
    assert blocks.pop() == b""
    assert all(block.startswith(b"data: ") and b"\n" not in block for block in blocks)
    return [block.removeprefix(b"data: ") for block in blocks]


def leave(server: Running, path: str, body: dict[str, Any], after: Callable[[socket.socket], object]) -> None:
    """Send a raw request and close the connection when `after(socket)` returns."""
    content = orjson.dumps(body)
    host = server.url.removeprefix("http://")
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(content)}\r\n\r\n"
    with socket.create_connection(tuple(host.split(":")), timeout=SECONDS) as connection:
        connection.sendall(head.encode() + content)
        after(connection)
