"""When a model leaves, as `stats()` and `/api/ps` report it in and after a use with its own `keep_alive`."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from generators import GREEDY, SLOT, TEXT


def seconds(running):
    """From now until the only model of `/api/ps` leaves."""
    (model,) = running["models"]
    end = datetime.fromisoformat(model["expires_at"].replace("Z", "+00:00"))
    return (end - datetime.now(timezone.utc)).total_seconds()


@pytest.mark.parametrize("keep_alive", [5000, 20])
def test_an_answer_reports_its_own_stay_before_it_ends(make_writer, keep_alive):
    manager = make_writer(keep_alive=600)
    left = lambda: manager.stats()["slots"][SLOT]["unload_in_seconds"]  # noqa: E731
    manager.load(SLOT)
    assert left() == pytest.approx(600, abs=15)
    stream = manager.stream(TEXT, max_new_tokens=4, keep_alive=keep_alive, **GREEDY)
    next(stream)
    assert left() == pytest.approx(keep_alive, abs=15)
    list(stream)
    del stream
    assert left() == pytest.approx(keep_alive, abs=15)


@pytest.mark.parametrize("keep_alive", [5000, 20])
def test_the_server_reports_the_stay_of_an_answer_at_once(make_writer, serve, keep_alive):
    server = serve(make_writer(keep_alive=600))
    body = {"model": SLOT, "prompt": TEXT, "stream": False, "options": {"num_predict": 1, "temperature": 0}}
    for _ in range(5):
        server.client.post("/api/generate", json=body).raise_for_status()
        assert seconds(server.client.get("/api/ps").json()) == pytest.approx(600, abs=15)
        server.client.post("/api/generate", json={**body, "keep_alive": keep_alive}).raise_for_status()
        assert seconds(server.client.get("/api/ps").json()) == pytest.approx(keep_alive, abs=15)
