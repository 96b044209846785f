"""The chatbot's text rules: how a prompt is formatted, how an answer is cleaned, and when it is good enough.

All functions are pure; `chatbot.py` applies them to the prompts and answers of the generator.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Mapping, Sequence

from .._core import is_turkish

MAX_TEXT = 800
"""Characters of a text that are embedded."""
MIN_TEXT = 2
"""A text with fewer characters has no embedding."""
MAX_PROMPT = 300
"""Characters of a prompt that the generator reads."""
MAX_GENERATED_TOKENS = 120
"""Tokens of prompt and answer together."""
MIN_ANSWER = 8
"""An answer with fewer characters counts as empty."""
MIN_LAST_SENTENCE = 5
"""Fewer characters than this after the last full stop are an unfinished sentence."""

SAMPLING = {
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.85,
    "top_k": 40,
    "no_repeat_ngram_size": 3,
    "repetition_penalty": 1.3,
    "num_return_sequences": 1,
}
"""How answers are sampled; the names are those of transformers."""

FALLBACK_ANSWERS = (
    "Bu konuda size en doğru bilgiyi verebilmem için sorunuzu biraz daha ayrıntılı yazabilir misiniz?",
    "Sorunuzu tam olarak anlayamadım. Başka bir şekilde ifade edebilir misiniz?",
    "Size yardımcı olmak isterim. Lütfen neyi öğrenmek istediğinizi biraz daha açık yazar mısınız?",
)
"""Polite answers, used when no good answer was generated."""

_ANSWER_MARK = "Yanıt:"
_SPECIAL_TOKENS = re.compile(r"</?s>")
_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"\w+")


def normalize(text: str) -> str:
    """The text that is embedded: stripped, lower-cased, cut to 800 code points, with Python's own string methods."""
    return text.strip().lower()[:MAX_TEXT]


def build_prompt(prompt: str, turkish_context: bool = True) -> str:
    """The first 300 characters of `prompt`. With `turkish_context`, a Turkish prompt becomes a question to answer."""
    prompt = prompt[:MAX_PROMPT]
    return f"Soru: {prompt}\n{_ANSWER_MARK}" if turkish_context and is_turkish(prompt) else prompt


def clean_answer(generated: str, prompt: str) -> str:
    """The answer in `generated`, a model's continuation of `prompt` (from `build_prompt`), ready to be shown.

    Empty when fewer than 8 characters are left.
    """
    answer = generated.removeprefix(prompt)
    answer = answer.rpartition(_ANSWER_MARK)[2]
    answer = _SPACE.sub(" ", _SPECIAL_TOKENS.sub("", answer)).strip()
    if len(answer) < MIN_ANSWER:
        return ""
    finished, stop, rest = answer.rpartition(".")
    return finished + stop if stop and len(rest.strip()) < MIN_LAST_SENTENCE else answer


def score_answer(answer: str) -> float:
    """A quality score from 0 to 1: enough words (0.3), few repeated words (0.3), Turkish words (0.2), a finished ending
    (0.2).
    """
    words = _WORD.findall(answer.lower())
    if not words:
        return 0.0
    length = min(len(words) / 6, 1.0)
    variety = min(len(set(words)) / len(words) / 0.7, 1.0)
    turkish = min(sum(map(is_turkish, words)) / len(words) / 0.2, 1.0)
    ending = answer.rstrip().endswith((".", "!", "?", "…"))
    return 0.3 * length + 0.3 * variety + 0.2 * turkish + 0.2 * ending


def pick_fallback(message: object, answers: Sequence[str]) -> str:
    """One of `answers`, always the same one for the same message; of what holds none, one of `FALLBACK_ANSWERS`."""
    if isinstance(answers, str):
        answers = (answers,)
    texts = [answer for answer in answers if isinstance(answer, str)] if isinstance(answers, Collection) else []
    try:
        text = str(message)
    except Exception:  # noqa: BLE001  the host's own code
        text = ""
    choice = texts or FALLBACK_ANSWERS
    return choice[zlib.crc32(text.encode(errors="replace")) % len(choice)]


def is_host_fallback(content: object, answer: str) -> bool:
    """Whether `answer` is one of the content manager's own `fallback_responses` (or `fallbacks`): a text, several, or
    several by their subjects.
    """
    return any(answer in _texts_of(getattr(content, name, None)) for name in ("fallback_responses", "fallbacks"))


def _texts_of(known: object) -> Collection[object]:
    if isinstance(known, str):
        return (known,)
    if isinstance(known, Mapping):
        return [text for part in known.values() for text in _texts_of(part)]
    return known if isinstance(known, Collection) else ()
