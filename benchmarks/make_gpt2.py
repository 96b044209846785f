"""A GPT-2 of the original's size (124 million parameters) with random weights, for speed alone.

    python benchmarks/make_gpt2.py DIR

Its tokenizer knows the 256 bytes. The other tokens are words of letters with a space in front (" xcdb"), so that what
was written reads back as the same tokens: a prompt with an answer in it has no more tokens than the two had.
"""

import argparse
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END = "<|endoftext|>"
SPACE = "Ġ"  # as byte-level tokenizers write it


def tokenizer(size: int) -> Tokenizer:
    """With so many tokens, the last of which is the end of a text."""
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = str.maketrans("0123456789", "abcdefghij")
    names += [f"{SPACE}x{str(number).translate(letters)}" for number in range(size - len(names) - 1)]
    vocabulary = {name: index for index, name in enumerate([*names, END])}
    made = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    out = parser.parse_args().folder
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = GPT2Config()
    made = tokenizer(config.vocab_size)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, bos_token=END).save_pretrained(out)
    GPT2LMHeadModel(config).save_pretrained(out)


if __name__ == "__main__":
    main()
