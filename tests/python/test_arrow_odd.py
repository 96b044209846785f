"""Arrow columns of odd layouts, and damaged ones: the right texts or an error, and every structure is released once."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pyarrow as pa
import pytest
from conftest import tiny
from hypothesis import given, settings, strategies as st
from model_manager import errors

SLOT = "turkish_sentence"
TEXT = st.none() | st.sampled_from(["", "bir", "iki", "on iki baytı geçen bir metin", "👍", "a\0b"])
KINDS = (
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.uint32(), pa.large_string()),
)


@pytest.fixture(scope="module")
def manager():
    with tiny(cache_size=1000) as made:
        yield made


def array(texts, kind):
    if pa.types.is_dictionary(kind):
        # A value that no row has, a null among the values, and one value twice.
        values = [None, "no row has this", *dict.fromkeys(text for text in texts if text is not None)]
        values.append(values[-1])
        rows = [None if text is None else values.index(text) for text in texts]
        return pa.DictionaryArray.from_arrays(pa.array(rows, kind.index_type), pa.array(values, kind.value_type))
    return pa.array(texts, kind)


@st.composite
def columns(draw):
    """A column and its texts: slices of slices, empty chunks, null bitmaps that begin within a byte."""
    kind = draw(st.sampled_from(KINDS))
    chunks, expected = [], []
    for texts in draw(st.lists(st.lists(TEXT, max_size=20), min_size=1, max_size=3)):
        whole = array(texts, kind)
        first = draw(st.integers(0, len(texts)))
        second = draw(st.integers(0, len(texts) - first))
        length = draw(st.integers(0, len(texts) - first - second))
        chunks.append(whole.slice(first).slice(second, length))
        expected += texts[first + second :][:length]
    if len(chunks) == 1 and draw(st.booleans()):
        return chunks[0], expected
    return pa.chunked_array(chunks, kind), expected


@settings(max_examples=150, deadline=None, derandomize=True)
@given(columns())
def test_every_layout_has_the_vectors_of_its_texts(manager, column):
    column, texts = column
    vectors = pa.array(manager.embed_arrow(column, SLOT)).to_pylist()
    assert [vector is None for vector in vectors] == [text is None for text in texts]
    known = [text for text in texts if text is not None]
    expected = iter(manager.embed(known, SLOT))
    for vector in vectors:
        if vector is not None:
            np.testing.assert_array_equal(np.array(vector, np.float32), next(expected))


class Schema(ctypes.Structure):
    """`ArrowSchema` of Arrow's C interface."""


class Array(ctypes.Structure):
    """`ArrowArray` of Arrow's C interface."""


Schema._fields_ = [
    *[(name, ctypes.c_char_p) for name in ("format", "name", "metadata")],
    *[("flags", ctypes.c_int64), ("n_children", ctypes.c_int64)],
    *[(name, ctypes.c_void_p) for name in ("children", "dictionary", "release", "private_data")],
]
Array._fields_ = [
    *[(name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")],
    *[("buffers", ctypes.POINTER(ctypes.c_void_p)), ("children", ctypes.c_void_p), ("dictionary", ctypes.c_void_p)],
    *[("release", ctypes.c_void_p), ("private_data", ctypes.c_void_p)],
]


class Damaged:
    """The export of a sound array, with one field of a structure changed."""

    def __init__(self, whole, change):
        self.whole = whole
        self.change = change

    def __arrow_c_array__(self, requested_schema=None):
        schema, exported = self.whole.__arrow_c_array__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        of_schema = Schema.from_address(pointer(schema, b"arrow_schema"))
        of_array = Array.from_address(pointer(exported, b"arrow_array"))
        self.change(of_schema, of_array)
        return schema, exported


def changed(**values):
    """Sets fields of the array, or the format of its schema."""

    def change(schema, array):
        for name, value in values.items():
            setattr(schema if name == "format" else array, name, value)

    return change


def no_values(schema, array):
    array.buffers[array.n_buffers - 1] = None


DAMAGES = {
    "negative length": changed(length=-1),
    "negative offset": changed(offset=-1),
    "an offset beyond all memory": changed(offset=1 << 62),
    "a length beyond all memory": changed(length=1 << 62),
    "no buffers": changed(n_buffers=0),
    "one buffer": changed(n_buffers=1),
    "negative count of buffers": changed(n_buffers=-1),
    "no list of buffers": changed(buffers=None),
    "no values": no_values,
    "a negative count of nulls": changed(null_count=-2),
    "a count of nulls beyond the length": changed(null_count=4),
    "no nulls claimed, one marked": changed(null_count=0),
    "an unknown format": changed(format=b"?"),
    "an empty format": changed(format=b""),
    "a format that is no UTF-8": changed(format=b"\xff"),
    "no format": changed(format=None),
    "released": changed(release=None),
}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_structures_are_refused(manager, damage, kind):
    whole = array(["bir", None, "on iki baytı geçen bir metin"], kind)
    for embed in (manager.embed_arrow, manager.embed):
        with pytest.raises(errors.ArgumentError, match=r"the Arrow data (cannot be read|is damaged): ") as caught:
            embed(Damaged(whole, DAMAGES[damage]), SLOT)
        assert caught.value.param == "texts"
    # The array itself was not touched.
    assert len(manager.embed_arrow(whole, SLOT)) == 3


def test_every_refused_array_is_released(manager):
    gc.collect()
    before = pa.total_allocated_bytes()
    for damage in (change for name, change in DAMAGES.items() if name != "released"):
        made = array(["bir", None, "on iki baytı geçen bir metin"] * 1000, pa.string())
        with pytest.raises(errors.ArgumentError):
            manager.embed_arrow(Damaged(made, damage), SLOT)
    del made
    gc.collect()
    assert pa.total_allocated_bytes() == before


def test_capsules_are_read_once(manager):
    capsules = pa.array(["bir"]).__arrow_c_array__()

    class Again:
        def __arrow_c_array__(self, requested_schema=None):
            return capsules

    assert len(manager.embed_arrow(Again(), SLOT)) == 1
    with pytest.raises(errors.ArgumentError, match="the array was released, since it is read once"):
        manager.embed_arrow(Again(), SLOT)


def test_a_column_of_more_nulls_than_memory_holds_is_refused(manager):
    """It takes no memory where it comes from."""
    nulls = Damaged(pa.nulls(3), changed(length=1 << 47))
    with pytest.raises(errors.OutOfMemoryError):
        manager.embed_arrow(nulls, SLOT)


def test_buffers_that_are_not_aligned_are_read(manager):
    texts = ["bir", "on iki baytı geçen bir metin", "iki"]
    expected = manager.embed(texts, SLOT)
    for kind in KINDS:
        whole = array(texts, kind)
        keys = whole.indices if pa.types.is_dictionary(kind) else whole
        shifted = [
            None if buffer is None else pa.py_buffer(b"x" + buffer.to_pybytes()).slice(1) for buffer in keys.buffers()
        ]
        moved = pa.Array.from_buffers(keys.type, len(keys), shifted)
        if keys is not whole:
            moved = pa.DictionaryArray.from_arrays(moved, whole.dictionary, safe=False)
        np.testing.assert_array_equal(manager.embed(moved, SLOT), expected)
