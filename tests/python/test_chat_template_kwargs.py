"""`chat_template_kwargs`: variables of the chat template in every call that answers messages."""

from __future__ import annotations

import asyncio
import inspect
import json
import shutil

import jinja as reference
import jinja2
import jinja2.meta
import numpy as np
import pytest
from conftest import FIXTURES
from generators import GPT2, GREEDY, SLOT, writer
from model_manager import TextGenerator
from model_manager.errors import ArgumentError, InputError, ModelManagerError

TEMPLATES = sorted((FIXTURES / "chat_templates").glob("*.jinja"))
TURN = [{"role": "user", "content": "Merhaba dünya"}]
OFF = {"enable_thinking": False}
SWITCH = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    "{% if enable_thinking is defined and not enable_thinking %} <think></think>{% endif %}{{ mood }}"
)
"""A template with a switch, in the way of Qwen3."""


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinker") / "model"
    shutil.copytree(GPT2, folder)
    (folder / "chat_template.jinja").write_text(SWITCH)
    with writer(generator_model=str(folder)) as manager:
        yield manager


def expected(manager, **variables):
    """The answer to the text that the template makes."""
    text = manager.apply_chat_template(TURN, **variables)
    return manager.generate(text, **GREEDY, max_new_tokens=6)


def calls(manager):
    """The same conversation through every call."""
    params = {**GREEDY, "max_new_tokens": 6}
    handle = TextGenerator(manager, SLOT)

    async def pieces(**more):
        return "".join([piece async for piece in manager.astream(TURN, **params, **more)])

    def submitted(**more):
        done = asyncio.run(manager.agenerate(TURN, **params, **more))
        assert done == asyncio.run(manager.achat(TURN, **params, **more))
        return done

    return {
        "generate": lambda **more: manager.generate(TURN, **params, **more),
        "complete": lambda **more: manager.complete(TURN, **params, **more)["text"],
        "stream": lambda **more: "".join(manager.stream(TURN, **params, **more)),
        "chat": lambda **more: manager.chat(iter(TURN), **params, **more),
        "asyncio": submitted,
        "astream": lambda **more: asyncio.run(pieces(**more)),
        "pipeline": lambda **more: handle(TURN, return_full_text=False, **params, **more)[0]["generated_text"],
        "conversations": lambda **more: handle([TURN, TURN], return_full_text=False, **params, **more)[1][0][
            "generated_text"
        ],
        "acall": lambda **more: asyncio.run(handle.acall(TURN, return_full_text=False, **params, **more))[0][
            "generated_text"
        ],
    }


def test_every_call_passes_the_variables_on(thinker):
    plain, off = expected(thinker), expected(thinker, **OFF)
    assert plain != off
    for name, call in calls(thinker).items():
        assert call() == plain, name
        for nothing in (None, {}):
            assert call(chat_template_kwargs=nothing) == plain, name
        assert call(chat_template_kwargs=OFF) == off, name


def test_values_of_every_kind(thinker):
    for value in ("İyi", 3, 1.5, None, ["a", {"b": (1, 2)}]):
        given = {"mood": value}
        answer = thinker.generate(TURN, **GREEDY, max_new_tokens=6, chat_template_kwargs=given)
        assert answer == expected(thinker, **given)


def test_numbers_of_numpy_are_those_of_python(thinker):
    apply = thinker.apply_chat_template
    for value in (
        np.int64(3),
        np.uint8(3),
        np.float32(1.5),
        np.float64(1.5),
        np.bool_(False),
        np.bool_(True),
        np.array(3),
    ):
        assert apply(TURN, mood=value) == apply(TURN, mood=value.item())
    assert apply(TURN, enable_thinking=np.bool_(False)) == apply(TURN, **OFF) != apply(TURN)
    for value in (np.zeros(2), np.zeros((1, 1)), np.datetime64("2026-01-01"), np.complex64(1)):
        with pytest.raises(TypeError, match="may hold None"):
            apply(TURN, mood=value)


@pytest.mark.parametrize("prompt", ["Merhaba", [5, 6]])
def test_a_prompt_that_goes_past_the_template(thinker, prompt):
    assert thinker.generate(prompt, max_new_tokens=2, chat_template_kwargs={}) is not None
    said = r"chat_template_kwargs: a text and token ids do not go through the chat template; give messages, or leave"
    with pytest.raises(ArgumentError, match=said) as caught:
        thinker.generate(prompt, chat_template_kwargs=OFF)
    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (7, TypeError, "chat_template_kwargs must be a mapping of the template's variables to values, not int"),
        ("enable_thinking", TypeError, "mapping .* not str"),
        ([("a", 1)], TypeError, "mapping .* not list"),
        ({1: 2}, TypeError, "chat_template_kwargs must have str as names, not int"),
        ({"mood": object()}, TypeError, "chat_template_kwargs may hold None, .*, not object"),
        ({"mood": 1 << 200}, ArgumentError, "chat_template_kwargs hold an integer of more than 127 bits"),
        ({"mood": "\ud800"}, InputError, "surrogate"),
        ({"\ud800": 1}, InputError, "surrogate"),
        ({"messages": []}, ArgumentError, r"chat_template_kwargs\['messages'\]: the call or the model sets this"),
        ({"add_generation_prompt": False}, ArgumentError, "'add_generation_prompt'.*leave it out"),
        ({"bos_token": "<s>"}, ArgumentError, "'bos_token'"),
        ({"additional_special_tokens": []}, ArgumentError, "'additional_special_tokens'"),
        ({"enable_thinkin": True}, ArgumentError, '"enable_thinkin", .* does not read: leave it out; it reads enable_'),
        ({"range": 1}, ArgumentError, "does not read"),
    ],
)
def test_what_is_refused(thinker, given, error, said):
    for name, call in calls(thinker).items():
        with pytest.raises(error, match=said) as caught:
            call(chat_template_kwargs=given)
        if error is not InputError:
            assert caught.value.param == "chat_template_kwargs", name


def test_a_model_whose_template_has_no_switch(gpt2):
    with pytest.raises(ArgumentError, match=r'"enable_thinking", which .* does not read: .* it reads no variable that'):
        gpt2.chat(TURN, chat_template_kwargs=OFF)
    # As in transformers.
    assert gpt2.apply_chat_template(TURN, enable_thinking=False) == gpt2.apply_chat_template(TURN)


def test_a_model_without_a_template(make_writer, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "llama", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    manager = make_writer(generator_model=str(folder))
    with pytest.raises(InputError, match="has no chat template"):
        manager.chat(TURN, chat_template_kwargs=OFF)
    described = manager.describe_generator()
    assert (described["chat_template_variables"], described["thinks"]) == ([], False)


def test_the_description_names_the_variables(thinker, gpt2):
    assert thinker.describe_generator()["chat_template_variables"] == ["enable_thinking", "mood"]
    assert thinker.describe_generator()["thinks"] is True
    assert gpt2.describe_generator()["thinks"] is False


def test_no_call_has_an_argument_of_this_name_for_something_else():
    assert "chat_template_kwargs" in TextGenerator.__call__.__doc__
    assert "chat_template_kwargs" not in inspect.signature(TextGenerator.__init__).parameters


CONVERSATIONS = [
    TURN,
    [{"role": "system", "content": "Kısa yaz."}, *TURN, {"role": "assistant", "content": "a"}, *TURN],
]


def text(manager, messages, source, **variables):
    """What the template makes of the messages, or why it refuses them."""
    try:
        return manager.apply_chat_template(messages, chat_template=source, **variables)
    except InputError as error:
        return str(error)


OWN = {"messages", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token", "raise_exception"}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_variables_of_templates_of_models(path, tmp_path):
    """Jinja2 names a few more: those that a template always sets before it reads them. They change nothing."""
    source = path.read_text()
    folder = tmp_path / "model"
    shutil.copytree(GPT2, folder)
    (folder / "chat_template.jinja").write_text(source)
    with writer(generator_model=str(folder)) as manager:
        reads = set(manager.describe_generator()["chat_template_variables"])
        named = jinja2.meta.find_undeclared_variables(reference.environment().parse(source)) - OWN
        named -= reference.environment().globals.keys() | {"strftime_now"}
        assert reads <= named
        for name in named - reads:
            for messages in CONVERSATIONS:
                assert text(manager, messages, source) == text(manager, messages, source, **{name: "x"}), name


def test_the_switches_of_well_known_models(tmp_path):
    found = {}
    for name in ("qwen3", "smollm3", "deepseek_r1", "qwen2_5"):
        folder = tmp_path / name
        shutil.copytree(GPT2, folder)
        shutil.copyfile(FIXTURES / "chat_templates" / f"{name}.jinja", folder / "chat_template.jinja")
        with writer(generator_model=str(folder)) as manager:
            described = manager.describe_generator()
            found[name] = ("enable_thinking" in described["chat_template_variables"], described["thinks"])
            if name == "qwen3":
                with pytest.raises(ModelManagerError, match=r"it reads enable_thinking, tools$"):
                    manager.chat(TURN, chat_template_kwargs={"thinking": False})
    assert found == {
        "qwen3": (True, True),
        "smollm3": (True, True),
        "deepseek_r1": (False, True),
        "qwen2_5": (False, False),
    }
