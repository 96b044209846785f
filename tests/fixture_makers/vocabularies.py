"""Tokenizers of a few hundred entries, counted on the texts by plain rules that give the same every time."""

import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .texts import CORPUS

# A script of this project, not a package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from multilingual_e5 import charsmap

WORDPIECE_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MPNET_SPECIALS = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'-_/@%&="
TURKISH_LETTERS = "çğıöşüâÇĞİÖŞÜ"


def most_common(counts: Counter[str], count: int) -> list[str]:
    """The most frequent keys; ties in code point order."""
    return [key for key, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:count]]


def pieces(words: Iterable[str], longest: int) -> Counter[str]:
    """How often each substring of 2 to `longest` characters occurs in the words."""
    counts: Counter[str] = Counter()
    for word in words:
        for start in range(len(word)):
            for end in range(start + 2, min(start + longest, len(word)) + 1):
                counts[word[start:end]] += 1
    return counts


def bert_normalizer(lowercase: bool) -> normalizers.Normalizer:
    return normalizers.BertNormalizer(lowercase=lowercase, strip_accents=None, handle_chinese_chars=True)


def template(tokenizer: Tokenizer, start: str, end: str) -> processors.PostProcessor:
    """Every text begins with `start` and ends with `end`."""
    return processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )


def wordpiece_vocabulary(lowercase: bool, specials: list[str]) -> dict[str, int]:
    """Specials, single characters at the start and inside of a word, frequent words, frequent pieces."""
    normalizer, splitter = bert_normalizer(lowercase), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in CORPUS for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    letters = LETTERS if lowercase else LETTERS + LETTERS[:26].upper() + TURKISH_LETTERS
    inner = pieces((word[1:] for word in words), 4)
    entries = [*specials, *letters, *(f"##{letter}" for letter in letters if letter.isalnum())]
    entries += most_common(words, 80) + [f"##{piece}" for piece in most_common(inner, 80)]
    return {entry: index for index, entry in enumerate(dict.fromkeys(entries))}


def wordpiece(lowercase: bool, mpnet: bool = False) -> Tokenizer:
    specials = MPNET_SPECIALS if mpnet else WORDPIECE_SPECIALS
    vocabulary = wordpiece_vocabulary(lowercase, specials)
    result = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    result.normalizer = bert_normalizer(lowercase)
    result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    result.decoder = decoders.WordPiece(prefix="##")
    result.post_processor = template(result, *(("<s>", "</s>") if mpnet else ("[CLS]", "[SEP]")))
    result.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return result


def compatibility_characters() -> dict[str, str]:
    """Single-character NFKC rules for a few blocks, and white space: what SentencePiece compiles."""
    blocks = [range(0xA0, 0x100), range(0x2070, 0x209D), range(0x2460, 0x2474), range(0xFB00, 0xFB07)]
    blocks += [range(0xFF01, 0xFF5F), range(0x3000, 0x3001)]
    characters = (chr(point) for block in blocks for point in block)
    rules = {character: unicodedata.normalize("NFKC", character) for character in characters}
    rules |= dict.fromkeys("\t\n\r\u200b\u2028\ufeff", " ")
    return {character: target for character, target in rules.items() if character != target}


def unigram() -> Tokenizer:
    """XLM-R's pipeline: precompiled character map, split at white space, `▁`, Unigram, <s> … </s>."""
    words = Counter("▁" + word for text in CORPUS for word in text.split())
    counts = pieces(words.elements(), 6)
    chosen = most_common(counts, 180)
    letters = [*LETTERS, *LETTERS[:26].upper(), *TURKISH_LETTERS, "▁"]
    entries = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    # Longer pieces score better, each at a different value: one best segmentation.
    entries += [(piece, round(-4.0 - index / 64 + len(piece), 6)) for index, piece in enumerate(chosen)]
    entries += [(letter, round(-9.0 - index / 128, 6)) for index, letter in enumerate(letters)]
    result = Tokenizer(models.Unigram(entries, unk_id=3, byte_fallback=False))
    result.normalizer = normalizers.Precompiled(charsmap(compatibility_characters()))
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    result.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    result.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    specials = [AddedToken(token, normalized=False, special=True) for token, _ in entries[:4]]
    result.add_special_tokens([*specials, AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    return result


def deberta() -> Tokenizer:
    """DeBERTa-v3's pipeline: strip, precompiled character map, one space for several, `▁`, Unigram, [CLS] … [SEP]."""
    pieces_of = json.loads(unigram().to_str())["model"]["vocab"][4:]
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    entries = [(token, 0.0) for token in specials] + [(piece, score) for piece, score in pieces_of]
    result = Tokenizer(models.Unigram(entries, unk_id=3, byte_fallback=False))
    result.normalizer = normalizers.Sequence(
        [
            normalizers.Strip(),
            normalizers.Precompiled(charsmap(compatibility_characters())),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    result.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    result.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    result.post_processor = template(result, "[CLS]", "[SEP]")
    added = [AddedToken(token, normalized=False, special=True) for token in [*specials, "[MASK]"]]
    result.add_special_tokens(added)
    return result


def byte_level_splitter(kind: str) -> pre_tokenizers.PreTokenizer:
    if kind == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "llama":  # as SmolLM2 has it
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    split = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level(kind: str, specials: list[str], merges: int = 60) -> Tokenizer:
    """Byte-level BPE of GPT-2, Llama or Qwen: 256 bytes, the merges, the specials."""
    splitter = byte_level_splitter(kind)
    words = Counter(piece for text in CORPUS for piece, _ in splitter.pre_tokenize_str(text))
    splits = {word: list(word) for word in words}
    rules: list[tuple[str, str]] = []
    for _ in range(merges):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in splits.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        rules.append(best)
        for parts in splits.values():
            at = 0
            while at + 1 < len(parts):
                if (parts[at], parts[at + 1]) == best:
                    parts[at : at + 2] = ["".join(best)]
                at += 1
    entries = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(rule) for rule in rules]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    result = Tokenizer(models.BPE(vocabulary, rules))
    if kind == "qwen":
        result.normalizer = normalizers.NFC()
    result.pre_tokenizer = splitter
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    return result
