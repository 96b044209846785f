"""The API reference of the documentation site has every promised name, with its documentation."""

from __future__ import annotations

import re
import runpy
import types

import pytest
from conftest import ROOT

pytest.importorskip("griffe", reason="needs griffe")

REFERENCE = runpy.run_path(str(ROOT / "scripts" / "reference.py"))
PROMISED = (ROOT / "docs" / "api.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def pages():
    return REFERENCE["pages"]()


def test_every_promised_name_has_a_section(pages):
    sections = {
        f"{module}.{heading}"
        for module, content in pages.items()
        for heading in re.findall(r"^#{2,3} ([\w.]+)$", content, re.MULTILINE)
    }
    inherited = re.compile(r"\.errors\.\w+\.(param|code|transient)|\.(CollectionError|IndexingError|StoreError)\.\w+")
    for line in PROMISED:
        name = line.removeprefix("class ").partition("(")[0]
        if name in pages or "__" in name or inherited.search(name):
            continue
        assert name in sections, name


def test_methods_are_documented(pages):
    text = pages["model_manager"]
    embed = text.split("### ModelManager.embed\n", 1)[1].split("\n### ", 1)[0]
    for part in (
        "texts: Inputs",
        "truncate: bool = True",
        "**Arguments**",
        "**Raises**",
        "WaitTimeoutError, OverloadedError",
    ):
        assert part in embed
    assert (
        text.split("\n## ModelManager\n", 1)[1]
        .lstrip()
        .startswith("```python\nModelManager(config: Config | None = None")
    )
    assert text.count("```") % 2 == 0
    errors = pages["model_manager.errors"]
    assert errors.count(".param") == 1, "an inherited member is listed once, with its class"


def test_the_navigation_gets_the_pages(pages):
    config = types.SimpleNamespace(nav=["Home", "Understand"])
    REFERENCE["on_config"](config)
    home, section, last = config.nav
    assert (home, last) == ("Home", "Understand")
    (entries,) = section.values()
    assert [name for entry in entries for name in entry] == list(pages)


def test_the_site_uses_it():
    assert "hooks: [scripts/reference.py]" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
