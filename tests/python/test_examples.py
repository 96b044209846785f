"""The scripts in examples/ run and print what they describe."""

from __future__ import annotations

import os
import pickle
import runpy
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, TURKISH_MODEL, tiny
from model_manager._embedder import Embedder

EXPECTED = {
    "run.py": [
        "loaded: nothing",
        "turkish_sentence",
        "english_sentence",
        "Turkish similarities",
        "hits",
        "TR  ",
        "EN  ",
        "streamed: ",
        "returned",
    ],
}


TEXTS = ["Where is my order?", "Kargom nerede?", "", "one more text"]


def test_every_example_is_here():
    names = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert names == {*EXPECTED, "with_dask.py", "with_spark.py"}


@pytest.fixture
def table(tmp_path):
    """A file of texts, and their vectors."""
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), tmp_path / "texts.parquet")
    with tiny() as manager:
        return tmp_path / "texts.parquet", Embedder(manager, TURKISH_MODEL).documents(TEXTS)


def example(name, *arguments):
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    environment = {**os.environ, "MODEL_MANAGER_DTYPE": "float32"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def vectors(target):
    rows = sorted(pq.read_table(target).to_pylist(), key=lambda row: row["id"])
    assert [row["text"] for row in rows] == TEXTS
    return np.array([row["embedding"] for row in rows], np.float32)


def test_the_example_for_dask(table, tmp_path):
    pytest.importorskip("dask.dataframe", reason="needs dask[dataframe]")
    source, expected = table
    example("with_dask.py", source, tmp_path / "vectors", TURKISH_MODEL)
    assert np.array_equal(vectors(tmp_path / "vectors"), expected)


def test_the_example_for_spark_without_a_cluster(table, monkeypatch):
    """What an executor does: a pickled function, an iterator of record batches, the schema that Spark was given."""
    monkeypatch.setenv("MODEL_MANAGER_DTYPE", "float32")
    source, expected = table
    code = runpy.run_path(str(ROOT / "examples" / "with_spark.py"))
    function = pickle.loads(pickle.dumps(code["embedder"](TURKISH_MODEL).map_arrow))
    made = pa.Table.from_batches(function(iter(pq.read_table(source).to_batches(max_chunksize=3))))
    assert code["SCHEMA"] == "id long, text string, embedding array<float>"
    assert made.schema.types == [pa.int64(), pa.string(), pa.list_(pa.float32())]
    assert np.array_equal(np.array(made["embedding"].to_pylist(), np.float32), expected)


@pytest.mark.timeout(120)
def test_the_example_for_spark(table, tmp_path):
    pytest.importorskip("pyspark", reason="needs pyspark, which is not among the tools of the tests, and Java")
    source, expected = table
    example("with_spark.py", source, tmp_path / "vectors", TURKISH_MODEL)
    assert np.array_equal(vectors(tmp_path / "vectors"), expected)


@pytest.mark.real
@pytest.mark.parametrize("name", EXPECTED)
def test_examples_run(name, minilm, multilingual, smollm2):
    environment = {
        **os.environ,
        "TURKISH_SENTENCE_MODEL": multilingual,
        "ENGLISH_FALLBACK_MODEL": minilm,
        "HUGGINGFACE_MODEL": smollm2,
    }
    process = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name)],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        env=environment,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    position = 0
    for expected in EXPECTED[name]:
        position = process.stdout.index(expected, position)
