"""The package's own surface: names, docstrings, types, version."""

from __future__ import annotations

import ast
import inspect
from importlib import metadata, resources

import model_manager
import pytest
from conftest import ROOT
from model_manager import ModelManager, _core

STUB = ast.parse((ROOT / "python" / "model_manager" / "_core.pyi").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", model_manager.__all__)
def test_every_public_name_exists_and_is_documented(name):
    value = getattr(model_manager, name)
    if name != "__version__":
        assert inspect.getdoc(value)


def test_version_and_types():
    assert model_manager.__version__ == metadata.version("model-manager-rs")
    assert resources.files("model_manager").joinpath("py.typed").is_file()
    assert resources.files("model_manager").joinpath("_core.pyi").is_file()


def functions():
    """Names and nodes. Of overloads the last one, which has the docstring."""
    found = {}
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("__"):
                    found[f"{node.name}.{member.name}"] = member
    return list(found.items())


@pytest.mark.parametrize(("name", "node"), functions(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_stub_documents_everything_and_the_extension_too(name, node):
    assert ast.get_docstring(node)
    thing = _core
    for part in name.split("."):
        thing = getattr(thing, part)
    assert thing.__doc__


def test_signatures_can_be_inspected():
    parameters = inspect.signature(ModelManager.embed).parameters
    assert parameters["model"].default is None
    assert parameters["normalize"].kind is inspect.Parameter.KEYWORD_ONLY
    assert "loader" in inspect.signature(ModelManager.register).parameters


def test_instruction_sets():
    available = model_manager.available_isas()
    assert model_manager.isa() in available
    assert len(set(available)) == len(available)
