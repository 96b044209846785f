"""The README and docs/ are correct: examples run, tables are complete, commands and link targets exist."""

from __future__ import annotations

import doctest
import re
import subprocess

import pytest
from conftest import ROOT
from model_manager import Config, ModelManager
from model_manager.server import ServedModel, ServerConfig, create_app
from servers import running

PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
EXAMPLES = [
    name
    for name in PAGES
    if not name.startswith("docs/tr/") and "```pycon" in (ROOT / name).read_text(encoding="utf-8")
]
"""Pages whose examples run as one session. Those of docs/tr/ have the code of the English pages: test_turkish_pages."""
SERVED = ["README.md", "docs/server.md"]
"""Pages with examples for a server at one of these addresses."""
ADDRESSES = ("http://127.0.0.1:8000", "localhost:8000")


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.real
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name, minilm, multilingual, smollm2, monkeypatch):
    blocks = re.findall(r"^```pycon\n(.*?)^```", text(name), re.MULTILINE | re.DOTALL)
    assert blocks
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TURKISH_SENTENCE_MODEL", multilingual)
    monkeypatch.setenv("ENGLISH_FALLBACK_MODEL", minilm)
    monkeypatch.setenv("HUGGINGFACE_MODEL", smollm2)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, name, name, 0)
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text(name), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def address(minilm, smollm2):
    """A server like that of `make run-server`."""
    served = ServedModel("all-MiniLM-L6-v2", source=minilm)
    with (
        ModelManager(english_model=minilm, generator_model=smollm2) as manager,
        running(create_app(ServerConfig(models=[served]), manager)) as server,
    ):
        yield server.url


@pytest.mark.real
@pytest.mark.parametrize("name", SERVED)
def test_commands_against_the_server(name, address):
    checker = doctest.OutputChecker()
    found = re.findall(r"^\$ (.*)\n((?:(?!\$ ).+\n)*)", "".join(blocks(name, "console")), re.MULTILINE)
    assert found
    for command, expected in found:
        for written in ADDRESSES:
            command = command.replace(written, address)
        process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False)
        assert process.returncode == 0, (command, process.stderr)
        printed = process.stdout.rstrip("\n") + "\n"
        assert checker.check_output(expected, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), (
            command,
            printed,
        )


@pytest.mark.real
@pytest.mark.parametrize("name", SERVED)
def test_clients_of_the_server(name, address):
    found = [
        block for block in blocks(name, "python") if any(word in block for word in (*ADDRESSES, "model_manager.server"))
    ]
    assert found
    for block in found:
        for written in ADDRESSES:
            block = block.replace(written, address)
        exec(compile(block, name, "exec"), {})


def test_the_table_of_the_servers_settings_is_complete():
    rows = ["| setting | environment | default | meaning |", "|---|---|---|---|"]
    for field in ServerConfig.fields():
        value = ",".join(field["default"]) if isinstance(field["default"], tuple) else field["default"]
        shown = default(None if value == "" else value)
        rows.append(f"| `{field['name']}` | `{field['environment']}` | {shown} | {field['doc']} |")
    wanted = "\n".join(rows)
    assert wanted in text("docs/server.md"), f"the table in docs/server.md should be:\n{wanted}"


@pytest.mark.parametrize("name", PAGES)
def test_commands_exist(name):
    targets = set(re.findall(r"^([a-z0-9-]+):", text("Makefile"), re.MULTILINE))
    used = set(re.findall(r"`make ([a-z0-9-]+)", text(name))) | set(
        re.findall(r"^make ([a-z0-9-]+)", text(name), re.MULTILINE)
    )
    assert used or name != "README.md"
    assert used <= targets, used - targets


def default(value):
    if value is None:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else f'{value:g}' if isinstance(value, float) else value}`"


def table():
    """The expected configuration table."""
    rows = ["| setting | environment | default | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{field['name']}` | `{field['environment']}` | {default(field['default'])} | {field['doc']} |"
        for field in Config.fields()
    ]
    return "\n".join(rows)


def test_the_configuration_table_is_complete():
    page = "docs/configuration.md"
    assert table() in text(page), f"the table in {page} should be:\n{table()}"


def test_the_map_of_the_code_is_true():
    section = text("docs/architecture.md").split("## Map of the code", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"^(?:│   |    )?[├└]── ([\w./]+)", section, re.MULTILINE)
    named = set(found)
    assert named
    assert len(found) == len(named), "an entry stands twice"
    for name in named:
        assert any((ROOT / base / name).exists() for base in ("", "src", "python/model_manager", "tests")), name
    modules = {path.name for path in (ROOT / "src").iterdir() if path.name != "lib.rs"}
    for path in (ROOT / "python" / "model_manager").glob("[!_]*"):
        start = path / "__init__.py" if path.is_dir() else path
        is_module = start.suffix in {".py", ".pyi"} and start.exists()
        if is_module and not start.read_text(encoding="utf-8").startswith('"""Former import path'):
            modules.add(path.name)
    assert modules - {name.rstrip("/") for name in named} == set(), "each module in Rust and each public one in Python"


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md"])
def test_paths_exist(name):
    """Folders and files of the project that a page names, from the checkout or from src/."""
    top = r"src|python|tests|scripts|benchmarks|benches|examples|deploy|docs|fuzz"
    for path in re.findall(rf"`((?:{top})/[\w./-]+)`", text(name)):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:compute|generation|cache|manager|lifecycle|sync)/[\w./-]+)`", text(name)):
        assert (ROOT / "src" / path).exists(), path


def test_the_example_of_an_architecture_is_tested_code():
    shown = re.search(r"```rust\n(.*?)\n```", text("docs/contributing.md"), re.DOTALL)
    assert shown
    assert shown.group(1) in text("tests/rust/models/toy.rs")
    assert len(shown.group(1).splitlines()) < 60


def test_the_readme_is_short():
    assert len(text("README.md").splitlines()) <= 150


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/-]+\.md", text("mkdocs.yml")))
    pages = {name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")}
    assert pages - listed == {name for name in pages if re.match(r"decisions/\d", name)}
    assert listed <= pages


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text(name)):
        assert (ROOT / name).parent.joinpath(target).exists(), target


def anchors(path):
    """Those of the headings, as GitHub and the documentation site make them."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    shown = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in shown}


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md"])
def test_links_lead_to_headings(name):
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", text(name)):
        page = (ROOT / name).parent / target if target else ROOT / name
        assert anchor in anchors(page), f"{target}#{anchor}"
