"""The scripts of benchmarks/ and scripts/ start, and a run without this project's own rows fails."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import FIXTURES, ROOT
from model_manager import ModelManager

FOLDER = ROOT / "benchmarks"
NEEDS_PYTORCH = {"compare_transformers.py", "export_onnx.py", "make_qwen3.py"}
"""Scripts whose module imports PyTorch, which is not among the tools of the tests."""
NEEDS = {"server.py": "uvloop", "ollama_api.py": "uvloop", "pipelines.py": "resource"}
"""Modules that are not on all systems."""
SCRIPTS = sorted(
    f"{path.parent.name}/{path.name}"
    for folder in (FOLDER, ROOT / "scripts")
    for path in folder.glob("*.py")
    if "ArgumentParser" in path.read_text(encoding="utf-8") and path.name not in NEEDS_PYTORCH
)


@pytest.fixture
def imported(monkeypatch):
    """Imports modules of benchmarks/, and forgets them after the test: their names are short."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_starts(name):
    if needed := NEEDS.get(name.rpartition("/")[2]):
        pytest.importorskip(needed, reason=f"needs {needed}, which this system lacks")
    command = [sys.executable, str(ROOT / name), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_all_contenders_are_there(imported):
    """Their packages are imported later, by the processes that measure them."""
    contenders, writers = imported("contenders"), imported("contenders.writers")
    for create, names in ((contenders.create, contenders.CONTENDERS), (writers.create, writers.WRITERS)):
        assert all(create(name) for name in names)
    assert set(imported("peers").QWEN3) <= set(contenders.CONTENDERS)
    for name in imported("targets").PLAIN:
        assert name in writers.WRITERS


def test_every_environment_of_peers_has_its_pythons(imported, monkeypatch, tmp_path):
    """A first use makes the environment."""
    environment, made = imported("environment"), []
    monkeypatch.setattr(environment.venv, "create", lambda location, **_: made.append(location))
    monkeypatch.setattr(environment, "PYTHONS", dict.fromkeys(environment.PYTHONS, ((3, 10), (3, 99))))
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: made[-1].mkdir())
    listed = {path.name for path in FOLDER.glob("requirements*.txt")}
    assert set(environment.PYTHONS) == listed
    for name in listed:
        environment.peers_python(tmp_path / name, name)
    assert len(made) == len(listed)


def test_a_row_of_ours_that_is_missing_is_named(imported):
    left_out = imported("report").left_out
    assert left_out(["model_manager", "other"], ["model_manager"]) == ""
    assert left_out(["other"], []) == ""
    found = left_out(["model_manager-f32", "model_manager-int8", "other"], ["model_manager-f32"])
    assert found == "left out of the results: model_manager-int8; the reason stands above"


def test_a_process_that_fails_is_shown(imported):
    output_of = imported("environment").output_of
    assert output_of([sys.executable, "-c", "import os; print(os.environ['SAID'])"], SAID="this").split() == ["this"]
    with pytest.raises(SystemExit, match=r"failed:(.|\n)*ValueError: no such model$"):
        output_of([sys.executable, "-c", "raise ValueError('no such model')"])


def test_a_writer_of_ours_that_fails_is_the_exit_status(imported, monkeypatch, tmp_path, capsys):
    generation, peers = imported("generation"), imported("peers")

    def measure(_python, name, _model, _quick):
        if name.endswith("int8"):
            raise peers.WorkerFailed("out of tokens")
        return {"decode": 2.0, "prefill": 3.0, "load": 0.1, "resident": 4.0, "model": 1.0}

    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    for name, fake in (
        ("measure", measure),
        ("HERE", tmp_path),
        ("has_llama_cpp", lambda _python: False),
        ("gpt2", lambda _python, work: work),
        ("read_rate", lambda _threads: 1.0),
    ):
        monkeypatch.setattr(generation, name, fake)
    monkeypatch.setattr(generation.environment, "peers_python", lambda _venv: tmp_path / "python")
    monkeypatch.setattr(generation.environment, "versions", lambda _python: {})
    monkeypatch.setattr(sys, "argv", ["generation.py", "--quick", "--model", str(model)])
    with pytest.raises(SystemExit) as ended:
        generation.main()
    assert "left out of the results: model_manager-int8" in str(ended.value.code)
    assert "model_manager-int8: left out: out of tokens" in capsys.readouterr().out
    (record,) = (tmp_path / "results").glob("*.json")
    assert "model_manager-f32" in json.loads(record.read_text())["GPT-2, 124 million random weights"]


def test_what_the_gpt2_of_random_weights_writes_reads_back(imported, tmp_path):
    made = imported("make_gpt2").tokenizer(319)
    words = range(256, 318)
    assert made.encode(made.decode(list(words))).ids == list(words)
    shutil.copytree(FIXTURES / "gpt2", tmp_path / "gpt2")
    made.save(str(tmp_path / "gpt2" / "tokenizer.json"))
    with ModelManager(generator_model=str(tmp_path / "gpt2")) as manager:
        text = made.decode([*words, *words])
        assert manager.count_tokens(text, "text_generator") == 2 * len(words)
        assert manager.count_tokens(f"once{text}", "text_generator") == 4 + 2 * len(words)
