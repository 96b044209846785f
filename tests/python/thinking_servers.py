"""Servers of a tiny GPT-2 that has the chat templates of other models, and an answer with thoughts in front."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, contextmanager

from conftest import FIXTURES
from generators import GPT2, writer
from model_manager.server import ServerConfig, create_app
from servers import running

PIECES = ["<th", "ink>\nHm", ",\n", "ışık", "\n</thi", "nk>\n", "\nEv", "et", "."]
THOUGHTS, ANSWER = "Hm,\nışık", "Evet."
EFFORT = (
    "{% for m in messages %}{{ m.content }}{% endfor %}Effort: {{ reasoning_effort }}{% if false %}<think>{% endif %}"
)


@contextmanager
def templated_servers(folder, own):
    """`serve(name)`: the server of the template `own[name]`, or of the fixture with that name. Each is started once."""
    found = {}
    with ExitStack() as opened:

        def serve(name):
            if name not in found:
                shutil.copytree(GPT2, folder / name)
                template = own.get(name) or (FIXTURES / "chat_templates" / f"{name}.jinja").read_text()
                (folder / name / "chat_template.jinja").write_text(template)
                manager = writer(generator_model=str(folder / name))
                opened.callback(manager.close)
                found[name] = opened.enter_context(running(create_app(ServerConfig(), manager)))
            return found[name]

        yield serve
