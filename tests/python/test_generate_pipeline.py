"""`text_generator`: the calls of a transformers text-generation pipeline."""

from __future__ import annotations

import asyncio
import pickle
import re
import shutil
from types import MappingProxyType

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, FIXTURES
from generators import CONTEXT, GREEDY, SLOT, TEXT, WITHOUT_END, eventually, figures
from model_manager import ModelManager
from model_manager.errors import ArgumentError, InputError, NoGeneratorError
from model_manager.handles.text_generator import NEW_TOKENS, TextGenerator
from servers import until

TURN = [{"role": "user", "content": "Merhaba"}]


@pytest.fixture(scope="module")
def pipeline(gpt2):
    return gpt2.text_generator


def test_greedy_by_default(gpt2, pipeline):
    answer = gpt2.generate(TEXT, **GREEDY, max_new_tokens=12)
    assert pipeline(TEXT, max_new_tokens=12) == [{"generated_text": TEXT + answer}]
    assert pipeline(TEXT, max_new_tokens=12, return_full_text=False) == [{"generated_text": answer}]
    # A pipeline does not use the configured temperature.
    sampled = pipeline(TEXT, max_new_tokens=12, do_sample=True, seed=3, return_full_text=False)
    expected = gpt2.generate(TEXT, max_new_tokens=12, do_sample=True, seed=3, temperature=1.0)
    assert sampled == [{"generated_text": expected}]


def test_the_length_when_none_is_given(endless):
    before = figures(endless)["generated_tokens"]
    endless.text_generator("a", min_new_tokens=NEW_TOKENS)
    assert figures(endless)["generated_tokens"] - before == NEW_TOKENS


def test_max_length_includes_the_prompt(gpt2, pipeline):
    prompt = gpt2.complete(TEXT, max_new_tokens=1)["prompt_tokens"]
    (answer,) = pipeline(TEXT, max_length=prompt + 4, return_full_text=False)
    assert answer == {"generated_text": gpt2.generate(TEXT, **GREEDY, max_new_tokens=4)}


def test_several_prompts_are_several_lists(gpt2, pipeline):
    prompts = [f"{TEXT} {number}" for number in range(40)]
    found = pipeline(prompts, max_new_tokens=6)
    assert found == [pipeline(prompt, max_new_tokens=6) for prompt in prompts]
    assert pipeline([TEXT], max_new_tokens=6) == [pipeline(TEXT, max_new_tokens=6)]
    assert pipeline([]) == []


def test_several_sequences(pipeline):
    options = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 15, "num_return_sequences": 4}
    found = pipeline(TEXT, seed=5, **options)
    assert len({answer["generated_text"] for answer in found}) == 4
    assert found == pipeline(TEXT, seed=5, **options)
    both = pipeline([TEXT, "Selam"], seed=5, **options)
    assert both[0] == found
    assert len(both[1]) == 4
    with pytest.raises(ValueError, match="do_sample"):
        pipeline(TEXT, num_return_sequences=2)


def test_conversations(gpt2, pipeline):
    answer = gpt2.chat(TURN, **GREEDY, max_new_tokens=8)
    turn = {"role": "assistant", "content": answer}
    assert pipeline(TURN, max_new_tokens=8) == [{"generated_text": [*TURN, turn]}]
    assert pipeline(TURN, max_new_tokens=8, return_full_text=False) == [{"generated_text": answer}]
    assert pipeline([TURN, TURN], max_new_tokens=8) == [[{"generated_text": [*TURN, turn]}]] * 2


def test_messages_may_be_any_mapping(pipeline):
    turn = {"role": "user", "content": TEXT}
    expected = pipeline([turn], max_new_tokens=5)[0]["generated_text"][-1]
    assert pipeline([MappingProxyType(turn)], max_new_tokens=5)[0]["generated_text"][-1] == expected
    several = pipeline([[MappingProxyType(turn)], [turn]], max_new_tokens=5)
    assert [found[0]["generated_text"][-1] for found in several] == [expected, expected]


def test_a_last_message_of_the_assistant_is_continued(gpt2, pipeline):
    begun = [*TURN, {"role": "assistant", "content": "Selam "}]
    text = gpt2.apply_chat_template(begun, continue_final_message=True)
    assert text.endswith("Selam ")
    answer = gpt2.generate(text, **GREEDY, max_new_tokens=8)
    for call in (gpt2.chat, gpt2.generate):
        assert call(begun, **GREEDY, max_new_tokens=8, continue_final_message=True) == answer
        assert call(begun, **GREEDY, max_new_tokens=8) != answer
    turn = {"role": "assistant", "content": f"Selam {answer}"}
    whole = [{"generated_text": [*TURN, turn]}]
    assert pipeline(begun, max_new_tokens=8) == pipeline(TURN + begun[1:], max_new_tokens=8) == whole
    assert asyncio.run(pipeline.acall(begun, max_new_tokens=8)) == whole
    assert pipeline(begun, max_new_tokens=8, return_full_text=False) == [{"generated_text": answer}]
    [found] = pipeline(begun, max_new_tokens=8, continue_final_message=False)
    assert found["generated_text"][:2] == begun
    assert pipeline(TEXT, max_new_tokens=8, continue_final_message=True) == pipeline(TEXT, max_new_tokens=8)
    with pytest.raises(ArgumentError, match="continue_final_message: a text and token ids are continued anyway"):
        gpt2.generate(TEXT, continue_final_message=True)


@pytest.mark.parametrize(
    ("content", "continued"),
    [
        (None, lambda answer: answer),
        ("", lambda answer: answer),
        ([], lambda answer: [{"type": "text", "text": answer}]),
        (
            [{"type": "text", "text": "Selam"}, MappingProxyType({"type": "text", "text": "dün", "id": 7})],
            lambda answer: [{"type": "text", "text": "Selam"}, {"type": "text", "text": f"dün{answer}", "id": 7}],
        ),
    ],
)
def test_contents_that_are_continued(gpt2, pipeline, content, continued):
    """Parts are joined by line breaks, so that an answer in a part of its own would not continue the text."""
    begun = [*TURN, {"role": "assistant", "content": content}]
    answer = gpt2.chat(begun, **GREEDY, max_new_tokens=8, continue_final_message=True)
    whole = [*TURN, {"role": "assistant", "content": continued(answer)}]
    assert pipeline(begun, max_new_tokens=8) == [{"generated_text": whole}]
    assert begun[-1]["content"] is content


def test_what_changes_nothing_is_accepted(pipeline):
    end = pipeline.tokenizer.eos_token_id
    plain = pipeline(TEXT, max_new_tokens=8)
    same = pipeline(
        TEXT,
        max_new_tokens=8,
        pad_token_id=end,
        eos_token_id=end,
        truncation=True,
        clean_up_tokenization_spaces=True,
        num_return_sequences=1,
        batch_size=4,
        temperature=None,
    )
    assert same == plain
    for own in ([end], (end,), [end, end], np.int64(end), [np.int32(end)]):
        assert pipeline(TEXT, max_new_tokens=8, eos_token_id=own) == plain


def test_stop_strings_by_either_name(gpt2, pipeline):
    whole = gpt2.generate(TEXT, **GREEDY, max_new_tokens=30)
    stop = whole[5:7]
    expected = [{"generated_text": TEXT + whole[: whole.index(stop)]}]
    assert pipeline(TEXT, max_new_tokens=30, stop=stop) == expected
    assert pipeline(TEXT, max_new_tokens=30, stop_strings=[stop]) == expected
    with pytest.raises(ArgumentError, match="stop and stop_strings are the same option"):
        pipeline(TEXT, max_new_tokens=30, stop=[stop], stop_strings=["@@"])


def test_a_prompt_that_leaves_no_room(pipeline):
    with pytest.raises(InputError, match="max_length=5"):
        pipeline(TEXT, max_length=5)
    assert pipeline(TEXT, max_length=5, truncation=True) == [{"generated_text": TEXT}]
    assert pipeline(["Selam", TEXT], max_length=8, truncation=True)[1] == [{"generated_text": TEXT}]
    # The prompt exceeds every length.
    for prompt in ("", "word " * CONTEXT):
        with pytest.raises(InputError, match="prompt"):
            pipeline(prompt, max_length=5, truncation=True)


CALLS = {
    "sync": lambda handle: handle,
    "asyncio": lambda handle: lambda *args, **more: asyncio.run(handle.acall(*args, **more)),
}


@pytest.mark.parametrize("name", CALLS)
def test_counting_a_full_prompt_stays_in_the_scope_of_the_call(make_writer, name):
    manager = make_writer()
    prompt = "Merhaba dünya, bugün hava çok güzel"
    call = CALLS[name](manager.text_generator)
    assert call(prompt, max_length=5, truncation=True, prefix_scope="a") == [{"generated_text": prompt}]
    reused = [
        manager.complete(prompt, **GREEDY, max_new_tokens=2, prefix_scope=scope)["reused_tokens"]
        for scope in (None, "a")
    ]
    assert reused[0] == 0 < reused[1]


@pytest.mark.parametrize("name", CALLS)
def test_counting_a_full_prompt_has_the_options_of_the_call(make_writer, monkeypatch, name):
    asked = []
    for method in ("complete", "submit_generation"):
        original = getattr(ModelManager, method)

        def record(self, *args, original=original, **params):
            asked.append(params)
            return original(self, *args, **params)

        monkeypatch.setattr(ModelManager, method, record)
    manager = make_writer()
    call = CALLS[name](manager.text_generator)
    given = {"timeout": 60.0, "keep_alive": 0, "prefix_scope": "a", "user": "u"}
    assert call(TEXT, max_length=5, truncation=True, **given) == [{"generated_text": TEXT}]
    assert given.items() <= asked[-1].items()
    eventually(lambda: not manager.is_loaded(SLOT))
    # What the call's options say is not swallowed by an empty answer.
    with pytest.raises(InputError, match="temperature"):
        call(TEXT, max_length=5, truncation=True, temperature=-1)


@pytest.mark.parametrize("name", CALLS)
def test_a_full_prompt_is_counted_as_its_template_makes_it(make_writer, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "gpt2", folder)
    (folder / "chat_template.jinja").write_text(
        "{{ messages[0]['content'] }}{% if long %}{{ ' dünya' * 4 }}{% endif %}"
    )
    manager = make_writer(generator_model=str(folder))
    long = {"chat_template_kwargs": {"long": True}}
    length = manager.complete(TURN, **GREEDY, max_new_tokens=1)["prompt_tokens"] + 2
    assert manager.complete(TURN, **GREEDY, max_new_tokens=1, **long)["prompt_tokens"] > length
    call = CALLS[name](manager.text_generator)
    (answer,) = call(TURN, max_length=length, truncation=True, return_full_text=False, **long)
    assert answer == {"generated_text": ""}


@pytest.mark.parametrize("prompt", [None, 7, b"bytes", {"role": "user"}, [7], [None]])
def test_what_is_no_prompt(pipeline, prompt):
    with pytest.raises(TypeError):
        pipeline(prompt)


def test_wrong_options(pipeline):
    with pytest.raises(TypeError, match="num_beams"):
        pipeline(TEXT, num_beams=4)
    with pytest.raises(TypeError, match="stop"):
        pipeline(TEXT, stop=7)
    end = pipeline.tokenizer.eos_token_id
    for other in (5, [5], (end, 5), []):
        with pytest.raises(InputError, match=re.escape(f"eos_token_id={other!r}: only")):
            pipeline(TEXT, eos_token_id=other)
    for wrong in (float(end), [float(end)], True, "end"):
        with pytest.raises(TypeError, match="eos_token_id must be an int, not"):
            pipeline(TEXT, eos_token_id=wrong)
    with pytest.raises(InputError, match="top_p"):
        pipeline(TEXT, do_sample=True, top_p=-0.5)


def test_an_error_ends_the_other_answers(endless):
    with pytest.raises(InputError):
        endless.text_generator(["a", ""], **WITHOUT_END)
    assert endless.generate("still alive", max_new_tokens=3) is not None
    assert figures(endless)["cancelled"] == 1


async def test_asynchronous_calls(pipeline):
    assert await pipeline.acall(TEXT, max_new_tokens=8) == pipeline(TEXT, max_new_tokens=8)
    assert await pipeline.acall(TURN, max_new_tokens=8) == pipeline(TURN, max_new_tokens=8)
    assert await pipeline.acall(TEXT, max_length=5, truncation=True) == [{"generated_text": TEXT}]
    with pytest.raises(InputError, match="max_length=5"):
        await pipeline.acall(TEXT, max_length=5)
    with pytest.raises(InputError, match="empty"):
        await pipeline.acall("", max_length=5, truncation=True)
    with pytest.raises(TypeError, match="gather"):
        await pipeline.acall([TEXT, TEXT])
    with pytest.raises(TypeError, match="one text or conversation, not 0"):
        await pipeline.acall([])


def test_the_tokenizer(pipeline):
    assert pipeline.tokenizer.eos_token_id == 316
    assert pipeline.tokenizer.eos_token == "<|endoftext|>"
    assert pipeline.tokenizer.model_max_length == pipeline.context_length == CONTEXT


def test_the_tokenizer_applies_the_chat_template(make_writer):
    """With the arguments and defaults of transformers, but for the result, which is a text."""
    manager = make_writer("qwen3")
    template = manager.text_generator.tokenizer.apply_chat_template
    prompt = template(TURN, tokenize=False, add_generation_prompt=True)
    assert prompt == template(tuple(TURN), None, None, None, True, tokenize=False) == manager.apply_chat_template(TURN)
    assert template(TURN, tokenize=False) == manager.apply_chat_template(TURN, add_generation_prompt=False) != prompt
    begun = [*TURN, {"role": "assistant", "content": "Selam"}]
    assert template(begun, tokenize=False, continue_final_message=True).endswith("Selam")
    tools = [{"type": "function", "function": {"name": "now"}}]
    assert template(TURN, tools, tokenize=False) == manager.apply_chat_template(
        TURN, tools=tools, add_generation_prompt=False
    )
    assert template(TURN, chat_template="{{ a }}", a="b", tokenize=False) == "b"
    for wrong in ({}, {"tokenize": True}, {"tokenize": None}):
        with pytest.raises(ArgumentError, match="tokenize: the result is a text; pass tokenize=False"):
            template(TURN, **wrong)


def test_how_it_looks(make_writer):
    manager = make_writer()
    handle = TextGenerator(manager)
    assert repr(handle) == "<TextGenerator 'text_generator', not loaded>"
    assert "not loaded" in handle._repr_html_()
    assert not manager.is_loaded(SLOT), "looking loads nothing"
    handle(TEXT, max_new_tokens=4)
    # The answer is there a moment before its sequence has left.
    until(lambda: "1, 0 running, 0 waiting" in handle._repr_html_())
    assert str(FIXTURES / "gpt2") in handle._repr_html_()
    assert handle.task == "text-generation"
    assert handle.device == "cpu"
    manager.close()
    assert "not loaded" in handle._repr_html_()
    assert "not loaded" in repr(handle)


def test_a_handle_on_something_else(make_writer):
    manager = make_writer()
    manager.register("vectors", ENGLISH_MODEL)
    with pytest.raises(NoGeneratorError):
        TextGenerator(manager, "vectors")(TEXT)


def test_further_generators(make_writer):
    manager = make_writer()
    manager.register("small", str(FIXTURES / "qwen3"), kind="generator", dtype="int8")
    manager.register("text_generator", str(FIXTURES / "llama"))
    assert manager.describe_generator("small")["path"] == str(FIXTURES / "qwen3")
    assert manager.describe_generator()["path"] == str(FIXTURES / "llama")
    assert isinstance(manager.get("small"), TextGenerator)
    assert manager.get("small")(TEXT, max_new_tokens=5) != manager.text_generator(TEXT, max_new_tokens=5)
    assert manager.count_tokens(TEXT, "small") == manager.complete(TEXT, "small")["prompt_tokens"]
    for wrong in ({"kind": "writer"}, {"kind": "generator", "pooling": "mean"}):
        with pytest.raises(InputError):
            manager.register("another", str(FIXTURES / "qwen3"), **wrong)
    again = pickle.loads(pickle.dumps(manager))
    with again:
        assert again.get("small")(TEXT, max_new_tokens=5) == manager.get("small")(TEXT, max_new_tokens=5)
