"""The notebooks of examples/ run from the first cell to the last, and are committed with their outputs."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import ENGLISH_MODEL, ROOT
from notebooks import run_cells

PATH = ROOT / "examples" / "quickstart.ipynb"
RETRIEVAL = ROOT / "examples" / "retrieval.ipynb"


def cells(path=PATH):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", [PATH, RETRIEVAL], ids=lambda path: path.stem)
def test_it_is_small_and_was_executed(path):
    assert path.stat().st_size < 300_000
    assert [cell["execution_count"] for cell in cells(path)] == list(range(1, len(cells(path)) + 1))
    kinds = [output["output_type"] for cell in cells(path) for output in cell["outputs"]]
    assert kinds
    assert "error" not in kinds


def test_it_shows_plots_and_tables():
    shown = [kind for cell in cells() for output in cell["outputs"] for kind in output.get("data", {})]
    assert shown.count("image/png") == 2
    assert "text/html" in shown
    assert "data-layer" in PATH.read_text(encoding="utf-8"), "the live plot of memory"


@pytest.mark.real
@pytest.mark.timeout(180)
# The kernel is another process; warnings of its client are irrelevant here.
@pytest.mark.filterwarnings("default")
def test_it_runs(minilm, multilingual, smollm2, monkeypatch, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(PATH, as_version=4)
    # The kernel must use the interpreter of the tests.
    notebook.metadata.kernelspec.name = "python3"
    resources = {"metadata": {"path": str(PATH.parent)}}
    client.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    said = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert "Paris" in said
    assert sys.version_info[:2] == tuple(map(int, notebook.metadata.language_info.version.split(".")[:2]))


@pytest.mark.real
@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("default")
def test_retrieval_runs(multilingual, monkeypatch, tmp_path):
    """It asserts itself that hybrid search is better than either of its parts."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(RETRIEVAL, as_version=4)
    resources = {"metadata": {"path": str(RETRIEVAL.parent)}}
    client.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    said = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert "hybrid + MaxSim" in said


@pytest.mark.timeout(90)
@pytest.mark.filterwarnings("default")
def test_progress_bars_and_tables(monkeypatch, tmp_path):
    """Bars of calls that ask for one, and of indexing by default; without ipywidgets as text and without a warning."""
    sources = (
        f"""
import warnings
warnings.simplefilter("error")
from model_manager import ModelManager
from model_manager.integrations.qdrant import QdrantIndexer
manager = ModelManager(english_model={ENGLISH_MODEL!r})
indexer = QdrantIndexer("notes", model="english_sentence", manager=manager, path=":memory:")
manager.english_sentence_model.encode(["a text"] * 50, show_progress_bar=True).shape
""",
        'indexer.add_documents([{"id": "a", "text": "<b>a text</b>"}, {"id": "b", "text": "another"}]).indexed',
        'indexer.search("a question", score_threshold=None)',
    )
    cells = run_cells(sources, tmp_path, monkeypatch)
    encoded, indexed = (json.dumps(cell.outputs) for cell in cells[:2])
    assert "50/50" in encoded
    assert "2/2" in indexed
    assert "Warning" not in encoded + indexed
    (hits,) = [output["data"] for output in cells[-1].outputs if "data" in output]
    assert "&lt;b&gt;a text&lt;/b&gt;" in hits["text/html"]
    assert "<b>" not in hits["text/html"]
    assert hits["text/plain"].startswith("[SearchHit(")


@pytest.mark.timeout(90)
@pytest.mark.filterwarnings("default")
def test_a_plot_as_the_last_expression_has_one_picture(monkeypatch, tmp_path):
    """A second one would not be updated."""
    source = f"""
from model_manager import ModelManager
from model_manager.integrations.jupyter import memory_plot
memory_plot(ModelManager(english_model={ENGLISH_MODEL!r}), interval=60.0)
"""
    (cell,) = run_cells((source,), tmp_path, monkeypatch)
    picture, value = cell.outputs
    assert "<svg" in picture["data"]["text/html"]
    assert picture["data"]["text/plain"].startswith("<MemoryPlot running, ")
    assert list(value["data"]) == ["text/plain"]
    assert value["data"]["text/plain"].startswith("<MemoryPlot running, ")
