"""Chat templates with names in a folder of their own: a dictionary of templates, as in transformers."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import FIXTURES, tiny
from model_manager.errors import ArgumentError, InputError, ModelManagerError

if TYPE_CHECKING:
    from pathlib import Path

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
TEXTS = ["Merhaba dünya", "a longer text, of some words"]
SHOWN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def folder_with(folder: Path, *, files: dict[str, str], settings: object = None) -> str:
    """A tiny Llama with templates in files, by their names, and with the `chat_template` of its settings."""
    shutil.copytree(FIXTURES / "llama", folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    saved = json.loads(path.read_text("utf-8"))
    saved.pop("chat_template", None)
    path.write_text(json.dumps(saved if settings is None else {**saved, "chat_template": settings}), "utf-8")
    for name, source in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source, "utf-8")
    return str(folder)


def further(**named: str) -> dict[str, str]:
    return {f"additional_chat_templates/{name}.jinja": source for name, source in named.items()}


def test_every_file_of_the_folder_is_a_template(make_writer, tmp_path):
    files = {"chat_template.jinja": "usual", **further(short="short", tool_use="{{ tools|length }} tools")}
    manager = make_writer(generator_model=folder_with(tmp_path / "m", files=files))
    (tmp_path / "m" / "additional_chat_templates" / "notes.txt").write_text("none", "utf-8")
    assert manager.apply_chat_template([USER]) == "usual"
    assert manager.apply_chat_template([USER], chat_template="short") == "short"
    assert manager.apply_chat_template([USER], tools=[TOOL]) == "1 tools"
    with pytest.raises(ArgumentError, match=r"\(it has: default, tool_use, short\)"):
        manager.apply_chat_template([USER], chat_template="shrt")


@pytest.mark.parametrize("file", [{}, {"chat_template.jinja": "of the file"}])
def test_default_in_the_folder_goes_before_the_others(make_writer, tmp_path, file):
    source = folder_with(tmp_path / "m", files={**file, **further(default="of the folder")}, settings="of settings")
    manager = make_writer(generator_model=source)
    assert manager.apply_chat_template([USER]) == "of the folder"


def test_without_a_default_the_settings_do_not_count(make_writer, tmp_path):
    source = folder_with(tmp_path / "m", files=further(short="short"), settings="of settings")
    manager = make_writer(generator_model=source)
    assert manager.apply_chat_template([USER], chat_template="short") == "short"
    with pytest.raises(ModelManagerError, match=r'none of its chat templates is called "default".*short'):
        manager.apply_chat_template([USER])


def test_texts_to_embed_go_through_a_dictionary_as_through_a_list(tmp_path):
    """sentence-transformers gives messages as lists of parts to templates with names."""
    listed = [{"name": "default", "template": SHOWN}, {"name": "short", "template": "short"}]
    sources = {
        "files": folder_with(tmp_path / "a", files={"chat_template.jinja": SHOWN, **further(short="short")}),
        "listed": folder_with(tmp_path / "b", files={}, settings=listed),
        "one": folder_with(tmp_path / "c", files={"chat_template.jinja": SHOWN}, settings="x"),
        "default": folder_with(tmp_path / "d", files=further(default=SHOWN), settings="x"),
    }
    with tiny() as manager:
        vectors = {}
        for name, source in sources.items():
            manager.register(name, source, kind="embedding", pooling="mean")
            vectors[name] = manager.embed(TEXTS, name)
        assert np.array_equal(vectors["files"], vectors["listed"])
        assert np.array_equal(vectors["one"], vectors["default"])
        assert np.abs(vectors["files"] - vectors["one"]).max() > 1e-2


def test_a_text_that_its_template_makes_too_long_is_named(tmp_path):
    """The model is as usable as before."""
    source = folder_with(tmp_path / "m", files={"chat_template.jinja": SHOWN})
    with tiny(cache_size=0) as manager:
        manager.register("m", source, kind="embedding", pooling="mean")
        expected = manager.embed("short", "m")
        with pytest.raises(InputError, match=r"\[1\]: .* more than 16 MiB.*shorten the text") as caught:
            manager.embed(["short", "the cat sat " * 1_500_000], "m")
        assert "not supported" not in str(caught.value)
        assert np.array_equal(manager.embed("short", "m"), expected)
