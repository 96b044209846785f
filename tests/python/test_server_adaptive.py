"""The server with `keep_alive="auto"` and cache tiers: hints, users, metrics, the data of the status page."""

from __future__ import annotations

import time

from conftest import tiny
from model_manager import ModelManager

MESSAGES = [{"role": "user", "content": "a"}]


def test_a_hint_for_a_model_with_a_fixed_stay_does_nothing(serve):
    server = serve()
    answer = server.client.post("/api/hint", json={"model": "tiny", "user": "ayşe"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["expected"] is False
    for body, param in [({"model": 5}, "model"), ({"model": "tiny", "user": 5}, "user")]:
        refused = server.client.post("/api/hint", json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == param
    assert server.client.post("/api/hint", json={"model": "nothing"}).status_code == 404
    models = {model["name"]: model for model in server.client.get("/api/status").json()["models"]}
    assert models["tiny"]["expected_in_seconds"] is None
    assert models["tiny"]["saved"] is None


def test_a_hint_loads_and_figures_are_shown(serve, tmp_path):
    with tiny(keep_alive="auto", adaptive_state=False, cache_disk=str(tmp_path)) as manager:
        server = serve(manager)
        hinted = server.client.post("/api/hint", json={"model": "tiny"}).json()
        assert hinted["expected"] is True
        slot = hinted["slot"]
        deadline = time.monotonic() + 20
        while not manager.is_loaded(slot) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert manager.is_loaded(slot)
        body = {"model": "tiny", "input": "one text", "user": "ayşe"}
        assert server.client.post("/v1/embeddings", json=body).status_code == 200
        models = {model["name"]: model for model in server.client.get("/api/status").json()["models"]}
        assert models[slot]["saved"]["cold_starts"] == 1
        metrics = server.client.get("/metrics").text
        assert 'cache_tier_working{tier="disk"} 1.0' in metrics
        assert f'fixed_cold_starts_total{{slot="{slot}"}} 1.0' in metrics
        assert f'_cold_starts_total{{slot="{slot}"}} 0.0' in metrics


def test_the_field_user_selects_whose_habits_count(serve, make_writer, monkeypatch):
    """What a user's habits lead to is tested in Rust, with a clock that is moved by hand."""
    server = serve(make_writer(keep_alive="auto", adaptive_state=False))
    seen = []
    for name in ("submit_response", "submit_generation", "hint"):
        original = getattr(ModelManager, name)

        def record(manager, *values, original=original, name=name, **options):
            seen.append((name, options.get("user", values[-1])))
            return original(manager, *values, **options)

        monkeypatch.setattr(ModelManager, name, record)
    user = {"user": "ayşe"}
    answers = [
        server.client.post("/v1/embeddings", json={"model": "tiny", "input": "one text", **user}),
        server.client.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1, **user}),
        server.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, **user}),
        server.client.post("/api/hint", json={"model": "tiny", **user}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4, [answer.text for answer in answers]
    names = ["submit_response", "submit_generation", "submit_generation", "hint"]
    assert seen == [(name, "ayşe") for name in names]
