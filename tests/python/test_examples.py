"""The scripts in examples/ run and print what they describe."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

EXPECTED = {
    "run.py": [
        "loaded: nothing",
        "turkish_sentence",
        "english_sentence",
        "Turkish similarities",
        "hits",
        "TR  ",
        "EN  ",
        "streamed: ",
        "returned",
    ],
}


def test_every_example_is_here():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXPECTED)


@pytest.mark.real
@pytest.mark.parametrize("name", EXPECTED)
def test_examples_run(name, minilm, multilingual, smollm2):
    environment = {
        **os.environ,
        "TURKISH_SENTENCE_MODEL": multilingual,
        "ENGLISH_FALLBACK_MODEL": minilm,
        "HUGGINGFACE_MODEL": smollm2,
    }
    process = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name)],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        env=environment,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    position = 0
    for expected in EXPECTED[name]:
        position = process.stdout.index(expected, position)
