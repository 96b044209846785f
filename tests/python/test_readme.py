"""The READMEs say what is true: their examples run, their tables are complete, their commands exist."""

from __future__ import annotations

import doctest
import re

import pytest
from conftest import ROOT
from model_manager import Config

READMES = ["README.md", "README.tr.md"]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.real
@pytest.mark.parametrize("name", READMES)
def test_examples(name, minilm, multilingual, monkeypatch):
    blocks = re.findall(r"^```pycon\n(.*?)^```", text(name), re.MULTILINE | re.DOTALL)
    assert blocks
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TURKISH_SENTENCE_MODEL", multilingual)
    monkeypatch.setenv("ENGLISH_FALLBACK_MODEL", minilm)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, name, name, 0)
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.parametrize("name", READMES)
def test_commands_exist(name):
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    used = set(re.findall(r"\bmake ([a-z-]+)", text(name)))
    assert used
    assert used <= targets


def default(value):
    if value is None:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else f'{value:g}' if isinstance(value, float) else value}`"


def table():
    """The configuration table as it should be."""
    rows = ["| setting | environment | default | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{field['name']}` | `{field['environment']}` | {default(field['default'])} | {field['doc']} |"
        for field in Config.fields()
    ]
    return "\n".join(rows)


def test_the_configuration_table_is_complete():
    assert table() in text("README.md"), f"the table in README.md should be:\n{table()}"


def test_the_map_of_the_code_is_true():
    section = text("README.md").split("## Map of the code", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"^(?:│   |    )?[├└]── ([\w./]+)", section, re.MULTILINE))
    assert named
    for name in named:
        assert any((ROOT / base / name).exists() for base in ("", "src", "python/model_manager", "tests")), name
    rooms = {path.name for path in (ROOT / "src").iterdir() if path.name != "lib.rs"}
    rooms |= {path.name for path in (ROOT / "python" / "model_manager").iterdir() if path.suffix in {".py", ".pyi"}}
    assert rooms - {name.rstrip("/") for name in named} == set(), "every room is on the map"


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text(name)):
        assert (ROOT / target).exists(), target
