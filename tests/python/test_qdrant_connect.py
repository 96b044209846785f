"""The address and the key of a Qdrant server, and the answers that ask for patience."""

from __future__ import annotations

import logging
import traceback
from datetime import datetime, timezone
from types import SimpleNamespace

import pytest
from model_manager.errors import ArgumentError
from model_manager.integrations.qdrant import Backoff, QdrantIndexer, StoreError
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_server import QdrantServer
from qdrants import SLOT, documents

pytestmark = pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    monkeypatch.delenv("QDRANT_URL", raising=False)
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


@pytest.fixture
def connect(shared):
    made = []

    def build(**settings):
        made.append(QdrantIndexer("notes", model=SLOT, manager=shared, **settings))
        return made[-1].client

    yield build
    for one in made:
        one.close()


def headers(client):
    return client._client._rest_headers


def test_a_key_without_its_line_end(connect, monkeypatch):
    monkeypatch.setenv("QDRANT_API_KEY", "secret-7\n")
    assert headers(connect(url="http://127.0.0.1:9"))["api-key"] == "secret-7"
    assert headers(connect(url="http://127.0.0.1:9", api_key=" secret-8 "))["api-key"] == "secret-8"
    monkeypatch.setenv("QDRANT_API_KEY", "\n")
    assert "api-key" not in headers(connect(url="http://127.0.0.1:9"))


@pytest.mark.parametrize("key", ["sekret-7\nx", "sekret-ş", "sekret 7", "sekret\x017"])
@pytest.mark.parametrize("name", ["api_key", "QDRANT_API_KEY"])
def test_a_key_that_no_header_can_hold_is_not_shown(connect, monkeypatch, name, key):
    settings = {"url": "http://127.0.0.1:9"}
    if name == "api_key":
        settings["api_key"] = key
    else:
        monkeypatch.setenv(name, key)
    with pytest.raises(ArgumentError, match=rf"{name} \(hidden\): a key holds only printable ASCII") as error:
        connect(**settings)
    assert error.value.param == name
    assert "sekret" not in "".join(traceback.format_exception(error.value))


def test_the_key_of_a_callers_client_is_not_shown(shared, caplog):
    caplog.set_level(logging.DEBUG, "model_manager")
    pauses = []
    with QdrantServer() as server:
        client = QdrantClient(url=server.url, api_key="sekret-7\n", check_compatibility=False)
        indexer = QdrantIndexer("notes", client, SLOT, manager=shared)
        indexer._store.sleep = pauses.append
        with pytest.raises(StoreError, match=r"a header of the request cannot be sent.*line end") as error:
            indexer._store.exists()
        client.close()
    assert not error.value.transient
    assert pauses == []
    shown = [record.getMessage() for record in caplog.records if record.name.startswith("model_manager")]
    assert "sekret" not in "".join([*traceback.format_exception(error.value), *shown])


@pytest.mark.parametrize(
    ("asked", "pause"),
    [("1.5", 1.5), ("Sun, 29 Nov 2026 12:00:20 GMT", 20), ("Sun, 29 Nov 2026 11:00:00 GMT", 0.25), ("soon", 0.25)],
)
def test_a_pause_that_is_no_whole_number(make_indexer, fake, monkeypatch, asked, pause):
    now = datetime(2026, 11, 29, 12, tzinfo=timezone.utc).timestamp()
    monkeypatch.setattr("model_manager.integrations.qdrant.store.time", SimpleNamespace(time=lambda: now))
    with pytest.raises(QdrantException) as refused:
        ResourceExhaustedResponse("slow down", asked)
    pauses = []
    indexer = make_indexer(fake, backoff=Backoff())
    indexer._store.sleep = pauses.append
    fake.faults = [refused.value]
    assert indexer.add_documents(documents(1)).indexed == 1
    assert pauses == [pause]


@pytest.mark.parametrize(
    ("url", "key", "address"),
    [
        ("qdrant:6333", None, "http://qdrant:6333"),
        ("localhost:6333", None, "http://localhost:6333"),
        ("127.0.0.1:6333", None, "http://127.0.0.1:6333"),
        ("qdrant", None, "http://qdrant:6333"),
        ("qdrant:6333", "secret-7", "https://qdrant:6333"),
        ("localhost:6333", "secret-7", "https://localhost:6333"),
        ("http://qdrant:6333/base\n", "secret-7", "http://qdrant:6333/base"),
    ],
)
def test_an_address_without_a_scheme(connect, url, key, address):
    assert connect(url=url, api_key=key)._client.rest_uri == address


@pytest.mark.parametrize("variable", ["", "http://qdrant:6333"])
def test_an_empty_address_is_no_folder(connect, monkeypatch, tmp_path, variable):
    monkeypatch.setenv("QDRANT_URL", variable)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match="url is empty") as error:
        connect(url="")
    assert error.value.param == "url"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["http://", "http://qdrant:x", "http://qdrant:99999", "http://[::1", "ftp://qdrant", "qdrant:x", "a b:1"]
)
@pytest.mark.parametrize("name", ["url", "QDRANT_URL"])
def test_what_is_no_address(connect, monkeypatch, name, url):
    if name == "QDRANT_URL":
        monkeypatch.setenv(name, url)
    with pytest.raises(ArgumentError, match=rf"^{name}=.*must look like http://localhost:6333") as error:
        connect(**({"url": url} if name == "url" else {}))
    assert error.value.param == name
