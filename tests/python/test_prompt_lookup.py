"""Prompt lookup: drafts of an answer from its own text change no answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT
from generators import GREEDY, SLOT, writer
from model_manager.errors import ConfigError

IDS = [5, 9, 12, 7, 31, 5, 9, 12, 7, 31, 5, 9, 12]
"""A prompt that repeats itself: drafts begin with the first token of its answer."""
FAMILIES = [
    *("gpt2", "llama", "qwen3", "gemma3_text", "gemma4_text", "ministral", "phi3", "falcon", "gptj"),
    *("mixtral", "gpt_oss", "gpt_oss_mxfp4", "qwen2_moe"),
    # With states of convolutions and of delta rules.
    *("lfm2", "lfm2_biased", "lfm2_moe", "lfm3", "lfm3_biased", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"),
]
FORMS = [
    {**GREEDY, "max_new_tokens": 45},
    {"do_sample": True, "temperature": 0.7, "seed": 3, "max_new_tokens": 40},
    {**GREEDY, "repetition_penalty": 1.2, "max_new_tokens": 30},
    # Tokens that were there come again, so that every model repeats itself.
    {**GREEDY, "repetition_penalty": 0.2, "max_new_tokens": 40},
]


def answers(name, dtype, **settings):
    """Answers alone and together, and what the drafts were."""
    with writer(name, generator_dtype=dtype, **settings) as manager:
        alone = [manager.complete(IDS, **form)["tokens"] for form in FORMS]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda form: manager.complete(IDS, **form)["tokens"], FORMS * 2))
        figures = manager.stats()["slots"][SLOT]["generation"]
    return alone, together, (figures["drafted_tokens"], figures["accepted_tokens"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_the_same(name, dtype):
    plain, plain_together, (drafted, _) = answers(name, dtype, prompt_lookup_tokens=0)
    assert drafted == 0
    assert plain_together == plain * 2
    found, together, (drafted, accepted) = answers(name, dtype)
    assert (found, together) == (plain, plain * 2)
    assert 0 <= accepted <= drafted
    assert drafted > 0


@pytest.mark.parametrize("name", ["lfm2", "lfm3", "qwen3_5_text", "qwen3_next"])
def test_a_conversation_goes_on_after_drafts(make_writer, name):
    """What was drafted is no part of what the next turn reuses."""
    turns = []
    for drafted in (0, 8, 64):
        manager, prompt, found = make_writer(name, prompt_lookup_tokens=drafted), IDS, []
        for penalty in (0.2, 1.0, 0.2, 0.5):
            form = {**GREEDY, "repetition_penalty": penalty, "min_new_tokens": 9, "max_new_tokens": 9}
            answer = manager.complete(prompt, **form)
            found.append((answer["tokens"], answer["reused_tokens"]))
            prompt = [*prompt, *answer["tokens"], 5, 9, 12]
        figures = manager.stats()["slots"][SLOT]["generation"]
        assert (figures["drafted_tokens"] > 0) == (drafted > 0)
        turns.append(found)
    assert turns[1] == turns[0]
    assert turns[2] == turns[0]


@pytest.mark.parametrize("name", ["lfm2", "qwen3_5_text"])
def test_states_on_candles_operations_get_no_drafts(name):
    assert answers(name, "float32", device="candle-cpu")[2] == (0, 0)


def test_a_model_from_gguf_quotes_faster(make_writer):
    model = str(ROOT / ".models" / "SmolLM2-135M-Instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    text = "Part 4711-B is lubricated with grade 68 oil every 250 hours. Line C stops at 22:45."
    messages = [{"role": "user", "content": f"{text}\n\nRepeat this text word by word."}]
    found = {}
    for drafted in (0, 8):
        manager = make_writer(generator_model=model, prompt_lookup_tokens=drafted)
        answer = manager.chat(messages, max_new_tokens=60, **GREEDY)
        found[drafted] = (answer, manager.stats()["slots"][SLOT]["generation"]["accepted_tokens"])
    assert found[8][0] == found[0][0]
    assert found[0][1] == 0
    assert found[8][1] >= 20


def test_values_out_of_range_are_refused(make_writer):
    for value in (-1, 65):
        with pytest.raises(ConfigError, match="prompt_lookup_tokens"):
            make_writer(prompt_lookup_tokens=value)
