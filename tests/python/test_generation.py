"""Text generation by a custom object that a loader put into the generator's slot."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import types

import pytest
from conftest import FIXTURES
from model_manager import ModelManager
from model_manager.compat.rules import FALLBACK_ANSWERS
from model_manager.errors import ModelNotFoundError

GOOD = "Bu sistem metinleri sayılara çevirir ve birbirine benzeyen metinleri bulur."


class Generator:
    """A text-generation pipeline that records its calls."""

    class tokenizer:  # noqa: N801
        eos_token_id = 42

    def __init__(self, answer=GOOD):
        self.answer = answer
        self.calls = []

    def __call__(self, prompt, **options):
        self.calls.append((prompt, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return [{"generated_text": f"{prompt} {self.answer}"}]


def with_generator(manager, generator):
    manager.register("text_generator", loader=lambda: generator)
    return generator


def test_without_a_generator(manager, caplog):
    assert manager.text_generator is None
    assert manager.text_generator is None
    assert caplog.text.count("no text generator") == 1, "logged once"
    with pytest.raises(RuntimeError, match=r"^Text generator not available$"):
        manager.generate_text_response("hello")
    with pytest.raises(ModelNotFoundError, match="turkish-gpt2-large"):
        manager.load("text_generator")
    assert manager.get_model_info()["text_generator_loaded"] is False


async def test_without_a_generator_there_is_still_an_answer(manager):
    assert await manager.generate_huggingface_response("Nasılsın?") in FALLBACK_ANSWERS


def test_the_object_of_the_slot(manager):
    generator = with_generator(manager, Generator())
    assert manager._text_generator_model is None
    assert manager.text_generator is generator
    assert manager._text_generator_model is generator
    assert manager.text_generator.tokenizer.eos_token_id == 42
    assert manager.get_model_info()["text_generator_loaded"] is True
    assert manager.unload("text_generator")
    assert manager._text_generator_model is None


def test_how_the_generator_is_called(manager):
    generator = with_generator(manager, Generator())
    assert manager.generate_text_response("Bu nasıl çalışır?") == GOOD
    prompt, options = generator.calls[0]
    assert prompt == "Soru: Bu nasıl çalışır?\nYanıt:"
    assert options == {
        "max_length": 120,
        "truncation": True,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.85,
        "top_k": 40,
        "no_repeat_ngram_size": 3,
        "repetition_penalty": 1.3,
        "num_return_sequences": 1,
        "pad_token_id": 42,
    }


def test_length_is_capped(manager):
    generator = with_generator(manager, Generator())
    manager.generate_text_response("hello", max_length=60)
    manager.generate_text_response("hello", max_length=600)
    assert [options["max_length"] for _, options in generator.calls] == [60, 120]


def test_a_plain_function_will_do(manager):
    manager.register("text_generator", loader=lambda: lambda prompt, **_: [{"generated_text": "Short and fine."}])
    assert manager.generate_text_response("hello") == "Short and fine."


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("a text", "'a text'"),
        (None, "None"),
        ([], r"\[\]"),
        ([{"text": "a"}], r"\[{'text': 'a'}\]"),
        ([{"generated_text": None}], r"\[{'generated_text': None}\]"),
        ([[{"generated_text": "a"}]], r"\[\[{"),
    ],
)
async def test_an_answer_of_another_form_is_named(manager, caplog, answer, said):
    manager.register("text_generator", loader=lambda: lambda prompt, **options: answer)
    said = r'the text generator must return \[{"generated_text": str}\], not ' + said
    with pytest.raises(TypeError, match=said):
        manager.generate_text_response("hello")
    assert await manager.generate_huggingface_response("hello") in FALLBACK_ANSWERS
    assert re.search(said, caplog.text)


async def test_a_good_answer_is_passed_on(manager):
    generator = with_generator(manager, Generator())
    assert await manager.generate_huggingface_response("Bu ne?", user_id="7") == GOOD
    assert generator.calls[0][1]["max_length"] == 80


@pytest.mark.parametrize("answer", ["x", "evet evet evet evet evet", ValueError("broken"), RuntimeError("out of luck")])
async def test_a_bad_answer_or_a_failure_becomes_a_fallback(manager, answer):
    with_generator(manager, Generator(answer))
    assert await manager.generate_huggingface_response("Bu ne?") in FALLBACK_ANSWERS


@pytest.mark.parametrize("message", [None, 7, "", "\ud800", "\0", "x" * 1_000_000])
async def test_no_message_makes_it_raise(manager, message):
    with_generator(manager, Generator("x"))
    assert await manager.generate_huggingface_response(message) in FALLBACK_ANSWERS


async def test_fallbacks_and_threshold_can_be_set(manager):
    with_generator(manager, Generator("yes it is so"))
    manager.fallback_answers = ["Özür dilerim."]
    assert await manager.generate_huggingface_response("Bu ne?") == "Özür dilerim."
    manager.quality_threshold = 0.0
    assert await manager.generate_huggingface_response("Bu ne?") == "yes it is so"
    assert ModelManager.fallback_answers is FALLBACK_ANSWERS


async def test_the_event_loop_goes_on(manager):
    class Slow(Generator):
        def __call__(self, prompt, **options):
            assert went_on.wait(30)
            self.thread = threading.current_thread()
            return super().__call__(prompt, **options)

    went_on = threading.Event()
    generator = with_generator(manager, Slow())
    answer = asyncio.create_task(manager.generate_huggingface_response("Bu ne?"))
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert not answer.done()
    went_on.set()
    await answer
    assert generator.thread is not threading.main_thread()


@pytest.fixture
def host(monkeypatch):
    """The chatbot's own content manager."""
    module = types.ModuleType("improved_turkish_content_manager")
    module.improved_turkish_content = types.SimpleNamespace(
        get_response=lambda message: "Hazır cevap.", fallback_responses=["Bilmiyorum."]
    )
    monkeypatch.setitem(sys.modules, "improved_turkish_content_manager", module)
    return module.improved_turkish_content


async def test_the_hosts_answer_wins(manager, host):
    generator = with_generator(manager, Generator())
    assert await manager.generate_huggingface_response("Bu ne?") == "Hazır cevap."
    assert generator.calls == []


@pytest.mark.parametrize("answer", ["Bilmiyorum.", "", "  ", None])
async def test_the_hosts_fallback_does_not(manager, host, answer):
    with_generator(manager, Generator())
    host.get_response = lambda message: answer
    assert await manager.generate_huggingface_response("Bu ne?") == GOOD


@pytest.mark.parametrize("fallbacks", [{"greeting": ["Merhaba!", "Bilmiyorum."]}, {"unknown": "Bilmiyorum."}])
async def test_the_hosts_fallbacks_by_subject(manager, host, fallbacks):
    with_generator(manager, Generator())
    host.fallback_responses = fallbacks
    assert await manager.generate_huggingface_response("Bu ne?") == "Hazır cevap."
    host.get_response = lambda message: "Bilmiyorum."
    assert await manager.generate_huggingface_response("Bu ne?") == GOOD


@pytest.mark.parametrize("code", ["raise KeyError('A_SETTING')", "import no_such_dependency_", "def ("])
async def test_a_host_that_cannot_be_imported_does_not_matter(manager, monkeypatch, tmp_path, caplog, code):
    (tmp_path / "improved_turkish_content_manager.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with_generator(manager, Generator())
    assert await manager.generate_huggingface_response("Bu ne?") == GOOD
    assert re.search("improved_turkish_content failed: .*(A_SETTING|no_such_dependency_|Syntax)", caplog.text)


async def test_a_blocked_import_is_no_host(manager, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "improved_turkish_content_manager", None)
    with_generator(manager, Generator())
    assert await manager.generate_huggingface_response("Bu ne?") == GOOD
    assert not caplog.text


async def test_a_failing_host_does_not_matter(manager, host, caplog):
    def fail(message):
        raise ValueError("database gone")

    with_generator(manager, Generator())
    host.get_response = fail
    assert await manager.generate_huggingface_response("Bu ne?") == GOOD
    assert "database gone" in caplog.text


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "qwen3"])
def test_a_model_of_files_is_called_like_a_pipeline(make_manager, name):
    manager = make_manager(generator_model=str(FIXTURES / name), generator_dtype="float32")
    assert manager._text_generator_model is None
    generator = manager.text_generator
    options = {"max_length": 40, "do_sample": False, "num_return_sequences": 1, "truncation": True}
    (answer,) = generator("Merhaba dünya", pad_token_id=generator.tokenizer.eos_token_id, **options)
    assert answer["generated_text"].startswith("Merhaba dünya")
    (alone,) = generator("Merhaba dünya", return_full_text=False, **options)
    assert "Merhaba dünya" + alone["generated_text"] == answer["generated_text"]
    assert isinstance(manager.generate_text_response("Bu ne?"), str)
    assert manager.get_model_info()["model_config"] == {"text_generator_model": str(FIXTURES / name)}
    assert repr(generator) == "<TextGenerator 'text_generator', loaded>"
    assert manager.unload("text_generator")
    assert generator("Merhaba dünya", **options) == [answer], "and comes back"
