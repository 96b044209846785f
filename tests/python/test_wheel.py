"""The wheel, in an empty virtual environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, ROOT

EXAMPLES = """
import doctest, sys
test = doctest.DocTestParser().get_doctest(sys.stdin.read(), {}, "README.md", "README.md", 0)
runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
runner.run(test)
print(runner.summarize(verbose=False))
"""


@pytest.fixture
def wheel():
    folder = os.environ.get("TEST_WHEEL_DIR")
    if folder is None:
        pytest.skip("`make test` builds the wheel and names its folder in TEST_WHEEL_DIR")
    (found,) = Path(folder).glob("*.whl")
    return found


@pytest.mark.timeout(300)
def test_the_wheel_works_with_numpy_alone(tmp_path, wheel):
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


@pytest.mark.real
@pytest.mark.timeout(300)
def test_the_first_lines_of_the_readme_without_a_network(tmp_path, wheel, multilingual, minilm, smollm2):
    """An empty environment and an empty home folder: the wheel, numpy, and models that are already there."""
    python = tmp_path / "empty" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "empty")], check=True, timeout=120)
    (packages,) = (tmp_path / "empty" / "lib").glob("python*/site-packages")
    for part in Path(np.__file__).parents[1].glob("numpy*"):
        (packages / part.name).symlink_to(part)
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check", str(wheel)]
    subprocess.run(install, check=True, timeout=120)
    home = tmp_path / "home"
    home.mkdir()
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Ten lines", 1)[1].split("\n## ", 1)[0]
    lines = "\n".join(re.findall(r"^```pycon\n(.*?)^```", section, re.MULTILINE | re.DOTALL))
    assert "model_manager.embed(" in lines
    models = {"TURKISH_SENTENCE_MODEL": multilingual, "ENGLISH_FALLBACK_MODEL": minilm, "HUGGINGFACE_MODEL": smollm2}
    done = subprocess.run(
        [python, "-W", "error", "-c", EXAMPLES],
        input=lines,
        encoding="utf-8",
        capture_output=True,
        timeout=120,
        check=False,
        cwd=home,
        env={"HOME": str(home), "HF_HUB_OFFLINE": "1", **models},
    )
    assert done.returncode == 0, done.stderr
    assert "failed=0" in done.stdout, done.stdout
    assert list(home.iterdir()) == []
