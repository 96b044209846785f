"""The public API: nothing that docs/api.txt promises is gone."""

from __future__ import annotations

import runpy

import pytest
from conftest import ROOT

pytest.importorskip("griffe", reason="needs griffe")

API = runpy.run_path(str(ROOT / "scripts" / "public_api.py"))
broken, listing = API["broken"], API["listing"]
PROMISED = (ROOT / "docs" / "api.txt").read_text(encoding="utf-8").splitlines()


def test_what_is_promised_is_there():
    assert broken(PROMISED, listing()) == []


def test_the_promise_has_what_the_documentation_shows():
    names = {API["name_of"](line) for line in PROMISED}
    for name in (
        "model_manager.ModelManager.embed",
        "model_manager.ModelManager.chat",
        "model_manager.model_manager",
        "model_manager.errors.OverloadedError",
        "model_manager.frames.embed_frame",
        "model_manager.server.create_app",
        "model_manager.integrations.qdrant.QdrantIndexer.search",
        "model_manager.tracing.enable",
    ):
        assert name in names
    assert not [name for name in names if "._" in name.replace(".__", ".")]


@pytest.mark.parametrize(
    ("former", "current", "reason"),
    [
        ("m.f(a)", "m.f(a, b=)", None),
        ("m.f(a)", "m.f(a, *, b=)", None),
        ("m.f(a, *, b=)", "m.f(a, b=)", None),
        ("m.f(a, *, b=)", "m.f(a, **options)", None),
        ("class m.C", "class m.C", None),
        ("m.f(a)", "m.g(a)", "gone"),
        ("m.f(a)", "m.f", "no function any more"),
        ("m.f(a)", "m.f(a, b)", "b is required"),
        ("m.f(a)", "m.f(a, *, b)", "b is required"),
        ("m.f(a, b=)", "m.f(b=, a=)", "a is not parameter 1 any more"),
        ("m.f(a, b=)", "m.f(a, *, b=)", "b is not parameter 2 any more"),
        ("m.f(a=)", "m.f(a)", "a has no default any more"),
        ("m.f(*, a=)", "m.f()", "a is gone"),
        ("m.f(**options)", "m.f()", "**options is gone"),
    ],
)
def test_breaks_are_found(former, current, reason):
    expected = [] if reason is None else [f"{former}: {reason}"]
    assert broken([former], [current]) == expected
