"""``python -m model_manager`` and the command ``model-manager``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; the exit code."""
    try:
        from .cli import run
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:  # the imports take a while
        sys.stderr.write("Interrupted.\n")
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
