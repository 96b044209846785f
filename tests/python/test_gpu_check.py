"""scripts/gpu_check.sh runs to its end on the operations of a card, computed on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from model_manager import ModelManager
from model_manager.errors import ConfigError

SCRIPT = ROOT / "scripts" / "gpu_check.sh"
SHOWN = [
    ("device", "ok"),
    ("parity, float32", "ok"),
    ("parity, bfloat16", ""),
    ("parity, greedy tokens, float32", "ok"),
    ("lifecycle", "ok"),
    ("budget of the device", "ok"),
    ("too small a budget", "ok"),
    ("a full card", ""),
    ("speed next to sentence-transformers", ""),
]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_check_of_a_card_runs_to_its_end():
    names = "bert_wordpiece,qwen3_embedding,rerank_bert,splade_bert,llama"
    environment = {**os.environ, "GPU_CHECK_DEVICE": "candle-cpu", "PYTHON": sys.executable}
    done = subprocess.run(
        [str(SCRIPT), "--only", names], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for check, verdict in SHOWN:
        line = next(line for line in lines if line[:44].strip() == check)
        assert line.endswith(" ok") == (verdict == "ok"), line
    assert "All checks passed on candle-cpu" in lines[-1]


def test_a_model_on_a_device_reports_its_bytes():
    from conftest import ENGLISH_MODEL

    with ModelManager(device="candle-cpu", auto_cleanup=False) as manager:
        manager.register("model", ENGLISH_MODEL, dtype="float32")
        manager.embed("a text", "model")
        description, stats = manager.describe("model"), manager.stats()
        assert (manager.device, description["device"]) == ("candle-cpu", "candle-cpu")
        assert description["device_bytes"] == stats["slots"]["model"]["device_bytes"] > 0
        assert stats["memory"]["device"]["models"] == description["device_bytes"]
        manager.unload("model")
        assert manager.stats()["memory"]["device"]["models"] == 0


def test_on_the_cpu_nothing_is_on_a_device():
    from conftest import ENGLISH_MODEL

    with ModelManager(device="cpu", auto_cleanup=False) as manager:
        manager.register("model", ENGLISH_MODEL)
        manager.embed("a text", "model")
        description, stats = manager.describe("model"), manager.stats()
    assert (description["device"], description["device_bytes"]) == ("cpu", 0)
    assert (stats["slots"]["model"]["device_bytes"], stats["memory"]["device"]) == (0, None)


@pytest.mark.parametrize("dtype", ["float16", "int8", "int4"])
def test_a_device_refuses_formats_that_it_would_not_hold(dtype):
    from conftest import ENGLISH_MODEL

    with ModelManager(device="candle-cpu") as manager:
        manager.register("model", ENGLISH_MODEL, dtype=dtype)
        with pytest.raises(ConfigError, match="bfloat16"):
            manager.embed("a text", "model")


@pytest.mark.parametrize(("device", "remedy"), [("cuda", "--features cuda"), ("cuda:1", "--features cuda")])
def test_a_build_without_cards_says_how_to_get_them(device, remedy):
    with pytest.raises(ConfigError, match=remedy) as raised:
        ModelManager(device=device)
    assert device in str(raised.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "tpu:0"])
def test_wrong_names_are_refused_with_those_that_exist(device):
    with pytest.raises(ConfigError, match=r"cuda:N.*metal"):
        ModelManager(device=device)
