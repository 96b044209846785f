#!/usr/bin/env python3
"""Makes a CUDA toolkit out of NVIDIA's packages on PyPI, for a machine that has none.

    python scripts/cuda_toolkit.py --install        # fetches the packages, once
    eval "$(python scripts/cuda_toolkit.py)"        # CUDA_HOME, PATH, CUDA_COMPUTE_CAP
    maturin build --release --features cuda --auditwheel skip

The packages hold compiler, headers and libraries; what builds expect of a toolkit is missing: `lib64`, library names
without a version, and a `libcuda.so` to link with. `--check` compiles one kernel and prints what was used.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "target" / "cuda"
VERSION = "13.0.2"
"""The oldest toolkit whose packages have the compiler `nvcc`: its kernels run on the most drivers (580 or newer)."""
PARTS = "nvcc,crt,nvvm,cccl,cudart,nvrtc,cublas,curand"
NEWEST_KNOWN = (13, 4)
"""The newest toolkit that the crate cudarc 0.19 knows. A later one has the functions of this one too."""
DEFAULT_CAPABILITY = "80"
"""Ampere: kernels are compiled to PTX, which drivers translate for every later card."""


def candidates(extra: Path | None) -> list[Path]:
    """Folders in which the packages may lie: given, made by `--install`, or of this Python."""
    places = [extra] if extra else []
    places.append(OUT / "packages")
    spec = importlib.util.find_spec("nvidia")
    places += [Path(place).parent for place in (spec.submodule_search_locations or [])] if spec else []
    return places


def find_packages(extra: Path | None) -> Path:
    """The folder `nvidia/cuNN` with a compiler."""
    for place in candidates(extra):
        for compiler in sorted(place.glob("nvidia/cu*/bin/nvcc"), reverse=True):
            return compiler.parents[1]
    raise SystemExit(
        f'no nvcc among the packages of this Python: pass --install, or install "cuda-toolkit[{PARTS}]=={VERSION}"'
    )


def install(requirement: str) -> None:
    """Fetches the packages into the folder of this script."""
    target = OUT / "packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(target), requirement]
    # pip's own words are for people: standard output is for the shell.
    subprocess.run(command, check=True, stdout=sys.stderr)


def link(link_path: Path, target: Path) -> None:
    """Makes or renews a symbolic link."""
    link_path.parent.mkdir(parents=True, exist_ok=True)
    if link_path.is_symlink() or link_path.exists():
        link_path.unlink()
    link_path.symlink_to(target)


def driver_functions(include: Path) -> list[str]:
    """Names of the functions that cuda.h declares, with those that its macros stand for."""
    text = (include / "cuda.h").read_text(encoding="utf-8", errors="replace")
    declared = set(re.findall(r"\bCUDAAPI\s+(cu[A-Z]\w*)\s*\(", text))
    renamed = re.findall(r"#\s*define\s+(cu[A-Z]\w*)\s+__CUDA_API_PT(?:DS|SZ)\((cu\w+)\)", text)
    renamed += re.findall(r"#\s*define\s+(cu[A-Z]\w*)\s+(cu[A-Z]\w*_v\d+)\b", text)
    return sorted(declared | {name for pair in renamed for name in pair})


def stub_of_the_driver(include: Path, folder: Path) -> None:
    """A `libcuda.so` to link with. The driver brings the real one; in this one, every function finds no card."""
    path = folder / "libcuda.so"
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("a C compiler is missing: install gcc (CUDA's compiler needs it too)")
    no_device = 100
    lines = [f"int {name}(void) {{ return {no_device}; }}" for name in driver_functions(include)]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "cuda_stub.c")
        source.write_text("\n".join(lines) + "\n", encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        command = [compiler, "-shared", "-fPIC", "-w", "-fno-builtin", "-Wl,-soname,libcuda.so.1"]
        subprocess.run([*command, "-o", str(path), str(source)], check=True)
    link(folder / "libcuda.so.1", Path("libcuda.so"))


def assemble(packages: Path) -> Path:
    """The folder to use as CUDA_HOME."""
    for part in ("bin", "include", "nvvm"):
        link(OUT / part, packages / part)
    libraries = OUT / "lib64"
    libraries.mkdir(parents=True, exist_ok=True)
    for old in libraries.iterdir():
        if old.is_symlink():
            old.unlink()
    for library in sorted((packages / "lib").iterdir()):
        link(libraries / library.name, library)
        plain = re.sub(r"\.so\.[\d.]+$", ".so", library.name)
        if plain != library.name:
            link(libraries / plain, library)
    link(OUT / "lib", Path("lib64"))
    stub_of_the_driver(packages / "include", libraries / "stubs")
    return OUT


def version_of(nvcc: Path) -> tuple[int, int]:
    """Major and minor version of a compiler."""
    done = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"release (\d+)\.(\d+)", done.stdout)
    if found is None:
        raise SystemExit(f"{nvcc} --version says no release:\n{done.stdout}")
    return int(found[1]), int(found[2])


def capability() -> str:
    """Of the card in this machine, else of Ampere."""
    given = os.environ.get("CUDA_COMPUTE_CAP")
    if given:
        return given
    smi = shutil.which("nvidia-smi")
    if smi:
        asked = [smi, "--query-gpu=compute_cap", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        found = re.findall(r"^(\d+)\.(\d+)$", done.stdout, re.MULTILINE)
        if done.returncode == 0 and found:
            return min(("".join(pair) for pair in found), key=int)
    return DEFAULT_CAPABILITY


def environment(home: Path) -> dict[str, str]:
    """The variables that a build needs. PATH and the libraries of the linker come in addition to those that are set."""
    version = version_of(home / "bin" / "nvcc")
    variables = {"CUDA_HOME": str(home), "CUDA_COMPUTE_CAP": capability()}
    if version > NEWEST_KNOWN:
        variables["CUDARC_CUDA_VERSION"] = f"{NEWEST_KNOWN[0]}0{NEWEST_KNOWN[1]}0"
    variables["PATH"] = f"{home / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return variables


KERNEL = "#include <cuda_bf16.h>\n__global__ void half_of(__nv_bfloat16 *x) { x[threadIdx.x] /= __nv_bfloat16(2.f); }\n"


def check(home: Path) -> None:
    """Compiles a kernel to PTX."""
    variables = {**os.environ, **environment(home)}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "kernel.cu")
        source.write_text(KERNEL, encoding="utf-8")
        arch = f"compute_{variables['CUDA_COMPUTE_CAP']}"
        command = [str(home / "bin" / "nvcc"), "-ptx", f"-arch={arch}", "-o", f"{scratch}/kernel.ptx", str(source)]
        subprocess.run(command, check=True, env=variables)
        ptx = Path(scratch, "kernel.ptx").read_text(encoding="utf-8")
    functions = len(driver_functions(home / "include"))
    version = ".".join(map(str, version_of(home / "bin" / "nvcc")))
    print(f"CUDA {version} compiles for {arch} ({len(ptx.splitlines())} lines of PTX); {functions} driver functions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="fetch the packages first")
    parser.add_argument("--version", default=VERSION, help="toolkit that --install fetches (%(default)s)")
    parser.add_argument("--packages", type=Path, help="folder in which the packages are installed")
    parser.add_argument("--check", action="store_true", help="compile a kernel, print what was used")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("NVIDIA's packages of the compiler are for Linux")
    if arguments.install:
        install(f"cuda-toolkit[{PARTS}]=={arguments.version}")
    home = assemble(find_packages(arguments.packages))
    if arguments.check:
        check(home)
        return
    for name, value in environment(home).items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
