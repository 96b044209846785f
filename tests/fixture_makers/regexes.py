"""Patterns of tokenizers, and where Oniguruma, the engine of the tokenizers package, splits a text."""

import json
from pathlib import Path

import tokenizers
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

CLASSES = (
    *("alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph"),
    *("lower", "print", "punct", "space", "upper", "word", "xdigit"),
)

PATTERNS = (
    *(rf"[[:{name}:]]" for name in CLASSES),
    *(rf"[x[:^{name}:]]+" for name in CLASSES),
    *(r"\w", r"\W", r"[\w]", r"[^\w\s]+", r"[\W_]", r"\w+|[^\w\s]+", r"\bx", r"x\b", r"\Bx", r"\b\w+\b"),
    *("^x", "x$", "^", "$", r"\s+$", r"^\s+|\s+$", r"\Ax", r"x\z", r"x\Z", "(?m).x", "(?m:.x)|(?-m:x.)", "(?mi)X."),
    *("[]x]+", "[^]x]+", "[x^$]+", r"[\^$]", "[x-]", r"[\]x]", r"[a-z&&[^x]]", r"x{,2}", "(?i)k", "(?i)[a-z]+"),
    "(?i:'s|'t|'re|'ll)",
    *(r"\p{L}+", r"\P{L}", r"\p{N}{1,3}", r"[\p{L}\p{M}]+", r"\h+", "(?<=x).", "(?<!x).", "(?>x+)x", "(?=x)", "."),
    (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
)  # fmt: skip

#: What Oniguruma understands in a way that fancy-regex has not.
REFUSED = (r"\pL", r"[\pL]", "(?i)ss", "(?i:Straße|strasse)", "(?x) x", "[[:letter:]]", r"\X", r"\R")


def _texts() -> list[str]:
    """Characters of every kind between letters, alone and in runs; lines."""
    hidden = (0x200B, 0x200C, 0x200D, 0x2028, 0xFEFF)
    odd = [*range(0x250), *range(0x250, 0x3100, 37), *range(0x3100, 0x20000, 977), *hidden]
    characters = [chr(code) for code in odd if not 0xD800 <= code < 0xE000]
    lines = ["x\nx", "\nx\n", "x\r\nx \n", "", "\n", "x", "  x  \n  x  ", "x x\n\nxx'S it'll K\u212a ſtraße\n"]
    return ["".join(f"x{c}" for c in characters) + "x", "".join(characters), *lines]


def make(fixtures: Path) -> None:
    texts, cases = _texts(), []
    for pattern in PATTERNS:
        split = Split(Regex(pattern), "isolated")
        lengths = [[end - start for _, (start, end) in split.pre_tokenize_str(text)] for text in texts]
        cases.append({"pattern": pattern, "lengths": lengths})
    made = {"tokenizers": tokenizers.__version__, "texts": texts, "cases": cases, "refused": list(REFUSED)}
    path = fixtures / "regexes.json"
    path.write_text(json.dumps(made, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")
