"""`complete`, `generate`, `chat` and `stream`: the tokens of the references, and the effect of every parameter."""

from __future__ import annotations

import json
import re
import threading

import pytest
from conftest import FIXTURES, reference
from generators import CONTEXT, GREEDY, NAMES, TEXT, WITHOUT_END, figures, stretched, writer


@pytest.mark.parametrize("name", NAMES)
def test_greedy_is_transformers_token_for_token(make_writer, name):
    manager = make_writer(name)
    known = reference(name)
    for case in known["cases"]:
        answer = manager.complete(case["prompt"], **GREEDY, max_new_tokens=len(case["greedy"]))
        assert answer["tokens"] == case["greedy"]
        assert answer["text"] == re.sub(r"<\|\w+\|>", "", case["greedy_text"]), "the reference shows special tokens"
        assert answer["prompt_tokens"] == len(case["ids"])
        assert manager.generate(case["prompt"], temperature=0, max_new_tokens=len(case["greedy"])) == answer["text"]
        penalised = manager.complete(
            case["prompt"], **GREEDY, **known["penalties"], max_new_tokens=len(case["penalised"])
        )
        assert penalised["tokens"] == case["penalised"]


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_chat_goes_through_the_template(make_writer, tmp_path, name):
    chat = reference(name)["chat"]
    manager = make_writer(generator_model=str(stretched(name, tmp_path / name, 256)))
    answer = manager.complete(chat["messages"], **GREEDY, max_new_tokens=8)
    assert answer["prompt_tokens"] == len(chat["ids"])
    # The template's text, continued, is the same conversation.
    assert manager.complete(chat["text"], **GREEDY, max_new_tokens=8)["tokens"] == answer["tokens"]
    assert manager.chat(chat["messages"], **GREEDY, max_new_tokens=8) == answer["text"]
    assert manager.chat(iter(chat["messages"]), **GREEDY, max_new_tokens=8) == answer["text"]


def test_turns_of_a_model_without_a_template_are_joined(make_writer):
    manager = make_writer("gpt2_bin")
    turns = [{"role": "user", "content": "Merhaba"}, {"role": "assistant", "content": "Selam"}]
    texts = [manager.complete(turn["content"], max_new_tokens=1)["prompt_tokens"] for turn in turns]
    # Every turn is followed by the end-of-text token.
    assert manager.complete(turns, max_new_tokens=1)["prompt_tokens"] == sum(texts) + len(turns)


def test_figures_of_an_answer(gpt2):
    answer = gpt2.complete(TEXT, seed=7, max_new_tokens=12, min_new_tokens=12)
    assert json.loads(json.dumps(answer)) == answer
    assert answer["completion_tokens"] == len(answer["tokens"]) == 12
    assert answer["finish_reason"] == "length"
    assert answer["seed"] == 7
    assert min(answer["queued_seconds"], answer["prefill_seconds"], answer["decode_seconds"]) >= 0
    assert answer["tokens_per_second"] > 0


def test_sampling_is_repeated_by_its_seed(gpt2):
    options = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 20, "min_new_tokens": 20}
    first = gpt2.complete(TEXT, seed=1, **options)
    assert gpt2.complete(TEXT, seed=1, **options)["tokens"] == first["tokens"]
    assert gpt2.complete(TEXT, seed=2, **options)["tokens"] != first["tokens"]
    drawn = gpt2.complete(TEXT, **options)
    assert gpt2.complete(TEXT, seed=drawn["seed"], **options)["tokens"] == drawn["tokens"]
    assert gpt2.complete(TEXT, **GREEDY, max_new_tokens=1)["seed"] is None


def test_without_do_sample_the_temperature_decides(make_writer):
    sampling = make_writer(temperature=2.0)
    assert sampling.complete(TEXT)["seed"] is not None
    assert make_writer(temperature=0.0).complete(TEXT)["seed"] is None


def test_one_candidate_is_greedy(gpt2):
    greedy = gpt2.generate(TEXT, **GREEDY, max_new_tokens=20)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert gpt2.generate(TEXT, do_sample=True, temperature=1.0, max_new_tokens=20, **narrow) == greedy


def test_lengths(gpt2, make_writer):
    prompt = gpt2.complete(TEXT, max_new_tokens=1)["prompt_tokens"]

    def written(manager, least, **lengths):
        return manager.complete(TEXT, **GREEDY, min_new_tokens=least, **lengths)["completion_tokens"]

    assert written(gpt2, 7, max_new_tokens=7) == 7
    assert written(gpt2, CONTEXT, max_length=prompt + 3) == 3
    assert written(gpt2, 5, max_length=prompt + 3, max_new_tokens=5) == 5
    # The context ends every answer.
    assert written(gpt2, 1000, max_new_tokens=1000) == CONTEXT - prompt
    assert written(make_writer(max_tokens=6), 6) == 6


def test_stop_strings(gpt2):
    whole = gpt2.generate(TEXT, **GREEDY, max_new_tokens=30)
    stop = whole[6:8]
    for wanted in (stop, [stop], ["never", stop]):
        answer = gpt2.complete(TEXT, **GREEDY, max_new_tokens=30, stop=wanted)
        assert answer["text"] == whole[: whole.index(stop)]
        assert answer["finish_reason"] == "stop"
    assert "".join(gpt2.stream(TEXT, **GREEDY, max_new_tokens=30, stop=stop)) == whole[: whole.index(stop)]


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_are_the_text(make_writer, name):
    manager = make_writer(name)
    for seed in range(20):
        options = {"do_sample": True, "temperature": 3.0, "seed": seed, "max_new_tokens": 40}
        stream = manager.stream(TEXT, **options)
        assert stream.completion is None
        pieces = list(stream)
        assert all(isinstance(piece, str) and piece for piece in pieces)
        assert "".join(pieces) == stream.completion["text"] == manager.generate(TEXT, **options)
        assert list(stream) == []


def test_a_character_of_several_tokens_comes_whole(make_writer):
    """Random sampling gives the bytes of Turkish letters one token at a time; no piece ends inside a character."""
    manager = make_writer("gpt2")
    several = 0
    for seed in range(60):
        stream = manager.stream(
            "çğıöşü ÇĞİÖŞÜ ", do_sample=True, temperature=1.5, top_k=0, seed=seed, max_new_tokens=40
        )
        pieces = list(stream)
        several += len(pieces) < stream.completion["completion_tokens"]
        # Decoding the whole text and decoding it in pieces give the same result.
        assert "".join(pieces) == stream.completion["text"]
        for piece in pieces:
            piece.encode()
    assert several > 10, "some pieces had to wait for the rest of a character"


def test_a_stream_ends_within_a_token(endless):
    stream = endless.stream(TEXT, **WITHOUT_END)
    for _ in range(5):
        next(stream)
    stream.cancel()
    rest = list(stream)
    answer = stream.completion
    assert answer["finish_reason"] == "cancelled"
    # The text that was written between the last piece and the cancellation is complete.
    assert 5 + len(rest) <= answer["completion_tokens"] < 50_000
    assert figures(endless)["cancelled"] == 1


def test_another_thread_ends_a_stream(endless):
    stream = endless.stream(TEXT, **WITHOUT_END)
    timer = threading.Timer(0.05, stream.cancel)
    timer.start()
    list(stream)
    timer.join()
    assert stream.completion["finish_reason"] == "cancelled"


def test_a_stream_that_is_let_go_ends(endless):
    stream = endless.stream(TEXT, **WITHOUT_END)
    next(stream)
    del stream
    assert endless.generate("still alive", max_new_tokens=3) is not None
    done = figures(endless)
    assert done["cancelled"] == 1
    assert done["generated_tokens"] < 50_000


def test_answers_of_several_threads(gpt2):
    prompts = [f"{TEXT} {number}" for number in range(12)]
    alone = [gpt2.generate(prompt, **GREEDY, max_new_tokens=20) for prompt in prompts]
    together = [None] * len(prompts)

    def work(number):
        together[number] = gpt2.generate(prompts[number], **GREEDY, max_new_tokens=20)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert together == alone


def test_the_next_turn_does_not_read_the_last_ones_again(gpt2):
    begin = "Bugün hava çok güzel, "
    gpt2.generate(begin, **GREEDY, max_new_tokens=1)
    again = gpt2.complete(begin + "değil mi?", **GREEDY, max_new_tokens=4)
    assert 0 < again["reused_tokens"] < again["prompt_tokens"]
    with writer() as fresh:
        assert fresh.complete(begin + "değil mi?", **GREEDY, max_new_tokens=4)["tokens"] == again["tokens"]


def test_quantized_at_load(make_writer):
    plain = make_writer()
    plain.load("text_generator")
    for dtype in ("int8", "int4", "bfloat16", "float16"):
        small = make_writer(generator_dtype=dtype)
        assert small.complete(TEXT, max_new_tokens=8, min_new_tokens=8)["completion_tokens"] == 8
        bytes_held = small.describe_generator()["bytes"]
        assert bytes_held < plain.describe_generator()["bytes"]


def test_what_the_model_is(gpt2):
    described = gpt2.describe_generator()
    assert described["name"] == "text_generator"
    assert described["source"] == described["path"] == str(FIXTURES / "gpt2")
    assert described["context"] == CONTEXT
    assert described["eos_token_id"] == json.loads((FIXTURES / "gpt2" / "config.json").read_text())["eos_token_id"]
    assert described["bytes"] > 10_000
