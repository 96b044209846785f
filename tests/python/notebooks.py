"""Notebooks that are made and run by tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def run_cells(sources: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The cells of a new notebook with these sources, after a run in a kernel whose settings lie in `folder`."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("IPYTHONDIR", str(folder))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    client.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    return notebook.cells
