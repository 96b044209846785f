"""The API reference of the documentation site, made from signatures and docstrings while the site is built.

    python scripts/reference.py FOLDER     # writes the pages there, to look at them

mkdocs loads this file as a hook. The pages are those of the modules that `public_api.py` lists, and are not committed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import griffe

sys.path.insert(0, str(Path(__file__).resolve().parent))

from public_api import MODULES, PACKAGE, SOURCE, target

if TYPE_CHECKING:
    from collections.abc import Iterator

SECTION = "API reference"
FOLDER = "reference"


def pages() -> dict[str, str]:
    """The Markdown of each page by its module."""
    logging.getLogger("griffe").setLevel(logging.ERROR)
    package = griffe.load(PACKAGE, search_paths=[SOURCE], allow_inspection=False)
    assert isinstance(package, griffe.Module)
    return {module.path: "\n".join(page(module)) for module in (package, *(package[name] for name in MODULES))}


def page(module: griffe.Module) -> Iterator[str]:
    """The lines of a module's page: its classes, functions and values, each with its members."""
    yield f"# {module.path}\n"
    yield from documentation(module)
    names = sorted(public(module))
    listed = {name for name, _ in names}
    for name, member in names:
        found = target(member)
        if isinstance(found, griffe.Class):
            yield from of_class(name, found, listed)
        elif isinstance(found, griffe.Function):
            yield from of_function(name, found, 2)
        elif isinstance(found, griffe.Attribute):
            yield from of_value(name, found, 2)


def public(module: griffe.Module) -> Iterator[tuple[str, griffe.Object | griffe.Alias]]:
    """The names of a module that are promised, as in `public_api.py`."""
    exported = {str(name) for name in module.exports or ()}
    for name, member in module.members.items():
        own = not exported and not member.is_alias and member.runtime and name != "TYPE_CHECKING"
        if not name.startswith("_") and (name in exported or own) and not member.is_module:
            yield name, member


def of_class(name: str, found: griffe.Class, listed: set[str]) -> Iterator[str]:
    """A class and its members, without those of base classes that the page has (`listed`)."""
    bases = ", ".join(str(base) for base in found.bases if str(base) not in ("object", "NamedTuple"))
    yield f"## {name}\n"
    made = next((target(found.all_members[one]) for one in ("__new__", "__init__") if one in found.members), None)
    if isinstance(made, griffe.Function):
        yield code(signature(name, made, skip=1, result=False))
    else:
        yield code(f"class {name}({bases})" if bases else f"class {name}")
    yield from documentation(found)
    if isinstance(made, griffe.Function):
        yield from documentation(made)
    members = {one: target(member) for one, member in found.all_members.items() if not one.startswith("_")}
    for base in (found, *found.mro()):
        # Of the forms of a function in a stub the first one has all defaults.
        for one, forms in base.overloads.items():
            if forms and not one.startswith("_"):
                members.setdefault(one, forms[0])
    for one, member in sorted(members.items()):
        owner = None if member is None else member.parent
        if owner is not None and owner is not found and owner.name in listed:
            continue
        if isinstance(member, griffe.Function):
            yield from of_function(f"{name}.{one}", member, 3)
        elif isinstance(member, griffe.Attribute):
            yield from of_value(f"{name}.{one}", member, 3)


def of_function(name: str, found: griffe.Function, level: int) -> Iterator[str]:
    yield f"{'#' * level} {name}\n"
    short = name.rpartition(".")[2]
    method = isinstance(found.parent, griffe.Class) and "staticmethod" not in found.labels
    yield code(("async " if "async" in found.labels else "") + signature(short, found, skip=int(method)))
    forms = [found, *(found.parent.overloads.get(short, ()) if isinstance(found.parent, griffe.Class) else ())]
    yield from documentation(next((form for form in forms if form.docstring is not None), found))


def of_value(name: str, found: griffe.Attribute, level: int) -> Iterator[str]:
    yield f"{'#' * level} {name}\n"
    if found.annotation is not None:
        yield code(f"{name.rpartition('.')[2]}: {found.annotation}")
    elif found.value is not None and len(str(found.value)) < 80:
        yield code(f"{name.rpartition('.')[2]} = {found.value}")
    yield from documentation(found)


def signature(name: str, found: griffe.Function, skip: int, *, result: bool = True) -> str:
    """``name(a: int, *, b: str = "x") -> str``, a parameter a line where that is long. `skip`: without self or cls."""
    parts: list[str] = []
    kinds = griffe.ParameterKind
    shown = list(found.parameters)[skip:]
    for number, one in enumerate(shown):
        star = {kinds.var_positional: "*", kinds.var_keyword: "**"}.get(one.kind, "")
        if one.kind is kinds.keyword_only and not any(
            former.kind in (kinds.keyword_only, kinds.var_positional) for former in shown[:number]
        ):
            parts.append("*")
        typed = f"{star}{one.name}" + (f": {one.annotation}" if one.annotation is not None else "")
        default = "" if one.required or star else f"{' = ' if one.annotation is not None else '='}{one.default}"
        parts.append(typed + default)
    arrow = f" -> {found.returns}" if result and found.returns is not None else ""
    line = f"{name}({', '.join(parts)}){arrow}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){arrow}"


def code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def documentation(found: griffe.Object) -> Iterator[str]:
    """The docstring: text, and the lists of arguments, results and errors."""
    if found.docstring is None:
        return
    kinds = griffe.DocstringSectionKind
    for section in found.docstring.parse("google"):
        if section.kind is kinds.text:
            yield fenced(section.value) + "\n"
        elif section.kind in (kinds.parameters, kinds.attributes, kinds.other_parameters):
            yield f"**{'Attributes' if section.kind is kinds.attributes else 'Arguments'}**\n"
            yield "".join(f"- `{one.name}`: {flat(one.description)}\n" for one in section.value)
        elif section.kind in (kinds.returns, kinds.yields):
            yield "**Returns**\n"
            yield "".join(f"- {flat(one.description)}\n" for one in section.value)
        elif section.kind is kinds.raises:
            yield "**Raises**\n"
            # Several errors of one line are a tuple.
            yield "".join(f"- `{str(one.annotation).strip('()')}`: {flat(one.description)}\n" for one in section.value)
        else:
            yield fenced(str(getattr(section.value, "description", section.value))) + "\n"


def flat(text: str) -> str:
    return " ".join(text.split())


def fenced(text: str) -> str:
    """The text, with its examples of a session as code."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        starts = line.lstrip().startswith(">>>")
        if starts and not inside:
            lines += ["", "```pycon"]
            inside = True
        elif inside and not line.strip():
            lines.append("```")
            inside = False
        lines.append(line)
    return "\n".join([*lines, "```"] if inside else lines)


def on_config(config):
    """For mkdocs: the pages' place in the navigation."""
    names = [PACKAGE, *(f"{PACKAGE}.{name}" for name in MODULES)]
    config.nav.insert(len(config.nav) - 1, {SECTION: [{name: f"{FOLDER}/{name}.md"} for name in names]})
    return config


def on_files(files, config):
    """For mkdocs: the pages themselves."""
    from mkdocs.structure.files import File

    for name, content in pages().items():
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content=content))
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pages().items():
        (folder / f"{name}.md").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
