"""Code of the pages that no test runs: its commands and options exist, its Python parses, and its imports are there."""

from __future__ import annotations

import ast
import importlib
import re
import shlex

import click
import pytest
from conftest import ROOT
from model_manager.cli import cli

PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md"))
    if path.name != "CHANGELOG.md"
)
END = {"|", "&&", ";", ">"}


def commands(page):
    """The arguments of each `model-manager`, in lines of code and in prose."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"(?:^|&& |\| |`)model-manager +((?!`)[^\n`]+)", text, re.MULTILINE)
    for line in found:
        words = shlex.split(line, comments=True)
        ends = [at for at, word in enumerate(words) if word in END]
        yield words[: ends[0] if ends else None]


def check(command, words, parent=None):
    """Raises click's error of an unknown command or option; values are not read."""
    context = click.Context(command, info_name=command.name, parent=parent)
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        _, inner, rest = command.resolve_command(context, list(words))
        check(inner, rest, context)
    else:
        command.make_parser(context).parse_args(list(words))


def test_commands_of_all_kinds_are_found():
    found = {tuple(words) for page in PAGES for words in commands(page)}
    assert {
        ("demo",),
        ("cache", "info"),
        ("serve", "-m", "all-MiniLM-L6-v2"),
        ("embed", "--input-format", "jsonl"),
        ("search", "kargom nerede", "-c", "notes", "-s", "0.2", "--where", "lang=tr", "--json"),
    } <= found


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page):
    for words in commands(page):
        try:
            check(cli, words)
        except click.UsageError as error:
            pytest.fail(f"{page}: model-manager {shlex.join(words)}: {error.format_message()}")


@pytest.mark.parametrize("words", [["embde"], ["embed", "--modle", "x"], ["cache", "inof"], ["serve", "--prot", "1"]])
def test_mistakes_are_seen(words):
    with pytest.raises(click.UsageError):
        check(cli, words)


@pytest.mark.parametrize("page", PAGES)
def test_python_parses_and_its_imports_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        tree = compile(block, page, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "model_manager":
                try:
                    module = importlib.import_module(node.module)
                except ModuleNotFoundError as error:
                    pytest.skip(str(error))
                for alias in node.names:
                    assert hasattr(module, alias.name), (page, alias.name)
