"""Ollama's API: `quantization_level`, the type of a model's weights."""

from __future__ import annotations

import gguf_files
import pytest
from conftest import FIXTURES
from embedding_server import EmbeddingServer
from generators import SLOT
from model_manager.server import ServedModel
from test_server_ollama import post


def levels(server, name):
    """What all lists say of it."""
    listed = [server.client.get(f"/api/{path}").json()["models"] for path in ("tags", "ps")]
    found = [model["details"] for models in listed for model in models if model["name"] == f"{name}:latest"]
    return [details["quantization_level"] for details in [*found, post(server, "/api/show", model=name)["details"]]]


@pytest.mark.parametrize(
    ("said", "level"), [({}, "Q8_0"), ({"general__file_type": 15}, "Q4_K_M"), ({"general__file_type": 1024}, "Q8_0")]
)
def test_a_gguf_file_has_its_own_type(serve, make_manager, tmp_path, said, level):
    manager = make_manager()
    manager.register("g", gguf_files.write(tmp_path / "g.gguf", **said))
    server = serve(manager, models=[ServedModel("g", slot="g")])
    post(server, "/api/embed", model="g", input="a")
    assert levels(server, "g") == [level] * 3
    assert manager.describe("g")["file_type"] == level


def test_a_generator_of_a_gguf_file_has_its_own_type(serve, make_writer, tmp_path):
    manager = make_writer(generator_model=gguf_files.write(tmp_path / "g.gguf", general__file_type=3))
    server = serve(manager)
    post(server, "/api/generate", model=SLOT)
    assert levels(server, SLOT) == ["Q4_1"] * 3
    assert manager.describe_generator(SLOT)["file_type"] == "Q4_1"


@pytest.mark.parametrize(
    ("dtype", "level"), [("float32", "F32"), ("bfloat16", "BF16"), ("int8", "Q8_0"), ("int4", "Q4_1")]
)
def test_other_files_have_that_of_the_memory(serve, make_manager, dtype, level):
    manager = make_manager()
    manager.register("m", str(FIXTURES / "bert_plain"), dtype=dtype)
    server = serve(manager, models=[ServedModel("m", slot="m")])
    post(server, "/api/embed", model="m", input="a")
    assert levels(server, "m") == [level] * 3
    assert manager.describe("m")["file_type"] is None


def test_that_of_a_served_model_is_not_known(serve, make_manager):
    manager = make_manager()
    with EmbeddingServer() as other:
        manager.register("m", other.ollama)
        server = serve(manager, models=[ServedModel("m", slot="m")])
        post(server, "/api/embed", model="m", input="a")
        assert set(levels(server, "m")) == {""}
