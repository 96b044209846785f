"""The types that users see: pyright agrees with the stubs, as mypy does under `make lint`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

PYRIGHT = ROOT / "tests" / "node" / "node_modules" / "pyright" / "index.js"
PROGRAM = """
import asyncio
from openai.types.chat import ChatCompletionMessageParam
from model_manager import Config, ModelManager, model_manager, tracing
from model_manager.batch import BatchEmbedder
from model_manager.errors import OverloadedError
from model_manager.server import ServedModel, ServerConfig, create_app

manager = ModelManager(Config(threads=1), cache_size=10)
reveal_type(manager.embed(["one", "two"], "english_sentence", normalize=False))
reveal_type(manager.complete("once", max_new_tokens=3))
reveal_type(manager.generate("once", temperature=0.0))
reveal_type(manager.rerank("query", ["one"]))
reveal_type(asyncio.run(manager.aembed("one")))
reveal_type(manager.stats()["queue"]["texts"])
reveal_type(list(manager.stream("once")))
reveal_type(OverloadedError.transient)
reveal_type(BatchEmbedder("model").column)
reveal_type(tracing.is_enabled())
reveal_type(model_manager)
reveal_type(create_app(ServerConfig(models=[ServedModel("one", aliases=["two"])], api_keys=["key"])))
parts = [{"role": "user", "content": [{"type": "text", "text": "once"}]}]
calls = [{"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}]
texts: list[dict[str, str]] = [{"role": "user", "content": "once"}]
typed: list[ChatCompletionMessageParam] = [{"role": "user", "content": "once"}]
for messages in (parts, calls, texts, typed):
    manager.chat(messages)
    asyncio.run(manager.achat(iter(messages)))
    for prompt in (messages, "once", [1, 2]):
        manager.generate(prompt)
        manager.complete(prompt)
        manager.stream(prompt)
        manager.astream(prompt)
        asyncio.run(manager.agenerate(prompt))
for messages in (parts, texts):
    manager.apply_chat_template(messages)
manager.embed("one", modle="english")
manager.embed(1.5)
Config(thread=1)
"""
TYPES = [
    r"ndarray\[.*floating\[_32Bit\]\]\]",
    "Completion",
    "str",
    r"list\[RerankResult\]",
    r"ndarray\[.*floating\[_32Bit\]\]\]",
    "int",
    r"list\[str\]",
    "bool",
    "str",
    "bool",
    "ModelManager",
    "FastAPI",
]
MISTAKES = ['No overloads for "embed"', 'cannot be assigned to parameter "texts"', 'No parameter named "thread"']


def check(*arguments):
    if shutil.which("node") is None or not PYRIGHT.is_file():
        if os.environ.get("CI"):
            pytest.fail("pyright is missing: run `make node`")
        pytest.skip("needs node and `make node`")
    command = ["node", str(PYRIGHT), "--outputjson", "--pythonpath", sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False, env=environment)
    return json.loads(done.stdout)["generalDiagnostics"]


def test_users_see_these_types_and_mistakes(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    found = check(tmp_path / "program.py")
    revealed = [re.search(r'is "(.*)"$', one["message"])[1] for one in found if one["severity"] == "information"]
    assert len(revealed) == len(TYPES)
    for seen, expected in zip(revealed, TYPES, strict=True):
        assert re.fullmatch(expected, seen), (seen, expected)
    mistakes = [one["message"] for one in found if one["severity"] == "error"]
    assert len(mistakes) == len(MISTAKES), mistakes
    for seen, expected in zip(mistakes, MISTAKES, strict=True):
        assert expected in seen


def test_the_stubs_are_valid():
    found = check(ROOT / "python" / "model_manager" / "_core.pyi", ROOT / "python" / "model_manager" / "_types.py")
    assert [one["message"] for one in found if one["severity"] == "error"] == []
