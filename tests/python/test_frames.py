"""Names of columns in frames, and batches for other engines, in forms that are rare."""

from __future__ import annotations

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from conftest import TURKISH_MODEL
from model_manager import errors
from model_manager.batch import BatchEmbedder
from model_manager.frames import embed_frame

TEXTS = ["Bugün hava çok güzel", "The weather", "bir"]
SLOT = "turkish_sentence"


@pytest.fixture(scope="module")
def documents():
    return embedder()(TEXTS)


def embedder(**settings):
    return BatchEmbedder(TURKISH_MODEL, config={"dtype": "float32", "threads": 1}, **settings)


# --- Names -----------------------------------------------------------------------------------------------------------


def test_sql_names_have_no_case(manager):
    connection = duckdb.connect()
    relation = connection.sql("select 'bir' as Text, 1 as EMBEDDING, 2 as rest")
    made = embed_frame(relation, "text", manager=manager, model=SLOT)
    assert made.columns == ["Text", "EMBEDDING", "rest"]
    assert made.fetchall()[0][1] == tuple(manager.embed("bir", SLOT).tolist())
    with pytest.raises(errors.ArgumentError, match="no column 'body'; it has: Text"):
        embed_frame(relation, "body", manager=manager, model=SLOT)


def test_nothing_is_left_in_the_database(manager, tmp_path):
    connection = duckdb.connect(str(tmp_path / "texts.db"))
    connection.execute("create table notes as select 'bir' as text").fetchall()
    first, second = (embed_frame(connection.table("notes"), "text", manager=manager, model=SLOT) for _ in range(2))
    tables = connection.sql("select table_name from information_schema.tables").fetchall()
    assert tables == [("notes",)]
    assert first.fetchall() == second.fetchall() != []


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
@pytest.mark.parametrize("output", [5, None, ("a", "b")])
def test_the_new_column_has_a_text_as_its_name(manager, make, output):
    with pytest.raises(TypeError, match="output must be a str, not"):
        embed_frame(make({"text": TEXTS}), "text", output, manager=manager, model=SLOT)


def test_a_column_is_named(manager):
    for frame in (pl.DataFrame({"text": TEXTS}), pa.table({"text": TEXTS}), duckdb.sql("select 'bir' as text")):
        for column in (0, pl.col("text")):
            with pytest.raises(TypeError, match="column must be a str, not"):
                embed_frame(frame, column, manager=manager, model=SLOT)


def test_a_polars_without_arrow_columns_is_named(manager, monkeypatch):
    monkeypatch.setattr(pl, "__version__", "1.3.0")
    with pytest.raises(ImportError, match=r"polars 1\.3\.0 exports no Arrow columns: pip install 'polars>=1\.4'"):
        embed_frame(pl.DataFrame({"text": TEXTS}), "text", manager=manager, model=SLOT)


# --- Batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["raise", "null"])
@pytest.mark.parametrize("make", [pa.array, lambda texts: pa.chunked_array([texts[:1], texts[1:]]), pl.Series, tuple])
def test_columns_of_a_dict(documents, make, on_error):
    batcher = embedder(on_error=on_error)
    batcher(TEXTS)  # a batch before: what has no text then is no mistake of the call
    rows = batcher({"text": make([*TEXTS, None])})["embedding"]
    np.testing.assert_array_equal(rows[:3], documents)
    assert np.isnan(rows[3]).all()


@pytest.mark.parametrize("column", [None, 7])
def test_a_column_of_a_dict_is_several_texts(column):
    with pytest.raises(TypeError, match="the column 'text' must be several texts, not one"):
        embedder()({"text": column})


def damaged():
    """A column of a text, damaged UTF-8 and a text."""
    sizes = np.array([0, 3, 4, 7], np.int32)
    return pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(sizes.tobytes()), pa.py_buffer(b"bir\xffbir")])


@pytest.mark.parametrize("make", [lambda column: pa.table({"text": column}), lambda column: {"text": column}])
def test_damaged_utf8_is_null_or_fails_its_batch(documents, make):
    tolerant = embedder(on_error="null")
    found = tolerant(make(damaged()))["embedding"]
    rows = np.array([[np.nan] * documents.shape[1] if row is None else row for row in map(plain, found)], np.float32)
    np.testing.assert_array_equal(rows[[0, 2]], documents[[2, 2]])
    assert np.isnan(rows[1]).all()
    with pytest.raises((errors.InputError, TypeError)):
        embedder()(make(damaged()))


def plain(row):
    return row.as_py() if isinstance(row, pa.Scalar) else row


@pytest.mark.filterwarnings("ignore")  # Dask's own use of pandas
@pytest.mark.parametrize("schema", [None, {"embedding": pa.list_(pa.float32())}])
def test_dask_writes_partitions_without_rows(documents, tmp_path, schema):
    dask = pytest.importorskip("dask.dataframe")
    frame = dask.from_pandas(pd.DataFrame({"text": [*TEXTS, None], "keep": [1, 1, 0, 0]}), npartitions=2)
    frame = frame[frame["keep"] == 1]
    batcher = embedder()
    made = frame.map_partitions(batcher.map_partition, meta=batcher.map_partition(frame._meta))
    made.to_parquet(
        str(tmp_path), compute_kwargs={"scheduler": "synchronous"}, **({"schema": schema} if schema else {})
    )
    found = pd.read_parquet(tmp_path)
    np.testing.assert_array_equal(np.stack(found["embedding"]), documents[:2])
    computed = made.compute(scheduler="synchronous")
    np.testing.assert_array_equal(np.stack(computed["embedding"]), documents[:2])
