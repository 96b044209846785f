"""scripts/cuda_toolkit.py makes a toolkit out of packages."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import sys

import pytest
from conftest import ROOT

SCRIPT = ROOT / "scripts" / "cuda_toolkit.py"
HEADER = """
#define cuMemAlloc                          cuMemAlloc_v2
#define cuMemcpyHtoDAsync                   __CUDA_API_PTSZ(cuMemcpyHtoDAsync_v2)
CUresult CUDAAPI cuInit(unsigned int Flags);
CUresult CUDAAPI cuMemAlloc(CUdeviceptr *dptr, size_t bytesize);
CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr dst, const void *src, size_t size, CUstream stream);
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux with a C compiler"
)


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("cuda_toolkit", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUT", tmp_path / "out")
    monkeypatch.delenv("CUDA_COMPUTE_CAP", raising=False)
    return module


def packages(folder, release="13.0"):
    home = folder / "packages" / "nvidia" / "cu13"
    for part in ("bin", "include", "lib", "nvvm"):
        (home / part).mkdir(parents=True)
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.88'\n")
    nvcc.chmod(0o755)
    (home / "include" / "cuda.h").write_text(HEADER)
    for library in ("libcublas.so.13", "libnvrtc-builtins.so.13.0", "libcudart_static.a"):
        (home / "lib" / library).write_bytes(b"")
    return folder / "packages"


def test_it_has_what_builds_expect(toolkit, tmp_path):
    home = toolkit.assemble(toolkit.find_packages(packages(tmp_path)))
    names = {path.name for path in (home / "lib64").iterdir()}
    assert {"libcublas.so", "libcublas.so.13", "libnvrtc-builtins.so", "libcudart_static.a", "stubs"} <= names
    assert (home / "bin" / "nvcc").exists()
    assert (home / "include" / "cuda.h").exists()
    # A second time over the first.
    assert toolkit.assemble(toolkit.find_packages(tmp_path / "packages")) == home


def test_the_driver_to_link_with_has_every_name_and_no_card(toolkit, tmp_path):
    home = toolkit.assemble(toolkit.find_packages(packages(tmp_path)))
    driver = ctypes.CDLL(str(home / "lib64" / "stubs" / "libcuda.so"))
    assert [driver.cuInit(0), driver.cuMemAlloc_v2(), driver.cuMemcpyHtoDAsync_v2()] == [100, 100, 100]


@pytest.mark.parametrize(("release", "known"), [("13.0", None), ("13.4", None), ("13.9", "13040"), ("14.1", "13040")])
def test_a_toolkit_newer_than_the_bindings_is_used_as_the_newest_that_they_know(toolkit, tmp_path, release, known):
    home = toolkit.assemble(toolkit.find_packages(packages(tmp_path, release)))
    variables = toolkit.environment(home)
    assert variables.get("CUDARC_CUDA_VERSION") == known
    assert variables["CUDA_HOME"] == str(home)
    assert variables["PATH"].startswith(str(home / "bin"))


def test_the_capability_of_a_machine_without_a_card(toolkit, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert toolkit.capability() == "80"
    monkeypatch.setenv("CUDA_COMPUTE_CAP", "90")
    assert toolkit.capability() == "90"


def test_the_capability_is_that_of_the_oldest_card(toolkit, tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '9.0\\n8.6\\n12.0\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert toolkit.capability() == "86"


def test_missing_packages_are_named(toolkit, tmp_path, monkeypatch):
    monkeypatch.setattr(toolkit, "candidates", lambda extra: [extra])
    with pytest.raises(SystemExit, match=r"--install.*cuda-toolkit\[nvcc"):
        toolkit.find_packages(tmp_path)
