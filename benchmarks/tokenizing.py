"""Tokenizers of the sizes that well-known models have: ids, time to load, memory, speed, against other packages.

Every figure is of a process of its own, one at a time, and packages alternate; the medians of all rounds count. Memory
is what the process has written to: after loading, less than before it. Speed is of one thread. The tokenizers and
sentencepiece packages live in the peers' virtual environment (.venv-peers, or what MODEL_MANAGER_PEERS_VENV names);
model_manager comes from this Python.

    python benchmarks/tokenizing.py [--rounds N] [--folder FOLDER]
"""

import argparse
import ctypes
import hashlib
import json
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import environment

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / ".models"
# Seconds to load, and private memory as a multiple of the file.
LOAD_S, MEMORY = 0.15, 4.0
TEXTS = 20_000


def private_mb() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def trim() -> None:
    """Gives unused memory back, as loading a model does."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def load_ours(path: str) -> Any:
    from model_manager._core import _Tokenizer

    loaded = _Tokenizer(path)
    return lambda texts: loaded.ids(texts)


def load_tokenizers(path: str) -> Any:
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(path)
    loaded.no_truncation()
    loaded.no_padding()
    return lambda texts: [loaded.encode(text).ids for text in texts]


def load_sentencepiece(path: str) -> Any:
    from sentencepiece import SentencePieceProcessor

    loaded = SentencePieceProcessor(model_file=path)
    return lambda texts: [loaded.encode(text) for text in texts]


LOADERS = {"model_manager": load_ours, "tokenizers": load_tokenizers, "sentencepiece": load_sentencepiece}


def imported(contender: str) -> None:
    """What is imported is not loaded."""
    if contender == "model_manager":
        import model_manager._core  # noqa: F401
    elif contender == "tokenizers":
        import tokenizers  # noqa: F401
    else:
        import sentencepiece  # noqa: F401


def one_run(contender: str, path: str, texts_path: str) -> dict[str, Any]:
    imported(contender)
    texts = json.loads(Path(texts_path).read_text(encoding="utf-8"))
    trim()
    before, start, cpu = private_mb(), time.perf_counter(), time.process_time()
    encode = LOADERS[contender](path)
    figures: dict[str, Any] = {"load": time.perf_counter() - start, "load_cpu": time.process_time() - cpu}
    trim()
    figures["memory"] = private_mb() - before
    encode(texts[:500])
    start = time.process_time()
    ids = encode(texts)
    figures["speed"] = (time.process_time() - start) / len(texts) * 1e6
    figures["ids"] = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    return figures


def field(number: int, kind: int, value: bytes) -> bytes:
    """A field of a Protocol Buffers message: 0 a number, 2 bytes, 5 a float."""
    size = varint(len(value)) if kind == 2 else b""
    return varint(number << 3 | kind) + size + value


def varint(number: int) -> bytes:
    low = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes(byte | (0x80 if place + 1 < len(low) else 0) for place, byte in enumerate(low))


def sentencepiece_model(path: Path, out: Path) -> None:
    """The Unigram model of a `tokenizer.json` for sentencepiece, whose normalization is another: ids can differ."""
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    message = b""
    for number, (piece, score) in enumerate(model["vocab"]):
        kind = 2 if number == model["unk_id"] else 3 if piece in ("<s>", "</s>", "<pad>", "<mask>") else 1
        parts = field(1, 2, piece.encode()) + field(2, 5, struct.pack("<f", score)) + field(3, 0, varint(kind))
        message += field(1, 2, parts)
    message += field(2, 2, field(3, 0, varint(1)) + field(40, 0, varint(model["unk_id"])))
    out.write_bytes(message + field(3, 2, field(1, 2, b"nmt_nfkc")))


def made_files(folder: Path, peers: str) -> dict[str, Path]:
    """Texts, and files of the sizes of models that are not here."""
    made = environment.output_of([peers, str(HERE / "tokenizer_files.py"), str(folder), str(TEXTS)])
    return {name: Path(path) for name, path in json.loads(made.splitlines()[-1]).items()}


def runs_of(contenders: dict[str, tuple[str, Path]], texts: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Contender → the medians."""
    found: dict[str, list[dict[str, Any]]] = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for contender, (python, path) in contenders.items():
            command = [python, __file__, "--one", contender, str(path), str(texts)]
            answer = environment.output_of(command, TOKENIZERS_PARALLELISM="false", PYTHONWARNINGS="ignore")
            found[contender].append(json.loads(answer.splitlines()[-1]))
    # Of the hash of ids, which is the same in every round, the median is one of them.
    return {
        contender: {key: statistics.median_low(run[key] for run in runs) for key in runs[0]}
        for contender, runs in found.items()
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--folder", type=Path, help="where files are made, and stay")
    arguments.add_argument("--one", nargs=3, metavar=("CONTENDER", "FILE", "TEXTS"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        print(json.dumps(one_run(*given.one)))
        return
    peers, reached = str(environment.peers_python(environment.peers_location())), True
    with tempfile.TemporaryDirectory() as work:
        folder = given.folder or Path(work)
        files = {"WordPiece, 30,522 (all-MiniLM-L6-v2)": MODELS / "all-MiniLM-L6-v2" / "tokenizer.json"}
        files |= made_files(folder, peers)
        unigram = MODELS / "multilingual-e5-small" / "tokenizer.json"
        files["Unigram, 250,002 (multilingual-e5-small)"] = unigram
        texts = folder / "texts.json"
        print("| tokenizer | package | load s (CPU) | memory MB | × file | µs a text | ids |")
        print("|---|---|---|---|---|---|---|")
        for name, path in files.items():
            contenders = {"model_manager": (sys.executable, path), "tokenizers": (peers, path)}
            if path == unigram:
                sentencepiece_model(path, folder / "unigram.model")
                contenders["sentencepiece"] = (peers, folder / "unigram.model")
            found, size = runs_of(contenders, texts, given.rounds), path.stat().st_size / 1e6
            for contender, run in found.items():
                same = "equal" if run["ids"] == found["tokenizers"]["ids"] else "others"
                print(
                    f"| {name} | {contender} | {run['load']:.3f} ({run['load_cpu']:.3f}) | {run['memory']:.1f} "
                    f"| {run['memory'] * 1.048576 / size:.1f} | {run['speed']:.1f} | {same} |",
                    flush=True,
                )
            ours, theirs = found["model_manager"], found["tokenizers"]
            good = ours["load"] <= LOAD_S and ours["memory"] * 1.048576 <= MEMORY * size
            good &= ours["speed"] <= theirs["speed"] and ours["ids"] == theirs["ids"]
            reached &= good
    limits = f"load ≤ {LOAD_S} s, memory ≤ {MEMORY:g} × the file, ids equal, no slower"
    print(f"\ntargets ({limits}): {'yes' if reached else 'no'}")


if __name__ == "__main__":
    main()
