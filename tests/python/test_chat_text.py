"""How the chatbot formats prompts and scores answers."""

from __future__ import annotations

import pytest
from model_manager.compat import rules
from model_manager.compat.rules import build_prompt, clean_answer, normalize, pick_fallback, score_answer


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("  Merhaba  ", "merhaba"),
        ("\u2003ABC\x1f\u200b", "abc\x1f\u200b"),
        ("İ", "i\u0307"),
        ("ΑΣ", "ας"),
        ("ẞ", "ß"),
        ("x" * 900, "x" * 800),
        ("😀" * 900, "😀" * 800),
        ("İ" * 500, ("i\u0307" * 500)[:800]),
    ],
)
def test_normalize(text, normalized):
    assert normalize(text) == normalized


def test_turkish_prompts_become_questions():
    assert build_prompt("Bu nasıl çalışır?") == "Soru: Bu nasıl çalışır?\nYanıt:"
    assert build_prompt("Bu nasıl çalışır?", turkish_context=False) == "Bu nasıl çalışır?"
    assert build_prompt("How does it work?") == "How does it work?"


def test_prompts_are_cut_to_300_characters():
    assert build_prompt("word " * 100) == ("word " * 100)[:300]
    assert build_prompt("çok " * 100) == f"Soru: {('çok ' * 100)[:300]}\nYanıt:"


@pytest.mark.parametrize(
    ("generated", "prompt", "answer"),
    [
        ("The question. The answer is here.", "The question.", "The answer is here."),
        ("Soru: Ne?\nYanıt: Güzel bir cevap.", "Soru: Ne?\nYanıt:", "Güzel bir cevap."),
        ("Soru: Ne?\nYanıt: Güzel bir cevap.", "something else", "Güzel bir cevap."),
        ("<s> One two three.</s>  \n\t Four five.", "", "One two three. Four five."),
        ("too few", "", ""),
        ("1234567", "", ""),
        ("12345678", "", "12345678"),
        ("A whole sentence. And", "", "A whole sentence."),
        ("A whole sentence. And more", "", "A whole sentence. And more"),
        ("No full stop at all", "", "No full stop at all"),
        ("Ends well. ", "", "Ends well."),
        ("", "", ""),
    ],
)
def test_clean_answer(generated, prompt, answer):
    assert clean_answer(generated, prompt) == answer


def test_good_answers_score_high():
    assert score_answer("Bu sistem metinleri sayılara çevirir ve birbirine benzeyen metinleri bulur.") >= 0.9


@pytest.mark.parametrize(
    "answer",
    ["", "   ", "...", "evet", "çok çok çok çok çok çok çok çok çok", "the the the the the the the the"],
)
def test_bad_answers_score_low(answer):
    assert score_answer(answer) < 0.7


def test_each_part_of_the_score_counts():
    whole = "Bu güzel bir gün ve hava çok sıcak."
    assert score_answer(whole) > score_answer(whole.rstrip("."))
    assert score_answer(whole) > score_answer("Bu güzel.")
    assert score_answer(whole) > score_answer("This makes a nice day and the weather stays hot.")
    assert score_answer(whole) > score_answer("Bu güzel güzel güzel güzel güzel güzel güzel güzel gün.")
    assert 0 <= score_answer(whole) <= 1


def test_the_same_message_gets_the_same_fallback():
    answers = ["one", "two", "three"]
    messages = [f"message {n}" for n in range(50)]
    assert [pick_fallback(m, answers) for m in messages] == [pick_fallback(m, answers) for m in messages]
    assert {pick_fallback(m, answers) for m in messages} == set(answers)
    for odd in (None, 7, "\ud800"):
        assert pick_fallback(odd, answers) in answers


def test_the_fallbacks_are_answers():
    for answer in rules.FALLBACK_ANSWERS:
        assert score_answer(answer) > 0.8
