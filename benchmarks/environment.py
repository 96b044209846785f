"""Where the benchmark runs: the peers' virtual environment, the machine, the files that all read."""

import hashlib
import os
import platform
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ISA_FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_fp16", "avx512_bf16", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "bf16", "i8mm",
)  # fmt: skip
PYTHONS = {
    "requirements.txt": ((3, 11), (3, 14)),
    "requirements-server.txt": ((3, 11), (3, 12)),
    "requirements-fastembed.txt": ((3, 11), (3, 14)),
    "requirements-llama.txt": ((3, 10), (3, 14)),
}
"""The Pythons for which all of the listed versions have wheels."""
PEERS_VENV = os.environ.pop("MODEL_MANAGER_PEERS_VENV", "")
"""Taken out of the environment: model_manager warns of a variable of this prefix that is no setting of its own."""
PACKAGES = ("torch", "sentence-transformers", "onnxruntime", "openvino")


def peers_location(suffix: str = "") -> Path:
    """The peers' environment: MODEL_MANAGER_PEERS_VENV, else .venv-peers, plus `suffix`."""
    location = Path(PEERS_VENV or HERE.parent / ".venv-peers")
    return location.with_name(location.name + suffix)


def peers_python(location: Path, requirements: str = "requirements.txt") -> Path:
    """The interpreter of the peers' environment, which is made when the file of requirements has changed."""
    python = location / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    listed = HERE / requirements
    wanted = hashlib.sha256(listed.read_bytes()).hexdigest()
    stamp = location / "requirements.sha256"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    if not python.exists():
        least, most = PYTHONS[requirements]
        if not least <= sys.version_info[:2] <= most:
            sys.exit(
                f"benchmarks/{requirements} needs Python {least[0]}.{least[1]} to {most[0]}.{most[1]}, and this is "
                f"{platform.python_version()}: make {location} with such a one first"
            )
        print(f"{location}: making the peers' virtual environment", flush=True)
        venv.create(location, with_pip=True)
    size = " (several GB with PyTorch)" if b"torch==" in listed.read_bytes() else ""
    print(f"{location}: installing benchmarks/{requirements}{size} ...", flush=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(listed)]
    subprocess.run(command, check=True)
    stamp.write_text(wanted)
    return python


def output_of(command: list[str], **variables: str) -> str:
    """What a process prints. If it fails, this one ends with the end of its stderr."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def versions(python: Path) -> dict[str, str]:
    """Of the peers, and of the model_manager that this Python has."""
    code = f"from importlib.metadata import version\nfor p in {PACKAGES}: print(p, version(p))"
    found = dict(line.split() for line in output_of([str(python), "-c", code]).splitlines())
    try:
        return {"model-manager-rs": metadata.version("model-manager-rs"), **found}
    except metadata.PackageNotFoundError:
        return found


def prepare(python: Path, model: Path, work: Path, quick: bool, onnx: bool = True) -> None:
    """Writes texts.json, and the ONNX graphs, where a contender reads those, unless they are there."""
    command = [str(python), str(HERE / "corpus.py"), str(model), str(work / "texts.json")]
    subprocess.run(command + ["--quick"] * quick, check=True)
    if onnx and not (work / "int8.onnx").is_file():
        print("exporting the model to ONNX ...", flush=True)
        output_of([str(python), str(HERE / "export_onnx.py"), str(model), str(work)])


def machine() -> dict[str, Any]:
    """CPU, instruction sets that matter here and the one that model_manager uses, threads of this process, load."""
    name, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
    try:
        import model_manager

        used = model_manager.isa()
    except ImportError:  # the peers' environments
        used = None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": name,
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "isa_used": used,
        "threads": usable,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
