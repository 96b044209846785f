"""One document: the id of its point, its payload, its content hash, and the cases that are refused."""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import date, datetime, timedelta, timezone
from enum import Enum, IntEnum

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from model_manager.integrations.qdrant import point_id
from model_manager.integrations.qdrant.documents import OWN_FIELDS, prepare

text = st.text(st.characters(exclude_categories=["Cs"]))
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@given(text)
def test_a_points_id_is_the_md5_of_the_documents(given_id):
    assert point_id(given_id) == str(uuid.UUID(hashlib.md5(given_id.encode()).hexdigest()))


@given(st.lists(text, unique=True, max_size=50))
def test_different_ids_have_different_points(ids):
    assert len({point_id(one) for one in ids}) == len(ids)


@given(st.integers())
def test_a_number_is_the_same_id_as_its_digits(number):
    assert point_id(number) == point_id(str(number))
    assert prepare({"text": "a", "id": number}, 0, "").point_id == point_id(number)


@given(
    text.filter(str.strip),
    st.dictionaries(text.filter(lambda name: name not in OWN_FIELDS), plain, max_size=5),
    text.filter(bool),
)
def test_the_payload_is_json_and_keeps_the_metadata(words, metadata, identity):
    made = prepare({"text": words, "id": identity, "metadata": metadata}, 3, "model")
    assert json.loads(json.dumps(made.payload)) == made.payload
    assert {key: value for key, value in made.payload.items() if key not in OWN_FIELDS} == metadata
    assert made.payload["text"] == words
    assert made.payload["text_length"] == len(words)
    assert made.payload["word_count"] == len(words.split())
    assert made.payload["original_doc_id"] == identity
    assert datetime.fromisoformat(made.payload["indexed_at"]).tzinfo == timezone.utc
    again = prepare({"metadata": dict(reversed(metadata.items())), "id": identity, "text": words}, 9, "model")
    assert (again.point_id, again.content_hash) == (made.point_id, made.content_hash)


@pytest.mark.parametrize(
    "other",
    [
        ({"text": "another", "id": 1, "metadata": {"a": 1}}, "model"),
        ({"text": "text", "id": 1, "metadata": {"a": 2}}, "model"),
        ({"text": "text", "id": 1}, "model"),
        ({"text": "text", "id": 1, "metadata": {"a": 1}}, "other model"),
    ],
)
def test_the_content_hash_is_of_text_metadata_and_model(other):
    first = prepare({"text": "text", "id": 1, "metadata": {"a": 1}}, 0, "model")
    assert prepare(other[0], 0, other[1]).content_hash != first.content_hash


@pytest.mark.parametrize("number", [np.int64(7), np.uint8(7), np.int32(7)])
def test_an_id_may_be_numpys(number):
    """Rows of frames have such ids."""
    made = prepare({"id": number, "text": "a text"}, 0, "f")
    assert made.point_id == point_id(7)
    assert (type(made.payload["original_doc_id"]), made.payload["original_doc_id"]) == (int, 7)


def test_without_an_id_every_point_is_new():
    first, second = prepare("a text", 0, ""), prepare({"text": "a text"}, 1, "")
    assert first.point_id != second.point_id
    assert uuid.UUID(first.point_id).version == 4
    assert first.payload["original_doc_id"] is None


def test_metadata_of_common_types():
    metadata = {
        "day": date(2024, 2, 29),
        "uuid": uuid.UUID(int=1),
        "numbers": np.arange(3),
        "number": np.float32(0.5),
        "set": {2, 1},
        "tuple": (1, 2),
        "nanoseconds": np.datetime64("2024-02-29T12:30:00", "ns"),
        "days": np.array(["2024-02-29", "2024-03-01"], "datetime64[ns]"),
        "stamp": pd.Timestamp("2024-02-29 12:30", tz="UTC"),
    }
    payload = prepare({"text": "a", "metadata": metadata}, 0, "").payload
    assert {key: payload[key] for key in metadata} == {
        "day": "2024-02-29",
        "uuid": "00000000-0000-0000-0000-000000000001",
        "numbers": [0, 1, 2],
        "number": 0.5,
        "set": [1, 2],
        "tuple": [1, 2],
        "nanoseconds": "2024-02-29T12:30",
        "days": ["2024-02-29", "2024-03-01"],
        "stamp": "2024-02-29T12:30:00+00:00",
    }


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"text": ""}, "its text is empty"),
        ({"text": " \n\t"}, "its text is empty"),
        ("", "its text is empty"),
        ({}, "its 'text' must be a str, not NoneType"),
        ({"text": b"bytes"}, "its 'text' must be a str, not bytes"),
        ({"text": "a", "title": "b", "author": "c"}, "unknown keys author, title: put them into 'metadata'"),
        ({"text": "a", "id": 1.5}, "its 'id' must be a str or an int, not float"),
        ({"text": "a", "id": ""}, "its id is empty: leave the id out"),
        ({"text": "a", "id": True}, "its 'id' must be a str or an int, not bool"),
        (
            {"text": "a", "metadata": {"text": "b"}},
            "its metadata has the name 'text', which the indexer uses .* rename it",
        ),
        (
            {"text": "a", "metadata": {"word_count": 9, "indexed_at": "2020", "lang": "tr"}},
            "its metadata has the name 'indexed_at', 'word_count', which the indexer uses itself: rename it",
        ),
        ({"text": "a", "metadata": [1]}, "its 'metadata' must be a mapping, not list"),
        ({"text": "a", "metadata": {"x": object()}}, "its metadata is not JSON: object has no JSON form"),
        ({"text": "a", "metadata": {"x": float("nan")}}, "its metadata is not JSON"),
        ({"text": "a", "metadata": {"x": pd.NaT}}, "its metadata is not JSON: NaT is no time"),
        ({"text": "a", "metadata": {"x": np.datetime64("NaT", "ns")}}, "its metadata is not JSON: NaT is no time"),
        ({"text": "a", "metadata": {"x": np.timedelta64(1, "ns")}}, "timedelta64 has no JSON form"),
        ({"text": "a", "metadata": {"x": timedelta(1)}}, "timedelta has no JSON form"),
        ({"text": "a\ud800"}, "a lone surrogate"),
        ({"text": "a", "id": "\udfff"}, "a lone surrogate"),
        ({"text": "a", "metadata": {"x": "\ud800"}}, "a lone surrogate"),
        (7, "a document must be a mapping with the key 'text', or a str, not int"),
        (ValueError("line 3 is not JSON"), "line 3 is not JSON"),
    ],
)
def test_what_is_no_document(document, message):
    with pytest.raises((TypeError, ValueError), match=message):
        prepare(document, 0, "")


def test_endless_metadata():
    endless = {}
    endless["again"] = endless
    with pytest.raises(ValueError, match="its metadata is not JSON"):
        prepare({"text": "a", "metadata": endless}, 0, "")


class Name(str, Enum):
    FIRST = "x"


class Number(IntEnum):
    SECOND = 2


def test_the_id_of_an_enumeration_is_its_value():
    assert point_id(Name.FIRST) == point_id("x")
    assert point_id(Number.SECOND) == point_id(2) == point_id("2")
    made = prepare({"text": "a", "id": Name.FIRST}, 0, "")
    assert (made.id, made.point_id) == ("x", point_id("x"))
    assert type(made.payload["original_doc_id"]) is str
