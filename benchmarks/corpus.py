"""Texts of known length: Turkish and English sentences, joined and cut at words, from a seed.

    short    17.7 tokens on average (5 to 32), what a chat message has
    passage    77 tokens on average (40 to 116), what an index holds
    long      256 tokens, all the model takes; a model without that limit gets the whole text

Tokens are counted with the model's own tokenizer, the two special ones included.

    python benchmarks/corpus.py MODEL OUT.json [--quick]
"""

import argparse
import json
import random
from pathlib import Path

from tokenizers import Tokenizer

SUBJECTS = (
    "Müşteri temsilcisi",
    "Yapay zekâ destekli asistan",
    "Üniversite öğrencileri",
    "Bu akşamki toplantı",
    "Yeni bilgisayarım",
    "Ankara'daki merkez ofis",
    "Sipariş ettiğim ürün",
    "The support team",
    "A small language model",
    "Every customer in the queue",
    "The database server",
    "My grandmother's old recipe",
    "Nobody at the airport",
    "The annual report of the company",
)
ACTIONS = (
    "sorularınızı hızlıca yanıtlıyor",
    "henüz kargoya verilmedi",
    "beklediğimden çok daha iyi çalışıyor",
    "yarın sabah dokuzda başlayacak",
    "güncellemeden sonra açılmıyor",
    "fatura bilgilerini e-posta ile gönderdi",
    "answered within three minutes",
    "runs without a network connection",
    "was restarted twice during the night",
    "explains how embeddings are compared",
    "needs a new password every ninety days",
    "has been translated into Turkish and English",
)
DETAILS = (
    "çünkü depoda yer kalmamıştı.",
    "ve herkes bundan memnun kaldı!",
    "ama neden böyle olduğunu bilmiyoruz.",
    "İstanbul'da yağmur yağarken.",
    "değil mi?",
    "because the cache was still warm.",
    "although the manual says otherwise.",
    "as of 12 March 2024, 14:30.",
    "and that is what the index is for.",
    "which nobody had expected?",
)
WORKLOADS = {"short": (5, 28), "passage": (40, 112), "long": (256, 256)}
COUNTS = {"short": 512, "passage": 256, "long": 64}
QUICK_COUNTS = {"short": 48, "passage": 24, "long": 8}


def words(generator: random.Random) -> list[str]:
    """The words of one sentence."""
    return " ".join(generator.choice(part) for part in (SUBJECTS, ACTIONS, DETAILS)).split()


def load_tokenizer(model: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    limit = model / "sentence_bert_config.json"
    if limit.is_file():
        tokenizer.enable_truncation(json.loads(limit.read_text("utf-8"))["max_seq_length"])
    return tokenizer


def make(tokenizer: Tokenizer, counts: dict[str, int], seed: int = 7) -> dict[str, list[str]]:
    """Workload → texts. A text takes words until it has its number of tokens, or first passes it."""
    sizes: dict[str, int] = {}

    def size(word: str) -> int:
        if word not in sizes:
            sizes[word] = len(tokenizer.encode(word, add_special_tokens=False).ids)
        return sizes[word]

    generator = random.Random(seed)

    def text(wanted: float) -> str:
        """Starts anywhere in a sentence, so that short texts differ too."""
        source = words(generator)
        source = source[generator.randrange(len(source)) :]
        taken: list[str] = []
        length = 0
        while length < wanted:
            if not source:
                source = words(generator)
            taken.append(source.pop(0))
            length += size(taken[-1])
        return " ".join(taken)

    result = {}
    for workload, (least, most) in WORKLOADS.items():
        texts: dict[str, None] = {}  # no text twice: an engine may compute equal ones once
        count = counts[workload]
        while len(texts) < count:
            # Spread evenly. Two tokens are special; the last word goes half a token beyond on average.
            share = len(texts) / max(1, count - 1)
            texts[text(least + (most - least) * share - (2.5 if most > least else 2))] = None
        result[workload] = generator.sample(list(texts), count)
    return result


def main(model: Path, out: Path, quick: bool) -> None:
    tokenizer = load_tokenizer(model)
    texts = make(tokenizer, QUICK_COUNTS if quick else COUNTS)
    tokens = {
        workload: sum(len(encoding.ids) for encoding in tokenizer.encode_batch(part)) / len(part)
        for workload, part in texts.items()
    }
    out.write_text(json.dumps({"texts": texts, "tokens": tokens}, ensure_ascii=False), "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="few texts")
    given = parser.parse_args()
    main(given.model, given.out, given.quick)
