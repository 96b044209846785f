"""A small tokenizer of every kind that models use, and the ids that transformers gives 1,000 odd texts."""

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from . import files
from .texts import CORPUS, ODD
from .versions import VERSIONS
from .vocabularies import (
    byte_level,
    charsmap,
    compatibility_characters,
    deberta,
    template,
    unigram,
    wordpiece,
)

COUNT = 1000
PARTS = [
    # Turkish casing, with and without its letters
    *("merhaba", "İSTANBUL", "ISPARTA", "ıspanak", "i̇yi", "Iğdır", "ŞEHİR", "çalışma saatleri"),
    *("CALISMA", "zekâ", "ĞÜŞ"),
    *("the", "The", "don't", "CAN'T", "we'Ll", "I'm", "naïve", "hello_world", "camelCase"),
    *("e-mail", "world"),
    # numbers and marks
    *("1234567", "3.14", "%50", "½", "²", "Ⅷ", "٣٤٥", "१२", "!", "?!", "...", "…", "—", "«»", "'"),
    *("’", "(", "]", "\\", "$", "€"),
    # blanks and line ends
    *(" ", " ", " ", "  ", "     ", "\n", "\n\n", "\r\n", " \n ", "\t", "\u00a0", "\u3000"),
    *("\u2028", "\u2003", "\u0085", "\x0b"),
    # control characters, what shows nothing, what is no character
    *("\0", "\x01", "\x1b", "\x7f", "\u200b", "\u200d", "\u200e", "\u00ad", "\ufeff", "\u2060"),
    *("\ufffd", "\ufffe", "\U0010ffff"),
    *("\ue000", "\U000f0000", "\u0378", "\ud7ff"),
    # combining marks in and out of order
    *("e\u0301", "s\u0327", "\u0301", "a\u0323\u0307", "a\u0307\u0323", "i\u0307"),
    *("\u1100\u1161\u11a8", "각", "\u0f71\u0f72", "\u05d0\u05b8"),
    # scripts
    *("你好世界", "日本語", "カタカナ", "ｶﾞ", "한국어", "привет", "ПРИВЕТ", "ΟΔΟΣ", "σοφός", "مرحبا", "שלום"),
    *("नमस्ते", "สวัสดี", "𝔘𝔫", "ＡＢＣ"),
    *("ﬁ", "ﬃ", "ǅ", "ß", "ẞ", "ŉ", "ĳ", "①", "㍿", "℡", "\u0130", "𐐀", "㐀", "\U00020000", "\u2f00"),
    # emoji
    *("😀", "👍🏽", "👨‍👩‍👧", "🇹🇷", "❤️", "1️⃣", "©"),
    # what looks like a token
    *("<s>", "</s>", "[CLS]", "[MASK]", "<mask>", "<|endoftext|>", "##a", "▁", "Ġ", "<0x0A>"),
    *("<unk>", "[UNK]"),
    *("https://example.com/a_b?c=d", "ali@ornek.com.tr", "x"),
]  # fmt: skip
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def numbers() -> Iterator[int]:
    """Knuth's generator, which the tests have too."""
    state = 42
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield state >> 33


def odd_texts() -> list[str]:
    """Texts of 1 to 12 parts; some have one part hundreds of times."""
    found, draw = list(ODD), numbers()
    while len(found) < COUNT:
        text = ""
        for _ in range(1 + next(draw) % 12):
            part = PARTS[next(draw) % len(PARTS)]
            text += part * (1 if next(draw) % 64 else 1 + next(draw) % 300)
        found.append(text)
    return found


def accents_kept() -> Tokenizer:
    result = wordpiece(lowercase=True)
    result.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    return result


def cased_without_accents() -> Tokenizer:
    result = wordpiece(lowercase=False)
    result.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=True, handle_chinese_chars=False)
    return result


def t5() -> Tokenizer:
    result = unigram()
    result.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    result.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return result


def albert() -> Tokenizer:
    result = unigram()
    quotes = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    folds = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    rules = normalizers.Precompiled(charsmap(compatibility_characters()))
    result.normalizer = normalizers.Sequence([*quotes, *folds, rules, normalizers.Replace(Regex(" {2,}"), " ")])
    result.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    return result


def unigram_bytes() -> Tokenizer:
    """Unigram of Gemma's form: nothing is split, unknown characters are bytes."""
    base = json.loads(unigram().to_str())
    entries = [tuple(entry) for entry in base["model"]["vocab"]]
    entries += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    result = Tokenizer(models.Unigram(entries, unk_id=3, byte_fallback=True))
    result.normalizer = normalizers.Replace(" ", "▁")
    return result


def roberta() -> Tokenizer:
    result = byte_level("gpt2", ["<s>", "</s>", "<unk>", "<mask>"])
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    ends = [("</s>", result.token_to_id("</s>")), ("<s>", result.token_to_id("<s>"))]
    result.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=True)
    return result


def jina() -> Tokenizer:
    """RoBERTa without a space before a text; its mask takes the space before it."""
    result = byte_level("gpt2", ["<s>", "</s>", "<unk>"])
    ends = [("</s>", result.token_to_id("</s>")), ("<s>", result.token_to_id("<s>"))]
    result.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=False)
    result.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    return result


def llama3() -> Tokenizer:
    base = json.loads(byte_level("qwen", ["<|begin_of_text|>", "<|endoftext|>"]).to_str())
    base["model"]["ignore_merges"] = True
    result = Tokenizer.from_str(json.dumps(base))
    split = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
    result.normalizer = None
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    start = ("<|begin_of_text|>", result.token_to_id("<|begin_of_text|>"))
    result.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[start])
    return result


def modernbert() -> Tokenizer:
    result = byte_level("gpt2", ["[CLS]", "[SEP]", "[PAD]", "[UNK]"])
    result.normalizer = normalizers.NFC()
    result.post_processor = template(result, "[CLS]", "[SEP]")
    # Runs of blanks and a mask that takes the blank before it, as in ModernBERT's file.
    result.add_tokens([AddedToken(" " * count, normalized=True) for count in (4, 3, 2)])
    result.add_special_tokens([AddedToken("[MASK]", lstrip=True, normalized=False, special=True)])
    return result


def sentencepiece_bpe(gemma: bool) -> Tokenizer:
    """SentencePiece BPE with bytes for unknown characters, as Llama 2 and Gemma have it."""
    words = [word for text in CORPUS for word in text.split()]
    letters = sorted({letter for word in words for letter in word if ord(letter) < 0x180} | {"▁"})
    pairs = ["▁m", "er", "▁ç", "ha", "ba", "▁t", "th", "he", "▁s", "in", "ın", "la", "le", "an", "en", "▁w", "▁▁"]
    specials = ["<unk>", "<s>", "</s>"]
    entries = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *pairs]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    merges = [(pair[0], pair[1]) for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
    result = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True, ignore_merges=False)
    )
    if gemma:
        result.normalizer = normalizers.Replace(" ", "▁")
        result.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        result.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    result.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    result.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    result.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    return result


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece_uncased": lambda: wordpiece(lowercase=True),
    "wordpiece_cased": lambda: wordpiece(lowercase=False),
    "wordpiece_accents_kept": accents_kept,
    "wordpiece_accents_stripped": cased_without_accents,
    "unigram_xlmr": unigram,
    "unigram_t5": t5,
    "unigram_albert": albert,
    "unigram_bytes": unigram_bytes,
    "unigram_deberta": deberta,
    "bytes_gpt2": lambda: byte_level("gpt2", ["<|endoftext|>"]),
    "bytes_roberta": roberta,
    "bytes_jina": jina,
    "bytes_smollm": lambda: byte_level("llama", ["<|endoftext|>"]),
    "bytes_qwen2": lambda: byte_level("qwen", ["<|endoftext|>"]),
    "bytes_llama3": llama3,
    "bytes_modernbert": modernbert,
    "sentencepiece_llama": lambda: sentencepiece_bpe(gemma=False),
    "sentencepiece_gemma": lambda: sentencepiece_bpe(gemma=True),
}  # fmt: skip


# Folders without `tokenizer.json`: the class in transformers, and what `tokenizer_config.json` says besides.
SLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "vocab_uncased": ("BertTokenizer", {"do_lower_case": True}),
    "vocab_cased": ("BertTokenizer", {"do_lower_case": False}),
    "vocab_accents": ("BertTokenizer", {"do_lower_case": True, "strip_accents": False}),
}


def write_slow(name: str, place: Path) -> Any:
    """The vocabulary alone, as models had it before `tokenizer.json`; transformers' tokenizer of it."""
    import transformers

    kind, settings = SLOW[name]
    files.write_json(place / "tokenizer_config.json", {"tokenizer_class": kind, **settings})
    vocabulary = wordpiece(lowercase=settings["do_lower_case"]).get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    (place / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return getattr(transformers, kind).from_pretrained(place)


def digest(ids: list[int]) -> str:
    """Sixteen bits of the CRC-32 of the ids."""
    return f"{zlib.crc32(pack(f'<{len(ids)}I', *ids)) & 0xFFFF:04x}"


def make(fixtures: Path) -> None:
    """Writes `tokenizers/`: a folder for each kind, the parts of the texts, and a digest of the ids of each text."""
    from transformers import PreTrainedTokenizerFast

    folder = fixtures / "tokenizers"
    texts = odd_texts()
    digests: dict[str, Any] = {}
    for name, build in KINDS.items():
        tokenizer = build()
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        compact = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
        (place / "tokenizer.json").write_text(compact + "\n", encoding="utf-8")
        read = PreTrainedTokenizerFast(tokenizer_file=str(place / "tokenizer.json"))
        digests[name] = "".join(digest(read(text)["input_ids"]) for text in texts)
    for name in SLOW:
        (folder / name).mkdir(parents=True, exist_ok=True)
        read = write_slow(name, folder / name)
        digests[name] = "".join(digest(read(text)["input_ids"]) for text in texts)
    recorded = {"versions": VERSIONS, "count": COUNT, "odd": ODD, "parts": PARTS, "digests": digests}
    (folder / "ids.json").write_text(json.dumps(recorded, ensure_ascii=True, indent=0) + "\n", encoding="utf-8")
