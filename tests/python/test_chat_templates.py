"""Chat templates give the same text as Jinja2 with the settings of transformers, construct by construct."""

from __future__ import annotations

import json
import shutil

import jinja as reference
import jinja2
import pytest
from conftest import FIXTURES
from generators import writer
from model_manager.errors import ArgumentError, InputError, InvalidFileError, ModelManagerError, UnsupportedModelError

TOKENS = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}

FOLDER = FIXTURES / "chat_templates"
MESSAGES = [
    {"role": "system", "content": "You are  helpful.\n"},
    {"role": "user", "content": ' Merhaba İstanbul\'da <b>çığ</b> & "x" '},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nEvet, ışık.", "n": 1.5, "ok": True, "none": None},
    {"role": "user", "content": ""},
]
VARIABLES = {
    "data": {"b": 1, "a": [1, 2.0, None, True, "x'y", "q\"'"], "items": {"type": "string"}, "İ": (1,), "e": {}},
    "numbers": [3, 1, 2, 10, -4],
    "people": [
        {"name": "Ayşe", "age": 30, "city": {"n": "İzmir"}},
        {"name": "bob", "age": 25, "city": {"n": "Ankara"}},
        {"name": "Can", "age": 30, "city": {"n": "İzmir"}},
    ],
    "text": "The quick\tbrown fox,\njumps over\r\nthe lazy dog",
    "word": "ışıkİI",
}

CONSTRUCTS = (FOLDER / "constructs.txt").read_text()
"""One construct per line."""

MULTILINE = (FOLDER / "multiline.txt").read_text()[:-1].split("\n----\n")


FAILURES = (FOLDER / "failures.txt").read_text().splitlines()

SYNTAX = (FOLDER / "syntax.txt").read_text().splitlines()


def constructs() -> list[str]:
    """Each alone, then all in one template, then line ends."""
    lines = CONSTRUCTS.splitlines()
    ends = ["a\r\nb\r{% if true %}\r\nc\r\n{% endif %}\r\n", "a\n\n", "a\r\n\r\n", "\n"]
    return [*lines, *MULTILINE, "\n".join([*lines, *MULTILINE]), *ends]


@pytest.fixture(scope="module")
def llama():
    manager = writer("llama")
    yield manager
    manager.close()


def ours(manager, source, messages=MESSAGES, **variables):
    return manager.apply_chat_template(messages, chat_template=source, **variables)


@pytest.mark.filterwarnings("ignore:decoding with:DeprecationWarning", "ignore:invalid escape:DeprecationWarning")
def test_constructs_give_the_text_of_jinja(llama):
    wrong = []
    for source in constructs():
        expected = reference.render(source, MESSAGES, **VARIABLES, **TOKENS)
        try:
            got = ours(llama, source, **VARIABLES)
        except ModelManagerError as error:
            got = str(error)
        if expected != got:
            wrong.append((source, expected, got))
    assert len(CONSTRUCTS.splitlines()) >= 150
    assert not wrong, "\n\n".join(f"{s!r}\n  Jinja {e!r}\n  ours  {g!r}" for s, e, g in wrong)


@pytest.mark.parametrize("source", FAILURES)
def test_what_fails_in_jinja_fails(llama, source):
    with pytest.raises(Exception):  # noqa: B017, PT011 (any error of Jinja's or of Python's)
        reference.render(source, MESSAGES, **VARIABLES, **TOKENS)
    with pytest.raises(ModelManagerError, match="chat template"):
        ours(llama, source, **VARIABLES)


@pytest.mark.parametrize("source", SYNTAX)
def test_what_jinja_does_not_parse_is_refused_with_its_line(llama, source):
    with pytest.raises((jinja2.TemplateSyntaxError, SyntaxError)):
        reference.render("\n" + source, MESSAGES)
    with pytest.raises(UnsupportedModelError, match=r"does not parse: .*\(line 2\)"):
        ours(llama, "\n" + source)


TEMPLATES = sorted(FOLDER.glob("*.jinja"))
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "hava_durumu",
            "description": "Bir şehrin hava durumu",
            "parameters": {
                "type": "object",
                "properties": {
                    "şehir": {"type": "string", "description": "Örn. 'İzmir'"},
                    "days": {"type": "array", "items": {"type": ["integer", "null"]}},
                },
                "required": ["şehir"],
            },
        },
    }
]
CALL = {"type": "function", "id": "abc123456", "function": {"name": "hava_durumu", "arguments": {"şehir": "İzmir"}}}
USER = {"role": "user", "content": "Merhaba, nasılsın? "}
CONVERSATIONS = {
    "one turn": [USER],
    "system": [{"role": "system", "content": "Kısa yanıt ver. /no_think"}, USER],
    "turns": [
        USER,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n İyiyim."},
        {"role": "user", "content": "Güzel"},
    ],
    "answered": [USER, {"role": "assistant", "content": "İyiyim.\n"}],
    "empty": [{"role": "user", "content": ""}],
    "tool call": [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "21 °C, güneşli"},
    ],
    "empty tool call": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": " Merhaba "}, {"type": "image"}]}],
    "no role": [{"content": "x"}],
    "no content": [{"role": "user"}],
    "none": [{"role": "user", "content": None}],
    "unknown role": [{"role": "critic", "content": "x"}],
}
EXTRA = [{}, {"tools": TOOLS}, {"documents": [{"title": "t", "text": "belge"}], "enable_thinking": False}]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_templates_of_models_give_the_text_of_jinja(llama, path):
    source = path.read_text()
    for conversation in CONVERSATIONS.values():
        for variables in EXTRA:
            for prompt in (True, False):
                given = {**variables, "add_generation_prompt": prompt}
                try:
                    expected = reference.render(source, conversation, **given, **TOKENS)
                except (jinja2.TemplateError, TypeError, AttributeError):
                    expected = None
                if expected is None:
                    with pytest.raises(InputError, match="refuses these messages"):
                        ours(llama, source, conversation, **given)
                else:
                    assert ours(llama, source, conversation, **given) == expected


BEGINNINGS = ("The number is", " {\n  ", "İyi günler ", "", "<think>\nhm", "<think>\nhm\n</think>\n\nEvet, ")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_last_message_is_continued_as_in_transformers(llama, path):
    source = path.read_text()
    begun = [[USER, {"role": "assistant", "content": text}] for text in BEGINNINGS]
    found = 0
    for conversation in [*begun, *CONVERSATIONS.values()]:
        try:
            expected = reference.continued(source, conversation, **TOKENS)
        except (jinja2.TemplateError, TypeError, AttributeError):
            expected = None
        if expected is None:
            with pytest.raises(InputError, match=r"refuses these messages|continue_final_message"):
                ours(llama, source, conversation, continue_final_message=True)
        else:
            found += 1
            assert ours(llama, source, conversation, continue_final_message=True) == expected
    assert found >= len(BEGINNINGS) - 2


def test_an_answer_cannot_begin_and_be_continued(llama):
    with pytest.raises(ArgumentError, match="continues the last message; leave one of them out"):
        ours(llama, "x", continue_final_message=True, add_generation_prompt=True)
    same = {"continue_final_message": False}
    assert ours(llama, "{{ add_generation_prompt }}", **same) == "True"
    assert ours(llama, "{{ add_generation_prompt }}", **same, add_generation_prompt=False) == "False"


def test_a_continuation_keeps_the_blank_before_it(make_writer, tmp_path):
    """Decoders like that of Llama 2 strip one blank from the beginning of a text."""
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "llama", folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    blank = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [tokenizer["decoder"], blank]}
    path.write_text(json.dumps(tokenizer))
    manager = make_writer(generator_model=str(folder))
    begun = [USER, {"role": "assistant", "content": "Merhaba"}]
    text = manager.apply_chat_template(begun, continue_final_message=True)
    found = set()
    for seed in range(80):
        options = {"max_new_tokens": 2, "temperature": 5.0, "seed": seed}
        answer = manager.generate(text, **options)
        assert manager.chat(begun, continue_final_message=True, **options) == answer
        found.add(answer[:1])
    assert " " in found


def test_twenty_models_are_covered():
    assert len(TEMPLATES) >= 20


def test_a_template_that_does_not_parse_leaves_generation_usable(make_writer, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(FIXTURES / "llama", folder)
    (folder / "chat_template.jinja").write_text("ok\n{% for %}")
    manager = make_writer(generator_model=str(folder))
    assert manager.generate("Merhaba", max_new_tokens=2, do_sample=False) is not None
    with pytest.raises(UnsupportedModelError, match=r"chat template does not parse: .*\(line 2\)"):
        manager.chat([USER], max_new_tokens=2)
    assert manager.apply_chat_template([USER], chat_template="{{ messages[0].role }}") == "user"


NAMED = {"default": "usual", "tool_use": "with {{ tools|length }} tools", "rag": "with documents"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("place", ["tokenizer_config.json", "folder"])
def test_of_several_templates_tools_and_names_choose(make_writer, tmp_path, place):
    folder = tmp_path / "several"
    shutil.copytree(FIXTURES / "llama", folder)
    if place == "folder":
        (folder / "chat_template.jinja").write_text(NAMED["default"])
        (folder / "additional_chat_templates").mkdir()
        for name in ("tool_use", "rag"):
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(NAMED[name])
    else:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text()) if path.exists() else {}
        settings["chat_template"] = [{"name": name, "template": source} for name, source in NAMED.items()]
        path.write_text(json.dumps(settings))
    manager = make_writer(generator_model=str(folder))
    assert manager.apply_chat_template([USER]) == "usual"
    assert manager.apply_chat_template([USER], tools=None) == "usual"
    assert manager.apply_chat_template([USER], tools=[TOOL, TOOL]) == "with 2 tools"
    assert manager.apply_chat_template([USER], tools=[TOOL], chat_template="default") == "usual"
    assert manager.apply_chat_template([USER], chat_template="rag") == "with documents"
    assert manager.apply_chat_template([USER], chat_template="no name") == "no name"
    with pytest.raises(ArgumentError, match=r'"rga": model .* \(it has: default, tool_use, rag\)'):
        manager.apply_chat_template([USER], chat_template="rga")


def test_several_templates_without_a_default_serve_calls_that_take_another(make_writer, tmp_path):
    folder = tmp_path / "several"
    shutil.copytree(FIXTURES / "llama", folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    named = [{"name": name, "template": NAMED[name]} for name in ("rag", "tool_use")]
    path.write_text(json.dumps({**settings, "chat_template": named}))
    manager = make_writer(generator_model=str(folder))
    assert manager.generate("Merhaba", max_new_tokens=2, do_sample=False) is not None
    assert manager.apply_chat_template([USER], chat_template="rag") == "with documents"
    assert manager.apply_chat_template([USER], tools=[TOOL]) == "with 1 tools"
    for conversation in (lambda: manager.apply_chat_template([USER]), lambda: manager.chat([USER])):
        with pytest.raises(InvalidFileError, match=r'"default"; it has .*"rag"'):
            conversation()


def test_a_template_that_reads_parts_alone_gets_the_texts(make_writer, tmp_path):
    folder = tmp_path / "parts"
    shutil.copytree(FIXTURES / "llama", folder)
    template = "{% for m in messages %}{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    (folder / "chat_template.jinja").write_text(template + "{% endif %}{% endfor %}{% endfor %}")
    manager = make_writer(generator_model=str(folder))
    part = {"role": "user", "content": [{"type": "text", "text": USER["content"]}]}
    assert manager.apply_chat_template([USER]) == manager.apply_chat_template([part]) == USER["content"]
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = manager.generate(USER["content"], **options)
    assert manager.chat([USER], **options) == manager.chat([part], **options) == expected


def test_arguments_of_transformers_that_change_the_result_are_refused(llama):
    plain = ours(llama, "x{{ messages|length }}")
    off = {"tokenize": False, "return_dict": False, "return_tensors": None}
    assert ours(llama, "x{{ messages|length }}", **off) == plain
    refused = {"tokenize": True, "return_tensors": "pt", "max_length": 9}
    for name, value in refused.items():
        with pytest.raises(ArgumentError, match=f"{name}={value!r} is not supported"):
            ours(llama, "x", **{name: value})


def test_a_hostile_template_is_stopped_in_time(llama):
    with pytest.raises(UnsupportedModelError, match="more than 4000000 steps"):
        ours(llama, "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")


def test_values_that_templates_do_not_know_are_refused(llama):
    with pytest.raises(TypeError, match="not set"):
        ours(llama, "x", [{"role": "user", "content": {1, 2}}])
    deep = cycle = []
    cycle.append(cycle)
    with pytest.raises(InputError, match="128 levels"):
        ours(llama, "x", [{"role": "user", "content": deep}])
    with pytest.raises(InputError, match="127 bits"):
        ours(llama, "x", [{"role": "user", "content": 1 << 200}])
    shared = [0]
    for _ in range(40):
        shared = [shared, shared]
    with pytest.raises(InputError, match="1000000 values"):
        ours(llama, "x", [{"role": "user", "content": shared}])
