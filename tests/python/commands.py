"""Running the command line in the tests: in this process or in a new one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ENGLISH_MODEL, FIXTURES, TURKISH_MODEL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COMMANDS = ["bench", "cache", "completion", "demo", "doctor", "embed", "explain", "index", "models"]
COMMANDS += ["preload", "rerank", "search", "serve", "warmup"]


@pytest.fixture
def command_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tiny models, an empty folder, no Qdrant server."""
    for name, value in {
        "TURKISH_SENTENCE_MODEL": TURKISH_MODEL,
        "ENGLISH_FALLBACK_MODEL": ENGLISH_MODEL,
        "MODEL_MANAGER_RERANKER_MODEL": str(FIXTURES / "rerank_bert"),
        "USE_HUGGINGFACE": "false",
        "MODEL_MANAGER_DTYPE": "float32",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("QDRANT_URL", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def command(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, command_settings: None
) -> Callable[..., types.SimpleNamespace]:
    """Run a command in this process; the exit code, the output and the messages."""

    def call(*arguments: object, stdin: str = "") -> types.SimpleNamespace:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        from model_manager.cli import run

        code = run([str(argument) for argument in arguments])
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return types.SimpleNamespace(code=code, out=out.decode(errors="replace"), err=err.decode(), bytes=out)

    return call


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The command in its own process."""
    return subprocess.Popen(
        [sys.executable, "-m", "model_manager", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        **options,
    )
