"""Odd and real texts from a seed, to compare tokenizers with."""

import random
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REAL = {
    ".": ("*.md",),
    "docs": ("**/*.md",),
    "src": ("**/*.rs",),
    "python": ("**/*.py", "**/*.pyi"),
    "tests": ("*.py", "*.tsv", "python/**/*.py", "rust/**/*.rs", "fixture_makers/*.py"),
    "benchmarks": ("*.py", "*.jsonl"),
    "examples": ("**/*.py",),
}
TURKISH = [
    "istanbul",
    "ışık",
    "ısparta",
    "iğdır",
    "çalışma",
    "şehir",
    "ağaç",
    "görüş",
    "özür",
    "müşteri",
    "ığdır",
    "kâğıt",
    "zekâ",
    "hâlâ",
    "diyarbakır",
    "dinlenmiş",
    "ılık",
    "iyilik",
    "sınıf",
    "bilgi",
    "ihtiyaç",
]
LATIN = [
    "the",
    "The",
    "don't",
    "CAN'T",
    "we'Ll",
    "naïve",
    "café",
    "Straße",
    "ﬁnd",
    "Ǆ",
    "ŉ",
    "ẞ",
    "hello_world",
    "camelCase",
    "e-mail",
    "3.14",
    "%50",
    "½",
    "²",
    "Ⅷ",
]
# What looks like a token of one of the models, whole or in part.
TOKENS = [
    "<s>",
    "</s>",
    "<unk>",
    "<mask>",
    "<pad>",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[PAD]",
    "[UNK]",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<repo_name>",
    "<file_sep>",
    "<|im_",
    "<s",
    "[MAS",
    "##a",
    "##",
    "▁",
    "▁▁",
    "Ġ",
    "Ċ",
    "<0x0A>",
]
BLANKS = [
    " ",
    "  ",
    "     ",
    "\n",
    "\n\n",
    "\r\n",
    " \n ",
    "\t",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\u2003",
    "\u0085",
    "\x0b",
]
CJK = [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0xF900, 0xFAFF), (0x2F00, 0x2FD5)]
CJK += [(0x3040, 0x30FF), (0xFF61, 0xFF9F), (0xAC00, 0xD7A3), (0x1100, 0x11FF), (0x3300, 0x33FF)]
EMOJI = [(0x1F600, 0x1F64F), (0x1F300, 0x1F5FF), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x2600, 0x27BF)]
PRIVATE = [(0xE000, 0xF8FF), (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD)]
# Planes that hold characters; the others have none or private ones.
MOST = 0x323AF


def characters(*kinds: str) -> list[str]:
    """All characters of some general categories, such as "Mn"."""
    every = (chr(code) for code in range(MOST) if not 0xD800 <= code < 0xE000)
    return [character for character in every if unicodedata.category(character).startswith(kinds)]


class OddTexts:
    """Texts of a few odd parts each."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.marks, self.numbers = characters("M"), characters("N")
        self.controls, self.signs = characters("Cc", "Cf", "Z"), characters("S", "P")
        self.letters, self.unassigned = characters("L"), characters("Cn")
        self.kinds: list[Callable[[], str]] = [
            self.turkish, self.latin, self.token, self.combined, self.control, self.number, self.sign, self.cjk,
            self.emoji, self.private, self.code_points, self.decoded_bytes, self.script, self.repeated,
        ]  # fmt: skip

    def some(self, of: list[str], most: int) -> str:
        return "".join(self.draw.choices(of, k=self.draw.randint(1, most)))

    def within(self, ranges: list[tuple[int, int]]) -> str:
        return chr(self.draw.randint(*self.draw.choice(ranges)))

    def turkish(self) -> str:
        """A word in which any letter may be a capital of Turkish, of English or a composed one."""
        upper = {"i": ["i", "İ", "I", "i\u0307", "I\u0307"], "ı": ["ı", "I", "İ"]}
        word = self.draw.choice(TURKISH)
        form = self.draw.choice(["NFC", "NFC", "NFD", "NFKD"])
        cased = (self.draw.choice(upper.get(c, [c, c, c.upper()])) for c in word)
        return unicodedata.normalize(form, "".join(cased))

    def latin(self) -> str:
        return self.draw.choice(LATIN)

    def token(self) -> str:
        return self.draw.choice(TOKENS)

    def combined(self) -> str:
        """Letters with marks in any order."""
        return "".join(
            self.draw.choice(["e", "a", "I", "ş", "ᄀ", "क", "ا", ""]) + self.some(self.marks, 4)
            for _ in range(self.draw.randint(1, 4))
        )

    def control(self) -> str:
        return self.some(self.controls, 4)

    def number(self) -> str:
        return self.some(self.numbers, 6) if self.draw.random() < 0.5 else str(self.draw.randrange(10**9))

    def sign(self) -> str:
        return self.some(self.signs, 4)

    def cjk(self) -> str:
        return "".join(self.within(CJK) for _ in range(self.draw.randint(1, 8)))

    def emoji(self) -> str:
        """Faces, with a skin, joined, in colour; flags; keys."""
        flag = [(0x1F1E6, 0x1F1FF)]
        face = [(0x1F466, 0x1F469)]
        return self.draw.choice(
            [
                self.within(EMOJI),
                self.within(EMOJI) + "\ufe0f",
                self.within(EMOJI) + self.within([(0x1F3FB, 0x1F3FF)]),
                "\u200d".join(self.within(face) for _ in range(self.draw.randint(2, 4))),
                self.within(flag) + self.within(flag),
                self.draw.choice("0123456789#*") + "\ufe0f\u20e3",
            ]
        )

    def private(self) -> str:
        return "".join(self.within(PRIVATE) for _ in range(self.draw.randint(1, 4)))

    def code_points(self) -> str:
        """Any code points: most have no character."""
        codes = (self.draw.choice([0xD7FF, 0xFFFF, MOST, sys.maxunicode]) for _ in range(self.draw.randint(1, 6)))
        drawn = (self.draw.randint(0, code) for code in codes)
        known = (chr(code) for code in drawn if not 0xD800 <= code < 0xE000)
        return "".join(known) + self.draw.choice(["", *self.draw.choices(self.unassigned, k=1)])

    def decoded_bytes(self) -> str:
        """Bytes at random, read as text."""
        data = self.draw.randbytes(self.draw.randint(1, 24))
        encoding, errors = self.draw.choice(
            [
                ("utf-8", "replace"),
                ("utf-8", "ignore"),
                ("latin-1", "strict"),
                ("cp1254", "replace"),
                ("utf-16-le", "replace"),
            ]
        )
        return data.decode(encoding, errors)

    def script(self) -> str:
        """Letters of any one script."""
        first = self.draw.randrange(len(self.letters))
        return self.some(self.letters[first : first + 40], 10)

    def repeated(self) -> str:
        """A word that goes on and on."""
        length = 20_000 if self.draw.random() < 0.01 else self.draw.choice([50, 99, 100, 101, 102, 300, 2000])
        piece = self.draw.choice(
            ["a", "ab", "ğ", "x1", "你", "😀", "!", " ", "\n", "e\u0301", "merhaba", "hello", "\u200d"]
        )
        return piece * (1 + length // len(piece))

    def text(self) -> str:
        parts = []
        for _ in range(self.draw.randint(1, 12)):
            # Long words are many bytes, and few texts need them.
            kind = self.draw.choice(self.kinds if self.draw.random() < 0.1 else self.kinds[:-1])
            parts += [kind(), self.draw.choice(["", "", " ", " ", self.draw.choice(BLANKS)])]
        return "".join(parts)


def files() -> list[str]:
    """What the repository's own files hold."""
    paths = {path for folder, patterns in REAL.items() for one in patterns for path in (ROOT / folder).glob(one)}
    return [path.read_text(encoding="utf-8") for path in sorted(paths)]


def texts(count: int, seed: int) -> list[str]:
    """Half odd ones; half lines and paragraphs of the repository's files, a fifth of them changed."""
    draw = random.Random(seed)
    odd, whole = OddTexts(draw), files()
    lines = [line for file in whole for line in file.splitlines()]
    changes: list[Callable[[str], str]] = [
        str.upper,
        str.lower,
        str.title,
        str.swapcase,
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: unicodedata.normalize("NFKC", text),
        lambda text: text[::-1],
        lambda text: text.replace(" ", draw.choice(BLANKS)),
        lambda text: text[: len(text) // 2] + odd.text() + text[len(text) // 2 :],
    ]
    found = ["", *whole[: count // 2000]]
    while len(found) < count:
        if len(found) % 2:
            found.append(odd.text())
            continue
        first = draw.randrange(len(lines))
        real = "\n".join(lines[first : first + draw.choice([1, 1, 1, 1, 2, 3, 8])])
        found.append(draw.choice(changes)(real) if draw.random() < 0.2 else real)
    return found
