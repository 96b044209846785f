"""Arrow columns in, Arrow vectors out; frames; batches for other engines; Parquet files."""

from __future__ import annotations

import decimal
import gc
import io
import pickle
import subprocess
import sys

import duckdb
import nanoarrow
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ENGLISH_MODEL, FIXTURES, TURKISH_MODEL, tiny
from model_manager import errors, resident_bytes
from model_manager.batch import BatchEmbedder
from model_manager.frames import embed_frame

TEXTS = ["Bugün hava çok güzel", "", "çok uzun bir metin, on iki baytı geçer", "The weather 👍", "bir"]
PROMPTS = str(FIXTURES / "bert_prompts")
RERANKER = str(FIXTURES / "rerank_bert")
WITH_NULLS = [TEXTS[0], None, TEXTS[2], None]
SLOT = "turkish_sentence"


@pytest.fixture(scope="module")
def manager():
    with tiny() as made:
        yield made


@pytest.fixture(scope="module")
def expected(manager):
    return manager.embed(TEXTS, SLOT)


def chunked(texts, kind):
    return pa.chunked_array([pa.array(texts[:2], kind), pa.array([], kind), pa.array(texts[2:], kind)], kind)


COLUMNS = {
    "string": lambda texts: pa.array(texts, pa.string()),
    "large_string": lambda texts: pa.array(texts, pa.large_string()),
    "string_view": lambda texts: pa.array(texts, pa.string_view()),
    "dictionary": lambda texts: pa.array(texts, pa.string()).dictionary_encode(),
    "dictionary of int8": lambda texts: pa.array(texts).cast(pa.dictionary(pa.int8(), pa.string())),
    "chunked": lambda texts: chunked(texts, pa.string()),
    "slice": lambda texts: pa.array(["before", *texts, "after"]).slice(1, len(texts)),
    "slice of a slice": lambda texts: pa.array(["a", "b", *texts, "c"]).slice(1).slice(1, len(texts)),
    "polars": pl.Series,
    "polars categorical": lambda texts: pl.Series(texts, dtype=pl.Categorical),
    "pandas": lambda texts: pd.Series(texts, dtype="string[pyarrow]"),
    "nanoarrow": lambda texts: nanoarrow.Array(texts, nanoarrow.string()),
}
if not hasattr(pd.Series, "__arrow_c_stream__"):
    del COLUMNS["pandas"]  # before pandas 3, which needs Python 3.11


# --- The core --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", COLUMNS)
def test_every_form_of_column_gives_the_vectors_of_the_list(manager, expected, form):
    column = COLUMNS[form](TEXTS)
    vectors = manager.embed_arrow(column, SLOT)
    assert (len(vectors), vectors.dimension, vectors.null_count) == (5, 32, 0)
    assert np.array_equal(np.asarray(vectors), expected)
    assert np.array_equal(manager.embed(column, SLOT), expected)


@pytest.mark.parametrize("form", COLUMNS)
def test_a_null_has_a_null_vector(manager, form):
    vectors = manager.embed_arrow(COLUMNS[form](WITH_NULLS), SLOT)
    assert vectors.null_count == 2
    rows = pa.array(vectors).to_pylist()
    assert [row is None for row in rows] == [False, True, False, True]
    whole = manager.embed([TEXTS[0], TEXTS[2]], SLOT)
    assert np.array_equal(np.array(rows[2], np.float32), whole[1])
    assert np.isnan(np.asarray(vectors)).all(axis=1).tolist() == [False, True, False, True]
    with pytest.raises(errors.ArgumentError, match=r"texts\[1\] is null"):
        manager.embed(COLUMNS[form](WITH_NULLS), SLOT)


def test_columns_of_nothing(manager):
    empty = manager.embed_arrow(pa.array([], pa.string()), SLOT)
    assert (len(empty), pa.array(empty).type) == (0, pa.list_(pa.float32(), 32))
    nothing = manager.embed_arrow(pa.nulls(3), SLOT)
    assert pa.array(nothing).to_pylist() == [None] * 3
    assert manager.embed(pa.array([], pa.string()), SLOT).shape == (0, 32)


def test_libraries_share_the_memory_of_the_result(manager, expected):
    vectors = manager.embed_arrow(pa.array(TEXTS), SLOT)
    made = pa.array(vectors)
    assert made.type == pa.list_(pa.float32(), 32)
    made.validate(full=True)
    address = np.asarray(vectors).__array_interface__["data"][0]
    assert made.values.buffers()[1].address == address
    assert pl.Series("v", vectors).dtype == pl.Array(pl.Float32, 32)
    assert np.array_equal(pl.Series("v", vectors).to_numpy(), expected)
    assert pl.Series("v", vectors).dtype.shape == (32,)
    assert nanoarrow.Array(vectors).schema.type == nanoarrow.Type.FIXED_SIZE_LIST
    assert not np.asarray(vectors).flags.writeable
    del vectors
    gc.collect()
    assert np.array_equal(np.stack(made.to_pylist()).astype(np.float32), expected)  # kept alive by pyarrow alone
    assert "5 x 32, 1 null" in repr(manager.embed_arrow(pa.array([*TEXTS[:4], None]), SLOT))


def test_every_structure_is_released_once(manager):
    column = pa.array(TEXTS)
    vectors = manager.embed_arrow(column, SLOT)
    before = pa.total_allocated_bytes()
    for _ in range(200):
        pa.array(vectors)
        vectors.__arrow_c_array__()
        vectors.__arrow_c_schema__()
        manager.embed_arrow(column.slice(1, 2), SLOT)
    gc.collect()
    assert pa.total_allocated_bytes() == before
    resident = resident_bytes()
    for _ in range(100_000):
        pa.array(vectors)
        vectors.__arrow_c_array__()
    gc.collect()
    # A schema that leaks takes more than 200 bytes. The rest is what other threads of the process allocate meanwhile.
    assert resident_bytes() - resident < 16 << 20


def test_options_are_those_of_embed(manager):
    column, done = pa.array(TEXTS), []
    vectors = manager.embed_arrow(
        column, SLOT, prompt="soru: ", normalize=False, truncate_dim=8, progress=lambda *at: done.append(at)
    )
    assert np.array_equal(
        np.asarray(vectors), manager.embed(TEXTS, SLOT, prompt="soru: ", normalize=False, truncate_dim=8)
    )
    assert done[-1] == (5, 5)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([1, 2]), "a column of Int64"),
        (pa.array([b"x"]), "a column of Binary"),
        (pa.table({"text": TEXTS}), "select one column"),
        (pl.DataFrame({"text": TEXTS}), "select one column"),
        (pa.array([["a"]]), "a column of List"),
    ],
)
def test_another_column_is_refused_by_name(manager, column, words):
    with pytest.raises(errors.ArgumentError, match=words) as caught:
        manager.embed_arrow(column, SLOT)
    assert caught.value.param == "texts"


def test_what_is_no_arrow_data_is_refused(manager):
    for wrong in (TEXTS, "text", np.ones(3), pa.Array):
        with pytest.raises(TypeError, match="must export an Arrow column"):
            manager.embed_arrow(wrong, SLOT)


def test_token_ids_of_a_series_are_still_ids(manager):
    ids = [[2, 5, 7, 3], [2, 9, 3]]
    assert np.array_equal(manager.embed(pl.Series(ids), SLOT), manager.embed(ids, SLOT))
    assert np.array_equal(manager.embed(pa.array(ids).to_pylist(), SLOT), manager.embed(ids, SLOT))


def test_a_frame_is_not_taken_for_its_columns(manager):
    with pytest.raises(errors.ArgumentError, match="select one column"):
        manager.embed(pl.DataFrame({"text": TEXTS}), SLOT)


def test_damaged_data_is_an_error(manager):
    def strings(offsets, data):
        buffers = [None, np.array(offsets, np.int32), data]
        return nanoarrow.c_array_from_buffers(nanoarrow.string(), len(offsets) - 1, buffers, validation_level="none")

    assert len(manager.embed_arrow(strings([0, 4, 8], b"birrikii"), SLOT)) == 2
    for damaged in (
        strings([0, 99, 8], b"abcdefgh"),
        strings([0, 5, 3], b"abcdefgh"),
        strings([0, 4, -1], b"abcdefgh"),
        strings([0, 2], b"\xff\xfe"),
    ):
        with pytest.raises(errors.ArgumentError, match="is damaged"):
            manager.embed_arrow(damaged, SLOT)


class Exporter:
    """An object whose export is `result`, or raises it."""

    def __init__(self, result):
        self.result = result

    def __arrow_c_stream__(self, requested_schema=None):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_wrong_exports_are_errors(manager):
    array, stream = pa.array(TEXTS), pa.chunked_array([TEXTS]).__arrow_c_stream__()
    with pytest.raises(TypeError):
        manager.embed_arrow(Exporter(3), SLOT)
    with pytest.raises(ValueError, match="incorrect name"):
        manager.embed_arrow(Exporter(array.type.__arrow_c_schema__()), SLOT)
    with pytest.raises(ZeroDivisionError):
        manager.embed_arrow(Exporter(ZeroDivisionError()), SLOT)
    with pytest.raises(TypeError, match="must export"):
        manager.embed_arrow(Exporter(ImportError("needs pyarrow")), SLOT)
    manager.embed_arrow(Exporter(stream), SLOT)
    with pytest.raises(errors.ArgumentError, match="released"):
        manager.embed_arrow(Exporter(stream), SLOT)  # a stream is read once

    def failing():
        raise AssertionError("a frame is refused before it is read")
        yield

    reader = pa.RecordBatchReader.from_batches(pa.schema({"x": pa.string()}), failing())
    with pytest.raises(errors.ArgumentError, match="select one column"):
        manager.embed_arrow(reader, SLOT)


# --- Frames ----------------------------------------------------------------------------------------------------------


def frames(texts):
    return {
        "polars": pl.DataFrame({"id": list(range(len(texts))), "text": texts}),
        "table": pa.table({"id": list(range(len(texts))), "text": texts}),
        "batch": pa.record_batch({"id": list(range(len(texts))), "text": texts}),
        "pandas": pd.DataFrame({"id": list(range(len(texts))), "text": texts}, index=[7, 3, 5, 1][: len(texts)]),
        "pandas objects": pd.DataFrame({"id": list(range(len(texts))), "text": pd.Series(texts, dtype=object)}),
        "duckdb": duckdb.connect().from_arrow(pa.table({"id": list(range(len(texts))), "text": texts})),
    }


def names(frame):
    return list(frame.schema.names if isinstance(frame, pa.Table | pa.RecordBatch) else frame.columns)


def column(frame, name):
    if isinstance(frame, pd.DataFrame):
        return [None if value is None else np.asarray(value).tolist() for value in frame[name]]
    if isinstance(frame, duckdb.DuckDBPyRelation):
        return frame.to_arrow_table().column(name).to_pylist()
    values = frame[name].to_list() if isinstance(frame, pl.DataFrame) else frame.column(name).to_pylist()
    return [None if value is None else list(value) for value in values]


@pytest.mark.parametrize("kind", frames(WITH_NULLS))
def test_a_frame_keeps_its_kind_and_gets_a_column(manager, kind):
    frame = frames(WITH_NULLS)[kind]
    made = embed_frame(frame, "text", manager=manager, model=SLOT)
    assert type(made) is type(frame)
    whole = manager.embed([TEXTS[0], TEXTS[2]], SLOT)
    assert column(made, "embedding") == [whole[0].tolist(), None, whole[1].tolist(), None]
    assert "embedding" not in names(frame)
    assert names(made) == ["id", "text", "embedding"]
    if isinstance(frame, pd.DataFrame):
        assert made.index.tolist() == frame.index.tolist()
    again = embed_frame(made, "text", manager=manager, model=SLOT, dimensions=4)
    first = column(again, "embedding")[0]
    assert len(first) == 4
    with pytest.raises(errors.ArgumentError, match="no column 'body'; it has: id, text"):
        embed_frame(frame, "body", manager=manager, model=SLOT)


@pytest.mark.parametrize("name", ["made", "table", "frame", "vectors", "model_manager_frame"])
def test_a_table_of_the_database_is_not_taken_for_the_result(manager, name):
    connection = duckdb.connect()
    connection.execute(f'create table "{name}" as select 999 as secret')
    made = embed_frame(connection.sql("select 'bir' as text"), "text", manager=manager, model=SLOT)
    assert names(made) == ["text", "embedding"]
    assert column(made, "embedding") == [manager.embed("bir", SLOT).tolist()]


def test_a_table_of_the_results_own_name_is_refused(manager):
    connection = duckdb.connect()
    connection.execute("create table _model_manager_vectors_5f1c2a as select 999 as secret")
    with pytest.raises(errors.InputError, match="rename it"):
        embed_frame(connection.sql("select 'bir' as text"), "text", manager=manager, model=SLOT)


def test_other_frames_are_refused(manager):
    with pytest.raises(TypeError, match="collect"):
        embed_frame(pl.LazyFrame({"text": TEXTS}), "text", manager=manager)
    with pytest.raises(TypeError, match=r"not builtins\.dict"):
        embed_frame({"text": TEXTS}, "text", manager=manager)
    with pytest.raises(errors.ArgumentError, match="Int64"):
        embed_frame(pl.DataFrame({"text": [1]}), "text", manager=manager, model=SLOT)


def test_a_column_without_a_type_is_read(manager):
    # Polars exports it with a buffer that Arrow's own type of nulls does not have.
    for column in (pl.Series([None, None]), pl.Series([None, None], dtype=pl.String), pa.nulls(2)):
        assert manager.embed_arrow(column, SLOT).null_count == 2


def test_a_column_of_nulls_only(manager):
    for frame in (
        pl.DataFrame({"text": [None, None]}),
        pa.table({"text": pa.nulls(2)}),
        pd.read_csv(io.StringIO("id,text\n1,\n2,\n")),  # a column of float64
        pd.DataFrame({"text": pd.Categorical([None, None])}),
    ):
        made = embed_frame(frame, "text", manager=manager, model=SLOT)
        assert column(made, "embedding") == [None, None]


def test_a_pandas_column_without_rows(manager):
    for frame in (pd.DataFrame({"text": []}), pd.DataFrame({"text": ["a"]})[:0]):
        assert column(embed_frame(frame, "text", manager=manager, model=SLOT), "embedding") == []
        assert len(BatchEmbedder(TURKISH_MODEL, config={"dtype": "float32"})(frame)) == 0


@pytest.mark.filterwarnings("ignore:Passing a BlockManager:DeprecationWarning")  # of pandas 2, for such classes
def test_a_class_derived_from_a_frame(manager):
    class GeoDataFrame(pd.DataFrame):
        pass

    made = embed_frame(GeoDataFrame({"text": ["bir"]}), "text", manager=manager, model=SLOT)
    assert column(made, "embedding") == [manager.embed("bir", SLOT).tolist()]


def test_without_pyarrow_the_extra_is_named(manager, monkeypatch):
    batcher = BatchEmbedder(TURKISH_MODEL, config={"dtype": "float32", "threads": 1})
    table = pa.record_batch({"text": TEXTS})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    frame = pd.DataFrame({"text": pd.Series(["a"], dtype=object)})
    for call in (
        lambda: embed_frame(frame, "text", manager=manager, model=SLOT),
        lambda: batcher(frame),
        lambda: next(batcher.map_arrow([table])),
    ):
        with pytest.raises(ModuleNotFoundError, match=r"model-manager-rs\[arrow\]"):
            call()


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["a", None, 3], "row 2 of the column 'text' is a int, not a str"),
        (["a", "\ud800"], "row 1 of the column 'text' holds"),
    ],
)
def test_what_is_no_text_in_a_pandas_frame_is_named(manager, texts, words):
    frame = pd.DataFrame({"text": pd.Series(texts, dtype=object)})
    with pytest.raises(errors.InputError, match=words) as raised:
        embed_frame(frame, "text", manager=manager, model=SLOT)
    assert isinstance(raised.value, TypeError) == ("not a str" in str(raised.value))


def test_names_of_columns(manager):
    two = [pa.array(["a"]), pa.array(["b"])]
    for frame in (
        pa.Table.from_arrays(two, names=["text", "text"]),
        pd.DataFrame([["a", "b"]], columns=["text", "text"]),
    ):
        with pytest.raises(errors.ArgumentError, match="several columns 'text'"):
            embed_frame(frame, "text", manager=manager, model=SLOT)
    numbered = pd.DataFrame({0: ["a"]})
    assert names(embed_frame(numbered, 0, manager=manager, model=SLOT)) == [0, "embedding"]
    with pytest.raises(errors.ArgumentError, match="no column '0'; it has: 0"):
        embed_frame(numbered, "0", manager=manager, model=SLOT)


def test_two_columns_of_the_new_name_are_refused(manager):
    names = ["text", "embedding", "embedding"]
    for frame in (pa.Table.from_arrays([pa.array(["a"])] * 3, names=names), pd.DataFrame([["a", 1, 2]], columns=names)):
        with pytest.raises(errors.ArgumentError, match="several columns 'embedding'") as caught:
            embed_frame(frame, "text", manager=manager, model=SLOT)
        assert caught.value.param == "output"


# --- Batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batcher():
    return BatchEmbedder(TURKISH_MODEL, config={"dtype": "float32", "threads": 1})


@pytest.fixture(scope="module")
def documents(manager):
    from model_manager._embedder import Embedder

    return Embedder(manager, TURKISH_MODEL).documents(TEXTS)


def test_a_batch_of_every_kind(batcher, documents):
    assert np.array_equal(batcher(TEXTS), documents)
    made = batcher({"text": np.array(TEXTS, object), "id": np.arange(5)})
    assert np.array_equal(made["embedding"], documents)
    assert made["id"].tolist() == [0, 1, 2, 3, 4]
    table = batcher(pa.table({"text": TEXTS}))
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), documents)
    frame = batcher(pd.DataFrame({"text": TEXTS}))
    assert np.array_equal(np.stack(frame["embedding"]), documents)
    with pytest.raises(TypeError, match=r"not builtins\.int"):
        batcher(3)
    with pytest.raises(errors.ArgumentError, match="no column 'text'"):
        batcher({"x": []})


def test_spark_and_dask_forms(batcher, documents):
    # mapInArrow gives an iterator of record batches and takes one.
    table = pa.table({"id": range(5), "text": TEXTS})
    made = pa.Table.from_batches(batcher.map_arrow(iter(table.to_batches(max_chunksize=2))))
    assert made.column_names == ["id", "text", "embedding"]
    assert made.schema.field("embedding").type == pa.list_(pa.float32()), "Spark reads no lists of a fixed size"
    assert np.array_equal(np.array(made["embedding"].to_pylist(), np.float32), documents)
    [gap] = batcher.map_arrow([pa.record_batch({"text": [TEXTS[0], None, TEXTS[2]]}).slice(1)])
    assert gap["embedding"].null_count == 1
    assert np.array_equal(np.array(gap["embedding"].to_pylist()[1], np.float32), documents[2])
    # map_partitions asks for the shape with an empty frame.
    frame = pd.DataFrame({"text": TEXTS})
    fresh = BatchEmbedder("no/such-model")
    assert list(fresh.map_partition(frame.iloc[:0]).columns) == ["text", "embedding"]
    assert np.array_equal(np.stack(batcher.map_partition(frame)["embedding"]), documents)


@pytest.mark.parametrize("column", ["abc", b"abc", {"a": "b"}])
def test_a_column_of_one_text_is_refused(column):
    with pytest.raises(TypeError, match=r"the column 'text' must be several texts, not one"):
        BatchEmbedder("no/such-model")({"text": column})


def test_a_batch_without_the_column_names_it():
    with pytest.raises(errors.ArgumentError, match="the batch has no column 'text'; it has: body, id") as raised:
        BatchEmbedder("no/such-model")({"body": ["a"], "id": [1]})
    assert raised.value.param == "column"


def test_a_dask_frame(batcher, documents):
    dask = pytest.importorskip("dask.dataframe")
    frame = dask.from_pandas(pd.DataFrame({"text": TEXTS}), npartitions=2)
    made = frame.map_partitions(batcher.map_partition, meta=batcher.map_partition(frame._meta))
    assert np.array_equal(np.stack(made.compute(scheduler="synchronous")["embedding"]), documents)


def test_a_pickle_holds_settings_only(batcher, documents):
    batcher(TEXTS[:1])
    data = pickle.dumps(batcher)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again._embedder is None
    assert np.array_equal(again(TEXTS), documents)
    assert again._embedder.manager is batcher._embedder.manager, "one model in a process"
    code = f"import pickle, sys; e = pickle.loads({data!r}); print(e(['bir'])[0, :2].tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str(documents[4, :2].tolist())


def test_a_text_without_a_vector_is_null_or_fails_its_batch(documents):
    texts = [TEXTS[0], "\ud800", None, float("nan"), 3, TEXTS[4]]
    settings = {"dtype": "float32", "threads": 1}
    tolerant = BatchEmbedder(TURKISH_MODEL, config=settings, on_error="null")
    rows = tolerant(texts)
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, True, True, True, False]
    assert np.array_equal(rows[[0, 5]], documents[[0, 4]])
    frame = tolerant(pd.DataFrame({"text": pd.Series(texts, dtype=object)}))
    assert frame["embedding"].isna().tolist() == [False, True, True, True, True, False]
    assert np.array_equal(np.stack(frame["embedding"][[0, 5]]), documents[[0, 4]])
    strict = BatchEmbedder(TURKISH_MODEL, config=settings)
    with pytest.raises(errors.InputError, match="lone surrogate"):
        strict(texts[:2])
    assert np.isnan(strict([None])).all()
    with pytest.raises(errors.ArgumentError, match="on_error"):
        BatchEmbedder(on_error="skip")
    with pytest.raises(errors.ConfigError):
        BatchEmbedder(config={"threads": -1})


@pytest.mark.parametrize("form", [list, lambda texts: {"text": texts}, lambda texts: pa.table({"text": texts})])
def test_mistakes_of_the_call_are_no_nulls(form):
    """Where no text is at fault, a null in every row would hide the mistake."""
    settings = {"dtype": "float32", "threads": 1}
    unknown = BatchEmbedder(PROMPTS, config=settings, on_error="null", prompt_name="querry")
    with pytest.raises(errors.ArgumentError, match="querry"):
        unknown(form(["a", "b"]))
    with pytest.raises(errors.TaskError):
        BatchEmbedder(RERANKER, config=settings, on_error="null")(form(["a", "b"]))
    with pytest.raises((errors.ArgumentError, TypeError), match=r"Int64|not a str"):
        BatchEmbedder(PROMPTS, config=settings, on_error="null")(form([1, 2]))


def test_an_error_names_the_row_of_the_batch():
    settings = {"dtype": "float32", "threads": 1}
    strict = BatchEmbedder(TURKISH_MODEL, config=settings)
    with pytest.raises(errors.ArgumentError, match=r"^texts\[2\] holds a lone surrogate"):
        strict([None, np.float32("nan"), "\ud800"])
    tolerant = BatchEmbedder(TURKISH_MODEL, config=settings, on_error="null")
    for odd in (np.array([1, 2]), ["a"], [], pd.DataFrame({"a": [1]}), {}):
        with pytest.raises(TypeError, match=f"^text 1 of the batch is a {type(odd).__name__}, not a str"):
            strict(["a", odd])
        assert np.isnan(tolerant(["a", odd])).all(axis=1).tolist() == [False, True]
    for missing in (decimal.Decimal("NaN"), np.float32("nan"), pd.NA, pd.NaT):
        assert np.isnan(strict(["a", missing])).all(axis=1).tolist() == [False, True]


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_parquet_files_get_a_column(command, tmp_path, manager):
    from model_manager._embedder import Embedder

    rows = [f"metin {number % 50}" for number in range(20_000)]
    pq.write_table(pa.table({"text": rows, "id": range(20_000)}), tmp_path / "in.parquet", row_group_size=3000)
    done = command("embed", tmp_path / "in.parquet", "-o", tmp_path / "out.parquet", "-m", ENGLISH_MODEL, "-d", 8)
    assert done.code == 0, done.err
    made = pq.read_table(tmp_path / "out.parquet")
    assert made.column_names == ["text", "id", "embedding"]
    assert made["embedding"].type == pa.list_(pa.float32(), 8)
    vectors = np.stack(made["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 8))
    expected = Embedder(manager, ENGLISH_MODEL, 8).documents(rows[:50])
    np.testing.assert_allclose(vectors[19_950:], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["in.parquet"], "name it with --output"),
        (["in.parquet", "-o", "out.jsonl"], "name it with --output"),
        (["in.parquet", "x.txt", "-o", "out.parquet"], "give only .parquet files"),
        (["in.parquet", "-o", "out.parquet", "--column", "body"], "no column 'body'"),
        (["damaged.parquet", "-o", "out.parquet"], "damaged.parquet"),
        (["none.parquet", "-o", "out.parquet"], "none.parquet"),
        (["twice.parquet", "-o", "out.parquet"], "twice.parquet: it has several columns 'text'"),
        (["in.parquet", "other.parquet", "-o", "out.parquet"], "other.parquet: its columns differ from those of in.p"),
        (["flipped.parquet", "-o", "out.parquet"], "flipped.parquet: "),
    ],
)
def test_wrong_parquet_calls(command, tmp_path, arguments, words):
    pq.write_table(pa.table({"text": TEXTS}), "in.parquet")
    pq.write_table(pa.table({"text": TEXTS, "id": range(5)}), "other.parquet")
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]), "twice.parquet")
    pages = bytearray((tmp_path / "in.parquet").read_bytes())
    pages[4:40] = b"\xff" * 36
    (tmp_path / "flipped.parquet").write_bytes(pages)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 but nothing else")
    done = command("embed", *arguments)
    assert done.code != 0
    assert words in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.glob("*out.parquet*"))
