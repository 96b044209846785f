"""How the package's modules import each other."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = ROOT / "python" / "model_manager"
FORMER = ('"""Former import path', '"""The asyncio calls that take a manager')
"""How modules begin that only re-export."""


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")]):
        parts = [PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, known: dict[str, Path]) -> set[str]:
    """The package's own modules that `name` imports anywhere: at the top, inside functions, or for type checkers."""
    found = set()
    package = name.split(".") if known[name].stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(known[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join(filter(None, [*base, node.module]))
            found |= {f"{target}.{one.name}" if f"{target}.{one.name}" in known else target for one in node.names}
    return (found & known.keys()) - {name}


def test_no_module_imports_itself_by_way_of_others():
    known = modules()
    graph = {name: imports(name, known) for name in known}
    assert len(graph) > 50
    assert "model_manager.manager" in graph["model_manager.compat.chatbot"]
    # Remove modules that import nothing that is left, until only circles and their importers remain.
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    assert not graph, f"import circles among: {sorted(graph)}"


def test_the_package_itself_uses_no_former_import_path():
    known = modules()
    former = {name for name, path in known.items() if path.read_text(encoding="utf-8").startswith(FORMER)}
    assert "model_manager.chatbot" in former
    for name in known.keys() - former:
        assert not imports(name, known) & former, name
    for path in (ROOT / "src").rglob("*.rs"):
        named = set(re.findall(r'"(model_manager(?:\.\w+)+)"', path.read_text(encoding="utf-8")))
        assert not named & former, path
