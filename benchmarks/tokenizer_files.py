"""Makes `tokenizer.json` files of the sizes that well-known models have, from this repository's own texts and a seed.

The vocabulary and merges of the real models are not here. These have as many pieces and merges as they do, and the same
normalizers, pre-tokenizers, decoders and kinds of added tokens: the first pieces are learnt from the repository's
documentation and sources, the rest joins known pieces at random.

    python benchmarks/tokenizer_files.py FOLDER TEXTS

Writes so many short texts, too: FOLDER/texts.json. Prints one line of JSON, the path of each file by its name.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import corpus
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[1]
SEED = 16
LEARNT = 40_000
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def texts() -> list[str]:
    folders = {"docs": "*.md", "python": "*.py", "src": "*.rs", "tests/python": "*.py"}
    paths = sorted(path for folder, pattern in folders.items() for path in (ROOT / folder).rglob(pattern))
    return [path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *paths]]


def learnt(*, bytes_level: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges that the texts have."""
    tokenizer = Tokenizer(models.BPE(unk_token=None if bytes_level else "<unk>"))
    if bytes_level:
        split = pre_tokenizers.Split(Regex(QWEN), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        alphabet = []
    trainer = trainers.BpeTrainer(vocab_size=LEARNT, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    return pieces, [(left, right) for left, right in model["merges"]]


def ways(piece: str, known: set[str]) -> list[tuple[str, str]]:
    """The ways to make a piece of two known ones."""
    cuts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in known and right in known]


def grown(pieces: list[str], merges: list[tuple[str, str]], size: int, least: int = 1, longest: int = 16) -> None:
    """Adds pieces of two known ones up to `size`, which at least so many merges make, and the first of those."""
    draw, known = random.Random(SEED), set(pieces)
    # Short ones can often be cut off in another place too.
    rights = [piece for piece in pieces[:20_000] if least == 1 or len(piece) <= 2]
    while len(pieces) < size:
        left, right = draw.choice(pieces), draw.choice(rights)
        joined = left + right
        if len(joined) > longest or joined in known or right.startswith(("Ġ", "▁", "<0x")):
            continue
        if least == 1 or len(ways(joined, known)) >= least:
            known.add(joined)
            pieces.append(joined)
            merges.append((left, right))


def added(first: int, contents: list[str]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": first + number, "content": content, **flags} for number, content in enumerate(contents)]


def bpe(pieces: list[str], merges: list[tuple[str, str]], **changes: Any) -> dict[str, Any]:
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return model | changes | {"vocab": vocabulary, "merges": [list(pair) for pair in merges]}


def write(path: Path, model: dict[str, Any], tokens: list[dict[str, Any]], **parts: Any) -> None:
    file = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": None}
    file |= {"pre_tokenizer": None, "post_processor": None, "decoder": None} | parts | {"model": model}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(file, indent=2, ensure_ascii=False), encoding="utf-8")


def bytes_level(path: Path, size: int, pattern: str, specials: int, **changes: Any) -> None:
    """Byte-level BPE with `size` pieces."""
    pieces, merges = learnt(bytes_level=True)
    grown(pieces, merges, size)
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    write(
        path,
        bpe(pieces, merges, **changes),
        added(size, [f"<|special_{number}|>" for number in range(specials)]),
        normalizer={"type": "NFC"} if pattern == QWEN else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]},
        decoder=level,
    )


def sentencepiece(path: Path, size: int, unused: int) -> None:
    """SentencePiece's BPE with byte fallback and `size` pieces, with every way to make each piece."""
    found, learnt_merges = learnt(bytes_level=False)
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<unused{number}>" for number in range(unused))]
    head = specials + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [piece for piece in found if piece not in head]
    grown(pieces, learnt_merges, size - len(head), least=2)
    known = set(pieces)
    merges = [way for piece in pieces for way in ways(piece, known)]
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    write(
        path,
        bpe(head + pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        added(0, specials),
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        pre_tokenizer={"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        decoder={"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]},
    )


def decodes(path: Path) -> None:
    """Fails for a file that the tokenizers package does not read."""
    tokenizer = Tokenizer.from_file(str(path))
    text = "Bugün hava çok güzel, 2024!"
    ids = tokenizer.encode(text).ids
    if tokenizer.decode(ids) != text:
        raise ValueError(f"{path} does not give {text!r} back, but {tokenizer.decode(ids)!r}")


def make(folder: Path) -> dict[str, Path]:
    """Name → file. Files that are there already stay."""
    makers = {
        "byte-level BPE, 128,000 (Llama 3)": lambda path: bytes_level(path, 128_000, LLAMA, 256, ignore_merges=True),
        "byte-level BPE, 151,643 (Qwen3)": lambda path: bytes_level(path, 151_643, QWEN, 26),
        "SentencePiece BPE, 262,144 (Gemma 3)": lambda path: sentencepiece(path, 262_144, 6_242),
    }
    files = {}
    for name, maker in makers.items():
        path = folder / name.split("(")[1].strip(")").replace(" ", "-").lower() / "tokenizer.json"
        if not path.exists():
            maker(path)
            decodes(path)
        files[name] = path
    return files


def sentences(count: int) -> list[str]:
    """Short Turkish and English texts."""
    draw = random.Random(SEED)
    return [f"{' '.join(corpus.words(draw))} {number}" for number in range(count)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("texts", type=int)
    given = parser.parse_args()
    target = given.folder
    made = {name: str(path) for name, path in make(target).items()}
    (target / "texts.json").write_text(json.dumps(sentences(given.texts)), encoding="utf-8")
    print(json.dumps(made))
