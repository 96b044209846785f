"""Ollama's API: lists of models, and what is not served."""

from __future__ import annotations

import pytest
from conftest import DIMENSION
from generation_servers import TURN
from generators import CONTEXT, GREEDY, SLOT
from test_server_ollama import CHAT, GENERATE, post, refused


def test_lists_of_models(serve, make_writer):
    server = serve(make_writer())
    before = server.client.get("/api/tags").json()["models"]
    names = [model["name"] for model in before]
    assert {"tiny:latest", "text-embedding-3-small:latest", f"{SLOT}:latest"} <= set(names)
    assert len(names) == len(set(names))
    assert all(model["model"] == model["name"] and len(model["digest"]) == 64 for model in before)
    assert {model["size"] for model in before} == {0}
    assert server.client.get("/api/ps").json() == {"models": []}
    for name in names:
        assert post(server, "/api/show", model=name)["model_info"] == {}
    assert server.manager.stats()["tracker"]["load_counts"] == {}, "lists load nothing"
    post(server, "/api/embed", model="tiny", input="a")
    post(server, "/api/generate", model=SLOT)
    after = {model["name"]: model for model in server.client.get("/api/tags").json()["models"]}
    assert after["tiny:latest"]["size"] == server.manager.describe("tiny")["bytes"]
    assert after["tiny:latest"]["details"]["family"] == "bert"
    assert after["tiny:latest"]["details"]["quantization_level"] == "F32"
    known = server.manager.describe_generator(SLOT)
    details = after[f"{SLOT}:latest"]["details"]
    assert (details["family"], known["dtype"]) == (known["architecture"], "float32")
    assert details["quantization_level"] == "F32"
    running = server.client.get("/api/ps").json()["models"]
    assert {model["details"]["family"] for model in running} == {"bert", known["architecture"]}
    assert {model["slot"]: model["context_length"] for model in running}[SLOT] == CONTEXT
    assert {model["name"] for model in running} == {"tiny:latest", f"{SLOT}:latest"}
    assert all(model["digest"] == after[model["name"]]["digest"] for model in running)
    shown = post(server, "/api/show", name="tiny")
    assert shown["capabilities"] == ["embedding"]
    assert shown["model_info"]["bert.embedding_length"] == DIMENSION
    assert shown["model_info"]["bert.context_length"] == server.manager.describe("tiny")["max_length"]
    shown = post(server, "/api/show", model=SLOT, verbose=True)
    assert shown["capabilities"] == ["completion"]
    assert [size for name, size in shown["model_info"].items() if name.endswith(".context_length")] == [CONTEXT]


def test_lists_of_models_are_no_use_of_them(serve, make_writer):
    """A use without a keep_alive would replace that of the latest request."""
    manager = make_writer()
    manager.set_auto_cleanup(True, 300, 600)
    server = serve(manager)
    for body in ({"model": SLOT}, GENERATE):
        assert (
            server.client.post("/api/generate", json={**body, "keep_alive": "2h", "stream": False}).status_code == 200
        )
        for _ in range(2):
            (one,) = server.client.get("/api/ps").json()["models"]
            assert one["details"]["family"]
            post(server, "/api/show", model=SLOT)
            server.client.get("/api/tags")
        assert manager.stats()["slots"][SLOT]["unload_in_seconds"] > 7000
        manager.unload(SLOT)


def test_a_model_that_stays_beyond_the_last_year_is_listed(server):
    post(server, "/api/embed", model="tiny", input="a new text", keep_alive="999999999h")
    (one,) = server.client.get("/api/ps").json()["models"]
    assert one["expires_at"] == "9999-12-31T23:59:59Z"


def test_the_root_and_the_version(server):
    """Ollama's clients look for a server with HEAD /."""
    assert server.client.head("/").status_code == 200
    assert server.client.get("/api/version").json()["version"].count(".") == 2


@pytest.mark.parametrize("path", ["pull", "push", "create", "copy"])
def test_clients_do_not_change_the_models(server, path):
    assert "settings" in refused(server.client.post(f"/api/{path}", json={"model": "tiny"}), 403)
    assert "settings" in refused(server.client.request("DELETE", "/api/delete", json={"model": "tiny"}), 403)
    blob = f"/api/blobs/sha256:{'0' * 64}"
    assert "settings" in refused(server.client.post(blob, content=b"GGUF"), 403)


@pytest.mark.parametrize("path", ["/api/me", "/api/ps/x", "/api/v1/chat/completions"])
def test_unknown_paths_of_the_api_answer_in_its_form(server, path):
    assert path in refused(server.client.post(path, json={}), 404)


def test_a_message_of_the_assistant_at_the_end_is_continued(gpt2_server):
    begun = [*TURN, {"role": "assistant", "content": "Selam "}]
    text = gpt2_server.manager.apply_chat_template(begun, continue_final_message=True)
    expected = gpt2_server.manager.generate(text, **GREEDY, max_new_tokens=8)
    body = {"model": SLOT, "messages": begun, "options": {"temperature": 0, "num_predict": 8}, "stream": False}
    assert post(gpt2_server, "/api/chat", **body)["message"] == {"role": "assistant", "content": expected}
    last = [*TURN, {"role": "assistant", "content": ""}]
    assert post(gpt2_server, "/api/chat", **{**CHAT, "messages": last, "stream": False})["done"]
