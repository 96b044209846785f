"""The package where its extension module cannot be imported: the error says what to do."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "python" / "model_manager"

REFUSE = """
import sys

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name == "model_manager._core":
            raise ImportError({message!r}, name=name, path="/somewhere/_core.abi3.so")

sys.meta_path.insert(0, Refuses())
try:
    import model_manager
except ImportError as error:
    assert error.name == "model_manager._core" and error.path == "/somewhere/_core.abi3.so"
    print(error)
"""


def said(code: str, path: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=True
    )
    return run.stdout


@pytest.mark.parametrize(
    ("library", "remedy"),
    [
        ("libcuda.so.1", "on a machine without a card install the wheel for CPUs: pip install"),
        ("libcublas.so.13", "pip install 'cuda-toolkit[cudart,nvrtc,cublas,curand]'"),
        ("libnvrtc.so.13", "pip install 'cuda-toolkit[cudart,nvrtc,cublas,curand]'"),
    ],
)
def test_a_library_of_a_card_is_missing(library, remedy):
    message = f"{library}: cannot open shared object file: No such file or directory"
    output = said(REFUSE.format(message=message), str(PACKAGE.parent))
    assert output.startswith(f"{message}. This build of model_manager is for NVIDIA's cards")
    assert remedy in output


def test_another_reason_is_passed_on():
    message = "libm.so.6: version `GLIBC_2.99' not found"
    assert said(REFUSE.format(message=message), str(PACKAGE.parent)) == f"{message}\n"


def test_a_checkout_that_is_not_built(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    code = "try:\n    import model_manager\nexcept ImportError as error:\n    print(error)"
    output = said(code, str(tmp_path))
    assert output.startswith("model_manager has no extension module here: in a checkout build it with `make build`")
