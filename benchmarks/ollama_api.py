#!/usr/bin/env python3
"""Ollama's API and OpenAI's at the same server: lists of texts, and one text per request.

    python benchmarks/ollama_api.py [MODEL] [--texts N] [--list N] [--clients N] [--rounds N] [--relay]

The server is a separate process on 127.0.0.1, with its clients on the same cores. Every case sends different texts in
every round, in rotating order; "cached" sends the texts of a list again. Printed are medians of texts per second, and
the ratio to the same case of OpenAI's API within a round.

--relay compares this server's lists with a server that sends Ollama one text after another (`relay.py`), for the same
clients and texts. Behind one relay is llama.cpp's server, the engine that Ollama was built on, with the same model in
float16; behind the other is this server's own Ollama API, so that what differs is one request for each text. Ollama
itself is not measured.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import environment
import httpx
import numpy as np
from server import Server, ours, send, texts

ROOT = Path(__file__).resolve().parent.parent
PATHS = {"ollama": ("/api/embed", "/api/embeddings"), "openai": ("/v1/embeddings", "/v1/embeddings")}
"""The endpoints for lists and for single texts."""


def post(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps({"model": "model", **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def lists(api: str, several: list[str], length: int) -> list[bytes]:
    """Requests with `length` texts each."""
    parts = [several[start : start + length] for start in range(0, len(several), length)]
    return [post(PATHS[api][0], {"input": part}) for part in parts]


def singles(api: str, several: list[str]) -> list[bytes]:
    """Requests with one text each."""
    return [post(PATHS[api][1], {"prompt" if api == "ollama" else "input": text}) for text in several]


async def rate(server: Server, requests: list[bytes], clients: int, count: int) -> float:
    """Texts per second."""
    seconds, found = await send(server, requests, clients)
    if any(status != 200 for status, _ in found):
        sys.exit(f"the server refused requests: {sorted({status for status, _ in found})}")
    return count / seconds


async def measure(arguments: argparse.Namespace) -> None:
    count, length, clients = arguments.texts, arguments.list, arguments.clients
    cases = (
        f"list of {length}, 1 client",
        f"list of {length}, cached",
        "1 text, 1 client",
        f"1 text, {clients} clients",
    )
    rates: dict[tuple[str, str], list[float]] = {(case, api): [] for case in cases for api in PATHS}
    with ours(arguments.model) as server:
        await send(server, singles("openai", texts(8 * clients, 1)), clients)
        for turn in range(arguments.rounds):
            order = list(PATHS)[turn % 2 :] + list(PATHS)[: turn % 2]
            for number, api in enumerate(order):
                seed = 10 + 8 * turn + 4 * number
                several = texts(count, seed)
                in_lists = lists(api, several, length)
                rates[cases[0], api].append(await rate(server, in_lists, 1, count))
                rates[cases[1], api].append(await rate(server, in_lists * 4, 1, 4 * count))
                rates[cases[2], api].append(
                    await rate(server, singles(api, texts(count // 4, seed + 1)), 1, count // 4)
                )
                rates[cases[3], api].append(await rate(server, singles(api, texts(count, seed + 2)), clients, count))
            print(f"round {turn + 1} of {arguments.rounds}", flush=True)
    print(f"\n{environment.machine()}\n\nmedians of {arguments.rounds} rounds of {count} texts, texts/s\n")
    print(f"{'':24}{'Ollama':>10}{'OpenAI':>10}{'ratio':>8}{'lowest':>8}{'highest':>9}")
    for case in cases:
        mine, its = rates[case, "ollama"], rates[case, "openai"]
        ratios = sorted(one / other for one, other in zip(mine, its, strict=True))
        medians = f"{statistics.median(mine):10.0f}{statistics.median(its):10.0f}"
        print(f"{case:24}{medians}{statistics.median(ratios):8.2f}{ratios[0]:8.2f}{ratios[-1]:9.2f}")


async def compare(arguments: argparse.Namespace) -> None:
    """Relays that ask for one text after another, against this server asked directly."""
    count, length, model = arguments.texts, arguments.list, arguments.model
    cases = {f"1 client, lists of {length}": 1, f"{arguments.clients} clients, lists of {length}": arguments.clients}
    rates: dict[tuple[str, str], list[float]] = {}
    vectors_of: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ours(model))
        peer = stack.enter_context(llama_cpp(model))
        relay = [sys.executable, str(Path(__file__).with_name("relay.py")), "model"]
        behind = {"OLLAMA_URL": f"http://127.0.0.1:{peer.port}", "RELAY_API": "openai"}
        sides = {
            "relay, llama.cpp": (stack.enter_context(Server(relay, **behind)), "openai"),
            "relay, this": (stack.enter_context(Server(relay, OLLAMA_URL=f"http://127.0.0.1:{server.port}")), "openai"),
            "OpenAI's API": (server, "openai"),
            "Ollama's API": (server, "ollama"),
        }
        for name, (asked, api) in sides.items():
            await send(asked, lists(api, texts(64, 1), length), 1)
            if api == "openai":
                vectors_of[name] = await answers(asked, texts(16, 7))
        for turn in range(arguments.rounds):
            order = list(sides)[turn % 4 :] + list(sides)[: turn % 4]
            for number, side in enumerate(order):
                asked, api = sides[side]
                for offset, (case, clients) in enumerate(cases.items()):
                    # Enough requests for every client.
                    fresh = texts(max(count, clients * length), 100 + 16 * turn + 4 * number + offset)
                    requests = lists(api, fresh, length)
                    rates.setdefault((case, side), []).append(await rate(asked, requests, clients, len(fresh)))
                    if offset == 0:
                        again = await rate(asked, requests, clients, len(fresh))
                        rates.setdefault(("the same again", side), []).append(again)
            print(f"round {turn + 1} of {arguments.rounds}", flush=True)
    print(f"\n{environment.machine()}\n\nmedians of {arguments.rounds} rounds, texts/s; ratios of OpenAI's API\n")
    print(f"{'':28}" + "".join(f"{side:>18}" for side in sides) + f"{'to llama.cpp':>14}{'to this':>24}")
    for case in dict.fromkeys(case for case, _ in rates):
        line = f"{case:28}" + "".join(f"{statistics.median(rates[case, side]):18.0f}" for side in sides)
        for slow, width in (("relay, llama.cpp", 14), ("relay, this", 10)):
            pairs = zip(rates[case, "OpenAI's API"], rates[case, slow], strict=True)
            ratios = sorted(one / other for one, other in pairs)
            line += f"{statistics.median(ratios):{width}.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
        print(line)
    own, its = vectors_of["OpenAI's API"], vectors_of["relay, llama.cpp"]
    its /= np.linalg.norm(its, axis=1, keepdims=True)
    print(f"\nlowest cosine between the vectors of llama.cpp and of this server: {(own * its).sum(axis=1).min():.5f}")


def llama_cpp(model: str) -> Server:
    """llama.cpp's server on the same model."""
    python = environment.peers_python(environment.peers_location("-llama"), "requirements-llama.txt")
    script, file = str(Path(__file__).with_name("llama_server.py")), f"{tempfile.mkdtemp()}/model.gguf"
    subprocess.run([str(python), script, model, file], check=True)
    return Server([str(python), script, file])


async def answers(server: Server, several: list[str]) -> Any:
    """The vectors that a server with OpenAI's protocol gives."""
    async with httpx.AsyncClient(timeout=60) as client:
        url = f"http://127.0.0.1:{server.port}/v1/embeddings"
        found = (await client.post(url, json={"model": "model", "input": several})).raise_for_status().json()["data"]
    return np.array([item["embedding"] for item in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(ROOT / ".models" / "all-MiniLM-L6-v2"))
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--list", type=int, default=64, help="texts in one request")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--relay", action="store_true", help="compare with one request for each text")
    arguments = parser.parse_args()
    asyncio.run(compare(arguments) if arguments.relay else measure(arguments))


if __name__ == "__main__":
    main()
