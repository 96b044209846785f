"""The public API as text, one line a name: what a release promises to keep.

    python scripts/public_api.py > docs/api.txt          # with a release
    python scripts/public_api.py --check                 # what of docs/api.txt is broken

Public are the modules that the documentation names, their names without an underscore that they define or list in
``__all__``, and the members of their classes. The sources and stubs are read, nothing is imported.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]
LISTING = ROOT / "docs" / "api.txt"
SOURCE = ROOT / "python"
PACKAGE = "model_manager"
MODULES = (
    "aio",
    "batch",
    "chunks",
    "errors",
    "frames",
    "integrations.langchain",
    "integrations.llamaindex",
    "integrations.qdrant",
    "ray",
    "results",
    "semantic",
    "server",
    "thinking",
    "tracing",
)


def listing() -> list[str]:
    """All lines, sorted."""
    package = griffe.load(PACKAGE, search_paths=[SOURCE], allow_inspection=False)
    assert isinstance(package, griffe.Module)
    lines: set[str] = set()
    for module in (package, *(package[name] for name in MODULES)):
        exported = {str(name) for name in module.exports or ()}
        lines.add(module.path)
        for name, member in module.members.items():
            own = not exported and not member.is_alias and member.runtime and name != "TYPE_CHECKING"
            if not name.startswith("_") and (name in exported or own) and not member.is_module:
                lines |= described(f"{module.path}.{name}", target(member))
    return sorted(lines)


def target(member: griffe.Object | griffe.Alias) -> griffe.Object | None:
    """What a name stands for; None for something outside of the package."""
    if not isinstance(member, griffe.Alias):
        return member
    try:
        return member.final_target
    except griffe.AliasResolutionError:
        return None


def described(path: str, found: griffe.Object | None) -> set[str]:
    """The line of a name, and those of its members."""
    if isinstance(found, griffe.Function):
        return {f"{path}({parameters(found)})"}
    if not isinstance(found, griffe.Class):
        return {path}
    lines = {f"class {path}"}
    for name, member in found.all_members.items():
        if not name.startswith("_") or name in ("__init__", "__new__", "__call__"):
            lines |= described(f"{path}.{name}", target(member))
    for base in (found, *found.mro()):
        for name, overloads in base.overloads.items():
            # Of the forms of a function in a stub the first one has all defaults.
            if not name.startswith("_") and name not in found.all_members:
                lines |= described(f"{path}.{name}", overloads[0])
    return lines


def parameters(function: griffe.Function) -> str:
    """Parameters as they are passed: ``a, b=, *, c=``."""
    parts: list[str] = []
    keywords = False
    for parameter in function.parameters:
        kind = parameter.kind
        if kind is griffe.ParameterKind.var_positional:
            keywords = True
            parts.append(f"*{parameter.name}")
        elif kind is griffe.ParameterKind.var_keyword:
            parts.append(f"**{parameter.name}")
        else:
            if kind is griffe.ParameterKind.keyword_only and not keywords:
                keywords = True
                parts.append("*")
            parts.append(parameter.name + ("" if parameter.required else "="))
    return ", ".join(parts)


def broken(kept: list[str], now: list[str]) -> list[str]:
    """The lines of `kept` that no longer hold: names that are gone, and functions that refuse calls they took."""
    by_name = {name_of(line): line for line in now}
    found = []
    for line in kept:
        current = by_name.get(name_of(line))
        if current is None:
            found.append(f"{line}: gone")
        elif line.endswith(")") and (reason := refuses(line, current)):
            found.append(f"{line}: {reason}")
    return found


def name_of(line: str) -> str:
    return line.removeprefix("class ").partition("(")[0]


def refuses(former: str, current: str) -> str | None:
    """Why `current` refuses a call that `former` took."""
    if not current.endswith(")"):
        return "no function any more"
    (places, keywords, starred), (new_places, new_keywords, new_starred) = signature(former), signature(current)
    everything = {**dict(new_places), **new_keywords}
    for at, (name, optional) in enumerate(places):
        if at >= len(new_places) or new_places[at][0] != name:
            if "*args" in new_starred or f"*{name}" in new_starred:
                continue
            return f"{name} is not parameter {at + 1} any more"
        if optional and not new_places[at][1]:
            return f"{name} has no default any more"
    for name, optional in keywords.items():
        if name not in everything and not any(star.startswith("**") for star in new_starred):
            return f"{name} is gone"
        if optional and not everything.get(name, True):
            return f"{name} has no default any more"
    known = {*dict(places), *keywords}
    for name, optional in everything.items():
        if not optional and name not in known:
            return f"{name} is required"
    for star in starred:
        if star not in new_starred and not (star.startswith("**") and new_keywords):
            return f"{star} is gone"
    return None


def signature(line: str) -> tuple[list[tuple[str, bool]], dict[str, bool], list[str]]:
    """Parameters by place, parameters by name only, and those with stars; True: it has a default."""
    places: list[tuple[str, bool]] = []
    keywords: dict[str, bool] = {}
    starred: list[str] = []
    by_name = False
    for part in filter(None, line[line.index("(") + 1 : -1].split(", ")):
        if part.startswith("*"):
            by_name = True
            if part != "*":
                starred.append(part)
        elif by_name:
            keywords[part.removesuffix("=")] = part.endswith("=")
        else:
            places.append((part.removesuffix("="), part.endswith("=")))
    return places, keywords, starred


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail where something of docs/api.txt is broken")
    if not parser.parse_args().check:
        print("\n".join(listing()))
        return
    problems = broken(LISTING.read_text(encoding="utf-8").splitlines(), listing())
    print("\n".join(problems))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
