"""A GPT-2 of the original's size (124 million parameters) with random weights, for speed alone.

    python benchmarks/make_gpt2.py DIR

Its tokenizer knows the 256 bytes; the other tokens exist so that whatever is written can be shown.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging

END = "<|endoftext|>"


def main() -> None:
    out = Path(sys.argv[1])
    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = GPT2Config()
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    names += [f"x{number}" for number in range(config.vocab_size - len(names) - 1)]
    bare = Tokenizer(models.BPE({name: index for index, name in enumerate([*names, END])}, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bare, eos_token=END, bos_token=END).save_pretrained(out)
    GPT2LMHeadModel(config).save_pretrained(out)


if __name__ == "__main__":
    main()
