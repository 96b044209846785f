"""`generate_text_response` and `generate_huggingface_response` with a generator of this package, the tiny GPT-2."""

from __future__ import annotations

import asyncio
import sys
import threading
import types

import pytest
from conftest import run_python
from generators import GPT2, SLOT, WITHOUT_END, eventually, figures, stretched
from model_manager.compat.rules import FALLBACK_ANSWERS, SAMPLING, build_prompt, clean_answer
from model_manager.errors import InputError

SHORT = "Bu ne?"
ENGLISH = "What?"


@pytest.fixture
def roomy(make_writer, tmp_path):
    """A context as large as in a chatbot's models, which the tiny Llama allows and the tiny GPT-2 does not."""
    return make_writer(generator_model=str(stretched("llama", tmp_path / "llama", 1024)))


def spy(monkeypatch, manager):
    """Every request of the pipeline and of asyncio: (prompt, parameters)."""
    from model_manager.handles import text_generator

    seen = []
    cls = type(manager)
    stream, acomplete = cls.stream, text_generator.acomplete

    def streamed(self, prompt, model=None, **params):
        seen.append((prompt, params))
        return stream(self, prompt, model, **params)

    async def completed(self, prompt, model=None, **params):
        seen.append((prompt, params))
        return await acomplete(self, prompt, model, **params)

    monkeypatch.setattr(cls, "stream", streamed, raising=False)
    monkeypatch.setattr(text_generator, "acomplete", completed)
    return seen


EXPECTED = {key: value for key, value in SAMPLING.items() if key != "num_return_sequences"}


def test_how_the_model_is_asked(roomy, monkeypatch):
    seen = spy(monkeypatch, roomy)
    roomy.generate_text_response(SHORT)
    roomy.generate_text_response(ENGLISH, max_length=50)
    roomy.generate_text_response(SHORT, max_length=500, turkish_context=False)
    assert seen == [
        (f"Soru: {SHORT}\nYanıt:", {**EXPECTED, "max_length": 120}),
        (ENGLISH, {**EXPECTED, "max_length": 50}),
        (SHORT, {**EXPECTED, "max_length": 120}),
    ]
    assert EXPECTED == {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.85,
        "top_k": 40,
        "no_repeat_ngram_size": 3,
        "repetition_penalty": 1.3,
    }


async def test_how_the_model_is_asked_asynchronously(roomy, monkeypatch):
    seen = spy(monkeypatch, roomy)
    await roomy.generate_huggingface_response(SHORT)
    assert seen == [(f"Soru: {SHORT}\nYanıt:", {**EXPECTED, "max_length": 80})]


def test_the_prompt_is_cut(roomy, monkeypatch):
    seen = spy(monkeypatch, roomy)
    roomy.generate_text_response("çok " * 200)
    assert seen[0][0] == f"Soru: {('çok ' * 200)[:300]}\nYanıt:"


def test_the_answer_is_the_cleaned_text(roomy, monkeypatch):
    """The answer is the model's text, cleaned: the same seed gives the same answer."""
    seen = spy(monkeypatch, roomy)
    monkeypatch.setitem(SAMPLING, "seed", 11)
    answer = roomy.generate_text_response(SHORT, max_length=60)
    ((prompt, params),) = seen
    completion = roomy.complete(prompt, **params)
    assert completion["prompt_tokens"] + completion["completion_tokens"] <= 60
    assert answer == clean_answer(prompt + completion["text"], prompt)


@pytest.mark.parametrize("prompt", [ENGLISH, SHORT])
def test_it_loads_at_its_first_use(make_writer, prompt):
    manager = make_writer()
    assert isinstance(manager.generate_text_response(prompt), str)
    assert manager.get_model_info()["text_generator_loaded"] is True
    assert manager.tracker.get_statistics()["load_counts"] == {SLOT: 1}


def test_keep_alive_zero_loads_once_for_each_answer(make_writer):
    manager = make_writer(keep_alive=0)
    manager.generate_text_response(ENGLISH)
    assert manager.tracker.get_statistics()["load_counts"] == {SLOT: 1}


def test_a_prompt_that_leaves_no_room_has_no_answer(roomy):
    dressed = build_prompt("çok güzel " * 30)
    tokens = roomy.complete(dressed, max_new_tokens=1)["prompt_tokens"]
    assert tokens >= 120
    assert roomy.generate_text_response("çok güzel " * 30) == ""
    assert roomy.generate_text_response(SHORT) is not None


async def test_a_prompt_that_leaves_no_room_is_answered_politely(roomy, caplog):
    assert await roomy.generate_huggingface_response("çok güzel " * 30) in FALLBACK_ANSWERS
    assert "No answer could be generated" not in caplog.text, "that is no failure"


def test_what_is_wrong_with_the_request_is_told(make_writer):
    manager = make_writer()
    with pytest.raises(InputError, match="empty"):
        manager.generate_text_response("")
    with pytest.raises(InputError, match="surrogate"):
        manager.generate_text_response("\ud800", turkish_context=False)
    assert isinstance(manager.generate_text_response(ENGLISH), str)


@pytest.mark.parametrize("model", ["/no/such/model", "bert"])
async def test_a_generator_that_cannot_be_loaded(make_writer, caplog, model):
    from conftest import ENGLISH_MODEL

    manager = make_writer(generator_model=ENGLISH_MODEL if model == "bert" else model)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^Text generator not available$"):
            manager.generate_text_response(ENGLISH)
        assert manager.text_generator is None
        assert await manager.generate_huggingface_response(ENGLISH) in FALLBACK_ANSWERS
    assert caplog.text.count("There is no text generator") == 1, "logged once"


@pytest.mark.parametrize("message", [None, 7, "", "\ud800", "\0", "x" * 1_000_000])
async def test_no_message_makes_it_raise(make_writer, message):
    assert await make_writer().generate_huggingface_response(message) is not None


async def test_many_at_once_need_no_threads(make_writer, monkeypatch):
    manager = make_writer()
    manager.quality_threshold = 0.0
    monkeypatch.setattr(asyncio, "to_thread", None)
    before = threading.active_count()
    answers = await asyncio.gather(*(manager.generate_huggingface_response(SHORT) for _ in range(50)))
    assert threading.active_count() <= before + 1, "the generator's own"
    assert all(isinstance(answer, str) and answer for answer in answers)
    assert manager.tracker.get_statistics()["load_counts"] == {SLOT: 1}


async def test_cancelling_stops_the_answer(endless, monkeypatch):
    monkeypatch.setattr("model_manager.compat.chatbot._response_options", lambda _length: dict(WITHOUT_END))
    task = asyncio.create_task(endless.generate_huggingface_response(SHORT))
    await asyncio.to_thread(eventually, lambda: figures(endless)["active"] == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(eventually, lambda: figures(endless)["cancelled"] == 1)
    assert figures(endless)["generated_tokens"] < 5000


async def test_the_hosts_answer_needs_no_generator(make_writer, monkeypatch):
    module = types.ModuleType("improved_turkish_content_manager")
    module.improved_turkish_content = types.SimpleNamespace(get_response=lambda message: "Hazır cevap.")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    manager = make_writer()
    assert await manager.generate_huggingface_response(SHORT) == "Hazır cevap."
    assert not manager.is_loaded(SLOT)


def test_warm_up(make_writer):
    manager = make_writer()
    manager.warmup_models()
    assert manager.is_loaded(SLOT)
    without = make_writer(use_huggingface=False)
    without.warmup_models()
    assert not without.is_loaded(SLOT)
    without.warmup_models([SLOT])
    assert without.is_loaded(SLOT)


def test_the_chatbots_own_lines():
    """The chatbot's way: the process-wide object, configured by the environment after the import."""
    code = f"""
import asyncio, os
from model_manager import model_manager
os.environ["HUGGINGFACE_MODEL"] = {GPT2!r}
assert model_manager._text_generator_model is None
generator = model_manager.text_generator
found = generator("Merhaba", max_length=30, do_sample=True, temperature=0.7, truncation=True,
                  pad_token_id=generator.tokenizer.eos_token_id)
assert found[0]["generated_text"].startswith("Merhaba")
assert isinstance(model_manager.generate_text_response("Merhaba"), str)
assert asyncio.run(model_manager.generate_huggingface_response("Merhaba", "user"))
assert model_manager.get_model_info()["model_config"] == {{"text_generator_model": {GPT2!r}}}
print("ok")
"""
    assert run_python(code).stdout == "ok\n"
