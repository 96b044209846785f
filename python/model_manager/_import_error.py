"""What to do when the extension module cannot be imported."""

from __future__ import annotations

import re
from pathlib import Path

_LIBRARY = re.compile(r"^(lib[\w+-]+\.so[.\d]*): cannot open shared object file")
_OF_CARDS = ("libcublas", "libcudart", "libcurand", "libnvrtc")


def explained(error: ImportError) -> ImportError:
    """The error with its remedy, or `error` itself where none is known."""
    message = str(error)
    built = any(path.suffix != ".pyi" for path in Path(__file__).parent.glob("_core.*"))
    library = _LIBRARY.match(message)
    if library and library[1].startswith("libcuda."):
        remedy = (
            f"{message}. This build of model_manager is for NVIDIA's cards and needs their driver; "
            "on a machine without a card install the wheel for CPUs: pip install --force-reinstall model-manager-rs"
        )
    elif library and library[1].startswith(_OF_CARDS):
        remedy = (
            f"{message}. This build of model_manager is for NVIDIA's cards; install its libraries too: "
            "pip install 'cuda-toolkit[cudart,nvrtc,cublas,curand]' in the version that it was built with (docs/gpu.md)"
        )
    elif not built:
        remedy = (
            "model_manager has no extension module here: in a checkout build it with `make build`, "
            "elsewhere install the package again: pip install --force-reinstall model-manager-rs"
        )
    else:
        return error
    return ImportError(remedy, name=error.name, path=error.path)
