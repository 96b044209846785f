"""The modules of the core import each other in one direction, and so do the files of each of its folders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
FOLDERS = [
    "arrow",
    "compute",
    "sync",
    "manager",
    "lifecycle",
    "batching",
    "chat",
    "remote",
    "generation",
    "cache",
    "models",
    "python",
]

Module = tuple[str, ...]


def paths_of(tree: str) -> list[str]:
    """The paths of a `use` declaration: `a::{b, c::{d, e}}` is `a::b`, `a::c::d` and `a::c::e`."""
    head, brace, rest = tree.partition("{")
    if not brace:
        return [tree.split(" as ")[0].strip()]
    paths, depth, part = [], 0, ""
    for character in rest[: rest.rindex("}")] + ",":
        if character == "," and depth == 0:
            paths += paths_of(head.strip() + part.strip()) if part.strip() else []
            part = ""
            continue
        depth += {"{": 1, "}": -1}.get(character, 0)
        part += character
    return paths


def resolve(path: str, module: Module, folder: str, modules: set[Module], children: set[str]) -> Module | None:
    """The module of the folder that `path` leads to, seen from `module`."""
    first, *rest = path.split("::")
    base = module
    if first == "crate":
        above = Path(folder).parts
        if tuple(rest[: len(above)]) != above:
            return None
        base, rest = (), rest[len(above) :]
    elif first == "super":
        rest = [first, *rest]
        while rest and rest[0] == "super":
            if not base:
                return None
            base, rest = base[:-1], rest[1:]
    elif first in children:
        rest = [first, *rest]
    elif first != "self":
        return None
    for name in rest:
        if (*base, name) not in modules:
            break
        base = (*base, name)
    return base


def imports(folder: str) -> dict[Module, set[Module]]:
    """Which files of the folder each of its files imports; an empty name is the whole core. Tests are left out."""
    root = SOURCE / folder
    files: dict[Module, Path] = {}
    for file in root.rglob("*.rs"):
        name = file.relative_to(root).with_suffix("").parts
        if "tests" not in name and not file.stem.endswith("_tests"):
            files[name[:-1] if name[-1] == "mod" else name] = file
    found: dict[Module, set[Module]] = {}
    for module, file in files.items():
        text = file.read_text(encoding="utf-8")
        text = re.split(r"#\[cfg\(test\)\]\s*mod \w+ \{", text)[0]
        text = re.sub(r"//[^\n]*", "", text)
        text = re.sub(r"#\[cfg\((?:test|doc)\)\]\s*(?:pub(?:\([^)]*\))? )?(?:use|mod) [^;]*;", "", text)
        text = re.sub(r"pub\(in [^)]*\)", "pub", text)
        children = set(re.findall(r"^(?:pub(?:\([^)]*\))? )?mod (\w+);", text, re.MULTILINE))
        paths = [
            path
            for tree in re.findall(r"^\s*(?:pub(?:\([^)]*\))? )?use ([^;]+);", text, re.MULTILINE)
            for path in paths_of(" ".join(tree.split()))
        ]
        paths += re.findall(r"\b(?:super|self|crate)(?:::\w+)+", re.sub(r"\buse [^;]+;", "", text))
        targets = (resolve(path, module, folder, set(files), children) for path in paths)
        found[module] = {target for target in targets if target in files and target != module}
    return found


def circle(graph: dict[Module, set[Module]]) -> set[Module]:
    """Files that import each other, directly or through other ones."""
    left = {module: set(targets) for module, targets in graph.items()}
    while free := {module for module, targets in left.items() if not targets & left.keys()}:
        left = {module: targets for module, targets in left.items() if module not in free}
    return set(left)


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_import_in_one_direction(folder: str) -> None:
    graph = imports(folder)
    assert len(graph) > 2
    names = sorted("/".join(module) or "mod" for module in circle(graph))
    assert not names, f"these files of src/{folder} import each other in a circle, or import such files"


def test_modules_import_in_one_direction() -> None:
    graph: dict[Module, set[Module]] = {}
    for module, targets in imports("").items():
        graph.setdefault(module[:1], set()).update(target[:1] for target in targets if target[:1] != module[:1])
    del graph[("lib",)]
    names = sorted("/".join(module) for module in circle(graph))
    assert not names, "these modules of src import each other in a circle, or import such modules"
    tree = ARCHITECTURE.read_text(encoding="utf-8").split("├── src/")[1].split("├── python/model_manager/")[0]
    order = list(dict.fromkeys(re.findall(r"[├└]── (\w+)", tree)))
    assert sorted(order) == sorted(module for (module,) in graph), "docs/architecture.md does not name each module"
    above = [(a, b) for (a,), targets in graph.items() for (b,) in targets if order.index(b) < order.index(a)]
    assert not above, "the map of docs/architecture.md names an imported module above the one that imports it"


def test_a_circle_is_found() -> None:
    graph: dict[Module, set[Module]] = {("a",): {("b",)}, ("b",): {("c",)}, ("c",): {("b",)}, ("d",): set()}
    assert circle(graph) == {("a",), ("b",), ("c",)}
    assert paths_of("super::{a, b::{C, D}}") == ["super::a", "super::b::C", "super::b::D"]
