"""Shared by the tests: the tiny models and their references, managers on them, Python in a new process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

# Before the package is imported: no test may contact a hub or see the developer's own settings.
for _name in list(os.environ):
    if _name.startswith(("MODEL_MANAGER_", "HF_", "AI_", "SENTENCE_TRANSFORMERS_", "TRANSFORMERS_")):
        del os.environ[_name]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MODEL_MANAGER_DOTENV"] = "false"
# A shell that runs the tests in the background makes them, and every process that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "model-manager-tests-no-such-cache")

from model_manager import Config, ModelManager  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest_plugins = ["generators", "servers", "generation_servers", "qdrants", "redis_servers", "commands", "spans"]

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
TURKISH_MODEL = str(FIXTURES / "xlmr")
ENGLISH_MODEL = str(FIXTURES / "bert_wordpiece")
DIMENSION = 32
"""Dimensions of both models."""
TURKISH_TEXT = "Bugün hava çok güzel, dışarı çıkalım mı?"
ENGLISH_TEXT = "The weather is lovely today."


def reference(name: str) -> dict[str, Any]:
    """The committed results of sentence-transformers for one tiny model."""
    return json.loads((FIXTURES / name / "reference.json").read_text(encoding="utf-8"))


def tiny(**overrides: Any) -> ModelManager:
    """An independent manager on the tiny models. Only tests that ask for it unload models."""
    settings: dict[str, Any] = {
        "turkish_model": TURKISH_MODEL,
        "english_model": ENGLISH_MODEL,
        "dtype": "float32",
        "auto_cleanup": False,
    }
    return ModelManager(Config(**{**settings, **overrides}))


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work(n)` in `count` threads that start together; their results, exceptions included."""
    results: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def run(n: int) -> None:
        barrier.wait()
        try:
            results[n] = work(n)
        except BaseException as error:  # noqa: BLE001  handed to the test
            results[n] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a caller hangs"
    return results


@pytest.fixture
def make_manager() -> Iterator[Callable[..., ModelManager]]:
    """`tiny`, closed after the test."""
    made: list[ModelManager] = []

    def make(**overrides: Any) -> ModelManager:
        made.append(tiny(**overrides))
        return made[-1]

    yield make
    for manager in made:
        manager.close()


@pytest.fixture
def manager(make_manager: Callable[..., ModelManager]) -> ModelManager:
    """A fresh manager on the tiny models."""
    return make_manager()


@pytest.fixture(scope="module")
def shared() -> Iterator[ModelManager]:
    """One manager for a whole file, for tests that do not look at its state."""
    with tiny() as manager:
        yield manager


def real_model(name: str) -> str:
    """Folder of a real model. Without `make models` the test is skipped; in CI it fails."""
    folder = ROOT / ".models" / name
    if not (folder / "config.json").is_file():
        message = f"{folder} is missing: run `make models`"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return str(folder)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A company's own authority, which is not trusted by default."""
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust `authority`, as the documentation describes."""
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


@pytest.fixture(scope="session")
def minilm() -> str:
    return real_model("all-MiniLM-L6-v2")


@pytest.fixture(scope="session")
def multilingual() -> str:
    return real_model("multilingual-e5-small")


def changed(name: str, folder: Path, file: str = "config.json", **keys: object) -> Path:
    """A copy of a fixture one of whose JSON files says something else."""
    shutil.copytree(FIXTURES / name, folder, dirs_exist_ok=True)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **keys}), "utf-8")
    return folder


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    """A folder with a tiny embedding model, which the test may change."""
    made = tmp_path / "model"
    shutil.copytree(FIXTURES / "bert_plain", made)
    return made


def give_other_weights(folder: Path) -> None:
    """Change the model of a folder, and nothing that its name and configuration say: the rows of the table of words in
    the reverse order.
    """
    import numpy as np
    from safetensors.numpy import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    save_file({**weights, name: np.ascontiguousarray(weights[name][::-1])}, file)


def run_python(
    code: str, *, timeout: float = 60, check: bool = True, **environment: str
) -> subprocess.CompletedProcess:
    """Run `code` in a new interpreter with warnings as errors; its output is text."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    if check:
        assert process.returncode == 0, f"exit {process.returncode}\n{process.stdout}\n{process.stderr}"
    return process
