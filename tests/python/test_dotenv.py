"""Settings from the working directory's `.env`."""

from __future__ import annotations

import io
import json
import logging
import os

import dotenv
import pytest
from conftest import ENGLISH_MODEL, FIXTURES, TURKISH_MODEL, run_python
from hypothesis import example, given, settings, strategies as st
from model_manager import _dotenv

EXAMPLES = [
    "",
    "A=1",
    "A=1\nB=2\r\nC=3\rD=4",
    "A = 1 ",
    "  export A=1\nexport\tB='2'",
    "A",
    "A=",
    "A=\nB=1",
    "# a comment\n\n  # another\nA=1 # behind\nB=1# not behind\nC='x' # behind\nD=\"y\"#z",
    "A='single ${B}'\nB=\"double\"",
    'A=\'it\\\'s\'\nB="say \\"hi\\""\nC=\'a\\nb\'\nD="a\\nb\\t\\\\c\\q"',
    "A='two\nlines'\nB=\"two\nlines\"",
    "A=a b c\nB=a'b\nC='open\nD=1",
    "A=x\nB=${A}y\nC=${NONE}z\nD=${NONE:-default}\nE=${SET}\nF=${SET:-other}\nG=$A\nH=${A:x}",
    "SET=mine\nA=${SET}",
    "'quoted key'=1\n''=2\n=3\nA==4",
    "A=1\nA=2\nB=${A}",
    "a b=1\nC=2",
    "A='x' y\nB=1",
    "A=türkçe ğüşıöç\nB='İ'",
    "export A\nexport=1",
    "\u00a0A=1\u00a0",
    "A=\u2003x\u2003",
    "A=x\x0by\nB=1\x0c\nC=2",
]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)


def expected(text: str) -> dict[str, str | None]:
    """The result of python-dotenv."""
    return dict(dotenv.main.DotEnv(None, stream=io.StringIO(text), override=False).dict())


@pytest.mark.parametrize("text", EXAMPLES)
def test_it_is_read_as_python_dotenv_reads_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET", "from the environment")
    assert _dotenv.resolve(text, os.environ) == expected(text)


@settings(derandomize=True, deadline=None)
@example(":= '")
@given(st.text(alphabet="AB='\"#\\ \n\r\t$~{}:-nexport\u00a0ı", max_size=40))
def test_any_text_is_read_as_python_dotenv_reads_it(text: str) -> None:
    assert _dotenv.resolve(text, os.environ) == expected(text)


LOOK = """
import json, os
os.chdir({folder!r})
from model_manager import ModelManager, model_manager
before = os.environ.get("FROM_THE_FILE")
assert before in (None, "")
config = model_manager.config
found = [config.turkish_model, config.english_model, config.language_detection]
vector = model_manager.generate_embedding("The weather is nice")
print(json.dumps([found, os.environ.get("FROM_THE_FILE"), len(vector)]))
"""


def settings_of(tmp_path, **environment: str) -> list:
    (tmp_path / ".env").write_text(
        f"# the host's settings\nexport TURKISH_SENTENCE_MODEL='{TURKISH_MODEL}'\n"
        f'FIXTURES="{FIXTURES}"\nENGLISH_FALLBACK_MODEL=${{FIXTURES}}/bert_wordpiece # English\n'
        "AI_LANGUAGE_DETECTION=false\nFROM_THE_FILE=yes\n",
        encoding="utf-8",
    )
    return json.loads(run_python(LOOK.format(folder=str(tmp_path)), **environment).stdout)


def test_the_process_wide_manager_reads_it_at_its_first_use(tmp_path) -> None:
    found = settings_of(tmp_path, MODEL_MANAGER_DOTENV="true")
    assert found == [[TURKISH_MODEL, ENGLISH_MODEL, False], "yes", 32]


def test_set_variables_win(tmp_path) -> None:
    found = settings_of(tmp_path, MODEL_MANAGER_DOTENV="", AI_LANGUAGE_DETECTION="true", FROM_THE_FILE="")
    assert found[0][2] is True
    assert found[1] == ""


def test_it_can_be_turned_off(tmp_path) -> None:
    found = settings_of(tmp_path, MODEL_MANAGER_DOTENV="false", ENGLISH_FALLBACK_MODEL=ENGLISH_MODEL)
    assert found[1] is None
    assert found[0][2] is True


def test_an_independent_manager_does_not_read_it(tmp_path) -> None:
    (tmp_path / ".env").write_text("AI_MAX_TOKENS=7\n")
    code = f"""
import os
os.chdir({str(tmp_path)!r})
from model_manager import ModelManager
with ModelManager(cache_size=3) as manager:
    print(manager.config.max_tokens, "AI_MAX_TOKENS" in os.environ)
"""
    assert run_python(code, MODEL_MANAGER_DOTENV="").stdout.split() == ["150", "False"]


@pytest.mark.parametrize("content", [b"A=\xff\xfe\nAI_MAX_TOKENS=7", b"A=a\0b\nAI_MAX_TOKENS=150\n"])
def test_what_cannot_be_read_is_logged_and_settings_work(tmp_path, content: bytes) -> None:
    (tmp_path / ".env").write_bytes(content)
    code = f"""
import logging, os, sys
logging.basicConfig(stream=sys.stdout)
os.chdir({str(tmp_path)!r})
from model_manager import model_manager
print(model_manager.config.max_tokens)
"""
    output = run_python(code, MODEL_MANAGER_DOTENV="").stdout
    assert ".env" in output
    assert output.splitlines()[-1] == "150"
