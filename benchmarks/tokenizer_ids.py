"""Ids of the real models' tokenizers for 100,000 odd and real texts, next to those of the tokenizers package.

The texts come from a seed (`odd_texts.py`): Turkish casing, combining marks, emoji, CJK, control characters, very long
words, private and unassigned code points, decoded bytes, what looks like a token; lines, paragraphs and whole files of
this repository. Every difference is counted, and the first ones are printed; the exit status is 1 with any. tokenizers
lives in the peers' virtual environment (.venv-peers, or what MODEL_MANAGER_PEERS_VENV names); model_manager comes from
this Python.

    python benchmarks/tokenizer_ids.py [COUNT] [--seed N]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import environment
import odd_texts

MODELS = Path(__file__).resolve().parents[1] / ".models"
FILES = [
    MODELS / "multilingual-e5-small" / "tokenizer.json",
    MODELS / "all-MiniLM-L6-v2" / "tokenizer.json",
    MODELS / "SmolLM2-135M-Instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf",
]
BATCH = 1000
SHOWN = 10


def smollm(path: Path) -> Any:
    """SmolLM2's tokenizer as its tokenizer.json has it, with the vocabulary and merges of a GGUF file."""
    from gguf import GGUFReader, TokenType
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    reader = GGUFReader(str(path))
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    if (pre := fields["tokenizer.ggml.pre"]) != "smollm":
        raise ValueError(f"{path} splits text as {pre!r} does, and only smollm is known here")
    pieces = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    kinds = zip(pieces, fields["tokenizer.ggml.token_type"], strict=True)
    special = [piece for piece, kind in kinds if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    return tokenizer


def reference(path: Path, texts_path: Path) -> None:
    """Writes a line with the ids of each text."""
    from tokenizers import Tokenizer

    tokenizer = smollm(path) if path.suffix == ".gguf" else Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = json.loads(texts_path.read_text(encoding="utf-8"))
    for start in range(0, len(texts), BATCH):
        for encoding in tokenizer.encode_batch(texts[start : start + BATCH]):
            print(json.dumps(encoding.ids))


def ours(path: Path, texts: list[str]) -> Iterator[list[int]]:
    from model_manager._core import _Tokenizer

    tokenizer = _Tokenizer(str(path))
    for start in range(0, len(texts), BATCH):
        yield from tokenizer.ids(texts[start : start + BATCH])


def differences(path: Path, texts: list[str], texts_path: Path, peers: Path) -> int:
    """The number of texts with other ids; the first ones are printed."""
    command = [str(peers), __file__, "--reference", str(path), str(texts_path)]
    wrong = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        for number, (text, ids, line) in enumerate(zip(texts, ours(path, texts), running.stdout or [], strict=True)):
            if ids == json.loads(line):
                continue
            wrong += 1
            if wrong <= SHOWN:
                print(
                    f"text {number}: {text[:300]!r}\n  ours   {ids[:60]}\n  theirs {json.loads(line)[:60]}", flush=True
                )
    if running.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {running.returncode}")
    return wrong


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("count", nargs="?", type=int, default=100_000)
    arguments.add_argument("--seed", type=int, default=16)
    arguments.add_argument("--reference", nargs=2, type=Path, metavar=("FILE", "TEXTS"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.reference:
        reference(*given.reference)
        return
    peers = environment.peers_python(environment.peers_location())
    texts, wrong = odd_texts.texts(given.count, given.seed), 0
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts):,} texts, {len(set(texts)):,} of them different, {size:.1f} MB; seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as work:
        texts_path = Path(work) / "texts.json"
        texts_path.write_text(json.dumps(texts), encoding="utf-8")
        for path in FILES:
            start = time.monotonic()
            found = differences(path, texts, texts_path, peers)
            print(f"{path.parent.name}: {found} texts with other ids ({time.monotonic() - start:.0f} s)", flush=True)
            wrong += found
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
