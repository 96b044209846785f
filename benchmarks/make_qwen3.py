"""A Qwen3-Embedding of the real 0.6B's size with random weights, for speed alone.

    python benchmarks/make_qwen3.py DIR

28 layers of 1,024, 16 query heads and 8 key heads of 128, a perceptron of 3,072, in bfloat16. Its tokenizer knows the
256 bytes and the end token, which it puts behind every text; the vocabulary is cut to 1,000, for a table costs no time.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model
from transformers.utils import logging

END = "<|endoftext|>"
MODULES = ("Transformer", "Pooling", "Normalize")


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    out = parser.parse_args().folder
    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1000,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    names += [f"x{number}" for number in range(config.vocab_size - len(names) - 1)]
    bare = Tokenizer(models.BPE({name: index for index, name in enumerate([*names, END])}, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = [(END, config.vocab_size - 1)]
    bare.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=special)
    PreTrainedTokenizerFast(tokenizer_object=bare, eos_token=END, pad_token=END, padding_side="left").save_pretrained(
        out
    )
    with torch.device("meta"):
        model = Qwen3Model(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for name, weights in model.named_parameters():
            # The variance of trained weights, about: vectors of different texts then differ.
            weights.copy_(torch.ones_like(weights) if "norm" in name else torch.randn_like(weights) * 0.02)
    model.save_pretrained(out)
    path = "sentence_transformers.models."
    modules = [
        {"idx": index, "name": str(index), "path": f"{index}_{kind}" * bool(index), "type": path + kind}
        for index, kind in enumerate(MODULES)
    ]
    write(out / "modules.json", modules)
    write(out / "1_Pooling" / "config.json", {"word_embedding_dimension": 1024, "pooling_mode_lasttoken": True})
    write(out / "config_sentence_transformers.json", {"prompts": {}, "similarity_fn_name": "cosine"})


if __name__ == "__main__":
    main()
