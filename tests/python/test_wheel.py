"""The wheel, in an empty virtual environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ENGLISH_MODEL


@pytest.mark.timeout(300)
def test_the_wheel_works_with_numpy_alone(tmp_path):
    folder = os.environ.get("TEST_WHEEL_DIR")
    if folder is None:
        pytest.skip("`make test` builds the wheel and names its folder in TEST_WHEEL_DIR")
    (wheel,) = Path(folder).glob("*.whl")
    assert "-cp310-abi3-" in wheel.name, "one wheel for every Python from 3.10"

    def run(*command):
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, timeout=240).stdout

    run(sys.executable, "-m", "venv", "empty")
    python = tmp_path / "empty" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))
    listed = run(python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check")
    names = {line.partition("==")[0].lower().replace("_", "-") for line in listed.split()}
    assert names - {"pip", "setuptools"} == {"model-manager-rs", "numpy"}
    code = f"""
from model_manager import ModelManager
with ModelManager(english_model={ENGLISH_MODEL!r}) as manager:
    print(manager.embed(["a text", "another"], "english_sentence").shape)
"""
    assert run(python, "-W", "error", "-c", code) == "(2, 32)\n"
