"""Thoughts in front of an answer are separated from it, wherever its pieces are cut."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from model_manager.thinking import ThinkingParser, opens_thinking, split_thinking


def parsed(pieces, opened=False):
    parser = ThinkingParser(opened)
    found = [parser.feed(piece) for piece in pieces]
    found.append(parser.end())
    return "".join(one[0] for one in found), "".join(one[1] for one in found)


@pytest.mark.parametrize(
    ("text", "opened", "thoughts", "answer"),
    [
        ("", False, "", ""),
        (" Paris.", False, "", " Paris."),
        ("  \n", False, "", "  \n"),
        ("<think>\nHm, ışık.\n</think>\n\nEvet.\n", False, "Hm, ışık.", "Evet.\n"),
        ("\n <think>a</think>b", False, "a", "b"),
        ("<think>\n\n</think>\n\nb", False, "", "b"),
        ("<think></think>", False, "", ""),
        ("a</think>b", True, "a", "b"),
        ("\na b\n\nc\n</think>\n\nd", True, "a b\n\nc", "d"),
        ("<think>a</think>b", True, "a", "b"),
        # It ends within its thoughts.
        ("<think>\na b", False, "a b", ""),
        ("<think>a\n</thi", False, "a\n</thi", ""),
        ("a b ", True, "a b ", ""),
        ("<thi", True, "<thi", ""),
        ("<thi", False, "", "<thi"),
        # Later markers are text.
        ("a <think>b</think> c", False, "", "a <think>b</think> c"),
        ("<think>a</think>b</think>c<think>", False, "a", "b</think>c<think>"),
        ("<think>a<think>b</think>c", False, "a<think>b", "c"),
        ("<thinking>a</thinking>", False, "", "<thinking>a</thinking>"),
        ("<think>a</ think></think>b", False, "a</ think>", "b"),
        ("<think>a<</think>b", False, "a<", "b"),
    ],
)
def test_cases(text, opened, thoughts, answer):
    assert parsed([text], opened) == (thoughts, answer)
    assert parsed(text, opened) == (thoughts, answer)
    assert split_thinking(text, opened=opened) == (thoughts, answer)


def test_any_cuts_give_the_same_texts_which_with_the_markers_are_the_original():
    draw = random.Random(7)
    words = ["<think>", "</think>", "<thi", "nk>", "</", "think>", "<", " ", "\n\n", "ışık", "a b", "</think", "�", "İ"]
    for number in range(1500):
        opened = number % 3 == 0
        text = "".join(draw.choices(words, k=draw.randrange(12)))
        if number % 2:
            text = "<think>" + text
        thoughts, answer = whole = parsed([text], opened)
        for _ in range(6):
            cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randrange(9)))
            pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
            assert parsed(pieces, opened) == whole, pieces
        form = rf"(\s*<think>)?\s*{re.escape(thoughts)}(\s*</think>\s*)?{re.escape(answer)}"
        assert re.fullmatch(form, text), text
        if not opened and not text.lstrip().startswith("<think>"):
            assert whole == ("", text)


def test_pieces_come_as_early_as_they_can():
    parser = ThinkingParser()
    fed = [
        parser.feed(piece) for piece in ("<th", "ink>\n", "Hm", ", so", " ", "it<", "b</thin", "k>", "\n", "Yes", " <")
    ]
    assert fed == [
        *(("", ""), ("", ""), ("Hm", ""), (", so", ""), ("", ""), (" it", ""), ("<b", ""), ("", ""), ("", "")),
        *(("", "Yes"), ("", " <")),
    ]
    assert parser.end() == ("", "")


def test_whether_the_prompt_opened_the_thoughts_is_found_in_whole_texts():
    assert split_thinking("a</think>b") == ("a", "b")
    assert split_thinking("<think>a</think>b </think>") == ("a", "b </think>")
    assert split_thinking("a b") == ("", "a b")
    assert split_thinking("a</think>b <think>c</think>") == ("a", "b <think>c</think>")
    # An answer without thoughts that writes about the markers.
    about = "Thoughts stand between <think> and </think>."
    assert split_thinking(about) == ("", about)
    assert split_thinking("a b", opened=True) == ("a b", "")
    assert split_thinking("a</think>b", opened=False) == ("", "a</think>b")


def test_prompts_that_open_thoughts():
    assert opens_thinking("<｜Assistant｜><think>\n")
    assert opens_thinking("<think>")
    assert not opens_thinking("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not opens_thinking("<|im_start|>assistant\n")
    assert not opens_thinking("")
    # A last message that is continued.
    begun = "<think>\nTwo and two"
    assert opens_thinking(f"<|im_start|>assistant\n{begun}", begun)
    assert not opens_thinking(f"<|im_start|>assistant\n{begun}\n</think>\n\n4", f"{begun}\n</think>\n\n4")
    about = "The marker is <think>"
    assert not opens_thinking(f"<|im_start|>assistant\n{about}", about)
