"""Where a user sees what prompt lookup saves: an answer's figures, `stats()`, metrics, the status page, notebooks."""

from __future__ import annotations

import pytest
from generators import GREEDY, SLOT
from model_manager.server.routes.status import Status

IDS = [5, 9, 12, 7, 31, 5, 9, 12, 7, 31, 5, 9, 12]
REPEATS = {**GREEDY, "repetition_penalty": 0.2, "max_new_tokens": 40}
"""Tokens that were there come again, so that drafts are right."""


@pytest.mark.parametrize("name", ["gpt2", "lfm2", "qwen3_5_text"])
def test_an_answer_says_what_it_saved(make_writer, name):
    manager = make_writer(name)
    answers = [manager.complete(IDS, **REPEATS), manager.complete(IDS[:6], **GREEDY, max_new_tokens=20)]
    assert 0 < answers[0]["accepted_tokens"] <= answers[0]["drafted_tokens"]
    figures = manager.stats()["slots"][SLOT]["generation"]
    for key in ("drafted_tokens", "accepted_tokens"):
        assert figures[key] == sum(answer[key] for answer in answers)
    plain = make_writer(name, prompt_lookup_tokens=0).complete(IDS, **REPEATS)
    assert (plain["drafted_tokens"], plain["accepted_tokens"]) == (0, 0)
    assert plain["tokens"] == answers[0]["tokens"]


def test_the_server_and_notebooks_show_it(make_writer, serve):
    manager = make_writer()
    server = serve(manager)
    answer = manager.complete(IDS, **REPEATS)
    status = server.client.get("/api/status").json()
    Status.model_validate(status, strict=True)
    metrics = server.client.get("/metrics").text
    for key in ("drafted_tokens", "accepted_tokens"):
        assert status["generation"][key] == answer[key] > 0
        assert f'model_manager_generation_{key}_total{{slot="{SLOT}"}} {answer[key]}.0' in metrics
    html = manager.get(SLOT)._repr_html_()
    assert f"{answer['drafted_tokens']} tokens, {answer['accepted_tokens']} of them right" in html
